//! Objects that every cluster begins with: namespaces, the Service `kubernetes`, priority classes, roles and bindings.
//! Each is made once: what an administrator changed or deleted afterwards is not put back, except what the API cannot do without.

use std::net::IpAddr;

use futures_util::future::try_join_all;
use serde_json::{Value, json};

use crate::api::schema::{self, Resource};
use crate::api::status::Status;
use crate::master::store::Objects;
use crate::master::store::objects::Part;

/// The cluster address of the API: the first of the Services' range.
pub const SERVICE_ADDRESS: &str = "10.96.0.1";
/// Where every node's own name server answers its pods.
const DNS_ADDRESS: &str = "10.96.0.10";
const SERVICES: &str = "10.96.0.0/16";

/// Makes what is missing. `address` and `port` are where the API server can be reached from the nodes.
///
/// # Errors
/// If the store refuses; what was made before stays.
pub async fn run(objects: &Objects, address: IpAddr, port: u16) -> Result<(), Status> {
    let namespaces = ["default", "kube-system", "kube-public", "kube-node-lease"];
    try_join_all(namespaces.map(|name| ensure(objects, "", "namespaces", "", name, json!({})))).await?;
    // All at once: one sync of the store serves them all.
    let first = first_objects();
    try_join_all(first.into_iter().map(|(group, plural, name, object)| ensure(objects, group, plural, "", name, object))).await?;
    service(objects, address, port).await
}

/// (group, plural, name, object) of priority classes, roles and bindings.
fn first_objects() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    let mut first = Vec::new();
    for (name, value, what) in [
        ("system-node-critical", 2_000_001_000, "cannot be moved from their current node"),
        ("system-cluster-critical", 2_000_000_000, "must run in the cluster, but can be moved to another node if necessary"),
    ] {
        let description = format!("Used for system critical pods that {what}.");
        let class = json!({"value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority", "globalDefault": false});
        first.push(("scheduling.k8s.io", "priorityclasses", name, class));
    }
    first.extend(ROLES.iter().map(|role| (super::auth::rbac::GROUP, "clusterroles", role.name, role.object())));
    for (name, group) in BINDINGS {
        let subjects: Vec<Value> =
            group.split(' ').map(|group| json!({"kind": "Group", "apiGroup": super::auth::rbac::GROUP, "name": group})).collect();
        let binding = json!({
            "metadata": {"labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}}, "subjects": subjects,
            "roleRef": {"apiGroup": super::auth::rbac::GROUP, "kind": "ClusterRole", "name": name},
        });
        first.push((super::auth::rbac::GROUP, "clusterrolebindings", name, binding));
    }
    first
}

/// The Service `kubernetes`, and where it leads: the one thing that follows the master when it moves.
async fn service(objects: &Objects, address: IpAddr, port: u16) -> Result<(), Status> {
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({"metadata": {"labels": labels}, "spec": {
        "type": "ClusterIP", "clusterIP": SERVICE_ADDRESS, "sessionAffinity": "None",
        "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
    }});
    ensure(objects, "", "services", "default", "kubernetes", service).await?;
    if schema::resource("networking.k8s.io", "v1", "servicecidrs").is_some() {
        ensure(objects, "networking.k8s.io", "servicecidrs", "", "kubernetes", json!({"spec": {"cidrs": [SERVICES]}})).await?;
    }
    let ports = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
    let endpoints = json!({
        "metadata": {"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": address.to_string()}], "ports": ports}],
    });
    follow(objects, "", "endpoints", endpoints, "subsets").await?;
    let slice = json!({
        "metadata": {"labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}], "ports": ports,
    });
    follow(objects, "discovery.k8s.io", "endpointslices", slice, "endpoints").await?;
    // It has no endpoints: the nodes answer themselves. Without it another Service might be given the address.
    let names = json!({"metadata": {"labels": {"k8s-app": "kube-dns"}}, "spec": {
        "type": "ClusterIP", "clusterIP": DNS_ADDRESS, "sessionAffinity": "None",
        "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}],
    }});
    if let Err(status) = ensure(objects, "", "services", "kube-system", "kube-dns", names).await {
        log::error!("service=kube-system/kube-dns not made, pods may not resolve names: {}", status.message);
    }
    Ok(())
}

