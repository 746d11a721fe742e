//! How long work is shown: a bar on a terminal, plain lines elsewhere.
//!
//! Everything goes to standard error, so that standard output holds results only.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ok,
    Warning,
    Failed,
}

/// Shows steps, one after another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Console {
    terminal: bool,
}

/// One step: begun, shown while it lasts, ended by [`Step::ok`] or one of its siblings. Dropped, it is taken away without a word.
#[derive(Debug)]
pub(crate) struct Step {
    title: String,
    begun: Instant,
    bar: ProgressBar,
    terminal: bool,
    /// What is being done, and since when.
    current: Mutex<(String, Instant)>,
    /// Last tenth of the current part that was printed (without a terminal).
    printed: AtomicU32,
}

/// Work shorter than this needs no figure of its duration.
const WORTH_TELLING: Duration = Duration::from_secs(1);
/// Without a terminal, progress is printed at most this often.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

// === impl Console ===

impl Console {
    /// Shows steps on standard error.
    pub(crate) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    /// Begins a step.
    pub(crate) fn step(&self, title: &str) -> Step {
        let target = if self.terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(1000), target);
        bar.set_style(spinner());
        bar.set_prefix(title.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Step {
            title: title.to_owned(),
            begun: Instant::now(),
            bar,
            terminal: self.terminal,
            current: Mutex::new((String::new(), Instant::now())),
            printed: AtomicU32::new(0),
        }
    }
}

// === impl Step ===

impl Step {
    /// The step is done; `text` says what is there now.
    pub(crate) fn ok(self, text: &str) {
        self.print(Outcome::Ok, text);
    }

    /// The step is done, with less than one could wish.
    pub(crate) fn warning(self, text: &str) {
        self.print(Outcome::Warning, text);
    }

    /// The step failed; why is for the caller to say.
    pub(crate) fn failed(self) {
        self.print(Outcome::Failed, "");
    }

    /// As [`Step::failed`], for a step that others still hold.
    pub(crate) fn mark_failed(&self) {
        self.print(Outcome::Failed, "");
    }

    /// What is being done now.
    pub(crate) fn doing(&self, what: &str) {
        self.bar.set_style(spinner());
        self.bar.set_message(what.to_owned());
        self.printed.store(0, Ordering::Relaxed);
        if let Ok(mut current) = self.current.lock() {
            *current = (what.to_owned(), Instant::now());
        }
        if !self.terminal {
            eprintln!("  ..  {}: {what}", self.title);
        }
    }

    /// The share of it that is done, from 0 to 1.
    pub(crate) fn done(&self, fraction: f64) {
        let fraction = fraction.clamp(0.0, 1.0);
        if self.terminal {
            self.bar.set_style(bar());
            // Between 0 and 1000.
            self.bar.set_position((fraction * 1000.0) as u64);
            return;
        }
        let tenth = (fraction * 10.0) as u32;
        let Ok(mut current) = self.current.lock() else { return };
        if tenth > self.printed.load(Ordering::Relaxed) && current.1.elapsed() >= PLAIN_EVERY {
            self.printed.store(tenth, Ordering::Relaxed);
            current.1 = Instant::now();
            eprintln!("  ..  {}: {} {} %", self.title, current.0, tenth * 10);
        }
    }

    fn print(&self, outcome: Outcome, text: &str) {
        self.bar.finish_and_clear();
        eprintln!("{}", line(outcome, &self.title, text, self.begun.elapsed()));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl torpor_template::Progress for Step {
    fn step(&self, what: &str) {
        self.doing(what);
    }

    fn fraction(&self, done: f64) {
        self.done(done);
    }

    fn note(&self, text: &str) {
        self.bar.suspend(|| eprintln!("  ..  {}: {text}", self.title));
    }
}

fn line(outcome: Outcome, title: &str, text: &str, took: Duration) -> String {
    let mark = match outcome {
        Outcome::Ok => "ok  ",
        Outcome::Warning => "warn",
        Outcome::Failed => "FAIL",
    };
    let took = match took >= WORTH_TELLING {
        true => format!(" ({:.1} s)", took.as_secs_f64()),
        false => String::new(),
    };
    format!("  {mark}  {title:<18} {text}{took}").trim_end().to_owned()
}

fn spinner() -> ProgressStyle {
    style("  {spinner}   {prefix:18} {wide_msg} {elapsed}")
}

fn bar() -> ProgressStyle {
    style("  {spinner}   {prefix:18} [{bar:24}] {percent:>3} % {wide_msg} {elapsed}")
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants; a test reads them.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_it_went_what_is_there_and_how_long_it_took() {
        assert_eq!(
            line(Outcome::Ok, "vault", "/data/vault", Duration::from_millis(2340)),
            "  ok    vault              /data/vault (2.3 s)"
        );
        assert_eq!(line(Outcome::Failed, "vault", "", Duration::ZERO), "  FAIL  vault");
    }

    #[test]
    fn the_templates_of_the_bars_are_valid() {
        for template in [
            "  {spinner}   {prefix:18} {wide_msg} {elapsed}",
            "  {spinner}   {prefix:18} [{bar:24}] {percent:>3} % {wide_msg} {elapsed}",
        ] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
