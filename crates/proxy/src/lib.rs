//! The sidecar: two stacks, and what feeds them.
pub mod telemetry;
