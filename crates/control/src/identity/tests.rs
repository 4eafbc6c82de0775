//! The authority as proxies have it, over real connections, and as its files have it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use mesh_api::client::ControlClient;
use mesh_api::server::control_plane_routes;
use mesh_api::{Update, Workload};
use mesh_tls::{Certificate, Credentials, Key, Root, TrustBundle};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Server;
use tonic::{Code, Status};

use super::tokens::LocalTokens;
use super::*;
use crate::index::authz::Defaults;
use crate::index::object::{Name, Object, Pod};
use crate::services::Control;
use crate::source::Severity;
use crate::state::Shared;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const WEB: &str = "web.shop.serviceaccount.identity.mesh-system.cluster.local";
/// More than anything here needs, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

fn settings(folder: &Path) -> Settings {
    let names =
        MeshNames { control_namespace: "mesh-system".into(), trust_domain: "cluster.local".into() };
    Settings { origin: Origin::Folder(folder.join("identity")), names, lifetime: DAY }
}

fn root(name: &str) -> Root {
    Root::generate(name, 365 * DAY, 30 * DAY).unwrap()
}

/// Puts files into the folder, the last one of an issuer last.
fn write(folder: &Path, roots: &str, root: &Root) {
    for (name, text) in
        [("roots.pem", roots), ("issuer-key.pem", &root.issuer_key), ("issuer.pem", &root.issuer)]
    {
        fs::write(folder.join("identity").join(name), text).unwrap();
    }
}

/// A control plane with one pod, `shop/web-1` of the service account `web`.
struct Mesh {
    folder: TempDir,
    shared: Arc<Shared>,
    authority: Arc<Authority>,
    addr: SocketAddr,
    _stop: DropGuard,
}

impl Mesh {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["identity", "tokens"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let settings = settings(folder.path());
        let shared = Arc::new(Shared::new(Defaults::default(), Some(settings.names.clone())));
        let tokens = LocalTokens::new(folder.path(), Arc::clone(&shared));
        let authority = Arc::new(Authority::new(settings, Box::new(tokens)));
        let (addr, stop) =
            serve(Control::new(Arc::clone(&shared), Some(Arc::clone(&authority)))).await;
        let mesh = Self { folder, shared, authority, addr, _stop: stop };
        mesh.pod("web-1", "web", 'a');
        mesh
    }

    fn pod(&self, name: &str, service_account: &str, digit: char) {
        let file = self.folder.path().join("tokens").join(format!("shop.{name}"));
        fs::write(file, token(name, digit)).unwrap();
        self.shared.index.write().apply(Object::Pod(Pod {
            name: Name::new("shop", name),
            service_account: service_account.into(),
            ..Pod::default()
        }));
    }

    /// Files appear, and are looked at.
    fn load(&self, roots: &str, root: &Root) {
        write(self.folder.path(), roots, root);
        self.look();
    }

    fn look(&self) {
        let loaded = folder::load(&self.folder.path().join("identity"));
        folder::take(&self.authority, &self.shared, loaded);
    }

    fn client(&self) -> ControlClient {
        let workload = Workload { namespace: "shop".into(), pod: "web-1".into() };
        ControlClient::new(ControlClient::lazy_channel(self.addr), workload)
    }

    async fn certify(&self, id: &str, token: &str, request: Vec<u8>) -> Result<Certified, Status> {
        let client = self.client();
        let answer = tokio::time::timeout(LIMIT, client.certify(id, token, request));
        answer.await.expect("no answer")
    }

    /// Expects a refusal, and returns why.
    async fn refused(&self, id: &str, token: &str, request: Vec<u8>) -> (Code, String) {
        let status = self.certify(id, token, request).await.unwrap_err();
        (status.code(), status.message().to_owned())
    }
}

async fn serve(control: Control) -> (SocketAddr, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = Server::builder().add_routes(control_plane_routes(control));
    let ended = stop.clone().cancelled_owned();
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(server.serve_with_incoming_shutdown(incoming, ended));
    (addr, stop.drop_guard())
}

fn secret(digit: char) -> String {
    std::iter::repeat_n(digit, 64).collect()
}

