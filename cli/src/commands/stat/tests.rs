//! Stat against a scripted control plane.

use mesh_api::ext;
use mesh_api::ext::stat_request::ClientSide;

use crate::error::Kind;
use crate::testing::{FakeMesh, golden, object, totals, workload};

fn row(name: &str, totals: ext::Totals) -> ext::StatRow {
    ext::StatRow {
        r#ref: Some(object("deployment", "shop", name)),
        meshed_pods: 2,
        ready_pods: 2,
        running_pods: 2,
        covered_seconds: 60,
        totals: Some(totals),
        ..Default::default()
    }
}

fn silent(name: &str, why: &str) -> ext::StatRow {
    ext::StatRow {
        totals: None,
        no_data: why.into(),
        meshed_pods: 0,
        ..row(name, ext::Totals::default())
    }
}

fn mesh(rows: Vec<ext::StatRow>) -> FakeMesh {
    FakeMesh {
        stat: ext::StatReply { rows, view: "server".into(), unreachable: vec![] },
        ..FakeMesh::default()
    }
}

fn shop() -> FakeMesh {
    let mut ledger =
        row("ledger", ext::Totals { tcp_open: 4, request_bytes: 12_000, ..Default::default() });
    ledger.meshed_pods = 1;
    let mut tax = row("tax", totals(950, 50, 12));
    tax.breakers = vec![ext::Breaker {
        backend: "Service/shop/tax:8080".into(),
        endpoint: "127.101.0.4:8080".into(),
        state: "ejected".into(),
    }];
    tax.totals.as_mut().unwrap().reasons.insert("connect-refused".into(), 3);
    mesh(vec![
        row("web", totals(1800, 0, 3)),
        tax,
        ledger,
        silent("batch", "not meshed"),
        silent("idle", "no traffic"),
    ])
}

#[tokio::test]
async fn every_format() {
    let ran = shop().run("stat deploy").await;
    golden("stat.txt", &ran.out);
    assert_eq!(ran.err, "no traffic in the last 1m: deploy/idle\nnot meshed: deploy/batch\n");
    for format in ["wide", "json", "yaml", "csv", "name"] {
        let ran = shop().run(&format!("stat deploy -o {format}")).await;
        golden(&format!("stat.{format}"), &ran.out);
    }
}

#[tokio::test]
async fn the_request_says_what_was_asked() {
    let ran = shop().run("stat deploy/web -n shop -t 5m --to svc/tax --by backend").await;
    let asked = ran.asked.stat.unwrap();
    assert_eq!((asked.window_seconds, asked.by.as_str()), (300, "backend"));
    assert_eq!(
        (asked.selectors[0].name.as_str(), asked.selectors[0].namespace.as_str()),
        ("web", "shop")
    );
    assert!(
        matches!(asked.client_side, Some(ClientSide::To(to)) if to.kind == "service" && to.name == "tax")
    );
}

#[tokio::test]
async fn the_client_side_and_what_it_is_split_by_are_named() {
    let mut fake = mesh(vec![row("checkout", totals(60, 0, 5)), row("checkout", totals(20, 0, 5))]);
    fake.stat.view = "client".into();
    for (row, version) in fake.stat.rows.iter_mut().zip(["v1", "v2"]) {
        row.by = format!("Service/shop/checkout-{version}:8080");
        row.covered_seconds = 12;
    }
    let ran = fake.run("stat deploy/web --to svc/checkout --by backend").await;
    golden("stat-by-backend.txt", &ran.out);
}

#[tokio::test]
async fn several_kinds_and_namespaces_are_told_apart() {
    let mut other = row("web", totals(1, 0, 1));
    other.r#ref = Some(object("statefulset", "two", "web"));
    let ran = mesh(vec![row("web", totals(1, 0, 1)), other]).run("stat deploy,sts").await;
    golden("stat-kinds.txt", &ran.out);
}

