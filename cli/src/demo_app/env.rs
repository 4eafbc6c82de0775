//! What the platform tells a pod through its environment: where to listen, and how to reach others.
//!
//! The variables are the same in a cluster and in the local mesh. They are read once into an
//! [`Environment`], so that tests hand in their own. Next: `lifecycle.rs`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::uri::Authority;

/// A snapshot of the variables of one pod.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    vars: BTreeMap<String, String>,
}

/// Why a variable, or the flag it completes, can't be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvError {
    #[error("{name}={value:?} is not {expected}; correct it or unset it")]
    BadValue { name: String, value: String, expected: &'static str },
    #[error("{authority:?} names no port; write it as name:port")]
    NoPort { authority: String },
}

/// Everything wrong with a pod's environment, so that it is corrected in one go.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{}", lines(.all))]
pub struct EnvErrors {
    all: Vec<EnvError>,
}

/// Where to connect for a service, and what to call it there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Upstream {
    /// The service as clients name it, `shipping:7000`: the `:authority` of requests.
    pub authority: Authority,
    /// `host:port` to open the connection to; the host may be a name or an address.
    pub connect: String,
}

impl Environment {
    /// The variables of this process. A variable that is not UTF-8 counts as unset.
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// `$POD_IP` (default 0.0.0.0) with `$PORT`, or `$PORT_<NAME>` for a further named port.
    pub(super) fn listen(
        &self,
        name: Option<&str>,
        default_port: u16,
    ) -> Result<SocketAddr, EnvErrors> {
        let variable = match name {
            None => "PORT".to_owned(),
            Some(name) => format!("PORT_{}", in_variable(name)),
        };
        let (ip, port) = both(
            self.parse("POD_IP", "an IP address"),
            self.parse(&variable, "a port number from 0 to 65535"),
        )?;
        Ok(SocketAddr::new(
            ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            port.unwrap_or(default_port),
        ))
    }

    /// The forward proxy for HTTP/1 calls, if there is one: `host:port` or `http://host:port/`.
    pub(super) fn http_proxy(&self) -> Result<Option<Authority>, EnvError> {
        let Some((name, value)) =
            ["HTTP_PROXY", "http_proxy"].into_iter().find_map(|name| Some((name, self.get(name)?)))
        else {
            return Ok(None);
        };
        let bad = || EnvError::BadValue {
            name: name.to_owned(),
            value: value.to_owned(),
            expected: "the address of an HTTP proxy, like http://127.0.0.1:4140",
        };
        let address = value.strip_prefix("http://").unwrap_or(value);
        let address = address.strip_suffix('/').unwrap_or(address);
        let authority: Authority = address.parse().map_err(|_| bad())?;
        if authority.port_u16().is_none() {
            return Err(bad());
        }
        Ok(Some(authority))
    }

    /// Where a service that is not spoken to in HTTP/1 is reached.
    ///
    /// `<SVC>_SERVICE_HOST` with `<SVC>_SERVICE_PORT_<PORTNAME>`, else `<SVC>_SERVICE_PORT`, else the
    /// authority's own port; without the host variable, the authority by DNS.
    pub(super) fn upstream(
        &self,
        authority: &Authority,
        port_name: &str,
    ) -> Result<Upstream, EnvError> {
        let own_port = authority
            .port_u16()
            .ok_or_else(|| EnvError::NoPort { authority: authority.to_string() })?;
        let direct = || Upstream { authority: authority.clone(), connect: authority.to_string() };

        let host = authority.host();
        if host.starts_with('[') || host.parse::<IpAddr>().is_ok() {
            return Ok(direct());
        }
        let service = in_variable(host.split('.').next().unwrap_or(host));
        let Some(host) = self.get(&format!("{service}_SERVICE_HOST")) else {
            return Ok(direct());
        };
        let by_name = format!("{service}_SERVICE_PORT_{}", in_variable(port_name));
        let mut port = None;
        for variable in [by_name, format!("{service}_SERVICE_PORT")] {
            let given: Option<u16> = self.parse(&variable, "a port number from 0 to 65535")?;
            port = port.or(given);
        }
        let port = port.unwrap_or(own_port);
        let connect = match host.parse::<IpAddr>() {
            Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
            _ => format!("{host}:{port}"),
        };
        Ok(Upstream { authority: authority.clone(), connect })
    }

    /// The name this pod shows in its answers: its host name, else `local`.
    pub(super) fn pod_name(&self) -> String {
        self.get("POD_NAME").or_else(|| self.get("HOSTNAME")).unwrap_or("local").to_owned()
    }

    /// An empty variable counts as unset, as everywhere in Kubernetes.
    fn get(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn parse<T: std::str::FromStr>(
        &self,
        name: &str,
        expected: &'static str,
    ) -> Result<Option<T>, EnvError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        value.parse().map(Some).map_err(|_| EnvError::BadValue {
            name: name.to_owned(),
            value: value.to_owned(),
            expected,
        })
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(vars: I) -> Self {
        Self { vars: vars.into_iter().collect() }
    }
}

impl From<EnvError> for EnvErrors {
    fn from(error: EnvError) -> Self {
        Self { all: vec![error] }
    }
}

/// Both values, or the errors of both.
pub(super) fn both<A, B>(
    a: Result<A, impl Into<EnvErrors>>,
    b: Result<B, impl Into<EnvErrors>>,
) -> Result<(A, B), EnvErrors> {
    match (a.map_err(Into::into), b.map_err(Into::into)) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(mut a), Err(b)) => {
            a.all.extend(b.all);
            Err(a)
        }
        (Err(errors), Ok(_)) | (Ok(_), Err(errors)) => Err(errors),
    }
}

