//! What a node may do: read what every node needs, write its own Node, lease and pods' status, and read only those secrets,
//! config maps, claims and volumes that pods bound to it use. Follows upstream's node authorizer and NodeRestriction, and adds
//! what an agent does here that kube-proxy does there.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Attributes, Decision, User};
use crate::api::schema;
use crate::api::status::Status;
use crate::master::store::Objects;

const NODES: &str = "system:nodes";
const USER_PREFIX: &str = "system:node:";
const LEASES: &str = "kube-node-lease";
/// Labels with this prefix are for administrators to set apart nodes that must not declare themselves.
const RESTRICTED_LABELS: &str = "node-restriction.kubernetes.io/";

/// The node a user is, if it is one.
pub fn name_of(user: &User) -> Option<&str> {
    user.name.strip_prefix(USER_PREFIX).filter(|name| !name.is_empty() && user.is_in(NODES))
}

pub fn authorize(objects: &Objects, user: &User, attributes: &Attributes) -> Decision {
    let Some(node) = name_of(user) else { return Decision::NoOpinion(String::new()) };
    match decide(objects, node, attributes) {
        Ok(()) => Decision::Allowed(String::new()),
        Err(reason) => Decision::NoOpinion(reason),
    }
}

fn decide(objects: &Objects, node: &str, attributes: &Attributes) -> Result<(), String> {
    let Attributes { verb, resource, subresource, namespace, name, .. } = *attributes;
    let reads = ["get", "list", "watch"].contains(&verb);
    let allow = |allowed: bool, reason: &str| if allowed { Ok(()) } else { Err(reason.to_owned()) };
    match (attributes.group, resource, subresource) {
        ("", "nodes", "") if ["create", "get", "list", "watch"].contains(&verb) => Ok(()),
        ("", "nodes", "" | "status" | "tunnel") => allow(name == node, "a node may change only its own Node"),
        ("", "pods", "") if verb == "list" || verb == "watch" => {
            let own = format!("spec.nodeName={node}");
            let selected = attributes.field_selector.replace("==", "=").split(',').any(|term| term == own);
            // Policies select pods of all nodes; without one, no node has to know them.
            let selected = selected || has_policies(objects);
            allow(selected || own_pod(objects, node, namespace, name), "can only list and watch pods with spec.nodeName field selector")
        }
        ("", "pods", "" | "status" | "eviction") => {
            let verbs: &[&str] = match subresource {
                "" => &["get", "delete"],
                "status" => &["get", "update", "patch"],
                _ => &["create"],
            };
            allow(verbs.contains(&verb), "can only read and delete pods and change their status")?;
            allow(own_pod(objects, node, namespace, name), &unrelated(node))
        }
        ("", "secrets" | "configmaps" | "persistentvolumeclaims" | "persistentvolumes", "") => {
            allow(reads, "can only read resources of this type")?;
            allow(!name.is_empty(), "No Object name found")?;
            allow(is_used(objects, node, resource, namespace, name), &unrelated(node))
        }
        ("", "serviceaccounts", "token") => {
            allow(verb == "create", "can only create tokens for individual service accounts")?;
            allow(is_used(objects, node, "serviceaccounts", namespace, name), &unrelated(node))
        }
        ("" | "events.k8s.io", "events", "") => allow(["create", "patch", "update"].contains(&verb), "can only write events"),
        ("coordination.k8s.io", "leases", "") => {
            allow(namespace == LEASES, &format!("can only access leases in the {LEASES:?} system namespace"))?;
            allow(verb == "create" || name == node, "can only access node lease with the same name as the requesting node")
        }
        ("storage.k8s.io", "csinodes", "") => allow(verb == "create" || name == node, "can only access its own CSINode"),
        ("certificates.k8s.io", "certificatesigningrequests", "") => {
            allow(["create", "get", "list", "watch"].contains(&verb), "can only make and read requests")
        }
        ("authentication.k8s.io", "tokenreviews", "")
        | ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => {
            allow(verb == "create", "can only create reviews")
        }
        // What Services, DNS and network policies on a node are made of.
        ("", "services" | "endpoints" | "namespaces", "")
        | ("discovery.k8s.io", "endpointslices", "")
        | ("networking.k8s.io", "networkpolicies", "")
        | ("node.k8s.io", "runtimeclasses", "")
        | ("storage.k8s.io", "csidrivers", "") => allow(reads, "can only read resources of this type"),
        _ => Err(String::new()),
    }
}

fn has_policies(objects: &Objects) -> bool {
    let policies = schema::resource("networking.k8s.io", "v1", "networkpolicies");
    policies.is_some_and(|policies| !objects.list(policies, None).0.is_empty())
}

fn unrelated(node: &str) -> String {
    format!("no relationship found between node '{node}' and this object")
}

fn own_pod(objects: &Objects, node: &str, namespace: &str, name: &str) -> bool {
    let Some(pods) = schema::resource("", "v1", "pods") else { return false };
    if namespace.is_empty() || name.is_empty() {
        return false;
    }
    // One that does not exist is not found rather than forbidden: a node that lags behind learns that its pod is gone.
    objects.get(pods, namespace, name).map_or(true, |pod| *pod.node == *node)
}

/// Whether a pod bound to the node uses the object.
fn is_used(objects: &Objects, node: &str, resource: &str, namespace: &str, name: &str) -> bool {
    let (resource, namespace, name) = match resource {
        "persistentvolumes" => match claim_of(objects, name) {
            Some((namespace, claim)) => ("persistentvolumeclaims", namespace, claim),
            None => return false,
        },
        _ => (resource, namespace.to_owned(), name.to_owned()),
    };
    let Some(pods) = schema::resource("", "v1", "pods") else { return false };
    let (own, _) = objects.store().list_on_node(pods, Some(&namespace), node);
    own.iter().any(|pod| references(&pod.value(), resource).contains(&*name))
}

