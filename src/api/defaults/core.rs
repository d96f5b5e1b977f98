//! Defaults of the core group: pods and what is in them, services, volumes, and the rest of v1.

use serde_json::{Value, json};

use super::{Object, made, object, objects, set, text};
use crate::api::quantity::Quantity;

pub(super) fn message(name: &str, map: &mut Object) {
    match name {
        "Pod" => pod(map),
        "PodSpec" => pod_spec(map),
        "Container" | "EphemeralContainer" => container(map),
        "ContainerPort" => set(map, "protocol", "TCP"),
        "Probe" => probe(map),
        "HTTPGetAction" => {
            set(map, "path", "/");
            set(map, "scheme", "HTTP");
        }
        "GRPCAction" => set(map, "service", ""),
        "ObjectFieldSelector" => set(map, "apiVersion", "v1"),
        "FileKeySelector" => set(map, "optional", false),
        "Volume" => volume(map),
        "SecretVolumeSource" | "ConfigMapVolumeSource" | "DownwardAPIVolumeSource" | "ProjectedVolumeSource" => {
            set(map, "defaultMode", 0o644)
        }
        "ServiceAccountTokenProjection" => set(map, "expirationSeconds", 3600),
        "HostPathVolumeSource" => set(map, "type", ""),
        "ISCSIVolumeSource" | "ISCSIPersistentVolumeSource" => set(map, "iscsiInterface", "default"),
        "RBDVolumeSource" | "RBDPersistentVolumeSource" => {
            set(map, "pool", "rbd");
            set(map, "user", "admin");
            set(map, "keyring", "/etc/ceph/keyring");
        }
        "AzureDiskVolumeSource" => {
            set(map, "cachingMode", "ReadWrite");
            set(map, "fsType", "ext4");
            set(map, "readOnly", false);
            set(map, "kind", "Shared");
        }
        "ScaleIOVolumeSource" | "ScaleIOPersistentVolumeSource" => {
            set(map, "storageMode", "ThinProvisioned");
            set(map, "fsType", "xfs");
        }
        "Service" => service(map),
        "Endpoints" => {
            for subset in objects(map, "subsets") {
                objects(subset, "ports").for_each(|port| set(port, "protocol", "TCP"));
            }
        }
        "Secret" => set(map, "type", "Opaque"),
        "Namespace" => namespace(map),
        "NamespaceStatus" => set(map, "phase", "Active"),
        "NodeStatus" => {
            if let Some(capacity) = map.get("capacity").cloned() {
                set(map, "allocatable", capacity);
            }
        }
        "PersistentVolume" => {
            if let Some(spec) = made(map, "spec") {
                set(spec, "persistentVolumeReclaimPolicy", "Retain");
                set(spec, "volumeMode", "Filesystem");
            }
            if let Some(status) = made(map, "status") {
                set(status, "phase", "Pending");
            }
        }
        "PersistentVolumeClaim" => {
            if let Some(status) = made(map, "status") {
                set(status, "phase", "Pending");
            }
        }
        "PersistentVolumeClaimSpec" => set(map, "volumeMode", "Filesystem"),
        "LimitRangeItem" => limit_range_item(map),
        "ReplicationController" => replication_controller(map),
        _ => {}
    }
}

fn pod(map: &mut Object) {
    let Some(spec) = made(map, "spec") else { return };
    for list in ["containers", "initContainers"] {
        for container in objects(spec, list) {
            requests_from_limits(container);
        }
    }
    pod_level_resources(spec);
    set(spec, "enableServiceLinks", true);
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        for list in ["containers", "initContainers"] {
            for container in objects(spec, list) {
                for port in objects(container, "ports") {
                    if port.get("hostPort").and_then(Value::as_i64).unwrap_or(0) == 0
                        && let Some(number) = port.get("containerPort").cloned()
                    {
                        port.insert("hostPort".into(), number);
                    }
                }
            }
        }
    }
}

