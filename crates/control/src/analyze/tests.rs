//! Every code from manifests as people write them, and none from those that are as they should be.

use std::collections::BTreeSet;

use super::*;
use crate::index::Index;
use crate::index::authz::Defaults;
use crate::index::identity::MeshNames;
use crate::index::object::{Name, Pod};

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: tax, namespace: shop}
spec: {selector: {app: tax}, ports: [{name: http, port: 8080}, {name: db, port: 3306}]}
---
apiVersion: v1
kind: Service
metadata: {name: calls, namespace: shop}
spec: {selector: {app: tax}, ports: [{port: 8080, appProtocol: grpc}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: tax, namespace: shop}
spec:
  selector: {matchLabels: {app: tax}}
  template:
    metadata: {labels: {app: tax}, annotations: {meshctl.dev/inject: enabled}}
    spec: {containers: [{name: app, image: none}]}
";

fn route(parent: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: \
         shop}}\nspec:\n  parentRefs: [{{group: '', kind: Service, {parent}}}]\n  rules: {rules}\n"
    )
}

fn policy(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: policy.meshctl.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: \
         shop}}\nspec: {spec}\n"
    )
}

fn offline(texts: &[&str]) -> Vec<Diagnosis> {
    let text = texts.join("\n---\n");
    let overlay = Overlay::read([("f.yaml", text.as_str())], &MeshNames::default()).unwrap();
    analyze_over(&Objects::default(), &[], &overlay, false)
}

/// The codes of what is found besides the services, which are sound.
fn codes(texts: &[&str]) -> Vec<Code> {
    let found = offline(&[&[SERVICES], texts].concat());
    found.iter().map(|diagnosis| diagnosis.code).collect()
}

const BACKEND: &str = "backendRefs: [{name: tax, port: 8080}]";

#[test]
fn what_is_as_it_should_be_has_no_findings() {
    assert_eq!(offline(&[SERVICES]), []);
    let sound = route("name: tax, port: 8080", &format!("[{{{BACKEND}}}]"));
    assert_eq!(offline(&[SERVICES, &sound]), []);
}

#[test]
fn every_code_of_routes() {
    let rule = |rest: &str| format!("[{{{rest}}}]");
    let both = |a: &str, b: &str| format!("[{{{a}, {BACKEND}}}, {{{b}, {BACKEND}}}]");
    let table = [
        (
            Code::Object,
            "name: tax, port: 8080",
            rule(&format!("timeouts: {{request: soon}}, {BACKEND}")),
        ),
        (Code::ParentMissing, "name: taxi", rule(BACKEND)),
        (Code::ParentMissing, "name: tax, port: 81", rule(BACKEND)),
        (Code::ParentMissing, "name: tax, sectionName: grpc", rule(BACKEND)),
        (
            Code::BackendMissing,
            "name: tax, port: 8080",
            rule("backendRefs: [{name: taxi, port: 8080}]"),
        ),
        (
            Code::BackendMissing,
            "name: tax, port: 8080",
            rule(&format!(
                "filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: x, port: 1}}}}}}], \
                 {BACKEND}"
            )),
        ),
        (
            Code::NotGranted,
            "name: tax, port: 8080",
            rule("backendRefs: [{name: tax, namespace: other, port: 8080}]"),
        ),
        (
            Code::Shadowed,
            "name: tax, port: 8080",
            both("matches: [{path: {value: /a}}]", "matches: [{path: {value: /a/}}]"),
        ),
        (
            Code::NeverMatches,
            "name: tax, port: 8080",
            rule(&format!(
                "matches: [{{queryParams: [{{name: q, value: a}}, {{name: q, value: b}}]}}], {BACKEND}"
            )),
        ),
        (
            Code::WeightsZero,
            "name: tax, port: 8080",
            rule("backendRefs: [{name: tax, port: 8080, weight: 0}]"),
        ),
        (Code::NoBackends, "name: tax, port: 8080", rule("matches: [{path: {value: /}}]")),
        (Code::OpaquePort, "name: tax, port: 3306", rule(BACKEND)),
        (Code::ProtocolConflict, "name: calls", rule(BACKEND)),
        (
            Code::NotIdempotent,
            "name: tax, port: 8080",
            rule(&format!("retry: {{attempts: 2, codes: [503]}}, {BACKEND}")),
        ),
        (
            Code::TimeoutsExclude,
            "name: tax, port: 8080",
            rule(&format!(
                "matches: [{{method: GET}}], retry: {{attempts: 2}}, timeouts: {{request: 1s, \
                 backendRequest: 1s}}, {BACKEND}"
            )),
        ),
    ];
    for (code, parent, rules) in table {
        assert_eq!(codes(&[&route(parent, &rules)]), [code], "{parent} {rules}");
    }
    let grpc = route("name: tax, port: 8080", "[{backendRefs: [{name: tax, port: 8080}]}]")
        .replace("HTTPRoute", "GRPCRoute")
        .replace("name: r", "name: g");
    let http = route("name: tax, port: 8080", "[{backendRefs: [{name: tax, port: 8080}]}]");
    assert_eq!(codes(&[&grpc, &http]), [Code::SeveralKinds]);
}

