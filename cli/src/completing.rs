//! Completion of names from the running mesh, while the user presses Tab.
//!
//! The shell runs this binary with the words typed so far. Everything here is quick or gives up, and never says a
//! word: a failing completion is an empty one.

use std::ffi::OsStr;
use std::time::Duration;

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use mesh_api::ext;

use crate::args::{Global, MESH_NAMESPACE};
use crate::connect::Mesh;
use crate::context::Context;
use crate::output::Ui;
use crate::selector::{self, Scope, Selectors};

/// What a user waits for after Tab without wondering.
const PATIENCE: Duration = Duration::from_millis(700);

/// `TYPE`, `TYPE/NAME`, and names after a bare type.
pub(crate) fn resources() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let current = current.to_str().unwrap_or_default();
        let typed = Typed::of_process();
        let previous = typed.words.iter().rev().nth(1).map_or("", String::as_str);
        candidates(
            current,
            resource_words(current, previous, |kind| {
                ask(&typed, async |mesh| names(mesh, kind, &typed).await)
            }),
        )
    })
}

/// Names of namespaces.
pub(crate) fn namespaces() -> ArgValueCompleter {
    of_kind("namespace")
}

/// Names of pods.
pub(crate) fn pods() -> ArgValueCompleter {
    of_kind("pod")
}

/// Ids of checks; these are known without asking anybody.
pub(crate) fn check_ids() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let ids = crate::commands::check::catalog::CATALOG.iter().map(|check| check.id.to_owned());
        candidates(current.to_str().unwrap_or_default(), ids.collect())
    })
}

/// What can be explained.
pub(crate) fn explainable() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let topics = crate::commands::explain::topics().map(|topic| topic.id.to_owned());
        candidates(current.to_str().unwrap_or_default(), topics.collect())
    })
}

/// `name.namespace:port` of every service.
pub(crate) fn authorities() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let typed = Typed::of_process();
        let found = ask(&typed, async |mesh| {
            let all = ext::Selector { kind: "service".to_owned(), ..Default::default() };
            let services = mesh.resources(all).await.unwrap_or_default();
            services.iter().flat_map(authorities_of).collect()
        });
        candidates(current.to_str().unwrap_or_default(), found)
    })
}

fn authorities_of(service: &ext::Workload) -> Vec<String> {
    let Some(of) = &service.r#ref else {
        return Vec::new();
    };
    service.ports.iter().map(|port| format!("{}.{}:{}", of.name, of.namespace, port.port)).collect()
}

fn of_kind(kind: &'static str) -> ArgValueCompleter {
    ArgValueCompleter::new(move |current: &OsStr| {
        let typed = Typed::of_process();
        let found = ask(&typed, async |mesh| names(mesh, kind, &typed).await);
        candidates(current.to_str().unwrap_or_default(), found)
    })
}

/// The words a resource argument may become; `names` gives the names of a kind.
fn resource_words(
    current: &str,
    previous: &str,
    names: impl Fn(&str) -> Vec<String>,
) -> Vec<String> {
    if let Some((kind, _)) = current.split_once('/') {
        return names(kind).into_iter().map(|name| format!("{kind}/{name}")).collect();
    }
    let after_type = selector::is_type(previous);
    let mut words: Vec<String> = if after_type { names(previous) } else { Vec::new() };
    words.extend(selector::type_names().flat_map(|kind| [kind.to_owned(), format!("{kind}/")]));
    words
}

async fn names(mesh: &Mesh, kind: &str, typed: &Typed) -> Vec<String> {
    let scope = Scope { namespace: typed.namespace(), ..Scope::default() };
    let Ok(selectors) = Selectors::parse(&[kind.to_owned()], &scope) else {
        return Vec::new();
    };
    let mut names = Vec::new();
    for selector in selectors.0 {
        let found = mesh.resources(selector).await.unwrap_or_default();
        names.extend(found.into_iter().filter_map(|w| w.r#ref).map(|of| of.name));
    }
    names
}

fn candidates(current: &str, words: Vec<String>) -> Vec<CompletionCandidate> {
    let mut fitting: Vec<String> = words.into_iter().filter(|w| w.starts_with(current)).collect();
    fitting.sort();
    fitting.dedup();
    fitting.into_iter().map(CompletionCandidate::new).collect()
}

/// Asks the mesh that the typed words name.
fn ask(typed: &Typed, question: impl AsyncFnOnce(&Mesh) -> Vec<String>) -> Vec<String> {
    let ui = Ui::plain(std::io::sink(), std::io::sink());
    let mut cx = Context::of_process(typed.global(), ui);
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let answer = async {
        let mesh = cx.connect().await.ok()?;
        Some(question(&mesh).await)
    };
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, answer).await })
        .ok()
        .flatten()
        .unwrap_or_default()
}

/// The command line so far; the last word is the one being completed.
struct Typed {
    words: Vec<String>,
}

impl Typed {
    /// The shell's script passes them after `--`.
    fn of_process() -> Self {
        Self { words: std::env::args().skip_while(|word| word != "--").skip(1).collect() }
    }

    fn global(&self) -> Global {
        let local = self.words.iter().find_map(|w| match w.strip_prefix("--local") {
            Some("") => Some(crate::state_dir::DEFAULT_MESH.to_owned()),
            Some(rest) => rest.strip_prefix('=').map(str::to_owned),
            None => None,
        });
        Global {
            local,
            context: self.value("--context"),
            kubeconfig: self.value("--kubeconfig").map(Into::into),
            mesh_namespace: self
                .value("--mesh-namespace")
                .unwrap_or_else(|| MESH_NAMESPACE.to_owned()),
            ..Global::default()
        }
    }

    fn namespace(&self) -> Option<String> {
        self.value("-n").or_else(|| self.value("--namespace"))
    }

    /// The value of a flag, as the next word or after `=`.
    fn value(&self, flag: &str) -> Option<String> {
        let at = self.words.iter().position(|word| word == flag);
        let next = at.and_then(|at| self.words.get(at + 1)).map(String::as_str);
        let mut joined =
            self.words.iter().filter_map(|word| word.strip_prefix(flag)?.strip_prefix('='));
        next.or_else(|| joined.next()).filter(|value| !value.is_empty()).map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(current: &str, previous: &str) -> Vec<String> {
        resource_words(current, previous, |kind| vec![format!("{kind}-a"), format!("{kind}-b")])
    }

    #[test]
    fn names_follow_a_slash_or_a_bare_type() {
        assert_eq!(words("deploy/", "stat"), ["deploy/deploy-a", "deploy/deploy-b"]);
        assert_eq!(words("", "svc")[..2], ["svc-a", "svc-b"]);
        assert!(words("", "stat").contains(&"deploy/".to_owned()));
        assert!(!words("", "stat").contains(&"stat-a".to_owned()));
    }

    #[test]
    fn the_typed_flags_say_which_mesh_is_asked() {
        let typed = |line: &str| Typed { words: line.split(' ').map(str::to_owned).collect() };
        assert_eq!(typed("meshctl --local stat").global().local.as_deref(), Some("default"));
        assert_eq!(
            typed("meshctl --local=two stat -n shop").global().local.as_deref(),
            Some("two")
        );
        assert_eq!(typed("meshctl stat -n shop d").namespace().as_deref(), Some("shop"));
        assert_eq!(typed("meshctl stat").global().local, None);
    }
}
