//! One process of the mesh: started so that it dies with the supervisor, told apart by pid and start time.
//!
//! Nothing but what was started here is ever signalled: while we run, by the process itself, whose pid is
//! not given to another before we have reaped it; after a crash, by [`ProcessId`], whose start time must agree.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, LinkNameSpaceType, Uid, UnshareFlags};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use super::netns::Netns;

/// A process for good: a pid may be given again, but not with the same start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: u32,
    /// Ticks since the machine booted.
    pub start_time: u64,
}

/// What to start, and in which surroundings.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    pub program: PathBuf,
    /// The name the program sees itself called by; the program's path if `None`.
    pub arg0: Option<String>,
    pub args: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    pub cwd: Option<PathBuf>,
    /// Appended to.
    pub log: PathBuf,
    pub netns: Option<Arc<Netns>>,
    /// Taken after the namespaces are entered.
    pub uid: Option<u32>,
}

/// A running child, or one that ended and is not reaped yet.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pidfd: AsyncFd<OwnedFd>,
    pid: Pid,
    pub id: ProcessId,
}

impl Process {
    /// Starts it in a process group of its own.
    ///
    /// Must be called on the thread that lives as long as the children should: the kernel kills them when
    /// that thread ends.
    pub fn start(launch: &Launch) -> io::Result<Self> {
        let log = open_log(&launch.log)?;
        let mut command = Command::new(&launch.program);
        command
            .args(&launch.args)
            .env_clear()
            .envs(launch.env.iter().map(|(name, value)| (name, value)))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(arg0) = &launch.arg0 {
            command.arg0(arg0);
        }
        if let Some(cwd) = &launch.cwd {
            command.current_dir(cwd);
        }
        prepare(&mut command, launch.netns.clone(), launch.uid);
        let mut child = command.spawn()?;
        match Self::identify(&child) {
            Ok((pid, pidfd, id)) => Ok(Self { child, pidfd, pid, id }),
            Err(error) => {
                // Without a way to watch it there must be nothing to watch.
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    fn identify(child: &Child) -> io::Result<(Pid, AsyncFd<OwnedFd>, ProcessId)> {
        let pid = Pid::from_child(child);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        Ok((pid, watch(pidfd)?, ProcessId::of(child.id())?))
    }

    /// Completes when it has ended.
    pub async fn ended(&self) {
        // An error means that the runtime shuts down, and the supervisor with it.
        let _ = self.pidfd.readable().await;
    }

    /// Signals the process and what it has started in its group. That it is gone already is fine.
    pub fn signal(&self, signal: Signal) {
        // It is not reaped before `reap`, so the number still names its group.
        match rustix::process::kill_process_group(self.pid, signal) {
            Ok(()) | Err(Errno::SRCH | Errno::PERM) => {}
            Err(error) => tracing::warn!(pid = self.id.pid, %error, "can't be signalled"),
        }
    }

    /// Collects an ended process, and kills what it left behind in its group.
    pub fn reap(mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL);
        self.child.wait()
    }
}

impl ProcessId {
    pub fn of_self() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// The process that has this pid now.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, start_time: start_time(pid)? })
    }

    /// Sends a signal if the process is still the one meant. Returns whether it was.
    pub fn signal(self, signal: Signal) -> bool {
        let Some(pidfd) = self.open() else { return false };
        rustix::process::pidfd_send_signal(pidfd, signal).is_ok()
    }

    /// Itself, if it still runs, and whatever it has started in its process group and is left of that.
    ///
    /// A group keeps its number while it has members, even when its leader is gone; only when another process
    /// has the leader's number now is the group another one.
    pub fn group_remains(self) -> Vec<Self> {
        if start_time(self.pid).is_ok_and(|start_time| start_time != self.start_time) {
            return Vec::new();
        }
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let members = pids.filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let process = Self { pid, start_time: parse_start_time(&stat)? };
            let younger = process.start_time >= self.start_time;
            let member = parse_group(&stat)? == self.pid && younger;
            (member || process == self).then_some(process)
        });
        members.collect()
    }

    /// A handle on the process if it is still the one meant.
    pub fn open(self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        // Opened before the comparison: the handle can't change its process any more.
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
        (start_time(self.pid).ok()? == self.start_time).then_some(pidfd)
    }
}

/// A descriptor whose readiness can be waited for; a pidfd is readable once its process has ended.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and stays the same descriptor for as long as it lives.
    #[expect(unsafe_code, reason = "tokio trusts the descriptor it is given")]
    let watched = unsafe { AsyncFd::register(fd) };
    watched.map_err(|error| io::Error::other(error.to_string()))
}

