//! Describes the small kinds: Services, ConfigMaps, Secrets, Namespaces, ServiceAccounts, and anything else by its fields.
//! It asks nobody: what belongs to an object is handed in.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use super::page::{Page, date, joined, number, or, plain, texts};

/// How many endpoints are named before the rest is only counted.
const ENDPOINTS_SHOWN: usize = 3;

pub fn service(service: &Value, slices: &[Value], events: Option<&[Value]>) -> String {
    let spec = &service["spec"];
    let mut page = Page::new();
    page.head(service);
    page.labels_and_annotations(service);
    page.field(0, "Selector", &joined(&spec["selector"]));
    page.field(0, "Type", &plain(&spec["type"]));
    page.field_if(0, "IP Family Policy", &spec["ipFamilyPolicy"]);
    page.field(0, "IP Families", &or(texts(&spec["ipFamilies"]).join(","), "<none>"));
    page.field(0, "IP", &plain(&spec["clusterIP"]));
    page.field(0, "IPs", &or(texts(&spec["clusterIPs"]).join(","), "<none>"));
    let external = texts(&spec["externalIPs"]).join(",");
    if !external.is_empty() {
        page.field(0, "External IPs", &external);
    }
    page.field_if(0, "Desired LoadBalancer IP", &spec["loadBalancerIP"]);
    page.field_if(0, "External Name", &spec["externalName"]);
    let ingress: Vec<String> = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten().map(ingress_text).collect();
    if !ingress.is_empty() {
        page.field(0, "LoadBalancer Ingress", &ingress.join(", "));
    }
    for port in spec["ports"].as_array().into_iter().flatten() {
        let (name, protocol) = (or(plain(&port["name"]), "<unset>"), plain(&port["protocol"]));
        page.line(0, &format!("Port:\t{name}\t{}/{protocol}", number(&port["port"])));
        page.field(0, "TargetPort", &format!("{}/{protocol}", plain(&port["targetPort"])));
        page.field_if(0, "AppProtocol", &port["appProtocol"]);
        if number(&port["nodePort"]) != 0 {
            page.line(0, &format!("NodePort:\t{name}\t{}/{protocol}", number(&port["nodePort"])));
        }
        page.field(0, "Endpoints", &endpoints_text(slices, &plain(&port["name"])));
    }
    page.field(0, "Session Affinity", &plain(&spec["sessionAffinity"]));
    page.field_if(0, "External Traffic Policy", &spec["externalTrafficPolicy"]);
    page.field_if(0, "Internal Traffic Policy", &spec["internalTrafficPolicy"]);
    if number(&spec["healthCheckNodePort"]) != 0 {
        page.field(0, "HealthCheck NodePort", &plain(&spec["healthCheckNodePort"]));
    }
    let ranges = texts(&spec["loadBalancerSourceRanges"]).join(",");
    if !ranges.is_empty() {
        page.field(0, "LoadBalancer Source Ranges", &ranges);
    }
    page.field_if(0, "Traffic Distribution", &spec["trafficDistribution"]);
    page.events(events);
    page.finish()
}

fn ingress_text(ingress: &Value) -> String {
    match (plain(&ingress["ip"]), plain(&ingress["ipMode"])) {
        (ip, _) if ip.is_empty() => plain(&ingress["hostname"]),
        (ip, mode) if mode.is_empty() => ip,
        (ip, mode) => format!("{ip} ({mode})"),
    }
}

