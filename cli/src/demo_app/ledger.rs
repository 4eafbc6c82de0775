//! `ledger`: a line protocol over TCP in which the server speaks first, as MySQL and SMTP do; and its client.
//!
//! ```text
//! S: 220 ledger ledger-0 ready
//! C: APPEND order-17 4930
//! S: OK 1
//! C: QUIT
//! S: BYE
//! ```
//! A proxy that waits for the client's first bytes stalls here, which is what this service is for.
//! Lines end in LF, with or without CR, and have at most 256 bytes. An order id is booked once: repeated, it gets the
//! entry it has, as long as it is among the last 4096.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::env::Upstream;
use super::lifecycle::{DRAIN_DEADLINE, Lifecycle};
use super::server::accept;
use super::web::is_order_id;

const MAX_LINE: u64 = 256;
const MAX_SESSIONS: usize = 256;
const MAX_REMEMBERED: usize = 4096;
const IDLE_DEADLINE: Duration = Duration::from_secs(30);
/// Of one attempt, from connecting to the entry's number.
const APPEND_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) pod: String,
}

/// Serves until drained; idle sessions are then ended with `BYE`.
pub(super) async fn serve(
    config: Config,
    listener: TcpListener,
    lifecycle: Lifecycle,
) -> io::Result<()> {
    let banner: Arc<str> = format!("220 ledger {} ready\r\n", config.pod).into();
    let book = Arc::new(Mutex::new(Book::default()));
    let room = Arc::new(Semaphore::new(MAX_SESSIONS));
    let mut sessions = JoinSet::new();
    loop {
        let (stream, permit) = tokio::select! {
            biased;
            () = lifecycle.draining() => break,
            Some(_) = sessions.join_next() => continue,
            accepted = accept(&listener, &room) => accepted,
        };
        let (banner, book, lifecycle) = (banner.clone(), book.clone(), lifecycle.clone());
        sessions.spawn(async move {
            if let Err(error) = session(stream, &banner, &book, &lifecycle).await {
                tracing::debug!(%error, "session ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    let ended = timeout(DRAIN_DEADLINE, async { while sessions.join_next().await.is_some() {} });
    ended.await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, "sessions outlived the drain deadline")
    })
}

async fn session(
    mut stream: TcpStream,
    banner: &str,
    book: &Mutex<Book>,
    lifecycle: &Lifecycle,
) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    writer.write_all(banner.as_bytes()).await?;
    loop {
        let line = tokio::select! {
            biased;
            () = lifecycle.draining() => None,
            line = timeout(IDLE_DEADLINE, read_line(&mut reader)) => Some(line),
        };
        let line = match line {
            None => "QUIT".to_owned(),
            Some(Err(_)) => return writer.write_all(b"ERR idle for 30 s\r\n").await,
            Some(Ok(line)) => match line? {
                Some(line) => line,
                None => return Ok(()),
            },
        };
        let answer = obey(&line, book);
        writer.write_all(format!("{answer}\r\n").as_bytes()).await?;
        if answer == "BYE" {
            return writer.shutdown().await;
        }
    }
}

fn obey(line: &str, book: &Mutex<Book>) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["APPEND", id, cents] if is_order_id(id.as_bytes()) && cents.parse::<u32>().is_ok() => {
            // A panic elsewhere can't leave the book half written: `append` is all there is.
            let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
            format!("OK {}", book.append(id))
        }
        ["PING"] => "PONG".to_owned(),
        ["QUIT"] => "BYE".to_owned(),
        _ => "ERR expected APPEND <order id> <cents>, PING or QUIT".to_owned(),
    }
}

/// Which orders have which entry. The amounts are nobody's concern here.
#[derive(Debug, Default)]
struct Book {
    entries: u64,
    known: HashMap<String, u64>,
    /// The keys of `known`, oldest first.
    oldest: VecDeque<String>,
}

impl Book {
    fn append(&mut self, order_id: &str) -> u64 {
        if let Some(entry) = self.known.get(order_id) {
            return *entry;
        }
        if self.oldest.len() == MAX_REMEMBERED
            && let Some(oldest) = self.oldest.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.entries += 1;
        self.known.insert(order_id.to_owned(), self.entries);
        self.oldest.push_back(order_id.to_owned());
        self.entries
    }
}

