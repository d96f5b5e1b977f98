//! `drain`: closes a node and moves its pods away, by evictions that disruption budgets may refuse for a while. Pods that would not come
//! back, or lose their data, go only if that is said.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::describe::plain;
use super::nodes::mark_nodes;
use super::output::{self, DryRun};
use super::select::Found;
use super::{Context, delete, errors};
use crate::api::selector;
use crate::client::{Query, is_not_found, refusal};

pub const EXAMPLES: &str = "edgectl drain n1 --ignore-daemonsets
edgectl drain n1 --ignore-daemonsets --delete-emptydir-data --force --grace-period=30";

/// How long to wait before an eviction that a budget refused is asked for again.
const EVICTION_PAUSE: Duration = Duration::from_secs(5);
/// What a pod of a file on its node carries.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// drain nodes in preparation for maintenance
#[derive(FromArgs, ArgsInfo)]
pub struct Flags {
    #[argh(positional)]
    names: Vec<String>,
    /// label selector of the nodes
    #[argh(option, short = 'l', default = "String::new()")]
    selector: String,
    /// label selector of the pods that go
    #[argh(option, default = "String::new()")]
    pod_selector: String,
    /// leave pods of daemon sets where they are
    #[argh(switch)]
    ignore_daemonsets: bool,
    /// let pods go that have data in an emptyDir
    #[argh(switch)]
    delete_emptydir_data: bool,
    /// let pods go that no controller makes anew
    #[argh(switch)]
    force: bool,
    /// seconds to end in good order; -1 leaves it to the pods
    #[argh(option, default = "-1")]
    grace_period: i64,
    /// delete the pods, past all disruption budgets
    #[argh(switch)]
    disable_eviction: bool,
    /// how long to wait; 0 is as long as it takes
    #[argh(option, default = "\"0s\".to_owned()")]
    timeout: String,
    /// only show what would be done
    #[argh(option, arg_name = "client|server|none")]
    dry_run: Option<String>,
}

