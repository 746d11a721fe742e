//! Inside the guest: PID 1 and the envd protocol.
fn main() {}
