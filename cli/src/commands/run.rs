//! `meshctl run`: one application joins the local mesh with a sidecar of its own, for as long as it runs.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use crate::connect;
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::local::client::Supervisor;
use crate::local::environment::is_inherited;
use crate::local::netns::Netns;
use crate::local::process::{ProcessId, prepare, watch};
use crate::local::programs::Program;
use crate::local::protocol::{Join, JoinUpstream, Joined, Reply, Request};
use crate::output::Ui;

/// How long the sidecar may take to be ready before the application starts.
const SIDECAR: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(100);
/// Between two looks whether the mesh is still there.
const MESH_LOOK: Duration = Duration::from_secs(2);

/// Join one application to the local mesh, with a proxy of its own
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub struct RunArgs {
    /// The name others call it by; a Service of this name is made
    #[arg(value_name = "NAME", value_parser = dns_label)]
    pub name: String,
    /// Where the application listens, and the port of its Service
    #[arg(long, short, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// A service it calls on 127.0.0.1:LOCAL (any free port without =LOCAL); may be repeated
    #[arg(long, value_name = "SVC[.NS]:PORT[=LOCAL]", value_parser = upstream)]
    pub upstream: Vec<JoinUpstream>,
    /// The namespace it joins
    #[arg(long, short, value_name = "NS", default_value = "default")]
    pub namespace: String,
    /// The application and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

const HELP: &str = "\
The application gets http_proxy, for services by name, and <SVC>_SERVICE_HOST and
<SVC>_SERVICE_PORT for the services of its namespace and each --upstream. It leaves
the mesh when it ends; its exit code becomes meshctl's.";

pub(super) async fn run(args: RunArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let dir = connect::locate(&cx.global, &cx.state).map_err(|error| match error.kind {
        Kind::Unreachable => {
            CliError::unreachable(format!("{name} has no mesh to join: {error}", name = args.name))
                .hint("meshctl demo, or meshctl local up -f FILE, in another terminal")
        }
        _ => error,
    })?;
    let program = program(&args)?;
    let mut supervisor = Supervisor::connect(&dir).await?;
    let join = Join {
        namespace: args.namespace.clone(),
        name: args.name.clone(),
        port: args.port,
        upstreams: args.upstream.clone(),
    };
    let joined = match supervisor.ask(&Request::Join(join)).await? {
        Reply::Joined(joined) => joined,
        other => {
            return Err(CliError::failed(format!(
                "unexpected answer of the supervisor: {other:?}"
            )));
        }
    };
    wait_for_sidecar(&mut supervisor, &args, &joined, &cx.ui).await?;
    announce(&args, &joined, &mut cx.ui);
    let mut child = start(&program, &args, &joined)?;
    // The connection must stay open: the application is in the mesh for as long as it is.
    let exit = match supervise(&mut child, &mut supervisor, &mut cx.ui).await {
        Ok(()) => child.wait()?,
        Err(error) => {
            child.kill()?;
            child.wait()?;
            return Err(error);
        }
    };
    drop(supervisor);
    Ok(ExitCode::from(code(exit)))
}

/// Looked for first: nothing joins that can't be started.
fn program(args: &RunArgs) -> Result<Program, CliError> {
    let name = args.command.first().map(|name| name.to_string_lossy()).unwrap_or_default();
    Program::of_command(&name, &std::env::current_dir()?)
        .ok_or_else(|| CliError::failed(format!("there is no program {name} on PATH")))
}

async fn wait_for_sidecar(
    supervisor: &mut Supervisor,
    args: &RunArgs,
    joined: &Joined,
    ui: &Ui,
) -> Result<(), CliError> {
    let _line = ui.progress("starting the sidecar");
    let begun = Instant::now();
    loop {
        let status = supervisor.status().await?;
        let pod =
            status.pods.iter().find(|p| p.name == joined.pod && p.namespace == args.namespace);
        let waiting = pod.and_then(|pod| pod.waiting_for.clone()).unwrap_or_default();
        if !waiting.starts_with("proxy:") && !waiting.starts_with("network:") {
            return Ok(());
        }
        if begun.elapsed() >= SIDECAR {
            return Err(CliError::timed_out(format!(
                "the sidecar is not ready after {SIDECAR:?}: {waiting}"
            ))
            .hint(format!("meshctl local logs {} -n {} -c proxy", joined.pod, args.namespace)));
        }
        sleep(LOOK).await;
    }
}

fn announce(args: &RunArgs, joined: &Joined, ui: &mut Ui) {
    ui.note(&format!(
        "{} is pod {} at {}; others reach it as {}.{}:{}",
        args.name, joined.pod, joined.ip, args.name, args.namespace, args.port
    ));
    for (authority, at) in &joined.upstreams {
        ui.note(&format!("  {authority} is at {at}"));
    }
}

/// Starts the application on our terminal. It dies with us.
fn start(program: &Program, args: &RunArgs, joined: &Joined) -> Result<Child, CliError> {
    let netns = match &joined.netns {
        Some(name) => Some(Netns::open(name).map_err(|error| CliError::failed(error.to_string()))?),
        None => None,
    };
    let inherited = std::env::vars_os().filter(|(name, _)| name.to_str().is_none_or(is_inherited));
    let mut command = Command::new(&program.path);
    command
        .args(&args.command[1..])
        .env_clear()
        .envs(inherited)
        .envs(joined.env.iter().map(|(n, v)| (n, v)));
    if let Some(arg0) = &program.arg0 {
        command.arg0(arg0);
    }
    prepare(&mut command, netns.map(Arc::new), None);
    let named = program.path.display();
    command.spawn().map_err(|error| CliError::failed(format!("can't start {named}: {error}")))
}

/// Waits for the application to end, passing on signals meanwhile.
async fn supervise(
    child: &mut Child,
    supervisor: &mut Supervisor,
    ui: &mut Ui,
) -> Result<(), CliError> {
    let pid = Pid::from_child(child);
    let ended = watch(
        rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(std::io::Error::from)?,
    )?;
    let process = ProcessId::of(child.id())?;
    supervisor.ask(&Request::Started { process }).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut user1 = signal(SignalKind::user_defined1())?;
    let mut user2 = signal(SignalKind::user_defined2())?;
    // What the terminal sends on ^C and ^\ goes to the whole group, the application included.
    let from_terminal = rustix::termios::tcgetpgrp(std::io::stdin())
        .is_ok_and(|group| group == rustix::process::getpgrp());
    let mut looks = tokio::time::interval(MESH_LOOK);
    let mut in_mesh = true;
    loop {
        let signal = tokio::select! {
            _ = ended.readable() => return Ok(()),
            _ = terminate.recv() => Signal::TERM,
            _ = hangup.recv() => Signal::HUP,
            _ = user1.recv() => Signal::USR1,
            _ = user2.recv() => Signal::USR2,
            _ = interrupt.recv() => if from_terminal { continue } else { Signal::INT },
            _ = looks.tick(), if in_mesh => {
                in_mesh = supervisor.status().await.is_ok();
                if !in_mesh {
                    ui.note("the local mesh has ended; the application goes on without it");
                }
                continue;
            }
            _ = quit.recv() => if from_terminal { continue } else { Signal::QUIT },
        };
        // It is not reaped before we return, so the number is still its own.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// As a shell has it: 128 and the signal's number for an application that was killed.
fn code(exit: ExitStatus) -> u8 {
    let code = exit.code().or_else(|| exit.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn dns_label(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let starts = text.starts_with(|c: char| c.is_ascii_lowercase());
    if starts && text.len() <= 40 && text.chars().all(valid) && !text.ends_with('-') {
        Ok(text.to_owned())
    } else {
        Err("1 to 40 lower case letters, digits and -, beginning with a letter".to_owned())
    }
}

fn upstream(text: &str) -> Result<JoinUpstream, String> {
    let wanted = || format!("\"{text}\" is not SVC:PORT or SVC:PORT=LOCAL");
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wanted);
    let (authority, local) = match text.split_once('=') {
        Some((authority, local)) => (authority, Some(port(local)?)),
        None => (text, None),
    };
    let (service, service_port) = authority.split_once(':').ok_or_else(wanted)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if service.is_empty() || !service.chars().all(plain) {
        return Err(wanted());
    }
    let service = service.trim_end_matches(".cluster.local").trim_end_matches(".svc");
    Ok(JoinUpstream { service: service.to_owned(), port: port(service_port)?, local_port: local })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_read() {
        let read = |text: &str| upstream(text).map(|u| (u.service, u.port, u.local_port));
        assert_eq!(read("tax:80"), Ok(("tax".to_owned(), 80, None)));
        assert_eq!(read("tax.shop:80=9000"), Ok(("tax.shop".to_owned(), 80, Some(9000))));
        let full = "tax.shop.svc.cluster.local:80";
        assert_eq!(read(full), Ok(("tax.shop".to_owned(), 80, None)));
        for bad in ["tax", ":80", "tax:x", "tax:0", "tax:80=", "a b:80", "tax:80=0"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_those_of_services() {
        assert!(dns_label("my-app2").is_ok());
        for bad in ["", "2app", "App", "app-", "a.b"] {
            assert!(dns_label(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn exit_codes_are_passed_on() {
        assert_eq!(code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(code(ExitStatus::from_raw(15)), 143);
    }
}
