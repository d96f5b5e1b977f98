//! `describe`: an object told in words, with what belongs to it and its events. It fetches; the files below it only write.

mod node;
mod page;
mod pod;
mod rules;
mod small;
mod storage;
mod workload;

use anyhow::{Result, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::Value;

pub use node::taint_text;
pub use page::{event_age, plain, selector_text, since, time};
pub use rules::rule_rows;
pub use workload::same_template;

use super::Context;
use super::manifest::file_flags;
use super::select::{self, Found, Pick, Wanted};
use crate::client::{Query, is_not_found, refusal};

pub const EXAMPLES: &str = "# A pod and the story of its start
edgectl describe pod web-1
# All pods whose names begin with web
edgectl describe pods web
# By label, in all namespaces
edgectl describe pods -l app=web -A";

file_flags! {
    /// show details of one or many resources
    pub struct Flags {
        #[argh(positional)]
        names: Vec<String>,
        /// describe the objects of all namespaces
        #[argh(switch, short = 'A')]
        all_namespaces: bool,
        /// label selector
        #[argh(option, short = 'l', default = "String::new()")]
        selector: String,
        /// show the events of the objects
        #[argh(option, arg_name = "true|false")]
        show_events: Option<String>,
        /// how many objects to ask for at once
        #[argh(option)]
        chunk_size: Option<u32>,
    }
}

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    let _pages_are_always_of_the_same_size = flags.chunk_size;
    let wanted = Wanted {
        names: &flags.names,
        sources: flags.sources(false),
        selector: &flags.selector,
        all_namespaces: flags.all_namespaces,
        types_suffice: true,
        ..Wanted::default()
    };
    let query = Query::new().with("labelSelector", &flags.selector);
    if flags.names.is_empty() && flags.filename.is_empty() && flags.kustomize.is_none() {
        bail!(
            "You must specify the type of resource to describe. Use \"edgectl api-resources\" for a complete list of supported resources."
        );
    }
    let mut all = vec![];
    let mut by_prefix_found = false;
    for pick in select::picks(cx, &wanted).await? {
        let objects = match cx.client()?.get(&pick.path()).await {
            Ok(object) if matches!(pick, Pick::One { .. }) => vec![object],
            Ok(_) => list(cx, &pick.path(), &query).await?,
            Err(error) if is_not_found(&error) => match by_prefix(cx, &pick).await? {
                objects if objects.is_empty() => {
                    cx.fail(&error);
                    continue;
                }
                objects => {
                    by_prefix_found = true;
                    objects
                }
            },
            Err(error) if refusal(&error).is_some() => {
                cx.fail(&error);
                continue;
            }
            Err(error) => return Err(error),
        };
        all.extend(objects.into_iter().map(|object| found(&pick, object)));
    }
    // As kubectl has it: events of many objects, or of those found by the beginning of a name, are shown only if they are asked for.
    let show_events = flags.show_events.as_deref().map_or(all.len() == 1 && !by_prefix_found, |show| show == "true");
    for (index, found) in all.iter().enumerate() {
        let text = describe(cx, found, show_events).await?;
        cx.print(&format!("{}{text}", if index == 0 { "" } else { "\n\n" }))?;
    }
    if all.is_empty() && !cx.failed.get() {
        match wanted.all_namespaces {
            true => cx.note("No resources found"),
            false => cx.note(&format!("No resources found in {} namespace.", cx.namespace()?)),
        }
    }
    Ok(0)
}

/// A pod template by itself, as `rollout history --revision` shows one.
pub fn template(template: &Value) -> String {
    let mut page = page::Page::new();
    pod::template(&mut page, template);
    // kubectl leaves the tabs to the terminal here.
    page.finish_as_written()
}

fn found(pick: &Pick, object: Value) -> Found {
    let text = |key: &str| plain(&object["metadata"][key]);
    Found { resource: pick.resource().clone(), namespace: text("namespace"), name: text("name"), object }
}

