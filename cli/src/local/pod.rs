//! One pod: a proxy and the programs behind it, from the first start to the last one gone.
//!
//! A pod is a task of its own that publishes a [`PodStatus`]. The proxy comes first and goes last, so that a
//! program never runs without its network. A pod that leaves is first taken out of the others' endpoints,
//! then finishes what it has, then ends: no request fails because of it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Barrier, Notify, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use super::address::PROXY_ADMIN_PORT;
use super::environment::{self, Wiring};
use super::identity::PodIdentity;
use super::keeper::{Keeper, KeptStatus, State};
use super::netns::{self, Netns, NetnsError};
use super::probe::Dialer;
use super::process::{Launch, ProcessId};
use super::programs::Program;
use super::readiness::Readiness;
use super::surroundings::Surroundings;
use super::workload::WorkloadKey;

/// Between two looks at a pod that is not ready yet.
const IMPATIENT: Duration = Duration::from_millis(250);
/// How long the proxy's own answer may take.
const PROXY_ANSWER: Duration = Duration::from_secs(1);
/// How long the other proxies may take to forget a pod that leaves.
const FORGET: Duration = Duration::from_secs(3);
/// How long a leaving pod waits for its clients to hang up before its programs are told.
const QUIET: Duration = Duration::from_secs(5);
/// How long a proxy may take to end: its programs are gone by then.
const PROXY_GRACE: Duration = Duration::from_secs(3);
/// The longest grace when the whole mesh goes down.
const DOWN_GRACE: Duration = Duration::from_secs(10);

/// Which pod. Sorts by namespace first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodKey {
    pub namespace: String,
    pub name: String,
}

impl PodKey {
    /// The beginning of the names of its files.
    pub fn file_stem(&self) -> String {
        format!("{}.{}", self.namespace, self.name)
    }
}

/// `shop/web-1`
impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// All that is settled about a pod before it starts.
#[derive(Clone, Debug)]
pub struct PodSpec {
    pub key: PodKey,
    pub owner: WorkloadKey,
    /// Of the template it was made from.
    pub hash: String,
    /// Larger is younger, within its owner.
    pub ordinal: u32,
    /// RFC 3339.
    pub created: String,
    pub wiring: Wiring,
    pub programs: Programs,
    /// The name of its network namespace in a transparent mesh.
    pub netns: Option<String>,
    /// Lines of its `/etc/hosts` in a transparent mesh.
    pub hosts: String,
}

/// Who runs the programs of a pod.
#[derive(Clone, Debug)]
pub enum Programs {
    /// We do: one per container, started in this directory.
    Ours { programs: Vec<Program>, cwd: PathBuf },
    /// Somebody else does (`meshctl run`), and tells the process once it runs.
    External(watch::Receiver<Option<ProcessId>>),
}

/// A pod as seen from outside.
#[derive(Clone, Debug, PartialEq)]
pub struct PodStatus {
    pub phase: Phase,
    pub ready: bool,
    /// Whether it has been ready before.
    pub was_ready: bool,
    /// `None` for a pod without a proxy.
    pub proxy: Option<KeptStatus>,
    /// One per container.
    pub apps: Vec<KeptStatus>,
    /// What it lacks to be ready.
    pub waiting_for: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    Up,
    /// Told to go. RFC 3339.
    Leaving {
        since: String,
    },
    /// Nothing is left of it.
    Gone,
}

impl PodStatus {
    /// A pod of so many containers that has not started.
    pub fn new(containers: usize, meshed: bool) -> Self {
        let waiting = KeptStatus { state: State::Waiting, restarts: 0, last_exit: None };
        Self {
            phase: Phase::Up,
            ready: false,
            was_ready: false,
            proxy: meshed.then(|| waiting.clone()),
            apps: vec![waiting; containers],
            waiting_for: Some("proxy: not started yet".to_owned()),
        }
    }

    pub fn restarts(&self) -> u32 {
        let all = self.apps.iter().chain(&self.proxy);
        all.map(|kept| kept.restarts).fold(0, u32::saturating_add)
    }
}

/// How a pod is to leave.
#[derive(Clone, Debug)]
pub enum Leave {
    /// Alone, while others may be talking to it through these `name.namespace:port`.
    Gracefully { services: Vec<String> },
    /// With the whole mesh: proxies end when every pod's programs have.
    Together(Arc<Barrier>),
}

