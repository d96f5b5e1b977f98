//! What a rule is made of: loads into registers, comparisons, and what is done with the packet. One enum and its encoding;
//! which of them make a rule is its caller's affair.

use super::attribute::{self, Writer};

/// Sixteen registers of four bytes; a concatenation lies in registers side by side (NFT_REG32_00 to NFT_REG32_15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(pub u8);

impl Register {
    fn number(self) -> u32 {
        libc::NFT_REG32_00 as u32 + u32::from(self.0)
    }
}

/// Bytes are in network order, as in the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression<'a> {
    /// The layer 4 protocol's number, one byte.
    LoadProtocol(Register),
    /// Bytes of the IPv4 header.
    LoadNetworkHeader {
        offset: u32,
        length: u32,
        into: Register,
    },
    /// Bytes of the TCP, UDP or SCTP header.
    LoadTransportHeader {
        offset: u32,
        length: u32,
        into: Register,
    },
    /// IP_CT_DIR_ORIGINAL (0) or IP_CT_DIR_REPLY (1), one byte: whether the packet goes the way of the connection's first one. The rule
    /// ends here for a packet of no connection.
    LoadConnectionDirection(Register),
    /// One of NF_CT_STATE_BIT, in the machine's own order.
    LoadConnectionState(Register),
    /// What kind of address the destination is to this node: RTN_* of rtnetlink(7), in the machine's own order.
    LoadDestinationKind(Register),
    /// The packet's mark, in the machine's own order.
    LoadMark(Register),
    SetMark(Register),
    /// A number from 0 to below `below`, at random, and `first` more, in the machine's own order.
    LoadRandom {
        first: u32,
        below: u32,
        into: Register,
    },
    /// A number from 0 to below `below` that follows from the four bytes in `from`, and `first` more, in the machine's own order.
    LoadHash {
        from: Register,
        first: u32,
        below: u32,
        into: Register,
    },
    And {
        register: Register,
        mask: [u8; 4],
    },
    /// Sets the bits of `bits`, whatever they were.
    Or {
        register: Register,
        bits: [u8; 4],
    },
    /// The rule goes on only if the register holds, or does not hold, these bytes.
    Equal {
        register: Register,
        bytes: Vec<u8>,
    },
    NotEqual {
        register: Register,
        bytes: Vec<u8>,
    },
    /// The rule goes on only if the register holds at least, or at most, these bytes.
    AtLeast {
        register: Register,
        bytes: Vec<u8>,
    },
    AtMost {
        register: Register,
        bytes: Vec<u8>,
    },
    /// The rule goes on only if the set holds the key that begins at `key`; a map's value then begins at `value`.
    LookUp {
        set: &'a str,
        key: Register,
        value: Option<Register>,
    },
    /// The rule goes on only if the set does not hold the key that begins at `key`.
    Miss {
        set: &'a str,
        key: Register,
    },
    /// The rule goes on only if the verdict map holds the key that begins at `key`; what stands there is done.
    Decide {
        map: &'a str,
        key: Register,
    },
    /// The connection goes to this address and port instead.
    DestinationNat {
        address: Register,
        port: Register,
    },
    /// The connection leaves by the address of the link it leaves on, from a random port.
    Masquerade,
    Jump(&'a str),
    /// The packet passes this hook; hooks behind it may still see it otherwise.
    Accept,
    /// On in the chain from which one has jumped.
    Return,
    Drop,
    /// Tells the sender by a TCP reset.
    Reset,
    /// Tells the sender that nothing listens on the port.
    PortUnreachable,
}

// linux/netfilter/nf_tables.h and nf_nat.h.
const META_DESTINATION: u16 = 1;
const META_KEY: u16 = 2;
const META_SOURCE: u16 = 3;
const CONNECTION_DESTINATION: u16 = 1;
const CONNECTION_KEY: u16 = 2;
const NUMGEN_DESTINATION: u16 = 1;
const NUMGEN_MODULUS: u16 = 2;
const NUMGEN_KIND: u16 = 3;
const NUMGEN_OFFSET: u16 = 4;
const HASH_SOURCE: u16 = 1;
const HASH_DESTINATION: u16 = 2;
const HASH_BYTES: u16 = 3;
const HASH_MODULUS: u16 = 4;
const HASH_SEED: u16 = 5;
const HASH_OFFSET: u16 = 6;
const HASH_KIND: u16 = 7;
/// NFT_HASH_JENKINS
const HASH_KIND_JENKINS: u32 = 0;
/// Always the same: rules that are written anew hash as those before.
const SEED: u32 = 1;
const REJECT_KIND: u16 = 1;
const REJECT_CODE: u16 = 2;
/// linux/icmp.h: ICMP_PORT_UNREACH.
const ICMP_PORT_UNREACHABLE: u8 = 3;
const PAYLOAD_DESTINATION: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_BYTES: u16 = 4;
const FIB_DESTINATION: u16 = 1;
const FIB_RESULT: u16 = 2;
const FIB_FLAGS: u16 = 3;
const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_FLAG_DADDR: u32 = 1 << 1;
const IMMEDIATE_DESTINATION: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const BITWISE_SOURCE: u16 = 1;
const BITWISE_DESTINATION: u16 = 2;
const BITWISE_BYTES: u16 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const COMPARE_SOURCE: u16 = 1;
const COMPARE_OPERATION: u16 = 2;
const COMPARE_DATA: u16 = 3;
const LOOKUP_SET: u16 = 1;
const LOOKUP_SOURCE: u16 = 2;
const LOOKUP_DESTINATION: u16 = 3;
const LOOKUP_FLAGS: u16 = 5;
const LOOKUP_INVERTED: u32 = 1;
const NAT_TYPE: u16 = 1;
const NAT_FAMILY: u16 = 2;
const NAT_ADDRESS: u16 = 3;
const NAT_PORT: u16 = 5;
const MASQUERADE_FLAGS: u16 = 1;
const NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

