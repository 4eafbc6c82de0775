//! Where programs are: what a manifest's command means on this machine, and our own.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Names another proxy binary than the one this program contains.
pub const PROXY_BIN: &str = "MESH_PROXY_BIN";

/// The sample application's name in manifests.
const DEMO: &str = "mesh-demo";

/// A program, and the name to call it by if that is not its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub path: PathBuf,
    pub arg0: Option<String>,
}

impl Program {
    /// One of the programs this very binary is when called by its name.
    pub fn ours(name: &str) -> io::Result<Self> {
        Ok(Self { path: env::current_exe()?, arg0: Some(name.to_owned()) })
    }

    /// The sidecar: this binary, or the one `MESH_PROXY_BIN` names.
    pub fn proxy() -> io::Result<Self> {
        match env::var_os(PROXY_BIN).filter(|path| !path.is_empty()) {
            Some(path) => Ok(Self { path: path.into(), arg0: None }),
            None => Self::ours("mesh-proxy"),
        }
    }

    /// What `command[0]` of a container means: a path, a program on PATH, or the sample application.
    pub fn of_command(name: &str, cwd: &Path) -> Option<Self> {
        match find(name, Some(cwd)) {
            Some(path) => Some(Self { path, arg0: None }),
            None if name == DEMO => Self::ours(DEMO).ok(),
            None => None,
        }
    }
}

/// An executable file: `name` itself if it is a path (relative to `cwd`), else the first on PATH.
pub fn find(name: &str, cwd: Option<&Path>) -> Option<PathBuf> {
    if name.contains('/') {
        let path = cwd.map_or_else(|| PathBuf::from(name), |cwd| cwd.join(name));
        return is_executable(&path).then_some(path);
    }
    find_in(name, &env::var_os("PATH")?)
}

fn find_in(name: &str, path: &OsStr) -> Option<PathBuf> {
    let candidates = env::split_paths(path).filter(|dir| dir.is_absolute());
    candidates.map(|dir| dir.join(name)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_found_on_path_or_by_path() {
        let dir = tempfile::tempdir().unwrap();
        let tool = dir.path().join("tool");
        std::fs::write(&tool, "").unwrap();
        assert_eq!(find_in("tool", dir.path().as_os_str()), None, "not executable");
        std::fs::set_permissions(&tool, PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(find_in("tool", dir.path().as_os_str()).as_ref(), Some(&tool));
        assert_eq!(find("./tool", Some(dir.path())), Some(dir.path().join("./tool")));
        assert_eq!(find("./other", Some(dir.path())), None);
    }

    #[test]
    fn the_sample_application_is_this_binary_unless_it_is_installed() {
        let program = Program::of_command(DEMO, Path::new("/")).unwrap();
        assert!(program.arg0.as_deref() == Some(DEMO) || program.path.ends_with(DEMO));
        assert_eq!(Program::of_command("no-such-program", Path::new("/")), None);
    }
}
