//! What the files say, file by file, and what changes in the index when one of them does.
//!
//! Synchronous: [`State::scan`] looks at the folders and returns changes for the index.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as core;

use super::addresses::Addresses;
use super::manifest::{self, Declared, LocalService, Manifest, TargetPort, problem};
use crate::index::identity::MeshNames;
use crate::index::object::{EndpointAddress, EndpointSlice, Kind, Name, Object, ObjectKey, Pod};
use crate::source::{Finding, Problem, Severity, kubernetes};

/// Larger files are refused. Bytes.
const MAX_FILE: u64 = 8 << 20;
/// Folders within folders.
const MAX_DEPTH: usize = 16;
/// More problems than this help nobody.
const MAX_PROBLEMS: usize = 500;

/// A change for the index.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Apply(Box<Object>),
    Delete(ObjectKey),
}

/// The state of the folders `manifests` and `pods`.
#[derive(Debug)]
pub struct State {
    manifests: PathBuf,
    pods: PathBuf,
    names: MeshNames,
    files: BTreeMap<PathBuf, File>,
    /// Which files declare an object; the first one counts.
    claims: BTreeMap<ObjectKey, BTreeSet<PathBuf>>,
    contested: BTreeSet<ObjectKey>,
    services: BTreeMap<Name, LocalService>,
    pods_in_force: BTreeMap<Name, Pod>,
    /// Derived, by service.
    slices: BTreeMap<Name, BTreeSet<Name>>,
    addresses: Addresses,
    loaded: bool,
}

#[derive(Debug, Default)]
struct File {
    stamp: Stamp,
    /// The last good state.
    declared: BTreeMap<ObjectKey, Declared>,
    /// Of the state on disk, which may be worse.
    problems: Vec<Problem>,
}

/// Tells a file's versions apart without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    len: u64,
    seconds: i64,
    nanos: i64,
}

impl From<&Metadata> for Stamp {
    fn from(meta: &Metadata) -> Self {
        Self { inode: meta.ino(), len: meta.len(), seconds: meta.mtime(), nanos: meta.mtime_nsec() }
    }
}

