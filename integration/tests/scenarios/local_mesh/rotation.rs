//! The root of a mesh is replaced under load, and the control plane dies in the middle: nobody notices.

use std::time::Duration;

use http::Request;
use mesh_integration::client::http::empty;
use mesh_integration::local_mesh::{LocalMesh, LocalPod, objects};
use mesh_integration::steady::{Load, Plan, assert_none_failed};
use mesh_integration::wait;
use mesh_tls::{Credentials, Issuer, Key, TrustBundle};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const WEB: &str = "default.test.serviceaccount.identity.mesh-system.cluster.local";
const RATE: u32 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_is_replaced_under_load_while_the_control_plane_dies() {
    let mesh = LocalMesh::default();
    let scratch = mesh.scratch();
    let app = |name, replicas| objects::app(name, replicas, &scratch);
    mesh.up(&[app("web", 2), objects::service("web"), app("client", 1), app("idle", 1)]).await;
    let web = mesh.pods("web").await.remove(0);
    let idle = mesh.pods("idle").await.remove(0);
    let (former, root) = (Former::of(&mesh), trusted(&mesh).await[0][0].clone());
    assert!(former.opens(&mesh, &web).await, "before, it is trusted");

    let way = mesh.way("client").await;
    let plan = Plan { way, authority: "web:8080".to_owned(), rate: RATE };
    let mut load = Load::start(plan, |_| Request::get("/after/1/200").body(empty()).unwrap());
    load.more(RATE as usize).await;

    // A proxy that does not answer holds the rotation where every other trusts both roots.
    idle.signal_proxy(Signal::STOP);
    let rotation = mesh.meshctl(&["identity", "rotate"]);
    let killed = async {
        wait::until("the others to trust both roots", async || {
            let roots = trusted(&mesh).await;
            let both = roots.iter().filter(|roots| roots.len() == 2).count();
            (both == 3).then_some(())
        })
        .await;
        let control = mesh.control().await;
        kill_process(control, Signal::KILL).unwrap();
        control
    };
    let (interrupted, control) = tokio::join!(rotation, killed);
    assert_eq!(interrupted.code, Some(3), "{interrupted:#?}");
    idle.signal_proxy(Signal::CONT);
    load.more(RATE as usize).await;
    wait::until("the control plane to be back", async || {
        let told = mesh.json(&["local", "ps"]).await;
        let another = told["control"]["pid"] != control.as_raw_nonzero().get();
        (told["control"]["ready"] == true && another).then_some(())
    })
    .await;

    let ended = mesh.meshctl(&["identity", "rotate"]).await.succeeded();
    for step in ["distribute", "reissue", "drop"] {
        let line = ended.stdout.lines().find(|line| line.starts_with(step));
        assert!(line.is_some_and(|line| line.contains("4 of 4 proxies")), "{ended:#?}");
    }
    load.more(RATE as usize).await;
    assert_none_failed(&load.stop().await);

    let roots = trusted(&mesh).await;
    assert_eq!(roots.len(), 4);
    assert!(roots.iter().all(|roots| roots.len() == 1 && roots[0] != root), "{roots:?}");
    assert!(!former.opens(&mesh, &web).await, "the old root is trusted still");
    mesh.meshctl(&["check"]).await.succeeded();
}

/// The roots of each proxy that answers.
async fn trusted(mesh: &LocalMesh) -> Vec<Vec<Value>> {
    let told = mesh.json(&["identity"]).await;
    let proxies = told["proxies"].as_array().unwrap().iter();
    let answering = proxies.filter(|proxy| proxy["reachable"] == true);
    answering.map(|proxy| proxy["roots"].as_array().unwrap().clone()).collect()
}

/// The issuer and the roots that were.
struct Former {
    issuer: Issuer,
    roots: String,
}

impl Former {
    fn of(mesh: &LocalMesh) -> Self {
        let read = |name| authority_file(mesh, name);
        let issuer = Issuer::from_pem(&read("issuer.pem"), &read("issuer-key.pem")).unwrap();
        Self { issuer, roots: read("roots.pem") }
    }

    /// Whether a pod serves somebody whom that issuer certified, and who trusts all that ever was trusted.
    async fn opens(&self, mesh: &LocalMesh, pod: &LocalPod) -> bool {
        let all = format!("{}{}", self.roots, authority_file(mesh, "roots.pem"));
        let bundle = TrustBundle::from_pem(&all).unwrap();
        let (id, key) = (WEB.parse().unwrap(), Key::generate());
        let hour = Duration::from_secs(60 * 60);
        let issued = self.issuer.certify(&key.request(&id), &id, hour).unwrap();
        let credentials = Credentials::new(&id, &key, &issued.chain(), &bundle).unwrap();
        let tcp = TcpStream::connect((pod.ip, objects::PORT)).await.unwrap();
        let mut tls = mesh_tls::connect(&credentials, tcp, WEB, WEB, false).await.unwrap();
        let request = b"GET /after/1/200 HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
        let mut answer = String::new();
        // A server that refuses a client of TLS 1.3 says so after the client's handshake.
        tls.write_all(request).await.is_ok()
            && tls.read_to_string(&mut answer).await.is_ok()
            && answer.starts_with("HTTP/1.1 200")
    }
}

fn authority_file(mesh: &LocalMesh, name: &str) -> String {
    std::fs::read_to_string(mesh.state().join("default/identity").join(name)).unwrap()
}
