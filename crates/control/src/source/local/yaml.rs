//! YAML text as documents, each a tree whose nodes know their lines.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// One document of a file.
#[derive(Debug)]
pub struct Document {
    pub root: Node,
    /// Lines of the file before it.
    offset: u32,
}

/// A node of a document.
#[derive(Debug)]
pub struct Node {
    /// From 1, within the document.
    line: u32,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Scalar(serde_json::Value),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// Text that is not YAML.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid {
    /// From 1, in the file.
    pub line: u32,
    pub message: String,
}

/// No object of Kubernetes nests deeper; bounds the stack.
const MAX_DEPTH: usize = 64;

/// Splits a text and reads its documents; empty ones are left out.
///
/// A line that begins with `---` ends a document whatever stands around it: YAML does not allow it
/// inside any scalar.
pub fn documents(text: &str) -> Vec<Result<Document, Invalid>> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 0, 0);
    for (line, text_line) in text.split_inclusive('\n').enumerate() {
        if at > start && is_marker(text_line) {
            documents.extend(document(&text[start..at], start_line));
            (start, start_line) = (at, u32::try_from(line).unwrap_or(u32::MAX));
        }
        at += text_line.len();
    }
    documents.extend(document(&text[start..], start_line));
    documents
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn document(text: &str, offset: u32) -> Option<Result<Document, Invalid>> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: MAX_DEPTH },
        with_snippet: false,
        strict_booleans: true,
    };
    match serde_saphyr::from_str_with_options::<Spanned<Tree>>(text, options) {
        Ok(Spanned { value: Tree(Value::Scalar(serde_json::Value::Null)), .. }) => None,
        Ok(root) => Some(Ok(Document { root: root.into(), offset })),
        Err(error) => {
            let line = error.location().map_or(1, |location| line_number(location.line()));
            Some(Err(Invalid { line: offset + line, message: error.to_string() }))
        }
    }
}

fn line_number(line: u64) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX).max(1)
}

impl Document {
    /// The line in the file of the node at `path` (`spec.ports[0].port`), or of the nearest node
    /// above it that exists.
    pub fn line(&self, path: &str) -> u32 {
        let mut node = &self.root;
        for segment in segments(path) {
            match node.child(segment) {
                Some(child) => node = child,
                None => break,
            }
        }
        self.offset + node.line
    }
}

impl Node {
    pub fn child(&self, name: &str) -> Option<&Self> {
        match &self.value {
            Value::Scalar(_) => None,
            Value::List(items) => items.get(name.parse::<usize>().ok()?),
            Value::Map(entries) => entries.iter().find(|(key, _)| key == name).map(|(_, n)| n),
        }
    }

    /// The text at a path of names; `None` when something else or nothing is there.
    pub fn text(&self, path: &[&str]) -> Option<&str> {
        let node = path.iter().try_fold(self, |node, name| node.child(name))?;
        match &node.value {
            Value::Scalar(serde_json::Value::String(text)) => Some(text),
            _ => None,
        }
    }

    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Scalar(scalar) => scalar.clone(),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Map(entries) => entries
                .iter()
                .map(|(key, node)| (key.clone(), node.to_json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }
}

/// `spec.ports[0].port` as `spec`, `ports`, `0`, `port`.
fn segments(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches('.');
        if rest.is_empty() {
            return None;
        }
        if let Some(inside) = rest.strip_prefix('[') {
            let end = inside.find(']').unwrap_or(inside.len());
            rest = inside.get(end + 1..).unwrap_or_default();
            return Some(&inside[..end]);
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let segment = &rest[..end];
        rest = &rest[end..];
        Some(segment)
    })
}

impl From<Spanned<Tree>> for Node {
    fn from(spanned: Spanned<Tree>) -> Self {
        Self { line: line_number(spanned.referenced.line()), value: spanned.value.0 }
    }
}

/// What a node holds, as it comes from the parser.
struct Tree(Value);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor).map(Self)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Scalar(serde_json::Value::Null))
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Scalar(serde_json::Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element::<Spanned<Tree>>()? {
            items.push(item.into());
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key_seed(Key)? {
            entries.push((key, map.next_value::<Spanned<Tree>>()?.into()));
        }
        Ok(Value::Map(entries))
    }
}

/// A key: any scalar, as text.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        String::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# a comment
---
kind: A
spec:
  ports:
    - port: 1
    - {name: x, port: 2}
---
kind: B
text: |
  a
   --- not a marker
metadata:
  annotations:
    a.b/c-d: '1'
...
---
";

    fn read(text: &str) -> Vec<Document> {
        documents(text).into_iter().map(Result::unwrap).collect()
    }

    #[test]
    fn documents_know_the_lines_of_their_nodes() {
        let documents = read(TEXT);
        assert_eq!(documents.len(), 2);
        let kinds: Vec<_> = documents.iter().map(|d| d.root.text(&["kind"]).unwrap()).collect();
        assert_eq!(kinds, ["A", "B"]);
        assert_eq!(documents[0].line("kind"), 3);
        assert_eq!(documents[0].line("spec.ports[0].port"), 6);
        assert_eq!(documents[0].line("spec.ports[1].port"), 7);
        assert_eq!(documents[0].line("spec.ports[1].missing.below"), 7);
        assert_eq!(documents[1].line("metadata.annotations[a.b/c-d]"), 15);
    }

    #[test]
    fn scalars_have_their_types() {
        let documents = read("a: 1\nb: '1'\nc: true\nd: 1.5\ne: null\nf: [x]\n8080: y\n");
        let json = serde_json::json!(
            {"a": 1, "b": "1", "c": true, "d": 1.5, "e": null, "f": ["x"], "8080": "y"}
        );
        assert_eq!(documents[0].root.to_json(), json);
    }

    #[test]
    fn json_is_yaml() {
        let documents = read("{\"a\": {\"b\": [1, \"2\"]}}");
        assert_eq!(documents[0].root.to_json(), serde_json::json!({"a": {"b": [1, "2"]}}));
    }

    #[test]
    fn what_is_not_yaml_has_a_line_too() {
        let all = documents("a: 1\n---\nb: 1\nc: [1\nd: 2\n---\ne: 1\n");
        assert!(all[0].is_ok() && all[2].is_ok());
        let line = all[1].as_ref().unwrap_err().line;
        assert!((4..=6).contains(&line), "{line}");
        assert!(documents("a: 1\na: 2\n")[0].is_err(), "duplicate keys");
    }

    #[test]
    fn deep_nesting_is_refused() {
        let text = "[".repeat(10_000);
        assert!(documents(&text)[0].is_err());
    }
}
