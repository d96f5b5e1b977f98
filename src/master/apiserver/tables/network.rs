//! Rows of services, endpoints, ingresses and network policies.

use serde_json::Value;

use super::*;

pub const ALL: &[(&str, &Layout)] = &[
    ("services", &SERVICES),
    ("endpoints", &ENDPOINTS),
    ("endpointslices", &ENDPOINT_SLICES),
    ("ingresses", &INGRESSES),
    ("ingressclasses", &INGRESS_CLASSES),
    ("networkpolicies", &NETWORK_POLICIES),
    ("servicecidrs", &SERVICE_CIDRS),
    ("ipaddresses", &IP_ADDRESSES),
];

pub fn of(plural: &str) -> Option<&'static Layout> {
    ALL.iter().find(|row| row.0 == plural).map(|row| row.1)
}

static SERVICES: Layout = layout(
    &[
        NAME,
        text_column("Type"),
        text_column("Cluster-IP"),
        text_column("External-IP"),
        text_column("Port(s)"),
        AGE,
        wide_column("Selector"),
    ],
    |service, now| {
        let ports: Vec<String> = items(service, "/spec/ports").iter().map(port).collect();
        vec![
            name(service),
            text(service, "/spec/type").into(),
            text_or(service, "/spec/clusterIPs/0", "<none>"),
            external_address(service).into(),
            if ports.is_empty() { "<none>".into() } else { ports.join(",").into() },
            age(service, now),
            labels(service, "/spec/selector"),
        ]
    },
);

fn port(port: &Value) -> String {
    let (number, node_port, protocol) = (integer(port, "/port"), integer(port, "/nodePort"), text(port, "/protocol"));
    if node_port > 0 { format!("{number}:{node_port}/{protocol}") } else { format!("{number}/{protocol}") }
}

fn external_address(service: &Value) -> String {
    let external = joined(service, "/spec/externalIPs", "");
    match text(service, "/spec/type") {
        "ExternalName" => text(service, "/spec/externalName").into(),
        "ClusterIP" | "NodePort" if external.is_empty() => "<none>".into(),
        "ClusterIP" | "NodePort" => external,
        "LoadBalancer" => match (load_balancer(service), external.is_empty()) {
            (balancer, true) if balancer.is_empty() => "<pending>".into(),
            (balancer, true) => balancer,
            (balancer, false) if balancer.is_empty() => external,
            (balancer, false) => format!("{balancer},{external}"),
        },
        _ => "<unknown>".into(),
    }
}

/// Addresses or names of a load balancer, sorted.
fn load_balancer(object: &Value) -> String {
    let ingress = items(object, "/status/loadBalancer/ingress").iter();
    let mut places: Vec<&str> = ingress
        .map(|place| match text(place, "/ip") {
            "" => text(place, "/hostname"),
            ip => ip,
        })
        .filter(|place| !place.is_empty())
        .collect();
    places.sort_unstable();
    places.dedup();
    places.join(",")
}

static ENDPOINTS: Layout = layout(&[NAME, text_column("Endpoints"), AGE], |endpoints, now| {
    let mut list = Vec::new();
    for subset in items(endpoints, "/subsets") {
        let addresses = items(subset, "/addresses").iter().map(|address| text(address, "/ip"));
        let ports = items(subset, "/ports");
        if ports.is_empty() {
            list.extend(addresses.map(str::to_owned));
            continue;
        }
        for port in ports {
            list.extend(addresses.clone().map(|address| join_host_port(address, integer(port, "/port"))));
        }
    }
    vec![name(endpoints), at_most_three(&list, "<none>").into(), age(endpoints, now)]
});

fn join_host_port(address: &str, port: i64) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

static ENDPOINT_SLICES: Layout =
    layout(&[NAME, text_column("AddressType"), text_column("Ports"), text_column("Endpoints"), AGE], |slice, now| {
        let port = |port: &Value| match (port["port"].as_i64(), port["name"].as_str()) {
            (Some(number), _) => number.to_string(),
            (None, Some(name)) => name.to_owned(),
            (None, None) => "*".into(),
        };
        let ports: Vec<String> = items(slice, "/ports").iter().map(port).collect();
        let endpoints = items(slice, "/endpoints").iter().flat_map(|endpoint| items(endpoint, "/addresses"));
        let addresses: Vec<String> = endpoints.filter_map(Value::as_str).map(str::to_owned).collect();
        vec![
            name(slice),
            text(slice, "/addressType").into(),
            at_most_three(&ports, "<unset>").into(),
            at_most_three(&addresses, "<unset>").into(),
            age(slice, now),
        ]
    });