/// Makes an object of `default` named `kubernetes`, or sets one field of it right.
async fn follow(objects: &Objects, group: &str, plural: &str, desired: Value, field: &str) -> Result<(), Status> {
    ensure(objects, group, plural, "default", "kubernetes", desired.clone()).await?;
    let set = |live: &Value| {
        let mut value = live.clone();
        for field in [field, "ports"] {
            if let Some(content) = desired.get(field) {
                value[field] = content.clone();
            }
        }
        Ok(value)
    };
    objects.update(find(group, plural)?, "default", "kubernetes", Part::Whole, false, set).await.map(drop)
}

fn find(group: &str, plural: &str) -> Result<&'static Resource, Status> {
    schema::resource(group, "v1", plural).ok_or_else(Status::no_such_resource)
}

async fn ensure(objects: &Objects, group: &str, plural: &str, namespace: &str, name: &str, mut object: Value) -> Result<(), Status> {
    let resource = find(group, plural)?;
    if objects.get(resource, namespace, name).is_ok() {
        return Ok(());
    }
    object["metadata"]["name"] = name.into();
    match objects.create(resource, namespace, object, false).await {
        Err(other) if !other.is_already_exists() => Err(other),
        _ => Ok(()),
    }
}

/// A role in short: words separated by blanks.
struct Role {
    name: &'static str,
    /// `admin`, `edit` or `view`, if the role is part of that one.
    part_of: &'static str,
    /// Whether it is the sum of the roles that are part of it.
    sum: bool,
    rules: &'static [Rule],
}

