//! Who the pods of a local mesh are: each proxy gets the name of its service account, a token that proves it to the
//! control plane, and the roots to begin with. The authority that certifies them is in [`super::authority`].

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Parser;
use mesh_control::config::{Args, Config};
use mesh_control::index::identity::MeshNames;
use rustix::rand::GetRandomFlags;

use super::authority::Authority;
use super::netns;
use super::object::write_secret;
use super::pod::PodKey;
use crate::error::CliError;
use crate::state_dir::StateDir;

const TOKEN: &str = "token";
const ROOTS: &str = "roots.pem";

/// Gives pods their identities.
#[derive(Clone, Debug)]
pub struct Identities {
    names: MeshNames,
    roots: PathBuf,
    tokens: PathBuf,
}

/// What a proxy needs to become who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    pub id: String,
    pub token_file: PathBuf,
    pub roots_file: PathBuf,
}

impl Identities {
    /// Those of the mesh in `dir`, with its authority, which is made the first time. Settings of the control plane
    /// count for them too.
    pub fn open(dir: &StateDir) -> Result<Self, CliError> {
        let authority = match Authority::of(dir) {
            Some(authority) => authority,
            None => Authority::create(dir)?,
        };
        let usable = authority.roots().and_then(|_| authority.issuer());
        usable.map_err(|error| {
            let folder = dir.identity();
            error.hint(format!("remove {}, and a new one is made", folder.display()))
        })?;
        let tokens = dir.tokens();
        if !tokens.is_dir() {
            private_folder(&tokens)?;
        }
        let names = settings(dir)?.names;
        Ok(Self { names, roots: authority.roots_file(), tokens })
    }

    /// Gives a pod what proves who it is. `None`: its service account has a dot in its name and thus no identity.
    pub fn give(&self, pod: &PodKey, service_account: &str) -> io::Result<Option<PodIdentity>> {
        let Some(id) = self.names.id(&pod.namespace, service_account) else { return Ok(None) };
        let mut secret = [0; 32];
        let got = rustix::rand::getrandom(&mut secret, GetRandomFlags::empty())?;
        if got != secret.len() {
            return Err(io::Error::other("the system has no randomness"));
        }
        let digits: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let token_file = self.token_file(pod);
        write_secret(&token_file, format!("{pod}:{digits}").as_bytes())?;
        let id = id.to_string();
        Ok(Some(PodIdentity { id, token_file, roots_file: self.roots.clone() }))
    }

    /// The pod is gone: its token is of no more use.
    pub fn take_back(&self, pod: &PodKey) {
        match fs::remove_file(self.token_file(pod)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(%pod, %error, "can't remove its token");
            }
            _ => {}
        }
    }

    fn token_file(&self, pod: &PodKey) -> PathBuf {
        self.tokens.join(pod.file_stem())
    }
}

impl PodIdentity {
    /// The same in `folder`, where a proxy that runs as a user of its own can read it.
    pub fn copy_to(&self, folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let copy = |from: &Path, name: &str, mode| {
            let to = folder.join(name);
            let text = fs::read(from)?;
            let mut file =
                fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&to)?;
            io::Write::write_all(&mut file, &text)?;
            std::os::unix::fs::chown(&to, Some(netns::PROXY_UID), None)?;
            Ok::<_, io::Error>(to)
        };
        Ok(Self {
            id: self.id.clone(),
            token_file: copy(&self.token_file, TOKEN, 0o400)?,
            roots_file: copy(&self.roots_file, ROOTS, 0o444)?,
        })
    }
}

/// The settings that the control plane of this mesh will have, by the same environment, so that what is wrong with
/// them is told before anything is started.
pub fn settings(dir: &StateDir) -> Result<Config, CliError> {
    let refused = |error: &dyn std::fmt::Display| {
        let told = error.to_string();
        CliError::usage(told.lines().next().unwrap_or_default().to_owned())
            .hint("a correct MESH_CONTROL_… variable, or none")
    };
    let args = ["mesh-control".into(), "--state-dir".into(), dir.path.clone()];
    let args = Args::try_parse_from(args).map_err(|error| refused(&error))?;
    Config::try_from(args).map_err(|error| CliError::usage(error.to_string()))
}

fn private_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::state_dir::StateRoot;

    fn pod(name: &str) -> PodKey {
        PodKey { namespace: "shop".to_owned(), name: name.to_owned() }
    }

    #[test]
    fn every_pod_has_a_secret_of_its_own_for_as_long_as_it_lives() {
        let home = tempfile::tempdir().unwrap();
        let dir = StateRoot::new(home.path()).mesh("m").unwrap();
        fs::create_dir_all(&dir.path).unwrap();
        let identities = Identities::open(&dir).unwrap();
        let of = |name: &str| {
            let given = identities.give(&pod(name), "web").unwrap().unwrap();
            assert_eq!(given.id, "web.shop.serviceaccount.identity.mesh-system.cluster.local");
            assert_eq!(
                fs::metadata(&given.token_file).unwrap().permissions().mode() & 0o777,
                0o600
            );
            assert!(given.roots_file.is_file());
            fs::read_to_string(given.token_file).unwrap()
        };
        let (one, other) = (of("web-1"), of("web-2"));
        assert!(one.starts_with("shop/web-1:") && one.len() == "shop/web-1:".len() + 64, "{one}");
        assert_ne!(one.split(':').nth(1), other.split(':').nth(1));
        identities.take_back(&pod("web-1"));
        identities.take_back(&pod("web-1"));
        assert_eq!(fs::read_dir(dir.tokens()).unwrap().count(), 1);
        assert_eq!(identities.give(&pod("web-1"), "a.b").unwrap(), None);
    }

    #[test]
    fn the_authority_is_made_once() {
        let home = tempfile::tempdir().unwrap();
        let dir = StateRoot::new(home.path()).mesh("m").unwrap();
        fs::create_dir_all(&dir.path).unwrap();
        Identities::open(&dir).unwrap();
        let roots = || fs::read(dir.identity().join(ROOTS)).unwrap();
        let first = roots();
        Identities::open(&dir).unwrap();
        assert_eq!(roots(), first);
        fs::write(dir.identity().join(ROOTS), "nonsense").unwrap();
        let error = Identities::open(&dir).unwrap_err();
        assert!(error.hint.unwrap().starts_with("remove "), "{}", error.message);
    }
}
