//! Which replica writes: the one that holds the Lease `mesh-control`.
//!
//! The rules of Kubernetes' own controllers: the holder renews, the others take over when they have
//! seen no renewal for as long as the Lease says. They go by their own clock since they saw it change,
//! so that no two clocks are ever compared.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::core::ObjectMeta;
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::FIELD_MANAGER;
use super::watch::why;

/// The name of the Lease.
pub const NAME: &str = "mesh-control";
const DURATION: Duration = Duration::from_secs(30);
const RENEW: Duration = Duration::from_secs(10);
/// A holder that could not renew for this long writes no more, well before another may.
const GIVE_UP: Duration = Duration::from_secs(20);
/// One try, so that the next is not late.
const TRY: Duration = Duration::from_secs(5);
/// What a foreign Lease may say of its own duration. Seconds.
const LONGEST: u64 = 300;

pub(super) struct Election {
    api: Api<Lease>,
    /// Of this process, no other has it.
    identity: String,
    leader: watch::Sender<bool>,
    /// The version of the Lease that another holds, and since when it is the same.
    seen: Option<(String, Instant)>,
    renewed: Option<Instant>,
}

impl Election {
    pub(super) fn new(client: Client, namespace: &str, replica: &str) -> Self {
        // A name alone may be had by two, and a process that ends leaves its own behind.
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let identity = format!("{replica}_{:x}-{:x}", std::process::id(), started.as_nanos());
        Self {
            api: Api::namespaced(client, namespace),
            identity,
            leader: watch::Sender::new(false),
            seen: None,
            renewed: None,
        }
    }

    /// Whether this replica is the one that writes.
    pub(super) fn leader(&self) -> watch::Receiver<bool> {
        self.leader.subscribe()
    }

    /// Takes the Lease when it can be had and keeps it, until `stop`; then gives it up.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(RENEW);
        loop {
            tokio::select! {
                _ = tick.tick() => self.round().await,
                () = stop.cancelled() => break,
            }
        }
        if self.leader.send_replace(false) {
            let released = tokio::time::timeout(TRY, self.release()).await;
            if !matches!(released, Ok(Ok(()))) {
                tracing::debug!("the Lease was not given up; it expires");
            }
        }
    }

    async fn round(&mut self) {
        let tried = tokio::time::timeout(TRY, self.attempt()).await;
        let held = match tried {
            Ok(Ok(held)) => held,
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => false,
            Ok(Err(error)) => {
                tracing::warn!(why = why(&error), "the Lease {NAME} cannot be had");
                self.still_valid()
            }
            Err(_) => {
                tracing::warn!("the API server did not answer about the Lease {NAME}");
                self.still_valid()
            }
        };
        if !held {
            self.renewed = None;
        }
        let was = self.leader.send_replace(held);
        if held != was {
            let text = if held { "writes status from now on" } else { "writes status no more" };
            tracing::info!(identity = self.identity, "this replica {text}");
        }
    }

    fn still_valid(&self) -> bool {
        self.renewed.is_some_and(|at| at.elapsed() < GIVE_UP)
    }

    /// Whether the Lease is ours now.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let at = Instant::now();
        let post =
            PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let Some(mut lease) = self.api.get_opt(NAME).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() },
                spec: Some(self.claim(None)),
            };
            self.api.create(&post, &lease).await?;
            self.renewed = Some(at);
            return Ok(true);
        };
        if !self.may_take(&lease, at) {
            return Ok(false);
        }
        lease.metadata.managed_fields = None;
        lease.spec = Some(self.claim(lease.spec.take()));
        // With the version that was read, so that of two who try one fails.
        self.api.replace(NAME, &post, &lease).await?;
        self.renewed = Some(at);
        Ok(true)
    }

    fn may_take(&mut self, lease: &Lease, now: Instant) -> bool {
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            self.seen = None;
            return true;
        }
        let version = lease.resource_version().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => {
                self.seen = Some((version, now));
                now
            }
        };
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
        let lasts = u64::try_from(seconds).unwrap_or_default().clamp(1, LONGEST);
        now.duration_since(since) >= Duration::from_secs(lasts)
    }

    /// The Lease as ours.
    fn claim(&self, before: Option<LeaseSpec>) -> LeaseSpec {
        let before = before.unwrap_or_default();
        let now = MicroTime(Timestamp::now());
        let ours = before.holder_identity.as_ref() == Some(&self.identity);
        let transitions = before.lease_transitions.unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: before.acquire_time.filter(|_| ours).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions.saturating_add(i32::from(!ours))),
            ..before
        }
    }

    async fn release(&self) -> Result<(), kube::Error> {
        let mut lease = self.api.get(NAME).await?;
        let Some(spec) = lease.spec.as_mut() else { return Ok(()) };
        if spec.holder_identity.as_ref() != Some(&self.identity) {
            return Ok(());
        }
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        lease.metadata.managed_fields = None;
        let post =
            PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        self.api.replace(NAME, &post, &lease).await.map(drop)
    }
}
