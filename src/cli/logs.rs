//! `logs`: what containers wrote, of one pod or of many at once, up to now or as it comes. Lines of several containers are never mixed
//! within
//! a line.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use futures_util::future::join_all;
use http_body_util::BodyExt;
use serde_json::Value;

use super::describe::selector_query;
use super::{Context, duration};
use crate::client::{Query, refusal};

/// How many streams are followed at once unless told otherwise.
const STREAMS_MAX: usize = 5;
const PAUSE: Duration = Duration::from_millis(500);

pub const EXAMPLES: &str = "edgectl logs web-1
edgectl logs -f deployment/web --tail=20
edgectl logs -l app=web --all-containers --prefix
edgectl logs web-1 -c nginx --previous";

/// print the logs of a container in a pod
#[derive(FromArgs, ArgsInfo)]
pub struct Flags {
    #[argh(positional)]
    names: Vec<String>,
    /// the container
    #[argh(option, short = 'c')]
    container: Option<String>,
    /// all containers of the pods
    #[argh(switch)]
    all_containers: bool,
    /// all pods of the workload
    #[argh(switch)]
    all_pods: bool,
    /// go on as lines come
    #[argh(switch, short = 'f')]
    follow: bool,
    /// the container before the last restart
    #[argh(switch, short = 'p')]
    previous: bool,
    /// lines from the end; -1 is all, with a selector 10 if not given
    #[argh(option)]
    tail: Option<i64>,
    /// lines younger than this, as 5m
    #[argh(option)]
    since: Option<String>,
    /// lines after this time, RFC 3339
    #[argh(option)]
    since_time: Option<String>,
    /// put its time before each line
    #[argh(switch)]
    timestamps: bool,
    /// put pod and container before each line
    #[argh(switch)]
    prefix: bool,
    /// bytes at most
    #[argh(option)]
    limit_bytes: Option<u64>,
    /// label selector
    #[argh(option, short = 'l', default = "String::new()")]
    selector: String,
    /// how many logs to follow at once
    #[argh(option)]
    max_log_requests: Option<usize>,
    /// an error of one log does not end the others
    #[argh(switch)]
    ignore_errors: bool,
    /// how long to wait until a pod of the workload runs
    #[argh(option, default = "\"20s\".to_owned()")]
    pod_running_timeout: String,
}

/// One container's log.
struct Source {
    namespace: String,
    pod: String,
    container: String,
}

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    if flags.since.is_some() && flags.since_time.is_some() {
        bail!("at most one of `sinceTime` or `sinceSeconds` may be specified");
    }
    if flags.all_containers && flags.container.is_some() {
        bail!("--all-containers=true should not be specified with container name {}", flags.container.as_deref().unwrap_or_default());
    }
    let query = query(cx, &flags)?;
    let (pods, prefix) = pods(cx, &flags).await?;
    let mut sources = vec![];
    for pod in &pods {
        for container in containers(cx, &flags, pod)? {
            let text = |key: &str| pod["metadata"][key].as_str().unwrap_or_default().to_owned();
            sources.push(Source { namespace: text("namespace"), pod: text("name"), container });
        }
    }
    let most = flags.max_log_requests.unwrap_or(STREAMS_MAX);
    if flags.follow && sources.len() > most {
        bail!(
            "you are attempting to follow {} log streams, but maximum allowed concurrency is {most}, use --max-log-requests to increase \
                the limit",
            sources.len()
        );
    }
    let end = cx.request_timeout()?.map(|limit| Instant::now() + limit);
    let read = |source: Source| {
        let query = query.clone();
        let flags = &flags;
        async move {
            let head = if prefix { format!("[pod/{}/{}] ", source.pod, source.container) } else { String::new() };
            let path = format!("/api/v1/namespaces/{}/pods/{}/log", source.namespace, source.pod);
            let query = query.with("container", &source.container);
            let over = async {
                match end {
                    Some(end) => smol::Timer::at(end).await,
                    None => std::future::pending().await,
                };
                bail!("the log of {}/{} is not over within the time of --request-timeout", source.pod, source.container)
            };
            match futures_lite::future::or(copy(cx, &path, &query, &head), over).await {
                Err(error) if flags.ignore_errors => {
                    cx.note(&format!("error: {error:#}"));
                    Ok(())
                }
                result => result,
            }
        }
    };
    if flags.follow {
        for result in join_all(sources.into_iter().map(read)).await {
            result?;
        }
    } else {
        for source in sources {
            read(source).await?;
        }
    }
    Ok(0)
}

