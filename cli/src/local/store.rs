//! The manifest files in force: what a user applied, by file name, and how further files change that.
//!
//! An object lives in one file. Applying it from another moves it there; its old text is blanked out, line by
//! line, so that what remains of the old file keeps its line numbers. Next: `manifest.rs` for what the files say.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use mesh_control::source::local::yaml;
use serde::{Deserialize, Serialize};

/// All files together may have this many bytes.
pub const MAX_BYTES: usize = 8 << 20;
pub const MAX_FILES: usize = 1000;

/// A file as the user gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenFile {
    /// What the user calls it: a path, or `-` for standard input.
    pub shown: String,
    /// What it is: an absolute path. The same source again replaces the file.
    pub source: String,
    /// Where relative programs are looked for.
    pub cwd: PathBuf,
    pub content: String,
}

/// Which object, with its kind as Kubernetes spells it. The namespace of a Namespace is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectId {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

/// `Deployment/shop/web`
impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "/{}", self.namespace)?;
        }
        write!(f, "/{}", self.name)
    }
}

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    Created,
    Configured,
    Unchanged,
    Deleted,
}

impl Fate {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
        }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    #[error(
        "the manifests of a local mesh may have {MAX_BYTES} bytes and {MAX_FILES} files at most; give fewer"
    )]
    TooMuch,
}

/// The files in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Store {
    files: BTreeMap<String, GivenFile>,
}

impl Store {
    /// Files by the name they are stored under.
    pub fn files(&self) -> impl Iterator<Item = (&str, &GivenFile)> {
        self.files.iter().map(|(name, file)| (name.as_str(), file))
    }

    pub fn get(&self, name: &str) -> Option<&GivenFile> {
        self.files.get(name)
    }

    /// With these files applied. Says what becomes of every object they or their former versions have.
    pub fn with(&self, given: Vec<GivenFile>) -> Result<(Self, Vec<(ObjectId, Fate)>), StoreError> {
        let mut next = self.clone();
        let mut new = BTreeSet::new();
        let mut written = BTreeSet::new();
        for file in given {
            let name = next.name_for(&file);
            new.extend(objects(&file.content).map(|(id, _)| id));
            written.insert(name.clone());
            next.files.insert(name, file);
        }
        for (name, file) in &mut next.files {
            if !written.contains(name) {
                file.content = blanked(&file.content, &new);
            }
        }
        next.drop_empty();
        next.check_size()?;
        let fates = self.fates(&next).into_iter();
        let fates = fates.filter(|(id, fate)| *fate != Fate::Unchanged || new.contains(id));
        Ok((next, fates.collect()))
    }

    /// Without the objects that these files name. Objects that are not there are left out of the result.
    pub fn without(&self, given: &[GivenFile]) -> (Self, Vec<(ObjectId, Fate)>) {
        let gone = given.iter().flat_map(|file| objects(&file.content)).map(|(id, _)| id).collect();
        self.without_objects(&gone)
    }

    pub fn without_objects(&self, gone: &BTreeSet<ObjectId>) -> (Self, Vec<(ObjectId, Fate)>) {
        let mut next = self.clone();
        for file in next.files.values_mut() {
            file.content = blanked(&file.content, gone);
        }
        next.drop_empty();
        let mut fates = self.fates(&next);
        fates.retain(|(_, fate)| *fate == Fate::Deleted);
        (next, fates)
    }

    pub fn contains(&self, id: &ObjectId) -> bool {
        self.objects().contains_key(id)
    }

    fn objects(&self) -> BTreeMap<ObjectId, String> {
        let files = self.files.values();
        files
            .flat_map(|file| objects(&file.content).map(|(id, text)| (id, text.to_owned())))
            .collect()
    }

