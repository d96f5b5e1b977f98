//! HTTP for the API: who asks, whether they may, what for, and the answer. The way of a request is `Server::handle`, top to bottom.
//! It keeps no object of its own - the store does - and starts nothing.

pub mod admission;
pub mod auth;
pub mod bootstrap;
mod content;
mod crud;
mod documents;
mod exec;
mod list;
mod logs;
mod metrics;
mod negotiate;
mod port_forward;
mod query;
mod respond;
mod routes;
mod subresources;
mod tables;
#[cfg(test)]
mod tests;
mod unsupported;
mod versions;
mod watch;

use std::cell::Cell;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use hyper::http::request::Parts;
use hyper::{Method, Request, Response};

use self::auth::token::Tokens;
use self::auth::{Attributes, User, review};
use self::content::Unread;
use self::crud::Call;
use self::list::Filter;
use self::negotiate::{Form, Offers};
use self::query::Query;
use self::routes::{Route, Target, Verb};
use self::watch::Watches;
use crate::api::schema::{self, Resource};
use crate::api::status::Status;
use crate::base::time::Timestamp;
use crate::master::nodes::Nodes;
use crate::master::store::Objects;
use crate::wire::body::Body;
use crate::wire::server::{self, Peer};
use crate::wire::tls::ServerConfig;

/// Connections at once; each node holds two or three, a kubectl one for a moment.
const CONNECTIONS_MAX: usize = 16_384;

pub struct Server {
    objects: Objects,
    tokens: Tokens,
    nodes: Nodes,
    watches: Rc<Watches>,
    requests: Cell<u64>,
    ready: Cell<bool>,
    started: Timestamp,
}

impl Server {
    /// `service_account_key` is the PKCS #8 PEM of the P-256 key that signs service account tokens.
    ///
    /// # Errors
    /// If the key cannot be read.
    pub fn new(objects: Objects, nodes: Nodes, service_account_key: &[u8]) -> anyhow::Result<Rc<Self>> {
        Ok(Rc::new(Self {
            objects,
            tokens: Tokens::new(service_account_key)?,
            nodes,
            watches: Rc::default(),
            requests: Cell::new(0),
            ready: Cell::new(false),
            started: Timestamp::now(),
        }))
    }

    /// From now on `/readyz` says ok: the bootstrap objects are there.
    pub fn set_ready(&self) {
        self.ready.set(true);
    }

    pub fn is_ready(&self) -> bool {
        self.ready.get()
    }

