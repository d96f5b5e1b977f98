//! Every resource that is served, in the order of discovery: names, verbs, subresources and the version that is stored.
//! Facts only; which of them somebody may use, and what the verbs do, is decided elsewhere.

use super::{Kind, kind};

/// One resource as one version of its group serves it.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub kind: &'static str,
    pub list_kind: &'static str,
    pub namespaced: bool,
    pub short_names: &'static [&'static str],
    /// `all` is what `kubectl get all` shows.
    pub categories: &'static [&'static str],
    /// In alphabetical order, as discovery gives them.
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Sub],
    /// (group, version, plural) under which objects are stored; another one if two versions share their objects.
    pub storage: (&'static str, &'static str, &'static str),
    /// Kept in memory only: what changes all the time and is worth nothing after a restart.
    pub volatile: bool,
}

/// A subresource, as `status` of `pods`.
#[derive(Debug, PartialEq, Eq)]
pub struct Sub {
    pub name: &'static str,
    /// (group, version, kind) of what is sent or answered; group and version are empty if they are the resource's own.
    pub kind: (&'static str, &'static str, &'static str),
    pub verbs: &'static [&'static str],
}

impl Resource {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.into() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Its kind in the schema table.
    pub fn schema(&self) -> Kind {
        kind(self.group, self.version, self.kind).expect("a test looks every resource's kind up")
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    pub fn subresource(&self, name: &str) -> Option<&'static Sub> {
        self.subresources.iter().find(|sub| sub.name == name)
    }

    /// Objects of it are kept in the store (and not only answered, as reviews are).
    pub fn is_stored(&self) -> bool {
        self.has_verb("watch") && self.group != "metrics.k8s.io"
    }

    /// The resource that its objects are stored as: itself, or the version it shares them with.
    pub fn stored_as(&'static self) -> &'static Resource {
        let (group, version, plural) = self.storage;
        resource(group, version, plural).expect("a test looks every storage resource up")
    }
}

/// The resource at `/apis/{group}/{version}/{plural}` (`/api/v1/{plural}` for the group "").
pub fn resource(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|row| row.plural == plural && row.group == group && row.version == version)
}

/// The resource whose objects are of this kind.
pub fn resource_of_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|row| row.kind == kind && row.group == group && row.version == version)
}

/// All resources of all groups; those of one group and version stand together, sorted by name.
pub fn resources() -> impl Iterator<Item = &'static Resource> {
    RESOURCES.iter()
}

/// (group, its versions, the preferred one first), in the order of discovery; the core group comes first.
pub fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for row in resources() {
        match groups.last_mut() {
            Some((group, versions)) if *group == row.group => {
                if versions.last() != Some(&row.version) {
                    versions.push(row.version);
                }
            }
            _ => groups.push((row.group, vec![row.version])),
        }
    }
    groups
}

const CRUD: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const READ: &[&str] = &["get", "list"];
const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];
const CREATE_GET: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
const ALL: &[&str] = &["all"];
const EXTENSIONS: &[&str] = &["api-extensions"];

/// A subresource of the resource's own group and version.
const fn sub(name: &'static str, kind: &'static str, verbs: &'static [&'static str]) -> Sub {
    Sub { name, kind: ("", "", kind), verbs }
}

const fn status(kind: &'static str) -> Sub {
    sub("status", kind, GET_PATCH_UPDATE)
}

const SCALE: Sub = Sub { name: "scale", kind: ("autoscaling", "v1", "Scale"), verbs: GET_PATCH_UPDATE };

/// A namespaced resource with all verbs and nothing special; the methods below say what is.
const fn row(
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    singular: &'static str,
    kind: &'static str,
    list_kind: &'static str,
) -> Resource {
    Resource {
        group,
        version,
        plural,
        singular,
        kind,
        list_kind,
        namespaced: true,
        short_names: &[],
        categories: &[],
        verbs: CRUD,
        subresources: &[],
        storage: (group, version, plural),
        volatile: false,
    }
}

