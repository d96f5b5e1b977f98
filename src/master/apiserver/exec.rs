//! `pods/exec`: asks the node that runs the container, and once it runs the command, passes messages between the client's
//! WebSocket and the node's tunnel as they come. It reads none of them.

use bytes::Bytes;
use futures_lite::FutureExt;
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response};
use serde_json::Value;
use smol::channel::{self, Sender};

use super::logs;
use super::query::Query;
use crate::api::meta;
use crate::api::status::Status;
use crate::api::streams::{self, ERROR, MESSAGE_BYTES_MAX, PROTOCOLS};
use crate::base::task;
use crate::master::nodes::Nodes;
use crate::wire::body::Body;
use crate::wire::messages::{self, Messages};
use crate::wire::websocket;

/// Messages from the client that the node has not taken yet; then reading stops.
const WAITING_MAX: usize = 16;
/// Parameters of the request that go on to the node.
const PARAMETERS: [&str; 5] = ["command", "stdin", "stdout", "stderr", "tty"];

/// Answers `pods/exec`.
///
/// # Errors
/// 400 for a request that is none, or names no container. What the node says is told in the stream: older kubectls take a refusal for
/// a server that knows no WebSocket, and hide it behind that of their second try.
pub async fn answer(nodes: &Nodes, pod: &Value, query: &Query, parts: &mut Parts) -> Result<Response<Body>, Status> {
    let (node, container) = logs::place_of(pod, query.get("container"))?;
    let Some(node) = node else {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", meta::name(pod))));
    };
    if !websocket::is_asked(&parts.headers) {
        return Err(Status::bad_request("a command is run over WebSocket: the request lacks the header Upgrade: websocket"));
    }
    let (answer, _) = websocket::accept(&parts.headers, &PROTOCOLS).map_err(Status::bad_request)?;
    let switch = parts.extensions.remove::<OnUpgrade>().ok_or_else(|| Status::bad_request("this connection cannot switch to WebSocket"))?;
    let asked = query.pairs.iter().filter(|(key, _)| PARAMETERS.contains(&&**key));
    let asked = form_urlencoded::Serializer::new(String::new()).extend_pairs(asked).finish();
    let path = format!("/exec/{}/{}/{container}?{asked}", meta::namespace(pod), meta::name(pod));
    let (to_node, from_client) = channel::bounded(WAITING_MAX);
    let request = Request::post(path).body(Body::stream(from_client)).map_err(|error| Status::bad_request(error.to_string()))?;
    let (nodes, node) = (nodes.clone(), node.to_owned());
    task::spawn(async move {
        if let Err(error) = relay(switch, &nodes, &node, request, to_node).await {
            log::debug!("exec: {error:#}");
        }
    })
    .detach();
    Ok(answer)
}

async fn relay(switch: OnUpgrade, nodes: &Nodes, node: &str, request: Request<Body>, to_node: ToNode) -> anyhow::Result<()> {
    let (mut sender, mut receiver) = websocket::server(switch.await?, MESSAGE_BYTES_MAX).await;
    let asked = async { logs::accepted(nodes.request(node, request).await?).await };
    let mut from_node = match asked.await {
        Ok(answer) => Messages::new(answer.into_body(), MESSAGE_BYTES_MAX),
        Err(refusal) => {
            sender.send(streams::message(ERROR, streams::failed(&refusal.message).to_string().as_bytes())).await?;
            sender.close().await;
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
        Ok(())
    };
    down.or(up).await
}

type ToNode = Sender<Result<Bytes, Box<dyn std::error::Error + Send + Sync>>>;