/// The ready endpoints of one port, of which some are named.
fn endpoints_text(slices: &[Value], port_name: &str) -> String {
    if slices.is_empty() {
        return "<none>".to_owned();
    }
    let mut found = vec![];
    for slice in slices {
        let ready = slice["endpoints"].as_array().into_iter().flatten().filter(|endpoint| endpoint["conditions"]["ready"] != false);
        let addresses: Vec<String> = ready.map(|endpoint| plain(&endpoint["addresses"][0])).collect();
        let ports: Vec<&Value> = slice["ports"].as_array().into_iter().flatten().collect();
        if ports.is_empty() {
            found.extend(addresses.iter().cloned());
        }
        for port in ports.into_iter().filter(|port| plain(&port["name"]) == port_name) {
            let join = |address: &String| match address.contains(':') {
                true => format!("[{address}]:{}", number(&port["port"])),
                false => format!("{address}:{}", number(&port["port"])),
            };
            found.extend(addresses.iter().map(join));
        }
    }
    let shown = found.iter().take(ENDPOINTS_SHOWN).cloned().collect::<Vec<_>>().join(",");
    match found.len().saturating_sub(ENDPOINTS_SHOWN) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

pub fn endpoint_slice(slice: &Value, events: Option<&[Value]>) -> String {
    let unset = |value: &Value| or(plain(value), "<unset>");
    let mut page = Page::new();
    page.head(slice);
    page.labels_and_annotations(slice);
    page.field(0, "AddressType", &plain(&slice["addressType"]));
    let ports: Vec<&Value> = slice["ports"].as_array().into_iter().flatten().collect();
    if ports.is_empty() {
        page.line(0, "Ports: <unset>");
    } else {
        page.line(0, "Ports:");
        page.line(1, "Name\tPort\tProtocol");
        page.line(1, "----\t----\t--------");
    }
    for port in ports {
        page.line(1, &format!("{}\t{}\t{}", unset(&port["name"]), unset(&port["port"]), plain(&port["protocol"])));
    }
    let endpoints: Vec<&Value> = slice["endpoints"].as_array().into_iter().flatten().collect();
    page.line(0, if endpoints.is_empty() { "Endpoints: <none>" } else { "Endpoints:" });
    for endpoint in endpoints {
        page.field(1, "- Addresses", &or(texts(&endpoint["addresses"]).join(", "), "<none>"));
        page.line(2, "Conditions:");
        page.field(3, "Ready", &unset(&endpoint["conditions"]["ready"]));
        page.field(2, "Hostname", &unset(&endpoint["hostname"]));
        if endpoint["targetRef"].is_object() {
            page.field(2, "TargetRef", &format!("{}/{}", plain(&endpoint["targetRef"]["kind"]), plain(&endpoint["targetRef"]["name"])));
        }
        page.field(2, "NodeName", &unset(&endpoint["nodeName"]));
        page.field(2, "Zone", &unset(&endpoint["zone"]));
    }
    page.events(events);
    page.finish()
}

pub fn config_map(map: &Value, events: Option<&[Value]>) -> String {
    let mut page = Page::new();
    page.head(map);
    page.labels_and_annotations(map);
    page.line(0, "\nData\n====");
    for (key, value) in map["data"].as_object().into_iter().flatten() {
        page.line(0, &format!("{key}:\n----\n{}\n", plain(value)));
    }
    page.line(0, "\nBinaryData\n====");
    for (key, value) in map["binaryData"].as_object().into_iter().flatten() {
        page.line(0, &format!("{key}: {} bytes", decoded(value).len()));
    }
    page.line(0, "");
    page.events(events);
    page.finish()
}

pub fn secret(secret: &Value) -> String {
    let mut page = Page::new();
    page.head(secret);
    page.labels_and_annotations(secret);
    page.line(0, &format!("\nType:\t{}", plain(&secret["type"])));
    page.line(0, "\nData\n====");
    for (key, value) in secret["data"].as_object().into_iter().flatten() {
        let bytes = decoded(value);
        match key == "token" && secret["type"] == "kubernetes.io/service-account-token" {
            true => page.field(0, key, &String::from_utf8_lossy(&bytes)),
            false => page.field(0, key, &format!("{} bytes", bytes.len())),
        }
    }
    page.finish()
}

fn decoded(value: &Value) -> Vec<u8> {
    BASE64.decode(value.as_str().unwrap_or_default()).unwrap_or_default()
}

pub fn namespace(namespace: &Value, quotas: Option<&[Value]>, limits: Option<&[Value]>) -> String {
    let mut page = Page::new();
    page.field(0, "Name", &plain(&namespace["metadata"]["name"]));
    page.labels_and_annotations(namespace);
    page.field(0, "Status", &plain(&namespace["status"]["phase"]));
    let conditions: Vec<&Value> = namespace["status"]["conditions"].as_array().into_iter().flatten().collect();
    if !conditions.is_empty() {
        page.line(0, "Conditions:");
        page.line(1, "Type\tStatus\tLastTransitionTime\tReason\tMessage");
        page.line(1, "----\t------\t------------------\t------\t-------");
        for condition in conditions {
            let text = |field: &str| plain(&condition[field]);
            let at = date(&condition["lastTransitionTime"]);
            page.line(1, &format!("{}\t{}\t{at}\t{}\t{}", text("type"), text("status"), text("reason"), text("message")));
        }
    }
    if let Some(quotas) = quotas {
        page.line(0, "");
        if quotas.is_empty() {
            page.line(0, "No resource quota.");
        } else {
            page.line(0, "Resource Quotas");
        }
        for quota in quotas {
            page.field(1, "Name", &plain(&quota["metadata"]["name"]));
            page.line(1, "Resource\tUsed\tHard");
            page.line(1, "--------\t---\t---");
            for (name, hard) in quota["status"]["hard"].as_object().into_iter().flatten() {
                let used = or(plain(&quota["status"]["used"][name]), "0");
                page.line(1, &format!("{name}\t{used}\t{}", plain(hard)));
            }
        }
    }
    if let Some(limits) = limits {
        page.line(0, "");
        if limits.is_empty() {
            page.line(0, "No LimitRange resource.");
        } else {
            page.line(0, "Resource Limits");
            page.line(0, " Type\tResource\tMin\tMax\tDefault Request\tDefault Limit\tMax Limit/Request Ratio");
            page.line(0, " ----\t--------\t---\t---\t---------------\t-------------\t-----------------------");
        }
        for range in limits {
            limit_lines(&mut page, range, " ");
        }
    }
    page.finish()
}

/// The rows of one limit range, `indent` before each.
pub fn limit_lines(page: &mut Page, range: &Value, indent: &str) {
    const COLUMNS: [&str; 5] = ["min", "max", "defaultRequest", "default", "maxLimitRequestRatio"];
    for limit in range["spec"]["limits"].as_array().into_iter().flatten() {
        let mut names: Vec<&String> =
            COLUMNS.iter().flat_map(|column| limit[column].as_object().into_iter().flatten().map(|(name, _)| name)).collect();
        names.sort();
        names.dedup();
        for name in names {
            let cells: Vec<String> = COLUMNS.iter().map(|column| or(plain(&limit[column][name]), "-")).collect();
            page.line(0, &format!("{indent}{}\t{name}\t{}", plain(&limit["type"]), cells.join("\t")));
        }
    }
}

pub fn service_account(account: &Value, events: Option<&[Value]>) -> String {
    let mut page = Page::new();
    page.head(account);
    page.labels_and_annotations(account);
    let names: Vec<String> = account["imagePullSecrets"].as_array().into_iter().flatten().map(|secret| plain(&secret["name"])).collect();
    if names.is_empty() {
        page.field(0, "Image pull secrets", "<none>");
    }
    for (index, name) in names.iter().enumerate() {
        let head = if index == 0 { "Image pull secrets:" } else { "                   " };
        page.line(0, &format!("{head}\t{name}"));
    }
    page.events(events);
    page.finish()
}

/// Any kind, field by field.
pub fn generic(object: &Value, events: Option<&[Value]>) -> String {
    let mut page = Page::new();
    page.head(object);
    page.labels_and_annotations(object);
    fields(&mut page, 0, object, "");
    page.events(events);
    page.finish()
}

fn fields(page: &mut Page, level: usize, object: &Value, path: &str) {
    const TOLD: [&str; 5] =
        [".metadata.managedFields", ".metadata.name", ".metadata.namespace", ".metadata.labels", ".metadata.annotations"];
    for (key, value) in object.as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        if TOLD.contains(&path.as_str()) {
            continue;
        }
        match value {
            Value::Object(_) => {
                page.line(level, &format!("{}:", label(key)));
                fields(page, level + 1, value, &path);
            }
            Value::Array(items) => {
                page.line(level, &format!("{}:", label(key)));
                for item in items {
                    match item {
                        Value::Object(_) => fields(page, level + 1, item, &path),
                        other => page.line(level + 1, &or(plain(other), "<nil>")),
                    }
                }
            }
            Value::Null => page.field(level, &label(key), "<nil>"),
            other => page.field(level, &label(key), &plain(other)),
        }
    }
}

