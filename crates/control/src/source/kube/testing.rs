//! An API server for tests: objects in memory, lists, watches, and what is written.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Handles of one server are clones.
#[derive(Clone)]
pub(super) struct FakeApi(Arc<Mutex<World>>);

struct World {
    version: u64,
    objects: BTreeMap<Place, Value>,
    /// Versions of groups that are served besides Kubernetes' own, with their resources.
    served: BTreeMap<String, BTreeSet<String>>,
    /// What happened, for watches that begin later.
    past: VecDeque<(u64, Place, Value)>,
    /// Watches may not begin before this version.
    oldest: u64,
    news: broadcast::Sender<(Place, Value)>,
    written: Vec<(String, Value)>,
    reviews: Option<fn(&str) -> Value>,
    down: bool,
}

/// Where an object is: `(/apis/apps/v1, deployments, shop, web)`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    root: String,
    plural: String,
    namespace: String,
    name: String,
}

impl Place {
    fn is_in(&self, collection: &Self) -> bool {
        self.root == collection.root
            && self.plural == collection.plural
            && (collection.namespace.is_empty() || collection.namespace == self.namespace)
    }
}

impl FakeApi {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(World {
            version: 1,
            objects: BTreeMap::new(),
            served: BTreeMap::new(),
            past: VecDeque::new(),
            oldest: 0,
            news: broadcast::Sender::new(1024),
            written: Vec::new(),
            reviews: None,
            down: false,
        })))
    }

    pub(super) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                if api.0.lock().down {
                    std::future::pending::<()>().await;
                }
                let (head, body) = request.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                Ok::<_, Infallible>(api.answer(&head.method, &head.uri, body))
            }
        });
        Client::new(service, "default")
    }

    /// Puts an object where its kind belongs.
    pub(super) fn put(&self, root: &str, plural: &str, object: Value) {
        let place = place_of(root, plural, &object);
        self.0.lock().put(place, object);
    }

    pub(super) fn delete(&self, root: &str, plural: &str, namespace: &str, name: &str) {
        let place = Place {
            root: root.into(),
            plural: plural.into(),
            namespace: namespace.into(),
            name: name.into(),
        };
        self.0.lock().delete(&place);
    }

    pub(super) fn object(&self, root: &str, plural: &str, namespace: &str, name: &str) -> Value {
        let world = self.0.lock();
        let wanted = Place {
            root: root.into(),
            plural: plural.into(),
            namespace: namespace.into(),
            name: name.into(),
        };
        world.objects.get(&wanted).cloned().unwrap_or_default()
    }

    /// Serves a resource that it did not.
    pub(super) fn serve(&self, root: &str, plural: &str) {
        let mut world = self.0.lock();
        world.served.entry(root.into()).or_default().insert(plural.into());
    }

    /// Takes away a resource and its objects, and ends its watches.
    pub(super) fn withdraw(&self, root: &str) {
        let mut world = self.0.lock();
        world.served.remove(root);
        world.objects.retain(|place, _| place.root != root);
        world.news = broadcast::Sender::new(1024);
    }

    /// Ends all watches, which have to list anew: what happens in `meanwhile` they do not hear of.
    pub(super) fn away(&self, meanwhile: impl FnOnce(&Self)) {
        self.0.lock().news = broadcast::Sender::new(1024);
        meanwhile(self);
        let mut world = self.0.lock();
        world.version += 1;
        world.oldest = world.version;
        world.past.clear();
        // Those that began meanwhile.
        world.news = broadcast::Sender::new(1024);
    }

    /// Answers nothing any more, or again.
    pub(super) fn set_down(&self, down: bool) {
        self.0.lock().down = down;
    }

    pub(super) fn review_tokens(&self, review: fn(&str) -> Value) {
        self.0.lock().reviews = Some(review);
    }

    /// Everything that clients wrote so far: method and path, and the body.
    pub(super) fn written(&self) -> Vec<(String, Value)> {
        self.0.lock().written.clone()
    }

    fn answer(&self, method: &Method, uri: &http::Uri, body: Value) -> Answer {
        let mut world = self.0.lock();
        let path = uri.path().trim_end_matches('/');
        if path == "/apis" {
            return whole(StatusCode::OK, &world.groups());
        }
        if let Some(served) = world.served.get(path) {
            let resources = served.iter().map(|name| {
                json!({ "name": name, "kind": "X", "namespaced": true, "singularName": "", "verbs": [] })
            });
            let resources: Vec<Value> = resources.collect();
            return whole(StatusCode::OK, &json!({ "groupVersion": path, "resources": resources }));
        }
        let Some(place) = parse(path) else { return problem(404, "no such path") };
        let own = place.root.starts_with("/apis/policy.meshctl.dev")
            || place.root.starts_with("/apis/gateway.networking.k8s.io");
        let served = world.served.get(&place.root);
        if own && !served.is_some_and(|served| served.contains(&place.plural)) {
            return problem(404, "the server could not find the requested resource");
        }
        if *method != Method::GET {
            world.written.push((format!("{method} {path}"), body.clone()));
        }
        match *method {
            Method::GET if place.name.is_empty() => {
                let query = uri.query().unwrap_or_default();
                if query.contains("watch=true") {
                    world.watch(&place, query)
                } else {
                    world.list(&place)
                }
            }
            Method::GET => match world.objects.get(&place) {
                Some(object) => whole(StatusCode::OK, object),
                None => problem(404, &format!("{} not found", place.name)),
            },
            Method::POST if place.plural == "tokenreviews" => {
                let token = body["spec"]["token"].as_str().unwrap_or_default();
                let status = world.reviews.map(|review| review(token)).unwrap_or_default();
                whole(
                    StatusCode::CREATED,
                    &json!({ "metadata": {}, "spec": body["spec"], "status": status }),
                )
            }
            Method::POST => {
                let place = Place { name: name_in(&body), ..place };
                if world.objects.contains_key(&place) {
                    return problem(409, "already exists");
                }
                whole(StatusCode::CREATED, &world.put(place, body))
            }
            Method::PUT | Method::PATCH => {
                let before = world.objects.get(&place).cloned();
                let wanted = body["metadata"]["resourceVersion"].as_str();
                let have =
                    before.as_ref().and_then(|have| have["metadata"]["resourceVersion"].as_str());
                if wanted.is_some() && wanted != have {
                    return problem(409, "the object has been modified");
                }
                let mut object = body;
                if *method == Method::PATCH {
                    let mut merged = before.unwrap_or_else(|| object.clone());
                    merge(&mut merged, &object);
                    object = merged;
                }
                whole(StatusCode::OK, &world.put(place, object))
            }
            _ => problem(405, "no such method"),
        }
    }
}

