//! Labels and annotations of ours that nobody reads: misspelt, or in the wrong place.

use serde_json::Value;

use super::{Code, Found, Scene};
use crate::index::object::Labels;
use crate::inject::INJECT;
use crate::overlay::Written;
use crate::source::annotations::{self, PREFIX, distance};
use crate::source::kubernetes::{OWNER_KIND_LABEL, OWNER_NAME_LABEL, PROXY_VERSION_ANNOTATION};

const DOMAIN: &str = "meshctl.dev";
/// What the mesh writes itself.
const OWN: [&str; 5] = [
    OWNER_KIND_LABEL,
    OWNER_NAME_LABEL,
    PROXY_VERSION_ANNOTATION,
    "meshctl.dev/template-hash",
    "meshctl.dev/config",
];

/// What has labels and annotations, as far as they are told apart here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Namespace,
    Pod,
    Service,
    /// Around a template of pods, which is where those of pods belong.
    Workload,
    Other,
}

pub(super) fn look(scene: &Scene<'_>, found: &mut Found) {
    let objects = scene.objects;
    // What is known as it is written says more, and is looked at below.
    let written = |object: &str| scene.written.iter().any(|written| written.about == object);
    let mut metadata = |object: String, place, labels: &Labels, annotations: &Labels| {
        if !written(&object) {
            look_at(&object, place, "metadata", labels, annotations, found);
        }
    };
    let none = Labels::default();
    for namespace in objects.namespaces() {
        let object = format!("Namespace/{}", namespace.name);
        // Those of the other prefix were looked at by their reader.
        let own: Labels = namespace
            .annotations
            .iter()
            .filter(|(key, _)| !key.starts_with(PREFIX))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        metadata(object, Place::Namespace, &namespace.labels, &own);
    }
    for service in objects.services() {
        metadata(format!("Service/{}", service.name), Place::Service, &service.labels, &none);
    }
    for workload in objects.workloads() {
        let object = format!("{}/{}", workload.kind.as_str(), workload.name);
        metadata(object, Place::Workload, &workload.labels, &workload.annotations);
    }
    // Pods of a workload are alike: one of them says it.
    let mut seen = std::collections::BTreeSet::new();
    for pod in objects.pods().filter(|pod| seen.insert((&pod.name.namespace, &pod.owner))) {
        metadata(format!("Pod/{}", pod.name), Place::Pod, &pod.labels, &none);
    }
    for written in scene.written {
        look_at_written(written, found);
    }
}

fn look_at_written(written: &Written, found: &mut Found) {
    let kind = written.document.root.text(&["kind"]).unwrap_or_default();
    let json = written.document.root.to_json();
    let template = template(&json);
    let place = match kind {
        "Namespace" => Place::Namespace,
        "Pod" => Place::Pod,
        "Service" => Place::Service,
        _ if template.is_some() => Place::Workload,
        _ => Place::Other,
    };
    let mut look = |place, at: &str, metadata: &Value| {
        let (labels, annotations) = (pairs(&metadata["labels"]), pairs(&metadata["annotations"]));
        look_at(&written.about, place, at, &labels, &annotations, found);
    };
    look(place, "metadata", &json["metadata"]);
    if let Some((at, template)) = template {
        look(Place::Pod, &format!("{at}.metadata"), &template["metadata"]);
    }
}

/// The labels of the pods that an object makes.
pub(super) fn template_labels(written: &Written) -> Option<Labels> {
    let json = written.document.root.to_json();
    let (_, template) = template(&json)?;
    Some(pairs(&template["metadata"]["labels"]))
}

/// The template of an object's pods, and where it stands.
fn template(json: &Value) -> Option<(&'static str, &Value)> {
    let of_job = json.pointer("/spec/jobTemplate/spec/template");
    let of_job = of_job.map(|template| ("spec.jobTemplate.spec.template", template));
    of_job.or_else(|| Some(("spec.template", json.pointer("/spec/template")?)))
}

fn pairs(map: &Value) -> Labels {
    let pairs = map.as_object().into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn look_at(
    object: &str,
    place: Place,
    at: &str,
    labels: &Labels,
    annotations: &Labels,
    found: &mut Found,
) {
    let both = [(labels, true), (annotations, false)];
    for (map, is_label) in both {
        for (key, value) in map {
            let Some((code, message)) = verdict(key, value, is_label, place) else { continue };
            let kind = if is_label { "labels" } else { "annotations" };
            found.add(code, object, format!("{at}.{kind}[{key}]"), message);
        }
    }
}

fn verdict(key: &str, value: &str, is_label: bool, place: Place) -> Option<(Code, String)> {
    let (prefix, name) = key.split_once('/')?;
    let ours = prefix == DOMAIN || prefix.ends_with(&format!(".{DOMAIN}"));
    if !ours {
        // A slip in the prefix itself.
        let close = [DOMAIN, PREFIX.trim_end_matches('/')];
        let close = close.into_iter().find(|own| distance(own, prefix) <= 2)?;
        return Some((Code::Misspelt, format!("the prefix is {close}/")));
    }
    if key == INJECT {
        return inject(value, place);
    }
    if OWN.contains(&key) {
        return None;
    }
    let Some(option) = key.strip_prefix(PREFIX) else {
        return misspelt(key, name);
    };
    if !annotations::known().any(|known| known == option) {
        return misspelt(key, name);
    }
    if is_label {
        return Some((Code::Misplaced, "is an annotation, and is not read as a label".into()));
    }
    let (of_services, of_pods) =
        (annotations::is_of_services(option), annotations::is_of_pods(option));
    let message = match place {
        Place::Pod | Place::Namespace if !of_pods => "is read on Services only",
        Place::Service if !of_services => "is read on pods and namespaces only",
        Place::Workload if of_pods => {
            "is not read here: it belongs to the metadata of the template"
        }
        Place::Workload => "is read on Services only",
        Place::Other => "is not read on objects of this kind",
        _ => return None,
    };
    Some((Code::Misplaced, message.into()))
}

fn inject(value: &str, place: Place) -> Option<(Code, String)> {
    match place {
        Place::Namespace | Place::Pod if ["enabled", "disabled"].contains(&value) => None,
        Place::Namespace | Place::Pod => {
            Some((Code::Misspelt, format!("`{value}` is neither enabled nor disabled")))
        }
        Place::Workload => {
            let message = "is not read here: it belongs to the metadata of the template";
            Some((Code::Misplaced, message.into()))
        }
        Place::Service | Place::Other => {
            Some((Code::Misplaced, "is read on namespaces and pods only".into()))
        }
    }
}

/// Names that are near one there is, or that have one's prefix.
fn misspelt(key: &str, name: &str) -> Option<(Code, String)> {
    let own = [INJECT, OWNER_KIND_LABEL, OWNER_NAME_LABEL].into_iter().map(str::to_owned);
    let options = annotations::known().map(|known| format!("{PREFIX}{known}"));
    // By the name first: the prefix is what people get wrong.
    let bare = |full: &str| full.split_once('/').map_or(0, |(_, known)| distance(known, name));
    let nearest = own.chain(options).min_by_key(|full| (bare(full), distance(full, key)))?;
    Some((Code::Misspelt, format!("no such name; the nearest is {nearest}")))
}
