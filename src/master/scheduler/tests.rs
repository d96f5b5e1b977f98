//! The scheduler as it runs, on the real store in memory.

use std::time::Duration;

use super::*;
use crate::master::store::Store;
use crate::master::store::objects::DeleteOptions;

/// A test that waits for longer has failed.
const DEADLINE: Duration = Duration::from_secs(20);

fn admit(_: &Objects, _: &'static Resource, _: &mut Value, _: Option<&Value>) -> Result<(), Status> {
    Ok(())
}

struct Cluster {
    objects: Objects,
    pods: &'static Resource,
    nodes: &'static Resource,
}

impl Cluster {
    /// Runs `test` beside a scheduler.
    fn run(test: impl AsyncFnOnce(&Cluster)) {
        let objects = Objects::new(Store::open(None).unwrap(), admit);
        let resource = |plural| schema::resource("", "v1", plural).unwrap();
        let cluster = Cluster { objects: objects.clone(), pods: resource("pods"), nodes: resource("nodes") };
        smol::block_on(async {
            let ended = async {
                test(&cluster).await;
                Some(())
            };
            let scheduler = async {
                super::run(objects).await;
                None
            };
            let late = async {
                smol::Timer::after(DEADLINE).await;
                None
            };
            assert!(ended.or(scheduler).or(late).await.is_some(), "the deadline has passed");
        });
    }

    async fn node(&self, name: &str, cpu: &str) {
        let node = json!({"metadata": {"name": name}});
        self.objects.create(self.nodes, "", node, false).await.unwrap();
        self.change(self.nodes, "", name, |node| {
            node["status"]["allocatable"] = json!({"cpu": cpu, "memory": "4Gi", "pods": "110"});
        })
        .await;
    }

    async fn pod(&self, name: &str, cpu: &str, change: Value) {
        let container = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}});
        let mut pod = json!({
            "metadata": {"name": name},
            "spec": {"schedulerName": "default-scheduler", "containers": [container]},
        });
        json_patch::merge(&mut pod, &change);
        self.objects.create(self.pods, "default", pod, false).await.unwrap();
    }

    async fn change(&self, resource: &'static Resource, namespace: &str, name: &str, change: impl Fn(&mut Value)) {
        let changed = self.objects.update(resource, namespace, name, Part::Subresource, false, |live| {
            let mut value = live.clone();
            change(&mut value);
            if value["spec"] != live["spec"] && meta::generation(live) > 0 {
                meta::set(&mut value, "generation", meta::generation(live) + 1);
            }
            Ok(value)
        });
        changed.await.unwrap();
    }

    async fn delete(&self, name: &str) {
        let options = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
        self.objects.delete(self.pods, "default", name, &options).await.unwrap();
    }

    /// Waits until a pod is as `test` wants it.
    async fn until(&self, name: &str, test: impl Fn(&Value) -> bool) -> Value {
        let mut watch = self.objects.store().watch_all(self.objects.store().revision()).unwrap();
        loop {
            let pod = self.objects.get(self.pods, "default", name).unwrap().value();
            if test(&pod) {
                return pod;
            }
            // So many changes at once that the watch has fallen behind: what is there now is looked at again.
            if watch.next().await.is_err() {
                watch = self.objects.store().watch_all(self.objects.store().revision()).unwrap();
            }
        }
    }

    async fn until_on(&self, name: &str, node: &str) -> Value {
        self.until(name, |pod| pod["spec"]["nodeName"] == node).await
    }

    async fn until_says(&self, name: &str, message: &str) -> Value {
        self.until(name, |pod| scheduled(pod).is_some_and(|condition| condition["message"] == message)).await
    }

    async fn until_event(&self, reason: &str, message: &str) {
        let events = schema::resource("", "v1", "events").unwrap();
        let mut watch = self.objects.watch(events, None, self.objects.store().revision()).unwrap();
        while !self
            .objects
            .list(events, None)
            .0
            .iter()
            .map(|event| event.value())
            .any(|event| event["reason"] == reason && event["message"] == message)
        {
            watch.next().await.unwrap();
        }
    }
}

