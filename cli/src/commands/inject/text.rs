//! One manifest's text: the proxy put into it, and taken out.
//!
//! What is put between the lines of a block is marked by comments, so that people see in a review what
//! is not theirs, and is taken out by the marks. In flow style (JSON, too) there is no place for
//! comments; there it is taken out by the names of what was added. Both ways are tried out before
//! anything is printed: what comes back must be the very text that was given, and what the new text
//! says must be what the webhook would make of the object.

use std::collections::BTreeMap;
use std::ops::Range;

use mesh_control::inject::containers::OURS;
use mesh_control::inject::edit::{Added, Edit, apply};
use mesh_control::inject::{self, INJECT, NamespaceMeta, Outcome, Settings, warning_text};
use mesh_control::source::annotations::PREFIX;
use mesh_control::source::local::yaml;
use serde_json::Value;

use super::emit;
use super::files::Input;
use super::place::{self, Entry, Kind, Node};
use crate::error::CliError;

const BEGIN: &str = "# >>> meshctl inject";
const END: &str = "# <<< meshctl inject";

/// What is done to workloads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mode<'a> {
    /// The proxy is added.
    Inject(&'a Settings),
    /// The label is set.
    Enable,
}

/// What became of a workload.
#[derive(Debug)]
pub(super) struct Report {
    pub object: String,
    pub verdict: Verdict,
    pub warnings: Vec<String>,
}

/// With the rule or the reason.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Injected(String),
    Skipped(String),
    Refused(String),
}

/// What the manifests say about namespaces, for their labels.
pub(super) fn namespaces(inputs: &[Input]) -> Result<BTreeMap<String, NamespaceMeta>, CliError> {
    let mut all = BTreeMap::new();
    for input in inputs {
        for document in documents(input)? {
            for (_, object) in objects(&document.value) {
                if text_at(object, &["kind"]) == "Namespace" {
                    let map = |name: &str| {
                        let map = object.get("metadata").and_then(|meta| meta.get(name)).cloned();
                        map.and_then(|map| serde_json::from_value(map).ok()).unwrap_or_default()
                    };
                    let name = text_at(object, &["metadata", "name"]).to_owned();
                    let (labels, annotations) = (map("labels"), map("annotations"));
                    all.insert(name.clone(), NamespaceMeta { name, labels, annotations });
                }
            }
        }
    }
    Ok(all)
}

/// The text with the proxy in each of its workloads.
pub(super) fn inject(
    input: &Input,
    namespaces: &BTreeMap<String, NamespaceMeta>,
    mode: &Mode<'_>,
    reports: &mut Vec<Report>,
) -> Result<String, CliError> {
    let mut out = String::with_capacity(input.text.len());
    for document in documents(input)? {
        let failed = |error: String| {
            CliError::failed(format!("{}:{}: {error}", input.name(), document.line)).hint(
                "write the pod template in block style, without anchors, or label it yourself",
            )
        };
        let taken = taken_out(document.text, &document.value);
        let (base, value) = match taken.map_err(|error| at_line(input, &document, &error))? {
            Some(base) => {
                let value = value_of(&base).map_err(|error| failed(error.to_string()))?;
                (base, value)
            }
            None => (document.text.to_owned(), document.value.clone()),
        };
        let mut edits = Vec::new();
        let mut expected = value.clone();
        for (path, object) in objects(&value) {
            let Some(template) = template_path(object) else { continue };
            let path: Vec<&str> =
                path.iter().map(String::as_str).chain(template.iter().copied()).collect();
            let Some(pod) = expected.pointer_mut(&pointer(&path)) else { continue };
            let (report, of_pod) = decide(object, pod, namespaces, mode);
            apply(pod, &of_pod);
            edits.extend(of_pod.into_iter().map(|edit| (path.join("/"), edit)));
            reports.push(report);
        }
        if edits.is_empty() {
            out.push_str(document.text);
            continue;
        }
        let edited = put_in(&base, &edits).map_err(failed)?;
        let says = value_of(&edited).map_err(|error| failed(error.to_string()))?;
        // A label in flow style cannot be told from one that was there, and stays.
        let comes_back = || {
            matches!(mode, Mode::Enable)
                || taken_out(&edited, &says).is_ok_and(|back| back.as_deref() == Some(&*base))
        };
        if says != expected || !comes_back() {
            return Err(failed("this document cannot be edited in place".into()));
        }
        out.push_str(&edited);
    }
    Ok(out)
}

