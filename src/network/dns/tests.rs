//! The name server as its clients see it, with an upstream on loopback that counts what it is asked.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;

use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, Name, PacketFlag, QCLASS, QTYPE, Question, ResourceRecord, TYPE};

use super::*;
use crate::network::Protocol;

/// An upstream that knows `example.org`, and a name of so many addresses that they need TCP.
struct Outside {
    udp: SocketAddr,
    tcp: SocketAddr,
}

impl Upstream for Outside {
    async fn udp(&self, _: SocketAddr) -> io::Result<Async<UdpSocket>> {
        let socket = Async::<UdpSocket>::bind(([127, 0, 0, 1], 0))?;
        socket.get_ref().connect(self.udp)?;
        Ok(socket)
    }

    async fn tcp(&self, _: SocketAddr) -> io::Result<Async<TcpStream>> {
        Async::<TcpStream>::connect(self.tcp).await
    }
}

struct Lab {
    server: Rc<Server<Outside>>,
    asked: Rc<RefCell<Vec<String>>>,
    resolv_conf: PathBuf,
}

impl Drop for Lab {
    fn drop(&mut self) {
        std::fs::remove_file(&self.resolv_conf).unwrap();
    }
}

fn outside_answers(bytes: &[u8], asked: &RefCell<Vec<String>>, bytes_max: usize) -> Vec<u8> {
    let query = Packet::parse(bytes).unwrap();
    let name = query.questions[0].qname.to_string();
    asked.borrow_mut().push(name.clone());
    let mut reply = Packet::new_reply(query.id());
    reply.questions.clone_from(&query.questions);
    let count = match name.as_str() {
        "example.org" => 1,
        "many.example.org" => 100,
        _ => 0,
    };
    if count == 0 {
        *reply.rcode_mut() = RCODE::NameError;
    }
    for last in 0..count {
        let data = RData::A(A { address: 0xc000_0200 + last });
        reply.answers.push(ResourceRecord::new(Name::new(&name).unwrap().into_owned(), CLASS::IN, 20, data));
    }
    let whole = reply.build_bytes_vec_compressed().unwrap();
    if whole.len() <= bytes_max {
        return whole;
    }
    reply.answers.clear();
    reply.set_flags(PacketFlag::TRUNCATION);
    reply.build_bytes_vec_compressed().unwrap()
}

