//! Clients of each protocol, over real connections and a real tunnel to a node that is none.

use std::net::{Ipv4Addr, TcpListener};
use std::rc::Rc;

use hyper::{Method, StatusCode};
use serde_json::json;

use super::*;
use crate::wire::client::{Client, Endpoint};
use crate::wire::dial::Dialer;
use crate::wire::{server, tunnel};

#[test]
fn ports_are_read_from_the_query() {
    let read = |query: &str| ports(&Query::parse(query).unwrap()).map_err(|status| status.message);
    assert_eq!(read("ports=80&ports=443,8080"), Ok(vec![80, 443, 8080]));
    assert_eq!(read("port=80").unwrap_err(), "query parameter \"ports\" is required");
    for wrong in ["0", "65536", "-1", "http", ""] {
        assert_eq!(read(&format!("ports={wrong}")).unwrap_err(), format!("{wrong:?} is not a valid port"));
    }
    assert!(read(&format!("ports={}", vec!["80"; PORTS_MAX + 1].join(","))).is_err());
}

/// A server with a node's tunnel, and a node whose pods give back in capitals what they are sent, but on port 81.
async fn lab() -> Client {
    let nodes = Nodes::default();
    let known = nodes.clone();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let handler: server::Handler = Rc::new(move |request, _| {
        let nodes = nodes.clone();
        Box::pin(async move {
            let (mut parts, _) = request.into_parts();
            let pod = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {"nodeName": "board"}});
            let query = Query::parse(parts.uri.query().unwrap_or_default()).unwrap();
            let answered = match parts.uri.path() {
                "/tunnel" => nodes.accept("board", &mut parts),
                _ => answer(&nodes, &pod, &query, &mut parts).await,
            };
            answered.unwrap_or_else(|status| respond::status(&status))
        })
    });
    task::spawn(server::serve(listener, None, 8, handler)).detach();
    let endpoint = Endpoint { host: "127.0.0.1".into(), port, tls: None, server_name: None, dialer: Dialer::default() };
    let client = Client::new(endpoint).unwrap();
    let request = Request::get("/tunnel").header("connection", "upgrade").header("upgrade", tunnel::PROTOCOL).body(Body::empty()).unwrap();
    let upgraded = client.upgrade(request).await.unwrap().1.unwrap();
    task::spawn(tunnel::serve(upgraded, Rc::new(node))).detach();
    while known.count() == 0 {
        futures_lite::future::yield_now().await;
    }
    client
}

async fn node(request: Request<Incoming>) -> Response<Body> {
    assert_eq!((request.method(), request.uri().path()), (&Method::POST, "/portForward/shop/web"));
    if request.uri().query() == Some("port=81") {
        let mut refusal = Response::new(Body::full("nobody listens"));
        *refusal.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        return refusal;
    }
    let shouted = futures_lite::stream::unfold(request.into_body(), |mut body| async move {
        let content = next(&mut body).await.transpose()?;
        Some((content.map(|content| content.to_ascii_uppercase().into()).map_err(Into::into), body))
    });
    Response::new(Body::stream(shouted))
}

#[test]
fn a_websocket_has_two_channels_a_port() {
    task::run(async {
        let mut request = Request::get("/portforward?ports=80&ports=81").body(Body::empty()).unwrap();
        websocket::ask(request.headers_mut(), &[CHANNELS]).unwrap();
        let upgraded = lab().await.upgrade(request).await.unwrap().1.unwrap();
        let (mut sender, mut receiver) = websocket::client(upgraded, MESSAGE_BYTES_MAX).await;
        for expected in [&[0, 80, 0][..], &[1, 80, 0], &[2, 81, 0], &[3, 81, 0], b"\x03nobody listens"] {
            assert_eq!(receiver.next().await.unwrap().unwrap(), expected);
        }
        // What is for a channel that is none, or for one that only tells errors, is for nobody.
        for message in [&b"\x02lost"[..], b"\x01lost", b"\x09lost", b"", b"\x00found"] {
            sender.send(message.to_vec()).await.unwrap();
        }
        assert_eq!(receiver.next().await.unwrap().unwrap(), &b"\x00FOUND"[..]);
    });
}

#[test]
fn spdy_is_spoken_plainly_and_within_a_websocket() {
    for within in [false, true] {
        task::run(async {
            let client = lab().await;
            let mut request = Request::post("/portforward").body(Body::empty()).unwrap();
            let session = if within {
                *request.method_mut() = Method::GET;
                websocket::ask(request.headers_mut(), &[PORT_FORWARD_TUNNELLED]).unwrap();
                let (sender, receiver) = websocket::client(client.upgrade(request).await.unwrap().1.unwrap(), MESSAGE_BYTES_MAX).await;
                spdy::over_websocket(sender, receiver, Side::Client)
            } else {
                spdy::ask(request.headers_mut(), PORT_FORWARD);
                spdy::over(client.upgrade(request).await.unwrap().1.unwrap(), Side::Client)
            };
            // In any order, and as clients of old name them: not at all.
            let open = async |kind: &str, port: &str, id: &str| {
                session.open(&[("streamType", kind), ("port", port), ("requestID", id)]).await.unwrap()
            };
            let (data, errors) = (open("data", "80", "1").await, open("error", "80", "1").await);
            let (old_errors, old_data) = (open("error", "82", "").await, open("data", "82", "").await);
            for (data, errors) in [(&data, &errors), (&old_data, &old_errors)] {
                data.write(b"hello").await.unwrap();
                assert_eq!(data.read().await.unwrap().unwrap(), "HELLO");
                data.finish().await;
                assert_eq!((data.read().await.unwrap(), errors.read().await.unwrap()), (None, None));
            }
            for (port, why) in [("81", "nobody listens"), ("0", "\"0\" is not a valid port"), ("x", "\"x\" is not a valid port")] {
                let (errors, data) = (open("error", port, port).await, open("data", port, port).await);
                assert_eq!(errors.read().await.unwrap().unwrap(), why);
                assert_eq!((data.read().await.unwrap(), errors.read().await.unwrap()), (None, None));
            }
            let other = open("other", "80", "9").await;
            assert!(other.read().await.is_err());
        });
    }
}

#[test]
fn a_client_that_speaks_something_else_is_told_what_is_spoken() {
    task::run(async {
        let client = lab().await;
        let mut request = Request::post("/portforward").body(Body::empty()).unwrap();
        spdy::ask(request.headers_mut(), "other.k8s.io");
        let (answer, switched) = client.upgrade(request).await.unwrap();
        assert!(switched.is_none());
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert_eq!(answer.headers()["x-accepted-stream-protocol-versions"], PORT_FORWARD);
        let (answer, _) = client.upgrade(Request::post("/portforward").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    });
}
