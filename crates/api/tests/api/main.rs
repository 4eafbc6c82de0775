//! The wire as its two ends see it.

#![allow(clippy::unwrap_used)]

mod authz;
mod checklist;
mod egress;
mod gateway;
mod generated;
mod hostile;
mod identity;
mod inexpressible;
mod round_trip;
mod serve;
mod strategies;
mod tap;
mod values;
mod watches;