/// The text without any proxy; the objects that had one are added to `changed`.
pub(super) fn uninject(input: &Input, changed: &mut Vec<String>) -> Result<String, CliError> {
    let mut out = String::with_capacity(input.text.len());
    for document in documents(input)? {
        let wrong = |error: Invalid| at_line(input, &document, &error);
        match taken_out(document.text, &document.value).map_err(wrong)? {
            Some(base) => {
                // Marks that were moved may have more between them than we have written.
                value_of(&base).map_err(|error| {
                    CliError::failed(format!(
                        "{}:{}: without its proxy this document cannot be read: {error}",
                        input.name(),
                        document.line
                    ))
                    .hint(format!("take out by hand what is marked with \"{BEGIN}\""))
                })?;
                let names = objects(&document.value).into_iter();
                let names = names.filter(|(_, object)| template_path(object).is_some());
                changed.extend(names.map(|(_, object)| name_of(object)));
                out.push_str(&base);
            }
            None => out.push_str(document.text),
        }
    }
    Ok(out)
}

/// What is to be done to one object, and what is said about it.
fn decide(
    object: &Value,
    pod: &Value,
    namespaces: &BTreeMap<String, NamespaceMeta>,
    mode: &Mode<'_>,
) -> (Report, Vec<Edit>) {
    let report = |verdict, warnings| Report { object: name_of(object), verdict, warnings };
    let read = |field: &str| {
        let there = pod.get(field).filter(|value| !value.is_null()).cloned();
        there.unwrap_or(Value::Object(Default::default()))
    };
    let typed = serde_json::from_value(read("metadata"))
        .and_then(|meta| Ok((meta, serde_json::from_value(read("spec"))?)));
    let (meta, spec): (kube::core::ObjectMeta, _) = match typed {
        Ok(typed) => typed,
        Err(error) => {
            let reason = format!("its pod template is none: {error}");
            return (report(Verdict::Refused(reason), Vec::new()), Vec::new());
        }
    };
    let name = text_at(object, &["metadata", "namespace"]);
    let named = NamespaceMeta { name: name.into(), ..NamespaceMeta::default() };
    let namespace = namespaces.get(name).unwrap_or(&named);
    let outcome = match mode {
        Mode::Inject(settings) => inject::inject(&meta, &spec, namespace, settings),
        Mode::Enable => {
            if let Some(value) = meta.labels.as_ref().and_then(|labels| labels.get(INJECT)) {
                let reason = format!("the pod template's label {INJECT} is {value}");
                return (report(Verdict::Skipped(reason), Vec::new()), Vec::new());
            }
            let settings = Settings { inject_unlabelled: true, ..Settings::default() };
            inject::inject(&meta, &spec, namespace, &settings)
        }
    };
    let mut warnings = misplaced(object);
    let verdict = Verdict::from(&outcome);
    let Outcome::Injected(injection) = outcome else {
        return (report(verdict, warnings), Vec::new());
    };
    warnings.extend(injection.warnings.iter().map(warning_text));
    let edits = match mode {
        Mode::Inject(_) => injection.edits,
        Mode::Enable => vec![Edit {
            path: &["metadata", "labels"],
            added: Added::Entries(vec![(INJECT, "enabled".into())]),
        }],
    };
    (report(verdict, warnings), edits)
}

/// What was written on a workload and is looked for on its pods.
fn misplaced(object: &Value) -> Vec<String> {
    if template_path(object).is_none_or(|path| path.is_empty()) {
        return Vec::new();
    }
    let keys = |of: &str| {
        let map = object.pointer(&format!("/metadata/{of}")).and_then(Value::as_object);
        map.map(|map| map.keys().cloned().collect::<Vec<_>>()).unwrap_or_default()
    };
    let own = |key: &String| key == INJECT || key.starts_with(PREFIX);
    let found = keys("labels").into_iter().chain(keys("annotations")).filter(own);
    found
        .map(|key| format!("metadata: {key} has no effect here; set it on the pod template"))
        .collect()
}

/// A document with its first line's number, from 1.
struct Document<'a> {
    text: &'a str,
    line: usize,
    value: Value,
}

/// The documents of a text, which are all of it.
fn documents(input: &Input) -> Result<Vec<Document<'_>>, CliError> {
    let text = input.text.as_str();
    let is_marker = |line: &str| {
        line.strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    };
    let mut bounds = vec![(0, 1)];
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if at > 0 && is_marker(line) {
            bounds.push((at, number + 1));
        }
        at += line.len();
    }
    let ends = bounds.iter().skip(1).map(|(start, _)| *start).chain([text.len()]);
    let documents = bounds.iter().zip(ends).map(|((start, line), end)| {
        let text = &text[*start..end];
        let mut document = Document { text, line: *line, value: Value::Null };
        document.value = value_of(text).map_err(|error| at_line(input, &document, &error))?;
        Ok(document)
    });
    documents.collect()
}