/// One line without its end, or `None` where the stream ends between lines.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    reader.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        let what = "a line without an end within 256 bytes";
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map(Some).map_err(|error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("a line that is not UTF-8: {error}"))
    })
}

/// The caller's side: a connection for each entry, so that the balancer sees each.
#[derive(Debug, Clone)]
pub(super) struct LedgerClient {
    upstream: Upstream,
}

impl LedgerClient {
    pub(super) fn new(upstream: Upstream) -> Self {
        Self { upstream }
    }

    /// Books the order and returns its entry's number.
    ///
    /// A second attempt covers a pod that went away; the order id keeps it from booking twice.
    pub(super) async fn append(&self, order_id: &str, cents: u32) -> io::Result<u64> {
        match self.attempt(order_id, cents).await {
            Ok(entry) => Ok(entry),
            Err(error) => {
                tracing::debug!(%error, "ledger failed, trying once more");
                self.attempt(order_id, cents).await
            }
        }
    }

    async fn attempt(&self, order_id: &str, cents: u32) -> io::Result<u64> {
        let exchange = async {
            let mut stream = TcpStream::connect(&self.upstream.connect).await?;
            stream.set_nodelay(true)?;
            let (reader, mut writer) = stream.split();
            let mut reader = BufReader::new(reader);
            let banner = expect_line(&mut reader, "the banner").await?;
            if !banner.starts_with("220 ") {
                return Err(unexpected("the banner", &banner));
            }
            writer.write_all(format!("APPEND {order_id} {cents}\r\n").as_bytes()).await?;
            let answer = expect_line(&mut reader, "the answer").await?;
            // No QUIT: closing with its BYE unread would reset the connection.
            let entry = answer.strip_prefix("OK ").and_then(|entry| entry.parse().ok());
            entry.ok_or_else(|| unexpected("the answer", &answer))
        };
        timeout(APPEND_DEADLINE, exchange)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no entry within 2 s"))?
    }
}

async fn expect_line(
    reader: &mut (impl AsyncBufRead + Unpin),
    what: &'static str,
) -> io::Result<String> {
    read_line(reader).await?.ok_or_else(|| {
        io::Error::new(io::ErrorKind::UnexpectedEof, format!("closed before {what}"))
    })
}

fn unexpected(what: &str, line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_booked_once() {
        let book = Mutex::new(Book::default());
        assert_eq!(obey("APPEND a 100", &book), "OK 1");
        assert_eq!(obey("APPEND b 100", &book), "OK 2");
        assert_eq!(obey("APPEND a 100", &book), "OK 1");
    }

    #[test]
    fn the_book_forgets_the_oldest_and_stays_bounded() {
        let mut book = Book::default();
        for n in 0..=MAX_REMEMBERED {
            book.append(&n.to_string());
        }
        assert_eq!(book.known.len(), MAX_REMEMBERED);
        assert_eq!(book.append("1"), 2);
        assert_eq!(book.append("0"), MAX_REMEMBERED as u64 + 2);
    }

    #[test]
    fn nonsense_is_refused() {
        let book = Mutex::new(Book::default());
        let long = format!("APPEND {} 1", "x".repeat(65));
        for line in ["", "APPEND a", "APPEND a -1", "APPEND a 1 2", "append a 1", &long] {
            assert!(obey(line, &book).starts_with("ERR "), "{line}");
        }
    }

    #[tokio::test]
    async fn lines_are_bounded() {
        let mut endless: &[u8] = &[b'x'; 1000];
        assert!(read_line(&mut endless).await.is_err());
        let mut two: &[u8] = b"PING\r\nQUIT\n";
        assert_eq!(read_line(&mut two).await.unwrap().as_deref(), Some("PING"));
        assert_eq!(read_line(&mut two).await.unwrap().as_deref(), Some("QUIT"));
        assert_eq!(read_line(&mut two).await.unwrap(), None);
    }
}
