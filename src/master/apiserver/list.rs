//! Lists: selectors, pages of one snapshot, and the forms of an answer. A snapshot of the past is made by undoing the changes that
//! the watch log still has; once it has forgotten them, the client is told to go on inconsistently or to begin anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::Response;
use serde_json::{Map, Value, json};

use super::negotiate::{Form, MetaVersion};
use super::query::{Query, VersionMatch};
use super::{respond, tables, versions};
use crate::api::schema::Resource;
use crate::api::selector::{Fields, Labels, Malformed};
use crate::api::status::Status;
use crate::master::store::{Change, Expired, Object, Objects, Watch};
use crate::wire::body::Body;

/// Which objects a list or a watch is about.
pub struct Filter {
    /// The version that was asked for, in which answers are written.
    pub resource: &'static Resource,
    labels: Labels,
    /// What is asked for most, and is known without reading the object.
    name: Option<String>,
    node: Option<String>,
    fields: Fields,
}

impl Filter {
    /// # Errors
    /// 400 for a selector that cannot be read or names a field that cannot be selected by.
    pub fn new(resource: &'static Resource, query: &Query) -> Result<Self, Status> {
        let refuse = |error: Malformed| Status::bad_request(error.to_string());
        let labels = Labels::parse(&query.label_selector).map_err(refuse)?;
        let mut fields = Fields::parse(&query.field_selector).map_err(refuse)?;
        fields.check(resource).map_err(refuse)?;
        let (name, node) = (fields.take("metadata.name"), if is_pods(resource) { fields.take("spec.nodeName") } else { None });
        Ok(Self { resource, labels, name, node, fields })
    }

    pub fn matches(&self, object: &Object) -> bool {
        self.name.as_ref().is_none_or(|name| object.key.name == *name)
            && self.node.as_ref().is_none_or(|node| *object.node == **node)
            && self.labels.matches_map(&object.labels)
            && (self.fields.is_everything() || self.fields.matches(&self.value(object)))
    }

    fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.name.is_none() && self.node.is_none() && self.fields.is_everything()
    }

    /// The one node whose pods are meant.
    fn node(&self) -> Option<&str> {
        self.node.as_deref().filter(|node| !node.is_empty())
    }

    /// All objects among which there may be some that match, and the revision they are of.
    pub fn candidates(&self, objects: &Objects, namespace: Option<&str>) -> (Vec<Arc<Object>>, u64) {
        match self.node() {
            Some(node) => objects.store().list_on_node(self.resource, namespace, node),
            None => objects.list(self.resource, namespace),
        }
    }

    /// The changes among which there may be some that match.
    ///
    /// # Errors
    /// As [`crate::master::store::Store::watch`].
    pub fn watch(&self, objects: &Objects, namespace: Option<&str>, after: u64) -> Result<Watch, Expired> {
        match self.node() {
            Some(node) => objects.store().watch_on_node(self.resource, namespace, node, after),
            None => objects.watch(self.resource, namespace, after),
        }
    }

    /// The object in the version that was asked for.
    pub fn value(&self, object: &Object) -> Value {
        versions::of(self.resource, object.value())
    }

    /// The same as JSON, without reading it if it need not change.
    pub fn json(&self, object: &Arc<Object>) -> Vec<u8> {
        if is_stored_version(self.resource) {
            return object.json.to_vec();
        }
        serde_json::to_vec(&self.value(object)).expect("a Value serializes")
    }
}

fn is_pods(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.plural == "pods"
}

pub fn is_stored_version(resource: &Resource) -> bool {
    resource.storage == (resource.group, resource.version, resource.plural)
}

/// Where a list that comes in pages goes on.
#[derive(Debug, PartialEq, Eq)]
struct Continue {
    /// Of the snapshot; 0 to go on with what is there now.
    revision: u64,
    /// Namespace and name of the last object that was given out.
    after: (String, String),
}

impl Continue {
    fn parse(token: &str) -> Result<Self, Status> {
        let broken = || Status::bad_request("continue key is not valid: encoded continue token is not valid");
        let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|_| broken())?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| broken())?;
        let (namespace, name) = value["start"].as_str().and_then(|start| start.split_once('/')).ok_or_else(broken)?;
        let revision = value["rv"].as_i64().ok_or_else(broken)?.max(0) as u64;
        Ok(Self { revision, after: (namespace.into(), name.into()) })
    }

    /// Upstream's token has a revision of -1 where it goes on inconsistently.
    fn token(&self) -> String {
        let revision = if self.revision == 0 { -1 } else { self.revision as i64 };
        let token = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": format!("{}/{}", self.after.0, self.after.1)});
        URL_SAFE_NO_PAD.encode(token.to_string())
    }
}

