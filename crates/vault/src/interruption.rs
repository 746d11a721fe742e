//! Steps at which a test ends the server, to see what the next one makes of what is left.
//!
//! Each step of an operation that leaves something behind has a number. With the feature `interruptions`, which is for
//! tests alone, the process aborts at the step that the environment names; without it, nothing is here.

/// The variable that names the step.
pub const VARIABLE: &str = "TORPOR_INTERRUPT_AT";

/// Here is a step: aborts the process if it is the one that is named.
#[inline]
pub fn step(name: &'static str) {
    #[cfg(feature = "interruptions")]
    {
        static AT: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
        let at = AT.get_or_init(|| std::env::var(VARIABLE).ok());
        if at.as_deref() == Some(name) {
            std::process::abort();
        }
    }
    #[cfg(not(feature = "interruptions"))]
    let _ = name;
}
