//! A connection that was dialled one way and is asked over the other: the agent connects to the master, both agree to
//! switch, and from then on the master is the HTTP/2 client and the agent the server. So a node behind a wall of
//! address translation still serves logs. It authenticates nobody: TLS did, before the switch.

use std::rc::Rc;

use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::http::uri::{Authority, Scheme};
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response};

use super::body::Body;
use super::{client, server};

/// The token of the Upgrade header (RFC 9110 section 7.8).
pub const PROTOCOL: &str = "edgectl-tunnel/1";

/// What either end may send ahead on one stream, and on all of them: a stream that nobody reads on must not be able to use up what the
/// others need.
const WINDOWS_BYTES: (u32, u32) = (256 << 10, 16 << 20);

/// The master's end. Clones share the tunnel.
#[derive(Clone)]
pub struct Tunnel(http2::SendRequest<Body>);

impl Tunnel {
    /// # Errors
    /// If the other end does not speak.
    pub async fn over(upgraded: Upgraded) -> anyhow::Result<Self> {
        Ok(Self(client::speak_http2(upgraded, WINDOWS_BYTES).await?))
    }

    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Sends a request whose URI is a path with its query.
    ///
    /// # Errors
    /// If the tunnel breaks before the answer.
    pub async fn request(&self, mut request: Request<Body>) -> anyhow::Result<Response<Incoming>> {
        *request.uri_mut() = client::absolute(request.uri(), Scheme::HTTP, Authority::from_static("node"))?;
        Ok(self.0.clone().send_request(request).await?)
    }
}

/// The agent's end: answers until the tunnel ends.
///
/// # Errors
/// If it ends otherwise than by being closed.
pub async fn serve<F>(upgraded: Upgraded, handler: Rc<dyn Fn(Request<Incoming>) -> F>) -> anyhow::Result<()>
where
    F: Future<Output = Response<Body>> + 'static,
{
    let service = service_fn(move |request| {
        let answer = handler(request);
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    server::speak_http2(upgraded, WINDOWS_BYTES, service).await
}