/// With the place in the input.
fn at_line(input: &Input, document: &Document<'_>, error: &Invalid) -> CliError {
    let line = document.line - 1 + error.line as usize;
    CliError::failed(format!("{}:{line}: {}", input.name(), error.message))
}

/// What a document says; nothing is null.
fn value_of(text: &str) -> Result<Value, Invalid> {
    match yaml::documents(text).into_iter().next() {
        None => Ok(Value::Null),
        Some(Ok(document)) => Ok(document.root.to_json()),
        Some(Err(yaml::Invalid { line, message })) => Err(Invalid { line, message }),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Invalid {
    line: u32,
    message: String,
}

/// The objects of a document, with the paths to those of a List.
fn objects(document: &Value) -> Vec<(Vec<String>, &Value)> {
    let items = document.get("items").and_then(Value::as_array);
    match items.filter(|_| text_at(document, &["kind"]).ends_with("List")) {
        Some(items) => {
            let paths = (0..).map(|at: usize| vec!["items".to_owned(), at.to_string()]);
            paths.zip(items).collect()
        }
        None => vec![(Vec::new(), document)],
    }
}

/// Where a workload has its pod template.
fn template_path(object: &Value) -> Option<&'static [&'static str]> {
    let group = text_at(object, &["apiVersion"]).rsplit_once('/').map_or("", |(group, _)| group);
    match (group, text_at(object, &["kind"])) {
        ("", "Pod") => Some(&[]),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("", "ReplicationController")
        | ("batch", "Job") => Some(&["spec", "template"]),
        ("batch", "CronJob") => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

/// `Deployment/shop/web`
fn name_of(object: &Value) -> String {
    let meta = |field: &str| text_at(object, &["metadata", field]);
    let namespace = match meta("namespace") {
        "" => String::new(),
        namespace => format!("{namespace}/"),
    };
    let name = if meta("name").is_empty() { meta("generateName") } else { meta("name") };
    format!("{}/{namespace}{name}", text_at(object, &["kind"]))
}

fn text_at<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    let found = path.iter().try_fold(value, |at, name| at.get(name));
    found.and_then(Value::as_str).unwrap_or_default()
}

fn pointer(path: &[&str]) -> String {
    path.iter().map(|name| format!("/{name}")).collect()
}

/// Text to be put in.
struct Insertion {
    at: usize,
    /// Whole lines of a block; else within a line.
    lines: Option<Vec<String>>,
    inline: String,
    indent: usize,
}

/// Makes the edits, each at the pod or template of its path.
fn put_in(text: &str, edits: &[(String, Edit)]) -> Result<String, String> {
    let root = Node::parse(text)?;
    let mut insertions: Vec<Insertion> = Vec::new();
    for (template, edit) in edits {
        let template: Vec<&str> = template.split('/').filter(|name| !name.is_empty()).collect();
        let path: Vec<&str> = template.iter().copied().chain(edit.path.iter().copied()).collect();
        let insertion = insertion(text, &root, &path, &edit.added)?;
        let same = insertions.iter_mut().find(|have| have.at == insertion.at);
        match (same, insertion.lines) {
            (Some(Insertion { lines: Some(have), .. }), Some(more)) => have.extend(more),
            (Some(have), None) => have.inline.push_str(&insertion.inline),
            (_, lines) => insertions.push(Insertion { lines, ..insertion }),
        }
    }
    insertions.sort_by_key(|insertion| insertion.at);
    let mut out = String::with_capacity(text.len() + 4096);
    let mut done = 0;
    for insertion in insertions {
        out.push_str(&text[done..insertion.at]);
        done = insertion.at;
        let Some(lines) = insertion.lines else {
            out.push_str(&insertion.inline);
            continue;
        };
        let newline = if out.ends_with("\r\n") { "\r\n" } else { "\n" };
        let pad = " ".repeat(insertion.indent);
        let begin = format!("{pad}{BEGIN} {}", env!("CARGO_PKG_VERSION"));
        for line in [begin].iter().chain(&lines).chain([&format!("{pad}{END}")]) {
            out.push_str(line);
            out.push_str(newline);
        }
    }
    out.push_str(&text[done..]);
    Ok(out)
}

/// Where and what an addition is in the text.
fn insertion(text: &str, root: &Node, path: &[&str], added: &Added) -> Result<Insertion, String> {
    // The last node of the path that is there, and the entry that holds it.
    let (mut at, mut holder, mut depth) = (root, None, 0);
    for name in path {
        let Some(child) = at.child(name) else { break };
        let absent = child.end == 0 || child.is_text("null") || child.is_text("~");
        if absent && depth + 1 < path.len() {
            break;
        }
        holder = at.entry(name);
        at = child;
        depth += 1;
    }
    let missing = &path[depth..];
    let whole = |added: &Added| {
        let value = added.clone().into_value();
        missing.iter().skip(1).rev().fold(value, |value, name| {
            Value::Object([((*name).to_owned(), value)].into_iter().collect())
        })
    };
    let inline = |at: usize, text: Vec<String>, more: bool| {
        let inline = text.join(", ") + if more { ", " } else { "" };
        Ok(Insertion { at, lines: None, inline, indent: 0 })
    };
    let entry_text = |key: &str, value: &Value| format!("{}: {value}", Value::from(key));
    match &at.kind {
        Kind::Alias => Err("the pod template is an alias of another node".to_owned()),
        Kind::Map { flow: true, entries } => {
            let first = entries.first().map_or(at.start + 1, |entry| entry.key_place.start);
            let texts = match (missing.first(), added) {
                (Some(key), added) => vec![entry_text(key, &whole(added))],
                (None, Added::Entries(added)) => {
                    added.iter().map(|(key, value)| entry_text(key, value)).collect()
                }
                (None, Added::Items(_)) => return Err(format!("{} is no list", path.join("."))),
            };
            inline(first, texts, !entries.is_empty())
        }
        Kind::List { flow: true, items } => match added {
            Added::Items(added) => {
                let first = items.first().map_or(at.start + 1, |item| item.start);
                inline(first, added.iter().map(Value::to_string).collect(), !items.is_empty())
            }
            Added::Entries(_) => Err(format!("{} is no map", path.join("."))),
        },
        block => {
            let holder: &Entry = holder.ok_or("the pod has no metadata")?;
            let after = place::line_end(text, holder.key_place.end);
            if !text[..after].ends_with('\n') {
                return Err("the text ends where something is to be added".to_owned());
            }
            let own = place::indent(text, holder.key_place.start);
            let no_place = || format!("there is no place below {}", path[..depth].join("."));
            let indent = match block {
                Kind::Map { entries, .. } => {
                    entries.first().and_then(|entry| place::indent(text, entry.key_place.start))
                }
                Kind::List { items, .. } => {
                    items.first().and_then(|item| place::dash_indent(text, item.start))
                }
                _ => own.map(|own| own + 2),
            };
            let indent = indent.ok_or_else(no_place)?;
            let mut lines = Vec::new();
            match (missing.first(), added) {
                (Some(key), added) => emit::entry(key, &whole(added), indent, &mut lines),
                (None, Added::Items(items)) => {
                    items.iter().for_each(|item| emit::item(item, indent, &mut lines));
                }
                (None, Added::Entries(entries)) => entries
                    .iter()
                    .for_each(|(key, value)| emit::entry(key, value, indent, &mut lines)),
            }
            Ok(Insertion { at: after, lines: Some(lines), inline: String::new(), indent })
        }
    }
}

/// A document without the proxy; `None` when there is none in it.
fn taken_out(text: &str, value: &Value) -> Result<Option<String>, Invalid> {
    let objects = objects(value).into_iter();
    let templates = objects.filter_map(|(path, object)| {
        let template = template_path(object)?;
        Some(path.into_iter().chain(template.iter().map(|name| (*name).to_owned())).collect())
    });
    let templates: Vec<Vec<String>> = templates.collect();
    if templates.is_empty() {
        return Ok(None);
    }
    let mut out = unmarked(text)?;
    // What was marked is gone; the rest is found by its name.
    if let Ok(root) = Node::parse(&out) {
        let mut cuts: Vec<Range<usize>> = templates
            .iter()
            .filter_map(|path| path.iter().try_fold(&root, |at, name| at.child(name)))
            .flat_map(|template| cuts(&out, template))
            .collect();
        cuts.sort_by_key(|cut| std::cmp::Reverse(cut.start));
        for cut in cuts {
            out.replace_range(cut, "");
        }
    }
    Ok((out != text).then_some(out))
}

/// Without the marked lines.
fn unmarked(text: &str) -> Result<String, Invalid> {
    let mut out = String::with_capacity(text.len());
    let mut marked = false;
    for (line, number) in text.split_inclusive('\n').zip(1..) {
        let trimmed = line.trim();
        let begins = trimmed.starts_with(BEGIN);
        if begins && marked {
            // What is between the two would be lost, and not all of it is ours.
            let message =
                format!("\"{BEGIN}\" stands within a marked block: \"{END}\" is missing above it");
            return Err(Invalid { line: number, message });
        }
        marked = marked || begins;
        if !marked {
            out.push_str(line);
        }
        marked = marked && !trimmed.starts_with(END);
    }
    // A mark that ends nowhere marks nothing.
    Ok(if marked { text.to_owned() } else { out })
}

/// What of a template is ours, in places.
fn cuts(text: &str, template: &Node) -> Vec<Range<usize>> {
    let mut cuts = Vec::new();
    if let Some(spec) = template.entry("spec") {
        let spec = &spec.value;
        for (list, names) in [
            ("initContainers", OURS.containers),
            ("containers", OURS.containers),
            ("volumes", OURS.volumes),
        ] {
            let Some(Entry { value: node, .. }) = spec.entry(list) else { continue };
            let Kind::List { flow, items } = &node.kind else { continue };
            let ours = |item: &Node| {
                item.child("name").is_some_and(|name| names.iter().any(|own| name.is_text(own)))
            };
            let ours: Vec<bool> = items.iter().map(ours).collect();
            // In a block, a list in flow style was there, empty: ours would be a block.
            let made = *flow == is_flow(spec);
            if made && !ours.is_empty() && ours.iter().all(|own| *own) {
                cuts.extend(entry_cut(text, spec, |key| key == list));
            } else {
                let places = items.iter().map(|item| item.start..item.end).collect();
                cuts.extend(part_cuts(text, *flow, places, &ours, place::dash_indent));
            }
        }
    }
    if let Some(meta) = template.entry("metadata")
        && let Some(annotations) = meta.value.entry("annotations")
        && let Kind::Map { entries, .. } = &annotations.value.kind
    {
        let ours = |key: &str| OURS.annotations.contains(&key);
        let made = is_flow(&annotations.value) == is_flow(&meta.value);
        if made && !entries.is_empty() && entries.iter().all(|entry| ours(&entry.key)) {
            let alone = matches!(&meta.value.kind, Kind::Map { entries, .. } if entries.len() == 1);
            cuts.extend(if alone && is_flow(template) {
                entry_cut(text, template, |key| key == "metadata")
            } else {
                entry_cut(text, &meta.value, |key| key == "annotations")
            });
        } else {
            cuts.extend(entry_cut(text, &annotations.value, ours));
        }
    }
    cuts
}

fn is_flow(node: &Node) -> bool {
    matches!(node.kind, Kind::Map { flow: true, .. } | Kind::List { flow: true, .. })
}

/// Entries of a map with these keys.
fn entry_cut(text: &str, map: &Node, ours: impl Fn(&str) -> bool) -> Vec<Range<usize>> {
    let Kind::Map { flow, entries } = &map.kind else { return Vec::new() };
    let ours: Vec<bool> = entries.iter().map(|entry| ours(&entry.key)).collect();
    let places = entries.iter().map(|entry| entry.key_place.start..entry.end()).collect();
    part_cuts(text, *flow, places, &ours, place::indent)
}

/// Some of the parts of a map or list, with what parts them from the others.
fn part_cuts(
    text: &str,
    flow: bool,
    places: Vec<Range<usize>>,
    ours: &[bool],
    indent: fn(&str, usize) -> Option<usize>,
) -> Vec<Range<usize>> {
    let mut cuts = Vec::new();
    for (at, place) in places.iter().enumerate().filter(|(at, _)| ours[*at]) {
        if !flow {
            if indent(text, place.start).is_some() {
                cuts.push(place::line_start(text, place.start)..place::line_end(text, place.end));
            }
            continue;
        }
        // Up to the next part; the last ones with what is in front of them.
        let last_kept = (0..at).rev().find(|before| !ours[*before]);
        cuts.push(match (places.get(at + 1), last_kept) {
            (Some(next), _) => place.start..next.start,
            (None, Some(kept)) if kept + 1 == at => places[kept].end..place.end,
            (None, _) => place.clone(),
        });
    }
    cuts
}
