//! Who is asking, and whether they may: client certificates, service account and bootstrap tokens, then system:masters, nodes and RBAC.
//! Everything is read from the store at each request; nothing is remembered, so a removed right is gone with the next one.

mod bootstrap_token;
pub mod node;
pub mod rbac;
pub mod review;
pub mod token;

use std::collections::BTreeMap;

use futures_rustls::rustls::pki_types::CertificateDer;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::routes::{Target, percent_decode};
use crate::api::status::Status;
use crate::base::time::Timestamp;
use crate::master::store::Objects;

pub const ANONYMOUS: &str = "system:anonymous";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const MASTERS: &str = "system:masters";
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Whoever asks; `UserInfo` of authentication.k8s.io/v1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    pub fn anonymous() -> Self {
        Self { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..Self::default() }
    }

    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let groups = vec![SERVICE_ACCOUNTS.into(), format!("{SERVICE_ACCOUNTS}:{namespace}"), AUTHENTICATED.into()];
        Self { name: format!("{SERVICE_ACCOUNT}{namespace}:{name}"), uid: uid.into(), groups, extra: BTreeMap::new() }
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|each| each == group)
    }

    pub fn to_json(&self) -> Value {
        let mut info = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            info["uid"] = self.uid.as_str().into();
        }
        if !self.extra.is_empty() {
            info["extra"] = json!(self.extra);
        }
        info
    }
}

/// What is to be done to what, as authorizers see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// Of a request that is for no resource; then all but the verb is empty.
    pub path: &'a str,
    pub field_selector: &'a str,
}

impl<'a> Attributes<'a> {
    pub fn of(target: &'a Target, field_selector: &'a str) -> Self {
        Self {
            verb: target.verb.as_str(),
            group: &target.group,
            version: &target.version,
            resource: &target.resource,
            subresource: &target.subresource,
            namespace: &target.namespace,
            name: &target.name,
            path: "",
            field_selector,
        }
    }

    pub fn path(verb: &'a str, path: &'a str) -> Self {
        Self { verb, path, ..Self::default() }
    }

    /// `pods/log`, or `pods`.
    fn full_resource(&self) -> String {
        if self.subresource.is_empty() { self.resource.into() } else { format!("{}/{}", self.resource, self.subresource) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allowed(String),
    /// With a reason, if there is something to say.
    NoOpinion(String),
}

/// Who sent the request. Without credentials it is the anonymous user.
///
/// # Errors
/// 401 for credentials that are wrong.
pub fn authenticate(
    objects: &Objects,
    tokens: &token::Tokens,
    headers: &HeaderMap,
    certificate: Option<&CertificateDer>,
) -> Result<User, Status> {
    if let Some(certificate) = certificate {
        return from_certificate(certificate).ok_or_else(Status::unauthorized);
    }
    let Some(header) = headers.get(AUTHORIZATION) else { return Ok(User::anonymous()) };
    let bearer = header.to_str().ok().and_then(|header| header.strip_prefix("Bearer ").or_else(|| header.strip_prefix("bearer ")));
    let bearer = bearer.map(str::trim).filter(|token| !token.is_empty()).ok_or_else(Status::unauthorized)?;
    let accepted = match bootstrap_token::split(bearer) {
        Some((id, secret)) => bootstrap_token::authenticate(objects, id, secret, Timestamp::now()),
        None => tokens.authenticate(objects, bearer, &[]).map(|(user, _)| user),
    };
    accepted.map_err(|why| {
        log::debug!("token refused: {why}");
        Status::unauthorized()
    })
}

/// Common name and organizations: upstream's user and groups. That an authority of ours signed it was checked by TLS.
fn from_certificate(certificate: &CertificateDer) -> Option<User> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> = subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned).collect();
    groups.push(AUTHENTICATED.into());
    Some(User { name, groups, ..User::default() })
}

/// Decides; the first authorizer with an opinion wins.
pub fn authorize(objects: &Objects, user: &User, attributes: &Attributes) -> Decision {
    if user.is_in(MASTERS) {
        return Decision::Allowed(String::new());
    }
    let of_node = node::authorize(objects, user, attributes);
    let Decision::NoOpinion(node_reason) = of_node else { return of_node };
    match rbac::authorize(objects, user, attributes) {
        Decision::NoOpinion(reason) => Decision::NoOpinion(if reason.is_empty() { node_reason } else { reason }),
        allowed => allowed,
    }
}