fn requests_from_limits(container: &mut Object) {
    let Some(resources) = object(container, "resources") else { return };
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else { return };
    if let Some(requests) = made(resources, "requests") {
        limits.into_iter().for_each(|(name, limit)| set(requests, &name, limit));
    }
}

/// Pod-level requests and huge page limits follow from the containers' when some are given (KEP-2837).
fn pod_level_resources(spec: &mut Object) {
    let Some(Value::Object(resources)) = spec.get("resources") else { return };
    let given = |resources: &Object, list: &str| resources.get(list).and_then(Value::as_object).is_some_and(|list| !list.is_empty());
    if !given(resources, "limits") && !given(resources, "requests") {
        return;
    }
    let (requests, limits) = (aggregate(spec, "requests"), aggregate(spec, "limits"));
    let Some(resources) = object(spec, "resources") else { return };
    let requested = |resources: &Object, name: &str| resources.get("requests").and_then(|requests| requests.get(name)).is_some();
    for (name, limit) in limits.iter().filter(|(name, _)| name.starts_with("hugepages-")) {
        if !requested(resources, name)
            && let Some(limits) = made(resources, "limits")
        {
            set(limits, name, limit.clone());
        }
    }
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else { return };
    if limits.is_empty() {
        return;
    }
    let supported = |name: &str| matches!(name, "cpu" | "memory") || name.starts_with("hugepages-");
    let Some(into) = made(resources, "requests") else { return };
    for (name, request) in requests.iter().filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory")) {
        set(into, name, request.clone());
    }
    limits.into_iter().filter(|(name, _)| supported(name)).for_each(|(name, limit)| set(into, &name, limit));
    if into.is_empty() {
        resources.remove("requests");
    }
}

/// What all containers of a pod ask for together: those that run side by side added up, or the largest init container if that is more.
fn aggregate(spec: &Object, list: &str) -> Object {
    let containers = |key: &str| spec.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let amounts = |container: &Value| -> Vec<(String, Quantity)> {
        let map = container.pointer(&format!("/resources/{list}")).and_then(Value::as_object);
        let read = |(name, value): (&String, &Value)| Some((name.clone(), Quantity::parse(value.as_str()?).ok()?));
        map.into_iter().flatten().filter_map(read).collect()
    };
    let add = |sum: &mut Vec<(String, Quantity)>, more: &[(String, Quantity)]| {
        for (name, amount) in more {
            match sum.iter_mut().find(|(known, _)| known == name) {
                Some((_, total)) => *total = total.add(*amount),
                None => sum.push((name.clone(), *amount)),
            }
        }
    };
    let mut running = Vec::new();
    containers("containers").iter().for_each(|container| add(&mut running, &amounts(container)));
    let (mut sidecars, mut starting) = (Vec::new(), Vec::<(String, Quantity)>::new());
    for container in containers("initContainers") {
        let mut now = amounts(container);
        if container["restartPolicy"] == "Always" {
            add(&mut running, &now);
            add(&mut sidecars, &now);
            now = sidecars.clone();
        } else {
            add(&mut now, &sidecars);
        }
        for (name, amount) in now {
            match starting.iter_mut().find(|(known, _)| *known == name) {
                Some((_, most)) => *most = (*most).max(amount),
                None => starting.push((name, amount)),
            }
        }
    }
    for (name, amount) in starting {
        match running.iter_mut().find(|(known, _)| *known == name) {
            Some((_, total)) => *total = (*total).max(amount),
            None => running.push((name, amount)),
        }
    }
    running.into_iter().map(|(name, amount)| (name, amount.to_string().into())).collect()
}

fn pod_spec(map: &mut Object) {
    set(map, "dnsPolicy", "ClusterFirst");
    set(map, "restartPolicy", "Always");
    set(map, "securityContext", json!({}));
    set(map, "terminationGracePeriodSeconds", 30);
    set(map, "schedulerName", "default-scheduler");
    // Not a default: the older name of the field is kept beside the newer one by conversion (pkg/apis/core/v1/conversion.go).
    match map.get("serviceAccountName").cloned() {
        Some(name) => {
            map.insert("serviceAccount".into(), name);
        }
        None => {
            if let Some(name) = map.get("serviceAccount").cloned() {
                map.insert("serviceAccountName".into(), name);
            }
        }
    }
}

