//! `run` and `expose`: a pod from an image, a Service from what there is already.

use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::{Map, Value, json};

use super::create::{Shown, send};
use super::generate::deployment_object;
use super::manifest::{Sources, file_flags};
use super::output::{DryRun, Form};
use super::select::{self, Wanted};
use super::{Context, attach, delete, follow, logs};
use crate::api::meta;
use crate::client::{Query, Resource, is_not_found, refusal};

pub const RUN_EXAMPLES: &str = "edgectl run web --image=nginx
edgectl run once --image=busybox --restart=Never -- echo hello
# A shell in a pod of its own, which goes when the shell ends
edgectl run -it --rm shell --image=busybox --restart=Never
# What serves a port goes on when its node does not: a Deployment; with --restart=Always a single pod
edgectl run web --image=nginx --port=80
edgectl run web --image=nginx --replicas=2";

/// create and run an image in a pod, or, if it serves a port, in a Deployment
#[derive(FromArgs, ArgsInfo)]
pub struct RunFlags {
    #[argh(positional)]
    words: Vec<String>,
    /// the image
    #[argh(option)]
    image: Option<String>,
    /// when to pull it: Always, IfNotPresent or Never
    #[argh(option)]
    image_pull_policy: Option<String>,
    /// the port that the container serves
    #[argh(option)]
    port: Option<i64>,
    /// NAME=VALUE; may be repeated
    #[argh(option)]
    env: Vec<String>,
    /// labels, as a=b,c=d
    #[argh(option, short = 'l')]
    labels: Option<String>,
    /// annotations, as a=b; may be repeated
    #[argh(option)]
    annotations: Vec<String>,
    /// the words behind -- are the command, not its arguments
    #[argh(switch)]
    command: bool,
    /// what to do when the container ends: Always (as if not given), OnFailure or Never
    #[argh(option)]
    restart: Option<String>,
    /// make a Service for it too
    #[argh(switch)]
    expose: bool,
    /// give the container root's rights on the node
    #[argh(switch)]
    privileged: bool,
    /// make a Deployment of so many pods instead
    #[argh(option)]
    replicas: Option<i64>,
    /// what to make, as deployment/apps.v1; a pod if not given
    #[argh(option)]
    generator: Option<String>,
    /// JSON that is merged into the object before it is sent
    #[argh(option)]
    overrides: Option<String>,
    /// keep standard input open
    #[argh(switch, short = 'i')]
    stdin: bool,
    /// give the container a terminal
    #[argh(switch, short = 't')]
    tty: bool,
    /// attach to the container
    #[argh(option, arg_name = "true|false")]
    attach: Option<String>,
    /// keep standard input open when the first that is attached leaves
    #[argh(switch)]
    leave_stdin_open: bool,
    /// only what the container prints
    #[argh(switch, short = 'q')]
    quiet: bool,
    /// how long to wait until the pod runs
    #[argh(option, default = "\"1m0s\".to_owned()")]
    pod_running_timeout: String,
    /// delete the pod when it has ended
    #[argh(switch)]
    rm: bool,
    /// only show what would be created
    #[argh(option, arg_name = "client|server|none")]
    dry_run: Option<String>,
    /// output format
    #[argh(option, short = 'o', arg_name = "format")]
    output: Option<String>,
    /// name that owns the fields
    #[argh(option, default = "\"kubectl-run\".to_owned()")]
    field_manager: String,
}

