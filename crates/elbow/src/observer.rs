//! What long-running work tells whoever watches.

/// Is told how far a phase has come.
pub trait Observer: Sync {
    /// `done` of `total` samples have passed `phase` ("rollout", "prefilter", "update" or "evaluation").
    fn progress(&self, phase: &'static str, done: usize, total: usize);
}

/// Watches nothing.
impl Observer for () {
    fn progress(&self, _: &'static str, _: usize, _: usize) {}
}
