//! How long each step of pause and resume takes, and what machines take of memory:
//! `cargo run --release -p torpor-machine --example steps [ROUNDS]`, as root, with `TORPOR_TEST_DATA_DIR` naming a data
//! directory that `torpor setup` made.
//!
//! The guest holds 64 MiB and dirties 16 of them in each round.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what is not as expected ends the program")]

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lab::{Guest, Lab, SHAPE, in_lab};
use torpor_machine::Machine;
use tracing::Subscriber;
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

/// Collects how long spans lived, by name.
#[derive(Clone, Default)]
struct Durations(Arc<Mutex<BTreeMap<&'static str, Vec<Duration>>>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Durations {
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Instant::now());
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        if let Some(begun) = span.extensions().get::<Instant>() {
            self.add(span.name(), begun.elapsed());
        }
    }
}

impl Durations {
    fn add(&self, name: &'static str, duration: Duration) {
        self.0.lock().unwrap().entry(name).or_default().push(duration);
    }

    fn print(&self) {
        println!("{:<24} {:>5} {:>9} {:>9} {:>9}  (ms)", "step", "times", "fastest", "median", "slowest");
        for (name, durations) in self.0.lock().unwrap().iter_mut() {
            durations.sort_unstable();
            let ms = |i: usize| durations[i].as_secs_f64() * 1e3;
            let (n, last) = (durations.len(), durations.len() - 1);
            println!("{name:<24} {n:>5} {:>9.2} {:>9.2} {:>9.2}", ms(0), ms(n / 2), ms(last));
        }
    }
}

/// Resident and proportional memory of a process, in MiB.
fn print_memory(what: &str, pid: u32) {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let mib = |name: &str| {
        let line = rollup.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    let (rss, pss, anonymous) = (mib("Rss:"), mib("Pss:"), mib("Pss_Anon:"));
    println!("{what:<24} resident {rss} MiB, proportional {pss} MiB, of that anonymous {anonymous} MiB");
}

fn main() {
    let rounds: usize = std::env::args().nth(1).map_or(10, |text| text.parse().expect("ROUNDS is a number"));
    let durations = Durations::default();
    let subscriber = tracing_subscriber::registry().with(durations.clone());
    tracing::subscriber::set_global_default(subscriber).expect("the first");
    in_lab(move |lab: Lab| async move {
        let begun = Instant::now();
        let (mut machine, mut guest) = lab.boot().await;
        durations.add("= boot to answer", begun.elapsed());
        guest.ask("fill 64").await;
        let mut base: Option<lab::Snapshot> = None;
        for _ in 0..rounds {
            guest.ask("dirty 16").await;
            let begun = Instant::now();
            let state = machine.stop_and_capture().await.unwrap();
            durations.add("= pause", begun.elapsed());
            let begun = Instant::now();
            let snapshot = lab.save(&machine, &state, base.as_ref()).await;
            durations.add("= save", begun.elapsed());
            machine.destroy().await;
            let begun = Instant::now();
            let idle = lab.machines.claim(&SHAPE).await.unwrap();
            durations.add("= claim, cold", begun.elapsed());
            if base.is_none() {
                print_memory("idle", idle.pid().unwrap());
            }
            let begun = Instant::now();
            machine = idle.load(snapshot.open()).await.unwrap();
            machine.cont().await.unwrap();
            durations.add("= resume", begun.elapsed());
            guest = Guest::connect(&machine).await;
            guest.ask("ping").await;
            durations.add("= resume to answer", begun.elapsed());
            assert_eq!(guest.ask("check").await, "checked 16384 0");
            base = Some(snapshot);
        }
        print_memory("after resume and check", Machine::pid(&machine));
        durations.print();
    });
}
