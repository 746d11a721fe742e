//! Which parts of a process's memory no file is behind.

use std::io;

use crate::PageRun;

/// The anonymous mappings of process `pid` in `len` bytes from `address`, in order, in bytes from there: pages that were never
/// written to are zeros in these (`/proc/PID/maps`, proc_pid_maps(5)).
pub fn anonymous_mappings(pid: u32, address: u64, len: u64) -> io::Result<Vec<PageRun>> {
    Ok(parse(&std::fs::read_to_string(format!("/proc/{pid}/maps"))?, address, address + len))
}

fn parse(maps: &str, from: u64, to: u64) -> Vec<PageRun> {
    let mapping = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        // Permissions, offset, device, inode.
        let inode = fields.nth(3)?;
        let (start, end) = (start.max(from), end.min(to));
        (inode == "0" && start < end).then(|| PageRun { offset: start - from, len: end - start })
    };
    maps.lines().filter_map(mapping).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mappings_without_a_file_are_found_and_only_what_of_them_was_asked_about() {
        let maps = "\
            7f0000000000-7f0000200000 rw-p 00000000 07:01 8388738    /vault/snapshots/s1/memory\n\
            7f0000200000-7f0000600000 rw-p 00000000 00:00 0 \n\
            7f0000600000-7f0000700000 rw-p 00600000 07:01 8388738    /vault/snapshots/s1/memory (deleted)\n\
            7f0000700000-7f0000900000 rw-p 00000000 00:00 0          [heap]\n";
        let found = parse(maps, 0x7f00_0000_0000, 0x7f00_0080_0000);
        assert_eq!(
            found,
            [PageRun { offset: 0x20_0000, len: 0x40_0000 }, PageRun { offset: 0x70_0000, len: 0x10_0000 }]
        );
        assert_eq!(parse(maps, 0x7f00_0000_0000, 0x7f00_0020_0000), []);
    }
}
