//! What a target resolves to: its policy; or, where the control plane knows of none, the endpoint
//! its profile names; or the address itself, which is outside of the mesh.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::client::ControlClient;
use mesh_model::egress::is_localhost;
use mesh_model::endpoint::{Endpoint, ProtocolHint};
use mesh_model::outbound::{
    Backend, BackendKind, Forward, HttpPolicy, Protocol, Queue, RouteBackend, TcpPolicy, TcpRoute,
};
use mesh_model::route::{Distribution, Route, Rule, Timeouts};
use mesh_model::{Meta, OutboundPolicy, Reason, Target};
use tokio::sync::watch;

use super::follow::{Followed, Follower};
use super::{Found, Outside, Resolution};
use crate::resolve::{ResolveError, Resolved, Resolver};

/// Feeds `tx` until nobody reads it.
pub(super) async fn follow(
    follower: &Follower,
    client: Option<&ControlClient>,
    resolver: &Resolver,
    target: &Target,
    tx: watch::Sender<Resolution>,
) {
    let Some(client) = client else {
        let tell = |addr| publish(&tx, forward_alone(Endpoint::plain(addr), false));
        match target {
            Target::Addr(addr) => tell(*addr),
            Target::Authority(authority) => tokio::select! {
                () = resolve(resolver, authority, &tx, tell) => {}
                () = tx.closed() => {}
            },
        }
        return tx.closed().await;
    };
    // Turns true when the control plane says it has no policy, and false when it has one.
    let (refused, mut is_refused) = watch::channel(false);
    let hear = |event| match event {
        Followed::Opened | Followed::Unimplemented => {}
        Followed::Update(policy) => {
            refused.send_replace(false);
            tx.send_replace(Some(Ok(Found::Mesh(Arc::new(policy)))));
        }
        Followed::Refused => {
            refused.send_replace(true);
        }
    };
    // Turns true when the control plane has no extensions, so that the plain policy has to do. What
    // was heard whole stays: somebody may answer in the control plane's place for a while.
    let (plain, mut is_plain) = watch::channel(false);
    let mut whole_once = false;
    let whole = follower.follow(
        "outbound",
        || client.watch_whole_outbound(target),
        |event| {
            match &event {
                Followed::Opened => {}
                Followed::Unimplemented => drop(plain.send_replace(!whole_once)),
                Followed::Update(_) | Followed::Refused => {
                    whole_once = true;
                    plain.send_replace(false);
                }
            }
            hear(event);
        },
    );
    let policies = async {
        loop {
            if is_plain.wait_for(|plain| *plain).await.is_err() {
                return;
            }
            tokio::select! {
                () = follower.follow("plain outbound", || client.watch_outbound(target), hear) => {}
                _ = is_plain.wait_for(|plain| !*plain) => {}
            }
        }
    };
    let fallback = async {
        loop {
            if is_refused.wait_for(|refused| *refused).await.is_err() {
                return;
            }
            tokio::select! {
                () = follow_fallback(follower, client, resolver, target, &tx) => {}
                _ = is_refused.wait_for(|refused| !*refused) => {}
            }
        }
    };
    tokio::select! {
        () = whole => {}
        () = policies => {}
        () = fallback => {}
        () = tx.closed() => {}
    }
}

async fn follow_fallback(
    follower: &Follower,
    client: &ControlClient,
    resolver: &Resolver,
    target: &Target,
    tx: &watch::Sender<Resolution>,
) {
    let authority = match target {
        Target::Addr(addr) => return follow_address(follower, client, *addr, tx).await,
        Target::Authority(authority) => authority,
    };
    // Where it is decides whether it is of the mesh: pods have names, too.
    let (addrs, mut addr) = watch::channel(None);
    let follow = async {
        while let Ok(now) = addr.wait_for(Option::is_some).await.map(|now| *now) {
            let Some(now) = now else { return };
            tokio::select! {
                () = follow_address(follower, client, now, tx) => {}
                _ = addr.changed() => {}
            }
        }
    };
    let tell = |addr| {
        addrs.send_if_modified(|old| old.replace(addr) != Some(addr));
    };
    tokio::select! { () = resolve(resolver, authority, tx, tell) => {}, () = follow => {} }
}

async fn follow_address(
    follower: &Follower,
    client: &ControlClient,
    addr: SocketAddr,
    tx: &watch::Sender<Resolution>,
) {
    let target = &Target::Addr(addr);
    let (profiles, mut profile) = watch::channel(None);
    let follow = follower.follow(
        "profile",
        || client.watch_profile(target),
        |event| match event {
            Followed::Opened | Followed::Unimplemented => {}
            Followed::Update(update) => {
                profiles.send_replace(Some(update));
            }
            Followed::Refused => {
                profiles.send_replace(Some(mesh_model::Profile::default()));
            }
        },
    );
    let publish = async {
        while profile.changed().await.is_ok() {
            let Some(profile) = profile.borrow_and_update().clone() else { continue };
            publish(tx, found(addr, profile));
        }
    };
    tokio::select! { () = follow => {}, () = publish => {} }
}

