//! What is different on a terminal: colour, unless `NO_COLOR` is set.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::command;

/// Runs `meshctl LINE` with a terminal as its stdout and gives back what that shows.
fn on_terminal(line: &str, no_color: Option<&str>) -> String {
    let mut terminal = File::from(openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap());
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let other_end = File::options().read(true).write(true).open(name).unwrap();
    let mut command = command(line);
    command.stdin(Stdio::null()).stdout(other_end).stderr(Stdio::null()).env("TERM", "xterm");
    if let Some(value) = no_color {
        command.env("NO_COLOR", value);
    }
    let mut child = command.spawn().unwrap();
    // The command holds the other end, too; with it gone, reading ends.
    drop(command);
    let mut shown = Vec::new();
    let mut chunk = [0; 4096];
    // The end of a terminal is an error, EIO.
    while let Ok(read @ 1..) = terminal.read(&mut chunk) {
        shown.extend_from_slice(&chunk[..read]);
    }
    child.wait().unwrap();
    String::from_utf8(shown).unwrap()
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    const LINE: &str = "check --only clock";
    let shown = on_terminal(LINE, None);
    assert!(shown.contains("\x1b[32m√\x1b[0m"), "{shown:?}");
    for plain in [
        on_terminal(LINE, Some("1")),
        String::from_utf8(command(LINE).output().unwrap().stdout).unwrap(),
    ] {
        assert!(plain.contains("√ the clock") && !plain.contains('\x1b'), "{plain:?}");
    }
    // An empty NO_COLOR is as good as none: https://no-color.org
    assert!(on_terminal(LINE, Some("")).contains('\x1b'));
}
