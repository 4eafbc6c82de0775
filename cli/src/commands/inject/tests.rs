use std::collections::BTreeMap;

use mesh_control::inject::Settings;
use mesh_control::source::local::yaml;
use proptest::prelude::*;
use serde_json::json;

use super::files::Input;
use super::text::{self, Mode, Report, Verdict};
use crate::error::CliError;
use crate::testing::objects::Objects;
use crate::testing::{golden, run_alone, run_in};

const DEMO: [&str; 7] = [
    include_str!("../../../../manifests/demo/00-namespace.yaml"),
    include_str!("../../../../manifests/demo/checkout.yaml"),
    include_str!("../../../../manifests/demo/ledger.yaml"),
    include_str!("../../../../manifests/demo/load.yaml"),
    include_str!("../../../../manifests/demo/shipping.yaml"),
    include_str!("../../../../manifests/demo/tax.yaml"),
    include_str!("../../../../manifests/demo/web.yaml"),
];

/// All that people write and tools have trouble with.
const HARD: &str = "\
# before everything
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop} # in flow
spec:
  template:   # the template
    # above the metadata
    metadata:
      labels: &labels
        app: web
    spec:
      # above the first
      containers:
      - name: web   # without indentation
        image: \"web:1\"
        args:
          - |
            # >>> not ours
              kept
      volumes:

        # above the item
        -   name: data
            emptyDir: {}
  selector:
    matchLabels: *labels
...
---
kind: ConfigMap
apiVersion: v1
data: {a: 'b'}
---
apiVersion: batch/v1
kind: CronJob
metadata:
  name: report
spec:
  schedule: '* * * * *'
  jobTemplate:
    spec:
      template:
        metadata:
          annotations:
            on: 'yes'
        spec: {restartPolicy: Never, containers: [{name: report, image: r}], volumes: [{name: x}]}
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata:
    name: one
    annotations:
  spec:
    initContainers: []
    containers:
    - {name: a}
- apiVersion: v1
  kind: Service
  metadata:
    name: svc
# the end";

fn settings() -> Settings {
    Settings {
        trust_roots: Some("-----BEGIN\nAAAA\n-----END\n".into()),
        inject_unlabelled: true,
        ..Settings::default()
    }
}

fn injected(text: &str) -> Result<(String, Vec<Report>), CliError> {
    let mut reports = Vec::new();
    let settings = settings();
    let mode = Mode::Inject(&settings);
    let text = text::inject(&Input::of(text), &BTreeMap::new(), &mode, &mut reports)?;
    Ok((text, reports))
}

fn uninjected(text: &str) -> String {
    text::uninject(&Input::of(text), &mut Vec::new()).unwrap()
}

fn values(text: &str) -> Vec<serde_json::Value> {
    yaml::documents(text).into_iter().map(|document| document.unwrap().root.to_json()).collect()
}

/// Injects, and what must hold then.
fn there_and_back(text: &str) -> String {
    let (there, reports) = injected(text).unwrap();
    assert!(!reports.is_empty());
    assert!(reports.iter().all(|report| matches!(report.verdict, Verdict::Injected(_))));
    assert_ne!(there, text);
    assert_eq!(uninjected(&there), text, "{there}");
    assert_eq!(injected(&there).unwrap().0, there, "once more");
    there
}

#[test]
fn the_demo_comes_back_byte_for_byte() {
    let mut workloads = 0;
    for text in DEMO {
        let (there, reports) = injected(text).unwrap();
        workloads += reports.len();
        assert_eq!(uninjected(&there), text);
        assert_eq!(injected(&there).unwrap().0, there);
        assert_eq!(there == text, reports.is_empty(), "what has no workload is not touched");
    }
    assert!(workloads > 5, "{workloads}");
}

#[test]
fn hard_text_comes_back_byte_for_byte() {
    let there = there_and_back(HARD);
    golden("inject-hard.yaml", &there);
    let crlf = HARD.replace('\n', "\r\n");
    let there = there_and_back(&crlf);
    assert_eq!(there.matches('\n').count(), there.matches("\r\n").count());
}

#[test]
fn json_comes_back_byte_for_byte() {
    for text in [
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"a"}]}}"#,
        "{\n  \"apiVersion\": \"apps/v1\",\n  \"kind\": \"Deployment\",\n  \"spec\": {\n    \"template\": {\n      \
         \"spec\": { \"volumes\": [ {\"name\": \"x\"} ], \"containers\": [] }\n    }\n  }\n}\n",
    ] {
        let there = there_and_back(text);
        serde_json::from_str::<serde_json::Value>(&there).unwrap();
    }
}