    /// Answers one request. Errors become Status answers here and nowhere else.
    pub async fn handle<B>(self: Rc<Self>, request: Request<B>, peer: Rc<Peer>) -> Response<Body>
    where
        B: hyper::body::Body<Data = Bytes> + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.requests.set(self.requests.get() + 1);
        let (mut parts, body) = request.into_parts();
        let gzip = negotiate::takes_gzip(&parts.headers);
        let response = self.answer(&mut parts, Unread::new(body), &peer).await.unwrap_or_else(|status| respond::status(&status));
        log::debug!("{} {} from {}: {}", parts.method, parts.uri.path(), peer.address, response.status());
        if gzip { respond::compress(response) } else { response }
    }

    async fn answer(&self, parts: &mut Parts, body: Unread, peer: &Peer) -> Result<Response<Body>, Status> {
        let query = Query::parse(parts.uri.query().unwrap_or_default())?;
        let route =
            routes::parse(&parts.method, parts.uri.path(), &query).map_err(|()| Status::method_not_allowed(parts.method.as_str()))?;
        let user = auth::authenticate(&self.objects, &self.tokens, &parts.headers, peer.certificate.as_ref())?;
        let user = auth::impersonate(&self.objects, user, &parts.headers)?;
        let Route::Resource(target) = &route else {
            let verb = parts.method.as_str().to_lowercase();
            let attributes = Attributes::path(&verb, parts.uri.path());
            match route {
                Route::Backup => auth::require_masters(&user, &attributes)?,
                _ => auth::require(&self.objects, &user, &attributes)?,
            }
            if parts.method != Method::GET && parts.method != Method::HEAD {
                return Err(Status::method_not_allowed(&verb));
            }
            let form = match route {
                // It has one form, and those who ask for it accept no other.
                Route::OpenApiV2 => Form::Plain,
                _ => form(parts, Offers::Discovery)?,
            };
            return documents::answer(self, &route, &query, &parts.headers, form);
        };
        auth::require(&self.objects, &user, &Attributes::of(target, &query.field_selector))?;
        self.resource(parts, body, &user, target, &query).await
    }

    async fn resource(
        &self,
        parts: &mut Parts,
        body: Unread,
        user: &User,
        target: &Target,
        query: &Query,
    ) -> Result<Response<Body>, Status> {
        if (&*target.group, &*target.resource, &*target.subresource) == ("", "nodes", "tunnel") {
            return self.nodes.accept(&target.name, parts);
        }
        let resource = schema::resource(&target.group, &target.version, &target.resource).ok_or_else(Status::no_such_resource)?;
        permitted(resource, target)?;
        let whole = review::is_review(resource.group, resource.plural) || !resource.is_stored();
        let form = form(parts, if whole { Offers::Plain } else { Offers::Transformed })?;
        let call = Call {
            objects: &self.objects,
            user,
            resource,
            // The path of a namespace names it as if it were inside itself.
            namespace: if resource.namespaced { &target.namespace } else { "" },
            name: &target.name,
            subresource: &target.subresource,
            query,
            headers: &parts.headers,
            form,
        };
        if whole {
            return self.answered_only(&call, target, body).await;
        }
        match (&*target.subresource, target.verb) {
            ("", Verb::List) => list::answer(call.objects, call.namespace, query, &Filter::new(resource, query)?, form),
            ("", Verb::Watch) => {
                let filter = Filter::new(resource, query)?;
                watch::answer(call.objects, &self.watches, &user.name, call.namespace, query, filter, form)
            }
            ("", Verb::Get) => call.get(),
            ("", Verb::Create) => call.create(&body.read().await?).await,
            ("", Verb::Update) => call.update(&body.read().await?).await,
            ("", Verb::Patch) => call.patch(&body.read().await?).await,
            ("", Verb::Delete) => call.delete(&body.read().await?).await,
            ("", Verb::DeleteCollection) => call.delete_collection(&body.read().await?, &Filter::new(resource, query)?).await,
            ("log", Verb::Get) => {
                let pod = self.objects.get(resource, call.namespace, call.name)?.value();
                logs::answer(&self.nodes, &pod, query).await
            }
            ("token", Verb::Create) => self.token(&call, &body.read().await?),
            (what @ ("exec" | "attach"), Verb::Get | Verb::Create) => {
                let pod = self.objects.get(resource, call.namespace, call.name)?.value();
                exec::answer(&self.nodes, what, &pod, query, parts).await
            }
            ("portforward", Verb::Get | Verb::Create) => {
                let pod = self.objects.get(resource, call.namespace, call.name)?.value();
                port_forward::answer(&self.nodes, &pod, query, parts).await
            }
            ("proxy", _) if resource.plural == "nodes" => metrics::proxy(&self.nodes, &parts.method, target).await,
            ("proxy", _) => Err(Status::new(501, "NotImplemented", format!("{} is not served by this release", target.subresource))),
            (_, verb) => subresources::answer(&call, verb, &body.read().await?).await,
        }
    }

    /// Resources that are answered and not stored: reviews, bindings, component statuses.
    async fn answered_only(&self, call: &Call<'_>, target: &Target, body: Unread) -> Result<Response<Body>, Status> {
        let resource = call.resource;
        match (resource.plural, target.verb) {
            (_, Verb::Get | Verb::List) if resource.group == "metrics.k8s.io" => metrics::answer(&self.nodes, call, target.verb).await,
            ("bindings", Verb::Create) => subresources::bind(call, "", &body.read().await?).await,
            (plural, Verb::Create) if review::is_review(resource.group, plural) => {
                let mut warnings = Vec::new();
                let body = body.read().await?;
                let asked = content::object(call.headers, &body, resource.schema(), call.query.field_validation, &mut warnings)?;
                let answered = review::answer(&self.objects, &self.tokens, call.user, plural, call.namespace, asked)?;
                let mut response = respond::json(201, &answered);
                respond::warn(&mut response, &warnings);
                Ok(response)
            }
            ("componentstatuses", Verb::List) => {
                Ok(respond::json(200, &serde_json::json!({"kind": resource.list_kind, "apiVersion": "v1", "metadata": {}, "items": []})))
            }
            ("componentstatuses", Verb::Get) => Err(Status::not_found(resource.group, resource.plural, call.name)),
            _ => Err(Status::unavailable("the server is currently unable to handle the request")),
        }
    }

    fn token(&self, call: &Call, body: &[u8]) -> Result<Response<Body>, Status> {
        let kind = content::known_kind("authentication.k8s.io", "v1", "TokenRequest")?;
        let asked = content::object(call.headers, body, kind, call.query.field_validation, &mut Vec::new())?;
        auth::node::restrict(call.user, call.resource, "token", &asked, None)?;
        let token = self.tokens.request(&self.objects, call.namespace, call.name, asked, call.query.dry_run)?;
        Ok(respond::json(201, &token))
    }
}

fn form(parts: &Parts, offers: Offers) -> Result<Form, Status> {
    negotiate::form(&parts.headers, offers).ok_or_else(|| Status::not_acceptable(negotiate::ACCEPTED))
}

/// # Errors
/// 404 for a path that does not fit the resource, 405 for a verb that it does not have.
fn permitted(resource: &'static Resource, target: &Target) -> Result<(), Status> {
    let of_namespace = resource.plural == "namespaces" && resource.group.is_empty();
    let misplaced = if resource.namespaced {
        target.namespace.is_empty() && !matches!(target.verb, Verb::List | Verb::Watch | Verb::Create | Verb::DeleteCollection)
    } else {
        !target.namespace.is_empty() && !of_namespace
    };
    if misplaced {
        return Err(Status::no_such_resource());
    }
    let verb = target.verb.as_str();
    let allowed = match &*target.subresource {
        "" => resource.has_verb(verb),
        name => resource.subresource(name).ok_or_else(Status::no_such_resource)?.verbs.contains(&verb),
    };
    if allowed { Ok(()) } else { Err(Status::method_not_allowed(verb)) }
}

/// Serves the API until the listener breaks.
///
/// # Errors
/// If the listener cannot be watched.
pub async fn run(api: Rc<Server>, listener: TcpListener, tls: Option<Arc<ServerConfig>>) -> std::io::Result<()> {
    let handler = Rc::new(move |request, peer| {
        let api = api.clone();
        Box::pin(api.handle(request, peer)) as server::Answer
    });
    server::serve(listener, tls, CONNECTIONS_MAX, handler).await
}
