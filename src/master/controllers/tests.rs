//! Controllers on the real store in memory, driven key by key so that any order of events can be played, with a node that obeys and a
//! clock that is set.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use serde_json::{Value, json};

use super::*;
use crate::api::meta;
use crate::api::status::Status;
use crate::api::workloads::Pod;
use crate::master::store::objects::{DeleteOptions, Part, Propagation};
use crate::master::store::{Object, Store};

thread_local! {
    static NOW: Cell<Timestamp> = const { Cell::new(Timestamp(1_800_000_000_000_000)) };
}

fn now() -> Timestamp {
    NOW.get()
}

fn pass(time: Duration) {
    NOW.set(NOW.get().plus(time));
}

/// What the API server does to objects, as far as it matters here: defaults, and the finalizer of namespaces.
fn admit(_: &Objects, resource: &'static Resource, value: &mut Value, live: Option<&Value>) -> Result<(), Status> {
    crate::api::defaults::apply(resource.schema(), value);
    if resource.plural == "namespaces" && live.is_none() {
        value["spec"]["finalizers"] = json!(["kubernetes"]);
        value["status"]["phase"] = "Active".into();
    }
    Ok(())
}

/// An authority of this test's own.
fn pki() -> Rc<Pki> {
    let folder = std::env::temp_dir().join(format!("controllers-pki-{}", crate::base::id::uid()));
    let pki = Pki::open(&folder).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    Rc::new(pki)
}

/// A small generator of numbers, so that a failing order can be played again from its seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

/// All controllers of one life of the process.
struct World {
    shared: Rc<Shared>,
    recorder: Rc<Recorder>,
    sets: Rc<replicaset::Controller>,
    controllers: Rc<replicaset::Controller>,
    deployments: Rc<deployment::Controller>,
    garbage: Rc<garbage::Controller>,
    namespaces: Rc<namespace::Controller>,
    defaults: Rc<namespace_defaults::Controller>,
    pod_garbage: Rc<pod_garbage::Controller>,
    nodes: Rc<node::Controller>,
    node_cidrs: Rc<node_cidr::Controller>,
    evictions: Rc<taint_eviction::Controller>,
    endpoints: Rc<endpoints::Controller>,
    balancers: Rc<load_balancer::Controller>,
    tokens: Rc<bootstrap_token::Controller>,
    certificates: Rc<certificates::Controller>,
}

impl World {
    fn new() -> Self {
        Self::over(Objects::new(Store::open(None).unwrap(), admit))
    }

    fn over(objects: Objects) -> Self {
        let shared = Shared::new(objects.clone(), now);
        let recorder = Rc::new(Recorder::new(objects, "test"));
        Self {
            sets: replicaset::Controller::new(&shared, &recorder, shared.resource("apps", "v1", "replicasets")),
            controllers: replicaset::Controller::new(&shared, &recorder, shared.resource("", "v1", "replicationcontrollers")),
            deployments: deployment::Controller::new(&shared, &recorder),
            garbage: garbage::Controller::new(&shared, &recorder),
            namespaces: namespace::Controller::new(&shared),
            defaults: namespace_defaults::Controller::new(&shared, "the CA".to_owned()),
            pod_garbage: pod_garbage::Controller::new(&shared),
            nodes: node::Controller::new(&shared, &recorder, Duration::from_secs(40)),
            node_cidrs: node_cidr::Controller::new(&shared, &recorder),
            evictions: taint_eviction::Controller::new(&shared, &recorder),
            endpoints: endpoints::Controller::new(&shared),
            balancers: load_balancer::Controller::new(&shared, &recorder),
            tokens: bootstrap_token::Controller::new(&shared),
            certificates: certificates::Controller::new(&shared, pki()),
            shared,
            recorder,
        }
    }

    fn objects(&self) -> &Objects {
        self.shared.objects()
    }

    /// The process ends and starts anew.
    fn restarted(self) -> Self {
        Self::over(self.objects().clone())
    }

