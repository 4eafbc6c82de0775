//! What is added to a pod: at the front of a list, or into a map, which is made if it is not there.
//!
//! There is no other kind of edit, so that each can be made in JSON, as a JSON patch and in YAML text.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, PatchOperation};
use serde_json::{Map, Value};

/// One addition.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// Names from the pod down to the list or map.
    pub path: &'static [&'static str],
    pub added: Added,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Added {
    /// In front of what the list has.
    Items(Vec<Value>),
    /// Instead of what the map has under these names.
    Entries(Vec<(&'static str, Value)>),
}

impl Added {
    /// As a list or map of its own.
    pub fn into_value(self) -> Value {
        match self {
            Self::Items(items) => items.into(),
            Self::Entries(entries) => {
                Value::Object(entries.into_iter().map(|(key, value)| (key.into(), value)).collect())
            }
        }
    }
}

/// Makes the edits in a pod or template.
pub fn apply(pod: &mut Value, edits: &[Edit]) {
    for edit in edits {
        let mut at = &mut *pod;
        for name in edit.path {
            at = child(at, name);
        }
        match (edit.added.clone(), &mut *at) {
            (Added::Items(mut items), Value::Array(have)) => {
                items.append(have);
                *have = items;
            }
            (Added::Entries(entries), Value::Object(have)) => {
                have.extend(entries.into_iter().map(|(key, value)| (key.to_owned(), value)));
            }
            (added, at) => *at = added.into_value(),
        }
    }
}

fn child<'a>(at: &'a mut Value, name: &str) -> &'a mut Value {
    if !at.is_object() {
        *at = Value::Object(Map::new());
    }
    &mut at[name]
}

/// The same as operations on the pod or template found at `prefix` of a document. Nothing is said
/// about what the pod has already, so that what others patch meanwhile is not undone.
pub fn patch(pod: &Value, prefix: &[&str], edits: &[Edit]) -> Vec<PatchOperation> {
    let mut after = pod.clone();
    let mut operations = Vec::new();
    for edit in edits {
        let pointer = |path: &[&str], last: Option<&str>| {
            PointerBuf::from_tokens(prefix.iter().chain(path).copied().chain(last))
        };
        let mut add = |path, value| {
            operations.push(PatchOperation::Add(AddOperation { path, value }));
        };
        let have = edit.path.iter().try_fold(&after, |at, name| at.get(name));
        match (&edit.added, have) {
            (Added::Items(items), Some(Value::Array(_))) => {
                let first = pointer(edit.path, Some("0"));
                items.iter().rev().for_each(|item| add(first.clone(), item.clone()));
            }
            (Added::Entries(entries), Some(Value::Object(_))) => {
                for (key, value) in entries {
                    add(pointer(edit.path, Some(key)), value.clone());
                }
            }
            (added, _) => {
                // The nearest ancestor that is there gets all of what is missing.
                let depth = (0..edit.path.len()).find(|depth| {
                    let above = edit.path[..=*depth].iter().try_fold(&after, |at, n| at.get(n));
                    above.is_none_or(Value::is_null)
                });
                let depth = depth.unwrap_or(edit.path.len() - 1);
                let missing = &edit.path[depth + 1..];
                let value = missing.iter().rev().fold(added.clone().into_value(), |value, name| {
                    Value::Object(Map::from_iter([((*name).to_owned(), value)]))
                });
                add(pointer(&edit.path[..=depth], None), value);
            }
        }
        apply(&mut after, std::slice::from_ref(edit));
    }
    operations
}
