//! Who asked the workload for what, of what was allowed: so that `meshctl authz generate` can propose a policy.
//!
//! A request that was seen before costs two lookups and no allocation. Segments of paths that look like the name of
//! one thing (a number, a UUID) stand for all below, so that a table of things is one entry.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use mesh_model::stats::{StatProtocol, WINDOW_SECONDS};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Paths of one port.
const MAX_PATHS: usize = 1_000;
/// Clients with each of their methods.
const MAX_CLIENTS: usize = 300;
/// Ports with traffic.
const MAX_PORTS: usize = 256;
/// Bytes of a path; longer ones are left out.
const MAX_PATH: usize = 512;

/// A client: its identity, or without one its address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    Identity(Arc<str>),
    Address(IpAddr),
}

/// What a client did on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    pub port: u16,
    pub who: Who,
    pub protocol: StatProtocol,
    /// Empty of a TCP connection.
    pub method: String,
    pub path: String,
    /// Whether `path` stands for all below it.
    pub below: bool,
    pub count: u64,
}

/// All ports.
#[derive(Debug)]
pub struct Observed {
    began: Instant,
    ports: Mutex<HashMap<u16, Arc<ObservedPort>>>,
}

/// What was done on one port.
#[derive(Debug, Default)]
pub struct ObservedPort {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    clients: HashMap<Client, Paths>,
    paths: usize,
    left_out: u64,
}

type Client = (Who, StatProtocol, Option<Method>);

#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<Box<str>, Seen>,
    below: HashMap<Box<str>, Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    last: Instant,
    count: u64,
}

impl Default for Observed {
    fn default() -> Self {
        Self { began: Instant::now(), ports: Mutex::default() }
    }
}

impl Observed {
    /// Where a port's requests are noted.
    pub fn port(&self, port: u16) -> Arc<ObservedPort> {
        let mut ports = self.ports.lock();
        if let Some(known) = ports.get(&port) {
            return Arc::clone(known);
        }
        let new = Arc::<ObservedPort>::default();
        // A port beyond the bound is observed by nobody.
        if ports.len() < MAX_PORTS {
            ports.insert(port, Arc::clone(&new));
        }
        new
    }

    /// What was done in the last `window`, in some order; what had no place; the time that is really covered.
    pub fn within(&self, window: Duration) -> (Vec<Observation>, u64, Duration) {
        let now = Instant::now();
        let window = window.min(Duration::from_secs(WINDOW_SECONDS));
        let covered = window.min(now.duration_since(self.began));
        let (mut all, mut left_out) = (Vec::new(), 0);
        for (port, observed) in self.ports.lock().iter() {
            let table = observed.table.lock();
            left_out += table.left_out;
            for ((who, protocol, method), paths) in &table.clients {
                let exact = paths.exact.iter().map(|(path, seen)| (path, seen, false));
                let below = paths.below.iter().map(|(path, seen)| (path, seen, true));
                let recent = exact.chain(below).filter(|(_, seen, _)| now - seen.last <= window);
                all.extend(recent.map(|(path, seen, below)| Observation {
                    port: *port,
                    who: who.clone(),
                    protocol: *protocol,
                    method: method.as_ref().map(Method::to_string).unwrap_or_default(),
                    path: path.to_string(),
                    below,
                    count: seen.count,
                }));
            }
        }
        (all, left_out, covered)
    }
}

impl ObservedPort {
    /// A request was allowed.
    pub fn request(&self, who: Who, protocol: StatProtocol, method: &Method, path: &str) {
        let (path, below) = match (protocol, named_thing(path)) {
            // The path of a call is service and method, whatever they are called.
            (StatProtocol::Grpc, _) | (_, None) => (path, false),
            (_, Some(collection)) => (collection, true),
        };
        self.table.lock().note((who, protocol, Some(method.clone())), path, below);
    }

    /// A connection was allowed.
    pub fn connection(&self, who: Who) {
        self.table.lock().note((who, StatProtocol::Tcp, None), "", false);
    }
}

impl Table {
    fn note(&mut self, client: Client, path: &str, below: bool) {
        let now = Instant::now();
        if let Some(paths) = self.clients.get_mut(&client)
            && let Some(seen) = paths.of(below).get_mut(path)
        {
            (seen.last, seen.count) = (now, seen.count + 1);
            return;
        }
        let full = |table: &Self| {
            table.paths >= MAX_PATHS
                || (table.clients.len() >= MAX_CLIENTS && !table.clients.contains_key(&client))
        };
        if full(self) {
            self.forget(now);
        }
        if path.len() > MAX_PATH || full(self) {
            self.left_out += 1;
            return;
        }
        self.paths += 1;
        let paths = self.clients.entry(client).or_default();
        paths.of(below).insert(path.into(), Seen { last: now, count: 1 });
    }

