//! What meshctl can ask of the supervisor.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::sync::watch;

use super::super::address::{
    MAX_PODS, Mode, PROXY_ADMIN_PORT, PROXY_CONTROL_PORT, PROXY_OUTBOUND_PORT,
};
use super::super::environment::{self, ServicePort, Upstream};
use super::super::keeper::{KeptStatus, State};
use super::super::manifest::{self, Contents};
use super::super::occupied;
use super::super::pod::{Phase, Pod, PodKey, Programs};
use super::super::process::ProcessId;
use super::super::protocol::{
    Join, JoinUpstream, Joined, PodRow, Reply, Request, Status, Target, Told, WorkloadRow,
};
use super::super::store::{Fate, GivenFile, ObjectId, Store};
use super::super::workload::{Container, ContainerPort, MAX_REPLICAS, Template, WorkloadKey};
use super::mesh::{MeshState, NewPod};

/// A refusal: what is wrong, and what to do.
struct Refused {
    message: String,
    hint: Option<String>,
}

impl From<String> for Refused {
    fn from(message: String) -> Self {
        Self { message, hint: None }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::from(error.to_string())
    }
}

/// Answers a request. `joined` is the pod the asking connection has joined.
pub(super) fn handle(mesh: &mut MeshState, request: Request, joined: Option<&PodKey>) -> Reply {
    if mesh.going_down && !matches!(request, Request::Status | Request::Down) {
        let message = "the local mesh is going down".to_owned();
        return Reply::Failed { message, hint: None };
    }
    let answer = match request {
        Request::Status => return Reply::Status(Box::new(status(mesh))),
        Request::Down => {
            mesh.go_down();
            return Reply::Done;
        }
        Request::Apply { files } => apply(mesh, files),
        Request::Delete { files } => delete(mesh, &files),
        Request::Restart(target) => find(mesh, &target).map(|key| {
            let count = mesh.restarted.entry(key).or_insert(0);
            *count = count.saturating_add(1);
            Reply::Done
        }),
        Request::Scale { target, replicas } => scale(mesh, &target, replicas),
        Request::Join(request) => join(mesh, request).map(Reply::Joined),
        Request::Started { process } => {
            if let Some(told) = joined.and_then(|pod| mesh.joined.get(pod)) {
                told.send_replace(Some(process));
            }
            Ok(Reply::Done)
        }
    };
    answer.unwrap_or_else(|Refused { message, hint }| Reply::Failed { message, hint })
}

fn apply(mesh: &mut MeshState, files: Vec<GivenFile>) -> Result<Reply, Refused> {
    let (store, fates) = mesh.store.with(files).map_err(|error| error.to_string())?;
    put(mesh, store, fates)
}

fn delete(mesh: &mut MeshState, files: &[GivenFile]) -> Result<Reply, Refused> {
    let (store, fates) = mesh.store.without(files);
    if fates.is_empty() {
        return Err(Refused {
            message: "none of the objects in these files is in the local mesh".to_owned(),
            hint: Some("meshctl local ps".to_owned()),
        });
    }
    put(mesh, store, fates)
}

/// Puts files in force, unless something is wrong with them.
fn put(mesh: &mut MeshState, store: Store, fates: Vec<(ObjectId, Fate)>) -> Result<Reply, Refused> {
    let mut contents = Contents::read(&store);
    let verdict = manifest::control_plane_verdict(&store, &mesh.dir().path.join("check"))?;
    contents.problems.extend(verdict);
    contents.problems.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    if !contents.is_good() {
        return Ok(Reply::Invalid { problems: contents.problems.iter().map(Told::from).collect() });
    }
    check_room(mesh, &contents)?;
    let warnings = contents.problems.iter().map(Told::from).collect();
    mesh.put_in_force(store, contents)?;
    Ok(Reply::Changed { fates, warnings })
}

fn check_room(mesh: &MeshState, contents: &Contents) -> Result<(), Refused> {
    let replicas = contents.workloads.values().map(|placed| placed.workload.replicas as usize);
    let replicas: usize = replicas.sum();
    if replicas > MAX_PODS / 2 {
        let message =
            format!("{replicas} replicas are too many: a local mesh has {} at most", MAX_PODS / 2);
        return Err(message.into());
    }
    if mesh.mode == Mode::Transparent {
        return Ok(());
    }
    // A program that listens on all addresses is in the way of every pod, so any address of ours will tell.
    let ip = Ipv4Addr::new(127, mesh.number, 0, 2);
    let templates = contents.workloads.values().map(|placed| &placed.workload.template);
    let containers = templates.flat_map(|template| &template.containers);
    let declared = containers.flat_map(|container| &container.ports).map(|port| port.port);
    let proxy = [PROXY_OUTBOUND_PORT, PROXY_CONTROL_PORT, PROXY_ADMIN_PORT];
    let ports: BTreeSet<u16> = declared.chain(proxy).collect();
    for port in ports {
        occupied::check((ip, port).into()).map_err(|why| Refused {
            message: format!("the pods need port {port}: {why}"),
            hint: Some(
                "stop that program, choose another containerPort, or use --transparent".to_owned(),
            ),
        })?;
    }
    Ok(())
}

