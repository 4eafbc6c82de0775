use std::fmt::Write as _;

use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload, Nla as _, Parseable};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, Cmp, DataAttribute, ExpressionAttribute, Expressions,
    Hook as DecodedHook, HookNumber, Immediate, InetHookNumber, ListAttribute, Meta as DecodedMeta,
    NfTablesMessage, Payload, RuleAttribute,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};

use super::*;
use crate::{Ports, Redirect};

fn batch() -> Batch {
    let redirect = Redirect {
        proxy_uid: 2102,
        inbound_port: 4143,
        outbound_port: 4140,
        skip_inbound_ports: vec!["8000-8010".parse().unwrap()],
        skip_outbound_ports: vec![Ports::one(3306)],
        skip_subnets: vec!["10.0.0.0/8".parse().unwrap(), "fd00::1".parse().unwrap()],
    };
    Batch::replace(&redirect.table().unwrap())
}

fn decode(message: &[u8]) -> NetlinkMessage<NetfilterMessage> {
    NetlinkMessage::parse(&NetlinkBuffer::new(&message)).unwrap()
}

fn nf_tables(message: &[u8]) -> NfTablesMessage {
    let NetlinkPayload::InnerMessage(message) = decode(message).payload else {
        panic!("not netfilter's: {message:?}");
    };
    let NetfilterMessage { header, inner: NetfilterMessageInner::NfTables(inner), .. } = message
    else {
        panic!("not of nf_tables");
    };
    assert_eq!(header.family, NetfilterProtoFamily::Inet);
    inner
}

#[test]
fn a_transaction_replaces_the_table() {
    let batch = batch();
    let kinds: Vec<_> = batch
        .messages()
        .iter()
        .enumerate()
        .map(|(at, message)| {
            let header = decode(message).header;
            assert_eq!(
                (header.sequence_number as usize, header.length as usize),
                (at, message.len())
            );
            header.message_type
        })
        .collect();
    let (new_table, delete_table, new_chain, new_rule) = (0xa00, 0xa02, 0xa03, 0xa06);
    let mut expected = vec![0x10, new_table, delete_table, new_table, new_chain];
    expected.extend([new_rule; 6]);
    expected.push(new_chain);
    expected.extend([new_rule; 5]);
    expected.push(0x11);
    assert_eq!(kinds, expected);
    let asked: Vec<_> =
        batch.messages().iter().map(|message| decode(message).header.flags & ACK != 0).collect();
    let last = asked.iter().position(|asked| *asked).unwrap();
    assert_eq!((last as u32, asked.iter().filter(|asked| **asked).count()), (batch.last(), 1));
    assert_eq!(last, asked.len() - 2);
}

#[test]
fn chains_hook_where_destinations_are_changed() {
    let batch = batch();
    let NfTablesMessage::NewChain(chain) = nf_tables(&batch.messages()[4]) else { panic!() };
    let hook = vec![
        DecodedHook::Number(HookNumber::Inet(InetHookNumber::LocalOut)),
        DecodedHook::Priority(-100_i32 as u32),
    ];
    let expected = [
        ChainAttribute::Table("mesh".to_owned()),
        ChainAttribute::Name("output".to_owned()),
        ChainAttribute::Hook(hook),
        ChainAttribute::Policy(1),
        ChainAttribute::Type("nat".to_owned()),
    ];
    assert_eq!(chain.attributes, expected);
}

/// A rule's chain and expressions, much as `nft --debug=netlink` tells them.
fn told(message: &[u8]) -> String {
    let NfTablesMessage::NewRule(rule) = nf_tables(message) else { panic!("not a rule") };
    let [RuleAttribute::Table(_), RuleAttribute::Chain(chain), RuleAttribute::Expressions(list)] =
        &rule.attributes[..]
    else {
        panic!("{rule:?}");
    };
    let mut text = chain.clone();
    for element in list {
        let ListAttribute::Element(element) = element else { panic!("{element:?}") };
        let [ExpressionAttribute::Name(name), ExpressionAttribute::Data(data)] = &element[..]
        else {
            panic!("{element:?}");
        };
        write!(text, " [{name}{}]", expression_told(data)).unwrap();
    }
    text
}

