//! The `torpor` binary.
fn main() {}
