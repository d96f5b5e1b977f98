//! nf_tables over netlink: transactions that change a table all at once or not at all, and reading back what a table holds.
//! An own encoder of some hundred lines, because the crates that exist either drive the `nft` program or carry the whole
//! grammar. It knows tables, chains, rules, sets and elements (linux/netfilter/nf_tables.h), and nothing of pods.

pub mod attribute;
mod expression;
mod observe;

use std::io;

use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST};
use rtnetlink::sys::{Socket, SocketAddr};

use attribute::Writer;
pub use expression::{Expression, Register};
pub use observe::{Observed, generation, messages, observe};

/// NFPROTO_IPV4: the family `ip` of nft(8).
pub const FAMILY: u8 = 2;

/// NETLINK_NETFILTER, netlink(7).
const NETLINK_NETFILTER: isize = 12;

/// Elements in one message: the list is one attribute, whose length has 16 bits.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// Where a change can be cut into several transactions, it is cut at this size: what is larger than the socket's buffer, at least
/// 160 KB (net.core.wmem_default), takes as much of the kernel's memory in one piece.
pub const TRANSACTION_BYTES_MAX: usize = 128 * 1024;

/// linux/netfilter/nfnetlink.h and nf_tables.h, as libc has them.
const SUBSYSTEM: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;

/// Data types of nft(8), with which `nft list` prints keys and values; six bits each in a concatenation.
pub const TYPE_IPV4_ADDR: u32 = 7;
pub const TYPE_INET_PROTO: u32 = 12;
pub const TYPE_INET_SERVICE: u32 = 13;
/// Any number of four bytes in the machine's own order.
pub const TYPE_MARK: u32 = 19;
/// Alone as a map's value: a chain to go on in.
pub const TYPE_VERDICT: u32 = 1;
/// What the kernel calls that type: NFT_DATA_VERDICT.
const KERNEL_TYPE_VERDICT: u32 = 0xffff_ff00;
/// NFT_SET_CONCAT, which libc lacks: ranges in each part of a concatenation, since Linux 5.6.
const SET_CONCAT: u32 = 0x80;

/// A concatenation of data types: its number for nft, and its length, four bytes for each part.
fn concatenation(types: &[u32]) -> (u32, u32) {
    (types.iter().fold(0, |all, one| all << 6 | one), types.len() as u32 * 4)
}

/// How many bytes of a part of a concatenation are its own.
fn own_bytes(data_type: u32) -> u32 {
    match data_type {
        TYPE_INET_PROTO => 1,
        TYPE_INET_SERVICE => 2,
        _ => 4,
    }
}

/// A point in the packet's way at which a chain is called. Priorities as nft(8) names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// NF_INET_PRE_ROUTING (0) to NF_INET_POST_ROUTING (4).
    pub number: u32,
    pub priority: i32,
}

/// A set of concatenations, or a map from one concatenation to another or to a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set<'a> {
    pub name: &'a str,
    pub key: &'static [u32],
    /// Empty for a set.
    pub value: &'static [u32],
    /// An element is all keys from one to another, part by part; both stand in its key, one behind the other.
    pub has_ranges: bool,
}

/// One element: the bytes of the key's parts and of the value's, each part filled up to four bytes. In a set it has no value,
/// in a map to chains the chain's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

/// Messages that the kernel applies together: either all of them, or none.
pub struct Transaction {
    table: &'static str,
    bytes: Vec<u8>,
    sequence: u32,
    /// Where the last message begins: it asks for the answer.
    last_at: usize,
}

impl Transaction {
    /// A transaction on the table `table` of the family `ip`. The kernel refuses it with ERESTART if the ruleset is not of
    /// that generation any more: what was decided was decided of something else.
    pub fn new(table: &'static str, generation: u32) -> Self {
        let mut transaction = Self { table, bytes: Vec::new(), sequence: 0, last_at: 0 };
        transaction.message(libc::NFNL_MSG_BATCH_BEGIN as u16, 0, 0, libc::NFNL_SUBSYS_NFTABLES as u16, |at| {
            at.be32(attribute::BATCH_GENERATION, generation);
        });
        transaction
    }

    /// Nothing would change.
    pub fn is_empty(&self) -> bool {
        self.sequence == 1
    }

    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Creates the table, or finds it.
    pub fn create_table(&mut self) {
        let table = self.table;
        self.change(libc::NFT_MSG_NEWTABLE, NLM_F_CREATE, |at| at.string(attribute::TABLE_NAME, table));
    }