    /// Nobody can ask for what is older than the longest window.
    fn forget(&mut self, now: Instant) {
        let young = |seen: &Seen| now - seen.last <= Duration::from_secs(WINDOW_SECONDS);
        self.clients.retain(|_, paths| {
            paths.exact.retain(|_, seen| young(seen));
            paths.below.retain(|_, seen| young(seen));
            !paths.exact.is_empty() || !paths.below.is_empty()
        });
        self.paths = self.clients.values().map(|paths| paths.exact.len() + paths.below.len()).sum();
    }
}

impl Paths {
    fn of(&mut self, below: bool) -> &mut HashMap<Box<str>, Seen> {
        if below { &mut self.below } else { &mut self.exact }
    }
}

/// `/product` of `/product/7/reviews`: what stands before the first segment that is the name of one thing. `None`
/// without such a segment, or with nothing before it.
fn named_thing(path: &str) -> Option<&str> {
    let mut at = 0;
    for segment in path.split('/') {
        if is_name_of_one(segment) {
            return path[..at].strip_suffix('/').filter(|before| !before.is_empty());
        }
        at += segment.len() + 1;
    }
    None
}

/// A number, or at least 16 hexadecimal digits with dashes, of which one is a decimal digit.
fn is_name_of_one(segment: &str) -> bool {
    let bytes = segment.as_bytes();
    let number = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
    number
        || bytes.len() >= 16
            && bytes.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-')
            && bytes.iter().any(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who() -> Who {
        Who::Identity("web.shop".into())
    }

    fn within(observed: &Observed, seconds: u64) -> Vec<(String, bool, u64)> {
        let mut all: Vec<_> = observed
            .within(Duration::from_secs(seconds))
            .0
            .into_iter()
            .map(|seen| (format!("{} {}", seen.method, seen.path), seen.below, seen.count))
            .collect();
        all.sort();
        all
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_alike_is_one_entry() {
        let observed = Observed::default();
        let port = observed.port(8080);
        for path in ["/product/1", "/product/2/reviews", "/product", "/7"] {
            port.request(who(), StatProtocol::Http, &Method::GET, path);
        }
        port.request(who(), StatProtocol::Http, &Method::POST, "/product");
        port.request(who(), StatProtocol::Grpc, &Method::POST, "/shop.v1.Ledger/Get");
        port.connection(who());
        assert_eq!(
            within(&observed, 60),
            [
                (" ".to_owned(), false, 1),
                ("GET /7".to_owned(), false, 1),
                ("GET /product".to_owned(), false, 1),
                ("GET /product".to_owned(), true, 2),
                ("POST /product".to_owned(), false, 1),
                ("POST /shop.v1.Ledger/Get".to_owned(), false, 1),
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_is_what_is_asked_for() {
        let observed = Observed::default();
        let port = observed.port(8080);
        port.request(who(), StatProtocol::Http, &Method::GET, "/old");
        tokio::time::advance(Duration::from_secs(30)).await;
        port.request(who(), StatProtocol::Http, &Method::GET, "/new");
        assert_eq!(within(&observed, 10).len(), 1);
        assert_eq!(within(&observed, 60).len(), 2);
        assert_eq!(observed.within(Duration::from_secs(60)).2, Duration::from_secs(30));
        assert_eq!(observed.within(Duration::from_secs(10)).2, Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_forgets_what_is_old() {
        let observed = Observed::default();
        let port = observed.port(8080);
        let note = |n: usize| {
            port.request(who(), StatProtocol::Http, &Method::GET, &format!("/page-{n}"));
        };
        (0..MAX_PATHS + 5).for_each(note);
        let (all, left_out, _) = observed.within(Duration::from_secs(60));
        assert_eq!((all.len(), left_out), (MAX_PATHS, 5));
        port.request(who(), StatProtocol::Http, &Method::GET, &"/x".repeat(MAX_PATH));
        tokio::time::advance(Duration::from_secs(WINDOW_SECONDS + 1)).await;
        note(MAX_PATHS + 6);
        assert_eq!(within(&observed, 60), [("GET /page-1006".to_owned(), false, 1)]);
        for n in 0..u32::try_from(MAX_CLIENTS).unwrap() + 5 {
            port.connection(Who::Address(IpAddr::from((0x0a00_0000 + n).to_be_bytes())));
        }
        assert_eq!(observed.within(Duration::from_secs(60)).0.len(), MAX_CLIENTS);
    }

    #[test]
    fn names_of_things_are_told_from_words() {
        for (path, collection) in [
            ("/product/7", Some("/product")),
            ("/a/b/0190f3a1-7a2b-7c3d-8e4f-5a6b7c8d9e0f/c", Some("/a/b")),
            ("/a/7/b/8", Some("/a")),
            ("/a/7?", None),
            ("/decade/facade", None),
            ("/7", None),
            ("/v1/books", None),
            ("", None),
        ] {
            assert_eq!(named_thing(path), collection, "{path}");
        }
    }
}
