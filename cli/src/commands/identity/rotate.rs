//! `meshctl identity rotate`: replaces the root that all certificates of a mesh end at, without a moment in which
//! two proxies do not trust each other.
//!
//! Each step changes the authority, wherever it is kept, and then waits until every proxy has followed. Steps that
//! are done are found done, so that whoever was interrupted begins again from the top.

mod keeper;
mod secret;

use std::fs::{File, TryLockError};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use mesh_api::ext;
use tokio::time::Instant;

use self::keeper::Keeper;
use self::secret::IssuerSecret;
use super::life::{self, Life};
use crate::connect::Place;
use crate::context::Context;
use crate::error::CliError;
use crate::local::authority::{Authority, Generation};
use crate::output::{Ui, clean};
use crate::selector;
use crate::units;

/// Replace the root certificate of the mesh and its issuer
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct RotateArgs {
    /// How long all of it may take
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = units::parse_duration)]
    pub timeout: Duration,
}

const HELP: &str = "\
prepare makes a root and an issuer; distribute has every proxy trust the new root beside the \
old one; reissue has the new issuer sign, and every proxy certified by it; drop ends the trust \
in the old root, once no proxy needs it any more. No connection is broken.

What is done is done: after an interruption or a timeout, the command goes on where it was. It \
works as well when the old root or issuer has expired. In a cluster it writes the Secrets \
mesh-identity-issuer and, until it is done, mesh-identity-next, with your own rights.";

/// Between two looks at the proxies.
const LOOK: Duration = Duration::from_millis(250);
/// Pods that an error names.
const NAMED: usize = 5;

pub(super) async fn run(args: RotateArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let mesh = cx.connect().await?.silent();
    let ask = async || mesh.proxies(selector::all_pods(None)).await;
    let (deadline, ui) = (Instant::now() + args.timeout, cx.ui.clone());
    match &mesh.place {
        Place::Local(dir) => {
            let authority = Authority::of(dir).ok_or_else(|| {
                CliError::failed(format!("the mesh \"{}\" has no identity", dir.name))
            })?;
            let _lock = lock(&authority)?;
            Rotation { authority, ask, deadline, ui }.run().await?;
        }
        Place::Cluster(cluster) => {
            let authority = IssuerSecret::of(cluster).await?;
            Rotation { authority, ask, deadline, ui }.run().await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Two of them at a time would make two roots.
fn lock(authority: &Authority) -> Result<File, CliError> {
    let file = File::create(authority.lock_file())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(CliError::failed("another meshctl is replacing the root just now"))
        }
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

struct Rotation<K, A> {
    authority: K,
    /// Asks for every proxy.
    ask: A,
    deadline: Instant,
    ui: Ui,
}

/// What a step waits for.
struct Goal<'a> {
    step: &'static str,
    /// What proxies then do.
    so: &'a str,
    /// What a proxy lacks.
    lacks: &'a dyn Fn(&ext::ProxyIdentity) -> Option<String>,
}

impl<K: Keeper, A: AsyncFn() -> Result<Vec<ext::ProxyRow>, CliError>> Rotation<K, A> {
    async fn run(&mut self) -> Result<(), CliError> {
        let next = self.authority.prepare().await?;
        let (root, issuer) = (&next.root, next.issuer.certificate());
        self.told("prepare", &format!("{} and {}", root.certificate.subject, issuer.subject))?;

        self.authority.trust(root).await?;
        let wanted = self.fingerprints().await?;
        let lacks = |proxy: &ext::ProxyIdentity| {
            // One that nobody believes any more hears of the roots with its next certificate.
            let valid = proxy.certificate.as_ref().map(Life::from);
            let valid = valid.is_some_and(|life| !life.has_ended(life::now()));
            let all = wanted.iter().all(|root| proxy.roots.contains(root));
            (valid && !all).then(|| "does not trust the new root yet".to_owned())
        };
        self.wait(Goal { step: "distribute", so: "trust the new root", lacks: &lacks }).await?;

        self.reissue(&next).await?;

        // Every proxy has just been seen to need no other root.
        self.authority.trust_only(root).await?;
        let wanted = self.fingerprints().await?;
        let lacks = |proxy: &ext::ProxyIdentity| {
            (proxy.roots != wanted).then(|| "trusts the old root still".to_owned())
        };
        self.wait(Goal { step: "drop", so: "trust the new root alone", lacks: &lacks }).await?;
        self.authority.finish(root).await
    }

    async fn reissue(&mut self, next: &Generation) -> Result<(), CliError> {
        let wanted = next.issuer.certificate();
        // One whose files do not fit together is none.
        let present = self.authority.issuer().await.ok();
        if present.is_none_or(|present| present.certificate() != wanted) {
            self.authority.switch_issuer(&next.root).await?;
        }
        let lacks = |proxy: &ext::ProxyIdentity| match &proxy.certificate {
            Some(certificate) if certificate.issuer == wanted.subject => None,
            Some(certificate) => {
                Some(format!("needs the old root: certified by {}", certificate.issuer))
            }
            None => Some(format!("has no certificate: {}", proxy.last_error)),
        };
        let so = "are certified by the new issuer";
        self.wait(Goal { step: "reissue", so, lacks: &lacks }).await
    }

    async fn fingerprints(&self) -> Result<Vec<String>, CliError> {
        let roots = self.authority.roots().await?;
        let mut all: Vec<_> = roots.into_iter().map(|root| root.fingerprint).collect();
        all.sort();
        Ok(all)
    }

    /// Looks at the proxies until none lacks anything.
    async fn wait(&mut self, goal: Goal<'_>) -> Result<(), CliError> {
        loop {
            let rows = (self.ask)().await?;
            // Those without an identity trust nobody and prove nothing.
            let all = rows.iter().filter(|row| !row.reachable || row.identity.is_some()).count();
            let behind: Vec<_> = rows.iter().filter_map(|row| behind(row, &goal)).collect();
            let count = format!("{} of {all} proxies {}", all - behind.len(), goal.so);
            if behind.is_empty() {
                return self.told(goal.step, &count);
            }
            if Instant::now() >= self.deadline {
                return Err(late(goal.step, &count, &behind));
            }
            let _progress = self.ui.progress(&format!("{}: {count}", goal.step));
            tokio::time::sleep(LOOK).await;
        }
    }

    fn told(&mut self, step: &str, what: &str) -> Result<(), CliError> {
        Ok(self.ui.line(&format!("{step:<10}   {}", clean(what)))?)
    }
}

/// Who has not followed yet, and why.
fn behind(row: &ext::ProxyRow, goal: &Goal<'_>) -> Option<String> {
    let why = match &row.identity {
        _ if !row.reachable => format!("does not answer: {}", row.error),
        Some(identity) => (goal.lacks)(identity)?,
        None => return None,
    };
    Some(format!("{}/{} {}", row.namespace, row.pod, clean(&why)))
}

fn late(step: &str, count: &str, behind: &[String]) -> CliError {
    let more = behind.len().saturating_sub(NAMED);
    let named = behind[..behind.len() - more].join("; ");
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    CliError::timed_out(format!("{step}: {count}: {named}{more}"))
        .hint("meshctl identity rotate once more, which goes on here; meshctl check tells more")
}

#[cfg(test)]
mod tests;
