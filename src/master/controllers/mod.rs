//! The loops that make the cluster what its objects say, one file or folder per controller. Each decides in a pure `plan` on the store's
//! own state and writes through `Objects`; they meet nowhere but in the store. None polls: an idle cluster costs no time and no write.

mod adoption;
mod bootstrap_token;
mod certificates;
mod deployment;
mod endpoints;
mod feed;
mod garbage;
mod load_balancer;
mod namespace;
mod namespace_defaults;
mod node;
mod node_cidr;
mod pace;
mod pod_garbage;
mod queue;
mod replicaset;
mod taint_eviction;

use std::fmt;
use std::hash::Hash;
use std::rc::Rc;
use std::time::Duration;

use smol::LocalExecutor;

use self::feed::Feed;
use self::queue::Queue;
use super::pki::Pki;
use super::recorder::Recorder;
use super::store::{Key, Objects};
use crate::api::schema::{self, Resource};
use crate::base::time::Timestamp;

/// Runs all controllers, for ever. They start with a full listing, so it may be stopped and started at any point. `pki` is the authority
/// that signs for nodes; every namespace has its certificate. A node may be silent for `node_grace`.
pub async fn run(objects: Objects, pki: Rc<Pki>, node_grace: Duration) {
    let executor = LocalExecutor::new();
    let shared = Shared::new(objects, Timestamp::now);
    for (group, plural, component) in
        [("apps", "replicasets", "replicaset-controller"), ("", "replicationcontrollers", "replication-controller")]
    {
        let recorder = shared.recorder(&executor, component);
        spawn(&executor, &replicaset::Controller::new(&shared, &recorder, shared.resource(group, "v1", plural)));
    }
    spawn(&executor, &deployment::Controller::new(&shared, &shared.recorder(&executor, "deployment-controller")));
    spawn(&executor, &garbage::Controller::new(&shared, &shared.recorder(&executor, "garbage-collector-controller")));
    spawn(&executor, &namespace::Controller::new(&shared));
    spawn(&executor, &namespace_defaults::Controller::new(&shared, pki.authority_pem().to_owned()));
    spawn(&executor, &pod_garbage::Controller::new(&shared));
    let recorder = shared.recorder(&executor, "node-controller");
    spawn(&executor, &node::Controller::new(&shared, &recorder, node_grace));
    spawn(&executor, &node_cidr::Controller::new(&shared, &recorder));
    spawn(&executor, &taint_eviction::Controller::new(&shared, &shared.recorder(&executor, "taint-eviction-controller")));
    spawn(&executor, &endpoints::Controller::new(&shared));
    spawn(&executor, &load_balancer::Controller::new(&shared, &shared.recorder(&executor, "service-controller")));
    spawn(&executor, &bootstrap_token::Controller::new(&shared));
    spawn(&executor, &certificates::Controller::new(&shared, pki));
    executor.run(shared.feed.clone().run()).await;
}

/// What every controller holds.
pub struct Shared {
    feed: Rc<Feed>,
    clock: fn() -> Timestamp,
}

impl Shared {
    fn new(objects: Objects, clock: fn() -> Timestamp) -> Rc<Self> {
        Rc::new(Self { feed: Feed::new(objects), clock })
    }

    fn objects(&self) -> &Objects {
        self.feed.objects()
    }

    fn now(&self) -> Timestamp {
        (self.clock)()
    }

    fn resource(&self, group: &str, version: &str, plural: &str) -> &'static Resource {
        schema::resource(group, version, plural).expect("the schema table has every built-in resource")
    }

    fn recorder(&self, executor: &LocalExecutor<'_>, component: &'static str) -> Rc<Recorder> {
        let recorder = Rc::new(Recorder::new(self.objects().clone(), component));
        let writer = recorder.clone();
        executor.spawn(async move { writer.run().await }).detach();
        recorder
    }
}

/// One controller: a queue of keys and what is done for each.
trait Loop: 'static {
    type Key: Clone + Eq + Hash + Ord + fmt::Display + 'static;
    /// For log lines.
    const NAME: &'static str;
    /// How many keys are worked on at a time.
    const WORKERS: usize;

    fn queue(&self) -> &Queue<Self::Key>;

    /// Brings one object a step nearer to what it should be; `Some` asks to be called again then, even if nothing happens.
    async fn sync(&self, key: &Self::Key) -> anyhow::Result<Option<Duration>>;
}

fn spawn<L: Loop>(executor: &LocalExecutor<'_>, controller: &Rc<L>) {
    for _ in 0..L::WORKERS {
        let controller = controller.clone();
        executor.spawn(async move { work(controller.as_ref()).await }).detach();
    }
}

async fn work<L: Loop>(controller: &L) {
    let queue = controller.queue();
    loop {
        let key = queue.next().await;
        step(controller, key).await;
    }
}

async fn step<L: Loop>(controller: &L, key: L::Key) {
    let queue = controller.queue();
    match controller.sync(&key).await {
        Ok(None) => drop(queue.done(key, true)),
        Ok(Some(delay)) => {
            queue.done(key.clone(), true);
            queue.add_after(key, delay);
        }
        Err(error) => {
            log::warn!("{}={key} will be retried: {error:#}", L::NAME);
            queue.done(key, false);
        }
    }
}

/// Names an object whose resource is known: `default/web`, or `node-1` for objects of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    namespace: String,
    name: String,
}

impl Name {
    fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn of(key: &Key) -> Self {
        Self::new(&key.namespace, &key.name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests;