fn scale(mesh: &mut MeshState, target: &Target, replicas: u32) -> Result<Reply, Refused> {
    if replicas > MAX_REPLICAS {
        return Err(format!("{replicas} replicas are too many: {MAX_REPLICAS} at most").into());
    }
    let key = find(mesh, target)?;
    mesh.scaled.insert(key, replicas);
    Ok(Reply::Done)
}

fn find(mesh: &MeshState, target: &Target) -> Result<WorkloadKey, Refused> {
    let kind = match target.kind.to_ascii_lowercase().as_str() {
        "deploy" | "deployment" | "deployments" => "Deployment",
        "sts" | "statefulset" | "statefulsets" => "StatefulSet",
        other => {
            return Err(Refused {
                message: format!("{other} can't be restarted or scaled"),
                hint: Some(format!("deploy/{}", target.name)),
            });
        }
    };
    let named: Vec<_> = mesh
        .contents
        .workloads
        .keys()
        .filter(|key| key.kind == kind && key.name == target.name)
        .collect();
    let here =
        named.iter().filter(|key| target.namespace.as_ref().is_none_or(|ns| *ns == key.namespace));
    let refused = |message: String, hint: String| Err(Refused { message, hint: Some(hint) });
    let what = format!("{}/{}", target.kind, target.name);
    match (here.collect::<Vec<_>>().as_slice(), named.first()) {
        ([key], _) => Ok((**key).clone()),
        ([first, ..], _) => {
            refused(format!("{what} is in several namespaces"), format!("-n {}", first.namespace))
        }
        ([], Some(other)) => refused(
            format!("there is no {what} in this namespace"),
            format!("-n {}, where it is", other.namespace),
        ),
        ([], None) => {
            refused(format!("there is no {what} in the local mesh"), "meshctl local ps".to_owned())
        }
    }
}

fn join(mesh: &mut MeshState, join: Join) -> Result<Joined, Refused> {
    let owner = WorkloadKey {
        namespace: join.namespace.clone(),
        kind: "Deployment",
        name: join.name.clone(),
    };
    let id = |kind: &str| ObjectId {
        kind: kind.to_owned(),
        namespace: join.namespace.clone(),
        name: join.name.clone(),
    };
    for kind in ["Service", "Deployment"] {
        if mesh.store.contains(&id(kind)) {
            return Err(Refused {
                message: format!("{} exists already", id(kind)),
                hint: Some("another name".to_owned()),
            });
        }
    }
    // The pod's own port differs from the application's, which may listen on all addresses.
    let declared = match mesh.mode {
        Mode::Explicit => mesh.free_port().ok_or("no port is free".to_owned())?,
        Mode::Transparent => join.port,
    };
    let template = joined_template(&join, declared);
    let (told, process) = watch::channel(None);
    let upstreams = join_upstreams(mesh, &join)?;
    let service = GivenFile {
        shown: format!("meshctl run {}", join.name),
        source: format!("run/{}.{}.yaml", join.namespace, join.name),
        cwd: "/".into(),
        content: joined_service(&join, declared),
    };
    if let Reply::Invalid { problems } = apply(mesh, vec![service])? {
        return Err(problems.first().map_or(String::new(), |told| told.text.clone()).into());
    }
    let at = upstreams.iter().map(|u| (u.service.authority(), u.at.to_string())).collect();
    let new = NewPod {
        owner: &owner,
        hash: String::new(),
        template: &template,
        programs: Programs::External(process),
        external_port: Some(join.port),
        upstreams,
    };
    let key = match mesh.create_pod(new) {
        Ok(key) => key,
        Err(why) => {
            remove_service(mesh, &owner)?;
            return Err(why.to_owned().into());
        }
    };
    mesh.joined.insert(key.clone(), told);
    Ok(joined(&mesh.pods[&key], at))
}

/// The connection that had joined this pod is gone.
pub(super) fn part(mesh: &mut MeshState, pod: &PodKey) {
    let owner = mesh.pods.get(pod).map(|pod| pod.spec.owner.clone());
    mesh.part(pod);
    if let Some(owner) = owner
        && let Err(Refused { message, .. }) = remove_service(mesh, &owner)
    {
        tracing::error!(%pod, message, "its Service can't be removed");
    }
}

