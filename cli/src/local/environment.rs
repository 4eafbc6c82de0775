//! The environment of a pod's processes: what the application and its proxy are told.
//!
//! Pure functions of a [`Wiring`]. In explicit mode a service is a port of the pod's own proxy; in
//! transparent mode it is its cluster address, as in Kubernetes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::address::{
    Mode, PROXY_ADMIN_PORT, PROXY_CONTROL_PORT, PROXY_INBOUND_PORT, PROXY_OUTBOUND_PORT,
    UPSTREAM_PORT,
};
use super::identity::PodIdentity;
use super::workload::{Container, EnvValue, Template};

/// Services beyond this get no variables and no port of the proxy.
const MAX_UPSTREAMS: usize = 500;

/// Variables longer than this after expansion are cut off there.
const MAX_VALUE: usize = 64 * 1024;

/// Settings of the proxies that are taken from the environment of whoever starts the mesh.
pub const PROXY_PASSED_ON: [&str; 7] = [
    "MESH_PROXY_LOG",
    "MESH_PROXY_LOG_FORMAT",
    "MESH_PROXY_ACCESS_LOG",
    "MESH_PROXY_OTLP_ENDPOINT",
    "MESH_PROXY_TRACE_SAMPLE",
    "MESH_PROXY_SHUTDOWN_GRACE",
    GATEWAY_LISTEN,
];

/// Where the gateway listens; no other proxy knows the setting.
const GATEWAY_LISTEN: &str = "MESH_PROXY_GATEWAY_LISTEN";

/// What a proxy gets of that environment.
pub fn passed_on(environment: &[(String, String)], gateway: bool) -> Vec<(String, String)> {
    let mut passed = environment.to_vec();
    if !gateway {
        passed.retain(|(name, _)| name != GATEWAY_LISTEN);
    } else if passed.iter().all(|(name, _)| name != GATEWAY_LISTEN) {
        // Strangers are kept out of what runs on a developer's machine.
        passed.push((GATEWAY_LISTEN.to_owned(), Ipv4Addr::LOCALHOST.to_string()));
    }
    passed
}

/// Streams of one HTTP/2 connection to the gateway: fewer than among proxies, whose clients are known.
const GATEWAY_STREAMS: u32 = 250;

/// How one pod is connected.
#[derive(Clone, Debug, PartialEq)]
pub struct Wiring {
    pub mode: Mode,
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub ip: Ipv4Addr,
    pub control: SocketAddr,
    /// Who it is; `None` in a mesh without identity.
    pub identity: Option<PodIdentity>,
    pub ports: Vec<PortMap>,
    pub upstreams: Vec<Upstream>,
    pub template: Template,
}

/// A declared port and where the application really listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMap {
    /// Index of the container.
    pub container: usize,
    pub name: Option<String>,
    pub declared: u16,
    pub app: u16,
}

/// A port of a service, and where this pod reaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub service: ServicePort,
    /// Where the application connects to.
    pub at: SocketAddr,
}

/// A TCP port of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    pub namespace: String,
    pub service: String,
    pub port: u16,
    pub name: Option<String>,
}

impl ServicePort {
    /// `shipping.shop.svc.cluster.local:7000`
    pub fn authority(&self) -> String {
        format!("{}.{}.svc.cluster.local:{}", self.service, self.namespace, self.port)
    }
}

/// Where a pod in `namespace` reaches its services. `cluster_ips` is by service name.
pub fn upstreams(
    mode: Mode,
    namespace: &str,
    ip: Ipv4Addr,
    services: &[ServicePort],
    cluster_ips: &BTreeMap<(String, String), IpAddr>,
) -> Vec<Upstream> {
    let own = services.iter().filter(|service| service.namespace == namespace);
    let found = own.take(MAX_UPSTREAMS).zip(UPSTREAM_PORT..).filter_map(|(service, port)| {
        let at = match mode {
            Mode::Explicit => SocketAddr::new(ip.into(), port),
            Mode::Transparent => {
                let key = (service.namespace.clone(), service.service.clone());
                SocketAddr::new(*cluster_ips.get(&key)?, service.port)
            }
        };
        Some(Upstream { service: service.clone(), at })
    });
    found.collect()
}

