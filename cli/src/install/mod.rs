//! Bringing a mesh into a cluster and out of it: [`plan`] tells what will be done, [`apply`] does it and waits, and
//! [`remove`] takes it away again. Read [`plan`] first.

pub mod apply;
pub mod ask;
pub mod plan;
pub mod record;
pub mod remove;
#[cfg(test)]
mod tests;
