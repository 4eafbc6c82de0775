//! The control plane of a local mesh: keeping its process running, and asking it.
//!
//! When it dies it is started again; until then the proxies go on with what they know.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_api::ext::{EndpointsRequest, Selector};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::keeper::{Keeper, KeptStatus};
use super::probe::Dialer;
use super::process::Launch;
use super::programs::Program;
use super::surroundings::Surroundings;
use crate::connect::{Mesh, Place};
use crate::error::{CliError, Kind};
use crate::state_dir::StateDir;

const ANSWER: Duration = Duration::from_secs(1);
const GRACE: Duration = Duration::from_secs(3);
/// Between two looks while it is not ready, and while it is.
const IMPATIENT: Duration = Duration::from_millis(100);
const PATIENT: Duration = Duration::from_secs(5);
/// Between two questions about what has changed.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// The control plane as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlStatus {
    pub process: KeptStatus,
    pub ready: bool,
}

/// The control plane's process. Dropping it stops it.
#[derive(Debug)]
pub struct ControlPlane {
    status: watch::Receiver<ControlStatus>,
    stop: Option<oneshot::Sender<()>>,
}

impl ControlPlane {
    /// Starts and keeps it. `changed` is notified after every change of its status.
    pub fn start(
        dir: &StateDir,
        listen: SocketAddr,
        admin: SocketAddr,
        around: &Surroundings,
        changed: Arc<Notify>,
    ) -> io::Result<Self> {
        let program = Program::ours("mesh-control")?;
        let path = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
        let args = [
            ["--source", "local"].map(str::to_owned),
            ["--state-dir".to_owned(), path(dir.path.clone())],
            ["--listen".to_owned(), listen.to_string()],
            ["--socket".to_owned(), path(dir.control_socket())],
            ["--admin".to_owned(), admin.to_string()],
        ];
        let mut args = args.concat();
        if around.identities.is_some() {
            args.extend(["--identity-dir".to_owned(), path(dir.identity())]);
        }
        let netns = around.hub.as_ref().map(|hub| hub.netns.clone());
        let launch = Launch {
            program: program.path,
            arg0: program.arg0,
            args,
            env: around.control_env.clone(),
            log: dir.logs().join("control.log"),
            netns: netns.clone(),
            ..Launch::default()
        };
        let keeper = Keeper::start(launch);
        let first = ControlStatus { process: keeper.status(), ready: false };
        let (publish, status) = watch::channel(first);
        let (stop, told) = oneshot::channel();
        tokio::spawn(look_after(keeper, Dialer { netns }, admin, publish, changed, told));
        Ok(Self { status, stop: Some(stop) })
    }

    pub fn status(&self) -> ControlStatus {
        self.status.borrow().clone()
    }

    /// Ends it, within a bounded time.
    pub async fn stop(&mut self) {
        self.stop = None;
        // The sender goes away when the process has.
        while self.status.changed().await.is_ok() {}
    }
}

async fn look_after(
    mut keeper: Keeper,
    dialer: Dialer,
    admin: SocketAddr,
    publish: watch::Sender<ControlStatus>,
    changed: Arc<Notify>,
    mut told: oneshot::Receiver<()>,
) {
    loop {
        let process = keeper.status();
        let ready =
            process.running().is_some() && dialer.http(admin, "/ready", ANSWER).await.is_ok();
        let next = ControlStatus { process, ready };
        if publish.send_if_modified(|status| std::mem::replace(status, next.clone()) != next) {
            changed.notify_one();
        }
        tokio::select! {
            _ = &mut told => break,
            () = keeper.changed() => {}
            () = sleep(if ready { PATIENT } else { IMPATIENT }) => {}
        }
    }
    keeper.stop(GRACE);
    keeper.stopped().await;
}

/// Asks the control plane what it knows.
#[derive(Clone, Debug)]
pub struct ControlAccess {
    dir: StateDir,
}

impl ControlAccess {
    pub fn new(dir: StateDir) -> Self {
        Self { dir }
    }

    /// Waits until the control plane has taken in what is written now, also while it is being started again.
    pub async fn wait_taken_in(&self, limit: Duration) -> Result<(), CliError> {
        let mut why = String::new();
        let ask = async {
            loop {
                match self.ask_to_take_in().await {
                    Err(error) if matches!(error.kind, Kind::Unreachable | Kind::TimedOut) => {
                        why = format!(": {}", error.message);
                    }
                    answer => return answer,
                }
                sleep(ASK_AGAIN).await;
            }
        };
        if let Ok(answer) = timeout(limit, ask).await {
            return answer;
        }
        let files = self.dir.manifests();
        let message = format!(
            "all pods are ready, but the control plane has not taken in {} within {limit:?}{why}",
            files.display()
        );
        Err(CliError::timed_out(message)
            .hint(format!("meshctl local logs control{}", self.dir.flag())))
    }

