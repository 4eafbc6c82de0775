use std::path::Path;

use tokio::net::UdpSocket as AsyncUdpSocket;

use super::*;

const A: u16 = 1;
const AAAA: u16 = 28;

/// A name server of our own, which keeps what it was asked.
#[derive(Clone)]
struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<(String, u16)>>>,
}

impl Server {
    /// `answer` has the whole response to a query for a name and type; none is silence.
    async fn start(answer: impl Fn(&str, u16, &[u8]) -> Option<Vec<u8>> + Send + 'static) -> Self {
        let socket = AsyncUdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<_>>> = Arc::default();
        let this = Self { port, asked: Arc::clone(&asked) };
        tokio::spawn(async move {
            let mut query = [0; 512];
            loop {
                let (len, from) = socket.recv_from(&mut query).await.unwrap();
                let (name, kind) = question(&query[..len]);
                let response = answer(&name, kind, &query[..len]);
                asked.lock().push((name, kind));
                if let Some(response) = response {
                    socket.send_to(&response, from).await.unwrap();
                }
            }
        });
        this
    }

    /// A zone: names with their addresses and a TTL.
    async fn of_zone(zone: &'static [(&str, &[&str], u32)]) -> Self {
        Self::start(|name, kind, query| {
            let found = zone.iter().find(|(known, ..)| *known == name);
            let Some((_, addrs, ttl)) = found else { return Some(response(query, 3, &[], 0)) };
            let addrs: Vec<IpAddr> = addrs.iter().map(|addr| addr.parse().unwrap()).collect();
            let of_kind = |addr: &IpAddr| addr.is_ipv4() == (kind == A);
            let addrs: Vec<_> = addrs.into_iter().filter(of_kind).collect();
            Some(response(query, 0, &addrs, *ttl))
        })
        .await
    }

    fn asked_for(&self) -> Vec<String> {
        let asked = self.asked.lock();
        asked.iter().filter(|(_, kind)| *kind == A).map(|(name, _)| name.clone()).collect()
    }
}

fn question(query: &[u8]) -> (String, u16) {
    let (mut at, mut name) = (12, String::new());
    while query[at] != 0 {
        let len = usize::from(query[at]);
        name.push_str(std::str::from_utf8(&query[at + 1..at + 1 + len]).unwrap());
        name.push('.');
        at += 1 + len;
    }
    (name, u16::from_be_bytes([query[at + 1], query[at + 2]]))
}

fn response(query: &[u8], code: u8, addrs: &[IpAddr], ttl: u32) -> Vec<u8> {
    let question_end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let mut bytes = query[..2].to_vec();
    bytes.extend([0x81, 0x80 | code, 0, 1, 0, addrs.len() as u8, 0, 0, 0, 0]);
    bytes.extend(&query[12..question_end]);
    for addr in addrs {
        let (kind, data) = match addr {
            IpAddr::V4(addr) => (A, addr.octets().to_vec()),
            IpAddr::V6(addr) => (AAAA, addr.octets().to_vec()),
        };
        bytes.extend([0xc0, 12]);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1]);
        bytes.extend(ttl.to_be_bytes());
        bytes.extend([0, data.len() as u8]);
        bytes.extend(data);
    }
    bytes
}

/// The files of a pod, in a directory of their own.
struct Etc(PathBuf);

impl Etc {
    fn new(test: &str, hosts: &str, resolv_conf: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mesh-resolve-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let this = Self(dir);
        std::fs::write(this.path("hosts"), hosts).unwrap();
        this.configure(resolv_conf);
        this
    }

    fn configure(&self, resolv_conf: &str) {
        std::fs::write(self.path("resolv.conf"), resolv_conf).unwrap();
    }

    fn path(&self, file: impl AsRef<Path>) -> PathBuf {
        self.0.join(file)
    }

    fn resolver(&self, dns_port: u16) -> Resolver {
        Resolver::of_files(self.path("hosts"), self.path("resolv.conf"), dns_port)
    }
}