fn token(pod: &str, digit: char) -> String {
    format!("shop/{pod}:{}", secret(digit))
}

fn request() -> Vec<u8> {
    Key::generate().request(&WEB.parse().unwrap())
}

#[tokio::test]
async fn a_proxy_gets_what_its_peers_accept() {
    let mesh = Mesh::new().await;
    let root = root("mesh");
    mesh.load(&root.root, &root);
    let (key, id) = (Key::generate(), WEB.parse().unwrap());
    let request = key.request(&id);
    let certified = mesh.certify(WEB, &token("web-1", 'a'), request).await.unwrap();
    let bundle = TrustBundle::from_pem(&root.root).unwrap();
    let credentials = Credentials::new(&id, &key, &certified.chain(), &bundle).unwrap();
    assert_eq!(credentials.certificate().id(), Some(WEB));
    // The certificate has whole seconds.
    let said = certified.not_after.duration_since(credentials.certificate().not_after).unwrap();
    assert!(said < Duration::from_secs(1), "{said:?}");
    assert!(certified.not_after <= SystemTime::now() + DAY);
    assert_eq!(mesh.authority.answered(), (1, 0));
}

#[tokio::test]
async fn nobody_gets_the_identity_of_another() {
    let mesh = Mesh::new().await;
    let root = root("mesh");
    mesh.load(&root.root, &root);
    mesh.pod("bank-1", "bank", 'b');
    mesh.pod("dots-1", "web.v2", 'c');

    let (code, why) = mesh.refused(WEB, &token("bank-1", 'b'), request()).await;
    assert_eq!(code, Code::PermissionDenied);
    assert!(why.contains("bank.shop."), "{why}");
    let (code, why) = mesh.refused(WEB, &token("dots-1", 'c'), request()).await;
    assert_eq!(code, Code::PermissionDenied);
    assert!(why.contains("shop/web.v2"), "{why}");
    let wrong = [token("web-1", 'f'), token("gone-1", 'a'), "nonsense".into()];
    for token in wrong {
        let (code, why) = mesh.refused(WEB, &token, request()).await;
        assert_eq!(code, Code::PermissionDenied, "{why}");
        assert!(!why.contains(&secret('a')), "{why}");
    }
    assert_eq!(mesh.authority.answered(), (0, 5));
}

#[tokio::test]
async fn requests_of_no_use_are_refused() {
    let mesh = Mesh::new().await;
    let root = root("mesh");
    mesh.load(&root.root, &root);
    let bank: Id = WEB.replace("web", "bank").parse().unwrap();
    for (id, request) in [
        (WEB, Key::generate().request(&bank)),
        (WEB, vec![1, 2, 3]),
        ("not an identity", request()),
        (bank.as_str(), vec![]),
    ] {
        let (code, why) = mesh.refused(id, &token("web-1", 'a'), request).await;
        assert_eq!(code, Code::InvalidArgument, "{why}");
    }
}

