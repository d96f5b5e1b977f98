//! `pods/exec` and `pods/attach`: asks the node that runs the container, and passes messages between the client and the node's
//! tunnel as they come: those of a WebSocket as they are, those of SPDY from and to a stream for each channel (`spdy.rs`). It
//! changes nothing of what they hold.

mod spdy;

use bytes::Bytes;
use futures_lite::FutureExt;
use hyper::http::request::Parts;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, Response};
use serde_json::Value;
use smol::Timer;
use smol::channel::{self, Sender};

use super::logs;
use super::query::Query;
use super::respond;
use crate::api::meta;
use crate::api::status::Status;
use crate::api::streams::{self, ERROR, MESSAGE_BYTES_MAX, PROTOCOLS};
use crate::base::task;
use crate::master::nodes::Nodes;
use crate::wire::body::Body;
use crate::wire::messages::{self, Messages};
use crate::wire::{spdy as spdy_wire, websocket};

/// Messages from the client that the node has not taken yet; then reading stops.
const WAITING_MAX: usize = 16;
/// Parameters of the request that go on to the node.
const PARAMETERS: [&str; 5] = ["command", "stdin", "stdout", "stderr", "tty"];

/// How the client speaks.
enum Spoken {
    WebSocket,
    Spdy(spdy::Wanted),
}

/// Answers `pods/exec` and `pods/attach`; `what` is the one of the two.
///
/// # Errors
/// 400 for a request that is none, or names no container. What the node says is told in the stream: older kubectls take a refusal for
/// a server that knows no WebSocket, and hide it behind that of their second try.
pub async fn answer(nodes: &Nodes, what: &str, pod: &Value, query: &Query, parts: &mut Parts) -> Result<Response<Body>, Status> {
    let (node, container) = logs::place_of(pod, query.get("container"))?;
    let Some(node) = node else {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", meta::name(pod))));
    };
    let (answer, spoken) = if spdy_wire::is_asked(&parts.headers) {
        match spdy_wire::accept(&parts.headers, &spdy::PROTOCOLS) {
            Ok((answer, protocol)) => (answer, Spoken::Spdy(spdy::Wanted::read(query, protocol)?)),
            Err(refusal) => return Ok(respond::no_common_protocol(refusal)),
        }
    } else if websocket::is_asked(&parts.headers) {
        (websocket::accept(&parts.headers, &PROTOCOLS).map_err(Status::bad_request)?.0, Spoken::WebSocket)
    } else {
        return Err(Status::bad_request("Upgrade request required"));
    };
    let switch = parts.extensions.remove::<OnUpgrade>().ok_or_else(|| Status::bad_request("this connection cannot switch protocols"))?;
    let asked = query.pairs.iter().filter(|(key, _)| PARAMETERS.contains(&&**key));
    let asked = form_urlencoded::Serializer::new(String::new()).extend_pairs(asked).finish();
    let path = format!("/{what}/{}/{}/{container}?{asked}", meta::namespace(pod), meta::name(pod));
    let (to_node, from_client) = channel::bounded(WAITING_MAX);
    let request = Request::post(path).body(Body::stream(from_client)).map_err(|error| Status::bad_request(error.to_string()))?;
    let (nodes, node) = (nodes.clone(), node.to_owned());
    task::spawn(async move {
        let relayed = async {
            let connection = switch.await?;
            let asked = ask(&nodes, &node, request);
            match spoken {
                Spoken::WebSocket => relay(connection, asked, to_node).await,
                Spoken::Spdy(wanted) => spdy::relay(connection, wanted, asked, to_node).await,
            }
        };
        if let Err(error) = relayed.await {
            log::debug!("exec: {error:#}");
        }
    })
    .detach();
    Ok(answer)
}

/// What the node sends, or the message with which it refuses.
async fn ask(nodes: &Nodes, node: &str, request: Request<Body>) -> Result<Messages, Bytes> {
    let asked = async { logs::accepted(nodes.request(node, request).await?).await };
    match asked.await {
        Ok(answer) => Ok(Messages::new(answer.into_body(), MESSAGE_BYTES_MAX)),
        Err(refusal) => Err(streams::message(ERROR, streams::failed(&refusal.message).to_string().as_bytes()).into()),
    }
}

async fn relay(connection: Upgraded, asked: impl Future<Output = Result<Messages, Bytes>>, to_node: ToNode) -> anyhow::Result<()> {
    let (mut sender, mut receiver) = websocket::server(connection, MESSAGE_BYTES_MAX).await;
    let mut from_node = match asked.await {
        Ok(messages) => messages,
        Err(refusal) => {
            sender.send(refusal).await?;
            sender.close().await;
            hear_out(&mut receiver).await;
            return Ok(());
        }
    };
    let up = async {
        while let Some(message) = receiver.next().await? {
            if to_node.send(Ok(messages::frame(&message))).await.is_err() {
                break;
            }
        }
        // The client has gone: the node learns it by the end of the body, and ends the command.
        to_node.close();
        std::future::pending().await
    };
    let down = async {
        while let Some(message) = from_node.next().await? {
            sender.send(message).await?;
        }
        sender.close().await;
        anyhow::Ok(())
    };
    down.or(up).await?;
    hear_out(&mut receiver).await;
    Ok(())
}

/// Waits until the client has closed, too: with what it still says unread, the kernel would reset the connection, and what it was told last
/// would be lost on its way (RFC 1122, 4.2.2.13).
async fn hear_out(receiver: &mut websocket::Receiver) {
    let closed = async { while let Ok(Some(_)) = receiver.next().await {} };
    let late = async {
        Timer::after(spdy::GOODBYE_TIMEOUT).await;
    };
    closed.or(late).await;
}

/// Frames of a request's body.
pub type ToNode = Sender<Result<Bytes, Box<dyn std::error::Error + Send + Sync>>>;
