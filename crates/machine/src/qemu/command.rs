//! QEMU's command line. The order of devices is part of what a snapshot means: append, never insert.

use std::fmt::Write;
use std::process::Command;

use torpor_types::{Accelerator, Shape};

use super::{Qemu, child_fd};
use crate::vmm::Start;

/// Machine type and options. `microvm` with ACPI (Debian's kernel finds virtio-mmio devices by it alone), a real-time
/// clock, one serial port, and none of the PC's interrupt controller and timer of 1981.
pub(super) const MACHINE: &str = "microvm,rtc=on,acpi=on,isa-serial=on,pic=off,pit=off,memory-backend=ram";

/// What the command line says of devices, for snapshots to be compared by: a machine whose devices differ cannot load
/// their state. Change it with every change of a device or of an option the guest can see.
pub(super) const DEVICES: &str = "serial,blk,net(guest_announce=off),rng,balloon(free-page-reporting)";

/// The CPU of machines without hardware support: what the emulator offers.
pub(super) const TCG_CPU: &str = "max";
/// The CPU of machines with hardware support: the host's.
pub(super) const KVM_CPU: &str = "host,migratable=on";

/// QEMU, ready to be confined and given its descriptors.
pub(super) fn command(qemu: &Qemu, shape: Shape, start: &Start<'_>) -> Command {
    let mut command = Command::new(&qemu.program);
    command.env_clear();
    command.args(arguments(qemu, shape, start));
    command
}

fn arguments(qemu: &Qemu, shape: Shape, start: &Start<'_>) -> Vec<String> {
    let (accelerator, cpu) = match qemu.accelerator() {
        Accelerator::Kvm => ("kvm", KVM_CPU),
        Accelerator::Tcg => ("tcg,thread=multi", TCG_CPU),
    };
    let mib = shape.memory_mib;
    let aio = if qemu.io_uring { "io_uring" } else { "threads" };
    let mac = torpor_network::GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let mut arguments: Vec<String> = vec![];
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    add("-machine", MACHINE.into());
    add("-accel", accelerator.into());
    add("-cpu", cpu.into());
    add("-smp", shape.vcpus.to_string());
    add("-m", mib.to_string());
    // Shared, as far as QEMU knows, so that RAM stays out of the device state: see backing.rs.
    let ram = child_fd::RAM;
    add("-object", format!("memory-backend-file,id=ram,mem-path=/proc/self/fd/{ram},share=on,size={mib}M"));
    add("-add-fd", format!("fd={},set=1", child_fd::DISK));
    add(
        "-blockdev",
        format!("driver=file,node-name=disk,filename=/dev/fdset/1,aio={aio},discard=unmap,cache.direct=off"),
    );
    add("-device", "virtio-blk-device,drive=disk".into());
    add("-netdev", format!("tap,id=net,fd={},vhost=off", child_fd::TAP));
    // No announcement after a resume: the host knows the guest's address, and an emulated guest would spend tenths
    // of a second on it before it answers anybody.
    add("-device", format!("virtio-net-device,netdev=net,mac={mac},guest_announce=off"));
    add("-object", "rng-random,id=rng,filename=/dev/urandom".into());
    add("-device", "virtio-rng-device,rng=rng".into());
    // Never inflated. The guest says which of its memory is free, which is dropped, and is in no snapshot.
    add("-device", "virtio-balloon-device,free-page-reporting=on".into());
    add("-add-fd", format!("fd={},set=2", child_fd::CONSOLE));
    add("-chardev", "file,id=console,path=/dev/fdset/2,append=on".into());
    add("-serial", "chardev:console".into());
    add("-chardev", format!("socket,id=qmp,fd={},server=on,wait=off", child_fd::QMP));
    add("-mon", "chardev=qmp,mode=control".into());
    add("-display", "none".into());
    add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into());
    match start {
        Start::Idle => add("-incoming", "defer".into()),
        Start::Boot { cmdline, .. } => {
            add("-kernel", format!("/proc/self/fd/{}", child_fd::KERNEL));
            add("-initrd", format!("/proc/self/fd/{}", child_fd::INITRAMFS));
            add("-append", kernel_cmdline(qemu, cmdline));
        }
    }
    // -S: nothing runs until told so.
    arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot", "-S"].map(String::from));
    arguments
}

/// What every guest kernel is told, and then the caller's words.
///
/// `mitigations=off`: they guard the guest's users against each other, and a sandbox is one user; what guards the
/// host is the host's own.
fn kernel_cmdline(qemu: &Qemu, more: &str) -> String {
    let mut line =
        String::from("console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=on mitigations=off pci=off");
    if qemu.accelerator() == Accelerator::Tcg && qemu.facts.tsc_khz > 0 {
        // Under emulation the guest reads the host's counter; calibrating it against an emulated clock on a busy host
        // hangs or comes out wrong.
        let _ = write!(line, " tsc_early_khz={} tsc=reliable", qemu.facts.tsc_khz);
    }
    if !more.is_empty() {
        let _ = write!(line, " {more}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::HostFacts;

    fn qemu(accelerator: Accelerator) -> Qemu {
        let facts = HostFacts {
            accelerator,
            machine_type: String::new(),
            cpu_model: String::new(),
            qemu_version: String::new(),
            tsc_khz: if accelerator == Accelerator::Tcg { 2_596_140 } else { 0 },
        };
        Qemu { program: "/q".into(), ram_map: "/l".into(), facts, io_uring: true, kvm_gid: None }
    }

    #[test]
    fn devices_come_in_the_order_snapshots_were_made_with() {
        let shape = Shape { vcpus: 1, memory_mib: 512, disk_mib: 1024 };
        let arguments = arguments(&qemu(Accelerator::Tcg), shape, &Start::Idle);
        let after_device = arguments.windows(2).filter(|pair| pair[0] == "-device").map(|pair| &pair[1]);
        let devices: Vec<&str> = after_device.map(|device| device.split(',').next().unwrap()).collect();
        assert_eq!(
            devices,
            ["virtio-blk-device", "virtio-net-device", "virtio-rng-device", "virtio-balloon-device"]
        );
    }

    #[test]
    fn only_an_emulated_guest_is_told_the_frequency_of_the_hosts_counter() {
        assert!(
            kernel_cmdline(&qemu(Accelerator::Tcg), "a=b")
                .ends_with("tsc_early_khz=2596140 tsc=reliable a=b")
        );
        assert!(!kernel_cmdline(&qemu(Accelerator::Kvm), "").contains("tsc"));
    }
}
