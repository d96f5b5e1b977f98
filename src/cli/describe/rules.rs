//! Describes what limits and permits: roles and their bindings, quotas, limit ranges, disruption budgets, network policies, priority
//! classes, autoscalers. It asks nobody: what belongs to an object is handed in.

use serde_json::Value;

use super::page::{Page, number, or, plain, selector_text, texts};
use super::small::limit_lines;

/// The rules of a role taken apart, one resource or path a row: resource, path, names, verbs. In kubectl's order.
pub fn rule_rows<'a>(rules: impl IntoIterator<Item = &'a Value>) -> Vec<[String; 4]> {
    let words = |value: &Value| format!("[{}]", texts(value).join(" "));
    let mut rows: Vec<([String; 5], [String; 4])> = vec![];
    for rule in rules {
        let (verbs, names) = (words(&rule["verbs"]), words(&rule["resourceNames"]));
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                let (plural, sub) = resource.split_once('/').map_or((resource.as_str(), ""), |(plural, sub)| (plural, sub));
                let shown = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
                let shown = if sub.is_empty() { shown } else { format!("{shown}/{sub}") };
                let key = [verbs.clone(), format!("[{group}]"), format!("[{resource}]"), names.clone(), "[]".to_owned()];
                let row = [shown, "[]".to_owned(), names.clone(), verbs.clone()];
                if !rows.iter().any(|(known, _)| *known == key) {
                    rows.push((key, row));
                }
            }
        }
        for path in texts(&rule["nonResourceURLs"]) {
            let (nothing, path) = ("[]".to_owned(), format!("[{path}]"));
            let key = [verbs.clone(), nothing.clone(), nothing.clone(), nothing.clone(), path.clone()];
            rows.push((key, [String::new(), path, nothing, verbs.clone()]));
        }
    }
    rows.sort_by(|(one, _), (other, _)| one.cmp(other));
    rows.into_iter().map(|(_, row)| row).collect()
}

pub fn role(role: &Value) -> String {
    let mut page = Page::new();
    page.field(0, "Name", &plain(&role["metadata"]["name"]));
    page.labels_and_annotations(role);
    page.line(0, "PolicyRule:");
    page.line(1, "Resources\tNon-Resource URLs\tResource Names\tVerbs");
    page.line(1, "---------\t-----------------\t--------------\t-----");
    for row in rule_rows(role["rules"].as_array().into_iter().flatten()) {
        page.line(1, &row.join("\t"));
    }
    page.finish()
}

pub fn role_binding(binding: &Value) -> String {
    let mut page = Page::new();
    page.field(0, "Name", &plain(&binding["metadata"]["name"]));
    page.labels_and_annotations(binding);
    page.line(0, "Role:");
    page.field(1, "Kind", &plain(&binding["roleRef"]["kind"]));
    page.field(1, "Name", &plain(&binding["roleRef"]["name"]));
    page.line(0, "Subjects:");
    page.line(1, "Kind\tName\tNamespace");
    page.line(1, "----\t----\t---------");
    for subject in binding["subjects"].as_array().into_iter().flatten() {
        page.line(1, &["kind", "name", "namespace"].map(|key| plain(&subject[key])).join("\t"));
    }
    page.finish()
}

pub fn quota(quota: &Value) -> String {
    let mut page = Page::new();
    page.head(quota);
    let scopes = texts(&quota["spec"]["scopes"]);
    if !scopes.is_empty() {
        page.field(0, "Scopes", &scopes.join(", "));
    }
    page.line(0, "Resource\tUsed\tHard");
    page.line(0, "--------\t----\t----");
    for (name, hard) in quota["status"]["hard"].as_object().into_iter().flatten() {
        page.line(0, &format!("{name}\t{}\t{}", or(plain(&quota["status"]["used"][name]), "0"), plain(hard)));
    }
    page.finish()
}

