//! What is read and where the results go.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::context::Context;
use crate::error::CliError;

/// No manifest is larger; bytes.
const MAX_INPUT: u64 = 64 << 20;
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// A file, or stdin.
#[derive(Debug)]
pub(super) struct Input {
    /// `None` is stdin.
    path: Option<PathBuf>,
    pub(super) text: String,
}

impl Input {
    /// As errors name it.
    pub(super) fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "stdin".to_owned(), |path| path.display().to_string())
    }

    #[cfg(test)]
    pub(super) fn of(text: &str) -> Self {
        Self { path: None, text: text.to_owned() }
    }
}

pub(super) fn read(given: &[PathBuf]) -> Result<Vec<Input>, CliError> {
    let mut inputs = Vec::new();
    for path in given {
        let failed = |error: io::Error| CliError::failed(format!("{}: {error}", path.display()));
        if path.as_os_str() == "-" {
            inputs.push(Input { path: None, text: text_of(io::stdin().lock()).map_err(failed)? });
        } else if path.is_dir() {
            let files = files_in(path).map_err(failed)?;
            if files.is_empty() {
                let why = "there is no .yaml, .yml or .json file in this folder";
                return Err(CliError::failed(format!("{}: {why}", path.display())));
            }
            for file in files {
                inputs.push(read_file(&file)?);
            }
        } else {
            inputs.push(read_file(path)?);
        }
    }
    Ok(inputs)
}

fn files_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if path.is_file() && extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path) -> Result<Input, CliError> {
    let text = fs::File::open(path).and_then(text_of);
    let text = text.map_err(|error| CliError::failed(format!("{}: {error}", path.display())))?;
    Ok(Input { path: Some(path.to_owned()), text })
}

fn text_of(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    let read = from.take(MAX_INPUT + 1).read_to_string(&mut text)?;
    if read as u64 > MAX_INPUT {
        return Err(io::Error::other("larger than 64 MiB"));
    }
    Ok(text)
}

/// Prints the results one after the other, or writes them where they came from.
pub(super) fn write(
    inputs: &[Input],
    outputs: &[String],
    in_place: bool,
    cx: &mut Context,
) -> Result<(), CliError> {
    if !in_place {
        return Ok(cx.ui.print(&joined(outputs))?);
    }
    for (input, output) in inputs.iter().zip(outputs).filter(|(input, out)| input.text != **out) {
        match &input.path {
            Some(path) => replace(path, output)
                .map_err(|error| CliError::failed(format!("{}: {error}", path.display())))?,
            None => cx.ui.print(output)?,
        }
    }
    Ok(())
}

/// Writes a file so that there is the old or the new text, whole, whatever happens meanwhile.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    // A link stays one: what it leads to is replaced.
    let path = fs::canonicalize(path)?;
    let old = fs::metadata(&path)?;
    let (true, Some(folder), Some(name)) = (old.is_file(), path.parent(), path.file_name()) else {
        // A pipe or a device cannot be replaced.
        return fs::write(path, text);
    };
    let unfinished =
        folder.join(format!(".{}.meshctl-{}", name.to_string_lossy(), std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| {
        // Only root may give files away; it should not keep those of others.
        let _ = fchown(&file, Some(old.uid()), Some(old.gid()));
        file.set_permissions(old.permissions())?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)
    });
    if written.is_err() {
        // The first failure is the one to tell.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// Documents of several files, kept apart.
fn joined(outputs: &[String]) -> String {
    let mut all = String::new();
    for output in outputs {
        if !all.is_empty() {
            if !all.ends_with('\n') {
                all.push('\n');
            }
            if !output.starts_with("---") {
                all.push_str("---\n");
            }
        }
        all.push_str(output);
    }
    all
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_stays_what_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a.yaml"), folder.path().join("link.yaml"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        symlink("a.yaml", &link).unwrap();
        let mut reader = fs::File::open(&file).unwrap();
        replace(&link, "new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let mut seen = String::new();
        reader.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "old", "who was reading gets the old text whole");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left behind");
    }
}
