//! Roots told by the control plane, kept over a restart: those a pod was started with may have been
//! replaced since.

use std::fs;
use std::path::Path;

use mesh_tls::TrustBundle;

const FILE: &str = "roots.pem";

/// The last roots that were kept, if there are any.
pub(super) fn kept(folder: &Path) -> Option<TrustBundle> {
    let path = folder.join(FILE);
    let pem = fs::read_to_string(&path).ok()?;
    match TrustBundle::from_pem(&pem) {
        Ok(bundle) => Some(bundle),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the roots kept there are of no use");
            None
        }
    }
}

/// Keeps roots; that this fails is no reason not to trust them.
pub(super) fn keep(folder: &Path, bundle: &TrustBundle) {
    let (path, new) = (folder.join(FILE), folder.join(".roots.pem"));
    let written = fs::write(&new, bundle.pem()).and_then(|()| fs::rename(&new, &path));
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), %error, "cannot keep the roots");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn roots_are_kept_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(kept(folder.path()), None);
        let day = Duration::from_secs(86_400);
        let pem = mesh_tls::Root::generate("test", day * 2, day).unwrap().root;
        let bundle = TrustBundle::from_pem(&pem).unwrap();
        keep(folder.path(), &bundle);
        assert_eq!(kept(folder.path()), Some(bundle));
        fs::write(folder.path().join(FILE), "-----BEGIN").unwrap();
        assert_eq!(kept(folder.path()), None);
    }
}
