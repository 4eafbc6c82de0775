//! Checks of pods and their proxies.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_api::ext;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::catalog::Outcome;
use super::scene::Scene;
use crate::commands::shared::is_transparent;

/// Where a proxy takes what its application sends.
const OUTBOUND_PORT: u16 = 4140;
const CONNECTING: Duration = Duration::from_secs(1);
/// A look at a large mesh must not open a connection to every pod.
const MOST_CONNECTIONS: usize = 64;
/// Proxies of fewer seconds have just started.
const YOUNG: u64 = 30;
/// How long these may take to open the streams they want.
const SETTLING: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(300);
const LOGS: &str = "meshctl local logs POD -c proxy";
const CONTROL_PLANE: &str = "meshctl check --only control-plane-answers";

pub(super) async fn pods_ready(scene: Arc<Scene>) -> Outcome {
    pods(
        &scene,
        |pod| !pod.ready,
        "pods are not ready",
        "meshctl local ps, then meshctl local logs POD",
    )
    .await
}

pub(super) async fn pods_meshed(scene: Arc<Scene>) -> Outcome {
    let remedy = "label their namespace meshctl.dev/inject: enabled, and restart them";
    pods(&scene, |pod| !pod.meshed, "pods run without a proxy", remedy).await
}

async fn pods(
    scene: &Scene,
    bad: impl Fn(&ext::Pod) -> bool,
    message: &str,
    remedy: &str,
) -> Outcome {
    match scene.pods().await {
        Err(why) => Outcome::failed(why, CONTROL_PLANE),
        Ok([]) => Outcome::Skipped("there are no pods".to_owned()),
        Ok(pods) => {
            let concerned = pods
                .iter()
                .filter(|pod| bad(pod))
                .map(|pod| format!("{}/{}", pod.namespace, pod.name));
            Outcome::of(concerned.collect(), message, remedy)
        }
    }
}

pub(super) async fn addresses(scene: Arc<Scene>) -> Outcome {
    let pods = match scene.pods().await {
        Err(why) => return Outcome::failed(why, CONTROL_PLANE),
        Ok(pods) => pods,
    };
    let mut by_address: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for pod in pods {
        by_address.entry(&pod.ip).or_default().push(format!("{}/{}", pod.namespace, pod.name));
    }
    let wrong = by_address.into_iter().filter_map(|(ip, names)| match (ip, names.len()) {
        ("", _) => Some(format!("no address: {}", names.join(", "))),
        (_, 1) => None,
        (ip, _) => Some(format!("{ip}: {}", names.join(", "))),
    });
    Outcome::of(
        wrong.collect(),
        "pods lack an address or share one",
        "restart them: meshctl local restart",
    )
}

pub(super) async fn reachable(scene: Arc<Scene>) -> Outcome {
    let objects = |row: &ext::ProxyRow| (!row.reachable).then(|| row.error.clone());
    proxies(&scene, objects, "proxies do not answer", LOGS).await
}

pub(super) async fn ready(scene: Arc<Scene>) -> Outcome {
    let objects = |row: &ext::ProxyRow| (row.reachable && !row.ready).then(String::new);
    proxies(&scene, objects, "proxies are not ready for traffic", LOGS).await
}

/// Proxies that have just started are still opening streams, so it looks again for a while.
pub(super) async fn in_sync(scene: Arc<Scene>) -> Outcome {
    let mesh = match scene.mesh() {
        Ok(mesh) => mesh,
        Err(why) => return Outcome::Skipped(why),
    };
    let until = Instant::now() + SETTLING;
    loop {
        let rows = match mesh.proxies(scene.all("pod")).await {
            Ok(rows) => rows,
            Err(error) => return Outcome::failed(error.to_string(), CONTROL_PLANE),
        };
        let behind = |row: &ext::ProxyRow| {
            let behind = row.reachable && row.streams_up < row.streams_wanted;
            behind.then(|| format!("{} of {} streams are up", row.streams_up, row.streams_wanted))
        };
        let message = "proxies lack streams to the control plane and go by what they last heard";
        let remedy = "meshctl proxy status; a lost stream comes back within 10 s";
        let outcome = judge(&rows, behind, message, remedy);
        let starting = rows.iter().any(|row| behind(row).is_some() && row.uptime_seconds < YOUNG);
        if !starting || Instant::now() >= until {
            return outcome;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

pub(super) async fn config_accepted(scene: Arc<Scene>) -> Outcome {
    let objects = |row: &ext::ProxyRow| {
        (row.config_rejected > 0).then(|| format!("{} updates", row.config_rejected))
    };
    let message =
        "proxies could not use some of what the control plane sent, and kept what they had";
    proxies(&scene, objects, message, LOGS).await
}

pub(super) async fn version(scene: Arc<Scene>) -> Outcome {
    let control = scene.info().map(|info| info.version.clone()).unwrap_or_default();
    let objects = |row: &ext::ProxyRow| {
        (row.reachable && row.version != control).then(|| row.version.clone())
    };
    let message = format!("proxies are not of the control plane's version, {control}");
    proxies(&scene, objects, &message, "restart their pods: meshctl local restart").await
}

/// Looks at every proxy; `wrong` gives the detail of those that have something wrong.
pub(super) async fn proxies(
    scene: &Scene,
    wrong: impl Fn(&ext::ProxyRow) -> Option<String>,
    message: &str,
    remedy: &str,
) -> Outcome {
    match scene.proxies().await {
        Err(why) => Outcome::failed(why, CONTROL_PLANE),
        Ok(rows) => judge(rows, wrong, message, remedy),
    }
}

fn judge(
    rows: &[ext::ProxyRow],
    wrong: impl Fn(&ext::ProxyRow) -> Option<String>,
    message: &str,
    remedy: &str,
) -> Outcome {
    if rows.is_empty() {
        return Outcome::Skipped("no pod has a proxy".to_owned());
    }
    let concerned = rows.iter().filter_map(|row| Some(name(row, &wrong(row)?)));
    Outcome::of(concerned.collect(), message, remedy)
}

fn name(row: &ext::ProxyRow, detail: &str) -> String {
    match detail {
        "" => format!("{}/{}", row.namespace, row.pod),
        detail => format!("{}/{}: {detail}", row.namespace, row.pod),
    }
}

/// Connects to the port that applications are told to use.
pub(super) async fn listening(scene: Arc<Scene>) -> Outcome {
    if scene.dir().is_ok_and(is_transparent) {
        return Outcome::Skipped("the pods are in network namespaces of their own".to_owned());
    }
    let pods = match scene.pods().await {
        Err(why) => return Outcome::failed(why, CONTROL_PLANE),
        Ok(pods) => pods,
    };
    let mut connecting = JoinSet::new();
    for pod in pods.iter().filter(|pod| pod.meshed).take(MOST_CONNECTIONS) {
        let Ok(ip) = pod.ip.parse::<IpAddr>() else { continue };
        let (name, address) =
            (format!("{}/{}", pod.namespace, pod.name), SocketAddr::new(ip, OUTBOUND_PORT));
        connecting.spawn(async move {
            let why = match tokio::time::timeout(CONNECTING, TcpStream::connect(address)).await {
                Ok(Ok(_)) => return None,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            Some(format!("{name}: {address}: {why}"))
        });
    }
    if connecting.is_empty() {
        return Outcome::Skipped("no pod has a proxy".to_owned());
    }
    let mut refused: Vec<String> = connecting.join_all().await.into_iter().flatten().collect();
    refused.sort();
    Outcome::of(refused, "proxies do not take connections of their applications", LOGS)
}