/// The proxy's environment, whole: it inherits nothing.
pub fn of_proxy(wiring: &Wiring) -> Vec<(String, String)> {
    let ip = wiring.ip;
    let on_pod = |port: u16| format!("{ip}:{port}");
    let mut vars = vec![
        ("POD_NAMESPACE", wiring.namespace.clone()),
        ("POD_NAME", wiring.pod.clone()),
        ("CONTROL_ADDR", wiring.control.to_string()),
        ("CONTROL_LISTEN", on_pod(PROXY_CONTROL_PORT)),
        ("ADMIN_ADDR", on_pod(PROXY_ADMIN_PORT)),
    ];
    if let Some(identity) = &wiring.identity {
        vars.extend([
            ("IDENTITY_NAME", identity.id.clone()),
            ("IDENTITY_TOKEN_FILE", identity.token_file.display().to_string()),
            ("IDENTITY_TRUST_BUNDLE_FILE", identity.roots_file.display().to_string()),
        ]);
    }
    if wiring.template.gateway {
        vars.push(("GATEWAY", "enabled".to_owned()));
        vars.push(("MAX_CONCURRENT_STREAMS", GATEWAY_STREAMS.to_string()));
    }
    match wiring.mode {
        Mode::Explicit => {
            let inbound = wiring.ports.iter().map(|port| {
                format!("{ip}:{}={ip}:{}|127.0.0.1:{}", port.declared, port.app, port.app)
            });
            let upstreams = wiring.upstreams.iter();
            let upstreams = upstreams.map(|u| format!("{}={}", u.at, u.service.authority()));
            vars.extend([
                ("OUTBOUND_ADDR", on_pod(PROXY_OUTBOUND_PORT)),
                ("INBOUND_ADDR", on_pod(PROXY_INBOUND_PORT)),
                ("INBOUND_PORTS", inbound.collect::<Vec<_>>().join(",")),
                ("OUTBOUND_UPSTREAMS", upstreams.collect::<Vec<_>>().join(",")),
                ("BIND_IP", ip.to_string()),
            ]);
        }
        Mode::Transparent => vars.extend([
            // Where the redirect leads each family.
            (
                "OUTBOUND_ADDR",
                format!("127.0.0.1:{PROXY_OUTBOUND_PORT},[::1]:{PROXY_OUTBOUND_PORT}"),
            ),
            ("INBOUND_ADDR", format!("[::]:{PROXY_INBOUND_PORT}")),
        ]),
    }
    vars.into_iter().map(|(name, value)| (format!("MESH_PROXY_{name}"), value)).collect()
}

