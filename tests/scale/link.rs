//! A connection to the master as an agent has one: TLS with a certificate, HTTP/2, many requests at once. It knows paths and bytes, no
//! object, and gives up where a real client would try again: who calls it decides.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_rustls::rustls::crypto::ring;
use futures_rustls::rustls::pki_types::pem::PemObject;
use futures_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use futures_rustls::rustls::{ClientConfig, RootCertStore};
use futures_rustls::{TlsConnector, client::TlsStream};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use serde_json::Value;
use smol::Async;
use smol_hyper::rt::FuturesIo;

use crate::task;

pub const MASTER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 6443);
pub const JSON: &str = "application/json";
pub const MERGE: &str = "application/merge-patch+json";
/// What one stream and one connection may be sent ahead; as hyper's own clients have it.
const WINDOW_BYTES: u32 = 1 << 20;

/// The cluster's authority, which signs for whom it is asked: all clients share one key, which saves making thousands.
pub struct Authority {
    roots: Arc<RootCertStore>,
    issuer: Issuer<'static, KeyPair>,
    key: KeyPair,
}

impl Authority {
    pub fn read(folder: &std::path::Path) -> Result<Self> {
        let pem = std::fs::read_to_string(folder.join("ca.crt"))?;
        let key = KeyPair::from_pem(&std::fs::read_to_string(folder.join("ca.key"))?)?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).context("read the authority")?)?;
        Ok(Self { roots: Arc::new(roots), issuer: Issuer::from_ca_cert_pem(&pem, key)?, key: KeyPair::generate()? })
    }

    /// Settings of a client of this name and group.
    pub fn client(&self, user: &str, group: &str) -> Result<ClientConfig> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&self.key, &self.issuer)?;
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).map_err(anyhow::Error::msg)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions()?;
        let mut config =
            builder.with_root_certificates(self.roots.clone()).with_client_auth_cert(vec![certificate.der().clone().into_owned()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = futures_rustls::rustls::client::Resumption::disabled();
        Ok(config)
    }
}

#[derive(Clone, Copy)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        task::spawn(async move { drop(future.await) }).detach();
    }
}

async fn dial(config: ClientConfig) -> Result<TlsStream<Async<TcpStream>>> {
    let stream = Async::<TcpStream>::connect(MASTER).await.context("connect to the master")?;
    stream.get_ref().set_nodelay(true)?;
    Ok(TlsConnector::from(Arc::new(config)).connect(ServerName::from(MASTER.ip()), stream).await?)
}

/// Clones share the connection.
#[derive(Clone)]
pub struct Link(http2::SendRequest<Full<Bytes>>);

impl Link {
    pub async fn connect(config: ClientConfig) -> Result<Self> {
        let mut builder = http2::Builder::new(Local);
        builder.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
        let (sender, connection) = builder.handshake(FuturesIo::new(dial(config).await?)).await?;
        task::spawn(async move { drop(connection.await) }).detach();
        Ok(Self(sender))
    }

    pub async fn send(&self, method: Method, path: &str, content: Option<(&str, String)>) -> Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(format!("https://{MASTER}{path}")).header(ACCEPT, JSON);
        if let Some((media_type, _)) = &content {
            request = request.header(CONTENT_TYPE, *media_type);
        }
        let body = content.map(|(_, text)| Bytes::from(text)).unwrap_or_default();
        Ok(self.0.clone().send_request(request.body(Full::new(body))?).await?)
    }

    /// The answer, whatever it says.
    pub async fn ask(&self, method: Method, path: &str, content: Option<(&str, String)>) -> Result<(u16, Bytes)> {
        let answer = self.send(method, path, content).await?;
        let code = answer.status().as_u16();
        Ok((code, answer.into_body().collect().await?.to_bytes()))
    }

    /// The answer, which must be a success.
    pub async fn get(&self, path: &str) -> Result<Bytes> {
        success("GET", path, self.ask(Method::GET, path, None).await?)
    }

    pub async fn json(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_slice(&self.get(path).await?)?)
    }

    pub async fn write(&self, method: Method, path: &str, media_type: &str, object: &Value) -> Result<Bytes> {
        let verb = method.to_string();
        success(&verb, path, self.ask(method, path, Some((media_type, object.to_string()))).await?)
    }

    /// The lines of a watch.
    pub async fn watch(&self, path: &str) -> Result<Lines> {
        let answer = self.send(Method::GET, path, None).await?;
        if !answer.status().is_success() {
            bail!("watch {path}: {}", answer.status());
        }
        Ok(Lines { body: answer.into_body(), rest: Vec::new() })
    }
}

fn success(verb: &str, path: &str, (code, body): (u16, Bytes)) -> Result<Bytes> {
    if !(200..300).contains(&code) {
        bail!("{verb} {path}: {code} {}", String::from_utf8_lossy(&body[..body.len().min(300)]));
    }
    Ok(body)
}

pub struct Lines {
    body: Incoming,
    rest: Vec<u8>,
}

impl Lines {
    /// What came next, as whole lines; none when the watch is over.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let data = self.body.frame().await?.ok()?.into_data().ok()?;
            let Some(end) = data.iter().rposition(|byte| *byte == b'\n') else {
                self.rest.extend_from_slice(&data);
                continue;
            };
            let mut lines = std::mem::take(&mut self.rest);
            lines.extend_from_slice(&data[..=end]);
            self.rest.extend_from_slice(&data[end + 1..]);
            return Some(lines);
        }
    }
}

/// Opens a node's tunnel and answers nothing in it, for as long as the master holds it.
pub async fn tunnel(mut config: ClientConfig, node: &str) -> Result<()> {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (mut sender, connection) = http1::handshake::<_, Full<Bytes>>(FuturesIo::new(dial(config).await?)).await?;
    task::spawn(async move { drop(connection.with_upgrades().await) }).detach();
    let request = Request::get(format!("/api/v1/nodes/{node}/tunnel")).header(HOST, MASTER.to_string());
    let request = request.header(CONNECTION, "upgrade").header(UPGRADE, "edgectl-tunnel/1").body(Full::default())?;
    let mut answer = sender.send_request(request).await?;
    let upgraded = hyper::upgrade::on(&mut answer).await.with_context(|| format!("tunnel of {node}: {}", answer.status()))?;
    let service = service_fn(async |_: Request<Incoming>| {
        let mut answer = Response::new(Full::<Bytes>::default());
        *answer.status_mut() = hyper::StatusCode::NOT_IMPLEMENTED;
        Ok::<_, std::convert::Infallible>(answer)
    });
    Ok(hyper::server::conn::http2::Builder::new(Local).serve_connection(upgraded, service).await?)
}
