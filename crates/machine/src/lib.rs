//! Virtual machines: QEMU processes, their capture, their warm pool.
