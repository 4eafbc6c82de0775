//! HTTP on both sides of the proxy: serving clients, talking to endpoints, and what changes in a
//! message on its way through.

pub(crate) mod activity;
pub(crate) mod client;
pub(crate) mod faults;
pub(crate) mod filters;
pub(crate) mod forward;
pub(crate) mod mirror;
pub(crate) mod pool;
pub(crate) mod server;
pub(crate) mod upgrade;
