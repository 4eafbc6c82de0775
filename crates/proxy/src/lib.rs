//! The sidecar: two stacks, and what feeds them.

pub mod admin;
pub mod control_port;
pub mod telemetry;
