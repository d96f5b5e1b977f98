//! Field selectors: `metadata.name=x,status.phase!=Running`, over the few fields that upstream lets objects be selected by.

use serde_json::Value;

use super::Malformed;
use crate::api::schema::Resource;

/// A field selector: `metadata.name=x,status.phase!=Running`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// (path, value, whether it must be equal).
    terms: Vec<(String, String, bool)>,
}

impl Fields {
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let mut terms = Vec::new();
        for term in split_unescaped(text, ',') {
            if term.is_empty() {
                continue;
            }
            let (path, value, equal) = if let Some((path, value)) = term.split_once("!=") {
                (path, value, false)
            } else if let Some((path, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
                (path, value, true)
            } else {
                return Err(Malformed(format!("invalid selector: '{text}'; can't understand '{term}'")));
            };
            terms.push((path.trim().to_owned(), unescape(value), equal));
        }
        Ok(Self { terms })
    }

    /// Refuses fields that objects of `resource` cannot be selected by.
    pub fn check(&self, resource: &Resource) -> Result<(), Malformed> {
        for (path, ..) in &self.terms {
            if !supported(resource, path) {
                return Err(Malformed(format!("field label not supported: {path}")));
            }
        }
        Ok(())
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// Takes out the value that a field must be equal to, if there is one: for a field that can be looked up more cheaply than by reading
    /// the object.
    pub fn take(&mut self, path: &str) -> Option<String> {
        let index = self.terms.iter().position(|(each, _, equal)| each == path && *equal)?;
        Some(self.terms.remove(index).1)
    }

    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|(path, value, equal)| (read(object, path) == *value) == *equal)
    }
}

/// The value at a path, as text; absent fields are empty.
fn read(object: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(object, |value, key| value.get(key));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string(),
        None if path == "spec.unschedulable" || path == "spec.hostNetwork" => "false".into(),
        // An older name of the same field.
        None if path == "source" => object.pointer("/source/component").and_then(Value::as_str).unwrap_or_default().into(),
        Some(Value::Object(map)) if path == "source" => map.get("component").and_then(Value::as_str).unwrap_or_default().into(),
        _ => String::new(),
    }
}

/// The field labels that upstream supports (pkg/apis/*/v1/conversion.go, pkg/registry/*/strategy.go).
fn supported(resource: &Resource, path: &str) -> bool {
    const EVENTS: &[&str] = &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ];
    if path == "metadata.name" || path == "metadata.namespace" && resource.namespaced {
        return true;
    }
    let fields: &[&str] = match (resource.group, resource.plural) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "namespaces") => &["status.phase"],
        ("", "secrets") => &["type"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("", "replicationcontrollers") | ("apps", "replicasets") => &["status.replicas"],
        ("", "events") => EVENTS,
        ("events.k8s.io", "events") => &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "reason",
            "reportingController",
            "type",
        ],
        ("batch", "jobs") => &["status.successful"],
        ("certificates.k8s.io", "certificatesigningrequests") => &["spec.signerName"],
        ("resource.k8s.io", "resourceslices") => &["spec.nodeName", "spec.driver"],
        ("networking.k8s.io", "ipaddresses") => &["spec.parentRef.name"],
        _ => &[],
    };
    fields.contains(&path)
}

/// Splits at `at` where no backslash stands before it.
fn split_unescaped(text: &str, at: char) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (index, c) in text.char_indices() {
        if c == at && !escaped {
            parts.push(&text[start..index]);
            start = index + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::schema::resource;

    #[test]
    fn field_selectors_match_paths() {
        let pod = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}});
        for (selector, expected) in [
            ("metadata.name=a", true),
            ("metadata.name==b", false),
            ("spec.nodeName=n1,status.phase!=Failed", true),
            ("status.phase!=Running", false),
            ("spec.nodeName=", false),
            ("status.podIP=", true),
            ("spec.hostNetwork=false", true),
            ("", true),
        ] {
            assert_eq!(Fields::parse(selector).unwrap().matches(&pod), expected, "{selector}");
        }
        assert!(Fields::parse("metadata.name").is_err());
        let mut named = Fields::parse("metadata.name!=z,metadata.name=x\\,y").unwrap();
        assert_eq!((named.take("metadata.name").as_deref(), named.take("metadata.name")), (Some("x,y"), None));
        assert!(named.matches(&pod) && !named.is_everything());
        let (pods, configs) = (resource("", "v1", "pods").unwrap(), resource("", "v1", "configmaps").unwrap());
        let fields = Fields::parse("spec.nodeName=a").unwrap();
        assert_eq!(fields.check(pods), Ok(()));
        assert_eq!(fields.check(configs), Err(Malformed("field label not supported: spec.nodeName".into())));
    }
}
