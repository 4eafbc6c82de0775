//! `outbound_{http,tcp}_egress_*`: verdicts about what leaves the mesh, by host and policy.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mesh_model::Meta;
use mesh_model::egress::egress_meta;
use mesh_model::stats::WINDOW_SECONDS;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::time::Instant;

use super::bounded::Bounded;
use super::counters::{Count, counts};
use super::labels::{self, Detail, Pairs};

/// Verdicts, and the hosts that are told by name.
#[derive(Clone, Debug)]
pub struct EgressMetrics {
    http: Arc<Bounded<EgressLabels, EgressCounters>>,
    tcp: Arc<Bounded<EgressLabels, EgressCounters>>,
    hosts: Arc<Mutex<Hosts>>,
}

/// Hosts and ports, and when they were last asked for.
type Hosts = HashMap<(Arc<str>, u16), Instant>;

/// Verdicts with the same labels.
#[derive(Debug, Default)]
pub struct EgressCounters {
    pub allow: Count,
    pub deny: Count,
    /// A connection that was let out and then cut, because the policy changed. TCP only.
    pub terminated: Count,
}

/// Where something was going, and what decided about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EgressLabels {
    pub parent: Meta,
    pub policy: Meta,
}

/// Hosts and ports told by name at a time. An application chooses the names it asks for: without a bound,
/// figures would grow with them.
const MAX_HOSTS: usize = 200;
/// A host that was not asked for during the time that figures remember makes room.
const IDLE: Duration = Duration::from_secs(WINDOW_SECONDS);
/// What all other hosts are told as.
const OTHER: &str = "other";

impl EgressMetrics {
    pub(super) fn new(max: usize) -> Self {
        let (http, tcp) = (Arc::new(Bounded::new(max)), Arc::new(Bounded::new(max)));
        Self { http, tcp, hosts: Arc::default() }
    }

    /// Verdicts on requests.
    pub fn http(&self, labels: &EgressLabels) -> Arc<EgressCounters> {
        self.http.get(labels)
    }

    /// Verdicts on connections.
    pub fn tcp(&self, labels: &EgressLabels) -> Arc<EgressCounters> {
        self.tcp.get(labels)
    }

    /// As what a host is told: itself, or one of many.
    pub fn host(&self, host: &Arc<str>, port: u16) -> Meta {
        let now = Instant::now();
        let mut hosts = self.hosts.lock();
        let key = (Arc::clone(host), port);
        if let Some(used) = hosts.get_mut(&key) {
            *used = now;
            return egress_meta(host, Some(port));
        }
        if hosts.len() >= MAX_HOSTS {
            hosts.retain(|_, used| now.duration_since(*used) < IDLE);
        }
        if hosts.len() >= MAX_HOSTS {
            return egress_meta(OTHER, None);
        }
        hosts.insert(key, now);
        egress_meta(host, Some(port))
    }
}

impl Pairs for EgressLabels {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        labels::meta("parent", &self.parent, Detail::Port, visit);
        labels::meta("authz", &self.policy, Detail::Port, visit);
    }
}

impl Collector for EgressMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (http, tcp) = (self.http.all(), self.tcp.all());
        let encoder = &mut encoder;
        let help = "Requests let out of the mesh";
        counts(encoder, "outbound_http_egress_allow", help, &http, |c| &c.allow)?;
        let help = "Requests not let out of the mesh";
        counts(encoder, "outbound_http_egress_deny", help, &http, |c| &c.deny)?;
        let help = "Connections let out of the mesh";
        counts(encoder, "outbound_tcp_egress_allow", help, &tcp, |c| &c.allow)?;
        let help = "Connections not let out of the mesh";
        counts(encoder, "outbound_tcp_egress_deny", help, &tcp, |c| &c.deny)?;
        let help = "Connections out of the mesh cut because a policy changed";
        counts(encoder, "outbound_tcp_egress_terminate", help, &tcp, |c| &c.terminated)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn hosts_beyond_the_bound_are_told_as_one_until_others_are_quiet() {
        let metrics = EgressMetrics::new(10);
        let host = |n: usize| metrics.host(&format!("h{n}.test").into(), 443).to_string();
        for n in 0..MAX_HOSTS {
            assert_eq!(host(n), format!("Egress/h{n}.test:443"));
        }
        assert_eq!(host(MAX_HOSTS), "Egress/other");
        advance(IDLE / 2).await;
        assert_eq!(host(0), "Egress/h0.test:443");
        advance(IDLE / 2).await;
        assert_eq!(host(MAX_HOSTS), format!("Egress/h{MAX_HOSTS}.test:443"));
        assert_eq!(metrics.hosts.lock().len(), 2, "the one in use stayed");
    }
}