/// A cluster has no comments: what it prints has lost the marks.
#[test]
fn the_marks_are_not_needed() {
    for text in DEMO.iter().copied().chain([HARD]) {
        let (there, _) = injected(text).unwrap();
        let is_mark =
            |line: &&str| line.contains("# >>> meshctl") || line.contains("# <<< meshctl");
        let bare: String = there.split_inclusive('\n').filter(|line| !is_mark(line)).collect();
        let without_empty = |text: &str| {
            let text =
                text.replace("    initContainers: []\n", "").replace("    annotations:\n  ", "  ");
            values(&text)
        };
        assert_eq!(without_empty(&uninjected(&bare)), without_empty(text), "{bare}");
    }
}

#[test]
fn what_has_no_place_is_refused_with_its_line() {
    for (text, said) in [
        (
            "a: 1\n---\nkind: Pod\napiVersion: v1\nspec: &s {containers: []}\nx: *s\nmetadata:",
            "stdin:2",
        ),
        ("kind: [Pod\n", "stdin:1"),
        ("apiVersion: v1\nkind: Pod\nspec: {containers: []}\n", "stdin:1"),
        (
            "apiVersion: apps/v1\nkind: Deployment\nx: &t\n  spec: {containers: []}\nspec: {template: *t}\n",
            "stdin:1",
        ),
    ] {
        let error = injected(text).map(|(text, _)| text).unwrap_err();
        assert!(error.message.contains(said), "{error}");
    }
}

/// What stands between one block and the next is not ours.
#[test]
fn a_mark_without_its_end_takes_nothing_along() {
    let (there, _) = injected(DEMO[2]).unwrap();
    let lines: Vec<&str> = there.split_inclusive('\n').collect();
    let at = |mark: &str| lines.iter().position(|line| line.trim().starts_with(mark)).unwrap();
    let end = at("# <<< meshctl inject");
    let text: String =
        lines.iter().enumerate().filter(|(at, _)| *at != end).map(|(_, line)| *line).collect();
    let next = (end..).zip(&lines[end + 1..]).find(|(_, line)| line.trim().starts_with("# >>>"));
    let place = format!("stdin:{}: ", next.expect("several blocks").0 + 1);
    let error = text::uninject(&Input::of(&text), &mut Vec::new()).unwrap_err();
    assert!(error.message.starts_with(&place), "{place}{error}");
    let error = injected(&text).map(|(text, _)| text).unwrap_err();
    assert!(error.message.starts_with(&place), "{place}{error}");
}

#[test]
fn what_can_not_be_read_any_more_is_not_written() {
    let text = "\
apiVersion: v1
kind: Pod
spec:
# >>> meshctl inject
  containers:
    - name: mesh-proxy
# <<< meshctl inject
      image: app
    - name: app
";
    let error = text::uninject(&Input::of(text), &mut Vec::new()).unwrap_err();
    assert!(error.message.starts_with("stdin:1: without its proxy"), "{error}");
}

#[test]
fn what_is_said_about_a_workload_decides() {
    let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: off, labels: {meshctl.dev/inject: disabled}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: a, namespace: off, annotations: {config.meshctl.dev/threads: '2'}}
spec: {template: {spec: {containers: []}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: b, namespace: off}
spec: {template: {metadata: {labels: {meshctl.dev/inject: enabled}}, spec: {hostNetwork: true, containers: []}}}
";
    let input = [Input::of(text)];
    let namespaces = text::namespaces(&input).unwrap();
    let (settings, mut reports) = (settings(), Vec::new());
    let out = text::inject(&input[0], &namespaces, &Mode::Inject(&settings), &mut reports).unwrap();
    assert_eq!(out, text);
    assert_eq!(reports[0].object, "Deployment/off/a");
    let reason = "the namespace's label meshctl.dev/inject is disabled";
    assert_eq!(reports[0].verdict, Verdict::Skipped(reason.into()));
    assert!(reports[0].warnings[0].contains("set it on the pod template"), "{reports:?}");
    assert!(matches!(reports[1].verdict, Verdict::Refused(_)), "{reports:?}");
}

#[test]
fn enabling_sets_a_label_and_nothing_else() {
    let hard = HARD.replace("*labels", "{app: web}");
    for text in
        DEMO.iter().copied().filter(|text| text.contains("kind: Deployment")).chain([&*hard])
    {
        let mut reports = Vec::new();
        let out =
            text::inject(&Input::of(text), &BTreeMap::new(), &Mode::Enable, &mut reports).unwrap();
        assert_eq!(out.matches("meshctl.dev/inject: enabled").count(), reports.len());
        assert!(!out.contains("mesh-proxy"));
        assert_eq!(uninjected(&out), text);
    }
    // The label would be the selector's, too.
    let shared = text::inject(&Input::of(HARD), &BTreeMap::new(), &Mode::Enable, &mut Vec::new());
    assert!(shared.unwrap_err().message.contains("stdin:2"));
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim().is_empty())
}