    fn resource(&self, plural: &str) -> &'static Resource {
        schema::resources().find(|resource| resource.plural == plural && resource.is_stored()).unwrap().stored_as()
    }

    async fn create(&self, plural: &str, value: Value) -> Arc<Object> {
        let resource = self.resource(plural);
        let namespace = if resource.namespaced { meta::namespace(&value).to_owned() } else { String::new() };
        let namespace = if resource.namespaced && namespace.is_empty() { "default".to_owned() } else { namespace };
        self.objects().create(resource, &namespace, value, false).await.unwrap()
    }

    async fn change(&self, plural: &str, name: &str, change: impl Fn(&mut Value)) {
        let updated = self.objects().update(self.resource(plural), "default", name, Part::Subresource, false, |live| {
            let mut value = live.clone();
            change(&mut value);
            if value["spec"] != live["spec"] && meta::generation(live) > 0 {
                meta::set(&mut value, "generation", meta::generation(live) + 1);
            }
            Ok(value)
        });
        updated.await.unwrap();
    }

    /// As a user's PUT or PATCH does it.
    async fn edit(&self, plural: &str, name: &str, change: impl Fn(&mut Value)) {
        let updated = self.objects().update(self.resource(plural), "default", name, Part::Whole, false, |live| {
            let mut value = live.clone();
            change(&mut value);
            Ok(value)
        });
        updated.await.unwrap();
    }

    async fn delete(&self, plural: &str, namespace: &str, name: &str, propagation: Propagation) {
        let options = DeleteOptions { propagation, ..DeleteOptions::default() };
        self.objects().delete(self.resource(plural), namespace, name, &options).await.unwrap();
    }

    fn list(&self, plural: &str) -> Vec<Value> {
        self.objects().list(self.resource(plural), None).0.iter().map(|object| object.value()).collect()
    }

    fn names(&self, plural: &str) -> Vec<String> {
        self.list(plural).iter().map(|value| meta::name(value).to_owned()).collect()
    }

    fn get(&self, plural: &str, name: &str) -> Value {
        self.list(plural).into_iter().find(|value| meta::name(value) == name).unwrap_or_else(|| panic!("no {plural} {name}"))
    }

    /// Does all work there is, of all controllers, until nothing is left but what waits for time to pass.
    async fn settle(&self) {
        for _ in 0..1000 {
            self.shared.feed.catch_up();
            let mut worked = drain(&*self.deployments).await;
            worked |= drain(&*self.sets).await;
            worked |= drain(&*self.controllers).await;
            worked |= drain(&*self.garbage).await;
            worked |= drain(&*self.namespaces).await;
            worked |= drain(&*self.defaults).await;
            worked |= drain(&*self.pod_garbage).await;
            worked |= drain(&*self.nodes).await;
            worked |= drain(&*self.node_cidrs).await;
            worked |= drain(&*self.evictions).await;
            worked |= drain(&*self.endpoints).await;
            worked |= drain(&*self.balancers).await;
            worked |= drain(&*self.tokens).await;
            worked |= drain(&*self.certificates).await;
            if !worked {
                self.recorder.flush().await;
                return;
            }
        }
        panic!("the controllers never come to rest");
    }

    /// One key of one controller, chosen at random.
    async fn step(&self, random: &mut Random) {
        self.shared.feed.catch_up();
        match random.below(3) {
            0 => drop(one(&*self.deployments).await),
            1 => drop(one(&*self.sets).await),
            _ => drop(one(&*self.garbage).await),
        }
    }

    fn pods(&self) -> Vec<(String, Pod)> {
        let (pods, _) = self.objects().list(self.resource("pods"), None);
        pods.iter().map(|pod| (pod.key.name.clone(), pod.view().unwrap())).collect()
    }

    /// The node's part: a pod that is to go is gone, any other one runs and is ready.
    async fn obey(&self, name: &str) {
        let (_, pod) = self.pods().into_iter().find(|(each, _)| each == name).unwrap();
        if pod.metadata.is_deleting() {
            let options = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
            self.objects().delete(self.resource("pods"), "default", name, &options).await.unwrap();
        } else if !pod.is_ready() {
            self.change("pods", name, |pod| {
                pod["spec"]["nodeName"] = "node-1".into();
                pod["status"]["phase"] = "Running".into();
                let since = now().to_string();
                pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True", "lastTransitionTime": since}]);
            })
            .await;
        }
    }

    async fn obey_all(&self) {
        for (name, _) in self.pods() {
            self.obey(&name).await;
        }
    }

    fn events(&self, reason: &str) -> Vec<String> {
        let mut events = self.list("events");
        events.retain(|event| event["reason"] == reason);
        events.iter().map(|event| event["message"].as_str().unwrap().to_owned()).collect()
    }
}

async fn drain<L: Loop>(controller: &L) -> bool {
    let mut worked = false;
    while one(controller).await {
        worked = true;
    }
    worked
}

async fn one<L: Loop>(controller: &L) -> bool {
    match controller.queue().try_next() {
        Some(key) => {
            step(controller, key).await;
            true
        }
        None => false,
    }
}

/// A future that is given up after it has waited so many times: the process is killed there.
struct Killed<F> {
    future: Pin<Box<F>>,
    waits: usize,
}

impl<F: Future> Future for Killed<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        match self.future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if self.waits == 0 => Poll::Ready(None),
            Poll::Pending => {
                self.waits -= 1;
                Poll::Pending
            }
        }
    }
}

fn deployment(replicas: i64, image: &str, strategy: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "strategy": strategy,
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
        },
    })
}

fn replica_set(replicas: i64) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        },
    })
}

fn free_pod(name: &str, app: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": app}}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

#[test]
fn a_deployment_comes_up_and_says_so() {
    smol::block_on(async {
        let world = World::new();
        world.create("deployments", deployment(3, "v1", json!({}))).await;
        world.settle().await;
        assert_eq!(world.pods().len(), 3);
        world.obey_all().await;
        world.settle().await;
        let deployment = world.get("deployments", "web");
        let status = &deployment["status"];
        for field in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
            assert_eq!(status[field], 3, "{field}");
        }
        assert_eq!(status["observedGeneration"], deployment["metadata"]["generation"]);
        assert_eq!(meta::annotation(&deployment, "deployment.kubernetes.io/revision"), Some("1"));
        let reasons: Vec<_> = status["conditions"].as_array().unwrap().iter().map(|each| each["reason"].as_str().unwrap()).collect();
        assert_eq!(reasons, ["MinimumReplicasAvailable", "NewReplicaSetAvailable"]);
        let set = &world.names("replicasets")[0];
        assert_eq!(world.events("ScalingReplicaSet"), [format!("Scaled up replica set {set} from 0 to 3")]);
        let mut created = world.events("SuccessfulCreate");
        created.sort();
        assert_eq!(created, world.names("pods").iter().map(|pod| format!("Created pod: {pod}")).collect::<Vec<_>>());
        let revision = world.objects().store().revision();
        world.settle().await;
        let world = world.restarted();
        world.settle().await;
        let config_written = world.list("configmaps").len() + world.list("serviceaccounts").len();
        assert_eq!((world.objects().store().revision(), config_written), (revision, 0), "at rest nothing is written, also after a restart");
    });
}

