//! Who asked the workload for what, of what was allowed: so that `meshctl authz generate` can propose a policy.
//!
//! A request that was seen before costs two lookups and no allocation. Segments of paths that look like the name of
//! one thing (a number, a UUID) stand for all below, so that a table of things is one entry.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
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
/// Likewise of a method: longer ones exist nowhere, but clients can make up any number of them.
const MAX_METHOD: usize = 24;
/// A full table is searched for what is old no more often: everybody waits for it.
const FORGET_EVERY: Duration = Duration::from_secs(10);

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
    ports: Mutex<Ports>,
}

#[derive(Debug, Default)]
struct Ports {
    /// Those in use, so that all threads note what is done on a port in one place.
    used: HashMap<u16, Weak<ObservedPort>>,
    /// Those on which something was done, of which there are [`MAX_PORTS`] at most.
    noted: HashMap<u16, Arc<ObservedPort>>,
}

/// What was done on one port.
#[derive(Debug, Default)]
pub struct ObservedPort {
    number: u16,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    clients: HashMap<Client, Paths>,
    paths: usize,
    left_out: u64,
    /// All that was ever noted.
    total: u64,
    /// Whether the port is among those that are told of.
    told: bool,
    forgot: Option<Instant>,
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
    /// Where a port's requests are noted. It is not told of before there are any: whoever tries all
    /// ports must not hide those that are there.
    pub fn port(&self, number: u16) -> Arc<ObservedPort> {
        let mut ports = self.ports.lock();
        let noted = ports.noted.get(&number).cloned();
        if let Some(known) = noted.or_else(|| ports.used.get(&number).and_then(Weak::upgrade)) {
            return known;
        }
        if ports.used.len() >= MAX_PORTS {
            ports.used.retain(|_, port| port.strong_count() > 0);
        }
        let new = Arc::new(ObservedPort { number, ..ObservedPort::default() });
        ports.used.insert(number, Arc::downgrade(&new));
        new
    }

    /// A request was allowed.
    pub fn request(
        &self,
        port: &Arc<ObservedPort>,
        who: Who,
        protocol: StatProtocol,
        method: &Method,
        path: &str,
    ) {
        let (path, below) = match (protocol, named_thing(path)) {
            // The path of a call is service and method, whatever they are called.
            (StatProtocol::Grpc, _) | (_, None) => (path, false),
            (_, Some(collection)) => (collection, true),
        };
        let told = port.table.lock().note((who, protocol, Some(method.clone())), path, below);
        if !told {
            self.tell(port);
        }
    }

    /// A connection was allowed.
    pub fn connection(&self, port: &Arc<ObservedPort>, who: Who) {
        let told = port.table.lock().note((who, StatProtocol::Tcp, None), "", false);
        if !told {
            self.tell(port);
        }
    }

    /// Makes room for a port where the least was done.
    #[cold]
    fn tell(&self, port: &Arc<ObservedPort>) {
        let mut ports = self.ports.lock();
        if ports.noted.len() >= MAX_PORTS && !ports.noted.contains_key(&port.number) {
            let total =
                |(number, port): (&u16, &Arc<ObservedPort>)| (port.table.lock().total, *number);
            if let Some((_, least)) = ports.noted.iter().map(total).min()
                && let Some(port) = ports.noted.remove(&least)
            {
                port.table.lock().told = false;
            }
        }
        port.table.lock().told = true;
        ports.noted.insert(port.number, Arc::clone(port));
    }

