//! Deadlines: pure arithmetic on the moments a sandbox may live to.

use jiff::{SignedDuration, Timestamp};

use super::api::{DEFAULT_TIMEOUT_S, LifecycleError};
use crate::registry::SandboxRecord;

/// Seconds that `refresh` grants at least.
const REFRESH_MINIMUM_S: i64 = 15;

/// Refuses a timeout that is not positive or over the maximum.
pub(super) fn check_timeout(timeout_s: i64, max_s: i64) -> Result<(), LifecycleError> {
    if timeout_s <= 0 {
        return Err(LifecycleError::TimeoutNotPositive);
    }
    check_maximum(timeout_s, max_s)
}

/// Refuses a timeout over the maximum; `connect` takes any below it.
pub(super) fn check_maximum(timeout_s: i64, max_s: i64) -> Result<(), LifecycleError> {
    if timeout_s > max_s {
        return Err(LifecycleError::TimeoutTooLong { max_hours: max_s / 3600 });
    }
    Ok(())
}

/// The moment `seconds` after `from`; at the end of time where that overflows.
pub(super) fn after(from: Timestamp, seconds: i64) -> Timestamp {
    from.checked_add(SignedDuration::from_secs(seconds.max(0))).unwrap_or(Timestamp::MAX)
}

/// The deadline `POST /timeout` sets: now + timeout, at once if that is not positive, never so late that the sandbox
/// runs for more than `max_s` from its start. [`LifecycleError::MaxLengthExceeded`] if it has run that long already.
pub(super) fn set(
    record: &SandboxRecord,
    now: Timestamp,
    timeout_s: i64,
    max_s: i64,
) -> Result<Timestamp, LifecycleError> {
    let latest = after(record.started_at, max_s);
    if timeout_s > 0 && latest <= now {
        return Err(LifecycleError::MaxLengthExceeded);
    }
    Ok(after(now, timeout_s).min(latest).max(now))
}

/// The deadline after a `refresh` or a `connect`: at least now + timeout, never earlier than it was, never so late that
/// the sandbox runs for more than `max_s` from its start.
pub(super) fn extend(record: &SandboxRecord, now: Timestamp, timeout_s: i64, max_s: i64) -> Timestamp {
    after(now, timeout_s).min(after(record.started_at, max_s)).max(record.end_at)
}

/// The deadline after a `refresh`, which grants a minimum.
pub(super) fn refresh(record: &SandboxRecord, now: Timestamp, duration_s: i64, max_s: i64) -> Timestamp {
    extend(record, now, duration_s.max(REFRESH_MINIMUM_S), max_s)
}

/// How long a sandbox lives that traffic resumed: as long as its creator gave it, at least the usual time, never longer
/// than `max_s`.
pub(super) fn resumed_by_traffic_s(record: &SandboxRecord, max_s: i64) -> i64 {
    record.initial_timeout_s.max(DEFAULT_TIMEOUT_S).min(max_s)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use torpor_types::{NetworkConfig, Shape, TemplateId};

    use super::*;

    const DAY_S: i64 = 86_400;

    fn record(started_at: Timestamp, end_at: Timestamp) -> SandboxRecord {
        SandboxRecord {
            template_id: TemplateId::random(),
            template_name: "base".to_owned(),
            shape: Shape { vcpus: 1, memory_mib: 512, disk_mib: 8192 },
            envd_version: "0.6.13".to_owned(),
            started_at,
            end_at,
            pause_on_timeout: false,
            keep_memory_on_timeout: true,
            filesystem_only: false,
            auto_resume: false,
            idle_timeout_s: None,
            retention_days: None,
            initial_timeout_s: 0,
            secure: true,
            allow_internet: true,
            network: NetworkConfig::default(),
            metadata: BTreeMap::new(),
            env_vars: BTreeMap::new(),
        }
    }

    fn moment(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    proptest! {
        #[test]
        fn connecting_or_refreshing_never_shortens_a_life(
            start in 0i64..1_000_000, life in 0i64..DAY_S, elapsed in 0i64..DAY_S, timeout in -10i64..2 * DAY_S,
        ) {
            let record = record(moment(start), moment(start + life));
            let now = moment(start + elapsed);
            prop_assert!(extend(&record, now, timeout, DAY_S) >= record.end_at);
            prop_assert!(refresh(&record, now, timeout, DAY_S) >= record.end_at);
        }

        #[test]
        fn no_deadline_lies_beyond_the_longest_life(
            start in 0i64..1_000_000, life in 0i64..DAY_S, elapsed in 0i64..DAY_S, timeout in -10i64..i64::MAX,
        ) {
            let record = record(moment(start), moment(start + life));
            let now = moment(start + elapsed);
            let latest = moment(start + DAY_S);
            prop_assert!(extend(&record, now, timeout, DAY_S) <= latest);
            prop_assert!(set(&record, now, timeout, DAY_S).unwrap() <= latest);
        }
    }

    #[test]
    fn a_timeout_of_nothing_expires_at_once() {
        let record = record(moment(0), moment(300));
        assert_eq!(set(&record, moment(10), 0, DAY_S).unwrap(), moment(10));
        assert_eq!(set(&record, moment(10), -5, DAY_S).unwrap(), moment(10));
    }

    #[test]
    fn a_sandbox_that_has_run_for_the_longest_life_gets_no_more_but_can_be_ended() {
        let record = record(moment(0), moment(DAY_S));
        let late = moment(DAY_S);
        assert!(matches!(set(&record, late, 1, DAY_S), Err(LifecycleError::MaxLengthExceeded)));
        assert_eq!(set(&record, late, 0, DAY_S).unwrap(), late);
    }

    #[test]
    fn traffic_gives_a_sandbox_its_first_timeout_and_at_least_five_minutes() {
        let resumed = |initial_timeout_s, max_s| {
            let record = SandboxRecord { initial_timeout_s, ..record(moment(0), moment(300)) };
            resumed_by_traffic_s(&record, max_s)
        };
        assert_eq!(resumed(15, DAY_S), 300);
        assert_eq!(resumed(3600, DAY_S), 3600);
        assert_eq!(resumed(7200, 3600), 3600);
        assert_eq!(resumed(0, DAY_S), 300);
    }

    #[test]
    fn timeouts_out_of_range_are_refused() {
        assert!(matches!(check_timeout(0, DAY_S), Err(LifecycleError::TimeoutNotPositive)));
        assert!(matches!(
            check_timeout(DAY_S + 1, DAY_S),
            Err(LifecycleError::TimeoutTooLong { max_hours: 24 })
        ));
        assert!(check_timeout(DAY_S, DAY_S).is_ok());
    }
}
