//! Preloaded into QEMU (`LD_PRELOAD`): keeps guest RAM private, and lays a snapshot's memory under it at claim time.
//!
//! QEMU is told that guest RAM is a *shared* mapping of a file (`memory-backend-file,share=on`), because only then does
//! the migration capability `x-ignore-shared` leave RAM out of the device state. The file is an empty memfd, the
//! *placeholder*. This library does two things behind QEMU's back:
//!
//! 1. The mapping of the placeholder becomes `MAP_PRIVATE`, and its address and length are remembered.
//! 2. A thread answers requests on an inherited `SOCK_SEQPACKET` socket, one datagram each way:
//!
//!    ```text
//!    request  "w"                 where is guest RAM?
//!             "m" + SCM_RIGHTS fd map this memory file (opened read-only), privately, over guest RAM
//!             "t"                 let the kernel remember which pages are written from now on
//!             "u"                 let it forget about that
//!             "k" + SCM_RIGHTS fd forget what was translated from the ranges in this file (offset u64, length u64, …), and
//!                                 keep all other translations through the load of a device state
//!             "l"                 the device state is loaded
//!    answer   errno u64 | address u64 | length u64      in the machine's byte order; errno 0 is success
//!    ```
//!
//! Pages the guest writes become anonymous pages of that mapping, which the host finds in `/proc/PID/pagemap`; pages
//! it only reads stay in the page cache, shared by all machines of one snapshot.
//!
//! QEMU's own *discards* (free-page reporting) punch holes with `fallocate` in the file it believes is guest RAM, then
//! `madvise(MADV_DONTNEED)` the range. The file it holds is the placeholder and never the snapshot's memory, so the first has no
//! effect on a snapshot. The second would bring back what the snapshot's file holds in that place, for every later snapshot to
//! carry along: so the range becomes anonymous memory instead, which is zeros until it is written to. The host sees such
//! ranges in `/proc/PID/maps`, and makes them holes.
//!
//! *Tracking* is for copies of a guest that goes on running. The kernel protects pages against writing when the host asks
//! for those that were written (`PAGEMAP_SCAN` with `PM_SCAN_WP_MATCHING`), and takes the protection of a page away by
//! itself at its next write (userfaultfd(2), `UFFD_FEATURE_WP_ASYNC`, Linux 6.7 and later): nobody is waited for. It
//! costs a fault a page, so it is on only while a copy is made.
//!
//! *Translations* of guest code, of a QEMU that emulates, are the subject of [`translations`].
//!
//! Both file descriptors are named in the environment: [`PLACEHOLDER`] and [`SOCKET`]. Without them the library is
//! inert.

mod translations;

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Environment variable: descriptor of the placeholder memfd.
const PLACEHOLDER: &str = "TORPOR_RAM_FD";
/// Environment variable: descriptor of the request socket.
const SOCKET: &str = "TORPOR_RAM_SOCKET";

/// Device and inode of the placeholder, known before QEMU's `main` runs.
static PLACEHOLDER_FILE: OnceLock<FileIdentity> = OnceLock::new();
/// Where QEMU mapped guest RAM; both 0 until it did.
static ADDRESS: AtomicUsize = AtomicUsize::new(0);
static LENGTH: AtomicUsize = AtomicUsize::new(0);
/// What tracks guest RAM, if anything does. Held while pieces of it are mapped anew, which would not be tracked.
static TRACKER: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// What makes two descriptors the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
}

/// Where guest RAM lies.
#[derive(Debug, Clone, Copy)]
struct Ram {
    address: usize,
    length: usize,
}

/// An answer on the wire: errno, address, length.
type Answer = [u64; 3];

// Runs before QEMU's `main`, on its only thread.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    let (Some(placeholder), Some(socket)) = (fd_from_env(PLACEHOLDER), fd_from_env(SOCKET)) else { return };
    let Some((identity, _)) = identify(placeholder) else { return };
    if PLACEHOLDER_FILE.set(identity).is_err() {
        return;
    }
    // SAFETY: the descriptor was passed for this library alone; nothing else in the process owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    with_signals_blocked(|| {
        // A thread that could not be started shows as a socket that is closed: the server reports it.
        let _ = std::thread::Builder::new()
            .name("ram-map".into())
            .stack_size(64 << 10)
            .spawn(move || serve(&socket));
    });
}

