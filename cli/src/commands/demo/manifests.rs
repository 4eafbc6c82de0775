//! The sample application's manifests, as they are in `manifests/demo`.

use crate::local::store::GivenFile;

macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../../manifests/demo/", $name)))),*]
    };
}

const FILES: [(&str, &str); 9] = embedded![
    "00-namespace.yaml",
    "checkout.yaml",
    "finance.yaml",
    "ledger.yaml",
    "load.yaml",
    "portal.yaml",
    "shipping.yaml",
    "tax.yaml",
    "web.yaml",
];

/// How the load generator's manifest says its rate.
const RATE: &str = r#""--rps", "30""#;

/// The manifests, with this many requests per second.
pub(super) fn files(rps: u32) -> Vec<GivenFile> {
    let given = FILES.map(|(name, content)| GivenFile {
        shown: format!("demo/{name}"),
        source: format!("demo/{name}"),
        cwd: "/".into(),
        content: content.replace(RATE, &format!(r#""--rps", "{rps}""#)),
    });
    given.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::manifest::{Contents, control_plane_verdict};
    use crate::local::store::Store;

    #[test]
    fn every_file_of_the_folder_is_embedded() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/demo");
        let mut there: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        there.sort();
        assert_eq!(there, FILES.map(|(name, _)| name));
    }

    #[test]
    fn the_rate_is_where_it_is_replaced() {
        let all: String = files(77).into_iter().map(|file| file.content).collect();
        assert!(all.contains(r#""--rps", "77""#) && !all.contains(RATE));
    }

    #[test]
    fn nothing_is_wrong_with_them() {
        let (store, _) = Store::default().with(files(30)).unwrap();
        let contents = Contents::read(&store);
        assert_eq!(contents.problems, []);
        assert_eq!(contents.workloads.len(), 12);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(control_plane_verdict(&store, &dir.path().join("check")).unwrap(), []);
    }
}
