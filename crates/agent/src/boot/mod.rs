//! From the kernel's first process to a serving agent.