#[test]
fn every_code_of_policies() {
    let deny = policy(
        "ServerPolicy",
        "p",
        "{targetRef: {kind: Deployment, name: tax}, defaultAccess: deny}",
    );
    assert_eq!(codes(&[&deny]), [Code::NobodyLetIn]);
    let allow = policy("AuthorizationPolicy", "a", "{targetRef: {kind: Deployment, name: tax}}");
    assert_eq!(codes(&[&deny, &allow]), []);
    let again = deny.replace("name: p", "name: q");
    assert_eq!(codes(&[&deny, &again, &allow]), [Code::Conflicting]);
    let younger = deny.replace("name: p", "name: a, creationTimestamp: '2026-01-02T00:00:00Z'");
    let older = deny.replace("name: p", "name: p, creationTimestamp: '2026-01-01T00:00:00Z'");
    let found = offline(&[SERVICES, &older, &younger, &allow]);
    assert_eq!(found[0].object, "ServerPolicy/shop/a", "age counts, not names: {found:?}");
    let traffic = |name: &str, service: &str| {
        let spec = format!(
            "{{targetRef: {{kind: Service, name: {service}}}, limits: {{pendingRequests: 5}}}}"
        );
        policy("BackendTrafficPolicy", name, &spec)
    };
    let [one, two] = ["a", "b"].map(|name| traffic(name, "tax"));
    assert_eq!(codes(&[&one]), []);
    assert_eq!(codes(&[&one, &two]), [Code::Conflicting]);
    assert_eq!(codes(&[&traffic("a", "taxi")]), [Code::TargetMissing]);
    let named = route("name: tax, port: 8080", &format!("[{{name: slow, {BACKEND}}}]"));
    let fault = |target: &str| {
        let spec = format!("{{targetRef: {{kind: HTTPRoute, {target}}}, faults: [{{delay: 1s}}]}}");
        policy("BackendTrafficPolicy", "a", &spec)
    };
    for (target, field) in [
        ("name: r", None),
        ("name: r, sectionName: slow", None),
        ("name: taxi", Some("spec.targetRef.name")),
        ("name: r, sectionName: fast", Some("spec.targetRef.sectionName")),
    ] {
        let found = offline(&[SERVICES, &named, &fault(target)]);
        let fields: Vec<_> = found.iter().map(|d| d.field.as_str()).collect();
        assert_eq!(fields, field.into_iter().collect::<Vec<_>>(), "{found:?}");
        assert!(found.iter().all(|d| d.code == Code::TargetMissing), "{found:?}");
    }
    let closes = policy("AuthorizationPolicy", "d", "{action: Deny}");
    assert_eq!(codes(&[&closes]), [Code::NobodyLetIn]);
    let of = |target: &str| policy("AuthorizationPolicy", "a", &format!("{{targetRef: {target}}}"));
    for missing in [
        "{kind: Deployment, name: taxi}",
        "{kind: Service, name: taxi}",
        "{kind: Service, name: tax, port: 81}",
        "{kind: HTTPRoute, name: taxi}",
        "{kind: Pod, selector: {matchLabels: {app: taxi}}}",
    ] {
        assert_eq!(codes(&[&of(missing)]), [Code::TargetMissing], "{missing}");
    }
    for there in [
        "{kind: Deployment, name: tax}",
        "{kind: Service, name: tax, port: db}",
        "{kind: Pod, selector: {matchLabels: {app: tax}}}",
    ] {
        assert_eq!(codes(&[&of(there)]), [], "{there}");
    }
    let some = "{action: Deny, from: [{identities: ['*']}]}";
    let taken_back = policy("AuthorizationPolicy", "d", some);
    let given = policy("AuthorizationPolicy", "a", &some.replace("Deny", "Allow"));
    assert_eq!(codes(&[&taken_back, &given]), [Code::Conflicting]);
    let egress = |name, spec: &str| policy("EgressPolicy", name, spec);
    let deny = egress("d", "{deny: [{hosts: ['*.example.com']}]}");
    let mesh = deny.replace("namespace: shop", "namespace: mesh-system");
    let in_vain = egress("a", "{default: Deny, allow: [{hosts: [api.example.com], ports: [443]}]}");
    let useful = egress("a", "{allow: [{hosts: [example.com, api.example.com]}]}");
    assert_eq!(codes(&[&deny, &in_vain]), [Code::Conflicting]);
    assert_eq!(codes(&[&mesh, &in_vain]), [Code::Conflicting]);
    assert_eq!(codes(&[&deny, &useful]), []);
    let hosts: Vec<_> = (0..128).map(|n| format!("h{n}.test")).collect();
    let items = vec![format!("{{hosts: [{}]}}", hosts.join(", ")); 64].join(", ");
    let many = |name| egress(name, &format!("{{allow: [{items}]}}"));
    assert_eq!(codes(&[&many("a")]), []);
    assert_eq!(codes(&[&many("a"), &many("b")]), [Code::TooMany, Code::TooMany]);
}

