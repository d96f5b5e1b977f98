//! `port-forward`: listens here, and carries each connection to a port of a pod over one connection to the API server, by SPDY, as every
//! Kubernetes speaks it. It ends when that connection does, or when a port cannot be reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use futures_lite::{AsyncReadExt, AsyncWriteExt, FutureExt};
use serde_json::Value;
use smol::Async;
use smol::channel::{self, Sender};
use smol::lock::Semaphore;

use super::{Context, logs};
use crate::api::meta;
use crate::api::streams::PORT_FORWARD;
use crate::base::task;
use crate::wire::spdy::{Session, Stream};

/// Connections at once: two streams each, of those that one session may have. A further client waits to be accepted.
const CONNECTIONS_MAX: usize = 240;
/// Read from a connection at once.
const READ_BYTES: usize = 16 << 10;
/// Of what the server says about a connection that failed.
const ERROR_BYTES_MAX: usize = 16 << 10;

pub const EXAMPLES: &str = "# Port 8080 here is port 80 of the pod
edgectl port-forward pod/web-1 8080:80
# Several ports of a Service's pod, the second from a port that is free here
edgectl port-forward service/web 8443:https :80
# For others too
edgectl port-forward --address 0.0.0.0 deployment/web 8080";

/// forward local ports to a pod
#[derive(FromArgs, ArgsInfo)]
pub struct Flags {
    #[argh(positional)]
    words: Vec<String>,
    /// addresses to listen on, separated by commas: localhost or IP addresses
    #[argh(option, default = "\"localhost\".to_owned()")]
    address: String,
    /// how long to wait until a pod of the workload runs
    #[argh(option, default = "\"1m0s\".to_owned()")]
    pod_running_timeout: String,
}

/// A port here, 0 for any that is free, and the pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    local: u16,
    remote: u16,
}

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    let Some((name, ports)) = flags.words.split_first().filter(|(_, ports)| !ports.is_empty()) else {
        bail!("TYPE/NAME and list of ports are required for port-forward\nSee 'edgectl port-forward -h' for help and examples");
    };
    let addresses = addresses(&flags.address)?;
    let (pod, object) = logs::pod_of(cx, name, &flags.pod_running_timeout).await?;
    let service = Some(&object).filter(|object| object["kind"] == "Service");
    let pairs: Vec<Pair> = ports.iter().map(|port| pair(port, &pod, service)).collect::<Result<_>>()?;
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if phase != "Running" {
        bail!("unable to forward port because pod is not running. Current status={phase}");
    }
    let path = format!("/api/v1/namespaces/{}/pods/{}/portforward", meta::namespace(&pod), meta::name(&pod));
    let session = Rc::new(cx.client()?.spdy(&path, PORT_FORWARD).await?);
    let (failed, failure) = channel::bounded(1);
    let forward = Rc::new(Forward { session: session.clone(), places: Semaphore::new(CONNECTIONS_MAX), failed });
    let mut last_request = 0;
    let mut listening = Vec::new();
    for pair in &pairs {
        match listen(cx, *pair, &addresses) {
            Ok(listeners) => {
                for (listener, pair) in listeners {
                    last_request += 1;
                    listening.push(task::spawn(accept(forward.clone(), listener, pair, last_request)));
                }
            }
            Err(error) => cx.note(&format!("{error:#}")),
        }
    }
    if listening.is_empty() {
        let pairs: Vec<String> = pairs.iter().map(|pair| format!("{{{} {}}}", pair.local, pair.remote)).collect();
        bail!("unable to listen on any of the requested ports: [{}]", pairs.join(" "));
    }
    let gone = async { while session.accept().await.is_some() {} };
    let told = async {
        if let Ok(error) = failure.recv().await {
            cx.note(&format!("{error:#}"));
        }
    };
    gone.or(told).await;
    bail!("lost connection to pod")
}

/// Where to listen; an address that may fail while its other half does not is `localhost`'s.
fn addresses(text: &str) -> Result<Vec<Vec<IpAddr>>> {
    let read = |word: &str| match word {
        "localhost" => Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]),
        word => Ok(vec![word.parse().map_err(|_| anyhow!("{word} is not a valid IP"))?]),
    };
    text.split(',').map(read).collect()
}

