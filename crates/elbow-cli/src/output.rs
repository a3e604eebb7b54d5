//! Standard output that may close: `elbow train | head` goes on training.

use std::io::{self, Write};

/// Prints text as it is.
pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    // Nobody reads any more: nothing to tell, and nobody to tell it to.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints a line.
pub fn line(text: &str) {
    print(&format!("{text}\n"));
}

/// Prints a line beside the output.
#[expect(clippy::print_stderr, reason = "what is no part of the output")]
pub fn note(text: &str) {
    eprintln!("{text}");
}
