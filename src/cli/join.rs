//! `edgectl join`: makes this board a node of a cluster. It knows the master by the hash of its authority, shows it a token, and gets a
//! certificate for a key that never leaves the board; all of it ends in the agent's kubeconfig. It may be repeated.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use argh::{ArgsInfo, FromArgs};
use rcgen::KeyPair;
use serde_json::json;

use super::service::{self, Init, Service};
use super::token::Token;
use super::up::preflight;
use super::{Context, init};
use crate::api::validation;
use crate::base::file;
use crate::base::place::Places;
use crate::client::{Client, Manner, Query, Target, certificate, kubeconfig, refusal};
use crate::wire::client::{Client as Wire, Endpoint};
use crate::wire::dial::Dialer;
use crate::wire::pin::Pin;
use crate::wire::resolve;
use crate::wire::tls::{self, Trust};

/// The API's port, if none is given.
const PORT: u16 = 6443;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
#[derive(FromArgs, ArgsInfo, Debug)]
/// make this board a node of a cluster
pub struct Flags {
    /// the master's address, HOST or HOST:PORT
    #[argh(positional)]
    master: String,
    /// a token of that cluster, from 'edgectl token create'
    #[argh(option)]
    token: String,
    /// the hash of that cluster's authority, sha256:HEX
    #[argh(option)]
    ca_hash: String,
    /// the node's name (the board's host name, if it is not given)
    #[argh(option)]
    name: Option<String>,
    /// folder below which etc/edgectl, var/lib/edgectl and run/edgectl lie
    #[argh(option, default = "PathBuf::from(\"/\")")]
    root: PathBuf,
    /// make no service: the agent is started otherwise
    #[argh(switch)]
    no_service: bool,
}

pub const EXAMPLES: &str = "# The whole line comes from the master's board: edgectl token create --print-join-command
edgectl join 192.168.1.10:6443 --token abcdef.0123456789abcdef --ca-hash sha256:9f86d0...";

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    let name = init::node_name(flags.name)?;
    if !flags.no_service {
        preflight::check("join")?;
    }
    let places = Places::below(&flags.root);
    let token = Token::parse(&flags.token)?;
    let board = Board { master: &flags.master, token: &token, authority: flags.ca_hash.parse()?, name: &name, places: &places };
    let joined = board.join(&Dialer::default()).await?;
    let how = match joined {
        Joined::Now => "is now",
        Joined::Before => "is already",
    };
    cx.println(&format!("This board {how} node {name} of the cluster at {}.", flags.master))?;
    let services = [Service { role: "agent", root: &flags.root, node: &name }];
    if flags.no_service {
        cx.println(&service::by_hand(&services))?;
    } else if let Some(todo) = service::start(&services, Init::of_machine())? {
        cx.println(&todo)?;
    } else {
        let target = kubeconfig::load(places.agent_kubeconfig().to_str())?.target(&kubeconfig::Overrides::default())?;
        let client = Client::new(&target, Manner { timeout: Some(REQUEST_TIMEOUT), ..Manner::default() })?;
        init::wait_for_node(&client, &name).await?;
        cx.println(&format!("Node {name} is Ready."))?;
    }
    Ok(0)
}

/// A board and the cluster that it is to join.
pub struct Board<'a> {
    /// HOST or HOST:PORT.
    pub master: &'a str,
    pub token: &'a Token,
    pub authority: Pin,
    pub name: &'a str,
    pub places: &'a Places,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    Now,
    /// It was a node of that cluster already.
    Before,
}

