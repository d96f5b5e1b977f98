//! `pods/portforward`: a client's connections to ports of a pod, each a request of its own in the tunnel of the node that runs it. The
//! client speaks SPDY, plainly or within a WebSocket, or has one WebSocket with two channels a port, as the client libraries of
//! Python and JavaScript do. Bytes are passed on as they come; each direction ends by itself where the client's protocol can say so.

use std::collections::HashMap;

use anyhow::anyhow;
use bytes::Bytes;
use futures_lite::FutureExt;
use futures_util::future::join_all;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response};
use serde_json::Value;
use smol::channel;

use super::exec::ToNode;
use super::query::Query;
use super::respond;
use crate::api::meta;
use crate::api::status::Status;
use crate::api::streams::{self, MESSAGE_BYTES_MAX, PORT_FORWARD, PORT_FORWARD_TUNNELLED};
use crate::base::task;
use crate::master::nodes::Nodes;
use crate::wire::body::{self, Body};
use crate::wire::spdy::{self, Side, Stream};
use crate::wire::websocket;

/// The WebSocket with two channels a port.
const CHANNELS: &str = "v4.channel.k8s.io";
/// Ports of such a WebSocket: a channel's number is one byte.
const PORTS_MAX: usize = 127;
/// Pieces that the other side has not taken yet; then reading stops.
const WAITING_MAX: usize = 16;
/// Of a node's error text.
const ERROR_BYTES_MAX: usize = 16 << 10;
/// Streams that wait for the second of their pair.
const UNPAIRED_MAX: usize = 64;

/// Answers `pods/portforward`.
///
/// # Errors
/// 400 for a request that is none, or for a pod without a node. What goes wrong with a port is told on its own stream.
pub async fn answer(nodes: &Nodes, pod: &Value, query: &Query, parts: &mut Parts) -> Result<Response<Body>, Status> {
    let Some(node) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) else {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", meta::name(pod))));
    };
    let path = format!("/portForward/{}/{}", meta::namespace(pod), meta::name(pod));
    let way = Way { nodes: nodes.clone(), node: node.to_owned(), path };
    let is_spdy = spdy::is_asked(&parts.headers);
    let (answer, protocol) = if is_spdy {
        match spdy::accept(&parts.headers, &[PORT_FORWARD]) {
            Ok(accepted) => accepted,
            Err(refusal) => return Ok(respond::no_common_protocol(refusal)),
        }
    } else if websocket::is_asked(&parts.headers) {
        websocket::accept(&parts.headers, &[PORT_FORWARD_TUNNELLED, CHANNELS]).map_err(Status::bad_request)?
    } else {
        return Err(Status::bad_request("Upgrade request required"));
    };
    let ports = if protocol == CHANNELS { ports(query)? } else { Vec::new() };
    let switch = parts.extensions.remove::<OnUpgrade>().ok_or_else(|| Status::bad_request("this connection cannot switch protocols"))?;
    task::spawn(async move {
        let Ok(connection) = switch.await else { return };
        if is_spdy {
            return serve(spdy::over(connection, Side::Server), way).await;
        }
        let (sender, receiver) = websocket::server(connection, MESSAGE_BYTES_MAX).await;
        if protocol != CHANNELS {
            return serve(spdy::over_websocket(sender, receiver, Side::Server), way).await;
        }
        if let Err(error) = serve_channels(sender, receiver, &ports, &way).await {
            log::debug!("port-forward: {error:#}");
        }
    })
    .detach();
    Ok(answer)
}

fn ports(query: &Query) -> Result<Vec<u16>, Status> {
    let words = query.pairs.iter().filter(|(key, _)| key == "ports").flat_map(|(_, value)| value.split(','));
    let ports: Result<Vec<u16>, Status> = words.map(|word| port_of(word).map_err(Status::bad_request)).collect();
    match ports?.as_slice() {
        [] => Err(Status::bad_request("query parameter \"ports\" is required")),
        ports if ports.len() > PORTS_MAX => Err(Status::bad_request(format!("at most {PORTS_MAX} ports can be forwarded"))),
        ports => Ok(ports.to_vec()),
    }
}

fn port_of(word: &str) -> Result<u16, String> {
    word.parse().ok().filter(|port| *port != 0).ok_or_else(|| format!("{word:?} is not a valid port"))
}

/// The way to a pod.
#[derive(Clone)]
struct Way {
    nodes: Nodes,
    node: String,
    path: String,
}

impl Way {
    /// A connection to a port: what to send to it, and what comes from it.
    async fn connect(&self, port: u16) -> Result<(ToNode, Incoming), String> {
        let (to_node, from_client) = channel::bounded(WAITING_MAX);
        let request =
            Request::post(format!("{}?port={port}", self.path)).body(Body::stream(from_client)).map_err(|error| error.to_string())?;
        let answer = self.nodes.request(&self.node, request).await.map_err(|refusal| refusal.message)?;
        if answer.status().is_success() {
            return Ok((to_node, answer.into_body()));
        }
        let why = body::read_all(answer.into_body(), ERROR_BYTES_MAX).await.unwrap_or_default();
        Err(String::from_utf8_lossy(&why).into_owned())
    }
}