#[test]
fn rolling_updates_keep_to_their_fence_posts_with_real_pods() {
    for seed in 1..25_u64 {
        let mut random = Random(seed * 0x9e37_79b9);
        let desired = 1 + random.below(6) as i64;
        let (surge, unavailable) = (random.below(4) as i64, random.below(3) as i64);
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}});
        smol::block_on(async {
            let mut world = World::new();
            world.create("deployments", deployment(desired, "v1", strategy)).await;
            world.settle().await;
            world.obey_all().await;
            world.settle().await;
            world
                .edit("deployments", "web", |deployment| deployment["spec"]["template"]["spec"]["containers"][0]["image"] = "v2".into())
                .await;
            let mut done = false;
            for step in 0..5000 {
                match random.below(8) {
                    0 => {
                        let pods = world.pods();
                        if !pods.is_empty() {
                            world.obey(&pods[random.below(pods.len())].0).await;
                        }
                    }
                    1 if random.below(10) == 0 => world = world.restarted(),
                    _ => world.step(&mut random).await,
                }
                let pods = world.pods();
                let active = pods.iter().filter(|(_, pod)| pod.is_active()).count() as i64;
                let ready = pods.iter().filter(|(_, pod)| pod.is_active() && pod.is_ready()).count() as i64;
                let told = format!("seed {seed} step {step}: {desired} replicas, surge {surge}, unavailable {unavailable}");
                assert!(ready >= desired - unavailable, "{told}: only {ready} ready");
                assert!(active <= desired + surge, "{told}: {active} pods");
                let status = world.get("deployments", "web")["status"].clone();
                done = status["updatedReplicas"] == desired && status["availableReplicas"] == desired && status["replicas"] == desired;
                if done && step % 50 == 0 {
                    break;
                }
            }
            assert!(done, "seed {seed}: the rollout does not end: {}", world.get("deployments", "web")["status"]);
        });
    }
}

#[test]
fn a_process_killed_at_any_point_leaves_exactly_the_replicas_asked_for() {
    for seed in 1..40_u64 {
        let mut random = Random(seed * 0x51_7cc1);
        smol::block_on(async {
            let mut world = World::new();
            world.create("deployments", deployment(7, "v1", json!({}))).await;
            for life in 0..6 {
                let replicas = 1 + random.below(9) as i64;
                if life > 0 {
                    world.edit("deployments", "web", |deployment| deployment["spec"]["replicas"] = replicas.into()).await;
                }
                let lived = Killed { future: Box::pin(world.settle()), waits: random.below(30) }.await;
                if lived.is_none() {
                    // What was on its way to the disk when the process died has arrived or not; here it has.
                    world.create("configmaps", json!({"metadata": {"generateName": "barrier-"}})).await;
                    world = world.restarted();
                }
                if random.below(2) == 0 {
                    world.obey_all().await;
                }
            }
            world.settle().await;
            world.obey_all().await;
            world.settle().await;
            world.obey_all().await;
            let asked = world.get("deployments", "web")["spec"]["replicas"].as_i64().unwrap() as usize;
            assert_eq!(world.pods().len(), asked, "seed {seed}");
            assert_eq!(world.names("replicasets").len(), 1, "seed {seed}");
            let made = world.events("SuccessfulCreate").len();
            assert!(made <= 60, "seed {seed}: {made} pods were made, so some were made twice");
        });
    }
}

#[test]
fn free_pods_are_adopted_and_relabelled_ones_released() {
    smol::block_on(async {
        let world = World::new();
        world.create("pods", free_pod("mine", "web")).await;
        world.create("pods", free_pod("other", "db")).await;
        world.create("replicasets", replica_set(2)).await;
        world.settle().await;
        assert_eq!(world.pods().len(), 3, "one of two was there already");
        let owner =
            |world: &World, name: &str| meta::controller(&world.get("pods", name)).map(|owner| owner["name"].as_str().unwrap().to_owned());
        assert_eq!((owner(&world, "mine").as_deref(), owner(&world, "other")), (Some("web"), None));
        world.edit("pods", "mine", |pod| pod["metadata"]["labels"]["app"] = "debug".into()).await;
        world.settle().await;
        assert_eq!((owner(&world, "mine"), world.pods().len()), (None, 4));
        world.edit("pods", "mine", |pod| pod["metadata"]["labels"]["app"] = "web".into()).await;
        world.settle().await;
        world.obey_all().await;
        assert_eq!(world.pods().len(), 3, "it came back, so one was too many");
    });
}

#[test]
fn replication_controllers_are_the_same() {
    smol::block_on(async {
        let world = World::new();
        let mut controller = replica_set(2);
        controller["kind"] = "ReplicationController".into();
        controller["spec"]["selector"] = json!({"app": "web"});
        world.create("replicationcontrollers", controller).await;
        world.settle().await;
        world.obey_all().await;
        world.settle().await;
        assert_eq!(world.get("replicationcontrollers", "web")["status"]["availableReplicas"], 2);
        assert_eq!(meta::controller(&world.list("pods")[0]).unwrap()["kind"], "ReplicationController");
    });
}

#[test]
fn pods_count_as_available_when_min_ready_seconds_have_passed() {
    smol::block_on(async {
        let world = World::new();
        let mut set = replica_set(1);
        set["spec"]["minReadySeconds"] = 30.into();
        world.create("replicasets", set).await;
        world.settle().await;
        world.obey_all().await;
        world.settle().await;
        assert_eq!(world.get("replicasets", "web")["status"]["availableReplicas"], Value::Null);
        pass(Duration::from_secs(30));
        let wait = world.sets.sync(&Name::new("default", "web")).await.unwrap();
        assert_eq!((wait, &world.get("replicasets", "web")["status"]["availableReplicas"]), (None, &json!(1)));
    });
}

#[test]
fn recreate_never_runs_two_templates_at_once() {
    smol::block_on(async {
        let world = World::new();
        world.create("deployments", deployment(3, "v1", json!({"type": "Recreate"}))).await;
        world.settle().await;
        world.obey_all().await;
        world.settle().await;
        world.edit("deployments", "web", |deployment| deployment["spec"]["template"]["spec"]["containers"][0]["image"] = "v2".into()).await;
        world.settle().await;
        let images = |world: &World| {
            let mut images: Vec<_> = world.list("pods").iter().map(|pod| pod["spec"]["containers"][0]["image"].clone()).collect();
            images.dedup();
            images
        };
        assert_eq!((images(&world), world.pods().len()), (vec![json!("v1")], 3), "the old ones are still ending");
        for (name, _) in world.pods() {
            world.obey(&name).await;
            world.settle().await;
            assert_eq!(images(&world).len(), 1);
        }
        assert_eq!((images(&world), world.pods().len()), (vec![json!("v2")], 3));
    });
}

