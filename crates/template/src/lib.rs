//! Root file systems and the templates made from them.
//!
//! A *recipe* says what is in a root file system: a Debian suite, a list of packages, and a script that finishes the
//! tree. A *rootfs* is a recipe made real: an ext4 image, the kernel and the kernel modules taken out of it. It
//! depends on nothing but the recipe, so it is kept in a cache directory and serves every build on the host.
//!
//! A *template build* boots a rootfs with an agent as its first program, waits until the agent answers, warms it, stops
//! the machine and publishes everything as a snapshot of kind `template`. Sandboxes are resumes of that snapshot.
//!
//! ```text
//!  recipe ──mmdebstrap──▶ tree ──mke2fs -d──▶ disk.ext4 ─┐
//!                          └── kernel, modules ──┐       ├─ machine boots, agent answers ─▶ snapshot (template)
//!                                    agent ──────┴─ initramfs
//! ```

pub mod builder;
mod command;
mod guest;
pub mod image;
pub mod initramfs;
pub mod kernel;
pub mod kernels;
pub mod mirror;
mod mmdebstrap;
pub mod progress;
pub mod recipe;
pub mod rootfs;
pub mod spec;
mod tree;

pub use builder::{BuildError, Builder};
pub use command::CommandError;
pub use guest::GuestError;
pub use progress::{Progress, Silent};
pub use recipe::Recipe;
pub use rootfs::{Rootfs, RootfsError, RootfsOptions};
pub use spec::{DEFAULT_MEMORY_MIB, TemplateRecord, TemplateSpec};
