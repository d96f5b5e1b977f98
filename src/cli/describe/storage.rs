//! Describes volumes, the claims on them and the classes they are of. It asks nobody: what belongs to an object is handed in.

use serde_json::Value;

use super::page::{Page, joined, or, pairs, plain, texts};

/// The access modes as tables write them.
fn modes(value: &Value) -> String {
    let short = |mode: &String| match mode.as_str() {
        "ReadWriteOnce" => "RWO".to_owned(),
        "ReadOnlyMany" => "ROX".to_owned(),
        "ReadWriteMany" => "RWX".to_owned(),
        "ReadWriteOncePod" => "RWOP".to_owned(),
        other => other.to_owned(),
    };
    texts(value).iter().map(short).collect::<Vec<_>>().join(",")
}

/// All annotations in one cell, what `apply` keeps included: so kubectl has it for kinds that nobody edits by hand.
pub fn annotations(object: &Value) -> String {
    or(pairs(&object["metadata"]["annotations"], "=").join(","), "<none>")
}

pub fn volume(volume: &Value, events: Option<&[Value]>) -> String {
    let (metadata, spec, status) = (&volume["metadata"], &volume["spec"], &volume["status"]);
    let mut page = Page::new();
    page.field(0, "Name", &plain(&metadata["name"]));
    page.labels_and_annotations(volume);
    page.field(0, "Finalizers", &format!("[{}]", texts(&metadata["finalizers"]).join(" ")));
    page.field(0, "StorageClass", &plain(&spec["storageClassName"]));
    page.field(0, "Status", &plain(&status["phase"]));
    let claim = &spec["claimRef"];
    page.field(
        0,
        "Claim",
        &if claim.is_object() { format!("{}/{}", plain(&claim["namespace"]), plain(&claim["name"])) } else { String::new() },
    );
    page.field(0, "Reclaim Policy", &plain(&spec["persistentVolumeReclaimPolicy"]));
    page.field(0, "Access Modes", &modes(&spec["accessModes"]));
    page.field_if(0, "VolumeMode", &spec["volumeMode"]);
    page.field(0, "Capacity", &plain(&spec["capacity"]["storage"]));
    let terms: Vec<&Value> = spec["nodeAffinity"]["required"]["nodeSelectorTerms"].as_array().into_iter().flatten().collect();
    if spec["nodeAffinity"].is_null() {
        page.field(0, "Node Affinity", "<none>");
    } else {
        page.line(0, "Node Affinity:");
        page.line(1, "Required Terms:");
        for (at, term) in terms.into_iter().enumerate() {
            let expressions = term["matchExpressions"].as_array().into_iter().flatten();
            let text = |expression: &Value| {
                let operator = plain(&expression["operator"]).to_lowercase();
                format!("{} {operator} [{}]", plain(&expression["key"]), texts(&expression["values"]).join(", "))
            };
            page.field(2, &format!("Term {at}"), &expressions.map(text).collect::<Vec<_>>().join("\n                   "));
        }
    }
    page.field(0, "Message", &plain(&status["message"]));
    page.line(0, "Source:");
    let (host, local) = (&spec["hostPath"], &spec["local"]);
    if host.is_object() {
        page.field(2, "Type", "HostPath (bare host directory volume)");
        page.field(2, "Path", &plain(&host["path"]));
        page.field(2, "HostPathType", &plain(&host["type"]));
    } else if local.is_object() {
        page.field(2, "Type", "LocalVolume (a persistent volume backed by local storage on a node)");
        page.field(2, "Path", &plain(&local["path"]));
    } else {
        // Volumes of other sources no node here can mount: they are told field by field.
        for (key, source) in
            spec.as_object().into_iter().flatten().filter(|(key, value)| value.is_object() && !TOLD.contains(&key.as_str()))
        {
            page.field(2, "Type", key);
            for line in pairs(source, ":\t") {
                page.line(2, &line);
            }
        }
    }
    page.events(events);
    page.finish()
}

/// Objects of a volume's spec that are not its source.
const TOLD: [&str; 3] = ["capacity", "claimRef", "nodeAffinity"];

pub fn claim(claim: &Value, pods: &[Value], events: Option<&[Value]>) -> String {
    let (metadata, spec, status) = (&claim["metadata"], &claim["spec"], &claim["status"]);
    let mut page = Page::new();
    page.head(claim);
    page.field(0, "StorageClass", &plain(&spec["storageClassName"]));
    page.field(0, "Status", &plain(&status["phase"]));
    page.field(0, "Volume", &plain(&spec["volumeName"]));
    page.labels_and_annotations(claim);
    page.field(0, "Finalizers", &format!("[{}]", texts(&metadata["finalizers"]).join(" ")));
    let bound = !plain(&spec["volumeName"]).is_empty();
    page.field(0, "Capacity", &if bound { plain(&status["capacity"]["storage"]) } else { String::new() });
    page.field(0, "Access Modes", &if bound { modes(&status["accessModes"]) } else { String::new() });
    page.field_if(0, "VolumeMode", &spec["volumeMode"]);
    let uses = |pod: &&Value| {
        let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        volumes.into_iter().any(|volume| volume["persistentVolumeClaim"]["claimName"] == metadata["name"])
    };
    let users: Vec<String> = pods.iter().filter(uses).map(|pod| plain(&pod["metadata"]["name"])).collect();
    page.list("", "Used By", &users);
    page.events(events);
    page.finish()
}

pub fn class(class: &Value, events: Option<&[Value]>) -> String {
    let default = &class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"];
    let mut page = Page::new();
    page.field(0, "Name", &plain(&class["metadata"]["name"]));
    page.field(0, "IsDefaultClass", if default == "true" { "Yes" } else { "No" });
    page.field(0, "Annotations", &annotations(class));
    page.field(0, "Provisioner", &plain(&class["provisioner"]));
    page.field(0, "Parameters", &joined(&class["parameters"]));
    let expansion = match class["allowVolumeExpansion"].as_bool() {
        None => "<unset>",
        Some(true) => "True",
        Some(false) => "False",
    };
    page.field(0, "AllowVolumeExpansion", expansion);
    let options = texts(&class["mountOptions"]);
    if options.is_empty() {
        page.field(0, "MountOptions", "<none>");
    } else {
        page.line(0, "MountOptions:");
        options.iter().for_each(|option| page.line(1, option));
    }
    page.field(0, "ReclaimPolicy", &plain(&class["reclaimPolicy"]));
    page.field(0, "VolumeBindingMode", &plain(&class["volumeBindingMode"]));
    page.events(events);
    page.finish()
}
