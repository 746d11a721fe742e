//! Metrics of one sandbox over time: an hour in full, a day by the minute.

use std::collections::VecDeque;

use jiff::Timestamp;
use torpor_envd_api::http::Metrics;
use torpor_envd_api::telemetry::METRICS_INTERVAL_S;

/// Points that are kept as they came: one hour.
const FINE_POINTS: usize = 3600 / METRICS_INTERVAL_S as usize;

/// Seconds between points that are older than that.
const COARSE_INTERVAL_S: i64 = 60;

/// Points that are kept by the minute: the 23 hours before.
const COARSE_POINTS: usize = 23 * 60;

/// The use of resources at one moment. Sizes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MetricPoint {
    /// When it was measured, by the server's clock.
    pub at: Timestamp,
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// Use of all of them since the point before, in percent of all.
    pub cpu_used_pct: f32,
    /// Memory.
    pub mem_total: u64,
    /// Memory that could not be given to a new process.
    pub mem_used: u64,
    /// Page cache and reclaimable slab.
    pub mem_cache: u64,
    /// Used part of the root file system.
    pub disk_used: u64,
    /// Size of the root file system.
    pub disk_total: u64,
}

/// The points there are, the oldest first in both.
#[derive(Debug, Default)]
pub(super) struct Series {
    coarse: VecDeque<MetricPoint>,
    fine: VecDeque<MetricPoint>,
}

// === impl MetricPoint ===

impl MetricPoint {
    pub(super) fn new(at: Timestamp, metrics: &Metrics) -> MetricPoint {
        MetricPoint {
            at,
            cpu_count: metrics.cpu_count,
            cpu_used_pct: metrics.cpu_used_pct,
            mem_total: metrics.mem_total,
            mem_used: metrics.mem_used,
            mem_cache: metrics.mem_cache,
            disk_used: metrics.disk_used,
            disk_total: metrics.disk_total,
        }
    }
}

// === impl Series ===

impl Series {
    pub(super) fn add(&mut self, point: MetricPoint) {
        self.fine.push_back(point);
        if self.fine.len() <= FINE_POINTS {
            return;
        }
        let Some(oldest) = self.fine.pop_front() else { return };
        let last = self.coarse.back().map_or(i64::MIN, |point| point.at.as_second());
        if oldest.at.as_second().saturating_sub(last) >= COARSE_INTERVAL_S {
            self.coarse.push_back(oldest);
        }
        while self.coarse.len() > COARSE_POINTS {
            self.coarse.pop_front();
        }
    }

    pub(super) fn between(&self, start: i64, end: i64) -> Vec<MetricPoint> {
        let all = self.coarse.iter().chain(&self.fine);
        all.filter(|point| (start..=end).contains(&point.at.as_second())).copied().collect()
    }

    pub(super) fn newest(&self) -> Option<MetricPoint> {
        self.fine.back().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn point(second: i64) -> MetricPoint {
        MetricPoint::new(Timestamp::from_second(second).unwrap(), &Metrics::default())
    }

    #[test]
    fn two_days_of_points_are_an_hour_in_full_and_a_day_by_the_minute() {
        let mut series = Series::default();
        let end = 2 * 86_400;
        for second in (0..=end).step_by(METRICS_INTERVAL_S as usize) {
            series.add(point(second));
        }
        let seconds =
            |from, to| series.between(from, to).iter().map(|p| p.at.as_second()).collect::<Vec<_>>();
        assert_eq!(seconds(end - 10, end), [end - 10, end - 5, end]);
        let coarse = seconds(0, end - 3600);
        assert!(coarse.windows(2).all(|pair| pair[1] - pair[0] == 60), "{coarse:?}");
        assert!(coarse[0] <= end - 86_400 + 60 && coarse[0] > end - 86_400 - 3600);
        assert_eq!(series.newest().unwrap().at.as_second(), end);
    }

    proptest! {
        #[test]
        fn a_range_has_just_the_points_in_it_in_order(
            seconds in proptest::collection::btree_set(0i64..10_000, 0..60), start in 0i64..10_000, length in 0i64..10_000,
        ) {
            let mut series = Series::default();
            seconds.iter().for_each(|second| series.add(point(*second)));
            let found: Vec<i64> =
                series.between(start, start + length).iter().map(|point| point.at.as_second()).collect();
            let expected: Vec<i64> =
                seconds.iter().copied().filter(|second| (start..=start + length).contains(second)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