/// The next bytes that come from a port.
async fn next(from_node: &mut Incoming) -> anyhow::Result<Option<Bytes>> {
    while let Some(frame) = from_node.frame().await {
        if let Ok(content) = frame.map_err(|error| anyhow!("{error}"))?.into_data() {
            return Ok(Some(content));
        }
    }
    Ok(None)
}

/// Joins the two streams that each connection has: one for its bytes, one for what goes wrong.
async fn serve(session: spdy::Session, way: Way) {
    let mut unpaired: HashMap<String, Stream> = HashMap::new();
    while let Some(stream) = session.accept().await {
        let is_error = match stream.header("streamtype") {
            "error" => true,
            "data" => false,
            // Given up by being dropped.
            _ => continue,
        };
        // Clients of old give the pair no number: the stream for bytes comes right behind that for errors.
        let pair = match (stream.header("requestid"), is_error) {
            ("", true) => format!("stream {}", stream.id()),
            ("", false) => format!("stream {}", stream.id().saturating_sub(2)),
            (number, _) => number.to_owned(),
        };
        match unpaired.remove(&pair) {
            Some(first) => {
                let (errors, data) = if is_error { (stream, first) } else { (first, stream) };
                let way = way.clone();
                task::spawn(async move {
                    if let Err(error) = forward(&way, &errors, &data).await {
                        log::debug!("port-forward: {error:#}");
                    }
                })
                .detach();
            }
            None if unpaired.len() < UNPAIRED_MAX => drop(unpaired.insert(pair, stream)),
            None => {}
        }
    }
}

async fn forward(way: &Way, errors: &Stream, data: &Stream) -> anyhow::Result<()> {
    let connected = match port_of(data.header("port")) {
        Ok(port) => way.connect(port).await,
        Err(why) => Err(why),
    };
    let (to_node, mut from_node) = match connected {
        Ok(connected) => connected,
        Err(why) => {
            errors.write(why.as_bytes()).await?;
            errors.finish().await;
            data.finish().await;
            return Ok(());
        }
    };
    let down = async {
        while let Some(content) = next(&mut from_node).await? {
            data.write(&content).await?;
        }
        data.finish().await;
        errors.finish().await;
        Ok(())
    };
    let up = async {
        loop {
            match data.read().await {
                // What a pod that takes nothing more does not get must not hold up the client's other connections.
                Ok(Some(content)) => drop(to_node.send(Ok(content)).await),
                Ok(None) => break,
                Err(error) => {
                    // So that the pod's side sees no good end.
                    let _ = to_node.send(Err("the client has gone".into())).await;
                    return Err(error);
                }
            }
        }
        to_node.close();
        Ok(())
    };
    futures_lite::future::try_zip(down, up).await.map(|((), ())| ())
}

/// Channel 2n has the bytes of the n-th port, 2n + 1 what goes wrong with it; each begins with the port, in little-endian order. A
/// direction cannot end by itself here.
async fn serve_channels(mut sender: websocket::Sender, mut receiver: websocket::Receiver, ports: &[u16], way: &Way) -> anyhow::Result<()> {
    let (to_client, messages) = channel::bounded::<Vec<u8>>(WAITING_MAX);
    for (at, port) in ports.iter().enumerate() {
        for channel in [2 * at, 2 * at + 1] {
            sender.send(streams::message(channel as u8, &port.to_le_bytes())).await?;
        }
    }
    let connected = join_all(ports.iter().map(|port| way.connect(*port))).await;
    let mut to_node = Vec::new();
    let mut coming = Vec::new();
    for (at, connected) in connected.into_iter().enumerate() {
        let to_client = to_client.clone();
        match connected {
            Ok((sender, mut from_node)) => {
                to_node.push(Some(sender));
                coming.push(task::spawn(async move {
                    while let Ok(Some(content)) = next(&mut from_node).await {
                        if to_client.send(streams::message(2 * at as u8, &content)).await.is_err() {
                            return;
                        }
                    }
                }));
            }
            Err(why) => {
                to_node.push(None);
                sender.send(streams::message((2 * at + 1) as u8, why.as_bytes())).await?;
            }
        }
    }
    // Ends when all ports have.
    drop(to_client);
    let down = async {
        while let Ok(message) = messages.recv().await {
            sender.send(message).await?;
        }
        sender.close().await;
        anyhow::Ok(())
    };
    let up = async {
        while let Some(message) = receiver.next().await? {
            let Some((channel, content)) = message.split_first() else { continue };
            let port = to_node.get(usize::from(*channel / 2)).and_then(Option::as_ref).filter(|_| channel % 2 == 0);
            if let Some(port) = port {
                // A port that takes nothing more has told so by its end.
                let _ = port.send(Ok(message.slice_ref(content))).await;
            }
        }
        anyhow::Ok(())
    };
    down.or(up).await
}

#[cfg(test)]
mod tests;
