//! What `meshctl check` says of an installation whose parts are broken, one after the other. Each is mended again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::Kubeconfig;
use kube::core::{ApiResource, GroupVersionKind};
use mesh_integration::wait;
use serde_json::{Value, json};

use super::walk::{Cluster, MESH, PATIENCE};

/// The control plane's Deployment, and the roles' binding.
const CONTROL: &str = "mesh-control";
const ISSUER: &str = "mesh-identity-issuer";

impl Cluster {
    pub(super) async fn every_broken_part_is_told(&self) {
        self.an_unreachable_api_server_is_one_line().await;
        self.an_old_definition_is_told().await;
        self.lost_rights_are_told_and_a_webhook_nobody_mends().await;
        self.an_expired_issuer_is_told().await;
        self.pods_without_a_node_are_told().await;
        self.meshctl(&["check"]).await.succeeded();
    }

    /// Waits until a check has failed, and its remedy is this.
    async fn fails(&self, id: &str, remedy: &str) {
        wait::until_within(&format!("{id} to fail"), PATIENCE, async || {
            let ran = self.meshctl(&["check", "-o", "json"]).await;
            let told: Value = serde_json::from_str(&ran.stdout).ok()?;
            let found = told["checks"].as_array()?.iter().find(|check| check["id"] == id)?;
            let is_told = found["status"] == found["severity"]
                && found["remedy"].as_str()?.contains(remedy)
                && ran.code != 0;
            is_told.then_some(())
        })
        .await;
    }

    fn dynamic(&self, group: &str, kind: &str) -> Api<DynamicObject> {
        let gvk = GroupVersionKind::gvk(group, "v1", kind);
        Api::all_with(self.client.clone(), &ApiResource::from_gvk(&gvk))
    }

    async fn upgraded(&self) {
        // What was broken here was not broken by a meshctl.
        self.meshctl(&["upgrade", "-y", "--force-conflicts"]).await.succeeded();
    }

    async fn an_unreachable_api_server_is_one_line(&self) {
        let mut config = Kubeconfig::read_from(&self.kubeconfig).unwrap();
        for named in &mut config.clusters {
            named.cluster.as_mut().unwrap().server = Some("https://127.0.0.1:9".into());
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        // JSON is YAML.
        std::fs::write(&path, serde_json::to_string(&config).unwrap()).unwrap();
        let nobody = Self { kubeconfig: path, ..self.clone() };
        let commands = [
            &["stat", "deploy"][..],
            &["check"],
            &["tap", "deploy/web"],
            &["edges", "deploy"],
            &["install", "-y"],
            &["uninstall", "-y"],
            &["bug-report"],
        ];
        for command in commands {
            let began = Instant::now();
            let ran = nobody.meshctl(command).await;
            assert!(began.elapsed() < Duration::from_secs(5), "{command:?}");
            assert_eq!(ran.code, 3, "{command:?}: {} {}", ran.stdout, ran.stderr);
            // A check says so among its checks.
            if command != ["check"] {
                let errors = ran.stderr.lines().filter(|line| line.starts_with("error: "));
                assert_eq!(errors.count(), 1, "{command:?}: {}", ran.stderr);
            }
        }
    }

    async fn an_old_definition_is_told(&self) {
        let api = self.dynamic("apiextensions.k8s.io", "CustomResourceDefinition");
        let name = "serverpolicies.policy.meshctl.dev";
        let mut older = api.get(name).await.unwrap();
        let schema = &mut older.data["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let spec = schema["properties"]["spec"].as_object_mut().unwrap();
        // Which name the field, too.
        spec.remove("x-kubernetes-validations").unwrap();
        spec["properties"].as_object_mut().unwrap().remove("faults").unwrap();
        api.replace(name, &PostParams::default(), &older).await.unwrap();
        self.fails("crds", "meshctl upgrade").await;
        self.upgraded().await;
    }

    async fn lost_rights_are_told_and_a_webhook_nobody_mends(&self) {
        let bindings = Api::<ClusterRoleBinding>::all(self.client.clone());
        let all = bindings.list(&ListParams::default()).await.unwrap().items;
        let of_control = |binding: &ClusterRoleBinding| {
            let mut subjects = binding.subjects.iter().flatten();
            subjects.any(|s| s.name == CONTROL && s.namespace.as_deref() == Some(MESH))
        };
        let names: BTreeSet<_> =
            all.into_iter().filter(of_control).filter_map(|b| b.metadata.name).collect();
        assert!(!names.is_empty());
        for name in &names {
            bindings.delete(name, &DeleteParams::default()).await.unwrap();
        }
        self.fails("control-plane-rights", "meshctl upgrade").await;
        // Without rights nobody mends the webhook, either: the API server trusts another now.
        let other = rcgen::generate_simple_self_signed(vec!["other".to_owned()]).unwrap();
        let api = self.dynamic("admissionregistration.k8s.io", "MutatingWebhookConfiguration");
        let mut hook = api.get("mesh-injector").await.unwrap();
        let bundle = k8s_openapi::ByteString(other.cert.pem().into_bytes());
        for hook in hook.data["webhooks"].as_array_mut().unwrap() {
            hook["clientConfig"]["caBundle"] = json!(bundle);
        }
        api.replace("mesh-injector", &PostParams::default(), &hook).await.unwrap();
        self.fails("webhook-certificate", "kubectl -n mesh-system logs deploy/mesh-control").await;
        self.fails("webhook-injects", "webhook-certificate").await;
        self.upgraded().await;
        wait::until_within("the webhook to be mended", PATIENCE, async || {
            (self.meshctl(&["check"]).await.code == 0).then_some(())
        })
        .await;
    }

    async fn an_expired_issuer_is_told(&self) {
        let secrets = Api::<Secret>::namespaced(self.client.clone(), MESH);
        let good = secrets.get(ISSUER).await.unwrap();
        let day = Duration::from_secs(86_400);
        let expired = mesh_tls::Root::generate("test", day, Duration::ZERO).unwrap();
        let mut data = good.data.clone().unwrap();
        for (key, value) in &mut data {
            let text = match key.as_str() {
                "ca.crt" => &expired.root,
                "tls.crt" => &expired.issuer,
                "tls.key" => &expired.issuer_key,
                _ => continue,
            };
            value.0 = text.clone().into_bytes();
        }
        let patch = Patch::Merge(json!({ "data": data }));
        secrets.patch(ISSUER, &PatchParams::default(), &patch).await.unwrap();
        self.fails("identity-issuer", "meshctl identity rotate").await;
        let patch = Patch::Merge(json!({ "data": good.data }));
        secrets.patch(ISSUER, &PatchParams::default(), &patch).await.unwrap();
    }

    async fn pods_without_a_node_are_told(&self) {
        let deployments = Api::<Deployment>::namespaced(self.client.clone(), MESH);
        let nowhere = json!({ "meshctl.dev/test": "nowhere" });
        let patch = |selector: Value| {
            Patch::Merge(
                json!({ "spec": { "template": { "spec": { "nodeSelector": selector } } } }),
            )
        };
        let by = PatchParams::default();
        deployments.patch(CONTROL, &by, &patch(nowhere)).await.unwrap();
        self.fails("control-plane-scheduled", "nodeSelector").await;
        deployments.patch(CONTROL, &by, &patch(json!({ "meshctl.dev/test": null }))).await.unwrap();
        wait::until_within("the control plane to be back", PATIENCE, async || {
            (self.meshctl(&["check"]).await.code == 0).then_some(())
        })
        .await;
    }
}
