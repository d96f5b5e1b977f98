//! Describes pods, and the pod templates that workloads carry. It asks nobody: events are handed in.

use serde_json::Value;

use super::page::{Page, controller, date, number, or, pairs, plain, selector_text, since, texts, yes_no};
use crate::api::quantity::Quantity;

pub fn pod(pod: &Value, events: Option<&[Value]>) -> String {
    let (metadata, spec, status) = (&pod["metadata"], &pod["spec"], &pod["status"]);
    let mut page = Page::new();
    page.head(pod);
    page.field_if(0, "Priority", &spec["priority"]);
    page.field_if(0, "Priority Class Name", &spec["priorityClassName"]);
    page.field_if(0, "Runtime Class Name", &spec["runtimeClassName"]);
    page.field_if(0, "Service Account", &spec["serviceAccountName"]);
    match plain(&spec["nodeName"]) {
        node if node.is_empty() => page.field(0, "Node", "<none>"),
        node => page.field(0, "Node", &format!("{node}/{}", plain(&status["hostIP"]))),
    }
    if status["startTime"].is_string() {
        page.field(0, "Start Time", &date(&status["startTime"]));
    }
    page.labels_and_annotations(pod);
    let ended = matches!(status["phase"].as_str(), Some("Failed" | "Succeeded"));
    if metadata["deletionTimestamp"].is_string() && !ended {
        page.field(0, "Status", &format!("Terminating (lasts {})", since(&metadata["deletionTimestamp"])));
        page.field(0, "Termination Grace Period", &format!("{}s", number(&metadata["deletionGracePeriodSeconds"])));
    } else {
        page.field(0, "Status", &plain(&status["phase"]));
    }
    page.field_if(0, "Reason", &status["reason"]);
    page.field_if(0, "Message", &status["message"]);
    seccomp(&mut page, 0, &spec["securityContext"]["seccompProfile"]);
    page.field(0, "IP", &plain(&status["podIP"]));
    match status["podIPs"].as_array().filter(|ips| !ips.is_empty()) {
        Some(ips) => {
            page.line(0, "IPs:");
            for ip in ips {
                page.field(1, "IP", &plain(&ip["ip"]));
            }
        }
        None => page.field(0, "IPs", "<none>"),
    }
    if let Some(controller) = controller(pod) {
        page.field(0, "Controlled By", &controller);
    }
    page.field_if(0, "NominatedNodeName", &status["nominatedNodeName"]);
    if spec["resources"].is_object() {
        page.line(0, "Resources:");
        resources(&mut page, 1, &spec["resources"]);
    }
    for (label, list, statuses) in [
        ("Init Containers", "initContainers", "initContainerStatuses"),
        ("Containers", "containers", "containerStatuses"),
        ("Ephemeral Containers", "ephemeralContainers", "ephemeralContainerStatuses"),
    ] {
        let empty = spec[list].as_array().is_none_or(Vec::is_empty);
        if list == "containers" || !empty {
            containers(&mut page, label, &spec[list], &status[statuses], Some(pod), "");
        }
    }
    let conditions: Vec<&Value> = status["conditions"].as_array().into_iter().flatten().collect();
    let gates: Vec<&Value> = spec["readinessGates"].as_array().into_iter().flatten().collect();
    if !gates.is_empty() {
        page.line(0, "Readiness Gates:");
        page.line(1, "Type\tStatus");
        for gate in gates {
            let met = conditions.iter().find(|condition| condition["type"] == gate["conditionType"]);
            let met = met.map_or("<none>".to_owned(), |condition| plain(&condition["status"]));
            page.line(1, &format!("{} \t{met} ", plain(&gate["conditionType"])));
        }
    }
    if !conditions.is_empty() {
        page.line(0, "Conditions:");
        page.line(1, "Type\tStatus");
        for condition in conditions {
            page.line(1, &format!("{} \t{} ", plain(&condition["type"]), plain(&condition["status"])));
        }
    }
    volumes(&mut page, &spec["volumes"], "");
    let quality = match plain(&status["qosClass"]) {
        class if class.is_empty() => quality_of_service(spec).to_owned(),
        class => class,
    };
    page.field(0, "QoS Class", &quality);
    page.labels("", "Node-Selectors", &spec["nodeSelector"]);
    page.tolerations("Tolerations", &spec["tolerations"]);
    spread(&mut page, &spec["topologySpreadConstraints"], "");
    page.events(events);
    page.finish()
}

