//! The certificate authority of a local mesh, as files: its roots, and the issuer whose certificate one of them
//! signed. The control plane reads them whenever they change.
//!
//! While a root is replaced, the next generation lies in a folder of its own beside them, until it is all there is.
//! How far that has come is told by what the files hold and by nothing else.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_tls::{Certificate, Issuer, TrustBundle};

use super::object::{write_atomically, write_secret};
use crate::error::CliError;
use crate::state_dir::StateDir;

const ROOTS: &str = "roots.pem";
const ISSUER: &str = "issuer.pem";
const KEY: &str = "issuer-key.pem";
const NEXT: &str = "next";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Nobody keeps its key, so that its long life is of no use to anybody.
const ROOT_LIFETIME: Duration = DAY.saturating_mul(3650);
const ISSUER_LIFETIME: Duration = DAY.saturating_mul(365);

/// The authority of one mesh.
#[derive(Clone, Debug)]
pub struct Authority {
    folder: PathBuf,
}

/// A root that is trusted.
#[derive(Clone, Debug)]
pub struct Root {
    /// SHA-256 in hexadecimal.
    pub fingerprint: String,
    pub certificate: Certificate,
    pem: String,
}

/// A root with the first issuer that it signed.
#[derive(Debug)]
pub struct Generation {
    pub root: Root,
    pub issuer: Issuer,
}

impl Root {
    pub fn pem(&self) -> &str {
        &self.pem
    }
}

/// A generation as texts in PEM.
#[derive(Debug)]
pub struct Generated {
    pub root: String,
    pub issuer: String,
    pub issuer_key: String,
}

impl Generated {
    /// A root and an issuer of a name that no other generation has.
    pub fn new() -> Result<Self, CliError> {
        let id = super::unique_id();
        let name = format!("mesh {}", &id[..8]);
        let made = mesh_tls::Root::generate(&name, ROOT_LIFETIME, ISSUER_LIFETIME)
            .map_err(|error| CliError::failed(format!("can't make a root: {error}")))?;
        Ok(Self { root: made.root, issuer: made.issuer, issuer_key: made.issuer_key })
    }
}

impl Authority {
    /// That of the mesh, if it has one.
    pub fn of(dir: &StateDir) -> Option<Self> {
        let folder = dir.identity();
        folder.is_dir().then_some(Self { folder })
    }

    /// Makes that of a mesh which has none.
    pub fn create(dir: &StateDir) -> Result<Self, CliError> {
        let folder = dir.identity();
        generate_whole(&folder, &folder.with_file_name(".identity"))?;
        Ok(Self { folder })
    }

    /// The mesh is to have none.
    pub fn remove(dir: &StateDir) -> Result<(), CliError> {
        if let Some(Self { folder }) = Self::of(dir) {
            fs::remove_dir_all(folder)?;
        }
        Ok(())
    }

    /// The roots that are trusted, in the order of the file.
    pub fn roots(&self) -> Result<Vec<Root>, CliError> {
        read_roots(&self.folder.join(ROOTS))
    }

    /// The issuer that signs now.
    pub fn issuer(&self) -> Result<Issuer, CliError> {
        read_issuer(&self.folder)
    }

    /// Whether the issuer may sign: a trusted root signed it, and it has not expired.
    pub fn verify(&self) -> Result<Issuer, CliError> {
        let issuer = self.issuer()?;
        let path = self.folder.join(ROOTS);
        let bundle =
            TrustBundle::from_pem(&read(&path)?).map_err(|error| in_file(&path, &error))?;
        issuer.verify(&bundle).map_err(|error| in_file(&self.folder.join(ISSUER), &error))?;
        Ok(issuer)
    }

    /// The generation that is to be the only one.
    pub fn next(&self) -> Result<Option<Generation>, CliError> {
        let folder = self.folder.join(NEXT);
        if !folder.is_dir() {
            return Ok(None);
        }
        let path = folder.join(ROOTS);
        let root = read_roots(&path)?.pop().ok_or_else(|| in_file(&path, &"it is empty"))?;
        Ok(Some(Generation { root, issuer: read_issuer(&folder)? }))
    }

    /// Makes a next generation, if there is none yet.
    pub fn prepare(&self) -> Result<Generation, CliError> {
        if let Some(next) = self.next()? {
            return Ok(next);
        }
        generate_whole(&self.folder.join(NEXT), &self.folder.join(".next"))?;
        self.next()?.ok_or_else(|| CliError::failed("the new root is gone again"))
    }

