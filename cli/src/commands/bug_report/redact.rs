//! What nobody else is to read, taken out of texts and objects.

use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::Value;

const REDACTED: &str = "[redacted]";
/// What `kubectl apply` keeps of an object, with all that is taken out of it here.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Variables that are the mesh's own are no secrets.
const OUR_VARIABLES: [&str; 1] = ["MESH_"];

/// Private keys (also in JSON, where lines end with `\n` in letters), tokens in three parts, what stands behind
/// words for secrets, passwords in URLs, and queries.
static PATTERNS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", REDACTED),
        (r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", REDACTED),
        (r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}", "$1 [redacted]"),
        (
            r#"(?i)((?:authorization|cookie|password|passwd|secret|api[-_]?key|token)["']?\s*[:=]\s*["']?)[^\s"',;\\]{4,}"#,
            "${1}[redacted]",
        ),
        (r#"://[^/\s"@:]+:[^/\s"@]+@"#, "://[redacted]@"),
        (r#"(/[^\s"?\\]*)\?[^\s"\\]+"#, "$1?[redacted]"),
    ]
    .into_iter()
    .filter_map(|(pattern, with)| Some((Regex::new(pattern).ok()?, with)))
    .collect()
});

/// A text without secrets.
pub(super) fn text(text: &str) -> String {
    PATTERNS.iter().fold(text.to_owned(), |text, (pattern, with)| {
        let replaced = pattern.replace_all(&text, |found: &Captures<'_>| {
            let mut to = String::new();
            found.expand(with, &mut to);
            to
        });
        replaced.into_owned()
    })
}

/// Takes out of an object, or a list of them, what is no use or secret.
pub(super) fn object(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(object),
        Value::Object(fields) => {
            fields.remove("managedFields");
            if let Some(Value::Object(annotations)) = fields.get_mut("annotations") {
                annotations.remove(LAST_APPLIED);
            }
            let is_secret = fields.get("kind").is_some_and(|kind| kind == "Secret");
            for of in ["data", "stringData"] {
                if let Some(Value::Object(values)) = fields.get_mut(of).filter(|_| is_secret) {
                    values.values_mut().for_each(|value| *value = REDACTED.into());
                }
            }
            if let Some(Value::Array(variables)) = fields.get_mut("env") {
                variables.iter_mut().for_each(variable);
            }
            fields.values_mut().for_each(object);
        }
        _ => {}
    }
}

fn variable(variable: &mut Value) {
    let name = variable["name"].as_str().unwrap_or_default();
    let is_ours = OUR_VARIABLES.iter().any(|prefix| name.starts_with(prefix));
    if let Some(value) = variable.get_mut("value").filter(|_| !is_ours) {
        *value = REDACTED.into();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_lose_their_secrets_and_nothing_else() {
        assert_eq!(PATTERNS.len(), 6, "all of them are regular expressions");
        for (before, after) in [
            ("GET /cart?user=7&t=x 200", "GET /cart?[redacted] 200"),
            (r#"{"path":"/a?b=c","n":1}"#, r#"{"path":"/a?[redacted]","n":1}"#),
            ("http://me:pass@host/x", "http://[redacted]@host/x"),
            ("authorization: Bearer abcdef.ghi", "authorization: [redacted] [redacted]"),
            ("x eyJhbGciOi.eyJhdWQi.c2ln y", "x [redacted] y"),
            ("password=hunter22 ok", "password=[redacted] ok"),
            (
                r"a -----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY----- b",
                "a [redacted] b",
            ),
            ("token reviews are slow", "token reviews are slow"),
            ("web -> tax 99.9 % p99=12ms", "web -> tax 99.9 % p99=12ms"),
            ("-----BEGIN CERTIFICATE-----\nMIIB", "-----BEGIN CERTIFICATE-----\nMIIB"),
        ] {
            assert_eq!(text(before), after);
        }
    }

    #[test]
    fn objects_lose_values_of_secrets_and_variables() {
        let mut list = json!([
            { "kind": "Secret", "data": { "tls.key": "a2V5" }, "type": "kubernetes.io/tls" },
            { "kind": "ConfigMap", "data": { "a": "b" } },
            {
                "kind": "Pod",
                "metadata": {
                    "managedFields": [1],
                    "annotations": { LAST_APPLIED: "{}", "x": "y" },
                },
                "spec": { "containers": [{ "env": [
                    { "name": "DB_URL", "value": "postgres://a" },
                    { "name": "MESH_PROXY_LOG", "value": "info" },
                    { "name": "FROM", "valueFrom": { "fieldRef": {} } },
                ] }] },
            },
        ]);
        object(&mut list);
        let expected = json!([
            { "kind": "Secret", "data": { "tls.key": REDACTED }, "type": "kubernetes.io/tls" },
            { "kind": "ConfigMap", "data": { "a": "b" } },
            {
                "kind": "Pod",
                "metadata": { "annotations": { "x": "y" } },
                "spec": { "containers": [{ "env": [
                    { "name": "DB_URL", "value": REDACTED },
                    { "name": "MESH_PROXY_LOG", "value": "info" },
                    { "name": "FROM", "valueFrom": { "fieldRef": {} } },
                ] }] },
            },
        ]);
        assert_eq!(list, expected);
    }
}