pub fn limit_range(range: &Value) -> String {
    let mut page = Page::new();
    page.head(range);
    page.line(0, "Type\tResource\tMin\tMax\tDefault Request\tDefault Limit\tMax Limit/Request Ratio");
    page.line(0, "----\t--------\t---\t---\t---------------\t-------------\t-----------------------");
    limit_lines(&mut page, range, "");
    page.finish()
}

pub fn disruption_budget(budget: &Value, events: Option<&[Value]>) -> String {
    let (spec, status) = (&budget["spec"], &budget["status"]);
    let mut page = Page::new();
    page.head(budget);
    page.field_if(0, "Min available", &spec["minAvailable"]);
    page.field_if(0, "Max unavailable", &spec["maxUnavailable"]);
    page.field(0, "Selector", &if spec["selector"].is_null() { "<unset>".to_owned() } else { selector_text(&spec["selector"]) });
    page.line(0, "Status:");
    for (label, key) in [
        ("Allowed disruptions", "disruptionsAllowed"),
        ("Current", "currentHealthy"),
        ("Desired", "desiredHealthy"),
        ("Total", "expectedPods"),
    ] {
        page.field(2, label, &number(&status[key]).to_string());
    }
    page.events(events);
    page.finish()
}

pub fn priority_class(class: &Value, events: Option<&[Value]>) -> String {
    let mut page = Page::new();
    page.field(0, "Name", &plain(&class["metadata"]["name"]));
    page.field(0, "Value", &plain(&class["value"]));
    page.field(0, "GlobalDefault", &(class["globalDefault"] == true).to_string());
    page.field(0, "PreemptionPolicy", &or(plain(&class["preemptionPolicy"]), "PreemptLowerPriority"));
    page.field(0, "Description", &plain(&class["description"]));
    page.field(0, "Annotations", &super::storage::annotations(class));
    page.events(events);
    page.finish()
}

pub fn autoscaler(scaler: &Value, events: Option<&[Value]>) -> String {
    let (spec, status) = (&scaler["spec"], &scaler["status"]);
    let mut page = Page::new();
    page.head(scaler);
    page.labels_and_annotations(scaler);
    page.field(0, "CreationTimestamp", &super::page::date(&scaler["metadata"]["creationTimestamp"]));
    page.field(0, "Reference", &format!("{}/{}", plain(&spec["scaleTargetRef"]["kind"]), plain(&spec["scaleTargetRef"]["name"])));
    page.line(0, "Metrics:\t( current / target )");
    for (at, metric) in spec["metrics"].as_array().into_iter().flatten().enumerate() {
        let kind = plain(&metric["type"]);
        let source = ["resource", "containerResource", "pods", "object", "external"].into_iter().find(|key| metric[key].is_object());
        let source = source.unwrap_or_default();
        let (target, current) = (&metric[source]["target"], &status["currentMetrics"][at][source]["current"]);
        let unknown = |text: String| or(text, "<unknown>");
        let name = or(plain(&metric[source]["name"]), &plain(&metric[source]["metric"]["name"]));
        match target["averageUtilization"].as_i64() {
            Some(share) => {
                let now = match current["averageUtilization"].as_i64() {
                    Some(now) => format!("{now}% ({})", plain(&current["averageValue"])),
                    None => "<unknown>".to_owned(),
                };
                page.line(1, &format!("resource {name} on pods  (as a percentage of request):\t{now} / {share}%"));
            }
            None => {
                let key = if target["averageValue"].is_null() { "value" } else { "averageValue" };
                let (now, wanted) = (unknown(plain(&current[key])), plain(&target[key]));
                page.line(1, &format!("{} {name}:\t{now} / {wanted}", kind.to_lowercase()));
            }
        }
    }
    page.field(0, "Min replicas", &or(plain(&spec["minReplicas"]), "<unset>"));
    page.field(0, "Max replicas", &plain(&spec["maxReplicas"]));
    let (current, desired) = (number(&status["currentReplicas"]), number(&status["desiredReplicas"]));
    page.field(0, &format!("{} pods", plain(&spec["scaleTargetRef"]["kind"])), &format!("{current} current / {desired} desired"));
    let conditions: Vec<&Value> = status["conditions"].as_array().into_iter().flatten().collect();
    if !conditions.is_empty() {
        page.line(0, "Conditions:");
        page.line(1, "Type\tStatus\tReason\tMessage");
        page.line(1, "----\t------\t------\t-------");
    }
    for condition in conditions {
        page.line(1, &["type", "status", "reason", "message"].map(|key| plain(&condition[key])).join("\t"));
    }
    page.events(events);
    page.finish()
}

