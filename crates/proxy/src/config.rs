//! The proxy's configuration: environment variables in, one resolved value out.
//!
//! Every bad setting is reported at once, each with its name, so that nobody has to start the
//! proxy five times to learn of five mistakes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use mesh_tls::{Id, TrustBundle, WorkloadId};

use crate::control_plane::ControlAddr;
use crate::telemetry::{AccessLogFormat, LogFormat, OtlpEndpoint, SampleShare};

/// Prefix of every variable.
pub const PREFIX: &str = "MESH_PROXY_";

/// The resolved configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub pod_namespace: String,
    pub pod_name: String,
    /// Addresses of a pod whose connections are redirected; those to itself are not.
    pub pod_ips: Vec<IpAddr>,
    /// Where the control plane listens; `None` runs without one.
    pub control_addr: Option<ControlAddr>,
    pub outbound: OutboundConfig,
    pub inbound: InboundConfig,
    /// `None`: it is no gateway.
    pub gateway: Option<EdgeConfig>,
    /// Who this proxy is; `None` takes no part in mTLS.
    pub identity: Option<IdentityConfig>,
    /// Stats and tap.
    pub control_listen: SocketAddr,
    pub admin_addr: SocketAddr,
    /// Source address of connections to endpoints; the kernel chooses when `None`.
    pub bind_ip: Option<IpAddr>,
    pub log: String,
    pub log_format: LogFormat,
    pub access_log: Option<AccessLogFormat>,
    /// Where spans of requests are sent; `None` takes no part in traces.
    pub otlp_endpoint: Option<OtlpEndpoint>,
    /// Of requests that bring no trace along.
    pub trace_sample: SampleShare,
    /// Data-path threads, each with its own listeners and stacks.
    pub threads: usize,
    /// How long a drain may take before connections are cut.
    pub shutdown_grace: Duration,
    pub limits: Limits,
}

#[derive(Clone, Debug, PartialEq)]
pub struct OutboundConfig {
    /// Redirected connections, forward-proxy requests and CONNECT. At least one.
    pub addrs: Vec<SocketAddr>,
    /// Listeners that stand for one authority each.
    pub upstreams: Vec<Upstream>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub listen: SocketAddr,
    /// `name:port`
    pub authority: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct InboundConfig {
    /// Redirected connections.
    pub addr: SocketAddr,
    /// Listeners that forward to the application somewhere else.
    pub ports: Vec<InboundPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundPort {
    pub listen: SocketAddr,
    /// Tried in order while connections are refused.
    pub forward: Vec<SocketAddr>,
}

/// How clients outside of the mesh are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeConfig {
    /// The control plane says at which ports.
    pub listen: IpAddr,
    /// Open connections of one address (IPv6: of one /64) and thread; more are closed at once.
    pub max_client_connections: usize,
    /// Of a request that is not gRPC.
    pub max_body_bytes: u64,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        Self {
            listen: Ipv6Addr::UNSPECIFIED.into(),
            max_client_connections: 1_000,
            max_body_bytes: 1 << 30,
        }
    }
}

/// What a proxy needs to get a certificate.
#[derive(Clone, Debug, PartialEq)]
pub struct IdentityConfig {
    pub id: Id,
    /// Proves to the control plane who asks; read anew for each certificate.
    pub token_file: PathBuf,
    /// The roots to begin with; the control plane tells of changes.
    pub trust_bundle: TrustBundle,
    /// Where changed roots are kept over restarts.
    pub state_dir: Option<PathBuf>,
    /// Who the control plane must prove to be, unless it is on this machine.
    pub control_plane: Id,
}

