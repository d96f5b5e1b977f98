//! Persistent volumes, claims and storage classes.

use super::report::{Node, Report};
use super::{names, selector};

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn access_modes(report: &mut Report, list: &Node) {
    if list.is_empty() {
        report.required(list, "at least 1 access mode is required");
    }
    list.items()
        .filter(|mode| !ACCESS_MODES.contains(&mode.text()))
        .for_each(|mode| report.not_supported(&mode.named(list.path.clone()), &ACCESS_MODES));
}

pub(super) fn claim(report: &mut Report, object: &Node, old: Option<&Node>) {
    let spec = object.get("spec");
    if let Some(old) = old {
        let free = ["resources", "volumeName", "volumeAttributesClassName", "storageClassName"];
        let rest = |node: &Node| {
            let mut map = node.map().cloned().unwrap_or_default();
            // The volume's name is written once, when the claim is bound.
            let bound = !node.get("volumeName").is_empty() && !old.at("spec.volumeName").is_empty();
            free.iter().filter(|key| !bound || !matches!(**key, "volumeName" | "storageClassName")).for_each(|key| {
                map.remove(*key);
            });
            map
        };
        if rest(&spec) != rest(&old.get("spec")) {
            report.forbidden(
                &spec,
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            );
        }
        return;
    }
    access_modes(report, &spec.get("accessModes"));
    let storage = spec.at("resources.requests").entry("storage");
    let storage = storage.named(format!("{}.resources[storage]", spec.path));
    if !storage.is_set() {
        report.required(&storage, "");
    }
    selector::label_selector(report, &spec.get("selector"));
    report.one_of(&spec.get("volumeMode"), &["Block", "Filesystem"]);
}

pub(super) fn volume(report: &mut Report, object: &Node) {
    let spec = object.get("spec");
    access_modes(report, &spec.get("accessModes"));
    if spec.get("capacity").is_empty() {
        report.required(&spec.get("capacity"), "");
    }
    report.one_of(&spec.get("persistentVolumeReclaimPolicy"), &["Delete", "Recycle", "Retain"]);
    report.one_of(&spec.get("volumeMode"), &["Block", "Filesystem"]);
    let own = [
        "accessModes",
        "capacity",
        "persistentVolumeReclaimPolicy",
        "volumeMode",
        "claimRef",
        "storageClassName",
        "mountOptions",
        "nodeAffinity",
        "volumeAttributesClassName",
    ];
    match spec.entries().filter(|(key, _)| !own.contains(&key.as_str())).count() {
        0 => report.required(&spec, "must specify a volume type"),
        1 => {}
        _ => report.forbidden(&spec, "may not specify more than 1 volume type"),
    }
}

pub(super) fn storage_class(report: &mut Report, object: &Node, old: Option<&Node>) {
    let provisioner = object.get("provisioner");
    if provisioner.is_empty() {
        report.required(&provisioner, "");
    } else {
        report.all(&provisioner, names::qualified(&provisioner.text().to_lowercase()));
    }
    report.one_of(&object.get("reclaimPolicy"), &["Delete", "Retain"]);
    report.one_of(&object.get("volumeBindingMode"), &["Immediate", "WaitForFirstConsumer"]);
    let Some(old) = old else { return };
    for key in ["parameters", "provisioner", "reclaimPolicy"] {
        if object.get(key).value != old.get(key).value {
            report.forbidden(&object.get(key), &format!("updates to {key} are forbidden."));
        }
    }
    report.immutable(&object.get("volumeBindingMode"), &old.get("volumeBindingMode"));
}
