//! What is served beside objects: version, health, discovery, OpenAPI, metrics, the list of paths. All of it can be known without a name.

use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, EXPIRES, HeaderValue, IF_NONE_MATCH, VARY};
use hyper::{HeaderMap, Response};
use ring::digest;
use serde_json::{Value, json};

use super::Server;
use super::auth::token::Tokens;
use super::negotiate::Form;
use super::query::Query;
use super::respond;
use super::routes::{Health, Route};
use crate::api::status::Status;
use crate::api::{VERSION, discovery, openapi};
use crate::wire::body::Body;

/// The release of Kubernetes whose API this is.
const MAJOR: &str = "1";
const MINOR: &str = "36";

/// Far enough away that a client keeps a document whose URL holds its hash.
const NEVER: &str = "Thu, 31 Dec 2099 23:59:59 GMT";

/// Answers a route that is no resource.
///
/// # Errors
/// 404.
pub fn answer(server: &Server, route: &Route, query: &Query, headers: &HeaderMap, form: Form) -> Result<Response<Body>, Status> {
    Ok(match route {
        Route::Version => respond::json(200, &version()),
        Route::Paths => respond::json(200, &paths()),
        Route::Health { endpoint, check } => health(server, *endpoint, check, query),
        Route::Metrics => respond::text(200, metrics(server)),
        Route::Backup => {
            let lines = server.objects.store().dump().map(|line| Ok(line.into()));
            respond::stream("application/jsonl", Body::stream(futures_lite::stream::iter(lines)))
        }
        Route::CoreVersions => match form {
            Form::Aggregated => tagged(discovery::aggregated_api(), discovery::AGGREGATED, headers),
            _ => tagged(discovery::api_versions(), respond::JSON, headers),
        },
        Route::Groups => match form {
            Form::Aggregated => tagged(discovery::aggregated_apis(), discovery::AGGREGATED, headers),
            _ => tagged(discovery::api_group_list(), respond::JSON, headers),
        },
        Route::Group(group) => respond::bytes(200, respond::JSON, discovery::api_group(group).ok_or_else(Status::no_such_resource)?),
        Route::Resources { group, version } => {
            let list = discovery::api_resource_list(group, version).ok_or_else(Status::no_such_resource)?;
            respond::bytes(200, respond::JSON, list)
        }
        Route::OpenApiV2 => tagged(openapi::v2(), openapi::V2_MEDIA_TYPE, headers),
        Route::OpenApiIndex => tagged(openapi::v3_index(), respond::JSON, headers),
        Route::OpenApi { group, version } => openapi_document(group, version, query)?,
        Route::IssuerConfiguration => respond::json(200, &Tokens::issuer_configuration()),
        Route::IssuerKeys => respond::bytes(200, "application/jwk-set+json", server.tokens.issuer_keys().to_string()),
        Route::Unknown | Route::Resource(_) => respond::text(404, "404 page not found\n"),
    })
}

fn version() -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "major": MAJOR, "minor": MINOR, "gitVersion": VERSION, "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc", "platform": format!("linux/{architecture}"),
    })
}

fn paths() -> Value {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .into();
    for (group, versions) in crate::api::schema::groups() {
        if group.is_empty() {
            paths.push("/api/v1".into());
            continue;
        }
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    paths.sort();
    json!({"paths": paths})
}

/// Text, `ok`; with `verbose` a line for each check. <https://kubernetes.io/docs/reference/using-api/health-checks/>
fn health(server: &Server, endpoint: Health, check: &str, query: &Query) -> Response<Body> {
    let mut checks = vec![("ping", true), ("store", true)];
    if endpoint == Health::Readyz {
        checks.push(("bootstrap", server.is_ready()));
    }
    let name = match endpoint {
        Health::Healthz => "healthz",
        Health::Livez => "livez",
        Health::Readyz => "readyz",
    };
    if !check.is_empty() {
        return match checks.iter().find(|(known, _)| *known == check) {
            Some((_, true)) => respond::text(200, "ok"),
            Some((_, false)) => respond::text(500, format!("{check} failed\n")),
            None => respond::text(404, "404 page not found\n"),
        };
    }
    let verbose = query.pairs.iter().any(|(key, _)| key == "verbose");
    let failed = checks.iter().any(|(_, passed)| !passed);
    if !failed && !verbose {
        return respond::text(200, "ok");
    }
    let mut text = String::new();
    for (check, passed) in checks {
        text += &if passed { format!("[+]{check} ok\n") } else { format!("[-]{check} failed: reason withheld\n") };
    }
    text += &format!("{name} check {}\n", if failed { "failed" } else { "passed" });
    respond::text(if failed { 500 } else { 200 }, text)
}

/// A document that clients keep and ask again for with If-None-Match.
fn tagged(body: Vec<u8>, content_type: &str, headers: &HeaderMap) -> Response<Body> {
    let hash = digest::digest(&digest::SHA256, &body);
    let hex: String = hash.as_ref()[..16].iter().map(|byte| format!("{byte:02X}")).collect();
    let tag = format!("\"{hex}\"");
    let known = headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok()).is_some_and(|tags| tags.contains(&hex));
    let mut response = if known { respond::bytes(304, content_type, Vec::new()) } else { respond::bytes(200, content_type, body) };
    response.headers_mut().insert(ETAG, HeaderValue::from_str(&tag).expect("hex digits in quotes"));
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public"));
    response
}

/// The schema of a group version. With its hash in the URL it may be kept for good: kubectl then asks once.
fn openapi_document(group: &str, version: &str, query: &Query) -> Result<Response<Body>, Status> {
    let document = openapi::v3(group, version).ok_or_else(Status::no_such_resource)?;
    let mut response = respond::bytes(200, respond::JSON, document);
    let hash = openapi::hash();
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    if query.get("hash") == hash {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        headers.insert(EXPIRES, HeaderValue::from_static(NEVER));
    }
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{hash}\"")) {
        headers.insert(ETAG, tag);
    }
    debug_assert!(headers.contains_key(CONTENT_TYPE));
    Ok(response)
}

/// In the text format of Prometheus.
fn metrics(server: &Server) -> String {
    let mut text = String::new();
    let mut gauge = |name: &str, kind: &str, help: &str, value: u64| {
        text += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    };
    gauge("apiserver_requests_total", "counter", "Requests that were answered.", server.requests.get());
    gauge("apiserver_longrunning_requests", "gauge", "Open watches.", server.watches.count() as u64);
    gauge("apiserver_storage_revision", "counter", "The newest resourceVersion.", server.objects.store().revision());
    gauge("apiserver_node_tunnels", "gauge", "Nodes whose agents are connected.", server.nodes.count() as u64);
    gauge("process_start_time_seconds", "gauge", "When the server started, in seconds since 1970.", server.started.seconds() as u64);
    text + &format!("# TYPE kubernetes_build_info gauge\nkubernetes_build_info{{git_version=\"{VERSION}\"}} 1\n")
}