impl Lab {
    fn new() -> Self {
        let socket = Async::<UdpSocket>::bind(([127, 0, 0, 1], 0)).unwrap();
        let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
        let outside = Outside { udp: socket.get_ref().local_addr().unwrap(), tcp: listener.get_ref().local_addr().unwrap() };
        let asked = Rc::new(RefCell::new(Vec::new()));
        let log = asked.clone();
        task::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
                socket.send_to(&outside_answers(&buffer[..length], &log, 512), client).await.unwrap();
            }
        })
        .detach();
        let log = asked.clone();
        task::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let query = forward::read_message(&mut stream).await.unwrap();
                forward::write_message(&mut stream, &outside_answers(&query, &log, usize::MAX)).await.unwrap();
            }
        })
        .detach();
        let resolv_conf = std::env::temp_dir().join(format!("edgectl-dns-{}", id::uid()));
        std::fs::write(&resolv_conf, "nameserver 192.0.2.1\n").unwrap();
        let path: &'static str = Box::leak(resolv_conf.to_string_lossy().into_owned().into_boxed_str());
        let server = Server::new("cluster.local", [127, 0, 0, 1].into(), path, outside);
        let port = |number| Port { name: "http".into(), protocol: Protocol::Tcp, number };
        let pods = |count: u8| {
            (0..count).map(|last| Endpoint { hostname: String::new(), address: [10, 244, 0, last].into(), ports: vec![port(80)] })
        };
        server.zone().set("shop", "web", Some(Target::Address([10, 96, 0, 7].into(), vec![port(80)])));
        server.zone().set("shop", "big", Some(Target::Endpoints(pods(200).collect())));
        server.zone().set("shop", "out", Some(Target::Alias("example.org".into())));
        Self { server, asked, resolv_conf }
    }

    async fn ask(&self, name: &str, kind: TYPE, transport: Transport) -> (RCODE, Vec<String>, bool) {
        let mut query = Packet::new_query(77);
        query.questions.push(Question::new(Name::new(name).unwrap(), QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
        let answer = self.server.answer(&query.build_bytes_vec().unwrap(), transport).await.unwrap();
        let answer = Packet::parse(&answer).unwrap();
        assert_eq!(answer.id(), 77);
        let said = answer.answers.iter().map(|record| match &record.rdata {
            RData::A(found) => std::net::Ipv4Addr::from(found.address).to_string(),
            RData::CNAME(found) => found.0.to_string(),
            other => format!("{other:?}"),
        });
        (answer.rcode(), said.collect(), answer.has_flags(PacketFlag::TRUNCATION))
    }
}

fn whole(code: RCODE, said: &[&str]) -> (RCODE, Vec<String>, bool) {
    (code, said.iter().map(|word| (*word).to_owned()).collect(), false)
}

#[test]
fn names_of_the_cluster_are_answered_from_memory_and_others_from_outside_once() {
    task::run(async {
        let lab = Lab::new();
        let ask = async |name| lab.ask(name, TYPE::A, Transport::Udp).await;
        assert_eq!(ask("web.shop.svc.cluster.local").await, whole(RCODE::NoError, &["10.96.0.7"]));
        assert_eq!(lab.ask("web.shop.svc.cluster.local", TYPE::AAAA, Transport::Udp).await, whole(RCODE::NoError, &[]));
        assert_eq!(ask("nobody.shop.svc.cluster.local").await, whole(RCODE::NameError, &[]));
        assert!(lab.asked.borrow().is_empty());
        for _ in 0..2 {
            assert_eq!(ask("example.org").await, whole(RCODE::NoError, &["192.0.2.0"]));
        }
        assert_eq!(*lab.asked.borrow(), ["example.org"]);
        assert_eq!(ask("nobody.example.org").await, whole(RCODE::NameError, &[]));
    });
}

#[test]
fn an_alias_comes_with_the_addresses_that_it_leads_to() {
    task::run(async {
        let lab = Lab::new();
        let answer = lab.ask("out.shop.svc.cluster.local", TYPE::A, Transport::Udp).await;
        assert_eq!(answer, whole(RCODE::NoError, &["example.org", "192.0.2.0"]));
        lab.server.zone().set("shop", "near", Some(Target::Alias("web.shop.svc.cluster.local".into())));
        let answer = lab.ask("near.shop.svc.cluster.local", TYPE::A, Transport::Udp).await;
        assert_eq!(answer, whole(RCODE::NoError, &["web.shop.svc.cluster.local", "10.96.0.7"]));
    });
}

#[test]
fn long_answers_go_by_tcp() {
    task::run(async {
        let lab = Lab::new();
        for (name, count) in [("big.shop.svc.cluster.local", 200), ("many.example.org", 100)] {
            assert_eq!(lab.ask(name, TYPE::A, Transport::Udp).await, (RCODE::NoError, vec![], true), "{name}");
            let (code, said, truncated) = lab.ask(name, TYPE::A, Transport::Tcp).await;
            assert_eq!((code, said.len(), truncated), (RCODE::NoError, count, false), "{name}");
        }
    });
}

#[test]
fn it_answers_on_its_sockets_and_refuses_what_is_no_question() {
    task::run(async {
        let lab = Lab::new();
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        task::spawn(lab.server.listen(port).unwrap()).detach();
        let mut query = Packet::new_query(3);
        let question =
            Question::new(Name::new_unchecked("web.shop.svc.cluster.local"), QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN), false);
        query.questions.push(question);
        let query = query.build_bytes_vec().unwrap();
        let socket = Async::<UdpSocket>::bind(([127, 0, 0, 1], 0)).unwrap();
        let server = SocketAddr::from(([127, 0, 0, 1], port));
        let mut buffer = [0; 512];
        // What is malformed gets no answer and ends nothing.
        for bad in [&b""[..], b"x", &[0xff; 40], &query[..20]] {
            socket.send_to(bad, server).await.unwrap();
        }
        socket.send_to(&query, server).await.unwrap();
        let (length, _) = socket.recv_from(&mut buffer).await.unwrap();
        assert_eq!(Packet::parse(&buffer[..length]).unwrap().answers.len(), 1);
        let mut stream = Async::<TcpStream>::connect(server).await.unwrap();
        for _ in 0..2 {
            forward::write_message(&mut stream, &query).await.unwrap();
            let answer = forward::read_message(&mut stream).await.unwrap();
            assert_eq!(Packet::parse(&answer).unwrap().answers.len(), 1);
        }
        let refused = lab.server.answer(&Packet::new_query(5).build_bytes_vec().unwrap(), Transport::Udp).await.unwrap();
        assert_eq!(Packet::parse(&refused).unwrap().rcode(), RCODE::FormatError);
    });
}
