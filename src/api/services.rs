//! Read views of Services: what their endpoints and rules are made from.
//! Only the fields that are acted on; a view is never written back.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::workloads::{IntOrString, ObjectMeta};

/// v1 Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    pub metadata: ObjectMeta,
    pub spec: ServiceSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    pub selector: BTreeMap<String, String>,
    pub ports: Vec<ServicePort>,
    pub publish_not_ready_addresses: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    pub name: String,
    pub protocol: String,
    pub port: i64,
    pub target_port: Option<IntOrString>,
    pub app_protocol: Option<String>,
}

impl Service {
    /// Whether it has no address of its own: its name stands for its pods' addresses.
    pub fn is_headless(&self) -> bool {
        self.spec.cluster_ip == "None"
    }
}
