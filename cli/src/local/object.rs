//! A pod as a Kubernetes object with status, which is how the control plane learns of it.
//!
//! The supervisor writes these as a kubelet would. An object says what is, whole, and replaces the last one.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use mesh_control::source::kubernetes::{
    OWNER_KIND_LABEL, OWNER_NAME_LABEL, PROXY_VERSION_ANNOTATION,
};
use serde_json::{Value, json};

use super::environment::Wiring;
use super::keeper::State;
use super::pod::{Phase, PodSpec, PodStatus};
use super::workload::Check;

const TEMPLATE_HASH: &str = "meshctl.dev/template-hash";

/// The object of a pod that is not gone.
pub fn pod(spec: &PodSpec, status: &PodStatus) -> Value {
    let Wiring { template, .. } = &spec.wiring;
    let mut labels = template.labels.clone();
    labels.insert(OWNER_KIND_LABEL.to_owned(), spec.owner.kind.to_owned());
    labels.insert(OWNER_NAME_LABEL.to_owned(), spec.owner.name.clone());
    let mut annotations = template.annotations.clone();
    annotations.insert(TEMPLATE_HASH.to_owned(), spec.hash.clone());
    if template.meshed {
        annotations
            .insert(PROXY_VERSION_ANNOTATION.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    }
    let mut metadata = json!({
        "name": spec.key.name,
        "namespace": spec.key.namespace,
        "uid": spec.wiring.uid,
        "labels": labels,
        "annotations": annotations,
        "creationTimestamp": spec.created,
    });
    if let Phase::Leaving { since } = &status.phase {
        metadata["deletionTimestamp"] = json!(since);
        metadata["deletionGracePeriodSeconds"] = json!(template.grace.as_secs());
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "nodeName": "localhost",
            "serviceAccountName": template.service_account,
            "terminationGracePeriodSeconds": template.grace.as_secs(),
            "containers": containers(spec),
        },
        "status": pod_status(spec, status),
    })
}

fn containers(spec: &PodSpec) -> Vec<Value> {
    let containers = spec.wiring.template.containers.iter();
    let containers = containers.map(|container| {
        let ports = container.ports.iter().map(|port| {
            let mut value = json!({ "containerPort": port.port, "protocol": "TCP" });
            if let Some(name) = &port.name {
                value["name"] = json!(name);
            }
            value
        });
        let mut value = json!({
            "name": container.name,
            "image": container.image,
            "command": container.command,
            "ports": ports.collect::<Vec<_>>(),
        });
        // Probes are allowed whatever policies say, so the control plane must know of them.
        if let Some(probe) = &container.readiness {
            value["readinessProbe"] = match &probe.check {
                Check::Http { port, path, .. } => {
                    json!({ "httpGet": { "port": port, "path": path } })
                }
                Check::Tcp { port } => json!({ "tcpSocket": { "port": port } }),
            };
        }
        value
    });
    containers.collect()
}

fn pod_status(spec: &PodSpec, status: &PodStatus) -> Value {
    let condition = |kind: &str, holds: bool| {
        let mut value = json!({ "type": kind, "status": if holds { "True" } else { "False" } });
        if let (false, Some(waiting)) = (holds, &status.waiting_for) {
            value["message"] = json!(waiting);
        }
        value
    };
    let statuses = spec.wiring.template.containers.iter().zip(&status.apps);
    let statuses = statuses.map(|(container, kept)| {
        let state = match kept.state {
            State::Running(_) => json!({ "running": {} }),
            State::Waiting => json!({ "waiting": { "reason": "PodInitializing" } }),
            State::BackingOff => json!({ "waiting": {
                "reason": "CrashLoopBackOff",
                "message": kept.last_exit,
            }}),
            State::Stopped => json!({ "terminated": { "exitCode": 0 } }),
        };
        json!({
            "name": container.name,
            "image": container.image,
            "imageID": "",
            "ready": status.ready,
            "restartCount": kept.restarts,
            "state": state,
        })
    });
    let ip = spec.wiring.ip.to_string();
    let started = status.apps.iter().all(|kept| kept.state != State::Waiting);
    json!({
        "phase": if started { "Running" } else { "Pending" },
        "hostIP": "127.0.0.1",
        "podIP": ip,
        "podIPs": [{ "ip": ip }],
        "startTime": spec.created,
        "conditions": [
            condition("PodScheduled", true),
            condition("Initialized", started),
            condition("ContainersReady", status.ready),
            condition("Ready", status.ready),
        ],
        "containerStatuses": statuses.collect::<Vec<_>>(),
    })
}

