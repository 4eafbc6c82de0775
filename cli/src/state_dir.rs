//! Where a local mesh keeps its state: `${XDG_RUNTIME_DIR:-/tmp/meshctl-$UID}/meshctl/NAME/`.
//!
//! The supervisor (`local/`) writes there; everything else only reads.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::CliError;

/// The name of a local mesh nobody named.
pub const DEFAULT_MESH: &str = "default";

/// The directory that holds one directory per local mesh.
#[derive(Clone, Debug)]
pub struct StateRoot(PathBuf);

/// The directory of one local mesh. It need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir {
    pub name: String,
    pub path: PathBuf,
}

impl StateRoot {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The root of the user this process runs as.
    pub fn of_process() -> Self {
        let base = match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(dir) if !dir.is_empty() => PathBuf::from(dir),
            _ => PathBuf::from(format!("/tmp/meshctl-{}", rustix::process::getuid().as_raw())),
        };
        Self(base.join("meshctl"))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The directory of the mesh `name`, refused if somebody else made it or the name is not a plain one.
    pub fn mesh(&self, name: &str) -> Result<StateDir, CliError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 40 || !name.chars().all(plain) {
            return Err(CliError::usage(format!(
                "\"{name}\" can't be the name of a local mesh: 1 to 40 letters, digits, - and _"
            )));
        }
        let path = self.0.join(name);
        for dir in [&self.0, &path] {
            reject_foreign(dir)?;
        }
        Ok(StateDir { name: name.to_owned(), path })
    }

    /// The meshes whose supervisor lives, by name.
    pub fn running(&self) -> Vec<StateDir> {
        let names = fs::read_dir(&self.0)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok());
        let mut running: Vec<_> =
            names.filter_map(|name| self.mesh(&name).ok()).filter(StateDir::is_running).collect();
        running.sort_by(|a, b| a.name.cmp(&b.name));
        running
    }
}

impl StateDir {
    pub fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    pub fn supervisor_socket(&self) -> PathBuf {
        self.path.join("supervisor.sock")
    }

    pub fn lock_file(&self) -> PathBuf {
        self.path.join("lock")
    }

    pub fn manifests(&self) -> PathBuf {
        self.path.join("manifests")
    }

    pub fn pods(&self) -> PathBuf {
        self.path.join("pods")
    }

    /// The roots and the issuer of the mesh, in a mesh with identity.
    pub fn identity(&self) -> PathBuf {
        self.path.join("identity")
    }

    /// What proves who each pod is, in a mesh with identity.
    pub fn tokens(&self) -> PathBuf {
        self.path.join("tokens")
    }

    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// ` --name=NAME` for the commands of `meshctl local`, unless it is the default.
    pub fn flag(&self) -> String {
        if self.name == DEFAULT_MESH { String::new() } else { format!(" --name={}", self.name) }
    }

    /// Whether a supervisor holds the lock.
    pub fn is_running(&self) -> bool {
        File::open(self.lock_file())
            .is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
}

/// In a shared `/tmp` somebody else could have made the directory to feed us a false mesh.
fn reject_foreign(dir: &Path) -> Result<(), CliError> {
    let Ok(found) = fs::symlink_metadata(dir) else {
        return Ok(());
    };
    if found.is_dir() && found.uid() == rustix::process::getuid().as_raw() {
        return Ok(());
    }
    Err(CliError::unreachable(format!("{} is not a directory of yours", dir.display()))
        .hint("set XDG_RUNTIME_DIR to a directory that only you can write"))
}
