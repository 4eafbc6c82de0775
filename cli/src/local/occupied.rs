//! Who has a port: to name the program that is in the way.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Tries to listen there for a moment. The error says who is in the way, if that can be told.
pub fn check(address: SocketAddr) -> Result<(), String> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) => Err(describe(address, &error)),
    }
}

/// Whether nobody listens on a port, on any address.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

/// An error of listening, with whoever has the port.
pub fn describe(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => match holder(address.port()) {
            Some(holder) => format!("{address} is taken by {holder}"),
            None => format!("{address} is taken by another program"),
        },
        io::ErrorKind::PermissionDenied => {
            format!("{address} may not be used by this user; ports below 1024 need root")
        }
        _ => format!("can't listen on {address}: {error}"),
    }
}

/// `nginx (pid 12)`, if it is a process of which we may see the descriptors.
fn holder(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let inodes: Vec<u64> = tables
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listeners(&table, port))
        .collect();
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let descriptors = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let mut targets = descriptors.filter_map(|fd| fs::read_link(fd.path()).ok());
        if targets.any(|target| links.iter().any(|link| target.as_os_str() == link.as_str())) {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {pid})", command.trim()));
        }
    }
    None
}

/// Inodes of the sockets that listen on a port, from a table of `/proc/net`.
fn listeners(table: &str, port: u16) -> Vec<u64> {
    const LISTENING: &str = "0A";
    let wanted = format!(":{port:04X}");
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.len() > 9 && row[1].ends_with(&wanted) && row[3] == LISTENING)
        .filter_map(|row| row[9].parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1 0
   1: 0100007F:1F90 0100007F:1F91 01 00000000:00000000 00:00000000 00000000     0        0 78 1 0
   2: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 79 1 0
";

    #[test]
    fn listeners_are_told_from_connections() {
        assert_eq!(listeners(TABLE, 8080), [77]);
        assert_eq!(listeners(TABLE, 80), [79]);
        assert_eq!(listeners(TABLE, 8081), Vec::<u64>::new());
    }

    #[test]
    fn who_is_in_the_way_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let told = check(address).unwrap_err();
        assert!(told.contains(&format!("(pid {})", std::process::id())), "{told}");
        assert!(!is_free(address.port()));
        drop(listener);
        assert_eq!(check(address), Ok(()));
    }
}