pub async fn run(cx: &Context, flags: RunFlags) -> Result<u8> {
    let Some((name, command)) = flags.words.split_first() else {
        bail!("NAME is required for run\nSee 'edgectl run -h' for help and examples")
    };
    let Some(image) = flags.image.as_deref().filter(|image| !image.is_empty()) else { bail!("required flag(s) \"image\" not set") };
    let help = "See 'edgectl run -h' for help and examples";
    if flags.tty && !flags.stdin {
        bail!("-i/--stdin is required for containers with -t/--tty=true\n{help}");
    }
    let attach = flags.is_attached();
    if flags.rm && !attach {
        bail!("--rm should only be used for attached containers\n{help}");
    }
    if flags.expose && flags.port.is_none() {
        bail!("--port must be set when exposing a service");
    }
    let form = Form::parse(flags.output.as_deref(), None)?;
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    if attach && dry_run != DryRun::None {
        bail!("--dry-run=[server|client] can't be used with attached containers options (--attach, --stdin, or --tty)\n{help}");
    }
    let deployment = flags.makes_deployment();
    let mut object = if deployment {
        let mut object = deployment_object(name, &[image], flags.replicas.unwrap_or(1), flags.port.unwrap_or(-1), &[]);
        object["spec"]["template"]["spec"]["containers"][0]["name"] = name.as_str().into();
        finish(&mut object["spec"]["template"]["spec"]["containers"][0], &flags, command)?;
        object
    } else {
        pod(name, image, &flags, command)?
    };
    if let Some(labels) = &flags.labels {
        let labels = pairs(labels)?;
        object["metadata"]["labels"] = json!(labels);
        if deployment {
            object["spec"]["selector"]["matchLabels"] = json!(labels);
            object["spec"]["template"]["metadata"]["labels"] = json!(labels);
        }
    }
    for annotation in &flags.annotations {
        for (key, value) in pairs(annotation)? {
            object["metadata"]["annotations"][key] = value;
        }
    }
    if let Some(overrides) = &flags.overrides {
        let overrides: Value = serde_json::from_str(overrides).map_err(|error| anyhow!("Invalid JSON Patch: {error}"))?;
        json_patch::merge(&mut object, &overrides);
    }
    let mut made = vec![object];
    if flags.expose {
        let port = flags.port.unwrap_or_default();
        made.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"selector": made[0]["metadata"]["labels"], "ports": [{"port": port, "protocol": "TCP", "targetPort": port}]},
            "status": {"loadBalancer": {}}}));
        made.rotate_left(1);
    }
    let namespace = cx.namespace()?;
    let query = Query::new().with("fieldManager", &flags.field_manager).with("dryRun", dry_run.query());
    let mut shown = Shown::new(cx, &form, false);
    let mut sent = Vec::new();
    for mut object in made {
        if let Some(asked) = cx.namespace_flag() {
            object["metadata"]["namespace"] = asked.into();
        }
        let resource =
            super::known(&object["kind"].as_str().unwrap_or_default().to_lowercase()).ok_or_else(|| anyhow!("no such resource"))?;
        let object = send(cx, &resource, &namespace, &object, &query, dry_run).await?;
        match attach {
            true => sent.push((resource, object)),
            false => shown.object(&resource, object, "created", dry_run)?,
        }
    }
    shown.end()?;
    if !attach {
        return Ok(0);
    }
    let ended = attached(cx, &flags, sent.iter().find(|(resource, _)| &*resource.plural != "services")).await;
    for (resource, object) in sent.iter().filter(|_| flags.rm) {
        let (namespace, name) = (meta::namespace(object), meta::name(object));
        match cx.client()?.delete(&resource.path(namespace, name), &delete::options(None, -1, DryRun::None)?).await {
            Ok(_) if flags.quiet => {}
            Ok(_) => cx.println(&format!("{} {name:?} deleted from {namespace} namespace", resource.qualified_singular()))?,
            Err(error) if is_not_found(&error) => {}
            Err(error) => cx.fail(&error),
        }
    }
    let (code, why) = ended?;
    if !why.is_empty() {
        cx.note(why.trim_end());
    }
    Ok(code)
}

