//! `meshctl bug-report`: what somebody who is to help has to know, in one archive without secrets.
//!
//! It is made of what other commands tell, word for word, so that whoever shares it can see the same: [`QUESTIONS`].
//! To that come objects and logs that no command shows, of the [`cluster`] or of the [`local`] mesh. Everything
//! goes through [`redact`].

mod archive;
mod cluster;
mod local;
mod redact;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use clap::{Args, Parser};
use jiff::Timestamp;
use mesh_api::ext::ProxyRow;

use self::archive::Archive;
use crate::args::Cli;
use crate::commands;
use crate::connect::Place;
use crate::context::Context;
use crate::error::CliError;
use crate::output::Ui;
use crate::selector;
use crate::units;

/// Write all that is needed to find a fault into one archive, without secrets
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct BugReportArgs {
    /// The archive to write [default: meshctl-bug-report-TIME.tar.gz]
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

const HELP: &str = "\
The archive has what the commands version, check, analyze, stat, edges, routes, proxy status, identity, fault ls, \
explain --last-errors and proxy config (50 proxies at most) tell; of a cluster also the objects of the mesh's own \
namespace, its definitions, policies and routes, events, and logs of the control plane and of 20 proxies; of a local \
mesh the logs of all but the applications.

Left out are Secrets' values, private keys, tokens, values of environment variables that are not the mesh's, what \
follows `?` in a path, passwords in URLs, and managed fields. Names of your workloads, hosts and paths are in it: \
look at it before you share it. What could not be found out is told in errors.txt.";

/// Files of the archive, and the command that each is the answer of.
const QUESTIONS: [(&str, &str); 11] = [
    ("version.json", "version -o json"),
    ("check.json", "check --proxy -o json"),
    ("analyze.json", "analyze -A -o json"),
    ("stat-deploy.json", "stat deploy -A -o json"),
    ("stat-svc.json", "stat svc -A -o json"),
    ("edges.json", "edges deploy -A -o json"),
    ("routes.json", "routes deploy -A -o json"),
    ("proxy-status.json", "proxy status -A -o json"),
    ("identity.json", "identity -o json"),
    ("faults.json", "fault ls -o json"),
    ("authz.json", "authz deploy -A -o json"),
];
/// Proxies whose whole configuration is in it, and namespaces whose proxies' last errors are.
const MAX_CONFIGS: usize = 50;
const MAX_NAMESPACES: usize = 20;
/// Bytes of one command's answer.
const MAX_ANSWER: usize = 16 << 20;

pub(super) async fn run(args: BugReportArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let place = cx.place().await?;
    if let Place::Cluster(cluster) = &place {
        // Without it there is nothing to report of.
        cluster.ask("ask for the version", cluster.client.apiserver_version()).await?;
    }
    let path = args.file.unwrap_or_else(|| {
        let now = Timestamp::now().strftime("%Y%m%d-%H%M%S");
        format!("meshctl-bug-report-{now}.tar.gz").into()
    });
    let mut archive = Archive::create(&path)?;
    for (file, line) in QUESTIONS {
        let _progress = cx.ui.progress(&format!("meshctl {line}"));
        let words: Vec<&str> = line.split(' ').collect();
        answer(cx, &mut archive, file, &words).await?;
    }
    let proxies = proxies(cx, &mut archive).await?;
    let namespaces: BTreeSet<&str> = proxies.iter().map(|proxy| &*proxy.namespace).collect();
    for namespace in namespaces.into_iter().take(MAX_NAMESPACES) {
        let _progress = cx.ui.progress(&format!("last errors in {namespace}"));
        let whose = format!("ns/{namespace}");
        let words = ["explain", "--last-errors", &whose, "--limit", "100", "-o", "json"];
        answer(cx, &mut archive, &format!("last-errors/{namespace}.json"), &words).await?;
    }
    for ProxyRow { namespace, pod, .. } in proxies.iter().take(MAX_CONFIGS) {
        let _progress = cx.ui.progress(&format!("the configuration of {pod}"));
        let namespaced = format!("--namespace={namespace}");
        let words = ["proxy", "config", &namespaced, "-o", "json", "--", pod];
        let file = format!("proxy-config/{namespace}.{pod}.json");
        answer(cx, &mut archive, &file, &words).await?;
    }
    match &place {
        Place::Cluster(of) => cluster::add(of, &cx.ui, &mut archive).await?,
        Place::Local(dir) => local::add(dir, &mut archive)?,
    }
    let (files, errors) = (archive.files(), archive.errors());
    let size = archive.finish()?;
    cx.ui.line(&format!("{} with {files} files, {}", path.display(), units::bytes(size as f64)))?;
    if errors > 0 {
        cx.ui.note(&format!("{errors} things could not be found out; errors.txt in it has them"));
    }
    cx.ui.note(
        "secrets and tokens are left out, names, hosts and paths are not: look at it before you share it",
    );
    Ok(ExitCode::SUCCESS)
}

/// Adds what a command says, as a user would see it. Names that others tell are words of their own, or parts of one,
/// so that none becomes two, or a flag.
async fn answer(
    cx: &Context,
    archive: &mut Archive,
    file: &str,
    words: &[&str],
) -> Result<(), CliError> {
    let line = &words.join(" ");
    let command = match Cli::try_parse_from(std::iter::once(&"meshctl").chain(words)) {
        Ok(cli) => cli.command,
        Err(error) => return archive.error(line, &error.to_string()),
    };
    let (out, err) = (Bounded::default(), Bounded::default());
    let mut own = Context {
        global: cx.global.clone(),
        state: cx.state.clone(),
        kube: cx.kube.clone(),
        ui: Ui::plain(out.clone(), err.clone()),
        zone: cx.zone.clone(),
    };
    let ended = Box::pin(commands::run(command, &mut own)).await;
    let said = err.take();
    if let Err(error) = &ended {
        archive.error(line, &error.to_string())?;
    } else if !said.is_empty() {
        archive.error(line, &said)?;
    }
    match out.take() {
        told if told.is_empty() => Ok(()),
        told => archive.text(file, &told),
    }
}

/// All proxies, those that are in trouble first.
async fn proxies(cx: &mut Context, archive: &mut Archive) -> Result<Vec<ProxyRow>, CliError> {
    let asked = async { cx.connect().await?.proxies(selector::all_pods(None)).await };
    match asked.await {
        Err(error) => {
            archive.error("proxies", &error.to_string())?;
            Ok(Vec::new())
        }
        Ok(mut rows) => {
            rows.sort_by_key(|row| row.ready);
            Ok(rows)
        }
    }
}

/// The beginning of what is written.
#[derive(Clone, Default)]
struct Bounded(Arc<Mutex<Vec<u8>>>);

impl Bounded {
    fn take(&self) -> String {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&std::mem::take(&mut *bytes)).into_owned()
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_ANSWER.saturating_sub(held.len());
        held.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::{self, File};
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::testing::{FakeMesh, proxy_row, run, run_alone, workload};
    use flate2::read::GzDecoder;

    fn files(archive: &Path) -> BTreeMap<String, String> {
        let mut tar = tar::Archive::new(GzDecoder::new(File::open(archive).unwrap()));
        let read = |entry: io::Result<tar::Entry<'_, _>>| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (name.strip_prefix("meshctl-bug-report/").unwrap().to_owned(), text)
        };
        tar.entries().unwrap().map(read).collect()
    }

    #[test]
    fn every_question_is_a_command() {
        for (_, line) in QUESTIONS {
            let words = std::iter::once("meshctl").chain(line.split_whitespace());
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
    }

    #[tokio::test]
    async fn the_archive_has_what_commands_tell_and_logs_without_secrets() {
        let home = tempfile::tempdir().unwrap();
        let mesh = FakeMesh {
            workloads: vec![workload("pod", "shop", "web-1", 1)],
            proxies: vec![proxy_row("web-1")],
            config: r#"{"last":"/cart?user=7"}"#.into(),
            ..FakeMesh::default()
        };
        let _lock = mesh.serve(&home);
        let logs = home.path().join("default/logs");
        fs::create_dir(&logs).unwrap();
        fs::write(logs.join("control.log"), "authorization: Bearer abcdefgh\n").unwrap();
        fs::write(logs.join("shop.web-1.app.log"), "of the application\n").unwrap();
        let path = home.path().join("report.tar.gz");
        let line = format!("bug-report --file {}", path.display());
        let ran = run(&line, &home).await;
        assert!(ran.result.is_ok(), "{ran:?}");
        assert!(ran.out.starts_with(&path.display().to_string()), "{ran:?}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let files = files(&path);
        let names: Vec<_> = files.keys().cloned().collect();
        let files = |name: &str| files.get(name).unwrap_or_else(|| panic!("{name}: {files:#?}"));
        assert!(files("version.json").contains("control_plane"));
        assert!(files("proxy-config/shop.web-1.json").contains("/cart?[redacted]"));
        assert!(files("logs/control.log").contains("[redacted]"));
        assert!(!names.iter().any(|name| name.contains("app.log")), "{names:?}");
        let again = run(&line, &home).await.result.unwrap_err();
        assert!(again.message.contains("exists"), "{again}");
    }

    #[tokio::test]
    async fn without_a_mesh_there_is_nothing_to_report() {
        let ran = run_alone("bug-report --file /nonexistent/report.tar.gz").await;
        assert_eq!(ran.result.unwrap_err().kind, crate::error::Kind::Unreachable);
    }
}
