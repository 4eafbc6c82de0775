//! Where faults are kept: as BackendTrafficPolicies, in a cluster or among the manifests of a local mesh.

use std::fs;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::GroupVersionKind;
use mesh_control::index::object::POLICY_GROUP;
use mesh_control::source::local::yaml;
use mesh_control::source::policy::{BackendTrafficPolicySpec, Fault};
use serde_json::{Value, json};

use crate::cluster::{Cluster, refusal};
use crate::commands::local::files::send;
use crate::connect::Place;
use crate::context::Context;
use crate::error::CliError;
use crate::local::client::Supervisor;
use crate::local::protocol::Request;
use crate::local::store::GivenFile;
use crate::state_dir::StateDir;

pub(super) const KIND: &str = "BackendTrafficPolicy";
const VERSION: &str = "v1alpha1";
/// Says that `fault add` made it.
const LABEL: (&str, &str) = ("meshctl.dev/fault", "true");

/// A policy with faults.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Held {
    pub(super) namespace: String,
    pub(super) name: String,
    /// `fault add` made it.
    pub(super) ours: bool,
    pub(super) spec: BackendTrafficPolicySpec,
}

impl Held {
    /// Whether nothing of it will ever have an effect again: what somebody has added to it may.
    pub(super) fn is_over(&self, now: Timestamp) -> bool {
        let faults_alone = BackendTrafficPolicySpec {
            target_ref: self.spec.target_ref.clone(),
            faults: self.spec.faults.clone(),
            ..BackendTrafficPolicySpec::default()
        };
        self.ours
            && self.spec == faults_alone
            && self.spec.faults.iter().all(|fault| is_over(fault, now))
    }

    pub(super) fn object(&self) -> Value {
        json!({
            "apiVersion": format!("{POLICY_GROUP}/{VERSION}"),
            "kind": KIND,
            "metadata": {
                "namespace": self.namespace,
                "name": self.name,
                "labels": { LABEL.0: LABEL.1 },
            },
            "spec": self.spec,
        })
    }

    /// `None` of what is none, or has no faults.
    fn read(object: &Value) -> Option<Self> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str);
        let spec = object.get("spec")?.clone();
        let spec: BackendTrafficPolicySpec = serde_json::from_value(spec).ok()?;
        let is = text("/kind") == Some(KIND) && !spec.faults.is_empty();
        let label = object.pointer("/metadata/labels").and_then(|labels| labels.get(LABEL.0));
        is.then(|| Self {
            namespace: text("/metadata/namespace").unwrap_or("default").to_owned(),
            name: text("/metadata/name").unwrap_or_default().to_owned(),
            ours: label.and_then(Value::as_str) == Some(LABEL.1),
            spec,
        })
    }
}

pub(super) fn is_over(fault: &Fault, now: Timestamp) -> bool {
    let until = fault.until.as_ref().and_then(|text| text.parse::<Timestamp>().ok());
    until.is_some_and(|until| until <= now)
}

