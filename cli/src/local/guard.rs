//! The guard: a small process beside the supervisor that cleans up when the supervisor is killed.
//!
//! The kernel ends what the supervisor has started, but not what that has started in turn, and it leaves
//! namespaces and files. The guard sees the end of a pipe, and does what the next `meshctl local up` would.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};

use super::programs::Program;
use super::record;
use crate::state_dir::StateDir;

/// What the supervisor says when it has ended in good order.
const ALL_CLEAN: &[u8] = b"clean";

/// The supervisor's hold on its guard.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    pipe: ChildStdin,
}

impl Guard {
    /// Starts the guard of the mesh in `dir`.
    pub fn start(program: &str, dir: &StateDir) -> io::Result<Self> {
        let own = Program::ours(program)?;
        let root = dir.path.parent().unwrap_or(&dir.path);
        let mut child = Command::new(own.path)
            .arg0(program)
            .args(["--guard", "--name", &dir.name, "--root"])
            .arg(root)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        match child.stdin.take() {
            Some(pipe) => Ok(Self { child, pipe }),
            None => Err(io::Error::other("the guard has no pipe")),
        }
    }

    /// Ends the guard: there is nothing left for it to do.
    pub fn dismiss(mut self) -> io::Result<()> {
        use std::io::Write;
        self.pipe.write_all(ALL_CLEAN)?;
        drop(self.pipe);
        self.child.wait().map(drop)
    }
}

/// The guard's main function.
pub(super) async fn watch(dir: StateDir) -> ExitCode {
    let mut said = Vec::new();
    let read = io::stdin().take(64).read_to_end(&mut said);
    if read.is_ok() && said == ALL_CLEAN {
        return ExitCode::SUCCESS;
    }
    // Refused when the next supervisor is quicker; then it does this.
    let Ok(_lock) = record::lock(&dir).await else { return ExitCode::SUCCESS };
    match record::clean(&dir, true).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