impl State {
    /// Nothing has been read yet of the folders in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self::with_names(dir, MeshNames::default())
    }

    /// The same in a mesh with such identities.
    pub fn with_names(dir: &Path, names: MeshNames) -> Self {
        Self {
            names,
            manifests: dir.join("manifests"),
            pods: dir.join("pods"),
            files: BTreeMap::new(),
            claims: BTreeMap::new(),
            contested: BTreeSet::new(),
            services: BTreeMap::new(),
            pods_in_force: BTreeMap::new(),
            slices: BTreeMap::new(),
            addresses: Addresses::load(&dir.join("cluster-ips.json")),
            loaded: false,
        }
    }

    /// Looks for files that are new, changed or gone and returns what that changes. Files in
    /// `dirty` are read again even if they look unchanged.
    ///
    /// # Errors
    /// When a folder cannot be listed; nothing has changed then.
    pub fn scan(&mut self, dirty: &HashSet<PathBuf>) -> io::Result<Vec<Change>> {
        let mut found = BTreeMap::new();
        list(&self.manifests, &["yaml", "yml", "json"], MAX_DEPTH, &mut found)?;
        list(&self.pods, &["json"], 0, &mut found)?;

        let mut touched = Touched::default();
        let gone: Vec<PathBuf> =
            self.files.keys().filter(|path| !found.contains_key(*path)).cloned().collect();
        for path in gone {
            let file = self.files.remove(&path).unwrap_or_default();
            self.replace_claims(&path, &file.declared, &BTreeMap::new(), &mut touched);
        }
        for (path, stamp) in found {
            let known = self.files.get(&path).map(|file| file.stamp);
            if known != Some(stamp) || dirty.contains(&path) {
                self.read(path, stamp, &mut touched);
            }
        }
        let changes = self.changes(touched);
        if !self.loaded {
            self.loaded = true;
            let services = &self.services;
            self.addresses.retain(|name| {
                let (namespace, name) = name.split_once('/').unwrap_or_default();
                services.contains_key(&Name::new(namespace, name))
            });
        }
        if let Err(error) = self.addresses.save() {
            tracing::warn!(%error, "cannot write down the services' addresses");
        }
        Ok(changes)
    }

    /// Everything that is wrong with the files as they are now.
    pub fn problems(&self) -> Vec<Problem> {
        let contested = self.contested.iter().flat_map(|key| {
            let mut files = self.claims.get(key).into_iter().flatten();
            let first = files.next().map(|path| path.display().to_string()).unwrap_or_default();
            files.map(move |path| {
                let message = format!("is in {first} already, which counts; remove one of them");
                problem(path, key.to_string(), 0, Finding::error("metadata.name", message))
            })
        });
        let of_files = self.files.values().flat_map(|file| file.problems.iter().cloned());
        let mut problems: Vec<Problem> = of_files.chain(contested).collect();
        problems.sort_by_key(|problem| problem.severity);
        problems.truncate(MAX_PROBLEMS);
        problems
    }

    fn read(&mut self, path: PathBuf, stamp: Stamp, touched: &mut Touched) {
        let manifest = if path.starts_with(&self.pods) {
            read_pod(&path, stamp)
        } else {
            read_manifest(&path, stamp, &self.names)
        };
        let mut file = self.files.remove(&path).unwrap_or_default();
        file.stamp = stamp;
        if manifest.is_good() {
            let declared: BTreeMap<ObjectKey, Declared> =
                manifest.declared.into_iter().map(|declared| (declared.key(), declared)).collect();
            self.replace_claims(&path, &file.declared, &declared, touched);
            file.declared = declared;
        }
        file.problems = manifest.problems;
        self.files.insert(path, file);
    }

    fn replace_claims(
        &mut self,
        path: &Path,
        before: &BTreeMap<ObjectKey, Declared>,
        after: &BTreeMap<ObjectKey, Declared>,
        touched: &mut Touched,
    ) {
        for key in before.keys().filter(|key| !after.contains_key(key)) {
            let claims = self.claims.entry(key.clone()).or_default();
            claims.remove(path);
            if claims.len() < 2 {
                self.contested.remove(key);
            }
            if claims.is_empty() {
                self.claims.remove(key);
            }
            touched.objects.insert(key.clone());
        }
        for (key, declared) in after {
            let claims = self.claims.entry(key.clone()).or_default();
            claims.insert(path.to_owned());
            if claims.len() > 1 {
                self.contested.insert(key.clone());
            }
            if before.get(key) != Some(declared) {
                touched.objects.insert(key.clone());
            }
        }
    }

    /// What the touched objects are now, and the endpoints that follow from them.
    fn changes(&mut self, touched: Touched) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut services = BTreeSet::new();
        for key in touched.objects {
            let winner = self.claims.get(&key).and_then(|claims| claims.first());
            let declared =
                winner.and_then(|path| self.files.get(path)?.declared.get(&key)).cloned();
            match declared {
                Some(Declared::Service(service)) => {
                    let object = self.put_service(service);
                    services.insert(key.name);
                    changes.push(Change::Apply(Box::new(Object::Service(object))));
                }
                Some(Declared::Object(Object::Pod(pod))) => {
                    self.services_selecting(&pod, &mut services);
                    if let Some(old) = self.pods_in_force.insert(key.name, pod.clone()) {
                        self.services_selecting(&old, &mut services);
                    }
                    changes.push(Change::Apply(Box::new(Object::Pod(pod))));
                }
                Some(Declared::Object(object)) => changes.push(Change::Apply(Box::new(object))),
                None => {
                    if key.kind == Kind::Service {
                        self.services.remove(&key.name);
                        self.addresses.release(&key.name);
                        services.insert(key.name.clone());
                    }
                    if key.kind == Kind::Pod
                        && let Some(old) = self.pods_in_force.remove(&key.name)
                    {
                        self.services_selecting(&old, &mut services);
                    }
                    changes.push(Change::Delete(key));
                }
            }
        }
        for service in services {
            self.derive_slices(&service, &mut changes);
        }
        changes
    }

    fn put_service(&mut self, service: LocalService) -> crate::index::object::Service {
        let mut object = service.service.clone();
        let name = object.name.clone();
        if object.cluster_ips.is_empty() && !service.headless {
            object.cluster_ips.extend(self.addresses.of(&name));
        } else {
            self.addresses.release(&name);
        }
        self.services.insert(name, service);
        object
    }

    fn services_selecting(&self, pod: &Pod, services: &mut BTreeSet<Name>) {
        let namespace = &pod.name.namespace;
        let in_namespace = self.services.range(Name::new(namespace, "")..);
        for (name, service) in in_namespace.take_while(|(name, _)| name.namespace == *namespace) {
            if selects(service, pod) {
                services.insert(name.clone());
            }
        }
    }

    /// Does what the endpoint-slice controller does in a cluster.
    fn derive_slices(&mut self, name: &Name, changes: &mut Vec<Change>) {
        let slices = self.services.get(name).map(|service| {
            let in_namespace = self.pods_in_force.range(Name::new(&name.namespace, "")..);
            let pods = in_namespace.take_while(|(pod, _)| pod.namespace == name.namespace);
            slices(service, pods.map(|(_, pod)| pod))
        });
        let slices = slices.unwrap_or_default();
        let names: BTreeSet<Name> = slices.keys().cloned().collect();
        let before = self.slices.remove(name).unwrap_or_default();
        for gone in before.difference(&names) {
            let key = ObjectKey { kind: Kind::EndpointSlice, name: gone.clone() };
            changes.push(Change::Delete(key));
        }
        if !names.is_empty() {
            self.slices.insert(name.clone(), names);
        }
        let slices = slices.into_values().map(Object::EndpointSlice);
        changes.extend(slices.map(|slice| Change::Apply(Box::new(slice))));
    }
}

