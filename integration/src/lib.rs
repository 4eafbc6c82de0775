//! The harness, scenarios and benches that run the real programs.
//!
//! Scenarios start with [`mesh::Mesh`]: a control plane and proxies on addresses of their own.
//! [`app`] stands behind the mesh and [`client`] in front of it, both inside the test.
//! [`load`] is what benches send.

pub mod address;
pub mod app;
pub mod client;
pub mod load;
pub mod mesh;
pub mod process;
pub mod programs;
pub mod scripted;
pub mod sidecar;
pub mod wait;
