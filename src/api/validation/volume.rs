//! Volumes of a pod: one source each, and what each source needs.

use super::environment::downward_item;
use super::names;
use super::report::{Node, Report};
use crate::api::quantity::Quantity;

const HOST_PATH_TYPES: [&str; 8] = ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Checks all volumes; gives back their names.
pub(super) fn check<'a>(report: &mut Report, list: &Node<'a>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for volume in list.items() {
        let name = volume.get("name");
        if name.is_empty() {
            report.required(&name, "");
        } else {
            let problems = names::label(name.text());
            if problems.is_empty() && seen.contains(&name.text()) {
                report.duplicate(&name, name.value);
            }
            report.all(&name, problems);
        }
        seen.push(name.text());
        source(report, &volume);
    }
    seen
}

/// The order in which upstream looks at them; the second source found is the one too many.
const SOURCES: [&str; 12] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "nfs",
    "secret",
    "configMap",
    "downwardAPI",
    "projected",
    "persistentVolumeClaim",
    "csi",
    "ephemeral",
    "image",
];

fn source(report: &mut Report, volume: &Node) {
    let mut count = 0;
    let others = volume.entries().filter(|(key, _)| *key != "name" && !SOURCES.contains(&key.as_str())).map(|(key, _)| key.as_str());
    for key in SOURCES.into_iter().chain(others) {
        let source = volume.get(key);
        if !source.is_set() {
            continue;
        }
        count += 1;
        if count > 1 {
            report.forbidden(&source, "may not specify more than 1 volume type");
            continue;
        }
        match key {
            "emptyDir" => {
                let limit = source.get("sizeLimit");
                if Quantity::parse(limit.text()).is_ok_and(Quantity::is_negative) {
                    report.forbidden(&limit, "SizeLimit field must be a valid resource quantity");
                }
            }
            "hostPath" => host_path(report, &source),
            "nfs" => {
                need(report, &source, &["server", "path"]);
                let path = source.get("path");
                if !path.text().starts_with('/') {
                    report.wrong(&path, &path.text().into(), "must be an absolute path");
                }
            }
            "secret" => {
                need(report, &source, &["secretName"]);
                files(report, &source);
            }
            "configMap" => {
                need(report, &source, &["name"]);
                files(report, &source);
            }
            "downwardAPI" => {
                mode(report, &source.get("defaultMode"));
                source.get("items").items().for_each(|item| downward_item(report, &source, &item));
            }
            "projected" => projected(report, &source),
            "persistentVolumeClaim" => need(report, &source, &["claimName"]),
            "csi" => need(report, &source, &["driver"]),
            "ephemeral" => need(report, &source, &["volumeClaimTemplate"]),
            _ => {}
        }
    }
    if count == 0 {
        report.required(volume, "must specify a volume type");
    }
}

fn need(report: &mut Report, node: &Node, keys: &[&str]) {
    for key in keys {
        let field = node.get(key);
        if field.is_empty() {
            report.required(&field, "");
        }
    }
}

fn host_path(report: &mut Report, node: &Node) {
    let path = node.get("path");
    if path.is_empty() {
        return report.required(&path, "");
    }
    if path.text().split('/').any(|part| part == "..") {
        report.invalid(&path, "must not contain '..'");
    }
    report.one_of(&node.get("type"), &HOST_PATH_TYPES);
}

fn mode(report: &mut Report, node: &Node) {
    if node.int().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        report.invalid(node, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

fn files(report: &mut Report, source: &Node) {
    mode(report, &source.get("defaultMode"));
    for item in source.get("items").items() {
        need(report, &item, &["key", "path"]);
        let path = item.get("path");
        if let Some(problem) = names::local_path(path.text()) {
            report.invalid(&path, problem);
        }
        mode(report, &item.get("mode"));
    }
}

fn projected(report: &mut Report, node: &Node) {
    mode(report, &node.get("defaultMode"));
    let mut paths: Vec<String> = Vec::new();
    for source in node.get("sources").items() {
        for inner in [source.get("secret"), source.get("configMap")] {
            if !inner.is_set() {
                continue;
            }
            need(report, &inner, &["name"]);
            for item in inner.get("items").items() {
                need(report, &item, &["key", "path"]);
                let path = item.get("path");
                if let Some(problem) = names::local_path(path.text()) {
                    report.invalid(&path, problem);
                }
                mode(report, &item.get("mode"));
                if !path.is_empty() && paths.iter().any(|known| known == path.text()) {
                    report.wrong(node, inner.get("name").value, "conflicting duplicate paths");
                }
                paths.push(path.text().into());
            }
        }
        let downward = source.get("downwardAPI");
        downward.get("items").items().for_each(|item| downward_item(report, &downward, &item));
        let token = source.get("serviceAccountToken");
        if token.is_set() {
            let seconds = token.get("expirationSeconds");
            if seconds.int().is_some_and(|seconds| seconds < 600) {
                report.invalid(&seconds, "may not specify a duration less than 10 minutes");
            }
            if seconds.int().is_some_and(|seconds| seconds > 1 << 32) {
                report.invalid(&seconds, "may not specify a duration larger than 2^32 seconds");
            }
            if token.get("path").is_empty() {
                report.required(&node.get("path"), "");
            }
        }
    }
}
