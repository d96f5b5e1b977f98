//! The environment of a container, and the other places where a pod's own fields are put into text. Pure: what ConfigMaps
//! and Secrets say is handed in. <https://kubernetes.io/docs/tasks/inject-data-application/>

use std::collections::BTreeMap;

use serde_json::Value;

use super::resources;
use crate::api::pod::{Container, EnvVar, Pod, ResourceFieldRef};

/// A ConfigMap or Secret by kind and name, in the pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    ConfigMap(String),
    Secret(String),
}

impl Source {
    pub fn plural(&self) -> &'static str {
        match self {
            Self::ConfigMap(_) => "configmaps",
            Self::Secret(_) => "secrets",
        }
    }

    pub fn name(&self) -> &str {
        let (Self::ConfigMap(name) | Self::Secret(name)) = self;
        name
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::ConfigMap(_) => "configmap",
            Self::Secret(_) => "secret",
        }
    }
}

/// What was found: the bytes of each key. A source that is not there has no entry.
pub type Found = BTreeMap<Source, BTreeMap<String, Vec<u8>>>;

/// What the node knows of a pod beside its object.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub host_ip: String,
    pub pod_ip: String,
    pub node_name: String,
    /// What a container without a limit may use: thousandths of a CPU, and bytes.
    pub node_cpu_milli: u64,
    pub node_memory_bytes: u64,
    /// Address and port of the API's own Service.
    pub api_service: (String, u16),
}

/// The data of a ConfigMap or Secret object.
pub fn data(object: &Value) -> BTreeMap<String, Vec<u8>> {
    use base64::Engine;
    let secret = object["kind"] == "Secret";
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    let mut data = BTreeMap::new();
    for (field, encoded) in [("data", secret), ("binaryData", true)] {
        for (key, value) in object[field].as_object().into_iter().flatten() {
            let text = value.as_str().unwrap_or_default();
            data.insert(key.clone(), if encoded { decode(text) } else { text.as_bytes().to_vec() });
        }
    }
    data
}

/// The ConfigMaps and Secrets that the environment of a container reads.
pub fn sources(container: &Container) -> Vec<Source> {
    let from = container.env_from.iter().flat_map(|from| {
        let config_map = from.config_map_ref.as_ref().map(|reference| Source::ConfigMap(reference.name.clone()));
        let secret = from.secret_ref.as_ref().map(|reference| Source::Secret(reference.name.clone()));
        [config_map, secret]
    });
    let values = container.env.iter().filter_map(|variable| variable.value_from.as_ref()).flat_map(|source| {
        let config_map = source.config_map_key_ref.as_ref().map(|key| Source::ConfigMap(key.name.clone()));
        let secret = source.secret_key_ref.as_ref().map(|key| Source::Secret(key.name.clone()));
        [config_map, secret]
    });
    from.chain(values).flatten().collect()
}

