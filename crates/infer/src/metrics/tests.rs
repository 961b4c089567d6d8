//! Metrics against the public Python implementations (fixtures/metrics, tools/oracle/metrics.py), and the rules that have
//! none.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::*;

fn fixture<T: DeserializeOwned>(name: &str) -> T {
    let path = format!("{}/../../fixtures/metrics/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Sums of a few hundred products in another order than the reference's: 1e-12 is far above their rounding and far below
/// any digit that is printed.
fn close(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() <= 1e-12 + 1e-12 * expected.abs(), "{what}: {found} against {expected}");
}

fn all_close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        close(*f, *e, &format!("{what} {i}"));
    }
}

#[derive(Deserialize)]
struct Corpora {
    corpora: Vec<Corpus>,
}

#[derive(Deserialize)]
struct Corpus {
    name: String,
    references: Vec<Vec<String>>,
    answers: Vec<String>,
    bleu: [f64; 4],
    bleu_records: [Vec<f64>; 4],
    rouge_l: f64,
    rouge_l_records: Vec<f64>,
    cider: f64,
    cider_records: Vec<f64>,
    rouge_score: Vec<f64>,
    sacrebleu: Option<f64>,
}

#[test]
fn caption_metrics_equal_the_public_implementations() {
    let Corpora { corpora } = fixture("captions.json");
    assert!(corpora.len() >= 5);
    for c in &corpora {
        let b = bleu(&c.references, &c.answers).unwrap();
        all_close(&[b.bleu1, b.bleu2, b.bleu3, b.bleu4], &c.bleu, &format!("{} bleu", c.name));
        for (order, expected) in c.bleu_records.iter().enumerate() {
            let found: Vec<f64> = b.records.iter().map(|r| r[order]).collect();
            all_close(&found, expected, &format!("{} bleu of order {}", c.name, order + 1));
        }
        let r = rouge_l(&c.references, &c.answers).unwrap();
        close(r.mean, c.rouge_l, &format!("{} rouge-l", c.name));
        all_close(&r.records, &c.rouge_l_records, &format!("{} rouge-l", c.name));
        let d = cider(&c.references, &c.answers).unwrap();
        close(d.mean, c.cider, &format!("{} cider", c.name));
        all_close(&d.records, &c.cider_records, &format!("{} cider", c.name));
        let f = rouge_l_f1(&c.references, &c.answers).unwrap();
        all_close(&f.records, &c.rouge_score, &format!("{} rouge-score", c.name));
        if let Some(expected) = c.sacrebleu {
            // An independent implementation without the caption form's small constants.
            assert!((b.bleu4 - expected).abs() < 1e-6, "{}: {} against {expected}", c.name, b.bleu4);
        }
    }
}

#[test]
fn corpora_that_cannot_be_judged_are_refused() {
    let none: [Vec<String>; 0] = [];
    assert_eq!(bleu(&none, &[] as &[&str]), Err(MetricError::Empty));
    assert_eq!(rouge_l(&[vec!["a"]], &["a", "b"]), Err(MetricError::Lengths { references: 1, answers: 2 }));
    assert_eq!(cider(&[vec!["a"], vec![]], &["a", "b"]), Err(MetricError::NoReference { index: 1 }));
}

#[derive(Deserialize)]
struct Tokenized {
    sentences: Vec<(String, Vec<String>)>,
}

#[test]
fn tokens_equal_the_java_tokenizer() {
    let Tokenized { sentences } = fixture("ptb.json");
    assert!(sentences.len() >= 100);
    let wrong: Vec<String> = sentences
        .iter()
        .filter(|(text, expected)| ptb::tokenize(text) != *expected)
        .map(|(text, expected)| format!("{text:?}\n   ours {:?}\n  their {expected:?}", ptb::tokenize(text)))
        .collect();
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), sentences.len(), wrong.join("\n"));
}

#[test]
fn caption_scores_tokenise_first() {
    let references = [vec!["A man's riding a horse."], vec!["Two dogs run, fast!"]];
    let scores = caption_scores(&references, &["a man 's riding a horse", "two dogs run fast"]).unwrap();
    assert!((scores.bleu.bleu4 - 1.0).abs() < 1e-6);
    close(scores.rouge_l.mean, 1.0, "rouge-l");
    assert!((scores.cider.mean - 10.0).abs() < 1e-9);
}