    /// What was done in the last `window`, in some order; what had no place; the time that is really covered.
    pub fn within(&self, window: Duration) -> (Vec<Observation>, u64, Duration) {
        let now = Instant::now();
        let window = window.min(Duration::from_secs(WINDOW_SECONDS));
        let covered = window.min(now.duration_since(self.began));
        let (mut all, mut left_out) = (Vec::new(), 0);
        for (port, observed) in &self.ports.lock().noted {
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

impl Table {
    /// Says whether the port is told of.
    fn note(&mut self, client: Client, path: &str, below: bool) -> bool {
        let now = Instant::now();
        self.total += 1;
        if let Some(paths) = self.clients.get_mut(&client)
            && let Some(seen) = paths.of(below).get_mut(path)
        {
            (seen.last, seen.count) = (now, seen.count + 1);
            return self.told;
        }
        let method = client.2.as_ref().map_or("", Method::as_str);
        if path.len() > MAX_PATH || method.len() > MAX_METHOD {
            self.left_out += 1;
            return self.told;
        }
        let full = |table: &Self| {
            table.paths >= MAX_PATHS
                || (table.clients.len() >= MAX_CLIENTS && !table.clients.contains_key(&client))
        };
        if full(self) && self.forgot.is_none_or(|forgot| now - forgot >= FORGET_EVERY) {
            self.forgot = Some(now);
            self.forget(now);
        }
        if full(self) {
            self.left_out += 1;
            return self.told;
        }
        self.paths += 1;
        let paths = self.clients.entry(client).or_default();
        paths.of(below).insert(path.into(), Seen { last: now, count: 1 });
        self.told
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
            observed.request(&port, who(), StatProtocol::Http, &Method::GET, path);
        }
        observed.request(&port, who(), StatProtocol::Http, &Method::POST, "/product");
        observed.request(&port, who(), StatProtocol::Grpc, &Method::POST, "/shop.v1.Ledger/Get");
        observed.connection(&port, who());
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
        observed.request(&port, who(), StatProtocol::Http, &Method::GET, "/old");
        tokio::time::advance(Duration::from_secs(30)).await;
        observed.request(&port, who(), StatProtocol::Http, &Method::GET, "/new");
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
            observed.request(&port, who(), StatProtocol::Http, &Method::GET, &format!("/page-{n}"));
        };
        (0..MAX_PATHS + 5).for_each(note);
        let (all, left_out, _) = observed.within(Duration::from_secs(60));
        assert_eq!((all.len(), left_out), (MAX_PATHS, 5));
        observed.request(&port, who(), StatProtocol::Http, &Method::GET, &"/x".repeat(MAX_PATH));
        tokio::time::advance(Duration::from_secs(WINDOW_SECONDS + 1)).await;
        note(MAX_PATHS + 6);
        assert_eq!(within(&observed, 60), [("GET /page-1006".to_owned(), false, 1)]);
        for n in 0..u32::try_from(MAX_CLIENTS).unwrap() + 5 {
            observed.connection(&port, Who::Address(IpAddr::from((0x0a00_0000 + n).to_be_bytes())));
        }
        assert_eq!(observed.within(Duration::from_secs(60)).0.len(), MAX_CLIENTS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_scan_of_ports_hides_none_that_is_used() {
        let observed = Observed::default();
        // Ports that nobody answers at, before and after the one that is used.
        let mut scanned: Vec<_> = (1..=300).map(|number| observed.port(number)).collect();
        let port = observed.port(8080);
        for _ in 0..3 {
            observed.request(&port, who(), StatProtocol::Http, &Method::GET, "/");
        }
        assert_eq!(within(&observed, 60), [("GET /".to_owned(), false, 3)]);
        scanned.extend((1_000..1_600).map(|number| observed.port(number)));
        for scanned in &scanned {
            observed.connection(scanned, Who::Address([10, 0, 0, 9].into()));
        }
        let all = observed.within(Duration::from_secs(60)).0;
        assert_eq!(all.len(), MAX_PORTS);
        assert!(all.iter().any(|seen| seen.port == 8080 && seen.count == 3));
        // What made room for others comes back with what is done there.
        let back = &scanned[0];
        (0..5).for_each(|_| observed.connection(back, Who::Address([10, 0, 0, 9].into())));
        let all = observed.within(Duration::from_secs(60)).0;
        assert_eq!(all.len(), MAX_PORTS);
        assert!(all.iter().any(|seen| seen.port == 1 && seen.count == 6));
        // Two threads note in one place, and what was noted outlives those who did.
        assert!(Arc::ptr_eq(&observed.port(8080), &port));
        drop(scanned);
        assert!(observed.ports.lock().used.len() >= MAX_PORTS);
        let _kept: Vec<_> = (2_000..2_010).map(|number| observed.port(number)).collect();
        assert!(observed.ports.lock().used.len() <= 2 * MAX_PORTS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_table_is_not_searched_for_each_request() {
        let observed = Observed::default();
        let port = observed.port(8080);
        let note = |n: usize| {
            observed.request(&port, who(), StatProtocol::Http, &Method::GET, &format!("/page-{n}"));
        };
        (0..=MAX_PATHS).for_each(note);
        let searched = port.table.lock().forgot.unwrap();
        for _ in 0..9 {
            tokio::time::advance(Duration::from_secs(1)).await;
            note(MAX_PATHS + 1);
            assert_eq!(port.table.lock().forgot, Some(searched));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        note(MAX_PATHS + 1);
        assert_eq!(port.table.lock().forgot, Some(searched + FORGET_EVERY));
    }

    #[tokio::test(start_paused = true)]
    async fn made_up_methods_take_no_place() {
        let observed = Observed::default();
        let port = observed.port(8080);
        let long = Method::from_bytes(&[b'M'; MAX_METHOD + 1]).unwrap();
        observed.request(&port, who(), StatProtocol::Http, &long, "/");
        observed.request(&port, who(), StatProtocol::Http, &Method::GET, "/");
        let (all, left_out, _) = observed.within(Duration::from_secs(60));
        assert_eq!((all.len(), left_out), (1, 1));
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
