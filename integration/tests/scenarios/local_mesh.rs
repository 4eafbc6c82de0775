//! A local mesh from `up` to `down`, by the commands that users type.

mod identity;
mod linkerd;
mod rotation;
mod transparent;

use std::fs;

use http::Request;
use mesh_integration::client::http::empty;
use mesh_integration::local_mesh::{LocalMesh, objects, runs};
use mesh_integration::steady::{Load, Plan, assert_none_failed};
use mesh_integration::wait;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_does_its_part_from_up_to_down() {
    let mesh = LocalMesh::default();
    let scratch = mesh.scratch();
    let versions = ["web-v1", "web-v2"];
    let mut given: Vec<_> = versions.map(|name| objects::app(name, 1, &scratch)).to_vec();
    given.extend(versions.map(objects::service));
    given.extend([objects::service("web"), objects::app("client", 1, &scratch)]);
    let route = |weights: [u32; 2]| {
        objects::split("web", &[("web-v1", weights[0]), ("web-v2", weights[1])])
    };
    given.push(route([1, 0]));
    mesh.up(&given).await;

    let way = mesh.way("client").await;
    let plan = Plan { way, authority: "web:8080".to_owned(), rate: 50 };
    let load = Load::start(plan, |_| Request::get("/after/1/200").body(empty()).unwrap());
    answers_come_from(&load, "web-v1").await;

    ps_tells_all_is_well(&mesh).await;
    mesh.meshctl(&["check"]).await.succeeded();
    let tapped = mesh.meshctl(&["tap", "deploy/web-v1", "--count", "3"]).await.succeeded();
    let lines: Vec<_> =
        tapped.stdout.lines().filter(|line| line.contains("/after/1/200")).collect();
    assert_eq!(lines.len(), 3, "{tapped:#?}");
    stat_tells_of(&mesh, "deploy/web-v1").await;

    // A changed weight is in force.
    *given.last_mut().unwrap() = route([0, 1]);
    let changed = mesh.file("mesh.yaml", &given).display().to_string();
    mesh.meshctl(&["local", "apply", "-f", &changed]).await.succeeded();
    answers_come_from(&load, "web-v2").await;
    stat_tells_of(&mesh, "deploy/web-v2").await;

    // A wrong one is refused, and what was in force stays.
    let wrong = route([1, 0]).to_string().replace(r#""weight":1"#, "\n\"weight\": \"much\"");
    let wrong = mesh.text_file("wrong.yaml", &wrong);
    let refused = mesh.meshctl(&["local", "apply", "-f", &wrong.display().to_string()]).await;
    assert_eq!(refused.code, Some(1), "{refused:#?}");
    assert!(names_the_place(&refused.stderr, "wrong.yaml"), "{refused:#?}");

    // Likewise when it gets past meshctl.
    let past = mesh.state().join("default/manifests/past.yaml");
    fs::copy(&wrong, &past).unwrap();
    let failed = wait::until("check to notice the file", async || {
        let checked = mesh.meshctl(&["check", "-o", "json"]).await;
        (checked.code != Some(0)).then_some(checked)
    })
    .await;
    assert!(names_the_place(&failed.stdout, "past.yaml"), "{failed:#?}");
    answers_come_from(&load, "web-v2").await;
    fs::remove_file(past).unwrap();
    wait::until("check to be content again", async || {
        (mesh.meshctl(&["check"]).await.code == Some(0)).then_some(())
    })
    .await;
    assert_none_failed(&load.stop().await);

    let second = mesh.meshctl(&["local", "up", "-f", "mesh.yaml"]).await;
    assert_eq!(second.code, Some(1), "{second:#?}");
    assert!(second.stderr.contains("running already"), "{second:#?}");

    let processes = processes(&mesh).await;
    mesh.meshctl(&["local", "down"]).await.succeeded();
    assert!(!processes.iter().any(|process| runs(*process)), "{processes:?}");
    nothing_is_left(&mesh);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_that_is_killed_takes_all_with_it() {
    let mesh = LocalMesh::default();
    let given = [objects::app("web", 2, &mesh.scratch()), objects::service("web")];
    mesh.up(&given).await;
    let processes = processes(&mesh).await;
    assert_eq!(processes.len(), 2 + 2 * 2, "{processes:?}");
    kill_process(processes[0], Signal::KILL).unwrap();
    wait::until("all processes to end", async || {
        (!processes.iter().any(|process| runs(*process))).then_some(())
    })
    .await;
    mesh.up(&given).await;
    mesh.meshctl(&["check"]).await.succeeded();
}

/// Waits until the last answer is of a pod of this Deployment.
async fn answers_come_from(load: &Load, deployment: &str) {
    let sent = load.outcomes().len();
    wait::until(&format!("answers of {deployment}"), async || {
        let outcomes = load.outcomes();
        let answer = outcomes[sent..].last()?.answer.as_ref().ok()?;
        answer.pod.starts_with(deployment).then_some(())
    })
    .await;
}

async fn ps_tells_all_is_well(mesh: &LocalMesh) {
    mesh.meshctl(&["local", "ps"]).await.succeeded();
    let told = mesh.json(&["local", "ps"]).await;
    let pods = told["pods"].as_array().unwrap();
    assert_eq!(pods.len(), 3, "{told:#}");
    assert!(pods.iter().all(|pod| pod["state"] == "Running" && pod["restarts"] == 0), "{told:#}");
    assert_eq!(told["control"]["ready"], true, "{told:#}");
}

async fn stat_tells_of(mesh: &LocalMesh, workload: &str) {
    wait::until(&format!("figures of {workload}"), async || {
        let told = mesh.json(&["stat", workload]).await;
        let row = &told["rows"][0];
        assert_eq!((&row["ready_pods"], &row["running_pods"]), (&1.into(), &1.into()), "{told:#}");
        (row["requests"].as_u64()? > 0 && row["success"] == 1.0).then_some(())
    })
    .await;
}

/// The file, the line in it and the field.
fn names_the_place(text: &str, file: &str) -> bool {
    text.lines()
        .any(|line| line.contains(&format!("{file}:2")) && line.contains("backendRefs[0].weight"))
}

/// The supervisor first.
async fn processes(mesh: &LocalMesh) -> Vec<Pid> {
    let told = mesh.json(&["local", "ps"]).await;
    let pods = told["pods"].as_array().unwrap().iter();
    let of_pods = pods.flat_map(|pod| [&pod["app_pid"], &pod["proxy_pid"]]);
    let all = [&told["supervisor_pid"], &told["control"]["pid"]].into_iter().chain(of_pods);
    let process = |id: &Value| Pid::from_raw(i32::try_from(id.as_i64().unwrap()).unwrap()).unwrap();
    all.map(process).collect()
}

/// But logs, the authority, and the file whose lock says that a mesh runs.
fn nothing_is_left(mesh: &LocalMesh) {
    let mut left = Vec::new();
    let mut folders = vec![mesh.state()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => left.push(path),
            }
        }
    }
    left.retain(|path| {
        !path.ends_with("lock")
            && !path.parent().is_some_and(|folder| folder.ends_with("identity"))
            && path.extension().is_none_or(|e| e != "log")
    });
    assert!(left.is_empty(), "{left:?}");
}
