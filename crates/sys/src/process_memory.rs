//! Reading the memory of another process.

use std::io;

/// Reads `buffer.len()` bytes from `address` of process `pid`, which has to have all of them mapped.
///
/// Needs the right to trace the process (root has it). The process should be stopped or idle.
pub fn read_process_memory(pid: u32, address: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = &mut buffer[done..];
        let local = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
        let remote = libc::iovec { iov_base: (address as usize + done) as *mut _, iov_len: rest.len() };
        // SAFETY: `local` is exactly the rest of `buffer`; `remote` is an address of the other process, which the
        // kernel checks.
        let read = unsafe {
            libc::process_vm_readv(pid.cast_signed(), &raw const local, 1, &raw const remote, 1, 0)
        };
        match usize::try_from(read) {
            Err(_) => return Err(io::Error::last_os_error()),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_holds_is_what_is_read() {
        let held: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        let mut read = vec![0; held.len()];
        read_process_memory(std::process::id(), held.as_ptr() as u64, &mut read).unwrap();
        assert_eq!(read, held);
    }

    #[test]
    fn an_address_that_is_not_mapped_is_an_error_and_no_crash() {
        assert!(read_process_memory(std::process::id(), 4096, &mut [0; 8]).is_err());
    }
}