#[test]
fn cascades_leave_exactly_what_they_should() {
    smol::block_on(async {
        let check = async |propagation: Propagation, sets: usize, pods: usize| {
            let world = World::new();
            world.create("pods", free_pod("bystander", "db")).await;
            world.create("deployments", deployment(3, "v1", json!({}))).await;
            world.settle().await;
            world.delete("deployments", "default", "web", propagation).await;
            world.settle().await;
            assert_eq!(
                (world.names("deployments").len(), world.names("replicasets").len(), world.pods().len()),
                (0, sets, pods),
                "{propagation:?}"
            );
            assert!(world.list("replicasets").iter().all(|set| meta::owner_references(set).is_empty()), "{propagation:?}");
        };
        check(Propagation::Default, 0, 1).await;
        check(Propagation::Background, 0, 1).await;
        check(Propagation::Foreground, 0, 1).await;
        check(Propagation::Orphan, 1, 4).await;
    });
}

#[test]
fn a_foreground_deletion_waits_for_the_last_pod() {
    smol::block_on(async {
        let world = World::new();
        world.create("deployments", deployment(2, "v1", json!({}))).await;
        world.settle().await;
        world.obey_all().await;
        world.settle().await;
        world.delete("deployments", "default", "web", Propagation::Foreground).await;
        world.settle().await;
        let pods = world.pods();
        assert!(pods.iter().all(|(_, pod)| pod.metadata.is_deleting()), "they are asked to end");
        for (name, _) in &pods {
            assert_eq!((world.names("deployments").len(), world.names("replicasets").len()), (1, 1));
            world.obey(name).await;
            world.settle().await;
        }
        assert_eq!((world.names("deployments").len(), world.names("replicasets").len(), world.pods().len()), (0, 0, 0));
    });
}

#[test]
fn owners_count_by_uid_and_in_their_own_namespace_only() {
    smol::block_on(async {
        let world = World::new();
        let owner = world.create("configmaps", json!({"metadata": {"name": "owner", "namespace": "default"}})).await;
        let cluster = world.create("namespaces", json!({"metadata": {"name": "one"}})).await;
        let owned = |name: &str, namespace: &str, kind: &str, owner_name: &str, uid: &str| {
            let owner = json!({"apiVersion": "v1", "kind": kind, "name": owner_name, "uid": uid});
            json!({"metadata": {"name": name, "namespace": namespace, "ownerReferences": [owner]}})
        };
        world.create("secrets", owned("kept", "default", "ConfigMap", "owner", &owner.uid)).await;
        world.create("secrets", owned("of-another-life", "default", "ConfigMap", "owner", "11111111-1111-1111-1111-111111111111")).await;
        world.create("secrets", owned("elsewhere", "one", "ConfigMap", "owner", &owner.uid)).await;
        world.create("secrets", owned("of-the-cluster", "one", "Namespace", "one", &cluster.uid)).await;
        world.create("secrets", owned("of-no-known-kind", "one", "Gizmo", "owner", &owner.uid)).await;
        let mut both = owned("of-two", "default", "ConfigMap", "owner", &owner.uid);
        let gone = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "22222222"});
        both["metadata"]["ownerReferences"].as_array_mut().unwrap().push(gone);
        world.create("secrets", both).await;
        world.settle().await;
        assert_eq!(world.names("secrets"), ["kept", "of-two", "of-no-known-kind", "of-the-cluster"]);
        assert_eq!(meta::owner_references(&world.get("secrets", "of-two")).len(), 1);
        assert_eq!(world.events("OwnerRefInvalidNamespace").len(), 1);
        world.delete("configmaps", "default", "owner", Propagation::Default).await;
        world.settle().await;
        assert_eq!(world.names("secrets"), ["of-no-known-kind", "of-the-cluster"]);
    });
}

#[test]
fn objects_that_own_each_other_can_be_deleted_in_the_foreground() {
    smol::block_on(async {
        let world = World::new();
        let mut uids = Vec::new();
        for name in ["a", "b"] {
            uids.push(world.create("configmaps", json!({"metadata": {"name": name}})).await.uid.clone());
        }
        for (name, owner, uid) in [("a", "b", &uids[1]), ("b", "a", &uids[0])] {
            let reference = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": uid, "blockOwnerDeletion": true}]);
            world.edit("configmaps", name, |object| object["metadata"]["ownerReferences"] = reference.clone()).await;
        }
        world.delete("configmaps", "default", "a", Propagation::Foreground).await;
        world.settle().await;
        assert_eq!(world.names("configmaps"), [""; 0]);
    });
}

#[test]
fn a_deleted_namespace_empties_pods_first_and_takes_nothing_else() {
    smol::block_on(async {
        let world = World::new();
        world.create("namespaces", json!({"metadata": {"name": "shop"}})).await;
        world.create("namespaces", json!({"metadata": {"name": "other"}})).await;
        world.settle().await;
        let place = |name: &str, namespace: &str| json!({"metadata": {"name": name, "namespace": namespace}});
        world.create("secrets", place("s", "shop")).await;
        world.create("secrets", place("s", "other")).await;
        let mut pod = place("p", "shop");
        pod["spec"] = json!({"nodeName": "node-1", "containers": [{"name": "c", "image": "i"}]});
        world.create("pods", pod).await;
        world.settle().await;
        world.delete("namespaces", "", "shop", Propagation::Default).await;
        world.settle().await;
        let shop = world.get("namespaces", "shop");
        assert_eq!(shop["status"]["phase"], "Terminating");
        let remaining =
            shop["status"]["conditions"].as_array().unwrap().iter().find(|each| each["type"] == "NamespaceContentRemaining").unwrap();
        assert_eq!(remaining["message"], "Some resources are remaining: pods. has 1 resource instances");
        assert_eq!(world.list("secrets").len(), 2, "a pod that ends may still need its secrets");
        let now_gone = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
        world.objects().delete(world.resource("pods"), "shop", "p", &now_gone).await.unwrap();
        world.settle().await;
        assert_eq!(world.names("namespaces"), ["other"]);
        assert_eq!(world.list("secrets").len(), 1);
        assert!(world.list("serviceaccounts").iter().chain(&world.list("configmaps")).all(|object| meta::namespace(object) == "other"));
    });
}