/// What an address without policy is.
fn found(addr: SocketAddr, profile: mesh_model::Profile) -> Found {
    let mesh_model::Profile { endpoint, opaque, .. } = profile;
    if endpoint.is_none() && !is_localhost(addr.ip()) {
        return Found::Outside(Outside { addr, opaque });
    }
    forward_alone(endpoint.unwrap_or_else(|| Endpoint::plain(addr)), opaque)
}

fn forward_alone(endpoint: Endpoint, opaque: bool) -> Found {
    let route = Meta::Default("endpoint".into());
    let meta = endpoint.resource.clone().unwrap_or_else(|| route.clone());
    Found::Mesh(Arc::new(forward_to(endpoint, opaque, &meta, &route)))
}

fn publish(tx: &watch::Sender<Resolution>, found: Found) {
    tx.send_if_modified(|old| {
        let same = matches!(old, Some(Ok(old)) if *old == found);
        *old = Some(Ok(found));
        !same
    });
}

/// A name that does not resolve is asked for again after this.
const DNS_RETRY: Duration = Duration::from_secs(2);

/// Looks a name up again and again, and tells where it is.
async fn resolve(
    resolver: &Resolver,
    authority: &str,
    tx: &watch::Sender<Resolution>,
    tell: impl Fn(SocketAddr),
) {
    loop {
        let wait = match lookup(resolver, authority).await {
            Ok((addr, valid)) => {
                tell(addr);
                valid
            }
            Err(error) => {
                tracing::debug!(%error, authority, "name not resolved");
                // An address that was good once is better than none.
                tx.send_if_modified(|old| match old {
                    Some(Ok(_)) => false,
                    _ => {
                        *old = Some(Err(Reason::UnknownTarget));
                        true
                    }
                });
                DNS_RETRY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// The first address of an authority, and how long it may be believed.
async fn lookup(
    resolver: &Resolver,
    authority: &str,
) -> Result<(SocketAddr, Duration), ResolveError> {
    let no_such_host = || ResolveError::NoSuchHost(authority.to_owned());
    let parsed: http::uri::Authority = authority.parse().map_err(|_| no_such_host())?;
    let host = parsed.host().trim_start_matches('[').trim_end_matches(']');
    let Resolved { addrs, valid } = resolver.resolve(host).await?;
    let addr = addrs.first().ok_or_else(no_such_host)?;
    Ok((SocketAddr::new(*addr, parsed.port_u16().unwrap_or(80)), valid))
}

/// The policy of a lone endpoint: detect, and forward as is. `meta` is what it is told as, `route` by
/// what it goes there.
pub(crate) fn forward_to(
    endpoint: Endpoint,
    opaque: bool,
    meta: &Meta,
    route: &Meta,
) -> OutboundPolicy {
    let opaque = opaque || endpoint.hint == ProtocolHint::Opaque;
    let meta = meta.clone();
    let backend = Backend {
        meta: meta.clone(),
        queue: Queue { capacity: 100, failfast_timeout: Duration::from_secs(3) },
        kind: BackendKind::Forward(endpoint),
    };
    let tcp = TcpPolicy {
        routes: Arc::new([TcpRoute {
            meta: route.clone(),
            snis: Vec::new(),
            backends: Distribution::FirstAvailable(vec![Arc::new(backend.clone())]),
            refuse: None,
        }]),
    };
    if opaque {
        return OutboundPolicy { meta, protocol: Protocol::Opaque(tcp) };
    }
    let backend = Arc::new(RouteBackend { filters: Vec::new(), backend });
    let http = HttpPolicy {
        routes: Arc::new([Route {
            meta: route.clone(),
            hosts: Vec::new(),
            rules: vec![Rule {
                matches: Vec::new(),
                filters: Vec::new(),
                action: Forward {
                    backends: Distribution::FirstAvailable(vec![backend]),
                    timeouts: Timeouts::default(),
                    retry: None,
                    allow_request_headers: false,
                    session: None,
                },
            }],
        }]),
        breaker: None,
    };
    OutboundPolicy {
        meta,
        protocol: Protocol::Detect {
            timeout: Duration::from_secs(10),
            http1: http.clone(),
            http2: http,
            opaque: tcp,
        },
    }
}
