//! Whether a program answers: the checks of readiness probes, made from where the pod's programs are.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};

use super::netns::Netns;
use super::workload::Check;

/// The longest answer that is read.
const MAX_TEXT: usize = 4 << 20;

/// Opens connections, in a pod's namespace if it has one.
#[derive(Clone, Debug, Default)]
pub struct Dialer {
    pub netns: Option<Arc<Netns>>,
}

impl Dialer {
    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = match &self.netns {
            Some(netns) => netns.socket()?,
            None => TcpSocket::new_v4()?,
        };
        socket.connect(to).await
    }

    /// Connects to the application: it may listen on the pod's address or on loopback.
    async fn connect_app(&self, ip: Ipv4Addr, port: u16) -> io::Result<TcpStream> {
        match self.connect((ip, port).into()).await {
            Ok(stream) => Ok(stream),
            Err(_) => self.connect((Ipv4Addr::LOCALHOST, port).into()).await,
        }
    }

    /// `GET path` at an address; any 2xx or 3xx will do. The error says what came instead.
    pub async fn http(&self, to: SocketAddr, path: &str, limit: Duration) -> Result<(), String> {
        let ask = async {
            let stream = self.connect(to).await.map_err(|error| error.to_string())?;
            get(stream, &to.to_string(), path, &[]).await
        };
        within(limit, ask).await
    }

    /// The text at `path`, up to [`MAX_TEXT`] bytes.
    pub async fn text(
        &self,
        from: SocketAddr,
        path: &str,
        limit: Duration,
    ) -> Result<String, String> {
        let ask = async {
            let stream = self.connect(from).await.map_err(|error| error.to_string())?;
            let host = from.to_string();
            let response = request(stream, &host, path, &[], |response| async {
                let body = Limited::new(response.into_body(), MAX_TEXT);
                body.collect().await.map_err(|error| error.to_string())
            });
            let bytes = response.await?.to_bytes();
            String::from_utf8(bytes.into()).map_err(|error| error.to_string())
        };
        within(limit, ask).await
    }

    /// Makes the check of a probe. `port` is where the application really listens.
    pub async fn check(
        &self,
        check: &Check,
        ip: Ipv4Addr,
        port: u16,
        limit: Duration,
    ) -> Result<(), String> {
        let ask = async {
            let stream = self
                .connect_app(ip, port)
                .await
                .map_err(|error| format!("nothing answers on port {port} ($PORT): {error}"))?;
            match check {
                Check::Tcp { .. } => Ok(()),
                Check::Http { path, headers, .. } => {
                    let host = SocketAddr::new(IpAddr::V4(ip), port).to_string();
                    get(stream, &host, path, headers).await.map_err(|e| format!("GET {path}: {e}"))
                }
            }
        };
        within(limit, ask).await
    }
}

async fn within<T>(
    limit: Duration,
    ask: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    match tokio::time::timeout(limit, ask).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}

async fn get(
    stream: TcpStream,
    host: &str,
    path: &str,
    headers: &[(String, String)],
) -> Result<(), String> {
    let status =
        request(stream, host, path, headers, |response| async move { Ok(response.status()) });
    let status = status.await?;
    if status.is_success() || status.is_redirection() { Ok(()) } else { Err(status.to_string()) }
}

/// Asks, and drives the connection until `read` has what it wants of the answer.
async fn request<T, F: Future<Output = Result<T, String>>>(
    stream: TcpStream,
    host: &str,
    path: &str,
    headers: &[(String, String)],
    read: impl FnOnce(Response<Incoming>) -> F,
) -> Result<T, String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let mut request = Request::get(path).header("connection", "close");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", host);
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        read(response).await
    };
    let (mut answer, mut connection) = (pin!(answer), pin!(connection));
    tokio::select! {
        answer = &mut answer => return answer,
        // An orderly end may come before the answer was looked at; an error is told by the answer.
        _ = &mut connection => {}
    }
    answer.await
}

/// How many connections clients have open to the pod, from its proxy's metrics.
pub fn open_inbound(metrics: &str) -> u64 {
    let lines = metrics.lines().filter_map(|line| line.strip_prefix("tcp_open_connections{"));
    let inbound = lines.filter_map(|line| {
        let (labels, value) = line.rsplit_once('}')?;
        let wanted = ["direction=\"inbound\"", "peer=\"src\""];
        let counts = wanted.iter().all(|label| labels.split(',').any(|l| l == *label));
        counts.then(|| value.trim().parse::<u64>().ok())?
    });
    inbound.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const LIMIT: Duration = Duration::from_secs(5);

    /// Answers one connection with these bytes and hands back what was asked.
    async fn answering(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4096];
            let n = stream.read(&mut asked).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&asked[..n]).into_owned()
        });
        (port, served)
    }

    fn http(port: u16) -> Check {
        let headers = vec![("x-probe".to_owned(), "1".to_owned())];
        Check::Http { port, path: "/readyz".to_owned(), headers }
    }

    #[tokio::test]
    async fn an_http_probe_asks_as_the_manifest_says() {
        let (port, served) = answering("HTTP/1.1 204 No Content\r\n\r\n").await;
        let result = Dialer::default().check(&http(port), Ipv4Addr::LOCALHOST, port, LIMIT).await;
        assert_eq!(result, Ok(()));
        let asked = served.await.unwrap();
        assert!(asked.starts_with("GET /readyz HTTP/1.1\r\n") && asked.contains("x-probe: 1"));
    }

    #[tokio::test]
    async fn a_bad_status_is_told() {
        let (port, _served) =
            answering("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        let result = Dialer::default().check(&http(port), Ipv4Addr::LOCALHOST, port, LIMIT).await;
        assert_eq!(result, Err("GET /readyz: 503 Service Unavailable".to_owned()));
    }

    #[tokio::test]
    async fn an_application_on_loopback_is_found_too() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let ip = Ipv4Addr::new(127, 9, 9, 9);
        let check = Check::Tcp { port };
        assert_eq!(Dialer::default().check(&check, ip, port, LIMIT).await, Ok(()));
        drop(listener);
        let error = Dialer::default().check(&check, ip, port, LIMIT).await.unwrap_err();
        assert!(error.contains(&format!("port {port}")), "{error}");
    }

    #[tokio::test]
    async fn texts_are_read_whole() {
        let (port, _served) = answering("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
        let from = (Ipv4Addr::LOCALHOST, port).into();
        let text = Dialer::default().text(from, "/metrics", LIMIT).await;
        assert_eq!(text.as_deref(), Ok("hello"));
    }

    #[test]
    fn open_connections_of_clients_are_summed() {
        let metrics = "# TYPE tcp_open_connections gauge
tcp_open_connections{direction=\"inbound\",peer=\"src\",tls=\"\"} 2
tcp_open_connections{direction=\"inbound\",peer=\"src\",target_addr=\"127.1.1.1:80\"} 1
tcp_open_connections{direction=\"inbound\",peer=\"dst\"} 7
tcp_open_connections{direction=\"outbound\",peer=\"src\"} 7
tcp_open_total{direction=\"inbound\",peer=\"src\"} 7
";
        assert_eq!(open_inbound(metrics), 3);
        assert_eq!(open_inbound(""), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_has_a_limit() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let error = Dialer::default().http(to, "/", LIMIT).await.unwrap_err();
        assert_eq!(error, "no answer within 5s");
    }
}
