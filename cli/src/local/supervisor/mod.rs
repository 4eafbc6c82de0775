//! The supervisor: the background process that owns one local mesh.
//!
//! One thread, one loop: requests from meshctl, changes of pods and of the control plane, and signals come in;
//! after each the state is compared with what the manifests want and the next step is taken ([`mesh`]). Because
//! all children are started by this one thread, the kernel ends them when it ends, however that happens.
//!
//! Order of reading: here for the process's life, [`mesh`] for the state, [`requests`] for what can be asked.

mod mesh;
mod requests;
mod server;

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use rustix::process::{Resource, Rlimit, Signal};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, interval};

use self::mesh::MeshState;
use self::server::Event;
use super::address::{Addresses, CLAIM_PORT, MESH_NUMBERS, Mode};
use super::authority::Authority;
use super::guard::{self, Guard};
use super::identity::{self, Identities};
use super::netns::{self, Netns};
use super::process::{die_with_parent, open_log};
use super::protocol::Reply;
use super::record;
use super::surroundings::{Hub, Surroundings};
use super::{logs, occupied};
use crate::error::CliError;
use crate::state_dir::{StateDir, StateRoot};

/// The name this program is called by.
pub const PROGRAM: &str = "mesh-supervisor";

/// Requests and other events that wait for the loop.
const MAX_EVENTS: usize = 64;
/// Between two looks at the size of the logs.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// What `meshctl` starts the supervisor with; not for people.
#[derive(Debug, Parser)]
#[command(name = PROGRAM)]
struct Args {
    /// The mesh's name
    #[arg(long)]
    name: String,
    /// The directory of all local meshes
    #[arg(long)]
    root: PathBuf,
    /// A network namespace per pod
    #[arg(long)]
    transparent: bool,
    /// Pods have no identities and talk in plain text
    #[arg(long)]
    no_identity: bool,
    /// End when this process, our parent, does
    #[arg(long)]
    attached: Option<u32>,
    /// Be the guard of the supervisor that holds the other end of standard input
    #[arg(long)]
    guard: bool,
}

/// The supervisor's main function. Tells on stdout, as one [`Reply`], whether it has started.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) if args.guard => match StateRoot::new(args.root).mesh(&args.name) {
            Ok(dir) => return runtime.block_on(guard::watch(dir)),
            Err(error) => Err(error),
        },
        Ok(runtime) => runtime.block_on(live(args)),
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell_parent(&Reply::Failed { message: error.message, hint: error.hint });
            ExitCode::FAILURE
        }
    }
}

async fn live(args: Args) -> Result<(), CliError> {
    detach(args.attached)?;
    let dir = StateRoot::new(args.root).mesh(&args.name)?;
    let lock = record::lock(&dir).await?;
    record::clean(&dir, false).await?;
    for folder in [dir.logs(), dir.pods(), dir.manifests()] {
        DirBuilder::new().mode(0o700).create(folder)?;
    }
    let identities = if args.no_identity {
        // Or it would look as if there was one in use.
        Authority::remove(&dir)?;
        identity::settings(&dir)?;
        None
    } else {
        Some(Identities::open(&dir)?)
    };
    start_log(&dir)?;
    let guard = Guard::start(PROGRAM, &dir)?;
    let mode = if args.transparent { Mode::Transparent } else { Mode::Explicit };
    let (number, claim) = claim_number(mode)?;
    let hub = match mode {
        Mode::Explicit => None,
        Mode::Transparent => Some(create_hub(number).await?),
    };
    let around = Arc::new(Surroundings::of_process(&dir, hub, identities)?);
    let socket = dir.supervisor_socket();
    let listener = UnixListener::bind(&socket).map_err(|error| {
        CliError::failed(format!("can't listen on {}: {error}", socket.display()))
            .hint("XDG_RUNTIME_DIR set to a short path, if it is too long")
    })?;
    let changed = Arc::new(Notify::new());
    let mesh = MeshState::new(dir, mode, number, around, changed.clone());
    tell_parent(&Reply::Done);
    close_stdout()?;
    serve(mesh, listener, changed).await?;
    guard.dismiss()?;
    drop((claim, lock));
    Ok(())
}

