//! `top`: what nodes and pods use of CPU and memory, in kubectl's tables. The figures are the metrics API's; this sorts and adds up.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::Value;

use super::Context;
use super::tabwriter::Tabwriter;
use crate::api::meta;
use crate::api::quantity::Quantity;
use crate::base::time::Timestamp;
use crate::client::{Query, is_not_found};

const API: &str = "/apis/metrics.k8s.io/v1beta1";
/// A pod that is older than this should have metrics.
const CREATION_SECONDS: u64 = 120;

pub const NODE_EXAMPLES: &str = "edgectl top node
edgectl top node board-1
edgectl top node --sort-by=memory";

pub const POD_EXAMPLES: &str = "edgectl top pod
edgectl top pod web-1 --containers
edgectl top pod -A --sort-by=cpu
edgectl top pod -l app=web --sum";

/// what nodes use of CPU and memory
#[derive(FromArgs, ArgsInfo)]
pub struct NodeFlags {
    #[argh(positional)]
    names: Vec<String>,
    /// label selector
    #[argh(option, short = 'l', default = "String::new()")]
    selector: String,
    /// the greatest first: cpu or memory
    #[argh(option, default = "String::new()")]
    sort_by: String,
    /// no line of column names
    #[argh(switch)]
    no_headers: bool,
    /// shares of all that the node has, not of what pods may have
    #[argh(switch)]
    show_capacity: bool,
}

/// what pods use of CPU and memory
#[derive(FromArgs, ArgsInfo)]
pub struct PodFlags {
    #[argh(positional)]
    names: Vec<String>,
    /// label selector
    #[argh(option, short = 'l', default = "String::new()")]
    selector: String,
    /// field selector
    #[argh(option, default = "String::new()")]
    field_selector: String,
    /// the greatest first: cpu or memory
    #[argh(option, default = "String::new()")]
    sort_by: String,
    /// a line for each container
    #[argh(switch)]
    containers: bool,
    /// the pods of all namespaces
    #[argh(switch, short = 'A')]
    all_namespaces: bool,
    /// no line of column names
    #[argh(switch)]
    no_headers: bool,
    /// the sum of all in a last line
    #[argh(switch)]
    sum: bool,
}

/// Thousandths of a CPU, and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Usage {
    cpu_milli: i64,
    memory_bytes: i64,
}

impl Usage {
    fn read(usage: &Value) -> Self {
        let quantity = |key: &str| usage[key].as_str().and_then(|text| Quantity::parse(text).ok()).unwrap_or(Quantity::ZERO);
        Self { cpu_milli: quantity("cpu").milli(), memory_bytes: quantity("memory").value() }
    }

    /// The exact sum: what is rounded, is rounded once.
    fn of_pod(pod: &Value) -> Self {
        let sum = |key: &str| {
            let parts = list(&pod["containers"]).filter_map(|container| Quantity::parse(container["usage"][key].as_str()?).ok());
            parts.fold(Quantity::ZERO, Quantity::add)
        };
        Self { cpu_milli: sum("cpu").milli(), memory_bytes: sum("memory").value() }
    }

    fn cells(self) -> [String; 2] {
        [format!("{}m", self.cpu_milli), format!("{}Mi", self.memory_bytes >> 20)]
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn name_of<'a>(what: &str, names: &'a [String]) -> Result<&'a str> {
    match names {
        [] => Ok(""),
        [name] => Ok(name),
        _ => bail!("{what} [NAME | -l label]\nSee 'edgectl top {what} -h' for help and examples"),
    }
}

fn check_sort(sort_by: &str) -> Result<()> {
    match sort_by {
        "" | "cpu" | "memory" => Ok(()),
        _ => bail!("--sort-by accepts only cpu or memory"),
    }
}

/// Puts the greatest first, or keeps the order of names.
fn sort<T>(items: &mut [T], sort_by: &str, usage: impl Fn(&T) -> Usage, key: impl Fn(&T) -> (String, String)) {
    items.sort_by(|one, other| {
        let (a, b) = (usage(one), usage(other));
        match sort_by {
            "cpu" => b.cpu_milli.cmp(&a.cpu_milli),
            "memory" => b.memory_bytes.cmp(&a.memory_bytes),
            _ => key(one).cmp(&key(other)),
        }
    });
}

