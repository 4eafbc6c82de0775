//! The watches: one task for each kind, all into one queue.
//!
//! Lists are paginated, watches ask for bookmarks and begin again with backoff; kube's `watcher` does
//! all that. Kinds that a cluster may lack are looked for from time to time.

use std::fmt::Debug;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::stream::{Stream, StreamExt};
use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::batch::v1 as batch;
use kube::api::Api;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Settings;
use super::convert;
use super::state::{Event, Item, OPTIONAL, What};
use crate::index::identity::MeshNames;
use crate::index::object::{Kind, POLICY_GROUP};

/// Between looks for a kind that the cluster does not have.
const DISCOVERY: Duration = Duration::from_secs(10);
/// Finished pods have no address any more, and there may be thousands of them.
const LIVE_PODS: &str = "status.phase!=Succeeded,status.phase!=Failed";

type Events = mpsc::Sender<Event>;

/// Starts all watches.
pub(super) fn spawn(
    running: &mut JoinSet<()>,
    client: &Client,
    settings: &Settings,
    events: &Events,
) {
    let Settings { names, gateway, .. } = settings;
    let all = watcher::Config::default;
    let (of, to) = (|| client.clone(), || events.clone());
    running.spawn(follow(of(), all(), Kind::Namespace, convert::namespace, to()));
    running.spawn(follow(of(), all(), Kind::Service, convert::service, to()));
    running.spawn(follow(of(), all(), Kind::EndpointSlice, convert::endpoint_slice, to()));
    running.spawn(follow(of(), all().fields(LIVE_PODS), Kind::Pod, convert::pod, to()));
    running.spawn(metadata::<apps::Deployment>(of(), Kind::Deployment, to()));
    running.spawn(metadata::<apps::StatefulSet>(of(), Kind::StatefulSet, to()));
    running.spawn(metadata::<apps::DaemonSet>(of(), Kind::DaemonSet, to()));
    running.spawn(metadata::<apps::ReplicaSet>(of(), Kind::ReplicaSet, to()));
    running.spawn(metadata::<batch::Job>(of(), Kind::Job, to()));
    running.spawn(metadata::<batch::CronJob>(of(), Kind::CronJob, to()));
    let optional = |kind| optional(of(), kind, names.clone(), *gateway, to());
    for kind in OPTIONAL {
        running.spawn(optional(kind));
    }
    if *gateway {
        running.spawn(optional(Kind::GatewayClass));
        running.spawn(optional(Kind::Gateway));
        // Others are nobody's business here.
        let certificates = all().fields("type=kubernetes.io/tls");
        running.spawn(follow(of(), certificates, Kind::Secret, convert::secret, to()));
    }
}

fn follow<K>(
    client: Client,
    config: watcher::Config,
    kind: Kind,
    convert: fn(&K) -> Item,
    events: Events,
) -> impl Future<Output = ()> + Send
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let stream = watcher(Api::<K>::all(client), config).default_backoff();
    async move {
        pass_on(stream, kind, |object| convert(&object), None, &events).await;
    }
}

/// As [`follow`], for what is asked the metadata of only.
fn metadata<K>(client: Client, kind: Kind, events: Events) -> impl Future<Output = ()> + Send
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let api = Api::<PartialObjectMeta<K>>::all(client);
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    async move {
        let convert = move |object: PartialObjectMeta<K>| convert::workload(kind, &object.metadata);
        pass_on(stream, kind, convert, None, &events).await;
    }
}

/// Follows a kind while the cluster has it, and tells when it does not.
async fn optional(client: Client, kind: Kind, names: MeshNames, gateway: bool, events: Events) {
    loop {
        let what = match resource(&client, kind).await {
            Ok(Some(resource)) => {
                let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
                let stream = watcher(api, watcher::Config::default()).default_backoff();
                let convert = |mut object: DynamicObject| {
                    // An API server may leave out in lists what the list says of all.
                    object.types.get_or_insert_with(|| kube::core::TypeMeta {
                        api_version: resource.api_version.clone(),
                        kind: resource.kind.clone(),
                    });
                    convert::custom(kind, &names, gateway, object)
                };
                Box::pin(pass_on(stream, kind, convert, Some(&client), &events)).await;
                What::Absent
            }
            Ok(None) => What::Absent,
            Err(error) => What::Failed(why(&error)),
        };
        if events.send(Event { kind, what }).await.is_err() {
            return;
        }
        tokio::time::sleep(DISCOVERY).await;
    }
}

const GATEWAY: &str = "gateway.networking.k8s.io";

