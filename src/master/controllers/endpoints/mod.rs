//! Keeps Endpoints and EndpointSlices of every Service with a selector in step with the pods it selects.
//! It never touches those of Services without one: they are their makers'.

mod plan;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use self::plan::{Endpoint, Op, Slice};
use super::adoption::controller_reference;
use super::feed::{Index, Notice};
use super::pace::Pace;
use super::queue::Queue;
use super::replicaset::is_namespace_ending;
use super::{Loop, Name, Shared};
use crate::api::meta;
use crate::api::schema::Resource;
use crate::api::services::Service;
use crate::api::status::Status;
use crate::api::workloads::Pod;
use crate::master::store::objects::{DeleteOptions, Part};
use crate::master::store::{Key, Object};

/// Label of a slice: the Service it is of.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of a slice: who keeps it.
const SLICE_MANAGER: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io");
const ENDPOINTS_MANAGER: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
const HEADLESS: &str = "service.kubernetes.io/headless";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// Of a turn, for each node and slice: every node is told of each slice that changes, whole, and that is a quarter or so of what it costs
/// the API server.
const PACE: Duration = Duration::from_micros(100);

/// Selectors by the name of their Service.
type Selectors = BTreeMap<String, BTreeMap<String, String>>;

pub struct Controller {
    shared: Rc<Shared>,
    services: &'static Resource,
    pods: &'static Resource,
    nodes: &'static Resource,
    endpoints: &'static Resource,
    slices: &'static Resource,
    /// Selectors by namespace and Service, so that a change of a pod is not compared with what has to be read first.
    selectors: RefCell<HashMap<String, Selectors>>,
    /// Of Services with one slice and of those with more: the many that are small do not wait for the few that are large.
    paces: [Pace; 2],
    queue: Queue<Name>,
}

impl Controller {
    pub fn new(shared: &Rc<Shared>) -> Rc<Self> {
        let controller = Rc::new(Self {
            services: shared.resource("", "v1", "services"),
            pods: shared.resource("", "v1", "pods"),
            nodes: shared.resource("", "v1", "nodes"),
            endpoints: shared.resource("", "v1", "endpoints"),
            slices: shared.resource("discovery.k8s.io", "v1", "endpointslices"),
            shared: shared.clone(),
            selectors: RefCell::default(),
            paces: [Pace::new(PACE), Pace::new(PACE)],
            queue: Queue::new(),
        });
        let listener = controller.clone();
        shared.feed.listen(move |notice, _: &Index| listener.notice(notice));
        controller
    }

    fn notice(&self, notice: &Notice) {
        let object = notice.object;
        let key = &object.key;
        if notice.is(self.services) {
            self.learn(object, notice.is_deleted());
            self.queue.add(Name::of(key));
        } else if notice.is(self.pods) {
            self.add_selecting(&key.namespace, &object.labels);
            if let Some(previous) = notice.previous.filter(|previous| previous.labels != object.labels) {
                self.add_selecting(&key.namespace, &previous.labels);
            }
        } else if notice.is(self.endpoints) && object.labels.get(ENDPOINTS_MANAGER.0).is_some_and(|by| by == ENDPOINTS_MANAGER.1) {
            self.queue.add(Name::of(key));
        } else if notice.is(self.slices)
            && object.labels.get(SLICE_MANAGER.0).is_some_and(|by| by == SLICE_MANAGER.1)
            && let Some(service) = object.labels.get(SERVICE_NAME)
        {
            self.queue.add(Name::new(&key.namespace, service));
        }
    }

    fn learn(&self, service: &Object, gone: bool) {
        let mut selectors = self.selectors.borrow_mut();
        let selector = if gone { BTreeMap::new() } else { service.view::<Service>().map(|view| view.spec.selector).unwrap_or_default() };
        let services = selectors.entry(service.key.namespace.clone()).or_default();
        if selector.is_empty() {
            services.remove(&service.key.name);
        } else {
            services.insert(service.key.name.clone(), selector);
        }
        if services.is_empty() {
            selectors.remove(&service.key.namespace);
        }
    }

