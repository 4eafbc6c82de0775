//! The state of a local mesh, and the steps that bring it to what the manifests want.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Barrier, Notify, mpsc, watch};

use super::super::address::{Addresses, AppPorts, Mode};
use super::super::control::ControlPlane;
use super::super::environment::{self, PortMap, ServicePort, Upstream, Wiring};
use super::super::identity::PodIdentity;
use super::super::keeper::KeptStatus;
use super::super::manifest::{Contents, Placed};
use super::super::plan::{self, Existing, PodState, Step};
use super::super::pod::{Leave, Phase, Pod, PodKey, PodSpec, PodStatus, Programs};
use super::super::process::ProcessId;
use super::super::record::{self, Record};
use super::super::store::Store;
use super::super::surroundings::Surroundings;
use super::super::workload::{Template, WorkloadKey};
use super::super::{netns, now, object, occupied};
use super::server::Event;
use crate::state_dir::StateDir;

/// How long the control plane may take to say where services are.
const CLUSTER_IPS: Duration = Duration::from_secs(10);

/// A local mesh.
#[derive(Debug)]
pub(super) struct MeshState {
    dir: StateDir,
    pub(super) mode: Mode,
    pub(super) number: u8,
    around: Arc<Surroundings>,
    changed: Arc<Notify>,
    events: Option<mpsc::Sender<Event>>,
    addresses: Addresses,
    app_ports: AppPorts,
    pub(super) store: Store,
    pub(super) contents: Contents,
    /// Replicas asked for since the manifest was applied.
    pub(super) scaled: BTreeMap<WorkloadKey, u32>,
    /// How often a restart was asked for.
    pub(super) restarted: BTreeMap<WorkloadKey, u32>,
    pub(super) control: Option<ControlPlane>,
    control_was_ready: bool,
    cluster_ips: BTreeMap<(String, String), IpAddr>,
    /// The control plane is being asked for addresses that new pods need.
    cluster_ips_pending: bool,
    pub(super) pods: BTreeMap<PodKey, Pod>,
    /// Of pods whose programs somebody else runs: where to tell the process.
    pub(super) joined: BTreeMap<PodKey, watch::Sender<Option<ProcessId>>>,
    /// The youngest pod's, by namespace and name of the owner.
    ordinals: BTreeMap<(String, String), u32>,
    /// What the pod objects on disk say.
    written: BTreeMap<PodKey, PodStatus>,
    record: Option<Record>,
    pub(super) going_down: bool,
}

/// A pod to be made.
pub(super) struct NewPod<'a> {
    pub(super) owner: &'a WorkloadKey,
    pub(super) hash: String,
    pub(super) template: &'a Template,
    pub(super) programs: Programs,
    /// Where an external application listens; ours are given ports.
    pub(super) external_port: Option<u16>,
    /// On top of the services of the namespace.
    pub(super) upstreams: Vec<Upstream>,
}

impl MeshState {
    pub(super) fn new(
        dir: StateDir,
        mode: Mode,
        number: u8,
        around: Arc<Surroundings>,
        changed: Arc<Notify>,
    ) -> Self {
        Self {
            dir,
            mode,
            number,
            around,
            changed,
            events: None,
            addresses: Addresses::new(mode, number),
            app_ports: AppPorts::new(number),
            store: Store::default(),
            contents: Contents::default(),
            scaled: BTreeMap::new(),
            restarted: BTreeMap::new(),
            control: None,
            control_was_ready: false,
            cluster_ips: BTreeMap::new(),
            cluster_ips_pending: false,
            pods: BTreeMap::new(),
            joined: BTreeMap::new(),
            ordinals: BTreeMap::new(),
            written: BTreeMap::new(),
            record: None,
            going_down: false,
        }
    }

    pub(super) fn send_events_to(&mut self, events: mpsc::Sender<Event>) {
        self.events = Some(events);
    }

    pub(super) fn dir(&self) -> &StateDir {
        &self.dir
    }

    /// Takes the next steps: reports pods that changed, makes missing ones, sends superfluous ones away.
    pub(super) fn reconcile(&mut self) {
        self.report_pods();
        if !self.going_down && self.may_add_pods() {
            for key in self.owners() {
                let step = self.next_step(&key);
                for name in step.remove {
                    self.send_away(&PodKey { namespace: key.namespace.clone(), name });
                }
                for _ in 0..step.create {
                    self.create_replica(&key);
                }
            }
            self.report_pods();
        }
        self.write_record();
    }

    /// The first pods wait for the control plane, so that they need not ask twice; later ones don't, since the
    /// mesh goes on while it is away.
    fn may_add_pods(&mut self) -> bool {
        self.control_was_ready |= self.control.as_ref().is_some_and(|c| c.status().ready);
        self.control_was_ready && !self.cluster_ips_pending
    }