    /// Deletes the table and all in it; it must exist.
    pub fn delete_table(&mut self) {
        let table = self.table;
        self.change(libc::NFT_MSG_DELTABLE, 0, |at| at.string(attribute::TABLE_NAME, table));
    }

    /// Creates a chain; without a hook, one to be jumped to.
    pub fn create_chain(&mut self, name: &str, hook: Option<Hook>) {
        let table = self.table;
        self.change(libc::NFT_MSG_NEWCHAIN, NLM_F_CREATE, |at| {
            at.string(attribute::CHAIN_TABLE, table);
            at.string(attribute::CHAIN_NAME, name);
            if let Some(hook) = hook {
                at.nested(attribute::CHAIN_HOOK, |at| {
                    at.be32(attribute::HOOK_NUMBER, hook.number);
                    at.be32(attribute::HOOK_PRIORITY, hook.priority as u32);
                });
                at.string(attribute::CHAIN_TYPE, hook.kind);
            }
        });
    }

    /// Deletes a chain that nothing leads to, and the rules in it.
    pub fn delete_chain(&mut self, name: &str) {
        let table = self.table;
        self.change(libc::NFT_MSG_DELCHAIN, 0, |at| {
            at.string(attribute::CHAIN_TABLE, table);
            at.string(attribute::CHAIN_NAME, name);
        });
    }

    /// Appends a rule. The comment is what `nft list` shows behind it, and by which `observe` knows it again.
    pub fn add_rule(&mut self, chain: &str, comment: &str, expressions: &[Expression]) {
        let table = self.table;
        self.change(libc::NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |at| {
            at.string(attribute::RULE_TABLE, table);
            at.string(attribute::RULE_CHAIN, chain);
            at.nested(attribute::RULE_EXPRESSIONS, |at| {
                for expression in expressions {
                    at.nested(attribute::LIST_ELEMENT, |at| expression.write(at));
                }
            });
            at.bytes(attribute::RULE_USERDATA, &attribute::comment(comment));
        });
    }

    /// Deletes a set that no rule looks into, and the elements in it.
    pub fn delete_set(&mut self, name: &str) {
        let table = self.table;
        self.change(libc::NFT_MSG_DELSET, 0, |at| {
            at.string(attribute::SET_TABLE, table);
            at.string(attribute::SET_NAME, name);
        });
    }

    pub fn create_set(&mut self, set: Set) {
        let table = self.table;
        let ((key_type, key_bytes), (value_type, value_bytes)) = (concatenation(set.key), concatenation(set.value));
        // The kernel wants a number of its own choosing or ours; it only names the set within this transaction.
        let id = self.sequence;
        self.change(libc::NFT_MSG_NEWSET, NLM_F_CREATE, |at| {
            at.string(attribute::SET_TABLE, table);
            at.string(attribute::SET_NAME, set.name);
            at.be32(attribute::SET_KEY_TYPE, key_type);
            at.be32(attribute::SET_KEY_BYTES, key_bytes);
            if set.value == [TYPE_VERDICT] {
                at.be32(attribute::SET_FLAGS, libc::NFT_SET_MAP as u32);
                at.be32(attribute::SET_DATA_TYPE, KERNEL_TYPE_VERDICT);
            } else if !set.value.is_empty() {
                at.be32(attribute::SET_FLAGS, libc::NFT_SET_MAP as u32);
                at.be32(attribute::SET_DATA_TYPE, value_type);
                at.be32(attribute::SET_DATA_BYTES, value_bytes);
            }
            if set.has_ranges {
                at.be32(attribute::SET_FLAGS, libc::NFT_SET_INTERVAL as u32 | SET_CONCAT);
                at.nested(attribute::SET_DESCRIPTION, |at| {
                    at.nested(attribute::DESCRIPTION_CONCATENATION, |at| {
                        for part in set.key {
                            at.nested(attribute::LIST_ELEMENT, |at| at.be32(attribute::FIELD_BYTES, own_bytes(*part)));
                        }
                    });
                });
            }
            at.be32(attribute::SET_ID, id);
        });
    }

    /// Adds elements; that one is there with the same value is fine.
    pub fn add_elements(&mut self, set: Set, elements: &[Element]) {
        self.elements(libc::NFT_MSG_NEWSETELEM, NLM_F_CREATE, set, elements);
    }

    /// Deletes elements; each must exist.
    pub fn delete_elements(&mut self, set: Set, elements: &[Element]) {
        self.elements(libc::NFT_MSG_DELSETELEM, 0, set, elements);
    }

