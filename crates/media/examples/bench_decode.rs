//! Times decoding for `tools/oracle/bench_decode.py`: `bench_decode FILE NUM_FRAMES REPEATS`, one line of JSON.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, file, num_frames, repeats] = arguments.as_slice() else {
        return Err("usage: bench_decode FILE NUM_FRAMES REPEATS".into());
    };
    let bench = media::bench_decode(Path::new(file), num_frames.parse()?, repeats.parse()?)?;
    println!(
        r#"{{"cpu_s":{},"median_s":{},"index_s":{},"num_frames":{},"total_frames":{}}}"#,
        bench.cpu_s, bench.median_s, bench.index_s, bench.num_frames, bench.total_frames
    );
    Ok(())
}
