//! The harness, scenarios and benches that run the real programs.

pub mod load;
