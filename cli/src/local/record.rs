//! The lock that says that a mesh runs, and what its supervisor writes down about itself in `state.json`, so that
//! whatever a crash leaves behind can be found and removed.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::address::Mode;
use super::netns;
use super::object::write_atomically;
use super::process::{ProcessId, open_log};
use crate::error::CliError;
use crate::state_dir::StateDir;

const FILE: &str = "state.json";
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// While the supervisor lives, and when it doesn't.
const LOCK_ATTEMPTS: u32 = 20;
const PATIENT_ATTEMPTS: u32 = 1000;

/// What exists because of a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub name: String,
    pub supervisor: ProcessId,
    pub mode: Mode,
    pub number: u8,
    pub control: SocketAddr,
    pub control_admin: SocketAddr,
    /// Every process that was started and has not ended.
    pub processes: Vec<ProcessId>,
}

impl Record {
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        write_atomically(&dir.join(FILE), &serde_json::to_vec_pretty(self)?)
    }

    /// `None` when there is none, or none that can be read.
    pub fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()
    }
}

/// Takes the lock that says that this mesh runs.
pub async fn lock(dir: &StateDir) -> Result<File, CliError> {
    DirBuilder::new().recursive(true).mode(0o700).create(&dir.path)?;
    let file = open_log(&dir.lock_file())?;
    let taken = |error| match error {
        TryLockError::WouldBlock => {
            let pid =
                Record::read(&dir.path).map(|record| format!(" (pid {})", record.supervisor.pid));
            let message = format!(
                "the local mesh \"{}\" is running already{}",
                dir.name,
                pid.unwrap_or_default()
            );
            CliError::failed(message)
                .hint(format!("meshctl local ps, or meshctl local down{}", dir.flag()))
        }
        TryLockError::Error(error) => error.into(),
    };
    // Whoever asks whether the mesh runs holds a shared lock for a moment, and the guard of a supervisor that was
    // killed holds it while it cleans up, so one refusal is not enough.
    for attempt in 0..PATIENT_ATTEMPTS {
        if file.try_lock().is_ok() {
            return Ok(file);
        }
        let supervisor = || Record::read(&dir.path).and_then(|record| record.supervisor.open());
        if attempt >= LOCK_ATTEMPTS && supervisor().is_some() {
            break;
        }
        tokio::time::sleep(LOCK_PAUSE).await;
    }
    file.try_lock().map_err(taken)?;
    Ok(file)
}

/// Removes what a supervisor that is gone has left in its directory and on the machine.
///
/// The lock must be held. The mesh's authority is kept, and logs are if `keep_logs`.
pub async fn clean(dir: &StateDir, keep_logs: bool) -> io::Result<()> {
    if let Some(record) = Record::read(&dir.path) {
        for process in &record.processes {
            for left in process.group_remains() {
                if left.signal(Signal::KILL) {
                    tracing::warn!(pid = left.pid, "killed what a crashed supervisor left behind");
                }
            }
        }
        if record.mode == Mode::Transparent {
            for name in netns::existing(record.number) {
                netns::remove(&name).await;
            }
        }
    }
    for entry in fs::read_dir(&dir.path)?.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if name == "lock" || path == dir.identity() || (keep_logs && name == "logs") {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(path)?;
        } else {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_dir::StateRoot;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[tokio::test]
    async fn what_a_crash_left_is_removed_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateRoot::new(root.path()).mesh("m").unwrap();
        fs::create_dir_all(dir.logs()).unwrap();
        fs::create_dir_all(dir.pods()).unwrap();
        fs::create_dir_all(dir.identity()).unwrap();
        fs::write(dir.lock_file(), "").unwrap();
        let start = || Command::new("sleep").arg("1000").spawn().unwrap();
        let (mut left, mut other) = (start(), start());
        let id = |pid: u32| ProcessId::of(pid).unwrap();
        let reused = ProcessId { start_time: id(other.id()).start_time + 1, ..id(other.id()) };
        let record = Record {
            name: "m".to_owned(),
            supervisor: ProcessId { pid: 1, start_time: 0 },
            mode: Mode::Explicit,
            number: 1,
            control: "127.1.0.1:8086".parse().unwrap(),
            control_admin: "127.1.0.1:9990".parse().unwrap(),
            processes: vec![id(left.id()), reused],
        };
        record.write(&dir.path).unwrap();
        assert_eq!(Record::read(&dir.path).as_ref(), Some(&record));

        clean(&dir, true).await.unwrap();
        assert_eq!(left.wait().unwrap().signal(), Some(9));
        assert!(other.try_wait().unwrap().is_none(), "another process was killed");
        other.kill().unwrap();
        other.wait().unwrap();
        let mut names: Vec<_> =
            fs::read_dir(&dir.path).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["identity", "lock", "logs"]);
    }
}
