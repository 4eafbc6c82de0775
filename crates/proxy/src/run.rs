//! Starts the proxy, keeps it running, drains it.
//!
//! The main thread has the control runtime: discovery, admin and control ports, signals. Each
//! worker has a thread and a runtime of its own, so nothing of that ever takes its time.

use std::process::ExitCode;
use std::sync::Arc;

use mesh_api::Workload;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, AdminState, Readiness};
use crate::config::Config;
use crate::control_plane::ControlPlane;
use crate::control_port;
use crate::discovery::{Discovery, Streams};
use crate::exchange::Recorder;
use crate::gateway::{Gateway, GatewayMetrics};
use crate::hooks;
use crate::http::server::Server;
use crate::identity::Identity;
use crate::inbound::Inbound;
use crate::init_redirect;
use crate::listen;
use crate::outbound::Outbound;
use crate::resolve::Resolver;
use crate::telemetry::log::LogHandle;
use crate::telemetry::{AccessLog, Telemetry, TelemetryConfig, Tracer, log};
use crate::worker::Worker;

/// Runs a proxy configured by the environment, until it is told to end; or, by the first argument,
/// what prepares a pod's network for one (`init-redirect`), or a hook of its container.
///
/// Exits with 0 after a drain, 1 when it could not start or had to cut connections, 2 for arguments
/// it does not know.
pub fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    match args.next().as_deref() {
        None => proxy(),
        Some(init_redirect::NAME) => init_redirect::main(args),
        Some(other) => hooks::run(other).unwrap_or_else(|| init_redirect::unknown(other)),
    }
}

fn proxy() -> ExitCode {
    let config = match Config::from_vars(std::env::vars()) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    let log = match log::init(&config.log, config.log_format) {
        Ok(log) => log,
        Err(error) => return fail(&error),
    };
    match run(config, log) {
        Ok(code) => code,
        Err(error) => fail(&*error),
    }
}

#[expect(clippy::print_stderr, reason = "there may be no logger yet")]
fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("mesh-proxy: {error}");
    ExitCode::FAILURE
}

type Failed = Box<dyn std::error::Error>;

fn run(config: Config, log: LogHandle) -> Result<ExitCode, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(control(Arc::new(config), log))
}

/// All that the describing closures look at.
struct Halves {
    outbound: Vec<Arc<Outbound>>,
    inbound: Vec<Arc<Inbound>>,
    gateways: Vec<Arc<Gateway>>,
    servers: Vec<Arc<Server>>,
}

async fn control(config: Arc<Config>, log: LogHandle) -> Result<ExitCode, Failed> {
    let mut signals = Signals::new()?;
    let telemetry = Telemetry::new(&TelemetryConfig {
        max_series: config.limits.max_series,
        ..TelemetryConfig::default()
    });
    let identity = config.identity.as_ref().map(Identity::new).unwrap_or_default();
    let resolver = Resolver::default();
    let control_plane = config.control_addr.as_ref().map(|addr| {
        let (namespace, pod) = (config.pod_namespace.clone(), config.pod_name.clone());
        ControlPlane {
            addr,
            workload: Workload { namespace, pod },
            identity: &identity,
            resolver: &resolver,
        }
    });
    match (&config.identity, &control_plane) {
        (Some(config), Some(control_plane)) => {
            identity.keep(config, control_plane.visitor(), telemetry.identity.clone());
        }
        (Some(_), None) => return Err("an identity needs a control plane to certify it".into()),
        (None, _) => {}
    }
    let handle = tokio::runtime::Handle::current();
    let client = control_plane.as_ref().map(ControlPlane::client);
    let discovery = Discovery::new(client, resolver.clone(), handle, Arc::clone(&telemetry));
    let (tracer, exporter) = Tracer::start(&config, &telemetry)?.unzip();
    let recorder = Arc::new(Recorder {
        telemetry: Arc::clone(&telemetry),
        access_log: AccessLog::new(config.access_log),
        tracer,
    });
    telemetry.register(recorder.access_log.clone());
    let drain = CancellationToken::new();
    let admin = listen::bind("admin", config.admin_addr, false)?;
    let control = listen::bind("control", config.control_listen, false)?;
    let edge = config.gateway.as_ref().map(|_| {
        let token_file = config.identity.as_ref().map(|identity| identity.token_file.clone());
        let metrics = GatewayMetrics::default();
        telemetry.register(metrics.clone());
        (discovery.gateway(token_file), metrics)
    });
    let workers: Vec<_> = (0..config.threads)
        .map(|_| Worker::bind(&config, &discovery, &recorder, &identity, edge.as_ref(), &drain))
        .collect::<Result<_, _>>()?;
    let halves = Arc::new(Halves {
        outbound: workers.iter().map(|w| Arc::clone(w.outbound())).collect(),
        inbound: workers.iter().map(|w| Arc::clone(w.inbound())).collect(),
        gateways: workers.iter().filter_map(|w| w.gateway().cloned()).collect(),
        servers: workers.iter().map(|w| Arc::clone(w.server())).collect(),
    });
    let viewed = Arc::clone(&halves);
    telemetry.balancers.set_view(move || {
        let backends = viewed.outbound.iter().flat_map(|outbound| outbound.backends());
        backends.map(|backend| backend.view()).collect()
    });
    let (ready, is_ready) = watch::channel(Readiness::NotReady("starting".into()));
    let describe = describe(&config, &halves, discovery.streams(), &identity, &is_ready);
    let (shutdown, mut asked) = mpsc::channel(1);
    let state = AdminState {
        ready: is_ready,
        config: Arc::clone(&describe) as _,
        shutdown,
        log,
        telemetry: Arc::clone(&telemetry),
    };
    // These go on during the drain: somebody may want to see how it goes.
    let ports = CancellationToken::new();
    tokio::spawn(admin::serve(TcpListener::from_std(admin)?, state, ports.clone()));
    let control = TcpListener::from_std(control)?;
    let served = control_port::serve(control, telemetry, describe, identity.clone(), ports.clone());
    tokio::spawn(served);
    let mut ended = start(workers)?;
    tokio::spawn(tell_ready(
        discovery.clone(),
        identity,
        halves.gateways.clone(),
        Arc::clone(&config),
        ready.clone(),
        drain.clone(),
    ));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), pod = %config.pod_name,
        namespace = %config.pod_namespace, threads = config.threads, "started");

    tokio::select! {
        () = signals.next() => {}
        _ = asked.recv() => {}
        _ = ended.recv() => return Err("a worker ended".into()),
    }
    ready.send_replace(Readiness::NotReady("draining".into()));
    tracing::info!(grace = ?config.shutdown_grace, "draining");
    drain.cancel();
    let drained = async {
        for _ in 0..config.threads {
            ended.recv().await;
        }
    };
    let clean = tokio::select! {
        () = drained => true,
        () = tokio::time::sleep(config.shutdown_grace) => false,
        () = signals.next() => false,
    };
    // The workers have ended their spans by now.
    if let Some(exporter) = exporter {
        tokio::select! {
            () = exporter.flush() => {}
            () = signals.next() => {}
        }
    }
    if clean {
        tracing::info!("drained");
        return Ok(ExitCode::SUCCESS);
    }
    let cut: usize = halves.servers.iter().map(|server| server.open()).sum();
    tracing::warn!(cut, "connections were cut");
    Ok(ExitCode::FAILURE)
}