fn query(cx: &Context, flags: &Flags) -> Result<Query> {
    let mut query = Query::new();
    for (key, on) in [("follow", flags.follow), ("previous", flags.previous), ("timestamps", flags.timestamps)] {
        if on {
            query.set(key, "true");
        }
    }
    let tail = flags.tail.or(Some(10).filter(|_| !flags.selector.is_empty()));
    if let Some(tail) = tail.filter(|tail| *tail >= 0) {
        query.set("tailLines", tail);
    }
    if let Some(since) = &flags.since {
        query.set("sinceSeconds", cx.duration("--since", since)?.as_secs_f64().ceil() as u64);
    }
    query.set("sinceTime", flags.since_time.as_deref().unwrap_or_default());
    query.set("limitBytes", flags.limit_bytes.map(|limit| limit.to_string()).unwrap_or_default());
    Ok(query)
}

/// The pods that are meant, and whether their lines carry names.
async fn pods(cx: &Context, flags: &Flags) -> Result<(Vec<Value>, bool)> {
    let client = cx.client()?;
    let namespace = cx.namespace()?;
    let list_path = format!("/api/v1/namespaces/{namespace}/pods");
    let mut names = flags.names.clone();
    // `logs POD CONTAINER` is how it was once typed; `logs TYPE NAME` is none.
    if !flags.selector.is_empty() {
        if !names.is_empty() {
            bail!("only a selector (-l) or a POD name is allowed\nSee 'edgectl logs -h' for help and examples");
        }
        let list = client.list(&list_path, &Query::new().with("labelSelector", &flags.selector)).await?;
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        if pods.is_empty() {
            cx.note(&format!("No resources found in {namespace} namespace."));
        }
        return Ok((pods, flags.prefix));
    }
    let name = match names.len() {
        0 => bail!(
            "expected 'logs [-f] [-p] (POD | TYPE/NAME) [-c CONTAINER]'.\nPOD or TYPE/NAME is a required argument for the logs \
                command\nSee 'edgectl logs -h' for help and examples"
        ),
        1 | 2 => names.remove(0),
        _ => bail!("expected 'logs [-f] [-p] (POD | TYPE/NAME) [-c CONTAINER]'"),
    };
    let Found { pods, of_workload, .. } = pods_of(cx, &name, &flags.pod_running_timeout).await?;
    if flags.all_pods && of_workload {
        return Ok((pods, true));
    }
    Ok((vec![first(cx, pods)?], flags.prefix))
}

/// The pod that `POD` or `TYPE/NAME` means, of a workload's the one most likely to have something to say, and the object that was named.
pub async fn pod_of(cx: &Context, name: &str, running_timeout: &str) -> Result<(Value, Value)> {
    let Found { pods, object, .. } = pods_of(cx, name, running_timeout).await?;
    Ok((pods.into_iter().next().ok_or_else(|| anyhow!("there is no pod"))?, object))
}

fn first(cx: &Context, pods: Vec<Value>) -> Result<Value> {
    let count = pods.len();
    let pod = pods.into_iter().next().ok_or_else(|| anyhow!("there is no pod"))?;
    if count > 1 {
        cx.note(&format!("Found {count} pods, using pod/{}", pod["metadata"]["name"].as_str().unwrap_or_default()));
    }
    Ok(pod)
}

/// What `POD` or `TYPE/NAME` means: at least one pod.
struct Found {
    pods: Vec<Value>,
    object: Value,
    of_workload: bool,
}

