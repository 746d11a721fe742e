//! How far a long piece of work is.

/// Receives the progress of a build. Calls are cheap and may be frequent.
pub trait Progress: Send + Sync {
    /// A new step begins, for instance `installing packages`; the step before it is done.
    fn step(&self, what: &str);

    /// The share of the current step that is done, from 0 to 1.
    fn fraction(&self, done: f64);

    /// Something worth a line of its own, for instance that a cached result was used.
    fn note(&self, text: &str);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

// === impl Silent ===

impl Progress for Silent {
    fn step(&self, what: &str) {
        tracing::debug!(what, "template step");
    }

    fn fraction(&self, _done: f64) {}

    fn note(&self, text: &str) {
        tracing::debug!(text, "template note");
    }
}
