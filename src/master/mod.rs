//! The one leader of a cluster: the API server, the store, the controllers and the scheduler in one process.
//! It runs no container and touches no kernel state.

pub mod apiserver;
pub mod controllers;
pub mod nodes;
pub mod pki;
mod recorder;
pub mod scheduler;
mod settings;
pub mod store;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::rc::Rc;

use crate::base::place::Places;
use crate::base::{address, file, task};
use crate::wire::tls;
use anyhow::Context;

use nodes::Nodes;
use pki::Pki;
use settings::Settings;
use store::{Objects, Store};

pub const API_PORT: u16 = 6443;

/// What the master is started with.
pub struct Options {
    pub places: Places,
    /// Of the machine, and of the node on it.
    pub name: String,
    /// A socket that listens already, beside the one on [`API_PORT`]: the way in from another network namespace.
    pub listener: Option<TcpListener>,
}

/// Runs the master until the process ends.
///
/// # Errors
/// If its folders, certificates, store or port cannot be used.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let Options { places, name, listener } = options;
    for folder in [&places.config, &places.state] {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let settings = Settings::read(&places.config.join("master.yaml"))?;
    let pki = Rc::new(Pki::open(&places.pki()).context("open the certificate authority")?);
    let store = Store::open(Some(&places.store()))?;
    let objects = Objects::new(store, apiserver::admission::admit);
    let nodes = Nodes::default();
    let api = apiserver::Server::new(objects.clone(), nodes, pki.service_account_key().serialize_pem().as_bytes())?;

    let own =
        TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, API_PORT))).with_context(|| format!("listen on port {API_PORT}"))?;
    let addresses = own_addresses();
    let identity = pki.server(&server_names(&name), &addresses)?;
    let identity = tls::Identity { certificate: identity.certificate.as_bytes(), key: identity.key.as_bytes() };
    let tls = tls::server(identity, Some(pki.authority_pem().as_bytes())).context("set up TLS")?;
    let address = address::of_machine().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    write_kubeconfigs(&pki, &places, &name, address)?;

    for listener in [Some(own), listener].into_iter().flatten() {
        let serving = apiserver::run(api.clone(), listener, Some(tls.clone()));
        task::spawn(async move {
            if let Err(error) = serving.await {
                log::error!("serve the API: {error}");
            }
        })
        .detach();
    }
    apiserver::bootstrap::run(&objects, address, API_PORT).await.context("make the first objects")?;
    api.set_ready();
    log::info!("master={name} ready address={address}:{API_PORT}");
    task::spawn(scheduler::run(objects.clone())).detach();
    controllers::run(objects, pki, settings.node_monitor_grace_period).await;
    Ok(())
}

/// The names under which the API is known. <https://kubernetes.io/docs/setup/best-practices/certificates/>
fn server_names(name: &str) -> Vec<String> {
    let service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"];
    service.into_iter().chain([name]).map(str::to_owned).collect()
}

/// The addresses of this machine, of the API's Service, and loopback.
fn own_addresses() -> Vec<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let mut addresses: Vec<IpAddr> =
        interfaces.filter_map(|interface| Some(IpAddr::V4(interface.address?.as_sockaddr_in()?.ip()))).collect();
    addresses.extend(apiserver::bootstrap::SERVICE_ADDRESS.parse::<IpAddr>());
    addresses.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// For the administrator, and for the agent on this machine; made once, so that a restart writes nothing.
fn write_kubeconfigs(pki: &Pki, places: &Places, name: &str, address: IpAddr) -> anyhow::Result<()> {
    let node = format!("system:node:{name}");
    let configs: [(&Path, &str, &[&str]); 2] =
        [(&places.admin_kubeconfig(), "kubernetes-admin", &["system:masters"]), (&places.agent_kubeconfig(), &node, &[pki::NODES])];
    for (path, user, groups) in configs {
        if !path.exists() {
            let config = pki.kubeconfig(&format!("https://{}", SocketAddr::new(address, API_PORT)), user, groups)?;
            file::replace(path, config.as_bytes(), 0o600).with_context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(())
}