/// The metrics at a path: one object, or all that are selected.
async fn metrics(cx: &Context, path: &str, name: &str, query: &Query) -> Result<Vec<Value>> {
    let client = cx.client()?;
    // A server without the API has no list of its resources.
    if let Err(error) = client.get(API).await {
        return Err(if is_not_found(&error) { anyhow!("Metrics API not available") } else { error });
    }
    if !name.is_empty() {
        return Ok(vec![client.get(&format!("{path}/{name}")).await?]);
    }
    let mut found = client.list(path, query).await?;
    Ok(found["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

pub async fn node(cx: &Context, flags: NodeFlags) -> Result<u8> {
    check_sort(&flags.sort_by)?;
    let name = name_of("node", &flags.names)?;
    if !name.is_empty() && !flags.selector.is_empty() {
        bail!("only one of NAME or --selector can be provided");
    }
    let query = Query::new().with("labelSelector", &flags.selector);
    let metrics = metrics(cx, &format!("{API}/nodes"), name, &query).await?;
    if metrics.is_empty() {
        bail!("metrics not available yet");
    }
    let nodes = match name {
        "" => cx.client()?.list("/api/v1/nodes", &query).await?["items"].as_array().cloned().unwrap_or_default(),
        name => vec![cx.client()?.get(&format!("/api/v1/nodes/{name}")).await?],
    };
    let field = if flags.show_capacity { "capacity" } else { "allocatable" };
    let available = nodes.iter().map(|node| (meta::name(node).to_owned(), Usage::read(&node["status"][field]))).collect();
    cx.print(&node_table(&metrics, available, &flags.sort_by, flags.no_headers))?;
    Ok(0)
}

fn node_table(metrics: &[Value], mut available: BTreeMap<String, Usage>, sort_by: &str, no_headers: bool) -> String {
    let mut writer = Tabwriter::for_tables();
    if !no_headers {
        writer.write("NAME\tCPU(cores)\tCPU(%)\tMEMORY(bytes)\tMEMORY(%)\t\n");
    }
    let mut metrics: Vec<(&str, Usage)> = metrics.iter().map(|item| (meta::name(item), Usage::read(&item["usage"]))).collect();
    sort(&mut metrics, sort_by, |item| item.1, |item| (item.0.to_owned(), String::new()));
    for (name, usage) in metrics {
        let of = available.remove(name).unwrap_or_default();
        let share = |used: i64, of: i64| if of > 0 { format!("{}%", (used as f64 / of as f64 * 100.0) as i64) } else { String::new() };
        let [cpu, memory] = usage.cells();
        let shares = [share(usage.cpu_milli, of.cpu_milli), share(usage.memory_bytes, of.memory_bytes)];
        writer.write(&format!("{name}\t{cpu}\t{}\t{memory}\t{}\t\n", shares[0], shares[1]));
    }
    for name in available.keys() {
        writer.write(&format!("{name}\t<unknown>\t<unknown>\t<unknown>\t<unknown>\t\n"));
    }
    writer.flush()
}

pub async fn pod(cx: &Context, flags: PodFlags) -> Result<u8> {
    check_sort(&flags.sort_by)?;
    let name = name_of("pod", &flags.names)?;
    let is_selected = !flags.selector.is_empty() || !flags.field_selector.is_empty();
    if !name.is_empty() && is_selected {
        bail!("only one of NAME or selector can be provided");
    }
    let namespace = cx.namespace()?;
    let place = |api: &str| if flags.all_namespaces { format!("{api}/pods") } else { format!("{api}/namespaces/{namespace}/pods") };
    let query = Query::new().with("labelSelector", &flags.selector).with("fieldSelector", &flags.field_selector);
    let metrics = metrics(cx, &place(API), name, &query).await?;
    if metrics.is_empty() {
        let pods = cx.client()?.list(&place("/api/v1"), &query).await?;
        if list(&pods["items"]).next().is_some() {
            return Err(not_yet(&pods));
        }
        match flags.all_namespaces {
            true => cx.note("No resources found"),
            false => cx.note(&format!("No resources found in {namespace} namespace.")),
        }
        return Ok(0);
    }
    cx.print(&pod_table(metrics, &flags))?;
    Ok(0)
}

/// Why there are pods and no metrics.
fn not_yet(pods: &Value) -> anyhow::Error {
    for pod in list(&pods["items"]) {
        let created = pod["metadata"]["creationTimestamp"].as_str().and_then(Timestamp::parse);
        let age = created.map_or(0, |created| Timestamp::now().since(created).as_secs());
        if age > CREATION_SECONDS {
            return anyhow!("Metrics not available for pod {}/{}, age: {age}s", meta::namespace(pod), meta::name(pod));
        }
    }
    anyhow!("metrics not available yet")
}

fn pod_table(mut metrics: Vec<Value>, flags: &PodFlags) -> String {
    let mut writer = Tabwriter::for_tables();
    let heads = [(flags.all_namespaces, "NAMESPACE"), (flags.containers, "POD")];
    let before: Vec<&str> = heads.iter().filter(|(is_shown, _)| *is_shown).map(|(_, head)| *head).collect();
    if !flags.no_headers {
        writer.write(&format!("{}\tCPU(cores)\tMEMORY(bytes)\t\n", [&before[..], &["NAME"]].concat().join("\t")));
    }
    sort(&mut metrics, &flags.sort_by, Usage::of_pod, |pod| (meta::namespace(pod).to_owned(), meta::name(pod).to_owned()));
    let mut line = |names: &[&str], [cpu, memory]: [String; 2]| writer.write(&format!("{}\t{cpu}\t{memory}\t\n", names.join("\t")));
    for pod in &metrics {
        let namespace = flags.all_namespaces.then(|| meta::namespace(pod));
        let names: Vec<&str> = namespace.into_iter().chain([meta::name(pod)]).collect();
        if !flags.containers {
            line(&names, Usage::of_pod(pod).cells());
            continue;
        }
        let name = |container: &Value| container["name"].as_str().unwrap_or_default().to_owned();
        let mut containers: Vec<&Value> = list(&pod["containers"]).collect();
        let usage = |container: &&Value| Usage::read(&container["usage"]);
        sort(&mut containers, &flags.sort_by, usage, |container| (name(container), String::new()));
        for container in &containers {
            line(&[&names[..], &[&name(container)]].concat(), usage(container).cells());
        }
    }
    if flags.sum {
        let all = metrics.iter().map(Usage::of_pod);
        let sum = all.fold(Usage::default(), |sum, usage| Usage {
            cpu_milli: sum.cpu_milli + usage.cpu_milli,
            memory_bytes: sum.memory_bytes + usage.memory_bytes,
        });
        let blank = vec![""; before.len() + 1];
        line(&blank, ["________".into(), "________".into()]);
        line(&blank, sum.cells());
    }
    writer.flush()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn flags() -> PodFlags {
        let (names, selector, field_selector, sort_by) = (vec![], String::new(), String::new(), String::new());
        PodFlags { names, selector, field_selector, sort_by, containers: false, all_namespaces: false, no_headers: false, sum: false }
    }

    fn pods() -> Vec<Value> {
        let container = |name: &str, cpu: &str, memory: &str| json!({"name": name, "usage": {"cpu": cpu, "memory": memory}});
        vec![
            json!({"metadata": {"name": "web", "namespace": "shop"}, "containers": [
                container("b", "1500001n", "2047Ki"), container("a", "499999n", "1Ki")]}),
            json!({"metadata": {"name": "busy", "namespace": "other"}, "containers": [container("c", "200m", "1Gi")]}),
        ]
    }

    #[test]
    fn pods_are_listed_as_kubectl_lists_them() {
        assert_eq!(
            pod_table(pods(), &flags()),
            "NAME   CPU(cores)   MEMORY(bytes)   \nbusy   200m         1024Mi          \nweb    2m           2Mi             \n"
        );
        let wide = PodFlags { containers: true, all_namespaces: true, sort_by: "memory".into(), ..flags() };
        let expected = "NAMESPACE   POD    NAME   CPU(cores)   MEMORY(bytes)   \nother       busy   c      200m         1024Mi          \n\
                        shop        web    b      2m           1Mi             \nshop        web    a      1m           0Mi             \n";
        assert_eq!(pod_table(pods(), &wide), expected);
        let bare = PodFlags { no_headers: true, sum: true, sort_by: "cpu".into(), ..flags() };
        let expected =
            "busy   200m       1024Mi     \nweb    2m         2Mi        \n       ________   ________   \n       202m       1026Mi     \n";
        assert_eq!(pod_table(pods(), &bare), expected);
    }

    #[test]
    fn nodes_are_listed_with_their_shares() {
        let metrics = [json!({"metadata": {"name": "b"}, "usage": {"cpu": "500m", "memory": "1Gi"}})];
        let available = |name: &str| (name.to_owned(), Usage { cpu_milli: 4000, memory_bytes: 3 << 30 });
        let expected = "NAME   CPU(cores)   CPU(%)      MEMORY(bytes)   MEMORY(%)   \nb      500m         12%         1024Mi          33%         \n\
                        c      <unknown>    <unknown>   <unknown>       <unknown>   \n";
        assert_eq!(node_table(&metrics, [available("b"), available("c")].into(), "", false), expected);
    }
}