/// The template of a workload's pods.
pub fn template(page: &mut Page, template: &Value) {
    let spec = &template["spec"];
    page.line(0, "Pod Template:");
    page.labels("", "  Labels", &template["metadata"]["labels"]);
    if template["metadata"]["annotations"].as_object().is_some_and(|annotations| !annotations.is_empty()) {
        page.annotations("  Annotations", &template["metadata"]["annotations"]);
    }
    page.field_if(1, "Service Account", &spec["serviceAccountName"]);
    if spec["initContainers"].as_array().is_some_and(|list| !list.is_empty()) {
        containers(page, "Init Containers", &spec["initContainers"], &Value::Null, None, "  ");
    }
    containers(page, "Containers", &spec["containers"], &Value::Null, None, "  ");
    volumes(page, &spec["volumes"], "  ");
    spread(page, &spec["topologySpreadConstraints"], "  ");
    page.field_if(1, "Priority Class Name", &spec["priorityClassName"]);
    page.labels("", "  Node-Selectors", &spec["nodeSelector"]);
    page.tolerations("  Tolerations", &spec["tolerations"]);
}

fn seccomp(page: &mut Page, level: usize, profile: &Value) {
    if profile.is_object() {
        page.field(level, "SeccompProfile", &plain(&profile["type"]));
        if profile["type"] == "Localhost" {
            page.field(if level == 0 { 0 } else { level + 1 }, "LocalhostProfile", &plain(&profile["localhostProfile"]));
        }
    }
}

fn containers(page: &mut Page, label: &str, list: &Value, statuses: &Value, pod: Option<&Value>, space: &str) {
    let list: Vec<&Value> = list.as_array().into_iter().flatten().collect();
    page.line(0, &format!("{space}{label}:{}", if list.is_empty() { " <none>" } else { "" }));
    for container in list {
        let status = statuses.as_array().into_iter().flatten().find(|status| status["name"] == container["name"]);
        let indent = if space.is_empty() { "" } else { " " };
        page.line(1, &format!("{indent}{}:", plain(&container["name"])));
        if let Some(status) = status {
            page.field(2, "Container ID", &plain(&status["containerID"]));
        }
        page.field(2, "Image", &plain(&container["image"]));
        if let Some(status) = status {
            page.field(2, "Image ID", &plain(&status["imageID"]));
        }
        for (one, several, field) in [("Port", "Ports", "containerPort"), ("Host Port", "Host Ports", "hostPort")] {
            let ports = ports_text(&container["ports"], field);
            if ports.contains(',') {
                page.field(2, several, &ports);
            } else {
                page.field(2, one, &or(ports, "<none>"));
            }
        }
        seccomp(page, 2, &container["securityContext"]["seccompProfile"]);
        for (label, field) in [("Command", "command"), ("Args", "args")] {
            let words = texts(&container[field]);
            if !words.is_empty() {
                page.line(2, &format!("{label}:"));
                for line in words.iter().flat_map(|word| word.split('\n')) {
                    page.line(3, line);
                }
            }
        }
        if let Some(status) = status {
            state(page, "State", &status["state"]);
            if status["lastState"]["terminated"].is_object() {
                state(page, "Last State", &status["lastState"]);
            }
            page.field(2, "Ready", yes_no(&status["ready"]));
            page.field(2, "Restart Count", &number(&status["restartCount"]).to_string());
        }
        resources(page, 2, &container["resources"]);
        for (label, field) in [("Liveness", "livenessProbe"), ("Readiness", "readinessProbe"), ("Startup", "startupProbe")] {
            if container[field].is_object() {
                page.field(2, label, &probe_text(&container[field]));
            }
        }
        environment(page, container, pod);
        mounts(page, container);
    }
}

fn ports_text(ports: &Value, field: &str) -> String {
    let text = |port: &Value| match plain(&port["name"]) {
        name if name.is_empty() => format!("{}/{}", number(&port[field]), plain(&port["protocol"])),
        name => format!("{}/{} ({name})", number(&port[field]), plain(&port["protocol"])),
    };
    ports.as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(", ")
}

fn state(page: &mut Page, label: &str, state: &Value) {
    let (running, terminated) = (&state["running"], &state["terminated"]);
    if running.is_object() {
        page.field(2, label, "Running");
        page.field(3, "Started", &date(&running["startedAt"]));
    } else if terminated.is_object() {
        page.field(2, label, "Terminated");
        page.field_if(3, "Reason", &terminated["reason"]);
        page.field_if(3, "Message", &terminated["message"]);
        page.field(3, "Exit Code", &number(&terminated["exitCode"]).to_string());
        if number(&terminated["signal"]) > 0 {
            page.field(3, "Signal", &plain(&terminated["signal"]));
        }
        page.field(3, "Started", &date(&terminated["startedAt"]));
        page.field(3, "Finished", &date(&terminated["finishedAt"]));
    } else {
        page.field(2, label, "Waiting");
        page.field_if(3, "Reason", &state["waiting"]["reason"]);
    }
}

