//! Scenarios: the real programs, with applications (our own and other people's) in front of and
//! behind them. One module per subject; the harness is the library of this package.

#![allow(clippy::unwrap_used, reason = "a test that meets what it does not expect ends")]

mod authorization;
mod cluster;
mod corpus;
mod edge;
mod egress;
mod explain;
mod failures;
mod figures;
mod foreign;
mod grpc;
mod hostile;
mod http;
mod identity;
mod local_mesh;
mod rolling;
mod routing;
mod tcp;
mod tools;
mod traffic;
mod workspace;