    /// Has the root trusted, beside all that are.
    pub fn trust(&self, root: &Root) -> Result<(), CliError> {
        let mut roots = self.roots()?;
        if !roots.iter().any(|have| have.fingerprint == root.fingerprint) {
            roots.push(root.clone());
            self.write_roots(&roots)?;
        }
        Ok(())
    }

    /// Has no other root trusted.
    pub fn trust_only(&self, root: &Root) -> Result<(), CliError> {
        self.write_roots(std::slice::from_ref(root))
    }

    /// Makes the next generation's issuer the one that signs.
    pub fn switch_issuer(&self) -> Result<(), CliError> {
        let next = self.folder.join(NEXT);
        // Where the two do not fit, as in between, the control plane stays with the issuer it has.
        write_secret(&self.folder.join(KEY), read(&next.join(KEY))?.as_bytes())?;
        write_atomically(&self.folder.join(ISSUER), read(&next.join(ISSUER))?.as_bytes())?;
        Ok(())
    }

    /// The next generation is the present one: it needs no folder of its own any more.
    pub fn finish(&self) -> Result<(), CliError> {
        Ok(fs::remove_dir_all(self.folder.join(NEXT))?)
    }

    /// Where a lock says that somebody is at work here.
    pub fn lock_file(&self) -> PathBuf {
        self.folder.join("lock")
    }

    /// What proxies trust to begin with.
    pub fn roots_file(&self) -> PathBuf {
        self.folder.join(ROOTS)
    }

    fn write_roots(&self, roots: &[Root]) -> Result<(), CliError> {
        let text: String = roots.iter().map(|root| root.pem.as_str()).collect();
        Ok(write_atomically(&self.folder.join(ROOTS), text.as_bytes())?)
    }
}

/// As [`generate`], so that a folder that is there is whole.
fn generate_whole(folder: &Path, unfinished: &Path) -> Result<(), CliError> {
    if unfinished.exists() {
        fs::remove_dir_all(unfinished)?;
    }
    generate(unfinished)?;
    Ok(fs::rename(unfinished, folder)?)
}

/// Makes a folder with a root and an issuer.
fn generate(folder: &Path) -> Result<(), CliError> {
    let made = Generated::new()?;
    DirBuilder::new().mode(0o700).create(folder)?;
    write_secret(&folder.join(KEY), made.issuer_key.as_bytes())?;
    write_atomically(&folder.join(ISSUER), made.issuer.as_bytes())?;
    write_atomically(&folder.join(ROOTS), made.root.as_bytes())?;
    Ok(())
}

fn read_issuer(folder: &Path) -> Result<Issuer, CliError> {
    let path = folder.join(ISSUER);
    let (chain, key) = (read(&path)?, read(&folder.join(KEY))?);
    Issuer::from_pem(&chain, &key).map_err(|error| in_file(&path, &error))
}

fn read_roots(path: &Path) -> Result<Vec<Root>, CliError> {
    roots_of(path, &read(path)?)
}

/// The roots in a text; the path is for errors.
pub fn roots_of(path: &Path, text: &str) -> Result<Vec<Root>, CliError> {
    const END: &str = "-----END CERTIFICATE-----";
    let blocks = text.split_inclusive(END).filter(|block| block.ends_with(END));
    let root = |block: &str| {
        let pem = format!("{}\n", block.trim_start());
        let bundle = TrustBundle::from_pem(&pem).map_err(|error| in_file(path, &error))?;
        let der = bundle.roots().first().map(AsRef::as_ref).unwrap_or_default();
        let certificate = Certificate::read(der).map_err(|error| in_file(path, &error))?;
        let fingerprint = bundle.fingerprints().pop().unwrap_or_default();
        Ok(Root { fingerprint, certificate, pem })
    };
    let roots = blocks.map(root).collect::<Result<Vec<_>, CliError>>()?;
    if roots.is_empty() { Err(in_file(path, &"there is no certificate")) } else { Ok(roots) }
}

fn read(path: &Path) -> Result<String, CliError> {
    fs::read_to_string(path).map_err(|error: io::Error| in_file(path, &error))
}

fn in_file(path: &Path, error: &dyn std::fmt::Display) -> CliError {
    CliError::failed(format!("{}: {error}", path.display()))
}
