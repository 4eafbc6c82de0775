//! Objects of files put over those of the index, for one question: what would be if they were applied?
//!
//! They are read as the local source reads them, also for a cluster: the meaning of an object is the
//! same, and who asks wants line numbers.

use std::path::{Path, PathBuf};

use crate::index::Objects;
use crate::index::identity::MeshNames;
use crate::index::object::{Kind, Labels, Name, Object, ObjectKey, Pod, Workload};
use crate::source::local::manifest::{self, Declared};
use crate::source::local::state;
use crate::source::local::yaml::{self, Document};
use crate::source::{Problem, Severity};

/// More text than this is refused. Bytes.
pub const MAX_TEXT: usize = 2 << 20;

/// Files as they were read.
#[derive(Debug, Default)]
pub struct Overlay {
    declared: Vec<Declared>,
    pub problems: Vec<Problem>,
    pub written: Vec<Written>,
}

/// An object as it is written.
#[derive(Debug)]
pub struct Written {
    pub file: PathBuf,
    /// `HTTPRoute/shop/checkout`
    pub about: String,
    pub namespace: String,
    pub document: Document,
}

/// Too much text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the manifests have more than {} MiB; give fewer files", MAX_TEXT >> 20)]
pub struct TooLarge;

impl Overlay {
    /// Reads texts, each with the name of its file.
    ///
    /// # Errors
    /// When they are too large. What is wrong with an object is in `problems`.
    pub fn read<'a>(
        texts: impl IntoIterator<Item = (&'a str, &'a str)>,
        names: &MeshNames,
    ) -> Result<Self, TooLarge> {
        let mut overlay = Self::default();
        let mut size = 0;
        for (file, text) in texts {
            size += text.len();
            if size > MAX_TEXT {
                return Err(TooLarge);
            }
            let file = Path::new(file);
            let read = manifest::read(file, text, names);
            // Kinds that the mesh takes no notice of are in every folder.
            let ours = |p: &Problem| p.severity == Severity::Error || p.field != "kind";
            overlay.problems.extend(read.problems.into_iter().filter(ours));
            overlay.declared.extend(read.declared);
            for document in yaml::documents(text).into_iter().flatten() {
                overlay.take(file, document);
            }
        }
        Ok(overlay)
    }

    pub fn is_empty(&self) -> bool {
        self.written.is_empty() && self.problems.is_empty()
    }

    /// These objects over others.
    pub fn over(&self, objects: &Objects) -> Objects {
        let (mut removed, mut added) = (Vec::new(), Vec::new());
        for declared in &self.declared {
            match declared {
                Declared::Object(object) => added.push(object.clone()),
                Declared::Service(local) => {
                    let mut service = local.service.clone();
                    let name = service.name.clone();
                    if let Some(old) = objects.service(&name).filter(|_| !local.headless)
                        && service.cluster_ips.is_empty()
                    {
                        service.cluster_ips.clone_from(&old.cluster_ips);
                    }
                    added.push(Object::Service(service));
                    if !local.selector.is_empty() {
                        let names = objects.slices_of(&name).map(|slice| slice.name.clone());
                        let key = |name| ObjectKey { kind: Kind::EndpointSlice, name };
                        removed.extend(names.map(key));
                        let pods = objects.pods().map(|pod| -> &Pod { pod });
                        let here = pods.filter(|pod| pod.name.namespace == name.namespace);
                        let slices = state::slices(local, here).into_values();
                        added.extend(slices.map(Object::EndpointSlice));
                    }
                }
            }
        }
        objects.with(&removed, added)
    }

    fn take(&mut self, file: &Path, document: Document) {
        let about = manifest::about(&document);
        let text = |path: &[&str]| document.root.text(path).unwrap_or_default().to_owned();
        let (kind, name) = (text(&["kind"]), text(&["metadata", "name"]));
        let namespace = match text(&["metadata", "namespace"]) {
            _ if kind == "Namespace" => name.clone(),
            empty if empty.is_empty() => "default".to_owned(),
            namespace => namespace,
        };
        // Workloads that no machine runs by itself are there for policies to point to.
        if let Some(kind) = Kind::workload(&kind).filter(|of| of.as_str() == kind) {
            let name = Name::new(&namespace, &name);
            let known =
                |declared: &Declared| declared.key() == ObjectKey { kind, name: name.clone() };
            if !self.declared.iter().any(known) {
                let (labels, annotations) = (Labels::default(), Labels::default());
                let workload = Workload { kind, name, labels, annotations };
                self.declared.push(Declared::Object(Object::Workload(workload)));
            }
        }
        self.written.push(Written { file: file.to_owned(), about, namespace, document });
    }
}
