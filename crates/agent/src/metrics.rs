//! `GET /metrics`: the guest's use of CPU, memory and disk. The host gets the same from `GET /telemetry`.

use std::{fs, io, sync::Mutex, sync::PoisonError, time::Duration};

use axum::Json;
use jiff::Timestamp;
use torpor_envd_api::http::Metrics;

use crate::error::HttpError;

const MIB: u64 = 1 << 20;

/// How long to look at the CPUs when nobody has asked before.
const FIRST_INTERVAL: Duration = Duration::from_millis(100);

/// The CPU times when they were last asked for, so that use is that since then.
static LAST: Mutex<Option<CpuTimes>> = Mutex::new(None);

/// What the CPUs have spent their time on since boot, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct CpuTimes {
    idle: u64,
    total: u64,
}

/// The handler.
pub async fn get() -> Result<Json<Metrics>, HttpError> {
    let failed =
        |error: io::Error| HttpError::internal(format!("reading the guest's counters failed: {error}"));
    sample().await.map(Json).map_err(failed)
}

/// The use of resources now.
pub(crate) async fn sample() -> io::Result<Metrics> {
    let last = *LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let before = match last {
        Some(last) => last,
        None => {
            let before = cpu_times()?;
            tokio::time::sleep(FIRST_INTERVAL).await;
            before
        }
    };
    let now = cpu_times()?;
    *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    measure(before, now)
}

fn measure(before: CpuTimes, now: CpuTimes) -> io::Result<Metrics> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    let total = kib(&memory, "MemTotal") * 1024;
    let used = total.saturating_sub(kib(&memory, "MemAvailable") * 1024);
    let cache = (kib(&memory, "Cached") + kib(&memory, "SReclaimable")) * 1024;
    let disk = rustix::fs::statvfs("/")?;
    Ok(Metrics {
        ts: Timestamp::now().as_second(),
        cpu_count: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        cpu_used_pct: now.used_since(before),
        mem_total: total,
        mem_used: used,
        mem_cache: cache,
        mem_total_mib: total / MIB,
        mem_used_mib: used / MIB,
        disk_used: disk.f_blocks.saturating_sub(disk.f_bfree) * disk.f_frsize,
        disk_total: disk.f_blocks * disk.f_frsize,
    })
}

fn cpu_times() -> io::Result<CpuTimes> {
    Ok(CpuTimes::parse(&fs::read_to_string("/proc/stat")?))
}

/// A line of `/proc/meminfo`; 0 if it is not there.
fn kib(memory: &str, name: &str) -> u64 {
    let value = memory.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

// === impl CpuTimes ===

impl CpuTimes {
    /// The first line of `/proc/stat`: `cpu user nice system idle iowait irq softirq steal …`; what follows is
    /// contained in `user` and `nice`.
    fn parse(stat: &str) -> Self {
        let line = stat.lines().next().unwrap_or_default();
        let fields: Vec<u64> =
            line.split_whitespace().skip(1).take(8).filter_map(|it| it.parse().ok()).collect();
        Self { idle: fields.iter().skip(3).take(2).sum(), total: fields.iter().sum() }
    }

    /// Use since an earlier time, in percent of all CPUs, to two places.
    fn used_since(self, before: Self) -> f32 {
        let total = self.total.saturating_sub(before.total);
        if total == 0 {
            return 0.0;
        }
        let idle = self.idle.saturating_sub(before.idle).min(total);
        ((total - idle) as f32 / total as f32 * 10_000.0).round() / 100.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_use_is_the_part_that_was_not_idle() {
        let before = CpuTimes::parse("cpu  100 0 100 800 0 0 0 0 5 5\ncpu0 1 1 1 1\n");
        let now = CpuTimes::parse("cpu  150 0 150 1000 100 0 0 0 9 9\n");
        assert_eq!(before, CpuTimes { idle: 800, total: 1000 });
        assert_eq!(now.used_since(before), 25.0);
        assert_eq!(now.used_since(now), 0.0);
    }

    #[test]
    fn memory_is_read_by_its_whole_name() {
        let memory = "MemTotal:  2048 kB\nSwapCached: 7 kB\nCached:   100 kB\n";
        assert_eq!((kib(memory, "MemTotal"), kib(memory, "Cached"), kib(memory, "Absent")), (2048, 100, 0));
    }

    #[tokio::test]
    async fn the_machine_has_cpus_memory_and_a_disk() {
        let metrics = get().await.unwrap().0;
        assert!(metrics.cpu_count > 0 && metrics.mem_total > metrics.mem_used && metrics.disk_total > 0);
        assert!((0.0..=100.0).contains(&metrics.cpu_used_pct));
    }
}
