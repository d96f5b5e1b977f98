//! Connects to a port of a pod for someone at the other end of the tunnel: what the request's body holds goes in, what comes out is the
//! answer's. It dials 127.0.0.1 in the pod's own network namespace, so a program that listens nowhere else is reached too.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Response, StatusCode};
use smol::Async;

use super::Node;
use super::server::Answered;
use crate::base::task;
use crate::wire::body::Body;
use crate::wire::dial::Dialer;

/// Read from a connection at once.
const READ_BYTES: usize = 16 << 10;

/// Connects to the port that the query names.
///
/// # Errors
/// 400 if it names none, 404 if the pod does not run, 500 if nobody listens there.
pub async fn answer(node: &Rc<Node>, namespace: &str, pod: &str, query: &str, body: Incoming) -> Answered {
    let port = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "port").and_then(|(_, value)| value.parse::<u16>().ok());
    let port = port.ok_or_else(|| (StatusCode::BAD_REQUEST, "the request names no port".to_owned()))?;
    let uid = node.uid_of(namespace, pod).map_err(|why| (StatusCode::NOT_FOUND, why))?;
    let connected = connect(node, &uid, port).await;
    let stream = connected.map_err(|error| {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("error forwarding port {port} to pod {namespace}/{pod}: {error:#}"))
    })?;
    let stream = Arc::new(stream);
    let sending = task::spawn(send(stream.clone(), body));
    // The task goes with the answer's body: whoever drops it half-way wants nothing of the connection any more.
    let coming = futures_lite::stream::unfold((stream, sending), |(stream, sending)| async move {
        let mut piece = vec![0; READ_BYTES];
        match (&*stream).read(&mut piece).await {
            Ok(0) => {
                // The pod may read on after it has said its last word.
                sending.detach();
                None
            }
            Ok(length) => {
                piece.truncate(length);
                Some((Ok(Bytes::from(piece)), (stream, sending)))
            }
            Err(error) => Some((Err(error.into()), (stream, sending))),
        }
    });
    Ok(Response::new(Body::stream(coming)))
}

async fn connect(node: &Node, uid: &str, port: u16) -> Result<Async<TcpStream>> {
    let pod = node.runtime.pod(uid).await?.context("the pod does not run")?;
    let path = pod.network_namespace().context("the pod does not run")?;
    let namespace = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    let dialer = Dialer::within(namespace.into());
    let mut failed = Vec::new();
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        match dialer.connect_address(SocketAddr::new(address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed.push(format!("{address}: {error:#}")),
        }
    }
    bail!("failed to connect to localhost:{port} in the pod: {}", failed.join(", "))
}

/// Carries what the client sends, and its end. What a pod that takes nothing more would have got is read all the same, so that its
/// answer is not cut off.
async fn send(stream: Arc<Async<TcpStream>>, mut body: Incoming) {
    let mut takes = true;
    loop {
        match body.frame().await {
            Some(Ok(frame)) => {
                if let Ok(content) = frame.into_data() {
                    takes = takes && (&*stream).write_all(&content).await.is_ok();
                }
            }
            // Whoever breaks off wants no answer either.
            Some(Err(_)) => return drop(stream.get_ref().shutdown(Shutdown::Both)),
            None => return drop(stream.get_ref().shutdown(Shutdown::Write)),
        }
    }
}
