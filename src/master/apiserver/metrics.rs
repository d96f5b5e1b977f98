//! `metrics.k8s.io`, and the little of a node's own server that `nodes/proxy` leads to: what nodes and pods use of CPU and memory, asked of
//! the nodes at the moment somebody asks here. Nothing is kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_lite::FutureExt;
use futures_util::StreamExt;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response};
use serde_json::{Value, json};
use smol::Timer;

use super::crud::Call;
use super::list::Filter;
use super::routes::{Target, Verb};
use super::{logs, respond};
use crate::api::schema;
use crate::api::status::Status;
use crate::base::time::Timestamp;
use crate::master::nodes::Nodes;
use crate::master::store::Object;
use crate::wire::body::{self, Body};

/// Nodes asked at once.
const NODES_AT_ONCE: usize = 64;
/// A node that has not answered by then is left out; two readings take it one to two seconds.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a node's answer; a node with 110 pods of two containers each has about a tenth of that.
const SUMMARY_BYTES_MAX: usize = 2 << 20;
/// What may be asked of a node's own server.
const NODE_PATHS: [&str; 2] = ["stats/summary", "metrics/resource"];

/// Answers `nodes/proxy`.
///
/// # Errors
/// 404 for a path that is not for others, 405 for more than reading, what the node says.
pub async fn proxy(nodes: &Nodes, method: &Method, target: &Target) -> Result<Response<Body>, Status> {
    let path = target.rest.trim_matches('/');
    if !NODE_PATHS.contains(&path) {
        return Err(Status::new(404, "NotFound", format!("node {} has nothing for others at /{path}", target.name)));
    }
    if *method != Method::GET {
        return Err(Status::method_not_allowed(method.as_str()));
    }
    let request = Request::get(format!("/{path}")).body(Body::empty()).map_err(Status::internal)?;
    let (parts, incoming) = logs::accepted(nodes.request(&target.name, request).await?).await?.into_parts();
    let mut response = Response::new(Body::relay(incoming));
    response.headers_mut().extend(parts.headers.get(CONTENT_TYPE).map(|value| (CONTENT_TYPE, value.clone())));
    Ok(response)
}

/// Answers a get or a list of `metrics.k8s.io`.
///
/// # Errors
/// 404 for what is not there or has no metrics, 400 for a selector that cannot be read.
pub async fn answer(nodes: &Nodes, call: &Call<'_>, verb: Verb) -> Result<Response<Body>, Status> {
    let plural = call.resource.plural;
    let source = schema::resource("", "v1", plural).ok_or_else(Status::no_such_resource)?;
    let of = async |objects: &[Arc<Object>]| match plural {
        "nodes" => of_nodes(nodes, objects).await,
        _ => of_pods(nodes, objects).await,
    };
    if verb == Verb::Get {
        let name = if call.namespace.is_empty() { call.name.to_owned() } else { format!("{}/{}", call.namespace, call.name) };
        let kind = call.resource.kind.to_lowercase();
        let missing = || Status::new(404, "NotFound", format!("{kind}.{} {name:?} not found", call.resource.group));
        let object = call.objects.get(source, call.namespace, call.name).map_err(|_| missing())?;
        let mut found = of(&[object]).await.pop().ok_or_else(missing)?;
        found["kind"] = call.resource.kind.into();
        found["apiVersion"] = call.resource.api_version().into();
        return Ok(respond::json(200, &found));
    }
    let filter = Filter::new(source, call.query)?;
    let (mut objects, _) = call.objects.list(source, Some(call.namespace).filter(|namespace| !namespace.is_empty()));
    objects.retain(|object| filter.matches(object));
    let items = of(&objects).await;
    let list = json!({"kind": call.resource.list_kind, "apiVersion": call.resource.api_version(), "metadata": {}, "items": items});
    Ok(respond::json(200, &list))
}

async fn of_nodes(nodes: &Nodes, objects: &[Arc<Object>]) -> Vec<Value> {
    let summaries = summaries(nodes, objects.iter().map(|object| object.key.name.clone()).collect()).await;
    let item = |object: &Arc<Object>| {
        let summary = summaries.get(&object.key.name)?;
        let mut item = head(object, summary);
        item["usage"] = usage(&summary["node"])?;
        Some(item)
    };
    objects.iter().filter_map(item).collect()
}

async fn of_pods(nodes: &Nodes, objects: &[Arc<Object>]) -> Vec<Value> {
    let mut by_node: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for object in objects {
        if let Some(node) = object.value()["spec"]["nodeName"].as_str() {
            by_node.entry(node.to_owned()).or_default().push(&object.uid);
        }
    }
    let summaries = summaries(nodes, by_node.keys().cloned().collect()).await;
    let mut pods: HashMap<&str, (&Value, &Value)> = HashMap::new();
    for (summary, pod) in
        summaries.values().flat_map(|summary| summary["pods"].as_array().into_iter().flatten().map(move |pod| (summary, pod)))
    {
        pods.insert(pod["podRef"]["uid"].as_str().unwrap_or_default(), (summary, pod));
    }
    let item = |object: &Arc<Object>| {
        let (summary, pod) = pods.get(&*object.uid)?;
        let containers =
            pod["containers"].as_array()?.iter().map(|container| Some(json!({"name": container["name"], "usage": usage(container)?})));
        let mut item = head(object, summary);
        // Half of a pod's figures would pass for the whole.
        item["containers"] = containers.collect::<Option<Vec<_>>>()?.into();
        Some(item)
    };
    objects.iter().filter_map(item).collect()
}

fn head(object: &Object, summary: &Value) -> Value {
    let mut metadata = json!({"name": object.key.name, "creationTimestamp": Timestamp::now().to_string()});
    if !object.key.namespace.is_empty() {
        metadata["namespace"] = (*object.key.namespace).into();
    }
    if !object.labels.is_empty() {
        metadata["labels"] = json!(object.labels);
    }
    json!({"metadata": metadata, "timestamp": summary["node"]["cpu"]["time"], "window": summary["window"]})
}

fn usage(figures: &Value) -> Option<Value> {
    let nanos = figures["cpu"]["usageNanoCores"].as_u64()?;
    let bytes = figures["memory"]["workingSetBytes"].as_u64()?;
    Some(json!({"cpu": format!("{nanos}n"), "memory": format!("{}Ki", bytes >> 10)}))
}

/// What each of these nodes says, as far as it says something.
async fn summaries(nodes: &Nodes, names: Vec<String>) -> HashMap<String, Value> {
    let asked = names.into_iter().map(async |name| {
        let answered = summary(nodes, &name).or(async {
            Timer::after(NODE_TIMEOUT).await;
            Err(Status::timeout(format!("no answer within {} s", NODE_TIMEOUT.as_secs())))
        });
        match answered.await {
            Ok(summary) => Some((name, summary)),
            Err(error) => {
                log::debug!("node={name} metrics: {}", error.message);
                None
            }
        }
    });
    futures_util::stream::iter(asked).buffer_unordered(NODES_AT_ONCE).filter_map(std::future::ready).collect().await
}

async fn summary(nodes: &Nodes, name: &str) -> Result<Value, Status> {
    let request = Request::get("/stats/summary").body(Body::empty()).map_err(Status::internal)?;
    let answer = logs::accepted(nodes.request(name, request).await?).await?;
    let text = body::read_all(answer.into_body(), SUMMARY_BYTES_MAX).await.map_err(Status::internal)?;
    serde_json::from_slice(&text).map_err(Status::internal)
}
