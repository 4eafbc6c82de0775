//! RESOURCE on the command line: `TYPE`, `TYPE/NAME`, `TYPE NAME…`, several of them, as kubectl reads it.

use clap::Args;
use mesh_api::ext;

use crate::error::CliError;

/// A type of resource and every way to write it.
struct Type {
    /// As on the wire.
    kind: &'static str,
    plural: &'static str,
    /// As kubectl has it; empty if it has none.
    short: &'static str,
}

const TYPES: [Type; 10] = [
    Type { kind: "namespace", plural: "namespaces", short: "ns" },
    Type { kind: "pod", plural: "pods", short: "po" },
    Type { kind: "deployment", plural: "deployments", short: "deploy" },
    Type { kind: "daemonset", plural: "daemonsets", short: "ds" },
    Type { kind: "statefulset", plural: "statefulsets", short: "sts" },
    Type { kind: "replicaset", plural: "replicasets", short: "rs" },
    Type { kind: "job", plural: "jobs", short: "" },
    Type { kind: "cronjob", plural: "cronjobs", short: "cj" },
    Type { kind: "service", plural: "services", short: "svc" },
    // Hosts outside of the mesh, for `stat`.
    Type { kind: "egress", plural: "egress", short: "" },
];

/// Which namespaces and labels are meant; the same on every command that takes resources.
#[derive(Args, Clone, Debug, Default)]
pub struct Scope {
    /// Only this namespace [default: all of a local mesh]
    #[arg(long, short, value_name = "NS", conflicts_with = "all_namespaces",
          add = crate::completing::namespaces())]
    pub namespace: Option<String>,
    /// All namespaces
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
    /// Only what has these labels: k=v,k!=v,k
    #[arg(long = "selector", short = 'l', value_name = "LABELS")]
    pub labels: Option<String>,
}

/// The resources a command is about, at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Selectors(pub Vec<ext::Selector>);

impl Selectors {
    /// Reads the words of the command line. A bare word is a type (or several, by commas), the bare words after it
    /// are names; `TYPE/NAME` stands for itself.
    pub fn parse(words: &[String], scope: &Scope) -> Result<Self, CliError> {
        let mut found: Vec<(&'static str, String)> = Vec::new();
        // The types that following bare words name, and whether one did.
        let mut open: Vec<&'static str> = Vec::new();
        let mut named = true;
        for word in words {
            if let Some((kind, name)) = word.split_once('/') {
                close(&mut found, &mut open, &mut named);
                found.push((type_named(kind)?, plain_name(name, word)?));
            } else if open.is_empty() {
                open = word.split(',').map(type_named).collect::<Result<_, _>>()?;
                named = false;
            } else {
                let name = plain_name(word, word)?;
                found.extend(open.iter().map(|kind| (*kind, name.clone())));
                named = true;
            }
        }
        close(&mut found, &mut open, &mut named);
        let selectors = found.into_iter().map(|(kind, name)| scope.selector(kind, name));
        Ok(Self(selectors.collect()))
    }

    /// Just one resource, for `--to` and `--from`.
    pub fn parse_one(word: &str, scope: &Scope) -> Result<ext::Selector, CliError> {
        // The labels of `-l` are about the resources asked for, not about the other side.
        let scope = Scope { labels: None, ..scope.clone() };
        let mut parsed = Self::parse(&[word.to_owned()], &scope)?;
        match (parsed.0.pop(), parsed.0.is_empty()) {
            (Some(selector), true) => Ok(selector),
            _ => {
                Err(CliError::usage(format!("\"{word}\" is not one resource"))
                    .hint("write TYPE/NAME"))
            }
        }
    }

    /// `deployment/web in shop, service/tax`: for messages.
    pub fn describe(&self) -> String {
        let all: Vec<String> = self.0.iter().map(describe).collect();
        all.join(", ")
    }
}

/// Pods as `POD`, `NAMESPACE/POD` or `TYPE/NAME`.
pub fn of_pods(word: &str, namespace: Option<&str>) -> Result<ext::Selector, CliError> {
    let scope = |namespace: Option<&str>| Scope {
        namespace: namespace.map(str::to_owned),
        ..Scope::default()
    };
    match word.split_once('/') {
        Some((kind, _)) if is_type(kind) => Selectors::parse_one(word, &scope(namespace)),
        Some((namespace, pod)) => {
            Selectors::parse_one(&format!("pod/{pod}"), &scope(Some(namespace)))
        }
        None => Selectors::parse_one(&format!("pod/{word}"), &scope(namespace)),
    }
}

/// All pods, or those of one namespace.
pub fn all_pods(namespace: Option<&str>) -> ext::Selector {
    ext::Selector {
        kind: "pod".to_owned(),
        namespace: namespace.unwrap_or_default().to_owned(),
        ..ext::Selector::default()
    }
}

/// `deployment/web in shop`, `pods labelled app=web`.
pub fn describe(selector: &ext::Selector) -> String {
    let mut text = match selector.name.as_str() {
        "" => plural_of(&selector.kind),
        name => format!("{}/{name}", selector.kind),
    };
    if !selector.labels.is_empty() {
        text += &format!(" labelled {}", selector.labels);
    }
    if !selector.namespace.is_empty() {
        text += &format!(" in {}", selector.namespace);
    }
    text
}

impl Scope {
    fn selector(&self, kind: &str, name: String) -> ext::Selector {
        // A namespace is not in one.
        let namespace = if kind == "namespace" { None } else { self.namespace.clone() };
        ext::Selector {
            kind: kind.to_owned(),
            name,
            namespace: namespace.unwrap_or_default(),
            labels: self.labels.clone().unwrap_or_default(),
        }
    }
}

/// Types that no name followed stand for all of their kind.
fn close(found: &mut Vec<(&'static str, String)>, open: &mut Vec<&'static str>, named: &mut bool) {
    if !*named {
        found.extend(open.iter().map(|kind| (*kind, String::new())));
    }
    open.clear();
    *named = true;
}

fn plain_name(name: &str, word: &str) -> Result<String, CliError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.is_empty() || name.len() > 253 || !name.chars().all(plain) {
        return Err(CliError::usage(format!("\"{word}\" does not name a resource"))
            .hint("write TYPE, TYPE/NAME or TYPE NAME, for example deploy/web"));
    }
    Ok(name.to_owned())
}

fn type_named(word: &str) -> Result<&'static str, CliError> {
    let lower = word.to_ascii_lowercase();
    let known = TYPES.iter().find(|t| names_of(t).any(|name| name == lower));
    known.map(|t| t.kind).ok_or_else(|| unknown_type(word, &lower))
}