/// Reads `LOCAL:REMOTE`, `REMOTE` or `:REMOTE`; a port of a Service stands for that of its pods, and names for numbers.
fn pair(text: &str, pod: &Value, service: Option<&Value>) -> Result<Pair> {
    let (local, remote) = match text.split(':').collect::<Vec<_>>()[..] {
        [both] => (both, both),
        [local, remote] => (local, remote),
        _ => bail!("invalid port format '{text}'"),
    };
    let is_same = local == remote;
    let asked = match (remote.parse::<u16>(), service) {
        (Ok(0), _) => bail!("remote port must be > 0"),
        (Ok(number), _) => number,
        (Err(_), Some(service)) => {
            let name = meta::name(service);
            let named = list(&service["spec"]["ports"]).find(|port| port["name"] == remote);
            number(&named.with_context(|| format!("Service '{name}' does not have a named port '{remote}'"))?["port"])?
        }
        (Err(_), None) => container_port(pod, remote)?,
    };
    let local = match local {
        "" => 0,
        _ if is_same => asked,
        local => local.parse().map_err(|_| anyhow!("error parsing local port '{local}': it is no number from 0 to 65535"))?,
    };
    let remote = service.map_or(Ok(asked), |service| target_port(service, pod, asked))?;
    Ok(Pair { local, remote })
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn number(port: &Value) -> Result<u16> {
    port.as_u64().and_then(|port| port.try_into().ok()).context("a port of the server's is no port")
}

/// The pod's port behind a port of a Service.
fn target_port(service: &Value, pod: &Value, asked: u16) -> Result<u16> {
    if service["spec"]["clusterIP"] == "None" {
        return Ok(asked);
    }
    let found = list(&service["spec"]["ports"]).find(|port| port["port"] == asked);
    let found = found.with_context(|| format!("Service {} does not have a service port {asked}", meta::name(service)))?;
    if matches!(found["protocol"].as_str(), Some("UDP")) {
        bail!("UDP protocol is not supported for {asked}");
    }
    match &found["targetPort"] {
        Value::String(name) => container_port(pod, name),
        Value::Null => Ok(asked),
        target if target == 0 => Ok(asked),
        target => number(target),
    }
}

fn container_port(pod: &Value, name: &str) -> Result<u16> {
    let ports = list(&pod["spec"]["containers"]).flat_map(|container| list(&container["ports"]));
    let found = ports.into_iter().find(|port| port["name"] == name);
    number(&found.with_context(|| format!("Pod '{}' does not have a named port '{name}'", meta::name(pod)))?["containerPort"])
}

/// Listens for a port on each address; of a name's, on at least one.
fn listen(cx: &Context, mut pair: Pair, addresses: &[Vec<IpAddr>]) -> Result<Vec<(Async<TcpListener>, Pair)>> {
    let mut listeners = Vec::new();
    let mut errors = Vec::new();
    for group in addresses {
        let mut failed = Vec::new();
        let before = listeners.len();
        for address in group {
            match Async::<TcpListener>::bind(SocketAddr::new(*address, pair.local)) {
                Ok(listener) => {
                    // A port that the kernel chose is the same on the next address.
                    let bound = listener.get_ref().local_addr()?;
                    pair.local = bound.port();
                    cx.println(&format!("Forwarding from {bound} -> {}", pair.remote))?;
                    listeners.push((listener, pair));
                }
                Err(error) => {
                    failed.push(format!("unable to create listener: listen on {}: {error}", SocketAddr::new(*address, pair.local)))
                }
            }
        }
        if listeners.len() == before {
            errors.append(&mut failed);
        }
    }
    if listeners.is_empty() {
        bail!("Unable to listen on port {}: Listeners failed to create with the following errors: [{}]", pair.local, errors.join(" "));
    }
    errors.iter().for_each(|error| cx.note(error));
    Ok(listeners)
}

struct Forward {
    session: Rc<Session>,
    places: Semaphore,
    failed: Sender<anyhow::Error>,
}

async fn accept(forward: Rc<Forward>, listener: Async<TcpListener>, pair: Pair, listener_number: u32) {
    let mut connections = 0_u64;
    loop {
        forward.places.acquire().await.forget();
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                let _ = forward.failed.send(anyhow!("accept on port {}: {error}", pair.local)).await;
                return;
            }
        };
        // A reader of our output that hung up is no reason to stop.
        let _ = std::io::Write::write_all(&mut std::io::stdout().lock(), format!("Handling connection for {}\n", pair.local).as_bytes());
        connections += 1;
        let (forward, request) = (forward.clone(), format!("{listener_number}-{connections}"));
        task::spawn(async move {
            if let Err(error) = carry(&forward.session, Arc::new(stream), pair, &request).await {
                // Somebody else has told already why all of it ends.
                let _ = forward.failed.try_send(error.context(format!("an error occurred forwarding {} -> {}", pair.local, pair.remote)));
            }
            forward.places.add_permits(1);
        })
        .detach();
    }
}

