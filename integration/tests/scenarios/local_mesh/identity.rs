//! Pods of a local mesh prove who they are, and a policy goes by it.

use std::fs;

use http::{Request, StatusCode};
use http_body_util::BodyExt;
use mesh_integration::client::http::{Client, Way, empty};
use mesh_integration::local_mesh::{LocalMesh, objects};
use mesh_integration::wait;
use serde_json::{Value, json};

const WEB: &str = "web.test.serviceaccount.identity.mesh-system.cluster.local";
const CLIENT: &str = "client.test.serviceaccount.identity.mesh-system.cluster.local";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_by_service_account_is_seen_everywhere() {
    let mesh = LocalMesh::default();
    mesh.up(&manifests(&mesh)).await;
    let (client, other) = (mesh.way("client").await, mesh.way("other").await);
    assert_eq!(ask(client, "/after/1/200").await, StatusCode::OK);
    assert_eq!(ask(other, "/after/1/200").await, StatusCode::FORBIDDEN);

    let told = mesh.json(&["identity"]).await;
    for proxy in told["proxies"].as_array().unwrap() {
        assert!(proxy["certificate"]["left"].as_f64().unwrap() > 0.9, "{told:#}");
    }
    let edges = wait::until("both edges", async || {
        let told = mesh.json(&["edges", "deploy/web"]).await;
        let edges = told["edges"].as_array()?.clone();
        (edges.len() == 2).then_some(edges)
    });
    for edge in edges.await {
        assert_eq!((&edge["secured"], &edge["server_identity"]), (&true.into(), &WEB.into()));
        let success = if edge["client_identity"] == CLIENT { 1.0 } else { 0.0 };
        assert_eq!(edge["success"], success, "{edge:#}");
    }
    let stat = mesh.json(&["stat", "deploy/web"]).await;
    assert_eq!(stat["rows"][0]["success"], 0.5, "{stat:#}");
    mesh.meshctl(&["check"]).await.succeeded();
    refusals_are_watched(&mesh, other).await;
    a_generated_policy_allows_what_was_seen(&mesh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authority_outlives_the_mesh_unless_it_is_unwanted() {
    let mesh = LocalMesh::default();
    let given = [objects::app("web", 1, &mesh.scratch())];
    mesh.up(&given).await;
    let roots = mesh.state().join("default/identity/roots.pem");
    let tokens = mesh.state().join("default/tokens");
    let first = fs::read(&roots).unwrap();
    assert_eq!(fs::read_dir(&tokens).unwrap().count(), 1);
    mesh.meshctl(&["local", "down"]).await.succeeded();
    assert!(!tokens.exists());
    mesh.up(&given).await;
    assert_eq!(fs::read(&roots).unwrap(), first);
    mesh.meshctl(&["local", "down"]).await.succeeded();

    let file = mesh.file("mesh.yaml", &given).display().to_string();
    mesh.meshctl(&["local", "up", "--no-identity", "-f", &file]).await.succeeded();
    assert!(!roots.exists() && !tokens.exists());
    let told = mesh.json(&["identity"]).await;
    assert_eq!((&told["authority"], &told["proxies"][0]["id"]), (&Value::Null, &Value::Null));
    mesh.meshctl(&["check"]).await.succeeded();
}

/// `web`, which `client` may call and `other` may not.
fn manifests(mesh: &LocalMesh) -> Vec<Value> {
    let app = |name: &str| {
        let mut app = objects::app(name, 1, &mesh.scratch());
        app["spec"]["template"]["spec"]["serviceAccountName"] = name.into();
        app
    };
    let policy = json!({
        "apiVersion": "policy.meshctl.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "web", "namespace": "test" },
        "spec": {
            "targetRef": { "kind": "Service", "name": "web" },
            "from": [{ "serviceAccounts": ["client"] }],
        },
    });
    vec![app("web"), app("client"), app("other"), objects::service("web"), policy]
}

async fn ask(way: Way, path: &str) -> StatusCode {
    let mut client = Client::open(way, "web:8080").await;
    let answer = client.send(Request::get(path).body(empty()).unwrap()).await.unwrap();
    let status = answer.status();
    // Figures are of whole answers.
    answer.into_body().collect().await.unwrap();
    status
}

async fn refusals_are_watched(mesh: &LocalMesh, other: Way) {
    let args = ["authz", "can", "web.test:8080", "--watch", "--count", "1"];
    let watching = mesh.meshctl(&args);
    tokio::pin!(watching);
    let seen = loop {
        tokio::select! {
            seen = &mut watching => break seen.succeeded(),
            // Those before it watches are not seen.
            status = ask(other, "/after/1/200") => assert_eq!(status, StatusCode::FORBIDDEN),
        }
    };
    let line = "GET /after/1/200  as other.test  refused by AuthorizationPolicy/test/web";
    assert!(seen.stdout.contains(line), "{seen:?}");
}

async fn a_generated_policy_allows_what_was_seen(mesh: &LocalMesh) {
    let generated = mesh.meshctl(&["authz", "generate", "deploy/web", "-n", "test"]).await;
    let policy = generated.succeeded().stdout;
    assert!(policy.contains(CLIENT) && policy.contains("/after/*"), "{policy}");
    assert!(!policy.contains("other"), "{policy}");
    mesh.meshctl(&[
        "local",
        "delete",
        "-f",
        &mesh.file("web.yaml", &[manifests(mesh).remove(4)]).display().to_string(),
    ])
    .await
    .succeeded();
    let file = mesh.text_file("generated.yaml", &policy).display().to_string();
    mesh.meshctl(&["local", "apply", "-f", &file]).await.succeeded();
    for (client, path, code) in [
        ("deploy/client", "/after/9/200", 0),
        ("deploy/client", "/else", 1),
        ("deploy/other", "/after/9/200", 1),
    ] {
        let can = ["authz", "can", client, "web:8080", "-n", "test", "--path", path];
        assert_eq!(mesh.meshctl(&can).await.code, Some(code), "{client} {path}");
    }
}
