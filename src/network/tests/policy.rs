//! Policies in the kernel: judged by connections, datagrams and `ping` between pods, the node and somebody outside, and by `nft`.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::super::nftables::{self, Connection};
use super::super::policy::{Allowance, Isolation, Peers, Ports};
use super::super::services::{Backend, ServicePort};
use super::*;

const DEADLINE: Duration = Duration::from_secs(30);
/// What is dropped is silent: this long is waited for it.
const SILENCE: Duration = Duration::from_millis(400);
const TABLE: &str = "edgectl-policies";
const OUTSIDE: &str = "192.0.2.2";
const OTHER_OUTSIDE: &str = "192.0.2.9";
const SERVICE: &str = "10.96.0.7";

/// A node with a pod that serves on two ports, two that ask, and somebody outside with two addresses who serves, too.
struct Node {
    network: Network,
    server: Pod,
    clients: [Pod; 2],
    outside: Pod,
    addresses: [Ipv4Addr; 3],
    _lab: Lab,
}

impl Node {
    fn new(preparation: &str) -> Self {
        let lab = Lab::new();
        sh(preparation);
        let network = lab.network();
        smol::block_on(network.setup()).unwrap();
        let outside = Pod::new("outside");
        let pid = outside.process.id();
        sh(&format!("ip link add up0 type veth peer name eth0 netns {pid} && ip link set up0 up && ip address add 192.0.2.1/24 dev up0"));
        for address in [OUTSIDE, OTHER_OUTSIDE] {
            outside.sh(&format!("ip address add {address}/24 dev eth0"));
        }
        outside.sh("ip link set eth0 up");
        outside.sh("ip route add default via 192.0.2.1");
        let server = Pod::new("server");
        let clients = [Pod::new("one"), Pod::new("two")];
        let addresses = [&server, &clients[0], &clients[1]].map(|pod| pod.attach(&network, &[]).unwrap().address);
        [8080, 8081].iter().for_each(|port| server.serve(*port));
        outside.serve(8080);
        Self { network, server, clients, outside, addresses, _lab: lab }
    }

    /// What the server and the first client may, from now on.
    fn isolate(&self, ingress: Option<&[Allowance]>, egress: Option<&[Allowance]>) {
        let of = |address: Ipv4Addr, allowances: Option<&[Allowance]>| {
            allowances.map(|allowances| (address, allowances.iter().cloned().collect::<BTreeSet<_>>())).into_iter().collect()
        };
        self.set(Isolation { ingress: of(self.addresses[0], ingress), egress: of(self.addresses[1], egress), ..self.groups() });
    }

    fn groups(&self) -> Isolation {
        let [server, one, two] = self.addresses;
        let sockets = [(server, Protocol::Tcp, 8081)].into();
        let groups = [("one", [one].into()), ("two", [two].into()), ("server", [server].into()), ("nobody", [].into())];
        Isolation {
            groups: groups.map(|(name, members)| (name.to_owned(), members)).into(),
            sockets: [("http".to_owned(), sockets)].into(),
            ..Isolation::default()
        }
    }

    fn set(&self, isolation: Isolation) {
        self.network.set_policies(isolation);
        smol::block_on(self.network.apply_policies()).unwrap();
    }

    /// Whether the first client, the second, the node and the two addresses outside reach the server's port.
    fn who_reaches(&self, port: u16) -> [bool; 5] {
        let server = self.addresses[0].to_string();
        let from = |source: &str| reaches(Some(&self.outside), Some(source), &server, port);
        [
            reaches(Some(&self.clients[0]), None, &server, port),
            reaches(Some(&self.clients[1]), None, &server, port),
            reaches(None, None, &server, port),
            from(OUTSIDE),
            from(OTHER_OUTSIDE),
        ]
    }
}

/// Whether a connection from the pod, or else the node, comes about; one that is refused is no answer that any case here wants.
fn reaches(pod: Option<&Pod>, source: Option<&str>, address: &str, port: u16) -> bool {
    let connect = || -> std::io::Result<()> {
        let socket = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
        // A connection that is being made obeys it, too.
        socket::setsockopt(&socket, sockopt::SendTimeout, &TimeVal::milliseconds(SILENCE.as_millis() as i64))?;
        let at = |address: &str, port| SockaddrIn::from(SocketAddrV4::new(address.parse().unwrap(), port));
        if let Some(source) = source {
            socket::bind(socket.as_raw_fd(), &at(source, 0))?;
        }
        Ok(socket::connect(socket.as_raw_fd(), &at(address, port))?)
    };
    let done = match pod {
        Some(pod) => netlink::within(File::open(pod.netns()).unwrap().as_fd(), connect),
        None => connect(),
    };
    match done {
        Ok(()) => true,
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::ETIMEDOUT)) => false,
        Err(error) => panic!("{address} {port}: {error}"),
    }
}