/// Writes a file so that readers see the old or the new content, whole.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    write_with_mode(path, content, 0o666)
}

/// As [`write_atomically`], for its owner's eyes only.
pub fn write_secret(path: &Path, content: &[u8]) -> io::Result<()> {
    write_with_mode(path, content, 0o600)
}

fn write_with_mode(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other(format!("{} is no file's path", path.display())));
    };
    // The dot keeps readers of the directory from taking it for a finished file.
    let temporary = dir.join(format!(".{}.tmp", name.to_string_lossy()));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::keeper::KeptStatus;
    use crate::local::pod::tests::spec;
    use k8s_openapi::api::core::v1::Pod;
    use std::os::unix::fs::PermissionsExt;

    fn read(status: &PodStatus) -> Pod {
        serde_json::from_value(pod(&spec(), status)).unwrap()
    }

    fn condition(pod: &Pod, kind: &str) -> String {
        let conditions = pod.status.as_ref().unwrap().conditions.as_ref().unwrap();
        conditions.iter().find(|c| c.type_ == kind).unwrap().status.clone()
    }

    #[test]
    fn it_is_a_pod_of_its_owner_with_an_address() {
        let pod = read(&PodStatus { ready: true, ..PodStatus::new(1, true) });
        let labels = pod.metadata.labels.as_ref().unwrap();
        assert_eq!((labels["app"].as_str(), labels[OWNER_NAME_LABEL].as_str()), ("web", "web"));
        assert_eq!(labels[OWNER_KIND_LABEL], "Deployment");
        assert!(pod.metadata.annotations.as_ref().unwrap().contains_key(PROXY_VERSION_ANNOTATION));
        assert_eq!(pod.status.as_ref().unwrap().pod_ip.as_deref(), Some("127.1.1.1"));
        assert_eq!(condition(&pod, "Ready"), "True");
        assert!(pod.metadata.deletion_timestamp.is_none());
        let ports = pod.spec.unwrap().containers[0].ports.clone().unwrap();
        assert_eq!((ports[0].container_port, ports[0].name.as_deref()), (8080, Some("http")));
    }

    #[test]
    fn probes_are_told() {
        let mut spec = spec();
        let template = &mut spec.wiring.template;
        template.containers[0].readiness = Some(crate::local::workload::Probe {
            check: Check::Http { port: 8080, path: "/readyz".into(), headers: Vec::new() },
            initial_delay: Default::default(),
            period: Default::default(),
            timeout: Default::default(),
            success_threshold: 1,
            failure_threshold: 1,
        });
        let pod: Pod = serde_json::from_value(pod(&spec, &PodStatus::new(1, true))).unwrap();
        let probe = pod.spec.unwrap().containers[0].readiness_probe.clone().unwrap();
        assert_eq!(probe.http_get.unwrap().path.as_deref(), Some("/readyz"));
    }

    #[test]
    fn leaving_is_a_deletion_timestamp() {
        let mut status = PodStatus::new(1, true);
        status.phase = Phase::Leaving { since: "2026-11-22T20:00:00Z".to_owned() };
        assert!(read(&status).metadata.deletion_timestamp.is_some());
    }

    #[test]
    fn a_crash_loop_shows() {
        let mut status = PodStatus::new(1, true);
        status.apps[0] = KeptStatus {
            state: State::BackingOff,
            restarts: 3,
            last_exit: Some("exit code 1".to_owned()),
        };
        status.waiting_for = Some("app: exit code 1".to_owned());
        let pod = read(&status);
        assert_eq!(condition(&pod, "Ready"), "False");
        let status = pod.status.unwrap().container_statuses.unwrap().remove(0);
        assert_eq!(status.restart_count, 3);
        let waiting = status.state.unwrap().waiting.unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    }

    #[test]
    fn a_written_file_is_whole_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shop.web-1.json");
        write_atomically(&path, b"old").unwrap();
        write_atomically(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        write_secret(&path, b"secret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
