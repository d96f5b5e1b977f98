//! Accepts connections and hands each request to one handler, over HTTP/1.1 (with upgrades) or HTTP/2 as the client chose.
//! It reads no path and makes no answer of its own.

use std::cell::Cell;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::FutureExt;
use futures_rustls::TlsAcceptor;
use futures_rustls::rustls::pki_types::CertificateDer;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use smol::lock::Semaphore;
use smol::{Async, Timer};
use smol_hyper::rt::SmolTimer;

use super::body::Body;
use super::dial;
use super::io::{self, Duplex, Local};
use super::tls::ServerConfig;
use crate::base::task;

/// A client that has not finished its TLS handshake, or the head of its request, by then is sent away.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests that one HTTP/2 connection may have open. An agent holds a watch for each Secret and ConfigMap of its pods.
const STREAMS_MAX: u32 = 1024;
const FRAME_BYTES_MAX: u32 = 16 << 10;
/// What a client may send ahead on one HTTP/2 connection, and on one stream of it.
const WINDOW_BYTES: u32 = 1 << 20;
/// What a handler writes ahead of a slow HTTP/2 client, a stream.
const SEND_BUFFER_BYTES: usize = 64 << 10;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// Proven to be held by the client and to be below the authority that the server was given.
    pub certificate: Option<CertificateDer<'static>>,
}

pub type Answer = Pin<Box<dyn Future<Output = Response<Body>>>>;
pub type Handler = Rc<dyn Fn(Request<Incoming>, Rc<Peer>) -> Answer>;

/// Serves until the listener breaks; no more than `connections_max` at once: a further client waits to be accepted.
///
/// # Errors
/// If the listener cannot be watched.
pub async fn serve(listener: TcpListener, tls: Option<Arc<ServerConfig>>, connections_max: usize, handler: Handler) -> std::io::Result<()> {
    let listener = Async::new(listener)?;
    let places = Arc::new(Semaphore::new(connections_max));
    let last_error = Cell::new(None);
    loop {
        let place = places.acquire_arc().await;
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            // Out of descriptors, or a client that has gone already: say so once, and go on.
            Err(error) => {
                if last_error.replace(Some(error.kind())) != Some(error.kind()) {
                    log::warn!("accept a connection: {error}");
                }
                Timer::after(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, handler) = (tls.clone(), handler.clone());
        task::spawn(async move {
            // One that breaks just now is found to be broken below.
            let _ = dial::tune(stream.get_ref());
            if let Err(error) = connection(stream, address, tls, handler).await {
                log::debug!("connection of {address}: {error:#}");
            }
            drop(place);
        })
        .detach();
    }
}

async fn connection(
    stream: Async<std::net::TcpStream>,
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    handler: Handler,
) -> anyhow::Result<()> {
    let Some(tls) = tls else {
        return speak(stream, false, Rc::new(Peer { address, certificate: None }), handler).await;
    };
    let timeout = async {
        Timer::after(HANDSHAKE_TIMEOUT).await;
        Err(std::io::ErrorKind::TimedOut.into())
    };
    let stream = TlsAcceptor::from(tls).accept(stream).or(timeout).await?;
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(|chain| chain.first()).map(|certificate| certificate.clone().into_owned());
    let http2 = session.alpn_protocol() == Some(b"h2");
    speak(stream, http2, Rc::new(Peer { address, certificate }), handler).await
}

async fn speak(stream: impl Duplex + Send + 'static, http2: bool, peer: Rc<Peer>, handler: Handler) -> anyhow::Result<()> {
    let service = service_fn(move |request| {
        let answer = handler(request, peer.clone());
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    if http2 {
        return speak_http2(io::hyper(stream), (WINDOW_BYTES, WINDOW_BYTES), service).await;
    }
    hyper::server::conn::http1::Builder::new()
        .timer(SmolTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(io::hyper(stream), service)
        .with_upgrades()
        .await?;
    Ok(())
}

/// The server's side of HTTP/2 over any stream; also the agent's end of the tunnel. The windows are what the other side may send ahead on
/// one stream, and on all of them.
pub(super) async fn speak_http2<S>(
    stream: impl hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
    (stream_window_bytes, window_bytes): (u32, u32),
    service: S,
) -> anyhow::Result<()>
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<Body>, Error = std::convert::Infallible>,
    S::Future: 'static,
{
    hyper::server::conn::http2::Builder::new(Local)
        .max_concurrent_streams(STREAMS_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .initial_stream_window_size(stream_window_bytes)
        .initial_connection_window_size(window_bytes)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .serve_connection(stream, service)
        .await?;
    Ok(())
}
