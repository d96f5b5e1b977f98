//! The API as its clients see it: typed get, list, create, patch, delete and watch over HTTP, with the server's refusals as errors.
//! It knows how to ask, never what the answer means.

pub mod cache;
pub mod certificate;
pub mod discovery;
mod failure;
pub mod kubeconfig;
mod watch;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use futures_lite::FutureExt;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, UPGRADE, USER_AGENT};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response};
use serde_json::Value;

use crate::wire::body::{self, Body};
use crate::wire::client::{Client as Wire, Endpoint};
use crate::wire::dial::Dialer;
use crate::wire::tls::{self, Identity, Trust};
use crate::wire::{spdy, websocket};

pub use discovery::Resource;
pub use failure::{Refusal, Unreachable, is_not_found, refusal};
pub use kubeconfig::Target;
pub use watch::{Change, Watch};

/// No answer is read further than this; the largest ones are OpenAPI documents and pages of 500 objects.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// How many objects one page of a list holds.
pub const PAGE_OBJECTS: u32 = 500;

pub const JSON: &str = "application/json";
/// What `get` asks for: a table, or the objects from a server that makes none.
pub const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

/// The kinds of PATCH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patch {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl Patch {
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Apply => "application/apply-patch+yaml",
        }
    }
}

/// Query parameters; those with an empty value are left out.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(&'static str, String)>);

impl Query {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.set(key, value);
        self
    }

    pub fn set(&mut self, key: &'static str, value: impl ToString) {
        self.0.retain(|(known, _)| *known != key);
        let value = value.to_string();
        if !value.is_empty() {
            self.0.push((key, value));
        }
    }

    fn path(&self, path: &str) -> String {
        let mut text = path.to_owned();
        for (index, (key, value)) in self.0.iter().enumerate() {
            text.push(if index == 0 && !path.contains('?') { '?' } else { '&' });
            text += key;
            text.push('=');
            text.extend(form_urlencoded::byte_serialize(value.as_bytes()));
        }
        text
    }
}

/// How requests are made beyond what the kubeconfig says.
#[derive(Debug, Clone, Default)]
pub struct Manner {
    /// How long one answer may take; none is no limit. Watches and logs have none.
    pub timeout: Option<Duration>,
    pub impersonate_user: Option<String>,
    pub impersonate_groups: Vec<String>,
    pub impersonate_uid: Option<String>,
}

/// A handle on one API server; clones share its connections.
#[derive(Clone)]
pub struct Client(Rc<Inner>);

struct Inner {
    wire: Wire,
    /// `host:port`, for messages.
    authority: String,
    /// The path below which the server serves, without a slash at its end; usually empty.
    prefix: String,
    headers: HeaderMap,
    timeout: Option<Duration>,
    /// What the server said in Warning headers, each once, until somebody takes it.
    warnings: RefCell<Vec<String>>,
}

impl Client {
    /// Opens nothing yet.
    ///
    /// # Errors
    /// If the server's address, a certificate or a name cannot be used.
    pub fn new(target: &Target, manner: Manner) -> Result<Self> {
        let dialer = Dialer::default();
        Self::through(target, manner, dialer)
    }

