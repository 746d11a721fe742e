//! Keeps what QEMU translated of guest code through the load of a device state.
//!
//! A QEMU that emulates translates guest code before it runs it. What a guest does in its first tenth of a second takes some
//! ten thousand translations, which is nearly all the time it takes. They could be made before anybody waits: by letting the
//! machine run a snapshot like the one it will be given. But each load of a device state throws all of them away
//! (`cpu_common_post_load` calls `tb_flush`), because RAM may have changed behind QEMU's back, and QEMU cannot know where.
//! The host knows: it has changed it. So it says which pages are other ones than those that were translated, what was
//! translated from them is forgotten by the function that QEMU calls when a guest writes to its code, and the call that
//! would forget everything is made to do nothing, for this one load.
//!
//! What is used of QEMU is exported by its program (for its modules), and called with the types that the releases have for which
//! the server asks for this: see `qemu/version.rs` of the machine crate. Where a name is missing the answer is `ENOSYS`.
//! The caller has stopped the guest.

use std::ffi::{CStr, c_int, c_void};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::{Ram, last_errno};

/// `bool yank_register_instance(const YankInstance *, Error **)`
type RegisterYank = unsafe extern "C" fn(*const YankInstance, *mut *mut c_void) -> bool;
/// `void tb_invalidate_phys_range(tb_page_addr_t start, tb_page_addr_t last)`
type Invalidate = unsafe extern "C" fn(u64, u64);
/// `ram_addr_t qemu_ram_addr_from_host(void *)`
type RamAddress = unsafe extern "C" fn(*const c_void) -> u64;

/// QEMU's `YankInstance`: a kind, and a union of strings that ours does not use.
#[repr(C)]
struct YankInstance {
    kind: c_int,
    name: *const c_void,
}

/// `YANK_INSTANCE_TYPE_MIGRATION`
const MIGRATION: c_int = 2;
/// `RAM_ADDR_INVALID`
const NOT_RAM: u64 = u64::MAX;
/// The instruction `ret`.
const RETURN: u8 = 0xc3;

/// The first byte of `tb_flush` while it is a `ret`; 0 while it is not.
static FLUSH: AtomicU8 = AtomicU8::new(0);

/// Forgets what was translated from the ranges in `stale`, and nothing else in the load that follows.
pub(crate) fn keep(ram: Ram, stale: &OwnedFd) -> Result<(), c_int> {
    let register: RegisterYank = function(c"yank_register_instance")?;
    let invalidate: Invalidate = function(c"tb_invalidate_phys_range")?;
    let ram_address: RamAddress = function(c"qemu_ram_addr_from_host")?;
    let ranges = read_ranges(stale, ram.length as u64)?;
    // SAFETY: takes an address and looks it up; guest RAM is one block.
    let start = unsafe { ram_address(ram.address as *const c_void) };
    if start == NOT_RAM {
        return Err(libc::ENOSYS);
    }
    for (offset, length) in ranges {
        // SAFETY: the range lies in guest RAM, as `read_ranges` checked. Takes the locks it needs itself; no processor of the guest
        // runs.
        unsafe { invalidate(start + offset, start + offset + length - 1) };
    }
    if FLUSH.load(Ordering::Relaxed) == 0 {
        // `xen-load-devices-state` ends what a migration began, and fails if none did. It ends once what is begun here.
        let instance = YankInstance { kind: MIGRATION, name: std::ptr::null() };
        let mut error = std::ptr::null_mut();
        // SAFETY: both live through the call, which copies the instance and leaves an error of its own in case.
        if !unsafe { register(&raw const instance, &raw mut error) } {
            return Err(libc::EBUSY);
        }
        FLUSH.store(write_flush(RETURN)?, Ordering::Relaxed);
    }
    Ok(())
}

/// The load is over: from now on QEMU forgets all translations when it wants to.
pub(crate) fn loaded() -> Result<(), c_int> {
    match FLUSH.swap(0, Ordering::Relaxed) {
        0 => Ok(()),
        before => write_flush(before).map(drop),
    }
}