fn allow(peers: Peers, ports: &[Ports]) -> Allowance {
    Allowance { peers, ports: (!ports.is_empty()).then(|| ports.iter().copied().collect()) }
}

fn group(name: &str) -> Peers {
    Peers::Group(name.to_owned())
}

fn block(within: &str, except: &[&str]) -> Peers {
    Peers::Block { within: within.parse().unwrap(), except: except.iter().map(|hole| hole.parse().unwrap()).collect() }
}

fn table() -> String {
    String::from_utf8(try_sh(&format!("nft list table ip {TABLE}")).stdout).unwrap()
}

#[test]
fn an_isolated_pod_is_reached_by_whom_it_allows() {
    let node = Node::new("true");
    let tcp = |first, last| Ports { protocol: Protocol::Tcp, first, last };
    let check = |allowances: &[Allowance], expected: [[bool; 5]; 2]| {
        node.isolate(Some(allowances), None);
        assert_eq!([8080, 8081].map(|port| node.who_reaches(port)), expected, "{allowances:?}\n{}", table());
    };
    // The node is never shut out.
    let none = [false, false, true, false, false];
    check(&[], [none, none]);
    check(&[allow(group("one"), &[])], [[true, false, true, false, false]; 2]);
    check(&[allow(group("nobody"), &[])], [none, none]);
    check(
        &[allow(group("one"), &[]), allow(group("two"), &[tcp(8081, 8081)])],
        [[true, false, true, false, false], [true, true, true, false, false]],
    );
    check(&[allow(Peers::Anyone, &[tcp(8000, 8080)])], [[true; 5], none]);
    check(&[allow(Peers::Anyone, &[])], [[true; 5], [true; 5]]);
    check(&[allow(Peers::Anyone, &[Ports::all(Protocol::Udp)])], [none, none]);
    check(&[allow(Peers::Anyone, &[Ports::all(Protocol::Udp), tcp(8081, 9000)])], [none, [true; 5]]);
    check(&[allow(block("192.0.2.0/24", &[]), &[])], [[false, false, true, true, true]; 2]);
    check(&[allow(block("192.0.2.0/24", &["192.0.2.8/30"]), &[tcp(8080, 8080)])], [[false, false, true, true, false], none]);
    check(&[allow(block("0.0.0.0/0", &["10.244.0.0/16"]), &[])], [[false, false, true, true, true]; 2]);
    node.set(Isolation::default());
    assert_eq!(node.who_reaches(8080), [true; 5]);
    assert_eq!(table(), "");
}

/// As on a machine where nobody wants br_netfilter; the kernel's default, where it has it, is on.
#[test]
fn a_neighbour_is_shut_out_without_br_netfilter() {
    let node = Node::new("sysctl -eqw net.bridge.bridge-nf-call-iptables=0");
    node.isolate(Some(&[allow(group("two"), &[])]), None);
    assert_eq!(node.who_reaches(8080), [false, true, true, false, false]);
}

#[test]
fn an_isolated_pod_reaches_whom_it_may() {
    let node = Node::new("true");
    let (client, server) = (&node.clients[0], node.addresses[0].to_string());
    let second = node.addresses[2].to_string();
    node.clients[1].serve(8080);
    // The server's two ports, the other pod, the node, outside.
    sh("ip address add 198.51.100.1/32 dev lo");
    let own = "198.51.100.1";
    serve_here(own, 8080);
    let check = |allowances: &[Allowance], expected: [bool; 5]| {
        node.isolate(None, Some(allowances));
        let targets = [(&*server, 8080), (&*server, 8081), (&*second, 8080), (own, 8080), (OUTSIDE, 8080)];
        assert_eq!(targets.map(|(address, port)| reaches(Some(client), None, address, port)), expected, "{allowances:?}\n{}", table());
        // Who asks it gets an answer, and others are free.
        node.clients[1].sh(&format!("ping -c1 -W2 {}", node.addresses[1]));
        assert!(reaches(Some(&node.clients[1]), None, &server, 8080));
    };
    check(&[], [false, false, false, true, false]);
    check(&[allow(group("server"), &[Ports::one(Protocol::Tcp, 8080)])], [true, false, false, true, false]);
    check(&[allow(Peers::Sockets("http".into()), &[])], [false, true, false, true, false]);
    check(&[allow(block("192.0.2.0/24", &[]), &[])], [false, false, false, true, true]);
    check(&[allow(Peers::Anyone, &[])], [true; 5]);
    // Both sides of one connection on one node: both have to allow it.
    let one = || Some(vec![allow(group("one"), &[])]);
    let server_of = || Some(vec![allow(group("server"), &[])]);
    for (ingress, egress, expected) in [(one(), server_of(), true), (Some(vec![]), server_of(), false), (one(), Some(vec![]), false)] {
        node.isolate(ingress.as_deref(), egress.as_deref());
        assert_eq!(reaches(Some(client), None, &server, 8080), expected, "{}", table());
    }
}

