//! The others, each configured to do this hop and nothing else: one worker, no access log, connections to the backend
//! kept open.

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