fn container(map: &mut Object) {
    let policy = pull_policy(text(map, "image"));
    set(map, "imagePullPolicy", policy);
    set(map, "terminationMessagePath", "/dev/termination-log");
    set(map, "terminationMessagePolicy", "File");
}

/// `Always` for images that say `latest`, or nothing at all.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or_default();
    let (repository, tag) = last.split_once(':').map_or((last, None), |(repository, tag)| (repository, Some(tag)));
    // What is no image name is left to validation and to the node.
    let valid = !repository.is_empty() && !repository.bytes().any(|byte| byte.is_ascii_uppercase() || byte == b' ');
    match (tag, digest) {
        (Some("latest"), _) if valid => "Always",
        (None, None) if valid => "Always",
        _ => "IfNotPresent",
    }
}

fn probe(map: &mut Object) {
    set(map, "timeoutSeconds", 1);
    set(map, "periodSeconds", 10);
    set(map, "successThreshold", 1);
    set(map, "failureThreshold", 3);
}

fn volume(map: &mut Object) {
    if map.keys().all(|key| key == "name") {
        map.insert("emptyDir".into(), json!({}));
    }
    if let Some(image) = object(map, "image") {
        let policy = pull_policy(text(image, "reference"));
        set(image, "pullPolicy", policy);
    }
}

fn service(map: &mut Object) {
    let Some(spec) = made(map, "spec") else { return };
    set(spec, "sessionAffinity", "None");
    match text(spec, "sessionAffinity") {
        "None" => {
            spec.remove("sessionAffinityConfig");
        }
        "ClientIP" if spec.get("sessionAffinityConfig").and_then(|config| config.pointer("/clientIP/timeoutSeconds")).is_none() => {
            spec.insert("sessionAffinityConfig".into(), json!({"clientIP": {"timeoutSeconds": 10800}}));
        }
        _ => {}
    }
    set(spec, "type", "ClusterIP");
    for port in objects(spec, "ports") {
        set(port, "protocol", "TCP");
        let unset = port.get("targetPort").is_none_or(|target| target == 0 || target == "");
        if unset && let Some(number) = port.get("port").cloned() {
            port.insert("targetPort".into(), number);
        }
    }
    let kind = text(spec, "type").to_owned();
    let external = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") || kind == "ClusterIP" && external {
        set(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        set(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
        if let Some(balancer) = object(map, "status").and_then(|status| object(status, "loadBalancer")) {
            for ingress in objects(balancer, "ingress") {
                if !text(ingress, "ip").is_empty() {
                    set(ingress, "ipMode", "VIP");
                }
            }
        }
    }
}

fn namespace(map: &mut Object) {
    let Some(metadata) = made(map, "metadata") else { return };
    let name = text(metadata, "name").to_owned();
    if !name.is_empty()
        && let Some(labels) = made(metadata, "labels")
    {
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
    }
}

fn limit_range_item(map: &mut Object) {
    if text(map, "type") != "Container" {
        return;
    }
    for (into, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
        let Some(Value::Object(from)) = map.get(from).cloned() else { continue };
        if let Some(into) = made(map, into) {
            from.into_iter().for_each(|(name, amount)| set(into, &name, amount));
        }
    }
}

fn replication_controller(map: &mut Object) {
    let labels = map.get("spec").and_then(|spec| spec.pointer("/template/metadata/labels")).cloned();
    let Some(spec) = made(map, "spec") else { return };
    set(spec, "replicas", 1);
    let Some(labels) = labels else { return };
    set(spec, "selector", labels.clone());
    if let Some(metadata) = made(map, "metadata") {
        set(metadata, "labels", labels);
    }
}
