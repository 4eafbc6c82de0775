//! A running proxy, as a test sees it: its addresses, figures and beliefs.

use std::net::{Ipv4Addr, SocketAddr};

use rustix::process::Signal;
use serde_json::Value;

use crate::process::Process;
use crate::{client, metrics, wait};

pub(crate) const OUTBOUND_PORT: u16 = 4140;
pub(crate) const INBOUND_PORT: u16 = 4143;
pub(crate) const CONTROL_PORT: u16 = 4190;
pub(crate) const ADMIN_PORT: u16 = 4191;

/// A proxy of one pod.
#[derive(Debug)]
pub struct Sidecar {
    name: String,
    ip: Ipv4Addr,
    upstreams: Vec<SocketAddr>,
    process: Process,
}

impl Sidecar {
    pub(crate) fn new(
        name: String,
        ip: Ipv4Addr,
        upstreams: Vec<SocketAddr>,
        process: Process,
    ) -> Self {
        Self { name, ip, upstreams, process }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// The listener of the pod's n-th named upstream.
    pub fn upstream(&self, number: usize) -> SocketAddr {
        self.upstreams[number]
    }

    /// Where the pod's application finds a forward proxy.
    pub fn forward_proxy(&self) -> SocketAddr {
        (self.ip, OUTBOUND_PORT).into()
    }

    /// A port of the pod, as the mesh reaches it.
    pub fn inbound(&self, port: u16) -> SocketAddr {
        (self.ip, port).into()
    }

    /// Where it answers the control plane.
    pub fn tap(&self) -> SocketAddr {
        (self.ip, CONTROL_PORT).into()
    }

    fn admin(&self) -> SocketAddr {
        (self.ip, ADMIN_PORT).into()
    }

    pub(crate) async fn ready(&mut self) {
        let (what, admin) = (format!("the proxy of {} to be ready", self.name), self.admin());
        wait::until(&what, async || {
            self.process.assert_sound();
            client::get(admin, "/ready").await.filter(|answer| answer.status == 200)
        })
        .await;
    }

    /// Whether the proxy says so. It may not even listen yet.
    pub async fn is_ready(&self) -> bool {
        client::get(self.admin(), "/ready").await.is_some_and(|answer| answer.status == 200)
    }

    /// What the proxy believes.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn config(&self) -> Value {
        let answer = client::get(self.admin(), "/config").await.expect("an answer to /config");
        serde_json::from_slice(&answer.body).expect("JSON from /config")
    }

    /// The sum of the metrics of this name whose lines contain all of `labels`.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let answer = client::get(self.admin(), "/metrics").await.expect("an answer to /metrics");
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        metrics::sum(&text, name, labels)
    }

    /// Resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        self.process.resident()
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        self.process.descriptors()
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// See [`Process::assert_sound`].
    pub fn assert_sound(&mut self) {
        self.process.assert_sound();
    }
}