pub fn network_policy(policy: &Value) -> String {
    let spec = &policy["spec"];
    let mut page = Page::new();
    page.head(policy);
    page.field(0, "Created on", &plain(&policy["metadata"]["creationTimestamp"]).replace('T', " ").replace('Z', " +0000 UTC"));
    page.labels_and_annotations(policy);
    page.line(0, "Spec:");
    let selector = match selector_text(&spec["podSelector"]) {
        text if text == "<none>" => "<none> (Allowing the specific traffic to all pods in this namespace)".to_owned(),
        text => text,
    };
    page.line(1, &format!("PodSelector:     {selector}"));
    let types = texts(&spec["policyTypes"]);
    for (kind, word, key, peers) in [("Ingress", "ingress", "ingress", "from"), ("Egress", "egress", "egress", "to")] {
        if !types.iter().any(|known| known == kind) {
            page.line(1, &format!("Not affecting {word} traffic"));
            continue;
        }
        page.line(1, &format!("Allowing {word} traffic:"));
        let rules: Vec<&Value> = spec[key].as_array().into_iter().flatten().collect();
        if rules.is_empty() {
            page.line(2, &format!("<none> (Selected pods are isolated for {word} connectivity)"));
        }
        for (at, rule) in rules.iter().enumerate() {
            traffic(&mut page, rule, peers);
            if at + 1 < rules.len() {
                page.line(2, "----------");
            }
        }
    }
    page.line(1, &format!("Policy Types: {}", types.join(", ")));
    page.finish()
}

fn traffic(page: &mut Page, rule: &Value, peers: &str) {
    let ports: Vec<&Value> = rule["ports"].as_array().into_iter().flatten().collect();
    if ports.is_empty() {
        page.line(2, "To Port: <any> (traffic allowed to all ports)");
    }
    for port in ports {
        page.line(2, &format!("To Port: {}/{}", or(plain(&port["port"]), "<any>"), or(plain(&port["protocol"]), "TCP")));
    }
    let label = if peers == "from" { "From" } else { "To" };
    let listed: Vec<&Value> = rule[peers].as_array().into_iter().flatten().collect();
    if listed.is_empty() {
        let what = if peers == "from" { "source" } else { "destination" };
        page.line(2, &format!("{label}: <any> (traffic not restricted by {what})"));
    }
    for peer in listed {
        page.line(2, &format!("{label}:"));
        if peer["ipBlock"].is_object() {
            page.line(3, "IPBlock:");
            page.line(4, &format!("CIDR: {}", plain(&peer["ipBlock"]["cidr"])));
            page.line(4, &format!("Except: {}", texts(&peer["ipBlock"]["except"]).join(", ")));
        }
        for (key, label) in [("namespaceSelector", "NamespaceSelector"), ("podSelector", "PodSelector")] {
            if peer[key].is_object() {
                page.line(3, &format!("{label}: {}", selector_text(&peer[key])));
            }
        }
    }
}

