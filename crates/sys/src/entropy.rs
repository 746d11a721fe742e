//! New randomness for the kernel.
//!
//! A machine continued from a snapshot has the same generator state as every other continuation of it, and would
//! return the same "random" bytes.

use std::{
    fs::File,
    io::{self, Write},
};

use rustix::ioctl::{NoArg, Opcode, ioctl, opcode};

/// `RNDRESEEDCRNG` of linux/random.h.
const RESEED: Opcode = opcode::none(b'R', 7);

/// Mixes bytes into the kernel's entropy pool and makes the generator start over from the pool. After that random
/// bytes depend on `seed`, and so differ between continuations that got different seeds. Needs `CAP_SYS_ADMIN`.
pub fn reseed(seed: &[u8]) -> io::Result<()> {
    let mut random = File::options().write(true).open("/dev/urandom")?;
    random.write_all(seed)?;
    // SAFETY: the call takes no argument and touches no memory of this process.
    unsafe { ioctl(&random, NoArg::<RESEED>::new()) }?;
    Ok(())
}
