//! A table as one transaction of nf_tables. Names and numbers are the kernel's (`linux/netfilter/nf_tables.h`);
//! expressions are written as `nft` writes them, so that it shows what it would show of its own.

use std::net::IpAddr;

use crate::netlink::Message;
use crate::rules::{Chain, Hook, Match, Rule, TABLE, Table, Verdict};

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;

const PRIORITY_DSTNAT: i32 = -100;
const RETURN: i32 = -5;
const PORT_IS_GIVEN: u32 = 2;
const REGISTER: u32 = 1;
const REGISTER_VERDICT: u32 = 0;

/// A transaction, ready to be sent: all of it happens, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    messages: Vec<Vec<u8>>,
    /// What each message asks for, in words.
    about: Vec<String>,
}

impl Batch {
    /// Makes the table, in place of one of that name.
    pub fn replace(table: &Table) -> Self {
        let mut batch = Self::begin();
        batch.remove(TABLE);
        batch.table(NEW_TABLE, TABLE, format!("table inet {TABLE}"));
        for chain in &table.chains {
            batch.chain(chain);
            for rule in &chain.rules {
                batch.rule(chain.hook, *rule);
            }
        }
        batch.end()
    }

    /// Deletes the table of that name, whether there is one or not.
    pub fn delete(table: &str) -> Self {
        let mut batch = Self::begin();
        batch.remove(table);
        batch.end()
    }

    /// The messages, in order. Each has its place as sequence number.
    pub fn messages(&self) -> &[Vec<u8>] {
        &self.messages
    }

    /// The place of the message whose answer is asked for: the last, but for the end of the batch. The
    /// kernel answers it after the transaction; messages that fail it answers unasked, before.
    pub(crate) fn last(&self) -> u32 {
        self.messages.len().saturating_sub(2) as u32
    }

    pub(crate) fn about(&self, seq: u32) -> &str {
        self.about.get(seq as usize).map_or("the transaction", String::as_str)
    }

    fn begin() -> Self {
        let mut batch = Self::default();
        batch.push(BATCH_BEGIN, 0, NFPROTO_UNSPEC, "the transaction".to_owned(), |_| {});
        batch
    }

    fn end(mut self) -> Self {
        self.push(BATCH_END, 0, NFPROTO_UNSPEC, "the transaction".to_owned(), |_| {});
        let last = self.last() as usize;
        let flags = &mut self.messages[last][6..8];
        let asked = u16::from_ne_bytes([flags[0], flags[1]]) | ACK;
        flags.copy_from_slice(&asked.to_ne_bytes());
        self
    }

    fn push(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        about: String,
        write: impl FnOnce(&mut Message),
    ) {
        let seq = self.messages.len() as u32;
        let resource = if family == NFPROTO_UNSPEC { SUBSYSTEM } else { 0 };
        let mut message = Message::new(kind, REQUEST | flags, seq, family, resource);
        write(&mut message);
        self.messages.push(message.finish());
        self.about.push(about);
    }

    /// Deleting what is not there is an error, so it is made first: that it is there already is none.
    fn remove(&mut self, name: &str) {
        self.table(NEW_TABLE, name, format!("table inet {name}"));
        self.table(DELETE_TABLE, name, format!("deleting table inet {name}"));
    }

    fn table(&mut self, kind: u16, name: &str, about: String) {
        let flags = if kind == NEW_TABLE { CREATE } else { 0 };
        self.push(kind, flags, NFPROTO_INET, about, |table| table.text(1, name));
    }

    fn chain(&mut self, chain: &Chain) {
        let name = chain.hook.name();
        let about = format!("chain {name} of type nat in table inet {TABLE}");
        self.push(NEW_CHAIN, CREATE, NFPROTO_INET, about, |message| {
            message.text(1, TABLE);
            message.text(3, name);
            message.nested(4, |hook| {
                hook.number(1, hook_number(chain.hook));
                hook.number(2, PRIORITY_DSTNAT as u32);
            });
            message.number(5, 1); // policy accept
            message.text(7, "nat");
        });
    }

    fn rule(&mut self, hook: Hook, rule: Rule) {
        let about = format!("rule `{rule}` in chain {} of table inet {TABLE}", hook.name());
        self.push(NEW_RULE, CREATE | APPEND, NFPROTO_INET, about, |message| {
            message.text(1, TABLE);
            message.text(2, hook.name());
            message.nested(4, |list| {
                matches(list, rule.matches);
                verdict(list, rule.verdict);
            });
        });
    }
}

const fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Output => 3,
    }
}

fn matches(list: &mut Message, matches: Match) {
    match matches {
        Match::Uid(uid) => {
            meta(list, Meta::SocketUid);
            // The kernel has it in the machine's order.
            compare(list, Compare::Equal, &uid.to_ne_bytes());
        }
        Match::OutInterface(name) => {
            let mut padded = [0; 16];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            meta(list, Meta::OutInterfaceName);
            compare(list, Compare::Equal, &padded);
        }
        Match::Tcp => tcp(list),
        Match::DestinationPorts(ports) => {
            tcp(list);
            load(list, Header::Transport, 2, 2);
            let (first, last) = (ports.first().to_be_bytes(), ports.last().to_be_bytes());
            if first == last {
                compare(list, Compare::Equal, &first);
            } else {
                compare(list, Compare::AtLeast, &first);
                compare(list, Compare::AtMost, &last);
            }
        }
        Match::Destination(subnet) => {
            let octets = |addr| match addr {
                IpAddr::V4(addr) => addr.octets().to_vec(),
                IpAddr::V6(addr) => addr.octets().to_vec(),
            };
            let (family, offset, addr) = match subnet.addr() {
                addr @ IpAddr::V4(_) => (NFPROTO_IPV4, 16, octets(addr)),
                addr @ IpAddr::V6(_) => (NFPROTO_IPV6, 24, octets(addr)),
            };
            meta(list, Meta::Family);
            compare(list, Compare::Equal, &[family]);
            if subnet.bits() == 0 {
                return;
            }
            load(list, Header::Network, offset, addr.len() as u32);
            if !subnet.is_one_address() {
                mask(list, &octets(subnet.mask()));
            }
            compare(list, Compare::Equal, &addr);
        }
    }
}

fn verdict(list: &mut Message, verdict: Verdict) {
    match verdict {
        Verdict::Return => expression(list, "immediate", |data| {
            data.number(1, REGISTER_VERDICT);
            data.nested(2, |value| value.nested(2, |code| code.number(1, RETURN as u32)));
        }),
        Verdict::Redirect { port } => {
            expression(list, "immediate", |data| {
                data.number(1, REGISTER);
                data.nested(2, |value| value.bytes(1, &port.to_be_bytes()));
            });
            // The lowest port; without a highest it is the only one.
            expression(list, "redir", |data| {
                data.number(1, REGISTER);
                data.number(3, PORT_IS_GIVEN);
            });
        }
    }
}

fn tcp(list: &mut Message) {
    meta(list, Meta::TransportProtocol);
    compare(list, Compare::Equal, &[IPPROTO_TCP]);
}

#[derive(Clone, Copy)]
enum Meta {
    OutInterfaceName = 7,
    SocketUid = 10,
    Family = 15,
    TransportProtocol = 16,
}

fn meta(list: &mut Message, key: Meta) {
    expression(list, "meta", |data| {
        data.number(2, key as u32);
        data.number(1, REGISTER);
    });
}

#[derive(Clone, Copy)]
enum Compare {
    Equal = 0,
    AtMost = 3,
    AtLeast = 5,
}

fn compare(list: &mut Message, how: Compare, with: &[u8]) {
    expression(list, "cmp", |data| {
        data.number(1, REGISTER);
        data.number(2, how as u32);
        data.nested(3, |value| value.bytes(1, with));
    });
}

#[derive(Clone, Copy)]
enum Header {
    Network = 1,
    Transport = 2,
}

/// Loads bytes of a packet's header.
fn load(list: &mut Message, of: Header, offset: u32, len: u32) {
    expression(list, "payload", |data| {
        data.number(1, REGISTER);
        data.number(2, of as u32);
        data.number(3, offset);
        data.number(4, len);
    });
}

fn mask(list: &mut Message, mask: &[u8]) {
    expression(list, "bitwise", |data| {
        data.number(1, REGISTER);
        data.number(2, REGISTER);
        data.number(3, mask.len() as u32);
        data.nested(4, |value| value.bytes(1, mask));
        data.nested(5, |value| value.bytes(1, &vec![0; mask.len()]));
    });
}

fn expression(list: &mut Message, name: &str, write: impl FnOnce(&mut Message)) {
    list.nested(1, |expression| {
        expression.text(1, name);
        expression.nested(2, write);
    });
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
