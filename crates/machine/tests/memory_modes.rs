//! Machines whose memory is shared, beside machines whose memory is private.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what is not as expected ends the program")]

mod lab;

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use lab::{Guest, Lab, SHAPE, Snapshot, assert_same_memory, in_lab_with};
use torpor_machine::{Machine, MemoryMode};
use torpor_types::MIB;

async fn pause(lab: &Lab, machine: &Machine, base: Option<&Snapshot>) -> Snapshot {
    let state = machine.stop_and_capture().await.unwrap();
    lab.save(machine, &state, base).await
}

fn of_process(machine: &Machine, what: &str) -> String {
    let read = std::fs::read(format!("/proc/{}/{what}", machine.pid())).unwrap();
    String::from_utf8_lossy(&read).into_owned()
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn memory_that_is_shared_needs_nothing_preloaded_and_survives_pauses_and_copies() {
    in_lab_with(MemoryMode::Shared, |lab: Lab| async move {
        lab.machines.keep_warm(SHAPE, 1, None);
        let (mut machine, mut guest) = lab.boot().await;
        assert!(!of_process(&machine, "environ").contains("LD_PRELOAD"));
        assert!(!of_process(&machine, "maps").contains("ram-map"));
        assert_eq!(guest.ask("fill 64").await, "filled 64");
        assert_eq!(guest.ask("churn").await, "churning");
        let mut base: Option<Snapshot> = None;
        for round in 0..2 {
            assert_eq!(guest.ask(&format!("disk-write {round}")).await, "written");
            guest.ask(&format!("dirty {}", 8 * round)).await;
            // A copy of it while it runs …
            let (path, file) = lab.memory_file(None);
            let (copied, into) = (machine.clone(), file.try_clone().unwrap());
            let ahead =
                tokio::task::spawn_blocking(move || copied.copy_memory_ahead((&into).into())).await.unwrap();
            let state = machine.stop_and_capture().await.unwrap();
            let copy = lab.save_into(&machine, &state, (path, file), ahead.unwrap()).await;
            assert_same_memory(&machine, &copy);
            machine.cont().await.unwrap();
            machine.untrack().await;
            // … is a machine of its own, …
            let (twin, mut in_twin) = lab.resume(&copy).await;
            guest.ask("dirty 4").await;
            in_twin.ask("dirty 8").await;
            assert_eq!(in_twin.ask("check").await, "checked 16384 0", "in the copy of round {round}");
            twin.destroy().await;
            // … and its own memory survives the pause.
            let snapshot = pause(&lab, &machine, base.as_ref()).await;
            assert_same_memory(&machine, &snapshot);
            machine.destroy().await;
            (machine, guest) = lab.resume(&snapshot).await;
            assert_eq!(guest.ask("check").await, "checked 16384 0", "after pause {round}");
            assert_eq!(guest.ask(&format!("disk-check {round}")).await, "disk ok");
            assert!(guest.ask("churned").await.ends_with(" 0"), "after pause {round}");
            base = Some(snapshot);
        }
    });
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn snapshots_of_each_mode_are_resumed_in_the_other_and_machines_keep_theirs_under_any_server() {
    in_lab_with(MemoryMode::Private, |lab: Lab| async move {
        let (booted, mut guest) = lab.boot().await;
        guest.ask("fill 32").await;
        let by_private = pause(&lab, &booted, None).await;
        booted.destroy().await;
        let (private, mut in_private) = lab.resume(&by_private).await;
        in_private.ask("dirty 8").await;
        let private_id = private.id().clone();
        drop((booted, private, in_private));

        // A server with the other mode takes the private machine over, and starts shared ones.
        let next = lab.next_server_with(MemoryMode::Shared).await;
        let adopted = next.adopt().await.unwrap();
        let [private] = adopted.as_slice() else { panic!("{adopted:?}") };
        assert_eq!((private.id(), private.saves_onto_base()), (&private_id, true));
        let mut guest = Guest::connect(private).await;
        assert_eq!(guest.ask("check").await, "checked 8192 0");
        let again = pause(&lab, private, Some(&by_private)).await;
        assert_same_memory(private, &again);
        private.destroy().await;

        let before = std::fs::read(&again.memory).unwrap();
        let load = || async { next.claim(&SHAPE).await.unwrap().load(again.open()).await.unwrap() };
        let (running, stopped) = (load().await, load().await);
        for machine in [&running, &stopped] {
            machine.cont().await.unwrap();
            let mut guest = Guest::connect(machine).await;
            assert_eq!(guest.ask("check").await, "checked 8192 0");
            guest.ask("dirty 16").await;
        }
        stopped.stop_and_capture().await.unwrap();
        assert!(before == std::fs::read(&again.memory).unwrap(), "the snapshot has changed");
        let running_id = running.id().clone();
        drop((adopted, running, stopped, next));

        // And back: a server with private memory takes both over, and resumes what they become.
        let last = lab.next_server_with(MemoryMode::Private).await;
        let adopted = last.adopt().await.unwrap();
        assert_eq!(adopted.len(), 2);
        for machine in &adopted {
            assert_eq!((machine.runs(), machine.saves_onto_base()), (machine.id() == &running_id, false));
            let state = machine.stop_and_capture().await.unwrap();
            let by_shared = lab.save(machine, &state, Some(&again)).await;
            assert_same_memory(machine, &by_shared);
            machine.destroy().await;
            let resumed = last.claim(&SHAPE).await.unwrap().load(by_shared.open()).await.unwrap();
            assert!(resumed.saves_onto_base());
            resumed.cont().await.unwrap();
            let mut guest = Guest::connect(&resumed).await;
            assert_eq!(guest.ask("check").await, "checked 8192 0");
            resumed.destroy().await;
        }
    });
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn a_guest_stands_still_while_the_vault_has_no_room_for_its_memory_and_can_be_paused_meanwhile() {
    in_lab_with(MemoryMode::Shared, |lab: Lab| async move {
        let (machine, mut guest) = lab.boot().await;
        guest.ask("fill 16").await;
        let mut stood_still = machine.stood_still();
        lab.machines.set_room_is_low(true).await;
        let waiting = tokio::spawn(async move { (guest.ask("check").await, guest) });
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!waiting.is_finished(), "it runs");
        assert!(machine.runs(), "nobody was to notice");
        lab.machines.set_room_is_low(false).await;
        let (said, mut guest) = waiting.await.unwrap();
        assert_eq!(said, "checked 4096 0");
        assert!(stood_still.has_changed().unwrap());
        stood_still.mark_unchanged();

        lab.machines.set_room_is_low(true).await;
        let snapshot = pause(&lab, &machine, None).await;
        assert_same_memory(&machine, &snapshot);
        // One that is let go on waits, too.
        machine.cont().await.unwrap();
        let waiting = tokio::spawn(async move { guest.ask("check").await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished(), "it runs");
        lab.machines.set_room_is_low(false).await;
        assert_eq!(waiting.await.unwrap(), "checked 4096 0");
    });
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn a_guest_that_uses_all_its_shared_memory_lives_and_zeros_take_no_room_once_saved() {
    in_lab_with(MemoryMode::Shared, |lab: Lab| async move {
        let (machine, mut guest) = lab.boot().await;
        // Nearly all that the guest has, again and again: its control group has to bear the page cache of it.
        assert_eq!(guest.ask("fill 176").await, "filled 176");
        for _ in 0..3 {
            guest.ask("dirty 176").await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert_eq!(guest.ask("check").await, "checked 45056 0");
        let full = pause(&lab, &machine, None).await;
        machine.cont().await.unwrap();
        guest.ask("zero 96").await;
        let empty = pause(&lab, &machine, None).await;
        assert_same_memory(&machine, &empty);
        let room = |snapshot: &Snapshot| std::fs::metadata(&snapshot.memory).unwrap().blocks() * 512;
        assert!(empty.saved.hole_bytes >= 90 * MIB, "{:?}", empty.saved);
        assert!(room(&empty) + 80 * MIB < room(&full), "{} and {}", room(&empty), room(&full));
    });
}