#[test]
fn names_that_nobody_reads() {
    let with =
        |from: &str, to: &str| codes(&[&SERVICES.replace(from, to).replace("shop", "other")]);
    let annotated = |text: &str| {
        with(
            "metadata: {name: calls,",
            &format!("metadata: {{annotations: {{{text}}}, name: calls,"),
        )
    };
    for misspelt in [
        "config.meshctl.dev/oqaque-ports: '1'",
        "confg.meshctl.dev/opaque-ports: '1'",
        "meshctl.dev/opaque-ports: '1'",
        "mesh.meshctl.dev/x: '1'",
    ] {
        assert_eq!(annotated(misspelt), [Code::Misspelt], "{misspelt}");
    }
    assert_eq!(annotated("config.meshctl.dev/threads: '1'"), [Code::Misplaced]);
    assert_eq!(annotated("config.meshctl.dev/load-balancer: round-robin"), []);
    assert_eq!(annotated("config.meshctl.dev/load-balancer: random"), [Code::Object]);
    assert_eq!(annotated("example.com/opaque-ports: '1'"), []);

    let template = |text: &str| with("meshctl.dev/inject: enabled", text);
    assert_eq!(template("config.meshctl.dev/threads: '2'"), []);
    assert_eq!(template("meshctl.dev/injct: enabled"), [Code::Misspelt]);
    assert_eq!(template("meshctl.dev/inject: 'true'"), [Code::Misspelt]);
    assert_eq!(template("config.meshctl.dev/load-balancer: round-robin"), [Code::Misplaced]);
    let label = with("labels: {app: tax},", "labels: {app: tax, config.meshctl.dev/threads: '2'},");
    assert_eq!(label, [Code::Misplaced]);
    let workload = "metadata: {name: tax, namespace: shop}\nspec:\n  selector";
    let outside = "metadata: {annotations: {meshctl.dev/inject: enabled}, name: tax, namespace: shop}\n\
                   spec:\n  selector";
    assert_eq!(with(workload, outside), [Code::Misplaced]);
}

