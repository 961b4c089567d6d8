//! A recording as a Chrome trace, which Perfetto (ui.perfetto.dev) and `chrome://tracing` open. Owns the format: complete
//! events of one process, names of its threads, times in microseconds.

use serde_json::json;
use tensor::profile::{Span, Trace};

/// The text of `trace.json`. Times have three decimals, so that no nanosecond is lost and spans nest as they were recorded.
pub fn chrome_trace(trace: &Trace, process: u32) -> String {
    let mut events = vec![
        json!({"name": "process_name", "ph": "M", "pid": process, "tid": 0, "args": {"name": "vidtune"}}).to_string(),
    ];
    for (thread, name) in &trace.threads {
        events.push(
            json!({"name": "thread_name", "ph": "M", "pid": process, "tid": thread, "args": {"name": name}})
                .to_string(),
        );
    }
    events.extend(trace.spans.iter().map(|span| complete_event(span, process)));
    let other = json!({"dropped_spans": trace.num_dropped});
    format!("{{\"displayTimeUnit\":\"ms\",\"otherData\":{other},\"traceEvents\":[\n{}\n]}}\n", events.join(",\n"))
}

fn complete_event(span: &Span, process: u32) -> String {
    let name = span.index.map_or_else(|| span.name.to_owned(), |index| format!("{} {index}", span.name));
    format!(
        "{{\"name\":{},\"cat\":{},\"ph\":\"X\",\"ts\":{},\"dur\":{},\"pid\":{process},\"tid\":{}}}",
        json!(name),
        json!(span.name),
        microseconds(span.start_ns),
        microseconds(span.duration_ns),
        span.thread,
    )
}

fn microseconds(nanoseconds: u64) -> String {
    format!("{}.{:03}", nanoseconds / 1000, nanoseconds % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn events_have_the_fields_of_the_format() {
        let span = |name, index, start_ns, duration_ns| Span { name, index, thread: 4, start_ns, duration_ns };
        let trace = Trace {
            spans: vec![span("step", Some(3), 1_000_001, 2_500), span("a \"b\"", None, 1_000_002, 30)],
            threads: [(4, "main".to_owned())].into(),
            num_dropped: 5,
        };
        let value: Value = serde_json::from_str(&chrome_trace(&trace, 77)).unwrap();
        assert_eq!(value["otherData"]["dropped_spans"], 5);
        let events = value["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 4);
        assert_eq!(events[1], json!({"name": "thread_name", "ph": "M", "pid": 77, "tid": 4, "args": {"name": "main"}}));
        assert_eq!(
            events[2],
            json!({"name": "step 3", "cat": "step", "ph": "X", "ts": 1000.001, "dur": 2.5, "pid": 77, "tid": 4})
        );
        assert_eq!((&events[3]["name"], &events[3]["dur"]), (&json!("a \"b\""), &json!(0.03)));
        // An empty recording is a trace as well.
        assert!(serde_json::from_str::<Value>(&chrome_trace(&Trace::default(), 1)).is_ok());
    }
}
