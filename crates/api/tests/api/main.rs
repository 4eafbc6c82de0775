//! The wire as its two ends see it.

mod checklist;
mod generated;
mod hostile;
mod inexpressible;
mod round_trip;
mod strategies;
mod tap;
mod values;
mod watches;
