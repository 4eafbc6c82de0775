//! Annotations, right and wrong.

use super::*;

fn warned(pairs: &[(&str, &str)]) -> (Options, Vec<String>) {
    let all = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let (mut options, mut findings) = (Options::default(), Vec::new());
    options.take(&all, &mut findings);
    options.reconcile(&mut findings);
    (options, findings.iter().map(warning_text).collect())
}

fn config(name: &str, value: &str) -> (Options, Vec<String>) {
    warned(&[(&format!("config.meshctl.dev/{name}"), value)])
}

#[test]
fn good_values_are_taken() {
    for (name, value, taken) in [
        ("proxy-image", "registry.local:5000/a/b@sha256:00ff", None),
        ("proxy-image-pull-policy", "Never", None),
        ("proxy-cpu-request", "0.1", None),
        ("proxy-cpu-limit", "2", None),
        ("proxy-memory-request", "32Mi", None),
        ("proxy-memory-limit", "1Gi", None),
        ("proxy-log-level", "info,mesh_proxy=debug", None),
        ("proxy-log-format", "json", None),
        ("access-log", "common", None),
        ("threads", "4", None),
        ("shutdown-grace", "90s", None),
        ("native-sidecar", "disabled", None),
        ("skip-inbound-ports", " 22 , 80-90,", Some("22,80-90")),
        ("skip-outbound-ports", "25", None),
        ("skip-subnets", "10.0.0.0/8, 1.2.3.4", Some("10.0.0.0/8,1.2.3.4")),
    ] {
        let (options, warnings) = config(name, value);
        assert_eq!(options.get(name), Some(taken.unwrap_or(value)), "{name}");
        assert_eq!(warnings, Vec::<String>::new(), "{name}");
    }
    let (options, _) = config("proxy-memory-limit", "");
    assert_eq!(options.get("proxy-memory-limit"), None, "no limit");
}

#[test]
fn bad_values_are_left_out_and_told() {
    for (name, value) in [
        ("proxy-image", ""),
        ("proxy-image", "a b"),
        ("proxy-image", "-x"),
        ("proxy-image-pull-policy", "always"),
        ("proxy-cpu-request", "ten"),
        ("proxy-cpu-request", "-1"),
        ("proxy-cpu-limit", "0"),
        ("proxy-memory-request", "1.2.3Mi"),
        ("proxy-memory-request", "64MB"),
        ("proxy-memory-limit", "inf"),
        ("proxy-log-level", "a=b=c"),
        ("proxy-log-level", "$(SECRET)"),
        ("access-log", "on"),
        ("threads", "0"),
        ("shutdown-grace", "10"),
        ("native-sidecar", "false"),
        ("skip-inbound-ports", "http"),
        ("skip-outbound-ports", "0"),
        ("skip-subnets", "10.0.0.0/33"),
        ("opaque-ports", "mysql"),
        ("default-inbound-policy", "open"),
    ] {
        let (options, warnings) = config(name, value);
        assert_eq!(options, Options::default(), "{name}");
        assert_eq!(warnings.len(), 1, "{name}: {warnings:?}");
        assert!(warnings[0].contains(&format!("config.meshctl.dev/{name}")), "{warnings:?}");
    }
}

#[test]
fn misspelt_names_propose_the_nearest() {
    for (wrong, right) in [
        ("config.meshctl.dev/proxy-cpu-requests", "config.meshctl.dev/proxy-cpu-request"),
        ("config.meshctl.dev/oqaque-ports", "config.meshctl.dev/opaque-ports"),
        ("config.meshctl.dev/native-sidecars", "config.meshctl.dev/native-sidecar"),
        ("meshctl.dev/skip-subnets", "config.meshctl.dev/skip-subnets"),
        ("meshctl.dev/injection", "meshctl.dev/inject"),
    ] {
        let (_, warnings) = warned(&[(wrong, "x")]);
        assert_eq!(warnings.len(), 1, "{wrong}");
        assert!(warnings[0].ends_with(&format!("the nearest is {right}")), "{warnings:?}");
    }
    assert!(warned(&[("example.org/x", "y"), ("meshctl.dev/inject", "enabled")]).1.is_empty());
}

/// No API server takes a pod whose request is above its limit.
#[test]
fn a_limit_below_the_request_is_raised() {
    let (options, warnings) = config("proxy-memory-request", "256Mi");
    assert_eq!(options.get("proxy-memory-limit"), Some("256Mi"));
    assert!(warnings[0].contains("128Mi is below"), "{warnings:?}");
    let (options, warnings) = config("proxy-cpu-limit", "5m");
    assert_eq!(options.get("proxy-cpu-limit"), Some("10m"));
    assert_eq!(warnings.len(), 1);
}

#[test]
fn the_pod_wins_over_the_namespace_and_that_over_the_mesh() {
    let mut settings = settings();
    let mesh = [("proxy-log-level", "warn"), ("threads", "2"), ("proxy-image", "mesh/proxy:1")];
    let mesh = mesh.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut findings = Vec::new();
    settings.take(&mesh.into(), &mut findings);
    assert!(findings.is_empty(), "{findings:?}");
    let of = |value: &str| ("config.meshctl.dev/proxy-log-level".to_owned(), value.to_owned());
    let threads = ("config.meshctl.dev/threads".to_owned(), "3".to_owned());
    let namespace = NamespaceMeta { annotations: [of("error"), threads].into(), ..namespace() };
    let (key, value) = of("debug");
    let mut pod = pod(json!({key: value}), json!({"containers": []}));
    let Outcome::Injected(injection) = outcome_in(&pod, &namespace, &settings) else { panic!() };
    apply(&mut pod, &injection.edits);
    let proxy = &pod["spec"]["initContainers"][1];
    assert_eq!(proxy["image"], "mesh/proxy:1");
    let env = proxy["env"].as_array().unwrap();
    let value = |name: &str| env.iter().find(|var| var["name"] == name).unwrap()["value"].clone();
    assert_eq!(value("MESH_PROXY_LOG"), "debug");
    assert_eq!(value("MESH_PROXY_THREADS"), "3");
}

#[test]
fn the_configuration_names_the_mesh() {
    let mut settings = settings();
    let config = [
        ("control-namespace", "mesh"),
        ("trust-domain", "example.org"),
        ("cluster-domain", "k8s.local"),
        ("proxy-imag", "x"),
    ];
    let mut findings = Vec::new();
    let config = config.map(|(key, value)| (key.to_owned(), value.to_owned()));
    settings.take(&config.into(), &mut findings);
    assert_eq!(settings.control_addr(), "mesh-control.mesh.svc.k8s.local:8086");
    assert_eq!(
        settings.control_identity(),
        "mesh-control.mesh.serviceaccount.identity.mesh.example.org"
    );
    assert_eq!(findings.len(), 1);
    assert!(findings[0].message.ends_with("proxy-image"), "{findings:?}");
    settings.take(&[("trust-domain".into(), "No Domain".into())].into(), &mut findings);
    assert_eq!((settings.names.trust_domain.as_str(), findings.len()), ("example.org", 2));
}

#[test]
fn quantities_and_values_never_panic() {
    for value in ["m", "Ki", ".", "1e", "9".repeat(400).as_str(), "é", "\0"] {
        for name in crate::inject::options::names() {
            let _ = config(name, value);
        }
    }
}