#[test]
fn every_namespace_has_its_account_and_the_root_certificate_again_and_again() {
    smol::block_on(async {
        let world = World::new();
        world.create("namespaces", json!({"metadata": {"name": "shop"}})).await;
        world.settle().await;
        assert_eq!(
            (world.names("serviceaccounts"), world.names("configmaps")),
            (vec!["default".to_owned()], vec!["kube-root-ca.crt".to_owned()])
        );
        world.delete("serviceaccounts", "shop", "default", Propagation::Default).await;
        world.delete("configmaps", "shop", "kube-root-ca.crt", Propagation::Default).await;
        world.settle().await;
        assert_eq!(world.names("serviceaccounts"), ["default"]);
        let spoil = |live: &Value| Ok(json!({"metadata": live["metadata"], "data": {"ca.crt": "forged", "more": "x"}}));
        world.objects().update(world.resource("configmaps"), "shop", "kube-root-ca.crt", Part::Whole, false, spoil).await.unwrap();
        world.settle().await;
        assert_eq!(world.get("configmaps", "kube-root-ca.crt")["data"], json!({"ca.crt": "the CA"}));
    });
}

#[test]
fn pods_of_a_node_that_is_gone_are_given_up_after_a_while() {
    smol::block_on(async {
        let world = World::new();
        world.create("nodes", json!({"metadata": {"name": "node-1"}})).await;
        let mut pod = free_pod("p", "web");
        pod["spec"]["nodeName"] = "node-1".into();
        world.create("pods", pod).await;
        world.settle().await;
        world.delete("nodes", "", "node-1", Propagation::Default).await;
        world.settle().await;
        let name = Name::new("", "node-1");
        assert!(world.pod_garbage.sync(&name).await.unwrap().is_some());
        assert_eq!(world.pods().len(), 1, "it may only be registering anew");
        pass(Duration::from_secs(41));
        world.pod_garbage.sync(&name).await.unwrap();
        assert_eq!(world.pods().len(), 0);
    });
}

#[test]
fn a_silent_node_is_unknown_and_tainted_until_it_speaks() {
    smol::block_on(async {
        let world = World::new();
        let ready = |status: &str| json!([{"type": "Ready", "status": status}]);
        world.create("nodes", json!({"metadata": {"name": "node-1"}})).await;
        let say = async |world: &World, status: &str| {
            let conditions = ready(status);
            let said = |live: &Value| {
                let mut node = live.clone();
                node["status"]["conditions"] = conditions.clone();
                Ok(node)
            };
            world.objects().update(world.resource("nodes"), "", "node-1", Part::Status, false, said).await.unwrap();
            world.settle().await;
        };
        world.settle().await;
        let taints = |world: &World| world.get("nodes", "node-1")["spec"]["taints"].clone();
        assert_eq!(taints(&world), json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]));
        say(&world, "True").await;
        assert_eq!(taints(&world), Value::Null);
        let lease =
            json!({"metadata": {"name": "node-1", "namespace": "kube-node-lease"}, "spec": {"renewTime": "1970-01-01T00:00:00.000000Z"}});
        world.create("leases", lease).await;
        let name = Name::new("", "node-1");
        pass(Duration::from_secs(30));
        world
            .objects()
            .update(world.resource("leases"), "kube-node-lease", "node-1", Part::Whole, false, |live| {
                let mut lease = live.clone();
                lease["spec"]["renewTime"] = "1970-01-01T00:00:10.000000Z".into();
                Ok(lease)
            })
            .await
            .unwrap();
        world.settle().await;
        pass(Duration::from_secs(39));
        assert_eq!(world.nodes.sync(&name).await.unwrap(), Some(Duration::from_secs(1)));
        assert_eq!(taints(&world), Value::Null, "it renewed its lease");
        // More changes than the log holds: all is told anew, the old lease too.
        for number in 0..3 {
            let data = json!({"k": "x".repeat(500 << 10)});
            world.create("configmaps", json!({"metadata": {"name": format!("big-{number}")}, "data": data})).await;
        }
        world.settle().await;
        pass(Duration::from_secs(1));
        world.nodes.sync(&name).await.unwrap();
        world.settle().await;
        assert_eq!(world.get("nodes", "node-1")["status"]["conditions"][0]["status"], "Unknown");
        assert_eq!(taints(&world), json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}]));
        say(&world, "True").await;
        assert_eq!(taints(&world), Value::Null);
    });
}

/// A node says of itself that it is ready, or is said to be.
async fn say(world: &World, node: &str, status: &str) {
    let said = |live: &Value| {
        let mut node = live.clone();
        node["status"]["conditions"] = json!([{"type": "Ready", "status": status}]);
        Ok(node)
    };
    world.objects().update(world.resource("nodes"), "", node, Part::Status, false, said).await.unwrap();
    world.settle().await;
}