#[tokio::test]
async fn the_command_reads_folders_and_tells_what_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    std::fs::write(folder.path().join("a.yaml"), DEMO[2]).unwrap();
    std::fs::write(folder.path().join("b.yml"), DEMO[3].trim_end()).unwrap();
    std::fs::write(folder.path().join("README.md"), "kind: [").unwrap();
    let ran = run_alone(&format!("inject --offline --no-identity {path}")).await;
    ran.result.unwrap();
    assert_eq!(
        lines(&ran.err).skip(1).collect::<Vec<_>>(),
        ["Deployment/shop/ledger injected", "Deployment/shop/load injected"]
    );
    assert!(ran.err.starts_with("the mesh's settings are not known (--offline)"), "{}", ran.err);
    assert_eq!(values(&ran.out).len(), values(DEMO[2]).len() + values(DEMO[3]).len());

    let set = "--set image.registry=local:5000 --set image.tag=x --set proxy-log-level=debug";
    let ran = run_alone(&format!("inject --offline --no-identity -i {set} {path}")).await;
    ran.result.unwrap();
    let written = std::fs::read_to_string(folder.path().join("a.yaml")).unwrap();
    assert!(written.contains("image: local:5000/mesh-proxy:x\n"), "{written}");
    let ran = run_alone(&format!("uninject --in-place {path}")).await;
    assert_eq!((ran.out.as_str(), lines(&ran.err).count()), ("", 2));
    assert_eq!(std::fs::read_to_string(folder.path().join("a.yaml")).unwrap(), DEMO[2]);

    let ran = run_alone(&format!("inject --offline --no-identity --explain {path}")).await;
    assert!(ran.out.contains("no meshctl.dev/inject says otherwise"), "{}", ran.out);
    assert!(!ran.out.contains("apiVersion"));
}

#[tokio::test]
async fn there_is_no_default_for_whom_to_trust() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.yaml").display().to_string();
    std::fs::write(&file, DEMO[2]).unwrap();
    let error = run_alone(&format!("inject --offline {file}")).await.result.unwrap_err();
    assert!(error.hint.unwrap().contains("--manual-roots"));
    let error = run_alone(&format!("inject --offline --manual-roots {file} {file}")).await;
    assert!(error.result.is_err(), "no PEM");
    let error = run_alone(&format!("inject --offline --no-identity --set x=y {file}")).await;
    assert!(error.result.unwrap_err().message.contains("the nearest is"));
}

#[tokio::test]
async fn the_control_plane_is_that_of_the_mesh_that_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.yaml").display().to_string();
    std::fs::write(&file, DEMO[2]).unwrap();
    let line = format!("inject --mesh-namespace my-mesh --no-identity {file}");
    let addr = "mesh-control.my-mesh.svc.cluster.local:8086";
    let ran = run_alone(&format!("{line} --offline")).await;
    assert!(ran.out.contains(addr) && !ran.out.contains("mesh-system"), "{}", ran.out);

    let config = |namespace: &str, tag: &str| {
        let metadata = json!({"namespace": namespace, "name": "mesh-config"});
        json!({"kind": "ConfigMap", "metadata": metadata, "data": {
            "control-namespace": namespace,
            "proxy-image": format!("r.example/mesh-proxy:{tag}"),
        }})
    };
    let api = Objects::start([config("mesh-system", "other"), config("my-mesh", "ours")]).await;
    let ran = run_in(&line, &folder, api.files()).await;
    assert!(ran.out.contains(addr) && ran.out.contains("mesh-proxy:ours\n"), "{}", ran.out);
}

#[tokio::test]
async fn reasons_are_told_without_what_steers_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.yaml").display().to_string();
    let label = "{metadata: {labels: {meshctl.dev/inject: \"no\\e[2J\"}}, spec: {containers: []}}";
    let head = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n";
    std::fs::write(&file, format!("{head}spec: {{template: {label}}}\n")).unwrap();
    for flags in ["--enable", "--offline --no-identity"] {
        let ran = run_alone(&format!("inject {flags} {file}")).await;
        assert!(!ran.err.contains('\x1b'), "{:?}", ran.err);
    }
}

