//! A control plane in Python that does everything wrong that can be done. Whatever it does, the
//! proxy neither panics nor hangs, goes on with the last good message, and counts the bad ones.

use std::time::Duration;

use futures_util::future::join_all;
use mesh_integration::client::{Connection, Response};
use mesh_integration::mesh::{Mesh, Pod};
use mesh_integration::python::Python;
use mesh_integration::wait;
use serde_json::Value;
use tokio::time::Instant;

use super::{Foreign, ask, rejected};

/// A proxy that does not wait long for a control plane.
async fn mesh(control: &Foreign) -> Mesh {
    let client = Pod::new("client").setting("DISCOVERY_TIMEOUT", "300ms");
    Mesh::builder().controlled_by(control.addr).pod(client).start().await
}

/// Waits until a name leads to this application.
async fn until_it_leads_to(mesh: &Mesh, name: &str, app: &str) {
    let what = format!("{name} to lead to {app}");
    wait::until(&what, async || {
        let response = ask(mesh, name).await;
        assert!(matches!(response.status, 200 | 502 | 504), "{name}: {response:?}");
        (response.text() == app).then_some(())
    })
    .await;
}

/// What becomes of a target when its good message is followed by a broken one: `rejected` when the
/// good one stays in force and the broken one is counted, else what requests get from then on.
async fn outcome(mesh: &Mesh, target: &str) -> String {
    let before = rejected(mesh, "client").await;
    let what = format!("something to become of {target}");
    wait::until(&what, async || {
        if rejected(mesh, "client").await > before {
            return Some("rejected".to_owned());
        }
        let response = ask(mesh, target).await;
        let reason = response.header("x-mesh-reason").map(str::to_owned);
        let got = reason.unwrap_or_else(|| response.text());
        // Until the first message has come, or as long as the good one stands.
        (!["good", "discovery-timeout"].contains(&got.as_str())).then_some(got)
    })
    .await
}

