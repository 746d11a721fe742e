//! What kind of file system something lives on.

use std::os::fd::AsFd;

use rustix::fs::fstatfs;

/// File systems whose files the kernel makes up when they are read: their sizes mean nothing. From the kernel's
/// `include/uapi/linux/magic.h`.
const KERNEL: [u64; 11] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x7363_6673, // securityfs
    0x6265_6570, // configfs
    0xcafe_4a11, // bpf
    0xde5e_81e4, // efivarfs
    0x6165_676c, // pstore
];

/// File systems whose files other machines or programs change, behind the back of this kernel's inotify.
const NETWORK: [u64; 10] = [
    0x6969,      // NFS
    0xff53_4d42, // CIFS
    0x517b,      // SMB
    0xfe53_4d42, // SMB2
    0x6573_5546, // FUSE
    0x0102_1997, // 9p
    0x5346_414f, // AFS
    0x6b41_4653, // kAFS
    0x00c3_6400, // Ceph
    0x7375_7245, // Coda
];

/// Whether an open file is one of those the kernel makes up.
pub(crate) fn is_kernel_file_system(file: impl AsFd) -> bool {
    kind(file).is_some_and(|kind| KERNEL.contains(&kind))
}

/// Whether an open file lives on another machine, or in another program (FUSE).
pub(crate) fn is_network_file_system(file: impl AsFd) -> bool {
    kind(file).is_some_and(|kind| NETWORK.contains(&kind))
}

fn kind(file: impl AsFd) -> Option<u64> {
    // The constants are 32 bits wide; on some platforms the field is signed.
    fstatfs(file).ok().map(|found| found.f_type as u64 & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn the_kernels_own_files_are_told_from_files_on_disk() {
        assert!(is_kernel_file_system(File::open("/proc/self/status").unwrap()));
        assert!(is_kernel_file_system(File::open("/sys").unwrap()));
        assert!(!is_kernel_file_system(tempfile::tempfile().unwrap()));
        assert!(!is_network_file_system(tempfile::tempfile().unwrap()));
    }
}
