//! Pods in network namespaces: programs that know nothing of the mesh are in it all the same.

use mesh_integration::local_mesh::{LocalMesh, Ran, objects};
use mesh_integration::{programs, wait};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unmodified_programs_reach_services_by_name() {
    const TEST: &str = "unmodified_programs_reach_services_by_name";
    if let Some(why) = lacking(&["ip", "curl", "python3", "sleep"]).await {
        return programs::skipped(TEST, &why);
    }
    let mesh = LocalMesh::default();
    let file = mesh.file("mesh.yaml", &manifests(&mesh));
    let up = ["local", "up", "--transparent", "-f", &file.display().to_string()];
    mesh.meshctl(&up).await.succeeded();
    let pod = Namespace::of(&mesh, "client").await;

    for name in ["web:8080", "web.test:8080", "web.test.svc.cluster.local:8080"] {
        let url = format!("http://{name}/after/1/200");
        let got = pod.run(&["curl", "-sS", "-D-", "--max-time", "20", &url]).await.succeeded();
        assert!(got.stdout.starts_with("HTTP/1.1 200"), "{got:?}");
        assert!(got.stdout.contains("x-pod: web-"), "{got:?}");
    }
    let got = pod.run(&["python3", "-c", PYTHON]).await.succeeded();
    assert!(got.stdout.starts_with("200 web-"), "{got:?}");
    let banner = got.stdout.lines().nth(1).unwrap_or_default();
    assert!(banner.starts_with("220 ledger ledger-"), "{got:?}");

    // Through both proxies.
    for view in [&["stat", "deploy/web"][..], &["stat", "deploy/web", "--from", "deploy/client"]] {
        wait::until("figures of the four requests", async || {
            let told = mesh.json(view).await;
            (told["rows"][0]["requests"].as_u64()? == 4).then_some(())
        })
        .await;
    }
    let edge = wait::until("the connection to be told of", async || {
        mesh.json(&["edges", "deploy/ledger"]).await["edges"].as_array()?.first().cloned()
    });
    assert_eq!(edge.await["source"]["name"], "client");
    mesh.meshctl(&["check"]).await.succeeded();

    mesh.meshctl(&["local", "down"]).await.succeeded();
    let left = host(&["ip", "netns", "list"]).await.stdout;
    assert!(!left.contains(&pod.prefix), "{left}");
}

/// HTTP, and a protocol in which the server speaks first.
const PYTHON: &str = r#"
import socket, urllib.request
with urllib.request.urlopen("http://web:8080/after/1/200", timeout=20) as answer:
    print(answer.status, answer.headers["x-pod"])
with socket.create_connection(("ledger", 7100), timeout=20) as ledger:
    lines = ledger.makefile("rw")
    print(lines.readline().strip())
    lines.write("QUIT\n")
    lines.flush()
    assert lines.readline().strip() == "BYE"
"#;

fn manifests(mesh: &LocalMesh) -> Vec<Value> {
    let scratch = mesh.scratch();
    let mut ledger = objects::deployment("ledger", 1, &["mesh-demo", "ledger", "--port", "7100"]);
    ledger["spec"]["template"]["spec"]["containers"][0]["ports"] =
        json!([{ "containerPort": 7100 }]);
    let mut ledger_service = objects::service("ledger");
    ledger_service["spec"]["ports"] = json!([{ "port": 7100 }]);
    let mut client = objects::deployment("client", 1, &["sleep", "infinity"]);
    client["spec"]["template"]["spec"]["containers"][0]["ports"] = json!([]);
    let web = objects::app("web", 2, &scratch);
    vec![web, objects::service("web"), ledger, ledger_service, client]
}

/// What a transparent mesh needs and this machine lacks.
pub(super) async fn lacking(tools: &[&str]) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".into());
    }
    if let Some(tool) = tools.iter().find(|tool| programs::installed(tool).is_none()) {
        return Some(format!("no {tool}"));
    }
    // In a container even root often may not.
    let probe = format!("mesh-probe-{}-{:?}", std::process::id(), std::thread::current().id());
    let probe = probe.replace(['(', ')'], "");
    let made = host(&["ip", "netns", "add", &probe]).await;
    let veth = ["link", "add", "one", "type", "veth", "peer", "name", "two"];
    let wired = host(&[&["ip", "-n", &probe][..], &veth].concat()).await;
    host(&["ip", "netns", "delete", &probe]).await;
    let failed = [made, wired].into_iter().find(|ran| ran.code != Some(0))?;
    Some(failed.stderr.trim().to_owned())
}

/// The network namespace of a pod.
pub(super) struct Namespace {
    name: String,
    /// Of all namespaces of the mesh.
    prefix: String,
    /// The pod's address.
    pub(super) ip: String,
}

impl Namespace {
    /// That of the only pod of a Deployment.
    pub(super) async fn of(mesh: &LocalMesh, deployment: &str) -> Self {
        let told = mesh.json(&["local", "ps"]).await;
        let pods = told["pods"].as_array().unwrap();
        let owner = format!("Deployment/{deployment}");
        let client = pods.iter().find(|pod| pod["owner"] == *owner).unwrap();
        let prefix = format!("mesh-{}-", told["number"]);
        let list = host(&["ip", "netns", "list"]).await.stdout;
        let names = list.lines().filter_map(|line| line.split(' ').next());
        let pod = client["name"].as_str().unwrap();
        let mut names = names.filter(|name| name.starts_with(&prefix) && name.contains(pod));
        let ip = client["ip"].as_str().unwrap().to_owned();
        Self { name: names.next().unwrap().to_owned(), prefix, ip }
    }

    pub(super) async fn run(&self, command: &[&str]) -> Ran {
        host(&[&["ip", "netns", "exec", &self.name], command].concat()).await
    }
}

async fn host(command: &[&str]) -> Ran {
    let mut process = tokio::process::Command::new(programs::installed(command[0]).unwrap());
    let output = process.args(&command[1..]).kill_on_drop(true).output();
    wait::within(command[0], output).await.unwrap().into()
}
