//! Of a local mesh: the logs of everything but the applications, whose words are their own.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};

use super::archive::Archive;
use crate::error::CliError;
use crate::local::logs;
use crate::state_dir::StateDir;

/// Logs at most, and lines of the end of each.
const MAX_LOGS: usize = 200;
const LINES: usize = 2_000;

pub(super) fn add(dir: &StateDir, archive: &mut Archive) -> Result<(), CliError> {
    let logs = dir.logs();
    let entries = fs::read_dir(&logs).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name.ends_with(".log") && !name.ends_with(".app.log"));
    names.sort();
    for name in names.into_iter().take(MAX_LOGS) {
        let read = || {
            let mut file = File::open(logs.join(&name))?;
            let start = logs::tail(&mut file, LINES)?;
            file.seek(SeekFrom::Start(start))?;
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            std::io::Result::Ok(String::from_utf8_lossy(&text).into_owned())
        };
        match read() {
            Ok(text) => archive.text(&format!("logs/{name}"), &text)?,
            Err(error) => archive.error(&format!("logs/{name}"), &error.to_string())?,
        }
    }
    Ok(())
}