fn scheduled(pod: &Value) -> Option<&Value> {
    pod["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == "PodScheduled")
}

const TOO_SMALL: &str = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: \
    1 Preemption is not helpful for scheduling.";
const FULL: &str = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: \
    1 No preemption victims found for incoming pod.";

#[test]
fn a_pod_is_bound_and_its_story_told() {
    Cluster::run(async |cluster| {
        cluster.node("node-1", "2").await;
        cluster.pod("web", "1", json!({})).await;
        let pod = cluster.until_on("web", "node-1").await;
        assert_eq!(scheduled(&pod).unwrap()["status"], "True");
        cluster.until_event("Scheduled", "Successfully assigned default/web to node-1").await;
    });
}

#[test]
fn a_pod_that_fits_nowhere_says_why_and_goes_when_it_may() {
    Cluster::run(async |cluster| {
        cluster.pod("web", "3", json!({})).await;
        cluster.until_says("web", "no nodes available to schedule pods").await;
        cluster.node("node-1", "2").await;
        cluster.until_says("web", TOO_SMALL).await;
        cluster.until_event("FailedScheduling", TOO_SMALL).await;
        cluster.change(cluster.nodes, "", "node-1", |node| node["status"]["allocatable"]["cpu"] = "4".into()).await;
        cluster.until_on("web", "node-1").await;
        cluster.pod("late", "2", json!({})).await;
        cluster.until_says("late", FULL).await;
        cluster.delete("web").await;
        cluster.until_on("late", "node-1").await;
    });
}

#[test]
fn a_finished_pod_makes_room() {
    Cluster::run(async |cluster| {
        cluster.node("node-1", "2").await;
        cluster.pod("job", "2", json!({})).await;
        cluster.until_on("job", "node-1").await;
        cluster.pod("next", "1", json!({})).await;
        cluster.until_says("next", FULL).await;
        cluster.change(cluster.pods, "default", "job", |pod| pod["status"]["phase"] = "Succeeded".into()).await;
        cluster.until_on("next", "node-1").await;
    });
}

#[test]
fn a_gated_pod_waits_for_its_gates() {
    Cluster::run(async |cluster| {
        cluster.node("node-1", "2").await;
        cluster.pod("web", "1", json!({"spec": {"schedulingGates": [{"name": "example.com/later"}]}})).await;
        let pod = cluster.until_says("web", "Scheduling is blocked due to non-empty scheduling gates").await;
        assert_eq!(scheduled(&pod).unwrap()["reason"], "SchedulingGated");
        cluster.change(cluster.pods, "default", "web", |pod| pod["spec"]["schedulingGates"] = json!([])).await;
        cluster.until_on("web", "node-1").await;
    });
}

#[test]
fn pods_of_other_schedulers_are_left_alone() {
    Cluster::run(async |cluster| {
        cluster.node("node-1", "2").await;
        cluster.pod("other", "1", json!({"spec": {"schedulerName": "mine"}})).await;
        cluster.pod("ours", "1", json!({})).await;
        cluster.until_on("ours", "node-1").await;
        let other = cluster.objects.get(cluster.pods, "default", "other").unwrap().value();
        assert_eq!((other["spec"].get("nodeName"), scheduled(&other)), (None, None));
    });
}

#[test]
fn many_pods_fill_the_nodes_and_never_overfill_them() {
    Cluster::run(async |cluster| {
        for node in 0..20 {
            cluster.node(&format!("node-{node}"), "10").await;
        }
        let pods: Vec<String> = (0..200).map(|number| format!("pod-{number}")).collect();
        for name in &pods {
            cluster.pod(name, "1", json!({})).await;
        }
        let mut on_node = std::collections::HashMap::new();
        for name in &pods {
            let pod = cluster.until(name, |pod| pod["spec"]["nodeName"].is_string()).await;
            *on_node.entry(pod["spec"]["nodeName"].to_string()).or_insert(0) += 1;
        }
        assert_eq!((on_node.len(), on_node.values().max()), (20, Some(&10)));
        cluster.pod("one-too-many", "1", json!({})).await;
        let pod = cluster.until("one-too-many", |pod| scheduled(pod).is_some()).await;
        assert!(scheduled(&pod).unwrap()["message"].as_str().unwrap().starts_with("0/20 nodes are available: 20 Insufficient cpu."));
    });
}

#[test]
fn at_rest_nothing_is_written() {
    Cluster::run(async |cluster| {
        cluster.node("node-1", "1").await;
        cluster.pod("web", "1", json!({})).await;
        cluster.pod("stuck", "1", json!({"spec": {"priority": -1}})).await;
        cluster.until_on("web", "node-1").await;
        cluster.until_event("Scheduled", "Successfully assigned default/web to node-1").await;
        cluster.until_says("stuck", FULL).await;
        cluster.until_event("FailedScheduling", FULL).await;
        let revision = cluster.objects.store().revision();
        // A heartbeat is no news to the scheduler.
        cluster.change(cluster.nodes, "", "node-1", |node| node["status"]["heartbeat"] = "x".into()).await;
        for _ in 0..1000 {
            smol::future::yield_now().await;
        }
        assert_eq!(cluster.objects.store().revision(), revision + 1);
    });
}

#[test]
fn pods_that_mind_their_neighbours_wait_for_them_to_come_or_go() {
    Cluster::run(async |cluster| {
        cluster.node("node-1", "4").await;
        cluster.change(cluster.nodes, "", "node-1", |node| meta::set_label(node, "kubernetes.io/hostname", "node-1")).await;
        let minding = |field: &str, app: &str, wanted: &str| {
            let term = json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": wanted}}}]);
            let affinity = json!({field: {"requiredDuringSchedulingIgnoredDuringExecution": term}});
            json!({"metadata": {"labels": {"app": app}}, "spec": {"affinity": affinity}})
        };
        cluster.pod("one", "1", minding("podAntiAffinity", "web", "web")).await;
        cluster.until_on("one", "node-1").await;
        cluster.pod("two", "1", minding("podAntiAffinity", "web", "web")).await;
        let message = "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules. preemption: 0/1 nodes are available: \
            1 No preemption victims found for incoming pod.";
        cluster.until_says("two", message).await;
        cluster.delete("one").await;
        cluster.until_on("two", "node-1").await;
        cluster.pod("friend", "1", minding("podAffinity", "cache", "db")).await;
        let message = "0/1 nodes are available: 1 node(s) didn't match pod affinity rules. preemption: 0/1 nodes are available: \
            1 Preemption is not helpful for scheduling.";
        cluster.until_says("friend", message).await;
        cluster.pod("db", "1", json!({"metadata": {"labels": {"app": "db"}}})).await;
        cluster.until_on("friend", "node-1").await;
    });
}