fn lines(errors: &[EnvError]) -> String {
    errors.iter().map(EnvError::to_string).collect::<Vec<_>>().join("\n")
}

/// How Kubernetes spells a service or port name inside a variable's name.
fn in_variable(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(vars: &[(&str, &str)]) -> Environment {
        vars.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    fn authority(text: &str) -> Authority {
        text.parse().unwrap()
    }

    fn connect(vars: &[(&str, &str)], to: &str) -> String {
        env(vars).upstream(&authority(to), "grpc").unwrap().connect
    }

    #[test]
    fn listens_everywhere_on_the_flags_port_by_default() {
        assert_eq!(env(&[]).listen(None, 8080), Ok("0.0.0.0:8080".parse().unwrap()));
        assert_eq!(env(&[("PORT", "")]).listen(None, 8080), Ok("0.0.0.0:8080".parse().unwrap()));
    }

    #[test]
    fn pod_ip_and_ports_win_over_flags() {
        let env = env(&[("POD_IP", "127.0.3.1"), ("PORT", "81"), ("PORT_GRPC_WEB", "71")]);
        assert_eq!(env.listen(None, 8080), Ok("127.0.3.1:81".parse().unwrap()));
        assert_eq!(env.listen(Some("grpc-web"), 7000), Ok("127.0.3.1:71".parse().unwrap()));
        assert_eq!(env.listen(Some("other"), 7000), Ok("127.0.3.1:7000".parse().unwrap()));
    }

    #[test]
    fn a_bad_value_is_an_error_that_names_the_variable() {
        let error = env(&[("PORT", "eighty")]).listen(None, 8080).unwrap_err().to_string();
        assert!(error.starts_with("PORT=\"eighty\" is not a port number"), "{error}");
        assert!(env(&[("POD_IP", "here")]).listen(None, 8080).is_err());
        assert!(env(&[("PORT", "70000")]).listen(None, 8080).is_err());
    }

    #[test]
    fn all_errors_are_reported_together() {
        let env = env(&[("PORT", "x"), ("POD_IP", "here"), ("HTTP_PROXY", "y z")]);
        let error = both(env.listen(None, 1), env.http_proxy()).unwrap_err().to_string();
        let named: Vec<&str> = error.lines().filter_map(|line| line.split('=').next()).collect();
        assert_eq!(named, ["POD_IP", "PORT", "HTTP_PROXY"], "{error}");
    }

    #[test]
    fn the_proxy_is_read_in_either_spelling() {
        let proxy = |vars: &[_]| env(vars).http_proxy().unwrap();
        let expected = Some(authority("127.0.0.1:4140"));
        assert_eq!(proxy(&[("HTTP_PROXY", "http://127.0.0.1:4140")]), expected);
        assert_eq!(proxy(&[("http_proxy", "127.0.0.1:4140/")]), expected);
        assert_eq!(proxy(&[("HTTP_PROXY", ""), ("http_proxy", "127.0.0.1:4140")]), expected);
        assert_eq!(proxy(&[]), None);
        for bad in ["https://127.0.0.1:4140", "http://127.0.0.1", "http://a b:1"] {
            assert!(env(&[("HTTP_PROXY", bad)]).http_proxy().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_upstream_without_variables_is_reached_by_name() {
        let found = env(&[]).upstream(&authority("shipping:7000"), "grpc").unwrap();
        assert_eq!(found.connect, "shipping:7000");
        assert_eq!(found.authority, "shipping:7000");
    }

    #[test]
    fn service_variables_say_where_but_not_what() {
        let vars = [("SHIPPING_SERVICE_HOST", "127.0.0.9"), ("SHIPPING_SERVICE_PORT", "4001")];
        let found = env(&vars).upstream(&authority("shipping:7000"), "grpc").unwrap();
        assert_eq!(found.connect, "127.0.0.9:4001");
        assert_eq!(found.authority, "shipping:7000");
        assert_eq!(connect(&vars, "shipping.shop.svc.cluster.local:7000"), "127.0.0.9:4001");
        assert_eq!(connect(&vars, "other:7000"), "other:7000");
    }

    #[test]
    fn the_named_port_wins_then_the_first_then_the_authoritys() {
        let host = ("TAX_API_SERVICE_HOST", "10.0.0.1");
        let named = ("TAX_API_SERVICE_PORT_GRPC", "2");
        let first = ("TAX_API_SERVICE_PORT", "1");
        assert_eq!(connect(&[host, first, named], "tax-api:9"), "10.0.0.1:2");
        assert_eq!(connect(&[host, first], "tax-api:9"), "10.0.0.1:1");
        assert_eq!(connect(&[host], "tax-api:9"), "10.0.0.1:9");
        assert_eq!(connect(&[first, named], "tax-api:9"), "tax-api:9");
    }

    #[test]
    fn addresses_are_taken_as_they_are() {
        let vars = [("127_SERVICE_HOST", "10.0.0.1"), ("TAX_SERVICE_HOST", "::1")];
        assert_eq!(connect(&vars, "127.0.0.1:9"), "127.0.0.1:9");
        assert_eq!(connect(&vars, "[::1]:9"), "[::1]:9");
        assert_eq!(connect(&vars, "tax:9"), "[::1]:9");
        let error = env(&[]).upstream(&authority("tax"), "grpc").unwrap_err();
        assert_eq!(error, EnvError::NoPort { authority: "tax".to_owned() });
    }
}
