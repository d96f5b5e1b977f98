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
    /// The endpoint's at first.
    tls: RefCell<Option<Arc<ClientConfig>>>,
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
        let tls = RefCell::new(endpoint.tls.clone());
        Ok(Self(Rc::new(Inner { endpoint, tls, authority, http2: Mutex::new(None), idle: RefCell::default() })))
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
        let mut sender = match self.tls() {
            None => self.http1(stream).await?,
            Some(tls) => {
                let mut tls = ClientConfig::clone(&tls);
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

    /// Makes further connections with these settings; those that are open stay.
    pub fn set_tls(&self, tls: Arc<ClientConfig>) {
        self.0.tls.replace(Some(tls));
    }

    fn tls(&self) -> Option<Arc<ClientConfig>> {
        self.0.tls.borrow().clone()
    }

    /// The certificates that the server shows, its own first. A connection is made for it, and nothing is asked on it.
    ///
    /// # Errors
    /// If the server cannot be reached, or speaks no TLS.
    pub async fn certificates(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let endpoint = &self.0.endpoint;
        let tls = self.tls().with_context(|| format!("{} is asked without TLS", self.0.authority))?;
        let stream = self.handshake(tls, endpoint.dialer.connect(&endpoint.host, endpoint.port).await?).await?;
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
        let Some(tls) = self.tls() else {
            return Ok(Connection::Http1(self.http1(stream).await?));
        };
        let stream = self.handshake(tls, stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Ok(Connection::Http1(self.http1(stream).await?));
        }
        let sender = speak_http2(io::hyper(stream), (WINDOW_BYTES, WINDOW_BYTES))
            .await
            .with_context(|| format!("speak HTTP/2 with {}", self.0.authority))?;
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

/// The client's side of HTTP/2 over any stream; also the master's end of the tunnel. The windows are what the other side may send ahead
/// on one stream, and on all of them.
pub(super) async fn speak_http2(
    stream: impl hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
    (stream_window_bytes, window_bytes): (u32, u32),
) -> anyhow::Result<http2::SendRequest<Body>> {
    let (sender, connection) = http2::Builder::new(Local)
        .timer(SmolTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .initial_stream_window_size(stream_window_bytes)
        .initial_connection_window_size(window_bytes)
        .handshake(stream)
        .await?;
    task::spawn(async move {
        // What broke the connection reaches whoever waits for an answer on it.
        let _ = connection.await;
    })
    .detach();
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use futures_rustls::rustls::pki_types::pem::PemObject;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;
    use crate::wire::tls::{self, Identity, Trust};
    use crate::wire::{body, server};

    /// An authority, and what it signs.
    struct Authority {
        pem: String,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            Self { issuer: Issuer::from_ca_cert_pem(&pem, key).unwrap(), pem }
        }

        fn sign(&self) -> (String, String) {
            let (params, key) = (CertificateParams::new(vec!["localhost".to_owned()]).unwrap(), KeyPair::generate().unwrap());
            (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
        }

        fn client(&self, (certificate, key): &(String, String)) -> Arc<ClientConfig> {
            let identity = Identity { certificate: certificate.as_bytes(), key: key.as_bytes() };
            tls::client(Trust::Authority(self.pem.as_bytes()), Some(identity), false).unwrap()
        }
    }

    #[test]
    fn a_changed_identity_is_shown_on_further_connections_only() {
        task::run(async {
            let authority = Authority::new();
            let ((certificate, key), one, other) = (authority.sign(), authority.sign(), authority.sign());
            let identity = Identity { certificate: certificate.as_bytes(), key: key.as_bytes() };
            let settings = tls::server(identity, Some(authority.pem.as_bytes())).unwrap();
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            // Answers with the certificate that it was shown.
            let handler: server::Handler = Rc::new(|_, peer| {
                let shown = peer.certificate.as_ref().map(|certificate| certificate.to_vec()).unwrap_or_default();
                Box::pin(async move { Response::new(Body::full(shown)) })
            });
            task::spawn(server::serve(listener, Some(settings), 8, handler)).detach();

            let tls = Some(authority.client(&one));
            let (host, dialer) = ("localhost".to_owned(), Dialer::default());
            let client = Client::new(Endpoint { host, port, tls, server_name: None, dialer }).unwrap();
            let der = |(pem, _): &(String, String)| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
            let request = || Request::get("/").body(Body::empty()).unwrap();
            let read = async |answer: Response<Incoming>| body::read_all(answer.into_body(), 1 << 20).await.unwrap().to_vec();
            assert_eq!(read(client.request(request()).await.unwrap()).await, der(&one));
            client.set_tls(authority.client(&other));
            assert_eq!(read(client.request(request()).await.unwrap()).await, der(&one), "the connection that is open");
            // An upgrade has a connection of its own.
            assert_eq!(read(client.upgrade(request()).await.unwrap().0).await, der(&other));

            let chain = client.certificates().await.unwrap();
            assert_eq!(chain.iter().map(|each| each.to_vec()).collect::<Vec<_>>(), [der(&(certificate, key))]);
        });
    }
}
