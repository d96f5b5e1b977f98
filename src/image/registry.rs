//! Speaks the OCI distribution protocol with one registry or mirror: manifests and blobs, logins and tokens, redirects.
//! It never decides whether to ask again or to ask elsewhere: `Failure` says what is known, `pull` decides.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_lite::FutureExt;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LOCATION, RANGE, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode};
use smol::Timer;

use super::Digest;
use super::challenge::{self, Challenge};
use super::credentials::Login;
use super::document::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use super::registries::{Origin, Registries, Source};
use crate::wire::body::{self, Body};
use crate::wire::client::{Client, Endpoint};
use crate::wire::dial::Dialer;

const MANIFEST_BYTES_MAX: usize = 4 << 20;
const TOKEN_BYTES_MAX: usize = 1 << 20;
const ERROR_BYTES_MAX: usize = 64 << 10;
/// A registry that says nothing for this long is taken for dead.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const REDIRECTS_MAX: usize = 5;
/// Longest wait that a registry can ask of us.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Why a registry did not give what was asked.
#[derive(Debug)]
pub enum Failure {
    /// It does not have it.
    NotFound,
    /// It wants a login, or another one.
    Denied(anyhow::Error),
    /// It may go better in a while, after at least this long if it said so.
    Temporary(anyhow::Error, Option<Duration>),
    /// It will not go better by itself.
    Lasting(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Lasting(error)
    }
}

/// A conversation with one source about one repository.
pub struct Session {
    pub source: Source,
    registries: std::rc::Rc<Registries>,
    dialer: Dialer,
    clients: RefCell<HashMap<Origin, Client>>,
    /// Tried one after the other; the last is nobody when there are none.
    logins: Vec<Option<Login>>,
    /// Which of them is in use.
    login: Cell<usize>,
    /// The header that the registry accepted last.
    authorization: RefCell<Option<String>>,
    /// How it wanted it; not every refusal says it again.
    challenges: RefCell<Vec<Challenge>>,
}

/// A manifest as it was served.
pub struct Served {
    pub bytes: Bytes,
    pub media_type: String,
}

impl Session {
    pub fn new(source: Source, logins: Vec<Login>, registries: std::rc::Rc<Registries>, dialer: Dialer) -> Self {
        let mut logins: Vec<Option<Login>> = logins.into_iter().map(Some).collect();
        if logins.is_empty() {
            logins.push(None);
        }
        Self {
            source,
            registries,
            dialer,
            clients: RefCell::default(),
            logins,
            login: Cell::new(0),
            authorization: RefCell::default(),
            challenges: RefCell::default(),
        }
    }

    /// The manifest or index behind a tag or digest. Not yet verified.
    pub async fn manifest(&self, version: &str) -> Result<Served, Failure> {
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let response = self.get(&format!("manifests/{version}"), &accept, 0).await?;
        let media_type = text(response.headers(), CONTENT_TYPE);
        let bytes = read_body(response, MANIFEST_BYTES_MAX).await?;
        Ok(Served { bytes, media_type })
    }

