//! A program under measurement: pinned to its core, killed with whoever started it.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mesh_integration::load::{self, Pace, Plan, Protocol, idle};
use rustix::process::{Pid, Signal, kill_process};

use super::Traffic;
use crate::machine;

/// Every child not yet waited for, so that an interrupted run leaves none behind.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

pub(crate) fn stop_all() {
    for pid in RUNNING.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        // It may have ended by itself; it cannot be somebody else's, because it was not waited for.
        let _ = kill_process(*pid, Signal::KILL);
    }
}

/// A child on a core of its own, killed when dropped.
pub(super) struct Process {
    child: Child,
    pub(super) log: PathBuf,
}

impl Process {
    pub(super) fn start(
        mut command: Command,
        dir: &Path,
        on: usize,
        back_to: usize,
    ) -> anyhow::Result<Self> {
        let log = dir.join("log");
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        machine::pin(on)?;
        let spawned = command.spawn();
        machine::pin(back_to)?;
        let child =
            spawned.with_context(|| format!("starting {}", command.get_program().display()))?;
        RUNNING
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(Pid::from_raw(child.id().cast_signed()));
        Ok(Self { child, log })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn wait_until_serving(
        &self,
        traffic: Traffic,
        addr: SocketAddr,
        authority: &str,
    ) -> anyhow::Result<()> {
        self.wait_until(|| match traffic {
            Traffic::Http1 | Traffic::Tcp => Ok(idle::hold(addr, authority, 1).map(drop)?),
            Traffic::Http2 => answers_http2(addr, authority),
        })
    }

    /// Until `ready` succeeds; what it said last is part of the error when it never does.
    pub(super) fn wait_until(&self, ready: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(20);
        let begin = Instant::now();
        loop {
            match ready() {
                Ok(()) => return Ok(()),
                Err(error) if begin.elapsed() > PATIENCE => {
                    return Err(error.context(format!("it does not serve; {}", self.last_words())));
                }
                Err(_) => crate::pause(Duration::from_millis(20)),
            }
        }
    }

    /// Asks it to end, and waits until it did.
    pub(super) fn terminate(&mut self) -> anyhow::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(30);
        let pid = Pid::from_raw(self.child.id().cast_signed()).context("a child has an id")?;
        kill_process(pid, Signal::TERM)?;
        let begin = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begin.elapsed() > PATIENCE {
                bail!("it does not end when told to; {}", self.last_words());
            }
            crate::pause(Duration::from_millis(20));
        }
        Ok(())
    }

    pub(super) fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(5)..].join("\n  ");
        format!("it said:\n  {last}\n ")
    }
}

/// Fails until the first requests are answered.
fn answers_http2(addr: SocketAddr, authority: &str) -> anyhow::Result<()> {
    let plan = Plan {
        target: addr,
        authority: authority.to_owned(),
        path: "/".to_owned(),
        protocol: Protocol::Http2 { streams: 1 },
        connections: 1,
        pace: Pace::Saturate,
        warm_up: Duration::ZERO,
        window: Duration::from_millis(20),
    };
    let outcome = load::run(&plan, &mut || {})?;
    ensure!(outcome.requests > 0 && outcome.failed == 0, "it does not answer with 200");
    Ok(())
}

impl Drop for Process {
    fn drop(&mut self) {
        // Neither can fail for a child that was not waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let pid = Pid::from_raw(self.child.id().cast_signed());
        RUNNING
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|running| Some(*running) != pid);
    }
}