/// Of a container whose image names none: containerd's, and so what images count on.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `NAME=value` for each variable: the image's, then the API's address, then `envFrom`, then `env`; later ones win.
///
/// # Errors
/// A sentence that names the source or key that is missing.
pub fn environment(pod: &Pod, container: &Container, image: &[String], found: &Found, facts: &Facts) -> Result<Vec<String>, String> {
    let mut variables = Variables::default();
    variables.set("PATH", PATH.into());
    for variable in image {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        variables.set(name, value.to_owned());
    }
    variables.set("HOSTNAME", pod.hostname());
    let (host, port) = &facts.api_service;
    variables.set("KUBERNETES_SERVICE_HOST", host.clone());
    for name in ["KUBERNETES_SERVICE_PORT", "KUBERNETES_SERVICE_PORT_HTTPS", "KUBERNETES_PORT_443_TCP_PORT"] {
        variables.set(name, port.to_string());
    }
    variables.set("KUBERNETES_PORT", format!("tcp://{host}:{port}"));
    variables.set("KUBERNETES_PORT_443_TCP", format!("tcp://{host}:{port}"));
    variables.set("KUBERNETES_PORT_443_TCP_PROTO", "tcp".into());
    variables.set("KUBERNETES_PORT_443_TCP_ADDR", host.clone());
    for from in &container.env_from {
        let config_map = from.config_map_ref.as_ref().map(|reference| (Source::ConfigMap(reference.name.clone()), reference.optional));
        let secret = from.secret_ref.as_ref().map(|reference| (Source::Secret(reference.name.clone()), reference.optional));
        let Some((source, optional)) = config_map.or(secret) else { continue };
        match found.get(&source) {
            None if optional => (),
            None => return Err(missing(&source)),
            Some(data) => {
                for (key, value) in data {
                    variables.set(&format!("{}{key}", from.prefix), String::from_utf8_lossy(value).into_owned());
                }
            }
        }
    }
    for variable in &container.env {
        if let Some(value) = value(pod, container, variable, &variables, found, facts)? {
            variables.set(&variable.name, value);
        }
    }
    Ok(variables.0.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

fn value(
    pod: &Pod,
    container: &Container,
    variable: &EnvVar,
    known: &Variables,
    found: &Found,
    facts: &Facts,
) -> Result<Option<String>, String> {
    let Some(source) = &variable.value_from else {
        return Ok(Some(expand(&variable.value, |name| known.get(name))));
    };
    if let Some(field) = &source.field_ref {
        return field_of(pod, &field.field_path, facts).map(Some);
    }
    if let Some(reference) = &source.resource_field_ref {
        return resource_of(pod, Some(container), reference, facts).map(Some);
    }
    let config_map = source.config_map_key_ref.as_ref().map(|key| (Source::ConfigMap(key.name.clone()), key));
    let secret = source.secret_key_ref.as_ref().map(|key| (Source::Secret(key.name.clone()), key));
    let Some((source, key)) = config_map.or(secret) else { return Ok(None) };
    match found.get(&source).map(|data| data.get(&key.key)) {
        Some(Some(value)) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        _ if key.optional => Ok(None),
        None => Err(missing(&source)),
        // The wording of k8s.io/kubernetes/pkg/kubelet.
        Some(None) => {
            let kind = if matches!(source, Source::Secret(_)) { "Secret" } else { "ConfigMap" };
            Err(format!("couldn't find key {} in {kind} {}/{}", key.key, pod.metadata.namespace, source.name()))
        }
    }
}

/// As upstream words it.
pub fn missing(source: &Source) -> String {
    format!("{} \"{}\" not found", source.kind(), source.name())
}

/// A field of the pod as text; `fieldPath` of the downward API.
///
/// # Errors
/// A sentence, if there is no such field.
pub fn field_of(pod: &Pod, path: &str, facts: &Facts) -> Result<String, String> {
    let meta = &pod.metadata;
    let entry = |map: &BTreeMap<String, String>, rest: &str| {
        let key = rest.trim_start_matches("['").trim_end_matches("']");
        map.get(key).cloned().unwrap_or_default()
    };
    Ok(match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => lines(&meta.labels),
        "metadata.annotations" => lines(&meta.annotations),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => pod.spec.service_account_name.clone(),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        "status.podIP" | "status.podIPs" => facts.pod_ip.clone(),
        _ => match (path.strip_prefix("metadata.labels"), path.strip_prefix("metadata.annotations")) {
            (Some(rest), _) => entry(&meta.labels, rest),
            (_, Some(rest)) => entry(&meta.annotations, rest),
            _ => return Err(format!("unsupported fieldPath: {path}")),
        },
    })
}

/// `key="value"` a line, sorted, as the downward API writes maps into files.
fn lines(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n")
}

/// A limit or request of a container as a number.
///
/// # Errors
/// A sentence, if the container or the resource is unknown.
pub fn resource_of(pod: &Pod, container: Option<&Container>, reference: &ResourceFieldRef, facts: &Facts) -> Result<String, String> {
    let named = match reference.container_name.as_str() {
        "" => container,
        name => pod.container(name),
    };
    let container = named.ok_or_else(|| format!("container {:?} not found", reference.container_name))?;
    resources::field(container, &reference.resource, reference.divisor.as_ref(), facts.node_cpu_milli, facts.node_memory_bytes)
        .map(|value| value.to_string())
        .ok_or_else(|| format!("unsupported container resource: {}", reference.resource))
}

/// Variables in the order of their first appearance.
#[derive(Default)]
struct Variables(Vec<(String, String)>);

impl Variables {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }
}

/// Replaces `$(NAME)` by the variable's value; `$$` is one dollar, and what is unknown stays as it is.
/// k8s.io/kubernetes/third_party/forked/golang/expansion.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some(reference) = rest.strip_prefix('(')
            && let Some((name, after)) = reference.split_once(')')
        {
            match lookup(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        Pod::read(&json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u", "labels": {"app": "web", "tier": "a\"b"}},
            "spec": {"containers": [{"name": "c", "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "value": "$(A)-$(NONE)-$$(A)-$"},
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "OPT", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "k", "optional": true}}},
            ], "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}]}]},
        }))
        .unwrap()
    }

    fn found() -> Found {
        let map = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.as_bytes().to_vec())]);
        BTreeMap::from([(Source::Secret("s".into()), map("k", "v")), (Source::ConfigMap("m".into()), map("x", "y"))])
    }

    #[test]
    fn environment_comes_from_all_its_sources() {
        let pod = pod();
        let image = ["PATH=/bin".to_owned(), "A=image".to_owned()];
        let made = environment(&pod, &pod.spec.containers[0], &image, &found(), &Facts::default()).unwrap();
        for variable in ["PATH=/bin", "A=1", "B=1-$(NONE)-$(A)-$", "NAME=web-1", "APP=web", "KEY=v", "P_x=y", "HOSTNAME=web-1"] {
            assert!(made.iter().any(|made| made == variable), "{variable} in {made:?}");
        }
        assert!(!made.iter().any(|made| made.starts_with("OPT=")));
        let made = environment(&pod, &pod.spec.containers[0], &[], &found(), &Facts::default()).unwrap();
        assert!(made.contains(&format!("PATH={PATH}")), "an image that names none: {made:?}");
    }

    #[test]
    fn missing_sources_are_named_as_upstream_names_them() {
        let pod = pod();
        let error = |found: &Found| environment(&pod, &pod.spec.containers[0], &[], found, &Facts::default()).unwrap_err();
        assert_eq!(error(&Found::new()), "configmap \"m\" not found");
        let mut keyless = found();
        keyless.insert(Source::Secret("s".into()), BTreeMap::new());
        assert_eq!(error(&keyless), "couldn't find key k in Secret shop/s");
    }

    #[test]
    fn maps_are_written_as_sorted_lines() {
        assert_eq!(field_of(&pod(), "metadata.labels", &Facts::default()).unwrap(), "app=\"web\"\ntier=\"a\\\"b\"");
    }
}