    /// A blob from byte `from` on, and the byte at which the answer really starts: some servers know no ranges.
    pub async fn blob(&self, digest: &Digest, from: u64) -> Result<(Response<Incoming>, u64), Failure> {
        let response = self.get(&format!("blobs/{digest}"), "*/*", from).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok((response, 0));
        }
        let range = text(response.headers(), CONTENT_RANGE);
        let start = range.strip_prefix("bytes ").and_then(|range| range.split('-').next()).and_then(|start| start.parse().ok());
        match start {
            Some(start) if start <= from => Ok((response, start)),
            _ => Err(Failure::Lasting(anyhow!("asked for bytes from {from} on, it answered with {range:?}"))),
        }
    }

    /// A small blob as a whole.
    pub async fn small_blob(&self, digest: &Digest, limit_bytes: usize) -> Result<Bytes, Failure> {
        let (response, _) = self.blob(digest, 0).await?;
        read_body(response, limit_bytes).await
    }

    async fn get(&self, what: &str, accept: &str, from: u64) -> Result<Response<Incoming>, Failure> {
        let Source { origin, prefix, repository, mirror_of } = &self.source;
        let mut path = format!("{prefix}/{repository}/{what}");
        if let Some(registry) = mirror_of {
            // Tells a mirror of several registries which one is meant.
            path.push_str(&format!("?ns={registry}"));
        }
        let mut renewed = false;
        loop {
            let authorization = self.authorization.borrow().clone();
            let response = self.send(origin, &path, accept, from, authorization.as_deref()).await?;
            let status = response.status();
            match status {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    let challenges = response
                        .headers()
                        .get_all(WWW_AUTHENTICATE)
                        .iter()
                        .filter_map(|it| it.to_str().ok())
                        .collect::<Vec<_>>()
                        .join(", ");
                    let said = said(response).await;
                    if status == StatusCode::FORBIDDEN && challenges.is_empty() && authorization.is_none() {
                        return Err(Failure::Denied(anyhow!("it refuses (403 Forbidden){said}")));
                    }
                    // A token may have run out on the way: one try with a new one, then the next login.
                    if renewed || status == StatusCode::FORBIDDEN {
                        self.login.set(self.login.get() + 1);
                    }
                    renewed = true;
                    let denied = || anyhow!("it refuses ({status}){said}");
                    self.log_in(&challenges).await.map_err(|failure| match failure {
                        Failure::Denied(why) => Failure::Denied(why.context(denied())),
                        other => other,
                    })?;
                }
                StatusCode::NOT_FOUND => return Err(Failure::NotFound),
                StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => {
                    return Err(Failure::Lasting(anyhow!("it has only {from} bytes of it: it was not pushed whole")));
                }
                _ if status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) => {
                    let after = text(response.headers(), RETRY_AFTER).parse().ok().map(Duration::from_secs);
                    let error = anyhow!("it answers {status}{}", said(response).await);
                    return Err(Failure::Temporary(error, after.map(|after| after.min(RETRY_AFTER_MAX))));
                }
                _ => {
                    let said = said(response).await;
                    return Err(Failure::Lasting(match said.contains("HTTP request to an HTTPS server") {
                        true => anyhow!("it speaks TLS: give its certificate in the registries file under configs, tls"),
                        false => anyhow!("it answers {status}{said}"),
                    }));
                }
            }
        }
    }

    /// Sends a request and follows redirects. Another host never sees the authorization.
    async fn send(
        &self,
        origin: &Origin,
        path: &str,
        accept: &str,
        from: u64,
        authorization: Option<&str>,
    ) -> Result<Response<Incoming>, Failure> {
        let (mut origin, mut path, mut authorization) = (origin.clone(), path.to_owned(), authorization);
        for _ in 0..=REDIRECTS_MAX {
            let mut request = Request::builder().method(Method::GET).uri(&path).header(ACCEPT, accept);
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            if let Some(authorization) = authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            let request = request.body(Body::empty()).with_context(|| format!("ask {origin} for {path:?}"))?;
            let response = self.exchange(&origin, request).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = text(response.headers(), LOCATION);
            let (next, next_path) = follow(&origin, &path, &location)?;
            if origin.secure && !next.secure && !next.is_loopback() {
                return Err(Failure::Lasting(anyhow!("it redirects from TLS to plain HTTP at {next}, which is not followed")));
            }
            if next != origin {
                authorization = None;
            }
            (origin, path) = (next, next_path);
        }
        Err(Failure::Lasting(anyhow!("it redirects more than {REDIRECTS_MAX} times")))
    }

    async fn exchange(&self, origin: &Origin, mut request: Request<Body>) -> Result<Response<Incoming>, Failure> {
        let client = self.client(origin)?;
        let agent = concat!("edgectl/", env!("CARGO_PKG_VERSION"));
        request.headers_mut().insert(USER_AGENT, agent.parse().context("the name of this program")?);
        let timeout = async {
            Timer::after(ANSWER_TIMEOUT).await;
            Err(anyhow!("{origin} gave no answer within {} s", ANSWER_TIMEOUT.as_secs()))
        };
        client.request(request).or(timeout).await.map_err(|error| {
            // Wrong certificates do not mend themselves; all else on the way may.
            let is_tls = error.chain().any(|cause| cause.to_string().contains("certificate"));
            if is_tls { Failure::Lasting(error.context(CERTIFICATE)) } else { Failure::Temporary(error, None) }
        })
    }

    fn client(&self, origin: &Origin) -> Result<Client> {
        if let Some(client) = self.clients.borrow().get(origin) {
            return Ok(client.clone());
        }
        let tls = self.registries.tls(origin).with_context(|| format!("TLS settings of {origin}"))?;
        let endpoint = Endpoint { host: origin.host.clone(), port: origin.port, tls, server_name: None, dialer: self.dialer.clone() };
        let client = Client::new(endpoint)?;
        self.clients.borrow_mut().insert(origin.clone(), client.clone());
        Ok(client)
    }

    /// Finds the authorization that the challenges ask for, with the login in use or those after it.
    async fn log_in(&self, challenges: &str) -> Result<(), Failure> {
        *self.authorization.borrow_mut() = None;
        if !challenges.is_empty() {
            *self.challenges.borrow_mut() = challenge::parse(challenges);
        }
        let challenges = self.challenges.borrow().clone();
        let bearer = challenges.iter().find(|it| it.scheme == "bearer");
        let basic = challenges.iter().any(|it| it.scheme == "basic");
        loop {
            let Some(login) = self.logins.get(self.login.get()) else {
                return Err(Failure::Denied(match self.logins.first() {
                    Some(None) | None => anyhow!("no login is known for {}", self.source.origin.authority()),
                    Some(Some(login)) => anyhow!("the login {:?} for {} is not accepted", login.username, self.source.origin.authority()),
                }));
            };
            let authorization = match (bearer, login) {
                (Some(challenge), _) => match self.token(challenge, login.as_ref()).await {
                    Err(Failure::Denied(_)) if login.is_some() => None,
                    other => Some(format!("Bearer {}", other?)),
                },
                (None, Some(login)) if basic => Some(basic_authorization(login)),
                _ => None,
            };
            if authorization.is_some() {
                *self.authorization.borrow_mut() = authorization;
                return Ok(());
            }
            self.login.set(self.login.get() + 1);
        }
    }

    /// Asks the token server that the registry named (distribution specification, "Token Authentication").
    async fn token(&self, challenge: &Challenge, login: Option<&Login>) -> Result<String, Failure> {
        let realm = challenge.get("realm").context("the registry asks for a token but names no token server")?;
        let (origin, path) = follow(&self.source.origin, "/", realm)?;
        let plain_is_fine = origin.is_loopback() || !self.source.origin.secure;
        if !origin.secure && !plain_is_fine {
            return Err(Failure::Lasting(anyhow!("its token server {origin} does not speak TLS, which it does itself")));
        }
        let scope = challenge.get("scope").map_or_else(|| format!("repository:{}:pull", self.source.repository), str::to_owned);
        let service = challenge.get("service").unwrap_or_default();
        let request = match login {
            Some(login) if !login.identity_token.is_empty() => {
                let fields = [
                    ("grant_type", "refresh_token"),
                    ("service", service),
                    ("client_id", "edgectl"),
                    ("scope", &scope),
                    ("refresh_token", &login.identity_token),
                ];
                let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
                Request::post(&path).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(Body::full(form))
            }
            _ => {
                let parted = if path.contains('?') { '&' } else { '?' };
                let wanted =
                    form_urlencoded::Serializer::new(String::new()).extend_pairs([("service", service), ("scope", &scope)]).finish();
                let uri = format!("{path}{parted}{wanted}");
                let mut request = Request::get(uri);
                if let Some(login) = login {
                    request = request.header(AUTHORIZATION, basic_authorization(login));
                }
                request.body(Body::empty())
            }
        };
        let request = request.with_context(|| format!("ask the token server {origin}"))?;
        let response = self.exchange(&origin, request).await?;
        let status = response.status();
        if status != StatusCode::OK {
            let error = anyhow!("the token server {origin} answers {status}{}", said(response).await);
            return Err(match status {
                _ if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => Failure::Temporary(error, None),
                _ => Failure::Denied(error),
            });
        }
        let body = read_body(response, TOKEN_BYTES_MAX).await?;
        let answer: serde_json::Value = serde_json::from_slice(&body).with_context(|| format!("answer of the token server {origin}"))?;
        let token = answer["token"].as_str().or(answer["access_token"].as_str());
        Ok(token.with_context(|| format!("the token server {origin} gave no token"))?.to_owned())
    }
}

