//! meshctl, the command line of the mesh.
//!
//! A command is one file in [`commands`]. It gets its arguments and a [`Context`], asks the control plane over the
//! connection of [`connect`], and prints through [`output`]. Read [`args`] next for what there is, then
//! `commands/stat/mod.rs` as the example of a command.

pub mod args;
pub mod cluster;
pub mod commands;
mod completing;
pub mod connect;
pub mod context;
pub mod demo_app;
pub mod error;
pub mod install;
pub mod local;
pub mod manifests;
pub mod output;
pub mod program;
pub mod selector;
pub mod state_dir;
#[cfg(test)]
mod testing;
pub mod units;

pub use context::Context;
pub use error::CliError;
pub use program::main;
