//! `meshctl local apply` and `delete`, and reading manifests as given by `-f`.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::context::Context;
use crate::error::CliError;
use crate::local::client::Supervisor;
use crate::local::protocol::{Reply, Request, Told};
use crate::local::store::{Fate, GivenFile, MAX_BYTES, MAX_FILES, ObjectId};
use crate::state_dir::StateDir;
use crate::units;

/// Add or change what these manifests say, replacing pods without losing a request
#[derive(clap::Args, Debug)]
#[command(after_help = "An object that is no longer in a file given again is removed.")]
pub struct ApplyArgs {
    /// Manifests: files, folders, or - for standard input
    #[arg(long = "filename", short, required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub wait: Wait,
}

/// Whether to wait for the rollout.
#[derive(clap::Args, Debug)]
pub struct Wait {
    /// How long to wait until all pods are ready, former ones gone and the control plane knows
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = units::parse_duration)]
    pub timeout: Duration,
    /// Don't wait, not even for the control plane
    #[arg(long, conflicts_with = "timeout")]
    pub no_wait: bool,
}

impl Wait {
    pub(super) async fn wait(
        &self,
        supervisor: &mut Supervisor,
        cx: &Context,
    ) -> Result<(), CliError> {
        if !self.no_wait {
            supervisor.wait_settled(&cx.ui, self.timeout).await?;
        }
        Ok(())
    }
}

/// Remove the objects these manifests name
#[derive(clap::Args, Debug)]
pub struct DeleteArgs {
    /// Manifests: files, folders, or - for standard input
    #[arg(long = "filename", short, required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub wait: Wait,
}

pub(super) async fn apply(
    args: ApplyArgs,
    dir: &StateDir,
    cx: &mut Context,
) -> Result<ExitCode, CliError> {
    let files = read(&args.files)?;
    let mut supervisor = Supervisor::connect(dir).await?;
    let fates = send(&mut supervisor, &Request::Apply { files }, cx).await?;
    print(&fates, cx)?;
    args.wait.wait(&mut supervisor, cx).await?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn delete(
    args: DeleteArgs,
    dir: &StateDir,
    cx: &mut Context,
) -> Result<ExitCode, CliError> {
    let files = read(&args.files)?;
    let mut supervisor = Supervisor::connect(dir).await?;
    let fates = send(&mut supervisor, &Request::Delete { files }, cx).await?;
    print(&fates, cx)?;
    args.wait.wait(&mut supervisor, cx).await?;
    Ok(ExitCode::SUCCESS)
}

/// Sends manifests; tells warnings, and errors in the manifests one a line.
pub(crate) async fn send(
    supervisor: &mut Supervisor,
    request: &Request,
    cx: &mut Context,
) -> Result<Vec<(ObjectId, Fate)>, CliError> {
    match supervisor.ask(request).await? {
        Reply::Changed { fates, warnings } => {
            tell(&warnings, cx);
            Ok(fates)
        }
        Reply::Invalid { problems } => {
            tell(&problems, cx);
            let errors = problems.iter().filter(|told| told.error).count();
            let plural = if errors == 1 { "" } else { "s" };
            Err(CliError::failed(format!(
                "{errors} error{plural} in the manifests; nothing was changed"
            )))
        }
        other => Err(CliError::failed(format!("unexpected answer of the supervisor: {other:?}"))),
    }
}

fn tell(problems: &[Told], cx: &mut Context) {
    for told in problems {
        let style = cx.ui.err_style;
        let label = if told.error { style.red("error:") } else { style.yellow("warning:") };
        cx.ui.note(&format!("{label} {}", crate::output::clean(&told.text)));
    }
}

fn print(fates: &[(ObjectId, Fate)], cx: &mut Context) -> io::Result<()> {
    for (id, fate) in fates {
        cx.ui.line(&format!("{id} {}", fate.as_str()))?;
    }
    Ok(())
}

/// Reads what `-f` names.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<GivenFile>, CliError> {
    let cwd = std::env::current_dir()?;
    let mut given = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut content = String::new();
            io::stdin().take(MAX_BYTES as u64 + 1).read_to_string(&mut content)?;
            given.push(GivenFile {
                shown: "-".to_owned(),
                source: "-".to_owned(),
                cwd: cwd.clone(),
                content,
            });
        } else if path.is_dir() {
            let found = manifests_in(path)?;
            if found.is_empty() {
                return Err(CliError::failed(format!(
                    "{} has no .yaml, .yml or .json file",
                    path.display()
                )));
            }
            for file in found {
                given.push(read_file(&file, &cwd)?);
            }
        } else {
            given.push(read_file(path, &cwd)?);
        }
        let size: usize = given.iter().map(|file| file.content.len()).sum();
        if size > MAX_BYTES || given.len() > MAX_FILES {
            let message =
                format!("a local mesh takes {MAX_BYTES} bytes in {MAX_FILES} manifests at most");
            return Err(CliError::failed(message));
        }
    }
    Ok(given)
}

fn read_file(path: &Path, cwd: &Path) -> Result<GivenFile, CliError> {
    let unreadable =
        |error: io::Error| CliError::failed(format!("can't read {}: {error}", path.display()));
    let file = fs::File::open(path).map_err(unreadable)?;
    let mut content = String::new();
    file.take(MAX_BYTES as u64 + 1).read_to_string(&mut content).map_err(unreadable)?;
    let source = fs::canonicalize(path).map_err(unreadable)?;
    Ok(GivenFile {
        shown: path.display().to_string(),
        source: source.display().to_string(),
        cwd: cwd.to_owned(),
        content,
    })
}

/// The manifests directly in a folder, by name.
fn manifests_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if matches!(extension, Some("yaml" | "yml" | "json")) && !hidden && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_give_their_manifests_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yml", ".c.yaml", "d.txt", "e.json"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let given = read(&[dir.path().to_owned()]).unwrap();
        let contents: Vec<_> = given.iter().map(|file| file.content.as_str()).collect();
        assert_eq!(contents, ["a.yml", "b.yaml", "e.json"]);
        assert!(given[0].shown.ends_with("/a.yml") && Path::new(&given[0].source).is_absolute());
    }

    #[test]
    fn what_can_not_be_read_is_named() {
        let error = read(&[PathBuf::from("/no/such.yaml")]).unwrap_err();
        assert!(error.message.starts_with("can't read /no/such.yaml"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&[dir.path().to_owned()]).is_err());
    }
}
