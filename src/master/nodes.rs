//! The tunnels that agents dialled: the way to ask a node for logs, commands, connections to its pods, and what is used there.
//! One tunnel a node; a new one takes the place of the old. It knows nothing of what is asked.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};

use crate::api::status::Status;
use crate::base::task;
use crate::wire::body::Body;
use crate::wire::tunnel::{self, Tunnel};

/// Nodes with a tunnel; Kubernetes' own limit on the nodes of a cluster.
const TUNNELS_MAX: usize = 5000;

/// A handle; clones share the tunnels.
#[derive(Clone, Default)]
pub struct Nodes(Rc<RefCell<HashMap<String, Tunnel>>>);

impl Nodes {
    /// Answers `GET /api/v1/nodes/NAME/tunnel` of an agent that was let in: switches protocols, and keeps the tunnel.
    ///
    /// # Errors
    /// `BadRequest` if the request does not ask to switch, `TooManyRequests` if there are too many nodes.
    pub fn accept(&self, node: &str, parts: &mut Parts) -> Result<Response<Body>, Status> {
        let switch = parts.extensions.remove::<OnUpgrade>();
        let asked = parts.headers.get(UPGRADE).map(HeaderValue::as_bytes) == Some(tunnel::PROTOCOL.as_bytes());
        let Some(switch) = switch.filter(|_| asked) else {
            return Err(Status::bad_request(format!("the tunnel of a node is opened with the header Upgrade: {}", tunnel::PROTOCOL)));
        };
        self.0.borrow_mut().retain(|_, tunnel| !tunnel.is_closed());
        if self.0.borrow().len() >= TUNNELS_MAX {
            return Err(Status::too_many_requests(format!("there are {TUNNELS_MAX} nodes already"), 60));
        }
        let (nodes, node) = (self.clone(), node.to_owned());
        task::spawn(async move {
            let opened = async { anyhow::Ok(Tunnel::over(switch.await?).await?) };
            match opened.await {
                Ok(tunnel) => {
                    log::info!("node={node} tunnel open");
                    nodes.0.borrow_mut().insert(node, tunnel);
                }
                Err(error) => log::warn!("node={node} tunnel: {error:#}"),
            }
        })
        .detach();
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(tunnel::PROTOCOL));
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        Ok(answer)
    }

    /// Nodes whose agents are connected.
    pub fn count(&self) -> usize {
        self.0.borrow().values().filter(|tunnel| !tunnel.is_closed()).count()
    }

    /// Asks a node's agent; the URI is a path with its query.
    ///
    /// # Errors
    /// `ServiceUnavailable` if the node has no tunnel, `InternalError` if it breaks.
    pub async fn request(&self, node: &str, request: Request<Body>) -> Result<Response<Incoming>, Status> {
        let tunnel = self.0.borrow().get(node).filter(|tunnel| !tunnel.is_closed()).cloned();
        let Some(tunnel) = tunnel else {
            return Err(Status::unavailable(format!("node {node:?} is not connected; is its agent running?")));
        };
        tunnel.request(request).await.map_err(|error| Status::internal(format!("ask node {node:?}: {error:#}")))
    }
}