/// # Errors
/// 403 in upstream's words, k8s.io/apiserver/pkg/endpoints/handlers/responsewriters/errors.go.
pub fn require(objects: &Objects, user: &User, attributes: &Attributes) -> Result<(), Status> {
    match authorize(objects, user, attributes) {
        Decision::Allowed(_) => Ok(()),
        Decision::NoOpinion(reason) => Err(forbidden(user, attributes, &reason)),
    }
}

/// For what holds every Secret: no rule can give it to others.
///
/// # Errors
/// 403.
pub fn require_masters(user: &User, attributes: &Attributes) -> Result<(), Status> {
    if user.is_in(MASTERS) { Ok(()) } else { Err(forbidden(user, attributes, "")) }
}

fn forbidden(user: &User, attributes: &Attributes, reason: &str) -> Status {
    let (who, verb) = (&user.name, attributes.verb);
    if !attributes.path.is_empty() {
        return Status::new(403, "Forbidden", format!("forbidden: User \"{who}\" cannot {verb} path \"{}\"", attributes.path));
    }
    let scope = match attributes.namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace \"{namespace}\""),
    };
    let mut why =
        format!("User \"{who}\" cannot {verb} resource \"{}\" in API group \"{}\" {scope}", attributes.full_resource(), attributes.group);
    if !reason.is_empty() {
        why = format!("{why}: {reason}");
    }
    Status::forbidden(attributes.group, attributes.resource, attributes.name, why)
}

/// Acts on the Impersonate headers, if there are any and the caller may.
///
/// # Errors
/// 403 if not; 400 if there are other Impersonate headers without Impersonate-User.
pub fn impersonate(objects: &Objects, user: User, headers: &HeaderMap) -> Result<User, Status> {
    let values = |name: &str| -> Vec<&str> { headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect() };
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix("impersonate-extra-") {
            let value = value.to_str().unwrap_or_default().to_owned();
            extra.entry(percent_decode(key).into_owned()).or_default().push(value);
        }
    }
    let (names, groups, uids) = (values("impersonate-user"), values("impersonate-group"), values("impersonate-uid"));
    let Some(name) = names.first().copied() else {
        if groups.is_empty() && uids.is_empty() && extra.is_empty() {
            return Ok(user);
        }
        return Err(Status::bad_request("requested impersonation without impersonating a user"));
    };
    let check = |group, resource, subresource, namespace, name| {
        let attributes = Attributes { verb: "impersonate", group, resource, subresource, namespace, name, ..Attributes::default() };
        require(objects, &user, &attributes)
    };
    let account = name.strip_prefix(SERVICE_ACCOUNT).and_then(|account| account.split_once(':'));
    match account {
        Some((namespace, account)) => check("", "serviceaccounts", "", namespace, account)?,
        None => check("", "users", "", "", name)?,
    }
    for group in &groups {
        check("", "groups", "", "", group)?;
    }
    for uid in &uids {
        check("authentication.k8s.io", "uids", "", "", uid)?;
    }
    for (key, values) in &extra {
        for value in values {
            check("authentication.k8s.io", "userextras", key, "", value)?;
        }
    }
    let mut groups: Vec<String> = groups.into_iter().map(str::to_owned).collect();
    if let (true, Some((namespace, account))) = (groups.is_empty(), account) {
        groups = User::service_account(namespace, account, "").groups;
    }
    let implied = if name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    if !groups.iter().any(|group| group == AUTHENTICATED || group == UNAUTHENTICATED) {
        groups.push(implied.into());
    }
    Ok(User { name: name.into(), uid: uids.first().copied().unwrap_or_default().into(), groups, extra })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_read_as_upstream_writes_them() {
        let user = User { name: "jane".into(), ..User::default() };
        let get = Attributes { verb: "get", resource: "pods", subresource: "log", namespace: "shop", name: "web", ..Attributes::default() };
        assert_eq!(
            forbidden(&user, &get, "").message,
            "pods \"web\" is forbidden: User \"jane\" cannot get resource \"pods/log\" in API group \"\" in the namespace \"shop\""
        );
        let list = Attributes { verb: "list", group: "apps", resource: "deployments", ..Attributes::default() };
        assert_eq!(
            forbidden(&user, &list, "").message,
            "deployments.apps is forbidden: User \"jane\" cannot list resource \"deployments\" in API group \"apps\" at the cluster scope"
        );
        assert_eq!(
            forbidden(&user, &Attributes::path("get", "/metrics"), "").message,
            "forbidden: User \"jane\" cannot get path \"/metrics\""
        );
    }
}
