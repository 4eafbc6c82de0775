//! Asking why: before a change and after it, of what would be and of what was, on a local mesh with
//! real requests to compare with.

use http::Request;
use mesh_integration::client::http::{Client, empty};
use mesh_integration::local_mesh::{LocalMesh, Ran, objects};
use mesh_integration::wait;
use serde_json::{Value, json};

const TO: &str = "web.test:8080";

/// `client` asks `web`, whose rules send `/beta` with a header to `beta`, `/old` elsewhere, and the rest home.
async fn mesh() -> LocalMesh {
    let mesh = LocalMesh::default();
    mesh.up(&given(&mesh, route())).await;
    mesh
}

fn given(mesh: &LocalMesh, route: Value) -> Vec<Value> {
    let scratch = mesh.scratch();
    let apps = ["client", "web", "beta"].map(|name| objects::app(name, 1, &scratch));
    let services = ["web", "beta"].map(objects::service);
    apps.into_iter().chain(services).chain([route]).collect()
}

fn route() -> Value {
    let to = |name: &str| json!([{ "name": name, "port": objects::PORT }]);
    let prefix = |path: &str| json!({ "path": { "type": "PathPrefix", "value": path } });
    let mut beta = prefix("/beta");
    beta["headers"] = json!([{ "name": "x-beta", "value": "1" }]);
    let rewrite = json!({
        "type": "URLRewrite",
        "urlRewrite": { "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/after/1" } },
    });
    let redirect = json!({
        "type": "RequestRedirect",
        "requestRedirect": { "path": { "type": "ReplaceFullPath", "replaceFullPath": "/new" } },
    });
    let mut route = objects::route("web", json!({}));
    route["spec"]["rules"] = json!([
        { "matches": [prefix("/after")], "backendRefs": to("web") },
        { "name": "beta", "matches": [beta], "filters": [rewrite], "backendRefs": to("beta") },
        { "matches": [prefix("/old")], "filters": [redirect] },
    ]);
    route
}

fn deny() -> Value {
    json!({
        "apiVersion": "policy.meshctl.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "no-beta", "namespace": "test" },
        "spec": { "action": "Deny", "targetRef": { "kind": "Deployment", "name": "beta" } },
    })
}

/// What is told of a request, and what its exit code says.
async fn what_if(mesh: &LocalMesh, request: &str, more: &[&str]) -> (Value, Option<i32>) {
    let line = ["explain", "--what-if", request, "--from", "deploy/client", "--to", TO];
    let ran = mesh.meshctl(&[&line[..], more, &["-o", "json"]].concat()).await;
    (document(&ran), ran.code)
}

fn document(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:#?}"))
}

