//! Names outside the cluster: the question goes to the node's own name servers (resolv.conf(5)) as it came, and the answer comes
//! back as it came, kept for a while. It reads nothing of a message but its number and the times in it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_lite::{AsyncReadExt, AsyncWriteExt, FutureExt};
use smol::{Async, Timer};

use super::super::files::Resolver;
use super::message::Transport;

const PORT: u16 = 53;
/// As glibc has it: resolv.conf(5).
const SERVERS_MAX: usize = 3;
const ATTEMPTS: usize = 2;
const TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: usize = 4096;

const CACHE_ENTRIES_MAX: usize = 512;
/// However long an answer may be kept, a board must not serve a stale name for longer. CoreDNS as kubeadm sets it up has the same.
const CACHE_SECONDS_MAX: u32 = 30;

const HEADER_BYTES: usize = 12;
/// In the third byte of a message.
pub const FLAG_TRUNCATED: u8 = 2;
const TYPE_OPT: u16 = 41;

/// Opens sockets from which the node's name servers can be reached.
pub trait Upstream {
    /// A socket connected to the server.
    fn udp(&self, server: SocketAddr) -> impl Future<Output = io::Result<Async<std::net::UdpSocket>>>;
    fn tcp(&self, server: SocketAddr) -> impl Future<Output = io::Result<Async<std::net::TcpStream>>>;
}

/// Answers by the question as it came, without its number.
#[derive(Debug, Default)]
pub struct Cache(HashMap<Vec<u8>, Entry>);

#[derive(Debug)]
struct Entry {
    answer: Vec<u8>,
    stored: Instant,
    seconds: u32,
}

impl Cache {
    /// The answer, with the question's number and what is left of the times.
    pub fn get(&mut self, query: &[u8], now: Instant) -> Option<Vec<u8>> {
        let entry = self.0.get(query.get(2..)?)?;
        let age = u32::try_from(now.saturating_duration_since(entry.stored).as_secs()).unwrap_or(u32::MAX);
        if age >= entry.seconds {
            self.0.remove(&query[2..]);
            return None;
        }
        let mut answer = entry.answer.clone();
        answer[..2].copy_from_slice(&query[..2]);
        for at in times(&answer)? {
            let field = answer.get_mut(at..at + 4)?;
            let left = u32::from_be_bytes(field.try_into().ok()?).saturating_sub(age);
            field.copy_from_slice(&left.to_be_bytes());
        }
        Some(answer)
    }

    /// Keeps an answer that is whole, for as long as each of its records holds.
    pub fn put(&mut self, query: &[u8], answer: &[u8], now: Instant) {
        let whole = answer.len() > HEADER_BYTES && answer[2] & FLAG_TRUNCATED == 0;
        // NOERROR and NXDOMAIN; other codes speak of the server, not of the name.
        let code = answer.get(3).map_or(u8::MAX, |byte| byte & 15);
        let Some(times) = times(answer).filter(|_| whole && matches!(code, 0 | 3)) else { return };
        let seconds = |at: usize| answer.get(at..at + 4).and_then(|field| field.try_into().ok()).map_or(0, u32::from_be_bytes);
        let Some(seconds) = times.into_iter().map(seconds).min().map(|least| least.min(CACHE_SECONDS_MAX)).filter(|least| *least > 0)
        else {
            return;
        };
        if self.0.len() >= CACHE_ENTRIES_MAX {
            self.0.retain(|_, entry| now.saturating_duration_since(entry.stored).as_secs() < u64::from(entry.seconds));
        }
        if self.0.len() >= CACHE_ENTRIES_MAX {
            self.0.clear();
        }
        self.0.insert(query[2..].to_vec(), Entry { answer: answer.to_vec(), stored: now, seconds });
    }
}

/// Where the time to live of each record lies; `None` if the message is malformed. RFC 1035 section 4.1.
fn times(message: &[u8]) -> Option<Vec<usize>> {
    let number = |at: usize| Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?));
    let mut at = HEADER_BYTES;
    for _ in 0..number(4)? {
        at = after_name(message, at)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..u32::from(number(6)?) + u32::from(number(8)?) + u32::from(number(10)?) {
        at = after_name(message, at)?;
        // The pseudo record of RFC 6891 has flags there.
        if number(at)? != TYPE_OPT {
            found.push(at + 4);
        }
        at += 10 + usize::from(number(at + 8)?);
    }
    Some(found).filter(|_| at <= message.len())
}

/// The first byte behind a name; a pointer ends it.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

/// The name servers of a resolv.conf(5), without our own address: asking ourselves would go round for ever.
pub fn servers(resolv_conf: &str, own: IpAddr) -> Vec<SocketAddr> {
    let addresses = Resolver::parse(resolv_conf).nameservers;
    let addresses = addresses.iter().filter_map(|text| text.split('%').next()?.parse::<IpAddr>().ok());
    addresses.filter(|address| *address != own).map(|address| SocketAddr::new(address, PORT)).take(SERVERS_MAX).collect()
}

