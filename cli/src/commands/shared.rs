//! What several commands say in the same way: pods that did not answer, resources that are not there, names.

use std::process::ExitCode;
use std::time::Duration;

use mesh_api::ext;
use serde::Serialize;

use crate::connect::Mesh;
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::local::address::Mode;
use crate::local::record::Record;
use crate::selector::{self, Selectors};
use crate::state_dir::StateDir;
use crate::units;

/// Names that a hint lists at most.
const LISTED: usize = 8;

/// A proxy that was asked and did not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Lost {
    pub namespace: String,
    pub pod: String,
    pub error: String,
}

impl From<ext::Unreachable> for Lost {
    fn from(lost: ext::Unreachable) -> Self {
        Self { namespace: lost.namespace, pod: lost.pod, error: lost.error }
    }
}

/// A line for each proxy that did not answer.
pub(crate) fn lost_notes(lost: &[Lost]) -> impl Iterator<Item = String> {
    lost.iter().map(|lost| {
        format!(
            "not reachable: {}/{}: {}",
            lost.namespace,
            lost.pod,
            crate::output::clean(&lost.error)
        )
    })
}

/// What is told of each selector, no row twice.
pub(crate) async fn of_all<T: PartialEq>(
    mesh: &Mesh,
    selectors: &Selectors,
    ask: impl AsyncFn(&Mesh, ext::Selector) -> Result<Vec<T>, CliError>,
) -> Result<Vec<T>, CliError> {
    let mut rows = Vec::new();
    for selector in &selectors.0 {
        let found = match ask(mesh, selector.clone()).await {
            Ok(found) => found,
            Err(error) => return Err(propose(mesh, [selector], error).await),
        };
        for row in found {
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

/// Parses `-t`: the proxies keep ten minutes.
pub(crate) fn window(text: &str) -> Result<Duration, String> {
    let window = units::parse_duration(text)?;
    let allowed = Duration::from_secs(10)..=Duration::from_secs(mesh_model::stats::WINDOW_SECONDS);
    if allowed.contains(&window) {
        Ok(window)
    } else {
        Err("proxies answer for 10s to 10m".to_owned())
    }
}

/// `HTTPRoute/shop/tax` as it reads among things of the namespace `shop`: `tax`; of another: `shop/tax`.
pub(crate) fn short_reference(reference: &str, namespace: &str) -> String {
    match reference.split('/').collect::<Vec<_>>().as_slice() {
        [_, ns, name] if *ns == namespace => (*name).to_owned(),
        [_, ns, name] => format!("{ns}/{name}"),
        _ => reference.to_owned(),
    }
}

/// Whether the pods of a local mesh are in network namespaces of their own, out of our reach.
pub(crate) fn is_transparent(dir: &StateDir) -> bool {
    Record::read(&dir.path).is_some_and(|record| matches!(record.mode, Mode::Transparent))
}

/// A weight as a multiple of the usual one.
pub(crate) fn weight(weight: u32) -> f64 {
    f64::from(weight) / f64::from(mesh_model::endpoint::DEFAULT_WEIGHT)
}

/// A heading and its text, moved in.
pub(crate) fn section(heading: &str, text: &str) -> String {
    let moved = |line: &str| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") };
    format!("{heading}:\n{}", text.lines().map(moved).collect::<String>())
}

/// Nothing matched. A name that is not there is an error, an empty list is not.
pub(crate) async fn nothing(
    mesh: &Mesh,
    wanted: &Selectors,
    cx: &mut Context,
) -> Result<ExitCode, CliError> {
    let Some(named) = wanted.0.iter().find(|s| !s.name.is_empty()) else {
        cx.ui.note(&format!("no {}", wanted.describe()));
        return Ok(ExitCode::SUCCESS);
    };
    Err(no_such(mesh, named).await)
}

/// The control plane did not find something: says which resource and proposes the nearest that is there.
pub(crate) async fn propose(
    mesh: &Mesh,
    wanted: impl IntoIterator<Item = &ext::Selector>,
    error: CliError,
) -> CliError {
    if error.kind != Kind::Missing {
        return error;
    }
    for named in wanted.into_iter().filter(|selector| !selector.name.is_empty()) {
        if mesh.resources(named.clone()).await.is_ok_and(|found| found.is_empty()) {
            return no_such(mesh, named).await;
        }
    }
    error
}

/// Says that a named resource is not there and proposes the nearest that is.
pub(crate) async fn no_such(mesh: &Mesh, wanted: &ext::Selector) -> CliError {
    let error = CliError::missing(format!("there is no {}", selector::describe(wanted)));
    if selector::is_type(&wanted.name) {
        let (one, other) = (selector::short_kind(&wanted.kind), &wanted.name);
        return error.hint(format!("{one},{other} if both types are meant"));
    }
    let all = ext::Selector { kind: wanted.kind.clone(), ..Default::default() };
    let there: Vec<ext::ObjectRef> =
        mesh.resources(all).await.unwrap_or_default().into_iter().filter_map(|w| w.r#ref).collect();
    let nearest = there.iter().min_by_key(|of| selector::distance(&wanted.name, &of.name));
    let alike = |of: &ext::ObjectRef| {
        selector::distance(&wanted.name, &of.name) <= of.name.len().div_ceil(2)
    };
    match nearest {
        Some(of) if of.name == wanted.name => {
            error.hint(format!("-n {}, where it is", of.namespace))
        }
        Some(of) if alike(of) => error.hint(format!(
            "{}/{} -n {}",
            selector::short_kind(&of.kind),
            of.name,
            of.namespace
        )),
        Some(_) => {
            let names: Vec<&str> = there.iter().take(LISTED).map(|of| of.name.as_str()).collect();
            let more = if there.len() > LISTED { ", …" } else { "" };
            error.hint(format!("one of {}{more}", names.join(", ")))
        }
        None => error.hint("meshctl proxy status, which lists every pod of the mesh"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_shortened_within_their_namespace() {
        assert_eq!(short_reference("HTTPRoute/shop/tax", "shop"), "tax");
        assert_eq!(short_reference("Service/shop/tax:8080", "web"), "shop/tax:8080");
        assert_eq!(short_reference("default/http", "shop"), "default/http");
    }

    #[test]
    fn windows_are_those_that_proxies_keep() {
        assert!(window("10s").is_ok() && window("10m").is_ok());
        assert!(window("9s").is_err() && window("601s").is_err() && window("x").is_err());
    }
}
