//! Cluster addresses of services that name none.
//!
//! Programs keep addresses for as long as they like, so a service keeps its own across restarts of
//! the control plane: they are derived from names and written down.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::index::object::Name;

/// First address of the range; it has 2^15.
const FIRST: u32 = 0xc612_8000; // 198.18.128.0
const SIZE: u32 = 1 << 15;

/// Whether the local mesh gives this address out.
pub(super) fn in_range(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => (FIRST..FIRST + SIZE).contains(&u32::from(ip)),
        IpAddr::V6(_) => false,
    }
}

/// Addresses given out.
#[derive(Debug)]
pub(super) struct Addresses {
    file: PathBuf,
    by_name: BTreeMap<String, Ipv4Addr>,
    taken: HashMap<Ipv4Addr, String>,
    changed: bool,
}

impl Addresses {
    /// Those written down in a file; none if it cannot be read.
    pub(super) fn load(file: &Path) -> Self {
        let text = fs::read(file).unwrap_or_default();
        let known: BTreeMap<String, Ipv4Addr> = serde_json::from_slice(&text).unwrap_or_default();
        let mut addresses = Self {
            file: file.to_owned(),
            by_name: BTreeMap::new(),
            taken: HashMap::new(),
            changed: false,
        };
        for (name, ip) in known {
            if in_range(ip.into()) && !addresses.taken.contains_key(&ip) {
                addresses.taken.insert(ip, name.clone());
                addresses.by_name.insert(name, ip);
            }
        }
        addresses
    }

    /// The address of a service, new if it has none; `None` when all are given out.
    pub(super) fn of(&mut self, service: &Name) -> Option<IpAddr> {
        let name = service.to_string();
        if let Some(ip) = self.by_name.get(&name) {
            return Some((*ip).into());
        }
        let start = hash(&name);
        // The first and last address of a network are better left alone.
        let candidates =
            (0..SIZE).map(|step| (start + step) % SIZE).filter(|n| (1..SIZE - 1).contains(n));
        let ip = candidates
            .map(|offset| Ipv4Addr::from(FIRST + offset))
            .find(|ip| !self.taken.contains_key(ip))?;
        self.taken.insert(ip, name.clone());
        self.by_name.insert(name, ip);
        self.changed = true;
        Some(ip.into())
    }

    /// Takes the address of a service back.
    pub(super) fn release(&mut self, service: &Name) {
        if let Some(ip) = self.by_name.remove(&service.to_string()) {
            self.taken.remove(&ip);
            self.changed = true;
        }
    }

    /// Takes back the addresses of all services that are not `kept`.
    pub(super) fn retain(&mut self, kept: impl Fn(&str) -> bool) {
        let before = self.by_name.len();
        self.by_name.retain(|name, _| kept(name));
        self.taken.retain(|_, name| self.by_name.contains_key(name));
        self.changed |= self.by_name.len() != before;
    }

    /// Writes them down if there is anything new.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn save(&mut self) -> io::Result<()> {
        if !self.changed {
            return Ok(());
        }
        let temporary = self.file.with_extension("tmp");
        fs::write(&temporary, serde_json::to_vec(&self.by_name)?)?;
        fs::rename(&temporary, &self.file)?;
        self.changed = false;
        Ok(())
    }
}

/// FNV-1a: stable across versions, unlike the standard library's.
fn hash(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
        % SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_keeps_its_address() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster-ips.json");
        let mut addresses = Addresses::load(&file);
        let tax = addresses.of(&Name::new("shop", "tax")).unwrap();
        assert!(in_range(tax));
        let others: Vec<_> =
            (0..5000).map(|n| addresses.of(&Name::new("shop", format!("s{n}"))).unwrap()).collect();
        let distinct: std::collections::BTreeSet<_> = others.iter().collect();
        assert_eq!(distinct.len(), 5000);
        addresses.save().unwrap();

        let mut again = Addresses::load(&file);
        assert_eq!(again.of(&Name::new("shop", "s4999")), Some(others[4999]));
        assert_eq!(again.of(&Name::new("shop", "tax")), Some(tax));
        again.retain(|name| name == "shop/tax");
        assert_eq!(again.by_name.len(), 1);
    }

    #[test]
    fn a_damaged_file_is_like_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster-ips.json");
        for text in [
            "",
            "{",
            "{\"a/b\": \"10.0.0.1\"}",
            "{\"a/b\": \"198.18.128.5\", \"a/c\": \"198.18.128.5\"}",
        ] {
            fs::write(&file, text).unwrap();
            assert!(Addresses::load(&file).taken.len() <= 1, "{text}");
        }
    }
}
