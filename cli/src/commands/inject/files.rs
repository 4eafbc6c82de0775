//! What is read and where the results go.

use std::fs;
use std::io::{self, Read};
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
            Some(path) => fs::write(path, output)
                .map_err(|error| CliError::failed(format!("{}: {error}", path.display())))?,
            None => cx.ui.print(output)?,
        }
    }
    Ok(())
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
