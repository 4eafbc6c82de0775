//! A mesh's whole life in a cluster with nodes, as its user walks through it: before, installed, with the
//! demo in it, changed, upgraded, gone. The cluster is then as it was.
//!
//! Runs when `MESH_TEST_KUBECONFIG` names a kubeconfig of somebody who may do everything, and
//! `MESH_TEST_IMAGES` says what stands before `/mesh-proxy` in the names of images that the nodes have
//! (`ghcr.io/meshctl`; see docs/kubernetes.md). Not in a cluster that has a mesh.

use std::collections::BTreeSet;
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::FutureExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::discovery::Discovery;
use kube::{Client, Config};
use mesh_control::source::local::yaml;
use mesh_integration::{programs, wait};
use serde_json::{Value, json};

/// Pods are scheduled, started and probed in this time.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);
pub(super) const MESH: &str = "mesh-system";
const SHOP: &str = "shop";
/// Of the demo.
const DEPLOYMENTS: usize = 12;

#[derive(Clone)]
pub(super) struct Cluster {
    pub(super) client: Client,
    pub(super) kubeconfig: PathBuf,
    pub(super) images: String,
}

/// What a command of meshctl said.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) code: i32,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Ran {
    pub(super) fn succeeded(self) -> Self {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
        self
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_comes_works_changes_and_goes() {
    let test = "cluster::walk";
    let (Some(kubeconfig), Ok(images)) =
        (std::env::var_os("MESH_TEST_KUBECONFIG"), std::env::var("MESH_TEST_IMAGES"))
    else {
        return programs::skipped(test, "MESH_TEST_KUBECONFIG and MESH_TEST_IMAGES are not set");
    };
    let _turn = super::world::turn().await;
    let cluster = Cluster::new(kubeconfig.into(), images).await;
    if let Err(why) = cluster.is_free().await {
        return programs::skipped(test, &why);
    }
    let before = cluster.wide_objects().await;
    if let Err(panic) = AssertUnwindSafe(cluster.walk()).catch_unwind().await {
        cluster.clean().await;
        std::panic::resume_unwind(panic);
    }
    let after = cluster.wide_objects().await;
    let left: Vec<_> = after.symmetric_difference(&before).collect();
    assert!(left.is_empty(), "{left:?}");
}

impl Cluster {
    async fn new(kubeconfig: PathBuf, images: String) -> Self {
        let read = Kubeconfig::read_from(&kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
        Self { client: config.unwrap().try_into().unwrap(), kubeconfig, images }
    }

    /// Whether there is a node, and no mesh.
    async fn is_free(&self) -> Result<(), String> {
        let nodes = Api::<Node>::all(self.client.clone()).list(&ListParams::default()).await;
        if nodes.unwrap().items.is_empty() {
            return Err("the cluster has no node".into());
        }
        let namespaces = Api::<Namespace>::all(self.client.clone());
        for name in [MESH, SHOP] {
            if namespaces.get_opt(name).await.unwrap().is_some() {
                return Err(format!("the cluster has a namespace {name} already"));
            }
        }
        Ok(())
    }

    /// From `check --pre` to `uninstall`.
    async fn walk(&self) {
        self.meshctl(&["check", "--pre"]).await.succeeded();
        let registry = format!("image.registry={}", self.images);
        self.meshctl(&["install", "-y", "--set", &registry]).await.succeeded();
        self.meshctl(&["check"]).await.succeeded();
        let again = self.meshctl(&["diff"]).await;
        assert_eq!(again.code, 0, "nothing is to change: {}", again.stdout);

        self.demo().await;
        self.everything_is_meshed().await;
        self.people_see_what_happens().await;
        self.a_policy_decides_while_it_is_there().await;
        self.nobody_notices_a_rollout("finance").await;

        self.a_report_has_it_all().await;
        self.meshctl(&["upgrade", "-y", "--set", "controlPlane.log=debug"]).await.succeeded();
        self.meshctl(&["check", "--proxy", "-n", SHOP]).await.succeeded();
        self.secured("portal", "finance").await;

        let refused = self.meshctl(&["uninstall", "-y"]).await;
        assert_eq!(refused.code, 1, "pods are meshed: {}", refused.stdout);
        self.forget(SHOP).await;
        self.every_broken_part_is_told().await;
        self.meshctl(&["uninstall", "-y", "--purge-crds"]).await.succeeded();
        self.forget(MESH).await;
    }

    /// Takes away what a walk that has failed has left. Each step is made whatever became of the one before.
    async fn clean(&self) {
        let _ = AssertUnwindSafe(self.forget(SHOP)).catch_unwind().await;
        let uninstall = self.meshctl(&["uninstall", "-y", "--force", "--purge-crds"]);
        let _ = AssertUnwindSafe(uninstall).catch_unwind().await;
        let _ = AssertUnwindSafe(self.forget(MESH)).catch_unwind().await;
    }

    pub(super) async fn meshctl(&self, args: &[&str]) -> Ran {
        let mut command = tokio::process::Command::new(programs::meshctl());
        command.args(args).arg("--kubeconfig").arg(&self.kubeconfig);
        command.env_remove("KUBECONFIG").stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE * 2, command.output()).await;
        let output = output.unwrap_or_else(|_| panic!("meshctl {args:?} does not end")).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    async fn json(&self, args: &[&str]) -> Value {
        let ran = self.meshctl(&[args, &["-o", "json"]].concat()).await.succeeded();
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stdout))
    }

    /// `kind/name` of all that is of no namespace and that a mesh could leave behind.
    async fn wide_objects(&self) -> BTreeSet<String> {
        let mut objects = BTreeSet::new();
        let discovery = Discovery::new(self.client.clone()).run().await.unwrap();
        for (group, kind) in [
            ("", "Namespace"),
            ("apiextensions.k8s.io", "CustomResourceDefinition"),
            ("rbac.authorization.k8s.io", "ClusterRole"),
            ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
            ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
        ] {
            let resources = discovery.get(group).unwrap().recommended_kind(kind).unwrap();
            let api = Api::<DynamicObject>::all_with(self.client.clone(), &resources.0);
            let list = api.list(&ListParams::default()).await.unwrap();
            let names = list.items.into_iter().filter_map(|object| object.metadata.name);
            // What other tests had may be on its way out for a while.
            let names = names.filter(|name| !name.starts_with("mesh-test-"));
            objects.extend(names.map(|name| format!("{kind}/{name}")));
        }
        objects
    }

    /// Applies the demo's manifests, but for kinds that the cluster does not have.
    async fn demo(&self) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/demo");
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        let discovery = Discovery::new(self.client.clone()).run().await.unwrap();
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let text = text.replace("ghcr.io/meshctl", &self.images);
            for document in yaml::documents(&text) {
                self.apply(&discovery, document.unwrap().root.to_json()).await;
            }
        }
    }

    async fn apply(&self, discovery: &Discovery, object: Value) {
        let version = object["apiVersion"].as_str().unwrap();
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let kind = object["kind"].as_str().unwrap();
        let found = discovery.get(group).and_then(|group| {
            group.versioned_resources(version).into_iter().find(|(of, _)| of.kind == kind)
        });
        let Some((resource, _)) = found else {
            return programs::skipped("cluster::walk", &format!("the cluster has no {kind}"));
        };
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let api = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::<DynamicObject>::all_with(self.client.clone(), &resource),
        };
        let by = PatchParams::apply("mesh-test").force();
        api.patch(&name, &by, &Patch::Apply(&object)).await.unwrap();
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), SHOP)
    }

    async fn everything_is_meshed(&self) {
        wait::until_within("the demo to be ready", PATIENCE, async || {
            let pods = self.pods().list(&ListParams::default()).await.ok()?.items;
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            (ready == pods.len() && ready >= DEPLOYMENTS).then_some(())
        })
        .await;
        self.meshctl(&["check", "--proxy", "-n", SHOP]).await.succeeded();
        let stat = self.json(&["stat", "deploy", "-n", SHOP]).await;
        let rows = stat["rows"].as_array().unwrap();
        assert_eq!(rows.len(), DEPLOYMENTS, "{rows:?}");
        for row in rows {
            assert_eq!(row["meshed_pods"], row["running_pods"], "{row}");
        }
    }

    async fn people_see_what_happens(&self) {
        let stat = ["stat", "deploy/web", "-n", SHOP];
        wait::until_within("figures of web", PATIENCE, async || {
            let row = self.json(&stat).await["rows"][0].clone();
            (row["rps"].as_f64()? > 1.0 && row["success"].as_f64()? > 0.9).then_some(())
        })
        .await;
        let tapped =
            self.meshctl(&["tap", "deploy/web", "-n", SHOP, "--count", "5", "--duration", "60s"]);
        let tapped = tapped.await.succeeded();
        assert!(tapped.stdout.lines().count() >= 5, "{}", tapped.stdout);
        self.secured("portal", "finance").await;
        // It is not let in, and everybody can see it.
        let told =
            self.json(&["stat", "deploy/finance", "-n", SHOP, "--from", "deploy/curious"]).await;
        assert_eq!(told["rows"][0]["success"], json!(0.0), "{told}");
    }

    async fn a_report_has_it_all(&self) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.tar.gz");
        let ran = self.meshctl(&["bug-report", "--file", path.to_str().unwrap()]).await.succeeded();
        let archive = fs::File::open(&path).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
        let mut text = String::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            text += &format!("== {}\n", entry.path().unwrap().display());
            std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
        }
        for wanted in
            ["objects/pods.json", "logs/mesh-system.mesh-control", "logs/shop.", "routes.json"]
        {
            assert!(text.contains(wanted), "{wanted}: {ran:?}");
        }
        assert!(!text.contains("PRIVATE KEY-----") && !text.contains("eyJhbGci"), "a secret");
    }

    async fn secured(&self, client: &str, server: &str) {
        wait::until_within(&format!("{client} to call {server}, secured"), PATIENCE, async || {
            let edges = self.json(&["edges", "deploy", "-n", SHOP]).await;
            let is = |edge: &&Value| {
                edge["source"]["name"] == client && edge["destination"]["name"] == server
            };
            let edge = edges["edges"].as_array()?.iter().find(is)?;
            (edge["secured"] == true).then_some(())
        })
        .await;
    }

    async fn a_policy_decides_while_it_is_there(&self) {
        let discovery = Discovery::new(self.client.clone()).run().await.unwrap();
        let policy = json!({
            "apiVersion": "policy.meshctl.dev/v1alpha1",
            "kind": "AuthorizationPolicy",
            "metadata": { "name": "nobody", "namespace": SHOP },
            "spec": {
                "targetRef": { "kind": "Deployment", "name": "finance" },
                "action": "Deny",
            },
        });
        let server = "svc/finance:8080";
        let request = ["--method", "GET", "--path", "/reports/1"];
        let can = [&["authz", "can", "deploy/portal", server, "-n", SHOP][..], &request].concat();
        self.meshctl(&can).await.succeeded();
        self.apply(&discovery, policy.clone()).await;
        wait::until_within("the denial", PATIENCE, async || {
            (self.meshctl(&can).await.code == 1).then_some(())
        })
        .await;
        let group = discovery.get("policy.meshctl.dev").unwrap();
        let (resource, _) = group.recommended_kind("AuthorizationPolicy").unwrap();
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), SHOP, &resource);
        api.delete("nobody", &DeleteParams::default()).await.unwrap();
        wait::until_within("the permission", PATIENCE, async || {
            (self.meshctl(&can).await.code == 0).then_some(())
        })
        .await;
    }

    /// Replaces every pod of a Deployment under the demo's load.
    async fn nobody_notices_a_rollout(&self, name: &str) {
        let deployments =
            Api::<k8s_openapi::api::apps::v1::Deployment>::namespaced(self.client.clone(), SHOP);
        let labels = ListParams::default().labels(&format!("app={name}"));
        let names = async || {
            let pods = self.pods().list(&labels).await.unwrap().items;
            pods.into_iter().filter_map(|pod| pod.metadata.name).collect::<BTreeSet<_>>()
        };
        let former = names().await;
        assert!(!former.is_empty(), "{name} has no pods");
        deployments.restart(name).await.unwrap();
        wait::until_within("the new pods", PATIENCE, async || {
            let pods = self.pods().list(&labels).await.ok()?.items;
            let new = |pod: &Pod| pod.metadata.name.as_ref().is_some_and(|n| !former.contains(n));
            (!pods.is_empty() && pods.iter().all(|pod| new(pod) && is_ready(pod))).then_some(())
        })
        .await;
        let view = ["stat", &format!("deploy/{name}"), "--from", "deploy/portal", "-n", SHOP];
        let told = self.json(&view).await;
        assert_eq!(told["rows"][0]["success"], json!(1.0), "{told}");
    }

    async fn forget(&self, namespace: &str) {
        let api = Api::<Namespace>::all(self.client.clone());
        // It may be gone already.
        let _ = api.delete(namespace, &DeleteParams::background()).await;
        wait::until_within(&format!("{namespace} to be gone"), PATIENCE, async || {
            api.get_opt(namespace).await.ok()?.is_none().then_some(())
        })
        .await;
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = |all: &Vec<_>| {
        all.iter().any(|c: &k8s_openapi::api::core::v1::PodCondition| {
            c.type_ == "Ready" && c.status == "True"
        })
    };
    conditions.is_some_and(ready)
}