/// Listens in the node itself.
fn serve_here(address: &str, port: u16) {
    let listener = TcpListener::bind((address, port)).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(|connection| drop(connection.unwrap())));
}

#[test]
fn a_service_is_judged_by_its_pod_and_the_true_client() {
    let node = Node::new("true");
    let port = ServicePort {
        name: String::new(),
        protocol: Protocol::Tcp,
        port: 80,
        address: SERVICE.parse().unwrap(),
        external_addresses: vec![],
        sources: [].into(),
        node_port: Some(30080),
        backends: vec![Backend { address: node.addresses[0], port: 8080 }],
        external_backends: vec![Backend { address: node.addresses[0], port: 8080 }],
        keeps_source: false,
        affinity_seconds: None,
    };
    node.network.set_service("shop/web", vec![port]);
    smol::block_on(node.network.apply_services()).unwrap();
    let outside = |source: &str| reaches(Some(&node.outside), Some(source), "192.0.2.1", 30080);
    let who = || {
        let clients = node.clients.each_ref().map(|client| reaches(Some(client), None, SERVICE, 80));
        [
            clients[0],
            clients[1],
            reaches(None, None, SERVICE, 80),
            outside(OUTSIDE),
            outside(OTHER_OUTSIDE),
            reaches(Some(&node.server), None, SERVICE, 80),
        ]
    };
    assert_eq!(who(), [true; 6]);
    // A pod always reaches itself.
    node.isolate(Some(&[allow(group("one"), &[Ports::one(Protocol::Tcp, 80)])]), None);
    assert_eq!(who(), [false, false, true, false, false, true], "{}", table());
    node.isolate(Some(&[allow(group("one"), &[Ports::one(Protocol::Tcp, 8080)])]), None);
    assert_eq!(who(), [true, false, true, false, false, true], "{}", table());
    node.isolate(Some(&[allow(block("192.0.2.2/32", &[]), &[])]), None);
    assert_eq!(who(), [false, false, true, true, false, true], "{}", table());
    node.isolate(None, Some(&[allow(group("server"), &[Ports::one(Protocol::Tcp, 8080)])]));
    assert_eq!(who(), [true; 6]);
    node.isolate(None, Some(&[allow(group("server"), &[Ports::one(Protocol::Tcp, 80)])]));
    assert_eq!(who(), [false, true, true, true, true, true]);
}

