//! Preloaded into QEMU: maps guest RAM private over an immutable snapshot.
