//! The folder with the mesh's roots and its issuer, and what happens when its files change.
//!
//! Files have our names or those of a mounted Secret of type `kubernetes.io/tls`. Files that make no
//! sense change nothing: what was good last stays in force, and the problem is reported.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_tls::{Issuer, TrustBundle};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::Authority;
use crate::source::{Problem, Severity};
use crate::state::Shared;

/// Certificates of the roots, in PEM.
const ROOTS: [&str; 2] = ["roots.pem", "ca.crt"];
/// The issuer's certificate, in PEM, followed by those up to the root if there are any.
const ISSUER: [&str; 2] = ["issuer.pem", "tls.crt"];
const KEY: [&str; 2] = ["issuer-key.pem", "tls.key"];

/// Larger files are refused. Bytes.
const MAX_FILE: u64 = 256 << 10;
/// The files of an issuer are written one after the other, so that a change is looked at only when it
/// has settled.
const SETTLE: Duration = Duration::from_millis(50);
/// Looks at the files anyway: an event may be lost, and certificates expire.
const RESCAN: Duration = Duration::from_secs(10);
/// The same when the system cannot report changes at all.
const POLL: Duration = Duration::from_secs(1);

/// What the folder holds.
#[derive(Debug)]
pub struct Loaded {
    pub issuer: Issuer,
    /// PEM.
    pub roots: String,
}

/// Reads the folder. An issuer that no root signed is refused, one that has expired is not: it
/// certifies nothing, but the roots beside it may be how a mesh gets its next one.
///
/// # Errors
/// What is wrong, and with which file.
pub fn load(folder: &Path) -> Result<Loaded, Problem> {
    let (roots_file, roots) = read(folder, ROOTS)?;
    let (issuer_file, chain) = read(folder, ISSUER)?;
    let (_, key) = read(folder, KEY)?;
    Loaded::new(roots, &chain, &key).map_err(|(part, why)| match part {
        Part::Roots => problem(&roots_file, &why),
        Part::Issuer => problem(&issuer_file, &why),
    })
}

/// Which part of an authority is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Roots,
    Issuer,
}

impl Loaded {
    /// As [`load`], of what was read already.
    ///
    /// # Errors
    /// What is wrong with which part.
    pub fn new(roots: String, chain: &str, key: &str) -> Result<Self, (Part, String)> {
        let of = |part, error: &dyn std::fmt::Display| (part, error.to_string());
        let bundle = TrustBundle::from_pem(&roots).map_err(|e| of(Part::Roots, &e))?;
        let issuer = Issuer::from_pem(chain, key).map_err(|e| of(Part::Issuer, &e))?;
        if !has_expired(&issuer) {
            issuer.verify(&bundle).map_err(|e| of(Part::Issuer, &e))?;
        }
        Ok(Self { issuer, roots })
    }
}

/// Keeps the authority as the folder says. Never returns.
pub async fn run(folder: PathBuf, authority: Arc<Authority>, shared: Arc<Shared>) {
    let changed = Arc::new(Notify::new());
    // Kept alive: it stops when dropped.
    let watcher = watch(&folder, Arc::clone(&changed));
    if let Err(error) = &watcher {
        tracing::warn!(%error, "cannot watch the issuer's files; looking at them every second");
    }
    let rescan = if watcher.is_ok() { RESCAN } else { POLL };
    loop {
        let of = folder.clone();
        match tokio::task::spawn_blocking(move || load(&of)).await {
            Ok(result) => take(&authority, &shared, result),
            Err(error) => tracing::error!(%error, "reading the issuer's files failed"),
        }
        if tokio::time::timeout(rescan, changed.notified()).await.is_ok() {
            tokio::time::sleep(SETTLE).await;
        }
    }
}

/// Puts into force what was read, if it is any good, and reports what is wrong with it.
pub fn take(authority: &Authority, shared: &Shared, result: Result<Loaded, Problem>) {
    let mut problems = Vec::new();
    match result {
        Ok(loaded) => {
            let before = authority.issuer().map(|issuer| issuer.certificate().serial.clone());
            let certificate = loaded.issuer.certificate();
            if before.as_ref() != Some(&certificate.serial) {
                let (subject, serial) = (&certificate.subject, &certificate.serial);
                tracing::info!(subject, serial, "certificates come from this issuer now");
            }
            authority.install(loaded);
        }
        Err(problem) => problems.push(problem),
    }
    if authority.issuer().is_some_and(|issuer| has_expired(&issuer)) {
        let why = "the issuer's certificate has expired, so that nothing is certified any more";
        problems.push(problem(authority.settings().origin.path(), &why));
    }
    shared.set_identity_problems(problems);
}

fn has_expired(issuer: &Issuer) -> bool {
    issuer.certificate().not_after <= SystemTime::now()
}

/// The first of the files that is there.
fn read(folder: &Path, names: [&str; 2]) -> Result<(PathBuf, String), Problem> {
    for name in names {
        let path = folder.join(name);
        match read_text(&path) {
            Ok(text) => return Ok((path, text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(problem(&path, &format!("cannot read it: {error}"))),
        }
    }
    Err(problem(folder, &format!("there is neither {} nor {}", names[0], names[1])))
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if read as u64 > MAX_FILE {
        return Err(io::Error::other(format!("it is larger than {} KiB", MAX_FILE >> 10)));
    }
    Ok(text)
}

fn problem(file: &Path, error: &dyn std::fmt::Display) -> Problem {
    Problem {
        severity: Severity::Error,
        object: String::new(),
        file: Some(file.to_owned()),
        line: 0,
        field: String::new(),
        message: error.to_string(),
    }
}

fn watch(folder: &Path, changed: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if !event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_))) {
            changed.notify_one();
        }
    })?;
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
