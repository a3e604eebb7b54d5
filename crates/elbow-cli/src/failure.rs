//! How an error reaches the user: what is wrong, why, and what to do about it.

/// An error that says what is wrong and what to do.
pub fn error(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    elbow_run::Error::new(message, hint).into()
}

/// Prints `error:`, its causes, and `hint:` where one is known.
#[expect(clippy::print_stderr, reason = "this is where errors reach the user")]
pub fn complain(error: &anyhow::Error) {
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  caused by: {cause}");
    }
    if let Some(hint) = advice(error) {
        eprintln!("hint: {hint}");
    }
}

/// What to do about an error, where it is known.
pub fn advice(error: &anyhow::Error) -> Option<String> {
    elbow_run::error::advice(error.as_ref())
}
