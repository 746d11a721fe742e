//! The store of snapshots on a node: clone, publish, verify, remove.
