//! Netlink's framing, as far as nf_tables needs it: messages of attributes of attributes, and the answers.

/// Of the family, in the message and in attributes' lengths: everything begins on a multiple of four.
const ALIGN: usize = 4;
/// Marks an attribute that consists of attributes.
const NESTED: u16 = 0x8000;

const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;

/// One message while it is written. Numbers in headers are in the machine's order, those of nf_tables in
/// the network's.
#[derive(Debug)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// Begins a message with netlink's header and netfilter's.
    pub(crate) fn new(kind: u16, flags: u16, seq: u32, family: u8, resource: u16) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend([0; 4]); // the length, which `finish` knows
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(seq.to_ne_bytes());
        bytes.extend([0; 4]); // the sender, which the kernel knows
        bytes.extend([family, 0]);
        bytes.extend(resource.to_be_bytes());
        Self(bytes)
    }

    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |bytes| bytes.extend(value));
    }

    pub(crate) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    pub(crate) fn nested(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        self.attribute(kind | NESTED, |bytes| {
            let mut within = Self(std::mem::take(bytes));
            write(&mut within);
            *bytes = within.0;
        });
    }

    fn attribute(&mut self, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
        let at = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        write(&mut self.0);
        let len = self.0.len() - at;
        debug_assert!(
            len <= usize::from(u16::MAX),
            "an attribute is longer than its length can say"
        );
        self.0[at..at + 2].copy_from_slice(&(len as u16).to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

/// The kernel's answer to one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Of the message that is answered.
    pub(crate) seq: u32,
    /// An errno, or zero.
    pub(crate) error: i32,
}

/// The answers in one datagram; whatever else is in it is left out.
pub(crate) fn answers(mut datagram: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let Some((header, _)) = datagram.split_first_chunk::<HEADER>() {
        let [l0, l1, l2, l3, t0, t1, _, _, s0, s1, s2, s3, ..] = *header;
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        if len < HEADER {
            break;
        }
        let body = datagram.get(HEADER..len.min(datagram.len())).unwrap_or_default();
        if u16::from_ne_bytes([t0, t1]) == NLMSG_ERROR
            && let Some((error, _)) = body.split_first_chunk()
        {
            let seq = u32::from_ne_bytes([s0, s1, s2, s3]);
            // The kernel says them negative.
            let error = i32::from_ne_bytes(*error).saturating_neg();
            answers.push(Answer { seq, error });
        }
        datagram = datagram.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(seq: u32, error: i32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(36_u32.to_ne_bytes());
        bytes.extend(NLMSG_ERROR.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(seq.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend((-error).to_ne_bytes());
        bytes.extend([0; 16]); // the header of what is answered
        bytes
    }

    #[test]
    fn attributes_are_padded_and_nested_ones_marked() {
        let mut message = Message::new(0xa00, 5, 7, 1, 10);
        message.text(1, "mesh");
        message.nested(4, |hook| hook.number(2, 0x0102_0304));
        let expected: Vec<u8> = [
            &44_u32.to_ne_bytes()[..],
            &0xa00_u16.to_ne_bytes(),
            &5_u16.to_ne_bytes(),
            &7_u32.to_ne_bytes(),
            &[0; 4],
            &[1, 0, 0, 10],
            &9_u16.to_ne_bytes(),
            &1_u16.to_ne_bytes(),
            b"mesh\0\0\0\0",
            &12_u16.to_ne_bytes(),
            &0x8004_u16.to_ne_bytes(),
            &8_u16.to_ne_bytes(),
            &2_u16.to_ne_bytes(),
            &[1, 2, 3, 4],
        ]
        .concat();
        assert_eq!(message.finish(), expected);
    }

    #[test]
    fn all_answers_of_a_datagram_are_read() {
        let datagram = [answer(1, 0), answer(2, 17)].concat();
        let expected = [Answer { seq: 1, error: 0 }, Answer { seq: 2, error: 17 }];
        assert_eq!(answers(&datagram), expected);
    }

    #[test]
    fn broken_datagrams_end_quietly() {
        let whole = answer(1, 1);
        for len in 0..whole.len() {
            let _ = answers(&whole[..len]);
        }
        let mut short = whole.clone();
        short[..4].copy_from_slice(&3_u32.to_ne_bytes());
        assert_eq!(answers(&short), []);
        let mut long = whole;
        long[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(answers(&long), [Answer { seq: 1, error: 1 }]);
    }
}