#[derive(Deserialize)]
struct Answers {
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    references: Vec<String>,
    answer: String,
    exact: bool,
    f1: f64,
}

#[test]
fn short_answers_equal_the_squad_metric() {
    let Answers { answers } = fixture("answers.json");
    assert!(answers.len() >= 30);
    for a in &answers {
        assert_eq!(exact_match(&a.references, &a.answer), a.exact, "{:?} {:?}", a.references, a.answer);
        // The reference computes in single precision.
        let f1 = token_f1(&a.references, &a.answer);
        assert!((f1 - a.f1).abs() < 1e-6, "{:?} {:?}: {f1} against {}", a.references, a.answer, a.f1);
    }
}

#[derive(Deserialize)]
struct Classified {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    truth: Vec<String>,
    predicted: Vec<Option<String>>,
    accuracy: f64,
    macro_f1: f64,
    classes: Vec<(String, f64, f64, f64, usize)>,
}

#[test]
fn classes_equal_scikit_learn() {
    let Classified { cases } = fixture("classes.json");
    for case in cases {
        let found = classification(&case.truth, &case.predicted).unwrap();
        close(found.accuracy, case.accuracy, "accuracy");
        close(found.macro_f1, case.macro_f1, "macro f1");
        assert_eq!(found.classes.len(), case.classes.len());
        for (class, (label, precision, recall, f1, support)) in found.classes.iter().zip(case.classes) {
            assert_eq!((&class.label, class.support), (&label, support));
            all_close(&[class.precision, class.recall, class.f1], &[precision, recall, f1], &label);
        }
        assert_eq!(found.num_unmatched, case.predicted.iter().filter(|p| p.is_none()).count());
    }
    assert_eq!(classification::<&str, &str>(&[], &[]), Err(MetricError::Empty));
}

#[test]
fn letters_are_read_where_one_is_given() {
    let options = ["A red square", "the blue circle", "a green star", "nothing"];
    let check = |answer: &str, expected: Option<char>| {
        assert_eq!(choice_letter(answer, &options), expected, "{answer:?}");
    };
    for answer in ["B", "b", " B ", "B.", "B)", "(B)", "[b]", "**B**", "\"B\"", "B:", "b.\n"] {
        check(answer, Some('B'));
    }
    for answer in [
        "B. the blue circle",
        "(B) the blue circle",
        "B) because it is blue",
        "**B.** It moves",
        "The answer is B",
        "The answer is (B).",
        "The correct answer is: B",
        "Answer: B",
        "Answer: **B**",
        "answer is b",
        "The best option is B, since A is red",
        "Option B",
        "I choose option (b).",
        "It must be (B)",
        "the blue circle",
        "The blue circle.",
        "I think it is the blue circle that moves",
        "I would say B here",
        "It looks like B",
    ] {
        check(answer, Some('B'));
    }
    check("A red square", Some('A'));
    check("A square that is red", None);
    check("A", Some('A'));
    check("a green star is above the blue circle", None);
    check("The answer is a green star", Some('C'));
    check("The answer is (A) or (B)", None);
    check("The answer is A/B", None);
    check("The answer is B and not A", Some('B'));
    check("The answer is (B), (A) is red", Some('B'));
    check("Answer: A. No, answer: B", None);
    for answer in ["E", "", "   ", "?", "maybe", "I do not know", "E. none", "The answer is Z", "5"] {
        check(answer, None);
    }
    assert_eq!(choice_letter("E", &["1", "2", "3", "4", "5"]), Some('E'));
    assert_eq!(choice_letter("A", &[] as &[&str]), None);
}

#[test]
fn labels_are_matched_when_one_is_named() {
    let labels = ["left", "right", "top left", "Not moving"];
    let check =
        |answer: &str, expected: Option<usize>| assert_eq!(match_label(answer, &labels), expected, "{answer:?}");
    check("Left.", Some(0));
    check("It moves to the right", Some(1));
    check("the top left corner", Some(2));
    check("not moving", Some(3));
    check("left or right", None);
    check("leftover", None);
    check("", None);
    assert_eq!(match_label("same", &["same", "Same."]), None);
}