/// Starts the workers' threads; each tells when it has ended.
fn start(workers: Vec<Worker>) -> std::io::Result<mpsc::Receiver<()>> {
    let (end, ended) = mpsc::channel(workers.len());
    for (index, worker) in workers.into_iter().enumerate() {
        let end = end.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            if let Err(error) = runtime.block_on(worker.run()) {
                tracing::error!(%error, "worker failed");
            }
            // The receiver is gone when the process is about to be.
            let _ = end.blocking_send(());
        })?;
    }
    Ok(ended)
}

/// A proxy is ready once the control plane has answered it and certified it; without one, at once.
async fn tell_ready(
    discovery: Discovery,
    identity: Identity,
    gateways: Vec<Arc<Gateway>>,
    config: Arc<Config>,
    ready: watch::Sender<Readiness>,
    drain: CancellationToken,
) {
    if config.control_addr.is_some() {
        ready.send_replace(Readiness::NotReady("waiting for the control plane".into()));
        // Some stream must be open to hear an answer on; every workload has ports.
        let port = config.inbound.ports.first().map_or(80, |port| port.listen.port());
        let _asked = discovery.port(port);
        let mut answered = discovery.streams().answered();
        tokio::select! {
            _ = answered.wait_for(|answered| *answered) => {}
            () = drain.cancelled() => return,
        }
        ready.send_replace(Readiness::NotReady("waiting for a certificate".into()));
        tokio::select! {
            () = identity.certified() => {}
            () = drain.cancelled() => return,
        }
        for gateway in gateways {
            ready.send_replace(Readiness::NotReady("waiting for its Gateways".into()));
            tokio::select! {
                () = gateway.tried() => {}
                () = drain.cancelled() => return,
            }
        }
    }
    if !drain.is_cancelled() {
        ready.send_replace(Readiness::Ready);
    }
}

/// The proxy's account of itself.
fn describe(
    config: &Arc<Config>,
    halves: &Arc<Halves>,
    streams: &Streams,
    identity: &Identity,
    ready: &watch::Receiver<Readiness>,
) -> Arc<dyn Fn() -> Value + Send + Sync> {
    let started = Instant::now();
    let (config, halves) = (Arc::clone(config), Arc::clone(halves));
    let (streams, identity, ready) = (streams.clone(), identity.clone(), ready.clone());
    Arc::new(move || {
        let backends = halves.outbound.iter().flat_map(|outbound| outbound.backends());
        let open: usize = halves.servers.iter().map(|server| server.open()).sum();
        let mut described = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pod": config.pod_name,
            "namespace": config.pod_namespace,
            "uptime_seconds": started.elapsed().as_secs(),
            "ready": *ready.borrow() == Readiness::Ready,
            "rss_bytes": rss_bytes(),
            "open_connections": open,
            "control": {
                "address": config.control_addr.as_ref().map(ToString::to_string),
                "streams_up": streams.up(),
                "streams_wanted": streams.wanted(),
                "config_rejected": streams.rejected(),
            },
            "identity": identity.describe(),
            "outbound": {
                "targets": halves.outbound.iter().flat_map(|o| o.describe()).collect::<Vec<_>>(),
                "backends": backends.map(|backend| backend.describe()).collect::<Vec<_>>(),
            },
            "inbound": {
                "ports": halves.inbound.iter().flat_map(|i| i.describe()).collect::<Vec<_>>(),
            },
        });
        // All workers have the same.
        if let Some(gateway) = halves.gateways.first() {
            described["gateway"] = json!({ "ports": gateway.describe() });
        }
        described
    })
}

fn rss_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
