//! The name server of the cluster, as every node has it for its own pods: the cluster's names from memory, all others from
//! the node's own name servers. It answers whether or not a master is there; it writes nothing.

mod forward;
mod message;
mod zone;

use std::cell::{Cell, RefCell, RefMut};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_lite::FutureExt;
use simple_dns::{OPCODE, Packet, RCODE};
use smol::{Async, Timer};

use crate::base::{id, task};
use forward::Cache;
use message::Transport;
use zone::{Found, Record};

pub use forward::Upstream;
pub use zone::{Endpoint, Port, Target, Zone};

/// Questions that wait for the upstream at a time; one more is not answered, and its client asks again.
const WAITING_MAX: usize = 256;
const CONNECTIONS_MAX: usize = 32;
/// How long a connection may be silent; RFC 7766 wants it to be some seconds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const QUERY_BYTES_MAX: usize = 4096;

/// One name server; it answers as long as `run` does.
pub struct Server<U> {
    zone: RefCell<Zone>,
    cache: RefCell<Cache>,
    upstream: U,
    address: IpAddr,
    resolv_conf: &'static str,
    waiting: Cell<usize>,
    connections: Cell<usize>,
}

impl<U: Upstream + 'static> Server<U> {
    /// `address` is where it will be asked, and `resolv_conf` the file that names its upstream; it is read for each question
    /// that goes there, for the node may move to another network.
    pub fn new(domain: &str, address: IpAddr, resolv_conf: &'static str, upstream: U) -> Rc<Self> {
        Rc::new(Self {
            zone: RefCell::new(Zone::new(domain)),
            cache: RefCell::default(),
            upstream,
            address,
            resolv_conf,
            waiting: Cell::new(0),
            connections: Cell::new(0),
        })
    }

    /// The names that it knows.
    pub fn zone(&self) -> RefMut<'_, Zone> {
        self.zone.borrow_mut()
    }

    /// Opens its sockets; what comes back answers by UDP and TCP, for ever, and fails if they break.
    ///
    /// # Errors
    /// If the address is not this node's, or the port is taken.
    pub fn listen(self: &Rc<Self>, port: u16) -> Result<impl Future<Output = Result<()>> + use<U>> {
        let address = SocketAddr::new(self.address, port);
        let socket = Rc::new(Async::<UdpSocket>::bind(address).with_context(|| format!("listen on {address} by UDP"))?);
        let listener = Async::<TcpListener>::bind(address).with_context(|| format!("listen on {address} by TCP"))?;
        Ok(self.clone().datagrams(socket).or(self.clone().accept(listener)))
    }

    async fn datagrams(self: Rc<Self>, socket: Rc<Async<UdpSocket>>) -> Result<()> {
        let mut buffer = vec![0; QUERY_BYTES_MAX];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.context("receive")?;
            if self.waiting.get() >= WAITING_MAX {
                continue;
            }
            self.waiting.set(self.waiting.get() + 1);
            let (server, socket, query) = (self.clone(), socket.clone(), buffer[..length].to_vec());
            let work = async move {
                let answer = server.answer(&query, Transport::Udp).await;
                server.waiting.set(server.waiting.get() - 1);
                if let Some(answer) = answer {
                    // A client that has gone away needs no answer.
                    let _ = socket.send_to(&answer, client).await;
                }
            };
            task::spawn(work).detach();
        }
    }

    async fn accept(self: Rc<Self>, listener: Async<TcpListener>) -> Result<()> {
        loop {
            let (mut stream, _) = listener.accept().await.context("accept")?;
            if self.connections.get() >= CONNECTIONS_MAX {
                continue;
            }
            self.connections.set(self.connections.get() + 1);
            let server = self.clone();
            let work = async move {
                // It ends by the client's leaving, which is no error.
                let _ = server.converse(&mut stream).await;
                server.connections.set(server.connections.get() - 1);
            };
            task::spawn(work).detach();
        }
    }

    async fn converse(&self, stream: &mut Async<TcpStream>) -> std::io::Result<()> {
        loop {
            let idle = async {
                Timer::after(IDLE_TIMEOUT).await;
                Err(std::io::ErrorKind::TimedOut.into())
            };
            let query = forward::read_message(stream).or(idle).await?;
            let Some(answer) = self.answer(&query, Transport::Tcp).await else { return Ok(()) };
            forward::write_message(stream, &answer).await?;
        }
    }

    /// The answer to a message; `None` if it is no question at all.
    async fn answer(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let query = Packet::parse(bytes).ok().filter(|query| !query.has_flags(simple_dns::PacketFlag::RESPONSE))?;
        let refuse = |code| message::refusal(&query, code, transport).ok();
        if query.opcode() != OPCODE::StandardQuery {
            return refuse(RCODE::NotImplemented);
        }
        let [question] = &query.questions[..] else { return refuse(RCODE::FormatError) };
        let name = question.qname.to_string();
        let found = self.zone.borrow().find(&name);
        let domain = self.zone.borrow().domain().to_owned();
        match found {
            Found::Nothing => message::answer(&query, RCODE::NameError, &[], &domain, transport).ok(),
            Found::Records(mut records) => {
                // Clients take the first address as a rule: each of a headless Service's has its turn.
                let turn = usize::from(u16::from_ne_bytes(id::random()));
                let middle = turn % records.len().max(1);
                records.rotate_left(middle);
                let records = self.follow(records, &query).await;
                message::answer(&query, RCODE::NoError, &records, &domain, transport).ok()
            }
            Found::Foreign => match self.forward(bytes, transport).await {
                Ok(answer) if answer.len() <= message::bytes_max(&query, transport) => Some(answer),
                Ok(_) => refuse(RCODE::NoError).map(truncated),
                Err(error) => {
                    log::debug!("resolve {name}: {error:#}");
                    refuse(RCODE::ServerFailure)
                }
            },
        }
    }

    /// An alias, with the addresses that it leads to; the client would not ask for them itself.
    async fn follow(&self, mut records: Vec<Record>, query: &Packet<'_>) -> Vec<Record> {
        let Some(Record::Alias { target, .. }) = records.first().filter(|_| message::asks_for_addresses(query)) else { return records };
        let target = target.clone();
        let found = self.zone.borrow().find(&target);
        match found {
            Found::Records(more) => records.extend(more),
            Found::Nothing => {}
            Found::Foreign => records.extend(self.addresses(&target, query).await.unwrap_or_default()),
        }
        records
    }

    /// The IPv4 addresses of a name outside, by the upstream.
    async fn addresses(&self, name: &str, query: &Packet<'_>) -> Result<Vec<Record>> {
        let mut asked = Packet::new_query(query.id());
        asked.set_flags(simple_dns::PacketFlag::RECURSION_DESIRED);
        let question = query.questions.first().context("there is a question")?;
        let of_target = simple_dns::Question::new(simple_dns::Name::new(name)?, question.qtype, question.qclass, false);
        asked.questions.push(of_target);
        let answer = self.forward(&asked.build_bytes_vec()?, Transport::Tcp).await?;
        let answer = Packet::parse(&answer)?;
        let records = answer.answers.iter().filter_map(|record| match &record.rdata {
            simple_dns::rdata::RData::A(found) => Some(Record::Address { name: record.name.to_string(), address: found.address.into() }),
            simple_dns::rdata::RData::CNAME(found) => Some(Record::Alias { name: record.name.to_string(), target: found.0.to_string() }),
            _ => None,
        });
        Ok(records.collect())
    }

    async fn forward(&self, query: &[u8], transport: Transport) -> Result<Vec<u8>> {
        let kept = self.cache.borrow_mut().get(query, Instant::now());
        if let Some(answer) = kept {
            return Ok(answer);
        }
        let text = std::fs::read_to_string(self.resolv_conf).with_context(|| format!("read {}", self.resolv_conf))?;
        let answer = forward::ask(query, &forward::servers(&text, self.address), &self.upstream, transport).await?;
        self.cache.borrow_mut().put(query, &answer, Instant::now());
        Ok(answer)
    }
}

/// Tells the client to ask by TCP.
fn truncated(mut answer: Vec<u8>) -> Vec<u8> {
    if let Some(flags) = answer.get_mut(2) {
        *flags |= forward::FLAG_TRUNCATED;
    }
    answer
}

#[cfg(test)]
mod tests;
