//! Loopback addresses that belong to one test.
//!
//! Every address of 127.0.0.0/8 is this machine, so each test takes a network of 254 addresses of
//! its own and uses the mesh's real port numbers on them, beside any other test and any mesh that a
//! user runs (`meshctl` stays below 127.201).

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

const FIRST: u32 = 201 << 8;
const COUNT: u32 = 50 << 8;
/// Whoever listens here on a network's last address holds the network.
const CLAIM_PORT: u16 = 4999;

/// 127.x.y.0/24, for this test alone as long as the value lives.
#[derive(Debug)]
pub struct Network {
    number: u32,
    _claim: TcpListener,
}

impl Network {
    /// Takes a network that nobody has.
    ///
    /// # Panics
    /// When all of them are taken.
    pub fn claim() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Processes start at different places, so that they rarely meet.
        let start = std::process::id().wrapping_mul(97);
        for _ in 0..COUNT {
            let number = FIRST + start.wrapping_add(NEXT.fetch_add(1, Relaxed)) % COUNT;
            if let Ok(claim) = TcpListener::bind((address(number, 254), CLAIM_PORT)) {
                return Self { number, _claim: claim };
            }
        }
        panic!("all networks of loopback addresses are taken");
    }

    /// The address with this last number, 1 to 253.
    pub fn address(&self, host: u8) -> Ipv4Addr {
        address(self.number, host)
    }
}

fn address(network: u32, host: u8) -> Ipv4Addr {
    Ipv4Addr::from(127 << 24 | network << 8 | u32::from(host))
}
