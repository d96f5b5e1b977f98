//! Services: ports, types, addresses and policies (kubernetes/kubernetes pkg/apis/core/validation ValidateService).

use std::net::IpAddr;

use super::report::{Node, Report};
use super::{metadata, names};

pub(super) fn check(report: &mut Report, service: &Node, old: Option<&Node>) {
    let spec = service.get("spec");
    let kind = spec.get("type");
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    report.one_of(&kind, &kinds);
    let external_name = kind.text() == "ExternalName";
    let headless = spec.get("clusterIP").text() == "None";
    let list = spec.get("ports");
    if list.is_empty() && !headless && !external_name {
        report.required(&list, "");
    }
    if external_name {
        let name = spec.get("externalName");
        let host = name.text().strip_suffix('.').unwrap_or(name.text());
        if host.is_empty() {
            report.required(&name, "");
        } else {
            report.all(&name, names::subdomain(host));
        }
        if !spec.get("clusterIPs").is_empty() {
            report.forbidden(&spec.get("clusterIPs"), "may not be set for ExternalName services");
        }
    }
    ports(report, &list, kind.text(), headless);
    metadata::labels(report, &spec.get("selector"));
    let affinity = spec.get("sessionAffinity");
    report.one_of(&affinity, &["ClientIP", "None"]);
    let timeout = spec.at("sessionAffinityConfig.clientIP.timeoutSeconds");
    if affinity.text() == "ClientIP" && timeout.int().is_some_and(|seconds| !(1..=86400).contains(&seconds)) {
        report.invalid(&timeout, "must be greater than 0 and less than 86400");
    }
    cluster_addresses(report, &spec, kind.text());
    for address in spec.get("externalIPs").items() {
        let problems = names::address(address.text());
        if problems.is_empty() {
            special(report, &address);
        }
        report.all(&address, problems);
    }
    policies(report, &spec, kind.text());
    if let Some(before) = old.map(|old| old.get("spec")) {
        let (now, was) = (spec.get("clusterIPs"), before.get("clusterIPs"));
        let stays = before.get("type").text() != "ExternalName" && !external_name;
        if stays && !was.is_empty() && now.value.get(0) != was.value.get(0) {
            let first = now.named(format!("{}[0]", now.path));
            report.invalid(&first, "may not change once set");
        }
    }
}

fn ports(report: &mut Report, list: &Node, kind: &str, headless: bool) {
    let many = list.items().count() > 1;
    let (mut named, mut taken, mut on_node) = (Vec::new(), Vec::new(), Vec::new());
    for port in list.items() {
        let (name, number, protocol, node_port) = (port.get("name"), port.get("port"), port.get("protocol"), port.get("nodePort"));
        if name.is_empty() {
            if many {
                report.required(&name, "");
            }
        } else {
            report.all(&name, names::label(name.text()));
            if named.contains(&name.text()) {
                report.duplicate(&name, name.value);
            }
            named.push(name.text());
        }
        report.port(&number);
        if protocol.is_empty() {
            report.required(&protocol, "");
        } else {
            report.one_of(&protocol, &["SCTP", "TCP", "UDP"]);
        }
        let target = port.get("targetPort");
        report.port(&target);
        if headless && target.value.is_i64() && target.value != number.value {
            // Nobody forwards to another port for a headless service.
            report.invalid(&target, "must be equal to the value of 'port' when clusterIP = None");
        }
        let key = (protocol.text(), number.int());
        if taken.contains(&key) {
            report.duplicate(&port, port.value);
        }
        taken.push(key);
        let Some(on) = node_port.int().filter(|on| *on != 0) else { continue };
        if kind == "ClusterIP" {
            report.forbidden(&node_port, "may not be used when `type` is 'ClusterIP'");
        }
        let key = (protocol.text(), on);
        if on_node.contains(&key) {
            report.duplicate(&node_port, node_port.value);
        }
        on_node.push(key);
    }
}

fn cluster_addresses(report: &mut Report, spec: &Node, kind: &str) {
    for address in spec.get("clusterIPs").items() {
        match address.text() {
            "" => {}
            "None" if matches!(kind, "NodePort" | "LoadBalancer") => {
                report.invalid(&address, format!("may not be set to 'None' for {kind} services"))
            }
            "None" => {}
            text => report.all(&address, names::address(text)),
        }
    }
}

/// Addresses that mean something else than another machine.
fn special(report: &mut Report, node: &Node) {
    let Ok(address) = node.text().parse::<IpAddr>() else { return };
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if address.is_unspecified() {
        report.invalid(node, format!("may not be unspecified ({address})"));
    } else if address.is_loopback() {
        report.invalid(node, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    } else if link_local {
        report.invalid(node, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
}

fn policies(report: &mut Report, spec: &Node, kind: &str) {
    let ranges = spec.get("loadBalancerSourceRanges");
    let ranges = ranges.named(format!("{}.LoadBalancerSourceRanges", spec.path));
    if !ranges.is_empty() && kind != "LoadBalancer" {
        report.forbidden(&ranges, "may only be used when `type` is 'LoadBalancer'");
    } else {
        ranges.items().for_each(|range| report.all(&range, names::address_range(range.text().trim())));
    }
    let (outside, inside) = (spec.get("externalTrafficPolicy"), spec.get("internalTrafficPolicy"));
    let reachable = matches!(kind, "NodePort" | "LoadBalancer") || kind == "ClusterIP" && !spec.get("externalIPs").is_empty();
    if !outside.is_empty() && !reachable {
        report.invalid(&outside, "may only be set for externally-accessible services");
    } else {
        report.one_of(&outside, &["Cluster", "Local"]);
    }
    report.one_of(&inside, &["Cluster", "Local"]);
    let check = spec.get("healthCheckNodePort");
    let wanted = kind == "LoadBalancer" && outside.text() == "Local";
    if check.int().unwrap_or(0) != 0 && !wanted {
        report.invalid(&check, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'");
    }
    report.one_of(&spec.get("ipFamilyPolicy"), &["PreferDualStack", "RequireDualStack", "SingleStack"]);
}