enum Rule {
    /// Verbs, API groups (`core` for the one without a name), resources.
    On(&'static str, &'static str, &'static str),
    /// Paths, to get.
    Paths(&'static str),
}

use Rule::{On, Paths};

const READ: &str = "get list watch";
const WRITE: &str = "create delete deletecollection patch update";
const ALL: &str = "create delete deletecollection get list patch update watch";
const APPS: &str = "daemonsets deployments replicasets statefulsets deployments/scale replicasets/scale statefulsets/scale";

impl Role {
    fn object(&self) -> Value {
        let mut labels = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
        if !self.part_of.is_empty() {
            labels[format!("rbac.authorization.k8s.io/aggregate-to-{}", self.part_of)] = "true".into();
        }
        let mut object = json!({
            "metadata": {"labels": labels, "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}},
            "rules": self.all_rules(),
        });
        if self.sum {
            let label = format!("rbac.authorization.k8s.io/aggregate-to-{}", self.name);
            object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
        }
        object
    }

    /// Its own, and those of its parts and their parts, as upstream's aggregation controller writes them down.
    fn all_rules(&self) -> Vec<Value> {
        let mut rules: Vec<Value> = self.rules.iter().map(Rule::object).collect();
        if self.sum {
            rules.extend(ROLES.iter().filter(|part| part.part_of == self.name).flat_map(Role::all_rules));
        }
        rules
    }
}

impl Rule {
    fn object(&self) -> Value {
        let words = |text: &'static str| -> Vec<&str> { text.split(' ').map(|word| if word == "core" { "" } else { word }).collect() };
        match self {
            On(verbs, groups, resources) => json!({"verbs": words(verbs), "apiGroups": words(groups), "resources": words(resources)}),
            Paths("*") => json!({"verbs": ["*"], "nonResourceURLs": ["*"]}),
            Paths(paths) => json!({"verbs": ["get"], "nonResourceURLs": words(paths)}),
        }
    }
}

/// Upstream's, k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy, as far as there is anything here to use them on.
static ROLES: &[Role] = &[
    Role { name: "cluster-admin", part_of: "", sum: false, rules: &[On("*", "*", "*"), Paths("*")] },
    Role { name: "admin", part_of: "", sum: true, rules: &[] },
    Role { name: "edit", part_of: "admin", sum: true, rules: &[] },
    Role { name: "view", part_of: "edit", sum: true, rules: &[] },
    Role {
        name: "system:aggregate-to-admin",
        part_of: "admin",
        sum: false,
        rules: &[
            On("create", "authorization.k8s.io", "localsubjectaccessreviews"),
            On(ALL, "rbac.authorization.k8s.io", "rolebindings roles"),
        ],
    },
    Role {
        name: "system:aggregate-to-edit",
        part_of: "edit",
        sum: false,
        rules: &[
            On(READ, "core", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy"),
            On("impersonate", "core", "serviceaccounts"),
            On(WRITE, "core", "pods pods/attach pods/exec pods/portforward pods/proxy"),
            On("create", "core", "pods/eviction serviceaccounts/token"),
            On(
                WRITE,
                "core",
                "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets serviceaccounts \
                 services services/proxy",
            ),
            On(WRITE, "apps", APPS),
            On(WRITE, "autoscaling", "horizontalpodautoscalers"),
            On(WRITE, "batch", "cronjobs jobs"),
            On(WRITE, "policy", "poddisruptionbudgets"),
            On(WRITE, "networking.k8s.io", "ingresses networkpolicies"),
            On(ALL, "coordination.k8s.io", "leases"),
            On(WRITE, "resource.k8s.io", "resourceclaims resourceclaimtemplates"),
        ],
    },
    Role { name: "system:aggregated-metrics-reader", part_of: "view", sum: false, rules: &[On(READ, "metrics.k8s.io", "nodes pods")] },
    Role {
        name: "system:aggregate-to-view",
        part_of: "view",
        sum: false,
        rules: &[
            On(
                READ,
                "core",
                "bindings configmaps endpoints events limitranges namespaces namespaces/status persistentvolumeclaims \
                 persistentvolumeclaims/status pods pods/log pods/status replicationcontrollers replicationcontrollers/scale \
                 replicationcontrollers/status resourcequotas resourcequotas/status serviceaccounts services services/status",
            ),
            On(READ, "discovery.k8s.io", "endpointslices"),
            On(READ, "apps", "controllerrevisions"),
            On(READ, "apps", APPS),
            On(READ, "apps", "daemonsets/status deployments/status replicasets/status statefulsets/status"),
            On(READ, "autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status"),
            On(READ, "batch", "cronjobs cronjobs/status jobs jobs/status"),
            On(READ, "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
            On(READ, "networking.k8s.io", "ingresses ingresses/status networkpolicies"),
            On(READ, "resource.k8s.io", "resourceclaims resourceclaims/status resourceclaimtemplates"),
        ],
    },
    Role {
        name: "system:discovery",
        part_of: "",
        sum: false,
        rules: &[Paths("/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/")],
    },
    Role {
        name: "system:basic-user",
        part_of: "",
        sum: false,
        rules: &[
            On("create", "authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews"),
            On("create", "authentication.k8s.io", "selfsubjectreviews"),
        ],
    },
    Role { name: "system:public-info-viewer", part_of: "", sum: false, rules: &[Paths("/healthz /livez /readyz /version /version/")] },
    Role {
        name: "system:service-account-issuer-discovery",
        part_of: "",
        sum: false,
        rules: &[Paths("/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/")],
    },
    Role {
        name: "system:monitoring",
        part_of: "",
        sum: false,
        rules: &[Paths("/healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/*")],
    },
    Role {
        name: "system:auth-delegator",
        part_of: "",
        sum: false,
        rules: &[On("create", "authentication.k8s.io", "tokenreviews"), On("create", "authorization.k8s.io", "subjectaccessreviews")],
    },
    Role {
        name: "system:node-bootstrapper",
        part_of: "",
        sum: false,
        rules: &[On("create get list watch", "certificates.k8s.io", "certificatesigningrequests")],
    },
];

/// A role and the groups that have it.
const BINDINGS: [(&str, &str); 7] = [
    ("cluster-admin", "system:masters"),
    ("system:basic-user", "system:authenticated"),
    ("system:discovery", "system:authenticated"),
    ("system:monitoring", "system:monitoring"),
    ("system:node-bootstrapper", "system:bootstrappers"),
    ("system:public-info-viewer", "system:authenticated system:unauthenticated"),
    ("system:service-account-issuer-discovery", "system:serviceaccounts"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_is_the_sum_of_edit_and_view() {
        let role = |name: &str| ROLES.iter().find(|role| role.name == name).unwrap().object();
        let has = |role: &Value, resource: &str| {
            role["rules"]
                .as_array()
                .unwrap()
                .iter()
                .any(|rule| rule["resources"].as_array().is_some_and(|all| all.contains(&resource.into())))
        };
        for (name, roles, secrets, pods) in [("admin", true, true, true), ("edit", false, true, true), ("view", false, false, true)] {
            let role = role(name);
            assert_eq!((has(&role, "roles"), has(&role, "secrets"), has(&role, "pods")), (roles, secrets, pods), "{name}");
        }
    }
}
