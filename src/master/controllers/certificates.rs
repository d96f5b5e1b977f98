//! Gives nodes their certificates: requests for `kubernetes.io/kube-apiserver-client-kubelet` are approved if a bootstrapper or that very
//! node asks, and signed; all requests are removed after a while (upstream `pkg/controller/certificates`). It signs for nobody else.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::feed::{Index, Notice};
use super::queue::Queue;
use super::{Loop, Name, Shared};
use crate::api::meta;
use crate::api::schema::Resource;
use crate::base::time::Timestamp;
use crate::master::pki::{NodeRequest, Pki};
use crate::master::store::objects::{DeleteOptions, Part};
use crate::master::store::{Key, Object};

const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const BOOTSTRAPPERS: &str = "system:bootstrappers";
const NODES: &str = "system:nodes";
const USAGES: [&str; 3] = ["digital signature", "key encipherment", "client auth"];

/// The longest life of a node's certificate, and the shortest that may be asked for (CertificateSigningRequestSpec.expirationSeconds).
const LIFE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
const LIFE_MIN: Duration = Duration::from_secs(600);
/// How long a request is kept that was decided, and one that nobody decides.
const KEPT_DECIDED: Duration = Duration::from_secs(3600);
const KEPT_PENDING: Duration = Duration::from_secs(24 * 3600);
/// How long a name is held for the board that got a certificate and has not registered yet: two fresh boards of one image have one name.
const NAME_HELD: Duration = Duration::from_secs(40);

pub struct Controller {
    shared: Rc<Shared>,
    pki: Rc<Pki>,
    requests: &'static Resource,
    nodes: &'static Resource,
    /// By node: the key that was signed last, and when. One entry a node; forgotten with the Node. A process begins with what the one
    /// before it has signed, as far as the requests are still kept.
    given: RefCell<HashMap<String, (Vec<u8>, Timestamp)>>,
    queue: Queue<Name>,
}

/// What is to be done about a request.
#[derive(Debug)]
enum Step {
    Sign(Box<NodeRequest>),
    Deny(String),
    Fail(String),
    /// Others decide, or it is decided.
    Leave,
}

impl Controller {
    pub fn new(shared: &Rc<Shared>, pki: Rc<Pki>) -> Rc<Self> {
        let requests = shared.resource("certificates.k8s.io", "v1", "certificatesigningrequests");
        let controller = Rc::new(Self {
            pki,
            given: RefCell::new(given(&shared.objects().list(requests, None).0)),
            requests,
            nodes: shared.resource("", "v1", "nodes"),
            shared: shared.clone(),
            queue: Queue::new(),
        });
        let listener = controller.clone();
        shared.feed.listen(move |notice, _: &Index| listener.notice(notice));
        controller
    }

    fn notice(&self, notice: &Notice) {
        let key = &notice.object.key;
        if notice.is(self.requests) && !notice.is_deleted() {
            self.queue.add(Name::of(key));
        } else if notice.is(self.nodes) && notice.is_deleted() {
            self.given.borrow_mut().remove(&key.name);
        }
    }

    /// Why a board that asks with a bootstrap token may not have this name, if it may not.
    fn taken(&self, request: &NodeRequest) -> Option<String> {
        let name = &request.name;
        let given = self.given.borrow();
        let held = given.get(name);
        if held.is_some_and(|(key, _)| *key == request.public_key()) {
            return None;
        }
        let node = self.shared.objects().store().get(&Key::new(self.nodes, "", name));
        let why = if node.is_some_and(|node| is_alive(&node.value())) {
            "is taken by a node that is alive and has another key"
        } else if held.is_some_and(|(_, since)| self.shared.now().since(*since) < NAME_HELD) {
            "has just been given to another board"
        } else {
            return None;
        };
        Some(format!(
            "the name {name:?} {why}: choose another one with --name, or delete node {name:?} first if this board takes its place"
        ))
    }

    fn plan(&self, request: &Value) -> Step {
        let spec = &request["spec"];
        let has = |kind: &str| conditions(request).iter().any(|condition| condition["type"] == kind);
        if spec["signerName"] != SIGNER || is_signed(request) || has("Denied") || has("Failed") {
            return Step::Leave;
        }
        let approved = has("Approved");
        let read = match read(spec) {
            Ok(read) => read,
            Err(why) if approved => return Step::Fail(format!("{why:#}")),
            Err(_) => return Step::Leave,
        };
        let is_in = |group: &str| spec["groups"].as_array().is_some_and(|groups| groups.iter().any(|each| each == group));
        let is_itself = spec["username"] == format!("system:node:{}", read.name) && is_in(NODES);
        if approved || is_itself {
            return Step::Sign(Box::new(read));
        }
        if !is_in(BOOTSTRAPPERS) {
            return Step::Leave;
        }
        match self.taken(&read) {
            Some(why) => Step::Deny(why),
            None => Step::Sign(Box::new(read)),
        }
    }

