//! An HTTP client for one server: one HTTP/2 connection that all requests share, or a few HTTP/1.1 ones.
//! It retries nothing, follows no redirect and judges no status: its callers know what may be asked twice.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_lite::FutureExt;
use futures_rustls::TlsConnector;
use futures_rustls::rustls::pki_types::{CertificateDer, ServerName};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{HOST, HeaderValue};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode, Uri};
use smol::Timer;
use smol::lock::Mutex;
use smol_hyper::rt::SmolTimer;

use super::body::Body;
use super::dial::Dialer;
use super::io::{self, Duplex, Local};
use super::tls::ClientConfig;
use crate::base::task;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection on which nothing came for this long is asked whether it lives, and given up if it does not say so in time.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// HTTP/1.1 connections kept for the next request.
const IDLE_MAX: usize = 4;
/// What a server may send ahead on one HTTP/2 connection, and on one stream of it.
const WINDOW_BYTES: u32 = 1 << 20;

/// One server and how to reach it.
#[derive(Clone)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
    /// None: plain HTTP.
    pub tls: Option<Arc<ClientConfig>>,
    /// The name that the server's certificate must have, if it is not `host`.
    pub server_name: Option<String>,
    pub dialer: Dialer,
}

/// A handle; clones share the connections.
#[derive(Clone)]
pub struct Client(Rc<Inner>);

struct Inner {
    endpoint: Endpoint,
    authority: Authority,
    /// Held while a connection is made, so that requests that start together share it.
    http2: Mutex<Option<http2::SendRequest<Body>>>,
    idle: RefCell<Vec<http1::SendRequest<Body>>>,
}

enum Connection {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Client {
    /// Opens nothing yet.
    ///
    /// # Errors
    /// If the host's name cannot stand in a request.
    pub fn new(endpoint: Endpoint) -> anyhow::Result<Self> {
        let Endpoint { host, port, .. } = &endpoint;
        let default_port = if endpoint.tls.is_some() { 443 } else { 80 };
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.clone() };
        let authority = if *port == default_port { host } else { format!("{host}:{port}") };
        let authority = Authority::try_from(authority.as_str()).with_context(|| format!("the address {authority:?}"))?;
        Ok(Self(Rc::new(Inner { endpoint, authority, http2: Mutex::new(None), idle: RefCell::default() })))
    }

    /// Sends a request whose URI is a path with its query, and waits for the head of the answer.
    ///
    /// # Errors
    /// If the server cannot be reached, or the connection breaks before the answer.
    pub async fn request(&self, mut request: Request<Body>) -> anyhow::Result<Response<Incoming>> {
        let context = || format!("{} {}", request.method(), request.uri().path());
        let context = context();
        let answer = match self.connection().await? {
            Connection::Http2(mut sender) => {
                *request.uri_mut() = self.absolute(request.uri())?;
                sender.send_request(request).await
            }
            Connection::Http1(mut sender) => {
                self.add_host(&mut request)?;
                let answer = sender.send_request(request).await;
                let mut idle = self.0.idle.borrow_mut();
                if answer.is_ok() && idle.len() < IDLE_MAX {
                    idle.push(sender);
                }
                answer
            }
        };
        answer.with_context(|| format!("{context}: {}", self.0.authority))
    }

