//! Names to addresses by /etc/hosts and DNS, as resolv.conf(5) says, on our own sockets: the C library's resolver is not
//! safe in a static binary and cannot look out of another network namespace. It caches nothing.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_lite::{AsyncReadExt, AsyncWriteExt, FutureExt};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};
use smol::Timer;

use super::dial::Dialer;
use crate::base::id;

const TIMEOUT: Duration = Duration::from_secs(3);
const ATTEMPTS: usize = 2;
const SERVERS_MAX: usize = 3;
const ANSWER_BYTES_MAX: usize = 4096;

/// What resolv.conf(5) says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Config {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
}

/// The addresses of a host, IPv4 first. An address resolves to itself.
///
/// # Errors
/// If no server answers, or none knows the name.
pub async fn resolve(host: &str, dialer: &Dialer) -> anyhow::Result<Vec<IpAddr>> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return Ok(vec![address]);
    }
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let known = in_hosts(&hosts, host);
    if !known.is_empty() {
        return Ok(known);
    }
    // localhost needs no server, RFC 6761 section 6.3.
    if host == "localhost" {
        return Ok(vec![IpAddr::from([127, 0, 0, 1])]);
    }
    let text = std::fs::read_to_string("/etc/resolv.conf").context("read /etc/resolv.conf")?;
    let config = parse(&text);
    if config.servers.is_empty() {
        bail!("resolve {host}: /etc/resolv.conf names no server");
    }
    let mut last = None;
    for name in candidates(host, &config.search) {
        match ask_all(&name, &config.servers, dialer).await {
            Ok(addresses) if !addresses.is_empty() => return Ok(addresses),
            Ok(_) => (),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error.context(format!("resolve {host}"))),
        None => bail!("resolve {host}: no such host"),
    }
}

fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let mut found = Vec::new();
    for line in lines {
        let mut words = line.split_whitespace();
        if let Some(Ok(address)) = words.next().map(str::parse)
            && words.any(|word| word.eq_ignore_ascii_case(host))
        {
            found.push(address);
        }
    }
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

fn parse(text: &str) -> Config {
    let mut config = Config::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") if config.servers.len() < SERVERS_MAX => {
                let address = words.next().and_then(|word| word.split('%').next()?.parse().ok());
                config.servers.extend(address.map(|address: IpAddr| SocketAddr::new(address, 53)));
            }
            Some("search" | "domain") => config.search = words.map(str::to_owned).collect(),
            _ => (),
        }
    }
    config
}

/// A name with a dot is tried as it is first; one without only below the search domains and then alone.
fn candidates(host: &str, search: &[String]) -> Vec<String> {
    let alone = host.trim_end_matches('.').to_owned();
    if host.ends_with('.') {
        return vec![alone];
    }
    let searched = search.iter().map(|domain| format!("{alone}.{domain}"));
    match host.contains('.') {
        true => std::iter::once(alone.clone()).chain(searched).collect(),
        false => searched.chain(std::iter::once(alone.clone())).collect(),
    }
}

async fn ask_all(name: &str, servers: &[SocketAddr], dialer: &Dialer) -> anyhow::Result<Vec<IpAddr>> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        for server in servers {
            let both = futures_lite::future::zip(ask(name, TYPE::A, *server, dialer), ask(name, TYPE::AAAA, *server, dialer));
            match both.await {
                (Ok(v4), v6) => return Ok(v4.into_iter().chain(v6.unwrap_or_default()).collect()),
                (Err(error), _) => last = Some(error.context(format!("ask {server}"))),
            }
        }
    }
    Err(last.context("no name server")?)
}

async fn ask(name: &str, kind: TYPE, server: SocketAddr, dialer: &Dialer) -> anyhow::Result<Vec<IpAddr>> {
    let query_id = u16::from_le_bytes(id::random());
    let mut packet = Packet::new_query(query_id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(Question::new(Name::new(name)?, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
    let query = packet.build_bytes_vec()?;
    let timeout = async {
        Timer::after(TIMEOUT).await;
        bail!("no answer within {} s", TIMEOUT.as_secs())
    };
    let answer = ask_udp(&query, query_id, server, dialer).or(timeout).await?;
    match Packet::parse(&answer)?.has_flags(PacketFlag::TRUNCATION) {
        true => addresses(&ask_tcp(&query, server, dialer).await?),
        false => addresses(&answer),
    }
}

async fn ask_udp(query: &[u8], query_id: u16, server: SocketAddr, dialer: &Dialer) -> anyhow::Result<Vec<u8>> {
    let socket = dialer.udp(server.is_ipv6()).await?;
    socket.get_ref().connect(server)?;
    socket.send(query).await?;
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else that comes to this port is a late or a forged answer.
        if length > 2 && buffer[..2] == query_id.to_be_bytes() {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(query: &[u8], server: SocketAddr, dialer: &Dialer) -> anyhow::Result<Vec<u8>> {
    let mut stream = dialer.connect_address(server).await?;
    stream.write_all(&(query.len() as u16).to_be_bytes()).await?;
    stream.write_all(query).await?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn addresses(answer: &[u8]) -> anyhow::Result<Vec<IpAddr>> {
    let packet = Packet::parse(answer)?;
    match packet.rcode() {
        RCODE::NoError | RCODE::NameError => (),
        other => bail!("the server answers {other:?}"),
    }
    let address = |data: &RData| match data {
        RData::A(record) => Some(IpAddr::from(record.address.to_be_bytes())),
        RData::AAAA(record) => Some(IpAddr::from(record.address.to_be_bytes())),
        _ => None,
    };
    Ok(packet.answers.iter().filter_map(|record| address(&record.rdata)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_file_gives_addresses_of_any_alias() {
        let hosts = "127.0.0.1 localhost\n# 1.2.3.4 gone\n::1 board Board.lan # six\n10.0.0.7\tboard\n";
        assert_eq!(in_hosts(hosts, "board"), ["10.0.0.7".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
        assert_eq!(in_hosts(hosts, "BOARD.lan"), ["::1".parse::<IpAddr>().unwrap()]);
        assert!(in_hosts(hosts, "gone").is_empty());
    }

    #[test]
    fn resolv_conf_gives_servers_and_search() {
        let config = parse("# c\nsearch a.lan b.lan\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\noptions ndots:5\n");
        assert_eq!(config.servers, ["10.0.0.1:53".parse().unwrap(), "[fe80::1]:53".parse::<SocketAddr>().unwrap()]);
        assert_eq!(candidates("reg", &config.search), ["reg.a.lan", "reg.b.lan", "reg"]);
        assert_eq!(candidates("reg.io", &config.search), ["reg.io", "reg.io.a.lan", "reg.io.b.lan"]);
        assert_eq!(candidates("reg.io.", &config.search), ["reg.io"]);
    }
}
