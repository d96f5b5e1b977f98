//! ConfigMaps and Secrets: keys, sizes, what each type of Secret must hold, and what is sealed by `immutable`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::IgnoredAny;

use super::names;
use super::report::{Node, Report};

/// Bytes in the values of one ConfigMap or Secret.
const DATA_MAX_BYTES: usize = 1 << 20;

pub(super) fn config_map(report: &mut Report, object: &Node, old: Option<&Node>) {
    let (data, binary) = (object.get("data"), object.get("binaryData"));
    for (key, _) in data.entries() {
        let entry = data.entry(key);
        names::config_key(key).iter().for_each(|problem| report.wrong(&entry, &key.as_str().into(), problem));
        if binary.entry(key).is_set() {
            report.wrong(&entry, &key.as_str().into(), "duplicate of key present in binaryData");
        }
    }
    for (key, _) in binary.entries() {
        names::config_key(key).iter().for_each(|problem| report.wrong(&binary.entry(key), &key.as_str().into(), problem));
    }
    let size: usize = data.entries().map(|(_, value)| value.as_str().map_or(0, str::len)).sum::<usize>() + decoded(&binary);
    if size > DATA_MAX_BYTES {
        report.too_long(&data.named("[]"), DATA_MAX_BYTES);
    }
    if let Some(old) = old {
        sealed(report, object, old, &["data", "binaryData"]);
    }
}

/// Bytes of base64 values once they are decoded, closely enough.
fn decoded(node: &Node) -> usize {
    node.entries().map(|(_, value)| value.as_str().map_or(0, |text| text.trim_end_matches('=').len() * 3 / 4)).sum()
}

/// `immutable: true` cannot be taken back, and nothing below `keys` can change.
fn sealed(report: &mut Report, object: &Node, old: &Node, keys: &[&str]) {
    const DETAIL: &str = "field is immutable when `immutable` is set";
    if !old.get("immutable").bool() {
        return;
    }
    if !object.get("immutable").bool() {
        report.forbidden(&object.get("immutable"), DETAIL);
    }
    for key in keys {
        if object.get(key).value != old.get(key).value {
            report.forbidden(&object.get(key), DETAIL);
        }
    }
}

pub(super) fn secret(report: &mut Report, object: &Node, old: Option<&Node>) {
    let data = object.get("data");
    for (key, _) in data.entries() {
        names::config_key(key).iter().for_each(|problem| report.wrong(&data.entry(key), &key.as_str().into(), problem));
    }
    if decoded(&data) > DATA_MAX_BYTES {
        report.too_long(&data, DATA_MAX_BYTES);
    }
    let required: &[&str] = match object.get("type").text() {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/service-account-token" => {
            let account = object.at("metadata.annotations").entry("kubernetes.io/service-account.name");
            if account.is_empty() {
                report.required(&account, "");
            }
            &[]
        }
        "kubernetes.io/basic-auth" if !data.entry("username").is_set() && !data.entry("password").is_set() => &["username", "password"],
        _ => &[],
    };
    for key in required {
        let entry = data.entry(key);
        if !entry.is_set() {
            report.required(&entry, "");
        } else if matches!(*key, ".dockerconfigjson" | ".dockercfg") && !is_json(entry.text()) {
            report.wrong(&entry, &"<secret contents redacted>".into(), "invalid character: the content is no JSON");
        }
    }
    if let Some(old) = old {
        report.immutable(&object.get("type"), &old.get("type"));
        sealed(report, object, old, &["data"]);
    }
}

fn is_json(base64: &str) -> bool {
    let bytes = STANDARD.decode(base64).unwrap_or_default();
    serde_json::from_slice::<IgnoredAny>(&bytes).is_ok()
}
