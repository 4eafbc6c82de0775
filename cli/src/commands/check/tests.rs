//! Checks against a scripted control plane, and against none.

use std::process::ExitCode;

use mesh_api::ext;
use mesh_api::ext::mesh_tap_event::{Event, TapStatus};

use super::catalog::CATALOG;
use crate::commands::identity::life;
use crate::error::Kind;
use crate::local::authority::Authority;
use crate::state_dir::{StateDir, StateRoot};
use crate::testing::{FakeMesh, golden, proxy_row, run, run_alone, workload};

/// Two pods, all well. The APIs for proxies are not scripted, so their checks are left out.
fn healthy() -> FakeMesh {
    let pod = |name: &str, at: u8| {
        let mut pod = workload("pod", "shop", name, 1);
        pod.pods[0].name = name.into();
        pod.pods[0].ip = format!("127.101.0.{at}");
        pod
    };
    FakeMesh {
        info: ext::InfoReply {
            version: env!("CARGO_PKG_VERSION").into(),
            source: "local".into(),
            uptime_seconds: 60,
            services: 1,
            pods: 2,
            ..Default::default()
        },
        workloads: vec![pod("web-1", 1), pod("tax-1", 2)],
        proxies: vec![proxy_row("web-1"), proxy_row("tax-1")],
        stat: ext::StatReply { rows: vec![ext::StatRow::default()], ..Default::default() },
        tap: vec![Event::Status(TapStatus { pods: 2, tapped: 2, unreachable: vec![] })],
        ..FakeMesh::default()
    }
}

/// The state directory's mode and listening proxies are not scripted.
const SKIP: &str = "--skip local-state-dir,proxies-listening";

fn ailing() -> FakeMesh {
    let mut mesh = healthy();
    mesh.proxies[0].streams_up = 2;
    (mesh.proxies[1].reachable, mesh.proxies[1].error) = (false, "connection <refused>".into());
    mesh.workloads[1].pods[0].ready = false;
    mesh.workloads[1].pods[0].ip = "127.101.0.1".into();
    mesh.info.version = "9.9.9".into();
    mesh.info.problems = vec![ext::Problem {
        severity: "error".into(),
        object: "HTTPRoute/shop/tax".into(),
        file: "routes.yaml".into(),
        line: 12,
        field: "spec.rules[0]".into(),
        message: "no such field".into(),
    }];
    mesh.routes = vec![ext::RouteRow {
        route: "HTTPRoute/shop/tax".into(),
        parent: "Service/shop/tax:8080".into(),
        status: "NoSuchBackend".into(),
        ..Default::default()
    }];
    mesh
}

#[tokio::test]
async fn a_healthy_mesh_is_all_green() {
    let ran = healthy().run(&format!("check {SKIP}")).await;
    golden("check.txt", &ran.out);
    assert_eq!(ran.result.unwrap(), ExitCode::SUCCESS);
    let ran = healthy().run(&format!("check -o short {SKIP}")).await;
    assert_eq!(ran.out, "Status check results are √\n");
}

#[tokio::test]
async fn every_ailment_is_told_with_its_objects_and_remedy() {
    let ran = ailing().run(&format!("check {SKIP}")).await;
    golden("check-ailing.txt", &ran.out);
    assert_eq!(ran.result.unwrap(), ExitCode::FAILURE);
    golden("check-ailing-short.txt", &ailing().run(&format!("check -o short {SKIP}")).await.out);
    golden("check-ailing.json", &ailing().run(&format!("check -o json {SKIP}")).await.out);
    golden("check-ailing.xml", &ailing().run(&format!("check -o junit {SKIP}")).await.out);
}

/// What the checks of certificates say, with what differs from one time to the next left out.
async fn of_identity(mesh: FakeMesh, prepare: impl FnOnce(&StateDir)) -> String {
    let home = tempfile::tempdir().unwrap();
    let dir = StateRoot::new(home.path()).mesh("default").unwrap();
    let _lock = mesh.serve(&home);
    Authority::create(&dir).unwrap();
    prepare(&dir);
    let ids: Vec<_> = CATALOG.iter().map(|check| check.id).collect();
    let ids: Vec<_> = ids.into_iter().filter(|id| id.starts_with("identity-")).collect();
    let ran = run(&format!("check --only {}", ids.join(",")), &home).await;
    let mut out = ran.out.replace(&dir.path.display().to_string(), "DIR");
    out = out.replace("364d23h", "365d");
    for seconds in 1..60 {
        out = out.replace(&format!("expired {seconds}s ago"), "expired 0s ago");
    }
    out
}