    fn add_selecting(&self, namespace: &str, labels: &BTreeMap<String, String>) {
        for (service, selector) in self.selectors.borrow().get(namespace).into_iter().flatten() {
            if is_selected(selector, labels) {
                self.queue.add(Name::new(namespace, service));
            }
        }
    }

    /// So many pods has a Service: it waits in one of the two rows.
    fn note_size(&self, name: &Name, pods: usize) {
        let slices = pods.div_ceil(plan::SLICE_MAX);
        let cost = slices * self.shared.objects().store().count(self.nodes);
        let [small, large] = &self.paces;
        small.note(name, if slices <= 1 { cost } else { 0 });
        large.note(name, if slices > 1 { cost } else { 0 });
    }

    async fn write_endpoints(&self, service: &Service, pods: &[Pod]) -> Result<(), Status> {
        let objects = self.shared.objects();
        let Name { namespace, name } = Name::new(&service.metadata.namespace, &service.metadata.name);
        let (subsets, truncated) = plan::subsets(service, pods);
        let labels = labels(service, &[ENDPOINTS_MANAGER]);
        let complete = |object: &mut Value| {
            object["metadata"]["labels"] = json!(labels);
            // An empty list is stored as none; writing the one for the other would never end.
            match (subsets == json!([]), object.as_object_mut()) {
                (true, Some(object)) => drop(object.remove("subsets")),
                _ => object["subsets"] = subsets.clone(),
            }
            if truncated {
                meta::set_annotation(object, OVER_CAPACITY, "truncated");
            } else if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
                annotations.remove(OVER_CAPACITY);
            }
        };
        if objects.store().get(&Key::new(self.endpoints, &namespace, &name)).is_none() {
            let mut object = json!({"metadata": {"name": name, "namespace": namespace}});
            complete(&mut object);
            return objects.create(self.endpoints, &namespace, object, false).await.map(drop);
        }
        let updated = objects.update(self.endpoints, &namespace, &name, Part::Whole, false, |live| {
            let mut desired = live.clone();
            complete(&mut desired);
            Ok(desired)
        });
        updated.await.map(drop)
    }

    fn slices_of(&self, service: &Name) -> Vec<Arc<Object>> {
        let (mut slices, _) = self.shared.objects().list(self.slices, Some(&service.namespace));
        let is_label = |slice: &Object, label: &str, value: &str| slice.labels.get(label).is_some_and(|each| each == value);
        slices.retain(|slice| is_label(slice, SERVICE_NAME, &service.name) && is_label(slice, SLICE_MANAGER.0, SLICE_MANAGER.1));
        slices
    }

    async fn write_slices(&self, name: &Name, service: &Service, pods: &[Pod]) -> Result<(), Status> {
        let objects = self.shared.objects();
        let observed: Vec<(Slice, bool)> = self.slices_of(name).iter().map(|slice| read_slice(&slice.value(), service)).collect();
        for (slice, current) in &observed {
            if !current {
                let relabelled = objects.update(self.slices, &name.namespace, &slice.name, Part::Whole, false, |live| {
                    let mut desired = live.clone();
                    desired["metadata"]["labels"] = json!(slice_labels(service));
                    Ok(desired)
                });
                relabelled.await?;
            }
        }
        let ops = plan::plan(plan::endpoints(service, pods), observed.into_iter().map(|(slice, _)| slice).collect());
        for op in ops {
            match op {
                Op::Create { ports, endpoints } => {
                    let slice = json!({
                        "metadata": {
                            "generateName": format!("{}-", name.name),
                            "namespace": name.namespace,
                            "labels": slice_labels(service),
                            "ownerReferences": [controller_reference("v1", "Service", &service.metadata)],
                        },
                        "addressType": "IPv4",
                        "ports": ports,
                        "endpoints": endpoints,
                    });
                    objects.create(self.slices, &name.namespace, slice, false).await?;
                }
                Op::Update { name: slice, endpoints } => {
                    let updated = objects.update(self.slices, &name.namespace, &slice, Part::Whole, false, |live| {
                        let mut desired = live.clone();
                        desired["endpoints"] = endpoints.clone().into();
                        Ok(desired)
                    });
                    updated.await?;
                }
                Op::Delete { name: slice } => self.delete(self.slices, &name.namespace, &slice).await?,
            }
        }
        Ok(())
    }

    async fn delete(&self, resource: &'static Resource, namespace: &str, name: &str) -> Result<(), Status> {
        match self.shared.objects().delete(resource, namespace, name, &DeleteOptions::default()).await {
            Err(status) if !status.is_not_found() => Err(status),
            _ => Ok(()),
        }
    }

    /// The Service is gone: its slices go with it as its dependents, its Endpoints by name.
    async fn clear(&self, name: &Name) -> Result<(), Status> {
        let endpoints = self.shared.objects().store().get(&Key::new(self.endpoints, &name.namespace, &name.name));
        if endpoints.is_some_and(|endpoints| endpoints.labels.get(ENDPOINTS_MANAGER.0).is_some_and(|by| by == ENDPOINTS_MANAGER.1)) {
            self.delete(self.endpoints, &name.namespace, &name.name).await?;
        }
        Ok(())
    }
}