const CERTIFICATE: &str = "its certificate is not trusted: give the authority in the registries file under configs, tls, ca_file";

/// Waits for the next piece of a body, but not for ever.
pub async fn within_time<T>(next: impl Future<Output = T>) -> Result<T, Failure> {
    let timeout = async {
        Timer::after(ANSWER_TIMEOUT).await;
        Err(Failure::Temporary(anyhow!("nothing came for {} s", ANSWER_TIMEOUT.as_secs()), None))
    };
    async { Ok(next.await) }.or(timeout).await
}

async fn read_body(response: Response<Incoming>, limit_bytes: usize) -> Result<Bytes, Failure> {
    match within_time(body::read(response.into_body(), limit_bytes)).await? {
        Ok(bytes) => Ok(bytes),
        Err(body::ReadError::TooLarge) => Err(Failure::Lasting(anyhow!("it answers with more than {limit_bytes} bytes"))),
        Err(body::ReadError::Broken(error)) => Err(Failure::Temporary(error, None)),
    }
}

/// What the registry says in words: `: MANIFEST_UNKNOWN: manifest unknown`.
async fn said(response: Response<Incoming>) -> String {
    let Ok(body) = read_body(response, ERROR_BYTES_MAX).await else { return String::new() };
    let value: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let first = &value["errors"][0];
    let words: Vec<&str> = match (&first["code"], &value["details"]) {
        (serde_json::Value::String(code), _) => [Some(code.as_str()), first["message"].as_str()].into_iter().flatten().collect(),
        (_, serde_json::Value::String(details)) => vec![details],
        _ => std::str::from_utf8(&body)
            .ok()
            .map(str::trim)
            .filter(|text| !text.is_empty() && text.len() < 200 && !text.starts_with(['<', '{']))
            .into_iter()
            .collect(),
    };
    if words.is_empty() { String::new() } else { format!(": {}", words.join(": ")) }
}

