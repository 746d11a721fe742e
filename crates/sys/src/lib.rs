//! Safe wrappers over the Linux calls that need unsafe code.

pub mod entropy;
pub mod extents;
pub mod freeze;
pub mod interface;
pub mod netns;
pub mod spawn;
pub mod tap;

mod heap;
mod maps;
mod pagemap;
mod pass_fds;
mod process_memory;
mod session;
mod tsc;
mod uring;
mod write_back;

pub use heap::give_back_freed_memory;
pub use maps::anonymous_mappings;
pub use pagemap::{PageRun, anonymous_pages, protect_anonymous_pages, written_pages};
pub use pass_fds::send_with_fds;
pub use process_memory::read_process_memory;
pub use session::{in_cgroups, in_new_session};
pub use tsc::tsc_khz;
pub use uring::io_uring_works;
pub use write_back::{start_write_back, start_write_back_of, write_back};