/// `mmap`, except that the placeholder is mapped private.
///
/// # Safety
/// As for `mmap(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    address: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    let is_ram = fd >= 0
        && flags & libc::MAP_TYPE != libc::MAP_PRIVATE
        && PLACEHOLDER_FILE.get().is_some_and(|ram| identify(fd).is_some_and(|(file, _)| file == *ram));
    let flags = if is_ram { private(flags) } else { flags };
    // SAFETY: the caller's arguments, but for a weaker kind of sharing; same contract as mmap(2).
    let mapped = unsafe { libc::syscall(libc::SYS_mmap, address, length, protection, flags, fd, offset) };
    if is_ram && mapped != -1 {
        LENGTH.store(length, Ordering::Relaxed);
        ADDRESS.store(mapped as usize, Ordering::Release);
    }
    mapped as *mut c_void
}

/// The name under which programs built for 64-bit file offsets call [`mmap`].
///
/// # Safety
/// As for `mmap(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    address: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: the caller keeps the contract of mmap(2).
    unsafe { mmap(address, length, protection, flags, fd, offset) }
}

/// `madvise`, except that guest RAM that is not needed any more becomes zeros.
///
/// # Safety
/// As for `madvise(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int {
    if advice == libc::MADV_DONTNEED && is_ram(address as usize, length) {
        let tracker = tracker();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        if tracker.is_none() {
            // SAFETY: the range lies in guest RAM, whose content the caller gives up; it stays mapped throughout.
            unsafe { libc::syscall(libc::SYS_mmap, address, length, protection, flags, -1, 0_i64) };
        }
        // If it is tracked, or in too many pieces already, it stays as it is: the guest expects nothing of it. To drop it alone
        // would bring back what the file holds, and nobody would know that these pages had been written to.
        return 0;
    }
    // SAFETY: the caller keeps the contract of madvise(2). The raw call, for this function has taken the library's name.
    let advised = unsafe { libc::syscall(libc::SYS_madvise, address, length, advice) };
    if advised == 0 { 0 } else { -1 }
}

/// Whether whole pages of guest RAM are meant.
fn is_ram(address: usize, length: usize) -> bool {
    const PAGE: usize = 4096;
    let (start, ram) = (ADDRESS.load(Ordering::Acquire), LENGTH.load(Ordering::Relaxed));
    let end = address.checked_add(length);
    let is_inside = start != 0 && address >= start && end.is_some_and(|end| end <= start + ram);
    is_inside && address.is_multiple_of(PAGE) && length.is_multiple_of(PAGE)
}

fn tracker() -> MutexGuard<'static, Option<OwnedFd>> {
    TRACKER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same mapping flags with private instead of shared, and no swap reserved for pages that may never be written.
fn private(flags: c_int) -> c_int {
    (flags & !libc::MAP_TYPE) | libc::MAP_PRIVATE | libc::MAP_NORESERVE
}

fn fd_from_env(name: &str) -> Option<RawFd> {
    std::env::var(name).ok()?.parse().ok().filter(|fd| *fd >= 0)
}

/// Which file a descriptor is, and its size in bytes.
fn identify(fd: RawFd) -> Option<(FileIdentity, usize)> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` is large enough for the kernel to fill.
    if unsafe { libc::fstat(fd, stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: fstat succeeded, so it filled the whole structure.
    let stat = unsafe { stat.assume_init() };
    Some((FileIdentity { device: stat.st_dev, inode: stat.st_ino }, usize::try_from(stat.st_size).ok()?))
}

/// QEMU waits for its signals in its main loop; a thread that left them open would steal them.
fn with_signals_blocked(action: impl FnOnce()) {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises `all` before it is read; `before` is filled by the first pthread_sigmask.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    action();
    // SAFETY: `before` was filled above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
}

/// Answers requests until the other end of the socket closes.
fn serve(socket: &OwnedFd) {
    while let Some((request, file)) = receive(socket) {
        let answer = match (request, file) {
            (b'w', None) => with_ram(|_| Ok(())),
            (b'm', Some(file)) => with_ram(|ram| map(ram, &file)),
            (b't', None) => with_ram(track),
            (b'u', None) => with_ram(|_| {
                // Closing it takes every protection away.
                *tracker() = None;
                Ok(())
            }),
            (b'k', Some(file)) => with_ram(|ram| translations::keep(ram, &file)),
            (b'l', None) => with_ram(|_| translations::loaded()),
            _ => failed(libc::EINVAL),
        };
        // SAFETY: the pointer and the length are those of `answer`.
        let sent = unsafe {
            libc::send(
                socket.as_raw_fd(),
                (&raw const answer).cast(),
                size_of::<Answer>(),
                libc::MSG_NOSIGNAL | libc::MSG_EOR,
            )
        };
        if sent < 0 {
            return;
        }
    }
}

/// Does something with guest RAM, if there is some yet, and answers where it is.
fn with_ram(action: impl FnOnce(Ram) -> Result<(), c_int>) -> Answer {
    let (address, length) = (ADDRESS.load(Ordering::Acquire), LENGTH.load(Ordering::Relaxed));
    if address == 0 {
        return failed(libc::EAGAIN);
    }
    match action(Ram { address, length }) {
        Ok(()) => [0, address as u64, length as u64],
        Err(errno) => failed(errno),
    }
}

fn failed(errno: c_int) -> Answer {
    [u64::from(errno.unsigned_abs()), 0, 0]
}

/// Lays a memory file over guest RAM, privately. The guest must not be running.
fn map(ram: Ram, file: &OwnedFd) -> Result<(), c_int> {
    match identify(file.as_raw_fd()) {
        Some((_, size)) if size == ram.length => {}
        // Past the end of a shorter file, the first access would kill QEMU.
        _ => return Err(libc::EMSGSIZE),
    }
    // SAFETY: the range is exactly the mapping QEMU made of the placeholder and never unmaps while it lives; QEMU
    // treats guest RAM as memory that changes under it, so replacing its content breaks none of its assumptions.
    let mapped = unsafe {
        libc::syscall(
            libc::SYS_mmap,
            ram.address,
            ram.length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            0_i64,
        )
    };
    if mapped == -1 { Err(last_errno()) } else { Ok(()) }
}

/// `struct uffdio_api` of `linux/userfaultfd.h`.
#[repr(C)]
struct FaultApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register` of `linux/userfaultfd.h`.
#[repr(C)]
struct FaultRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