/// A proxy whose certificate is valid for so long, of so much.
fn certified(pod: &str, left: i64, of: u64) -> ext::ProxyRow {
    let not_after = life::now().saturating_add_signed(left);
    let certificate = ext::ProxyCertificate {
        not_before: not_after - of,
        not_after,
        ..ext::ProxyCertificate::default()
    };
    let identity =
        ext::ProxyIdentity { certificate: Some(certificate), ..ext::ProxyIdentity::default() };
    ext::ProxyRow { identity: Some(identity), ..proxy_row(pod) }
}

const HOUR: u64 = 60 * 60;

#[tokio::test]
async fn certificates_that_are_in_order() {
    let mut mesh = healthy();
    mesh.proxies =
        vec![certified("web-1", 70_000, 24 * HOUR), certified("tax-1", 30_000, 24 * HOUR)];
    golden("check-identity.txt", &of_identity(mesh, |_| {}).await);
}

#[tokio::test]
async fn certificates_that_are_not() {
    let mut mesh = healthy();
    mesh.proxies = vec![
        certified("web-1", 3_659, 24 * HOUR),
        certified("web-2", -7_201, 24 * HOUR),
        proxy_row("web-3"),
        ext::ProxyRow {
            identity: Some(ext::ProxyIdentity {
                last_error: "the control plane refused".into(),
                ..ext::ProxyIdentity::default()
            }),
            ..proxy_row("web-4")
        },
    ];
    // As if somebody had put the roots of another mesh there, which have expired too.
    let told = of_identity(mesh, |dir| {
        let lifetime = std::time::Duration::ZERO;
        let other = mesh_tls::Root::generate("other", lifetime, lifetime).unwrap();
        std::fs::write(dir.identity().join("roots.pem"), other.root).unwrap();
    });
    golden("check-identity-ailing.txt", &told.await);
}

#[tokio::test]
async fn an_issuer_that_has_expired() {
    let mut mesh = healthy();
    mesh.proxies = vec![certified("web-1", 70_000, 24 * HOUR)];
    let told = of_identity(mesh, |dir| {
        let (root, issuer) = (std::time::Duration::from_secs(HOUR), std::time::Duration::ZERO);
        let made = mesh_tls::Root::generate("short", root, issuer).unwrap();
        for (name, text) in
            [("roots", made.root), ("issuer", made.issuer), ("issuer-key", made.issuer_key)]
        {
            std::fs::write(dir.identity().join(format!("{name}.pem")), text).unwrap();
        }
    });
    let told = told.await;
    assert!(
        told.contains("× the issuer may certify\n    the issuer's certificate expired "),
        "{told}"
    );
    assert!(told.contains("‼ the issuer is valid for long"), "{told}");
    assert!(told.contains("√ every root is valid for long"), "{told}");
    assert!(told.contains("try: meshctl identity rotate"), "{told}");
}

#[tokio::test]
async fn warnings_fail_only_when_asked_to() {
    let old = || {
        let mut mesh = healthy();
        mesh.info.version = "9.9.9".into();
        mesh
    };
    let code =
        async |flags: &str| old().run(&format!("check {SKIP} {flags}")).await.result.unwrap();
    assert_eq!(code("").await, ExitCode::SUCCESS);
    assert_eq!(code("--fail-on warning").await, ExitCode::FAILURE);
}

#[tokio::test]
async fn without_a_mesh_the_rest_is_listed_as_skipped() {
    let ran = run_alone("check").await;
    golden("check-alone.txt", &ran.out);
    assert_eq!(ran.result.unwrap(), ExitCode::from(3));
}

#[tokio::test]
async fn what_is_needed_before_can_be_checked_before() {
    let ran = run_alone("check --pre --skip pre-transparent -o json").await;
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["success"], true, "{}", ran.out);
    let ids: Vec<_> =
        report["checks"].as_array().unwrap().iter().map(|c| c["id"].clone()).collect();
    assert_eq!(ids, ["pre-not-running", "pre-state-dir", "pre-loopback", "clock"]);
    let ran = healthy().run("check --pre --only pre-not-running -o short").await;
    assert!(ran.out.contains("is running already"), "{}", ran.out);
}

#[tokio::test]
async fn checks_are_picked_by_id() {
    let ran = healthy().run("check --only clock,proxies-in-sync -o json").await;
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["counts"]["passed"], 2, "{}", ran.out);
    let error = run_alone("check --only proxy-in-sync").await.result.unwrap_err();
    assert_eq!(error.kind, Kind::Usage);
    assert_eq!(error.hint.as_deref(), Some("proxies-in-sync, or meshctl explain for all of them"));
}
