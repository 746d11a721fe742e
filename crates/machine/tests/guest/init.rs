//! The guest of the machine tests: a whole user space in one static program, compiled by the test with `rustc`.
//!
//! It loads the virtio modules, brings up `eth0` as 10.11.0.2/30 and answers one-line commands on TCP port 49983:
//!
//! ```text
//! ping            pong                     is anybody there?
//! fill MIB        filled MIB               holds that much memory of pseudo-random pages from now on
//! dirty MIB       dirtied PAGES            rewrites the first MIB of it with new pages
//! check           checked PAGES ERRORS     verifies every page it holds
//! churn           churning                 a thread rewrites and verifies its own 16 MiB for ever
//! churned         churned ROUNDS ERRORS    what that thread has seen
//! zero MIB        zeroed PAGES             writes zeros over the first MIB
//! disk-write N    written                  writes 4 KiB made from N at 4096·N of /dev/vda, with fsync
//! disk-check N    disk ok|disk wrong       reads it back past the page cache
//! code N          written                  writes a function that returns N over the one before, in the same place
//! call            returned N               calls it
//! ```

use std::ffi::{CString, c_char, c_int, c_long, c_ulong};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU64, Ordering};

unsafe extern "C" {
    fn mount(source: *const c_char, target: *const c_char, kind: *const c_char, flags: c_ulong, data: *const u8) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn mmap(address: usize, length: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut u8;
}

/// A page for code, at an address of its own.
const CODE_AT: usize = 0x7000_0000_0000;

const WORDS: usize = 512;
type Page = [u64; WORDS];

static ROUNDS: AtomicU64 = AtomicU64::new(0);
static ERRORS: AtomicU64 = AtomicU64::new(0);

/// The content of a page follows from its seed, which is its first word.
fn write_page(page: &mut Page, seed: u64) {
    let mut x = seed;
    for word in page.iter_mut() {
        *word = x;
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    }
}

fn page_is_right(page: &Page, seed: u64) -> bool {
    let mut x = seed;
    page.iter().all(|word| {
        let right = *word == x;
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        right
    })
}

fn mount_at(kind: &str, target: &str) {
    let _ = std::fs::create_dir_all(target);
    let (kind, target) = (CString::new(kind).unwrap(), CString::new(target).unwrap());
    unsafe { mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
}

fn load_modules() {
    let mut modules: Vec<_> = std::fs::read_dir("/modules").unwrap().map(|entry| entry.unwrap().path()).collect();
    modules.sort();
    for module in modules {
        let file = std::fs::File::open(&module).unwrap();
        let none = CString::new("").unwrap();
        // finit_module
        let result = unsafe { syscall(313, file.as_raw_fd(), none.as_ptr(), 0) };
        println!("guest: {} {result}", module.display());
    }
}

/// `struct ifreq`: a name and a union of 24 bytes.
fn interface(request: c_ulong, value: &[u8]) {
    let mut ifreq = [0_u8; 40];
    ifreq[..4].copy_from_slice(b"eth0");
    ifreq[16..16 + value.len()].copy_from_slice(value);
    let result = unsafe { ioctl(socket(2, 2, 0), request, ifreq.as_mut_ptr()) };
    println!("guest: eth0 {request:#x} {result}");
}

fn churn() {
    let mut pages: Vec<Page> = vec![[0; WORDS]; 4096];
    for (i, page) in pages.iter_mut().enumerate() {
        write_page(page, i as u64);
    }
    for round in 1.. {
        for (i, page) in pages.iter_mut().enumerate() {
            if !page_is_right(page, (round - 1) * 4096 + i as u64) {
                ERRORS.fetch_add(1, Ordering::Relaxed);
            }
            write_page(page, round * 4096 + i as u64);
        }
        ROUNDS.store(round, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Held {
    pages: Vec<Page>,
    seeds: Vec<u64>,
    next: u64,
}

impl Held {
    fn write(&mut self, i: usize) {
        self.next += 1;
        self.seeds[i] = self.next << 20;
        write_page(&mut self.pages[i], self.seeds[i]);
    }
}

fn disk(read_past_cache: bool) -> std::fs::File {
    const O_DIRECT: i32 = 0x4000;
    let flags = if read_past_cache { O_DIRECT } else { 0 };
    std::fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/vda").unwrap()
}

#[repr(align(4096))]
struct Block(Page);

fn block(n: u64) -> Vec<u8> {
    let mut page = [0; WORDS];
    write_page(&mut page, n + 1);
    page.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn answer(held: &mut Held, line: &str) -> String {
    let mut words = line.split_whitespace();
    let command = words.next().unwrap_or_default();
    let number: u64 = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    let pages = number as usize * 256;
    match command {
        "ping" => "pong".into(),
        "fill" => {
            *held = Held { pages: vec![[1; WORDS]; pages], seeds: vec![0; pages], next: held.next };
            (0..pages).for_each(|i| held.write(i));
            format!("filled {number}")
        }
        "dirty" => {
            (0..pages).for_each(|i| held.write(i));
            format!("dirtied {pages}")
        }
        "zero" => {
            held.pages[..pages].fill([0; WORDS]);
            // Zeros are no page of the generator: the first word of a seed is never 0.
            held.seeds[..pages].fill(u64::MAX);
            format!("zeroed {pages}")
        }
        "check" => {
            let right = |(page, seed): (&Page, &u64)| match *seed {
                u64::MAX => page.iter().all(|word| *word == 0),
                seed => page_is_right(page, seed),
            };
            let errors = held.pages.iter().zip(&held.seeds).filter(|pair| !right(*pair)).count();
            format!("checked {} {errors}", held.pages.len())
        }
        "churn" => {
            std::thread::spawn(churn);
            "churning".into()
        }
        "churned" => format!("churned {} {}", ROUNDS.load(Ordering::Relaxed), ERRORS.load(Ordering::Relaxed)),
        "disk-write" => {
            let mut disk = disk(false);
            disk.seek(SeekFrom::Start(number * 4096)).unwrap();
            disk.write_all(&block(number)).unwrap();
            disk.sync_all().unwrap();
            "written".into()
        }
        "disk-check" => {
            let mut disk = disk(true);
            disk.seek(SeekFrom::Start(number * 4096)).unwrap();
            let mut read = Box::new(Block([0; WORDS]));
            let bytes = unsafe { std::slice::from_raw_parts_mut(read.0.as_mut_ptr().cast::<u8>(), 4096) };
            disk.read_exact(bytes).unwrap();
            if bytes == block(number).as_slice() { "disk ok".into() } else { "disk wrong".into() }
        }
        "code" => {
            // Readable, writable, executable; private, fixed, anonymous. A page that is there stays the same.
            const PRIVATE_FIXED_ANONYMOUS: c_int = 0x02 | 0x10_0000 | 0x20;
            let code = unsafe {
                mmap(CODE_AT, 4096, 7, PRIVATE_FIXED_ANONYMOUS, -1, 0);
                std::slice::from_raw_parts_mut(CODE_AT as *mut u8, 6)
            };
            // mov eax, N; ret
            code[0] = 0xb8;
            code[1..5].copy_from_slice(&(number as u32).to_le_bytes());
            code[5] = 0xc3;
            "written".into()
        }
        "call" => {
            let function: extern "C" fn() -> u32 = unsafe { std::mem::transmute(CODE_AT) };
            format!("returned {}", function())
        }
        _ => format!("unknown command {command}"),
    }
}

fn serve(stream: TcpStream, held: &std::sync::Mutex<Held>) {
    let _ = stream.set_nodelay(true);
    let mut writer = stream.try_clone().unwrap();
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let text = answer(&mut held.lock().unwrap(), &line);
        if writeln!(writer, "{text}").is_err() {
            return;
        }
    }
}

fn main() {
    mount_at("proc", "/proc");
    mount_at("devtmpfs", "/dev");
    load_modules();
    // SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFFLAGS up|running.
    interface(0x8916, &[2, 0, 0, 0, 10, 11, 0, 2]);
    interface(0x891c, &[2, 0, 0, 0, 255, 255, 255, 252]);
    interface(0x8914, &[0x41, 0]);
    let held: &'static _ = Box::leak(Box::default());
    let listener = TcpListener::bind("0.0.0.0:49983").unwrap();
    println!("guest: ready");
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || serve(stream, held));
    }
}