fn claim_of(objects: &Objects, volume: &str) -> Option<(String, String)> {
    let volume = objects.get(schema::resource("", "v1", "persistentvolumes")?, "", volume).ok()?.value();
    let claim = &volume["spec"]["claimRef"];
    Some((claim["namespace"].as_str()?.to_owned(), claim["name"].as_str()?.to_owned()))
}

/// Names of the objects of one resource that a pod uses.
fn references<'a>(pod: &'a Value, resource: &str) -> BTreeSet<&'a str> {
    let spec = &pod["spec"];
    let list = |value: &'a Value| value.as_array().map_or(&[][..], Vec::as_slice);
    let (kind, key, reference) = match resource {
        "serviceaccounts" => return spec["serviceAccountName"].as_str().into_iter().collect(),
        "persistentvolumeclaims" => {
            let claims = list(&spec["volumes"]).iter().filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str());
            return claims.collect();
        }
        "secrets" => ("secret", "secretKeyRef", "secretRef"),
        _ => ("configMap", "configMapKeyRef", "configMapRef"),
    };
    let mut found: Vec<&Value> = Vec::new();
    for container in ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|field| list(&spec[field])) {
        found.extend(list(&container["env"]).iter().map(|variable| &variable["valueFrom"][key]["name"]));
        found.extend(list(&container["envFrom"]).iter().map(|source| &source[reference]["name"]));
    }
    for volume in list(&spec["volumes"]) {
        found.extend([&volume[kind]["name"], &volume[kind]["secretName"]]);
        found.extend(list(&volume["projected"]["sources"]).iter().map(|source| &source[kind]["name"]));
        if kind == "secret" {
            let others = ["cephfs", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"];
            found.extend(others.iter().map(|other| &volume[other]["secretRef"]["name"]));
            found.extend([&volume["csi"]["nodePublishSecretRef"]["name"], &volume["azureFile"]["secretName"]]);
        }
    }
    if kind == "secret" {
        found.extend(list(&spec["imagePullSecrets"]).iter().map(|secret| &secret["name"]));
    }
    found.into_iter().filter_map(Value::as_str).collect()
}

/// What a node may not do although it may write the object: upstream's NodeRestriction.
///
/// # Errors
/// 403.
pub fn restrict(user: &User, resource: &schema::Resource, subresource: &str, object: &Value, live: Option<&Value>) -> Result<(), Status> {
    let Some(node) = name_of(user) else { return Ok(()) };
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let refuse = |why: &str| Err(Status::forbidden(resource.group, resource.plural, name, format!("node {node:?} {why}")));
    match (resource.plural, subresource) {
        ("nodes" | "leases" | "csinodes", _) if name != node => refuse("is not allowed to write the object of another node"),
        ("nodes", "") => {
            let restricted = |object: Option<&Value>| -> Vec<(String, Value)> {
                let labels = object.and_then(|object| object["metadata"]["labels"].as_object()).into_iter().flatten();
                labels.filter(|(key, _)| key.contains(RESTRICTED_LABELS)).map(|(key, value)| (key.clone(), value.clone())).collect()
            };
            let taints = |object: &Value| object["spec"].get("taints").cloned();
            if restricted(Some(object)) != restricted(live) {
                return refuse("is not allowed to modify labels of node-restriction.kubernetes.io");
            }
            if live.is_some_and(|live| taints(live) != taints(object)) {
                return refuse("is not allowed to modify taints");
            }
            Ok(())
        }
        ("serviceaccounts", "token") if object["spec"]["boundObjectRef"]["kind"] != "Pod" => {
            refuse("may only request tokens bound to a pod")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_uses_what_its_volumes_and_environment_name() {
        let pod = json!({"spec": {
            "serviceAccountName": "web", "imagePullSecrets": [{"name": "registry"}],
            "initContainers": [{"envFrom": [{"configMapRef": {"name": "init"}}]}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "password", "key": "p"}}}]}],
            "volumes": [{"secret": {"secretName": "tls"}}, {"configMap": {"name": "page"}}, {"persistentVolumeClaim": {"claimName": "data"}},
                {"projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}, {"serviceAccountToken": {"path": "token"}}]}}]}});
        let check = |resource: &str, expected: &[&str]| assert_eq!(references(&pod, resource).into_iter().collect::<Vec<_>>(), expected);
        check("secrets", &["password", "registry", "tls"]);
        check("configmaps", &["init", "kube-root-ca.crt", "page"]);
        check("persistentvolumeclaims", &["data"]);
        check("serviceaccounts", &["web"]);
    }

    #[test]
    fn a_node_writes_only_its_own_node() {
        let user = User { name: "system:node:a".into(), groups: vec![NODES.into()], ..User::default() };
        let nodes = schema::resource("", "v1", "nodes").unwrap();
        let node = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}});
        assert!(restrict(&user, nodes, "", &node("a", json!({})), None).is_ok());
        assert!(restrict(&user, nodes, "", &node("b", json!({})), None).is_err());
        let label = json!({"node-restriction.kubernetes.io/zone": "x"});
        assert!(restrict(&user, nodes, "", &node("a", label.clone()), Some(&node("a", json!({})))).is_err());
        assert!(restrict(&user, nodes, "", &node("a", label.clone()), Some(&node("a", label))).is_ok());
    }
}