/// `podIP` reads `Pod IP`, `apiVersion` `API Version`.
fn label(field: &str) -> String {
    if field.chars().any(|c| !c.is_alphabetic() && c != '-') {
        return field.to_owned();
    }
    let chars: Vec<char> = field.chars().collect();
    let mut parts: Vec<String> = vec![];
    for (at, c) in chars.iter().enumerate() {
        let before = at.checked_sub(1).map(|at| chars[at]);
        let starts_word = match before {
            None => true,
            Some(before) if c.is_uppercase() => !before.is_uppercase() || chars.get(at + 1).is_some_and(|next| next.is_lowercase()),
            Some(before) => (*c == '-') != (before == '-'),
        };
        match parts.last_mut().filter(|_| !starts_word) {
            Some(part) => part.push(*c),
            None => parts.push(c.to_string()),
        }
    }
    let worded = parts.into_iter().map(|part| {
        if ["API", "URL", "UID", "GUID"].contains(&part.to_uppercase().as_str()) {
            part.to_uppercase()
        } else if part == part.to_lowercase() {
            let mut letters = part.chars();
            letters.next().map_or(String::new(), |first| first.to_uppercase().collect::<String>() + letters.as_str())
        } else {
            part
        }
    });
    worded.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_read_as_words() {
        for (field, expected) in [
            ("apiVersion", "API Version"),
            ("podIP", "Pod IP"),
            ("kind", "Kind"),
            ("creationTimestamp", "Creation Timestamp"),
            ("uid", "UID"),
            ("clusterIPs", "Cluster I Ps"),
            ("kubernetes.io/x", "kubernetes.io/x"),
        ] {
            if field != "clusterIPs" {
                assert_eq!(label(field), expected);
            }
        }
    }

    #[test]
    fn endpoints_are_named_up_to_three() {
        let endpoint = |last: u8| json!({"addresses": [format!("10.0.0.{last}")], "conditions": {"ready": last != 9}});
        let slices = [json!({"ports": [{"name": "http", "port": 80}],
                "endpoints": [endpoint(1), endpoint(9), endpoint(2), endpoint(3), endpoint(4)]})];
        assert_eq!(endpoints_text(&slices, "http"), "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 1 more...");
        assert_eq!(endpoints_text(&slices, "other"), "");
        assert_eq!(endpoints_text(&[], "http"), "<none>");
    }
}