/// Bounds on what peers can make the proxy hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Open client connections per direction and thread; more are closed at once.
    pub max_connections: usize,
    /// Requests in flight per direction and thread; more are shed with 503.
    pub max_in_flight: usize,
    /// Bytes of one HTTP/1 message head, and of one HTTP/2 header list.
    pub max_header_bytes: usize,
    /// How long a client may take over a message head once it began one.
    pub header_timeout: Duration,
    /// Connections to one endpoint, and how long an unused one is kept.
    pub max_endpoint_connections: usize,
    pub pool_idle_timeout: Duration,
    pub connect_timeout_outbound: Duration,
    pub connect_timeout_inbound: Duration,
    /// How long a request waits to learn how its target is reached.
    pub discovery_timeout: Duration,
    /// Concurrent streams a client may have on one HTTP/2 connection.
    pub max_concurrent_streams: u32,
    /// Targets whose discovery and stacks are kept.
    pub max_targets: usize,
    /// Series of figures kept for `stat`.
    pub max_series: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 25_000,
            max_in_flight: 100_000,
            max_header_bytes: 64 * 1024,
            header_timeout: Duration::from_secs(10),
            max_endpoint_connections: 1_024,
            pool_idle_timeout: Duration::from_secs(3),
            connect_timeout_outbound: Duration::from_secs(1),
            connect_timeout_inbound: Duration::from_millis(300),
            discovery_timeout: Duration::from_secs(3),
            max_concurrent_streams: 1_000,
            max_targets: 1_000,
            max_series: 2_000,
        }
    }
}

