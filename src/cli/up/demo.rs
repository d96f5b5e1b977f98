//! `edgectl up --demo`: a web server of three replicas on the fresh cluster, without any registry: its image is this very
//! program. What a person would type is typed here, too, and shown; only the image and the pages come by other ways.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use serde_json::Value;

use super::cluster::Cluster;
use super::{Progress, hello, node_network};
use crate::client::{Client, Query};
use crate::image::{Build, Config, Images, Reference};
use crate::wire::dial::Dialer;

const MANIFEST: &str = include_str!("hello.yaml");
const IMAGE: &str = "edgectl.local/hello:v1";
const SELECTOR: &str = "app=hello";
const REPLICAS: usize = 3;
const PORT: u16 = 8080;

/// In the image.
const PROGRAM: &str = "/edgectl";

const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs it on the cluster behind `client`, whose nodes get the image all. `kubeconfig` has its context.
pub async fn run(cluster: &Cluster, nodes: u8, client: &Client, kubeconfig: &str, progress: &mut Progress) -> Result<()> {
    progress.say("\nDemonstration")?;
    progress.begin(&format!("image {IMAGE} is made of this program"))?;
    for number in 1..=nodes {
        make_image(cluster, &cluster.node(number)).await?;
    }
    progress.done()?;

    progress.begin("deployment hello is applied")?;
    let edgectl = Edgectl { cluster, kubeconfig };
    edgectl.run(&["apply", "-f", "-"], Some(MANIFEST), Stdio::null())?;
    progress.done()?;

    progress.begin(&format!("{REPLICAS} pods of it are Ready"))?;
    let pods = wait_for_pods(client).await?;
    progress.done()?;

    progress.begin("each answers with a page")?;
    let mut greetings = Vec::new();
    for pod in &pods {
        let address = pod["status"]["podIP"].as_str().unwrap_or_default();
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        let dialer = Dialer::within(node_network(cluster, node)?.into());
        let page = fetch(&dialer, address).await.with_context(|| format!("fetch the page of pod {}", name(pod)))?;
        let greeting = page.lines().next().unwrap_or_default();
        ensure!(greeting.ends_with(name(pod)), "pod {} answers with another's page: {greeting}", name(pod));
        greetings.push(format!("      http://{address}:{PORT}/  {greeting}"));
    }
    progress.done()?;
    progress.say(&greetings.join("\n"))?;

    let words = ["get", "nodes,deployments,pods", "-o", "wide"];
    progress.say(&format!("\n$ edgectl {}", words.join(" ")))?;
    edgectl.run(&words, None, Stdio::inherit())
}

async fn make_image(cluster: &Cluster, node: &str) -> Result<()> {
    let images = Images::open(&cluster.places(node).state.join("images"))?;
    let program = std::env::current_exe().context("find this program")?;
    let config = Config { entrypoint: vec![PROGRAM.to_owned(), hello::ROLE.to_owned()], ..Config::default() };
    let build = Build { name: IMAGE.parse::<Reference>()?, files: vec![(program, PROGRAM.into())], config };
    images.build(build).await.with_context(|| format!("make image {IMAGE}"))?;
    Ok(())
}

/// This program as a person would call it.
struct Edgectl<'a> {
    cluster: &'a Cluster,
    kubeconfig: &'a str,
}

impl Edgectl<'_> {
    fn run(&self, words: &[&str], input: Option<&str>, output: Stdio) -> Result<()> {
        let what = || format!("run edgectl {}", words.join(" "));
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.args(["--kubeconfig", self.kubeconfig, "--context", &self.cluster.context()]).args(words);
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() }).stdout(output).stderr(Stdio::piped());
        let mut process = command.spawn().with_context(what)?;
        if let (Some(input), Some(mut pipe)) = (input, process.stdin.take()) {
            pipe.write_all(input.as_bytes()).with_context(what)?;
        }
        let output = process.wait_with_output().with_context(what)?;
        if !output.status.success() {
            bail!("{}: {}", what(), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

/// Waits until as many pods are Ready as are asked for; answers them. After the deadline, the error says where each stands.
async fn wait_for_pods(client: &Client) -> Result<Vec<Value>> {
    let query = Query::new().with("labelSelector", SELECTOR);
    let since = Instant::now();
    loop {
        let list = client.list("/api/v1/namespaces/default/pods", &query).await.context("list the pods")?;
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        let ready: Vec<Value> = pods.iter().filter(|pod| is_ready(pod)).cloned().collect();
        if ready.len() == REPLICAS && pods.len() == REPLICAS {
            return Ok(ready);
        }
        if since.elapsed() > DEADLINE {
            let stand: String = pods.iter().map(|pod| format!("\n  {} {}", name(pod), standing(pod))).collect();
            bail!("{} of {REPLICAS} pods are Ready after {} s:{stand}", ready.len(), DEADLINE.as_secs());
        }
        smol::Timer::after(POLL).await;
    }
}

fn name(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap_or_default()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Its phase, and why its container waits.
fn standing(pod: &Value) -> String {
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    let words = [&pod["status"]["phase"], &waiting["reason"], &waiting["message"]];
    words.iter().filter_map(|word| word.as_str()).collect::<Vec<_>>().join(": ")
}

async fn fetch(dialer: &Dialer, address: &str) -> Result<String> {
    let exchange = async {
        let mut connection = dialer.connect(address, PORT).await?;
        connection.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        let (head, page) = answer.split_once("\r\n\r\n").context("the answer has no end of head")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "the answer is {:?}", head.lines().next().unwrap_or_default());
        Ok(page.to_owned())
    };
    let expired = async {
        smol::Timer::after(PAGE_TIMEOUT).await;
        bail!("no answer within {} s", PAGE_TIMEOUT.as_secs())
    };
    futures_lite::future::or(exchange, expired).await
}