#[test]
fn a_policy_holds_for_connections_that_there_were_before_it() {
    let node = Node::new("true");
    let (server, client) = (&node.server, &node.clients[0]);
    let inside = |pod: &Pod, address: &str| {
        let netns = File::open(pod.netns()).unwrap();
        netlink::within(netns.as_fd(), || UdpSocket::bind((address, 0))).unwrap()
    };
    let (here, there) = (inside(client, "0.0.0.0"), inside(server, "0.0.0.0"));
    for socket in [&here, &there] {
        socket.set_read_timeout(Some(SILENCE)).unwrap();
    }
    here.connect(SocketAddr::new(node.addresses[0].into(), there.local_addr().unwrap().port())).unwrap();
    there.connect(SocketAddr::new(node.addresses[1].into(), here.local_addr().unwrap().port())).unwrap();
    let passes = |from: &UdpSocket, to: &UdpSocket| {
        from.send(b"word").unwrap();
        let mut buffer = [0; 8];
        match to.recv(&mut buffer) {
            Ok(length) => length == 4,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(passes(&here, &there) && passes(&there, &here));
    node.isolate(Some(&[]), None);
    assert!(!passes(&here, &there), "{}", table());
    node.isolate(Some(&[allow(group("one"), &[Ports::all(Protocol::Udp)])]), None);
    assert!(passes(&here, &there) && passes(&there, &here), "{}", table());

    // A stream that is cut off goes on when it is allowed again.
    let netns = File::open(server.netns()).unwrap();
    let listener = netlink::within(netns.as_fd(), || TcpListener::bind("0.0.0.0:9000")).unwrap();
    node.isolate(None, None);
    let netns = File::open(client.netns()).unwrap();
    let mut stream = netlink::within(netns.as_fd(), || TcpStream::connect((node.addresses[0], 9000))).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.set_read_timeout(Some(SILENCE)).unwrap();
    node.isolate(Some(&[]), None);
    stream.write_all(b"w").unwrap();
    let mut byte = [0];
    assert!(matches!(accepted.read(&mut byte).unwrap_err().kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
    node.isolate(None, None);
    accepted.set_read_timeout(Some(DEADLINE)).unwrap();
    accepted.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"w");
}

#[test]
fn errors_about_a_connection_come_through() {
    let node = Node::new("true");
    node.isolate(None, Some(&[allow(block("192.0.2.0/24", &[]), &[Ports::all(Protocol::Udp)])]));
    let netns = File::open(node.clients[0].netns()).unwrap();
    let socket = netlink::within(netns.as_fd(), || UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.connect((OUTSIDE, 9)).unwrap();
    socket.send(b"word").unwrap();
    assert_eq!(socket.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn each_change_is_one_small_transaction() {
    let node = Node::new("true");
    let generation = || nftables::generation(&Connection::open().unwrap()).unwrap();
    node.isolate(Some(&[allow(group("one"), &[])]), None);
    let before = (table(), generation());
    // The same again, also by an agent that starts.
    node.isolate(Some(&[allow(group("one"), &[])]), None);
    let started = node._lab.network();
    let same = node.network.isolation.borrow().as_deref().cloned().unwrap();
    started.set_policies(same.clone());
    smol::block_on(started.apply_policies()).unwrap();
    assert_eq!((table(), generation()), before);
    // Somebody more in a large group.
    let mut many = same;
    many.groups.insert("one".to_owned(), (0..10_000_u32).map(|index| Ipv4Addr::from(0x0af4_1000 + index)).collect());
    node.set(many.clone());
    assert_eq!(generation(), before.1 + 1, "ten thousand in one transaction");
    assert_eq!(members(), 10_000);
    many.groups.get_mut("one").unwrap().insert(node.addresses[1]);
    node.set(many);
    assert_eq!((generation(), members()), (before.1 + 2, 10_001));
    assert!(reaches(Some(&node.clients[0]), None, &node.addresses[0].to_string(), 8080));
    node.set(Isolation::default());
    assert_eq!((generation(), &*table()), (before.1 + 3, ""));
}

/// How many there are in the largest set.
fn members() -> usize {
    let listed = json(&format!("nft -j list table ip {TABLE}"));
    let sets = listed["nftables"].as_array().unwrap().iter().filter_map(|item| item.get("set"));
    sets.map(|set| set["elem"].as_array().map_or(0, Vec::len)).max().unwrap_or_default()
}

#[test]
fn policies_that_others_change_are_mended() {
    let node = Node::new("true");
    let one = [allow(group("one"), &[Ports::one(Protocol::Tcp, 8080)]), allow(block("192.0.2.0/24", &["192.0.2.9/32"]), &[])];
    node.isolate(Some(&one), None);
    let right = table();
    let chain = right.split_whitespace().find(|word| word.starts_with("ingress-") && word.len() == 24).unwrap();
    let set = right.split_whitespace().find(|word| word.starts_with("pods-")).unwrap();
    for damage in [
        "nft flush ruleset".to_owned(),
        format!("nft delete table ip {TABLE}"),
        format!("nft flush chain ip {TABLE} ingress"),
        format!("nft flush chain ip {TABLE} {chain}"),
        format!("nft insert rule ip {TABLE} ingress accept"),
        format!("nft flush map ip {TABLE} ingress-pods"),
        format!("nft flush set ip {TABLE} {set}"),
        format!("nft add element ip {TABLE} {set} {{ {} }}", node.addresses[2]),
        "nft add table ip other".to_owned(),
    ] {
        let started = Instant::now();
        sh(&damage);
        let mended = async {
            while table() != right {
                assert!(started.elapsed() < DEADLINE, "{damage}: {}", sh("nft list ruleset"));
                smol::Timer::after(Duration::from_millis(20)).await;
            }
        };
        smol::block_on(futures_lite::future::or(node.network.keep_services(), mended));
        assert_eq!(node.who_reaches(8080), [true, false, true, true, false], "{damage}");
    }
    // Others' tables are as they were.
    assert_eq!(sh("nft list table ip other"), "table ip other {\n}\n");
}