/// The loop. Ends when the mesh has gone down.
async fn serve(
    mut mesh: MeshState,
    listener: UnixListener,
    changed: Arc<Notify>,
) -> io::Result<()> {
    let (events, mut inbox) = mpsc::channel(MAX_EVENTS);
    mesh.send_events_to(events.clone());
    tokio::spawn(server::accept(listener, events));
    let mut signals = Vec::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        signals.push(signal(kind)?);
    }
    let [terminate, interrupt, hangup] = &mut signals[..] else { return Ok(()) };
    let mut housekeeping = interval(HOUSEKEEPING);
    housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    mesh.reconcile();
    while !mesh.is_down() {
        tokio::select! {
            () = changed.notified() => {}
            Some(event) = inbox.recv() => handle(&mut mesh, event),
            _ = housekeeping.tick() => logs::limit(&mesh.dir().logs()),
            _ = terminate.recv() => mesh.go_down(),
            _ = interrupt.recv() => mesh.go_down(),
            _ = hangup.recv() => mesh.go_down(),
        }
        mesh.reconcile();
    }
    mesh.finish().await
}

fn handle(mesh: &mut MeshState, event: Event) {
    match event {
        Event::Request { request, joined, reply } => {
            // What a status tells of pods is on disk then, where the control plane finds it.
            mesh.reconcile();
            let answer = requests::handle(mesh, request, joined.as_ref());
            // An error means that nobody waits for it any more.
            let _ = reply.send(answer);
        }
        Event::Left(pod) => requests::part(mesh, &pod),
        Event::ClusterIps(addresses) => mesh.set_cluster_ips(addresses),
    }
}

/// Leaves the terminal, or binds our life to the parent's.
fn detach(attached: Option<u32>) -> io::Result<()> {
    // Refused when we lead a group already, which is as good.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/")?;
    let limit = rustix::process::getrlimit(Resource::Nofile);
    // Proxies inherit it and have many connections; that it can't be raised is no reason to stop.
    let _ = rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit { current: limit.maximum, maximum: limit.maximum },
    );
    attached.map_or(Ok(()), |parent| die_with_parent(parent, Signal::TERM))
}

/// Finds a number no other mesh on this machine has. It is ours while the listener is.
fn claim_number(mode: Mode) -> Result<(u8, TcpListener), CliError> {
    let mut refusal = String::new();
    for number in MESH_NUMBERS {
        let ours = Addresses::new(Mode::Explicit, number);
        let claim = (ours.control().ip(), CLAIM_PORT).into();
        // In a transparent mesh the control plane is alone in its namespace.
        let needed = match mode {
            Mode::Explicit => &[ours.control(), ours.control_admin()][..],
            Mode::Transparent => &[],
        };
        let claimed = TcpListener::bind(claim).map_err(|e| occupied::describe(claim, &e));
        // A mesh whose supervisor was killed gives up its claim before its control plane has ended.
        let claimed = claimed.and_then(|listener| {
            needed.iter().try_for_each(|address| occupied::check(*address))?;
            Ok(listener)
        });
        match claimed {
            Ok(listener) => return Ok((number, listener)),
            Err(why) => refusal = why,
        }
    }
    Err(in_the_way(refusal))
}

fn in_the_way(refusal: String) -> CliError {
    CliError::failed(format!("the control plane needs an address that is not free: {refusal}"))
        .hint("stop that program")
}

async fn create_hub(number: u8) -> Result<Hub, CliError> {
    let failed = |error: netns::NetnsError| CliError::failed(error.to_string());
    netns::check_requirements().map_err(failed)?;
    for name in netns::existing(number) {
        netns::remove(&name).await;
    }
    let ip = match Addresses::new(Mode::Transparent, number).control().ip() {
        std::net::IpAddr::V4(ip) => ip,
        std::net::IpAddr::V6(_) => return Err(CliError::failed("the hub needs an IPv4 address")),
    };
    let netns = Netns::create_hub(&netns::hub_name(number), ip).await.map_err(failed)?;
    Ok(Hub { netns: Arc::new(netns), ip })
}

/// Logs to a file, together with whatever a panic would say.
fn start_log(dir: &StateDir) -> io::Result<()> {
    let file = open_log(&dir.logs().join("supervisor.log"))?;
    rustix::stdio::dup2_stderr(&file)?;
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(io::stderr);
    log.try_init().map_err(io::Error::other)
}

fn tell_parent(reply: &Reply) {
    if let Ok(line) = serde_json::to_string(reply) {
        // A parent that has gone needs no answer.
        let _ = writeln!(io::stdout(), "{line}");
    }
}

/// The parent waits for the end of our output.
fn close_stdout() -> io::Result<()> {
    let null = fs::OpenOptions::new().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdout(null)?)
}
