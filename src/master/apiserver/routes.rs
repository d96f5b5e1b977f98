//! What a request asks for, read from its method and path alone: a verb on a resource, or one of the few other documents.
//! It looks nothing up: whether the resource exists and whether the caller may is decided later, by others.

use std::borrow::Cow;

use hyper::Method;

use super::query::Query;

/// The verbs of the API, as RBAC names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
        }
    }
}

/// A request for a resource. Empty strings stand for what the path does not name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub verb: Verb,
    pub group: String,
    pub version: String,
    pub namespace: String,
    /// The plural.
    pub resource: String,
    pub name: String,
    pub subresource: String,
    /// What follows the subresource, without a leading slash; only `proxy` has it.
    pub rest: String,
}

/// Everything that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Resource(Target),
    /// `/`: the list of paths.
    Paths,
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/GROUP`
    Group(String),
    /// `/api/v1` and `/apis/GROUP/VERSION`
    Resources {
        group: String,
        version: String,
    },
    Version,
    /// `/healthz`, `/livez`, `/readyz`, with the single check that was asked for.
    Health {
        endpoint: Health,
        check: String,
    },
    Metrics,
    /// `/edgectl/backup`: all objects, for members of system:masters.
    Backup,
    /// `/openapi/v2`
    OpenApiV2,
    /// `/openapi/v3`
    OpenApiIndex,
    /// `/openapi/v3/api/v1` and `/openapi/v3/apis/GROUP/VERSION`
    OpenApi {
        group: String,
        version: String,
    },
    /// `/.well-known/openid-configuration`
    IssuerConfiguration,
    /// `/openid/v1/jwks`
    IssuerKeys,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Healthz,
    Livez,
    Readyz,
}

/// Reads method, path and query. `Err` is a method that no path takes.
pub fn parse(method: &Method, path: &str, query: &Query) -> Result<Route, ()> {
    let segments: Vec<Cow<str>> = path.split('/').filter(|segment| !segment.is_empty()).map(percent_decode).collect();
    let segments: Vec<&str> = segments.iter().map(|segment| &**segment).collect();
    Ok(match segments[..] {
        [] => Route::Paths,
        ["api"] => Route::CoreVersions,
        ["apis"] => Route::Groups,
        ["apis", group] => Route::Group(group.into()),
        ["api", version] => Route::Resources { group: String::new(), version: version.into() },
        ["apis", group, version] => Route::Resources { group: group.into(), version: version.into() },
        ["api", version, ref parts @ ..] => Route::Resource(target(method, "", version, parts, query)?),
        ["apis", group, version, ref parts @ ..] => Route::Resource(target(method, group, version, parts, query)?),
        ["version"] => Route::Version,
        ["healthz", ref check @ ..] => Route::Health { endpoint: Health::Healthz, check: check.join("/") },
        ["livez", ref check @ ..] => Route::Health { endpoint: Health::Livez, check: check.join("/") },
        ["readyz", ref check @ ..] => Route::Health { endpoint: Health::Readyz, check: check.join("/") },
        ["metrics"] => Route::Metrics,
        ["edgectl", "backup"] => Route::Backup,
        ["openapi", "v2"] => Route::OpenApiV2,
        ["openapi", "v3"] => Route::OpenApiIndex,
        ["openapi", "v3", "api", version] => Route::OpenApi { group: String::new(), version: version.into() },
        ["openapi", "v3", "apis", group, version] => Route::OpenApi { group: group.into(), version: version.into() },
        [".well-known", "openid-configuration"] => Route::IssuerConfiguration,
        ["openid", "v1", "jwks"] => Route::IssuerKeys,
        _ => Route::Unknown,
    })
}

/// Upstream's rules, k8s.io/apiserver/pkg/endpoints/request/requestinfo.go: a namespace is itself a resource, and its own subresources
/// are not resources in it.
fn target(method: &Method, group: &str, version: &str, parts: &[&str], query: &Query) -> Result<Target, ()> {
    let (namespace, parts) = match parts {
        ["namespaces", name] | ["namespaces", name, "status" | "finalize", ..] => (*name, parts),
        ["namespaces", namespace, parts @ ..] => (*namespace, parts),
        _ => ("", parts),
    };
    let part = |index: usize| parts.get(index).copied().unwrap_or_default();
    let (resource, mut name, subresource) = (part(0), part(1), part(2));
    let verb = match *method {
        Method::GET | Method::HEAD if name.is_empty() && query.watch => Verb::Watch,
        Method::GET | Method::HEAD if name.is_empty() => Verb::List,
        Method::GET | Method::HEAD => Verb::Get,
        Method::POST => Verb::Create,
        Method::PUT => Verb::Update,
        Method::PATCH => Verb::Patch,
        Method::DELETE if name.is_empty() => Verb::DeleteCollection,
        Method::DELETE => Verb::Delete,
        // A proxied request may have any method; upstream authorizes what it does not know as a read.
        _ if subresource == "proxy" => Verb::Get,
        _ => return Err(()),
    };
    if matches!(verb, Verb::List | Verb::Watch | Verb::DeleteCollection) {
        // So that a rule with resourceNames also covers reading that one object from the list.
        name = query.field_selector.strip_prefix("metadata.name=").filter(|name| !name.contains(',')).unwrap_or_default();
    }
    Ok(Target {
        verb,
        group: group.into(),
        version: version.into(),
        namespace: namespace.into(),
        resource: resource.into(),
        name: name.trim_start_matches('=').into(),
        subresource: subresource.into(),
        rest: parts.get(3..).unwrap_or_default().join("/"),
    })
}

/// `%41` to `A`. What is no UTF-8 stays as it is: it will match nothing.
pub fn percent_decode(text: &str) -> Cow<'_, str> {
    percent_encoding::percent_decode_str(text).decode_utf8().unwrap_or(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(method: Method, path: &str) -> Target {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        match parse(&method, path, &Query::parse(query).unwrap()) {
            Ok(Route::Resource(target)) => target,
            other => panic!("{path} is {other:?}"),
        }
    }

    #[test]
    fn paths_name_group_namespace_resource_name_and_subresource() {
        let cases = [
            (Method::GET, "/api/v1/pods", "list  v1  pods  "),
            (Method::GET, "/api/v1/namespaces/shop/pods/?&limit=500", "list  v1 shop pods  "),
            (Method::GET, "/api/v1/namespaces/shop/pods?watch=1", "watch  v1 shop pods  "),
            (Method::GET, "/api/v1/namespaces/shop/pods?watch=true&fieldSelector=metadata.name%3Dweb", "watch  v1 shop pods web "),
            (Method::GET, "/api/v1/namespaces/shop/pods?watch=false", "list  v1 shop pods  "),
            (Method::GET, "/api/v1/namespaces/shop/pods/web/log", "get  v1 shop pods web log"),
            (Method::GET, "/api/v1/namespaces/shop", "get  v1 shop namespaces shop "),
            (Method::PUT, "/api/v1/namespaces/shop/finalize", "update  v1 shop namespaces shop finalize"),
            (Method::GET, "/api/v1/namespaces", "list  v1  namespaces  "),
            (Method::POST, "/apis/apps/v1/namespaces/shop/deployments", "create apps v1 shop deployments  "),
            (Method::PATCH, "/apis/apps/v1/namespaces/shop/deployments/web/scale", "patch apps v1 shop deployments web scale"),
            (Method::DELETE, "/apis/apps/v1/namespaces/shop/deployments", "deletecollection apps v1 shop deployments  "),
            (Method::DELETE, "/api/v1/nodes/board%2D1", "delete  v1  nodes board-1 "),
        ];
        for (method, path, expected) in cases {
            let t = resource(method, path);
            let seen = [t.verb.as_str(), &t.group, &t.version, &t.namespace, &t.resource, &t.name, &t.subresource].join(" ");
            assert_eq!(seen, expected, "{path}");
        }
        assert_eq!(resource(Method::OPTIONS, "/api/v1/namespaces/a/services/b:80/proxy/x/y").rest, "x/y");
    }

    #[test]
    fn other_documents_have_routes_of_their_own() {
        let cases = [
            ("/", Route::Paths),
            ("/version/", Route::Version),
            ("/apis/", Route::Groups),
            ("/apis/apps", Route::Group("apps".into())),
            ("/api/v1/", Route::Resources { group: "".into(), version: "v1".into() }),
            ("/openapi/v3/apis/apps/v1", Route::OpenApi { group: "apps".into(), version: "v1".into() }),
            ("/openapi/v2", Route::OpenApiV2),
            ("/readyz/store", Route::Health { endpoint: Health::Readyz, check: "store".into() }),
        ];
        for (path, expected) in cases {
            assert_eq!(parse(&Method::GET, path, &Query::default()), Ok(expected), "{path}");
        }
        assert_eq!(parse(&Method::TRACE, "/api/v1/pods", &Query::default()), Err(()));
    }
}