/// Asks one server after the other.
///
/// # Errors
/// If none answers in time.
pub async fn ask(query: &[u8], servers: &[SocketAddr], upstream: &impl Upstream, transport: Transport) -> Result<Vec<u8>> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        for server in servers {
            let timeout = async {
                Timer::after(TIMEOUT).await;
                bail!("no answer within {} s", TIMEOUT.as_secs())
            };
            match ask_one(query, *server, upstream, transport).or(timeout).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = Some(error.context(format!("ask {server}"))),
            }
        }
    }
    Err(last.context("/etc/resolv.conf names no server")?)
}

async fn ask_one(query: &[u8], server: SocketAddr, upstream: &impl Upstream, transport: Transport) -> Result<Vec<u8>> {
    let mut asked = query.to_vec();
    // Its own number, that nobody can guess from the client's.
    let number = crate::base::id::random::<2>();
    asked[..2].copy_from_slice(&number);
    let mut answer = ask_udp(&asked, server, upstream).await?;
    if transport == Transport::Tcp && answer[2] & FLAG_TRUNCATED != 0 {
        answer = ask_tcp(&asked, server, upstream).await?;
    }
    answer[..2].copy_from_slice(&query[..2]);
    Ok(answer)
}

async fn ask_udp(query: &[u8], server: SocketAddr, upstream: &impl Upstream) -> Result<Vec<u8>> {
    let socket = upstream.udp(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else that comes to this port is a late or a forged answer.
        if length >= HEADER_BYTES && buffer[..2] == query[..2] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(query: &[u8], server: SocketAddr, upstream: &impl Upstream) -> Result<Vec<u8>> {
    let mut stream = upstream.tcp(server).await?;
    write_message(&mut stream, query).await?;
    let answer = read_message(&mut stream).await?;
    match answer.len() >= HEADER_BYTES && answer[..2] == query[..2] {
        true => Ok(answer),
        false => bail!("the answer is to another question"),
    }
}

/// A message with its length before it: RFC 1035 section 4.2.2.
pub async fn read_message(stream: &mut Async<std::net::TcpStream>) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

pub async fn write_message(stream: &mut Async<std::net::TcpStream>, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::other("the message is too long"))?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

#[cfg(test)]
mod tests {
    use simple_dns::rdata::{A, OPT, RData};
    use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE};

    use super::*;

    fn query(id: u16) -> Packet<'static> {
        let mut query = Packet::new_query(id);
        query.questions.push(Question::new(Name::new_unchecked("example.org"), QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN), false));
        query
    }

    fn answer(id: u16, seconds: &[u32]) -> Vec<u8> {
        let mut answer = Packet::new_reply(id);
        answer.questions = query(id).questions;
        *answer.opt_mut() = Some(OPT { opt_codes: vec![], udp_packet_size: 1232, version: 0 });
        for ttl in seconds {
            let data = RData::A(A { address: 1 });
            answer.answers.push(ResourceRecord::new(Name::new_unchecked("example.org"), CLASS::IN, *ttl, data));
        }
        answer.build_bytes_vec_compressed().unwrap()
    }

    #[test]
    fn answers_are_kept_as_long_as_their_shortest_record_and_grow_old() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let asked = |id: u16| query(id).build_bytes_vec().unwrap();
        cache.put(&asked(1), &answer(1, &[20, 9]), now);
        let kept = cache.get(&asked(7), now + Duration::from_secs(4)).unwrap();
        let kept = Packet::parse(&kept).unwrap();
        assert_eq!((kept.id(), kept.answers[0].ttl, kept.answers[1].ttl), (7, 16, 5));
        assert_eq!(kept.opt().unwrap().udp_packet_size, 1232);
        assert!(cache.get(&asked(7), now + Duration::from_secs(9)).is_none());
        cache.put(&asked(1), &answer(1, &[7200]), now);
        assert!(cache.get(&asked(1), now + Duration::from_secs(31)).is_none());
    }

    #[test]
    fn failures_and_halves_are_not_kept() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let asked = query(1).build_bytes_vec().unwrap();
        let mut failure = Packet::new_reply(1);
        *failure.rcode_mut() = RCODE::ServerFailure;
        let mut half = answer(1, &[9]);
        half[2] |= FLAG_TRUNCATED;
        let cut = answer(1, &[9]);
        for bad in
            [failure.build_bytes_vec().unwrap(), half, answer(1, &[]), answer(1, &[9, 0]), cut[..cut.len() - 20].to_vec(), vec![0; 3]]
        {
            cache.put(&asked, &bad, now);
            assert!(cache.get(&asked, now).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn the_cache_is_bounded() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for number in 0..2 * CACHE_ENTRIES_MAX as u32 {
            let mut asked = query(1).build_bytes_vec().unwrap();
            asked.extend(number.to_be_bytes());
            cache.put(&asked, &answer(1, &[9]), now);
            assert!(cache.0.len() <= CACHE_ENTRIES_MAX);
        }
    }

    #[test]
    fn the_nodes_servers_are_asked_but_not_ourselves() {
        let text = "nameserver 10.96.0.10\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver x\n";
        let expected: Vec<SocketAddr> = vec!["192.0.2.1:53".parse().unwrap(), "[fe80::1]:53".parse().unwrap()];
        assert_eq!(servers(text, [10, 96, 0, 10].into()), expected);
    }
}
