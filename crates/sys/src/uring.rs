//! Whether this host lets programs use io_uring.

/// True if an io_uring can be made. Hosts switch it off by `kernel.io_uring_disabled` or a seccomp filter.
pub fn io_uring_works() -> bool {
    // `struct io_uring_params`: 120 bytes, all zero for the defaults.
    let mut parameters = [0_u64; 15];
    // SAFETY: the kernel writes at most the structure, which `parameters` has room for.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, parameters.as_mut_ptr()) };
    match libc::c_int::try_from(ring) {
        Ok(ring) if ring >= 0 => {
            // SAFETY: just opened, owned by nobody else.
            drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(ring) });
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_probe_answers_the_same_twice() {
        assert_eq!(super::io_uring_works(), super::io_uring_works());
    }
}
