mod options;

use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::edit::{apply, patch};
use super::*;

/// A root that is none; nobody looks into it here.
const ROOTS: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

fn settings() -> Settings {
    Settings { trust_roots: Some(ROOTS.into()), ..Settings::default() }
}

fn namespace() -> NamespaceMeta {
    let label = (INJECT.to_owned(), "enabled".to_owned());
    NamespaceMeta { name: "shop".into(), labels: [label].into(), ..NamespaceMeta::default() }
}

fn outcome_in(pod: &Value, namespace: &NamespaceMeta, settings: &Settings) -> Outcome {
    let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
    inject(&typed.metadata, &typed.spec.unwrap(), namespace, settings)
}

fn outcome(pod: &Value) -> Outcome {
    outcome_in(pod, &namespace(), &settings())
}

fn injection(pod: &Value) -> Injection {
    match outcome(pod) {
        Outcome::Injected(injection) => injection,
        other => panic!("{other:?}"),
    }
}

fn injected(pod: &Value) -> Value {
    let mut after = pod.clone();
    apply(&mut after, &injection(pod).edits);
    after
}

fn pod(annotations: Value, spec: Value) -> Value {
    json!({"metadata": {"name": "web", "annotations": annotations}, "spec": spec})
}

fn plain() -> Value {
    pod(json!({}), json!({"containers": [{"name": "web", "image": "web"}]}))
}

