//! What the kernel remembers of connections (ctnetlink, linux/netfilter/nfnetlink_conntrack.h): where a datagram goes is
//! decided once, and stays so as long as more of them come. So what leads to a backend that is gone has to be forgotten. It
//! forgets nothing that it was not told to.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use super::nftables::attribute::{self, Writer};
use super::nftables::{Connection, FAMILY, header, messages};
use super::services::Backend;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};

const SUBSYSTEM: u16 = libc::NFNL_SUBSYS_CTNETLINK as u16;
const MESSAGE_GET: u16 = 1;
const MESSAGE_DELETE: u16 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IP_SOURCE: u16 = 1;
const IP_DESTINATION: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_SOURCE_PORT: u16 = 2;
const PROTOCOL_DESTINATION_PORT: u16 = 3;

/// Where datagrams are sent to; without an address, to any of this node's.
pub type Front = (Option<Ipv4Addr>, u16);

/// Which datagrams must be decided on again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stale {
    /// Those that go to a backend behind a front.
    pub gone: BTreeSet<(Front, Backend)>,
    /// Those that go to the front itself, as nobody was behind it.
    pub fresh: BTreeSet<Front>,
}

impl Stale {
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.fresh.is_empty()
    }

    /// `sent_to` is where the datagrams were sent, `answered_by` where they went.
    fn has(&self, sent_to: Backend, answered_by: Backend) -> bool {
        [Some(sent_to.address), None].into_iter().any(|address| {
            let front = (address, sent_to.port);
            self.gone.contains(&(front, answered_by)) || sent_to == answered_by && self.fresh.contains(&front)
        })
    }
}

/// Makes the kernel forget them; answers how many connections that were.
pub fn forget(connection: &Connection, stale: &Stale) -> io::Result<usize> {
    let found = find(connection, stale)?;
    for entry in &found {
        let mut request = header(SUBSYSTEM << 8 | MESSAGE_DELETE, NLM_F_REQUEST | NLM_F_ACK, 0, FAMILY, 0).to_vec();
        request.extend_from_slice(entry);
        let length = (request.len() as u32).to_ne_bytes();
        request[..4].copy_from_slice(&length);
        connection.send(&request)?;
        let answer = connection.receive()?;
        let code = messages(&answer).find_map(|message| message.error().transpose()).transpose()?;
        // It may have ended by itself meanwhile.
        if let Some(code) = code.filter(|code| ![0, libc::ENOENT].contains(code)) {
            return Err(io::Error::from_raw_os_error(code));
        }
    }
    Ok(found.len())
}

/// What names each of the connections to the kernel. A table that changes while it is read is read as well as may be: what
/// comes now is decided by the rules that are there already.
fn find(connection: &Connection, stale: &Stale) -> io::Result<Vec<Vec<u8>>> {
    connection.send(&header(SUBSYSTEM << 8 | MESSAGE_GET, NLM_F_REQUEST | NLM_F_DUMP, 0, FAMILY, 0))?;
    let mut found = Vec::new();
    loop {
        let answer = connection.receive()?;
        for message in messages(&answer) {
            if let Some(code) = message.error()?.filter(|code| *code != 0) {
                return Err(io::Error::from_raw_os_error(code));
            }
            if message.kind == libc::NLMSG_DONE as u16 {
                return Ok(found);
            }
            if let Some((sent_to, answered_by)) = ends(message.body)
                && stale.has(sent_to, answered_by)
            {
                let mut name = Vec::new();
                for (number, value) in attribute::read(message.body) {
                    match number {
                        TUPLE_ORIGINAL => Writer(&mut name).nested(number, |at| at.raw(value)),
                        ID | ZONE => Writer(&mut name).bytes(number, value),
                        _ => {}
                    }
                }
                found.push(name);
            }
        }
    }
}

/// Of a connection of datagrams: where the first was sent, and from where it would be answered.
fn ends(entry: &[u8]) -> Option<(Backend, Backend)> {
    let original = attribute::find(entry, TUPLE_ORIGINAL)?;
    let reply = attribute::find(entry, TUPLE_REPLY)?;
    let protocol = attribute::find(attribute::find(original, TUPLE_PROTOCOL)?, PROTOCOL_NUMBER)?;
    let end = |tuple, address, port| {
        let address: [u8; 4] = attribute::find(attribute::find(tuple, TUPLE_IP)?, address)?.try_into().ok()?;
        let port = attribute::find(attribute::find(tuple, TUPLE_PROTOCOL)?, port)?.try_into().ok()?;
        Some(Backend { address: address.into(), port: u16::from_be_bytes(port) })
    };
    let sent_to = end(original, IP_DESTINATION, PROTOCOL_DESTINATION_PORT)?;
    (protocol == [libc::IPPROTO_UDP as u8]).then_some((sent_to, end(reply, IP_SOURCE, PROTOCOL_SOURCE_PORT)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_is_stale() {
        let end = |last: u8, port| Backend { address: [10, 0, 0, last].into(), port };
        let (own, node) = ((Some(Ipv4Addr::new(10, 0, 0, 1)), 53), (None, 30053));
        let stale = Stale { gone: [(own, end(2, 5353)), (node, end(2, 5353))].into(), fresh: [own].into() };
        for (sent_to, answered_by, expected) in [
            (end(1, 53), end(2, 5353), true),
            (end(1, 53), end(3, 5353), false),
            (end(1, 53), end(1, 53), true),
            (end(9, 53), end(2, 5353), false),
            (end(9, 53), end(9, 53), false),
            (end(9, 30053), end(2, 5353), true),
            (end(9, 30053), end(9, 30053), false),
        ] {
            assert_eq!(stale.has(sent_to, answered_by), expected, "{sent_to:?} {answered_by:?}");
        }
    }
}
