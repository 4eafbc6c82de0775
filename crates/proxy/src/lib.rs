//! The sidecar: two stacks, and what feeds them.
//!
//! A connection enters in [`worker`], and then goes through [`outbound`] (from the application into
//! the mesh) or [`inbound`] (from the mesh to the application); each of these files reads top to
//! bottom in the order a request passes. What they do is decided by what [`discovery`] hears from
//! the control plane, and told by [`telemetry`].

pub mod admin;
pub mod alone;
pub mod config;
mod connect;
mod control_plane;
mod control_port;
mod describe;
mod detect;
mod discovery;
mod draws;
mod error;
mod exchange;
mod gateway;
mod hooks;
mod http;
mod identity;
mod inbound;
mod init_redirect;
mod io;
#[cfg(test)]
mod life;
mod listen;
mod outbound;
mod relay;
mod resolve;
pub mod run;
pub mod telemetry;
mod worker;

pub use self::config::Config;
pub use self::run::main;