impl Resource {
    const fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }

    const fn short(mut self, names: &'static [&'static str]) -> Self {
        self.short_names = names;
        self
    }

    const fn in_category(mut self, names: &'static [&'static str]) -> Self {
        self.categories = names;
        self
    }

    const fn verbs(mut self, verbs: &'static [&'static str]) -> Self {
        self.verbs = verbs;
        self
    }

    const fn subs(mut self, subresources: &'static [Sub]) -> Self {
        self.subresources = subresources;
        self
    }

    const fn stored_in(mut self, group: &'static str, version: &'static str) -> Self {
        self.storage = (group, version, self.plural);
        self
    }

    const fn volatile(mut self) -> Self {
        self.volatile = true;
        self
    }
}

static RESOURCES: &[Resource] = &[
    // v1
    row("", "v1", "bindings", "binding", "Binding", "BindingList").verbs(CREATE),
    row("", "v1", "componentstatuses", "componentstatus", "ComponentStatus", "ComponentStatusList").cluster().short(&["cs"]).verbs(READ),
    row("", "v1", "configmaps", "configmap", "ConfigMap", "ConfigMapList").short(&["cm"]),
    row("", "v1", "endpoints", "endpoints", "Endpoints", "EndpointsList").short(&["ep"]),
    row("", "v1", "events", "event", "Event", "EventList").short(&["ev"]).volatile(),
    row("", "v1", "limitranges", "limitrange", "LimitRange", "LimitRangeList").short(&["limits"]),
    row("", "v1", "namespaces", "namespace", "Namespace", "NamespaceList")
        .cluster()
        .short(&["ns"])
        .verbs(&["create", "delete", "get", "list", "patch", "update", "watch"])
        .subs(&[sub("finalize", "Namespace", &["update"]), status("Namespace")]),
    row("", "v1", "nodes", "node", "Node", "NodeList")
        .cluster()
        .short(&["no"])
        .subs(&[sub("proxy", "NodeProxyOptions", PROXY), status("Node")]),
    row("", "v1", "persistentvolumeclaims", "persistentvolumeclaim", "PersistentVolumeClaim", "PersistentVolumeClaimList")
        .short(&["pvc"])
        .subs(&[status("PersistentVolumeClaim")]),
    row("", "v1", "persistentvolumes", "persistentvolume", "PersistentVolume", "PersistentVolumeList")
        .cluster()
        .short(&["pv"])
        .subs(&[status("PersistentVolume")]),
    row("", "v1", "pods", "pod", "Pod", "PodList").short(&["po"]).in_category(ALL).subs(&[
        sub("attach", "PodAttachOptions", CREATE_GET),
        sub("binding", "Binding", CREATE),
        sub("ephemeralcontainers", "Pod", GET_PATCH_UPDATE),
        Sub { name: "eviction", kind: ("policy", "v1", "Eviction"), verbs: CREATE },
        sub("exec", "PodExecOptions", CREATE_GET),
        sub("log", "Pod", &["get"]),
        sub("portforward", "PodPortForwardOptions", CREATE_GET),
        sub("proxy", "PodProxyOptions", PROXY),
        sub("resize", "Pod", GET_PATCH_UPDATE),
        status("Pod"),
    ]),
    row("", "v1", "podtemplates", "podtemplate", "PodTemplate", "PodTemplateList"),
    row("", "v1", "replicationcontrollers", "replicationcontroller", "ReplicationController", "ReplicationControllerList")
        .short(&["rc"])
        .in_category(ALL)
        .subs(&[SCALE, status("ReplicationController")]),
    row("", "v1", "resourcequotas", "resourcequota", "ResourceQuota", "ResourceQuotaList")
        .short(&["quota"])
        .subs(&[status("ResourceQuota")]),
    row("", "v1", "secrets", "secret", "Secret", "SecretList"),
    row("", "v1", "serviceaccounts", "serviceaccount", "ServiceAccount", "ServiceAccountList").short(&["sa"]).subs(&[Sub {
        name: "token",
        kind: ("authentication.k8s.io", "v1", "TokenRequest"),
        verbs: CREATE,
    }]),
    row("", "v1", "services", "service", "Service", "ServiceList")
        .short(&["svc"])
        .in_category(ALL)
        .subs(&[sub("proxy", "ServiceProxyOptions", PROXY), status("Service")]),
    // apiregistration.k8s.io/v1
    row("apiregistration.k8s.io", "v1", "apiservices", "apiservice", "APIService", "APIServiceList")
        .cluster()
        .in_category(EXTENSIONS)
        .subs(&[status("APIService")]),
    // apps/v1
    row("apps", "v1", "controllerrevisions", "controllerrevision", "ControllerRevision", "ControllerRevisionList"),
    row("apps", "v1", "daemonsets", "daemonset", "DaemonSet", "DaemonSetList").short(&["ds"]).in_category(ALL).subs(&[status("DaemonSet")]),
    row("apps", "v1", "deployments", "deployment", "Deployment", "DeploymentList")
        .short(&["deploy"])
        .in_category(ALL)
        .subs(&[SCALE, status("Deployment")]),
    row("apps", "v1", "replicasets", "replicaset", "ReplicaSet", "ReplicaSetList")
        .short(&["rs"])
        .in_category(ALL)
        .subs(&[SCALE, status("ReplicaSet")]),
    row("apps", "v1", "statefulsets", "statefulset", "StatefulSet", "StatefulSetList")
        .short(&["sts"])
        .in_category(ALL)
        .subs(&[SCALE, status("StatefulSet")]),
    // events.k8s.io/v1
    row("events.k8s.io", "v1", "events", "event", "Event", "EventList").short(&["ev"]).stored_in("", "v1").volatile(),
    // authentication.k8s.io/v1
    row("authentication.k8s.io", "v1", "selfsubjectreviews", "selfsubjectreview", "SelfSubjectReview", "SelfSubjectReviewList")
        .cluster()
        .verbs(CREATE),
    row("authentication.k8s.io", "v1", "tokenreviews", "tokenreview", "TokenReview", "TokenReviewList").cluster().verbs(CREATE),
    // authorization.k8s.io/v1
    row(
        "authorization.k8s.io",
        "v1",
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
        "LocalSubjectAccessReview",
        "LocalSubjectAccessReviewList",
    )
    .verbs(CREATE),
    row(
        "authorization.k8s.io",
        "v1",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
        "SelfSubjectAccessReview",
        "SelfSubjectAccessReviewList",
    )
    .cluster()
    .verbs(CREATE),
    row(
        "authorization.k8s.io",
        "v1",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
        "SelfSubjectRulesReview",
        "SelfSubjectRulesReviewList",
    )
    .cluster()
    .verbs(CREATE),
    row("authorization.k8s.io", "v1", "subjectaccessreviews", "subjectaccessreview", "SubjectAccessReview", "SubjectAccessReviewList")
        .cluster()
        .verbs(CREATE),
    // autoscaling/v2
    row(
        "autoscaling",
        "v2",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
        "HorizontalPodAutoscaler",
        "HorizontalPodAutoscalerList",
    )
    .short(&["hpa"])
    .in_category(ALL)
    .subs(&[status("HorizontalPodAutoscaler")]),
    // autoscaling/v1
    row(
        "autoscaling",
        "v1",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
        "HorizontalPodAutoscaler",
        "HorizontalPodAutoscalerList",
    )
    .short(&["hpa"])
    .in_category(ALL)
    .subs(&[status("HorizontalPodAutoscaler")])
    .stored_in("autoscaling", "v2"),
    // batch/v1
    row("batch", "v1", "cronjobs", "cronjob", "CronJob", "CronJobList").short(&["cj"]).in_category(ALL).subs(&[status("CronJob")]),
    row("batch", "v1", "jobs", "job", "Job", "JobList").in_category(ALL).subs(&[status("Job")]),
    // certificates.k8s.io/v1
    row(
        "certificates.k8s.io",
        "v1",
        "certificatesigningrequests",
        "certificatesigningrequest",
        "CertificateSigningRequest",
        "CertificateSigningRequestList",
    )
    .cluster()
    .short(&["csr"])
    .subs(&[sub("approval", "CertificateSigningRequest", GET_PATCH_UPDATE), status("CertificateSigningRequest")]),
    // networking.k8s.io/v1
    row("networking.k8s.io", "v1", "ingressclasses", "ingressclass", "IngressClass", "IngressClassList").cluster(),
    row("networking.k8s.io", "v1", "ingresses", "ingress", "Ingress", "IngressList").short(&["ing"]).subs(&[status("Ingress")]),
    row("networking.k8s.io", "v1", "ipaddresses", "ipaddress", "IPAddress", "IPAddressList").cluster().short(&["ip"]),
    row("networking.k8s.io", "v1", "networkpolicies", "networkpolicy", "NetworkPolicy", "NetworkPolicyList").short(&["netpol"]),
    row("networking.k8s.io", "v1", "servicecidrs", "servicecidr", "ServiceCIDR", "ServiceCIDRList")
        .cluster()
        .subs(&[status("ServiceCIDR")]),
    // policy/v1
    row("policy", "v1", "poddisruptionbudgets", "poddisruptionbudget", "PodDisruptionBudget", "PodDisruptionBudgetList")
        .short(&["pdb"])
        .subs(&[status("PodDisruptionBudget")]),
    // rbac.authorization.k8s.io/v1
    row("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "clusterrolebinding", "ClusterRoleBinding", "ClusterRoleBindingList")
        .cluster(),
    row("rbac.authorization.k8s.io", "v1", "clusterroles", "clusterrole", "ClusterRole", "ClusterRoleList").cluster(),
    row("rbac.authorization.k8s.io", "v1", "rolebindings", "rolebinding", "RoleBinding", "RoleBindingList"),
    row("rbac.authorization.k8s.io", "v1", "roles", "role", "Role", "RoleList"),
    // storage.k8s.io/v1
    row("storage.k8s.io", "v1", "csidrivers", "csidriver", "CSIDriver", "CSIDriverList").cluster(),
    row("storage.k8s.io", "v1", "csinodes", "csinode", "CSINode", "CSINodeList").cluster(),
    row("storage.k8s.io", "v1", "csistoragecapacities", "csistoragecapacity", "CSIStorageCapacity", "CSIStorageCapacityList"),
    row("storage.k8s.io", "v1", "storageclasses", "storageclass", "StorageClass", "StorageClassList").cluster().short(&["sc"]),
    row("storage.k8s.io", "v1", "volumeattachments", "volumeattachment", "VolumeAttachment", "VolumeAttachmentList")
        .cluster()
        .subs(&[status("VolumeAttachment")]),
    row("storage.k8s.io", "v1", "volumeattributesclasses", "volumeattributesclass", "VolumeAttributesClass", "VolumeAttributesClassList")
        .cluster()
        .short(&["vac"]),
    // admissionregistration.k8s.io/v1
    row(
        "admissionregistration.k8s.io",
        "v1",
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicy",
        "MutatingAdmissionPolicy",
        "MutatingAdmissionPolicyList",
    )
    .cluster()
    .in_category(EXTENSIONS),
    row(
        "admissionregistration.k8s.io",
        "v1",
        "mutatingadmissionpolicybindings",
        "mutatingadmissionpolicybinding",
        "MutatingAdmissionPolicyBinding",
        "MutatingAdmissionPolicyBindingList",
    )
    .cluster()
    .in_category(EXTENSIONS),
    row(
        "admissionregistration.k8s.io",
        "v1",
        "mutatingwebhookconfigurations",
        "mutatingwebhookconfiguration",
        "MutatingWebhookConfiguration",
        "MutatingWebhookConfigurationList",
    )
    .cluster()
    .in_category(EXTENSIONS),
    row(
        "admissionregistration.k8s.io",
        "v1",
        "validatingadmissionpolicies",
        "validatingadmissionpolicy",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyList",
    )
    .cluster()
    .in_category(EXTENSIONS)
    .subs(&[status("ValidatingAdmissionPolicy")]),
    row(
        "admissionregistration.k8s.io",
        "v1",
        "validatingadmissionpolicybindings",
        "validatingadmissionpolicybinding",
        "ValidatingAdmissionPolicyBinding",
        "ValidatingAdmissionPolicyBindingList",
    )
    .cluster()
    .in_category(EXTENSIONS),
    row(
        "admissionregistration.k8s.io",
        "v1",
        "validatingwebhookconfigurations",
        "validatingwebhookconfiguration",
        "ValidatingWebhookConfiguration",
        "ValidatingWebhookConfigurationList",
    )
    .cluster()
    .in_category(EXTENSIONS),
    // apiextensions.k8s.io/v1
    row(
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "customresourcedefinition",
        "CustomResourceDefinition",
        "CustomResourceDefinitionList",
    )
    .cluster()
    .short(&["crd", "crds"])
    .in_category(EXTENSIONS)
    .subs(&[status("CustomResourceDefinition")]),
    // scheduling.k8s.io/v1
    row("scheduling.k8s.io", "v1", "priorityclasses", "priorityclass", "PriorityClass", "PriorityClassList").cluster().short(&["pc"]),
    // coordination.k8s.io/v1
    row("coordination.k8s.io", "v1", "leases", "lease", "Lease", "LeaseList").volatile(),
    // node.k8s.io/v1
    row("node.k8s.io", "v1", "runtimeclasses", "runtimeclass", "RuntimeClass", "RuntimeClassList").cluster(),
    // discovery.k8s.io/v1
    row("discovery.k8s.io", "v1", "endpointslices", "endpointslice", "EndpointSlice", "EndpointSliceList"),
    // resource.k8s.io/v1
    row("resource.k8s.io", "v1", "deviceclasses", "deviceclass", "DeviceClass", "DeviceClassList").cluster(),
    row("resource.k8s.io", "v1", "resourceclaims", "resourceclaim", "ResourceClaim", "ResourceClaimList").subs(&[status("ResourceClaim")]),
    row("resource.k8s.io", "v1", "resourceclaimtemplates", "resourceclaimtemplate", "ResourceClaimTemplate", "ResourceClaimTemplateList"),
    row("resource.k8s.io", "v1", "resourceslices", "resourceslice", "ResourceSlice", "ResourceSliceList").cluster(),
    // flowcontrol.apiserver.k8s.io/v1
    row("flowcontrol.apiserver.k8s.io", "v1", "flowschemas", "flowschema", "FlowSchema", "FlowSchemaList")
        .cluster()
        .subs(&[status("FlowSchema")]),
    row(
        "flowcontrol.apiserver.k8s.io",
        "v1",
        "prioritylevelconfigurations",
        "prioritylevelconfiguration",
        "PriorityLevelConfiguration",
        "PriorityLevelConfigurationList",
    )
    .cluster()
    .subs(&[status("PriorityLevelConfiguration")]),
    // metrics.k8s.io/v1beta1
    row("metrics.k8s.io", "v1beta1", "nodes", "", "NodeMetrics", "NodeMetricsList").cluster().verbs(READ),
    row("metrics.k8s.io", "v1beta1", "pods", "", "PodMetrics", "PodMetricsList").verbs(READ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_has_its_kinds_in_the_table() {
        for row in resources() {
            assert!(kind(row.group, row.version, row.kind).is_some(), "{row:?}");
            if row.has_verb("list") {
                assert!(kind(row.group, row.version, row.list_kind).is_some(), "{row:?}");
            }
            assert!(row.stored_as().storage == row.storage, "{row:?}");
            for sub in row.subresources {
                let (group, version) = if sub.kind.1.is_empty() { (row.group, row.version) } else { (sub.kind.0, sub.kind.1) };
                assert!(kind(group, version, sub.kind.2).is_some(), "{sub:?}");
            }
        }
    }

    #[test]
    fn groups_are_those_of_kubernetes() {
        let groups = groups();
        assert_eq!(groups[0], ("", vec!["v1"]));
        assert!(groups.contains(&("autoscaling", vec!["v2", "v1"])));
        assert_eq!(groups.len(), 22, "{groups:?}");
        assert_eq!(resource("", "v1", "pods").map(|row| row.kind), Some("Pod"));
        assert_eq!(resource_of_kind("events.k8s.io", "v1", "Event").map(|row| row.stored_as().group), Some(""));
    }

    #[test]
    fn resources_of_a_version_stand_together_sorted() {
        let all: Vec<_> = resources().collect();
        for pair in all.windows(2) {
            let same = pair[0].group == pair[1].group && pair[0].version == pair[1].version;
            assert!(!same || pair[0].plural < pair[1].plural, "{}", pair[1].plural);
        }
    }
}
