//! How fast this host's time stamp counter runs.

/// The frequency of the time stamp counter in kHz, or `None` on processors that have none.
///
/// The kernel publishes the figure nowhere but in its log, so it is measured: counter against `CLOCK_MONOTONIC_RAW`,
/// which the kernel derives from the counter with the very figure asked for. The error of one measurement of 40 ms is
/// below 10 ppm; the middle one of three is taken.
pub fn tsc_khz() -> Option<u32> {
    measure()
}

#[cfg(target_arch = "x86_64")]
fn measure() -> Option<u32> {
    let mut measured: Vec<u64> = (0..3).filter_map(|_| measure_once()).collect();
    measured.sort_unstable();
    u32::try_from(*measured.get(measured.len() / 2)?).ok().filter(|khz| *khz > 0)
}

#[cfg(target_arch = "x86_64")]
fn measure_once() -> Option<u64> {
    let (ticks_before, ns_before) = sample();
    loop {
        let (ticks, ns) = sample();
        let elapsed_ns = ns.checked_sub(ns_before)?;
        if elapsed_ns >= 40_000_000 {
            let khz = u128::from(ticks.checked_sub(ticks_before)?) * 1_000_000 / u128::from(elapsed_ns);
            return u64::try_from(khz).ok();
        }
    }
}

/// Counter and clock (ns) at one moment: the tightest of several pairs, so that being interrupted between the two
/// readings does not count.
#[cfg(target_arch = "x86_64")]
fn sample() -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..8 {
        // SAFETY: rdtsc reads a register; every x86-64 processor has it.
        let before = unsafe { core::arch::x86_64::_rdtsc() };
        let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicRaw);
        // SAFETY: as above.
        let after = unsafe { core::arch::x86_64::_rdtsc() };
        let width = after.saturating_sub(before);
        if width < best.0 {
            let ns = now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs();
            best = (width, before + width / 2, ns);
        }
    }
    (best.1, best.2)
}

#[cfg(not(target_arch = "x86_64"))]
fn measure() -> Option<u32> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree_within_a_hundred_parts_per_million() {
        let (one, two) = (f64::from(tsc_khz().unwrap()), f64::from(tsc_khz().unwrap()));
        assert!((one / two - 1.0).abs() < 1e-4, "{one} {two}");
    }
}
