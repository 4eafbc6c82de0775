//! An API server that has a few objects, lists them by label, creates, replaces and deletes them, says which kinds of
//! the mesh it has, and knows nothing else.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use kube::config::Kubeconfig;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::args::Global;
use crate::cluster::objects::KINDS;
use crate::cluster::{Cluster, KubeFiles};

/// The objects of a cluster, by `Kind/name`, with the namespace in front if they are in one.
#[derive(Clone, Debug)]
pub(crate) struct Objects {
    all: Arc<Mutex<BTreeMap<String, Value>>>,
    /// Objects that nobody may delete.
    held: Arc<Mutex<Vec<String>>>,
    /// Where paths begin at which nothing is.
    lacking: Arc<Mutex<Vec<String>>>,
    server: String,
}

impl Objects {
    /// Serves these on loopback.
    pub(crate) async fn start(all: impl IntoIterator<Item = Value>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let objects = Self {
            all: Arc::new(Mutex::new(all.into_iter().map(|one| (id(&one), one)).collect())),
            held: Arc::default(),
            lacking: Arc::default(),
            server: format!("http://{}", listener.local_addr().unwrap()),
        };
        let serving = objects.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let objects = serving.clone();
                let service = hyper::service::service_fn(move |request| {
                    let objects = objects.clone();
                    async move { Ok::<_, Infallible>(objects.take(request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        objects
    }

    /// A kubeconfig that means it.
    pub(crate) fn files(&self) -> KubeFiles {
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: dev, contexts: [{{name: dev, context: {{cluster: c}}}}], \
             clusters: [{{name: c, cluster: {{server: '{}'}}}}]}}",
            self.server
        );
        KubeFiles::Given(Box::new(Kubeconfig::from_yaml(&text).unwrap()))
    }

    /// The cluster, as commands have it.
    pub(crate) async fn cluster(&self) -> Cluster {
        let global = Global::default();
        self.files().choose(&global).unwrap().unwrap().cluster(&global).await.unwrap()
    }

    /// What is there.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.all.lock().unwrap().keys().cloned().collect()
    }

    /// Refuses from now on to delete this one, or no longer any.
    pub(crate) fn hold(&self, id: Option<&str>) {
        *self.held.lock().unwrap() = id.map(str::to_owned).into_iter().collect();
    }

    /// Has from now on nothing at paths that begin so, such as `/apis/apps/`.
    pub(crate) fn lack(&self, path: &str) {
        self.lacking.lock().unwrap().push(path.to_owned());
    }

    /// The object, if it is there.
    pub(crate) fn get(&self, id: &str) -> Option<Value> {
        self.all.lock().unwrap().get(id).cloned()
    }

    async fn take(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        match head.method {
            Method::PUT | Method::POST => {
                self.put(&head.method, serde_json::from_slice(&body).unwrap())
            }
            _ => self.answer(&Request::from_parts(head, ())),
        }
    }

    /// Changes are of the object as it is; each makes it another version.
    fn put(&self, method: &Method, mut object: Value) -> Response<Full<Bytes>> {
        // As URLs have it; a typed object does not say what it is.
        object["kind"] = json!(object["kind"].as_str().unwrap_or("Secret"));
        object["metadata"]["namespace"] =
            json!(object["metadata"]["namespace"].as_str().unwrap_or("mesh-system"));
        let mut all = self.all.lock().unwrap();
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        let have = all.get(&id(&object)).map(version);
        let fits = match *method {
            Method::POST => have.is_none(),
            _ => have.as_ref().is_some_and(|have| *have == version(&object)),
        };
        if !fits {
            return reply(409, &status(409, "Conflict"));
        }
        let next = have.as_ref().and_then(Value::as_str).and_then(|v| v.parse::<u64>().ok());
        object["metadata"]["resourceVersion"] = json!((next.unwrap_or(0) + 1).to_string());
        all.insert(id(&object), object.clone());
        reply(200, &object)
    }

    fn answer(&self, request: &Request<()>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if self.lacking.lock().unwrap().iter().any(|lacking| path.starts_with(lacking)) {
            return reply(404, &status(404, "NotFound"));
        }
        let path: Vec<&str> = path.trim_matches('/').split('/').collect();
        let rest = if path[0] == "api" { &path[2..] } else { &path[3..] };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
            rest => (None, rest),
        };
        let Some((plural, rest)) = rest.split_first() else { return kinds(&path) };
        let mut all = self.all.lock().unwrap();
        let name = rest.first();
        let of = |one: &Value| {
            let kind = one["kind"].as_str().unwrap_or_default().to_lowercase();
            let plurals = [format!("{kind}s"), kind.trim_end_matches('y').to_owned() + "ies"];
            plurals.iter().any(|name| name == plural)
                && (namespace.is_none() || one["metadata"]["namespace"].as_str() == namespace)
        };
        let Some(name) = name else {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let items: Vec<&Value> =
                all.values().filter(|one| of(one) && is_selected(one, &query)).collect();
            let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items});
            return reply(200, &list);
        };
        let found = all.iter().find(|(_, one)| of(one) && one["metadata"]["name"] == *name);
        let Some((id, one)) = found.map(|(id, one)| (id.clone(), one.clone())) else {
            return reply(404, &status(404, "NotFound"));
        };
        if request.method() == Method::DELETE {
            if self.held.lock().unwrap().contains(&id) {
                return reply(403, &status(403, "Forbidden"));
            }
            all.remove(&id);
            if id.starts_with("Namespace/") {
                all.retain(|_, one| one["metadata"]["namespace"] != *name);
            }
        }
        reply(200, &one)
    }
}

/// Those of a group and version, for discovery.
fn kinds(path: &[&str]) -> Response<Full<Bytes>> {
    let (version, group) = path[1..].split_last().unwrap();
    let group = group.first().copied().unwrap_or_default();
    let of_group = KINDS.iter().filter(|kind| kind.resource().0 == group);
    let resources: Vec<_> = of_group
        .map(|kind| {
            json!({
                "kind": kind.kind,
                "name": kind.resource().1,
                "singularName": "",
                "namespaced": kind.namespaced,
                "verbs": [],
            })
        })
        .collect();
    let of = if group.is_empty() { (*version).to_owned() } else { format!("{group}/{version}") };
    let list = json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": of, "resources": resources,
    });
    reply(200, &list)
}

/// `shop/Secret/x`, `Namespace/shop`
fn id(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, meta) = (text(&object["kind"]), &object["metadata"]);
    let namespace = meta["namespace"].as_str().map(|name| format!("{name}/")).unwrap_or_default();
    format!("{namespace}{kind}/{}", text(&meta["name"]))
}

/// By the label selectors that meshctl uses: all of `a=b,c!=d`.
fn is_selected(object: &Value, query: &str) -> bool {
    let query =
        query.replace("%3D", "=").replace("%21", "!").replace("%2F", "/").replace("%2C", ",");
    let selector = query.split('&').find_map(|part| part.strip_prefix("labelSelector="));
    selector.unwrap_or_default().split(',').filter(|term| !term.is_empty()).all(|term| {
        let (key, value) = term.split_once('=').unwrap();
        let (key, wanted) = (key.trim_end_matches('!'), !key.ends_with('!'));
        (object["metadata"]["labels"][key] == value) == wanted
    })
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": reason})
}

fn reply(code: u16, body: &Value) -> Response<Full<Bytes>> {
    Response::builder().status(code).body(Full::from(body.to_string())).unwrap()
}