async fn pods_of(cx: &Context, name: &str, running_timeout: &str) -> Result<Found> {
    let client = cx.client()?;
    let namespace = cx.namespace()?;
    let list_path = format!("/api/v1/namespaces/{namespace}/pods");
    let (kind, name) = name.split_once('/').unwrap_or(("pods", name));
    let resource = cx.resolver()?.resolve(kind).await?;
    let object = client.get(&resource.path(&namespace, name)).await.map_err(|error| match refusal(&error) {
        Some(refusal) if refusal.reason == "NotFound" => {
            anyhow!("error: error from server (NotFound): {} in namespace {namespace:?}", refusal.message)
        }
        _ => error,
    })?;
    if &*resource.plural == "pods" {
        return Ok(Found { pods: vec![object.clone()], object, of_workload: false });
    }
    let selector = match &*resource.kind {
        "Service" | "ReplicationController" => super::table::labels_text(&object["spec"]["selector"]),
        _ => selector_query(&object["spec"]["selector"]),
    };
    if selector.is_empty() || selector == "<none>" {
        bail!("{}/{name} selects no pods", resource.plural);
    }
    let deadline = Instant::now() + duration(running_timeout)?;
    loop {
        let list = client.list(&list_path, &Query::new().with("labelSelector", &selector)).await?;
        let mut pods = list["items"].as_array().cloned().unwrap_or_default();
        // Those most likely to have something to say come first.
        pods.sort_by_key(|pod| {
            let ready = pod["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
            let phase = match pod["status"]["phase"].as_str() {
                Some("Running") => 0,
                Some("Pending") | None => 2,
                _ => 1,
            };
            (pod["spec"]["nodeName"].is_null(), phase, !ready, pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned())
        });
        if !pods.is_empty() {
            return Ok(Found { pods, object, of_workload: true });
        }
        if Instant::now() + PAUSE > deadline {
            bail!("timed out waiting for the condition: {}/{name} has no pods", resource.plural);
        }
        smol::Timer::after(PAUSE).await;
    }
}

/// The containers of a pod whose logs are meant.
fn containers(cx: &Context, flags: &Flags, pod: &Value) -> Result<Vec<String>> {
    let names = |list: &str| -> Vec<String> {
        pod["spec"][list].as_array().into_iter().flatten().filter_map(|container| container["name"].as_str().map(str::to_owned)).collect()
    };
    let (init, main, debug) = (names("initContainers"), names("containers"), names("ephemeralContainers"));
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
    if flags.all_containers {
        return Ok([init, main, debug].concat());
    }
    let asked = flags.container.clone().or_else(|| flags.names.get(1).cloned());
    if let Some(asked) = asked {
        if ![&init, &main, &debug].iter().any(|list| list.contains(&asked)) {
            bail!("container {asked} is not valid for pod {pod_name} out of: {}", listed(&init, &main, &debug));
        }
        return Ok(vec![asked]);
    }
    let annotated = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    if let Some(name) = annotated.filter(|name| main.iter().any(|known| known == name)) {
        return Ok(vec![name.to_owned()]);
    }
    let Some(first) = main.first() else { bail!("pod {pod_name} has no containers") };
    if main.len() + init.len() + debug.len() > 1 {
        cx.note(&format!("Defaulted container {first:?} out of: {}", listed(&init, &main, &debug)));
    }
    Ok(vec![first.clone()])
}

/// All containers of a pod, the main ones first.
fn listed(init: &[String], main: &[String], debug: &[String]) -> String {
    let init = init.iter().map(|name| format!("{name} (init)"));
    let debug = debug.iter().map(|name| format!("{name} (ephem)"));
    main.iter().cloned().chain(init).chain(debug).collect::<Vec<_>>().join(", ")
}

/// Prints a log as it comes, a whole line at a time if lines carry a head.
pub async fn copy(cx: &Context, path: &str, query: &Query, head: &str) -> Result<()> {
    let mut body = cx.client()?.stream(path, query).await?;
    let mut line = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| anyhow!(error).context("the log broke off"))?;
        let Some(data) = frame.data_ref() else { continue };
        if head.is_empty() {
            cx.print_bytes(data)?;
            continue;
        }
        line.extend_from_slice(data);
        while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            let rest = line.split_off(end + 1);
            cx.print_bytes(&[head.as_bytes(), &line].concat())?;
            line = rest;
        }
    }
    if !line.is_empty() {
        cx.print_bytes(&[head.as_bytes(), &line, b"\n"].concat())?;
    }
    Ok(())
}