impl RunFlags {
    /// A Deployment is what is asked for, or a server that nothing says is to be a single pod: that would end with its node.
    fn makes_deployment(&self) -> bool {
        let is_pod = self.restart.is_some() || self.expose || self.is_attached() || self.overrides.is_some();
        let asked = self.replicas.is_some() || self.generator.as_deref().is_some_and(|generator| generator.starts_with("deployment"));
        asked || self.port.is_some() && self.generator.is_none() && !is_pod
    }

    fn is_attached(&self) -> bool {
        self.attach.as_deref().map_or(self.stdin, |attach| attach == "true")
    }
}

/// Attaches to what was made until it ends; answers its exit code if it is not to run again, and a sentence about one that is not 0.
async fn attached(cx: &Context, flags: &RunFlags, made: Option<&(Resource, Value)>) -> Result<(u8, String)> {
    let (resource, object) = made.context("nothing was made")?;
    let object = match &*resource.plural {
        "pods" => object.clone(),
        _ => logs::pod_of(cx, &format!("{}/{}", resource.plural, meta::name(object)), &flags.pod_running_timeout).await?.0,
    };
    let (namespace, name) = (meta::namespace(&object), meta::name(&object));
    let pods = super::known("pods").context("no pods")?;
    let has_ended = |pod: &Value| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let until = async |is_so: &dyn Fn(&Value) -> bool, deadline: Option<Instant>| {
        let judge = |pod: Option<&Value>| match pod {
            None => bail!("pods {name:?} not found"),
            Some(pod) => Ok(is_so(pod).then(|| pod.clone())),
        };
        follow::until(cx.client()?, &pods, namespace, name, deadline, judge).await?.context("timed out waiting for the condition")
    };
    let is_ready = |pod: &Value| {
        let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    let deadline = Instant::now() + cx.duration("--pod-running-timeout", &flags.pod_running_timeout)?;
    let pod = until(&|pod| has_ended(pod) || pod["status"]["phase"] == "Running" && is_ready(pod), Some(deadline)).await?;
    let container = pod["spec"]["containers"][0]["name"].as_str().unwrap_or_default();
    let log = async || {
        let query = Query::new().with("container", container);
        logs::copy(cx, &format!("/api/v1/namespaces/{namespace}/pods/{name}/log"), &query, "").await
    };
    if has_ended(&pod) {
        log().await?;
    } else {
        let manner = attach::Manner { stdin: flags.stdin, tty: flags.tty, quiet: flags.quiet };
        if let Err(error) = attach::session(cx, &pod, Some(container), manner).await {
            cx.note(&format!("warning: couldn't attach to pod/{name}, falling back to streaming logs: {error:#}"));
            log().await?;
        }
    }
    if flags.leave_stdin_open || pod["spec"]["restartPolicy"] == "Always" {
        return Ok((0, String::new()));
    }
    let pod = until(&has_ended, None).await?;
    if pod["status"]["phase"] == "Succeeded" {
        return Ok((0, String::new()));
    }
    let terminated = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    match terminated["exitCode"].as_i64() {
        None | Some(0) => bail!("pod {namespace}/{name} failed with unknown exit code"),
        Some(code) => {
            let text = |key: &str| terminated[key].as_str().unwrap_or_default();
            let why = format!("pod {namespace}/{name} terminated ({})\n{}", text("reason"), text("message"));
            Ok((u8::try_from(code).unwrap_or(1), why))
        }
    }
}

fn pod(name: &str, image: &str, flags: &RunFlags, command: &[String]) -> Result<Value> {
    let restart = flags.restart.as_deref().unwrap_or("Always");
    if !matches!(restart, "Always" | "OnFailure" | "Never") {
        bail!("invalid restart policy: {restart}\nSee 'edgectl run -h' for help and examples");
    }
    let mut container = json!({"name": name, "image": image, "resources": {}});
    if let Some(port) = flags.port {
        container["ports"] = json!([{"containerPort": port}]);
    }
    finish(&mut container, flags, command)?;
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"run": name}},
        "spec": {"containers": [container], "dnsPolicy": "ClusterFirst", "restartPolicy": restart},
        "status": {},
    }))
}