/// All that is wrong with a configuration.
#[derive(Debug)]
pub struct ConfigErrors(Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the proxy cannot start with this configuration:")?;
        for error in &self.0 {
            write!(f, "\n  {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Reads the variables that start with [`PREFIX`].
    ///
    /// # Errors
    /// All settings that are malformed, and names nobody knows, together.
    pub fn from_vars(
        vars: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let mut vars = Vars {
            left: vars
                .into_iter()
                .filter_map(|(k, v)| Some((k.strip_prefix(PREFIX)?.to_owned(), v)))
                .collect(),
            errors: Vec::new(),
        };
        let limits = Limits::default();
        let config = Self {
            pod_namespace: vars.or("POD_NAMESPACE", "default".to_owned()),
            pod_name: vars.or("POD_NAME", "unknown".to_owned()),
            pod_ips: vars.list("POD_IPS"),
            control_addr: vars.get("CONTROL_ADDR"),
            outbound: OutboundConfig {
                addrs: vars.list_or("OUTBOUND_ADDR", (Ipv4Addr::LOCALHOST, 4140).into()),
                upstreams: vars.list("OUTBOUND_UPSTREAMS"),
            },
            inbound: InboundConfig {
                addr: vars.or("INBOUND_ADDR", (Ipv4Addr::UNSPECIFIED, 4143).into()),
                ports: vars.list("INBOUND_PORTS"),
            },
            gateway: vars.gateway(),
            identity: vars.identity(),
            control_listen: vars.or("CONTROL_LISTEN", (Ipv4Addr::LOCALHOST, 4190).into()),
            admin_addr: vars.or("ADMIN_ADDR", (Ipv4Addr::LOCALHOST, 4191).into()),
            bind_ip: vars.get("BIND_IP"),
            log: vars.or("LOG", "info".to_owned()),
            log_format: vars.with("LOG_FORMAT", LogFormat::Plain, parse_log_format),
            access_log: vars.with("ACCESS_LOG", None, parse_access_log),
            otlp_endpoint: vars.get("OTLP_ENDPOINT"),
            trace_sample: vars.or("TRACE_SAMPLE", SampleShare::default()),
            threads: vars.range("THREADS", 1, 1, 1_024),
            shutdown_grace: vars.duration("SHUTDOWN_GRACE", Duration::from_secs(120)),
            limits: Limits {
                max_connections: vars.range("MAX_CONNECTIONS", limits.max_connections, 1, MANY),
                max_in_flight: vars.range("MAX_IN_FLIGHT", limits.max_in_flight, 1, MANY),
                max_header_bytes: vars.range(
                    "MAX_HEADER_BYTES",
                    limits.max_header_bytes,
                    8_192,
                    1 << 20,
                ),
                header_timeout: vars.duration("HEADER_TIMEOUT", limits.header_timeout),
                max_endpoint_connections: vars.range(
                    "MAX_ENDPOINT_CONNECTIONS",
                    limits.max_endpoint_connections,
                    1,
                    MANY,
                ),
                pool_idle_timeout: vars.duration("POOL_IDLE_TIMEOUT", limits.pool_idle_timeout),
                connect_timeout_outbound: vars
                    .duration("OUTBOUND_CONNECT_TIMEOUT", limits.connect_timeout_outbound),
                connect_timeout_inbound: vars
                    .duration("INBOUND_CONNECT_TIMEOUT", limits.connect_timeout_inbound),
                discovery_timeout: vars.duration("DISCOVERY_TIMEOUT", limits.discovery_timeout),
                max_concurrent_streams: vars.range(
                    "MAX_CONCURRENT_STREAMS",
                    limits.max_concurrent_streams,
                    1,
                    1 << 20,
                ),
                max_targets: vars.range("MAX_TARGETS", limits.max_targets, 1, MANY),
                max_series: vars.range("MAX_SERIES", limits.max_series, 1, 100_000),
            },
        };
        vars.finish(config)
    }
}

const MANY: usize = 10_000_000;

/// The variables not read yet, and what was wrong with those that were.
struct Vars {
    left: BTreeMap<String, String>,
    errors: Vec<String>,
}

impl Vars {
    fn get<T: FromStr<Err: fmt::Display>>(&mut self, name: &str) -> Option<T> {
        let value = self.left.remove(name).filter(|value| !value.is_empty())?;
        self.parsed(name, &value, value.parse())
    }

    fn or<T: FromStr<Err: fmt::Display>>(&mut self, name: &str, default: T) -> T {
        self.get(name).unwrap_or(default)
    }

    fn range<T>(&mut self, name: &str, default: T, min: T, max: T) -> T
    where
        T: FromStr<Err: fmt::Display> + PartialOrd + fmt::Display + Copy,
    {
        let value = self.or(name, default);
        if value < min || value > max {
            self.errors.push(format!("{PREFIX}{name}={value}: must be between {min} and {max}"));
        }
        value
    }

    fn duration(&mut self, name: &str, default: Duration) -> Duration {
        self.with(name, default, parse_duration)
    }

    fn with<T>(
        &mut self,
        name: &str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> T {
        let Some(value) = self.left.remove(name).filter(|value| !value.is_empty()) else {
            return default;
        };
        self.parsed(name, &value, parse(&value)).unwrap_or(default)
    }

    fn list<T: FromStr<Err: fmt::Display>>(&mut self, name: &str) -> Vec<T> {
        let value = self.left.remove(name).unwrap_or_default();
        let items = value.split(',').map(str::trim).filter(|item| !item.is_empty());
        items.filter_map(|item| self.parsed(name, item, item.parse())).collect()
    }

    /// What is given, or one default.
    fn list_or<T: FromStr<Err: fmt::Display>>(&mut self, name: &str, default: T) -> Vec<T> {
        let items = self.list(name);
        if items.is_empty() { vec![default] } else { items }
    }

    /// Those of a gateway are of no use without one.
    fn gateway(&mut self) -> Option<EdgeConfig> {
        let enabled = self.with("GATEWAY", false, |text| match text {
            "enabled" => Ok(true),
            "disabled" => Ok(false),
            _ => Err("is neither enabled nor disabled"),
        });
        if !enabled {
            return None;
        }
        let default = EdgeConfig::default();
        let ip = |text: &str| {
            let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            bare.unwrap_or(text).parse().map_err(|_| "is not an IP address")
        };
        let max = default.max_client_connections;
        Some(EdgeConfig {
            listen: self.with("GATEWAY_LISTEN", default.listen, ip),
            max_client_connections: self.range("GATEWAY_MAX_CLIENT_CONNECTIONS", max, 1, MANY),
            max_body_bytes: self.or("GATEWAY_MAX_BODY_BYTES", default.max_body_bytes),
        })
    }

    /// The settings of an identity belong together.
    fn identity(&mut self) -> Option<IdentityConfig> {
        let id = self.get("IDENTITY_NAME");
        let token_file = self.get::<PathBuf>("IDENTITY_TOKEN_FILE");
        let pem = self.trust_bundle();
        let state_dir = self.get::<PathBuf>("IDENTITY_STATE_DIR");
        let control_plane = self.get::<Id>("CONTROL_IDENTITY");
        let given = [id.is_some(), token_file.is_some(), pem.is_some()];
        if given == [false; 3] {
            return None;
        }
        let (Some(id), Some(token_file), Some((name, pem))) = (id, token_file, pem) else {
            let together = ["NAME", "TOKEN_FILE", "TRUST_BUNDLE (or _FILE)"];
            let together = together.map(|name| format!("{PREFIX}IDENTITY_{name}")).join(", ");
            self.errors.push(format!("{together}: all of them are needed, or none"));
            return None;
        };
        let trust_bundle = self.parsed(name, "…", TrustBundle::from_pem(&pem))?;
        let of_this_mesh = || WorkloadId::of(&id)?.control_plane();
        let Some(control_plane) = control_plane.or_else(of_this_mesh) else {
            let why = "the control plane's identity cannot be told from it";
            self.errors
                .push(format!("{PREFIX}IDENTITY_NAME={id}: {why}; set {PREFIX}CONTROL_IDENTITY"));
            return None;
        };
        Some(IdentityConfig { id, token_file, trust_bundle, state_dir, control_plane })
    }

    /// Roots in PEM, given as such or by the name of a file, and the variable they are from.
    fn trust_bundle(&mut self) -> Option<(&'static str, String)> {
        const FILE: &str = "IDENTITY_TRUST_BUNDLE_FILE";
        let text = self.get::<String>("IDENTITY_TRUST_BUNDLE");
        let file = self.get::<PathBuf>(FILE);
        if let Some(text) = text {
            return Some(("IDENTITY_TRUST_BUNDLE", text));
        }
        let file = file?;
        let pem = self.parsed(FILE, &file.display().to_string(), std::fs::read_to_string(&file))?;
        Some((FILE, pem))
    }

    fn parsed<T, E: fmt::Display>(
        &mut self,
        name: &str,
        value: &str,
        parsed: Result<T, E>,
    ) -> Option<T> {
        parsed.map_err(|error| self.errors.push(format!("{PREFIX}{name}={value}: {error}"))).ok()
    }

    fn finish(mut self, config: Config) -> Result<Config, ConfigErrors> {
        for name in self.left.keys().filter(|name| !is_of_service_link(name)) {
            self.errors.push(format!("{PREFIX}{name}: there is no such setting"));
        }
        if self.errors.is_empty() { Ok(config) } else { Err(ConfigErrors(self.errors)) }
    }
}

/// Kubernetes tells every container of each Service around it: of one named `mesh-proxy` by
/// `MESH_PROXY_SERVICE_HOST` and the like.
fn is_of_service_link(name: &str) -> bool {
    ["SERVICE_HOST", "SERVICE_PORT", "PORT"].iter().any(|link| name.starts_with(link))
}

/// `250ms`, `10s`, `2m`.
fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    const WANTED: &str = "is not a duration such as 250ms, 10s or 2m";
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or(WANTED)?;
    let amount: u64 = text[..digits].parse().map_err(|_| WANTED)?;
    match &text[digits..] {
        "ms" => Ok(Duration::from_millis(amount)),
        "s" => Ok(Duration::from_secs(amount)),
        "m" => amount.checked_mul(60).map(Duration::from_secs).ok_or(WANTED),
        _ => Err(WANTED),
    }
}

impl FromStr for Upstream {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "is not IP:PORT=NAME:PORT";
        let (listen, authority) = text.split_once('=').ok_or(WANTED)?;
        authority.parse::<http::uri::Authority>().map_err(|_| WANTED)?;
        Ok(Self { listen: listen.parse().map_err(|_| WANTED)?, authority: authority.to_owned() })
    }
}

impl FromStr for InboundPort {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "is not IP:PORT=IP:PORT[|IP:PORT…]";
        let (listen, forward) = text.split_once('=').ok_or(WANTED)?;
        let forward: Result<Vec<_>, _> = forward.split('|').map(str::parse).collect();
        Ok(Self {
            listen: listen.parse().map_err(|_| WANTED)?,
            forward: forward.map_err(|_| WANTED)?,
        })
    }
}