#[test]
fn pods_leave_a_silent_node_when_their_patience_ends() {
    smol::block_on(async {
        let world = World::new();
        for node in ["node-1", "node-2"] {
            world.create("nodes", json!({"metadata": {"name": node}})).await;
            say(&world, node, "True").await;
        }
        let patient = |seconds: Value| {
            let mut toleration = json!({"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"});
            toleration["tolerationSeconds"] = seconds;
            json!([toleration])
        };
        for (name, tolerations) in
            [("short", patient(json!(10))), ("long", patient(json!(300))), ("daemon", json!([{"operator": "Exists"}]))]
        {
            let mut pod = free_pod(name, "web");
            pod["spec"]["nodeName"] = "node-1".into();
            pod["spec"]["tolerations"] = tolerations;
            world.create("pods", pod).await;
            let readied = |live: &Value| {
                let mut pod = live.clone();
                pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
                Ok(pod)
            };
            world.objects().update(world.resource("pods"), "default", name, Part::Status, false, readied).await.unwrap();
        }
        world.settle().await;
        let ready = |name: &str| world.get("pods", name)["status"]["conditions"][0]["status"].clone();
        assert_eq!(ready("long"), "True");
        let name = Name::new("", "node-1");
        let staying =
            || -> Vec<String> { world.pods().into_iter().filter(|(_, pod)| !pod.metadata.is_deleting()).map(|(name, _)| name).collect() };
        let look = async || {
            world.nodes.sync(&name).await.unwrap();
            world.settle().await;
            world.evictions.sync(&name).await.unwrap()
        };
        // Only node-2 is heard of meanwhile.
        pass(Duration::from_secs(20));
        say(&world, "node-2", "False").await;
        say(&world, "node-2", "True").await;
        pass(Duration::from_secs(20));
        let next = look().await;
        assert_eq!(next, Some(Duration::from_secs(10)), "{}", world.get("nodes", "node-1"));
        assert_eq!(staying(), ["daemon", "long", "short"]);
        assert_eq!((ready("long"), ready("daemon")), (json!("False"), json!("False")), "nobody is sent to them meanwhile");
        pass(Duration::from_secs(10));
        assert_eq!(look().await, Some(Duration::from_secs(290)));
        assert_eq!(staying(), ["daemon", "long"]);
        let short = world.get("pods", "short");
        assert_eq!(short["status"]["conditions"][1]["reason"], "DeletionByTaintManager");

        // It is back before the others lose patience, and away again: time counts anew.
        say(&world, "node-1", "True").await;
        assert_eq!(world.get("nodes", "node-1")["spec"]["taints"], Value::Null);
        pass(Duration::from_secs(1000));
        assert_eq!(world.evictions.sync(&name).await.unwrap(), None);
        assert_eq!(staying(), ["daemon", "long"]);
        say(&world, "node-2", "False").await;
        say(&world, "node-2", "True").await;
        say(&world, "node-1", "Unknown").await;
        pass(Duration::from_secs(299));
        assert_eq!(world.evictions.sync(&name).await.unwrap(), Some(Duration::from_secs(1)));
        pass(Duration::from_secs(1));
        world.evictions.sync(&name).await.unwrap();
        assert_eq!(staying(), ["daemon"]);
    });
}

