//! `edgectl init`: makes this board the master of a new cluster, and a node of it. The master itself makes what it needs when it starts;
//! here it is checked that it can, started, waited for, and told how others join. It may be repeated.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use super::Context;
use super::service::{self, Init, Service};
use super::token::{self, Token};
use super::up::preflight;
use crate::api::validation;
use crate::base::place::Places;
use crate::client::{Client, Manner, Patch, Query, Target, kubeconfig, refusal};

const API_PORT: u16 = 6443;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A board takes a while to make its keys; who starts the daemons by hand has as long.
const DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
const CONFLICTS_MAX: usize = 10;
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);

/// Labels of the master's node, by their keys; the last is its taint, too. One taint, not two: whoever takes it away gets what he wants.
const ROLES: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

#[derive(FromArgs, ArgsInfo, Debug)]
/// make this board the master of a new cluster
pub struct Flags {
    /// the node's name (the board's host name, if it is not given)
    #[argh(option)]
    name: Option<String>,
    /// folder below which etc/edgectl, var/lib/edgectl and run/edgectl lie
    #[argh(option, default = "PathBuf::from(\"/\")")]
    root: PathBuf,
    /// make no service: master and agent are started otherwise
    #[argh(switch)]
    no_service: bool,
}

pub const EXAMPLES: &str = "# On the first board; it prints what to type on the others
edgectl init";

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    let name = node_name(flags.name)?;
    preflight::check("init")?;
    let places = Places::below(&flags.root);
    if connect(&places).await.is_err() {
        free_port()?;
    }
    let services = ["master", "agent"].map(|role| Service { role, root: &flags.root, node: &name });
    match flags.no_service {
        true => cx.println(&service::by_hand(&services))?,
        false => service::start(&services, Init::of_machine())?.map_or(Ok(()), |todo| cx.println(&todo))?,
    }
    let (target, client) = wait("the API does not answer", || connect(&places)).await?;
    wait_for_node(&client, &name).await?;
    mark(&client, &name).await?;
    let token = Token::random();
    token.create(&client, TOKEN_TTL, "edgectl init").await?;
    cx.println(&format!(
        "This board is the master of the cluster, and node {name} of it. Its administrator's kubeconfig:\n  export KUBECONFIG={}\n\n\
         Other boards join by this line, for 24 hours:\n  {}",
        places.admin_kubeconfig().display(),
        token::join_command(&target, &client, &token).await?
    ))?;
    Ok(0)
}

/// The name that was given, or the board's own.
pub fn node_name(given: Option<String>) -> Result<String> {
    let name = match given {
        Some(name) => name,
        None => nix::unistd::gethostname().context("read the host name")?.to_string_lossy().to_lowercase(),
    };
    ensure!(validation::is_subdomain(&name), "{name:?} is no name for a node: choose one with --name, like \"board-1\"");
    Ok(name)
}

fn free_port() -> Result<()> {
    match TcpListener::bind((Ipv4Addr::UNSPECIFIED, API_PORT)) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            bail!("port {API_PORT} is taken by another program, and the master needs it: 'ss -ltnp sport = :{API_PORT}' names it")
        }
        other => other.map(drop).with_context(|| format!("listen on port {API_PORT}")),
    }
}

/// The API of this board's own master, if it is ready.
async fn connect(places: &Places) -> Result<(Target, Client)> {
    let target = kubeconfig::load(places.admin_kubeconfig().to_str())?.target(&kubeconfig::Overrides::default())?;
    let client = Client::new(&target, Manner { timeout: Some(REQUEST_TIMEOUT), ..Manner::default() })?;
    client.raw(hyper::Method::GET, "/readyz", "*/*", None).await?;
    Ok((target, client))
}

/// Waits until the node's agent has said that it is ready.
pub async fn wait_for_node(client: &Client, name: &str) -> Result<()> {
    let path = format!("/api/v1/nodes/{name}");
    let ask = async || -> Result<()> { check_ready(&client.get(&path).await?) };
    wait(&format!("node {name} does not become Ready"), ask).await
}

/// Whether a Node says that it is ready.
///
/// # Errors
/// What it says instead.
pub fn check_ready(node: &Value) -> Result<()> {
    let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ready: Option<&Value> = conditions.iter().find(|condition| condition["type"] == "Ready");
    let ready = ready.context("it has not said that it is ready")?;
    ensure!(ready["status"] == "True", "{}", ready["message"].as_str().unwrap_or("it says no reason"));
    Ok(())
}

async fn wait<T>(what: &str, ask: impl AsyncFn() -> Result<T>) -> Result<T> {
    let since = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if since.elapsed() > DEADLINE => return Err(error.context(format!("{what} within {} s", DEADLINE.as_secs()))),
            Err(_) => smol::Timer::after(POLL).await,
        };
    }
}

/// Labels and taints the master's node, once: a taint that was taken away since stays away.
async fn mark(client: &Client, name: &str) -> Result<()> {
    let path = format!("/api/v1/nodes/{name}");
    let [control_plane, master] = ROLES;
    for _ in 0..CONFLICTS_MAX {
        let node = client.get(&path).await?;
        if ROLES.iter().all(|role| node["metadata"]["labels"].get(role).is_some()) {
            return Ok(());
        }
        // Taints are one list, replaced whole: the version makes sure that nobody else's is lost.
        let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        if !taints.iter().any(|taint| taint["key"] == master) {
            taints.push(json!({"key": master, "effect": "NoSchedule"}));
        }
        let patch = json!({
            "metadata": {"labels": {control_plane: "", master: ""}, "resourceVersion": node["metadata"]["resourceVersion"]},
            "spec": {"taints": taints},
        });
        match client.patch(&path, &Query::new(), Patch::Merge, &patch).await {
            Err(error) if refusal(&error).is_some_and(|refused| refused.reason == "Conflict") => (),
            other => return other.map(drop).context("mark the master's node"),
        }
    }
    bail!("mark the master's node: too many others are changing it; try again")
}
