//! Writes the page of some runs: `cargo run --example page -- OUT RUN…`.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let out = arguments.next().ok_or("where to write?")?;
    let runs: Vec<String> = arguments.collect();
    std::fs::write(out, elbow_report::Report::read(&runs)?.html())?;
    Ok(())
}