/// Which pods of a node go.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    go: Vec<Value>,
    /// Why the node cannot be drained: what stands in the way, and the pods of which that holds.
    obstacles: Vec<(&'static str, Vec<String>)>,
    warnings: Vec<(&'static str, Vec<String>)>,
}

fn plan(pods: &[Value], flags: &Flags) -> Plan {
    const DAEMONS: &str = "cannot delete DaemonSet-managed Pods (use --ignore-daemonsets to ignore)";
    const DATA: &str = "cannot delete Pods with local storage (use --delete-emptydir-data to override)";
    const ORPHANS: &str = "cannot delete Pods that declare no controller (use --force to override)";
    let mut plan = Plan::default();
    let note = |list: &mut Vec<(&'static str, Vec<String>)>, what: &'static str, pod: &Value| {
        let name = format!("{}/{}", plain(&pod["metadata"]["namespace"]), plain(&pod["metadata"]["name"]));
        match list.iter_mut().find(|(known, _)| *known == what) {
            Some((_, names)) => names.push(name),
            None => list.push((what, vec![name])),
        }
    };
    for pod in pods {
        let over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let owners = pod["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        let controller = owners.into_iter().find(|owner| owner["controller"] == true).map(|owner| plain(&owner["kind"]));
        if !pod["metadata"]["annotations"][MIRROR].is_null() {
            continue;
        }
        if controller.as_deref() == Some("DaemonSet") && !over {
            match flags.ignore_daemonsets {
                true => note(&mut plan.warnings, "ignoring DaemonSet-managed Pods", pod),
                false => note(&mut plan.obstacles, DAEMONS, pod),
            }
            continue;
        }
        let has_data = pod["spec"]["volumes"].as_array().into_iter().flatten().any(|volume| volume["emptyDir"].is_object());
        let mut goes = true;
        if has_data && !over && !flags.delete_emptydir_data {
            note(&mut plan.obstacles, DATA, pod);
            goes = false;
        }
        if controller.is_none() && !over {
            match flags.force {
                true => note(&mut plan.warnings, "deleting Pods that declare no controller", pod),
                false => {
                    note(&mut plan.obstacles, ORPHANS, pod);
                    goes = false;
                }
            }
        }
        if goes {
            plan.go.push(pod.clone());
        }
    }
    plan
}

fn told(list: &[(&'static str, Vec<String>)]) -> Vec<String> {
    list.iter().map(|(what, pods)| format!("{what}: {}", pods.join(", "))).collect()
}

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    if flags.names.is_empty() && flags.selector.is_empty() {
        bail!("USAGE: drain NODE [flags]\nSee 'edgectl drain -h' for help and examples");
    }
    if selector::Labels::parse(&flags.pod_selector).is_err() {
        bail!("--pod-selector=<pod_selector> must be a valid label selector");
    }
    let timeout = cx.duration("--timeout", &flags.timeout)?;
    let deadline = Some(Instant::now() + timeout).filter(|_| !timeout.is_zero());
    let nodes = mark_nodes(cx, &flags.names, &flags.selector, true, dry_run).await?;
    for (at, node) in nodes.iter().enumerate() {
        let left = || nodes[at..].iter().map(|node| format!(" {}", node.name)).collect::<Vec<_>>().join("\n");
        if let Err(error) = drain(cx, &flags, node, deadline, dry_run).await {
            cx.note(&format!("error: unable to drain node {:?} due to error: {error:#}, continuing command...", node.name));
            cx.note(&format!("There are pending nodes to be drained:\n{}", left()));
            cx.note(&format!("{error:#}"));
            cx.failed.set(true);
            continue;
        }
        cx.print(&output::done(&node.resource, &node.name, "drained", dry_run))?;
    }
    Ok(0)
}

async fn drain(cx: &Context, flags: &Flags, node: &Found, deadline: Option<Instant>, dry_run: DryRun) -> Result<()> {
    let query = Query::new().with("fieldSelector", format!("spec.nodeName={}", node.name)).with("labelSelector", &flags.pod_selector);
    let mut list = cx.client()?.list("/api/v1/pods", &query).await?;
    let pods = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let plan = plan(&pods, flags);
    if !plan.obstacles.is_empty() {
        match told(&plan.obstacles).as_slice() {
            [only] => bail!("{only}"),
            several => bail!("[{}]", several.join(", ")),
        }
    }
    let warnings = told(&plan.warnings);
    if !warnings.is_empty() {
        cx.note(&format!("Warning: {}", warnings.join("; ")));
    }
    let away = plan.go.iter().map(|pod| away(cx, flags, pod, deadline, dry_run));
    let failed: Vec<anyhow::Error> = join_all(away).await.into_iter().filter_map(Result::err).collect();
    match failed.as_slice() {
        [] => Ok(()),
        several => bail!("{}", several.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>().join(", ")),
    }
}

/// Has one pod evicted, as often as it takes, and waits until it is gone.
async fn away(cx: &Context, flags: &Flags, pod: &Value, deadline: Option<Instant>, dry_run: DryRun) -> Result<()> {
    let (namespace, name) = (plain(&pod["metadata"]["namespace"]), plain(&pod["metadata"]["name"]));
    let resource = super::known("pods").ok_or_else(|| anyhow!("there are no pods"))?;
    let (doing, done) = if flags.disable_eviction { ("deleting", "deleted") } else { ("evicting", "evicted") };
    cx.println(&format!("{doing} pod {namespace}/{name}{}", output::suffix(dry_run)))?;
    if dry_run == DryRun::Client {
        return Ok(());
    }
    let options = delete::options(None, flags.grace_period, dry_run)?;
    let path = resource.path(&namespace, &name);
    loop {
        let answer = match flags.disable_eviction {
            true => cx.client()?.delete(&path, &options).await.map(drop),
            false => {
                let eviction = json!({
                    "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace},
                    "deleteOptions": options});
                cx.client()?.create(&format!("{path}/eviction"), &Query::new(), &eviction).await.map(drop)
            }
        };
        match answer {
            Ok(()) => break,
            Err(error) if is_not_found(&error) => return Ok(()),
            // A budget says: not now.
            Err(error) if refusal(&error).is_some_and(|refusal| refusal.code == 429) => {
                if deadline.is_some_and(|deadline| Instant::now() + EVICTION_PAUSE > deadline) {
                    bail!("error when evicting pods/{name:?} -n {namespace:?}: global timeout reached");
                }
                cx.note(&format!("error when evicting pods/{name:?} -n {namespace:?} (will retry after 5s): {}", told_refusal(&error)));
                smol::Timer::after(EVICTION_PAUSE).await;
            }
            Err(error) => return Err(anyhow!("error when {doing} pods/{name:?} -n {namespace:?}: {}", told_refusal(&error))),
        }
    }
    if dry_run == DryRun::None && !delete::gone(cx, &resource, &namespace, &name, pod["metadata"]["uid"].as_str(), deadline).await? {
        bail!("error when waiting for pod {name:?} in namespace {namespace:?} to terminate: global timeout reached");
    }
    cx.print(&output::done(&resource, &name, done, dry_run))
}

fn told_refusal(error: &anyhow::Error) -> String {
    refusal(error).map_or_else(|| errors::render(error), |refusal| refusal.message.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(line: &str) -> Flags {
        Flags::from_args(&["drain"], &line.split_whitespace().collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn pods_go_only_if_nothing_of_them_is_lost_unasked() {
        let pod = |name: &str, kind: &str, phase: &str, volumes: Value| {
            let owners = if kind.is_empty() { json!([]) } else { json!([{"kind": kind, "controller": true}]) };
            json!({"metadata": {"name": name, "namespace": "s", "ownerReferences": owners}, "spec": {"volumes": volumes},
                "status": {"phase": phase}})
        };
        let pods = [
            pod("web", "ReplicaSet", "Running", json!([])),
            pod("data", "ReplicaSet", "Running", json!([{"emptyDir": {}}])),
            pod("lonely", "", "Running", json!([])),
            pod("over", "", "Succeeded", json!([{"emptyDir": {}}])),
            pod("daemon", "DaemonSet", "Running", json!([])),
        ];
        let check = |line: &str, go: &[&str], obstacles: usize| {
            let plan = plan(&pods, &flags(line));
            let names: Vec<String> = plan.go.iter().map(|pod| plain(&pod["metadata"]["name"])).collect();
            assert_eq!(
                (names.as_slice(), plan.obstacles.len()),
                (go.iter().map(|go| (*go).to_owned()).collect::<Vec<_>>().as_slice(), obstacles),
                "{line}"
            );
        };
        check("", &["web", "over"], 3);
        check("--ignore-daemonsets", &["web", "over"], 2);
        check("--ignore-daemonsets --force", &["web", "lonely", "over"], 1);
        check("--ignore-daemonsets --force --delete-emptydir-data", &["web", "data", "lonely", "over"], 0);
    }
}