/// The slices of a service, if these are the pods of its namespace.
pub(crate) fn slices<'a>(
    service: &LocalService,
    pods: impl Iterator<Item = &'a Pod>,
) -> BTreeMap<Name, EndpointSlice> {
    let name = &service.service.name;
    let mut slices: BTreeMap<Name, EndpointSlice> = BTreeMap::new();
    for pod in pods.filter(|pod| pod.running && selects(service, pod)) {
        let Some(ip) = pod.ip else { continue };
        let ports = target_ports(service, pod);
        let slice_name = Name::new(&name.namespace, slice_name(name, &ports));
        let slice = slices.entry(slice_name.clone()).or_insert_with(|| EndpointSlice {
            name: slice_name,
            service: name.name.clone(),
            ports,
            addresses: Vec::new(),
        });
        slice.addresses.push(EndpointAddress {
            ip,
            pod: Some(pod.name.name.clone()),
            ready: pod.ready && !pod.terminating,
            draining: false,
            zone: pod.zone.clone(),
            node: None,
            // As a cluster's controller hints, of which this is all that it says where pods are enough.
            hints: pod.zone.iter().filter(|_| service.spreads_by_zone).cloned().collect(),
        });
    }
    slices
}

/// Objects whose declarations changed.
#[derive(Debug, Default)]
struct Touched {
    objects: BTreeSet<ObjectKey>,
}

fn selects(service: &LocalService, pod: &Pod) -> bool {
    !service.selector.is_empty()
        && service.service.name.namespace == pod.name.namespace
        && service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
}

/// Numbers of a service's ports at a pod. Ports it has no name for are left out.
fn target_ports(service: &LocalService, pod: &Pod) -> Vec<(String, u16)> {
    let targets = service.targets.iter();
    targets
        .filter_map(|(name, target)| {
            let number = match target {
                TargetPort::Number(number) => *number,
                TargetPort::Name(wanted) => pod.ports.iter().find(|p| p.name == *wanted)?.port,
            };
            Some((name.clone(), number))
        })
        .collect()
}

/// Dots cannot be in a service's name, so no two services have slices of one name.
fn slice_name(service: &Name, ports: &[(String, u16)]) -> String {
    ports.iter().fold(service.name.clone(), |name, (_, port)| format!("{name}.{port}"))
}

fn read_manifest(path: &Path, stamp: Stamp, names: &MeshNames) -> Manifest {
    match read_text(path, stamp) {
        Ok(text) => manifest::read(path, &text, names),
        Err(message) => unreadable(path, message),
    }
}

fn read_pod(path: &Path, stamp: Stamp) -> Manifest {
    let text = match read_text(path, stamp) {
        Ok(text) => text,
        Err(message) => return unreadable(path, message),
    };
    let mut json = serde_json::Deserializer::from_str(&text);
    match serde_path_to_error::deserialize::<_, core::Pod>(&mut json) {
        Ok(pod) => {
            let (pod, findings) = kubernetes::pod(&pod);
            let object = Object::Pod(pod);
            let about = object.key().to_string();
            let of = |finding| problem(path, about.clone(), 0, finding);
            let problems = findings.into_iter().map(of).collect();
            Manifest { declared: vec![Declared::Object(object)], problems }
        }
        Err(error) => {
            let line = u32::try_from(error.inner().line()).unwrap_or(0);
            let finding = Finding::error(error.path().to_string(), error.inner().to_string());
            let problem = problem(path, "Pod".into(), line, finding);
            Manifest { declared: Vec::new(), problems: vec![problem] }
        }
    }
}

fn read_text(path: &Path, stamp: Stamp) -> Result<String, String> {
    if stamp.len > MAX_FILE {
        return Err(format!("the file is larger than {} MiB", MAX_FILE >> 20));
    }
    fs::read_to_string(path).map_err(|error| format!("cannot read it: {error}"))
}

fn unreadable(path: &Path, message: String) -> Manifest {
    let finding = Finding { severity: Severity::Error, field: String::new(), message };
    let problem = problem(path, String::new(), 0, finding);
    Manifest { declared: Vec::new(), problems: vec![problem] }
}

/// Files below a folder with one of these extensions. Hidden ones are left out: editors and
/// atomic writers use them.
fn list(
    folder: &Path,
    extensions: &[&str],
    depth: usize,
    found: &mut BTreeMap<PathBuf, Stamp>,
) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        // The target's metadata: what changes when a link points elsewhere.
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.is_dir() {
            // Links to folders are not followed, lest they lead back.
            if depth > 0 && !entry.file_type()?.is_symlink() {
                list(&path, extensions, depth - 1, found)?;
            }
        } else if path.extension().and_then(OsStr::to_str).is_some_and(|e| extensions.contains(&e))
        {
            found.insert(path, Stamp::from(&meta));
        }
    }
    Ok(())
}