pub fn ingress(ingress: &Value, events: Option<&[Value]>) -> String {
    let spec = &ingress["spec"];
    let mut page = Page::new();
    page.field(0, "Name", &plain(&ingress["metadata"]["name"]));
    page.labels("", "Labels", &ingress["metadata"]["labels"]);
    page.field(0, "Namespace", &plain(&ingress["metadata"]["namespace"]));
    let addresses = ingress["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    let addresses: Vec<String> = addresses.map(|address| or(plain(&address["ip"]), &plain(&address["hostname"]))).collect();
    page.field(0, "Address", &addresses.join(","));
    page.field(0, "Ingress Class", &or(plain(&spec["ingressClassName"]), "<none>"));
    let default = if spec["defaultBackend"].is_object() { backend(&spec["defaultBackend"]) } else { "<default>".to_owned() };
    page.field(0, "Default backend", &default);
    let tls: Vec<&Value> = spec["tls"].as_array().into_iter().flatten().collect();
    if !tls.is_empty() {
        page.line(0, "TLS:");
    }
    for entry in tls {
        let hosts = texts(&entry["hosts"]).join(",");
        match plain(&entry["secretName"]) {
            secret if secret.is_empty() => page.line(1, &format!("SNI routes {hosts}")),
            secret => page.line(1, &format!("{secret} terminates {hosts}")),
        }
    }
    page.line(0, "Rules:");
    page.line(1, "Host\tPath\tBackends");
    page.line(1, "----\t----\t--------");
    let rules: Vec<&Value> = spec["rules"].as_array().into_iter().flatten().collect();
    if rules.is_empty() {
        page.line(1, &format!("*\t*\t{default}"));
    }
    for rule in rules {
        page.line(1, &format!("{}\t", or(plain(&rule["host"]), "*")));
        for path in rule["http"]["paths"].as_array().into_iter().flatten() {
            page.line(1, &format!("  \t{} \t{}", plain(&path["path"]), backend(&path["backend"])));
        }
    }
    page.annotations("Annotations", &ingress["metadata"]["annotations"]);
    page.events(events);
    page.finish()
}

/// Where an ingress sends to; which endpoints that service has now is not looked up.
fn backend(backend: &Value) -> String {
    let service = &backend["service"];
    if service.is_null() {
        let resource = &backend["resource"];
        return format!(
            "APIGroup: {}, Kind: {}, Name: {}",
            plain(&resource["apiGroup"]),
            plain(&resource["kind"]),
            plain(&resource["name"])
        );
    }
    let port = or(plain(&service["port"]["name"]), &plain(&service["port"]["number"]));
    format!("{}:{port} ()", plain(&service["name"]))
}

pub fn endpoints(endpoints: &Value, events: Option<&[Value]>) -> String {
    let mut page = Page::new();
    page.head(endpoints);
    page.labels_and_annotations(endpoints);
    page.line(0, "Subsets:");
    for subset in endpoints["subsets"].as_array().into_iter().flatten() {
        for (label, key) in [("Addresses", "addresses"), ("NotReadyAddresses", "notReadyAddresses")] {
            let addresses = subset[key].as_array().into_iter().flatten().map(|address| plain(&address["ip"]));
            page.field(1, label, &or(addresses.collect::<Vec<_>>().join(","), "<none>"));
        }
        let ports: Vec<&Value> = subset["ports"].as_array().into_iter().flatten().collect();
        if !ports.is_empty() {
            page.line(1, "Ports:");
            page.line(2, "Name\tPort\tProtocol");
            page.line(2, "----\t----\t--------");
        }
        for port in ports {
            page.line(2, &format!("{}\t{}\t{}", or(plain(&port["name"]), "<unset>"), plain(&port["port"]), plain(&port["protocol"])));
        }
        page.line(0, "");
    }
    page.events(events);
    page.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_are_taken_apart_and_ordered_by_verbs_and_groups() {
        let rules = [
            json!({"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]}),
            json!({"apiGroups": ["apps"], "resources": ["deployments/scale"], "resourceNames": ["web"], "verbs": ["*"]}),
            json!({"nonResourceURLs": ["/healthz"], "verbs": ["get"]}),
        ];
        let rows: Vec<String> = rule_rows(&rules).iter().map(|row| row.join("|")).collect();
        assert_eq!(
            rows,
            ["deployments.apps/scale|[]|[web]|[*]", "pods/log|[]|[]|[get list]", "pods|[]|[]|[get list]", "|[/healthz]|[]|[get]"]
        );
    }
}