    async fn decide(&self, object: &Object) -> anyhow::Result<()> {
        let request = object.value();
        let (kind, reason, message, certificate) = match self.plan(&request) {
            Step::Leave => return Ok(()),
            Step::Deny(why) => ("Denied", "NodeNameTaken", why, None),
            Step::Fail(why) => ("Failed", "SignerValidationFailure", why, None),
            Step::Sign(read) => {
                let (node, key) = (read.name.clone(), read.public_key());
                let pem = self.pki.sign_node(*read, life(&request["spec"]))?;
                self.given.borrow_mut().insert(node, (key, self.shared.now()));
                (
                    "Approved",
                    "AutoApproved",
                    "a node's own certificate, asked for by a bootstrapper or the node itself".to_owned(),
                    Some(pem),
                )
            }
        };
        let now = self.shared.now().to_string();
        let written = self.shared.objects().update(self.requests, "", &object.key.name, Part::Status, false, |live| {
            let mut desired = live.clone();
            meta::set(&mut desired, "uid", object.uid.as_str());
            let mut all = conditions(live).to_vec();
            if !all.iter().any(|condition| condition["type"] == kind) {
                all.push(json!({
                    "type": kind, "status": "True", "reason": reason, "message": message, "lastUpdateTime": now, "lastTransitionTime": now,
                }));
            }
            desired["status"]["conditions"] = all.into();
            if let Some(pem) = &certificate {
                desired["status"]["certificate"] = STANDARD.encode(pem).into();
            }
            Ok(desired)
        });
        match written.await {
            Ok(_) => log::info!("certificaterequest={} {kind}: {message}", object.key.name),
            Err(status) if status.is_not_found() => (),
            Err(status) => return Err(status.into()),
        }
        Ok(())
    }
}

impl Loop for Controller {
    type Key = Name;
    const NAME: &'static str = "certificates";
    // One at a time: of two boards that ask for one name, the second has to see the first.
    const WORKERS: usize = 1;

    fn queue(&self) -> &Queue<Name> {
        &self.queue
    }

    async fn sync(&self, name: &Name) -> anyhow::Result<Option<Duration>> {
        let objects = self.shared.objects();
        let Some(object) = objects.store().get(&Key::new(self.requests, "", &name.name)) else { return Ok(None) };
        let request = object.value();
        let kept = if conditions(&request).is_empty() { KEPT_PENDING } else { KEPT_DECIDED };
        let now = self.shared.now();
        let age = now.since(meta::timestamp(&request, "creationTimestamp").unwrap_or(now));
        if age < kept {
            self.decide(&object).await?;
            return Ok(Some(kept - age));
        }
        let options = DeleteOptions { uid: Some(object.uid.clone()), ..DeleteOptions::default() };
        match objects.delete(self.requests, "", &name.name, &options).await {
            Err(status) if !status.is_not_found() && !status.is_conflict() => Err(status.into()),
            _ => Ok(None),
        }
    }
}

fn conditions(request: &Value) -> &[Value] {
    request["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice)
}

fn is_signed(request: &Value) -> bool {
    request["status"]["certificate"].as_str().is_some_and(|certificate| !certificate.is_empty())
}

/// Which key each node was given last, by the requests that were signed.
fn given(requests: &[Arc<Object>]) -> HashMap<String, (Vec<u8>, Timestamp)> {
    let mut given: HashMap<String, (Vec<u8>, Timestamp)> = HashMap::new();
    for request in requests.iter().map(|request| request.value()) {
        let approved = conditions(&request).iter().find(|condition| condition["type"] == "Approved");
        let since = approved.and_then(|condition| condition["lastUpdateTime"].as_str()).and_then(Timestamp::parse);
        let (Some(since), Ok(read)) = (since, read(&request["spec"])) else { continue };
        let is_later = given.get(&read.name).is_none_or(|(_, known)| *known <= since);
        if request["spec"]["signerName"] == SIGNER && is_signed(&request) && is_later {
            given.insert(read.name.clone(), (read.public_key(), since));
        }
    }
    given
}

/// A node that does not speak is Unknown after its grace period, the node controller sees to it.
fn is_alive(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    !conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "Unknown")
}

/// The request if it is one for a node's certificate and nothing more.
fn read(spec: &Value) -> anyhow::Result<NodeRequest> {
    let usages: Vec<&str> = spec["usages"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    anyhow::ensure!(
        usages.contains(&"client auth") && usages.iter().all(|usage| USAGES.contains(usage)),
        "the usages of a node's certificate are {}",
        USAGES.join(", ")
    );
    let pem = STANDARD.decode(spec["request"].as_str().unwrap_or_default())?;
    NodeRequest::read(std::str::from_utf8(&pem)?)
}

fn life(spec: &Value) -> Duration {
    spec["expirationSeconds"].as_u64().map_or(LIFE_MAX, |seconds| Duration::from_secs(seconds).clamp(LIFE_MIN, LIFE_MAX))
}
