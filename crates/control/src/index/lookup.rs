//! What a target means: names as applications write them, cluster addresses, pod addresses.

use std::net::{IpAddr, SocketAddr};

use mesh_model::Target;

use super::object::Name;

/// The suffix of full service names after `.svc`.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// The port of an authority that names none.
const DEFAULT_PORT: u16 = 80;

/// A target in a form that can be looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Service { name: Name, port: u16 },
    Address(SocketAddr),
}

/// A target that is no `name:port` or `address:port`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{target}` is not an authority: {why}")]
pub struct InvalidTarget {
    pub target: String,
    pub why: &'static str,
}

/// Understands a target as a client in `namespace` means it.
///
/// # Errors
/// When the text is no authority. A name outside the mesh is an error of its own kind: `Ok(None)`.
pub fn understand(target: &Target, namespace: &str) -> Result<Option<Wanted>, InvalidTarget> {
    match target {
        Target::Addr(addr) => Ok(Some(Wanted::Address(canonical(*addr)))),
        Target::Authority(authority) => understand_authority(authority, namespace),
    }
}

/// As [`understand`], for the text of an authority.
///
/// # Errors
/// When the text is no authority.
pub fn understand_authority(
    authority: &str,
    namespace: &str,
) -> Result<Option<Wanted>, InvalidTarget> {
    let invalid = |why| InvalidTarget { target: authority.into(), why };
    if let Ok(addr) = authority.parse::<SocketAddr>() {
        return Ok(Some(Wanted::Address(canonical(addr))));
    }
    let bare = authority.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Ok(ip) = bare.unwrap_or(authority).parse::<IpAddr>() {
        return Ok(Some(Wanted::Address(canonical(SocketAddr::new(ip, DEFAULT_PORT)))));
    }
    let (host, port) = match authority.rsplit_once(':') {
        None => (authority, DEFAULT_PORT),
        Some((host, port)) => match port.parse::<u16>() {
            Ok(port) if port > 0 => (host, port),
            _ => return Err(invalid("its port is not a number from 1 to 65535")),
        },
    };
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if host.is_empty() || host.len() > 253 {
        return Err(invalid("its host is empty or longer than 253 characters"));
    }
    let well_formed = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if !host.split('.').all(well_formed) {
        return Err(invalid("its host is not a DNS name"));
    }
    Ok(service_name(&host, namespace).map(|name| Wanted::Service { name, port }))
}

/// `svc`, `svc.ns`, `svc.ns.svc`, `svc.ns.svc.cluster.local`
fn service_name(host: &str, namespace: &str) -> Option<Name> {
    let mut labels = host.split('.');
    let name = labels.next()?;
    let Some(of) = labels.next() else { return Some(Name::new(namespace, name)) };
    match labels.next() {
        None => {}
        Some("svc") => {
            let domain: Vec<&str> = labels.collect();
            if !domain.is_empty() && domain.join(".") != CLUSTER_DOMAIN {
                return None;
            }
        }
        Some(_) => return None,
    }
    Some(Name::new(of, name))
}

/// The `name:port` by which a balancer asks for a service's endpoints.
pub fn path(service: &Name, port: u16) -> String {
    format!("{}:{port}", full_name(service))
}

/// `tax.shop.svc.cluster.local`
pub fn full_name(service: &Name) -> String {
    format!("{}.{}.svc.{CLUSTER_DOMAIN}", service.name, service.namespace)
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(authority: &str) -> Option<(String, u16)> {
        match understand_authority(authority, "shop").unwrap()? {
            Wanted::Service { name, port } => Some((name.to_string(), port)),
            Wanted::Address(addr) => Some((addr.ip().to_string(), addr.port())),
        }
    }

    #[test]
    fn names_as_applications_write_them() {
        let cases = [
            ("tax", "shop/tax", 80),
            ("tax:8080", "shop/tax", 8080),
            ("Tax.Other:1", "other/tax", 1),
            ("tax.other.svc", "other/tax", 80),
            ("tax.other.svc.cluster.local:9", "other/tax", 9),
            ("tax.other.svc.cluster.local.:9", "other/tax", 9),
            ("10.0.0.1:9", "10.0.0.1", 9),
            ("10.0.0.1", "10.0.0.1", 80),
            ("[fd00::1]:9", "fd00::1", 9),
            ("[fd00::1]", "fd00::1", 80),
            ("[::ffff:10.0.0.1]:9", "10.0.0.1", 9),
        ];
        for (authority, name, port) in cases {
            assert_eq!(name_of(authority), Some((name.into(), port)), "{authority}");
        }
    }

    #[test]
    fn names_outside_the_mesh_are_nobody() {
        for authority in ["www.example.com", "tax.other.pod", "tax.other.svc.example.org"] {
            assert_eq!(name_of(authority), None, "{authority}");
        }
    }

    #[test]
    fn what_is_no_authority_is_refused() {
        for authority in
            ["", ":80", "tax:", "tax:0", "tax:65536", "tax:http", "a b", "a..b", "[::1"]
        {
            assert!(understand_authority(authority, "shop").is_err(), "{authority}");
        }
    }
}
