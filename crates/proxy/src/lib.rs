//! The sidecar: two stacks, and what feeds them.

pub mod admin;
pub mod telemetry;
