//! Values as YAML, in the block style that people write manifests in.

use serde_json::Value;

/// `key: value`, as lines at this indentation.
pub(super) fn entry(key: &str, value: &Value, indent: usize, lines: &mut Vec<String>) {
    let key = format!("{}{}:", " ".repeat(indent), scalar(&key.into()));
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            lines.push(key);
            fields_of(fields, indent + 2, lines);
        }
        Value::Array(list) if !list.is_empty() => {
            lines.push(key);
            list.iter().for_each(|value| item(value, indent + 2, lines));
        }
        Value::String(text) if is_block(text) => {
            lines.push(format!("{key} |"));
            let pad = " ".repeat(indent + 2);
            lines.extend(text.lines().map(|line| format!("{pad}{line}")));
        }
        _ => lines.push(format!("{key} {}", scalar(value))),
    }
}

/// `- value`, with the dash at this indentation.
pub(super) fn item(value: &Value, indent: usize, lines: &mut Vec<String>) {
    let first = lines.len();
    match value {
        Value::Object(fields) if !fields.is_empty() => fields_of(fields, indent + 2, lines),
        Value::Array(list) if !list.is_empty() => {
            list.iter().for_each(|value| item(value, indent + 2, lines));
        }
        _ => lines.push(format!("{}{}", " ".repeat(indent + 2), scalar(value))),
    }
    lines[first].replace_range(indent..=indent, "-");
}

/// The name first: that is what people look for.
fn fields_of(fields: &serde_json::Map<String, Value>, indent: usize, lines: &mut Vec<String>) {
    let (names, others): (Vec<_>, Vec<_>) = fields.iter().partition(|(key, _)| *key == "name");
    for (key, value) in names.into_iter().chain(others) {
        entry(key, value, indent, lines);
    }
}

/// Several lines that a literal block holds as they are.
fn is_block(text: &str) -> bool {
    let lines = text.strip_suffix('\n').unwrap_or_default();
    let sound = |line: &str| {
        !line.is_empty()
            && !line.starts_with([' ', '\t'])
            // Some versions of YAML take the last three for line ends or marks.
            && line.chars().all(|c| {
                c == '\t' || !(c.is_control() || "\u{2028}\u{2029}\u{feff}".contains(c))
            })
    };
    lines.split('\n').all(sound)
}

/// A value on one line. Text that could be read as anything else is quoted; JSON's quoting is YAML's.
pub(super) fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        value => value.to_string(),
    }
}

fn is_plain(text: &str) -> bool {
    /// Words with a meaning of their own, in any version of YAML.
    const WORDS: [&str; 10] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan"];
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let inside = |c: char| c.is_ascii_alphanumeric() || "/._-@()$".contains(c);
    let colons = text.contains(':') && (text.ends_with(':') || text.contains(": "));
    let chars = text.chars().all(|c| inside(c) || c == ':');
    begins && chars && !colons && !WORDS.contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn values_read_as_people_write_them() {
        let value = json!({
            "image": "ghcr.io/a/b:1", "name": "x", "args": ["--a", "80"], "ok": true, "n": 1,
            "env": [{"name": "PEM", "value": "a\nb\n"}, {"value": "no", "name": "N"}], "e": {},
        });
        let mut lines = Vec::new();
        item(&value, 2, &mut lines);
        let text = "  - name: x\n    args:\n      - \"--a\"\n      - \"80\"\n    e: {}\n    env:\n      \
                    - name: PEM\n        value: |\n          a\n          b\n      - name: \"N\"\n        \
                    value: \"no\"\n    image: ghcr.io/a/b:1\n    \"n\": 1\n    ok: true";
        assert_eq!(lines.join("\n"), text);
    }

    fn value() -> impl Strategy<Value = Value> {
        let text = prop_oneof!["[a-z:/ \\-\n0-9.#\"'{}|]{0,8}", any::<String>()];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            text.prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-zA-Z0-9/. :]{1,6}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(value in value()) {
            let mut lines = Vec::new();
            entry("it", &value, 0, &mut lines);
            let text = lines.join("\n") + "\n";
            let documents = mesh_control::source::local::yaml::documents(&text);
            let read = documents.into_iter().next().unwrap().unwrap().root.to_json();
            prop_assert_eq!(&read["it"], &value, "{}", text);
        }
    }
}
