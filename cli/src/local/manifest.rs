//! What the manifest files in force say, as far as it concerns this machine; and what is wrong with them.
//!
//! The control plane reads the same files for routes, services and endpoints, and its verdict on them is asked
//! for here, too, so that nothing wrong is ever put in force. Next: `supervisor/` for what is made of it.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as core;
use mesh_control::source::local::state::State;
use mesh_control::source::local::yaml::{self, Document};
use mesh_control::source::{Problem, Severity};
use serde::de::DeserializeOwned;

use super::address::RESERVED_PORTS;
use super::environment::ServicePort;
use super::gateway::{self, Gateways};
use super::object;
use super::programs::Program;
use super::store::{GivenFile, Store};
use super::workload::{Read, Remark, Source, Workload, WorkloadKey};

/// What the files say.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    pub workloads: BTreeMap<WorkloadKey, Placed>,
    /// Sorted.
    pub services: Vec<Service>,
    pub problems: Vec<Problem>,
    gateways: Gateways,
}

/// A workload, and where its relative programs are looked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    pub workload: Workload,
    /// One per container.
    pub programs: Vec<Program>,
    pub cwd: PathBuf,
}

/// A service other programs may call by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub selector: BTreeMap<String, String>,
    pub ports: Vec<ServicePort>,
}

impl Service {
    pub fn selects(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        !self.selector.is_empty()
            && self.namespace == namespace
            && self.selector.iter().all(|(name, value)| labels.get(name) == Some(value))
    }
}

impl Contents {
    /// Reads all files. Problems name them as the user does.
    pub fn read(store: &Store) -> Self {
        let mut contents = Self::default();
        for (_, file) in store.files() {
            contents.read_file(file);
        }
        contents.services.sort();
        if contents.gateways.are_ours() {
            let placed = gateway::placed();
            // Somebody may run one of his own.
            contents.workloads.entry(placed.workload.key.clone()).or_insert(placed);
        }
        contents
    }

    /// Whether it may come into force.
    pub fn is_good(&self) -> bool {
        self.problems.iter().all(|problem| problem.severity != Severity::Error)
    }

    /// Every TCP port of every service.
    pub fn service_ports(&self) -> Vec<ServicePort> {
        self.services.iter().flat_map(|service| service.ports.iter().cloned()).collect()
    }

    fn read_file(&mut self, file: &GivenFile) {
        // What is no YAML is the control plane's to report.
        for document in yaml::documents(&file.content).into_iter().flatten() {
            match document.root.text(&["kind"]) {
                Some("Deployment") => self.read_workload(file, &document, Source::deployment),
                Some("StatefulSet") => self.read_workload(file, &document, Source::stateful_set),
                Some("Service") => self.services.extend(read_service(&document)),
                Some("Gateway") => self.gateways.read_gateway(&document),
                Some("GatewayClass") => self.gateways.read_class(&document),
                _ => {}
            }
        }
    }

    fn read_workload<T: DeserializeOwned>(
        &mut self,
        file: &GivenFile,
        document: &Document,
        source: impl FnOnce(String, T) -> Source,
    ) {
        // As above for what is no such object.
        let Ok(object) = serde_json::from_value(document.root.to_json()) else { return };
        let namespace = namespace_of(document);
        let source = source(namespace, object);
        let about = format!("{}/{}/{}", source.kind, source.namespace, source.name);
        let Read { workload, mut errors, warnings } = source.read();
        if let Some(workload) = workload {
            let programs = programs_of(&workload, &file.cwd, &mut errors);
            check_ports(&workload, &mut errors);
            let placed = Placed { workload, programs, cwd: file.cwd.clone() };
            self.workloads.insert(placed.workload.key.clone(), placed);
        }
        let errors = errors.into_iter().map(|remark| (Severity::Error, remark));
        let warnings = warnings.into_iter().map(|remark| (Severity::Warning, remark));
        self.problems.extend(errors.chain(warnings).map(|(severity, remark)| Problem {
            severity,
            object: about.clone(),
            file: Some(file.shown.clone().into()),
            line: document.line(&remark.field),
            field: remark.field,
            message: remark.message,
        }));
    }
}

/// What the control plane would say about the files. `scratch` is a folder to use and remove.
pub fn control_plane_verdict(store: &Store, scratch: &Path) -> io::Result<Vec<Problem>> {
    let manifests = scratch.join("manifests");
    remove_all(scratch)?;
    fs::create_dir_all(&manifests)?;
    for (name, file) in store.files() {
        object::write_secret(&manifests.join(name), file.content.as_bytes())?;
    }
    let mut state = State::new(scratch);
    state.scan(&HashSet::new())?;
    let mut problems = state.problems();
    remove_all(scratch)?;
    for problem in &mut problems {
        let stored =
            problem.file.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        if let Some(file) = stored.and_then(|name| store.get(name)) {
            problem.file = Some(file.shown.clone().into());
        }
    }
    Ok(problems)
}

