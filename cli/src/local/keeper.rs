//! Keeps one process running: restarts it when it ends, waiting longer each time, until told to stop.

use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::process::{Launch, Process, ProcessId};

/// The wait before the first restart; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// After running this long a process has proven itself: the next restart comes soon again.
const PROVEN: Duration = Duration::from_secs(30);

/// Where a kept process is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum State {
    /// Not started for the first time yet.
    Waiting,
    Running(ProcessId),
    /// It ended and will be started again after a while.
    BackingOff,
    /// It ended and will not be started again.
    Stopped,
}

/// A kept process as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptStatus {
    pub state: State,
    pub restarts: u32,
    /// How it ended last time: `exit code 1`, `killed by signal 9`.
    pub last_exit: Option<String>,
}

impl KeptStatus {
    pub fn running(&self) -> Option<ProcessId> {
        match self.state {
            State::Running(id) => Some(id),
            _ => None,
        }
    }
}

/// A process that is kept running by a task of its own. Dropping it stops the process at once.
#[derive(Debug)]
pub struct Keeper {
    status: watch::Receiver<KeptStatus>,
    stop: Option<oneshot::Sender<Duration>>,
}

impl Keeper {
    /// Starts keeping. Must be called on the thread of a current-thread runtime, see [`Process::start`].
    pub fn start(launch: Launch) -> Self {
        let (sender, status) =
            watch::channel(KeptStatus { state: State::Waiting, restarts: 0, last_exit: None });
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(keep(launch, sender, stopped));
        Self { status, stop: Some(stop) }
    }

    pub fn status(&self) -> KeptStatus {
        self.status.borrow().clone()
    }

    /// Completes at the next change of the status; never again once the process is stopped.
    pub async fn changed(&mut self) {
        if self.status.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Tells the process to end (SIGTERM), and after `grace` makes it (SIGKILL).
    pub fn stop(&mut self, grace: Duration) {
        if let Some(stop) = self.stop.take() {
            // An error means that it has stopped already.
            let _ = stop.send(grace);
        }
    }

    /// Completes when the process has stopped for good.
    pub async fn stopped(&mut self) {
        let _ = self.status.wait_for(|status| status.state == State::Stopped).await;
    }
}

async fn keep(
    launch: Launch,
    status: watch::Sender<KeptStatus>,
    mut stop: oneshot::Receiver<Duration>,
) {
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        let exit = match Process::start(&launch) {
            Ok(process) => {
                status.send_modify(|status| status.state = State::Running(process.id));
                match run(process, &mut stop).await {
                    Ended::Itself(exit) => exit,
                    Ended::Told => break,
                }
            }
            Err(error) => format!("can't start {}: {error}", launch.program.display()),
        };
        tracing::info!(program = %launch.program.display(), %exit, "a process ended");
        status.send_modify(|status| {
            status.state = State::BackingOff;
            status.last_exit = Some(exit);
        });
        tokio::select! {
            () = tokio::time::sleep(backoff.after(started.elapsed())) => {}
            _ = &mut stop => break,
        }
        status.send_modify(|status| status.restarts = status.restarts.saturating_add(1));
    }
    status.send_modify(|status| status.state = State::Stopped);
}

enum Ended {
    Itself(String),
    Told,
}

/// Lets it run until it ends or is to stop; either way it is gone afterwards.
async fn run(process: Process, stop: &mut oneshot::Receiver<Duration>) -> Ended {
    let ended = tokio::select! {
        () = process.ended() => None,
        grace = &mut *stop => Some(grace.unwrap_or(Duration::ZERO)),
    };
    if let Some(grace) = ended {
        process.signal(Signal::TERM);
        if tokio::time::timeout(grace, process.ended()).await.is_err() {
            tracing::warn!(pid = process.id.pid, ?grace, "did not end when told to; killing it");
            process.signal(Signal::KILL);
            process.ended().await;
        }
    }
    let exit = process.reap().map_or_else(|error| error.to_string(), describe);
    if ended.is_some() { Ended::Told } else { Ended::Itself(exit) }
}

fn describe(exit: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (exit.code(), exit.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => exit.to_string(),
    }
}

/// How long to wait before the next start.
#[derive(Debug)]
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(BACKOFF_MIN)
    }
}

impl Backoff {
    fn after(&mut self, ran: Duration) -> Duration {
        if ran >= PROVEN {
            *self = Self::default();
        }
        let wait = self.0;
        self.0 = (wait * 2).min(BACKOFF_MAX);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn script(dir: &Path, script: &str) -> Launch {
        Launch {
            program: "/bin/sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
            log: dir.join("log"),
            ..Launch::default()
        }
    }

    #[test]
    fn waits_double_up_to_a_limit_and_start_over() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(backoff.after(PROVEN), BACKOFF_MIN);
    }

    #[tokio::test]
    async fn a_process_that_ends_is_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::start(script(dir.path(), "exit 7"));
        let backing_off = |status: &KeptStatus| status.state == State::BackingOff;
        let status = keeper.status.wait_for(backing_off).await.unwrap().clone();
        assert_eq!(status.last_exit.as_deref(), Some("exit code 7"));
        keeper.status.wait_for(|status| status.restarts == 1).await.unwrap();
        keeper.stop(Duration::ZERO);
        keeper.stopped().await;
    }

    #[tokio::test]
    async fn a_program_that_is_missing_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let launch = Launch { program: "/no/such".into(), ..script(dir.path(), "") };
        let mut keeper = Keeper::start(launch);
        let status = keeper.status.wait_for(|s| s.last_exit.is_some()).await.unwrap().clone();
        assert!(status.last_exit.unwrap().contains("/no/such"));
        keeper.stop(Duration::ZERO);
        keeper.stopped().await;
    }

    #[tokio::test]
    async fn what_ignores_sigterm_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let text = format!("trap '' TERM; mkfifo {0}; echo up; exec cat {0}", fifo.display());
        let mut keeper = Keeper::start(script(dir.path(), &text));
        while std::fs::read_to_string(dir.path().join("log")).unwrap_or_default().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(keeper.status().running().is_some());
        keeper.stop(Duration::ZERO);
        keeper.stopped().await;
    }

    #[tokio::test]
    async fn dropping_the_keeper_ends_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::start(script(dir.path(), "exec sleep 1000"));
        let mut status = keeper.status.clone();
        keeper.changed().await;
        drop(keeper);
        status.wait_for(|status| status.state == State::Stopped).await.unwrap();
    }
}
