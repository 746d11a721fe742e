//! What a plan promises, whatever the facts.

use proptest::prelude::*;

use super::*;

fn moment(day: i64) -> Timestamp {
    Timestamp::from_second(day * DAY_S).unwrap()
}

fn team_id(number: usize) -> TeamId {
    format!("gteam{number}").parse().unwrap()
}

fn sandbox_id(number: usize) -> SandboxId {
    format!("i{number}").parse().unwrap()
}

fn template_id(number: usize) -> TemplateId {
    format!("t{number}").parse().unwrap()
}

fn some_days() -> impl Strategy<Value = Option<u32>> {
    proptest::option::of(0_u32..60)
}

fn some_facts() -> impl Strategy<Value = Facts> {
    let team = (some_days(), some_days());
    let sandbox = (0_usize..3, 0_usize..6, proptest::option::of(0_i64..100), some_days());
    let snapshot = (0_usize..3, 0_i64..100);
    (
        (0_u32..60, 0_u32..60),
        proptest::collection::vec(team, 0..3),
        proptest::collection::vec(sandbox, 0..12),
        proptest::collection::vec(snapshot, 0..6),
    )
        .prop_map(|((paused_days, snapshot_days), teams, sandboxes, snapshots)| Facts {
            now: moment(100),
            retention: Retention { paused_days, snapshot_days },
            teams: teams
                .into_iter()
                .enumerate()
                .map(|(number, (retention_days, snapshot_retention_days))| TeamFacts {
                    id: team_id(number),
                    name: format!("team {number}"),
                    limits: TeamLimits { retention_days, snapshot_retention_days, ..TeamLimits::default() },
                })
                .collect(),
            sandboxes: sandboxes
                .into_iter()
                .enumerate()
                .map(|(number, (team, origin, paused, retention_days))| SandboxFacts {
                    id: sandbox_id(number),
                    team: team_id(team),
                    origin: template_id(origin),
                    paused_at: paused.map(moment),
                    retention_days,
                })
                .collect(),
            snapshots: snapshots
                .into_iter()
                .enumerate()
                .map(|(number, (team, taken))| SnapshotFacts {
                    id: template_id(number),
                    name: format!("name{number}"),
                    team: team_id(team),
                    taken_at: moment(taken),
                })
                .collect(),
        })
}

fn ids(plan: &Plan, what: What) -> HashSet<&str> {
    let of_that_kind = plan.removals.iter().filter(|removal| removal.what == what);
    of_that_kind.map(|removal| removal.id.as_str()).collect()
}

proptest! {
    #[test]
    fn nothing_goes_that_runs_or_is_kept_for_ever_or_is_younger_than_it_is_kept(facts in some_facts()) {
        let plan = plan(&facts);
        for removal in &plan.removals {
            prop_assert!(removal.kept_days > 0);
            let age_s = facts.now.as_second() - removal.since.as_second();
            prop_assert!(age_s >= i64::from(removal.kept_days) * DAY_S, "{removal:?}");
        }
        for sandbox in facts.sandboxes.iter().filter(|sandbox| sandbox.paused_at.is_none()) {
            prop_assert!(!ids(&plan, What::Sandbox).contains(sandbox.id.as_str()));
        }
    }

    #[test]
    fn a_snapshot_stays_as_long_as_a_sandbox_made_from_it_does(facts in some_facts()) {
        let plan = plan(&facts);
        let (sandboxes, snapshots) = (ids(&plan, What::Sandbox), ids(&plan, What::Snapshot));
        for sandbox in facts.sandboxes.iter().filter(|sandbox| !sandboxes.contains(sandbox.id.as_str())) {
            prop_assert!(!snapshots.contains(sandbox.origin.as_str()));
        }
        for kept in &plan.in_use {
            prop_assert!(!kept.sandboxes.is_empty() && !snapshots.contains(kept.id.as_str()));
        }
    }

    #[test]
    fn whose_time_is_over_goes_at_once_and_the_next_plan_has_nothing_left_to_remove(facts in some_facts()) {
        let first = plan(&facts);
        let mut after = facts.clone();
        after.sandboxes.retain(|sandbox| !ids(&first, What::Sandbox).contains(sandbox.id.as_str()));
        after.snapshots.retain(|snapshot| !ids(&first, What::Snapshot).contains(snapshot.id.as_str()));
        let second = plan(&after);
        prop_assert!(second.removals.is_empty(), "{second:?}");
        prop_assert_eq!(second.in_use, first.in_use);
    }

    #[test]
    fn the_order_of_the_facts_has_no_say(facts in some_facts()) {
        let mut turned = facts.clone();
        turned.sandboxes.reverse();
        turned.snapshots.reverse();
        turned.teams.reverse();
        prop_assert_eq!(plan(&turned), plan(&facts));
    }

    #[test]
    fn keeping_for_longer_never_removes_more(facts in some_facts(), more in 1_u32..30) {
        let mut longer = facts.clone();
        longer.retention.paused_days = match facts.retention.paused_days { 0 => 0, days => days + more };
        longer.retention.snapshot_days = match facts.retention.snapshot_days { 0 => 0, days => days + more };
        let (shorter, longer) = (plan(&facts), plan(&longer));
        prop_assert!(ids(&longer, What::Sandbox).is_subset(&ids(&shorter, What::Sandbox)));
        prop_assert!(ids(&longer, What::Snapshot).is_subset(&ids(&shorter, What::Snapshot)));
    }
}

#[test]
fn the_sandbox_beats_its_team_and_the_team_beats_the_server() {
    let retention = Retention { paused_days: 30, snapshot_days: 7 };
    let none = TeamLimits::default();
    let own = TeamLimits { retention_days: Some(5), snapshot_retention_days: Some(0), ..none };
    assert_eq!(retention.of_paused(&none, None), (30, SaidBy::Server));
    assert_eq!(retention.of_paused(&own, None), (5, SaidBy::Team));
    assert_eq!(retention.of_paused(&own, Some(0)), (0, SaidBy::Sandbox));
    assert_eq!(retention.of_snapshot(&none), (7, SaidBy::Server));
    assert_eq!(retention.of_snapshot(&own), (0, SaidBy::Team));
}

#[test]
fn a_sandbox_goes_to_the_second_when_its_days_are_over() {
    let paused_at = moment(1);
    let until = kept_until(paused_at, 30).unwrap();
    assert_eq!(until, moment(31));
    assert!(is_over(paused_at, 30, until));
    assert!(!is_over(paused_at, 30, until - SignedDuration::from_nanos(1)));
    assert_eq!(kept_until(paused_at, 0), None);
    assert_eq!(kept_until(Timestamp::MAX, MAX_DAYS), None);
}