    /// Sends a request that asks for another protocol, over a connection of its own.
    /// The second part is there if the server agreed (101 Switching Protocols).
    ///
    /// # Errors
    /// If the server cannot be reached, or the connection breaks before the answer.
    pub async fn upgrade(&self, mut request: Request<Body>) -> anyhow::Result<(Response<Incoming>, Option<Upgraded>)> {
        let stream = self.0.endpoint.dialer.connect(&self.0.endpoint.host, self.0.endpoint.port).await?;
        let mut sender = match &self.0.endpoint.tls {
            None => self.http1(stream).await?,
            Some(tls) => {
                let mut tls = ClientConfig::clone(tls);
                tls.alpn_protocols = vec![b"http/1.1".to_vec()];
                let stream = self.handshake(Arc::new(tls), stream).await?;
                self.http1(stream).await?
            }
        };
        self.add_host(&mut request)?;
        let mut answer = sender.send_request(request).await?;
        match answer.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                let upgraded = hyper::upgrade::on(&mut answer).await?;
                Ok((answer, Some(upgraded)))
            }
            _ => Ok((answer, None)),
        }
    }

    /// The certificates that the server shows, its own first. A connection is made for it, and nothing is asked on it.
    ///
    /// # Errors
    /// If the server cannot be reached, or speaks no TLS.
    pub async fn certificates(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let endpoint = &self.0.endpoint;
        let tls = endpoint.tls.as_ref().with_context(|| format!("{} is asked without TLS", self.0.authority))?;
        let stream = self.handshake(tls.clone(), endpoint.dialer.connect(&endpoint.host, endpoint.port).await?).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        Ok(chain.iter().map(|certificate| certificate.clone().into_owned()).collect())
    }

    async fn connection(&self) -> anyhow::Result<Connection> {
        let mut http2 = self.0.http2.lock().await;
        if let Some(sender) = http2.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(Connection::Http2(sender.clone()));
        }
        *http2 = None;
        let mut idle = std::mem::take(&mut *self.0.idle.borrow_mut());
        idle.retain(|sender| !sender.is_closed());
        let ready = idle.iter().position(http1::SendRequest::is_ready).map(|at| idle.swap_remove(at));
        *self.0.idle.borrow_mut() = idle;
        if let Some(sender) = ready {
            return Ok(Connection::Http1(sender));
        }
        let endpoint = &self.0.endpoint;
        let stream = endpoint.dialer.connect(&endpoint.host, endpoint.port).await?;
        let Some(tls) = &endpoint.tls else {
            return Ok(Connection::Http1(self.http1(stream).await?));
        };
        let stream = self.handshake(tls.clone(), stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Ok(Connection::Http1(self.http1(stream).await?));
        }
        let sender = speak_http2(io::hyper(stream)).await.with_context(|| format!("speak HTTP/2 with {}", self.0.authority))?;
        *http2 = Some(sender.clone());
        Ok(Connection::Http2(sender))
    }

    async fn handshake<T: Duplex>(&self, tls: Arc<ClientConfig>, stream: T) -> anyhow::Result<futures_rustls::client::TlsStream<T>> {
        let endpoint = &self.0.endpoint;
        let name = endpoint.server_name.as_ref().unwrap_or(&endpoint.host).trim_matches(['[', ']']);
        let name = ServerName::try_from(name.to_owned()).with_context(|| format!("the server's name {name:?}"))?;
        let timeout = async {
            Timer::after(HANDSHAKE_TIMEOUT).await;
            Err(std::io::ErrorKind::TimedOut.into())
        };
        let handshake = TlsConnector::from(tls).connect(name, stream).or(timeout);
        handshake.await.with_context(|| format!("TLS with {}", self.0.authority))
    }

    async fn http1<T: Duplex + Send + 'static>(&self, stream: T) -> anyhow::Result<http1::SendRequest<Body>> {
        let (sender, connection) = http1::handshake(io::hyper(stream)).await?;
        task::spawn(async move {
            // What broke the connection reaches whoever waits for an answer on it.
            let _ = connection.with_upgrades().await;
        })
        .detach();
        Ok(sender)
    }

    fn add_host(&self, request: &mut Request<Body>) -> anyhow::Result<()> {
        request.headers_mut().insert(HOST, HeaderValue::from_str(self.0.authority.as_str())?);
        Ok(())
    }

    fn absolute(&self, uri: &Uri) -> anyhow::Result<Uri> {
        absolute(uri, Scheme::HTTPS, self.0.authority.clone())
    }
}

/// HTTP/2 wants the whole URI where HTTP/1.1 has a path and a Host header.
pub(super) fn absolute(uri: &Uri, scheme: Scheme, authority: Authority) -> anyhow::Result<Uri> {
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(scheme);
    parts.authority = Some(authority);
    parts.path_and_query = parts.path_and_query.or(Some(PathAndQuery::from_static("/")));
    Uri::from_parts(parts).context("the request's path")
}

/// The client's side of HTTP/2 over any stream; also the master's end of the tunnel.
pub(super) async fn speak_http2(
    stream: impl hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
) -> anyhow::Result<http2::SendRequest<Body>> {
    let (sender, connection) = http2::Builder::new(Local)
        .timer(SmolTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .handshake(stream)
        .await?;
    task::spawn(async move {
        // What broke the connection reaches whoever waits for an answer on it.
        let _ = connection.await;
    })
    .detach();
    Ok(sender)
}
