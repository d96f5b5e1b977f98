//! The pod network against the real kernel, each case in namespaces of its own and judged by `ip`, `nft` and `ping`.
//! Nothing here may run in the machine's own network namespace.

mod peers;
mod policy;
mod services;

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sched::CloneFlags;
use serde_json::Value;

use super::*;
use crate::base;

/// A node in a network namespace of the test's own thread; a pod is a process that sleeps in another.
struct Lab {
    lease_dir: PathBuf,
}

struct Pod {
    uid: String,
    process: Child,
}

impl Lab {
    fn new() -> Self {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests need root");
        sh("ip link set lo up");
        Self { lease_dir: std::env::temp_dir().join(format!("edgectl-network-{}", base::id::uid())) }
    }

    fn network(&self) -> Network {
        let config = NodeConfig {
            pod_cidr: "10.244.3.0/24".parse().unwrap(),
            node_address: Ipv4Addr::LOCALHOST,
            cluster_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            bridge: "edge0".into(),
            mtu: 1450,
            lease_dir: self.lease_dir.clone(),
            local_addresses: vec![],
        };
        Network::open(config).unwrap()
    }

    /// Links, addresses, routes and rules: what must be the same before and after. A bridge learns of its carrier later.
    fn picture(&self) -> [String; 4] {
        let links = "ip -br link | awk '{ print $1, $3 }'";
        [links, "ip -br address | awk '{ print $1, $3, $4 }'", "ip route show table all | sed 's/ linkdown//'", "nft list ruleset"].map(sh)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        base::file::remove_tree(&self.lease_dir).unwrap();
    }
}

impl Pod {
    fn new(uid: &str) -> Self {
        let mut process =
            Command::new("unshare").args(["-n", "sh", "-c", "echo ready; exec sleep 600"]).stdout(Stdio::piped()).spawn().unwrap();
        // The namespace is there once the shell behind it speaks.
        let mut byte = [0];
        std::io::Read::read_exact(process.stdout.as_mut().unwrap(), &mut byte).unwrap();
        Self { uid: uid.to_owned(), process }
    }

    fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.process.id()).into()
    }

    fn attach(&self, network: &Network, host_ports: &[HostPort]) -> Result<Attachment> {
        let netns = self.netns();
        smol::block_on(network.attach(&AttachConfig { pod_uid: &self.uid, netns: &netns, host_ports }))
    }

    fn sh(&self, command: &str) -> String {
        sh(&format!("nsenter -t {} -n {command}", self.process.id()))
    }

    /// Listens on a port of the pod and answers every connection with the address it came from.
    fn serve(&self, port: u16) {
        let netns = File::open(self.netns()).unwrap();
        let listener = netlink::within(netns.as_fd(), || std::net::TcpListener::bind(("0.0.0.0", port))).unwrap();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let peer = connection.peer_addr().unwrap().ip().to_string();
                std::io::Write::write_all(&mut connection, peer.as_bytes()).unwrap();
            }
        });
    }

    fn fetch(&self, address: &str, port: u16) -> std::io::Result<String> {
        let netns = File::open(self.netns()).unwrap();
        netlink::within(netns.as_fd(), || fetch(address, port))
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn fetch(address: &str, port: u16) -> std::io::Result<String> {
    let target = std::net::SocketAddr::new(address.parse().unwrap(), port);
    let connection = std::net::TcpStream::connect_timeout(&target, std::time::Duration::from_secs(2))?;
    std::io::read_to_string(connection)
}

fn try_sh(command: &str) -> std::process::Output {
    Command::new("sh").args(["-c", command]).output().unwrap()
}

fn sh(command: &str) -> String {
    let output = try_sh(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(command: &str) -> Value {
    serde_json::from_str(&sh(command)).unwrap()
}

fn port(host_ip: [u8; 4], host_port: u16, container_port: u16) -> HostPort {
    HostPort { host_ip: host_ip.into(), host_port, container_port, protocol: Protocol::Tcp }
}

#[test]
fn a_node_is_set_up_once_and_mended_when_broken() {
    let lab = Lab::new();
    let network = lab.network();
    smol::block_on(network.setup()).unwrap();
    let link = &json("ip -j -d link show edge0")[0];
    assert_eq!(link["mtu"], 1450);
    assert_eq!(link["address"], "0a:58:0a:f4:03:01");
    assert_eq!(link["linkinfo"]["info_data"]["mcast_snooping"], 0);
    let address = &json("ip -j address show edge0")[0]["addr_info"][0];
    assert_eq!((&address["local"], &address["prefixlen"]), (&"10.244.3.1".into(), &24.into()));
    assert_eq!(sh("sysctl -n net.ipv4.ip_forward net.ipv4.conf.all.send_redirects net.ipv4.conf.edge0.send_redirects"), "1\n0\n0\n");
    let rules = sh("nft list table ip edgectl");
    for line in [
        "map host-ports {",
        "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service",
        "type nat hook prerouting priority dstnat; policy accept;",
        "fib daddr type local jump host-ports comment \"connections to the node\"",
        "dnat ip to ip daddr & 0.0.0.0 . meta l4proto . th dport map @host-ports comment \"ports of all addresses\"",
        "ip saddr . ip daddr @hairpins masquerade fully-random comment \"a pod to itself\"",
        "ip saddr 10.244.3.0/24 ip daddr != 10.244.0.0/16 masquerade fully-random",
    ] {
        assert!(rules.contains(line), "{line} is missing in\n{rules}");
    }

    let right = lab.picture();
    smol::block_on(lab.network().setup()).unwrap();
    assert_eq!(lab.picture(), right);

    for damage in [
        "nft flush ruleset",
        "nft delete table ip edgectl",
        "nft flush chain ip edgectl host-ports",
        "nft 'add rule ip edgectl output counter'",
    ] {
        sh(damage);
        smol::block_on(network.setup()).unwrap();
        assert_eq!(lab.picture()[3], right[3], "{damage}");
    }
    for damage in
        ["ip link set edge0 down", "ip link set edge0 mtu 1400", "ip address flush dev edge0", "ip address add 10.0.0.1/8 dev edge0"]
    {
        sh(damage);
        smol::block_on(network.setup()).unwrap();
        let address = &json("ip -j address show edge0")[0];
        assert_eq!(address["addr_info"].as_array().unwrap().iter().filter(|info| info["family"] == "inet").count(), 1, "{damage}");
        assert_eq!(address["mtu"], 1450);
        assert!(address["flags"].as_array().unwrap().contains(&"UP".into()), "{damage}");
    }
}

#[test]
fn tables_of_others_are_never_touched() {
    let lab = Lab::new();
    sh(
        "nft 'add table ip filter; add chain ip filter forward { type filter hook forward priority 0; }; add rule ip filter forward counter'",
    );
    sh("nft 'add table inet edgectl; add set inet edgectl host-ports { type ipv4_addr; }'");
    let before = [sh("nft list table ip filter"), sh("nft list table inet edgectl")];
    let network = lab.network();
    smol::block_on(network.setup()).unwrap();
    sh("nft delete table ip edgectl");
    smol::block_on(network.setup()).unwrap();
    assert_eq!([sh("nft list table ip filter"), sh("nft list table inet edgectl")], before);
}

#[test]
fn a_pod_gets_its_cable_and_leaves_nothing_behind() {
    let lab = Lab::new();
    let network = lab.network();
    smol::block_on(network.setup()).unwrap();
    let before = lab.picture();
    let pod = Pod::new("0b5e2c64-7a2f-4a51-9c2e-3f5f0f6f7a01");
    let attachment = pod.attach(&network, &[]).unwrap();
    assert_eq!(attachment.address, Ipv4Addr::new(10, 244, 3, 2));

    let eth0: Value = serde_json::from_str(&pod.sh("ip -j address show eth0")).unwrap();
    let info = &eth0[0]["addr_info"][0];
    assert_eq!((&info["local"], &info["prefixlen"]), (&"10.244.3.2".into(), &24.into()));
    assert_eq!((&eth0[0]["mtu"], &eth0[0]["address"]), (&1450.into(), &"0a:58:0a:f4:03:02".into()));
    let routes = pod.sh("ip route");
    assert_eq!(
        routes.lines().map(str::trim).collect::<Vec<_>>(),
        ["default via 10.244.3.1 dev eth0 proto static", "10.244.3.1 dev eth0 proto static scope link"]
    );
    assert_eq!(eth0[0]["addr_info"].as_array().unwrap().len(), 1, "no address but that: {eth0}");
    pod.sh("ping -c1 -W2 127.0.0.1");
    pod.sh("ping -c1 -W2 10.244.3.1");
    sh("ping -c1 -W2 10.244.3.2");
    let host_end = &json(&format!("ip -j -d link show {}", attachment.host_interface))[0];
    assert_eq!(host_end["ifalias"], format!("pod {}", pod.uid));
    assert_eq!(host_end["master"], "edge0");
    assert_eq!(host_end["linkinfo"]["info_slave_data"]["hairpin"], true);

    // Attaching again, also by another process, changes nothing.
    let (node, inside) = (lab.picture(), pod.sh("ip -d address"));
    assert_eq!(pod.attach(&network, &[]).unwrap(), attachment);
    assert_eq!(pod.attach(&lab.network(), &[]).unwrap(), attachment);
    assert_eq!((lab.picture(), pod.sh("ip -d address")), (node, inside));

    smol::block_on(network.detach(&pod.uid)).unwrap();
    smol::block_on(network.detach(&pod.uid)).unwrap();
    assert_eq!(lab.picture(), before);
    assert!(!pod.sh("ip -br link").contains("eth0"));
    assert_eq!(lab.network().attachment(&pod.uid), None);
}

#[test]
fn half_a_cable_is_made_whole() {
    let lab = Lab::new();
    let network = lab.network();
    smol::block_on(network.setup()).unwrap();
    let pod = Pod::new("a");
    let attachment = pod.attach(&network, &[]).unwrap();
    let host = &attachment.host_interface;
    for damage in [
        format!("ip link delete {host}"),
        format!("ip link set {host} nomaster"),
        format!("ip link set {host} down"),
        format!("nsenter -t {} -n ip address flush dev eth0", pod.process.id()),
        format!("ip link delete {host}; nsenter -t {} -n ip link add eth0 type bridge", pod.process.id()),
    ] {
        sh(&damage);
        assert_eq!(pod.attach(&network, &[]).unwrap(), attachment, "{damage}");
        pod.sh("ping -c1 -W2 10.244.3.1");
    }
}

#[test]
fn pods_reach_each_other_under_their_own_addresses() {
    let lab = Lab::new();
    let network = lab.network();
    smol::block_on(network.setup()).unwrap();
    let pods = [Pod::new("a"), Pod::new("b")];
    let [a, b] = pods.each_ref().map(|pod| pod.attach(&network, &[]).unwrap());
    pods[1].serve(8080);
    assert_eq!(pods[0].fetch(&b.address.to_string(), 8080).unwrap(), a.address.to_string());
    assert_eq!(fetch(&b.address.to_string(), 8080).unwrap(), "10.244.3.1");
    // One hop between them: the gateway.
    assert!(pods[0].sh(&format!("ping -c1 -W2 {}", b.address)).contains("ttl=63"));
}

#[test]
fn a_pod_leaves_the_cluster_under_the_nodes_address() {
    let lab = Lab::new();
    let network = lab.network();
    smol::block_on(network.setup()).unwrap();
    let outside = Pod::new("outside");
    let pid = outside.process.id();
    sh(&format!("ip link add up0 type veth peer name eth0 netns {pid} && ip link set up0 up && ip address add 192.0.2.1/24 dev up0"));
    outside.sh("ip address add 192.0.2.2/24 dev eth0");
    outside.sh("ip link set eth0 up");
    outside.serve(80);
    let pod = Pod::new("a");
    pod.attach(&network, &[]).unwrap();
    assert_eq!(pod.fetch("192.0.2.2", 80).unwrap(), "192.0.2.1");
}

#[test]
fn a_host_port_leads_to_its_pod_and_to_no_other() {
    check_host_ports("true");
}

/// As on a machine where nobody wants br_netfilter; the kernel's default, where it has it, is on.
#[test]
fn a_host_port_leads_to_its_pod_without_br_netfilter() {
    check_host_ports("sysctl -eqw net.bridge.bridge-nf-call-iptables=0");
}

fn check_host_ports(preparation: &str) {
    let lab = Lab::new();
    sh(preparation);
    let network = lab.network();
    smol::block_on(network.setup()).unwrap();
    sh("ip link add n0 type bridge; ip link set n0 up; ip address add 172.30.0.2/24 dev n0; ip address add 172.30.0.3/24 dev n0");
    let before = lab.picture();
    let (pod, other) = (Pod::new("a"), Pod::new("b"));
    let attachment = pod.attach(&network, &[port([0; 4], 8080, 80), port([172, 30, 0, 2], 8081, 81)]).unwrap();
    other.attach(&network, &[]).unwrap();
    pod.serve(80);
    pod.serve(81);
    assert!(sh("nft list map ip edgectl host-ports").contains(&format!("0.0.0.0 . tcp . 8080 : {} . 80", attachment.address)));
    for address in ["172.30.0.2", "172.30.0.3", "10.244.3.1"] {
        assert_eq!(other.fetch(address, 8080).unwrap(), "10.244.3.3", "{address}");
        fetch(address, 8080).unwrap();
    }
    fetch("172.30.0.2", 8081).unwrap();
    assert_eq!(pod.fetch("172.30.0.2", 8080).unwrap(), "10.244.3.1", "a pod to itself");
    assert!(fetch("172.30.0.3", 8081).is_err());
    assert!(fetch("172.30.0.2", 80).is_err());

    // The holder keeps it: the second is told, and leaves nothing behind.
    let third = Pod::new("c");
    let error = format!("{:#}", third.attach(&network, &[port([172, 30, 0, 3], 8080, 80)]).unwrap_err());
    assert_eq!(error, "host port TCP 8080 is held by pod a");
    assert_eq!(network.attachment("c"), None);

    // The rules come back from the leases, also in a later process.
    sh("nft flush ruleset");
    let network = lab.network();
    smol::block_on(network.setup()).unwrap();
    fetch("172.30.0.2", 8080).unwrap();

    for pod in [&pod, &other] {
        smol::block_on(network.detach(&pod.uid)).unwrap();
    }
    assert!(fetch("172.30.0.2", 8080).is_err());
    assert_eq!(lab.picture(), before);
}

#[test]
fn pods_that_are_gone_are_swept() {
    let lab = Lab::new();
    let network = lab.network();
    smol::block_on(network.setup()).unwrap();
    let before = lab.picture();
    let pods = ["a", "b", "c"].map(Pod::new);
    for (pod, host_port) in pods.iter().zip(8080..) {
        pod.attach(&network, &[port([0; 4], host_port, 80)]).unwrap();
    }
    // The namespace goes with its last process, and takes the cable with it; the lease stays until it is swept.
    let [a, b, c] = pods;
    drop(a);
    fs::remove_file(lab.lease_dir.join("10.244.3.4")).unwrap();
    let network = lab.network();
    let gone = smol::block_on(network.sweep(&["b".to_owned()].into())).unwrap();
    assert_eq!(gone, ["a", "c"]);
    assert!(network.attachment("b").is_some());
    assert!(!c.sh("ip -br link").contains("eth0"));
    assert_eq!(smol::block_on(network.sweep(&Default::default())).unwrap(), ["b"]);
    assert_eq!(lab.picture(), before);
    drop(b);
}

#[test]
fn an_attach_that_fails_leaves_nothing_behind() {
    let lab = Lab::new();
    let network = lab.network();
    let pod = Pod::new("a");
    let error = format!("{:#}", pod.attach(&network, &[]).unwrap_err());
    assert_eq!(error, "bridge edge0 is missing");
    smol::block_on(network.setup()).unwrap();
    let before = lab.picture();
    let nowhere = PathBuf::from("/proc/self/ns/none");
    let failed = smol::block_on(network.attach(&AttachConfig { pod_uid: "b", netns: &nowhere, host_ports: &[port([0; 4], 80, 80)] }));
    assert_eq!(format!("{:#}", failed.unwrap_err()), "open network namespace /proc/self/ns/none: No such file or directory (os error 2)");
    assert_eq!(lab.picture(), before);
    assert_eq!(fs::read_dir(&lab.lease_dir).unwrap().count(), 1, "only the file of the round is left");
}

#[test]
fn pods_keep_their_addresses_on_the_way_to_nodes_beyond_the_first_256() {
    let lab = Lab::new();
    sh("ip link add up0 type bridge && ip address add 192.0.2.1/24 dev up0 && ip link set up0 up");
    let mut network = lab.network();
    network.config.node_address = Ipv4Addr::new(192, 0, 2, 1);
    smol::block_on(network.setup()).unwrap();
    let leave =
        || sh("nft list table ip edgectl").lines().filter(|line| line.contains("masquerade")).map(str::to_owned).collect::<Vec<_>>();
    assert!(leave().iter().any(|line| line.contains("10.244.0.0/16")), "{:?}", leave());
    let peer = |pods: &str| Peer { pod_cidr: pods.parse().unwrap(), node_address: [192, 0, 2, 4].into() };
    smol::block_on(network.set_peers(&[peer("10.245.0.0/24")])).unwrap();
    assert!(leave().iter().any(|line| line.contains("10.244.0.0/15")), "{:?}", leave());
}

#[test]
fn what_a_node_has_made_is_taken_away_and_what_others_have_made_stays() {
    let lab = Lab::new();
    sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
    sh("ip link add up0 type bridge && ip address add 192.0.2.1/24 dev up0 && ip link set up0 up");
    sh(
        "ip route add 10.250.0.0/24 via 192.0.2.9; ip address add 10.250.1.1/32 dev lo; nft add table ip other; ip link add edge9 type bridge",
    );
    let before = lab.picture();
    let dns = Ipv4Addr::new(10, 96, 0, 10);
    let mut network = lab.network();
    network.config.node_address = Ipv4Addr::new(192, 0, 2, 1);
    network.config.local_addresses = vec![dns];
    smol::block_on(network.setup()).unwrap();
    let pod = Pod::new("one");
    pod.attach(&network, &[]).unwrap();
    let peer = |pods: &str, node: [u8; 4]| Peer { pod_cidr: pods.parse().unwrap(), node_address: node.into() };
    smol::block_on(network.set_peers(&[peer("10.244.4.0/24", [192, 0, 2, 4]), peer("10.244.5.0/24", [198, 51, 100, 5])])).unwrap();
    smol::block_on(network.apply_services()).unwrap();
    let pod_address = network.attachment(&pod.uid).unwrap().address;
    network.set_policies(super::policy::Isolation {
        ingress: std::collections::BTreeMap::from([(pod_address, Default::default())]),
        ..super::policy::Isolation::default()
    });
    smol::block_on(network.apply_policies()).unwrap();
    let during = lab.picture().concat();
    let links = ["edge0", "edge1", "10.244.4.0/24 via 192.0.2.4", "10.244.5.0/24", "10.96.0.10"];
    let tables = ["table ip edgectl", "table ip edgectl-services", "table ip edgectl-policies"];
    for part in links.into_iter().chain(tables) {
        assert!(during.contains(part), "{part}: {during}");
    }
    let removed = smol::block_on(remove::remove("edge0", &[dns])).unwrap();
    assert_eq!(lab.picture(), before);
    assert!(
        removed.iter().any(|line| line == "2 routes to other nodes' pods") && removed.iter().any(|line| line == "link edge1"),
        "{removed:?}"
    );
    assert_eq!(smol::block_on(remove::remove("edge0", &[dns])).unwrap(), Vec::<String>::new());
    // A bridge of that name which is not ours.
    assert_eq!(smol::block_on(remove::remove("edge9", &[])).unwrap(), Vec::<String>::new());
    assert_eq!(lab.picture(), before);
}
