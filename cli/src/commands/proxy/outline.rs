//! A JSON document for people.

use serde_json::Value;

/// A document as indented text. Lines are short however deep it is: what has parts begins on a line of its own, and
/// a list of plain values stands behind its name, as far as it fits.
pub(super) fn outline(value: &Value) -> String {
    let mut lines = Vec::new();
    write_outline(value, 0, &mut lines);
    lines.join("\n")
}

/// With the two columns that an account adds, lines fit a terminal of 80.
const WIDTH: usize = 78;

fn write_outline(value: &Value, depth: usize, lines: &mut Vec<String>) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            // What is short first: it says what the parts below are about.
            let (short, parts): (Vec<_>, Vec<_>) = fields
                .iter()
                .map(|(name, value)| (name, value, inline(value)))
                .partition(|(name, _, inline)| {
                    let width = |text: &String| indent.len() + name.len() + 2 + text.len();
                    inline.as_ref().is_some_and(|text| width(text) <= WIDTH)
                });
            let short = short.into_iter().map(|(name, _, text)| (name, text.unwrap_or_default()));
            let (named, others): (Vec<_>, Vec<_>) = short.partition(|(name, _)| *name == "name");
            for (name, text) in named.into_iter().chain(others) {
                lines.push(format!("{indent}{}: {text}", name.replace('_', " ")));
            }
            for (name, value, _) in parts {
                lines.push(format!("{indent}{}:", name.replace('_', " ")));
                write_outline(value, depth + 1, lines);
            }
        }
        Value::Array(items) => {
            for item in items {
                let at = lines.len();
                write_outline(item, depth + 1, lines);
                if let Some(first) = lines.get_mut(at) {
                    first.replace_range(indent.len()..indent.len() + 2, "- ");
                }
            }
        }
        plain => lines.push(format!("{indent}{}", inline(plain).unwrap_or_default())),
    }
}

/// A value without parts, on one line.
fn inline(value: &Value) -> Option<String> {
    match value {
        Value::Array(items) if items.is_empty() => Some("none".to_owned()),
        Value::Array(items) => {
            let plain = items.iter().map(|item| match item {
                Value::Array(_) | Value::Object(_) => None,
                plain => inline(plain),
            });
            plain.collect::<Option<Vec<_>>>().map(|plain| plain.join(", "))
        }
        Value::Object(_) => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_values_come_first_and_what_does_not_fit_is_a_list() {
        let long: Vec<String> = (0..20).map(|n| format!("10.{n}.0.0/16")).collect();
        let document =
            json!({ "a_b": [{ "weight": 3, "name": "x" }], "none": [], "long": long, "at": "10s" });
        let text = outline(&document);
        assert!(
            text.starts_with(
                "at: 10s\nnone: none\na b:\n  - name: x\n    weight: 3\nlong:\n  - 10.0.0.0/16\n"
            ),
            "{text}"
        );
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
    }
}
