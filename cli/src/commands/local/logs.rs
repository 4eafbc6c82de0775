//! `meshctl local logs`: what the programs of a pod print.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::context::Context;
use crate::error::CliError;
use crate::local::logs;
use crate::state_dir::StateDir;

/// Between two looks for more.
const LOOK: Duration = Duration::from_millis(200);
/// Read at a time. Bytes.
const CHUNK: u64 = 64 << 10;

/// Print what a pod's programs said, those of pods that are gone, too
#[derive(clap::Args, Debug)]
pub struct LogsArgs {
    /// The pod; or `control` or `supervisor`
    #[arg(value_name = "POD")]
    pub pod: String,
    /// The pod's namespace, if pods of several have that name
    #[arg(long, short, value_name = "NS")]
    pub namespace: Option<String>,
    /// Which program: app, proxy, or the name of a further container
    #[arg(long, short, value_name = "NAME", default_value = "app")]
    pub container: String,
    /// Go on printing until interrupted
    #[arg(long, short)]
    pub follow: bool,
    /// Begin with this many of the last lines [default: all]
    #[arg(long, value_name = "N")]
    pub tail: Option<usize>,
}

pub(super) async fn run(
    args: LogsArgs,
    dir: &StateDir,
    cx: &mut Context,
) -> Result<ExitCode, CliError> {
    let path = find(&args, dir)?;
    let mut file = File::open(&path)?;
    let mut at = match args.tail {
        Some(lines) => logs::tail(&mut file, lines)?,
        None => 0,
    };
    loop {
        let end = file.metadata()?.len();
        if end < at {
            // It was cut because it had grown too large.
            at = 0;
        }
        file.seek(SeekFrom::Start(at))?;
        let mut text = Vec::new();
        file.by_ref().take(CHUNK).read_to_end(&mut text)?;
        text.truncate(whole(&text));
        at += text.len() as u64;
        cx.ui.print(&String::from_utf8_lossy(&text))?;
        if !text.is_empty() {
            continue;
        }
        if !args.follow {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How many bytes to print now: not those of a character whose rest is to come.
fn whole(text: &[u8]) -> usize {
    match std::str::from_utf8(text) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => text.len(),
    }
}

fn find(args: &LogsArgs, dir: &StateDir) -> Result<PathBuf, CliError> {
    if matches!(args.pod.as_str(), "control" | "supervisor") {
        let path = dir.logs().join(format!("{}.log", args.pod));
        return if path.exists() { Ok(path) } else { Err(none(args, dir, &[])) };
    }
    let (namespace, pod) = match args.pod.split_once('/') {
        Some((namespace, pod)) if !matches!(namespace, "pod" | "po" | "pods") => {
            (Some(namespace), pod)
        }
        Some((_, pod)) => (args.namespace.as_deref(), pod),
        None => (args.namespace.as_deref(), args.pod.as_str()),
    };
    let names: Vec<String> = fs::read_dir(dir.logs())
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    let wanted = |program: &str| -> Vec<&String> {
        let end = format!(".{pod}.{program}.log");
        let of_namespace = |name: &&String| {
            name.strip_suffix(&end).is_some_and(|ns| namespace.is_none_or(|wanted| wanted == ns))
        };
        names.iter().filter(of_namespace).collect()
    };
    match wanted(&args.container).as_slice() {
        [name] => Ok(dir.logs().join(name)),
        [first, ..] => {
            let namespace = first.split('.').next().unwrap_or_default();
            Err(CliError::failed(format!("several namespaces have a pod {pod}"))
                .hint(format!("-n {namespace}")))
        }
        [] => Err(none(args, dir, &names)),
    }
}

fn none(args: &LogsArgs, dir: &StateDir, names: &[String]) -> CliError {
    let of_pod = names.iter().filter_map(|name| {
        let (_, rest) = name.split_once('.')?;
        rest.strip_prefix(&args.pod)?.strip_prefix('.')?.strip_suffix(".log")
    });
    let programs: Vec<_> = of_pod.collect();
    if programs.is_empty() {
        return CliError::missing(format!("there is no log of a pod {}", args.pod))
            .hint(format!("meshctl local ps{}, which lists the pods", dir.flag()));
    }
    CliError::missing(format!("the pod {} has no log of {}", args.pod, args.container))
        .hint(format!("-c {}", programs.join(" or ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_dir::StateRoot;

    fn args(pod: &str, namespace: Option<&str>, container: &str) -> LogsArgs {
        LogsArgs {
            pod: pod.to_owned(),
            namespace: namespace.map(str::to_owned),
            container: container.to_owned(),
            follow: false,
            tail: None,
        }
    }

    #[test]
    fn characters_are_printed_whole() {
        assert_eq!(whole("aé".as_bytes()), 3);
        assert_eq!(whole(&"aé".as_bytes()[..2]), 1);
        assert_eq!(whole(b"a\xff\xc3"), 3);
    }

    #[test]
    fn logs_are_found_by_pod_and_program() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateRoot::new(root.path()).mesh("m").unwrap();
        fs::create_dir_all(dir.logs()).unwrap();
        let files =
            ["control.log", "shop.web-1.app.log", "shop.web-1.proxy.log", "b2.web-1.proxy.log"];
        for name in files {
            fs::write(dir.logs().join(name), "").unwrap();
        }
        let found = |pod: &str, namespace: Option<&str>, container: &str| {
            let path = find(&args(pod, namespace, container), &dir);
            path.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        };
        assert_eq!(found("web-1", None, "app").unwrap(), "shop.web-1.app.log");
        assert_eq!(found("pod/web-1", Some("b2"), "proxy").unwrap(), "b2.web-1.proxy.log");
        assert_eq!(found("b2/web-1", None, "proxy").unwrap(), "b2.web-1.proxy.log");
        assert_eq!(found("control", None, "app").unwrap(), "control.log");
        assert!(found("web-1", None, "proxy").unwrap_err().message.contains("several"));
        let error = found("web-1", None, "other").unwrap_err();
        assert!(error.hint.unwrap().contains("proxy"));
        assert!(found("eb-1", None, "app").is_err());
    }
}
