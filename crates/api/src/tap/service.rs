//! The gRPC service over a [`TapSource`].

use std::hash::{BuildHasher, RandomState};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use linkerd2_proxy_api::tap::tap_server::{Tap, TapServer};
use linkerd2_proxy_api::tap::{ObserveRequest, TapEvent};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::convert::{read_subscription, write_message};
use super::{TapMessage, TapSubscription};

/// Where live requests come from.
pub trait TapSource: Clone + Send + Sync + 'static {
    /// What the subscription asks for, from now on. Dropping the stream ends the subscription.
    fn tap(&self, request: TapSubscription) -> BoxStream<'static, TapMessage>;
}

/// The tap service of linkerd2-proxy-api.
pub fn tap_routes(source: impl TapSource) -> Routes {
    // Any number that another process is unlikely to have, too.
    let base = RandomState::new().hash_one(0) as u32;
    Routes::new(TapServer::new(Service { source, base }))
}

#[derive(Clone)]
struct Service<S> {
    source: S,
    base: u32,
}

#[tonic::async_trait]
impl<S: TapSource> Tap for Service<S> {
    type ObserveStream = BoxStream<'static, Result<TapEvent, Status>>;

    async fn observe(
        &self,
        request: Request<ObserveRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let subscription = read_subscription(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let base = self.base;
        let events = self.source.tap(subscription).map(move |m| Ok(write_message(m, base)));
        Ok(Response::new(events.boxed()))
    }
}