impl World {
    fn groups(&self) -> Value {
        let groups = self.served.keys().filter_map(|root| {
            let version = root.strip_prefix("/apis/")?;
            let name = version.split('/').next()?;
            let version = json!({ "groupVersion": version, "version": version.rsplit('/').next() });
            Some(json!({ "name": name, "versions": [version], "preferredVersion": version }))
        });
        json!({ "groups": groups.collect::<Vec<_>>() })
    }

    fn put(&mut self, place: Place, mut object: Value) -> Value {
        self.version += 1;
        let meta = &mut object["metadata"];
        meta["name"] = json!(place.name);
        meta["resourceVersion"] = json!(self.version.to_string());
        let new = self.objects.insert(place.clone(), object.clone()).is_none();
        let kind = if new { "ADDED" } else { "MODIFIED" };
        self.tell(place, json!({ "type": kind, "object": object.clone() }));
        object
    }

    fn delete(&mut self, place: &Place) {
        let Some(mut object) = self.objects.remove(place) else { return };
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.tell(place.clone(), json!({ "type": "DELETED", "object": object }));
    }

    fn tell(&mut self, place: Place, event: Value) {
        self.past.push_back((self.version, place.clone(), event.clone()));
        // Nobody may be watching.
        let _ = self.news.send((place, event));
    }

    fn list(&self, collection: &Place) -> Answer {
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(place, _)| place.is_in(collection))
            .map(|(_, object)| object)
            .collect();
        let version = self.version.to_string();
        whole(
            StatusCode::OK,
            &json!({ "metadata": { "resourceVersion": version }, "items": items }),
        )
    }

    fn watch(&self, collection: &Place, query: &str) -> Answer {
        let since = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        let since = since.and_then(|since| since.parse::<u64>().ok()).unwrap_or_default();
        if since < self.oldest {
            let error = json!({ "code": 410, "message": "too old", "reason": "Expired", "status": "Failure" });
            return streamed(stream::iter([json!({ "type": "ERROR", "object": error })]).boxed());
        }
        let past: Vec<Value> = self
            .past
            .iter()
            .filter(|(version, place, _)| *version > since && place.is_in(collection))
            .map(|(_, _, event)| event.clone())
            .collect();
        let (news, collection) = (self.news.subscribe(), collection.clone());
        let news = stream::unfold((news, collection), async |(mut news, collection)| {
            loop {
                let (place, event) = news.recv().await.ok()?;
                if place.is_in(&collection) {
                    return Some((event, (news, collection)));
                }
            }
        });
        streamed(stream::iter(past).chain(news).boxed())
    }
}

fn place_of(root: &str, plural: &str, object: &Value) -> Place {
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    Place {
        root: root.into(),
        plural: plural.into(),
        namespace: namespace.into(),
        name: name_in(object),
    }
}

fn name_in(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn parse(path: &str) -> Option<Place> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (root, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => (format!("/api/{version}"), rest),
        ["apis", group, version, rest @ ..] => (format!("/apis/{group}/{version}"), rest),
        _ => return None,
    };
    let (namespace, plural, name) = match rest {
        ["namespaces", namespace, plural] => (*namespace, *plural, ""),
        ["namespaces", namespace, plural, name]
        | ["namespaces", namespace, plural, name, "status"] => (*namespace, *plural, *name),
        [plural] => ("", *plural, ""),
        [plural, name] | [plural, name, "status"] => ("", *plural, *name),
        _ => return None,
    };
    let (plural, namespace, name) = (plural.to_owned(), namespace.to_owned(), name.to_owned());
    Some(Place { root, plural, namespace, name })
}

/// A merge patch; lists are replaced.
fn merge(object: &mut Value, patch: &Value) {
    match patch {
        Value::Object(fields) if object.is_object() => {
            for (field, value) in fields {
                merge(&mut object[field], value);
            }
        }
        value => *object = value.clone(),
    }
}

fn whole(status: StatusCode, body: &Value) -> Answer {
    let body = Full::from(body.to_string()).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer
}

fn problem(code: u16, message: &str) -> Answer {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let reason = if code == 404 { "NotFound" } else { "Conflict" };
    let body = json!({ "status": "Failure", "code": code, "message": message, "reason": reason });
    whole(status, &body)
}

fn streamed(events: stream::BoxStream<'static, Value>) -> Answer {
    let frames = events.map(|event| Ok(Frame::data(Bytes::from(format!("{event}\n")))));
    Response::new(StreamBody::new(frames).boxed_unsync())
}