#[tokio::test]
async fn proxies_that_do_not_answer_are_named() {
    let mut fake = shop();
    fake.stat.unreachable = vec![ext::Unreachable {
        pod: "web-2".into(),
        namespace: "shop".into(),
        error: "timed out".into(),
    }];
    let ran = fake.run("stat deploy").await;
    assert!(ran.err.ends_with("not reachable: shop/web-2: timed out\n"), "{}", ran.err);
}

#[tokio::test]
async fn by_pod_the_silent_one_has_dashes_and_is_named() {
    let idle = ext::StatRow { by: "web-2".into(), ..silent("web", "no traffic") };
    let busy = ext::StatRow { by: "web-1".into(), ..row("web", totals(60, 0, 3)) };
    let ran = mesh(vec![idle, busy]).run("stat deploy --by pod").await;
    golden("stat-by-pod.txt", &ran.out);
    assert!(ran.err.contains("no traffic in the last 1m: po/web-2\n"), "{}", ran.err);
}

#[tokio::test]
async fn nothing_there_is_only_an_error_for_a_name() {
    let ran = mesh(vec![]).run("stat sts -n shop").await;
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", "no statefulsets in shop\n"));
    assert!(ran.result.is_ok());

    let mut fake = mesh(vec![]);
    fake.workloads =
        vec![workload("deployment", "shop", "web", 1), workload("deployment", "shop", "tax", 1)];
    let error = fake.run("stat deploy/taxx -n shop").await.result.unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (Kind::Missing, "there is no deployment/taxx in shop")
    );
    assert_eq!(error.hint.as_deref(), Some("deploy/tax -n shop"));

    let mut fake = mesh(vec![]);
    fake.workloads =
        vec![workload("deployment", "shop", "web", 1), workload("deployment", "shop", "tax", 1)];
    let error = fake.run("stat deploy/nobody").await.result.unwrap_err();
    assert_eq!(error.hint.as_deref(), Some("one of web, tax"));
}

#[tokio::test]
async fn a_type_in_the_place_of_a_name_is_understood() {
    let error = mesh(vec![]).run("stat deploy svc").await.result.unwrap_err();
    assert_eq!(error.hint.as_deref(), Some("deploy,svc if both types are meant"));
}

#[tokio::test]
async fn watching_what_is_not_there_ends() {
    let refusal = Some(tonic::Status::not_found("no"));
    let ran = FakeMesh { refusal, ..FakeMesh::default() }.run("stat deploy/web --watch").await;
    assert_eq!(ran.result.unwrap_err().kind, Kind::Missing);
}

#[tokio::test]
async fn the_mesh_that_is_asked_is_named_when_verbose() {
    let ran = shop().run("stat deploy --verbose").await;
    let first = ran.err.lines().next().unwrap();
    assert!(first.starts_with("mesh: local \"default\" at /"), "{first}");
}

#[tokio::test]
async fn refusals_and_absences_have_their_exit_codes() {
    use crate::testing::run_alone;
    let refused = |status| FakeMesh { refusal: Some(status), ..FakeMesh::default() };
    let kind = async |fake: FakeMesh| fake.run("stat deploy").await.result.unwrap_err().kind;
    assert_eq!(kind(refused(tonic::Status::permission_denied("no"))).await, Kind::Unreachable);
    assert_eq!(kind(refused(tonic::Status::deadline_exceeded("late"))).await, Kind::TimedOut);
    assert_eq!(kind(refused(tonic::Status::invalid_argument("what"))).await, Kind::Usage);
    let alone = run_alone("stat deploy").await.result.unwrap_err();
    assert_eq!(
        (alone.kind, alone.hint.as_deref()),
        (Kind::Unreachable, Some("meshctl demo; or --context NAME for a cluster"))
    );
    let cluster = run_alone("stat deploy --context prod").await.result.unwrap_err();
    assert_eq!(cluster.kind, Kind::Unreachable);
    assert!(cluster.message.contains("there is no kube context"), "{}", cluster.message);
}
