//! Which objects and pods a selector means.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_api::ext::{ObjectRef, Selector};

use super::egress::EGRESS;
use crate::index::Objects;
use crate::index::object::{Kind, Labels, Name, Pod, RouteHead};

/// An object that was asked for.
#[derive(Clone, Debug)]
pub(super) struct Selected {
    pub(super) object: ObjectRef,
    /// Its running pods.
    pub(super) pods: Vec<Arc<Pod>>,
    /// Set when it is a Service.
    pub(super) service: Option<Name>,
}

/// A selector that cannot be understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum InvalidSelector {
    #[error("there is no resource type `{kind}`; use one of {}", KINDS.join(", "))]
    Kind { kind: String },
    #[error(
        "`{requirement}` is not a label requirement such as `app=web`, `app!=web`, `app in (web,api)`, `app` or `!app`"
    )]
    Labels { requirement: String },
    #[error("hosts outside of the mesh are no objects; `meshctl stat egress` shows them")]
    Egress,
    #[error("name what to look at, such as `deployment/web`")]
    Nothing,
}

const KINDS: [&str; 9] = [
    "deployment",
    "statefulset",
    "daemonset",
    "replicaset",
    "job",
    "cronjob",
    "pod",
    "service",
    "namespace",
];

/// The objects that any of the selectors means, each once, by kind, namespace and name.
///
/// # Errors
/// When a selector cannot be understood.
pub(super) fn select_all(
    objects: &Objects,
    selectors: &[Selector],
) -> Result<Vec<Selected>, InvalidSelector> {
    if selectors.is_empty() {
        return Err(InvalidSelector::Nothing);
    }
    let mut all: BTreeMap<(String, String, String), Selected> = BTreeMap::new();
    for selector in selectors {
        for selected in select(objects, selector)? {
            let ObjectRef { kind, name, namespace } = selected.object.clone();
            all.insert((kind, namespace, name), selected);
        }
    }
    Ok(all.into_values().collect())
}

/// The objects that a selector means.
///
/// # Errors
/// When it cannot be understood.
pub(super) fn select(
    objects: &Objects,
    selector: &Selector,
) -> Result<Vec<Selected>, InvalidSelector> {
    let labels = LabelSelector::parse(&selector.labels)?;
    let named = |name: &Name, have: &Labels| {
        (selector.name.is_empty() || selector.name == name.name)
            && (selector.namespace.is_empty() || selector.namespace == name.namespace)
            && labels.matches(have)
    };
    Ok(match selector.kind.as_str() {
        "pod" => {
            let pods = objects.pods().filter(|pod| named(&pod.name, &pod.labels));
            pods.map(|pod| selected("pod", &pod.name, running([pod]))).collect()
        }
        "service" => {
            let services = objects.services().filter(|s| named(&s.name, &s.labels));
            let of = |service: &Arc<crate::index::object::Service>| {
                let pods = objects.pods_of_service(&service.name);
                let pods = pods.iter().filter_map(|pod| objects.pod(pod));
                let pods = running(pods);
                Selected {
                    service: Some(service.name.clone()),
                    ..selected("service", &service.name, pods)
                }
            };
            services.map(of).collect()
        }
        "namespace" => namespaces(objects, selector, &labels),
        EGRESS => return Err(InvalidSelector::Egress),
        kind => match Kind::workload(kind) {
            Some(kind) => workloads(objects, kind, named),
            None => return Err(InvalidSelector::Kind { kind: kind.to_owned() }),
        },
    })
}

/// The routes that policies may be about and that a selector means; `None` when it means another kind.
/// They have no pods, so that figures are not asked of them.
pub(super) fn routes(objects: &Objects, selector: &Selector) -> Option<Vec<Selected>> {
    let heads: Vec<&RouteHead> = match selector.kind.as_str() {
        "httproute" => objects.http_routes().map(|route| &route.head).collect(),
        "grpcroute" => objects.grpc_routes().map(|route| &route.head).collect(),
        _ => return None,
    };
    let meant = heads.into_iter().map(|head| &head.name).filter(|name| {
        (selector.name.is_empty() || selector.name == name.name)
            && (selector.namespace.is_empty() || selector.namespace == name.namespace)
    });
    Some(meant.map(|name| selected(&selector.kind, name, Vec::new())).collect())
}

fn selected(kind: &str, name: &Name, pods: Vec<Arc<Pod>>) -> Selected {
    let object = ObjectRef {
        kind: kind.to_owned(),
        name: name.name.clone(),
        namespace: name.namespace.clone(),
    };
    Selected { object, pods, service: None }
}

fn running<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>) -> Vec<Arc<Pod>> {
    pods.into_iter().filter(|pod| pod.running).cloned().collect()
}

fn namespaces(objects: &Objects, selector: &Selector, labels: &LabelSelector) -> Vec<Selected> {
    let mut known: BTreeMap<&str, &Labels> = BTreeMap::new();
    let none = Labels::default();
    for pod in objects.pods() {
        known.insert(&pod.name.namespace, &none);
    }
    known.extend(objects.namespaces().map(|ns| (ns.name.as_str(), &ns.labels)));
    // A namespace is in no namespace, so one that is given can only be meant as its name.
    let wanted = [&selector.name, &selector.namespace];
    let matching = known.into_iter().filter(|(name, have)| {
        wanted.iter().all(|wanted| wanted.is_empty() || *wanted == name) && labels.matches(have)
    });
    matching
        .map(|(name, _)| {
            let pods = objects.pods().filter(|pod| pod.name.namespace == name);
            selected("namespace", &Name::new("", name), running(pods))
        })
        .collect()
}

