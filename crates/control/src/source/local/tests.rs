//! The local source against real folders.

mod gateway;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_model::route::{Filter, Listed, PathMatch, PathModifier, SessionBy, ValueMatch};
use tempfile::TempDir;

use super::state::{Change, State};
use crate::index::Index;
use crate::index::identity::MeshNames;
use crate::index::object::{AppProtocol, BackendTarget, Kind, Name, Object, RouteFilter};
use crate::index::routes::route_from;
use crate::source::{Problem, Severity};
use crate::state::Shared;

/// A state folder and the index that follows it.
struct Local {
    folder: TempDir,
    state: State,
    index: Index,
}

impl Local {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["manifests", "pods"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let state = State::new(folder.path());
        Self { folder, state, index: Index::default() }
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.folder.path().join("manifests").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.manifest(name), text).unwrap();
    }

    /// Writes what a supervisor would of a pod.
    fn pod(&self, name: &str, ip: &str, ready: bool, labels: &str) {
        let status = if ready { "True" } else { "False" };
        let json = format!(
            r#"{{"apiVersion": "v1", "kind": "Pod",
                "metadata": {{"name": "{name}", "namespace": "shop", "labels": {labels},
                              "annotations": {{"meshctl.dev/proxy-version": "0.1.0"}}}},
                "spec": {{"serviceAccountName": "{name}", "containers": [{{"name": "c", "ports": [{{"name": "http", "containerPort": 8080}}]}}]}},
                "status": {{"phase": "Running", "podIP": "{ip}",
                            "conditions": [{{"type": "Ready", "status": "{status}"}}]}}}}"#
        );
        fs::write(self.folder.path().join("pods").join(format!("shop.{name}.json")), json).unwrap();
    }

    /// Looks at the files; returns the keys of what changed.
    fn scan(&mut self) -> Vec<String> {
        let changes = self.state.scan(&HashSet::new()).unwrap();
        changes
            .into_iter()
            .map(|change| match change {
                Change::Apply(object) => {
                    let key = object.key();
                    self.index.apply(*object);
                    key.to_string()
                }
                Change::Delete(key) => {
                    self.index.delete(&key);
                    format!("-{key}")
                }
            })
            .collect()
    }

    fn problems(&self) -> Vec<Problem> {
        self.state.problems()
    }

    fn endpoints(&self, service: &str) -> Vec<String> {
        let set = self.index.objects().endpoints(&Name::new("shop", service), 80).unwrap();
        set.endpoints.keys().map(ToString::to_string).collect()
    }
}

const TAX: &str = "\
apiVersion: v1
kind: Service
metadata: {name: tax, namespace: shop}
spec:
  selector: {app: tax}
  ports:
    - {port: 80, targetPort: http, appProtocol: http}
";

const ROUTE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: tax, namespace: shop}
spec:
  parentRefs:
    - {group: '', kind: Service, name: tax, port: 80}
  rules:
    - matches:
        - path: {type: PathPrefix, value: /v1}
          headers: [{name: X-Beta, value: 'yes'}]
      timeouts: {request: 5s, backendRequest: 500ms}
      retry: {attempts: 2, codes: [502, 503], backoff: 10ms}
      backendRefs:
        - {name: tax, port: 80, weight: 1}
";