impl Drop for Etc {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn ips<const N: usize>(addrs: [&str; N]) -> Vec<IpAddr> {
    addrs.map(|addr| addr.parse().unwrap()).to_vec()
}

const KUBERNETES: &str = "search shop.svc.cluster.local svc.cluster.local cluster.local\n\
    nameserver 127.0.0.1\noptions ndots:5\n";

#[tokio::test]
async fn search_and_ndots_are_honoured() {
    let server = Server::of_zone(&[
        ("web.shop.svc.cluster.local.", &["127.0.0.8"], 5),
        ("example.org.", &["127.0.0.9"], 5),
    ])
    .await;
    let etc = Etc::new("search", "", KUBERNETES);
    let resolver = etc.resolver(server.port);
    assert_eq!(resolver.resolve("web.shop").await.unwrap().addrs, ips(["127.0.0.8"]));
    let asked = ["web.shop.shop.svc.cluster.local.", "web.shop.svc.cluster.local."];
    assert_eq!(server.asked_for(), asked);

    server.asked.lock().clear();
    assert_eq!(resolver.resolve("example.org.").await.unwrap().addrs, ips(["127.0.0.9"]));
    assert_eq!(server.asked_for(), ["example.org."], "a final dot means that name alone");

    server.asked.lock().clear();
    let error = resolver.resolve("nobody").await.unwrap_err();
    assert!(matches!(error, ResolveError::NoSuchHost(_)), "{error}");
    assert_eq!(server.asked_for().last().unwrap(), "nobody.");

    etc.configure("nameserver 127.0.0.1\nsearch nowhere\n");
    server.asked.lock().clear();
    assert_eq!(resolver.resolve("example.org").await.unwrap().addrs, ips(["127.0.0.9"]));
    assert_eq!(server.asked_for(), ["example.org."], "by default one dot is enough");
}

#[tokio::test]
async fn files_and_localhost_need_no_server() {
    let server = Server::of_zone(&[("web.", &["127.0.0.8"], 5)]).await;
    let hosts =
        "127.0.0.1 localhost\n10.0.0.1\tweb WEB.shop # a comment\nfd00::1 web\nnonsense web\n";
    let etc = Etc::new("hosts", hosts, KUBERNETES);
    let resolver = etc.resolver(server.port);
    for name in ["web", "Web", "web."] {
        let mut addrs = resolver.resolve(name).await.unwrap().addrs;
        addrs.sort();
        assert_eq!(addrs, ips(["10.0.0.1", "fd00::1"]), "{name}");
    }
    assert_eq!(resolver.resolve("web.shop").await.unwrap().addrs, ips(["10.0.0.1"]));
    assert_eq!(resolver.resolve("localhost").await.unwrap().addrs, ips(["127.0.0.1"]));
    let addrs = resolver.resolve("a.localhost").await.unwrap().addrs;
    assert!(addrs.contains(&Ipv4Addr::LOCALHOST.into()), "{addrs:?}");
    assert_eq!(resolver.resolve("::1").await.unwrap().addrs, ips(["::1"]));
    assert_eq!(server.asked_for(), [""; 0]);

    std::fs::write(etc.path("hosts"), "10.0.0.2 web\n").unwrap();
    assert_eq!(resolver.resolve("web").await.unwrap().addrs, ips(["10.0.0.2"]));
}

#[tokio::test]
async fn ipv4_comes_first_and_lifetimes_have_bounds() {
    let server = Server::of_zone(&[
        ("both.", &["::1", "127.0.0.8"], 10),
        ("brief.", &["127.0.0.8"], 0),
        ("long.", &["127.0.0.8"], 86_400),
    ])
    .await;
    let etc = Etc::new("lifetimes", "", "nameserver 127.0.0.1\n");
    let resolver = etc.resolver(server.port);
    let both = resolver.resolve("both.").await.unwrap();
    assert_eq!(both.addrs[0], ips(["127.0.0.8"])[0]);
    assert_eq!(both.addrs.len(), 2);
    assert!(both.valid > Duration::from_secs(5) && both.valid <= Duration::from_secs(10));
    assert_eq!(resolver.resolve("brief.").await.unwrap().valid, MIN_VALID);
    let long = resolver.resolve("long.").await.unwrap().valid;
    assert!(long > Duration::from_secs(20) && long <= MAX_VALID, "{long:?}");
}

#[tokio::test]
async fn a_configuration_that_comes_late_is_taken() {
    let server = Server::of_zone(&[("web.", &["127.0.0.8"], 5)]).await;
    let etc = Etc::new("late", "", "# no servers yet\n");
    let resolver = etc.resolver(server.port);
    let error = resolver.resolve("web.").await.unwrap_err().to_string();
    assert!(error.contains("`web.`") && error.contains("resolv.conf"), "{error}");
    etc.configure("nameserver 127.0.0.1\n");
    assert_eq!(resolver.resolve("web.").await.unwrap().addrs, ips(["127.0.0.8"]));
    std::fs::remove_file(etc.path("resolv.conf")).unwrap();
    assert!(matches!(resolver.resolve("web.").await, Err(ResolveError::Config { .. })));
}

#[tokio::test(start_paused = true)]
async fn silence_has_an_end() {
    let server = Server::start(|_, _, _| None).await;
    let etc = Etc::new("silence", "", KUBERNETES);
    let started = tokio::time::Instant::now();
    let error = etc.resolver(server.port).resolve("web").await.unwrap_err();
    assert!(matches!(error, ResolveError::Failed { .. }), "{error}");
    assert!(started.elapsed() <= LIMIT + Duration::from_millis(1), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn nonsense_is_an_error() {
    let server = Server::start(|_, _, query| {
        let mut bytes = response(query, 0, &ips(["127.0.0.8"]), 5);
        let len = bytes.len();
        // The question's name points at itself, and the answer is longer than it is.
        bytes[12] = 0xc0;
        bytes[13] = 12;
        bytes[len - 5] = 0xff;
        Some(bytes)
    })
    .await;
    let etc = Etc::new("nonsense", "", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n");
    assert!(etc.resolver(server.port).resolve("web.").await.is_err());
}

/// The clock is tokio's, which goes on by itself when everybody waits.
#[tokio::test(start_paused = true)]
async fn an_address_that_does_not_answer_leaves_time_for_the_others() {
    // A queue of one place that is taken: the kernel leaves further connections without an answer.
    let silent = tokio::net::TcpSocket::new_v4().unwrap();
    silent.bind("127.0.43.1:0".parse().unwrap()).unwrap();
    let silent = silent.listen(0).unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut waiting = Vec::new();
    let full = async || {
        let connecting = TcpStream::connect(("127.0.43.1", port));
        tokio::time::timeout(Duration::from_millis(50), connecting).await
    };
    while let Ok(connected) = full().await {
        waiting.push(connected.unwrap());
    }
    let _good = tokio::net::TcpListener::bind(("127.0.43.2", port)).await.unwrap();
    let files = Etc::new("connect", "127.0.43.1 both\n127.0.43.2 both\n127.0.43.1 one\n", "");
    let resolver = files.resolver(53);
    let began = Instant::now();
    let stream = resolver.connect("both", port).await.unwrap();
    assert_eq!(stream.peer_addr().unwrap().ip().to_string(), "127.0.43.2");
    assert_eq!(began.elapsed().as_millis() / 10, CONNECT.as_millis() / 20);
    let error = resolver.connect("one", port).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
}