#[test]
fn where_no_node_is_well_no_pod_has_to_leave() {
    smol::block_on(async {
        let world = World::new();
        for node in ["node-1", "node-2"] {
            world.create("nodes", json!({"metadata": {"name": node}})).await;
            say(&world, node, "Unknown").await;
        }
        let effects = |node: &str| {
            let taints = world.get("nodes", node)["spec"]["taints"].as_array().cloned().unwrap_or_default();
            taints.iter().map(|taint| taint["effect"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!((effects("node-1"), effects("node-2")), (vec!["NoSchedule".to_owned()], vec!["NoSchedule".to_owned()]));
        say(&world, "node-2", "True").await;
        assert_eq!((effects("node-1"), effects("node-2")), (vec!["NoSchedule".to_owned(), "NoExecute".to_owned()], vec![]));
    });
}

#[test]
fn a_service_follows_the_pods_it_selects() {
    smol::block_on(async {
        let world = World::new();
        let service = json!({
            "metadata": {"name": "web", "labels": {"tier": "front"}},
            "spec": {"clusterIP": "10.96.0.7", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        });
        world.create("services", service).await;
        world.settle().await;
        let endpoints = |world: &World| world.get("endpoints", "web");
        let slice = |world: &World| world.list("endpointslices").pop().unwrap();
        assert_eq!((&slice(&world)["endpoints"], endpoints(&world).get("subsets")), (&json!([]), None));
        world.create("replicasets", replica_set(2)).await;
        world.settle().await;
        let ready = async |world: &World, name: &str, ip: &str| {
            world.obey(name).await;
            world.change("pods", name, |pod| pod["status"]["podIP"] = ip.into()).await;
            world.settle().await;
        };
        let pods = world.names("pods");
        ready(&world, &pods[0], "10.244.0.2").await;
        ready(&world, &pods[1], "10.244.0.3").await;
        let addresses: Vec<_> =
            endpoints(&world)["subsets"][0]["addresses"].as_array().unwrap().iter().map(|each| each["ip"].clone()).collect();
        assert_eq!(addresses, ["10.244.0.2", "10.244.0.3"]);
        assert_eq!(slice(&world)["ports"], json!([{"name": "", "port": 8080, "protocol": "TCP"}]));
        assert_eq!((slice(&world)["endpoints"].as_array().unwrap().len(), world.list("endpointslices").len()), (2, 1));
        assert_eq!(slice(&world)["metadata"]["labels"]["kubernetes.io/service-name"], "web");
        let revision = world.objects().store().revision();
        let world = world.restarted();
        world.settle().await;
        assert_eq!(world.objects().store().revision(), revision, "at rest nothing is written");
        world.edit("pods", &pods[0], |pod| pod["metadata"]["labels"]["app"] = "debug".into()).await;
        world.settle().await;
        assert_eq!(endpoints(&world)["subsets"][0]["addresses"][0]["ip"], "10.244.0.3");
        world.delete("services", "default", "web", Propagation::Default).await;
        world.settle().await;
        assert_eq!((world.names("endpoints").len(), world.names("endpointslices").len()), (0, 0));
    });
}

#[test]
fn a_balanced_service_has_the_addresses_of_the_nodes() {
    smol::block_on(async {
        let world = World::new();
        for (name, address) in [("a", "192.0.2.1"), ("b", "192.0.2.2")] {
            world.create("nodes", json!({"metadata": {"name": name}})).await;
            let addressed = |live: &Value| {
                let mut node = live.clone();
                node["status"]["addresses"] = json!([{"type": "InternalIP", "address": address}]);
                Ok(node)
            };
            world.objects().update(world.resource("nodes"), "", name, Part::Status, false, addressed).await.unwrap();
            say(&world, name, "True").await;
        }
        let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": 80}]});
        world.create("services", json!({"metadata": {"name": "web"}, "spec": spec})).await;
        world.settle().await;
        let addresses = |world: &World| {
            let ingress = world.get("services", "web")["status"]["loadBalancer"]["ingress"].clone();
            ingress.as_array().map(|all| all.iter().map(|one| one["ip"].as_str().unwrap().to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(addresses(&world).unwrap(), ["192.0.2.1", "192.0.2.2"]);
        let revision = world.objects().store().revision();
        let world = world.restarted();
        world.settle().await;
        assert_eq!(world.objects().store().revision(), revision, "at rest nothing is written");
        say(&world, "a", "False").await;
        assert_eq!(addresses(&world).unwrap(), ["192.0.2.2"]);
        let inside = |service: &mut Value| service["spec"] = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]});
        world.edit("services", "web", inside).await;
        let world = world.restarted();
        world.settle().await;
        assert_eq!(addresses(&world), None);
    });
}

#[test]
fn every_node_has_a_network_of_its_own() {
    smol::block_on(async {
        let world = World::new();
        for name in ["a", "b", "c"] {
            world.create("nodes", json!({"metadata": {"name": name}})).await;
        }
        world.settle().await;
        let networks = |world: &World| world.list("nodes").iter().map(|node| node["spec"]["podCIDR"].clone()).collect::<Vec<_>>();
        assert_eq!(networks(&world), ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"]);
        world.delete("nodes", "", "b", Propagation::Default).await;
        world.create("nodes", json!({"metadata": {"name": "d"}})).await;
        world.settle().await;
        assert_eq!(networks(&world), ["10.244.0.0/24", "10.244.2.0/24", "10.244.1.0/24"]);
    });
}

/// The loops as they run, with the scheduler and a node that obeys, against the deadline of a test.
#[test]
fn the_running_loops_bring_a_deployment_up_and_take_it_away_again() {
    let objects = Objects::new(Store::open(None).unwrap(), admit);
    let world = World::over(objects.clone());
    smol::block_on(async {
        let done = async {
            let mut watch = objects.store().watch_all(objects.store().revision()).unwrap();
            world.create("namespaces", json!({"metadata": {"name": "default"}})).await;
            world.create("nodes", json!({"metadata": {"name": "node-1"}})).await;
            let ready = |live: &Value| {
                let mut node = live.clone();
                node["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
                node["status"]["allocatable"] = json!({"cpu": "4", "memory": "4Gi", "pods": "110"});
                Ok(node)
            };
            objects.update(world.resource("nodes"), "", "node-1", Part::Status, false, ready).await.unwrap();
            world.create("deployments", deployment(5, "v1", json!({}))).await;
            while world.get("deployments", "web")["status"]["availableReplicas"] != 5 {
                watch.next().await.unwrap();
                for (name, pod) in world.pods() {
                    if pod.spec.node_name == "node-1" && !pod.is_ready() {
                        world.obey(&name).await;
                    }
                }
            }
            world.delete("deployments", "default", "web", Propagation::Foreground).await;
            while !world.names("deployments").is_empty() {
                watch.next().await.unwrap();
                for (name, pod) in world.pods() {
                    if pod.metadata.is_deleting() {
                        world.obey(&name).await;
                    }
                }
            }
            assert_eq!((world.pods().len(), world.names("replicasets").len()), (0, 0));
            assert_eq!(world.names("serviceaccounts"), ["default"]);
        };
        let loops = async {
            futures_util::join!(run(objects.clone(), pki(), Duration::from_secs(40)), crate::master::scheduler::run(objects.clone()));
        };
        let late = async {
            smol::Timer::after(Duration::from_secs(30)).await;
            panic!("the deadline has passed: {}", world.get("deployments", "web")["status"]);
        };
        futures_lite::future::or(done, futures_lite::future::or(loops, late)).await;
    });
}

/// A request for the certificate of a node, by whoever `user` is; the key is the request's own unless it is given.
fn node_request(name: &str, node: &str, key: &rcgen::KeyPair, user: &str, groups: &[&str]) -> Value {
    use base64::Engine;
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{node}"));
    let pem = params.serialize_request(key).unwrap().pem().unwrap();
    json!({"metadata": {"name": name}, "spec": {
        "signerName": "kubernetes.io/kube-apiserver-client-kubelet", "usages": ["digital signature", "client auth"],
        "request": base64::engine::general_purpose::STANDARD.encode(pem), "username": user, "groups": groups,
    }})
}

/// The condition of a request, and whether it has its certificate.
fn answered(world: &World, name: &str) -> (String, bool) {
    let request = world.get("certificatesigningrequests", name);
    let condition = &request["status"]["conditions"][0];
    (condition["type"].as_str().unwrap_or_default().to_owned(), request["status"]["certificate"].is_string())
}

const REQUESTS: &str = "certificatesigningrequests";
const JOINING: (&str, &[&str]) = ("system:bootstrap:abcdef", &["system:bootstrappers", "system:authenticated"]);

#[test]
fn a_node_gets_its_certificate_from_a_bootstrapper_and_renews_it_itself() {
    smol::block_on(async {
        NOW.set(Timestamp::now());
        let world = World::new();
        let key = || rcgen::KeyPair::generate().unwrap();
        let node = ("system:node:web", &["system:nodes", "system:authenticated"]);
        world.create(REQUESTS, node_request("joins", "web", &key(), JOINING.0, JOINING.1)).await;
        world.create(REQUESTS, node_request("renews", "web", &key(), node.0, node.1)).await;
        world.create(REQUESTS, node_request("other", "db", &key(), node.0, node.1)).await;
        world.create(REQUESTS, node_request("person", "db", &key(), "jane", &["system:authenticated"])).await;
        world.settle().await;
        assert_eq!(answered(&world, "joins"), ("Approved".to_owned(), true));
        assert_eq!(answered(&world, "renews"), ("Approved".to_owned(), true));
        assert_eq!(answered(&world, "other"), (String::new(), false), "a node asks for itself alone");
        assert_eq!(answered(&world, "person"), (String::new(), false), "a person waits for approval");

        // As kubectl certificate approve does it.
        let approve = |live: &Value| {
            let mut approved = live.clone();
            approved["status"]["conditions"] = json!([{"type": "Approved", "status": "True", "reason": "KubectlApprove"}]);
            Ok(approved)
        };
        world.objects().update(world.resource(REQUESTS), "", "person", Part::Subresource, false, approve).await.unwrap();
        world.settle().await;
        assert_eq!(answered(&world, "person"), ("Approved".to_owned(), true));
    });
}

#[test]
fn a_name_that_is_taken_is_refused_until_its_node_is_gone() {
    smol::block_on(async {
        NOW.set(Timestamp::now());
        let world = World::new();
        let (first, second) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let ask = async |request: &str, key: &rcgen::KeyPair| {
            world.create(REQUESTS, node_request(request, "web", key, JOINING.0, JOINING.1)).await;
            world.settle().await;
            answered(&world, request)
        };
        let (granted, denied) = (("Approved".to_owned(), true), ("Denied".to_owned(), false));
        assert_eq!(ask("a", &first).await, granted);
        assert_eq!(ask("b", &second).await, denied, "a board of the same name may still be on its way");
        let why = world.get(REQUESTS, "b")["status"]["conditions"][0].clone();
        assert_eq!(why["reason"], "NodeNameTaken");
        assert!(why["message"].as_str().unwrap().contains("\"web\" has just been given to another board"), "{why}");
        assert_eq!(ask("c", &first).await, granted, "the same board asks again");

        world.create("nodes", json!({"metadata": {"name": "web"}})).await;
        pass(Duration::from_secs(30));
        world.settle().await;
        assert_eq!(ask("d", &second).await, denied);
        let why = world.get(REQUESTS, "d")["status"]["conditions"][0].clone();
        assert!(why["message"].as_str().unwrap().contains("alive and has another key"), "{why}");

        world.delete("nodes", "", "web", Propagation::Background).await;
        world.settle().await;
        assert_eq!(ask("e", &second).await, granted);
    });
}

#[test]
fn a_name_that_is_taken_is_refused_also_by_a_master_that_was_restarted() {
    smol::block_on(async {
        NOW.set(Timestamp::now());
        let mut world = World::new();
        let (first, second) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let ask = async |world: &World, request: &str, key: &rcgen::KeyPair| {
            world.create(REQUESTS, node_request(request, "web", key, JOINING.0, JOINING.1)).await;
            world.settle().await;
            answered(world, request)
        };
        let (granted, denied) = (("Approved".to_owned(), true), ("Denied".to_owned(), false));
        assert_eq!(ask(&world, "a", &first).await, granted);
        world = world.restarted();
        assert_eq!(ask(&world, "b", &second).await, denied, "the board that has the name has not registered yet");
        assert_eq!(ask(&world, "c", &first).await, granted, "it asks again itself");

        world.create("nodes", json!({"metadata": {"name": "web"}})).await;
        pass(Duration::from_secs(60));
        world = world.restarted();
        assert_eq!(ask(&world, "d", &second).await, denied, "its node lives");
        assert_eq!(ask(&world, "e", &first).await, granted, "it has the key of the node");
        world.delete("nodes", "", "web", Propagation::Background).await;
        world.settle().await;
        assert_eq!(ask(&world, "f", &second).await, granted);
    });
}

#[test]
fn requests_that_are_decided_and_tokens_that_have_expired_are_removed() {
    use base64::Engine;
    smol::block_on(async {
        let world = World::new();
        let key = rcgen::KeyPair::generate().unwrap();
        NOW.set(Timestamp::now());
        world.create(REQUESTS, node_request("a", "web", &key, JOINING.0, JOINING.1)).await;
        let expiration = base64::engine::general_purpose::STANDARD.encode(now().plus(Duration::from_secs(600)).to_string());
        let token = |kind: &str, name: &str| json!({"metadata": {"name": name, "namespace": "kube-system"}, "type": kind, "data": {"expiration": expiration}});
        world.create("secrets", token("bootstrap.kubernetes.io/token", "bootstrap-token-abcdef")).await;
        world.create("secrets", token("Opaque", "bootstrap-token-opaque")).await;
        world.settle().await;
        assert_eq!((world.names(REQUESTS).len(), world.names("secrets").len()), (1, 2));
        pass(Duration::from_secs(3601));
        for key in ["abcdef", "opaque"] {
            let name = Name::new("kube-system", &format!("bootstrap-token-{key}"));
            assert_eq!(world.tokens.sync(&name).await.unwrap(), None);
        }
        assert_eq!(world.certificates.sync(&Name::new("", "a")).await.unwrap(), None);
        assert_eq!((world.names(REQUESTS).len(), world.names("secrets")), (0, vec!["bootstrap-token-opaque".to_owned()]));
    });
}