/// Status, the pod that answered, where it leads, and what the mesh calls the request.
async fn send(mesh: &LocalMesh, path: &str, beta: bool) -> (u16, String, String, String) {
    let mut client = Client::open(mesh.way("client").await, TO).await;
    let mut request = Request::get(path);
    if beta {
        request = request.header("x-beta", "1");
    }
    let response = client.send(request.body(empty()).unwrap()).await.unwrap();
    let header = |name: &str| {
        let value = response.headers().get(name).map(|value| value.to_str().unwrap());
        value.unwrap_or_default().to_owned()
    };
    let pod = header("x-pod");
    let app = pod.split('-').next().unwrap_or_default().to_owned();
    (response.status().as_u16(), app, header("location"), header("x-mesh-request-id"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_be_is_what_is_and_what_was_is_remembered() {
    let mesh = mesh().await;

    // Of every kind of request the answer before and the answer itself agree.
    let beta = "GET /beta/200 -H x-beta:1";
    let (told, code) = what_if(&mesh, beta, &[]).await;
    assert_eq!(code, Some(0), "{told:#}");
    let wins: Vec<_> =
        told["matches"].as_array().unwrap().iter().filter(|of| of["wins"] == true).collect();
    assert_eq!(
        (wins.len(), &wins[0]["rule_name"], &wins[0]["rule"]),
        (1, &json!("beta"), &json!(1))
    );
    let backend = &told["backends"][0];
    assert_eq!((&backend["share"], &backend["path"]), (&json!(1.0), &json!("/after/1/200")));
    assert_eq!(backend["endpoints"][0]["allowed"], true);
    let (status, app, ..) = send(&mesh, "/beta/200", true).await;
    assert_eq!((status, app.as_str()), (200, "beta"), "the application saw the rewritten path");

    let (told, code) = what_if(&mesh, "GET /old/x?a=1 -H host:web.test:8080", &[]).await;
    assert_eq!((&told["answer"]["status"], code), (&json!(302), Some(0)), "{told:#}");
    let (status, _, location, _) = send(&mesh, "/old/x?a=1", false).await;
    assert_eq!((status, &json!(location)), (302, &told["answer"]["location"]));

    let (told, code) = what_if(&mesh, "GET /nowhere", &[]).await;
    assert_eq!((&told["answer"]["status"], code), (&json!(404), Some(1)));
    let (status, _, _, lost) = send(&mesh, "/nowhere", false).await;
    assert_eq!((status, lost.len()), (404, 16), "the mesh names what it fails");

    // A change is asked about before it is made; then it is made.
    let file = mesh.file("deny.yaml", &[deny()]).display().to_string();
    let (told, code) = what_if(&mesh, beta, &["-f", &file]).await;
    let endpoint = &told["backends"][0]["endpoints"][0];
    assert_eq!((code, &endpoint["allowed"]), (Some(1), &json!(false)), "{told:#}");
    assert_eq!(endpoint["decided"], "AuthorizationPolicy/test/no-beta");
    assert_eq!(what_if(&mesh, beta, &[]).await.1, Some(0), "nothing was applied");
    mesh.meshctl(&["local", "apply", "-f", &file]).await.succeeded();
    let denied = wait::until("the policy", async || {
        let (status, _, _, id) = send(&mesh, "/beta/200", true).await;
        (status == 403).then_some(id)
    })
    .await;

    // What went wrong is remembered at both ends, with what decided.
    let text = mesh.meshctl(&["explain", &lost]).await.succeeded().stdout;
    assert!(text.contains("GET /nowhere") && text.contains("no-route"), "{text}");
    let of_id = mesh.json(&["explain", &denied]).await;
    let ends = of_id["requests"].as_array().unwrap();
    assert_eq!(ends.len(), 2, "{of_id:#}");
    let end = |direction: &str| ends.iter().find(|of| of["direction"] == direction).unwrap();
    assert_eq!(end("inbound")["policy"], "AuthorizationPolicy/test/no-beta");
    assert_eq!(end("inbound")["peer"], "deployment/client");
    assert_eq!(end("outbound")["route"], "HTTPRoute/test/web");
    assert_eq!(end("outbound")["tries"][0]["backend"], "Service/test/beta:8080");
    let last = mesh.json(&["explain", "--last-errors", "deploy/client"]).await;
    let kinds: Vec<_> =
        last["requests"].as_array().unwrap().iter().map(|of| of["notable"].clone()).collect();
    assert!(kinds.contains(&json!("denied")) && kinds.contains(&json!("failed")), "{last:#}");
    let of_service = mesh.json(&["explain", "--last-errors", "svc/web"]).await;
    let parents: Vec<_> =
        of_service["requests"].as_array().unwrap().iter().map(|of| &of["parent"]).collect();
    assert!(parents.contains(&&json!("Service/test/web:8080")), "{of_service:#}");

    // A retry is remembered with what came of each try.
    let mut retried = route();
    retried["spec"]["rules"][0]["retry"] =
        json!({ "codes": [503], "attempts": 1, "backoff": "1ms" });
    let file = mesh.file("mesh.yaml", &given(&mesh, retried)).display().to_string();
    mesh.meshctl(&["local", "apply", "-f", &file]).await.succeeded();
    let tries = wait::until("a retried request", async || {
        send(&mesh, "/after/1/503", false).await;
        let last = mesh.json(&["explain", "--last-errors", "deploy/client", "--limit", "1"]).await;
        let latest = &last["requests"][0];
        (latest["notable"] == "retried").then(|| latest["tries"].clone())
    });
    let statuses: Vec<_> =
        tries.await.as_array().unwrap().iter().map(|of| of["status"].clone()).collect();
    assert_eq!(statuses, [json!(503), json!(503)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_is_analyzed_and_described() {
    let mesh = mesh().await;
    let clean = mesh.meshctl(&["analyze"]).await.succeeded();
    assert!(clean.stdout.starts_with("nothing wrong"), "{clean:#?}");

    // Before it is applied, in files alone, and in force: the same finding.
    let mut wrong = route();
    wrong["metadata"]["name"] = json!("worse");
    wrong["spec"]["rules"] = json!([{
        "matches": [{ "path": { "type": "PathPrefix", "value": "/worse" } }],
        "backendRefs": [{ "name": "bta", "port": objects::PORT }],
    }]);
    let file = mesh.file("wrong.yaml", &[wrong]).display().to_string();
    let found = |ran: &Ran| {
        let document = document(ran);
        let findings = document["findings"].as_array().unwrap().clone();
        let of = |f: &Value| (f["code"].clone(), f["object"].clone(), f["field"].clone());
        findings.iter().map(of).collect::<Vec<_>>()
    };
    let field = "spec.rules[0].backendRefs[0]";
    let expected = [(json!("MESH102"), json!("HTTPRoute/test/worse"), json!(field))];
    let ran = mesh.meshctl(&["analyze", "-f", &file, "-o", "json"]).await;
    assert_eq!((ran.code, found(&ran)), (Some(1), expected.to_vec()), "{ran:#?}");
    let ran = mesh.meshctl(&["analyze", "--offline", "-f", &file, "-o", "json"]).await;
    assert_eq!(ran.code, Some(0), "these files alone can't know: {ran:#?}");
    assert_eq!(found(&ran).len(), 2);
    mesh.meshctl(&["local", "apply", "-f", &file]).await.succeeded();
    let ran = mesh.meshctl(&["analyze", "-n", "test", "-o", "json"]).await;
    assert_eq!((ran.code, found(&ran)), (Some(1), expected.to_vec()), "{ran:#?}");
    let elsewhere = mesh.meshctl(&["analyze", "-n", "other"]).await;
    assert_eq!(elsewhere.code, Some(0), "{elsewhere:#?}");
    mesh.meshctl(&["explain", "MESH102"]).await.succeeded();

    let described = mesh.json(&["describe", "svc/web"]).await;
    let web = &described[0];
    assert_eq!(web["ports"][0]["protocol"], "http", "{web:#}");
    assert_eq!(web["ports"][0]["why"], "appProtocol of the Service");
    assert_eq!(web["settings"][0]["name"], "balancer");
    assert_eq!(web["endpoints"].as_array().unwrap().len(), 1);
    assert_eq!(web["findings"][0]["code"], "MESH102");
    assert_eq!(web["policies"][0]["policy"], "default/all-unauthenticated");
    assert!(web["pods"][0]["identity"].as_str().unwrap().contains("serviceaccount"), "{web:#}");
    let described = mesh.json(&["describe", "deploy/beta"]).await;
    assert_eq!(described[0]["ports"][0]["why"], "appProtocol of Service beta");
    assert_eq!(described[0]["findings"], json!([]));
}