/// What a container's process gets on top of the environment of whoever started the mesh.
///
/// Later entries win. The manifest's own variables come last, with `$(NAME)` expanded.
pub fn of_container(wiring: &Wiring, index: usize, container: &Container) -> Vars {
    let mut vars = Vars::default();
    vars.set("POD_IP", wiring.ip.to_string());
    vars.set("POD_NAME", wiring.pod.clone());
    vars.set("POD_NAMESPACE", wiring.namespace.clone());
    vars.set("HOSTNAME", wiring.pod.clone());
    let ports = wiring.ports.iter().filter(|port| port.container == index);
    for (position, port) in ports.enumerate() {
        if position == 0 {
            vars.set("PORT", port.app.to_string());
        }
        if let Some(name) = &port.name {
            vars.set(&format!("PORT_{}", in_variable(name)), port.app.to_string());
        }
    }
    if wiring.mode == Mode::Explicit && wiring.template.meshed {
        let proxy = format!("http://{}:{PROXY_OUTBOUND_PORT}", wiring.ip);
        vars.set("HTTP_PROXY", proxy.clone());
        vars.set("http_proxy", proxy);
        vars.set("NO_PROXY", String::new());
        vars.set("no_proxy", String::new());
    }
    for upstream in &wiring.upstreams {
        let prefix = format!("{}_SERVICE", in_variable(&upstream.service.service));
        vars.set_new(&format!("{prefix}_HOST"), upstream.at.ip().to_string());
        vars.set_new(&format!("{prefix}_PORT"), upstream.at.port().to_string());
        if let Some(name) = &upstream.service.name {
            let port = upstream.at.port().to_string();
            vars.set(&format!("{prefix}_PORT_{}", in_variable(name)), port);
        }
    }
    for var in &container.env {
        let value = match &var.value {
            EnvValue::Text(text) => vars.expand(text),
            EnvValue::Field(path) => field(wiring, path).unwrap_or_default(),
        };
        vars.set(&var.name, value);
    }
    vars
}

/// The value of a downward-API field, as far as it exists on one machine.
pub fn field(wiring: &Wiring, path: &str) -> Option<String> {
    let subscript = |map: &BTreeMap<String, String>, prefix: &str| {
        let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
        map.get(key).cloned()
    };
    match path {
        "metadata.name" => Some(wiring.pod.clone()),
        "metadata.namespace" => Some(wiring.namespace.clone()),
        "metadata.uid" => Some(wiring.uid.clone()),
        "spec.serviceAccountName" => Some(wiring.template.service_account.clone()),
        "spec.nodeName" => Some("localhost".to_owned()),
        "status.podIP" | "status.podIPs" => Some(wiring.ip.to_string()),
        "status.hostIP" | "status.hostIPs" => Some("127.0.0.1".to_owned()),
        _ => subscript(&wiring.template.labels, "metadata.labels")
            .or_else(|| subscript(&wiring.template.annotations, "metadata.annotations")),
    }
}

/// Variables by name, in the order they were set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vars {
    vars: Vec<(String, String)>,
}

impl Vars {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.vars.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.vars.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Expands `$(NAME)` as Kubernetes does: unknown names stay as they are, `$$` is `$`.
    pub fn expand(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                out.push('$');
                rest = after;
            } else if let Some((name, after)) =
                rest.strip_prefix('(').and_then(|inner| inner.split_once(')'))
            {
                match self.get(name) {
                    Some(value) => out.push_str(value),
                    None => out.push_str(&format!("$({name})")),
                }
                rest = after;
            } else {
                out.push('$');
            }
        }
        out.push_str(rest);
        let end = (0..=MAX_VALUE.min(out.len())).rev().find(|end| out.is_char_boundary(*end));
        out.truncate(end.unwrap_or(0));
        out
    }

    fn set(&mut self, name: &str, value: String) {
        match self.vars.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value,
            None => self.vars.push((name.to_owned(), value)),
        }
    }

    fn set_new(&mut self, name: &str, value: String) {
        if self.get(name).is_none() {
            self.set(name, value);
        }
    }
}

/// Whether a variable of the shell that started the mesh may reach an application: settings of
/// other proxies would lead it around its own, and those of our programs are not its business.
pub fn is_inherited(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let other_proxy = ["http_proxy", "https_proxy", "all_proxy", "no_proxy", "grpc_proxy"];
    !other_proxy.contains(&lower.as_str())
        && !name.starts_with("MESH_PROXY_")
        && !name.starts_with("MESH_CONTROL_")
        && !matches!(name, "PORT" | "NOTIFY_SOCKET" | "LISTEN_FDS" | "LISTEN_PID")
}

/// Whether a variable of the shell that started the mesh may reach the control plane. Whether there are identities
/// is said otherwise.
pub fn reaches_control(name: &str) -> bool {
    let setting = name.starts_with("MESH_CONTROL_") && name != "MESH_CONTROL_IDENTITY_DIR";
    setting || is_inherited(name)
}