fn resources(page: &mut Page, level: usize, resources: &Value) {
    for (label, field) in [("Limits", "limits"), ("Requests", "requests")] {
        let list: Vec<(&String, &Value)> = resources[field].as_object().into_iter().flatten().collect();
        if !list.is_empty() {
            page.line(level, &format!("{label}:"));
        }
        for (name, quantity) in list {
            page.field(level + 1, name, &plain(quantity));
        }
    }
}

fn probe_text(probe: &Value) -> String {
    let count = |field: &str| number(&probe[field]);
    let attributes = format!(
        "delay={}s timeout={}s period={}s #success={} #failure={}",
        count("initialDelaySeconds"),
        count("timeoutSeconds"),
        count("periodSeconds"),
        count("successThreshold"),
        count("failureThreshold")
    );
    let (http, tcp, grpc) = (&probe["httpGet"], &probe["tcpSocket"], &probe["grpc"]);
    if probe["exec"].is_object() {
        format!("exec [{}] {attributes}", texts(&probe["exec"]["command"]).join(" "))
    } else if http.is_object() {
        let path = plain(&http["path"]);
        let slash = if path.is_empty() || path.starts_with('/') { "" } else { "/" };
        let scheme = or(plain(&http["scheme"]).to_lowercase(), "http");
        format!("http-get {scheme}://{}:{}{slash}{path} {attributes}", plain(&http["host"]), plain(&http["port"]))
    } else if tcp.is_object() {
        format!("tcp-socket {}:{} {attributes}", plain(&tcp["host"]), plain(&tcp["port"]))
    } else if grpc.is_object() {
        format!("grpc <pod>:{} {} {attributes}", plain(&grpc["port"]), plain(&grpc["service"]))
    } else {
        format!("unknown {attributes}")
    }
}

fn environment(page: &mut Page, container: &Value, pod: Option<&Value>) {
    let optional = |source: &Value| source["optional"] == true;
    let from: Vec<&Value> = container["envFrom"].as_array().into_iter().flatten().collect();
    if !from.is_empty() {
        page.line(2, "Environment Variables from:");
    }
    for source in from {
        let (kind, reference) =
            if source["configMapRef"].is_object() { ("ConfigMap", &source["configMapRef"]) } else { ("Secret", &source["secretRef"]) };
        let prefix = match plain(&source["prefix"]) {
            prefix if prefix.is_empty() => String::new(),
            prefix => format!(" with prefix '{prefix}'"),
        };
        page.line(3, &format!("{}\t{kind}{prefix}\tOptional: {}", plain(&reference["name"]), optional(reference)));
    }
    let variables: Vec<&Value> = container["env"].as_array().into_iter().flatten().collect();
    page.line(2, &format!("Environment:{}", if variables.is_empty() { "\t<none>" } else { "" }));
    for variable in variables {
        let name = plain(&variable["name"]);
        let source = &variable["valueFrom"];
        let (field, resource, secret, config) =
            (&source["fieldRef"], &source["resourceFieldRef"], &source["secretKeyRef"], &source["configMapKeyRef"]);
        if field.is_object() {
            let value = pod.map_or(String::new(), |pod| field_value(pod, &plain(&field["fieldPath"])));
            page.line(3, &format!("{name}:\t{value} ({}:{})", plain(&field["apiVersion"]), plain(&field["fieldPath"])));
        } else if resource.is_object() {
            let wanted = plain(&resource["resource"]);
            let value = resource_value(container, &wanted, &plain(&resource["divisor"]));
            page.line(3, &format!("{name}:\t{value} ({wanted})"));
        } else if secret.is_object() {
            let (key, secret_name) = (plain(&secret["key"]), plain(&secret["name"]));
            page.line(3, &format!("{name}:\t<set to the key '{key}' in secret '{secret_name}'>\tOptional: {}", optional(secret)));
        } else if config.is_object() {
            let (key, map_name) = (plain(&config["key"]), plain(&config["name"]));
            page.line(3, &format!("{name}:\t<set to the key '{key}' of config map '{map_name}'>\tOptional: {}", optional(config)));
        } else {
            for (index, line) in plain(&variable["value"]).split('\n').enumerate() {
                let head = if index == 0 { format!("{name}:") } else { String::new() };
                page.line(3, &format!("{head}\t{line}"));
            }
        }
    }
}

