//! The meshctl side of a local mesh: starting its supervisor, telling it what to do, waiting for the outcome.

use std::io;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::control::ControlAccess;
use super::process::watch;
use super::programs::Program;
use super::protocol::{self, Reply, Request, Status};
use super::record::{self, Record};
use super::supervisor;
use crate::error::{CliError, Kind};
use crate::output::Ui;
use crate::state_dir::{StateDir, StateRoot};

/// How long a supervisor may take to start; with namespaces to make, some seconds.
const START: Duration = Duration::from_secs(20);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(30);
/// How long all may take to end, before force is used.
const DOWN: Duration = Duration::from_secs(40);
/// What the control plane has at least to take in a change: it needs milliseconds, and is not to blame for pods
/// that needed all the time there was.
const TAKE_IN: Duration = Duration::from_secs(2);
/// Between two looks while waiting.
const LOOK: Duration = Duration::from_millis(200);

/// A connection to a running supervisor.
#[derive(Debug)]
pub struct Supervisor {
    pub dir: StateDir,
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

/// How a mesh is to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A network namespace per pod.
    pub transparent: bool,
    /// Pods talk in plain text.
    pub no_identity: bool,
    /// It ends when this process does; otherwise it stays in the background.
    pub attached: bool,
}

/// Starts a supervisor and connects to it.
pub async fn start(
    root: &StateRoot,
    dir: &StateDir,
    options: Options,
) -> Result<Supervisor, CliError> {
    let program = Program::ours(supervisor::PROGRAM)?;
    let mut command = Command::new(program.path);
    command
        .arg0(supervisor::PROGRAM)
        .args(["--name", &dir.name, "--root"])
        .arg(root.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if options.transparent {
        command.arg("--transparent");
    }
    if options.no_identity {
        command.arg("--no-identity");
    }
    if options.attached {
        command.args(["--attached", &std::process::id().to_string()]);
    }
    let mut child = command.spawn()?;
    let mut told = String::new();
    if let Some(stdout) = child.stdout.take() {
        let read = async { BufReader::new(stdout).take(64 << 10).read_line(&mut told).await };
        timeout(START, read).await.map_err(|_| slow_start(dir))??;
    }
    match serde_json::from_str(&told) {
        Ok(Reply::Done) => Supervisor::connect(dir).await,
        Ok(Reply::Failed { message, hint }) => Err(CliError { kind: Kind::Failed, message, hint }),
        _ => {
            Err(CliError::failed("the supervisor of the local mesh ended at once")
                .hint(see_log(dir)))
        }
    }
}

fn slow_start(dir: &StateDir) -> CliError {
    CliError::timed_out(format!(
        "the supervisor of the local mesh has not started within {START:?}"
    ))
    .hint(see_log(dir))
}

fn see_log(dir: &StateDir) -> String {
    format!("tail {}", dir.logs().join("supervisor.log").display())
}

impl Supervisor {
    /// Connects to the supervisor of a running mesh.
    pub async fn connect(dir: &StateDir) -> Result<Self, CliError> {
        let stream = UnixStream::connect(dir.supervisor_socket()).await.map_err(|error| {
            CliError::unreachable(format!(
                "the local mesh \"{}\" does not answer: {error}",
                dir.name
            ))
            .hint(format!("meshctl local down{}, which ends what is left of it", dir.flag()))
        })?;
        let (read, write) = stream.into_split();
        Ok(Self { dir: dir.clone(), read: BufReader::new(read), write })
    }

    /// Asks, and turns a refusal into an error.
    pub async fn ask(&mut self, request: &Request) -> Result<Reply, CliError> {
        let answer = async {
            protocol::write(&mut self.write, request).await?;
            protocol::read::<Reply>(&mut self.read).await
        };
        let gone = |why: String| {
            let message = format!("the supervisor of the local mesh \"{}\" {why}", self.dir.name);
            CliError::unreachable(message).hint(see_log(&self.dir))
        };
        match timeout(ANSWER, answer).await {
            Ok(Ok(Some(Reply::Failed { message, hint }))) => {
                Err(CliError { kind: Kind::Failed, message, hint })
            }
            Ok(Ok(Some(reply))) => Ok(reply),
            Ok(Ok(None)) => Err(gone("has ended".to_owned())),
            Ok(Err(error)) => Err(gone(format!("is gone: {error}"))),
            Err(_) => Err(gone(format!("does not answer within {ANSWER:?}"))),
        }
    }

    pub async fn status(&mut self) -> Result<Status, CliError> {
        match self.ask(&Request::Status).await? {
            Reply::Status(status) => Ok(*status),
            other => {
                Err(CliError::failed(format!("unexpected answer of the supervisor: {other:?}")))
            }
        }
    }

    /// Waits until everything is as the manifests want it and the control plane knows, with a progress line.
    pub async fn wait_settled(&mut self, ui: &Ui, limit: Duration) -> Result<Status, CliError> {
        let begun = Instant::now();
        let mut line = None;
        loop {
            let status = self.status().await?;
            let Some(lacking) = lacking(&status) else {
                drop(line.take());
                let _line = ui.progress("waiting for the control plane to take it in");
                let rest = limit.saturating_sub(begun.elapsed()).max(TAKE_IN);
                ControlAccess::new(self.dir.clone()).wait_taken_in(rest).await?;
                return Ok(status);
            };
            if begun.elapsed() >= limit {
                return Err(not_settled(&status, &self.dir, limit));
            }
            drop(line.take());
            line = Some(ui.progress(&lacking));
            sleep(LOOK).await;
        }
    }

    /// Ends the mesh and waits until it is gone.
    pub async fn down(mut self, ui: &Ui) -> Result<(), CliError> {
        let _line = ui.progress("stopping the local mesh");
        let dir = self.dir.clone();
        let ended = async {
            self.ask(&Request::Down).await?;
            let mut line = None;
            // The connection breaks when the supervisor ends.
            while let Ok(status) = self.status().await {
                drop(line.take());
                line = Some(ui.progress(&format!("stopping: {} pods left", status.pods.len())));
                sleep(LOOK).await;
            }
            Ok::<_, CliError>(())
        };
        match timeout(DOWN, ended).await {
            Ok(Ok(())) => wait_released(&dir).await,
            _ => force_down(&dir).await,
        }
    }
}

/// Removes what a crashed supervisor left, or ends one that does not answer.
pub async fn force_down(dir: &StateDir) -> Result<(), CliError> {
    let supervisor = Record::read(&dir.path).map(|record| record.supervisor);
    if dir.is_running()
        && let Some(process) = supervisor
        && let Some(handle) = process.open()
    {
        process.signal(Signal::KILL);
        let handle = watch(handle)?;
        if timeout(START, handle.readable()).await.is_err() {
            let message = format!("the supervisor (pid {}) can't be ended", process.pid);
            return Err(CliError::timed_out(message));
        }
    }
    let _lock = record::lock(dir).await?;
    Ok(record::clean(dir, true).await?)
}

async fn wait_released(dir: &StateDir) -> Result<(), CliError> {
    let released = async {
        while dir.is_running() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    match timeout(Duration::from_secs(5), released).await {
        Ok(()) => Ok(()),
        Err(_) => force_down(dir).await,
    }
}

/// What is still to come, as a progress line; `None` when all is settled.
fn lacking(status: &Status) -> Option<String> {
    if !status.control.as_ref().is_none_or(|control| control.ready) {
        return Some("waiting for the control plane".to_owned());
    }
    let unsettled = status.workloads.iter().filter(|row| !row.is_settled());
    let mut unsettled = unsettled.peekable();
    if unsettled.peek().is_none() {
        // Of workloads that are no more.
        let leaving = status.pods.iter().find(|pod| pod.state == "Terminating")?;
        return Some(format!("{}/{} is ending", leaving.namespace, leaving.name));
    }
    let ready: u32 = status.workloads.iter().map(|row| row.ready.min(row.replicas)).sum();
    let wanted: u32 = status.workloads.iter().map(|row| row.replicas).sum();
    let why = match waiting(status).next() {
        Some(why) => why,
        None => unsettled
            .map(|row| format!("{}/{}", row.namespace, row.name))
            .collect::<Vec<_>>()
            .join(", "),
    };
    Some(format!("{ready}/{wanted} pods ready; {why}"))
}

/// `shop/web-1: proxy: connection refused`, for each pod that is not ready.
fn waiting(status: &Status) -> impl Iterator<Item = String> {
    let pods = status.pods.iter().filter(|pod| !pod.ready);
    pods.filter_map(|pod| {
        Some(format!("{}/{}: {}", pod.namespace, pod.name, pod.waiting_for.as_ref()?))
    })
}

fn not_settled(status: &Status, dir: &StateDir, limit: Duration) -> CliError {
    const SHOWN: usize = 3;
    let all: Vec<_> = waiting(status).collect();
    let mut why = all.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    if all.len() > SHOWN {
        why += &format!("; and {} more", all.len() - SHOWN);
    }
    if why.is_empty() {
        why = lacking(status).unwrap_or_default();
    }
    let error = CliError::timed_out(format!("not ready after {limit:?}: {why}"));
    match status.pods.iter().find(|pod| !pod.ready) {
        Some(pod) => error.hint(format!(
            "meshctl local logs {} -n {}{}",
            pod.name,
            pod.namespace,
            dir.flag()
        )),
        None => error.hint(format!("meshctl local logs control{}", dir.flag())),
    }
}

/// Completes when the user or the system wants this process to end.
pub async fn interrupted() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::address::Mode;
    use crate::local::control::ControlStatus;
    use crate::local::keeper::{KeptStatus, State};
    use crate::local::process::ProcessId;
    use crate::local::protocol::{PodRow, WorkloadRow};

    fn status(ready: u32, waiting_for: &[&str]) -> Status {
        let pod = |(n, waiting): (usize, &&str)| PodRow {
            namespace: "shop".to_owned(),
            name: format!("web-{}", n + 1),
            owner: "Deployment/web".to_owned(),
            ip: [127, 1, 1, 1].into(),
            ready: false,
            state: "Starting".to_owned(),
            restarts: 0,
            app_pid: None,
            proxy_pid: None,
            created: "2026-11-22T20:00:00Z".to_owned(),
            waiting_for: (!waiting.is_empty()).then(|| (*waiting).to_owned()),
            ports: vec![],
        };
        let process = KeptStatus { state: State::Waiting, restarts: 0, last_exit: None };
        Status {
            name: "default".to_owned(),
            mode: Mode::Explicit,
            number: 1,
            supervisor: ProcessId { pid: 1, start_time: 1 },
            version: "0".to_owned(),
            control: Some(ControlStatus { process, ready: true }),
            workloads: vec![WorkloadRow {
                kind: "Deployment".to_owned(),
                namespace: "shop".to_owned(),
                name: "web".to_owned(),
                replicas: 2,
                ready,
                pods: 2,
            }],
            pods: waiting_for.iter().enumerate().map(pod).collect(),
            going_down: false,
        }
    }

    #[test]
    fn progress_says_what_is_lacking() {
        assert_eq!(lacking(&status(2, &[])), None);
        let line = lacking(&status(1, &["proxy: no"])).unwrap();
        assert_eq!(line, "1/2 pods ready; shop/web-1: proxy: no");
        assert_eq!(lacking(&status(1, &[""])).unwrap(), "1/2 pods ready; shop/web");
        let mut deleted = status(0, &["", ""]);
        deleted.workloads.clear();
        deleted.pods[1].state = "Terminating".to_owned();
        assert_eq!(lacking(&deleted).unwrap(), "shop/web-2 is ending");
        let mut starting = status(0, &[]);
        if let Some(control) = &mut starting.control {
            control.ready = false;
        }
        assert_eq!(lacking(&starting).unwrap(), "waiting for the control plane");
    }

    #[test]
    fn giving_up_names_the_pods_and_their_log() {
        let dir = StateRoot::new("/nowhere").mesh("m").unwrap();
        let limit = Duration::from_secs(60);
        let error = not_settled(&status(0, &["a", "b", "c", "d"]), &dir, limit);
        assert_eq!(
            error.message,
            "not ready after 60s: shop/web-1: a; shop/web-2: b; shop/web-3: c; and 1 more"
        );
        assert_eq!(error.hint.unwrap(), "meshctl local logs web-1 -n shop --name=m");
        assert_eq!(error.kind, Kind::TimedOut);
    }
}