#[derive(Clone, Debug)]
struct Shape {
    step: usize,
    dashes: bool,
    comments: bool,
    crlf: bool,
    init: u8,
    volumes: u8,
    meta: u8,
    kind: u8,
    block: bool,
    listed: bool,
    last_newline: bool,
}

/// A manifest of any shape that people write.
fn manifest(shape: &Shape) -> String {
    let mut out = String::new();
    let mut line = |depth: usize, text: &str| {
        if shape.comments {
            out += &format!("{}# about what follows: '{{[\n", " ".repeat(depth * shape.step));
        }
        out += &format!("{}{text}\n", " ".repeat(depth * shape.step));
    };
    let list = |line: &mut dyn FnMut(usize, &str), depth: usize, name: &str, count: u8| match count
    {
        0 => {}
        3 => line(depth, &format!("{name}: [{{name: flow, x: \"a, b\"}}]")),
        count => {
            line(depth, &format!("{name}:"));
            for at in 0..count {
                line(depth + usize::from(shape.dashes), &format!("- name: {name}-{at}"));
            }
        }
    };
    let (api, kind, above): (_, _, &[&str]) = match shape.kind {
        0 => ("v1", "Pod", &[]),
        1 => ("apps/v1", "StatefulSet", &["spec", "template"]),
        2 => ("batch/v1", "Job", &["spec", "template"]),
        _ => ("batch/v1", "CronJob", &["spec", "jobTemplate", "spec", "template"]),
    };
    line(0, &format!("apiVersion: {api}"));
    line(0, &format!("kind: {kind}"));
    for (depth, name) in above.iter().enumerate() {
        line(depth, &format!("{name}: # {name}"));
        if shape.block {
            line(depth + 1, &format!("text{depth}: |+"));
            line(depth + 2, "spec: '");
            line(depth + 2, "");
        }
    }
    let depth = above.len();
    match shape.meta {
        0 if depth > 0 => {}
        1 => line(depth, "metadata: {name: web, labels: {a: b}}"),
        2 => {
            line(depth, "metadata:");
            line(depth + 1, "annotations: {a: b}");
        }
        3 => {
            line(depth, "metadata:");
            line(depth + 1, "annotations:");
            line(depth + 2, "\"a\": \"b: c\"");
            line(depth + 2, "z: &z 'q'");
        }
        _ => {
            line(depth, "metadata:");
            line(depth + 1, "name: web");
        }
    }
    line(depth, "spec:");
    list(&mut line, depth + 1, "initContainers", shape.init);
    list(&mut line, depth + 1, "containers", 1);
    list(&mut line, depth + 1, "volumes", shape.volumes);
    if shape.listed {
        let items = out.lines().enumerate();
        let items: String = items
            .map(|(at, line)| format!("{}{line}\n", if at == 0 { "- " } else { "  " }))
            .collect();
        out = format!("apiVersion: v1\nkind: List\nitems:\n{items}");
    }
    if !shape.last_newline {
        out.truncate(out.trim_end().len());
    }
    if shape.crlf { out.replace('\n', "\r\n") } else { out }
}

prop_compose! {
    fn shape()(
        step in 1..5usize, dashes: bool, comments: bool, crlf: bool, init in 0..4u8,
        volumes in 0..4u8, meta in 0..5u8, kind in 0..4u8, block: bool, listed: bool,
        last_newline: bool,
    ) -> Shape {
        // A comment cannot be the first thing of a list's item.
        let comments = comments && !listed;
        Shape {
            step, dashes, comments, crlf, init, volumes, meta, kind, block, listed, last_newline,
        }
    }
}

proptest! {
    #[test]
    fn any_manifest_comes_back_byte_for_byte(shape in shape()) {
        let text = manifest(&shape);
        prop_assume!(values(&text).len() == 1);
        let there = there_and_back(&text);
        // And so does the label.
        let mut reports = Vec::new();
        let out = text::inject(&Input::of(&text), &BTreeMap::new(), &Mode::Enable, &mut reports);
        let back = uninjected(&out.unwrap());
        prop_assert!(back == text || shape.meta == 1, "{}", back);
        prop_assert!(there.contains("mesh-proxy"));
    }

    #[test]
    fn no_text_panics(text in "[a-z:{}\\[\\],\n #>|&*'\"-]{0,80}", cut in 0..HARD.len()) {
        let _ = injected(&text);
        let _ = injected(&format!("apiVersion: v1\nkind: Pod\n{text}"));
        if HARD.is_char_boundary(cut) {
            let _ = injected(&HARD[..cut]);
        }
    }
}
