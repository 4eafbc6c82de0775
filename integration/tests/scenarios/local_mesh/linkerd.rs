//! A linkerd2-proxy in our mesh, where `L5D_PROXY_BIN` names one: told what to do and certified by our control plane
//! over the network, as in a cluster, beside our own proxies. Both mean the same thing by the API they share, and by
//! what they say to each other.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use mesh_integration::local_mesh::{LocalMesh, objects};
use mesh_integration::{programs, wait};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::transparent::{Namespace, lacking};

/// Stands in for our proxy in pods whose names begin with `theirs`; others get ours.
const STAND_IN: &str = r#"#!/bin/sh
set -e
case "$MESH_PROXY_POD_NAME" in
theirs*) ;;
*) exec OURS "$@" ;;
esac
dir=$(mktemp -d FOLDER/identity.XXXXXX)
name=$MESH_PROXY_IDENTITY_NAME
ip=${MESH_PROXY_ADMIN_ADDR%:*}
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj / -addext "subjectAltName=DNS:$name" \
    -keyout "$dir/key.pem" -outform DER -out "$dir/csr.der" 2>"$dir/said"
openssl pkcs8 -topk8 -nocrypt -in "$dir/key.pem" -outform DER -out "$dir/key.p8"
control=mesh-control.mesh-system.${name#*.*.}
workload="{\"ns\":\"$MESH_PROXY_POD_NAMESPACE\",\"pod\":\"$MESH_PROXY_POD_NAME\"}"
for service in DESTINATION POLICY IDENTITY; do
    export "LINKERD2_PROXY_${service}_SVC_ADDR=$MESH_PROXY_CONTROL_ADDR"
    export "LINKERD2_PROXY_${service}_SVC_NAME=$control"
done
export LINKERD2_PROXY_POLICY_WORKLOAD="$workload" LINKERD2_PROXY_DESTINATION_CONTEXT="$workload"
export LINKERD2_PROXY_DESTINATION_PROFILE_NETWORKS=0.0.0.0/0 LINKERD2_PROXY_POLICY_CLUSTER_NETWORKS=0.0.0.0/0
export LINKERD2_PROXY_IDENTITY_DIR="$dir" LINKERD2_PROXY_IDENTITY_LOCAL_NAME="$name"
export LINKERD2_PROXY_IDENTITY_TOKEN_FILE="$MESH_PROXY_IDENTITY_TOKEN_FILE"
LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS=$(cat "$MESH_PROXY_IDENTITY_TRUST_BUNDLE_FILE")
export LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS
export LINKERD2_PROXY_INBOUND_IPS="$ip" LINKERD2_PROXY_INBOUND_PORTS=8080,7100
export LINKERD2_PROXY_INBOUND_DEFAULT_POLICY=all-unauthenticated
export LINKERD2_PROXY_OUTBOUND_LISTEN_ADDR=127.0.0.1:4140 LINKERD2_PROXY_INBOUND_LISTEN_ADDR=0.0.0.0:4143
export LINKERD2_PROXY_CONTROL_LISTEN_ADDR=0.0.0.0:4190 LINKERD2_PROXY_ADMIN_LISTEN_ADDR=0.0.0.0:4191
export LINKERD2_PROXY_LOG=linkerd=info,warn LINKERD2_PROXY_CORES=1
exec THEIRS
"#;

/// A mesh of `ours` and `theirs`, each a pod and a service of HTTP and of a protocol in which the server speaks first.
struct Scene {
    mesh: LocalMesh,
    ours: Namespace,
    theirs: Namespace,
    _folder: TempDir,
}

impl Scene {
    /// `None` where there is nothing to test with.
    async fn start(test: &str, objects: impl FnOnce(&LocalMesh) -> Vec<Value>) -> Option<Self> {
        let Some(binary) = std::env::var_os("L5D_PROXY_BIN") else {
            programs::skipped(test, "L5D_PROXY_BIN does not name a linkerd2-proxy");
            return None;
        };
        if let Some(why) = lacking(&["ip", "curl", "python3", "openssl"]).await {
            programs::skipped(test, &why);
            return None;
        }
        // Proxies are of another user, who cannot enter the mesh's own folder.
        let folder = tempfile::tempdir().unwrap();
        let stand_in = folder.path().join("proxy");
        let script = STAND_IN
            .replace("OURS", &programs::mesh_proxy().display().to_string())
            .replace("THEIRS", &binary.to_string_lossy())
            .replace("FOLDER", &folder.path().display().to_string());
        fs::write(&stand_in, script).unwrap();
        for path in [folder.path(), &stand_in] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let mesh = LocalMesh::default()
            .with_env("MESH_PROXY_BIN", &stand_in)
            .with_env("MESH_CONTROL_CERTIFICATE_LIFETIME", "14s");
        let file = mesh.file("mesh.yaml", &objects(&mesh));
        let up = ["local", "up", "--transparent", "-f", &file.display().to_string()];
        mesh.meshctl(&up).await.succeeded();
        let (ours, theirs) =
            (Namespace::of(&mesh, "ours").await, Namespace::of(&mesh, "theirs").await);
        Some(Self { mesh, ours, theirs, _folder: folder })
    }

    /// Of each pod, with the name of the other.
    fn ways(&self) -> [(&Namespace, &'static str, &'static str); 2] {
        [(&self.ours, "ours", "theirs"), (&self.theirs, "theirs", "ours")]
    }
}

/// A pod with an account of its own name; its service, whose protocol is to be found out.
fn pod(mesh: &LocalMesh, name: &str) -> Vec<Value> {
    let mut app = objects::app(name, 1, &mesh.scratch());
    app["spec"]["template"]["spec"]["serviceAccountName"] = name.into();
    let mut service = objects::service(name);
    service["spec"]["ports"] = json!([{ "port": objects::PORT }]);
    vec![app, service]
}

/// A pod of the sample application's ledger, behind an opaque port.
fn ledger(name: &str) -> Vec<Value> {
    let mut ledger = objects::deployment(name, 1, &["mesh-demo", "ledger", "--port", "7100"]);
    let template = &mut ledger["spec"]["template"];
    template["spec"]["serviceAccountName"] = name.into();
    template["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 7100 }]);
    template["metadata"]["annotations"]["config.meshctl.dev/opaque-ports"] = "7100".into();
    let mut service = objects::service(name);
    service["spec"]["ports"] = json!([{ "port": 7100 }]);
    service["metadata"]["annotations"] = json!({ "config.meshctl.dev/opaque-ports": "7100" });
    vec![ledger, service]
}

fn id(account: &str) -> String {
    format!("{account}.test.serviceaccount.identity.mesh-system.cluster.local")
}

async fn metrics(pod: &Namespace) -> String {
    let url = format!("http://{}:4191/metrics", pod.ip);
    pod.run(&["curl", "-sS", "--max-time", "20", &url]).await.succeeded().stdout
}

/// A pod's figures have such a line, above zero.
async fn counts(pod: &Namespace, name: &str, labels: &[&str]) {
    wait::until(&format!("{name} with {labels:?}"), async || {
        let told = metrics(pod).await;
        let mut lines = told.lines().filter(|line| line.starts_with(name));
        lines
            .any(|line| labels.iter().all(|label| line.contains(label)) && !line.ends_with(" 0"))
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_linkerd_proxy_and_ours_understand_each_other() {
    const TEST: &str = "a_linkerd_proxy_and_ours_understand_each_other";
    let objects = |mesh: &LocalMesh| {
        let pods = ["ours", "theirs"].map(|name| pod(mesh, name)).concat();
        [pods, ledger("ours-ledger"), ledger("theirs-ledger")].concat()
    };
    let Some(scene) = Scene::start(TEST, objects).await else { return };
    for (from, here, there) in scene.ways() {
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let url = format!("http://{there}:8080/after/1/200");
            let curl = ["curl", "-sS", "-D-", "--max-time", "20", version, &url];
            let got = from.run(&curl).await.succeeded();
            let status = got.stdout.lines().next().unwrap_or_default();
            assert!(
                status.trim_end().ends_with("200") || status.ends_with("200 OK"),
                "{here} {version}: {got:?}"
            );
            assert!(got.stdout.contains(&format!("x-pod: {there}-")), "{here} {version}: {got:?}");
        }
        let script = format!(
            r#"
import socket
with socket.create_connection(("{there}-ledger", 7100), timeout=20) as ledger:
    lines = ledger.makefile("rw")
    print(lines.readline().strip())
    lines.write("QUIT\n")
    lines.flush()
    assert lines.readline().strip() == "BYE"
"#
        );
        let got = from.run(&["python3", "-c", &script]).await.succeeded();
        assert!(got.stdout.starts_with("220 ledger"), "{here}: {got:?}");
    }
    // Each proved to the other who it is, as both tell.
    for (pod, _, there) in scene.ways() {
        let (server, client) = (id(there), id(there));
        let tls = r#"tls="true""#;
        let (server, client) =
            (format!(r#"server_id="{server}""#), format!(r#"client_id="{client}""#));
        let (outbound, inbound) = (r#"direction="outbound""#, r#"direction="inbound""#);
        counts(pod, "response_total", &[outbound, tls, &server]).await;
        counts(pod, "response_total", &[inbound, tls, &client]).await;
        let server = format!(r#"server_id="{}""#, id(&format!("{there}-ledger")));
        counts(pod, "tcp_open_total", &[outbound, tls, &server]).await;
    }
    // Ours saw no plain text from theirs or to it.
    // Figures are of whole seconds.
    let edges = wait::until("edges of ours", async || {
        let told = scene.mesh.json(&["edges", "deploy/ours"]).await;
        told["edges"].as_array().filter(|edges| !edges.is_empty()).cloned()
    })
    .await;
    assert!(edges.iter().all(|edge| edge["secured"] == true), "{edges:#?}");
}

/// What a policy of ours is called and says.
fn policy(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "policy.meshctl.dev/v1alpha1",
        "kind": kind,
        "metadata": { "name": name, "namespace": "test" },
        "spec": spec,
    })
}

/// One more service of a deployment.
fn service_of(name: &str, app: &str) -> Value {
    let mut service = objects::service(name);
    service["spec"]["selector"]["app"] = app.into();
    service
}

/// The statuses of a number of requests, one after the other, and who answered.
async fn answers(pod: &Namespace, count: usize, url: &str) -> Vec<(String, String)> {
    let script = format!(
        r#"
import urllib.error, urllib.request
for _ in range({count}):
    try:
        answer = urllib.request.urlopen("{url}", timeout=20)
    except urllib.error.HTTPError as error:
        answer = error
    print(answer.status, answer.headers.get("x-pod", "-"), flush=True)
"#
    );
    let got = pod.run(&["python3", "-c", &script]).await.succeeded();
    let line = |line: &str| line.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()));
    got.stdout.lines().filter_map(line).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_linkerd_proxy_keeps_to_our_policies() {
    const TEST: &str = "a_linkerd_proxy_keeps_to_our_policies";
    let objects = |mesh: &LocalMesh| {
        let names = ["ours", "ours-closed", "theirs", "theirs-closed", "theirs-limited"];
        let mut all = names.map(|name| pod(mesh, name)).concat();
        let rule = |more: Value| {
            let mut rule = json!({ "backendRefs": [{ "name": "ours", "port": objects::PORT }] });
            rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            rule
        };
        all.extend(["split", "tried", "timed"].map(|name| service_of(name, "ours")));
        all.push(objects::split("split", &[("ours", 3), ("theirs", 1)]));
        all.push(objects::route(
            "tried",
            rule(json!({ "retry": { "codes": [503], "attempts": 2 } })),
        ));
        all.push(objects::route("timed", rule(json!({ "timeouts": { "request": "200ms" } }))));
        for name in ["ours-closed", "theirs-closed"] {
            let to = json!({
                "targetRef": { "group": "apps", "kind": "Deployment", "name": name },
                "from": [{ "serviceAccounts": ["nobody"] }],
            });
            all.push(policy("AuthorizationPolicy", name, to));
        }
        let limit = json!({
            "targetRef": { "group": "apps", "kind": "Deployment", "name": "theirs-limited", "port": objects::PORT },
            "rateLimit": { "total": { "requestsPerSecond": 1 } },
        });
        all.push(policy("ServerPolicy", "theirs-limited", limit));
        all
    };
    let Some(scene) = Scene::start(TEST, objects).await else { return };
    let (ours, theirs) = (&scene.ours, &scene.theirs);

    let split = answers(theirs, 80, "http://split:8080/after/1/200").await;
    assert!(split.iter().all(|(status, _)| status == "200"), "{split:?}");
    for to in ["ours-", "theirs-"] {
        assert!(split.iter().any(|(_, pod)| pod.starts_with(to)), "{split:?}");
    }
    let [(status, _)] = &answers(theirs, 1, "http://tried:8080/after/1/503").await[..] else {
        panic!("no answer")
    };
    assert_eq!(status, "503");
    let of_theirs = format!(r#"client_id="{}""#, id("theirs"));
    let tries = metrics(ours).await;
    let tries = tries.lines().find(|line| {
        line.starts_with("response_total")
            && line.contains(&of_theirs)
            && line.contains(r#"="503""#)
    });
    assert!(
        tries.is_some_and(|line| line.ends_with(" 3")),
        "one request and two retries: {tries:?}"
    );
    let timed = answers(theirs, 1, "http://timed:8080/after/5000/200").await;
    assert_eq!(timed[0].0, "504", "{timed:?}");

    // Both ways, and a port that nothing is said of is open.
    for (from, to, wanted) in [
        (theirs, "ours-closed", "403"),
        (ours, "theirs-closed", "403"),
        (ours, "theirs", "200"),
        (theirs, "ours", "200"),
    ] {
        let got = answers(from, 1, &format!("http://{to}:8080/after/1/200")).await;
        assert_eq!(got[0].0, wanted, "{to}: {got:?}");
    }
    let limited = answers(ours, 30, "http://theirs-limited:8080/after/1/200").await;
    let passed = limited.iter().filter(|(status, _)| status == "200").count();
    let refused = limited.iter().filter(|(status, _)| status == "429").count();
    assert!(passed >= 1 && refused >= 20 && passed + refused == 30, "{limited:?}");

    // Certificates are of 14 s: after some have been replaced all goes on.
    wait::until("their second certificate", async || {
        let told = metrics(theirs).await;
        let mut lines = told.lines().filter(|line| line.contains("identity_cert_refreshes_total"));
        lines.any(|line| !line.ends_with(" 0") && !line.ends_with(" 1")).then_some(())
    })
    .await;
    for (from, _, there) in scene.ways() {
        let got = answers(from, 5, &format!("http://{there}:8080/after/1/200")).await;
        assert!(got.iter().all(|(status, _)| status == "200"), "{got:?}");
    }
}
