//! The authority a user means: what was left out is looked up.

use std::net::SocketAddr;

use mesh_api::ext;

use crate::commands::shared;
use crate::connect::Mesh;
use crate::error::{CliError, Kind};

/// The whole authority: what the user left out is looked up if there is just one choice.
pub(in crate::commands) async fn complete(
    text: &str,
    namespace: Option<&str>,
    mesh: &Mesh,
) -> Result<String, CliError> {
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let wanted = Wanted::parse(text, namespace)?;
    if let (Some(namespace), Some(port)) = (&wanted.namespace, wanted.port) {
        return Ok(format!("{}.{namespace}:{port}", wanted.name));
    }
    let selector = ext::Selector {
        kind: "service".to_owned(),
        name: wanted.name.clone(),
        namespace: wanted.namespace.clone().unwrap_or_default(),
        labels: String::new(),
    };
    let found = mesh.resources(selector.clone()).await?;
    let service = match found.as_slice() {
        [] => return Err(shared::no_such(mesh, &selector).await),
        [only] => only,
        several => {
            let names =
                several.iter().filter_map(|s| s.r#ref.as_ref()).map(|of| of.namespace.as_str());
            let namespaces: Vec<&str> = names.collect();
            let error = CliError::usage(format!(
                "service/{} is in several namespaces: {}",
                wanted.name,
                namespaces.join(", ")
            ));
            return Err(error.hint(format!("{}.{}", wanted.name, namespaces[0])));
        }
    };
    let namespace = service.r#ref.as_ref().map(|of| of.namespace.clone()).unwrap_or_default();
    let port = match (wanted.port, service.ports.as_slice()) {
        (Some(port), _) => u32::from(port),
        (None, [only]) => only.port,
        (None, ports) => {
            let ports: Vec<String> = ports.iter().map(|port| port.port.to_string()).collect();
            let error = CliError::usage(format!(
                "service/{} has the ports {}",
                wanted.name,
                ports.join(", ")
            ));
            return Err(error.hint(format!("{}.{namespace}:PORT", wanted.name)));
        }
    };
    Ok(format!("{}.{namespace}:{port}", wanted.name))
}

/// The control plane knows nothing of an authority: proposes the nearest service, or tells its ports.
pub(in crate::commands) async fn unknown(
    authority: &str,
    mesh: &Mesh,
    error: CliError,
) -> CliError {
    let Ok(Wanted { name, namespace, .. }) = Wanted::parse(authority, None) else { return error };
    let service = ext::Selector {
        kind: "service".to_owned(),
        name: name.clone(),
        namespace: namespace.unwrap_or_default(),
        labels: String::new(),
    };
    let error = shared::propose(mesh, [&service], error).await;
    if error.kind == Kind::Missing && error.hint.is_none() {
        return error.hint(format!("meshctl describe svc/{name}, which shows its ports"));
    }
    error
}

/// An authority as far as the user wrote it.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    name: String,
    namespace: Option<String>,
    port: Option<u16>,
}

impl Wanted {
    fn parse(text: &str, namespace: Option<&str>) -> Result<Self, CliError> {
        let malformed = || {
            CliError::usage(format!("\"{text}\" is not an authority"))
                .hint("write NAME.NAMESPACE:PORT, for example tax.shop:8080")
        };
        // `svc/tax` is how every other command writes it.
        let text =
            text.strip_prefix("svc/").or_else(|| text.strip_prefix("service/")).unwrap_or(text);
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| malformed())?)),
            None => (text, None),
        };
        let host = host.strip_suffix(".cluster.local").unwrap_or(host);
        let host = host.strip_suffix(".svc").unwrap_or(host);
        let (name, named) = match host.split_once('.') {
            Some((name, namespace)) => (name, Some(namespace)),
            None => (host, namespace),
        };
        let label = |text: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
            (1..=63).contains(&text.len()) && text.chars().all(plain)
        };
        if !label(name) || !named.is_none_or(label) {
            return Err(malformed());
        }
        Ok(Self { name: name.to_owned(), namespace: named.map(str::to_owned), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_read_as_far_as_they_go() {
        let read = |text| Wanted::parse(text, Some("dflt")).unwrap();
        let want = |namespace: &str, port| Wanted {
            name: "tax".into(),
            namespace: Some(namespace.into()),
            port,
        };
        assert_eq!(read("tax"), want("dflt", None));
        assert_eq!(read("svc/tax"), want("dflt", None));
        assert_eq!(read("tax.shop:80"), want("shop", Some(80)));
        assert_eq!(read("tax.shop.svc.cluster.local:80"), want("shop", Some(80)));
        for bad in ["", ":80", "tax:http", "tax.", "a/b", "tax.a.b:1"] {
            assert!(Wanted::parse(bad, None).is_err(), "{bad}");
        }
    }
}
