//! Pods of two nodes with a router between their links: judged by `ping` with packets of full size that nobody may cut, and by what
//! policies let through the tunnel.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::super::peers::pod_mtu;
use super::super::policy::{Allowance, Isolation, Peers};
use super::*;

const ROUTER: [&str; 2] = ["192.0.2.1", "198.51.100.1"];
const NODES: [[u8; 4]; 2] = [[192, 0, 2, 2], [198, 51, 100, 2]];
/// IPv4 and ICMP.
const HEADERS: u32 = 28;

/// A node in the network namespace of a thread of its own, with one pod.
struct Node {
    peer: Peer,
    pod: Pod,
    pod_address: Ipv4Addr,
    mtu: u32,
    /// The other nodes, and what the pod may do.
    orders: Sender<(Vec<Peer>, Isolation)>,
    told: Receiver<(String, String)>,
}

impl Node {
    /// Behind a bridge of the router's.
    fn new(router: &Pod, number: usize) -> Self {
        let (send, receive) = channel();
        let (orders, wanted) = channel::<(Vec<Peer>, Isolation)>();
        let (tell, told) = channel();
        let (router, node_address) = (router.process.id(), Ipv4Addr::from(NODES[number]));
        std::thread::spawn(move || {
            let lab = Lab::new();
            let (pid, gateway) = (std::process::id(), ROUTER[number]);
            let own = format!("/proc/{pid}/task/{}/ns/net", nix::unistd::gettid());
            sh(&format!("nsenter -t {router} -n ip link add port{number} type veth peer name eth0 netns {own}"));
            sh(&format!("nsenter -t {router} -n ip link set port{number} master br{number} up"));
            sh(&format!("ip address add {node_address}/24 dev eth0 && ip link set eth0 up && ip route add default via {gateway}"));
            let mtu = smol::block_on(pod_mtu(node_address)).unwrap();
            let pod_cidr: Cidr = format!("10.244.{number}.0/24").parse().unwrap();
            let config = NodeConfig { pod_cidr, node_address, mtu, ..lab.network().config };
            let network = Network::open(config).unwrap();
            smol::block_on(network.setup()).unwrap();
            let pod = Pod::new("pod");
            let pod_address = pod.attach(&network, &[]).unwrap().address;
            send.send((Peer { node_address, pod_cidr }, pod, pod_address, mtu)).unwrap();
            for (peers, isolation) in wanted {
                smol::block_on(network.set_peers(&peers)).unwrap();
                network.set_policies(isolation);
                smol::block_on(network.apply_policies()).unwrap();
                tell.send((sh("ip route show proto 69"), sh("bridge fdb show dev edge1"))).unwrap();
            }
        });
        let (peer, pod, pod_address, mtu) = receive.recv().unwrap();
        Self { peer, pod, pod_address, mtu, orders, told }
    }
}

#[test]
fn packets_of_full_size_cross_a_router() {
    let router = Pod::new("router");
    router.sh("sysctl -qw net.ipv4.ip_forward=1");
    for (number, address) in ROUTER.iter().enumerate() {
        router.sh(&format!("ip link add br{number} type bridge"));
        router.sh(&format!("ip link set br{number} up"));
        router.sh(&format!("ip address add {address}/24 dev br{number}"));
    }
    let nodes = [0, 1].map(|number| Node::new(&router, number));
    for (node, other) in [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])] {
        node.orders.send((vec![other.peer], Isolation::default())).unwrap();
        let (routes, entries) = node.told.recv().unwrap();
        assert!(routes.contains("dev edge1"), "{routes}");
        assert!(entries.contains(&format!("dst {}", other.peer.node_address)), "{entries}");
    }
    let forwarded = || -> u64 { router.sh("awk '/^Ip: [0-9]/ { print $7 }' /proc/net/snmp").trim().parse().unwrap() };
    let ping = |node: &Node, other: &Node, bytes: u32| {
        let command = format!("nsenter -t {} -n ping -c1 -W5 -M do -s {} {}", node.pod.process.id(), bytes - HEADERS, other.pod_address);
        let output = try_sh(&command);
        (output.status.success(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    for (node, other) in [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])] {
        // The tunnel's headers fit beside it into what the links carry.
        assert_eq!(node.mtu, 1450);
        let before = forwarded();
        let (is_answered, said) = ping(node, other, node.mtu);
        assert!(is_answered, "{said}");
        assert_eq!(forwarded() - before, 2, "one packet there and one back, neither in pieces");
        let (is_answered, said) = ping(node, other, node.mtu + 1);
        assert!(!is_answered && said.contains("message too long"), "{said}");
        assert!(said.contains(&format!("mtu={}", node.mtu)) || said.contains(&format!("mtu: {}", node.mtu)), "{said}");
    }
    // Under their own addresses, as on one link.
    nodes[1].pod.serve(8080);
    let fetch = || nodes[0].pod.fetch(&nodes[1].pod_address.to_string(), 8080);
    assert_eq!(fetch().unwrap(), nodes[0].pod_address.to_string());

    // What comes out of the tunnel is judged, and so is what goes in.
    let alone =
        |within: &str| [Allowance { peers: Peers::Block { within: within.parse().unwrap(), except: [].into() }, ports: None }].into();
    let check = |number: usize, isolation: Isolation, is_let_through: bool| {
        let (node, other) = (&nodes[number], &nodes[1 - number]);
        node.orders.send((vec![other.peer], isolation)).unwrap();
        node.told.recv().unwrap();
        assert_eq!(fetch().is_ok(), is_let_through);
    };
    let ingress = |within: &str| Isolation { ingress: [(nodes[1].pod_address, alone(within))].into(), ..Isolation::default() };
    let egress = |within: &str| Isolation { egress: [(nodes[0].pod_address, alone(within))].into(), ..Isolation::default() };
    check(1, ingress("10.244.7.0/24"), false);
    check(1, ingress("10.244.0.0/24"), true);
    check(0, egress("10.244.7.0/24"), false);
    check(0, egress("10.244.1.0/24"), true);
}