fn names_of(of: &Type) -> impl Iterator<Item = &'static str> {
    [of.kind, of.plural, of.short].into_iter().filter(|name| !name.is_empty())
}

fn unknown_type(word: &str, lower: &str) -> CliError {
    let names = TYPES.iter().flat_map(names_of);
    let nearest = names.min_by_key(|name| distance(lower, name)).filter(|name| {
        // Half of the word wrong is no misspelling.
        distance(lower, name) <= name.len().max(2) / 2
    });
    let error = CliError::usage(format!("there is no resource type \"{word}\""));
    match nearest {
        Some(name) => error.hint(name),
        None => {
            let kinds: Vec<_> = TYPES.iter().map(|t| t.kind).collect();
            error.hint(format!("one of {}", kinds.join(", ")))
        }
    }
}

fn plural_of(kind: &str) -> String {
    TYPES.iter().find(|t| t.kind == kind).map_or(kind, |t| t.plural).to_owned()
}

/// The short name kubectl has for a kind, or the kind.
pub fn short_kind(kind: &str) -> &str {
    let short = TYPES.iter().find(|t| t.kind == kind).map_or("", |t| t.short);
    if short.is_empty() { kind } else { short }
}

/// Whether a word is a type, however it is written.
pub(crate) fn is_type(word: &str) -> bool {
    type_named(word).is_ok()
}

/// Every type as it is usually written, for completion.
pub(crate) fn type_names() -> impl Iterator<Item = &'static str> {
    TYPES.iter().map(|t| if t.short.is_empty() { t.kind } else { t.short })
}

/// How many letters have to be changed, added or left out (Levenshtein).
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Vec<String>, CliError> {
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        let parsed = Selectors::parse(&words, &Scope::default())?;
        Ok(parsed.0.iter().map(|s| format!("{}/{}", s.kind, s.name)).collect())
    }

    #[test]
    fn every_form_is_read() {
        let table = [
            ("deploy", vec!["deployment/"]),
            ("deploy/web", vec!["deployment/web"]),
            ("deploy web", vec!["deployment/web"]),
            ("deploy web tax", vec!["deployment/web", "deployment/tax"]),
            ("deploy/web svc/tax", vec!["deployment/web", "service/tax"]),
            ("deploy,sts", vec!["deployment/", "statefulset/"]),
            ("po web-1 deploy/web", vec!["pod/web-1", "deployment/web"]),
            ("deploy/web ns", vec!["deployment/web", "namespace/"]),
            ("Deployments", vec!["deployment/"]),
        ];
        for (words, want) in table {
            assert_eq!(parse(words).unwrap(), want, "{words}");
        }
    }

    #[test]
    fn the_nearest_type_is_proposed() {
        let hint = |word| parse(word).unwrap_err().hint.unwrap();
        assert_eq!(hint("deplyo"), "deploy");
        assert_eq!(hint("servics/tax"), "service");
        assert!(hint("xylophone").starts_with("one of namespace, pod, "), "{}", hint("xylophone"));
    }

    #[test]
    fn names_that_can_not_be_are_refused() {
        for bad in ["deploy/", "deploy/a/b", "deploy/a*"] {
            assert_eq!(parse(bad).unwrap_err().kind, crate::error::Kind::Usage, "{bad}");
        }
    }

    #[test]
    fn the_scope_applies_to_all_but_namespaces() {
        let scope = Scope {
            namespace: Some("shop".into()),
            labels: Some("app=web".into()),
            ..Scope::default()
        };
        let words = ["po".to_owned(), "w".to_owned(), "ns/shop".to_owned()];
        let parsed = Selectors::parse(&words, &scope).unwrap();
        assert_eq!(
            parsed.describe(),
            "pod/w labelled app=web in shop, namespace/shop labelled app=web"
        );
        assert_eq!(Selectors::parse_one("svc/tax", &scope).unwrap().labels, "");
    }
}
