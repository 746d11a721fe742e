//! The reverse proxy from clients to ports in sandboxes.