impl Expression<'_> {
    pub(super) fn write(&self, at: &mut Writer) {
        at.string(attribute::EXPRESSION_NAME, self.name());
        at.nested(attribute::EXPRESSION_DATA, |at| self.write_data(at));
    }

    /// The kernel's module for it.
    fn name(&self) -> &'static str {
        match self {
            Self::LoadProtocol(_) | Self::LoadMark(_) | Self::SetMark(_) => "meta",
            Self::LoadRandom { .. } => "numgen",
            Self::LoadHash { .. } => "hash",
            Self::LoadNetworkHeader { .. } | Self::LoadTransportHeader { .. } => "payload",
            Self::LoadDestinationKind(_) => "fib",
            Self::LoadConnectionDirection(_) | Self::LoadConnectionState(_) => "ct",
            Self::Jump(_) | Self::Accept | Self::Return | Self::Drop => "immediate",
            Self::And { .. } | Self::Or { .. } => "bitwise",
            Self::Equal { .. } | Self::NotEqual { .. } | Self::AtLeast { .. } | Self::AtMost { .. } => "cmp",
            Self::LookUp { .. } | Self::Miss { .. } | Self::Decide { .. } => "lookup",
            Self::DestinationNat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Reset | Self::PortUnreachable => "reject",
        }
    }

    fn write_data(&self, at: &mut Writer) {
        match self {
            Self::LoadProtocol(into) => {
                at.be32(META_DESTINATION, into.number());
                at.be32(META_KEY, libc::NFT_META_L4PROTO as u32);
            }
            Self::LoadMark(into) => {
                at.be32(META_DESTINATION, into.number());
                at.be32(META_KEY, libc::NFT_META_MARK as u32);
            }
            Self::SetMark(from) => {
                at.be32(META_KEY, libc::NFT_META_MARK as u32);
                at.be32(META_SOURCE, from.number());
            }
            Self::LoadConnectionDirection(into) => write_connection(at, libc::NFT_CT_DIRECTION, *into),
            Self::LoadConnectionState(into) => write_connection(at, libc::NFT_CT_STATE, *into),
            Self::LoadRandom { first, below, into } => {
                at.be32(NUMGEN_DESTINATION, into.number());
                at.be32(NUMGEN_MODULUS, *below);
                at.be32(NUMGEN_KIND, libc::NFT_NG_RANDOM as u32);
                at.be32(NUMGEN_OFFSET, *first);
            }
            Self::LoadHash { from, first, below, into } => {
                at.be32(HASH_SOURCE, from.number());
                at.be32(HASH_DESTINATION, into.number());
                at.be32(HASH_BYTES, 4);
                at.be32(HASH_MODULUS, *below);
                at.be32(HASH_SEED, SEED);
                at.be32(HASH_OFFSET, *first);
                at.be32(HASH_KIND, HASH_KIND_JENKINS);
            }
            Self::LoadNetworkHeader { offset, length, into } => {
                write_payload(at, libc::NFT_PAYLOAD_NETWORK_HEADER, *offset, *length, *into)
            }
            Self::LoadTransportHeader { offset, length, into } => {
                write_payload(at, libc::NFT_PAYLOAD_TRANSPORT_HEADER, *offset, *length, *into);
            }
            Self::LoadDestinationKind(into) => {
                at.be32(FIB_DESTINATION, into.number());
                at.be32(FIB_RESULT, FIB_RESULT_ADDRTYPE);
                at.be32(FIB_FLAGS, FIB_FLAG_DADDR);
            }
            Self::And { register, mask } => write_bitwise(at, *register, *mask, [0; 4]),
            Self::Or { register, bits } => write_bitwise(at, *register, bits.map(|byte| !byte), *bits),
            Self::Equal { register, bytes } => write_comparison(at, libc::NFT_CMP_EQ, *register, bytes),
            Self::NotEqual { register, bytes } => write_comparison(at, libc::NFT_CMP_NEQ, *register, bytes),
            Self::AtLeast { register, bytes } => write_comparison(at, libc::NFT_CMP_GTE, *register, bytes),
            Self::AtMost { register, bytes } => write_comparison(at, libc::NFT_CMP_LTE, *register, bytes),
            Self::LookUp { set, key, value } => {
                at.string(LOOKUP_SET, set);
                at.be32(LOOKUP_SOURCE, key.number());
                if let Some(value) = value {
                    at.be32(LOOKUP_DESTINATION, value.number());
                }
            }
            Self::Miss { set, key } => {
                at.string(LOOKUP_SET, set);
                at.be32(LOOKUP_SOURCE, key.number());
                at.be32(LOOKUP_FLAGS, LOOKUP_INVERTED);
            }
            Self::Decide { map, key } => {
                at.string(LOOKUP_SET, map);
                at.be32(LOOKUP_SOURCE, key.number());
                at.be32(LOOKUP_DESTINATION, libc::NFT_REG_VERDICT as u32);
            }
            Self::DestinationNat { address, port } => {
                at.be32(NAT_TYPE, libc::NFT_NAT_DNAT as u32);
                at.be32(NAT_FAMILY, u32::from(super::FAMILY));
                at.be32(NAT_ADDRESS, address.number());
                at.be32(NAT_PORT, port.number());
            }
            Self::Masquerade => at.be32(MASQUERADE_FLAGS, NAT_RANGE_PROTO_RANDOM_FULLY),
            Self::Jump(chain) => write_immediate(at, libc::NFT_JUMP, Some(chain)),
            Self::Accept => write_immediate(at, libc::NF_ACCEPT, None),
            Self::Return => write_immediate(at, libc::NFT_RETURN, None),
            Self::Drop => write_immediate(at, libc::NF_DROP, None),
            Self::Reset => at.be32(REJECT_KIND, libc::NFT_REJECT_TCP_RST as u32),
            Self::PortUnreachable => {
                at.be32(REJECT_KIND, libc::NFT_REJECT_ICMP_UNREACH as u32);
                at.bytes(REJECT_CODE, &[ICMP_PORT_UNREACHABLE]);
            }
        }
    }
}

