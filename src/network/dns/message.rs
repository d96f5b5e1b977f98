//! The cluster's answers as DNS messages: RFC 1035, and the sizes of RFC 6891. What a name stands for is `zone`'s affair; what
//! the upstream says passes through `forward` as it is.

use simple_dns::rdata::{A, CNAME, OPT, PTR, RData, SOA, SRV, TXT};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};

use super::zone::Record;

/// How long a client may keep what it was told, seconds. Services change; CoreDNS' default.
pub const TTL: u32 = 5;

/// What a client takes by UDP without a word about it, and the most we send: no fragment on any link (DNS flag day 2020).
const UDP_BYTES_MIN: usize = 512;
const UDP_BYTES_MAX: usize = 1232;
/// A message by TCP has its length before it, in 16 bits.
const TCP_BYTES_MAX: usize = u16::MAX as usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// An answer that speaks for the zone, cut to what the transport takes. Only records of the kind that was asked for go in, and
/// aliases. An answer without records names the zone, so that its absence may be remembered (RFC 2308).
pub fn answer(query: &Packet, code: RCODE, records: &[Record], domain: &str, transport: Transport) -> simple_dns::Result<Vec<u8>> {
    let mut reply = reply(query, code);
    reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
    let kind = query.questions.first().map_or(QTYPE::ANY, |question| question.qtype);
    for record in records {
        let record = resource(record)?;
        if matches!(record.rdata, RData::CNAME(_)) || record.match_qtype(kind) {
            reply.answers.push(record);
        }
    }
    if reply.answers.is_empty() {
        reply.name_servers.push(authority(domain)?);
    }
    fit(reply, query, transport)
}

/// An answer that says only that there is none.
pub fn refusal(query: &Packet, code: RCODE, transport: Transport) -> simple_dns::Result<Vec<u8>> {
    fit(reply(query, code), query, transport)
}

fn reply<'a>(query: &Packet<'a>, code: RCODE) -> Packet<'a> {
    let mut reply = Packet::new_reply(query.id());
    *reply.opcode_mut() = query.opcode();
    *reply.rcode_mut() = code;
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if query.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    reply.questions.clone_from(&query.questions);
    if query.opt().is_some() {
        *reply.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: UDP_BYTES_MAX as u16, version: 0 });
    }
    reply
}

fn fit(mut reply: Packet, query: &Packet, transport: Transport) -> simple_dns::Result<Vec<u8>> {
    let bytes = reply.build_bytes_vec_compressed()?;
    if bytes.len() <= bytes_max(query, transport) {
        return Ok(bytes);
    }
    // The client asks again by TCP; a part of the answer would be taken for all of it.
    reply.set_flags(PacketFlag::TRUNCATION);
    reply.answers.clear();
    reply.build_bytes_vec_compressed()
}

/// The longest answer that may be sent.
pub fn bytes_max(query: &Packet, transport: Transport) -> usize {
    match transport {
        Transport::Tcp => TCP_BYTES_MAX,
        Transport::Udp => query.opt().map_or(UDP_BYTES_MIN, |opt| usize::from(opt.udp_packet_size).clamp(UDP_BYTES_MIN, UDP_BYTES_MAX)),
    }
}

fn resource(record: &Record) -> simple_dns::Result<ResourceRecord<'_>> {
    let (name, data) = match record {
        Record::Address { name, address } => (name, RData::A(A { address: (*address).into() })),
        Record::Service { name, port, target } => {
            (name, RData::SRV(SRV { priority: 0, weight: 100, port: *port, target: Name::new(target)? }))
        }
        Record::Alias { name, target } => (name, RData::CNAME(CNAME(Name::new(target)?))),
        Record::Pointer { name, target } => (name, RData::PTR(PTR(Name::new(target)?))),
        Record::Text { name, text } => (name, RData::TXT(TXT::new().with_string(text)?)),
    };
    Ok(ResourceRecord::new(Name::new(name)?, CLASS::IN, TTL, data))
}

fn authority(domain: &str) -> simple_dns::Result<ResourceRecord<'static>> {
    let below = |label: &str| Ok::<_, simple_dns::SimpleDnsError>(Name::new(&format!("{label}.{domain}"))?.into_owned());
    let data =
        SOA { mname: below("ns.dns")?, rname: below("hostmaster")?, serial: 1, refresh: 7200, retry: 1800, expire: 86_400, minimum: TTL };
    Ok(ResourceRecord::new(Name::new(domain)?.into_owned(), CLASS::IN, TTL, RData::SOA(data)))
}

/// Whether the client asks for addresses, so that an alias has to be followed for it.
pub fn asks_for_addresses(query: &Packet) -> bool {
    query.questions.first().is_some_and(|question| matches!(question.qtype, QTYPE::ANY | QTYPE::TYPE(TYPE::A | TYPE::AAAA)))
}
