//! How a key is certified, and how the roots to trust arrive.

use std::time::{Duration, SystemTime};

use futures_util::future::{self, BoxFuture, FutureExt};
use futures_util::stream::{self, BoxStream, StreamExt};
use linkerd2_proxy_api::identity as pb;
use linkerd2_proxy_api::identity::identity_client::IdentityClient;
use mesh_api::client::ControlClient;
use mesh_api::server::{ControlPlane, Refusal, control_plane_routes};
use mesh_api::{
    BackendExtension, Certified, CertifyRequest, TrustRoots, Update, Wire, Workload, ext,
};
use mesh_model::inbound::ServerPolicy;
use mesh_model::{Destination, OutboundPolicy, Profile, ResourceRef, Target};
use proptest::prelude::*;
use prost_types::Timestamp;
use tonic::Code;

use crate::serve::{PATIENCE, Serving};

type Stream<T> = Result<BoxStream<'static, T>, Refusal>;

/// Knows nothing but identity.
#[derive(Clone)]
struct Authority;

fn unknown<T>() -> Stream<T> {
    Err(Refusal::NotFound("unknown".into()))
}

/// Says nothing of identity either.
#[derive(Clone)]
struct Nothing;

macro_rules! knows_nothing_else {
    () => {
        fn destination(&self, _: &str, _: &Workload) -> Stream<Destination> {
            unknown()
        }

        fn profile(&self, _: &Target, _: &Workload) -> Stream<Profile> {
            unknown()
        }

        fn outbound(&self, _: &Target, _: &Workload) -> Stream<OutboundPolicy> {
            unknown()
        }

        fn server_policy(&self, _: &Workload, _: u16) -> Stream<ServerPolicy> {
            unknown()
        }

        fn backend_extension(&self, _: &ResourceRef) -> Stream<BackendExtension> {
            unknown()
        }
    };
}

impl ControlPlane for Nothing {
    knows_nothing_else!();
}

fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(1_800_000_000, 5)
}

impl ControlPlane for Authority {
    knows_nothing_else!();

    fn certify(&self, asked: CertifyRequest) -> BoxFuture<'static, Result<Certified, Refusal>> {
        let answer = match asked.token.as_str() {
            "good" => Ok(Certified {
                leaf: asked.request,
                intermediates: vec![asked.id.into_bytes()],
                not_after: noon(),
            }),
            _ => Err(Refusal::PermissionDenied("the token proves nothing".into())),
        };
        future::ready(answer).boxed()
    }

    fn trust_roots(&self, from: &Workload) -> Stream<TrustRoots> {
        assert_eq!(from.to_string(), "shop/web-1");
        let roots =
            |pem: &str| TrustRoots { pem: pem.into(), trust_domain: "cluster.local".into() };
        let said = [roots("one"), roots(""), roots("two")];
        Ok(stream::iter(said).chain(stream::pending()).boxed())
    }
}

fn client(serving: &Serving) -> ControlClient {
    let workload = Workload { namespace: "shop".into(), pod: "web-1".into() };
    ControlClient::new(ControlClient::lazy_channel(serving.addr), workload)
}

#[tokio::test]
async fn a_key_is_certified() {
    let serving = Serving::new(control_plane_routes(Authority));
    let certified = client(&serving).certify("web", "good", vec![1, 2]).await.unwrap();
    assert_eq!(certified.chain(), [vec![1, 2], b"web".to_vec()]);
    assert_eq!(certified.not_after, noon());

    let refused = client(&serving).certify("web", "bad", vec![1, 2]).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::PermissionDenied, "the token proves nothing")
    );
}