fn text(headers: &HeaderMap, name: hyper::header::HeaderName) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// Where a URL, whole or relative, leads from here.
fn follow(origin: &Origin, path: &str, location: &str) -> Result<(Origin, String)> {
    let wrong = || format!("it redirects to {location:?}, which is no address");
    let (origin, path) = match location.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let secure = match scheme {
                "https" => true,
                "http" => false,
                _ => return Err(anyhow!(wrong())),
            };
            let target = &rest[end..];
            let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
            (Origin::parse(&rest[..end], secure).with_context(wrong)?, target)
        }
        None if location.starts_with("//") || location.is_empty() => return Err(anyhow!(wrong())),
        None if location.starts_with('/') => (origin.clone(), location.to_owned()),
        None => {
            let folder = path.split('?').next().and_then(|path| path.rsplit_once('/')).map_or("", |(folder, _)| folder);
            (origin.clone(), format!("{folder}/{location}"))
        }
    };
    Ok((origin, path.split('#').next().unwrap_or_default().to_owned()))
}

fn basic_authorization(login: &Login) -> String {
    format!("Basic {}", STANDARD.encode(format!("{}:{}", login.username, login.password)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_to_whole_and_relative_addresses() {
        let origin = Origin::parse("r.example:5000", true).unwrap();
        let check = |location: &str, expected: Option<&str>| {
            let found = follow(&origin, "/v2/a/blobs/x?ns=b", location).ok().map(|(origin, path)| format!("{origin}{path}"));
            assert_eq!(found.as_deref(), expected, "{location}");
        };
        check("https://cdn.example/x?sig=1#f", Some("https://cdn.example/x?sig=1"));
        check("http://127.0.0.1:9?x", Some("http://127.0.0.1:9/?x"));
        check("/other", Some("https://r.example:5000/other"));
        check("y", Some("https://r.example:5000/v2/a/blobs/y"));
        check("ftp://x/", None);
        check("//x/y", None);
        check("", None);
    }
}
