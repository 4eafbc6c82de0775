//! Names to addresses without the C library, whose resolver a static binary does not have.
//!
//! `localhost`, then `/etc/hosts`, then the servers of `/etc/resolv.conf` with its `search`, `ndots`,
//! `timeout` and `attempts`. Both files are read again for each name, which is seldom: what a name
//! resolved to is kept by those who ask, for as long as [`Resolved::valid`] says.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    LookupIpStrategy, ResolveHosts, ResolverConfig, ServerOrderingStrategy,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::parse_resolv_conf;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// One name may take this long, whatever `/etc/resolv.conf` allows.
const LIMIT: Duration = Duration::from_secs(10);
/// What connecting to all addresses of a name may take: whoever asks gives up after two seconds, and a
/// handshake has to fit in.
const CONNECT: Duration = Duration::from_millis(1_500);
/// What each of them has at least.
const MIN_ATTEMPT: Duration = Duration::from_millis(300);
/// How long an address of `/etc/hosts` is believed, and one of DNS at most.
const MAX_VALID: Duration = Duration::from_secs(30);
/// And at least, so that a TTL of zero does not ask all the time.
const MIN_VALID: Duration = Duration::from_secs(2);
/// Addresses of one name that are looked at.
const MAX_ADDRS: usize = 16;
/// Answers that are kept, also for names that do not exist: a short name makes several.
const CACHE: u64 = 256;
/// Bytes of a configuration file that are read.
const MAX_FILE: u64 = 1 << 20;
const DNS_PORT: u16 = 53;

/// Where a name leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// At least one; those that can be reached at all first, then IPv4 first.
    pub(crate) addrs: Vec<IpAddr>,
    /// How long this may be believed.
    pub(crate) valid: Duration,
}

/// Why a name leads nowhere.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    #[error("there is no host `{0}`")]
    NoSuchHost(String),
    #[error("`{host}` cannot be looked up: {path}: {source}")]
    Config { host: String, path: PathBuf, source: io::Error },
    #[error("`{host}` cannot be looked up: {why}")]
    Failed { host: String, why: String },
}

/// Asks the files and servers of this machine. Clones share what they know.
#[derive(Clone)]
pub(crate) struct Resolver(Arc<Inner>);

struct Inner {
    hosts: PathBuf,
    resolv_conf: PathBuf,
    dns_port: u16,
    /// The client of the servers, and the text it was configured by. There is none before a name needs
    /// it: most proxies never do.
    dns: Mutex<Option<(Vec<u8>, TokioResolver)>>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::of_files("/etc/hosts".into(), "/etc/resolv.conf".into(), DNS_PORT)
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("resolv_conf", &self.0.resolv_conf).finish_non_exhaustive()
    }
}

impl Resolver {
    fn of_files(hosts: PathBuf, resolv_conf: PathBuf, dns_port: u16) -> Self {
        Self(Arc::new(Inner { hosts, resolv_conf, dns_port, dns: Mutex::default() }))
    }

    /// The addresses of `host`: a name, or an address (without brackets), which is its own.
    ///
    /// # Errors
    /// When there are none, or nobody answers within ten seconds.
    pub(crate) async fn resolve(&self, host: &str) -> Result<Resolved, ResolveError> {
        if let Ok(addr) = host.parse() {
            return Ok(Resolved { addrs: vec![addr], valid: MAX_VALID });
        }
        let mut resolved = match self.known(host) {
            Some(addrs) => Resolved { addrs, valid: MAX_VALID },
            None => {
                let asked = tokio::time::timeout(LIMIT, self.ask(host)).await;
                asked.unwrap_or_else(|_| {
                    let why = format!("no answer within {LIMIT:?}");
                    Err(ResolveError::Failed { host: host.to_owned(), why })
                })?
            }
        };
        resolved.addrs.truncate(MAX_ADDRS);
        resolved.addrs.sort_by_cached_key(|addr| (!has_route(*addr), addr.is_ipv6()));
        if resolved.addrs.is_empty() {
            return Err(ResolveError::NoSuchHost(host.to_owned()));
        }
        Ok(resolved)
    }