    /// Replicas of a workload that are wanted now.
    pub(super) fn replicas(&self, key: &WorkloadKey) -> u32 {
        let placed = self.contents.workloads.get(key);
        // In a namespace of its own nobody could reach it.
        let placed = placed.filter(|p| !p.workload.template.gateway || self.serves_gateways());
        placed
            .map(|placed| placed.workload.replicas)
            .map_or(0, |replicas| self.scaled.get(key).copied().unwrap_or(replicas))
    }

    fn serves_gateways(&self) -> bool {
        self.mode == Mode::Explicit
    }

    /// Names the template and how often a restart of it was asked for.
    pub(super) fn hash(&self, key: &WorkloadKey) -> Option<String> {
        let placed = self.contents.workloads.get(key)?;
        let restarted = self.restarted.get(key).copied().unwrap_or(0);
        Some(format!("{}-{restarted}", placed.workload.hash))
    }

    /// Puts files in force that were found good.
    pub(super) fn put_in_force(&mut self, store: Store, contents: Contents) -> io::Result<()> {
        let folder = self.dir.manifests();
        for (name, file) in store.files() {
            if self.store.get(name).map(|old| &old.content) != Some(&file.content) {
                // There may be keys in it.
                object::write_secret(&folder.join(name), file.content.as_bytes())?;
            }
        }
        for (name, _) in self.store.files().filter(|(name, _)| store.get(name).is_none()) {
            fs::remove_file(folder.join(name))?;
        }
        let changed: Vec<_> = contents
            .workloads
            .iter()
            .filter(|(key, placed)| self.contents.workloads.get(*key) != Some(*placed))
            .map(|(key, _)| key.clone())
            .collect();
        for key in changed {
            self.scaled.remove(&key);
        }
        let services_changed = self.contents.services != contents.services;
        self.store = store;
        self.contents = contents;
        self.start_control()?;
        let gateway = self.contents.workloads.values().any(|p| p.workload.template.gateway);
        if gateway && !self.serves_gateways() {
            tracing::warn!("Gateways are not served in a transparent mesh");
        }
        if services_changed && self.mode == Mode::Transparent {
            self.ask_cluster_ips();
        }
        Ok(())
    }

    /// The control plane has said where services are.
    pub(super) fn set_cluster_ips(&mut self, addresses: BTreeMap<(String, String), IpAddr>) {
        self.cluster_ips = addresses;
        self.cluster_ips_pending = false;
        for pod in self.pods.values() {
            let Some(netns) = pod.netns() else { continue };
            if let Err(error) = netns.write_hosts(&self.hosts(&pod.spec.key.namespace)) {
                tracing::warn!(pod = %pod.spec.key, %error, "can't tell it the services' addresses");
            }
        }
    }

    /// An external application has gone.
    pub(super) fn part(&mut self, key: &PodKey) {
        self.joined.remove(key);
        self.send_away(key);
    }

    /// Begins to end everything. A second time has no effect.
    pub(super) fn go_down(&mut self) {
        if std::mem::replace(&mut self.going_down, true) {
            return;
        }
        tracing::info!(pods = self.pods.len(), "going down");
        let staying = self.pods.values().filter(|pod| !pod.is_leaving()).count();
        let barrier = Arc::new(Barrier::new(staying));
        for pod in self.pods.values_mut() {
            pod.leave(Leave::Together(barrier.clone()));
        }
    }

    /// Whether every pod is gone.
    pub(super) fn is_down(&self) -> bool {
        self.going_down && self.pods.is_empty()
    }

    /// Ends the control plane and removes what is left on the machine; only logs stay.
    pub(super) async fn finish(mut self) -> io::Result<()> {
        if let Some(control) = &mut self.control {
            control.stop().await;
        }
        if let Some(hub) = &self.around.hub {
            netns::remove(hub.netns.name()).await;
        }
        tracing::info!("down");
        record::clean(&self.dir, true).await
    }

