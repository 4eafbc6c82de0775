//! Log files of a mesh: kept within bounds, and read by `meshctl local logs`.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// A log that has grown beyond this many bytes is moved to `NAME.old`, which is replaced.
const MAX_LOG: u64 = 16 << 20;

/// How much of the end of a log is looked at for its last lines.
const MAX_TAIL: u64 = 4 << 20;

/// Cuts the logs in a folder that have grown too large. Writers append, so they go on at the new end.
pub fn limit(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_log = path.extension().is_some_and(|extension| extension == "log");
        let is_large = entry.metadata().is_ok_and(|meta| meta.len() > MAX_LOG);
        if is_log
            && is_large
            && let Err(error) = cut(&path)
        {
            tracing::warn!(path = %path.display(), %error, "can't cut a log");
        }
    }
}

fn cut(path: &Path) -> io::Result<()> {
    fs::copy(path, path.with_extension("log.old"))?;
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

/// Where the last `lines` lines of a file begin, in bytes from its start.
pub fn tail(file: &mut fs::File, lines: usize) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    let start = end.saturating_sub(MAX_TAIL);
    file.seek(SeekFrom::Start(start))?;
    let mut text = Vec::new();
    file.take(MAX_TAIL).read_to_end(&mut text)?;
    let body = text.strip_suffix(b"\n").unwrap_or(&text);
    if lines == 0 {
        return Ok(end);
    }
    let newlines = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    let before = newlines.map(|(at, _)| at as u64 + 1).nth(lines - 1);
    Ok(start + before.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        fs::write(&path, "one\ntwo\nthree\n").unwrap();
        let mut file = fs::File::open(&path).unwrap();
        let mut from = |lines| tail(&mut file, lines).unwrap();
        assert_eq!((from(0), from(1), from(2), from(3), from(9)), (14, 8, 4, 0, 0));
        fs::write(&path, "").unwrap();
        assert_eq!(tail(&mut fs::File::open(&path).unwrap(), 3).unwrap(), 0);
    }

    #[test]
    fn large_logs_are_cut_and_others_left() {
        let dir = tempfile::tempdir().unwrap();
        let (large, small) = (dir.path().join("large.log"), dir.path().join("small.log"));
        fs::File::create(&large).unwrap().set_len(MAX_LOG + 1).unwrap();
        fs::write(&small, "small").unwrap();
        limit(dir.path());
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert_eq!((size(&large), size(&small)), (0, 5));
        assert_eq!(size(&dir.path().join("large.log.old")), MAX_LOG + 1);
    }
}