fn expression_told(expression: &Expressions) -> String {
    match expression {
        Expressions::Meta(attrs) => {
            let [DecodedMeta::Key(key), DecodedMeta::DestinationRegister(to)] = &attrs[..] else {
                panic!("{attrs:?}");
            };
            format!(" {key:?} -> {to:?}")
        }
        Expressions::Cmp(attrs) => {
            let [Cmp::SourceRegister(of), Cmp::Op(operator), Cmp::Data(with)] = &attrs[..] else {
                panic!("{attrs:?}");
            };
            format!(" {of:?} {operator:?} {}", value(with))
        }
        Expressions::Payload(attrs) => {
            let [
                Payload::DestinationRegister(to),
                Payload::Base(base),
                Payload::Offset(offset),
                Payload::Len(len),
            ] = &attrs[..]
            else {
                panic!("{attrs:?}");
            };
            format!(" {len} at {base}+{offset} -> {to:?}")
        }
        Expressions::Bitwise(attrs) => {
            let [
                Bitwise::SourceRegister(of),
                Bitwise::DestinationRegister(to),
                Bitwise::Length(_),
                Bitwise::Mask(mask),
                Bitwise::Xor(xor),
            ] = &attrs[..]
            else {
                panic!("{attrs:?}");
            };
            format!(" {of:?} & {} ^ {} -> {to:?}", value(mask), value(xor))
        }
        Expressions::Immediate(attrs) => {
            let [Immediate::DestinationRegister(to), Immediate::Data(data)] = &attrs[..] else {
                panic!("{attrs:?}");
            };
            format!(" {} -> {to:?}", value(data))
        }
        Expressions::Other { attributes, .. } => {
            let mut text = String::new();
            for attribute in attributes {
                let mut value = vec![0; attribute.value_len()];
                attribute.emit_value(&mut value);
                write!(text, " {}:{}", attribute.kind(), hex(&value)).unwrap();
            }
            text
        }
        other => panic!("{other:?}"),
    }
}

fn value(data: &DataAttribute) -> String {
    match data {
        DataAttribute::Value(bytes) => hex(bytes),
        DataAttribute::Verdict(verdict) => format!("{verdict:?}"),
        other => panic!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn rules_decode_to_what_was_meant() {
    let batch = batch();
    let rules: Vec<_> =
        batch.messages()[5..11].iter().chain(&batch.messages()[12..17]).map(|m| told(m)).collect();
    let tcp = "[meta L4Proto -> Reg1] [cmp Reg1 Equal 06]";
    let back = "[immediate [Code(Return)] -> Verdict]";
    let port = "[payload 2 at 2+2 -> Reg1]";
    let uid = hex(&2102_u32.to_ne_bytes());
    let expected = [
        format!("output [meta SocketUserId -> Reg1] [cmp Reg1 Equal {uid}] {back}"),
        format!("output [meta Oifname -> Reg1] [cmp Reg1 Equal 6c6f{}] {back}", "00".repeat(14)),
        format!("output {tcp} {port} [cmp Reg1 Equal 0cea] {back}"),
        format!(
            "output [meta Nfproto -> Reg1] [cmp Reg1 Equal 02] [payload 4 at 1+16 -> Reg1] \
             [bitwise Reg1 & ff000000 ^ 00000000 -> Reg1] [cmp Reg1 Equal 0a000000] {back}"
        ),
        format!(
            "output [meta Nfproto -> Reg1] [cmp Reg1 Equal 0a] [payload 16 at 1+24 -> Reg1] \
             [cmp Reg1 Equal fd{}01] {back}",
            "00".repeat(14)
        ),
        format!("output {tcp} [immediate 102c -> Reg1] [redir 1:00000001 3:00000002]"),
        format!("prerouting {tcp} {port} [cmp Reg1 Equal 105e] {back}"),
        format!("prerouting {tcp} {port} [cmp Reg1 Equal 105f] {back}"),
        format!("prerouting {tcp} {port} [cmp Reg1 Equal 102f] {back}"),
        format!(
            "prerouting {tcp} {port} [cmp Reg1 GreatherThanEqual 1f40] [cmp Reg1 LessThanEqual 1f4a] {back}"
        ),
        format!("prerouting {tcp} [immediate 102f -> Reg1] [redir 1:00000001 3:00000002]"),
    ];
    assert_eq!(rules, expected);
}

/// The last rule, byte for byte as `nft` sends it but for the sequence number and the wish for an answer.
#[cfg(target_endian = "little")]
#[test]
fn a_rule_is_the_bytes_that_nft_sends() {
    let expected = concat!(
        "d4000000060a050c10000000000000000100000009000100", // header, family inet
        "6d657368000000000f000200707265726f7574696e670000", // mesh, prerouting
        "a400048024000180090001006d6574610000000014000280", // meta
        "080002000000001008000100000000012c00018008000100", // l4proto -> register 1
        "636d70002000028008000100000000010800020000000000", // cmp, register 1, equal
        "0c00038005000100060000002c0001800e000100696d6d65", // tcp, immediate
        "6469617465000000180002800800010000000001",         // register 1
        "0c00028006000100102f0000240001800a00010072656469", // 4143, redir
        "7200000014000280080001000000000108000300",         // register 1
        "00000002",                                         // the port is given
    );
    assert_eq!(hex(&batch().messages()[16]), expected);
}
