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
pub struct StateRoot {
    path: PathBuf,
    /// The directory above it, where that is ours to make: whoever may write there could put another in our place.
    base: Option<PathBuf>,
}

/// The directory of one local mesh. It need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir {
    pub name: String,
    pub path: PathBuf,
}

impl StateRoot {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), base: None }
    }

    /// The root of the user this process runs as.
    pub fn of_process() -> Self {
        match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(dir) if !dir.is_empty() => Self::new(Path::new(&dir).join("meshctl")),
            _ => Self::below(format!("/tmp/meshctl-{}", rustix::process::getuid().as_raw()).into()),
        }
    }

    /// In a directory of our own, which may be in one that everybody can write to.
    fn below(base: PathBuf) -> Self {
        Self { path: base.join("meshctl"), base: Some(base) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the mesh `name`, refused if others made it or can write to it, or the name is not a plain one.
    pub fn mesh(&self, name: &str) -> Result<StateDir, CliError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 40 || !name.chars().all(plain) {
            return Err(CliError::usage(format!(
                "\"{name}\" can't be the name of a local mesh: 1 to 40 letters, digits, - and _"
            )));
        }
        self.check()?;
        let path = self.path.join(name);
        reject_foreign(&path)?;
        Ok(StateDir { name: name.to_owned(), path })
    }

    /// Refuses it if others made it or can write to it; that it is not there will do.
    pub fn check(&self) -> Result<(), CliError> {
        self.base.iter().chain([&self.path]).try_for_each(|dir| reject_foreign(dir))
    }

    /// The meshes whose supervisor lives, by name.
    pub fn running(&self) -> Vec<StateDir> {
        let names = fs::read_dir(&self.path)
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

/// In a shared `/tmp` somebody else could have made the directory to feed us a false mesh, or may write to ours.
fn reject_foreign(dir: &Path) -> Result<(), CliError> {
    let Ok(found) = fs::symlink_metadata(dir) else {
        return Ok(());
    };
    if !found.is_dir() || found.uid() != rustix::process::getuid().as_raw() {
        return Err(CliError::unreachable(format!(
            "{} is not a directory of yours",
            dir.display()
        ))
        .hint("set XDG_RUNTIME_DIR to a directory that only you can write"));
    }
    if found.mode() & 0o022 != 0 {
        let message = format!("{} can be written to by others", dir.display());
        return Err(CliError::unreachable(message).hint(format!("chmod go-w {}", dir.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_others_can_write_to_is_refused_at_every_level() {
        let home = tempfile::tempdir().unwrap();
        let base = home.path().join("meshctl-1000");
        let root = StateRoot::below(base.clone());
        root.mesh("m").expect("nothing is there yet");
        fs::create_dir_all(root.path().join("m")).unwrap();
        let dirs = [base, root.path().to_owned(), root.path().join("m")];
        let set = |dir: &Path, mode| fs::set_permissions(dir, PermissionsExt::from_mode(mode));
        dirs.iter().for_each(|dir| set(dir, 0o755).unwrap());
        root.mesh("m").expect("others may read");
        for dir in &dirs {
            for mode in [0o770, 0o702] {
                set(dir, mode).unwrap();
                let error = root.mesh("m").unwrap_err();
                assert_eq!(error.hint, Some(format!("chmod go-w {}", dir.display())));
            }
            set(dir, 0o700).unwrap();
        }
        std::os::unix::fs::symlink("/", root.path().join("elsewhere")).unwrap();
        assert!(root.mesh("elsewhere").unwrap_err().message.contains("not a directory of yours"));
    }
}
