//! Which address and ports a pod gets. Pure: whether a port is free is the caller's to say.
//!
//! Explicit mode: mesh number M owns 127.M.0.0/16, and every pod is one address of it, on the
//! machine's own loopback. Transparent mode: pods are 198.18.0.0/17 in namespaces of their own, the
//! same range for every mesh; the other half of 198.18.0.0/16 are the services.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// The numbers local meshes on one machine may have.
pub const MESH_NUMBERS: RangeInclusive<u8> = 1..=200;

/// Held by the supervisor on the first address of its mesh: who has it owns the number.
pub const CLAIM_PORT: u16 = 8085;
pub const CONTROL_PORT: u16 = 8086;
pub const CONTROL_ADMIN_PORT: u16 = 9990;

/// Ports of a proxy on its pod's address.
pub const PROXY_OUTBOUND_PORT: u16 = 4140;
pub const PROXY_INBOUND_PORT: u16 = 4143;
pub const PROXY_CONTROL_PORT: u16 = 4190;
pub const PROXY_ADMIN_PORT: u16 = 4191;
/// The first of the ports that stand for one service each.
pub const UPSTREAM_PORT: u16 = 15_001;

/// No workload may declare these: they are the proxy's own.
pub const RESERVED_PORTS: [u16; 4] =
    [PROXY_OUTBOUND_PORT, PROXY_INBOUND_PORT, PROXY_CONTROL_PORT, PROXY_ADMIN_PORT];

/// Where applications really listen. Below the ephemeral ports, so that no client takes one first.
const APP_PORTS: RangeInclusive<u16> = 20_000..=31_999;

/// More pods at a time than this are refused.
pub const MAX_PODS: usize = 500;

/// How pods reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By environment variables, on the machine's own loopback.
    Explicit,
    /// By redirecting connections, in a network namespace per pod.
    Transparent,
}

/// The addresses of one mesh.
#[derive(Debug)]
pub struct Addresses {
    mode: Mode,
    number: u8,
    used: BTreeSet<u16>,
    /// The index to try next: an address comes back as late as possible.
    next: u16,
}

impl Addresses {
    pub fn new(mode: Mode, number: u8) -> Self {
        Self { mode, number, used: BTreeSet::new(), next: 0 }
    }

    /// Where the control plane listens.
    pub fn control(&self) -> SocketAddr {
        (self.address(0, 1), CONTROL_PORT).into()
    }

    /// Where the control plane tells how it is.
    pub fn control_admin(&self) -> SocketAddr {
        (self.address(0, 1), CONTROL_ADMIN_PORT).into()
    }

    /// An address no pod has, or `None` when there are [`MAX_PODS`] already.
    pub fn allocate(&mut self) -> Option<Ipv4Addr> {
        if self.used.len() >= MAX_PODS {
            return None;
        }
        let size = self.size();
        let index = (0..size).map(|n| (self.next + n) % size).find(|n| !self.used.contains(n))?;
        self.used.insert(index);
        self.next = (index + 1) % size;
        Some(self.of_index(index))
    }

    /// Gives a pod's address back.
    pub fn release(&mut self, ip: Ipv4Addr) {
        let [_, _, high, low] = ip.octets();
        if let (Some(high), Some(low)) = (high.checked_sub(1), low.checked_sub(1)) {
            self.used.remove(&(u16::from(high) * 250 + u16::from(low)));
        }
    }

    fn size(&self) -> u16 {
        match self.mode {
            Mode::Explicit => 250 * 250,
            Mode::Transparent => 127 * 250,
        }
    }

    fn of_index(&self, index: u16) -> Ipv4Addr {
        let octet = |n: u16| u8::try_from(n + 1).unwrap_or(u8::MAX);
        self.address(octet(index / 250), octet(index % 250))
    }

    fn address(&self, high: u8, low: u8) -> Ipv4Addr {
        match self.mode {
            Mode::Explicit => Ipv4Addr::new(127, self.number, high, low),
            Mode::Transparent => Ipv4Addr::new(198, 18, high, low),
        }
    }
}

/// Ports applications listen on, each given once.
#[derive(Debug)]
pub struct AppPorts {
    used: BTreeSet<u16>,
    next: u16,
}

impl AppPorts {
    /// Each mesh begins somewhere else, so that two that start at once don't take the same.
    pub fn new(mesh_number: u8) -> Self {
        let share = (APP_PORTS.end() - APP_PORTS.start()) / u16::from(*MESH_NUMBERS.end());
        let before = u16::from(mesh_number.saturating_sub(1)) * share;
        Self { used: BTreeSet::new(), next: APP_PORTS.start() + before }
    }

    /// A port nobody was given and `is_free` agrees to.
    pub fn allocate(&mut self, is_free: impl Fn(u16) -> bool) -> Option<u16> {
        let size = APP_PORTS.end() - APP_PORTS.start() + 1;
        let from = self.next - APP_PORTS.start();
        let port = (0..size)
            .map(|n| APP_PORTS.start() + (from + n) % size)
            .find(|port| !self.used.contains(port) && is_free(*port))?;
        self.used.insert(port);
        self.next = if port == *APP_PORTS.end() { *APP_PORTS.start() } else { port + 1 };
        Some(port)
    }

    pub fn release(&mut self, port: u16) {
        self.used.remove(&port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explicit_pods_live_below_their_meshs_number() {
        let mut addresses = Addresses::new(Mode::Explicit, 7);
        assert_eq!(addresses.control(), "127.7.0.1:8086".parse().unwrap());
        assert_eq!(addresses.allocate(), Some(Ipv4Addr::new(127, 7, 1, 1)));
        assert_eq!(addresses.allocate(), Some(Ipv4Addr::new(127, 7, 1, 2)));
    }

    #[test]
    fn transparent_pods_stay_in_the_lower_half() {
        let mut addresses = Addresses::new(Mode::Transparent, 7);
        addresses.next = addresses.size() - 1;
        assert_eq!(addresses.allocate(), Some(Ipv4Addr::new(198, 18, 127, 250)));
        assert_eq!(addresses.allocate(), Some(Ipv4Addr::new(198, 18, 1, 1)));
    }

    #[test]
    fn a_released_address_comes_back_last() {
        let mut addresses = Addresses::new(Mode::Explicit, 1);
        let first = addresses.allocate().unwrap();
        addresses.release(first);
        assert_ne!(addresses.allocate(), Some(first));
        addresses.next = 0;
        assert_eq!(addresses.allocate(), Some(first));
    }

    #[test]
    fn there_are_at_most_so_many_pods() {
        let mut addresses = Addresses::new(Mode::Explicit, 1);
        let all: BTreeSet<_> = std::iter::from_fn(|| addresses.allocate()).collect();
        assert_eq!(all.len(), MAX_PODS);
        addresses.release(Ipv4Addr::new(127, 1, 2, 250));
        assert!(addresses.allocate().is_some());
    }

    #[test]
    fn app_ports_differ_and_are_free() {
        let mut ports = AppPorts::new(1);
        assert_eq!(ports.allocate(|_| true), Some(20_000));
        assert_eq!(ports.allocate(|port| port % 2 == 0), Some(20_002));
        ports.release(20_000);
        assert_eq!(ports.allocate(|_| true), Some(20_003));
        assert_eq!(ports.allocate(|_| false), None);
        assert_eq!(ports.allocate(|port| port <= 20_001), Some(20_000));
        assert_eq!(AppPorts::new(2).allocate(|_| true), Some(20_059));
        assert!(AppPorts::new(200).allocate(|_| true).is_some_and(|port| port <= 31_999));
    }
}