    fn elements(&mut self, message: libc::c_int, flags: u16, set: Set, elements: &[Element]) {
        let table = self.table;
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.change(message, flags, |at| {
                at.string(attribute::ELEMENTS_TABLE, table);
                at.string(attribute::ELEMENTS_SET, set.name);
                at.nested(attribute::ELEMENTS_LIST, |at| {
                    for element in chunk {
                        at.nested(attribute::LIST_ELEMENT, |at| {
                            let (key, end) = element.key.split_at(if set.has_ranges { element.key.len() / 2 } else { element.key.len() });
                            at.nested(attribute::ELEMENT_KEY, |at| at.bytes(attribute::DATA_VALUE, key));
                            if set.has_ranges {
                                at.nested(attribute::ELEMENT_KEY_END, |at| at.bytes(attribute::DATA_VALUE, end));
                            }
                            if set.value == [TYPE_VERDICT] {
                                let chain = String::from_utf8_lossy(&element.value);
                                at.nested(attribute::ELEMENT_DATA, |at| expression::write_verdict(at, libc::NFT_GOTO, Some(&chain)));
                            } else if !element.value.is_empty() {
                                at.nested(attribute::ELEMENT_DATA, |at| at.bytes(attribute::DATA_VALUE, &element.value));
                            }
                        });
                    }
                });
            });
        }
    }

    /// Sends it and waits for the kernel's answer: done, or the first refusal with nothing changed. Blocks, for tens of
    /// milliseconds when something is deleted: the kernel waits until no packet is on its way through it.
    pub fn commit(mut self, connection: &Connection) -> io::Result<()> {
        assert!(!self.is_empty(), "a transaction without a change gets no answer");
        let last = self.sequence - 1;
        let flags_at = self.last_at + 6;
        let flags = u16::from_ne_bytes([self.bytes[flags_at], self.bytes[flags_at + 1]]) | NLM_F_ACK;
        self.bytes[flags_at..flags_at + 2].copy_from_slice(&flags.to_ne_bytes());
        self.message(libc::NFNL_MSG_BATCH_END as u16, 0, 0, libc::NFNL_SUBSYS_NFTABLES as u16, |_| {});

        connection.send(&self.bytes)?;
        loop {
            let answer = connection.receive()?;
            for message in observe::messages(&answer) {
                match message.error()? {
                    Some(0) if message.sequence == last => return Ok(()),
                    Some(0) | None => {}
                    Some(code) => return Err(io::Error::from_raw_os_error(code)),
                }
            }
        }
    }

    fn change(&mut self, message: libc::c_int, flags: u16, write: impl FnOnce(&mut Writer)) {
        self.last_at = self.bytes.len();
        self.message(SUBSYSTEM << 8 | message as u16, flags, FAMILY, 0, write);
    }

    /// A netlink header, netlink(7), and the header of nfnetlink behind it.
    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, write: impl FnOnce(&mut Writer)) {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(&header(kind, flags | NLM_F_REQUEST, self.sequence, family, resource));
        write(&mut Writer(&mut self.bytes));
        let length = (self.bytes.len() - begin) as u32;
        self.bytes[begin..begin + 4].copy_from_slice(&length.to_ne_bytes());
        self.sequence += 1;
    }
}

/// The generation that a transaction makes of the one before it; the kernel leaves 0 out.
pub fn next_generation(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}

/// `struct nlmsghdr` with a length of 20 bytes, to be mended, and `struct nfgenmsg`.
pub fn header(kind: u16, flags: u16, sequence: u32, family: u8, resource: u16) -> [u8; 20] {
    let mut header = [0; 20];
    header[..4].copy_from_slice(&20_u32.to_ne_bytes());
    header[4..6].copy_from_slice(&kind.to_ne_bytes());
    header[6..8].copy_from_slice(&flags.to_ne_bytes());
    header[8..12].copy_from_slice(&sequence.to_ne_bytes());
    header[16] = family;
    header[18..20].copy_from_slice(&resource.to_be_bytes());
    header
}

/// A socket of nfnetlink. It stays in the network namespace of the thread that opened it, whoever uses it.
pub struct Connection(Socket);

impl Connection {
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    pub fn send(&self, request: &[u8]) -> io::Result<()> {
        // A message longer than the socket's buffer is refused, and a transaction is one message.
        if request.len() > TRANSACTION_BYTES_MAX {
            setsockopt(&self.0, sockopt::SndBufForce, &(request.len() * 2))?;
        }
        self.0.send(request, 0).map(|_| ())
    }

    /// Messages, at least one; see [`messages`].
    pub fn receive(&self) -> io::Result<Vec<u8>> {
        self.0.recv_from_full().map(|(answer, _)| answer)
    }
}