/// Opens a log for appending, readable by its owner only.
pub fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Arranges that the child dies with this thread, and enters namespaces and takes on a user if asked to.
pub(crate) fn prepare(command: &mut Command, netns: Option<Arc<Netns>>, uid: Option<u32>) {
    let parent = std::process::id();
    let enter = move || {
        if let Some(netns) = &netns {
            enter_namespaces(netns.fd(), netns.hosts(), netns.resolv_conf())?;
        }
        if let Some(uid) = uid {
            become_user(uid)?;
        }
        die_with_parent(parent, Signal::KILL)
    };
    // SAFETY: the closure runs between fork and exec and makes system calls only: it neither allocates nor
    // locks, and its paths are C strings made before.
    #[expect(
        unsafe_code,
        reason = "the parent-death signal and the namespace must be set in the child"
    )]
    unsafe {
        command.pre_exec(enter);
    }
}

/// Asks the kernel for `signal` when the thread that started this process ends.
pub(super) fn die_with_parent(parent: u32, signal: Signal) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(signal))?;
    // It may have died before we asked.
    let actual = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if actual == Some(parent) { Ok(()) } else { Err(Errno::SRCH.into()) }
}

fn enter_namespaces(net: BorrowedFd<'_>, hosts: &CStr, resolv_conf: &CStr) -> io::Result<()> {
    rustix::thread::move_into_link_name_space(net, Some(LinkNameSpaceType::Network))?;
    // SAFETY: only the mount namespace is unshared, no descriptor table.
    #[expect(unsafe_code, reason = "rustix marks the call unsafe for a flag that is not used")]
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)?;
    }
    // Or the mounts below would appear on the whole machine.
    rustix::mount::mount_change(
        c"/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    rustix::mount::mount_bind(hosts, c"/etc/hosts")?;
    rustix::mount::mount_bind(resolv_conf, c"/etc/resolv.conf")?;
    Ok(())
}

/// Drops every privilege but one, which ends with the exec: to reach a program below a directory that only
/// root may enter, as a build in root's home is.
fn become_user(uid: u32) -> io::Result<()> {
    rustix::thread::set_keep_capabilities(true)?;
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_gid(Gid::from_raw(uid))?;
    rustix::thread::set_thread_uid(Uid::from_raw(uid))?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::DAC_READ_SEARCH,
            permitted: CapabilitySet::DAC_READ_SEARCH,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}

/// A path as the kernel takes it.
pub(super) fn c_path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::Error::other("no start time in /proc/PID/stat"))
}

/// Field 5.
fn parse_group(stat: &str) -> Option<u32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(2)?.parse().ok()
}

/// Field 22. The second, the command's name in parentheses, may contain anything.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.get_ref().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(dir: &Path, script: &str) -> Launch {
        Launch {
            program: "/bin/sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
            env: vec![("A".to_owned(), "b".to_owned())],
            log: dir.join("log"),
            ..Launch::default()
        }
    }

    #[tokio::test]
    async fn it_gets_its_environment_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::start(&launch(dir.path(), "echo $A $0; exit 3")).unwrap();
        process.ended().await;
        assert_eq!(process.reap().unwrap().code(), Some(3));
        assert_eq!(fs::read_to_string(dir.path().join("log")).unwrap(), "b /bin/sh\n");
    }

    #[tokio::test]
    async fn a_signal_reaches_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        // The grandchild holds the log open; `cat` waits for a writer that never comes.
        let script = format!("mkfifo {0}; cat {0} & echo $! ; wait", fifo.display());
        let process = Process::start(&launch(dir.path(), &script)).unwrap();
        let log = dir.path().join("log");
        let grandchild: u32 = loop {
            match fs::read_to_string(&log).unwrap().trim().parse() {
                Ok(pid) => break pid,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let grandchild = ProcessId::of(grandchild).unwrap();
        let handle = watch(grandchild.open().unwrap()).unwrap();
        process.signal(Signal::TERM);
        process.ended().await;
        process.reap().unwrap();
        let _ = handle.readable().await.unwrap();
    }

    #[tokio::test]
    async fn a_group_is_found_without_its_leader() {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::start(&launch(dir.path(), "sleep 1000 & exec true")).unwrap();
        process.ended().await;
        let id = process.id;
        // The leader has ended and is not reaped; it counts as one of the group.
        let others = || id.group_remains().into_iter().filter(|other| other.pid != id.pid);
        assert_eq!(others().count(), 1);
        let handle = watch(others().next().unwrap().open().unwrap()).unwrap();
        let reused = ProcessId { start_time: id.start_time + 1, ..id };
        assert_eq!(reused.group_remains(), []);
        process.reap().unwrap();
        let _ = handle.readable().await.unwrap();
    }

    #[test]
    fn a_process_with_another_start_time_is_left_alone() {
        let own = ProcessId::of_self().unwrap();
        assert!(own.open().is_some());
        let other = ProcessId { start_time: own.start_time + 1, ..own };
        assert!(!other.signal(Signal::KILL));
    }

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 1 0 0 0 5 6 0 0 20 0 1 0 987 10 11";
        assert_eq!(parse_start_time(stat), Some(987));
        assert_eq!(parse_group(stat), Some(12));
        assert_eq!(parse_start_time("12 (a"), None);
    }
}
