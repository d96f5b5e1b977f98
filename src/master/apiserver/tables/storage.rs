//! Rows of volumes, claims and classes of storage, and of dynamically allocated devices.

use serde_json::Value;

use super::*;

pub const ALL: &[(&str, &Layout)] = &[
    ("persistentvolumes", &VOLUMES),
    ("persistentvolumeclaims", &CLAIMS),
    ("storageclasses", &STORAGE_CLASSES),
    ("volumeattributesclasses", &ATTRIBUTES_CLASSES),
    ("volumeattachments", &ATTACHMENTS),
    ("csinodes", &CSI_NODES),
    ("csidrivers", &CSI_DRIVERS),
    ("csistoragecapacities", &CSI_CAPACITIES),
    ("resourceclaims", &RESOURCE_CLAIMS),
    ("resourceslices", &RESOURCE_SLICES),
    ("deviceclasses", &AGED),
    ("resourceclaimtemplates", &AGED),
];

pub fn of(plural: &str) -> Option<&'static Layout> {
    ALL.iter().find(|row| row.0 == plural).map(|row| row.1)
}

static AGED: Layout = layout(&[NAME, AGE], |object, now| vec![name(object), age(object, now)]);

static VOLUMES: Layout = layout(
    &[
        NAME,
        text_column("Capacity"),
        text_column("Access Modes"),
        text_column("Reclaim Policy"),
        text_column("Status"),
        text_column("Claim"),
        text_column("StorageClass"),
        text_column("VolumeAttributesClass"),
        text_column("Reason"),
        AGE,
        wide_column("VolumeMode"),
    ],
    |volume, now| {
        let claim = volume.pointer("/spec/claimRef").filter(|claim| claim.is_object());
        let claim = claim.map_or(String::new(), |claim| format!("{}/{}", text(claim, "/namespace"), text(claim, "/name")));
        vec![
            name(volume),
            scalar(volume.pointer("/spec/capacity/storage"), "0").into(),
            access_modes(volume, "/spec/accessModes").into(),
            text(volume, "/spec/persistentVolumeReclaimPolicy").into(),
            phase(volume),
            claim.into(),
            class(volume),
            text_or(volume, "/spec/volumeAttributesClassName", "<unset>"),
            text(volume, "/status/reason").into(),
            age(volume, now),
            text_or(volume, "/spec/volumeMode", "<unset>"),
        ]
    },
);

static CLAIMS: Layout = layout(
    &[
        NAME,
        text_column("Status"),
        text_column("Volume"),
        text_column("Capacity"),
        text_column("Access Modes"),
        text_column("StorageClass"),
        text_column("VolumeAttributesClass"),
        AGE,
        wide_column("VolumeMode"),
    ],
    |claim, now| {
        let bound = !text(claim, "/spec/volumeName").is_empty();
        let (capacity, modes) = match bound {
            true => (scalar(claim.pointer("/status/capacity/storage"), "0"), access_modes(claim, "/status/accessModes")),
            false => (String::new(), String::new()),
        };
        vec![
            name(claim),
            phase(claim),
            text(claim, "/spec/volumeName").into(),
            capacity.into(),
            modes.into(),
            class(claim),
            text_or(claim, "/spec/volumeAttributesClassName", "<unset>"),
            age(claim, now),
            text_or(claim, "/spec/volumeMode", "<unset>"),
        ]
    },
);

fn phase(object: &Value) -> Value {
    if object["metadata"]["deletionTimestamp"].is_string() { "Terminating".into() } else { text(object, "/status/phase").into() }
}

/// The annotation was there before the field, and still wins.
fn class(object: &Value) -> Value {
    let annotation = object["metadata"]["annotations"].get("volume.beta.kubernetes.io/storage-class").and_then(Value::as_str);
    annotation.unwrap_or_else(|| text(object, "/spec/storageClassName")).into()
}

/// `RWO,RWX`, each once, in upstream's order.
fn access_modes(object: &Value, pointer: &str) -> String {
    let short = [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let modes = items(object, pointer);
    let shown: Vec<&str> = short.iter().filter(|(mode, _)| modes.iter().any(|each| each == mode)).map(|(_, short)| *short).collect();
    shown.join(",")
}

static STORAGE_CLASSES: Layout = layout(
    &[
        NAME,
        text_column("Provisioner"),
        text_column("ReclaimPolicy"),
        text_column("VolumeBindingMode"),
        text_column("AllowVolumeExpansion"),
        AGE,
    ],
    |class, now| {
        vec![
            default_name(class, &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]),
            text(class, "/provisioner").into(),
            text_or(class, "/reclaimPolicy", "Delete"),
            text_or(class, "/volumeBindingMode", "Immediate"),
            boolean(class, "/allowVolumeExpansion", false),
            age(class, now),
        ]
    },
);

