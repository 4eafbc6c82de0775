//! Lint: what is wrong with objects that are each well-formed, or were meant otherwise.
//!
//! Pure functions of the objects, so that the control plane answers for the mesh that is and meshctl
//! for files, with the same words. [`code`] has what there is to find; each other module looks at one
//! subject.

pub mod code;
mod policies;
mod ports;
mod references;
mod rules;
mod spelling;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::PathBuf;

use mesh_model::meta::Meta;

pub use self::code::{Code, Level};
use crate::index::Objects;
use crate::index::object::{Kind, ObjectKey, RouteHead};
use crate::overlay::{Overlay, Written};
use crate::source::{Problem, Severity};

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    pub objects: &'a Objects,
    /// What reading the objects found.
    pub problems: &'a [Problem],
    /// How objects are written, as far as that is known.
    pub written: &'a [Written],
    /// Whether `objects` are all there are. If not, what a reference means may be elsewhere.
    pub complete: bool,
}

/// Something found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    pub code: Code,
    pub level: Level,
    /// `HTTPRoute/shop/checkout`
    pub object: String,
    /// `spec.rules[0].backendRefs[1]`
    pub field: String,
    pub file: Option<PathBuf>,
    /// From 1; 0 is unknown.
    pub line: u32,
    pub message: String,
}

/// More findings than this help nobody.
const MAX_FOUND: usize = 2000;

/// All that is wrong, the worst first.
pub fn analyze(scene: &Scene<'_>) -> Vec<Diagnosis> {
    let mut found = Found::default();
    references::look(scene, &mut found);
    rules::look(scene.objects, &mut found);
    ports::look(scene.objects, &mut found);
    policies::look(scene, &mut found);
    spelling::look(scene, &mut found);
    let mut all = found.0;
    // Who reads an object may have said the same thing of its field already, in other words.
    let said: BTreeSet<(String, String)> =
        all.iter().map(|d| (d.object.clone(), d.field.clone())).collect();
    let of_readers = scene.problems.iter().map(of_reader);
    all.extend(of_readers.filter(|d| !said.contains(&(d.object.clone(), d.field.clone()))));
    for diagnosis in &mut all {
        locate(diagnosis, scene.written);
    }
    all.sort_by(|a, b| {
        let key = |d: &Diagnosis| (d.level, d.code, d.object.clone(), d.line, d.field.clone());
        key(a).cmp(&key(b))
    });
    all.dedup();
    all.truncate(MAX_FOUND);
    all
}

/// What files bring about: what is wrong with their objects, and with others because of them. The
/// findings, and how many objects were looked at.
pub fn analyze_over(
    objects: &Objects,
    problems: &[Problem],
    overlay: &Overlay,
    complete: bool,
) -> Vec<Diagnosis> {
    let before: BTreeSet<_> = analyze(&Scene { objects, problems, written: &[], complete })
        .into_iter()
        .map(|d| (d.code, d.object, d.field, d.message))
        .collect();
    let objects = overlay.over(objects);
    let written = overlay.written.as_slice();
    let after = Scene { objects: &objects, problems: &overlay.problems, written, complete };
    let mut found = analyze(&after);
    found.retain(|d| {
        written.iter().any(|written| written.about == d.object)
            || d.file.is_some()
            || !before.contains(&(d.code, d.object.clone(), d.field.clone(), d.message.clone()))
    });
    found
}

fn of_reader(problem: &Problem) -> Diagnosis {
    let is_unknown = problem.message.starts_with("no such annotation");
    Diagnosis {
        code: if is_unknown { Code::Misspelt } else { Code::Object },
        level: match problem.severity {
            Severity::Error => Level::Error,
            Severity::Warning => Level::Warning,
        },
        object: problem.object.clone(),
        field: problem.field.clone(),
        file: problem.file.clone(),
        line: problem.line,
        message: problem.message.clone(),
    }
}

fn locate(diagnosis: &mut Diagnosis, written: &[Written]) {
    if diagnosis.file.is_some() {
        return;
    }
    if let Some(at) = written.iter().find(|written| written.about == diagnosis.object) {
        diagnosis.file = Some(at.file.clone());
        diagnosis.line = at.document.line(&diagnosis.field);
    }
}

/// What was found so far.
#[derive(Debug, Default)]
struct Found(Vec<Diagnosis>);

impl Found {
    fn add(
        &mut self,
        code: Code,
        object: impl ToString,
        field: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.add_as(code.level(), code, object, field, message);
    }

    fn add_as(
        &mut self,
        level: Level,
        code: Code,
        object: impl ToString,
        field: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.0.push(Diagnosis {
            code,
            level,
            object: object.to_string(),
            field: field.into(),
            file: None,
            line: 0,
            message: message.into(),
        });
    }
}

fn route_key(kind: Kind, head: &RouteHead) -> ObjectKey {
    ObjectKey { kind, name: head.name.clone() }
}

/// The key of the object that a reference of a policy stands for.
fn object_of(meta: &Meta) -> Option<String> {
    let reference = meta.resource()?;
    Some(format!("{}/{}/{}", reference.kind, reference.namespace, reference.name))
}