fn write_immediate(at: &mut Writer, code: libc::c_int, chain: Option<&str>) {
    at.be32(IMMEDIATE_DESTINATION, libc::NFT_REG_VERDICT as u32);
    at.nested(IMMEDIATE_DATA, |at| write_verdict(at, code, chain));
}

/// What a rule or an element of a verdict map says is to be done.
pub(super) fn write_verdict(at: &mut Writer, code: libc::c_int, chain: Option<&str>) {
    at.nested(attribute::DATA_VERDICT, |at| {
        at.be32(VERDICT_CODE, code as u32);
        if let Some(chain) = chain {
            at.string(VERDICT_CHAIN, chain);
        }
    });
}

/// The chain that a verdict leads to.
pub(super) fn chain_of(verdict: &[u8]) -> Option<String> {
    attribute::find(verdict, VERDICT_CHAIN).map(attribute::text)
}

/// `register = register & mask ^ flipped`.
fn write_bitwise(at: &mut Writer, register: Register, mask: [u8; 4], flipped: [u8; 4]) {
    at.be32(BITWISE_SOURCE, register.number());
    at.be32(BITWISE_DESTINATION, register.number());
    at.be32(BITWISE_BYTES, mask.len() as u32);
    at.nested(BITWISE_MASK, |at| at.bytes(attribute::DATA_VALUE, &mask));
    at.nested(BITWISE_XOR, |at| at.bytes(attribute::DATA_VALUE, &flipped));
}

fn write_connection(at: &mut Writer, key: libc::c_int, into: Register) {
    at.be32(CONNECTION_DESTINATION, into.number());
    at.be32(CONNECTION_KEY, key as u32);
}

fn write_payload(at: &mut Writer, base: libc::c_int, offset: u32, length: u32, into: Register) {
    at.be32(PAYLOAD_DESTINATION, into.number());
    at.be32(PAYLOAD_BASE, base as u32);
    at.be32(PAYLOAD_OFFSET, offset);
    at.be32(PAYLOAD_BYTES, length);
}

fn write_comparison(at: &mut Writer, operation: libc::c_int, register: Register, bytes: &[u8]) {
    at.be32(COMPARE_SOURCE, register.number());
    at.be32(COMPARE_OPERATION, operation as u32);
    at.nested(COMPARE_DATA, |at| at.bytes(attribute::DATA_VALUE, bytes));
}
