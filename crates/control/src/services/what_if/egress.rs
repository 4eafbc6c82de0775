//! A request that leaves the mesh: whether it may.

use std::net::IpAddr;

use mesh_api::ext::{
    WhatIfAnswer, WhatIfBackend, WhatIfEndpoint, WhatIfReply, WhatIfRequest, WhatIfVerdict,
};
use mesh_model::egress::{Departure, HostName, egress_meta};

use super::server::Client;
use crate::index::Objects;
use crate::index::lookup::{Wanted, understand_authority};
use crate::services::mesh::Failure;

/// Answers a question about a host outside of the mesh, by what the client's proxy would be told.
pub(super) fn answer(
    objects: &Objects,
    request: &WhatIfRequest,
    client: &Client,
    reply: &mut WhatIfReply,
) -> Result<(), Failure> {
    let authority = &request.authority;
    let invalid = || {
        let message = format!("`{authority}` is not HOST:PORT, such as example.com:443");
        Failure::Invalid(message)
    };
    let parsed: http::uri::Authority = authority.parse().map_err(|_| invalid())?;
    let port = parsed.port_u16().filter(|port| *port > 0).ok_or_else(invalid)?;
    let bare = parsed.host().trim_start_matches('[').trim_end_matches(']');
    let ip: Option<IpAddr> = bare.parse().ok();
    let asked = HostName::new(bare);
    if ip.is_none() && asked.is_none() {
        return Err(invalid());
    }
    if let Ok(Some(Wanted::Service { name, .. })) =
        understand_authority(authority, &client.namespace)
        && objects.service(&name).is_some()
    {
        let remedy = format!("ask for `--to svc/{} -n {}`", name.name, name.namespace);
        return Err(Failure::Invalid(format!("{bare} is the Service {name}; {remedy}")));
    }
    if let Some(known) = ip.and_then(|ip| objects.service_by_ip(ip)) {
        return Err(Failure::Invalid(format!("{bare} is the address of Service {}", known.name)));
    }
    if let Some(known) = ip.and_then(|ip| objects.pod_by_ip(ip)) {
        return Err(Failure::Invalid(format!("{bare} is the address of the pod {}", known.name)));
    }
    let header = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("host"));
    let host = header.and_then(|header| header.value.parse::<http::uri::Authority>().ok());
    let host = host.and_then(|host| HostName::new(host.host()));
    let mut names: Vec<HostName> = asked.into_iter().chain(host).collect();
    names.dedup();
    let rules = objects.egress_rules(&client.namespace);
    let verdict = rules.decide(Departure { names: &names, ip, port });
    let decided = verdict.by.to_string();
    let told = names.first().map_or(bare, HostName::as_str);
    reply.service = egress_meta(told, Some(port)).to_string();
    reply.protocol = "http".into();
    reply.protocol_why =
        "it is not of the mesh; TLS is decided by its server name in the same way".into();
    if ip.is_none() && rules.names_networks() {
        let note = "the address of the host is not known here: items with networks were left out";
        reply.notes.push(note.into());
    }
    if !verdict.allowed {
        let why = format!("{decided} denies it: the client's proxy answers itself (egress-denied)");
        reply.answer = Some(WhatIfAnswer { status: 403, why, ..WhatIfAnswer::default() });
    }
    let endpoint = WhatIfEndpoint {
        address: authority.clone(),
        verdict: Some(WhatIfVerdict {
            allowed: verdict.allowed,
            why: if verdict.allowed { "may leave".into() } else { "may not leave".into() },
            decided,
        }),
        ..WhatIfEndpoint::default()
    };
    reply.backends.push(WhatIfBackend {
        backend: reply.service.clone(),
        share: 1.0,
        method: request.method.clone(),
        authority: header.map_or_else(|| authority.clone(), |header| header.value.clone()),
        path: request.path.clone(),
        endpoints: vec![endpoint],
        ..WhatIfBackend::default()
    });
    Ok(())
}
