//! What machines promise, shown with real ones.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what is not as expected ends the program")]

mod lab;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lab::{Guest, Lab, SHAPE, assert_same_memory, in_lab, in_lab_with};
use torpor_machine::vmm::VmmError;
use torpor_machine::{Ahead, CaptureError, LoadError, LoadSource, Machine, MemoryMode, Rehearsal, SaveError};
use torpor_network::Connector;
use torpor_types::MIB;

/// Fails, instead of hanging, when what is waited for does not come.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .unwrap_or_else(|_| panic!("{what} does not come"))
}

async fn pause(lab: &Lab, machine: &Machine, base: Option<&lab::Snapshot>) -> lab::Snapshot {
    let state = machine.stop_and_capture().await.unwrap();
    lab.save(machine, &state, base).await
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn ten_pauses_in_a_row_lose_no_page_of_memory_and_no_block_of_disk() {
    in_lab(|lab: Lab| async move {
        lab.machines.keep_warm(SHAPE, 1, None);
        let (mut machine, mut guest) = lab.boot().await;
        assert_eq!(guest.ask("fill 64").await, "filled 64");
        assert_eq!(guest.ask("churn").await, "churning");
        let mut base = None;
        for round in 0..10 {
            assert_eq!(guest.ask(&format!("disk-write {round}")).await, "written");
            let state = machine.stop_and_capture().await.unwrap();
            // Changed its mind: it goes on in the same process, and is stopped again.
            machine.cont().await.unwrap();
            assert_eq!(guest.ask(&format!("dirty {round}")).await, format!("dirtied {}", round * 256));
            drop(state);
            let snapshot = pause(&lab, &machine, base.as_ref()).await;
            machine.destroy().await;
            (machine, guest) = lab.resume(&snapshot).await;
            assert_eq!(guest.ask("check").await, "checked 16384 0", "after pause {round}");
            for block in 0..=round {
                assert_eq!(guest.ask(&format!("disk-check {block}")).await, "disk ok", "after pause {round}");
            }
            let churned = guest.ask("churned").await;
            assert!(churned.ends_with(" 0"), "{churned} after pause {round}");
            base = Some(snapshot);
        }
    });
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn a_saved_memory_file_is_the_machines_memory_byte_for_byte() {
    in_lab(|lab: Lab| async move {
        let (machine, mut guest) = lab.boot().await;
        guest.ask("fill 64").await;
        let booted = pause(&lab, &machine, None).await;
        assert_same_memory(&machine, &booted);
        machine.destroy().await;

        let (machine, mut guest) = lab.resume(&booted).await;
        guest.ask("dirty 8").await;
        guest.ask("zero 4").await;
        let resumed = pause(&lab, &machine, Some(&booted)).await;
        assert_same_memory(&machine, &resumed);
        // What was saved is what changed, not all there is; nothing is copied from a RAM file.
        let copied = if lab.mode == MemoryMode::Private { 4 * MIB..40 * MIB } else { 0..1 };
        assert!(copied.contains(&resumed.saved.bytes), "{:?}", resumed.saved);
        assert!(resumed.saved.hole_bytes >= 3 * MIB, "{:?}", resumed.saved);
    });
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn what_is_copied_while_the_guest_writes_is_its_memory_at_the_stop_and_nothing_before() {
    in_lab(|lab: Lab| async move {
        let (machine, mut guest) = lab.boot().await;
        guest.ask("fill 64").await;
        let booted = pause(&lab, &machine, None).await;
        machine.destroy().await;
        let (machine, mut guest) = lab.resume(&booted).await;
        guest.ask("dirty 32").await;
        guest.ask("churn").await;
        // Twice: the second copy finds pages that the first one protected.
        for round in 0..2 {
            let (path, file) = lab.memory_file(Some(&booted));
            let (copied, into) = (machine.clone(), file.try_clone().unwrap());
            let ahead =
                tokio::task::spawn_blocking(move || copied.copy_memory_ahead((&into).into())).await.unwrap();
            let ahead = ahead.unwrap();
            guest.ask(&format!("dirty {round}")).await;
            let state = machine.stop_and_capture().await.unwrap();
            let copied = lab.save_into(&machine, &state, (path, file), ahead).await;
            assert_same_memory(&machine, &copied);
            if kernel_tracks_writes() || lab.mode == MemoryMode::Shared {
                assert_ne!(ahead, Ahead::default(), "nothing was copied ahead");
                assert!(
                    copied.saved.bytes < 24 * MIB,
                    "nearly all of it was copied ahead: {:?}",
                    copied.saved
                );
            }
            machine.cont().await.unwrap();
            machine.untrack().await;
            assert_eq!(guest.ask("check").await, "checked 16384 0");

            let (twin, mut in_twin) = lab.resume(&copied).await;
            assert_eq!(in_twin.ask("check").await, "checked 16384 0");
            assert!(in_twin.ask("churned").await.ends_with(" 0"));
            twin.destroy().await;
        }
        let last = pause(&lab, &machine, Some(&booted)).await;
        assert_same_memory(&machine, &last);
    });
}

/// Linux 6.7 and later do.
fn kernel_tracks_writes() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 7)
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn two_machines_of_one_snapshot_see_nothing_of_each_other_and_leave_it_as_it_was() {
    in_lab(|lab: Lab| async move {
        let (machine, mut guest) = lab.boot().await;
        guest.ask("fill 32").await;
        guest.ask("disk-write 1").await;
        let snapshot = pause(&lab, &machine, None).await;
        machine.destroy().await;
        let before = (std::fs::read(&snapshot.memory).unwrap(), std::fs::read(&snapshot.disk).unwrap());

        let ((one, mut in_one), (two, mut in_two)) =
            tokio::join!(lab.resume(&snapshot), lab.resume(&snapshot));
        assert_ne!(one.pid(), two.pid());
        tokio::join!(in_one.ask("dirty 32"), in_two.ask("dirty 16"));
        tokio::join!(in_one.ask("disk-write 2"), in_two.ask("disk-write 3"));
        for guest in [&mut in_one, &mut in_two] {
            assert_eq!(guest.ask("check").await, "checked 8192 0");
            assert_eq!(guest.ask("disk-check 1").await, "disk ok");
        }
        assert_eq!(in_one.ask("disk-check 2").await, "disk ok");
        assert_eq!(in_one.ask("disk-check 3").await, "disk wrong");
        assert_eq!(in_two.ask("disk-check 2").await, "disk wrong");
        one.destroy().await;
        two.destroy().await;
        let after = (std::fs::read(&snapshot.memory).unwrap(), std::fs::read(&snapshot.disk).unwrap());
        assert!(before == after, "the snapshot has changed");
    });
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn a_save_can_be_cancelled_and_the_guest_goes_on_as_if_nothing_was() {
    in_lab(|lab: Lab| async move {
        let (machine, mut guest) = lab.boot().await;
        guest.ask("fill 64").await;
        let first = machine.stop_and_capture().await.unwrap();
        assert_eq!(machine.stop_and_capture().await.unwrap(), first, "stopping twice is stopping once");
        let file = tempfile::tempfile_in(&lab.dir).unwrap();
        file.set_len(SHAPE.memory_bytes()).unwrap();
        let saving = machine.clone();
        let cancelled = move || {
            let asked = AtomicU32::new(0);
            let result = saving
                .save_memory((&file).into(), Ahead::default(), &|| asked.fetch_add(1, Ordering::Relaxed) > 3);
            (result, saving.save_memory((&file).into(), Ahead::default(), &|| true))
        };
        let (in_the_middle, at_once) = tokio::task::spawn_blocking(cancelled).await.unwrap();
        assert!(matches!(in_the_middle, Err(SaveError::Cancelled)), "{in_the_middle:?}");
        assert!(matches!(at_once, Err(SaveError::Cancelled)), "{at_once:?}");
        machine.cont().await.unwrap();
        assert!(machine.captured_state().is_err(), "a state nobody may use any more is still there");
        assert_eq!(guest.ask("check").await, "checked 16384 0");
        let saving = machine.clone();
        let while_it_runs = tokio::task::spawn_blocking(move || {
            saving.save_memory((&tempfile::tempfile().unwrap()).into(), Ahead::default(), &|| false)
        });
        assert!(matches!(while_it_runs.await.unwrap(), Err(SaveError::Running)));
    });
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn machines_outlive_their_server_and_the_next_one_finds_them_as_they_were() {
    in_lab(|lab: Lab| async move {
        let (booted, mut guest) = lab.boot().await;
        guest.ask("fill 16").await;
        let snapshot = pause(&lab, &booted, None).await;
        let (running, stopped) = tokio::join!(lab.load(&snapshot), lab.load(&snapshot));
        running.cont().await.unwrap();
        stopped.cont().await.unwrap();
        let state = stopped.stop_and_capture().await.unwrap();
        let (running_id, stopped_id) = (running.id().clone(), stopped.id().clone());
        let idle = lab.machines.claim(&SHAPE).await.unwrap();
        let idle_pid = idle.pid().unwrap();
        // As when the server is killed: nothing is destroyed, all connections close.
        std::mem::forget(idle);
        drop((booted, running, stopped));

        let next = lab.next_server().await;
        let mut adopted = next.adopt().await.unwrap();
        adopted.sort_by_key(Machine::runs);
        let [stopped, running] = adopted.as_slice() else { panic!("{adopted:?}") };
        assert_eq!((running.id(), stopped.id()), (&running_id, &stopped_id));
        assert_eq!(running.note(), serde_json::json!({ "test": true }));
        assert!(running.runs() && stopped.is_captured());
        assert_eq!(stopped.captured_state().unwrap(), state);
        assert!(!std::path::Path::new(&format!("/proc/{idle_pid}")).exists(), "an idle machine is left");

        let mut guest = Guest::connect(running).await;
        assert_eq!(guest.ask("check").await, "checked 4096 0");
        stopped.cont().await.unwrap();
        let mut guest = Guest::connect(stopped).await;
        assert_eq!(guest.ask("check").await, "checked 4096 0");
        let again = pause(&lab, stopped, Some(&snapshot)).await;
        let (_, mut guest) = lab.resume(&again).await;
        assert_eq!(guest.ask("check").await, "checked 4096 0");
        next.remove_all().await;
    });
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn a_machine_that_dies_is_reported_with_what_was_being_done() {
    in_lab(|lab: Lab| async move {
        let (machine, _guest) = lab.boot().await;
        let pid = rustix::process::Pid::from_raw(machine.pid() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        soon("the end of the process", machine.exited()).await;
        let error = machine.stop_and_capture().await.unwrap_err();
        assert!(matches!(error, CaptureError::Vmm(VmmError::Died { .. })), "{error}");
        machine.destroy().await;
        machine.destroy().await;
    });
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn a_snapshot_that_does_not_fit_is_refused_and_leaves_no_machine() {
    in_lab(|lab: Lab| async move {
        let (machine, _guest) = lab.boot().await;
        let snapshot = pause(&lab, &machine, None).await;
        machine.destroy().await;

        let short = tempfile::tempfile_in(&lab.dir).unwrap();
        short.set_len(SHAPE.memory_bytes() / 2).unwrap();
        let source = LoadSource { memory: short, ..snapshot.open() };
        let error = lab.machines.claim(&SHAPE).await.unwrap().load(source).await.unwrap_err();
        assert!(matches!(error, LoadError::Vmm(VmmError::Io { .. }) | LoadError::Memory(_)), "{error}");

        let half = snapshot.state[..snapshot.state.len() / 2].to_vec();
        let source = LoadSource { state: half, ..snapshot.open() };
        let error = lab.machines.claim(&SHAPE).await.unwrap().load(source).await.unwrap_err();
        assert!(matches!(error, LoadError::Vmm(_)), "{error}");
        assert_eq!(std::fs::read_dir(lab.dir.join("run/machines")).unwrap().count(), 0);
    });
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn memory_that_a_guest_gives_back_is_in_no_later_snapshot() {
    in_lab(|lab: Lab| async move {
        let (machine, mut guest) = lab.boot().await;
        guest.ask("fill 96").await;
        let full = pause(&lab, &machine, None).await;
        machine.destroy().await;
        let (machine, mut guest) = lab.resume(&full).await;
        assert_eq!(guest.ask("check").await, "checked 24576 0");
        guest.ask("fill 8").await;
        // The guest says what is free every two seconds of its own time, which stands still while it is saved.
        let shrunk = soon("a smaller snapshot", async {
            let mut now_and_then = tokio::time::interval(Duration::from_secs(3));
            now_and_then.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                now_and_then.tick().await;
                let saved = pause(&lab, &machine, Some(&full)).await;
                machine.cont().await.unwrap();
                if saved.memory_bytes() + 64 * MIB < full.memory_bytes() {
                    break saved;
                }
            }
        });
        let shrunk = shrunk.await;
        let last = pause(&lab, &machine, Some(&full)).await;
        assert_same_memory(&machine, &last);
        machine.destroy().await;
        let (machine, mut guest) = lab.resume(&shrunk).await;
        assert_eq!(guest.ask("check").await, "checked 2048 0");
        // What was given back can be used again.
        guest.ask("fill 96").await;
        assert_eq!(guest.ask("check").await, "checked 24576 0");
        machine.destroy().await;
    });
}

/// Has the guest of a snapshot do what `asks`.
#[derive(Debug)]
struct Asking {
    snapshot: lab::Snapshot,
    asks: &'static [(&'static str, &'static str)],
}

#[async_trait::async_trait]
impl Rehearsal for Asking {
    fn name(&self) -> &str {
        "asking"
    }

    async fn open(&self) -> Result<LoadSource, Box<dyn Error + Send + Sync>> {
        Ok(self.snapshot.open())
    }

    async fn play(&self, connector: &Connector) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut guest = Guest::at(connector).await;
        for (question, answer) in self.asks {
            assert_eq!(guest.ask(question).await, *answer);
        }
        Ok(())
    }
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn a_guest_never_runs_code_that_its_machine_has_rehearsed_in_another_form() {
    in_lab_with(MemoryMode::Private, |lab: Lab| async move {
        let (machine, mut guest) = lab.boot().await;
        guest.ask("fill 16").await;
        guest.ask("disk-write 1").await;
        guest.ask("code 1").await;
        assert_eq!(guest.ask("call").await, "returned 1");
        let one = pause(&lab, &machine, None).await;
        machine.destroy().await;
        // The same page of the guest's memory, with other code.
        let (machine, mut guest) = lab.resume(&one).await;
        guest.ask("code 2").await;
        assert_eq!(guest.ask("call").await, "returned 2");
        let two = pause(&lab, &machine, Some(&one)).await;
        machine.destroy().await;
        one.flush();
        two.flush();

        let asks: &[_] = &[
            ("call", "returned 1"),
            ("code 9", "written"),
            ("call", "returned 9"),
            ("disk-write 1", "written"),
        ];
        let rehearsal: Arc<dyn Rehearsal> = Arc::new(Asking { snapshot: one.clone(), asks });
        lab.machines.keep_warm(SHAPE, 2, Some(rehearsal));
        for (snapshot, returns) in [(&one, "returned 1"), (&two, "returned 2"), (&one, "returned 1")] {
            soon("a machine that has rehearsed", async {
                let mut often = tokio::time::interval(Duration::from_millis(10));
                while lab.machines.rehearsed(&SHAPE) == 0 {
                    often.tick().await;
                }
            })
            .await;
            let idle = lab.machines.claim(&SHAPE).await.unwrap();
            assert_eq!(idle.rehearsed(), Some("asking"));
            let machine = idle.load(snapshot.open()).await.unwrap();
            machine.cont().await.unwrap();
            let mut guest = Guest::connect(&machine).await;
            assert_eq!(guest.ask("call").await, returns);
            assert_eq!(guest.ask("check").await, "checked 4096 0");
            assert_eq!(guest.ask("disk-check 1").await, "disk ok");
            // And what is saved of it is whole.
            guest.ask("dirty 4").await;
            guest.ask("disk-write 2").await;
            let later = pause(&lab, &machine, Some(snapshot)).await;
            assert_same_memory(&machine, &later);
            machine.destroy().await;
            lab.machines.keep_warm(SHAPE, 0, None);
            let (machine, mut guest) = lab.resume(&later).await;
            assert_eq!(guest.ask("call").await, returns);
            assert_eq!(guest.ask("check").await, "checked 4096 0");
            assert_eq!(guest.ask("disk-check 2").await, "disk ok");
            machine.destroy().await;
            let rehearsal: Arc<dyn Rehearsal> = Arc::new(Asking { snapshot: one.clone(), asks });
            lab.machines.keep_warm(SHAPE, 2, Some(rehearsal));
        }
    });
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn machines_are_ready_before_they_are_asked_for_and_replaced_when_taken() {
    in_lab(|lab: Lab| async move {
        let ready = |wanted: usize| {
            let machines = lab.machines.clone();
            async move {
                let mut often = tokio::time::interval(Duration::from_millis(10));
                while machines.warm(&SHAPE) != wanted {
                    often.tick().await;
                }
            }
        };
        lab.machines.keep_warm(SHAPE, 2, None);
        soon("a full pool", ready(2)).await;
        let taken = lab.machines.claim(&SHAPE).await.unwrap();
        assert_eq!(lab.machines.warm(&SHAPE), 1);
        soon("a full pool", ready(2)).await;
        taken.destroy().await;
        lab.machines.keep_warm(SHAPE, 0, None);
        soon("an empty pool", ready(0)).await;
    });
}