static INGRESSES: Layout =
    layout(&[NAME, text_column("Class"), text_column("Hosts"), text_column("Address"), text_column("Ports"), AGE], |ingress, now| {
        let rules = items(ingress, "/spec/rules");
        let hosts: Vec<&str> = rules.iter().map(|rule| text(rule, "/host")).filter(|host| !host.is_empty()).collect();
        let hosts = match hosts.len() {
            0 => "*".to_owned(),
            1..=3 if rules.len() <= 3 => hosts.join(","),
            shown => format!("{} + {} more...", hosts[..shown.min(3)].join(","), rules.len().saturating_sub(3)),
        };
        vec![
            name(ingress),
            text_or(ingress, "/spec/ingressClassName", "<none>"),
            hosts.into(),
            load_balancer(ingress).into(),
            if size(ingress, "/spec/tls") > 0 { "80, 443".into() } else { "80".into() },
            age(ingress, now),
        ]
    });

static INGRESS_CLASSES: Layout = layout(&[NAME, text_column("Controller"), text_column("Parameters"), AGE], |class, now| {
    let parameters = match class.pointer("/spec/parameters") {
        None => "<none>".to_owned(),
        Some(parameters) => match text(parameters, "/apiGroup") {
            "" => format!("{}/{}", text(parameters, "/kind"), text(parameters, "/name")),
            group => format!("{}.{group}/{}", text(parameters, "/kind"), text(parameters, "/name")),
        },
    };
    vec![name(class), text(class, "/spec/controller").into(), parameters.into(), age(class, now)]
});

static NETWORK_POLICIES: Layout = layout(&[NAME, text_column("Pod-Selector"), AGE], |policy, now| {
    vec![name(policy), selector_or_none(policy, "/spec/podSelector"), age(policy, now)]
});

static SERVICE_CIDRS: Layout =
    layout(&[NAME, text_column("CIDRs"), AGE], |range, now| vec![name(range), joined(range, "/spec/cidrs", "").into(), age(range, now)]);

static IP_ADDRESSES: Layout = layout(&[NAME, text_column("ParentRef"), AGE], |address, now| {
    let parent = &address["spec"]["parentRef"];
    let fields = [text(parent, "/namespace"), text(parent, "/name")];
    let mut shown = match text(parent, "/group") {
        "" => text(parent, "/resource").to_lowercase(),
        group => format!("{}.{group}", text(parent, "/resource").to_lowercase()),
    };
    for field in fields.into_iter().filter(|field| !field.is_empty()) {
        shown = format!("{shown}/{field}");
    }
    vec![name(address), if parent.is_null() { "<none>".into() } else { shown.into() }, age(address, now)]
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_show_ports_and_addresses() {
        let service = json!({"metadata": {"name": "web"}, "spec": {"type": "NodePort", "clusterIPs": ["10.96.0.7"], "selector": {"app": "web"},
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]}});
        let cells = (SERVICES.cells)(&service, Timestamp::now());
        assert_eq!(cells[..5], ["web", "NodePort", "10.96.0.7", "<none>", "80:30080/TCP,53/UDP"].map(Value::from));
        assert_eq!(cells[6], "app=web");
        let spec = json!({"type": "LoadBalancer", "externalIPs": ["9.9.9.9"]});
        let balancer = json!({"spec": spec, "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}});
        assert_eq!(external_address(&balancer), "1.2.3.4,9.9.9.9");
        assert_eq!(external_address(&json!({"spec": {"type": "LoadBalancer"}})), "<pending>");
    }

    #[test]
    fn long_lists_are_cut_after_three() {
        let endpoints =
            json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"port": 80}, {"port": 81}]}]});
        assert_eq!((ENDPOINTS.cells)(&endpoints, Timestamp::now())[1], "10.0.0.1:80,10.0.0.2:80,10.0.0.1:81 + 1 more...");
        let ingress = json!({"spec": {"rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}], "tls": [{}]}});
        assert_eq!((INGRESSES.cells)(&ingress, Timestamp::now())[2], "a,b,c + 1 more...");
    }
}