pub(super) enum Store<'a> {
    Local(&'a StateDir),
    Cluster(&'a Cluster),
}

impl<'a> Store<'a> {
    pub(super) async fn of(place: &'a Place) -> Result<Self, CliError> {
        Ok(match place {
            Place::Local(dir) => Self::Local(dir),
            Place::Cluster(cluster) => Self::Cluster(cluster),
        })
    }

    /// Every policy with faults, or those of a namespace, whose users may not see others.
    pub(super) async fn list(&mut self, namespace: Option<&str>) -> Result<Vec<Held>, CliError> {
        let mut all = match self {
            Self::Local(dir) => in_files(dir)?,
            Self::Cluster(cluster) => {
                let resource = resource();
                let client = cluster.client.clone();
                let api: Api<DynamicObject> = match namespace {
                    Some(namespace) => Api::namespaced_with(client, namespace, &resource),
                    None => Api::all_with(client, &resource),
                };
                let listed = async {
                    match api.list(&ListParams::default()).await {
                        // A mesh of an older version does not have the kind.
                        Err(error) if refusal::is_missing(&error) => Ok(Vec::new()),
                        listed => listed.map(|list| list.items),
                    }
                };
                let doing = format!("list {KIND} objects");
                let items = cluster.ask(&doing, listed).await?;
                let mut all = Vec::new();
                for item in items {
                    let mut object = json(serde_json::to_value(&item))?;
                    // A list says once what all are.
                    object["kind"] = KIND.into();
                    all.extend(Held::read(&object));
                }
                all
            }
        };
        all.retain(|held| namespace.is_none_or(|namespace| held.namespace == namespace));
        all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Ok(all)
    }

    pub(super) async fn create(&mut self, held: &Held, cx: &mut Context) -> Result<(), CliError> {
        match self {
            Self::Local(dir) => {
                let files = vec![file(held)?];
                let mut supervisor = Supervisor::connect(dir).await?;
                send(&mut supervisor, &Request::Apply { files }, cx).await.map(drop)
            }
            Self::Cluster(cluster) => {
                let object: DynamicObject = json(serde_json::from_value(held.object()))?;
                let by = PostParams::default();
                let api = api(cluster, held);
                let created = async { api.create(&by, &object).await.map(drop) };
                cluster.change(&format!("create {KIND}/{}", held.name), created).await
            }
        }
    }

    pub(super) async fn delete(&mut self, held: &Held, cx: &mut Context) -> Result<(), CliError> {
        match self {
            Self::Local(dir) => {
                let files = vec![file(held)?];
                let mut supervisor = Supervisor::connect(dir).await?;
                send(&mut supervisor, &Request::Delete { files }, cx).await.map(drop)
            }
            Self::Cluster(cluster) => {
                let api = api(cluster, held);
                let deleted = async {
                    match api.delete(&held.name, &DeleteParams::default()).await {
                        Err(error) if refusal::is_missing(&error) => Ok(()),
                        deleted => deleted.map(drop),
                    }
                };
                cluster.change(&format!("delete {KIND}/{}", held.name), deleted).await
            }
        }
    }
}

fn json<T>(converted: serde_json::Result<T>) -> Result<T, CliError> {
    converted.map_err(|error| CliError::failed(format!("a {KIND}: {error}")))
}

fn resource() -> ApiResource {
    let of = GroupVersionKind::gvk(POLICY_GROUP, VERSION, KIND);
    ApiResource::from_gvk_with_plural(&of, "backendtrafficpolicies")
}

fn api(cluster: &Cluster, held: &Held) -> Api<DynamicObject> {
    Api::namespaced_with(cluster.client.clone(), &held.namespace, &resource())
}

/// Each is a file of its own.
fn file(held: &Held) -> Result<GivenFile, CliError> {
    let name = format!("{}.{}.json", held.namespace, held.name);
    Ok(GivenFile {
        shown: held.name.clone(),
        source: format!("meshctl fault/{name}"),
        cwd: std::env::current_dir()?,
        content: held.object().to_string(),
    })
}

fn in_files(dir: &StateDir) -> Result<Vec<Held>, CliError> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir.manifests())? {
        let path = entry?.path();
        if !path.is_file() {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        // What is wrong in them, `check` tells.
        let documents = yaml::documents(&text).into_iter().flatten();
        all.extend(documents.filter_map(|document| Held::read(&document.root.to_json())));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::objects::Objects;

    #[test]
    fn what_is_written_is_read_again() {
        let spec = json!({
            "targetRef": { "kind": "Service", "name": "web" },
            "faults": [{ "abort": { "httpStatus": 503 }, "until": "2026-01-01T00:00:00Z" }],
        });
        let held = Held {
            namespace: "shop".into(),
            name: "fault-web-1".into(),
            ours: true,
            spec: serde_json::from_value(spec).unwrap(),
        };
        assert_eq!(Held::read(&held.object()), Some(held.clone()));
        assert!(held.is_over("2026-01-01T00:00:00Z".parse().unwrap()));
        assert!(!held.is_over("2025-12-31T23:59:59Z".parse().unwrap()));
        let without = json!({ "kind": KIND, "spec": { "targetRef": { "kind": "Service" } } });
        assert_eq!(Held::read(&without), None);
    }

    #[test]
    fn what_somebody_has_added_to_a_fault_is_not_over() {
        let over = json!({
            "targetRef": { "kind": "Service", "name": "web", "port": 80 },
            "faults": [{ "delay": "1s", "until": "2026-01-01T00:00:00Z" }],
        });
        let is_over = |ours: bool, spec: &Value| {
            let held = Held {
                namespace: "shop".into(),
                name: "fault-web-1".into(),
                ours,
                spec: serde_json::from_value(spec.clone()).unwrap(),
            };
            held.is_over("2026-01-02T00:00:00Z".parse().unwrap())
        };
        assert!(is_over(true, &over));
        assert!(!is_over(false, &over), "somebody wrote it");
        let mut more = over.clone();
        more["retryBudget"] = json!({ "percent": 10 });
        assert!(!is_over(true, &more));
        let mut endless = over;
        endless["faults"][0]["until"].take();
        assert!(!is_over(true, &endless));
    }

    #[tokio::test]
    async fn who_may_see_one_namespace_sees_its_faults() {
        let policy = |namespace: &str| {
            json!({
                "kind": KIND,
                "metadata": { "namespace": namespace, "name": "chaos" },
                "spec": {
                    "targetRef": { "kind": "Service", "name": "web" },
                    "faults": [{ "delay": "1s" }],
                },
            })
        };
        let objects = Objects::start([policy("shop"), policy("bank")]).await;
        let cluster = objects.cluster().await;
        let mut store = Store::Cluster(&cluster);
        assert_eq!(store.list(None).await.unwrap().len(), 2);
        // Of all namespaces.
        objects.lack("/apis/policy.meshctl.dev/v1alpha1/backendtrafficpolicies");
        let [held] = &store.list(Some("shop")).await.unwrap()[..] else { panic!("one") };
        assert_eq!(held.namespace, "shop");
    }
}
