//! What is left alone: ports and subnets, as they are written in options and annotations.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// One port, or all from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    first: u16,
    last: u16,
}

/// Text that names no ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a port such as 22 nor a range such as 8000-8010")]
pub struct BadPorts(String);

impl Ports {
    pub const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    pub const fn first(self) -> u16 {
        self.first
    }

    pub const fn last(self) -> u16 {
        self.last
    }
}

impl FromStr for Ports {
    type Err = BadPorts;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let port = |text: &str| text.parse().ok().filter(|port| *port != 0);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(BadPorts(text.to_owned())),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

/// The addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// Its lowest address.
    addr: IpAddr,
    bits: u8,
}

/// Text that names no subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a subnet such as 10.0.0.0/8 or fd00::/8, nor an address")]
pub struct BadSubnet(String);

impl Subnet {
    /// The bits that are given, as a mask of the address's length.
    pub(crate) fn mask(self) -> IpAddr {
        let bits = u32::from(self.bits);
        match self.addr {
            IpAddr::V4(_) => Ipv4Addr::from(u32::MAX.checked_shl(32 - bits).unwrap_or(0)).into(),
            IpAddr::V6(_) => Ipv6Addr::from(u128::MAX.checked_shl(128 - bits).unwrap_or(0)).into(),
        }
    }

    pub const fn addr(self) -> IpAddr {
        self.addr
    }

    pub const fn bits(self) -> u8 {
        self.bits
    }

    pub(crate) const fn is_one_address(self) -> bool {
        self.bits == if self.addr.is_ipv4() { 32 } else { 128 }
    }
}

impl FromStr for Subnet {
    type Err = BadSubnet;

    /// An address alone is the subnet of that address; bits beyond the prefix are ignored.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadSubnet(text.to_owned());
        let (addr, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let addr: IpAddr = addr.parse().map_err(|_| bad())?;
        let all = if addr.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(all), |bits| bits.parse().map_err(|_| bad()))?;
        if bits > all {
            return Err(bad());
        }
        let addr = match (addr, Self { addr, bits }.mask()) {
            (IpAddr::V4(addr), IpAddr::V4(mask)) => (addr & mask).into(),
            (IpAddr::V6(addr), IpAddr::V6(mask)) => (addr & mask).into(),
            (addr, _) => addr,
        };
        Ok(Self { addr, bits })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { addr, bits } = self;
        if self.is_one_address() { write!(f, "{addr}") } else { write!(f, "{addr}/{bits}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_or_a_range() {
        for text in ["22", "8000-8010", "1-65535"] {
            assert_eq!(text.parse::<Ports>().unwrap().to_string(), text);
        }
        assert_eq!("80-80".parse(), Ok(Ports::one(80)));
        for text in ["", "0", "-", "80-", "-80", "9-8", "65536", "a", "1-2-3", " 80"] {
            assert!(text.parse::<Ports>().is_err(), "{text}");
        }
    }

    #[test]
    fn subnets_are_of_both_families() {
        let written = |text: &str| text.parse::<Subnet>().unwrap().to_string();
        assert_eq!(written("10.1.2.3/8"), "10.0.0.0/8");
        assert_eq!(written("10.1.2.3"), "10.1.2.3");
        assert_eq!(written("10.1.2.3/32"), "10.1.2.3");
        assert_eq!(written("172.16.1.1/12"), "172.16.0.0/12");
        assert_eq!(written("1.2.3.4/0"), "0.0.0.0/0");
        assert_eq!(written("fd12::1/8"), "fd00::/8");
        assert_eq!(written("fd12::1"), "fd12::1");
        assert_eq!(written("::1/0"), "::/0");
        for text in ["", "10.0.0.0/33", "fd00::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/-1", "x/8"]
        {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }
}