/// How Kubernetes spells a service or port name inside a variable's name.
fn in_variable(name: &str) -> String {
    name.to_ascii_uppercase().replace(['-', '.'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::workload::EnvVar;

    fn service(namespace: &str, service: &str, port: u16, name: &str) -> ServicePort {
        ServicePort {
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            port,
            name: (!name.is_empty()).then(|| name.to_owned()),
        }
    }

    fn wiring(mode: Mode) -> Wiring {
        let ip = Ipv4Addr::new(127, 1, 1, 3);
        let services = [
            service("other", "db", 5432, ""),
            service("shop", "shipping", 7000, "grpc"),
            service("shop", "shipping", 8080, "http"),
            service("shop", "tax-api", 80, ""),
        ];
        let cluster_ips = BTreeMap::from([(
            ("shop".to_owned(), "shipping".to_owned()),
            IpAddr::from([198, 18, 128, 5]),
        )]);
        Wiring {
            mode,
            namespace: "shop".to_owned(),
            pod: "web-1".to_owned(),
            uid: "u-1".to_owned(),
            ip,
            control: "127.1.0.1:8086".parse().unwrap(),
            identity: Some(PodIdentity {
                id: "web.shop.serviceaccount.identity.mesh-system.cluster.local".to_owned(),
                token_file: "/mesh/tokens/shop.web-1".into(),
                roots_file: "/mesh/identity/roots.pem".into(),
            }),
            ports: vec![
                PortMap { container: 0, name: None, declared: 8080, app: 20_000 },
                PortMap {
                    container: 0,
                    name: Some("grpc-web".to_owned()),
                    declared: 7000,
                    app: 20_001,
                },
                PortMap { container: 1, name: Some("m".to_owned()), declared: 9000, app: 20_002 },
            ],
            upstreams: upstreams(mode, "shop", ip, &services, &cluster_ips),
            template: Template {
                meshed: true,
                labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
                ..Template::default()
            },
        }
    }

    fn with_env(vars: &[(&str, &str)]) -> Vars {
        let env = vars.iter().map(|(name, value)| EnvVar {
            name: (*name).to_owned(),
            value: match value.strip_prefix('@') {
                Some(path) => EnvValue::Field(path.to_owned()),
                None => EnvValue::Text((*value).to_owned()),
            },
        });
        let container = Container { env: env.collect(), ..Container::default() };
        of_container(&wiring(Mode::Explicit), 0, &container)
    }

    #[test]
    fn an_application_learns_where_to_listen() {
        let vars = with_env(&[]);
        assert_eq!(vars.get("POD_IP"), Some("127.1.1.3"));
        assert_eq!(vars.get("PORT"), Some("20000"));
        assert_eq!(vars.get("PORT_GRPC_WEB"), Some("20001"));
        assert_eq!(vars.get("PORT_M"), None);
        let other = of_container(&wiring(Mode::Explicit), 1, &Container::default());
        assert_eq!((other.get("PORT"), other.get("PORT_M")), (Some("20002"), Some("20002")));
    }

    #[test]
    fn services_are_ports_of_the_pods_own_proxy() {
        let vars = with_env(&[]);
        assert_eq!(vars.get("http_proxy"), Some("http://127.1.1.3:4140"));
        assert_eq!(vars.get("SHIPPING_SERVICE_HOST"), Some("127.1.1.3"));
        assert_eq!(vars.get("SHIPPING_SERVICE_PORT"), Some("15001"));
        assert_eq!(vars.get("SHIPPING_SERVICE_PORT_HTTP"), Some("15002"));
        assert_eq!(vars.get("TAX_API_SERVICE_PORT"), Some("15003"));
        assert_eq!(vars.get("DB_SERVICE_HOST"), None);
    }

    #[test]
    fn transparent_services_have_cluster_addresses_and_no_forward_proxy() {
        let vars = of_container(&wiring(Mode::Transparent), 0, &Container::default());
        assert_eq!(vars.get("HTTP_PROXY"), None);
        assert_eq!(vars.get("SHIPPING_SERVICE_HOST"), Some("198.18.128.5"));
        assert_eq!(vars.get("SHIPPING_SERVICE_PORT"), Some("7000"));
        assert_eq!(vars.get("TAX_API_SERVICE_HOST"), None);
    }

    #[test]
    fn the_manifests_variables_win_and_refer_to_earlier_ones() {
        let vars = with_env(&[
            ("PORT", "1"),
            ("URL", "http://$(POD_IP):$(PORT)/$$(PORT)/$(NONE)/$"),
            ("POD", "@metadata.name"),
            ("LABEL", "@metadata.labels['app']"),
            ("CPU", "@limits.cpu"),
        ]);
        assert_eq!(vars.get("URL"), Some("http://127.1.1.3:1/$(PORT)/$(NONE)/$"));
        assert_eq!(vars.get("POD"), Some("web-1"));
        assert_eq!(vars.get("LABEL"), Some("web"));
        assert_eq!(vars.get("CPU"), Some(""));
    }

    #[test]
    fn expansion_is_bounded() {
        let long = "x".repeat(MAX_VALUE - 1);
        let vars = with_env(&[("A", &long), ("B", "$(A)€$(A)")]);
        assert_eq!(vars.get("B").map(str::len), Some(MAX_VALUE - 1));
    }

    #[test]
    fn the_proxy_is_told_both_sides() {
        let vars: BTreeMap<_, _> = of_proxy(&wiring(Mode::Explicit)).into_iter().collect();
        let get = |name: &str| vars[&format!("MESH_PROXY_{name}")].as_str();
        assert_eq!(get("OUTBOUND_ADDR"), "127.1.1.3:4140");
        assert!(
            get("INBOUND_PORTS")
                .starts_with("127.1.1.3:8080=127.1.1.3:20000|127.0.0.1:20000,127.1.1.3:7000=")
        );
        assert!(
            get("OUTBOUND_UPSTREAMS")
                .starts_with("127.1.1.3:15001=shipping.shop.svc.cluster.local:7000,")
        );
        assert_eq!(get("CONTROL_ADDR"), "127.1.0.1:8086");
        assert!(get("IDENTITY_NAME").starts_with("web.shop."));
        assert_eq!(get("IDENTITY_TOKEN_FILE"), "/mesh/tokens/shop.web-1");
        assert_eq!(get("IDENTITY_TRUST_BUNDLE_FILE"), "/mesh/identity/roots.pem");
    }

    #[test]
    fn a_transparent_proxy_takes_redirected_connections() {
        let vars: BTreeMap<_, _> = of_proxy(&wiring(Mode::Transparent)).into_iter().collect();
        assert_eq!(vars["MESH_PROXY_OUTBOUND_ADDR"], "127.0.0.1:4140,[::1]:4140");
        assert_eq!(vars["MESH_PROXY_INBOUND_ADDR"], "[::]:4143");
        assert!(!vars.contains_key("MESH_PROXY_INBOUND_PORTS"));
    }

    #[test]
    fn other_proxies_are_not_inherited() {
        for name in ["HTTPS_PROXY", "no_proxy", "MESH_PROXY_LOG", "PORT"] {
            assert!(!is_inherited(name), "{name}");
        }
        assert!(is_inherited("PATH") && is_inherited("JAVA_HOME"));
        let setting = "MESH_CONTROL_CERTIFICATE_LIFETIME";
        assert!(!is_inherited(setting) && reaches_control(setting) && reaches_control("PATH"));
        assert!(!reaches_control("MESH_CONTROL_IDENTITY_DIR") && !reaches_control("no_proxy"));
    }
}
