//! The header that says which port a connection to the direct port is for.
//!
//! After the TLS handshake with [`TRANSPORT_ALPN`]: a preface, a length of four bytes, and a protobuf
//! message `Header { int32 port = 1; string name = 2; SessionProtocol session_protocol = 3 }`. Three
//! fields do not need a code generator.

use tokio::io::{AsyncRead, AsyncReadExt};

/// The protocol that the two proxies agree on in the handshake.
pub const TRANSPORT_ALPN: &[u8] = b"transport.l5d.io/v1";
const PREFACE: &[u8] = b"transport.l5d.io/v1\r\n\r\n";
/// Longest message that is read, in bytes. A name has at most 255.
pub const MAX_TRANSPORT_HEADER: usize = 512;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportHeader {
    /// The port of the application; never 0.
    pub port: u16,
    /// The name that the client resolved, `host` or `host:port`; may be empty.
    pub name: String,
    /// `None`: bytes.
    pub protocol: Option<SessionProtocol>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionProtocol {
    Http1,
    Http2,
}

/// What came is no transport header.
#[derive(Debug, thiserror::Error)]
pub enum TransportHeaderError {
    #[error("reading the transport header: {0}")]
    Io(#[from] std::io::Error),
    #[error("the connection does not begin with a transport header")]
    Preface,
    #[error("the transport header has {0} bytes, more than {MAX_TRANSPORT_HEADER}")]
    TooLong(usize),
    #[error("the transport header is malformed: {0}")]
    Malformed(&'static str),
}

use TransportHeaderError::Malformed;

impl TransportHeader {
    /// The whole header, preface included.
    pub fn encode(&self) -> Vec<u8> {
        let mut message = vec![tag(1, VARINT)];
        put_varint(&mut message, u64::from(self.port));
        if !self.name.is_empty() {
            let name = &self.name.as_bytes()[..self.name.floor_char_boundary(255)];
            message.push(tag(2, BYTES));
            put_varint(&mut message, name.len() as u64);
            message.extend_from_slice(name);
        }
        if let Some(protocol) = self.protocol {
            // A message with one empty message per protocol.
            let field = match protocol {
                SessionProtocol::Http1 => 1,
                SessionProtocol::Http2 => 2,
            };
            message.extend_from_slice(&[tag(3, BYTES), 2, tag(field, BYTES), 0]);
        }
        let length = u32::try_from(message.len()).expect("a header is short");
        [PREFACE, &length.to_be_bytes(), &message].concat()
    }

    /// Reads a header from the beginning of a connection, and no byte beyond it.
    ///
    /// # Errors
    /// When there is none.
    pub async fn read(io: &mut (impl AsyncRead + Unpin)) -> Result<Self, TransportHeaderError> {
        let mut start = [0; PREFACE.len() + 4];
        io.read_exact(&mut start).await?;
        let (preface, length) = start.split_at(PREFACE.len());
        if preface != PREFACE {
            return Err(TransportHeaderError::Preface);
        }
        let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        if length > MAX_TRANSPORT_HEADER {
            return Err(TransportHeaderError::TooLong(length));
        }
        let mut message = vec![0; length];
        io.read_exact(&mut message).await?;
        Self::decode(&message)
    }

    /// Reads the message without its preface and length.
    ///
    /// # Errors
    /// When it is malformed or names no port.
    pub fn decode(mut message: &[u8]) -> Result<Self, TransportHeaderError> {
        let (mut port, mut name, mut protocol) = (0, String::new(), None);
        while !message.is_empty() {
            let key = varint(&mut message)?;
            match (key >> 3, key & 7) {
                (1, VARINT) => {
                    let value = varint(&mut message)?;
                    port = u16::try_from(value).map_err(|_| Malformed("the port is none"))?;
                }
                (2, BYTES) => {
                    let text = std::str::from_utf8(bytes(&mut message)?);
                    name = text.map_err(|_| Malformed("the name is not UTF-8"))?.to_owned();
                }
                (3, BYTES) => protocol = session_protocol(bytes(&mut message)?)?,
                (_, wire) => skip(&mut message, wire)?,
            }
        }
        match port {
            0 => Err(Malformed("it names no port")),
            port => Ok(Self { port, name, protocol }),
        }
    }
}

fn session_protocol(mut message: &[u8]) -> Result<Option<SessionProtocol>, TransportHeaderError> {
    let mut protocol = None;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match (key >> 3, key & 7) {
            (1, BYTES) => {
                bytes(&mut message)?;
                protocol = Some(SessionProtocol::Http1);
            }
            (2, BYTES) => {
                bytes(&mut message)?;
                protocol = Some(SessionProtocol::Http2);
            }
            (_, wire) => skip(&mut message, wire)?,
        }
    }
    Ok(protocol)
}

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

fn tag(field: u8, wire: u64) -> u8 {
    field << 3 | wire as u8
}

fn put_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn varint(from: &mut &[u8]) -> Result<u64, TransportHeaderError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let [byte] = *take(from, 1)? else { return Err(Malformed("it is cut short")) };
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed("a number is too long"))
}

fn bytes<'a>(from: &mut &'a [u8]) -> Result<&'a [u8], TransportHeaderError> {
    let length = usize::try_from(varint(from)?).unwrap_or(usize::MAX);
    take(from, length)
}

fn take<'a>(from: &mut &'a [u8], count: usize) -> Result<&'a [u8], TransportHeaderError> {
    let (taken, rest) = from.split_at_checked(count).ok_or(Malformed("it is cut short"))?;
    *from = rest;
    Ok(taken)
}

fn skip(from: &mut &[u8], wire: u64) -> Result<(), TransportHeaderError> {
    match wire {
        VARINT => varint(from).map(drop),
        FIXED64 => take(from, 8).map(drop),
        BYTES => bytes(from).map(drop),
        FIXED32 => take(from, 4).map(drop),
        _ => Err(Malformed("a field has no known type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> impl Strategy<Value = TransportHeader> {
        let protocol = prop_oneof![
            Just(None),
            Just(Some(SessionProtocol::Http1)),
            Just(Some(SessionProtocol::Http2)),
        ];
        (1..=u16::MAX, "[a-z.]{0,40}", protocol)
            .prop_map(|(port, name, protocol)| TransportHeader { port, name, protocol })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(header in header(), rest in any::<[u8; 3]>()) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let bytes = [header.encode(), rest.to_vec()].concat();
            let mut reader = bytes.as_slice();
            let read = runtime.block_on(TransportHeader::read(&mut reader)).unwrap();
            prop_assert_eq!(read, header);
            prop_assert_eq!(reader, &rest, "nothing beyond it");
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = TransportHeader::decode(&bytes);
        }
    }

    #[test]
    fn the_form_is_that_of_the_proxy_api() {
        let header = TransportHeader {
            port: 4444,
            name: "db".into(),
            protocol: Some(SessionProtocol::Http2),
        };
        let message = b"\x08\xdc\x22\x12\x02db\x1a\x02\x12\x00";
        let expected = [PREFACE, &[0, 0, 0, 11], message].concat();
        assert_eq!(header.encode(), expected);
    }

    #[test]
    fn what_names_no_port_is_refused() {
        for message in [&b""[..], b"\x08\x00", b"\x08\xff\xff\xff\x7f", b"\x08", b"\x12\x05ab"] {
            assert!(TransportHeader::decode(message).is_err(), "{message:?}");
        }
    }
}
