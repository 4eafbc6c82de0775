//! What hostile peers can send, each given to what reads it. The fuzzers call these with what they think
//! of, and a test calls them with what they found (`corpus/`).

#![allow(dead_code, reason = "each fuzzer calls one of them")]

use std::sync::LazyLock;
use std::time::Duration;

use mesh_api::Wire;
use mesh_control::identity::tokens::Token;
use mesh_model::OutboundPolicy;
use mesh_model::inbound::{PortExtension, ServerPolicy};
use mesh_tls::{ClientHello, Id, Issuer, Root, TransportHeader, client_hello as peek};
use prost::Message;

const HOUR: Duration = Duration::from_secs(60 * 60);

static ISSUER: LazyLock<Issuer> = LazyLock::new(|| {
    let root = Root::generate("fuzz", 48 * HOUR, 24 * HOUR).expect("a root");
    Issuer::from_pem(&root.issuer, &root.issuer_key).expect("its issuer")
});

/// A request to be certified: what is granted is for the one identity asked for.
pub(crate) fn certificate_request(input: &[u8]) {
    let id = "web.shop.serviceaccount.identity.mesh-system.cluster.local";
    let id: Id = id.parse().expect("an identity");
    if let Ok(issued) = ISSUER.certify(input, &id, HOUR) {
        let leaf = mesh_tls::Certificate::read(&issued.leaf).expect("what we issued");
        assert_eq!(leaf.id(), Some(id.as_str()));
    }
}

/// The first bytes of a connection: more of them never make another answer of a complete one.
pub(crate) fn client_hello(input: &[u8]) {
    let whole = peek(input);
    for cut in [input.len() / 2, input.len().saturating_sub(1)] {
        let part = peek(&input[..cut]);
        assert!(part == whole || part == ClientHello::Incomplete, "{part:?} became {whole:?}");
    }
}

/// What follows a handshake on the direct port: read, it is written as it was understood.
pub(crate) fn transport_header(input: &[u8]) {
    const BEFORE_THE_MESSAGE: usize = "transport.l5d.io/v1\r\n\r\n".len() + 4;
    // Longer names are cut when they are written.
    if let Ok(header) = TransportHeader::decode(input)
        && header.name.len() <= 255
    {
        let written = header.encode();
        let read = TransportHeader::decode(&written[BEFORE_THE_MESSAGE..]);
        assert_eq!(read.ok(), Some(header));
    }
}

/// What a proxy proves itself by in the local mesh.
pub(crate) fn token(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        Token::parse(text);
    }
}

pub(crate) fn server_policy(input: &[u8]) {
    survives::<ServerPolicy>(input);
}

pub(crate) fn port_authorization(input: &[u8]) {
    survives::<PortExtension>(input);
}

pub(crate) fn outbound_policy(input: &[u8]) {
    survives::<OutboundPolicy>(input);
}

/// Reads a message, and writes what could be read.
fn survives<T: Wire>(input: &[u8])
where
    T::Proto: Message + Default,
{
    if let Ok(Ok(value)) = T::Proto::decode(input).map(T::from_proto) {
        // What one side means, the other may have no words for.
        let _ = value.encode();
    }
}