    /// Connects to the first address of `host` that takes the connection. An address that does not
    /// answer leaves the others their share of the time.
    ///
    /// # Errors
    /// When the name leads nowhere, or of the last address.
    pub(crate) async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let until = Instant::now() + CONNECT;
        let resolved = self.resolve(host).await.map_err(io::Error::other)?;
        let mut left = u32::try_from(resolved.addrs.len()).unwrap_or(u32::MAX);
        let mut refused = None;
        for addr in resolved.addrs {
            let share = until.saturating_duration_since(Instant::now()) / left.max(1);
            let share = share.max(MIN_ATTEMPT);
            left = left.saturating_sub(1);
            match tokio::time::timeout(share, TcpStream::connect((addr, port))).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => refused = Some(error),
                Err(_) => {
                    let why = format!("no answer of {addr} within {share:?}");
                    refused = Some(io::Error::new(io::ErrorKind::TimedOut, why));
                }
            }
        }
        Err(refused.unwrap_or_else(|| io::Error::other(format!("`{host}` has no address"))))
    }

    /// What needs no server.
    fn known(&self, host: &str) -> Option<Vec<IpAddr>> {
        let host = host.strip_suffix('.').unwrap_or(host);
        // That it cannot be read is no worse than that it is not there.
        let hosts = read(&self.0.hosts).unwrap_or_default();
        let addrs = addrs_in(&String::from_utf8_lossy(&hosts), host);
        if !addrs.is_empty() {
            return Some(addrs);
        }
        let last = host.rsplit('.').next().unwrap_or_default();
        last.eq_ignore_ascii_case("localhost")
            .then(|| vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
    }

    async fn ask(&self, host: &str) -> Result<Resolved, ResolveError> {
        let found = self.dns(host)?.lookup_ip(host).await;
        let found = found.map_err(|error| {
            let host = host.to_owned();
            if error.is_no_records_found() || error.is_nx_domain() {
                ResolveError::NoSuchHost(host)
            } else {
                ResolveError::Failed { host, why: error.to_string() }
            }
        })?;
        let left = found.valid_until().saturating_duration_since(std::time::Instant::now());
        Ok(Resolved { addrs: found.iter().collect(), valid: left.clamp(MIN_VALID, MAX_VALID) })
    }

    /// The client of the servers that `/etc/resolv.conf` names now.
    fn dns(&self, host: &str) -> Result<TokioResolver, ResolveError> {
        let Inner { resolv_conf, dns_port, dns, .. } = &*self.0;
        let of_config = |source| ResolveError::Config {
            host: host.to_owned(),
            path: resolv_conf.clone(),
            source,
        };
        let text = read(resolv_conf).map_err(of_config)?;
        let mut dns = dns.lock();
        if let Some((configured_by, client)) = &*dns
            && *configured_by == text
        {
            return Ok(client.clone());
        }
        let client =
            client(&text, *dns_port).map_err(|error| of_config(io::Error::other(error)))?;
        *dns = Some((text, client.clone()));
        Ok(client)
    }
}

fn client(
    resolv_conf: &[u8],
    dns_port: u16,
) -> Result<TokioResolver, hickory_resolver::net::NetError> {
    let (config, mut options) = parse_resolv_conf(resolv_conf)?;
    let mut servers = config.name_servers().to_vec();
    for connection in servers.iter_mut().flat_map(|server| &mut server.connections) {
        connection.port = dns_port;
    }
    // Without the domain of this machine's name, which nobody has asked to search.
    let config = ResolverConfig::from_parts(None, config.search().to_vec(), servers);
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // One after the other, as the C library does and as who wrote the file expects.
    options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
    options.num_concurrent_reqs = 1;
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = CACHE;
    options.positive_max_ttl = Some(MAX_VALID);
    options.negative_max_ttl = Some(MIN_VALID);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
}

fn read(path: &PathBuf) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(text)
}

/// The addresses that a hosts file gives to a name.
fn addrs_in(hosts: &str, host: &str) -> Vec<IpAddr> {
    let addrs = hosts.lines().filter_map(|line| {
        let entry = line.split('#').next().unwrap_or_default();
        let mut words = entry.split_whitespace();
        let addr = words.next()?.parse().ok()?;
        words.any(|name| name.eq_ignore_ascii_case(host)).then_some(addr)
    });
    addrs.take(MAX_ADDRS).collect()
}

/// Whether the kernel knows a way there: many pods have no IPv6. Nothing is sent.
fn has_route(addr: IpAddr) -> bool {
    let any: IpAddr =
        if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(SocketAddr::new(addr, 9))).is_ok()
}

#[cfg(test)]
mod tests;