/// Puts `byte` in the place of the first one of `tb_flush`, and says which that was.
fn write_flush(byte: u8) -> Result<u8, c_int> {
    if !cfg!(target_arch = "x86_64") {
        return Err(libc::ENOSYS);
    }
    let flush: *mut u8 = address(c"tb_flush")?.cast();
    // SAFETY: asks for a constant.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(|_| libc::EINVAL)?;
    let start = (flush as usize & !(page - 1)) as *mut c_void;
    let protect = |protection| {
        // SAFETY: the page is QEMU's program text, and stays readable and executable throughout.
        match unsafe { libc::mprotect(start, page, protection) } {
            0 => Ok(()),
            _ => Err(last_errno()),
        }
    };
    protect(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC)?;
    // SAFETY: mapped, and writable since the call above. One byte is written at once; a `ret` is right as a whole function that returns nothing, whatever
    // its arguments; nobody is inside of it, for only a load and a guest that runs call it.
    let before = unsafe {
        let before = flush.read_volatile();
        flush.write_volatile(byte);
        before
    };
    protect(libc::PROT_READ | libc::PROT_EXEC)?;
    Ok(before)
}

/// The ranges in a file, in bytes from the start of RAM: pairs of offset and length, in the machine's byte order.
fn read_ranges(file: &OwnedFd, ram: u64) -> Result<Vec<(u64, u64)>, c_int> {
    let errno = |error: std::io::Error| error.raw_os_error().unwrap_or(libc::EIO);
    let file = File::from(file.try_clone().map_err(errno)?);
    let mut bytes = vec![0; usize::try_from(file.metadata().map_err(errno)?.len()).map_err(|_| libc::EFBIG)?];
    file.read_exact_at(&mut bytes, 0).map_err(errno)?;
    let mut words = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_ne_bytes));
    let mut ranges = Vec::with_capacity(bytes.len() / 16);
    while let (Some(offset), Some(length)) = (words.next(), words.next()) {
        if length == 0 || offset.checked_add(length).is_none_or(|end| end > ram) {
            return Err(libc::EINVAL);
        }
        ranges.push((offset, length));
    }
    Ok(ranges)
}

/// A function that QEMU's program exports.
fn function<F: Copy>(name: &CStr) -> Result<F, c_int> {
    let address = address(name)?;
    assert_eq!(size_of::<F>(), size_of_val(&address));
    // SAFETY: `F` is a function pointer, as wide as an address, and of the type that QEMU declares by that name in the
    // releases this is asked of.
    Ok(unsafe { std::mem::transmute_copy(&address) })
}

fn address(name: &CStr) -> Result<*mut c_void, c_int> {
    // SAFETY: a string that ends with zero, and the handle that stands for all that is loaded.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if address.is_null() { Err(libc::ENOSYS) } else { Ok(address) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(words: &[u64]) -> OwnedFd {
        let mut file = tempfile();
        for word in words {
            file.write_all(&word.to_ne_bytes()).unwrap();
        }
        file.into()
    }

    fn tempfile() -> File {
        // SAFETY: a name, and no flags.
        let fd = unsafe { libc::memfd_create(c"ranges".as_ptr(), 0) };
        assert!(fd >= 0);
        // SAFETY: made above, for nobody else.
        unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }
    }

    #[test]
    fn ranges_are_read_as_they_were_written_and_none_outside_of_ram_is_taken() {
        assert_eq!(read_ranges(&file(&[0, 4096, 8192, 4096]), 12288), Ok(vec![(0, 4096), (8192, 4096)]));
        assert_eq!(read_ranges(&file(&[8192, 8192]), 12288), Err(libc::EINVAL));
        assert_eq!(read_ranges(&file(&[u64::MAX, 2]), 12288), Err(libc::EINVAL));
        assert_eq!(read_ranges(&file(&[4096, 0]), 12288), Err(libc::EINVAL));
    }

    #[test]
    fn a_program_that_is_no_qemu_is_left_alone() {
        let ram = Ram { address: 4096, length: 4096 };
        assert_eq!(keep(ram, &file(&[0, 4096])), Err(libc::ENOSYS));
        assert_eq!(loaded(), Ok(()));
    }
}