const UFFD_USER_MODE_ONLY: c_int = 1;
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
/// `_IOWR(0xaa, 0x00, struct uffdio_register)`
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;

/// Starts to track guest RAM, unless it is tracked already. Kernels that cannot answer `EINVAL` or `ENOSYS`.
fn track(ram: Ram) -> Result<(), c_int> {
    let mut tracker = tracker();
    if tracker.is_none() {
        *tracker = Some(register(ram)?);
    }
    Ok(())
}

/// A userfaultfd that has this range registered.
fn register(ram: Ram) -> Result<OwnedFd, c_int> {
    // Nothing is ever delivered to it, so that no privilege is needed.
    // SAFETY: takes flags alone.
    let fd = unsafe {
        libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY)
    };
    let Ok(fd @ 0..) = RawFd::try_from(fd) else { return Err(last_errno()) };
    // SAFETY: the call above made it, for nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut api = FaultApi { api: UFFD_API, features: UFFD_FEATURE_WP_ASYNC, ioctls: 0 };
    // SAFETY: `api` has the layout the request is made for, and outlives the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) } != 0 {
        return Err(last_errno());
    }
    let mut register = FaultRegister {
        start: ram.address as u64,
        len: ram.length as u64,
        mode: UFFDIO_REGISTER_MODE_WP,
        ioctls: 0,
    };
    // SAFETY: `register` has the layout the request is made for, and outlives the call. Protection that the kernel takes away by
    // itself changes nothing for whoever writes.
    if unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) } != 0 {
        return Err(last_errno());
    }
    Ok(fd)
}

fn last_errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// One request: its byte and the file that came with it. `None` when the other end is gone.
fn receive(socket: &OwnedFd) -> Option<(u8, Option<OwnedFd>)> {
    let mut request = 0_u8;
    // Room for one descriptor, aligned as a control message header must be.
    let mut control = [0_u64; 8];
    let mut part = libc::iovec { iov_base: (&raw mut request).cast(), iov_len: 1 };
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    loop {
        // SAFETY: `message` points at buffers that outlive the call, with their true lengths.
        match unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) } {
            0 => return None,
            -1 if last_errno() == libc::EINTR => {}
            -1 => return None,
            _ => break,
        }
    }
    // SAFETY: recvmsg filled `message`; CMSG_FIRSTHDR gives null or a header inside `control`.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    let file = header
        .filter(|header| header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS)
        // SAFETY: an SCM_RIGHTS message carries at least one descriptor, which from now on is ours alone.
        .map(|header| unsafe {
            OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<c_int>().read_unaligned())
        });
    Some((request, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_mapping_of_guest_ram_becomes_private_and_keeps_its_other_flags() {
        let flags = private(libc::MAP_SHARED | libc::MAP_FIXED);
        assert_eq!(flags, libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE);
        assert_eq!(private(libc::MAP_SHARED_VALIDATE) & libc::MAP_TYPE, libc::MAP_PRIVATE);
    }

    #[test]
    fn two_descriptors_of_one_file_are_the_same_and_of_two_files_are_not() {
        let one = std::fs::File::open("/proc/self/exe").unwrap();
        let again = std::fs::File::open("/proc/self/exe").unwrap();
        let other = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(identify(one.as_raw_fd()), identify(again.as_raw_fd()));
        assert_ne!(identify(one.as_raw_fd()), identify(other.as_raw_fd()));
    }
}