fn finish(container: &mut Value, flags: &RunFlags, command: &[String]) -> Result<()> {
    if !command.is_empty() {
        container[if flags.command { "command" } else { "args" }] = json!(command);
    }
    if let Some(policy) = &flags.image_pull_policy {
        container["imagePullPolicy"] = policy.as_str().into();
    }
    let mut variables = vec![];
    for variable in &flags.env {
        let (name, value) = variable.split_once('=').ok_or_else(|| anyhow!("invalid env: {variable}"))?;
        variables.push(json!({"name": name, "value": value}));
    }
    if !variables.is_empty() {
        container["env"] = json!(variables);
    }
    if flags.privileged {
        container["securityContext"] = json!({"privileged": true});
    }
    for (field, is_set) in
        [("stdin", flags.stdin), ("stdinOnce", flags.stdin && flags.is_attached() && !flags.leave_stdin_open), ("tty", flags.tty)]
    {
        if is_set {
            container[field] = true.into();
        }
    }
    Ok(())
}

fn pairs(text: &str) -> Result<Map<String, Value>> {
    let mut map = Map::new();
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| anyhow!("unexpected label spec: {pair}, expected KEY=VALUE"))?;
        map.insert(key.to_owned(), value.into());
    }
    Ok(map)
}

pub const EXPOSE_EXAMPLES: &str = "edgectl expose deployment web --port=80 --target-port=8080
edgectl expose deployment/web --type=NodePort --port 8080";

/// make a Service for a pod, a workload or another Service
#[derive(FromArgs, ArgsInfo)]
pub struct ExposeFlags {
    #[argh(positional)]
    names: Vec<String>,
    /// name of the Service; that of the object if not given
    #[argh(option)]
    name: Option<String>,
    /// port of the Service; those of the containers if not given
    #[argh(option)]
    port: Option<String>,
    /// port of the pods, a number or a name; the Service's if not given
    #[argh(option)]
    target_port: Option<String>,
    /// protocol: TCP, UDP or SCTP
    #[argh(option)]
    protocol: Option<String>,
    /// kind of Service: ClusterIP, NodePort, LoadBalancer or ExternalName
    #[argh(option)]
    r#type: Option<String>,
    /// label selector of the pods; the object's own if not given
    #[argh(option)]
    selector: Option<String>,
    /// labels of the Service
    #[argh(option, short = 'l')]
    labels: Option<String>,
    /// the Service's address; None makes a headless one
    #[argh(option)]
    cluster_ip: Option<String>,
    /// an address from outside that leads to it too
    #[argh(option)]
    external_ip: Option<String>,
    /// name that an ExternalName Service stands for
    #[argh(option)]
    external_name: Option<String>,
    /// whether a client stays at one pod: ClientIP or None
    #[argh(option)]
    session_affinity: Option<String>,
    /// file, folder or address with the object
    #[argh(option, short = 'f')]
    filename: Vec<String>,
    /// only show what would be created
    #[argh(option, arg_name = "client|server|none")]
    dry_run: Option<String>,
    /// output format
    #[argh(option, short = 'o', arg_name = "format")]
    output: Option<String>,
    /// name that owns the fields
    #[argh(option, default = "\"kubectl-expose\".to_owned()")]
    field_manager: String,
}

pub async fn expose(cx: &Context, flags: ExposeFlags) -> Result<u8> {
    let form = Form::parse(flags.output.as_deref(), None)?;
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    let sources = Sources { filenames: &flags.filename, ..Sources::default() };
    let found = select::objects(cx, &Wanted { names: &flags.names, sources, ..Wanted::default() }).await?;
    let query = Query::new().with("fieldManager", &flags.field_manager).with("dryRun", dry_run.query());
    let resource: Resource = super::known("services").ok_or_else(|| anyhow!("no services"))?;
    let mut shown = Shown::new(cx, &form, false);
    for found in found {
        let object = service(&found.object, &flags)?;
        match send(cx, &resource, &found.namespace, &object, &query, dry_run).await {
            Ok(object) => shown.object(&resource, object, "exposed", dry_run)?,
            Err(error) if refusal(&error).is_some() => cx.fail(&error),
            Err(error) => return Err(error),
        }
    }
    shown.end()?;
    Ok(0)
}

