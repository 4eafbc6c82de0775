//! Checks of certificates: the roots, the issuer, and those that proxies use.

use std::sync::Arc;

use mesh_api::ext;
use mesh_tls::Issuer;

use super::authority::Held;
use super::catalog::Outcome;
use super::proxies;
use super::scene::Scene;
use crate::commands::identity::life::{self, Life};
use crate::error::CliError;
use crate::local::authority::Root;

const ROTATE: &str = "meshctl identity rotate";
const CERTIFICATES: &str = "meshctl identity, then meshctl local logs POD -c proxy";
const KEY: &str = "ECDSA P-256";

pub(super) async fn roots(scene: Arc<Scene>) -> Outcome {
    with_roots(&scene, |roots| {
        let now = life::now();
        let (ended, valid): (Vec<_>, Vec<_>) =
            roots.iter().partition(|root| Life::from(&root.certificate).has_ended(now));
        if valid.is_empty() {
            return Outcome::of(told(&ended, now), "every root has expired", ROTATE);
        }
        Outcome::Passed(crate::units::plural(valid.len(), "root"))
    })
    .await
}

pub(super) async fn roots_life(scene: Arc<Scene>) -> Outcome {
    with_roots(&scene, |roots| {
        let now = life::now();
        let late: Vec<_> =
            roots.iter().filter(|root| Life::from(&root.certificate).is_late(now)).collect();
        Outcome::of(told(&late, now), "roots end soon, or have ended", ROTATE)
    })
    .await
}

pub(super) async fn issuer(scene: Arc<Scene>) -> Outcome {
    if let Err(Outcome::Failed(finding)) = scene.authority().await {
        return Outcome::Failed(finding.clone());
    }
    with_authority(&scene, |authority| {
        let life = Life::from(issuer_of(authority)?.certificate());
        let now = life::now();
        if life.has_ended(now) {
            let message = format!("the issuer's certificate {}", life.left(now));
            return Ok(Outcome::failed(message, ROTATE));
        }
        authority.verified.clone()?;
        Ok(Outcome::Passed(format!("{} left", life.left(now))))
    })
    .await
}

pub(super) async fn issuer_key(scene: Arc<Scene>) -> Outcome {
    with_authority(&scene, |authority| {
        let kind = issuer_of(authority)?.key_type();
        if kind == KEY {
            return Ok(Outcome::Passed(kind.to_owned()));
        }
        let message = format!("the issuer's key is {kind}, not {KEY}");
        Ok(Outcome::failed(message, format!("an issuer with a key of {KEY}; {ROTATE} makes one")))
    })
    .await
}

pub(super) async fn issuer_life(scene: Arc<Scene>) -> Outcome {
    with_authority(&scene, |authority| {
        let life = Life::from(issuer_of(authority)?.certificate());
        let now = life::now();
        if !life.is_late(now) {
            return Ok(Outcome::passed());
        }
        let left = life.left(now);
        Ok(Outcome::failed(format!("what is left of the issuer's certificate: {left}"), ROTATE))
    })
    .await
}

pub(super) async fn certified(scene: Arc<Scene>) -> Outcome {
    let now = life::now();
    let wrong = |row: &ext::ProxyRow| {
        let identity = row.identity.as_ref();
        match identity.and_then(|identity| identity.certificate.as_ref()) {
            Some(certificate) => {
                let life = Life::from(certificate);
                life.has_ended(now).then(|| format!("its certificate {}", life.left(now)))
            }
            None => Some(match identity.map(|identity| identity.last_error.as_str()) {
                None => "it was started without an identity".to_owned(),
                Some("") => "it has no certificate yet".to_owned(),
                Some(error) => format!("it has no certificate: {error}"),
            }),
        }
    };
    certificates(&scene, wrong, "proxies have no valid certificate").await
}

pub(super) async fn renewed(scene: Arc<Scene>) -> Outcome {
    let now = life::now();
    let wrong = |row: &ext::ProxyRow| {
        let identity = row.identity.as_ref()?;
        let life = Life::from(identity.certificate.as_ref()?);
        let why = if identity.last_error.is_empty() { "" } else { ": " };
        (life.is_late(now) && !life.has_ended(now))
            .then(|| format!("{} left{why}{}", life.left(now), identity.last_error))
    };
    certificates(&scene, wrong, "certificates should have been renewed by now").await
}

async fn certificates(
    scene: &Scene,
    wrong: impl Fn(&ext::ProxyRow) -> Option<String>,
    message: &str,
) -> Outcome {
    match scene.authority().await {
        Err(Outcome::Failed(finding)) => Outcome::Skipped(finding.message.clone()),
        Err(outcome) => outcome.clone(),
        Ok(_) => {
            // Whether they answer is another check.
            let wrong = |row: &ext::ProxyRow| if row.reachable { wrong(row) } else { None };
            proxies::proxies(scene, wrong, message, CERTIFICATES).await
        }
    }
}

fn issuer_of(held: &Held) -> Result<&Issuer, CliError> {
    held.issuer.as_ref().map_err(Clone::clone)
}

async fn with_roots(scene: &Scene, look: impl FnOnce(&[Root]) -> Outcome) -> Outcome {
    with_authority(scene, |held| Ok(look(held.roots.as_ref().map_err(Clone::clone)?))).await
}

async fn with_authority(
    scene: &Scene,
    look: impl FnOnce(&Held) -> Result<Outcome, CliError>,
) -> Outcome {
    match scene.authority().await {
        // One finding is enough, that of the issuer.
        Err(Outcome::Failed(finding)) => Outcome::Skipped(finding.message.clone()),
        Err(outcome) => outcome.clone(),
        Ok(held) => look(held).unwrap_or_else(|error| Outcome::failed(error.message, ROTATE)),
    }
}

/// `mesh 0123abcd root: 12d (3%)`
fn told(roots: &[&Root], now: u64) -> Vec<String> {
    let told = roots.iter().map(|root| {
        format!("{}: {}", root.certificate.subject, Life::from(&root.certificate).left(now))
    });
    told.collect()
}
