//! Checks of the mesh's own kinds.

use std::sync::Arc;

use serde_json::Value;

use super::super::catalog::{Finding, Outcome};
use super::super::scene::Scene;
use super::{of, refused};
use crate::cluster::objects::has_condition;
use crate::manifests::Installation;
use crate::manifests::values::{Overrides, Profile};

const REMEDY: &str = "meshctl upgrade";

pub(in super::super) async fn established(scene: Arc<Scene>) -> Outcome {
    let cluster = match of(&scene) {
        Ok(cluster) => cluster,
        Err(outcome) => return outcome,
    };
    let installation =
        Installation::new(&cluster.mesh_namespace, Profile::Default, Overrides::default());
    let manifests = match installation.and_then(|installation| installation.render()) {
        Ok(manifests) => manifests,
        Err(error) => return refused(&error),
    };
    let mut wrong = Vec::new();
    for wanted in manifests.iter().filter(|m| m.kind == "CustomResourceDefinition") {
        match cluster.live(wanted).await {
            Err(error) => return refused(&error),
            Ok(None) => wrong.push(format!("{}: it is not there", wanted.name)),
            Ok(Some(live)) if !has_condition(&live, "Established") => {
                wrong.push(format!("{}: it is not established", wanted.name));
            }
            Ok(Some(live)) => {
                if let Some(path) = lacking(&wanted.value["spec"], &live.data["spec"], "spec") {
                    wrong.push(format!("{}: it is of another version, by {path}", wanted.name));
                }
            }
        }
    }
    if wrong.is_empty() {
        return Outcome::passed();
    }
    Outcome::Failed(Finding {
        message: "the API server does not know the mesh's kinds as this meshctl does".to_owned(),
        objects: wrong,
        remedy: REMEDY.to_owned(),
    })
}

/// Where `live` is not what is wanted. It may have more: the API server fills in what is left out.
fn lacking(wanted: &Value, live: &Value, at: &str) -> Option<String> {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => wanted.iter().find_map(|(key, wanted)| {
            lacking(wanted, live.get(key).unwrap_or(&Value::Null), &format!("{at}.{key}"))
        }),
        (Value::Array(wanted), Value::Array(live)) if wanted.len() == live.len() => {
            let pairs = wanted.iter().zip(live).enumerate();
            pairs
                .into_iter()
                .find_map(|(i, (wanted, live))| lacking(wanted, live, &format!("{at}[{i}]")))
        }
        (wanted, live) if number(wanted).is_some() && number(wanted) == number(live) => None,
        (wanted, live) => (wanted != live).then(|| at.to_owned()),
    }
}

/// API servers write `1` for `1.0`.
fn number(value: &Value) -> Option<f64> {
    value.as_f64()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_server_adds_is_no_difference() {
        let wanted = json!({"a": {"b": [{"c": 1.0}]}});
        assert_eq!(
            lacking(&wanted, &json!({"a": {"b": [{"c": 1, "d": 2}]}, "e": 3}), "spec"),
            None
        );
        let other = json!({"a": {"b": [{"c": 2}]}});
        assert_eq!(lacking(&wanted, &other, "spec").as_deref(), Some("spec.a.b[0].c"));
        assert_eq!(lacking(&wanted, &json!({"a": {}}), "spec").as_deref(), Some("spec.a.b"));
    }
}