impl Loop for Controller {
    type Key = Name;
    const NAME: &'static str = "endpoints";
    const WORKERS: usize = 2;

    fn queue(&self) -> &Queue<Name> {
        &self.queue
    }

    async fn sync(&self, name: &Name) -> anyhow::Result<Option<Duration>> {
        let objects = self.shared.objects();
        let Some(object) = objects.store().get(&Key::new(self.services, &name.namespace, &name.name)) else {
            self.clear(name).await?;
            self.note_size(name, 0);
            return Ok(None);
        };
        if let Some(wait) = self.paces.iter().find_map(|pace| pace.wait(name)) {
            return Ok(Some(wait));
        }
        let service: Service = object.view()?;
        if service.spec.selector.is_empty() || service.spec.kind == "ExternalName" || service.metadata.is_deleting() {
            return Ok(None);
        }
        let (all, _) = objects.list(self.pods, Some(&name.namespace));
        let selected = all.iter().filter(|pod| is_selected(&service.spec.selector, &pod.labels));
        let pods: Vec<Pod> = selected.map(|pod| pod.view()).collect::<anyhow::Result<_>>()?;
        self.note_size(name, pods.len());
        let written = match self.write_endpoints(&service, &pods).await {
            Ok(()) => self.write_slices(name, &service, &pods).await,
            refused => refused,
        };
        match written {
            Err(status) if !is_namespace_ending(&status) => Err(status.into()),
            _ => Ok(None),
        }
    }
}

fn is_selected(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The Service's labels and those that say whose the object is.
fn labels(service: &Service, more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone();
    labels.remove(HEADLESS);
    if service.is_headless() {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    labels
}

fn slice_labels(service: &Service) -> BTreeMap<String, String> {
    labels(service, &[SLICE_MANAGER, (SERVICE_NAME, &service.metadata.name)])
}

/// A slice as the plan compares it, and whether its labels are those it should have.
fn read_slice(value: &Value, service: &Service) -> (Slice, bool) {
    let endpoints = value["endpoints"].as_array().into_iter().flatten();
    let endpoint =
        |value: &Value| Endpoint { uid: value["targetRef"]["uid"].as_str().unwrap_or_default().to_owned(), value: value.clone() };
    let ports = value.get("ports").filter(|ports| ports.is_array()).cloned().unwrap_or_else(|| json!([]));
    let slice = Slice { name: meta::name(value).to_owned(), ports, endpoints: endpoints.map(endpoint).collect() };
    (slice, value["metadata"]["labels"] == json!(slice_labels(service)))
}