fn shown(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

/// Our types know all that is injected: what they do not would be lost on the way back.
fn assert_known(pod: &Value) {
    let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
    let mut back = serde_json::to_value(typed).unwrap();
    for added in ["apiVersion", "kind"] {
        back.as_object_mut().unwrap().remove(added);
    }
    assert_eq!(shown(&back), shown(pod));
}

#[test]
fn a_pod_gets_a_native_sidecar() {
    let pod = pod(
        json!({"a": "b"}),
        json!({
            "containers": [{"name": "web", "image": "web"}],
            "initContainers": [{"name": "migrate", "image": "web"}],
            "volumes": [{"name": "data", "emptyDir": {}}],
        }),
    );
    let pod = injected(&pod);
    assert_known(&pod);
    insta::assert_snapshot!(shown(&pod));
}

#[test]
fn a_plain_container_waits_on_both_ends() {
    let annotations = json!({
        "config.meshctl.dev/native-sidecar": "disabled",
        "config.meshctl.dev/proxy-log-level": "debug,h2=warn",
        "config.meshctl.dev/access-log": "json",
        "config.meshctl.dev/threads": "2",
        "config.meshctl.dev/shutdown-grace": "20s",
        "config.meshctl.dev/skip-inbound-ports": "9090, 7000-7010",
        "config.meshctl.dev/skip-outbound-ports": "3306",
        "config.meshctl.dev/skip-subnets": "10.9.0.0/16, fd00::/8",
        "config.meshctl.dev/proxy-cpu-limit": "500m",
    });
    let pod = injected(&pod(annotations, json!({"containers": [{"name": "web"}, {"name": "b"}]})));
    assert_known(&pod);
    assert_eq!(pod["spec"]["containers"][0]["name"], PROXY_CONTAINER);
    insta::assert_snapshot!(shown(&pod));
}

#[test]
fn without_roots_there_is_no_identity_at_all() {
    let mut pod = plain();
    let settings = Settings::default();
    let Outcome::Injected(injection) = outcome_in(&pod, &namespace(), &settings) else { panic!() };
    apply(&mut pod, &injection.edits);
    assert_known(&pod);
    let text = shown(&pod);
    for word in ["IDENTITY", "mesh-token", "volumes"] {
        assert!(!text.contains(word), "{word} in {text}");
    }
}

#[test]
fn a_template_without_metadata_gets_some() {
    let pod = injected(&json!({"spec": {"containers": [{"name": "web"}], "volumes": null}}));
    assert_eq!(
        pod["metadata"]["annotations"]["meshctl.dev/proxy-version"],
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(pod["spec"]["volumes"][0]["name"], "mesh-token");
}

#[test]
fn the_nearest_word_decides() {
    let places = |pod_label, pod_annotation, ns_label, ns_annotation| {
        let map = |value: &str| -> Value {
            if value.is_empty() { json!({}) } else { json!({INJECT: value}) }
        };
        let mut pod = plain();
        pod["metadata"]["labels"] = map(pod_label);
        pod["metadata"]["annotations"] = map(pod_annotation);
        let of = |value| serde_json::from_value(map(value)).unwrap();
        let namespace = NamespaceMeta {
            name: "shop".into(),
            labels: of(ns_label),
            annotations: of(ns_annotation),
        };
        match outcome_in(&pod, &namespace, &settings()) {
            Outcome::Injected(injection) => injection.rule,
            Outcome::Skipped { reason } => format!("no: {reason}"),
            Outcome::Refused { reason } => panic!("{reason}"),
        }
    };
    let (on, off) = ("enabled", "disabled");
    assert_eq!(places(on, off, off, off), format!("the pod's label {INJECT} is enabled"));
    assert_eq!(places(off, on, on, on), format!("no: the pod's label {INJECT} is disabled"));
    assert_eq!(places("", on, off, off), format!("the pod's annotation {INJECT} is enabled"));
    assert_eq!(places("", "", off, on), format!("no: the namespace's label {INJECT} is disabled"));
    assert_eq!(places("", "", "", on), format!("the namespace's annotation {INJECT} is enabled"));
    assert_eq!(places("yes", "", on, ""), format!("the namespace's label {INJECT} is enabled"));
    assert!(places("", "", "", "").starts_with("no: neither"));
}

#[test]
fn words_that_are_none_are_told() {
    let mut pod = plain();
    pod["metadata"]["labels"] = json!({INJECT: "true"});
    let warnings = injection(&pod).warnings;
    assert!(warnings[0].message.contains("`true` is neither"), "{warnings:?}");
}

#[test]
fn pods_of_the_mesh_and_the_system_are_left_alone() {
    for name in ["mesh-system", "kube-system"] {
        let namespace = NamespaceMeta { name: name.into(), ..namespace() };
        let outcome = outcome_in(&plain(), &namespace, &settings());
        assert!(matches!(outcome, Outcome::Skipped { .. }), "{name}: {outcome:?}");
    }
}

#[test]
fn what_cannot_have_a_proxy_is_refused_with_the_reason() {
    let container = |name: &str| json!({"containers": [{"name": "web"}, {"name": name}]});
    for (spec, reason) in [
        (json!({"containers": [], "hostNetwork": true}), "hostNetwork"),
        (json!({"containers": [], "os": {"name": "windows"}}), "Windows"),
        (container("istio-proxy"), "Istio"),
        (container("linkerd-proxy"), "Linkerd"),
        (container("kuma-sidecar"), "Kuma"),
        (container("consul-dataplane"), "Consul"),
        (container("mesh-proxy"), "rename"),
        (json!({"containers": [], "initContainers": [{"name": "linkerd-proxy"}]}), "Linkerd"),
        (json!({"containers": [], "volumes": [{"name": "mesh-token"}]}), "volume mesh-token"),
        (json!({"containers": [{"name": "web", "ports": [{"containerPort": 4143}]}]}), "port 4143"),
    ] {
        let outcome = outcome(&pod(json!({}), spec));
        let Outcome::Refused { reason: said } = outcome else { panic!("{outcome:?}") };
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn what_is_injected_is_left_as_it_is() {
    for native in ["enabled", "disabled"] {
        let annotation = json!({"config.meshctl.dev/native-sidecar": native});
        let pod = injected(&pod(annotation, json!({"containers": [{"name": "web"}]})));
        let again = outcome(&pod);
        let Outcome::Skipped { reason } = again else { panic!("{again:?}") };
        assert!(reason.starts_with("already injected"), "{reason}");
    }
    // A copied annotation makes no proxy.
    let copied = json!({"meshctl.dev/proxy-version": "0.0.1"});
    let pod = injected(&pod(copied, json!({"containers": [{"name": "web"}]})));
    assert_eq!(pod["spec"]["initContainers"][1]["name"], PROXY_CONTAINER);
}

#[test]
fn reservations_are_told() {
    let spec = json!({
        "containers": [{"name": "web", "securityContext": {"runAsUser": PROXY_UID}}],
        "dnsPolicy": "Default",
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 10,
    });
    let annotations = json!({
        "config.meshctl.dev/native-sidecar": "disabled",
        "config.meshctl.dev/shutdown-grace": "20s",
    });
    let warnings = injection(&pod(annotations, spec)).warnings;
    let fields: Vec<_> = warnings.iter().map(|warning| warning.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "spec.containers[0].securityContext.runAsUser",
            "spec.dnsPolicy",
            "metadata.annotations[config.meshctl.dev/native-sidecar]",
            "metadata.annotations[config.meshctl.dev/shutdown-grace]",
        ]
    );
}

/// Pods with and without whatever the edits touch.
fn any_pod() -> impl Strategy<Value = Value> {
    let list = |name: &'static str| {
        prop_oneof![
            Just(None),
            Just(Some(Value::Null)),
            (0..3usize).prop_map(move |count| {
                Some((0..count).map(|at| json!({"name": format!("{name}{at}")})).collect())
            }),
        ]
    };
    let map = prop_oneof![
        Just(None),
        Just(Some(Value::Null)),
        Just(Some(json!({}))),
        Just(Some(json!({"a/b~c": "d", "meshctl.dev/proxy-version": "0.0.1"}))),
        Just(Some(json!({"config.meshctl.dev/native-sidecar": "disabled"}))),
    ];
    (list("init"), list("volume"), map, any::<bool>()).prop_map(|(init, volumes, map, meta)| {
        let mut pod = json!({"spec": {"containers": [{"name": "web"}]}});
        for (name, value) in [("initContainers", init), ("volumes", volumes)] {
            if let Some(value) = value {
                pod["spec"][name] = value;
            }
        }
        if meta {
            pod["metadata"] = json!({"name": "web"});
            if let Some(map) = map {
                pod["metadata"]["annotations"] = map;
            }
        }
        pod
    })
}

proptest! {
    /// The patch does what the edits do, wherever the pod is.
    #[test]
    fn the_patch_is_the_edits(pod in any_pod()) {
        let edits = injection(&pod).edits;
        let operations = patch(&pod, &["a", "b"], &edits);
        let mut patched = json!({"a": {"b": pod}});
        json_patch::patch(&mut patched, &operations).unwrap();
        let mut edited = pod.clone();
        apply(&mut edited, &edits);
        prop_assert_eq!(&patched["a"]["b"], &edited);
        let again = matches!(outcome(&edited), Outcome::Skipped { .. });
        prop_assert!(again);
    }
}
