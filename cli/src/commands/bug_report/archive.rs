//! The archive: files of text, none of which leaves without having been through [`redact`].

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use serde_json::Value;

use super::redact;
use crate::error::CliError;

/// The folder that everything is in.
const FOLDER: &str = "meshctl-bug-report";

pub(super) struct Archive {
    tar: tar::Builder<GzEncoder<File>>,
    files: usize,
    errors: Vec<String>,
    now: u64,
}

impl Archive {
    /// Begins a file that only its owner can read. One that exists is left alone.
    pub(super) fn create(path: &Path) -> Result<Self, CliError> {
        let mut options = OpenOptions::new();
        let file =
            options.write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
                let refused =
                    CliError::failed(format!("cannot create {}: {error}", path.display()));
                match error.kind() {
                    io::ErrorKind::AlreadyExists => refused.hint("--file FILE, another name"),
                    _ => refused.hint("--file FILE, in a folder you can write to"),
                }
            })?;
        let tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        let now = u64::try_from(Timestamp::now().as_second()).unwrap_or_default();
        Ok(Self { tar, files: 0, errors: Vec::new(), now })
    }

    pub(super) fn text(&mut self, name: &str, text: &str) -> Result<(), CliError> {
        let text = redact::text(text);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.now);
        self.tar.append_data(&mut header, format!("{FOLDER}/{name}"), text.as_bytes())?;
        self.files += 1;
        Ok(())
    }

    /// Adds objects, without what is nobody's business.
    pub(super) fn objects(&mut self, name: &str, mut objects: Value) -> Result<(), CliError> {
        redact::object(&mut objects);
        let text = serde_json::to_string_pretty(&objects).map_err(io::Error::other)?;
        self.text(name, &text)
    }

    /// Notes what could not be found out.
    pub(super) fn error(&mut self, about: &str, what: &str) -> Result<(), CliError> {
        self.errors.push(format!("{about}: {}", what.trim_end()));
        Ok(())
    }

    pub(super) fn files(&self) -> usize {
        self.files + usize::from(!self.errors.is_empty())
    }

    pub(super) fn errors(&self) -> usize {
        self.errors.len()
    }

    /// Writes it to its end, and says how large it is.
    pub(super) fn finish(mut self) -> Result<u64, CliError> {
        if !self.errors.is_empty() {
            let text = self.errors.join("\n") + "\n";
            self.text("errors.txt", &text)?;
        }
        let file = self.tar.into_inner()?.finish()?;
        file.sync_all()?;
        Ok(file.metadata()?.len())
    }
}