impl Board<'_> {
    /// Ends with the agent's kubeconfig in its place; `dialer` is the board's way to the master.
    pub async fn join(&self, dialer: &Dialer) -> Result<Joined> {
        ensure!(validation::is_subdomain(self.name), "{:?} is no name for a node: choose one with --name, like \"board-1\"", self.name);
        let (host, port) = self.address(dialer).await?;
        let server = if host.contains(':') { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") };
        if self.is_member(&server, dialer).await? {
            return Ok(Joined::Before);
        }
        let authority = self.authority(host, port, dialer).await?;
        // Kept until the end, so that whoever is interrupted comes again with the same key and is known by it.
        let key_path = self.places.config.join("agent.key");
        let key = pending_key(&key_path)?;
        let certificate = self.certificate(&server, &authority, &key, dialer).await?;
        self.write(&server, &authority, &certificate, &key.serialize_pem())?;
        file::remove(&key_path).with_context(|| format!("remove {}", key_path.display()))?;
        Ok(Joined::Now)
    }

    /// The master's address in numbers: the agent finds its own by it.
    async fn address(&self, dialer: &Dialer) -> Result<(String, u16)> {
        let master = self.master.trim_start_matches("https://").trim_end_matches('/');
        let (host, port) = match master.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, port.parse().with_context(|| format!("the port of the master's address {master:?}"))?)
            }
            _ => (master, PORT),
        };
        let addresses = resolve::resolve(host, dialer).await.context("find the master")?;
        Ok((addresses.first().context("the master has no address")?.to_string(), port))
    }

    /// Whether the agent's kubeconfig is there and good. One of another cluster or of another name is not overwritten.
    async fn is_member(&self, server: &str, dialer: &Dialer) -> Result<bool> {
        let path = self.places.agent_kubeconfig();
        if !path.exists() {
            return Ok(false);
        }
        let known = kubeconfig::load(path.to_str())?.target(&kubeconfig::Overrides::default())?;
        let away = format!("take {} away first, if it is to leave that", path.display());
        if Pin::of_pem(known.certificate_authority.as_deref().unwrap_or_default()).ok() != Some(self.authority) {
            bail!("this board belongs to another cluster already, that at {}: {away}", known.server);
        }
        let target = Target { server: server.to_owned(), ..known.clone() };
        let client = Client::through(&target, Manner { timeout: Some(REQUEST_TIMEOUT), ..Manner::default() }, dialer.clone())?;
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        // A certificate that the master does not take any more is replaced; a master that is away is told by the next step.
        let Ok(answer) = client.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", &Query::new(), &review).await else {
            return Ok(false);
        };
        let user = answer["status"]["userInfo"]["username"].as_str().unwrap_or_default();
        let name = user.strip_prefix(certificate::USER_PREFIX).unwrap_or(user);
        ensure!(name == self.name, "this board is node {name:?} of that cluster already: {away}");
        if known.server != server {
            let text = |pem: Option<Vec<u8>>| String::from_utf8(pem.unwrap_or_default()).context("a certificate is text");
            let [authority, certificate, key] = [known.certificate_authority, known.client_certificate, known.client_key].map(text);
            self.write(server, &authority?, &certificate?, &key?)?;
        }
        Ok(true)
    }

    /// The certificate of the authority that the hash names, PEM. Nothing is told to the master yet, nor believed.
    async fn authority(&self, host: String, port: u16, dialer: &Dialer) -> Result<String> {
        let tls = tls::client(Trust::Anyone, None, false)?;
        let wire = Wire::new(Endpoint { host, port, tls: Some(tls), server_name: None, dialer: dialer.clone() })?;
        let chain = wire.certificates().await.with_context(|| format!("the master at {} cannot be reached", self.master))?;
        self.authority.find(&chain).with_context(|| {
            format!(
                "who answers at {} has another authority than --ca-hash says: nothing was told to it; compare with the line of the master",
                self.master
            )
        })
    }

    async fn certificate(&self, server: &str, authority: &str, key: &KeyPair, dialer: &Dialer) -> Result<String> {
        let target = Target {
            server: server.to_owned(),
            certificate_authority: Some(authority.as_bytes().to_vec()),
            token: Some(self.token.text()),
            ..Target::default()
        };
        let client = Client::through(&target, Manner { timeout: Some(REQUEST_TIMEOUT), ..Manner::default() }, dialer.clone())?;
        certificate::request(&client, self.name, key).await.map_err(|error| match refusal(&error) {
            Some(refused) if refused.code == 401 => anyhow!(
                "the master does not accept the token: it is wrong, or has expired; \
                 'edgectl token create --print-join-command' on the master's board makes another one"
            ),
            _ => error.context("ask the master for a certificate"),
        })
    }

    fn write(&self, server: &str, authority: &str, certificate: &str, key: &str) -> Result<()> {
        let config = certificate::kubeconfig(server, authority.as_bytes(), self.name, certificate.as_bytes(), key.as_bytes())?;
        let path = self.places.agent_kubeconfig();
        file::replace(&path, config.as_bytes(), 0o600).with_context(|| format!("write {}", path.display()))
    }
}

/// The key of a request that has no certificate yet, of this time or the time before.
fn pending_key(path: &Path) -> Result<KeyPair> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    if !path.exists() {
        let key = KeyPair::generate()?;
        file::replace(path, key.serialize_pem().as_bytes(), 0o600).with_context(|| format!("write {}", path.display()))?;
    }
    let pem = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    KeyPair::from_pem(&pem).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_masters_address_has_a_port_of_its_own_or_the_usual_one() {
        let token = Token::random();
        let authority = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        let places = Places::below(Path::new("/none"));
        let address = |master: &str| {
            let board = Board { master, token: &token, authority, name: "a", places: &places };
            smol::block_on(board.address(&Dialer::default())).unwrap()
        };
        assert_eq!(address("10.0.0.1"), ("10.0.0.1".to_owned(), 6443));
        assert_eq!(address("https://10.0.0.1:7000/"), ("10.0.0.1".to_owned(), 7000));
        assert_eq!(address("[fd00::1]:7000"), ("fd00::1".to_owned(), 7000));
        assert_eq!(address("[fd00::1]"), ("fd00::1".to_owned(), 6443));
    }
}