fn remove_all(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn programs_of(workload: &Workload, cwd: &Path, errors: &mut Vec<Remark>) -> Vec<Program> {
    let mut programs = Vec::new();
    for (index, container) in workload.template.containers.iter().enumerate() {
        let dir = container.working_dir.as_ref().map_or(cwd.to_owned(), |dir| cwd.join(dir));
        let name = container.command.first().map_or("", String::as_str);
        match Program::of_command(name, &dir) {
            Some(program) => programs.push(program),
            None => errors.push(Remark {
                field: format!("spec.template.spec.containers[{index}].command[0]"),
                message: format!(
                    "there is no program `{name}` on PATH or in {}; install it or give its path",
                    dir.display()
                ),
            }),
        }
    }
    programs
}

fn check_ports(workload: &Workload, errors: &mut Vec<Remark>) {
    let ports = workload.template.containers.iter().flat_map(|container| &container.ports);
    for port in ports.filter(|port| RESERVED_PORTS.contains(&port.port)) {
        errors.push(Remark {
            field: "spec.template.spec.containers".to_owned(),
            message: format!("containerPort {} is the proxy's own; choose another", port.port),
        });
    }
}

fn read_service(document: &Document) -> Option<Service> {
    let object: core::Service = serde_json::from_value(document.root.to_json()).ok()?;
    let spec = object.spec.unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName") || spec.cluster_ip.as_deref() == Some("None") {
        return None;
    }
    let (namespace, name) = (namespace_of(document), object.metadata.name?);
    let tcp = |port: &core::ServicePort| port.protocol.as_deref().is_none_or(|p| p == "TCP");
    let ports = spec.ports.unwrap_or_default().into_iter().filter(tcp).filter_map(|port| {
        Some(ServicePort {
            namespace: namespace.clone(),
            service: name.clone(),
            port: u16::try_from(port.port).ok()?,
            name: port.name,
        })
    });
    let ports = ports.collect();
    Some(Service { namespace, name, selector: spec.selector.unwrap_or_default(), ports })
}

fn namespace_of(document: &Document) -> String {
    document.root.text(&["metadata", "namespace"]).unwrap_or("default").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "# comment
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: web
          command: [PROGRAM]
          ports: [{containerPort: PORT}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{port: 80, name: http}, {port: 53, protocol: UDP, name: dns}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules:
    - backendRefs: [{name: web, port: 80}]
      timeouts: {request: TIMEOUT}
";

    fn store(program: &str, port: u16, timeout: &str) -> Store {
        let content = WEB
            .replace("PROGRAM", program)
            .replace("PORT", &port.to_string())
            .replace("TIMEOUT", timeout);
        let file = GivenFile {
            shown: "app/web.yaml".to_owned(),
            source: "/app/web.yaml".to_owned(),
            cwd: "/".into(),
            content,
        };
        Store::default().with(vec![file]).unwrap().0
    }

    #[test]
    fn workloads_and_services_are_found() {
        let contents = Contents::read(&store("sh", 8080, "1s"));
        assert!(contents.is_good(), "{:?}", contents.problems);
        let placed = contents.workloads.values().next().unwrap();
        assert!(placed.programs[0].path.ends_with("sh"));
        assert_eq!(contents.service_ports().len(), 1, "TCP only");
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        assert!(contents.services[0].selects("shop", &labels));
        assert!(!contents.services[0].selects("other", &labels));
    }

    #[test]
    fn problems_name_file_line_and_field() {
        let contents = Contents::read(&store("no-such-program", 4140, "1s"));
        let told: Vec<_> = contents.problems.iter().map(ToString::to_string).collect();
        let field = "Deployment/shop/web: spec.template.spec.containers[0].command[0]";
        assert!(told[0].starts_with(&format!("app/web.yaml:12: {field}: ")), "{told:?}");
        assert!(told[1].contains("containerPort 4140"), "{told:?}");
        assert!(!contents.is_good());
    }

    #[test]
    fn the_control_plane_has_its_say() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = dir.path().join("check");
        let good = control_plane_verdict(&store("sh", 8080, "1s"), &scratch).unwrap();
        assert!(good.iter().all(|p| p.severity == Severity::Warning), "{good:?}");
        let bad = control_plane_verdict(&store("sh", 8080, "soon"), &scratch).unwrap();
        let told = bad[0].to_string();
        assert!(told.starts_with("app/web.yaml:29: HTTPRoute/shop/web: "), "{told}");
        assert!(!scratch.exists());
    }
}
