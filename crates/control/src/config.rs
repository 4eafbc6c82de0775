//! The configuration: arguments or variables in, one resolved value out.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use tracing_subscriber::EnvFilter;

/// The control plane of the mesh.
#[derive(Clone, Debug, Parser)]
#[command(name = "mesh-control", version)]
pub struct Args {
    /// Where the mesh's objects come from
    #[arg(long, value_enum, default_value_t = SourceKind::Local, env = "MESH_CONTROL_SOURCE")]
    pub source: SourceKind,
    /// Folder with `manifests/` and `pods/`, for the local source
    #[arg(long, value_name = "DIR", env = "MESH_CONTROL_STATE_DIR")]
    pub state_dir: PathBuf,
    /// Address for proxies
    #[arg(
        long,
        value_name = "IP:PORT",
        default_value = "127.0.0.1:8086",
        env = "MESH_CONTROL_LISTEN"
    )]
    pub listen: SocketAddr,
    /// Unix socket for meshctl
    #[arg(long, value_name = "PATH", env = "MESH_CONTROL_SOCKET")]
    pub socket: Option<PathBuf>,
    /// Address of /ready, /live and /metrics
    #[arg(
        long,
        value_name = "IP:PORT",
        default_value = "127.0.0.1:9990",
        env = "MESH_CONTROL_ADMIN"
    )]
    pub admin: SocketAddr,
    /// What to log: a level, or `target=level,…`
    #[arg(long, default_value = "info", env = "MESH_CONTROL_LOG")]
    pub log: String,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Plain, env = "MESH_CONTROL_LOG_FORMAT")]
    pub log_format: LogFormat,
}

/// Where objects come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceKind {
    /// Files on this machine
    Local,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Plain,
    Json,
}

/// The resolved configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub state_dir: PathBuf,
    pub listen: SocketAddr,
    pub socket: Option<PathBuf>,
    pub admin: SocketAddr,
    pub log: String,
    pub log_format: LogFormat,
}

/// Arguments that cannot be used; says of each what is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{}", problems.join("; "))]
pub struct InvalidArgs {
    problems: Vec<String>,
}

impl TryFrom<Args> for Config {
    type Error = InvalidArgs;

    fn try_from(args: Args) -> Result<Self, InvalidArgs> {
        let mut problems = Vec::new();
        if !args.state_dir.is_dir() {
            problems
                .push(format!("--state-dir {}: there is no such folder", args.state_dir.display()));
        }
        if let Some(parent) = args.socket.as_ref().and_then(|socket| socket.parent())
            && !parent.as_os_str().is_empty()
            && !parent.is_dir()
        {
            problems.push(format!("--socket: there is no folder {}", parent.display()));
        }
        if let Err(error) = EnvFilter::try_new(&args.log) {
            problems.push(format!("--log {}: {error}; write a level such as `info`", args.log));
        }
        if !problems.is_empty() {
            return Err(InvalidArgs { problems });
        }
        // The only source there is.
        let SourceKind::Local = args.source;
        Ok(Self {
            state_dir: args.state_dir,
            listen: args.listen,
            socket: args.socket,
            admin: args.admin,
            log: args.log,
            log_format: args.log_format,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_reported_at_once() {
        let args =
            ["mesh-control", "--state-dir", "/nowhere", "--socket", "/nowhere/s", "--log", "a=b=c"];
        let error = Config::try_from(Args::parse_from(args)).unwrap_err().to_string();
        for part in ["--state-dir", "--socket", "--log"] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn defaults_are_loopback() {
        let args = ["mesh-control", "--state-dir", "/"];
        let config = Config::try_from(Args::parse_from(args)).unwrap();
        assert!(config.listen.ip().is_loopback() && config.admin.ip().is_loopback());
    }
}