/// Where a kind is that a cluster may lack: its group, the versions that are understood, best first,
/// and its plural.
fn place(kind: Kind) -> (&'static str, &'static [&'static str], &'static str) {
    match kind {
        Kind::HttpRoute => (GATEWAY, &["v1"], "httproutes"),
        Kind::GrpcRoute => (GATEWAY, &["v1"], "grpcroutes"),
        Kind::TcpRoute => (GATEWAY, &["v1", "v1alpha2"], "tcproutes"),
        Kind::TlsRoute => (GATEWAY, &["v1", "v1alpha3", "v1alpha2"], "tlsroutes"),
        Kind::ReferenceGrant => (GATEWAY, &["v1", "v1beta1"], "referencegrants"),
        Kind::GatewayClass => (GATEWAY, &["v1"], "gatewayclasses"),
        Kind::Gateway => (GATEWAY, &["v1"], "gateways"),
        Kind::AuthorizationPolicy => (POLICY_GROUP, &["v1alpha1"], "authorizationpolicies"),
        Kind::BackendTrafficPolicy => (POLICY_GROUP, &["v1alpha1"], "backendtrafficpolicies"),
        Kind::EgressPolicy => (POLICY_GROUP, &["v1alpha1"], "egresspolicies"),
        // The only one left of those that are optional.
        _ => (POLICY_GROUP, &["v1alpha1"], "serverpolicies"),
    }
}

/// A kind that a cluster may lack, in a version.
pub(super) fn api_resource(kind: Kind, api_version: &str) -> ApiResource {
    let (group, versions, plural) = place(kind);
    let version = api_version.rsplit_once('/').map_or(versions[0], |(_, version)| version);
    let of = GroupVersionKind::gvk(group, version, kind.as_str());
    ApiResource::from_gvk_with_plural(&of, plural)
}

/// `None`: the cluster does not have the kind.
async fn resource(client: &Client, kind: Kind) -> Result<Option<ApiResource>, kube::Error> {
    let (group, versions, plural) = place(kind);
    // What it does not have at all is asked for in a way that is no error.
    let groups = client.list_api_groups().await?;
    let served = |api_version: &str| {
        let mut versions = groups.groups.iter().flat_map(|group| &group.versions);
        versions.any(|version| version.group_version == api_version)
    };
    for version in versions {
        let api_version = format!("{group}/{version}");
        if !served(&api_version) {
            continue;
        }
        match client.list_api_group_resources(&api_version).await {
            Ok(list) if list.resources.iter().any(|served| served.name == plural) => {
                return Ok(Some(api_resource(kind, &api_version)));
            }
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() || status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Passes on what happens. Returns when nobody listens, or the cluster has no such kind any more, for
/// which `optional` ones are looked for.
async fn pass_on<K: Resource>(
    stream: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    kind: Kind,
    convert: impl Fn(K) -> Item,
    optional: Option<&Client>,
    events: &Events,
) {
    let mut stream = pin!(stream);
    while let Some(event) = stream.next().await {
        let what = match event {
            Ok(watcher::Event::Init) => What::Begin,
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                What::Put(Box::new(convert(object)))
            }
            Ok(watcher::Event::Delete(object)) => What::Gone(convert::name(kind, object.meta())),
            Ok(watcher::Event::InitDone) => What::Complete,
            Err(watcher::Error::WatchError(status)) if status.code == 410 => {
                // The watch is too old and begins anew, as it does from time to time.
                continue;
            }
            Err(_) if is_gone(optional, kind).await => return,
            Err(error) => {
                let why = failure(&error);
                tracing::debug!(kind = kind.as_str(), why, "a watch failed");
                // Connections break; if it is more than that, the next start will say so.
                if matches!(&error, watcher::Error::WatchFailed(kube::Error::ReadEvents(_))) {
                    continue;
                }
                What::Failed(why)
            }
        };
        if events.send(Event { kind, what }).await.is_err() {
            return;
        }
    }
}

/// A watch of a kind that is gone fails in more than one way, so that it is looked for.
async fn is_gone(optional: Option<&Client>, kind: Kind) -> bool {
    let Some(client) = optional else { return false };
    matches!(resource(client, kind).await, Ok(None))
}

fn failure(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => why(error),
        watcher::Error::WatchError(status) => status.message.clone(),
        watcher::Error::NoResourceVersion => "the API server names no version".into(),
    }
}

/// What a person can do something about.
pub(super) fn why(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            format!("{}; does the ClusterRole of mesh-control allow it?", status.message)
        }
        kube::Error::Api(status) => status.message.clone(),
        error => {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(error);
            while let Some(error) = cause {
                let more = error.to_string();
                if !text.contains(&more) {
                    text.push_str(": ");
                    text.push_str(&more);
                }
                cause = error.source();
            }
            text
        }
    }
}