async fn every_message_has_its_outcome(mesh: &Mesh, subject: &str, expected: &Value) {
    let mut wrong = Vec::new();
    for (name, expected) in expected.as_object().unwrap() {
        let target = format!("{subject}--broken--{name}");
        let outcome = outcome(mesh, &target).await;
        if outcome == "rejected" {
            assert_eq!(ask(mesh, &target).await.text(), "good", "{target}");
        }
        if outcome != expected.as_str().unwrap() {
            wrong.push(format!("{target}: {outcome} instead of {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn policies_that_break_a_rule_change_nothing() {
    let Some(python) = Python::find("foreign::policies_that_break_a_rule_change_nothing") else {
        return;
    };
    let control = Foreign::start(&python).await;
    let mesh = mesh(&control).await;
    let list = Foreign::list(&python).await;
    every_message_has_its_outcome(&mesh, "policy", &list["policies"]).await;
    let counted = mesh.pod("client").metric("config_rejected_total", &[]).await;
    assert_eq!(counted, rejected(&mesh, "client").await as f64);
}

#[tokio::test]
async fn a_broken_policy_without_a_good_one_fails_requests_in_time() {
    let Some(python) =
        Python::find("foreign::a_broken_policy_without_a_good_one_fails_requests_in_time")
    else {
        return;
    };
    let control = Foreign::start(&python).await;
    let mesh = mesh(&control).await;
    let list = Foreign::list(&python).await;
    let started = Instant::now();
    let broken: Vec<_> = list["policies"].as_object().unwrap().iter().collect();
    let targets: Vec<_> =
        broken.iter().map(|(name, _)| format!("policy--only-broken--{name}")).collect();
    let responses = join_all(targets.iter().map(|target| ask(&mesh, target))).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let reason = |response: &Response| response.header("x-mesh-reason").unwrap_or("bad").to_owned();
    for ((target, response), (_, expected)) in targets.iter().zip(responses).zip(broken) {
        if expected == "rejected" {
            assert_eq!(reason(&response), "discovery-timeout", "{target}");
            continue;
        }
        // What is taken all the same may come after the first request has given up.
        let what = format!("{target} to be taken");
        let taken = wait::until(&what, async || {
            let reason = reason(&ask(&mesh, target).await);
            (reason != "discovery-timeout").then_some(reason)
        });
        assert_eq!(taken.await, expected.as_str().unwrap(), "{target}");
    }
}

#[tokio::test]
async fn endpoints_that_break_a_rule_change_nothing() {
    let Some(python) = Python::find("foreign::endpoints_that_break_a_rule_change_nothing") else {
        return;
    };
    let control = Foreign::start(&python).await;
    let mesh = mesh(&control).await;
    let list = Foreign::list(&python).await;
    every_message_has_its_outcome(&mesh, "endpoints", &list["endpoints"]).await;
    for order in ["remove-first", "gone-first", "many"] {
        until_it_leads_to(&mesh, &format!("endpoints--{order}"), "good").await;
    }
}

#[tokio::test]
async fn port_policies_that_break_a_rule_change_nothing() {
    let Some(python) = Python::find("foreign::port_policies_that_break_a_rule_change_nothing")
    else {
        return;
    };
    let control = Foreign::start(&python).await;
    let list = Foreign::list(&python).await;
    let broken = list["ports"].as_object().unwrap().iter();
    let broken: Vec<_> = broken
        .filter(|(_, how)| how.as_str().unwrap().starts_with("broken"))
        .map(|(port, how)| (port.parse::<u16>().unwrap(), how.as_str().unwrap()))
        .collect();
    let web =
        broken.iter().fold(Pod::new("web"), |pod, (port, _)| pod.port(*port, control.good.addr()));
    let mesh = Mesh::builder().controlled_by(control.addr).pod(web).start().await;
    let all = u64::try_from(broken.len()).unwrap();
    wait::until("all to be rejected", async || (rejected(&mesh, "web").await == all).then_some(()))
        .await;
    for (port, how) in broken {
        let mut connection = Connection::open(mesh.pod("web").inbound(port)).await;
        connection.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert_eq!(connection.response().await.text(), "good", "{how}");
    }
}

#[tokio::test]
async fn streams_that_end_or_fail_are_opened_again() {
    let Some(python) = Python::find("foreign::streams_that_end_or_fail_are_opened_again") else {
        return;
    };
    let control = Foreign::start(&python).await;
    let mesh = mesh(&control).await;
    let mut targets = Vec::new();
    for status in 1..=16 {
        targets.push(format!("policy--status-first--{status}"));
        targets.push(format!("endpoints--status-first--{status}"));
    }
    for how in ["end-first", "ends", "silent-first", "garbage", "huge"] {
        targets.push(format!("policy--{how}"));
        targets.push(format!("endpoints--{how}"));
    }
    join_all(targets.iter().map(|target| until_it_leads_to(&mesh, target, "good"))).await;
}

#[tokio::test]
async fn what_was_said_last_stays_when_a_stream_fails() {
    let Some(python) = Python::find("foreign::what_was_said_last_stays_when_a_stream_fails") else {
        return;
    };
    let control = Foreign::start(&python).await;
    let mesh = mesh(&control).await;
    // NOT_FOUND and INVALID_ARGUMENT are answers: the target is unknown from then on.
    let statuses = (1..=16).filter(|status| ![3, 5].contains(status));
    let targets: Vec<_> = statuses
        .flat_map(|status| {
            ["policy", "endpoints"].map(|what| format!("{what}--then-status--{status}"))
        })
        .collect();
    join_all(targets.iter().map(|target| until_it_leads_to(&mesh, target, "good"))).await;
    for _ in 0..20 {
        let responses = join_all(targets.iter().map(|target| ask(&mesh, target))).await;
        for (target, response) in targets.iter().zip(responses) {
            assert_eq!(response.text(), "good", "{target}: {response:?}");
        }
    }
}

#[tokio::test]
async fn a_silent_control_plane_costs_nobody_else_anything() {
    let Some(python) = Python::find("foreign::a_silent_control_plane_costs_nobody_else_anything")
    else {
        return;
    };
    let control = Foreign::start(&python).await;
    let mesh = mesh(&control).await;
    let silent: Vec<_> = (0..50).map(|number| format!("policy--silent--{number}")).collect();
    let waiting = join_all(silent.iter().map(|target| ask(&mesh, target)));
    let served = async {
        until_it_leads_to(&mesh, "policy--good", "good").await;
        ask(&mesh, "endpoints--silent").await
    };
    let (waiting, unresolved) = tokio::join!(waiting, served);
    for response in waiting {
        assert_eq!(response.header("x-mesh-reason"), Some("discovery-timeout"));
    }
    assert_eq!(unresolved.header("x-mesh-reason"), Some("discovery-timeout"), "{unresolved:?}");
}