/// Workloads that are declared or that own pods.
fn workloads(
    objects: &Objects,
    kind: Kind,
    named: impl Fn(&Name, &Labels) -> bool,
) -> Vec<Selected> {
    let mut pods: BTreeMap<Name, Vec<Arc<Pod>>> = BTreeMap::new();
    let mut labels: BTreeMap<Name, Labels> = BTreeMap::new();
    for workload in objects.workloads().filter(|workload| workload.kind == kind) {
        pods.entry(workload.name.clone()).or_default();
        labels.insert(workload.name.clone(), workload.labels.clone());
    }
    for pod in objects.pods() {
        let Some((_, owner)) = pod.owner.as_ref().filter(|(of, _)| *of == kind) else { continue };
        let name = Name::new(&pod.name.namespace, owner);
        labels.entry(name.clone()).or_insert_with(|| pod.labels.clone());
        let pods = pods.entry(name).or_default();
        if pod.running {
            pods.push(Arc::clone(pod));
        }
    }
    let name_of = kind.as_str().to_ascii_lowercase();
    pods.into_iter()
        .filter(|(name, _)| labels.get(name).is_some_and(|have| named(name, have)))
        .map(|(name, pods)| selected(&name_of, &name, pods))
        .collect()
}

/// The object a pod is spoken of as: its owner, or itself.
pub(super) fn owner_ref(pod: &Pod) -> ObjectRef {
    match &pod.owner {
        Some((kind, name)) => ObjectRef {
            kind: kind.as_str().to_ascii_lowercase(),
            name: name.clone(),
            namespace: pod.name.namespace.clone(),
        },
        None => pod_ref(pod),
    }
}

pub(super) fn pod_ref(pod: &Pod) -> ObjectRef {
    ObjectRef {
        kind: "pod".into(),
        name: pod.name.name.clone(),
        namespace: pod.name.namespace.clone(),
    }
}

/// `k=v,k!=v,k in (a,b),k notin (a),k,!k`; all must hold.
#[derive(Debug, Default)]
struct LabelSelector(Vec<Requirement>);

#[derive(Debug)]
enum Requirement {
    In(String, BTreeSet<String>),
    /// Also holds without the label.
    NotIn(String, BTreeSet<String>),
    Exists(String),
    Absent(String),
}

impl LabelSelector {
    fn parse(text: &str) -> Result<Self, InvalidSelector> {
        let parts = requirements(text);
        let parsed =
            parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty()).map(|part| {
                Requirement::parse(part)
                    .ok_or_else(|| InvalidSelector::Labels { requirement: part.to_owned() })
            });
        parsed.collect::<Result<_, _>>().map(Self)
    }

    fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Requirement::NotIn(key, values) => !labels.get(key).is_some_and(|v| values.contains(v)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Absent(key) => !labels.contains_key(key),
        })
    }
}

/// Splits at commas that are not inside parentheses.
fn requirements(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0u32);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

impl Requirement {
    fn parse(text: &str) -> Option<Self> {
        let one = |value: &str| is_value(value.trim()).then(|| [value.trim().to_owned()].into());
        if let Some((key, value)) = text.split_once("!=") {
            return Some(Self::NotIn(key_of(key)?, one(value)?));
        }
        if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            return Some(Self::In(key_of(key)?, one(value)?));
        }
        if let Some(key) = text.strip_prefix('!') {
            return Some(Self::Absent(key_of(key)?));
        }
        if let Some((head, rest)) = text.split_once('(') {
            let mut words = head.split_whitespace();
            let (key, operator) = (key_of(words.next()?)?, words.next()?);
            let values: Vec<&str> =
                rest.trim_end().strip_suffix(')')?.split(',').map(str::trim).collect();
            if words.next().is_some() || !values.iter().all(|value| is_value(value)) {
                return None;
            }
            let values = values.into_iter().map(str::to_owned).collect();
            return match operator {
                "in" => Some(Self::In(key, values)),
                "notin" => Some(Self::NotIn(key, values)),
                _ => None,
            };
        }
        Some(Self::Exists(key_of(text)?))
    }
}

fn key_of(text: &str) -> Option<String> {
    let key = text.trim();
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    (!key.is_empty() && key.bytes().all(valid)).then(|| key.to_owned())
}

fn is_value(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        LabelSelector::parse(selector).unwrap().matches(&labels)
    }

    #[test]
    fn labels_as_kubectl_has_them() {
        let web = [("app", "web"), ("version", "v1")];
        for selector in [
            "",
            "app=web",
            "app==web",
            "app = web, version!=v2",
            "tier!=x",
            "app",
            "!tier",
            "app in (api, web)",
            "version notin (v2),app",
            "tier notin (x)",
        ] {
            assert!(matches(selector, &web), "{selector}");
        }
        for selector in
            ["app=api", "app!=web", "tier", "!app", "app in (api)", "version notin (v1)"]
        {
            assert!(!matches(selector, &web), "{selector}");
        }
    }

    #[test]
    fn what_is_no_requirement_is_refused() {
        for selector in ["=x", "a=b=c", "a in b", "a in (b", "a near (b)", "a b", "!", "a=(b)"] {
            assert!(LabelSelector::parse(selector).is_err(), "{selector}");
        }
    }
}