/// A pod and its task.
#[derive(Debug)]
pub struct Pod {
    pub spec: Arc<PodSpec>,
    status: watch::Receiver<PodStatus>,
    leave: Option<oneshot::Sender<Leave>>,
    netns: watch::Receiver<Option<Arc<Netns>>>,
}

impl Pod {
    /// Starts it. `changed` is notified after every change of its status.
    pub fn start(spec: PodSpec, around: Arc<Surroundings>, changed: Arc<Notify>) -> Self {
        let spec = Arc::new(spec);
        let template = &spec.wiring.template;
        let (publish, status) =
            watch::channel(PodStatus::new(template.containers.len(), template.meshed));
        let (leave, told) = oneshot::channel();
        let (publish_netns, netns) = watch::channel(None);
        let task = Task {
            readiness: Readiness::of(&template.containers),
            spec: spec.clone(),
            around,
            dialer: Dialer::default(),
            readable_identity: None,
            proxy: None,
            apps: Vec::new(),
            status: publish,
            netns: publish_netns,
            changed,
        };
        tokio::spawn(task.live(told));
        Self { spec, status, leave: Some(leave), netns }
    }

    pub fn status(&self) -> PodStatus {
        self.status.borrow().clone()
    }

    /// Tells it to leave; a second time has no effect. Returns whether it was the first.
    pub fn leave(&mut self, how: Leave) -> bool {
        // An error means that it has gone already.
        self.leave.take().is_some_and(|leave| leave.send(how).is_ok())
    }

    pub fn is_leaving(&self) -> bool {
        self.leave.is_none()
    }

    /// Its network namespace, once there is one.
    pub fn netns(&self) -> Option<Arc<Netns>> {
        self.netns.borrow().clone()
    }
}

struct Task {
    spec: Arc<PodSpec>,
    around: Arc<Surroundings>,
    dialer: Dialer,
    /// Of a proxy that runs as a user of its own.
    readable_identity: Option<PodIdentity>,
    readiness: Readiness,
    proxy: Option<Keeper>,
    apps: Vec<App>,
    status: watch::Sender<PodStatus>,
    netns: watch::Sender<Option<Arc<Netns>>>,
    changed: Arc<Notify>,
}

enum App {
    Kept(Keeper),
    External(watch::Receiver<Option<ProcessId>>),
}

impl Task {
    async fn live(mut self, mut told: oneshot::Receiver<Leave>) {
        let how = tokio::select! {
            biased;
            // When nobody can tell us any more, the supervisor has dropped the pod.
            how = &mut told => how.unwrap_or(Leave::Gracefully { services: Vec::new() }),
            never = self.serve() => match never {},
        };
        self.leave(how).await;
    }