#[tokio::test]
async fn a_mesh_without_an_authority_has_no_identity() {
    let (addr, _stop) = serve(Control::new(Arc::default(), None)).await;
    let client = ControlClient::new(ControlClient::lazy_channel(addr), Workload::default());
    let certified = client.certify(WEB, "token", request()).await;
    assert_eq!(certified.unwrap_err().code(), Code::Unimplemented);
    let roots = client.watch_trust_bundle().await.map(drop);
    assert_eq!(roots.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn without_good_files_the_answer_is_to_come_again() {
    let mesh = Mesh::new().await;
    mesh.look();
    let problems = mesh.shared.problems();
    assert!(problems[0].message.contains("neither roots.pem nor ca.crt"), "{problems:?}");
    let (code, _) = mesh.refused(WEB, &token("web-1", 'a'), request()).await;
    assert_eq!(code, Code::Unavailable);
    let roots = mesh.client().watch_trust_bundle().await.map(drop);
    assert_eq!(roots.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn roots_and_issuer_change_while_it_runs() {
    let mesh = Mesh::new().await;
    let (one, two) = (root("one"), root("two"));
    mesh.load(&one.root, &one);
    let mut roots = mesh.client().watch_trust_bundle().await.unwrap();
    let mut next = async || {
        let next = tokio::time::timeout(LIMIT, roots.next()).await.expect("nothing came");
        let Some(Ok(Update::Valid(pem))) = next else { panic!("{next:?}") };
        pem
    };
    assert_eq!(next().await, one.root);

    let watching = (Arc::clone(&mesh.authority), Arc::clone(&mesh.shared));
    let running =
        tokio::spawn(folder::run(mesh.folder.path().join("identity"), watching.0, watching.1));
    let both = format!("{}{}", one.root, two.root);
    write(mesh.folder.path(), &both, &two);
    assert_eq!(next().await, both);
    running.abort();
    let certified = mesh.certify(WEB, &token("web-1", 'a'), request()).await.unwrap();
    assert_eq!(Certificate::read(&certified.leaf).unwrap().issuer, "two issuer");

    // Said again, so that proxies are certified by the other issuer.
    mesh.load(&both, &one);
    assert_eq!(next().await, both);
    mesh.look();
    mesh.load(&one.root, &one);
    assert_eq!(next().await, one.root, "what is looked at again is no news");
}

#[tokio::test]
async fn bad_files_change_nothing_and_are_reported() {
    let mesh = Mesh::new().await;
    let (one, two) = (root("one"), root("two"));
    mesh.load(&one.root, &one);
    assert!(mesh.shared.problems().is_empty());
    let mixed = Root {
        root: two.root.clone(),
        issuer: two.issuer.clone(),
        issuer_key: one.issuer_key.clone(),
    };
    let huge = "#".repeat(300 << 10);
    let bad: [(&str, &Root, &str); 5] = [
        ("garbage", &one, "roots.pem"),
        (&two.root, &one, "issuer.pem"),
        (&one.root, &two, "issuer.pem"),
        (&two.root, &mixed, "issuer.pem"),
        (&huge, &one, "roots.pem"),
    ];
    for (roots, root, file) in bad {
        mesh.load(roots, root);
        let problems = mesh.shared.problems();
        let [problem] = &*problems else { panic!("{problems:?}") };
        assert_eq!(problem.severity, Severity::Error);
        assert!(problem.file.as_ref().unwrap().ends_with(file), "{problem}");
        let certified = mesh.certify(WEB, &token("web-1", 'a'), request()).await.unwrap();
        assert_eq!(Certificate::read(&certified.leaf).unwrap().issuer, "one issuer");
    }
    // The source's problems are others.
    mesh.shared.set_problems(Vec::new());
    assert_eq!(mesh.shared.problems().len(), 1);
    mesh.load(&two.root, &two);
    assert!(mesh.shared.problems().is_empty());
}

#[tokio::test]
async fn roots_are_told_although_the_issuer_has_expired() {
    let mesh = Mesh::new().await;
    let expired = Root::generate("old", Duration::ZERO, Duration::ZERO).unwrap();
    let new = root("new");
    let both = format!("{}{}", expired.root, new.root);
    mesh.load(&both, &expired);
    assert!(mesh.shared.problems()[0].message.contains("has expired"));
    let (code, why) = mesh.refused(WEB, &token("web-1", 'a'), request()).await;
    assert_eq!(code, Code::Unavailable, "{why}");
    let mut roots = mesh.client().watch_trust_bundle().await.unwrap();
    assert_eq!(roots.next().await.unwrap().unwrap(), Update::Valid(both.clone()));
    mesh.load(&both, &new);
    assert!(mesh.shared.problems().is_empty());
    mesh.certify(WEB, &token("web-1", 'a'), request()).await.unwrap();
}

#[test]
fn files_of_a_mounted_secret_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let root = root("mesh");
    for (name, text) in
        [("ca.crt", &root.root), ("tls.crt", &root.issuer), ("tls.key", &root.issuer_key)]
    {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let loaded = folder::load(folder.path()).unwrap();
    assert_eq!(loaded.roots, root.root);
    assert_eq!(loaded.issuer.certificate().subject, "mesh issuer");
}
