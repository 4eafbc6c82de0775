//! A TCP connection on which a test writes bytes, and reads bytes or HTTP/1 responses.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::wait::within;

/// A response, wholly read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// The digit after `HTTP/1.`.
    pub minor_version: u8,
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Response {
    /// The only header of this name.
    ///
    /// # Panics
    /// When there are several.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let value = found.next();
        assert_eq!(found.next(), None, "a second header {name} in {self:?}");
        value
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What came was no response.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("closed after {0:?}")]
    Closed(String),
    #[error("not HTTP/1: {0:?}")]
    Malformed(String),
}

/// A connection of a test. Everything it does ends within [`crate::wait::PATIENCE`].
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

/// How the end of a body is told.
enum Framing {
    Length(usize),
    Chunked,
    Close,
}

const MAX_HEADERS: usize = 256;

impl Connection {
    /// # Panics
    /// When nobody accepts; likewise for all that do not return a `Result`.
    pub async fn open(addr: SocketAddr) -> Self {
        Self::try_open(addr).await.unwrap_or_else(|error| panic!("connecting to {addr}: {error}"))
    }

    pub async fn try_open(addr: SocketAddr) -> io::Result<Self> {
        let stream = within("connecting", TcpStream::connect(addr)).await?;
        stream.set_nodelay(true)?;
        Ok(Self::from(stream))
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("the connection takes bytes");
    }

    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        within("sending", self.stream.write_all(bytes.as_ref())).await
    }

    /// Sends anything, until no more of it is taken.
    pub async fn send_what_is_taken(&mut self) {
        let part = vec![b'x'; 64 * 1024];
        let mut write = async || self.stream.write(&part).await;
        while let Ok(written) = timeout(Duration::from_millis(200), write()).await {
            assert!(written.expect("an open connection") > 0);
        }
    }

    /// Sends no more; still reads.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.expect("an open connection");
    }

    /// Exactly so many bytes.
    pub async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            let read = self.fill().await.expect("an open connection");
            assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&self.read));
        }
        self.read.drain(..count).collect()
    }

    /// All bytes until the other side ends; a reset is an end, too.
    pub async fn rest(&mut self) -> Vec<u8> {
        while matches!(self.fill().await, Ok(1..)) {}
        std::mem::take(&mut self.read)
    }

    /// Whether the other side is known to have ended the connection. Looks at what has arrived only.
    pub fn is_closed(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return true,
                Ok(read) => self.read.extend_from_slice(&buffer[..read]),
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }

    /// The next response, to any request but `HEAD`. Interim ones count.
    pub async fn response(&mut self) -> Response {
        self.try_response().await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The next response, to a `HEAD`: it has no body, whatever its headers say.
    pub async fn response_to_head(&mut self) -> Response {
        self.head().await.unwrap_or_else(|error| panic!("{error}"))
    }

    pub async fn try_response(&mut self) -> Result<Response, Broken> {
        let mut response = self.head().await?;
        match framing(&response).map_err(Broken::Malformed)? {
            Framing::Length(length) => {
                while self.read.len() < length {
                    self.fill_some().await?;
                }
                response.body = self.read.drain(..length).collect();
            }
            Framing::Chunked => {
                while let chunk @ 1.. = self.chunk_size().await? {
                    while self.read.len() < chunk + 2 {
                        self.fill_some().await?;
                    }
                    response.body.extend(self.read.drain(..chunk));
                    self.expect_line_end()?;
                }
                response.trailers = self.trailers().await?;
            }
            Framing::Close => {
                while within("a body", self.fill()).await? > 0 {}
                response.body = std::mem::take(&mut self.read);
            }
        }
        Ok(response)
    }

    /// The next response, which may come while a body of this many bytes is on its way.
    pub async fn response_while_sending(&mut self, length: usize) -> Response {
        let (read, mut write) = self.stream.split();
        let part = vec![b'b'; 64 * 1024];
        let sending = async {
            let mut left = length;
            while left > 0 {
                let count = left.min(part.len());
                // A server that has answered may close without reading the rest.
                if write.write_all(&part[..count]).await.is_err() {
                    break;
                }
                left -= count;
            }
            std::future::pending::<()>().await;
        };
        let arrived = async { within("an early response", read.readable()).await };
        tokio::select! {
            () = sending => unreachable!("it never ends"),
            readable = arrived => readable.expect("an open connection"),
        }
        self.response().await
    }

    /// Takes the answer to CONNECT and leaves HTTP.
    pub async fn tunnel(mut self) -> TcpStream {
        let response = self.response_to_head().await;
        assert_eq!(response.status, 200, "{response:?}");
        assert!(self.read.is_empty(), "bytes before the tunnel was used: {:?}", self.read);
        self.stream
    }

    async fn head(&mut self) -> Result<Response, Broken> {
        loop {
            let parsed = parse_head(&self.read).map_err(|e| self.malformed(&e.to_string()))?;
            if let Some((length, response)) = parsed {
                self.read.drain(..length);
                return Ok(response);
            }
            self.fill_some().await?;
        }
    }

    async fn chunk_size(&mut self) -> Result<usize, Broken> {
        loop {
            match httparse::parse_chunk_size(&self.read) {
                Ok(httparse::Status::Complete((length, size))) => {
                    self.read.drain(..length);
                    return usize::try_from(size).map_err(|_| self.malformed("chunk size"));
                }
                Ok(httparse::Status::Partial) => self.fill_some().await?,
                Err(_) => return Err(self.malformed("chunk size")),
            }
        }
    }

    fn expect_line_end(&mut self) -> Result<(), Broken> {
        match self.read.starts_with(b"\r\n") {
            true => drop(self.read.drain(..2)),
            false => return Err(self.malformed("end of chunk")),
        }
        Ok(())
    }

    async fn trailers(&mut self) -> Result<Vec<(String, String)>, Broken> {
        loop {
            let parsed = parse_trailers(&self.read).map_err(|e| self.malformed(&e.to_string()))?;
            if let Some((length, trailers)) = parsed {
                self.read.drain(..length);
                return Ok(trailers);
            }
            self.fill_some().await?;
        }
    }

    fn malformed(&self, what: &str) -> Broken {
        let start = &self.read[..self.read.len().min(200)];
        Broken::Malformed(format!("{what} in {:?}", String::from_utf8_lossy(start)))
    }

    async fn fill_some(&mut self) -> Result<(), Broken> {
        match self.fill().await? {
            0 => Err(Broken::Closed(String::from_utf8_lossy(&self.read).into_owned())),
            _ => Ok(()),
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.read.reserve(16 * 1024);
        within("an answer", self.stream.read_buf(&mut self.read)).await
    }
}

impl From<TcpStream> for Connection {
    fn from(stream: TcpStream) -> Self {
        Self { stream, read: Vec::new() }
    }
}

fn parse_head(bytes: &[u8]) -> Result<Option<(usize, Response)>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = parsed.parse(bytes)? else { return Ok(None) };
    let response = Response {
        minor_version: parsed.version.unwrap_or_default(),
        status: parsed.code.unwrap_or_default(),
        headers: pairs(parsed.headers),
        ..Response::default()
    };
    Ok(Some((length, response)))
}