#[tokio::test]
async fn roots_come_and_change() {
    let serving = Serving::new(control_plane_routes(Authority));
    let mut roots = client(&serving).watch_trust_bundle().await.unwrap();
    let mut next = async || tokio::time::timeout(PATIENCE, roots.next()).await.unwrap();
    assert_eq!(next().await.unwrap().unwrap(), Update::Valid("one".to_owned()));
    let Update::Invalid(none) = next().await.unwrap().unwrap() else { panic!() };
    assert_eq!(none.field(), "pem_roots");
    assert_eq!(next().await.unwrap().unwrap(), Update::Valid("two".to_owned()));
}

#[tokio::test]
async fn a_mesh_without_identity_says_so() {
    let serving = Serving::new(control_plane_routes(Nothing));
    let refused = client(&serving).certify("web", "good", vec![1]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let refused = client(&serving).watch_trust_bundle().await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test]
async fn requests_that_lack_a_part_never_reach_the_authority() {
    let serving = Serving::new(control_plane_routes(Authority));
    let whole = pb::CertifyRequest {
        identity: "web".into(),
        token: b"good".to_vec(),
        certificate_signing_request: vec![1],
    };
    let requests = [
        ("identity", pb::CertifyRequest { identity: String::new(), ..whole.clone() }),
        ("token", pb::CertifyRequest { token: Vec::new(), ..whole.clone() }),
        ("token", pb::CertifyRequest { token: vec![0xff], ..whole.clone() }),
        (
            "certificate_signing_request",
            pb::CertifyRequest { certificate_signing_request: Vec::new(), ..whole },
        ),
    ];
    for (field, request) in requests {
        let mut client = IdentityClient::new(ControlClient::lazy_channel(serving.addr));
        let status = client.certify(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}");
        assert!(status.message().starts_with(field), "{status:?}");
    }
}

#[test]
fn a_token_is_not_printed() {
    let (id, token, request) = ("web".into(), "secret".into(), vec![]);
    let printed = format!("{:?}", CertifyRequest { id, token, request });
    assert!(!printed.contains("secret"), "{printed}");
}

fn answer(valid_until: Option<Timestamp>) -> pb::CertifyResponse {
    pb::CertifyResponse {
        leaf_certificate: vec![1],
        intermediate_certificates: vec![],
        valid_until,
    }
}

#[test]
fn absurd_answers_are_errors() {
    let field = |proto| Certified::from_proto(proto).unwrap_err().field().to_owned();
    assert_eq!(field(answer(None)), "valid_until");
    for (seconds, nanos) in
        [(-1, 0), (i64::MAX, 0), (i64::MIN, 0), (253_402_300_800, 0), (0, -1), (0, 1_000_000_000)]
    {
        assert_eq!(field(answer(Some(Timestamp { seconds, nanos }))), "valid_until");
    }
    let end = Some(Timestamp { seconds: 253_402_300_799, nanos: 999_999_999 });
    assert!(Certified::from_proto(answer(end)).is_ok());
    let leafless = pb::CertifyResponse { leaf_certificate: vec![], ..answer(end) };
    assert_eq!(field(leafless), "leaf_certificate");
    let long = pb::CertifyResponse { intermediate_certificates: vec![vec![1]; 9], ..answer(end) };
    assert_eq!(field(long), "intermediate_certificates");

    let roots = ext::TrustBundle { pem_roots: "x".repeat(300 << 10), ..Default::default() };
    assert_eq!(TrustRoots::from_proto(roots).unwrap_err().field(), "pem_roots");
}

proptest! {
    #[test]
    fn certificates_travel_unchanged(
        leaf in proptest::collection::vec(any::<u8>(), 1..50),
        intermediates in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..9),
        seconds in 0..253_402_300_800_u64,
        nanos in 0..1_000_000_000_u32,
    ) {
        let not_after = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
        let certified = Certified { leaf, intermediates, not_after };
        prop_assert_eq!(Certified::from_proto(certified.encode().unwrap()), Ok(certified));
    }

    #[test]
    fn no_time_panics(seconds in any::<i64>(), nanos in any::<i32>()) {
        let _ = Certified::from_proto(answer(Some(Timestamp { seconds, nanos })));
    }
}