fn parse_log_format(text: &str) -> Result<LogFormat, &'static str> {
    match text {
        "plain" => Ok(LogFormat::Plain),
        "json" => Ok(LogFormat::Json),
        _ => Err("is neither plain nor json"),
    }
}

fn parse_access_log(text: &str) -> Result<Option<AccessLogFormat>, &'static str> {
    match text {
        "off" => Ok(None),
        "common" => Ok(Some(AccessLogFormat::Common)),
        "json" => Ok(Some(AccessLogFormat::Json)),
        _ => Err("is none of off, common, json"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(vars: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        Config::from_vars(vars.iter().map(|(k, v)| (format!("{PREFIX}{k}"), (*v).to_owned())))
    }

    #[test]
    fn nothing_set_is_a_whole_configuration() {
        let config = config(&[]).unwrap();
        assert_eq!(config.outbound.addrs, ["127.0.0.1:4140".parse().unwrap()]);
        assert_eq!(config.threads, 1);
    }

    #[test]
    fn lists_are_read() {
        let config = config(&[
            ("OUTBOUND_UPSTREAMS", "127.1.0.3:15001=shipping.shop:7000, 127.1.0.3:15002=tax:80"),
            ("INBOUND_PORTS", "127.1.0.3:8080=127.1.0.3:9000|127.0.0.1:9000"),
            ("OUTBOUND_ADDR", "127.0.0.1:4140,[::1]:4140"),
        ])
        .unwrap();
        assert_eq!(config.outbound.addrs[1], "[::1]:4140".parse().unwrap());
        assert_eq!(config.outbound.upstreams[1].authority, "tax:80");
        assert_eq!(config.inbound.ports[0].forward.len(), 2);
    }

    #[test]
    fn a_gateway_is_one_by_its_settings() {
        assert_eq!(config(&[]).unwrap().gateway, None);
        let set = |listen| config(&[("GATEWAY", "enabled"), ("GATEWAY_LISTEN", listen)]);
        for (text, ip) in [("[::]", "::"), ("127.0.0.1", "127.0.0.1"), ("", "::")] {
            let gateway = set(text).unwrap().gateway.unwrap();
            assert_eq!(gateway.listen, ip.parse::<IpAddr>().unwrap());
        }
        assert!(set("here").is_err());
        assert!(config(&[("GATEWAY_LISTEN", "127.0.0.1")]).is_err(), "of no use");
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let error = config(&[
            ("THREADS", "0"),
            ("ADMIN_ADDR", "here"),
            ("SHUTDOWN_GRACE", "10"),
            ("INBOUND_PORTS", "8080"),
            ("OTLP_ENDPOINT", "https://collector:4317"),
            ("TRACE_SAMPLE", "NaN"),
            ("COLOUR", "blue"),
        ])
        .unwrap_err()
        .to_string();
        assert_eq!(error.lines().count(), 8, "{error}");
        for name in ["THREADS", "ADMIN_ADDR", "SHUTDOWN_GRACE", "INBOUND_PORTS", "COLOUR"] {
            assert!(error.contains(name), "{name} in {error}");
        }
        for name in ["OTLP_ENDPOINT", "TRACE_SAMPLE"] {
            assert!(error.contains(name), "{name} in {error}");
        }
    }
}
