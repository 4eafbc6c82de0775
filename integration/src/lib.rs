//! The harness, scenarios and benches that run the real programs.
//!
//! Scenarios start with [`mesh::Mesh`]: a control plane and proxies on addresses of their own; or with
//! [`local_mesh::LocalMesh`]: a mesh that `meshctl` runs. [`steady`] is load whose every request is accounted for.
//! [`app`] stands behind the mesh and [`client`] in front of it, both inside the test.
//! [`load`] is what benches send, [`floor`] what the least programs they compare with are made of.

pub mod address;
pub mod app;
pub mod client;
pub mod edge;
pub mod floor;
pub mod load;
pub mod local_mesh;
pub mod mesh;
mod metrics;
pub mod process;
pub mod programs;
pub mod python;
pub mod scripted;
pub mod sidecar;
pub mod steady;
pub mod wait;