/// The value behind `metadata.name`, `metadata.labels['app']` and the like; the addresses and the node are not resolved.
fn field_value(pod: &Value, path: &str) -> String {
    let (base, key) = path.split_once("['").map_or((path, None), |(base, key)| (base, key.strip_suffix("']")));
    match (base, key) {
        ("metadata.labels" | "metadata.annotations", Some(key)) => plain(&pod["metadata"][&base[9..]][key]),
        ("metadata.labels" | "metadata.annotations", None) => pairs(&pod["metadata"][&base[9..]], "=").join("\n"),
        ("metadata.name" | "metadata.namespace" | "metadata.uid", None) => plain(&pod["metadata"][&base[9..]]),
        _ => String::new(),
    }
}

fn resource_value(container: &Value, wanted: &str, divisor: &str) -> String {
    let (list, name) = wanted.split_once('.').unwrap_or((wanted, ""));
    let Some(quantity) = container["resources"][list][name].as_str().and_then(|text| Quantity::parse(text).ok()) else {
        return if list == "limits" && matches!(name, "cpu" | "memory") { "node allocatable".into() } else { "0".into() };
    };
    let divisor = Quantity::parse(divisor).ok().filter(|divisor| !divisor.is_zero());
    let (value, divisor) = match name {
        "cpu" => (quantity.milli(), divisor.map_or(1000, Quantity::milli)),
        _ => (quantity.value(), divisor.map_or(1, Quantity::value)),
    };
    ((value + divisor - 1) / divisor.max(1)).to_string()
}

fn mounts(page: &mut Page, container: &Value) {
    let mut mounts: Vec<&Value> = container["volumeMounts"].as_array().into_iter().flatten().collect();
    page.line(2, &format!("Mounts:{}", if mounts.is_empty() { "\t<none>" } else { "" }));
    mounts.sort_by_key(|mount| plain(&mount["mountPath"]));
    for mount in mounts {
        let mut flags = if mount["readOnly"] == true { "ro".to_owned() } else { "rw".to_owned() };
        if mount["subPath"].as_str().is_some_and(|path| !path.is_empty()) {
            flags += &format!(",path={:?}", plain(&mount["subPath"]));
        }
        page.line(3, &format!("{} from {} ({flags})", plain(&mount["mountPath"]), plain(&mount["name"])));
    }
    let mut devices: Vec<&Value> = container["volumeDevices"].as_array().into_iter().flatten().collect();
    if !devices.is_empty() {
        page.line(2, "Devices:");
        devices.sort_by_key(|device| plain(&device["devicePath"]));
        for device in devices {
            page.line(3, &format!("{} from {}", plain(&device["devicePath"]), plain(&device["name"])));
        }
    }
}

fn volumes(page: &mut Page, volumes: &Value, space: &str) {
    let volumes: Vec<&Value> = volumes.as_array().into_iter().flatten().collect();
    if volumes.is_empty() {
        return page.line(0, &format!("{space}Volumes:\t<none>"));
    }
    page.line(0, &format!("{space}Volumes:"));
    for volume in volumes {
        let indent = if space.is_empty() { "" } else { " " };
        page.line(1, &format!("{indent}{}:", plain(&volume["name"])));
        self::volume(page, volume);
    }
}

