//! The local mesh: ordinary manifests run as processes on this machine, each behind a real proxy.
//!
//! A background process, the supervisor, owns one mesh: it starts and restarts the control plane, the proxies
//! and the applications, reports them as pods, and replaces them without losing a request. meshctl tells it what
//! to do over a socket ([`protocol`]). What ought to be is decided by plain functions ([`plan`], [`address`],
//! [`environment`], [`workload`]); [`pod`] and [`supervisor`] carry it out. Read [`supervisor`] first.

pub mod address;
pub mod authority;
pub mod client;
pub mod control;
pub mod environment;
pub mod gateway;
pub mod guard;
pub mod identity;
pub mod keeper;
pub mod logs;
pub mod manifest;
pub mod netns;
pub mod object;
pub mod occupied;
pub mod plan;
pub mod pod;
pub mod probe;
pub mod process;
pub mod programs;
pub mod protocol;
pub mod readiness;
pub mod record;
pub mod store;
pub mod supervisor;
pub mod surroundings;
pub mod workload;

/// The present time as Kubernetes writes it: RFC 3339, whole seconds, UTC.
fn now() -> String {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Second).unwrap_or(now).to_string()
}

/// An identifier nobody else has, in the shape Kubernetes gives its objects'.
pub(crate) fn unique_id() -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // Every `RandomState` has keys of its own, made from the system's randomness.
    let random = || RandomState::new().build_hasher().finish();
    let (a, b) = (random(), random());
    format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        b >> 52,
        b & 0xffff_ffff_ffff
    )
}