/// Answers a list.
///
/// # Errors
/// 400 for parameters that make no sense, 410, 504 for a resourceVersion of the future.
pub fn answer(objects: &Objects, namespace: &str, query: &Query, filter: &Filter, form: Form) -> Result<Response<Body>, Status> {
    let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
    let after = if query.continue_token.is_empty() { None } else { Some(Continue::parse(&query.continue_token)?) };
    let (all, revision) = match source(query, after.as_ref())? {
        Source::Newest => filter.candidates(objects, namespace),
        Source::At(revision) => {
            let current = objects.store().revision();
            if revision > current {
                return Err(too_large_version(revision, current));
            }
            match (snapshot(objects, filter, namespace, revision), after) {
                (Ok(objects), _) => return Ok(page(objects, revision, &query_after(query)?, query, filter, form)),
                (Err(Expired), Some(after)) => return Ok(expired_page(after)),
                (Err(Expired), None) => {
                    return Err(Status::expired("The resourceVersion for the provided list is too old."));
                }
            }
        }
        Source::NotOlderThan(revision) => {
            let current = objects.store().revision();
            if revision > current {
                return Err(too_large_version(revision, current));
            }
            filter.candidates(objects, namespace)
        }
    };
    Ok(page(all, revision, &after, query, filter, form))
}

fn query_after(query: &Query) -> Result<Option<Continue>, Status> {
    if query.continue_token.is_empty() { Ok(None) } else { Continue::parse(&query.continue_token).map(Some) }
}

enum Source {
    Newest,
    At(u64),
    NotOlderThan(u64),
}

