//! What of this host has to match for a machine's memory to be resumed on it.

use torpor_types::Accelerator;

/// What runs machines here. A snapshot's manifest holds the same of the host it was made on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// What executes guest instructions.
    pub accelerator: Accelerator,
    /// QEMU's machine type with its options, and the machine's devices.
    pub machine_type: String,
    /// QEMU's CPU model with its options; on KVM with the host's own model.
    pub cpu_model: String,
    /// QEMU's version.
    pub qemu_version: String,
    /// Frequency of the host's time stamp counter in kHz, which guests under emulation see unscaled; 0 on KVM, which
    /// scales it, and on hosts without one.
    pub tsc_khz: u64,
}

// === impl HostFacts ===

impl HostFacts {
    /// Whether a guest that was told `tsc_khz` keeps its time here.
    ///
    /// The frequency is measured anew by every server and, on hardware, calibrated anew by every boot; figures of one
    /// processor differ by some ten parts per million, which is a clock's ordinary drift, so two that are within 200
    /// parts per million are the same.
    pub fn tsc_fits(&self, tsc_khz: u64) -> bool {
        self.tsc_khz.abs_diff(tsc_khz) <= self.tsc_khz / 5000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_processor_measured_twice_fits_and_another_does_not() {
        let facts = HostFacts {
            accelerator: Accelerator::Tcg,
            machine_type: String::new(),
            cpu_model: String::new(),
            qemu_version: String::new(),
            tsc_khz: 2_596_140,
        };
        assert!(facts.tsc_fits(2_596_140));
        assert!(facts.tsc_fits(2_596_103));
        assert!(!facts.tsc_fits(2_600_000));
        assert!(!facts.tsc_fits(0));
    }
}