type Pairs = Vec<(String, String)>;

fn parse_trailers(bytes: &[u8]) -> Result<Option<(usize, Pairs)>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    match httparse::parse_headers(bytes, &mut headers)? {
        httparse::Status::Complete((length, trailers)) => Ok(Some((length, pairs(trailers)))),
        httparse::Status::Partial => Ok(None),
    }
}

fn framing(response: &Response) -> Result<Framing, String> {
    if response.status < 200 || matches!(response.status, 204 | 304) {
        return Ok(Framing::Length(0));
    }
    let all = |name| {
        let values = response.headers.iter().filter(move |(n, _)| n == name);
        values.map(|(_, value)| value.as_str()).collect::<Vec<_>>()
    };
    match (all("transfer-encoding").as_slice(), all("content-length").as_slice()) {
        (["chunked"], []) => Ok(Framing::Chunked),
        ([], [length]) => length.parse().map(Framing::Length).map_err(|e| e.to_string()),
        ([], []) => Ok(Framing::Close),
        ambiguous => Err(format!("ambiguous framing {ambiguous:?}")),
    }
}

fn pairs(headers: &[httparse::Header<'_>]) -> Pairs {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    headers.iter().map(|h| (h.name.to_ascii_lowercase(), text(h.value))).collect()
}