pub const AUTOSCALE_EXAMPLES: &str = "edgectl autoscale deployment web --min=2 --max=10 --cpu=80%";

file_flags! {
    /// let a controller set the size of a workload
    pub struct AutoscaleFlags {
        #[argh(positional)]
        names: Vec<String>,
        /// the most pods
        #[argh(option)]
        max: Option<i64>,
        /// the fewest pods; -1 leaves it to the server
        #[argh(option, default = "-1")]
        min: i64,
        /// the load aimed at: 80% of what is requested, or 500m for each pod
        #[argh(option)]
        cpu: Option<String>,
        /// the memory aimed at: 80% of what is requested, or 200Mi for each pod
        #[argh(option)]
        memory: Option<String>,
        /// name of the autoscaler; the workload's unless given
        #[argh(option)]
        name: Option<String>,
        /// only show what would be created
        #[argh(option, arg_name = "client|server|none")]
        dry_run: Option<String>,
        /// output format
        #[argh(option, short = 'o', arg_name = "format")]
        output: Option<String>,
        /// name that owns the fields
        #[argh(option, default = "\"kubectl-autoscale\".to_owned()")]
        field_manager: String,
    }
}

pub async fn autoscale(cx: &Context, flags: AutoscaleFlags) -> Result<u8> {
    let Some(max) = flags.max else { bail!("required flag(s) \"max\" not set") };
    if max < 1 {
        bail!("--max=MAXPODS is required and must be at least 1, max: {max}");
    }
    if max < flags.min {
        bail!("--max=MAXPODS must be larger or equal to --min=MINPODS, max: {max}, min: {}", flags.min);
    }
    let form = Form::parse(flags.output.as_deref(), None)?;
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    let query = Query::new().with("fieldManager", &flags.field_manager).with("dryRun", dry_run.query());
    let resource: Resource = super::known("horizontalpodautoscalers").ok_or_else(|| anyhow!("no horizontalpodautoscalers"))?;
    let metric = |(name, target): (&str, &String)| {
        let target = match target.strip_suffix('%').map(str::parse::<u32>) {
            Some(Ok(share)) => json!({"type": "Utilization", "averageUtilization": share}),
            Some(Err(_)) => bail!("invalid --{name} value {target:?}: a percentage as 80% or a quantity is expected"),
            None => json!({"type": "AverageValue", "averageValue": target}),
        };
        Ok(json!({"type": "Resource", "resource": {"name": name, "target": target}}))
    };
    let asked = [("cpu", &flags.cpu), ("memory", &flags.memory)];
    let metrics: Vec<Value> =
        asked.into_iter().filter_map(|(name, target)| Some((name, target.as_ref()?))).map(metric).collect::<Result<_>>()?;
    let wanted = Wanted { names: &flags.names, sources: flags.sources(false), ..Wanted::default() };
    let mut shown = Shown::new(cx, &form, false);
    for found in select::objects(cx, &wanted).await? {
        let (version, kind) = (found.resource.api_version(), &*found.resource.kind);
        let mut spec = json!({"maxReplicas": max, "scaleTargetRef": {"apiVersion": version, "kind": kind, "name": found.name}});
        if flags.min > 0 {
            spec["minReplicas"] = flags.min.into();
        }
        if !metrics.is_empty() {
            spec["metrics"] = json!(metrics);
        }
        let object = json!({
            "apiVersion": resource.api_version(), "kind": &*resource.kind,
            "metadata": {"name": flags.name.as_deref().unwrap_or(&found.name)}, "spec": spec,
            "status": {"currentMetrics": null, "desiredReplicas": 0}});
        match send(cx, &resource, &found.namespace, &object, &query, dry_run).await {
            Ok(object) => shown.object(&resource, object, "autoscaled", dry_run)?,
            Err(error) if refusal(&error).is_some() => cx.fail(&error),
            Err(error) => return Err(error),
        }
    }
    shown.end()?;
    Ok(0)
}