    /// As [`Client::new`], with sockets made where `dialer` makes them.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn through(target: &Target, manner: Manner, dialer: Dialer) -> Result<Self> {
        let (scheme, rest) = target.server.split_once("://").context("the server's address has no scheme")?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let secure = match scheme {
            "https" => true,
            "http" => false,
            _ => bail!("the server's address {} is neither https nor http", target.server),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().with_context(|| format!("the port of the server's address {}", target.server))?)
            }
            _ => (authority, if secure { 443 } else { 80 }),
        };
        let identity = match (&target.client_certificate, &target.client_key) {
            (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
            (None, None) => None,
            _ => bail!("the kubeconfig has only one of client certificate and client key"),
        };
        let trust = match &target.certificate_authority {
            _ if target.insecure => Trust::Anyone,
            Some(authority) => Trust::Authority(authority),
            None => Trust::System,
        };
        let tls = if secure { Some(tls::client(trust, identity, false)?) } else { None };
        let wire = Wire::new(Endpoint {
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            tls,
            server_name: target.tls_server_name.clone(),
            dialer,
        })?;
        let mut headers = HeaderMap::new();
        let agent = concat!("edgectl/v", env!("CARGO_PKG_VERSION"), " (linux)");
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        // A token never travels in the clear.
        if let Some(token) = target.token.as_ref().filter(|_| secure) {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).context("the token is no header value")?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let text = |value: &str| HeaderValue::from_str(value).with_context(|| format!("act as {value:?}"));
        if let Some(user) = &manner.impersonate_user {
            headers.insert("impersonate-user", text(user)?);
        }
        if let Some(uid) = &manner.impersonate_uid {
            headers.insert("impersonate-uid", text(uid)?);
        }
        for group in &manner.impersonate_groups {
            headers.append("impersonate-group", text(group)?);
        }
        let prefix = path.trim_end_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
        Ok(Self(Rc::new(Inner {
            wire,
            authority: authority.to_owned(),
            prefix,
            headers,
            timeout: manner.timeout,
            warnings: RefCell::default(),
        })))
    }

    /// From now on shows this certificate below that authority, all PEM. Connections that are open stay.
    ///
    /// # Errors
    /// If key and certificate do not fit.
    pub fn set_identity(&self, authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<()> {
        self.0.wire.set_tls(tls::client(Trust::Authority(authority), Some(Identity { certificate, key }), false)?);
        Ok(())
    }

    /// `host:port` of the server.
    pub fn authority(&self) -> &str {
        &self.0.authority
    }

    /// The server's warnings since the last call.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.0.warnings.borrow_mut())
    }

    /// Sends one request and answers with the head; an answer that is no success is a [`Refusal`].
    async fn send(&self, method: Method, path: &str, accept: &str, content: Option<(&str, Bytes)>) -> Result<Response<Incoming>> {
        let path = format!("{}{path}", self.0.prefix);
        log::debug!("{method} {path}");
        let mut request = Request::builder().method(method).uri(&path);
        let headers = request.headers_mut().ok_or_else(|| anyhow!("the path {path:?} cannot stand in a request"))?;
        *headers = self.0.headers.clone();
        headers.insert(ACCEPT, HeaderValue::from_str(accept)?);
        let body = match content {
            Some((media_type, bytes)) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_str(media_type)?);
                Body::full(bytes)
            }
            None => Body::empty(),
        };
        let request = request.body(body)?;
        let answer = self.0.wire.request(request).await.map_err(|why| self.unreachable(why))?;
        self.note_warnings(answer.headers());
        if answer.status().is_success() {
            return Ok(answer);
        }
        let code = answer.status().as_u16();
        let text = body::read_all(answer.into_body(), ANSWER_BYTES_MAX).await.unwrap_or_default();
        Err(anyhow!(Refusal::read(code, &text)))
    }

    fn unreachable(&self, why: anyhow::Error) -> anyhow::Error {
        anyhow!(Unreachable { server: self.0.authority.clone(), why })
    }

    /// `Warning: 299 - "text"`, RFC 7234.
    fn note_warnings(&self, headers: &HeaderMap) {
        let mut warnings = self.0.warnings.borrow_mut();
        for value in headers.get_all("warning") {
            let Some(text) = value.to_str().ok().and_then(|value| value.splitn(3, ' ').nth(2)) else { continue };
            let text = text.trim();
            let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
            let text = text.replace("\\\"", "\"").replace("\\\\", "\\");
            if !warnings.contains(&text) {
                warnings.push(text);
            }
        }
    }

    /// One request and its whole answer, as bytes.
    pub async fn raw(&self, method: Method, path: &str, accept: &str, content: Option<(&str, Bytes)>) -> Result<Bytes> {
        let exchange = async {
            let answer = self.send(method, path, accept, content).await?;
            body::read_all(answer.into_body(), ANSWER_BYTES_MAX).await.map_err(|why| self.unreachable(why))
        };
        let Some(timeout) = self.0.timeout else { return exchange.await };
        let expired = async {
            smol::Timer::after(timeout).await;
            Err(self.unreachable(anyhow!("no answer within {} s (request timeout)", timeout.as_secs_f64())))
        };
        exchange.or(expired).await
    }

    async fn json(&self, method: Method, path: &str, accept: &str, content: Option<(&str, Bytes)>) -> Result<Value> {
        let bytes = self.raw(method, path, accept, content).await?;
        serde_json::from_slice(&bytes).with_context(|| format!("the answer to {path} is no JSON"))
    }

    /// Reads an object or one page of a list. `accept` is [`JSON`] or [`TABLE`].
    pub async fn get_as(&self, path: &str, query: &Query, accept: &str) -> Result<Value> {
        self.json(Method::GET, &query.path(path), accept, None).await
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.get_as(path, &Query::new(), JSON).await
    }

    /// Reads a whole list, page by page, into one list object.
    pub async fn list(&self, path: &str, query: &Query) -> Result<Value> {
        let mut query = query.clone().with("limit", PAGE_OBJECTS);
        let mut whole = self.get_as(path, &query, JSON).await?;
        let mut items = whole["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
        let mut next = whole["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        while !next.is_empty() {
            query.set("continue", &next);
            let mut page = self.get_as(path, &query, JSON).await?;
            items.append(page["items"].as_array_mut().unwrap_or(&mut vec![]));
            next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        }
        if let Some(metadata) = whole["metadata"].as_object_mut() {
            metadata.remove("continue");
            metadata.remove("remainingItemCount");
        }
        // The items of a list of one kind say neither kind nor version.
        let version = whole["apiVersion"].clone();
        let kind = whole["kind"].as_str().and_then(|kind| kind.strip_suffix("List")).unwrap_or_default().to_owned();
        for item in &mut items {
            if item["kind"].is_null() && !kind.is_empty() && item.is_object() {
                item["kind"] = Value::from(kind.as_str());
                item["apiVersion"] = version.clone();
            }
        }
        whole["items"] = Value::Array(items);
        Ok(whole)
    }

    /// POST.
    pub async fn create(&self, path: &str, query: &Query, object: &Value) -> Result<Value> {
        self.json(Method::POST, &query.path(path), JSON, Some((JSON, object.to_string().into()))).await
    }

    /// PUT: replaces the object.
    pub async fn update(&self, path: &str, query: &Query, object: &Value) -> Result<Value> {
        self.json(Method::PUT, &query.path(path), JSON, Some((JSON, object.to_string().into()))).await
    }

    pub async fn patch(&self, path: &str, query: &Query, kind: Patch, patch: &Value) -> Result<Value> {
        self.json(Method::PATCH, &query.path(path), JSON, Some((kind.media_type(), patch.to_string().into()))).await
    }

    /// DELETE with `DeleteOptions`; the answer is the object as it goes, or a Status.
    pub async fn delete(&self, path: &str, options: &Value) -> Result<Value> {
        self.json(Method::DELETE, path, JSON, Some((JSON, options.to_string().into()))).await
    }

    /// Starts a watch on a list's path. The query says from where (`resourceVersion`) and of what.
    pub async fn watch(&self, path: &str, query: &Query, accept: &str) -> Result<Watch> {
        let query = query.clone().with("watch", "true");
        let answer = self.send(Method::GET, &query.path(path), accept, None).await?;
        Ok(Watch::new(answer.into_body(), self.0.authority.clone()))
    }

    /// Asks for another protocol at `path`.
    ///
    /// # Errors
    /// If the server cannot be reached, or does not switch.
    pub async fn upgrade(&self, path: &str, protocol: &str) -> Result<Upgraded> {
        let mut request = Request::get(format!("{}{path}", self.0.prefix)).body(Body::empty())?;
        *request.headers_mut() = self.0.headers.clone();
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(UPGRADE, HeaderValue::from_str(protocol)?);
        let (answer, upgraded) = self.0.wire.upgrade(request).await.map_err(|why| self.unreachable(why))?;
        upgraded.with_context(|| format!("{path}: the server answers {} and does not switch to {protocol}", answer.status()))
    }

    /// Opens a WebSocket at `path`, which may have a query, by one of `protocols`.
    ///
    /// # Errors
    /// If the server cannot be reached, or refuses.
    pub async fn websocket(
        &self,
        path: &str,
        protocols: &[&str],
        message_bytes_max: usize,
    ) -> Result<(websocket::Sender, websocket::Receiver)> {
        let mut request = Request::get(format!("{}{path}", self.0.prefix)).body(Body::empty())?;
        *request.headers_mut() = self.0.headers.clone();
        websocket::ask(request.headers_mut(), protocols)?;
        let asked = request.headers().clone();
        let (answered, upgraded) = self.switched(request).await?;
        websocket::check(&asked, &answered)?;
        Ok(websocket::client(upgraded, message_bytes_max).await)
    }

    /// Switches to SPDY at `path`, for streams of this protocol.
    ///
    /// # Errors
    /// If the server cannot be reached, or refuses.
    pub async fn spdy(&self, path: &str, protocol: &'static str) -> Result<spdy::Session> {
        let mut request = Request::post(format!("{}{path}", self.0.prefix)).body(Body::empty())?;
        *request.headers_mut() = self.0.headers.clone();
        spdy::ask(request.headers_mut(), protocol);
        Ok(spdy::over(self.switched(request).await?.1, spdy::Side::Client))
    }

    /// Sends a request to switch; an answer that does not is a [`Refusal`].
    async fn switched(&self, request: Request<Body>) -> Result<(HeaderMap, Upgraded)> {
        let (answer, upgraded) = self.0.wire.upgrade(request).await.map_err(|why| self.unreachable(why))?;
        if let Some(upgraded) = upgraded {
            return Ok((answer.headers().clone(), upgraded));
        }
        let code = answer.status().as_u16();
        let text = body::read_all(answer.into_body(), ANSWER_BYTES_MAX).await.unwrap_or_default();
        Err(anyhow!(Refusal::read(code, &text)))
    }

    /// Starts a GET whose answer is read as it comes: logs.
    pub async fn stream(&self, path: &str, query: &Query) -> Result<Incoming> {
        Ok(self.send(Method::GET, &query.path(path), "application/json, */*", None).await?.into_body())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped_and_empty_values_left_out() {
        let query = Query::new().with("labelSelector", "app=web,tier in (a)").with("limit", 500).with("continue", "").with("limit", 5);
        assert_eq!(query.path("/api/v1/pods"), "/api/v1/pods?labelSelector=app%3Dweb%2Ctier+in+%28a%29&limit=5");
        assert_eq!(query.path("/x?a=b"), "/x?a=b&labelSelector=app%3Dweb%2Ctier+in+%28a%29&limit=5");
        assert_eq!(Query::new().path("/x"), "/x");
    }

    #[test]
    fn refusals_are_read_from_what_the_server_says() {
        let status = br#"{"kind":"Status","status":"Failure","message":"pods \"x\" not found","reason":"NotFound","code":404}"#;
        let refusal = Refusal::read(404, status);
        assert_eq!((refusal.reason.as_str(), refusal.to_string().as_str()), ("NotFound", "pods \"x\" not found"));
        assert_eq!(refusal.when("creating", "a.yaml").message, "error when creating \"a.yaml\": pods \"x\" not found");
        assert_eq!(Refusal::read(503, b"").reason, "ServiceUnavailable");
        assert_eq!(Refusal::read(404, b"404 page not found\n").message, "404 page not found");
        assert!(is_not_found(&anyhow!(Refusal::read(404, status))));
    }
}
