//! The rules of a redirect, as data. Printed, they read as `nft list table inet mesh` shows them.

use std::fmt;
use std::net::IpAddr;

use crate::skip::{Ports, Subnet};

/// The table all of this is in, of the family `inet`: one for IPv4 and IPv6.
pub const TABLE: &str = "mesh";

/// Where a proxy answers the control plane, and kubelet's probes.
pub const PROXY_PORTS: [u16; 2] = [4190, 4191];

/// Rules of one table at most: a transaction has to fit into one datagram.
const MAX_RULES: usize = 512;

/// What is wanted: everything through the proxy, but for what is listed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The user the proxy runs as; what it sends is not led to it again.
    pub proxy_uid: u32,
    /// Where the proxy takes connections to the pod.
    pub inbound_port: u16,
    /// Where the proxy takes connections from the pod.
    pub outbound_port: u16,
    /// Ports of the pod that are reached without the proxy, besides those of the proxy itself.
    pub skip_inbound_ports: Vec<Ports>,
    /// Ports that the pod reaches without the proxy, anywhere.
    pub skip_outbound_ports: Vec<Ports>,
    /// Destinations that the pod reaches without the proxy.
    pub skip_subnets: Vec<Subnet>,
}

/// More is skipped than a transaction can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} rules are more than {MAX_RULES}: skip fewer ports and subnets, or ranges of them")]
pub struct TooManyRules(usize);

impl Redirect {
    /// The rules that do it. They are asked once for each connection, in this order.
    ///
    /// # Errors
    /// When they are too many.
    pub fn table(&self) -> Result<Table, TooManyRules> {
        let skip = |matches| Rule { matches, verdict: Verdict::Return };
        let redirect = |port| Rule { matches: Match::Tcp, verdict: Verdict::Redirect { port } };
        let ports = |ports: &[Ports]| -> Vec<Rule> {
            ports.iter().map(|ports| skip(Match::DestinationPorts(*ports))).collect()
        };
        // What goes to the pod itself leaves by the loopback interface whatever its address is, and is
        // no business of the mesh. A service's address is not the pod's: it is redirected.
        let mut output = vec![skip(Match::Uid(self.proxy_uid)), skip(Match::OutInterface("lo"))];
        output.extend(ports(&self.skip_outbound_ports));
        output.extend(self.skip_subnets.iter().map(|subnet| skip(Match::Destination(*subnet))));
        output.push(redirect(self.outbound_port));

        // Other proxies come to the inbound port itself, and say there which port they mean.
        let own = [&PROXY_PORTS[..], &[self.inbound_port]].concat();
        let mut prerouting = ports(&own.into_iter().map(Ports::one).collect::<Vec<_>>());
        prerouting.extend(ports(&self.skip_inbound_ports));
        prerouting.push(redirect(self.inbound_port));

        let rules = output.len() + prerouting.len();
        if rules > MAX_RULES {
            return Err(TooManyRules(rules));
        }
        let chain = |hook, rules| Chain { hook, rules };
        Ok(Table { chains: [chain(Hook::Output, output), chain(Hook::Prerouting, prerouting)] })
    }
}

/// A whole table, named [`TABLE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub chains: [Chain; 2],
}

/// A chain of the type `nat`, named like its hook. What no rule matches goes its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub hook: Hook,
    pub rules: Vec<Rule>,
}

/// Where connections pass a chain, at the priority of destination NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// From this pod.
    Output,
    /// To this pod.
    Prerouting,
}

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub matches: Match,
    pub verdict: Verdict,
}

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// The socket's user.
    Uid(u32),
    OutInterface(&'static str),
    Tcp,
    /// TCP to these ports.
    DestinationPorts(Ports),
    Destination(Subnet),
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The connection goes where it was going.
    Return,
    /// It goes to this port of this machine, which can ask where it was going.
    Redirect { port: u16 },
}

impl Hook {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Prerouting => "prerouting",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE} {{")?;
        for (index, chain) in self.chains.iter().enumerate() {
            let between = if index == 0 { "" } else { "\n" };
            write!(f, "{between}{chain}")?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.hook.name();
        // nft has a name for the priority in this hook only.
        let priority = if self.hook == Hook::Prerouting { "dstnat" } else { "-100" };
        writeln!(f, "\tchain {name} {{")?;
        writeln!(f, "\t\ttype nat hook {name} priority {priority}; policy accept;")?;
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { matches, verdict } = self;
        write!(f, "{matches} {verdict}")
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "meta skuid {uid}"),
            Self::OutInterface(name) => write!(f, "oifname \"{name}\""),
            Self::Tcp => f.write_str("meta l4proto tcp"),
            Self::DestinationPorts(ports) => write!(f, "tcp dport {ports}"),
            Self::Destination(subnet) => match (subnet.addr(), subnet.bits()) {
                (IpAddr::V4(_), 0) => f.write_str("meta nfproto ipv4"),
                (IpAddr::V6(_), 0) => f.write_str("meta nfproto ipv6"),
                (IpAddr::V4(_), _) => write!(f, "ip daddr {subnet}"),
                (IpAddr::V6(_), _) => write!(f, "ip6 daddr {subnet}"),
            },
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Return => f.write_str("return"),
            Self::Redirect { port } => write!(f, "redirect to :{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_but_what_is_skipped_is_redirected() {
        let redirect = Redirect {
            proxy_uid: 2102,
            inbound_port: 4143,
            outbound_port: 4140,
            skip_inbound_ports: vec![Ports::one(22), "8000-8010".parse().unwrap()],
            skip_outbound_ports: vec![Ports::one(3306)],
            skip_subnets: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
        };
        let expected = "table inet mesh {
\tchain output {
\t\ttype nat hook output priority -100; policy accept;
\t\tmeta skuid 2102 return
\t\toifname \"lo\" return
\t\ttcp dport 3306 return
\t\tip daddr 10.0.0.0/8 return
\t\tip6 daddr fd00::/8 return
\t\tmeta l4proto tcp redirect to :4140
\t}

\tchain prerouting {
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\ttcp dport 4190 return
\t\ttcp dport 4191 return
\t\ttcp dport 4143 return
\t\ttcp dport 22 return
\t\ttcp dport 8000-8010 return
\t\tmeta l4proto tcp redirect to :4143
\t}
}
";
        assert_eq!(redirect.table().unwrap().to_string(), expected);
    }

    #[test]
    fn rules_have_a_bound() {
        let redirect = Redirect {
            proxy_uid: 1,
            inbound_port: 1,
            outbound_port: 2,
            skip_inbound_ports: Vec::new(),
            skip_outbound_ports: vec![Ports::one(1); MAX_RULES],
            skip_subnets: Vec::new(),
        };
        assert!(redirect.table().is_err());
    }
}
