//! Has guests whose memory is a file in the vault stand still before there is no room for what they write: without room the
//! kernel would kill their machines.

use std::sync::Weak;
use std::time::Duration;

use super::node::Node;

/// With less than that free, guests stand still; with more than `ENOUGH`, they go on.
const LOW: u64 = 384 << 20;
const ENOUGH: u64 = 512 << 20;

/// With more than that free, it is looked at seldom: nothing fills it between two looks.
const PLENTY: u64 = 4 << 30;
const SELDOM: Duration = Duration::from_millis(500);
const OFTEN: Duration = Duration::from_millis(50);

/// Looks as long as the node is there.
pub(super) async fn watch(node: Weak<Node>) {
    let mut was_low = false;
    loop {
        let Some(node) = node.upgrade() else { return };
        let (free, is_low) = look(&node, was_low).await;
        was_low = is_low;
        drop(node);
        tokio::time::sleep(if free > PLENTY { SELDOM } else { OFTEN }).await;
    }
}

/// Looks once. Says how much is free, and whether that is too little.
pub(super) async fn look(node: &Node, was_low: bool) -> (u64, bool) {
    if node.machines.filling_vault().is_empty() && !was_low {
        return (u64::MAX, false);
    }
    let vault = node.vault.clone();
    let room = tokio::task::spawn_blocking(move || vault.room()).await;
    // If the file system does not say, it is left to itself.
    let free = room.ok().and_then(Result::ok).map_or(u64::MAX, |room| room.free_bytes);
    let is_low = is_low(free, was_low);
    if is_low != was_low {
        match is_low {
            true => tracing::error!(
                free,
                "the vault is nearly full: sandboxes whose memory lies in it stand still"
            ),
            false => tracing::info!(free, "the vault has room again: sandboxes go on"),
        }
    }
    if is_low || was_low {
        node.machines.set_room_is_low(is_low).await;
    }
    (free, is_low)
}

fn is_low(free: u64, was_low: bool) -> bool {
    free < if was_low { ENOUGH } else { LOW }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_that_stand_still_go_on_only_when_there_is_a_little_more_than_what_stopped_them() {
        assert!(is_low(LOW - 1, false) && !is_low(LOW, false));
        assert!(is_low(LOW, true) && !is_low(ENOUGH, true));
    }
}