    /// Makes a pod and starts it.
    pub(super) fn create_pod(&mut self, new: NewPod<'_>) -> Result<PodKey, &'static str> {
        let ip = self.addresses.allocate().ok_or("there are too many pods")?;
        let Some(ports) = self.map_ports(new.template, new.external_port) else {
            self.addresses.release(ip);
            return Err("no port from 20000 to 31999 is free");
        };
        let namespace = &new.owner.namespace;
        let key = self.next_name(new.owner);
        let identity = self.identity(&key, new.template);
        let mut upstreams = environment::upstreams(
            self.mode,
            namespace,
            ip,
            &self.contents.service_ports(),
            &self.cluster_ips,
        );
        upstreams.extend(new.upstreams);
        let spec = PodSpec {
            owner: new.owner.clone(),
            hash: new.hash,
            ordinal: self.ordinal(new.owner),
            created: now(),
            wiring: Wiring {
                mode: self.mode,
                namespace: namespace.clone(),
                pod: key.name.clone(),
                uid: super::super::unique_id(),
                ip,
                control: self.addresses.control(),
                identity,
                ports,
                upstreams,
                template: new.template.clone(),
            },
            programs: new.programs,
            netns: self.around.hub.as_ref().map(|_| self.netns_name(&key)),
            hosts: self.hosts(namespace),
            key: key.clone(),
        };
        tracing::info!(pod = %key, %ip, "starting");
        let pod = Pod::start(spec, self.around.clone(), self.changed.clone());
        self.pods.insert(key.clone(), pod);
        Ok(key)
    }

    /// What a new pod proves who it is with.
    fn identity(&self, key: &PodKey, template: &Template) -> Option<PodIdentity> {
        let identities = self.around.identities.as_ref().filter(|_| template.meshed)?;
        match identities.give(key, &template.service_account) {
            Ok(identity) => identity,
            Err(error) => {
                // Others expect it to have one: they refuse to talk to it.
                tracing::error!(pod = %key, %error, "can't give it an identity");
                None
            }
        }
    }

    /// A port for an application, other than all others.
    pub(super) fn free_port(&mut self) -> Option<u16> {
        self.app_ports.allocate(occupied::is_free)
    }

    fn create_replica(&mut self, key: &WorkloadKey) {
        let (Some(placed), Some(hash)) =
            (self.contents.workloads.get(key).cloned(), self.hash(key))
        else {
            return;
        };
        let Placed { workload, programs, cwd } = placed;
        let new = NewPod {
            owner: key,
            hash,
            template: &workload.template,
            programs: Programs::Ours { programs, cwd },
            external_port: None,
            upstreams: Vec::new(),
        };
        if let Err(why) = self.create_pod(new) {
            tracing::error!(workload = %key, why, "can't add a pod");
        }
    }

    /// Everyone who has pods or should have.
    fn owners(&self) -> BTreeSet<WorkloadKey> {
        let of_pods = self.pods.values().map(|pod| pod.spec.owner.clone());
        self.contents.workloads.keys().cloned().chain(of_pods).collect()
    }

    fn next_step(&self, key: &WorkloadKey) -> Step {
        let hash = self.hash(key);
        let pods = self.pods.values().filter(|pod| pod.spec.owner == *key);
        let pods = pods.filter(|pod| !self.joined.contains_key(&pod.spec.key));
        let existing: Vec<_> = pods
            .map(|pod| Existing {
                name: &pod.spec.key.name,
                current: Some(&pod.spec.hash) == hash.as_ref(),
                state: match pod.status() {
                    _ if pod.is_leaving() => PodState::Leaving,
                    status if status.ready => PodState::Ready,
                    _ => PodState::Starting,
                },
                ordinal: pod.spec.ordinal,
            })
            .collect();
        let strategy = self.contents.workloads.get(key).map(|placed| placed.workload.strategy);
        let strategy = strategy.unwrap_or(plan::Strategy::Recreate);
        plan::step(self.replicas(key), strategy, &existing)
    }

    fn send_away(&mut self, key: &PodKey) {
        let Some(pod) = self.pods.get_mut(key) else { return };
        let (namespace, labels) = (&key.namespace, &pod.spec.wiring.template.labels);
        let services = self.contents.services.iter().filter(|s| s.selects(namespace, labels));
        let authority = |p: &ServicePort| format!("{}.{}:{}", p.service, p.namespace, p.port);
        let services = services.flat_map(|service| service.ports.iter().map(authority)).collect();
        if pod.leave(Leave::Gracefully { services }) {
            tracing::info!(pod = %key, "leaving");
        }
    }

    /// Writes the objects of pods that changed, and forgets those that are gone.
    fn report_pods(&mut self) {
        let statuses: Vec<_> =
            self.pods.iter().map(|(key, pod)| (key.clone(), pod.status())).collect();
        for (key, status) in statuses {
            if status.phase == Phase::Gone {
                self.forget(&key);
            } else if self.written.get(&key) != Some(&status) {
                let Some(pod) = self.pods.get(&key) else { continue };
                let text = object::pod(&pod.spec, &status).to_string();
                match object::write_atomically(&self.object_file(&key), text.as_bytes()) {
                    Ok(()) => _ = self.written.insert(key, status),
                    Err(error) => tracing::error!(pod = %key, %error, "can't report a pod"),
                }
            }
        }
    }

    fn forget(&mut self, key: &PodKey) {
        let Some(pod) = self.pods.remove(key) else { return };
        self.addresses.release(pod.spec.wiring.ip);
        for port in &pod.spec.wiring.ports {
            self.app_ports.release(port.app);
            self.app_ports.release(port.declared);
        }
        for upstream in &pod.spec.wiring.upstreams {
            self.app_ports.release(upstream.at.port());
        }
        self.written.remove(key);
        if let Some(identities) = &self.around.identities {
            identities.take_back(key);
        }
        if let Err(error) = fs::remove_file(self.object_file(key)) {
            tracing::error!(pod = %key, %error, "can't report that a pod is gone");
        }
        tracing::info!(pod = %key, "gone");
    }

    fn object_file(&self, key: &PodKey) -> std::path::PathBuf {
        self.dir.pods().join(format!("{}.json", key.file_stem()))
    }

    fn write_record(&mut self) {
        let statuses = self.pods.values().map(Pod::status);
        let kept = statuses.flat_map(|status| status.apps.into_iter().chain(status.proxy));
        let control = self.control.as_ref().map(|control| control.status().process);
        let processes = kept.chain(control).filter_map(|kept: KeptStatus| kept.running()).collect();
        let Ok(supervisor) = ProcessId::of_self() else { return };
        let record = Record {
            name: self.dir.name.clone(),
            supervisor,
            mode: self.mode,
            number: self.number,
            control: self.addresses.control(),
            control_admin: self.addresses.control_admin(),
            processes,
        };
        if self.record.as_ref() != Some(&record) {
            match record.write(&self.dir.path) {
                Ok(()) => self.record = Some(record),
                Err(error) => tracing::error!(%error, "can't write state.json"),
            }
        }
    }

    fn start_control(&mut self) -> io::Result<()> {
        if self.control.is_none() {
            self.control = Some(ControlPlane::start(
                &self.dir,
                self.addresses.control(),
                self.addresses.control_admin(),
                &self.around,
                self.changed.clone(),
            )?);
        }
        Ok(())
    }

    /// Asks in the background; new pods wait for the answer.
    fn ask_cluster_ips(&mut self) {
        let Some(events) = self.events.clone() else { return };
        let services = self.contents.services.iter();
        let wanted: Vec<_> = services.map(|s| (s.namespace.clone(), s.name.clone())).collect();
        let control = self.around.control.clone();
        self.cluster_ips_pending = true;
        tokio::spawn(async move {
            let addresses = control.cluster_ips(&wanted, CLUSTER_IPS).await;
            let _ = events.send(Event::ClusterIps(addresses)).await;
        });
    }

    /// Lines of `/etc/hosts` for a pod in this namespace.
    fn hosts(&self, namespace: &str) -> String {
        let lines = self.cluster_ips.iter().map(|((ns, name), ip)| {
            let short = if ns == namespace { format!(" {name}") } else { String::new() };
            format!("{ip}{short} {name}.{ns} {name}.{ns}.svc {name}.{ns}.svc.cluster.local\n")
        });
        lines.collect()
    }

    /// Where the application listens for each declared port.
    fn map_ports(&mut self, template: &Template, external: Option<u16>) -> Option<Vec<PortMap>> {
        let mut maps = Vec::new();
        for (index, container) in template.containers.iter().enumerate() {
            for port in &container.ports {
                let app = match (external, self.mode) {
                    (Some(app), _) => app,
                    (None, Mode::Explicit) if template.meshed => self.free_port()?,
                    _ => port.port,
                };
                let name = port.name.clone();
                maps.push(PortMap { container: index, name, declared: port.port, app });
            }
        }
        Some(maps)
    }

    fn ordinal(&self, owner: &WorkloadKey) -> u32 {
        let key = (owner.namespace.clone(), owner.name.clone());
        self.ordinals.get(&key).copied().unwrap_or(0)
    }

    /// `web-1`, `web-2`, …: never the name of a pod that is or was.
    fn next_name(&mut self, owner: &WorkloadKey) -> PodKey {
        let ordinals = (owner.namespace.clone(), owner.name.clone());
        let ordinal = self.ordinals.entry(ordinals).or_insert(0);
        loop {
            *ordinal += 1;
            let name = format!("{}-{ordinal}", owner.name);
            let key = PodKey { namespace: owner.namespace.clone(), name };
            if !self.pods.contains_key(&key) {
                return key;
            }
        }
    }

    /// `mesh-1-web-1`, and with the namespace if another namespace has a pod of that name.
    fn netns_name(&self, key: &PodKey) -> String {
        let name = netns::pod_name(self.number, &key.name);
        let taken = self.pods.values().any(|pod| pod.spec.netns.as_ref() == Some(&name));
        if taken { format!("{name}.{}", key.namespace) } else { name }
    }
}