    /// Brings the pod up and keeps looking at it.
    async fn serve(&mut self) -> std::convert::Infallible {
        while let Err(error) = self.create_netns().await {
            self.publish(|status| status.waiting_for = Some(format!("network: {error}")));
            sleep(self.readiness.period()).await;
        }
        if self.spec.wiring.template.meshed {
            self.proxy = Some(Keeper::start(self.proxy_launch()));
        }
        loop {
            self.look().await;
            let pause =
                if self.status.borrow().ready { self.readiness.period() } else { IMPATIENT };
            tokio::select! {
                () = any_changed(&mut self.proxy, &mut self.apps) => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// Sees what is ready, starts the programs once the proxy is, and publishes it all.
    async fn look(&mut self) {
        let mut lacking = self.ask_proxy().await.err();
        if lacking.is_none() && self.apps.is_empty() {
            self.start_apps();
        }
        for index in 0..self.apps.len() {
            let status = self.apps[index].status();
            let wiring = &self.spec.wiring;
            let answer =
                self.readiness.ask(index, &status, wiring, &self.dialer, Instant::now()).await;
            lacking = lacking.or(answer.err());
        }
        let apps: Vec<_> = self.apps.iter().map(App::status).collect();
        let proxy = self.proxy.as_ref().map(Keeper::status);
        self.publish(|status| {
            status.ready = lacking.is_none();
            status.was_ready |= status.ready;
            status.waiting_for = lacking;
            status.proxy = proxy;
            if !apps.is_empty() {
                status.apps = apps;
            }
        });
    }

    async fn ask_proxy(&mut self) -> Result<(), String> {
        let Some(proxy) = &self.proxy else { return Ok(()) };
        let status = proxy.status();
        let Some(_) = status.running() else {
            let exit = status.last_exit.as_deref().unwrap_or("not started yet");
            return Err(format!("proxy: {exit}"));
        };
        let admin = (self.spec.wiring.ip, PROXY_ADMIN_PORT).into();
        let answer = self.dialer.http(admin, "/ready", PROXY_ANSWER).await;
        answer.map_err(|error| format!("proxy: {error}"))
    }

    fn start_apps(&mut self) {
        match &self.spec.programs {
            Programs::External(process) => self.apps.push(App::External(process.clone())),
            Programs::Ours { programs, cwd } => {
                for (index, program) in programs.iter().enumerate() {
                    let launch = self.app_launch(index, program, cwd.clone());
                    self.apps.push(App::Kept(Keeper::start(launch)));
                }
            }
        }
    }

    async fn create_netns(&mut self) -> Result<(), NetnsError> {
        let (Some(name), Some(hub)) = (&self.spec.netns, &self.around.hub) else {
            return Ok(());
        };
        // What a failed attempt or a crash left behind would be in the way.
        netns::remove(name).await;
        let hub_ip = hub.ip;
        let made =
            Netns::create_pod(name, &hub.netns, hub_ip, self.spec.wiring.ip, &self.spec.hosts);
        let made = Arc::new(made.await?);
        made.redirect(&self.around.proxy).await?;
        if let Some(identity) = &self.spec.wiring.identity {
            let folder = netns::proxy_dir(name);
            let copied = identity.copy_to(&folder);
            let failed = |source| NetnsError::File { path: folder, source };
            self.readable_identity = Some(copied.map_err(failed)?);
        }
        self.dialer.netns = Some(made.clone());
        self.netns.send_replace(Some(made));
        Ok(())
    }

    fn proxy_launch(&self) -> Launch {
        let around = &self.around;
        let gateway = self.spec.wiring.template.gateway;
        let mut env = environment::passed_on(&around.proxy_env, gateway);
        let mut wiring = self.spec.wiring.clone();
        if let Some(identity) = &self.readable_identity {
            wiring.identity = Some(identity.clone());
        }
        env.extend(environment::of_proxy(&wiring));
        Launch {
            program: around.proxy.path.clone(),
            arg0: around.proxy.arg0.clone(),
            env,
            log: around.log_of(&self.spec.key, "proxy"),
            netns: self.dialer.netns.clone(),
            uid: self.dialer.netns.is_some().then_some(netns::PROXY_UID),
            ..Launch::default()
        }
    }

    fn app_launch(&self, index: usize, program: &Program, cwd: PathBuf) -> Launch {
        let container = &self.spec.wiring.template.containers[index];
        let vars = environment::of_container(&self.spec.wiring, index, container);
        let mut env = self.around.app_env.clone();
        env.extend(vars.iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
        let log = if index == 0 { "app" } else { &container.name };
        Launch {
            program: program.path.clone(),
            arg0: program.arg0.clone(),
            args: container.command.iter().skip(1).map(|arg| vars.expand(arg)).collect(),
            env,
            cwd: Some(container.working_dir.as_ref().map_or(cwd.clone(), |dir| cwd.join(dir))),
            log: self.around.log_of(&self.spec.key, log),
            netns: self.dialer.netns.clone(),
            uid: None,
        }
    }

    async fn leave(mut self, how: Leave) {
        let since = super::now();
        self.publish(|status| {
            status.phase = Phase::Leaving { since };
            status.ready = false;
            status.waiting_for = None;
        });
        let mut grace = self.spec.wiring.template.grace;
        match &how {
            Leave::Gracefully { services } => {
                let ip = self.spec.wiring.ip;
                self.around.control.wait_forgotten(services, ip, FORGET).await;
                self.wait_quiet().await;
            }
            Leave::Together(_) => grace = grace.min(DOWN_GRACE),
        }
        self.apps.iter_mut().for_each(|app| app.stop(grace));
        for app in &mut self.apps {
            app.stopped().await;
        }
        if let Leave::Together(barrier) = how {
            // Bounded by the longest grace of all the others.
            let _ = timeout(DOWN_GRACE * 2, barrier.wait()).await;
        }
        if let Some(proxy) = &mut self.proxy {
            proxy.stop(PROXY_GRACE);
            proxy.stopped().await;
        }
        if let Some(name) = &self.spec.netns {
            netns::remove(name).await;
        }
        self.publish(|status| status.phase = Phase::Gone);
    }

    /// Waits until nobody is connected to the pod any more, for a while.
    async fn wait_quiet(&self) {
        let admin = (self.spec.wiring.ip, PROXY_ADMIN_PORT).into();
        let quiet = async {
            // Without an answer there is nobody to wait for.
            while let Ok(text) = self.dialer.text(admin, "/metrics", PROXY_ANSWER).await {
                if super::probe::open_inbound(&text) == 0 {
                    return;
                }
                sleep(IMPATIENT).await;
            }
        };
        if self.proxy.is_some() && timeout(QUIET, quiet).await.is_err() {
            tracing::info!(pod = %self.spec.key, "clients are still connected; ending all the same");
        }
    }

    fn publish(&self, change: impl FnOnce(&mut PodStatus)) {
        let changed = self.status.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
        if changed {
            self.changed.notify_one();
        }
    }
}

impl App {
    fn status(&self) -> KeptStatus {
        match self {
            Self::Kept(keeper) => keeper.status(),
            Self::External(process) => KeptStatus {
                state: process.borrow().map_or(State::Waiting, State::Running),
                restarts: 0,
                last_exit: None,
            },
        }
    }

    async fn changed(&mut self) {
        match self {
            Self::Kept(keeper) => keeper.changed().await,
            Self::External(process) => {
                if process.changed().await.is_err() {
                    std::future::pending().await
                }
            }
        }
    }

    /// An external program is left to whoever started it.
    fn stop(&mut self, grace: Duration) {
        if let Self::Kept(keeper) = self {
            keeper.stop(grace);
        }
    }

    async fn stopped(&mut self) {
        if let Self::Kept(keeper) = self {
            keeper.stopped().await;
        }
    }
}

async fn any_changed(proxy: &mut Option<Keeper>, apps: &mut [App]) {
    let proxy = async {
        match proxy {
            Some(proxy) => proxy.changed().await,
            None => std::future::pending().await,
        }
    };
    let mut apps: Vec<_> = apps.iter_mut().map(|app| Box::pin(app.changed())).collect();
    let any_app = std::future::poll_fn(|cx| {
        let ready = apps.iter_mut().any(|app| app.as_mut().poll(cx).is_ready());
        if ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    });
    tokio::select! {
        () = proxy => {}
        () = any_app => {}
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::local::address::Mode;
    use crate::local::environment::PortMap;
    use crate::local::workload::{Container, ContainerPort, Template};
    use std::collections::BTreeMap;

    /// `shop/web-1` with one port, 8080, whose application listens on 20000.
    pub(in crate::local) fn spec() -> PodSpec {
        let container = Container {
            name: "web".to_owned(),
            command: vec!["web".to_owned()],
            ports: vec![ContainerPort { name: Some("http".to_owned()), port: 8080 }],
            ..Container::default()
        };
        PodSpec {
            key: PodKey { namespace: "shop".to_owned(), name: "web-1".to_owned() },
            owner: WorkloadKey {
                namespace: "shop".to_owned(),
                kind: "Deployment",
                name: "web".to_owned(),
            },
            hash: "0123abcd".to_owned(),
            ordinal: 1,
            created: "2026-11-22T20:00:00Z".to_owned(),
            wiring: Wiring {
                mode: Mode::Explicit,
                namespace: "shop".to_owned(),
                pod: "web-1".to_owned(),
                uid: "u-1".to_owned(),
                ip: [127, 1, 1, 1].into(),
                control: "127.1.0.1:8086".parse().unwrap(),
                identity: None,
                ports: vec![PortMap {
                    container: 0,
                    name: Some("http".to_owned()),
                    declared: 8080,
                    app: 20_000,
                }],
                upstreams: Vec::new(),
                template: Template {
                    labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
                    meshed: true,
                    grace: Duration::from_secs(30),
                    containers: vec![container],
                    ..Template::default()
                },
            },
            programs: Programs::Ours { programs: Vec::new(), cwd: PathBuf::from("/") },
            netns: None,
            hosts: String::new(),
        }
    }
}
