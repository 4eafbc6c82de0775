//! Namespaces of a test, what is in them, and the control plane with its rights.

use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Client, Config};
use mesh_api::client::ControlClient;
use mesh_api::ext::mesh_client::MeshClient;
use mesh_integration::process::Process;
use mesh_integration::{programs, wait};
use mesh_tls::Root;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

const DAY: Duration = Duration::from_secs(86_400);

/// Two namespaces of a cluster.
pub(super) struct World {
    client: Client,
    kubeconfig: Kubeconfig,
    /// Where the control plane is said to be.
    control: String,
    pub(super) apps: String,
    folder: tempfile::TempDir,
    /// Definitions that were not there before.
    made: parking_lot::Mutex<Vec<String>>,
}

pub(super) struct ControlPlane {
    pub(super) process: Process,
    channel: Channel,
    apps: String,
    /// PEM.
    pub(super) roots: String,
}

impl ControlPlane {
    /// As proxies ask it.
    pub(super) fn client(&self) -> ControlClient {
        ControlClient::new(self.channel.clone(), super::workload(&self.apps))
    }

    /// As meshctl asks it.
    pub(super) fn people(&self) -> MeshClient<Channel> {
        MeshClient::new(self.channel.clone())
    }
}

/// Waits until no other test has the cluster, and has it until this is dropped: each sees all of it.
pub(super) async fn turn() -> File {
    let path = std::env::temp_dir().join("mesh-test-cluster.lock");
    let file = File::create(path).unwrap();
    let lock = move || {
        file.lock().unwrap();
        file
    };
    tokio::task::spawn_blocking(lock).await.unwrap()
}

impl World {
    /// Runs a test in namespaces of its own, and takes them away whatever its end; or says why not.
    pub(super) async fn run(test: &str, body: impl AsyncFnOnce(&Self)) {
        let Some(path) = std::env::var_os("MESH_TEST_KUBECONFIG") else {
            return programs::skipped(test, "MESH_TEST_KUBECONFIG names no cluster");
        };
        let _turn = turn().await;
        let world = Self::new(path.into()).await;
        let result = AssertUnwindSafe(body(&world)).catch_unwind().await;
        world.clean().await;
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }

