//! What kubelets run in the proxy's container when it is a plain one: `await-ready` after its start,
//! `await-application-end` before its SIGTERM.
//!
//! A native sidecar needs neither: the kubelet itself starts it first and ends it last.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::Config;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);
const READY_DEADLINE: Duration = Duration::from_secs(120);
/// Kubelets give up long before.
const END_DEADLINE: Duration = Duration::from_secs(3600);
/// Looks in a row that must find nobody: an application may be between two connections.
const QUIET_LOOKS: u32 = 3;
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs the hook of this name, if it is one.
pub(crate) fn run(name: &str) -> Option<ExitCode> {
    let hook = match name {
        "await-ready" => Hook::Ready,
        "await-application-end" => Hook::ApplicationEnd,
        _ => return None,
    };
    let ended = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = ended.and_then(|runtime| runtime.block_on(hook.wait()));
    Some(match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    })
}

#[expect(clippy::print_stderr, reason = "kubelets make an event of it")]
fn fail(error: &io::Error) -> ExitCode {
    eprintln!("mesh-proxy: {error}");
    ExitCode::FAILURE
}

enum Hook {
    Ready,
    ApplicationEnd,
}

impl Hook {
    async fn wait(self) -> io::Result<()> {
        match self {
            Self::Ready => {
                let config = Config::from_vars(std::env::vars()).map_err(io::Error::other)?;
                let addr = config.admin_addr;
                let waited = tokio::time::timeout(READY_DEADLINE, ready(addr)).await;
                waited.map_err(|_| io::Error::other("the proxy did not get ready in 120 s"))
            }
            Self::ApplicationEnd => {
                let own = rustix::process::getuid().as_raw();
                let waited = application_end(|| others(own));
                let waited = tokio::time::timeout(END_DEADLINE, waited).await;
                waited.map_err(|_| io::Error::other("the application did not end in an hour"))?
            }
        }
    }
}

/// Asks the proxy until it is ready.
async fn ready(admin: SocketAddr) {
    let ip = if admin.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { admin.ip() };
    while !matches!(
        tokio::time::timeout(ASK_TIMEOUT, is_ready(ip, admin.port())).await,
        Ok(Ok(true))
    ) {
        tokio::time::sleep(PAUSE).await;
    }
}

async fn is_ready(ip: IpAddr, port: u16) -> io::Result<bool> {
    let mut stream = TcpStream::connect((ip, port)).await?;
    stream
        .write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await?;
    let mut status = [0; 12];
    stream.read_exact(&mut status).await?;
    Ok(&status == b"HTTP/1.1 200")
}

/// Looks until no process of the pod but the proxy has a connection or listens.
async fn application_end(mut look: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let mut quiet = 0;
    while quiet < QUIET_LOOKS {
        quiet = if look()? { 0 } else { quiet + 1 };
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Whether sockets of other users are open in this network namespace, which is the pod's.
fn others(own: u32) -> io::Result<bool> {
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        match std::fs::read_to_string(table) {
            Ok(text) if in_use_by_others(&text, own) => return Ok(true),
            // There is no IPv6 on this machine.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(false)
}

/// Reads a table of the kernel. Sockets that nobody holds any more (TIME_WAIT and those being closed)
/// do not count.
fn in_use_by_others(table: &str, own: u32) -> bool {
    const HELD: [&str; 4] = ["01", "02", "08", "0A"]; // established, SYN sent, close wait, listening
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let held = fields.nth(3).is_some_and(|state| HELD.contains(&state));
        let uid = fields.nth(3).and_then(|uid| uid.parse::<u32>().ok());
        held && uid.is_some_and(|uid| uid != own)
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn line(state: &str, uid: u32) -> String {
        format!(
            "   0: 0100007F:102C 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  {uid}        0 37145 1 0000000000000000 100 0 0 10 0\n"
        )
    }

    #[test]
    fn only_what_others_hold_counts() {
        let own = 2102;
        assert!(!in_use_by_others(TABLE, own));
        for (state, uid, expected) in [
            ("0A", own, false),
            ("0A", 0, true),
            ("01", 1000, true),
            ("08", 1000, true),
            ("06", 0, false),
            ("01", own, false),
        ] {
            let table = format!("{TABLE}{}{}", line("0A", own), line(state, uid));
            assert_eq!(in_use_by_others(&table, own), expected, "{state} {uid}");
        }
        assert!(!in_use_by_others("", own) && !in_use_by_others("\n\n x y\n", own));
    }

    #[tokio::test]
    async fn the_kernels_own_table_is_read() {
        let _listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = rustix::process::getuid().as_raw();
        assert!(others(own + 1).unwrap(), "our listener is another's to another user");
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_is_awaited_through_short_silences() {
        let mut looks = [true, false, false, true, false, false, false].into_iter();
        application_end(|| Ok(looks.next().unwrap())).await.unwrap();
        assert_eq!(looks.next(), None);
    }

    #[tokio::test]
    async fn readiness_is_asked_until_it_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let asked = tokio::spawn(ready(addr));
        for status in ["503 Service Unavailable", "200 OK"] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        asked.await.unwrap();
    }

    #[test]
    fn other_words_are_no_hooks() {
        assert!(run("init-redirect").is_none());
    }
}
