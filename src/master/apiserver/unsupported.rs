//! Fields of pods that are stored and given back but that nothing acts on yet: whoever writes one is told so in a Warning header.
//! A feature that comes takes its line away here. It refuses nothing and changes nothing.

use serde_json::Value;

use crate::api::schema::Resource;

/// Below the pod's spec. `[]` stands for each item of a list; with `=` only that value is meant.
const FIELDS: &[&str] = &[
    "ephemeralContainers",
    "hostUsers=false",
    "readinessGates",
    "resourceClaims",
    "resources",
    "runtimeClassName",
    "securityContext.appArmorProfile",
    "securityContext.seLinuxOptions",
    "securityContext.seccompProfile.type=Localhost",
    "securityContext.supplementalGroupsPolicy=Strict",
];

/// Below each container and each init container.
const CONTAINER_FIELDS: &[&str] = &[
    "env[].valueFrom.fileKeyRef",
    "lifecycle",
    "livenessProbe",
    "readinessProbe",
    "resizePolicy",
    "resources.claims",
    "resources.limits.ephemeral-storage",
    "restartPolicy",
    "restartPolicyRules",
    "securityContext.appArmorProfile",
    "securityContext.procMount=Unmasked",
    "securityContext.seLinuxOptions",
    "securityContext.seccompProfile.type=Localhost",
    "startupProbe",
    "volumeDevices",
    "volumeMounts[].recursiveReadOnly=Enabled",
];

/// What the agent makes volumes of; a pod with any other waits for ever.
const VOLUMES: &[&str] = &["name", "emptyDir", "hostPath", "configMap", "secret", "downwardAPI", "projected"];

/// One sentence for each such field of an object that holds a pod or a template of one.
pub fn warnings(resource: &Resource, object: &Value) -> Vec<String> {
    let path = match (resource.group, resource.plural) {
        ("", "pods") => "spec",
        ("", "podtemplates") => "template.spec",
        ("", "replicationcontrollers") | ("apps", _) | ("batch", "jobs") => "spec.template.spec",
        ("batch", "cronjobs") => "spec.jobTemplate.spec.template.spec",
        _ => return Vec::new(),
    };
    let Some(spec) = object.pointer(&format!("/{}", path.replace('.', "/"))) else { return Vec::new() };
    let mut found = Vec::new();
    for field in FIELDS {
        find(spec, path, field, &mut found);
    }
    for list in ["initContainers", "containers"] {
        for field in CONTAINER_FIELDS {
            find(spec, path, &format!("{list}[].{field}"), &mut found);
        }
    }
    for (at, volume) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        let kinds = volume.as_object().into_iter().flatten().map(|(kind, _)| kind).filter(|kind| !VOLUMES.contains(&kind.as_str()));
        found.extend(kinds.map(|kind| format!("{path}.volumes[{at}].{kind}")));
    }
    found.into_iter().map(|field| format!("{field}: stored, but this version does not act on it")).collect()
}

/// Adds the full paths of what `field` stands for in `value`, if it is there and not empty.
fn find(value: &Value, path: &str, field: &str, found: &mut Vec<String>) {
    let (step, rest) = match (field.split_once('.'), field.split_once('=')) {
        (Some((step, rest)), _) => (step, rest),
        (None, Some((name, wanted))) => {
            let is_meant = match &value[name] {
                Value::String(text) => text == wanted,
                Value::Bool(true) => wanted == "true",
                Value::Bool(false) => wanted == "false",
                _ => false,
            };
            if is_meant {
                found.push(format!("{path}.{name}"));
            }
            return;
        }
        (None, None) => (field, ""),
    };
    let name = step.trim_end_matches("[]");
    let Some(inner) = value.get(name) else { return };
    let path = format!("{path}.{name}");
    match (rest, step.ends_with("[]")) {
        ("", _) if is_empty(inner) => (),
        ("", _) => found.push(path),
        (rest, false) => find(inner, &path, rest, found),
        (rest, true) => {
            for (at, item) in inner.as_array().into_iter().flatten().enumerate() {
                find(item, &format!("{path}[{at}]"), rest, found);
            }
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::schema;

    #[test]
    fn fields_that_nothing_acts_on_are_named_where_they_stand() {
        let fields = |group: &str, plural: &str, object: Value| {
            let found = warnings(schema::resource(group, "v1", plural).unwrap(), &object);
            found.iter().map(|line| line.split(':').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let plain = json!({"containers": [{"name": "c", "image": "i", "resources": {"limits": {"memory": "1Gi"}}, "securityContext": {}}],
            "hostUsers": true, "volumes": [{"name": "v", "emptyDir": {}}], "securityContext": {}});
        assert!(fields("", "pods", json!({"spec": plain})).is_empty());
        assert!(fields("", "configmaps", json!({"spec": {"ephemeralContainers": [1]}})).is_empty());
        let rich = json!({
            "hostUsers": false,
            "initContainers": [{"name": "i", "restartPolicy": "Always"}],
            "containers": [
                {"name": "a"},
                {"name": "b", "livenessProbe": {"exec": {"command": ["true"]}}, "volumeMounts": [{}, {"recursiveReadOnly": "Enabled"}],
                    "securityContext": {"seccompProfile": {"type": "Localhost"}}},
            ],
            "volumes": [{"name": "a", "secret": {}}, {"name": "b", "persistentVolumeClaim": {"claimName": "x"}}],
        });
        let expected = [
            "hostUsers",
            "initContainers[0].restartPolicy",
            "containers[1].livenessProbe",
            "containers[1].securityContext.seccompProfile.type",
            "containers[1].volumeMounts[1].recursiveReadOnly",
            "volumes[1].persistentVolumeClaim",
        ];
        for (group, plural, path, object) in [
            ("", "pods", "spec", json!({"spec": rich})),
            ("apps", "deployments", "spec.template.spec", json!({"spec": {"template": {"spec": rich}}})),
        ] {
            let expected: Vec<String> = expected.iter().map(|field| format!("{path}.{field}")).collect();
            assert_eq!(fields(group, plural, object), expected);
        }
    }
}