    async fn ask_to_take_in(&self) -> Result<(), CliError> {
        Mesh::at(Place::Local(self.dir.clone())).await?.refresh().await
    }

    /// Cluster addresses of these services, by namespace and name. Waits until the control plane knows all of
    /// them, but no longer than `limit`; then without those it does not know.
    pub async fn cluster_ips(
        &self,
        wanted: &[(String, String)],
        limit: Duration,
    ) -> BTreeMap<(String, String), IpAddr> {
        let mut known = BTreeMap::new();
        let ask = async {
            loop {
                if let Ok(found) = self.ask_cluster_ips().await {
                    known = found;
                    if wanted.iter().all(|service| known.contains_key(service)) {
                        return;
                    }
                }
                sleep(ASK_AGAIN).await;
            }
        };
        if timeout(limit, ask).await.is_err() {
            tracing::warn!("the control plane has no addresses for some services");
        }
        known
    }

    async fn ask_cluster_ips(&self) -> Result<BTreeMap<(String, String), IpAddr>, CliError> {
        let mesh = Mesh::at(Place::Local(self.dir.clone())).await?;
        let selector = Selector { kind: "service".to_owned(), ..Selector::default() };
        let services = mesh.resources(selector).await?.into_iter();
        let addresses = services.filter_map(|service| {
            let named = service.r#ref?;
            Some(((named.namespace, named.name), service.cluster_ip.parse().ok()?))
        });
        Ok(addresses.collect())
    }

    /// Waits until no proxy sends anything to `ip` for these `name.namespace:port` any more, but no longer than
    /// `limit`: what is still sent then is retried elsewhere by whoever sends it.
    pub async fn wait_forgotten(&self, services: &[String], ip: Ipv4Addr, limit: Duration) {
        let prefix = format!("{ip}:");
        let ask = async {
            for service in services {
                while !self.is_forgotten(service, &prefix).await.unwrap_or(false) {
                    sleep(ASK_AGAIN).await;
                }
            }
        };
        if timeout(limit, ask).await.is_err() {
            tracing::info!(%ip, "not all proxies have said that they forgot this address");
        }
    }

    async fn is_forgotten(&self, service: &str, prefix: &str) -> Result<bool, CliError> {
        let mesh = Mesh::at(Place::Local(self.dir.clone())).await?;
        let request = EndpointsRequest { authority: service.to_owned(), from_proxies: true };
        let reply = match mesh.endpoints(request).await {
            Ok(reply) => reply,
            // The service went with its last pod.
            Err(error) if error.kind == Kind::Missing => return Ok(true),
            Err(error) => return Err(error),
        };
        let known = reply.endpoints.iter().map(|row| &row.address);
        let held = reply.proxies.iter().flat_map(|proxy| &proxy.endpoints).map(|row| &row.address);
        Ok(!known.chain(held).any(|address| address.starts_with(prefix)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_dir::StateRoot;
    use crate::testing::FakeMesh;

    #[tokio::test]
    async fn a_control_plane_that_has_taken_all_in_says_so() {
        let home = tempfile::tempdir().unwrap();
        let dir = StateRoot::new(home.path()).mesh("default").unwrap();
        let _lock = FakeMesh::default().serve(&home);
        ControlAccess::new(dir).wait_taken_in(Duration::from_secs(20)).await.unwrap();
    }

    #[tokio::test]
    async fn a_control_plane_that_refuses_is_not_asked_again() {
        let home = tempfile::tempdir().unwrap();
        let dir = StateRoot::new(home.path()).mesh("default").unwrap();
        let refusal = Some(tonic::Status::unimplemented("what?"));
        let _lock = FakeMesh { refusal, ..FakeMesh::default() }.serve(&home);
        let error = ControlAccess::new(dir).wait_taken_in(Duration::MAX).await.unwrap_err();
        assert_eq!(error.kind, Kind::Failed);
    }

    #[tokio::test(start_paused = true)]
    async fn giving_up_names_what_was_waited_for() {
        let dir = StateRoot::new("/nowhere").mesh("m").unwrap();
        let access = ControlAccess::new(dir);
        let error = access.wait_taken_in(Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(error.kind, Kind::TimedOut);
        let (message, hint) = (error.message, error.hint.unwrap());
        assert!(
            message.contains("has not taken in /nowhere/m/manifests within 60s: "),
            "{message}"
        );
        assert!(message.contains("does not answer"), "{message}");
        assert_eq!(hint, "meshctl local logs control --name=m");
    }
}