/// Carries one connection to its end; an error is one of the pod's port, or of the session.
async fn carry(session: &Session, stream: Arc<Async<TcpStream>>, pair: Pair, request: &str) -> Result<()> {
    let port = pair.remote.to_string();
    let headers = |kind| [("streamType", kind), ("port", &*port), ("requestID", request)];
    let errors = session.open(&headers("error")).await.context("error creating error stream")?;
    errors.finish().await;
    let data = session.open(&headers("data")).await.context("error creating forwarding stream")?;
    let failed = async {
        let mut said = Vec::new();
        while let Ok(Some(content)) = errors.read().await {
            said.extend_from_slice(&content[..content.len().min(ERROR_BYTES_MAX.saturating_sub(said.len()))]);
        }
        if said.is_empty() { std::future::pending().await } else { Err(anyhow!("{}", String::from_utf8_lossy(&said))) }
    };
    let carried = async {
        // What breaks on this side, or for this connection alone, is its client's affair.
        let _ = futures_lite::future::try_zip(up(&stream, &data), down(&data, &stream)).await;
        Ok(())
    };
    failed.or(carried).await
}

async fn up(mut stream: &Async<TcpStream>, data: &Stream) -> Result<()> {
    let mut piece = vec![0; READ_BYTES];
    loop {
        match stream.read(&mut piece).await? {
            0 => break,
            length => data.write(&piece[..length]).await?,
        }
    }
    data.finish().await;
    Ok(())
}

async fn down(data: &Stream, mut stream: &Async<TcpStream>) -> Result<()> {
    while let Some(content) = data.read().await? {
        stream.write_all(&content).await?;
    }
    stream.get_ref().shutdown(Shutdown::Write)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(text: &str, of_service: bool, expected: Result<(u16, u16), &str>) {
        let pod =
            json!({"metadata": {"name": "web-1"}, "spec": {"containers": [{}, {"ports": [{"name": "http", "containerPort": 8080}]}]}});
        let service = json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "10.96.0.9", "ports": [
            {"name": "plain", "port": 80, "targetPort": "http"}, {"port": 443, "targetPort": 8443}, {"port": 53, "protocol": "UDP"},
            {"port": 90, "targetPort": "nosuch"}]}});
        let read = pair(text, &pod, Some(&service).filter(|_| of_service));
        assert_eq!(
            read.map(|pair| (pair.local, pair.remote)).map_err(|error| error.to_string()),
            expected.map_err(str::to_owned),
            "{text}"
        );
    }

    #[test]
    fn ports_are_read_as_kubectl_reads_them() {
        check("80", false, Ok((80, 80)));
        check("8080:80", false, Ok((8080, 80)));
        check(":80", false, Ok((0, 80)));
        check("0:80", false, Ok((0, 80)));
        check("http", false, Ok((8080, 8080)));
        check("9:http", false, Ok((9, 8080)));
        check("https", false, Err("Pod 'web-1' does not have a named port 'https'"));
        check("1:2:3", false, Err("invalid port format '1:2:3'"));
        check("80:0", false, Err("remote port must be > 0"));
        check("x:80", false, Err("error parsing local port 'x': it is no number from 0 to 65535"));
    }

    #[test]
    fn ports_of_a_service_stand_for_those_of_its_pods() {
        check("80", true, Ok((80, 8080)));
        check(":80", true, Ok((0, 8080)));
        check("plain", true, Ok((80, 8080)));
        check("1443:443", true, Ok((1443, 8443)));
        check("81", true, Err("Service web does not have a service port 81"));
        check("tls", true, Err("Service 'web' does not have a named port 'tls'"));
        check("90", true, Err("Pod 'web-1' does not have a named port 'nosuch'"));
        check("53", true, Err("UDP protocol is not supported for 53"));
    }

    #[test]
    fn addresses_are_localhost_or_numbers() {
        assert_eq!(addresses("localhost,0.0.0.0").unwrap().concat().len(), 3);
        assert_eq!(addresses("board").unwrap_err().to_string(), "board is not a valid IP");
    }
}