    fn fates(&self, next: &Self) -> Vec<(ObjectId, Fate)> {
        let (before, after) = (self.objects(), next.objects());
        let mut fates: Vec<_> = after
            .iter()
            .map(|(id, text)| match before.get(id) {
                None => (id.clone(), Fate::Created),
                Some(old) if old.trim() == text.trim() => (id.clone(), Fate::Unchanged),
                Some(_) => (id.clone(), Fate::Configured),
            })
            .collect();
        let deleted = before.into_keys().filter(|id| !after.contains_key(id));
        fates.extend(deleted.map(|id| (id, Fate::Deleted)));
        fates
    }

    /// The name of the stored file with the same source, else one nobody has.
    fn name_for(&self, file: &GivenFile) -> String {
        if let Some((name, _)) = self.files.iter().find(|(_, old)| old.source == file.source) {
            return name.clone();
        }
        let (stem, extension) = stem_and_extension(&file.source);
        let names = std::iter::once(format!("{stem}.{extension}"))
            .chain((2..).map(|n| format!("{stem}-{n}.{extension}")));
        names.into_iter().find(|name| !self.files.contains_key(name)).unwrap_or(stem)
    }

    fn drop_empty(&mut self) {
        self.files
            .retain(|_, file| objects(&file.content).next().is_some() || !is_yaml(&file.content));
    }

    fn check_size(&self) -> Result<(), StoreError> {
        let bytes = self.files.values().map(|file| file.content.len()).sum::<usize>();
        if bytes > MAX_BYTES || self.files.len() > MAX_FILES {
            return Err(StoreError::TooMuch);
        }
        Ok(())
    }
}

/// The objects of a file with their text. What can't be read is left out: reading it properly reports it.
fn objects(content: &str) -> impl Iterator<Item = (ObjectId, &str)> {
    chunks(content).filter_map(|chunk| Some((id_of(chunk)?, chunk)))
}

fn is_yaml(content: &str) -> bool {
    yaml::documents(content).iter().all(Result::is_ok)
}

fn id_of(chunk: &str) -> Option<ObjectId> {
    let mut documents = yaml::documents(chunk);
    let document = documents.pop()?.ok()?;
    let text = |path: &[&str]| document.root.text(path).map(str::to_owned);
    let kind = text(&["kind"])?;
    let namespace = text(&["metadata", "namespace"]).unwrap_or("default".to_owned());
    let namespace = if kind == "Namespace" { String::new() } else { namespace };
    Some(ObjectId { kind, namespace, name: text(&["metadata", "name"])? })
}

/// The documents of a file, each with the marker line before it.
fn chunks(content: &str) -> impl Iterator<Item = &str> {
    let mut rest = content;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut at = 0;
        for (index, line) in rest.split_inclusive('\n').enumerate() {
            let marker = line.trim_end() == "---" || line.starts_with("--- ");
            if index > 0 && marker {
                break;
            }
            at += line.len();
        }
        let (chunk, after) = rest.split_at(at);
        rest = after;
        Some(chunk)
    })
}

/// The file with the text of these objects replaced by empty lines.
fn blanked(content: &str, gone: &BTreeSet<ObjectId>) -> String {
    let blank = |chunk: &str| chunk.chars().filter(|c| *c == '\n').collect::<String>();
    let keep = |chunk: &str| id_of(chunk).is_none_or(|id| !gone.contains(&id));
    chunks(content).map(|chunk| if keep(chunk) { chunk.to_owned() } else { blank(chunk) }).collect()
}