#[test]
fn endpoints_are_ready_pods_that_the_selector_means() {
    let mut local = Local::new();
    local.write("tax.yaml", TAX);
    local.pod("tax-1", "127.1.0.1", true, r#"{"app": "tax"}"#);
    local.pod("tax-2", "127.1.0.2", false, r#"{"app": "tax"}"#);
    local.pod("web-1", "127.1.0.3", true, r#"{"app": "web"}"#);
    local.scan();
    assert!(local.problems().is_empty(), "{:?}", local.problems());
    assert_eq!(local.endpoints("tax"), ["127.1.0.1:8080"]);
    let pod = local.index.objects().pod(&Name::new("shop", "tax-1")).unwrap();
    assert_eq!(pod.service_account, "tax-1");

    local.pod("tax-2", "127.1.0.2", true, r#"{"app": "tax"}"#);
    local.pod("tax-1", "127.1.0.1", true, r#"{"app": "other"}"#);
    assert_eq!(
        local.scan(),
        ["Pod/shop/tax-1", "Pod/shop/tax-2", "EndpointSlice/shop/tax.8080"],
        "only what changed"
    );
    assert_eq!(local.endpoints("tax"), ["127.1.0.2:8080"]);
    fs::remove_file(local.folder.path().join("pods/shop.tax-2.json")).unwrap();
    local.scan();
    assert_eq!(local.endpoints("tax"), [""; 0]);
    assert_eq!(local.scan(), [""; 0]);
}

#[test]
fn a_terminating_pod_gets_no_new_requests() {
    let mut local = Local::new();
    local.write("tax.yaml", TAX);
    local.pod("tax-1", "127.1.0.1", true, r#"{"app": "tax"}"#);
    local.scan();
    let path = local.folder.path().join("pods/shop.tax-1.json");
    let json = fs::read_to_string(&path).unwrap();
    let json = json.replace(
        r#""name": "tax-1","#,
        r#""name": "tax-1", "deletionTimestamp": "2026-01-01T00:00:00Z","#,
    );
    fs::write(&path, json).unwrap();
    local.scan();
    assert_eq!(local.endpoints("tax"), [""; 0]);
    assert!(local.index.objects().pod(&Name::new("shop", "tax-1")).unwrap().terminating);
}

#[test]
fn a_route_says_all_it_can() {
    let mut local = Local::new();
    local.write("all.yaml", &format!("{TAX}---\n{ROUTE}"));
    local.scan();
    assert!(local.problems().is_empty(), "{:?}", local.problems());
    let objects = local.index.objects();
    let route = objects.http_routes().next().unwrap();
    let rule = &route.rules[0];
    assert_eq!(rule.matches[0].path, Some(PathMatch::Prefix("/v1".into())));
    assert_eq!(rule.matches[0].headers[0].name, "x-beta");
    assert_eq!(rule.matches[0].headers[0].value, ValueMatch::Exact(b"yes".to_vec()));
    assert_eq!(rule.timeouts.request.unwrap().as_millis(), 5000);
    let retry = rule.retry.as_ref().unwrap();
    assert_eq!((retry.attempts, retry.statuses.as_slice()), (2, &[502..=502, 503..=503][..]));
    assert_eq!(rule.try_timeout.unwrap().as_millis(), 500);
    assert_eq!(retry.backoff.unwrap().as_millis(), 10);
    assert_eq!(objects.services().next().unwrap().ports[0].app_protocol, AppProtocol::Http1);
}

/// Each mistake, where it is, and a part of what is said about it.
#[test]
fn mistakes_are_reported_with_line_and_field() {
    let cases = [
        (
            ROUTE.replace("weight: 1", "weight: -1"),
            14,
            "spec.rules[0].backendRefs[0].weight",
            "less than 0",
        ),
        (
            ROUTE.replace("weight: 1", "weight: a lot"),
            14,
            "spec.rules[0].backendRefs[0].weight",
            "invalid type",
        ),
        (
            ROUTE.replace("request: 5s", "request: 5 s"),
            11,
            "spec.rules[0].timeouts.request",
            "`5 s`",
        ),
        (ROUTE.replace("[502, 503]", "[502, 200]"), 12, "spec.rules[0].retry.codes[1]", "200"),
        (
            ROUTE.replace("value: /v1", "value: v1"),
            9,
            "spec.rules[0].matches[0].path.value",
            "starts with",
        ),
        (
            ROUTE.replace("PathPrefix, value: /v1", "RegularExpression, value: '('"),
            9,
            "spec.rules[0].matches[0].path.value",
            "regular expression",
        ),
        (
            ROUTE.replace("PathPrefix", "Prefix"),
            9,
            "spec.rules[0].matches[0].path.type",
            "unknown variant",
        ),
        (
            ROUTE.replace("name: X-Beta", "name: 'X Beta'"),
            10,
            "spec.rules[0].matches[0].headers[0].name",
            "header",
        ),
        (TAX.replace("port: 80,", "port: 80000,"), 7, "spec.ports[0].port", "80000"),
        (TAX.replace("name: tax,", "name: Tax,"), 3, "metadata.name", "lower case"),
        (TAX.replace("kind: Service", "kin: Service"), 1, "kind", "apiVersion and kind"),
        (format!("{TAX}---\n{TAX}"), 11, "metadata.name", "twice"),
    ];
    for (text, line, field, message) in cases {
        let mut local = Local::new();
        local.write("bad.yaml", &text);
        local.scan();
        let problems = local.problems();
        let problem = problems.first().unwrap_or_else(|| panic!("no problem with {text}"));
        assert_eq!(problem.severity, Severity::Error, "{problem}");
        assert_eq!((problem.line, problem.field.as_str()), (line, field), "{problem}");
        assert!(problem.message.contains(message), "{problem}");
        assert_eq!(problem.file.as_deref(), Some(local.manifest("bad.yaml").as_path()));
        assert_eq!(local.index.objects().services().count(), 0, "a bad file is not in force");
    }
}

#[test]
fn the_last_good_state_stays_in_force() {
    let mut local = Local::new();
    local.write("all.yaml", &format!("{TAX}---\n{ROUTE}"));
    local.scan();
    for bad in ["a: [", &format!("{TAX}---\n{}", ROUTE.replace("weight: 1", "weight: x"))] {
        local.write("all.yaml", bad);
        assert_eq!(local.scan(), [""; 0]);
        assert_eq!(local.problems().len(), 1);
        assert_eq!(local.index.objects().http_routes().count(), 1);
    }
    local.write("all.yaml", TAX);
    assert_eq!(local.scan(), ["-HTTPRoute/shop/tax"]);
    assert!(local.problems().is_empty());
}

#[test]
fn an_object_in_two_files_is_the_first_ones_until_that_goes() {
    let mut local = Local::new();
    local.write("a.yaml", TAX);
    local.write("b.yaml", &TAX.replace("appProtocol: http", "appProtocol: grpc"));
    local.scan();
    let protocol =
        |local: &Local| local.index.objects().services().next().unwrap().ports[0].app_protocol;
    assert_eq!(protocol(&local), AppProtocol::Http1);
    let [problem] = &local.problems()[..] else { panic!("{:?}", local.problems()) };
    assert_eq!(problem.severity, Severity::Error);
    assert_eq!(problem.object, "Service/shop/tax");
    assert!(
        problem.to_string().contains("b.yaml") && problem.message.contains("a.yaml"),
        "{problem}"
    );
    fs::remove_file(local.manifest("a.yaml")).unwrap();
    assert_eq!(local.scan(), ["Service/shop/tax"]);
    assert_eq!(protocol(&local), AppProtocol::Grpc);
    assert!(local.problems().is_empty());
}

#[test]
fn what_means_nothing_here_is_named_and_the_rest_is_in_force() {
    let mut local = Local::new();
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}\n";
    let unknown = TAX.replace("spec:", "spec:\n  somebodyElses: {field: 1}");
    local.write("all.yaml", &format!("{text}---\n{unknown}"));
    local.scan();
    let [problem] = &local.problems()[..] else { panic!("{:?}", local.problems()) };
    assert_eq!(problem.severity, Severity::Warning);
    assert_eq!((problem.object.as_str(), problem.line), ("ConfigMap/default/c", 2));
    assert_eq!(local.index.objects().services().count(), 1);
}

#[test]
fn what_the_mesh_cannot_do_fails_and_is_reported() {
    let mut local = Local::new();
    let filter =
        "filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: x}}}]";
    local.write("r.yaml", &ROUTE.replace("timeouts:", &format!("{filter}\n      timeouts:")));
    local.scan();
    let [problem] = &local.problems()[..] else { panic!("{:?}", local.problems()) };
    assert_eq!(problem.severity, Severity::Warning);
    assert_eq!(problem.field, "spec.rules[0].filters[0].type");
    let route = local.index.objects().http_routes().next().unwrap();
    assert!(matches!(route.rules[0].filters[0], RouteFilter::Is(Filter::Fail(_))));
}

#[test]
fn every_filter_of_gateway_api_is_understood() {
    let mut local = Local::new();
    let filters = "filters:
      - {type: URLRewrite, urlRewrite: {hostname: other.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: ''}}}
      - {type: RequestMirror, requestMirror: {backendRef: {name: tax, port: 8080}, fraction: {numerator: 1, denominator: 1000}}}
      - {type: CORS, cors: {allowOrigins: ['https://*.example'], allowMethods: ['*'], maxAge: 60}}
      sessionPersistence: {sessionName: shop, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}
      name: the-rule";
    local.write("r.yaml", &ROUTE.replace("timeouts:", &format!("{filters}\n      timeouts:")));
    local.scan();
    assert_eq!(local.problems(), []);
    let route = local.index.objects().http_routes().next().unwrap();
    let rule = &route.rules[0];
    let [
        RouteFilter::Is(Filter::Rewrite(rewrite)),
        RouteFilter::Mirror { target, ratio },
        RouteFilter::Is(Filter::Cors(cors)),
    ] = &rule.filters[..]
    else {
        panic!("{:?}", rule.filters)
    };
    assert_eq!(rewrite.path, Some(PathModifier::Prefix("/".into())));
    assert_eq!(*target, BackendTarget::Service { service: Name::new("shop", "tax"), port: 8080 });
    assert_eq!((ratio.numerator, ratio.denominator), (1, 1000));
    assert_eq!((&cors.methods, cors.max_age), (&Listed::Any, 60));
    let session = rule.session.as_ref().unwrap();
    assert_eq!(session.by, SessionBy::Cookie { permanent: true });
    assert_eq!(session.absolute, Some(Duration::from_secs(3600)));
    assert_eq!(rule.name, "the-rule");
}

#[test]
fn mistakes_in_filters_name_their_field() {
    let table = [
        (
            "URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: 'v2'}}",
            "urlRewrite.path",
        ),
        ("URLRewrite, urlRewrite: {hostname: 'a b'}", "urlRewrite.hostname"),
        (
            "RequestMirror, requestMirror: {backendRef: {name: tax, port: 1}, percent: 101}",
            "requestMirror",
        ),
        (
            "RequestMirror, requestMirror: {backendRef: {name: tax}}",
            "requestMirror.backendRef.port",
        ),
        ("CORS, cors: {allowOrigins: ['shop.example']}", "cors.allowOrigins[0]"),
        ("CORS, cors: {allowHeaders: ['a b']}", "cors.allowHeaders[0]"),
    ];
    for (filter, field) in table {
        let mut local = Local::new();
        let filter = format!("filters: [{{type: {filter}}}]\n      timeouts:");
        local.write("r.yaml", &ROUTE.replace("timeouts:", &filter));
        local.scan();
        let [problem] = &local.problems()[..] else { panic!("{field}: {:?}", local.problems()) };
        assert_eq!(problem.field, format!("spec.rules[0].filters[0].{field}"), "{problem}");
        assert_eq!(problem.severity, Severity::Error);
    }
}

#[test]
fn services_get_addresses_and_keep_them() {
    let mut local = Local::new();
    local.write("tax.yaml", TAX);
    local.write(
        "none.yaml",
        &TAX.replace("name: tax", "name: none").replace("spec:", "spec:\n  clusterIP: None"),
    );
    local.write(
        "own.yaml",
        &TAX.replace("name: tax", "name: own").replace("spec:", "spec:\n  clusterIP: 10.9.9.9"),
    );
    local.scan();
    let ips = |index: &Index, name: &str| {
        index.objects().service(&Name::new("shop", name)).unwrap().cluster_ips.clone()
    };
    let tax = ips(&local.index, "tax");
    assert_eq!(tax.len(), 1);
    assert!(ips(&local.index, "none").is_empty());
    assert_eq!(ips(&local.index, "own")[0].to_string(), "10.9.9.9");

    let mut again = State::new(local.folder.path());
    let changes = again.scan(&HashSet::new()).unwrap();
    let same = changes.iter().any(|change| {
        matches!(change, Change::Apply(object)
            if matches!(&**object, Object::Service(s) if s.name.name == "tax" && s.cluster_ips == tax))
    });
    assert!(same, "{changes:?}");
}

#[test]
fn files_that_are_not_manifests_are_left_alone() {
    let mut local = Local::new();
    fs::create_dir(local.manifest("deep")).unwrap();
    local.write("deep/tax.yml", TAX);
    local.write(".tax.yaml", "a: [");
    local.write("tax.yaml~", "a: [");
    local.write("empty.yaml", "# nothing yet\n---\n");
    std::os::unix::fs::symlink("..", local.manifest("loop")).unwrap();
    local.scan();
    assert!(local.problems().is_empty(), "{:?}", local.problems());
    assert_eq!(local.index.objects().services().count(), 1);
}

#[test]
fn the_demo_is_without_problems() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/demo");
    let mut local = Local::new();
    for file in fs::read_dir(demo).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, local.manifest(&file.file_name().unwrap().to_string_lossy())).unwrap();
    }
    local.scan();
    assert!(local.problems().is_empty(), "{:?}", local.problems());
    let objects = local.index.objects();
    assert!(objects.workloads().any(|w| w.kind == Kind::Deployment));
    assert!(objects.http_routes().count() > 0);
    for route in objects.http_routes() {
        let from = route_from(Kind::HttpRoute, &route.head);
        for backend in route.rules.iter().flat_map(|rule| &rule.backends) {
            assert!(objects.usable(from, &backend.target).is_ok(), "{backend:?}");
        }
    }
}

/// The only test that waits for the system: for an event, with a bound.
#[tokio::test]
async fn changes_are_noticed_while_it_runs() {
    let local = Local::new();
    let shared = Arc::new(Shared::default());
    let task = tokio::spawn(super::run(
        local.folder.path().to_owned(),
        MeshNames::default(),
        Arc::clone(&shared),
    ));
    let limit = std::time::Duration::from_secs(20);
    let mut ready = shared.watch_ready();
    tokio::time::timeout(limit, ready.wait_for(|ready| *ready)).await.unwrap().unwrap();

    let mut revision = shared.index.read().revision();
    // As a supervisor writes: complete, then renamed.
    local.write(".tax.tmp", TAX);
    fs::rename(local.manifest(".tax.tmp"), local.manifest("tax.yaml")).unwrap();
    tokio::time::timeout(limit, revision.changed()).await.unwrap().unwrap();
    assert_eq!(shared.index.read().objects().services().count(), 1);

    fs::remove_file(local.manifest("tax.yaml")).unwrap();
    tokio::time::timeout(limit, revision.changed()).await.unwrap().unwrap();
    assert_eq!(shared.index.read().objects().services().count(), 0);
    task.abort();
}

#[tokio::test]
async fn who_asks_is_answered_when_all_that_was_written_before_is_in_force() {
    let local = Local::new();
    let shared = Arc::new(Shared::default());
    let task = tokio::spawn(super::run(
        local.folder.path().to_owned(),
        MeshNames::default(),
        Arc::clone(&shared),
    ));
    let services = || shared.index.read().objects().services().count();
    for _ in 0..10 {
        local.write("tax.yaml", TAX);
        shared.refresh().await;
        assert_eq!(services(), 1);
        fs::remove_file(local.manifest("tax.yaml")).unwrap();
        // Who asks while others do is not forgotten.
        tokio::join!(shared.refresh(), shared.refresh());
        assert_eq!(services(), 0);
    }
    task.abort();
}

const FINANCE: &str = "\
apiVersion: policy.meshctl.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: finance, namespace: shop}
spec:
  targetRef: {kind: Service, name: tax}
  from:
    - networks: [10.0.0.0/8]
";

#[test]
fn policies_are_read_and_mistakes_keep_the_last_good_one() {
    let mut local = Local::new();
    local.write("finance.yaml", FINANCE);
    assert_eq!(local.scan(), ["AuthorizationPolicy/shop/finance"]);
    assert!(local.problems().is_empty(), "{:?}", local.problems());

    local.write("finance.yaml", &FINANCE.replace("networks", "network"));
    assert_eq!(local.scan(), [""; 0], "what was good stays in force");
    let [problem] = &local.problems()[..] else { panic!("{:?}", local.problems()) };
    assert_eq!((problem.severity, problem.line), (Severity::Error, 7));
    assert_eq!(problem.object, "AuthorizationPolicy/shop/finance");
    assert!(problem.field.starts_with("spec.from[0]"), "{problem}");
    assert!(problem.message.contains("unknown field `network`"), "{problem}");
    fs::remove_file(local.manifest("finance.yaml")).unwrap();
    assert_eq!(local.scan(), ["-AuthorizationPolicy/shop/finance"]);
}

#[test]
fn pods_are_in_the_zone_of_their_label_and_services_spread_by_zone() {
    let mut local = Local::new();
    local.write("tax.yaml", TAX);
    for (name, ip, zone) in [("tax-1", "127.1.0.1", "a"), ("tax-2", "127.1.0.2", "b")] {
        let labels = format!(r#"{{"app": "tax", "topology.kubernetes.io/zone": "{zone}"}}"#);
        local.pod(name, ip, true, &labels);
    }
    local.scan();
    let near = |local: &Local| -> Vec<String> {
        let tax = Name::new("shop", "tax");
        let objects = local.index.objects();
        let set = objects.endpoints_from(&tax, 80, objects.zone_of(&Name::new("shop", "tax-2")));
        set.unwrap().endpoints.keys().map(ToString::to_string).collect()
    };
    assert_eq!(near(&local), ["127.1.0.1:8080", "127.1.0.2:8080"]);
    local.write("tax.yaml", &TAX.replace("spec:\n", "spec:\n  trafficDistribution: PreferClose\n"));
    local.scan();
    assert!(local.problems().is_empty(), "{:?}", local.problems());
    assert_eq!(near(&local), ["127.1.0.2:8080"]);
}
