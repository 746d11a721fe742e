//! REST API, authentication, sandbox lifecycle.
