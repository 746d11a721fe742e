//! Starting to write a file's dirty pages to its disk.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Starts writing all dirty pages of the file to its disk, and does not wait for them; no metadata is written.
///
/// Returns at once as a rule, but may wait for room in the disk's queue.
pub fn start_write_back(file: &File) -> io::Result<()> {
    // 0 bytes mean up to the end of the file.
    sync_range(file, 0, 0, libc::SYNC_FILE_RANGE_WRITE)
}

/// As [`start_write_back`], of a range of the file.
pub fn start_write_back_of(file: &File, offset: u64, len: u64) -> io::Result<()> {
    sync_range(file, offset, len, libc::SYNC_FILE_RANGE_WRITE)
}

/// Writes the dirty pages of a range of the file to its disk, and waits until they are there; no metadata is written, so
/// that they are not durable yet.
pub fn write_back(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let all =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_range(file, offset, len, all)
}

fn sync_range(file: &File, offset: u64, len: u64, flags: libc::c_uint) -> io::Result<()> {
    let (offset, len) = (i64::try_from(offset), i64::try_from(len));
    let (Ok(offset), Ok(len)) = (offset, len) else { return Err(io::ErrorKind::InvalidInput.into()) };
    // SAFETY: takes no pointers.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    #[test]
    fn a_file_can_be_written_back_and_a_device_that_has_no_pages_says_no() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 100_000]).unwrap();
        super::start_write_back(&file).unwrap();
        super::start_write_back_of(&file, 4096, 50_000).unwrap();
        super::write_back(&file, 4096, 50_000).unwrap();
        assert!(super::start_write_back(&std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
