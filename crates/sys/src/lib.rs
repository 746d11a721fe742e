//! Safe wrappers over the Linux calls that need unsafe code.