/// The Service for an object.
fn service(object: &Value, flags: &ExposeFlags) -> Result<Value> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let own = match kind {
        "Pod" => &object["metadata"]["labels"],
        "Service" | "ReplicationController" => &object["spec"]["selector"],
        "Deployment" | "ReplicaSet" => &object["spec"]["selector"]["matchLabels"],
        other => bail!("cannot expose a {other}"),
    };
    let selector = match &flags.selector {
        Some(selector) => pairs(selector)?,
        None => own.as_object().cloned().unwrap_or_default(),
    };
    if selector.is_empty() {
        bail!("couldn't retrieve selectors via --selector flag or introspection: the object has no labels to select by");
    }
    let name = flags.name.clone().unwrap_or_else(|| object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
    let protocol = flags.protocol.as_deref().unwrap_or("TCP");
    let target = |port: &str| {
        let target = flags.target_port.as_deref().unwrap_or(port);
        target.parse::<i64>().map_or_else(|_| Value::from(target), Value::from)
    };
    let mut asked: Vec<(String, String)> = vec![];
    match &flags.port {
        Some(ports) => asked.extend(ports.split(',').map(|port| (port.to_owned(), protocol.to_owned()))),
        None => {
            let spec = match kind {
                "Pod" => &object["spec"],
                _ => &object["spec"]["template"]["spec"],
            };
            let of_containers = spec["containers"]
                .as_array()
                .into_iter()
                .flatten()
                .flat_map(|container| container["ports"].as_array().into_iter().flatten());
            let of_service = object["spec"]["ports"].as_array().into_iter().flatten();
            for (port, field) in of_containers.map(|port| (port, "containerPort")).chain(of_service.map(|port| (port, "port"))) {
                let known = port["protocol"].as_str().unwrap_or("TCP");
                asked.push((port[field].to_string(), flags.protocol.clone().unwrap_or_else(|| known.to_owned())));
            }
        }
    }
    if asked.is_empty() && flags.cluster_ip.as_deref() != Some("None") {
        bail!("couldn't find port via --port flag or introspection");
    }
    let several = asked.len() > 1;
    let mut ports = vec![];
    for (index, (port, protocol)) in asked.iter().enumerate() {
        let number: u16 = port.parse().map_err(|_| anyhow!("invalid port {port:?}"))?;
        let mut entry = json!({"port": number, "protocol": protocol, "targetPort": target(port)});
        if several {
            entry["name"] = format!("port-{}", index + 1).into();
        }
        ports.push(entry);
    }
    let mut spec = json!({"selector": selector});
    if !ports.is_empty() {
        spec["ports"] = json!(ports);
    }
    for (field, value) in [
        ("type", &flags.r#type),
        ("clusterIP", &flags.cluster_ip),
        ("externalName", &flags.external_name),
        ("sessionAffinity", &flags.session_affinity),
    ] {
        if let Some(value) = value {
            spec[field] = value.as_str().into();
        }
    }
    if let Some(address) = &flags.external_ip {
        spec["externalIPs"] = json!([address]);
    }
    let mut metadata = json!({"name": name});
    let labels = match &flags.labels {
        Some(labels) => json!(pairs(labels)?),
        None => object["metadata"]["labels"].clone(),
    };
    if labels.as_object().is_some_and(|labels| !labels.is_empty()) {
        metadata["labels"] = labels;
    }
    Ok(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": {"loadBalancer": {}}}))
}