/// The meaning of resourceVersion and resourceVersionMatch,
/// <https://kubernetes.io/docs/reference/using-api/api-concepts/#semantics-for-get-and-list>.
fn source(query: &Query, after: Option<&Continue>) -> Result<Source, Status> {
    let given = &*query.resource_version;
    if let Some(after) = after {
        if !given.is_empty() && given != "0" {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        return Ok(if after.revision == 0 { Source::Newest } else { Source::At(after.revision) });
    }
    if query.send_initial_events.is_some() {
        return Err(Status::bad_request("sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"));
    }
    let revision = version_number(given)?;
    match (query.resource_version_match, given, revision) {
        (VersionMatch::Exact | VersionMatch::NotOlderThan, "", _) => Err(Status::bad_request(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        )),
        (VersionMatch::Exact, _, 0) => Err(Status::bad_request(
            "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        )),
        (VersionMatch::Exact, ..) => Ok(Source::At(revision)),
        (VersionMatch::Unset, _, 1..) if query.limit > 0 => Ok(Source::At(revision)),
        (_, _, 1..) => Ok(Source::NotOlderThan(revision)),
        _ => Ok(Source::Newest),
    }
}

/// A resourceVersion of a query; 0 if there is none.
///
/// # Errors
/// 400 if it is no number.
pub fn version_number(text: &str) -> Result<u64, Status> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| Status::bad_request(format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: invalid syntax")))
}

pub fn too_large_version(wanted: u64, current: u64) -> Status {
    let mut status = Status::timeout(format!("Too large resource version: {wanted}, current: {current}"));
    status.details.retry_after_seconds = 1;
    status.with_cause("ResourceVersionTooLarge", "Too large resource version", "")
}

/// All objects as they were at a revision.
fn snapshot(objects: &Objects, filter: &Filter, namespace: Option<&str>, at: u64) -> Result<Vec<Arc<Object>>, Expired> {
    let mut since = filter.watch(objects, namespace, at)?;
    let (now, revision) = filter.candidates(objects, namespace);
    let mut changes = Vec::new();
    while let Some(event) = since.try_next()? {
        if event.revision > revision {
            break;
        }
        changes.push(event);
    }
    if changes.is_empty() {
        return Ok(now);
    }
    let place = |object: &Object| (object.key.namespace.clone(), object.key.name.clone());
    let mut then: BTreeMap<(String, String), Arc<Object>> = now.into_iter().map(|object| (place(&object), object)).collect();
    for event in changes.iter().rev() {
        match (&event.previous, event.change) {
            (Some(previous), Change::Modified | Change::Deleted) => then.insert(place(previous), previous.clone()),
            _ => then.remove(&place(&event.object)),
        };
    }
    Ok(then.into_values().collect())
}

/// 410 with a token to go on all the same.
fn expired_page(after: Continue) -> Response<Body> {
    let status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue \
         parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided \
         token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was \
         returned and now may show up in the list.",
    );
    let mut body = status.to_json();
    body["metadata"]["continue"] = Continue { revision: 0, ..after }.token().into();
    respond::json(status.code, &body)
}

fn page(all: Vec<Arc<Object>>, revision: u64, after: &Option<Continue>, query: &Query, filter: &Filter, form: Form) -> Response<Body> {
    let key = |object: &Object| (object.key.namespace.clone(), object.key.name.clone());
    let begin = after.as_ref().map_or(0, |after| all.partition_point(|object| key(object) <= after.after));
    let rest = &all[begin..];
    let mut chosen: Vec<&Arc<Object>> = Vec::new();
    let mut metadata = Map::from_iter([("resourceVersion".to_owned(), Value::from(revision.to_string()))]);
    for (index, object) in rest.iter().enumerate() {
        if !filter.matches(object) {
            continue;
        }
        if query.limit > 0 && chosen.len() == query.limit {
            let last = chosen[chosen.len() - 1];
            metadata.insert("continue".into(), Continue { revision, after: key(last) }.token().into());
            // With a selector nobody knows how many more there are.
            if filter.is_everything() {
                metadata.insert("remainingItemCount".into(), (rest.len() - index).into());
            }
            break;
        }
        chosen.push(object);
    }
    write(&chosen, metadata, query, filter, form)
}

/// The answer for these objects.
pub fn write(chosen: &[&Arc<Object>], metadata: Map<String, Value>, query: &Query, filter: &Filter, form: Form) -> Response<Body> {
    let values = || -> Vec<Value> { chosen.iter().map(|object| filter.value(object)).collect() };
    match form {
        Form::Table(version) => {
            let values = values();
            let values: Vec<&Value> = values.iter().collect();
            let list = json!({"metadata": metadata});
            let layout = tables::of(filter.resource, "");
            respond::json(200, &tables::table(layout, &values, &list, version, query.include_object, true))
        }
        Form::Metadata(version) => {
            let items: Vec<Value> = values().iter().map(|object| tables::partial(object, MetaVersion::V1)).collect();
            let list = json!({
                "kind": "PartialObjectMetadataList", "apiVersion": version.api_version(), "metadata": metadata, "items": items,
            });
            respond::json(200, &list)
        }
        Form::Plain | Form::Aggregated => {
            // The objects are JSON already: they are only put in a row.
            let length: usize = chosen.iter().map(|object| object.json.len() + 1).sum();
            let mut body = Vec::with_capacity(length + 256);
            let (kind, version) = (filter.resource.list_kind, filter.resource.api_version());
            let head = format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\",\"metadata\":{},\"items\":[", Value::Object(metadata));
            body.extend_from_slice(head.as_bytes());
            for (index, object) in chosen.iter().enumerate() {
                if index > 0 {
                    body.push(b',');
                }
                if is_stored_version(filter.resource) {
                    body.extend_from_slice(&object.json);
                } else {
                    body.extend_from_slice(&filter.json(object));
                }
            }
            body.extend_from_slice(b"]}");
            respond::bytes(200, respond::JSON, body)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_where_to_go_on() {
        let place = Continue { revision: 7, after: ("shop".into(), "web-1".into()) };
        assert_eq!(Continue::parse(&place.token()).unwrap(), place);
        let inconsistent = Continue { revision: 0, ..place };
        assert_eq!(Continue::parse(&inconsistent.token()).unwrap(), inconsistent);
        for broken in ["x", "e30", "????"] {
            assert_eq!(Continue::parse(broken).unwrap_err().code, 400, "{broken}");
        }
    }

    #[test]
    fn versions_and_matches_that_contradict_are_refused() {
        let check = |query: &str, valid: bool| assert_eq!(source(&Query::parse(query).unwrap(), None).is_ok(), valid, "{query}");
        check("", true);
        check("resourceVersion=0&resourceVersionMatch=NotOlderThan", true);
        check("resourceVersion=5&resourceVersionMatch=Exact", true);
        check("resourceVersionMatch=Exact", false);
        check("resourceVersion=0&resourceVersionMatch=Exact", false);
        check("resourceVersion=x", false);
        check("sendInitialEvents=true", false);
    }
}