#[test]
fn findings_say_where() {
    let rules = "\n    - backendRefs:\n        - {name: taxi, port: 8080}";
    let found = offline(&[SERVICES.trim(), &route("name: tax, port: 8080", rules)]);
    let [only] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(only.object, "HTTPRoute/shop/r");
    assert_eq!(only.field, "spec.rules[0].backendRefs[0]");
    assert_eq!(only.file.as_deref(), Some(std::path::Path::new("f.yaml")));
    let text = [SERVICES.trim(), &route("name: tax, port: 8080", rules)].join("\n---\n");
    let line = text.lines().position(|line| line.contains("taxi")).unwrap() + 1;
    assert_eq!(only.line as usize, line);
}

#[test]
fn files_alone_cannot_know_other_namespaces() {
    let elsewhere = route("name: tax, port: 8080, namespace: other", &format!("[{{{BACKEND}}}]"));
    let found = offline(&[SERVICES, &elsewhere]);
    let [only] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((only.code, only.level), (Code::ParentMissing, Level::Warning));
}

/// An index of the services, and a pod with a proxy.
fn live(access: &str) -> Index {
    let mut index = Index::new(Defaults::default(), Some(MeshNames::default()));
    let overlay = Overlay::read([("", SERVICES)], &MeshNames::default()).unwrap();
    let pod = Pod {
        name: Name::new("shop", "tax-1"),
        ip: Some([10, 0, 0, 1].into()),
        running: true,
        ready: true,
        proxy: Some("0.1.0".into()),
        service_account: "tax".into(),
        owner: Some((Kind::Deployment, "tax".into())),
        labels: [("app".to_owned(), "tax".to_owned())].into(),
        default_access: mesh_model::authz::DefaultAccess::from_name(access),
        ..Pod::default()
    };
    index.apply(crate::index::object::Object::Pod(pod));
    let objects = overlay.over(index.objects());
    for service in objects.services() {
        index.apply(crate::index::object::Object::Service((**service).clone()));
        for slice in objects.slices_of(&service.name) {
            index.apply(crate::index::object::Object::EndpointSlice((**slice).clone()));
        }
    }
    for workload in objects.workloads() {
        index.apply(crate::index::object::Object::Workload((**workload).clone()));
    }
    index
}

#[test]
fn of_a_mesh_ports_and_identities_are_known() {
    let look = |index: &Index| {
        let objects = index.objects();
        let scene = Scene { objects, problems: &[], written: &[], complete: true };
        let found = analyze(&scene).into_iter();
        found.map(|d| format!("{} {}", d.code, d.object)).collect::<BTreeSet<_>>()
    };
    assert_eq!(look(&live("all-unauthenticated")), BTreeSet::new());
    assert_eq!(look(&live("deny")), ["MESH113 Deployment/shop/tax".to_owned()].into());

    let mut index = live("all-unauthenticated");
    let allow = policy("AuthorizationPolicy", "a", "{from: [{serviceAccounts: [taxi]}]}");
    let overlay = Overlay::read([("", allow.as_str())], &MeshNames::default()).unwrap();
    for policy in overlay.over(index.objects()).authorization_policies() {
        index.apply(crate::index::object::Object::AuthorizationPolicy((**policy).clone()));
    }
    assert_eq!(look(&index), ["MESH113 AuthorizationPolicy/shop/a".to_owned()].into());
}

#[test]
fn of_files_over_a_mesh_only_what_they_bring_about_is_told() {
    let index = live("deny");
    let over = |text: &str| {
        let overlay = Overlay::read([("new.yaml", text)], &MeshNames::default()).unwrap();
        let found = analyze_over(index.objects(), &[], &overlay, true).into_iter();
        found.map(|d| (d.code, d.object)).collect::<Vec<_>>()
    };
    let rules = format!("[{{{BACKEND}}}]");
    assert_eq!(over(&route("name: tax, port: 8080", &rules)), []);
    let own = (Code::ParentMissing, "HTTPRoute/shop/r".to_owned());
    assert_eq!(over(&route("name: taxi, port: 8080", &rules)), [own]);
}
