//! Reading a ClientHello without answering it, so that TLS can be terminated or passed through by its
//! server name.

use rustls::server::{Acceptor, ClientHello as RustlsHello};

/// First byte of a TLS handshake record.
pub const HANDSHAKE: u8 = 0x16;

/// What the first bytes of a connection say about TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientHello {
    /// The whole hello is there; `sni` is its server name.
    Complete {
        sni: Option<String>,
    },
    /// So far it could be one.
    Incomplete,
    NotTls,
}

/// Parses a ClientHello out of `bytes`, which begin a connection. Nothing is consumed.
pub fn client_hello(bytes: &[u8]) -> ClientHello {
    if bytes.first().is_some_and(|byte| *byte != HANDSHAKE)
        || bytes.get(1).is_some_and(|major| *major != 3)
    {
        return ClientHello::NotTls;
    }
    let mut acceptor = Acceptor::default();
    let mut unread = bytes;
    while !unread.is_empty() {
        if acceptor.read_tls(&mut unread).is_err() {
            return ClientHello::NotTls;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                return ClientHello::Complete { sni: sni(&accepted.client_hello()) };
            }
            Ok(None) => {}
            Err(_) => return ClientHello::NotTls,
        }
    }
    ClientHello::Incomplete
}

fn sni(hello: &RustlsHello<'_>) -> Option<String> {
    hello.server_name().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// A real hello, as rustls sends it.
    fn hello(server_name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = server_name.to_owned().try_into().unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_server_name_is_read_once_the_hello_is_whole() {
        let bytes = hello("tax.shop");
        assert!(bytes.len() > 1024, "a post-quantum hello is long");
        for cut in 1..bytes.len() {
            assert_eq!(client_hello(&bytes[..cut]), ClientHello::Incomplete, "at {cut}");
        }
        assert_eq!(client_hello(&bytes), ClientHello::Complete { sni: Some("tax.shop".into()) });
    }

    #[test]
    fn a_hello_without_a_name_has_none() {
        assert_eq!(client_hello(&hello("127.0.0.1")), ClientHello::Complete { sni: None });
    }

    #[test]
    fn other_bytes_are_not_tls() {
        assert_eq!(client_hello(b"GET / HTTP/1.1\r\n"), ClientHello::NotTls);
        assert_eq!(client_hello(b"\x16\x02"), ClientHello::NotTls);
        assert_eq!(client_hello(b"\x16\x03\x01\x00\x05\x02aaaa"), ClientHello::NotTls);
    }
}
