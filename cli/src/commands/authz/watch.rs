//! `meshctl authz can --watch`: what is refused on a port, as it happens.

use std::process::ExitCode;

use mesh_api::ext;
use mesh_api::ext::mesh_tap_event::Tapped;

use super::can::CanArgs;
use crate::commands::identity::account;
use crate::commands::tap::event::{Event, Side};
use crate::commands::tap::line;
use crate::commands::tap::stream::{End, Limits, Seen, Tap};
use crate::connect::Mesh;
use crate::context::Context;
use crate::error::CliError;
use crate::output::table::Tone;
use crate::output::{Format, clean, format};

/// Refusals a second that are shown.
const MAX_RPS: u32 = 1_000;

/// Shows refusals by these ports, of all clients or of those that `reply` names, until it is told to end.
pub(super) async fn run(
    args: &CanArgs,
    reply: &ext::PortAuthorizationsReply,
    mesh: &Mesh,
    cx: &mut Context,
) -> Result<ExitCode, CliError> {
    // Not the tap's own limit: it sees the pods' other ports, too.
    let mut tap = Tap::start(mesh, request(reply), Limits::default(), cx).await?;
    let mut shown = 0_u64;
    let end = loop {
        if args.count == Some(shown) {
            break End::Done;
        }
        match tap.next(cx).await? {
            Seen::End(end) => break end,
            Seen::Request(tapped) if is_of(reply, &tapped) => {
                shown += 1;
                cx.ui.print(&match args.output {
                    Format::Json => format::json_line(&Event::new(&tapped))?,
                    _ => refusal(&tapped, cx),
                })?;
            }
            Seen::Request(_) => {}
        }
    };
    cx.ui.note(&format!("{shown} refused"));
    match end {
        End::Done => Ok(ExitCode::SUCCESS),
        End::Interrupted => Err(CliError::interrupted()),
    }
}

fn request(reply: &ext::PortAuthorizationsReply) -> ext::MeshTapRequest {
    let pod = |port: &ext::AuthorizingPort| ext::Selector {
        kind: "pod".into(),
        name: port.pod.clone(),
        namespace: port.namespace.clone(),
        labels: String::new(),
    };
    let mut selectors: Vec<_> = reply.ports.iter().map(pod).collect();
    selectors.dedup();
    let filter = ext::TapFilter {
        direction: ext::Direction::Inbound.into(),
        reason: "unauthorized".into(),
        peers: reply.clients.iter().map(|client| client.address.clone()).collect(),
        ..ext::TapFilter::default()
    };
    ext::MeshTapRequest { selectors, filter: Some(filter), max_rps: MAX_RPS, to: None }
}

/// Whether it was refused by the port that is asked about; a pod may have several.
fn is_of(reply: &ext::PortAuthorizationsReply, tapped: &Tapped) -> bool {
    let address = tapped.event.as_ref().map(|event| event.destination.as_str());
    let port = address.and_then(|address| address.rsplit_once(':')?.1.parse::<u32>().ok());
    reply.ports.iter().any(|of| {
        (&of.namespace, &of.pod) == (&tapped.namespace, &tapped.pod)
            && port.is_none_or(|port| port == of.port)
    })
}

/// `12:00:01.123 curious-1 → finance-1:8080  GET /reports/today  as curious.shop  refused by …`
fn refusal(tapped: &Tapped, cx: &Context) -> String {
    let event = tapped.event.clone().unwrap_or_default();
    let source = Side::source(tapped, &event);
    let destination = Side::destination(tapped, &event);
    let who = match event.tls.as_str() {
        "" => "without an identity".to_owned(),
        identity => format!("as {}", account(identity)),
    };
    let by = if event.policy.is_empty() { "a policy" } else { &event.policy };
    let style = cx.ui.out_style;
    format!(
        "{} {} → {}  {}  {}  {}\n",
        style.dim(&line::clock(event.started_unix_ms, &cx.zone)),
        source.short(),
        destination.with_port(),
        line::request(&event),
        clean(&who),
        Tone::Bad.paint(style, &clean(&format!("refused by {by}"))),
    )
}

#[cfg(test)]
mod tests {
    use mesh_api::ext;
    use mesh_api::ext::mesh_tap_event::{Event, TapStatus, Tapped};

    use crate::error::Kind;
    use crate::testing::FakeMesh;

    #[tokio::test]
    async fn refusals_of_the_port_are_told_with_the_policy() {
        let mut tapped = crate::commands::tap::tests::sample();
        let event = tapped.event.as_mut().unwrap();
        (event.status, event.reason) = (403, "unauthorized".into());
        let mut other = tapped.clone();
        other.event.as_mut().unwrap().destination = "127.101.0.3:9990".into();
        let namesake = Tapped { namespace: "b2".into(), ..tapped.clone() };
        let tapped = [other, namesake, tapped.clone(), tapped.clone(), tapped];
        let status = Event::Status(TapStatus { pods: 1, tapped: 1, unreachable: vec![] });
        let port = ext::AuthorizingPort {
            pod: "books".into(),
            namespace: "shop".into(),
            port: 7001,
            authorization: None,
        };
        let mesh = FakeMesh {
            tap: std::iter::once(status).chain(tapped.map(Event::Request)).collect(),
            port_authorizations: ext::PortAuthorizationsReply {
                clients: vec![],
                ports: vec![port],
            },
            ..FakeMesh::default()
        };
        let ran = mesh.run("authz can books.shop:7001 --watch --count 2").await;
        let line = "12:00:01.123 web-1 → books:7001  GET /authors/7  as web.shop  refused by \
                    AuthorizationPolicy/shop/books\n";
        assert_eq!(ran.out, line.repeat(2), "what is counted is what is shown");
        let filter = ran.asked.tap.unwrap().filter.unwrap();
        assert_eq!(filter.reason, "unauthorized");
        assert!(filter.peers.is_empty());
        let asked = ran.asked.port_authorizations.unwrap();
        assert_eq!((asked.client, asked.client_address.as_str()), (None, ""));
    }

    #[tokio::test]
    async fn lines_are_no_yaml_document() {
        let line = "authz can books.shop:7001 --watch -o yaml";
        let error = FakeMesh::default().run(line).await.result.unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
        assert!(error.message.contains("yaml"), "{error}");
    }
}