static ATTRIBUTES_CLASSES: Layout = layout(&[NAME, text_column("DriverName"), AGE], |class, now| {
    let shown = default_name(class, &["volumeattributesclass.alpha.kubernetes.io/is-default-class"]);
    vec![shown, text(class, "/driverName").into(), age(class, now)]
});

fn default_name(class: &Value, annotations: &[&str]) -> Value {
    let default =
        annotations.iter().any(|annotation| class["metadata"]["annotations"].get(annotation).is_some_and(|value| value == "true"));
    if default { format!("{} (default)", text(class, "/metadata/name")).into() } else { name(class) }
}

static ATTACHMENTS: Layout = layout(
    &[NAME, text_column("Attacher"), text_column("PV"), text_column("Node"), Column("Attached", "boolean", false), AGE],
    |attachment, now| {
        vec![
            name(attachment),
            text(attachment, "/spec/attacher").into(),
            text(attachment, "/spec/source/persistentVolumeName").into(),
            text(attachment, "/spec/nodeName").into(),
            boolean(attachment, "/status/attached", false),
            age(attachment, now),
        ]
    },
);

static CSI_NODES: Layout =
    layout(&[NAME, number_column("Drivers"), AGE], |node, now| vec![name(node), size(node, "/spec/drivers").into(), age(node, now)]);

static CSI_DRIVERS: Layout = layout(
    &[
        NAME,
        Column("AttachRequired", "boolean", false),
        Column("PodInfoOnMount", "boolean", false),
        Column("StorageCapacity", "boolean", false),
        text_column("TokenRequests"),
        Column("RequiresRepublish", "boolean", false),
        text_column("Modes"),
        AGE,
    ],
    |driver, now| {
        let modes = joined(driver, "/spec/volumeLifecycleModes", "");
        let tokens = match driver.pointer("/spec/tokenRequests") {
            Some(Value::Array(_)) => joined(driver, "/spec/tokenRequests", "audience"),
            _ => "<unset>".into(),
        };
        vec![
            name(driver),
            boolean(driver, "/spec/attachRequired", true),
            boolean(driver, "/spec/podInfoOnMount", false),
            boolean(driver, "/spec/storageCapacity", false),
            tokens.into(),
            boolean(driver, "/spec/requiresRepublish", false),
            if modes.is_empty() { "<none>".into() } else { modes.into() },
            age(driver, now),
        ]
    },
);

static CSI_CAPACITIES: Layout = layout(&[NAME, text_column("StorageClassName"), text_column("Capacity")], |capacity, _| {
    vec![name(capacity), text(capacity, "/storageClassName").into(), scalar(capacity.get("capacity"), "<unset>").into()]
});

static RESOURCE_CLAIMS: Layout = layout(&[NAME, text_column("State"), AGE], |claim, now| {
    let deleting = claim["metadata"]["deletionTimestamp"].is_string();
    let allocated = claim["status"]["allocation"].is_object();
    let states = [
        (deleting, "deleted"),
        (!allocated && !deleting, "pending"),
        (allocated, "allocated"),
        (allocated && size(claim, "/status/reservedFor") > 0, "reserved"),
    ];
    let states: Vec<&str> = states.into_iter().filter(|(holds, _)| *holds).map(|(_, state)| state).collect();
    vec![name(claim), states.join(",").into(), age(claim, now)]
});

static RESOURCE_SLICES: Layout = layout(&[NAME, text_column("Node"), text_column("Driver"), text_column("Pool"), AGE], |slice, now| {
    let field = |pointer| Value::from(text(slice, pointer));
    vec![name(slice), field("/spec/nodeName"), field("/spec/driver"), field("/spec/pool/name"), age(slice, now)]
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_show_what_they_are_bound_to() {
        let claim = json!({"metadata": {"name": "data"}, "spec": {"volumeName": "pv", "storageClassName": "local", "volumeMode": "Filesystem"},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"]}});
        let cells = (CLAIMS.cells)(&claim, Timestamp::now());
        assert_eq!(cells[..7], ["data", "Bound", "pv", "1Gi", "RWO,RWX", "local", "<unset>"].map(Value::from));
    }
}