    async fn new(path: PathBuf) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let of = |part: &str| format!("mesh-test-{part}-{}-{number}", std::process::id());
        let kubeconfig = Kubeconfig::read_from(path).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig.clone(), &options).await.unwrap();
        let world = Self {
            client: config.try_into().unwrap(),
            kubeconfig,
            control: of("mesh"),
            apps: of("apps"),
            folder: tempfile::tempdir().unwrap(),
            made: parking_lot::Mutex::default(),
        };
        for name in [&world.control, &world.apps] {
            world
                .apply("v1", "Namespace", "", json!({ "metadata": { "name": name } }))
                .await
                .unwrap();
        }
        world
    }

    async fn clean(self) {
        let by = DeleteParams::background();
        // Where nobody empties namespaces, what is wrong in them would be wrong for ever.
        let policies = self.api("policy.meshctl.dev/v1alpha1", "AuthorizationPolicy", &self.apps);
        let _ = policies.delete_collection(&by, &ListParams::default()).await;
        for name in [&self.control, &self.apps] {
            let _ = Api::<Namespace>::all(self.client.clone()).delete(name, &by).await;
        }
        self.end_pods().await;
        let _ = self.api("v1", "Node", "").delete(&self.control, &by).await;
        for kind in ["ClusterRole", "ClusterRoleBinding"] {
            let api = self.api("rbac.authorization.k8s.io/v1", kind, "");
            let _ = api.delete(&self.control, &by).await;
        }
        let made = self.made.lock().clone();
        for name in made {
            let api = self.api("apiextensions.k8s.io/v1", "CustomResourceDefinition", "");
            let _ = api.delete(&name, &by).await;
        }
    }

    fn api(&self, version: &str, kind: &str, namespace: &str) -> Api<DynamicObject> {
        let (group, number) = version.split_once('/').unwrap_or(("", version));
        let of = GroupVersionKind::gvk(group, number, kind);
        let resource = match kind {
            "AuthorizationPolicy" => {
                ApiResource::from_gvk_with_plural(&of, "authorizationpolicies")
            }
            _ => ApiResource::from_gvk(&of),
        };
        match namespace {
            "" => Api::all_with(self.client.clone(), &resource),
            _ => Api::namespaced_with(self.client.clone(), namespace, &resource),
        }
    }

    async fn apply(
        &self,
        version: &str,
        kind: &str,
        namespace: &str,
        mut object: Value,
    ) -> Result<(), String> {
        object["apiVersion"] = json!(version);
        object["kind"] = json!(kind);
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let by = PatchParams::apply("mesh-test").force();
        let by =
            PatchParams { field_validation: Some(kube::api::ValidationDirective::Strict), ..by };
        let result =
            self.api(version, kind, namespace).patch(&name, &by, &Patch::Apply(&object)).await;
        result.map(drop).map_err(|error| error.to_string())
    }

    /// The identity of a service account of the applications' namespace.
    pub(super) fn id(&self, account: &str) -> String {
        format!("{account}.{}.serviceaccount.identity.{}.cluster.local", self.apps, self.control)
    }

    /// Starts the control plane under a service account that has the rights it says it needs.
    pub(super) async fn control_plane(&self) -> ControlPlane {
        self.rights().await;
        let identity = self.folder.path().join("identity");
        std::fs::create_dir_all(&identity).unwrap();
        let root = Root::generate("mesh", DAY, DAY).unwrap();
        for (name, text) in
            [("ca.crt", &root.root), ("tls.crt", &root.issuer), ("tls.key", &root.issuer_key)]
        {
            std::fs::write(identity.join(name), text).unwrap();
        }
        let account = Api::<ServiceAccount>::namespaced(self.client.clone(), &self.control);
        let token = token(&account, "mesh-control", &[]).await;
        let mut kubeconfig = serde_json::to_value(&self.kubeconfig).unwrap();
        for user in kubeconfig["users"].as_array_mut().unwrap() {
            user["user"] = json!({ "token": token });
        }
        let path = self.folder.path().join("kubeconfig");
        std::fs::write(&path, kubeconfig.to_string()).unwrap();

        let socket = self.folder.path().join("control.sock");
        let mut command = Command::new(programs::mesh_control());
        command.env("KUBECONFIG", &path).args(["--source", "kube", "--pod-name", "replica-1"]);
        command.args(["--log", "info,mesh_control=debug", "--control-namespace", &self.control]);
        command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        command.arg("--socket").arg(&socket).arg("--identity-dir").arg(&identity);
        let mut process = Process::start("control", command, self.folder.path());
        let channel = wait::until("the control plane's socket", async || {
            process.assert_sound();
            let socket = socket.clone();
            let connector = tower::service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            });
            Endpoint::from_static("http://control.mesh")
                .connect_with_connector(connector)
                .await
                .ok()
        })
        .await;
        let control =
            ControlPlane { process, channel, apps: self.apps.clone(), roots: root.root.clone() };
        // Completes when everything was listed.
        let mut people = control.people();
        let refreshed = people.refresh(mesh_api::ext::RefreshRequest {});
        wait::within("the control plane to know all", refreshed).await.unwrap();
        let info = people.info(mesh_api::ext::InfoRequest {}).await.unwrap().into_inner();
        assert_eq!(info.source, "kube");
        let unwatched: Vec<_> =
            info.problems.iter().filter(|p| p.message.contains("cannot be watched")).collect();
        assert!(unwatched.is_empty(), "{unwatched:?}");
        control
    }

    /// As the head of `mesh_control::source::kube` lists them.
    async fn rights(&self) {
        let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({ "apiGroups": [group], "resources": resources, "verbs": verbs });
        let named = |group: &str, resource: &str, name: &str, verbs: &[&str]| json!({ "apiGroups": [group], "resources": [resource], "resourceNames": [name], "verbs": verbs });
        let read = ["list", "watch"];
        let policies =
            ["authorizationpolicies", "backendtrafficpolicies", "egresspolicies", "serverpolicies"];
        let statuses = policies.map(|of| format!("{of}/status"));
        let statuses: Vec<&str> = statuses.iter().map(String::as_str).collect();
        let routes = ["httproutes", "grpcroutes", "tcproutes", "tlsroutes"];
        let route_statuses = routes.map(|of| format!("{of}/status"));
        let route_statuses: Vec<&str> = route_statuses.iter().map(String::as_str).collect();
        let everywhere = json!([
            rule("", &["namespaces", "services", "pods"], &read),
            rule("discovery.k8s.io", &["endpointslices"], &read),
            rule("apps", &["deployments", "statefulsets", "daemonsets", "replicasets"], &read),
            rule("batch", &["jobs", "cronjobs"], &read),
            rule("gateway.networking.k8s.io", &["referencegrants"], &read),
            rule("gateway.networking.k8s.io", &routes, &read),
            rule("gateway.networking.k8s.io", &route_statuses, &["patch"]),
            rule("policy.meshctl.dev", &policies, &read),
            rule("policy.meshctl.dev", &statuses, &["patch"]),
            rule("authentication.k8s.io", &["tokenreviews"], &["create"]),
        ]);
        let here = json!([
            rule("coordination.k8s.io", &["leases"], &["create"]),
            named("coordination.k8s.io", "leases", "mesh-control", &["get", "update"]),
            rule("", &["configmaps"], &["create"]),
            named("", "configmaps", "mesh-trust-roots", &["get", "patch"]),
        ]);
        let name = &self.control;
        let account =
            json!([{ "kind": "ServiceAccount", "name": "mesh-control", "namespace": name }]);
        let rbac = "rbac.authorization.k8s.io/v1";
        let binding = |kind: &str| {
            json!({
                "metadata": { "name": name },
                "subjects": account,
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name },
            })
        };
        let of = |rules: &Value| json!({ "metadata": { "name": name }, "rules": rules });
        self.apply("v1", "ServiceAccount", name, json!({ "metadata": { "name": "mesh-control" } }))
            .await
            .unwrap();
        self.apply(rbac, "ClusterRole", "", of(&everywhere)).await.unwrap();
        self.apply(rbac, "ClusterRoleBinding", "", binding("ClusterRole")).await.unwrap();
        self.apply(rbac, "Role", name, of(&here)).await.unwrap();
        self.apply(rbac, "RoleBinding", name, binding("Role")).await.unwrap();
    }

    /// A Deployment whose pod is said to run at an address, and a Service in front of it.
    pub(super) async fn workload(&self, name: &str, ip: &str) {
        self.service_account(name).await;
        // Endpoints are those of pods on nodes that exist. Nothing else is to be put on this one.
        let node = json!({
            "metadata": { "name": self.control, "labels": { "topology.kubernetes.io/zone": "zone-a" } },
            "spec": {
                "unschedulable": true,
                "taints": [{ "key": "test", "value": "none", "effect": "NoExecute" }],
            },
        });
        self.apply("v1", "Node", "", node).await.unwrap();
        let labels = json!({ "app": name });
        let deployment = json!({
            "metadata": { "name": name },
            "spec": {
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": {
                        "labels": labels,
                        "annotations": { "meshctl.dev/proxy-version": "0.1.0" },
                    },
                    "spec": {
                        "serviceAccountName": name,
                        // Nobody is there to run it.
                        "nodeName": self.control,
                        "tolerations": [{ "operator": "Exists" }],
                        "containers": [{
                            "name": "app", "image": "app",
                            "ports": [{ "name": "http", "containerPort": 8080 }],
                        }],
                    },
                },
            },
        });
        self.apply("apps/v1", "Deployment", &self.apps, deployment).await.unwrap();
        let spec = json!({ "selector": labels, "ports": [{ "port": 80, "targetPort": "http" }] });
        self.apply_service(name, spec).await;
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.apps);
        let of = ListParams::default().labels(&format!("app={name}"));
        let pod = wait::until("a pod of the Deployment", async || {
            pods.list(&of).await.unwrap().items.pop()?.metadata.name
        })
        .await;
        let status = json!({ "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        } });
        pods.patch_status(&pod, &PatchParams::default(), &Patch::Strategic(status)).await.unwrap();
    }

    pub(super) async fn delete_workload(&self, name: &str) {
        let api = self.api("apps/v1", "Deployment", &self.apps);
        api.delete(name, &DeleteParams::background()).await.unwrap();
    }

    /// As if their node had ended them.
    pub(super) async fn end_pods(&self) {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.apps);
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        // It is only cleaning up when there are none.
        let _ = pods.delete_collection(&now, &ListParams::default()).await;
    }

    pub(super) async fn service_account(&self, name: &str) {
        let account = json!({ "metadata": { "name": name } });
        self.apply("v1", "ServiceAccount", &self.apps, account).await.unwrap();
    }

    pub(super) async fn token(&self, account: &str, audience: &str) -> String {
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), &self.apps);
        token(&api, account, &[audience]).await
    }

    pub(super) async fn apply_service(&self, name: &str, spec: Value) {
        let service = json!({ "metadata": { "name": name }, "spec": spec });
        self.apply("v1", "Service", &self.apps, service).await.unwrap();
    }

    pub(super) async fn delete_service(&self, name: &str) {
        let api = self.api("v1", "Service", &self.apps);
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }

    pub(super) async fn apply_slice(&self, name: &str, of: &str, port: (&str, u16), ip: &str) {
        let slice = json!({
            "metadata": { "name": name, "labels": { "kubernetes.io/service-name": of } },
            "addressType": "IPv4",
            "ports": [{ "name": port.0, "port": port.1 }],
            "endpoints": [{ "addresses": [ip], "conditions": { "ready": true } }],
        });
        self.apply("discovery.k8s.io/v1", "EndpointSlice", &self.apps, slice).await.unwrap();
    }

    /// An AuthorizationPolicy, or what the API server has against it.
    pub(super) async fn policy(&self, name: &str, spec: Value) -> Result<(), String> {
        let policy = json!({ "metadata": { "name": name }, "spec": spec });
        self.apply("policy.meshctl.dev/v1alpha1", "AuthorizationPolicy", &self.apps, policy).await
    }

    /// `Accepted=True ResolvedRefs=True`
    pub(super) async fn conditions(&self, kind: &str, name: &str) -> Option<String> {
        let api = self.api("policy.meshctl.dev/v1alpha1", kind, &self.apps);
        let object = api.get(name).await.ok()?;
        let conditions = object.data["status"]["conditions"].as_array()?.clone();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let each =
            conditions.iter().map(|c| format!("{}={}", text(&c["type"]), text(&c["status"])));
        Some(each.collect::<Vec<_>>().join(" "))
    }

    /// Makes the cluster understand our kinds.
    pub(super) async fn definitions(&self) {
        for crd in mesh_control::source::policy::crds() {
            self.define(serde_json::to_value(crd).unwrap()).await;
        }
    }

    /// Makes the cluster understand HTTPRoutes, as far as this test needs it, if it does not.
    pub(super) async fn route_definition(&self) {
        let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        self.define(json!({
            "metadata": {
                "name": "httproutes.gateway.networking.k8s.io",
                "annotations": { "api-approved.kubernetes.io": "unapproved, for a test" },
            },
            "spec": {
                "group": "gateway.networking.k8s.io", "scope": "Namespaced",
                "names": { "kind": "HTTPRoute", "plural": "httproutes" },
                "versions": [{
                    "name": "v1", "served": true, "storage": true,
                    "schema": { "openAPIV3Schema": schema }, "subresources": { "status": {} },
                }],
            },
        }))
        .await;
    }

    async fn define(&self, crd: Value) {
        let version = "apiextensions.k8s.io/v1";
        let api = self.api(version, "CustomResourceDefinition", "");
        let name = crd["metadata"]["name"].as_str().unwrap().to_owned();
        if api.get_opt(&name).await.unwrap().is_none() {
            self.made.lock().push(name.clone());
            self.apply(version, "CustomResourceDefinition", "", crd).await.unwrap();
        }
        wait::until("the definition to be established", async || {
            let crd = api.get(&name).await.ok()?;
            let conditions = crd.data["status"]["conditions"].as_array()?;
            let established = |c: &Value| c["type"] == "Established" && c["status"] == "True";
            conditions.iter().any(established).then_some(())
        })
        .await;
    }

    pub(super) fn routes(&self) -> Api<DynamicObject> {
        self.api("gateway.networking.k8s.io/v1", "HTTPRoute", &self.apps)
    }

    /// Of the Lease, if somebody holds it.
    pub(super) async fn holder(&self) -> Option<String> {
        let api = self.api("coordination.k8s.io/v1", "Lease", &self.control);
        let lease = api.get("mesh-control").await.ok()?;
        lease.data["spec"]["holderIdentity"].as_str().map(str::to_owned)
    }

    /// Those that the control plane published.
    pub(super) async fn roots(&self) -> Option<String> {
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), &self.control);
        api.get("mesh-trust-roots").await.ok()?.data?.remove("roots.pem")
    }
}

async fn token(api: &Api<ServiceAccount>, account: &str, audiences: &[&str]) -> String {
    let request = json!({ "spec": { "audiences": audiences } });
    let request = serde_json::from_value(request).unwrap();
    let granted = api.create_token_request(account, &Default::default(), &request).await.unwrap();
    granted.status.unwrap().token.unwrap()
}