/// A file name without anything that would hide it or lead out of its folder.
fn stem_and_extension(source: &str) -> (String, &'static str) {
    let base = source.rsplit('/').next().unwrap_or(source);
    let (stem, extension) = base.rsplit_once('.').unwrap_or((base, ""));
    let stem: String =
        stem.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
    let stem = stem.trim_start_matches('.');
    let stem = if stem.is_empty() || stem == "-" { "stdin" } else { stem };
    (stem.to_owned(), if extension == "json" { "json" } else { "yaml" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: &str, name: &str, value: u32) -> String {
        format!("apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}}}\nvalue: {value}\n")
    }

    fn file(source: &str, objects: &[String]) -> GivenFile {
        GivenFile {
            shown: source.to_owned(),
            source: source.to_owned(),
            cwd: "/".into(),
            content: objects.join("---\n"),
        }
    }

    fn apply(store: &Store, files: &[GivenFile]) -> (Store, Vec<String>) {
        let (next, fates) = store.with(files.to_vec()).unwrap();
        (next, told(fates))
    }

    fn told(fates: Vec<(ObjectId, Fate)>) -> Vec<String> {
        fates.into_iter().map(|(id, fate)| format!("{id} {}", fate.as_str())).collect()
    }

    fn names(store: &Store) -> Vec<&str> {
        store.files().map(|(name, _)| name).collect()
    }

    #[test]
    fn applying_tells_the_fate_of_every_object() {
        let a = file("/x/a.yaml", &[object("Service", "s", 1), object("Namespace", "n", 1)]);
        let (store, told) = apply(&Store::default(), std::slice::from_ref(&a));
        assert_eq!(told, ["Namespace/n created", "Service/default/s created"]);
        let (same, told) = apply(&store, &[a]);
        assert_eq!(told, ["Namespace/n unchanged", "Service/default/s unchanged"]);
        assert_eq!(same, store);
        let b = file("/x/a.yaml", &[object("Service", "s", 2)]);
        let (_, told) = apply(&store, &[b]);
        assert_eq!(told, ["Service/default/s configured", "Namespace/n deleted"]);
    }

    #[test]
    fn an_object_moves_to_the_file_that_came_last_and_lines_stay() {
        let a = file("/x/a.yaml", &[object("Service", "s", 1), object("Service", "t", 1)]);
        let b = file("/y/b.yaml", &[object("Service", "s", 2)]);
        let (store, _) = apply(&Store::default(), &[a]);
        let (store, told) = apply(&store, &[b]);
        assert_eq!(told, ["Service/default/s configured"]);
        let left = &store.get("a.yaml").unwrap().content;
        assert_eq!(left.lines().position(|line| line.contains("name: t")), Some(7));
        assert!(!left.contains("name: s"));
    }

    #[test]
    fn files_of_one_name_do_not_meet() {
        let all = [
            file("/x/a.yaml", &[object("Service", "s", 1)]),
            file("/y/a.yaml", &[object("Service", "t", 1)]),
            file("/y/..hidden.yml", &[object("Service", "u", 1)]),
            file("-", &[object("Service", "v", 1)]),
        ];
        let (store, _) = apply(&Store::default(), &all);
        assert_eq!(names(&store), ["a-2.yaml", "a.yaml", "hidden.yaml", "stdin.yaml"]);
    }

    #[test]
    fn deleting_takes_objects_out_and_empty_files_with_them() {
        let a = file("/x/a.yaml", &[object("Service", "s", 1), object("Service", "t", 1)]);
        let (store, _) = apply(&Store::default(), &[a]);
        let s = file("-", &[object("Service", "s", 9), object("Service", "none", 9)]);
        let (store, fates) = store.without(&[s]);
        assert_eq!(told(fates), ["Service/default/s deleted"]);
        let t = file("-", &[object("Service", "t", 9)]);
        let (store, _) = store.without(&[t]);
        assert_eq!(names(&store), Vec::<&str>::new());
    }

    #[test]
    fn what_is_no_yaml_is_kept_to_be_reported() {
        let bad = file("/x/bad.yaml", &["a: [".to_owned()]);
        let (store, _) = apply(&Store::default(), &[bad]);
        assert_eq!(names(&store), ["bad.yaml"]);
    }

    #[test]
    fn there_is_a_limit() {
        let big = file(
            "/x/big.yaml",
            &[format!("# {}\n{}", "x".repeat(MAX_BYTES), object("Service", "s", 1))],
        );
        assert_eq!(Store::default().with(vec![big]), Err(StoreError::TooMuch));
    }
}
