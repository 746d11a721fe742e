//! Network namespaces, taps and egress rules of sandboxes.