async fn list(cx: &Context, path: &str, query: &Query) -> Result<Vec<Value>> {
    let mut list = cx.client()?.list(path, query).await?;
    Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

/// A name that is none may be the beginning of some.
async fn by_prefix(cx: &Context, pick: &Pick) -> Result<Vec<Value>> {
    let Pick::One { resource, namespace, name, document: None } = pick else { return Ok(vec![]) };
    let Ok(mut objects) = list(cx, &resource.list_path(Some(namespace)), &Query::new()).await else { return Ok(vec![]) };
    objects.retain(|object| object["metadata"]["name"].as_str().is_some_and(|known| known.starts_with(name.as_str())));
    Ok(objects)
}

/// The text of one object.
async fn describe(cx: &Context, found: &Found, show_events: bool) -> Result<String> {
    let object = &found.object;
    let namespace = &found.namespace;
    let uid = plain(&object["metadata"]["uid"]);
    let events = match show_events {
        true => events(cx, object, &uid).await,
        false => None,
    };
    let events_ref = events.as_deref();
    let in_namespace = |resource: &str| format!("{}/namespaces/{namespace}/{resource}", root_of(resource));
    Ok(match (&*found.resource.group, &*found.resource.kind) {
        ("", "Pod") => pod::pod(object, events_ref),
        ("", "Node") => {
            let selector = format!("spec.nodeName={},status.phase!=Failed,status.phase!=Succeeded", found.name);
            let pods = list(cx, "/api/v1/pods", &Query::new().with("fieldSelector", selector)).await;
            let pods = match pods {
                Ok(pods) => Some(pods),
                Err(error) if refusal(&error).is_some_and(|refusal| refusal.reason == "Forbidden") => None,
                Err(error) => return Err(error),
            };
            let lease = cx.client()?.get(&format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}", found.name)).await;
            // The kubelet's events are about the node's name, others about its UID.
            let mut all = events.unwrap_or_default();
            if show_events {
                all.extend(self::events(cx, object, &found.name).await.unwrap_or_default());
            }
            let around = node::Around {
                lease: lease.as_ref().map_err(|error| error.to_string()),
                pods: pods.as_deref(),
                events: Some(all.as_slice()).filter(|_| show_events),
            };
            node::node(object, &around)
        }
        ("", "Service") => {
            let query = Query::new().with("labelSelector", format!("kubernetes.io/service-name={}", found.name));
            let slices = list(cx, &in_namespace("endpointslices"), &query).await.unwrap_or_default();
            small::service(object, &slices, events_ref)
        }
        ("", "ConfigMap") => small::config_map(object, events_ref),
        ("", "Secret") => small::secret(object),
        ("", "ServiceAccount") => small::service_account(object, events_ref),
        ("", "Namespace") => {
            let of = |resource: &str| format!("/api/v1/namespaces/{}/{resource}", found.name);
            let quotas = list(cx, &of("resourcequotas"), &Query::new()).await.ok();
            let limits = list(cx, &of("limitranges"), &Query::new()).await.ok();
            small::namespace(object, quotas.as_deref(), limits.as_deref())
        }
        ("apps", "Deployment") => {
            let query = Query::new().with("labelSelector", selector_query(&object["spec"]["selector"]));
            let sets = list(cx, &in_namespace("replicasets"), &query).await.unwrap_or_default();
            workload::deployment(object, &sets, events_ref)
        }
        ("apps", "ReplicaSet" | "StatefulSet" | "DaemonSet") | ("", "ReplicationController") => {
            let selector = match object["kind"].as_str() {
                Some("ReplicationController") => page::joined(&object["spec"]["selector"]),
                _ => selector_query(&object["spec"]["selector"]),
            };
            let pods = list(cx, &in_namespace("pods"), &Query::new().with("labelSelector", selector)).await?;
            let phases = workload::Phases::count(&pods, object);
            match &*found.resource.kind {
                "StatefulSet" => workload::stateful_set(object, &phases, events_ref),
                "DaemonSet" => workload::daemon_set(object, &phases, events_ref),
                _ => workload::replica_set(object, &phases, events_ref),
            }
        }
        ("discovery.k8s.io", "EndpointSlice") => small::endpoint_slice(object, events_ref),
        ("", "Endpoints") => rules::endpoints(object, events_ref),
        ("", "ResourceQuota") => rules::quota(object),
        ("", "LimitRange") => rules::limit_range(object),
        ("", "PersistentVolume") => storage::volume(object, events_ref),
        ("", "PersistentVolumeClaim") => {
            let pods = list(cx, &in_namespace("pods"), &Query::new()).await.unwrap_or_default();
            storage::claim(object, &pods, events_ref)
        }
        ("storage.k8s.io", "StorageClass") => storage::class(object, events_ref),
        ("scheduling.k8s.io", "PriorityClass") => rules::priority_class(object, events_ref),
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => rules::role(object),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => rules::role_binding(object),
        ("policy", "PodDisruptionBudget") => rules::disruption_budget(object, events_ref),
        ("autoscaling", "HorizontalPodAutoscaler") => rules::autoscaler(object, events_ref),
        ("networking.k8s.io", "NetworkPolicy") => rules::network_policy(object),
        ("networking.k8s.io", "Ingress") => rules::ingress(object, events_ref),
        ("batch", "Job") => workload::job(object, events_ref),
        ("batch", "CronJob") => workload::cron_job(object, events_ref),
        _ => small::generic(object, events_ref),
    })
}

fn root_of(resource: &str) -> &'static str {
    match resource {
        "replicasets" => "/apis/apps/v1",
        "endpointslices" => "/apis/discovery.k8s.io/v1",
        _ => "/api/v1",
    }
}

/// A selector as it stands in a query; an empty one selects everything.
pub fn selector_query(selector: &Value) -> String {
    match selector_text(selector) {
        text if text == "<none>" => String::new(),
        text => text,
    }
}

/// The events about an object; none if the server does not give them out.
async fn events(cx: &Context, object: &Value, uid: &str) -> Option<Vec<Value>> {
    let metadata = &object["metadata"];
    let namespace = plain(&metadata["namespace"]);
    let mut selector = format!("involvedObject.name={}", plain(&metadata["name"]));
    selector += &format!(",involvedObject.namespace={namespace}");
    if object["kind"] != "Pod" {
        selector += &format!(",involvedObject.kind={}", plain(&object["kind"]));
    }
    selector += &format!(",involvedObject.uid={uid}");
    let path = match namespace.is_empty() {
        true => "/api/v1/events".to_owned(),
        false => format!("/api/v1/namespaces/{namespace}/events"),
    };
    list(cx, &path, &Query::new().with("fieldSelector", selector)).await.ok()
}