fn remove_service(mesh: &mut MeshState, owner: &WorkloadKey) -> Result<(), Refused> {
    let id = ObjectId {
        kind: "Service".to_owned(),
        namespace: owner.namespace.clone(),
        name: owner.name.clone(),
    };
    let (store, fates) = mesh.store.without_objects(&BTreeSet::from([id]));
    put(mesh, store, fates).map(|_| ())
}

fn joined(pod: &Pod, upstreams: BTreeMap<String, String>) -> Joined {
    let wiring = &pod.spec.wiring;
    let container = wiring.template.containers.first().cloned().unwrap_or_default();
    let vars = environment::of_container(wiring, 0, &container);
    Joined {
        pod: pod.spec.key.name.clone(),
        ip: wiring.ip,
        env: vars.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        netns: pod.spec.netns.clone(),
        upstreams,
    }
}

fn joined_template(join: &Join, declared: u16) -> Template {
    Template {
        labels: BTreeMap::from([("app".to_owned(), join.name.clone())]),
        service_account: "default".to_owned(),
        grace: Duration::from_secs(30),
        meshed: true,
        containers: vec![Container {
            name: join.name.clone(),
            command: vec![join.name.clone()],
            ports: vec![ContainerPort { name: None, port: declared }],
            ..Container::default()
        }],
        ..Template::default()
    }
}

fn joined_service(join: &Join, declared: u16) -> String {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": join.name, "namespace": join.namespace },
        "spec": {
            "selector": { "app": join.name },
            "ports": [{ "port": join.port, "targetPort": declared }],
        },
    })
    .to_string()
}

fn join_upstreams(mesh: &mut MeshState, join: &Join) -> Result<Vec<Upstream>, Refused> {
    let mut upstreams = Vec::new();
    for JoinUpstream { service, port, local_port } in &join.upstreams {
        let (name, namespace) = service.split_once('.').unwrap_or((service, &join.namespace));
        let local = match local_port {
            Some(local) => {
                let address = (Ipv4Addr::LOCALHOST, *local).into();
                occupied::check(address).map_err(|why| format!("--upstream {service}: {why}"))?;
                *local
            }
            None => mesh.free_port().ok_or("no port is free".to_owned())?,
        };
        upstreams.push(Upstream {
            service: ServicePort {
                namespace: namespace.to_owned(),
                service: name.to_owned(),
                port: *port,
                name: None,
            },
            at: (Ipv4Addr::LOCALHOST, local).into(),
        });
    }
    Ok(upstreams)
}

fn status(mesh: &MeshState) -> Status {
    Status {
        name: mesh.dir().name.clone(),
        mode: mesh.mode,
        number: mesh.number,
        supervisor: ProcessId::of_self()
            .unwrap_or(ProcessId { pid: std::process::id(), start_time: 0 }),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        control: mesh.control.as_ref().map(|control| control.status()),
        workloads: mesh.contents.workloads.keys().map(|key| workload_row(mesh, key)).collect(),
        pods: mesh.pods.values().map(pod_row).collect(),
        going_down: mesh.going_down,
    }
}

fn workload_row(mesh: &MeshState, key: &WorkloadKey) -> WorkloadRow {
    let hash = mesh.hash(key);
    let pods = || mesh.pods.values().filter(|pod| pod.spec.owner == *key);
    let ready = pods().filter(|pod| pod.status().ready && Some(&pod.spec.hash) == hash.as_ref());
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    WorkloadRow {
        kind: key.kind.to_owned(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        replicas: mesh.replicas(key),
        ready: count(ready.count()),
        pods: count(pods().count()),
    }
}

fn pod_row(pod: &Pod) -> PodRow {
    let (spec, status) = (&pod.spec, pod.status());
    let pid = |kept: Option<&KeptStatus>| kept.and_then(KeptStatus::running).map(|id| id.pid);
    let mut ended =
        status.apps.iter().chain(&status.proxy).filter(|k| k.state == State::BackingOff);
    let state = match status.phase {
        Phase::Leaving { .. } | Phase::Gone => "Terminating",
        Phase::Up if status.ready => "Running",
        Phase::Up => match ended.next() {
            Some(kept) if kept.restarts == 0 => "Error",
            Some(_) => "CrashLoopBackOff",
            None if status.was_ready => "NotReady",
            None => "Starting",
        },
    };
    PodRow {
        namespace: spec.key.namespace.clone(),
        name: spec.key.name.clone(),
        owner: format!("{}/{}", spec.owner.kind, spec.owner.name),
        ip: spec.wiring.ip,
        ready: status.ready,
        state: state.to_owned(),
        restarts: status.restarts(),
        app_pid: pid(status.apps.first()),
        proxy_pid: pid(status.proxy.as_ref()),
        created: spec.created.clone(),
        waiting_for: status.waiting_for,
        ports: spec.wiring.ports.iter().map(|port| (port.declared, port.app)).collect(),
    }
}