fn volume(page: &mut Page, volume: &Value) {
    let optional = |source: &Value| (source["optional"] == true).to_string();
    let truth = |value: &Value| (value == true).to_string();
    let source = |kind: &str| Some(&volume[kind]).filter(|source| source.is_object());
    let mut tell = |kind: &str, fields: &[(&str, String)]| {
        page.field(2, "Type", kind);
        for (label, value) in fields {
            page.field(2, label, value);
        }
    };
    if let Some(host) = source("hostPath") {
        let kind = host["type"].as_str().unwrap_or("<none>").to_owned();
        tell("HostPath (bare host directory volume)", &[("Path", plain(&host["path"])), ("HostPathType", kind)]);
    } else if let Some(empty) = source("emptyDir") {
        let limit = plain(&empty["sizeLimit"]);
        let limit = if limit == "0" { String::new() } else { limit };
        let what = "EmptyDir (a temporary directory that shares a pod's lifetime)";
        tell(what, &[("Medium", plain(&empty["medium"])), ("SizeLimit", or(limit, "<unset>"))]);
    } else if let Some(secret) = source("secret") {
        let what = "Secret (a volume populated by a Secret)";
        tell(what, &[("SecretName", plain(&secret["secretName"])), ("Optional", optional(secret))]);
    } else if let Some(map) = source("configMap") {
        tell("ConfigMap (a volume populated by a ConfigMap)", &[("Name", plain(&map["name"])), ("Optional", optional(map))]);
    } else if let Some(nfs) = source("nfs") {
        let what = "NFS (an NFS mount that lasts the lifetime of a pod)";
        tell(what, &[("Server", plain(&nfs["server"])), ("Path", plain(&nfs["path"])), ("ReadOnly", truth(&nfs["readOnly"]))]);
    } else if let Some(claim) = source("persistentVolumeClaim") {
        let what = "PersistentVolumeClaim (a reference to a PersistentVolumeClaim in the same namespace)";
        tell(what, &[("ClaimName", plain(&claim["claimName"])), ("ReadOnly", truth(&claim["readOnly"]))]);
    } else if let Some(image) = source("image") {
        let what = "Image (a container image or OCI artifact)";
        tell(what, &[("Reference", plain(&image["reference"])), ("PullPolicy", plain(&image["pullPolicy"]))]);
    } else if let Some(csi) = source("csi") {
        let what = "CSI (a Container Storage Interface (CSI) volume source)";
        tell(what, &[("Driver", plain(&csi["driver"])), ("FSType", plain(&csi["fsType"])), ("ReadOnly", truth(&csi["readOnly"]))]);
        page.list("    ", "VolumeAttributes", &pairs(&csi["volumeAttributes"], "="));
    } else if let Some(projected) = source("projected") {
        tell("Projected (a volume that contains injected data from multiple sources)", &[]);
        for part in projected["sources"].as_array().into_iter().flatten() {
            let (secret, map, token) = (&part["secret"], &part["configMap"], &part["serviceAccountToken"]);
            if secret.is_object() {
                page.field(2, "SecretName", &plain(&secret["name"]));
                page.field(2, "Optional", &optional(secret));
            } else if part["downwardAPI"].is_object() {
                page.field(2, "DownwardAPI", "true");
            } else if map.is_object() {
                page.field(2, "ConfigMapName", &plain(&map["name"]));
                page.field(2, "Optional", &optional(map));
            } else if token.is_object() {
                page.field(2, "TokenExpirationSeconds", &number(&token["expirationSeconds"]).to_string());
            }
        }
    } else if let Some(downward) = source("downwardAPI") {
        tell("DownwardAPI (a volume populated by information about the pod)", &[]);
        page.line(2, "Items:");
        for item in downward["items"].as_array().into_iter().flatten() {
            let (field, resource) = (&item["fieldRef"], &item["resourceFieldRef"]);
            let from = if field.is_object() { plain(&field["fieldPath"]) } else { plain(&resource["resource"]) };
            page.line(3, &format!("{from} -> {}", plain(&item["path"])));
        }
    } else {
        page.line(1, "<unknown>");
    }
}

fn spread(page: &mut Page, constraints: &Value, space: &str) {
    let mut constraints: Vec<&Value> = constraints.as_array().into_iter().flatten().collect();
    if constraints.is_empty() {
        return;
    }
    constraints.sort_by_key(|constraint| plain(&constraint["topologyKey"]));
    let text = |constraint: &&Value| {
        let head = format!("{}:{}", plain(&constraint["topologyKey"]), plain(&constraint["whenUnsatisfiable"]));
        let selector = match constraint["labelSelector"].is_object() {
            true => format!(" for selector {}", selector_text(&constraint["labelSelector"])),
            false => String::new(),
        };
        format!("{head} when max skew {} is exceeded{selector}", number(&constraint["maxSkew"]))
    };
    let lines: Vec<String> = constraints.iter().map(text).collect();
    page.list(space, "Topology Spread Constraints", &lines);
}

/// The class that a pod's requests and limits make, for one that has no status yet.
fn quality_of_service(spec: &Value) -> &'static str {
    let containers: Vec<&Value> =
        ["containers", "initContainers"].iter().flat_map(|list| spec[list].as_array().into_iter().flatten()).collect();
    let any = containers.iter().any(|container| {
        ["limits", "requests"].iter().any(|list| ["cpu", "memory"].iter().any(|name| !container["resources"][list][name].is_null()))
    });
    let all = containers.iter().all(|container| {
        let resources = &container["resources"];
        ["cpu", "memory"].iter().all(|name| {
            let limit = &resources["limits"][name];
            !limit.is_null() && (resources["requests"][name].is_null() || resources["requests"][name] == *limit)
        })
    });
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
