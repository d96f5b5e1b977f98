//! `create deployment`, `create configmap` and the other objects that need no file. Each is made by a pure function and sent the same way.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use anyhow::{Context as _, Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use super::Context;
use super::apply::with_last_applied;
use super::create::{Shown, send, validation};
use super::output::{DryRun, Form};
use crate::api::{schema, selector};
use crate::client::{Query, Resource, refusal};

/// A file that becomes part of an object may not be larger than any object.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The flags that all generators share.
struct Common<'a> {
    output: Option<&'a str>,
    dry_run: Option<&'a str>,
    validate: &'a Option<String>,
    save_config: bool,
    field_manager: &'a str,
}

/// A generator's flags: its own and the shared ones.
macro_rules! flags {
    ($(#[$doc:meta])* $name:ident { $($fields:tt)* }) => {
        $(#[$doc])*
        #[derive(FromArgs, ArgsInfo)]
        pub struct $name {
            #[argh(positional)]
            names: Vec<String>,
            $($fields)*
            /// output format
            #[argh(option, short = 'o', arg_name = "format")]
            output: Option<String>,
            /// only show what would be created: on the client, or as the server would answer
            #[argh(option, arg_name = "client|server|none")]
            dry_run: Option<String>,
            /// how to treat fields that the kind does not have
            #[argh(option, arg_name = "strict|warn|ignore|true|false")]
            validate: Option<String>,
            /// keep the object in an annotation, so that apply can be used later
            #[argh(switch)]
            save_config: bool,
            /// name that owns the fields
            #[argh(option, default = "\"kubectl-create\".to_owned()")]
            field_manager: String,
        }

        impl $name {
            fn common(&self) -> Common<'_> {
                Common {
                    output: self.output.as_deref(),
                    dry_run: self.dry_run.as_deref(),
                    validate: &self.validate,
                    save_config: self.save_config,
                    field_manager: &self.field_manager,
                }
            }
        }
    };
}

/// The one name that a generator takes.
fn name<'a>(cx: &Context, names: &'a [String]) -> Result<&'a str> {
    match names {
        [name] => Ok(name),
        names => bail!("exactly one NAME is required, got {}\nSee 'edgectl {} -h' for help and examples", names.len(), cx.verb.name),
    }
}

/// The one name, and the command behind `--`.
fn name_and_command<'a>(cx: &Context, names: &'a [String]) -> Result<(&'a str, &'a [String])> {
    let before = cx.names_before_dash().unwrap_or(names.len()).min(names.len());
    Ok((name(cx, &names[..before])?, &names[before..]))
}

/// Sends what a generator made.
async fn make(cx: &Context, common: Common<'_>, mut object: Value) -> Result<u8> {
    let form = Form::parse(common.output, None)?;
    let dry_run = DryRun::parse(common.dry_run)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let row = schema::resource_of_kind(group, version, &kind).ok_or_else(|| anyhow!("no resource of kind {kind}"))?;
    let resource = Resource::from(row);
    let namespace = if resource.namespaced { cx.namespace()? } else { String::new() };
    if let Some(asked) = cx.namespace_flag().filter(|_| resource.namespaced) {
        object["metadata"]["namespace"] = asked.into();
    }
    if common.save_config {
        object = with_last_applied(&object);
    }
    let query = Query::new().with("fieldManager", common.field_manager).with("fieldValidation", validation(common.validate)?);
    let object = match send(cx, &resource, &namespace, &object, &query.with("dryRun", dry_run.query()), dry_run).await {
        Ok(object) => object,
        Err(error) => return Err(failed(error, &object)),
    };
    let mut shown = Shown::new(cx, &form, false);
    shown.object(&resource, object, "created", dry_run)?;
    shown.end()?;
    Ok(0)
}

/// kubectl tells a refusal of some generators in words of its own.
fn failed(error: anyhow::Error, object: &Value) -> anyhow::Error {
    let what = match object["kind"].as_str() {
        Some("Deployment") => "deployment:".to_owned(),
        Some("ConfigMap") => "configmap:".to_owned(),
        Some("Job") => "job:".to_owned(),
        Some("CronJob") => "cronjob:".to_owned(),
        Some("ServiceAccount") => "serviceaccount:".to_owned(),
        Some("Secret") => "secret".to_owned(),
        Some("Service") => format!("{} service:", object["spec"]["type"].as_str().unwrap_or_default()),
        _ => return error,
    };
    match refusal(&error) {
        Some(refusal) => anyhow!("failed to create {what} {}", refusal.message),
        None => error,
    }
}

flags! {
    /// create a deployment
    Deployment {
        /// image of a container; may be repeated
        #[argh(option)]
        image: Vec<String>,
        /// how many pods
        #[argh(option, short = 'r', default = "1")]
        replicas: i64,
        /// the port that the container serves
        #[argh(option, default = "-1")]
        port: i64,
    }
}

pub async fn deployment(cx: &Context, flags: Deployment) -> Result<u8> {
    let (name, command) = name_and_command(cx, &flags.names)?;
    if flags.image.is_empty() {
        bail!("required flag(s) \"image\" not set");
    }
    let images: Vec<&str> = flags.image.iter().flat_map(|images| images.split(',')).collect();
    if images.len() > 1 && !command.is_empty() {
        bail!("cannot specify multiple --image options and command");
    }
    make(cx, flags.common(), deployment_object(name, &images, flags.replicas, flags.port, command)).await
}

/// A Deployment as `create deployment` and the course's `run` make it.
pub fn deployment_object(name: &str, images: &[&str], replicas: i64, port: i64, command: &[String]) -> Value {
    let mut containers: Vec<Value> = images.iter().map(|image| container(&name_of_image(image), image, command)).collect();
    if port > 0 {
        containers[0]["ports"] = json!([{"containerPort": port}]);
    }
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "strategy": {},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
        },
        "status": {},
    })
}

fn container(name: &str, image: &str, command: &[String]) -> Value {
    let mut container = json!({"name": name, "image": image, "resources": {}});
    if !command.is_empty() {
        container["command"] = json!(command);
    }
    container
}

/// `registry:5000/shop/web_server:v1` makes `web-server`.
fn name_of_image(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    let end = last.find([':', '@']).unwrap_or(last.len());
    last[..end].to_lowercase().replace(|c: char| !(c.is_ascii_alphanumeric() || c == '-'), "-").trim_matches('-').to_owned()
}

flags! {
    /// create a namespace
    Namespace {}
}

pub async fn namespace(cx: &Context, flags: Namespace) -> Result<u8> {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name(cx, &flags.names)?}, "spec": {}, "status": {}});
    make(cx, flags.common(), object).await
}

flags! {
    /// create a service account
    ServiceAccount {}
}

pub async fn service_account(cx: &Context, flags: ServiceAccount) -> Result<u8> {
    let object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name(cx, &flags.names)?}});
    make(cx, flags.common(), object).await
}

flags! {
    /// create a config map from files, folders or literal values
    ConfigMap {
        /// file or folder, as PATH or KEY=PATH; may be repeated
        #[argh(option)]
        from_file: Vec<String>,
        /// KEY=VALUE; may be repeated
        #[argh(option)]
        from_literal: Vec<String>,
        /// file of KEY=VALUE lines; may be repeated
        #[argh(option)]
        from_env_file: Vec<String>,
    }
}

pub async fn config_map(cx: &Context, flags: ConfigMap) -> Result<u8> {
    let name = name(cx, &flags.names)?;
    let entries = entries(&format!(" in Data for ConfigMap {name:?}"), &flags.from_file, &flags.from_literal, &flags.from_env_file)?;
    make(cx, flags.common(), config_map_object(name, entries)).await
}

fn config_map_object(name: &str, entries: BTreeMap<String, Vec<u8>>) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    for (key, value) in entries {
        match String::from_utf8(value) {
            Ok(text) => object["data"][key] = text.into(),
            Err(bytes) => object["binaryData"][key] = BASE64.encode(bytes.as_bytes()).into(),
        }
    }
    object
}

/// The keys and values that files, literals and lists of variables give; `place` says where they go.
fn entries(place: &str, files: &[String], literals: &[String], variables: &[String]) -> Result<BTreeMap<String, Vec<u8>>> {
    if !variables.is_empty() && (!files.is_empty() || !literals.is_empty()) {
        bail!("from-env-file cannot be combined with from-file or from-literal");
    }
    let mut entries = BTreeMap::new();
    let mut put = |key: &str, value: Vec<u8>| -> Result<()> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if key.is_empty() || !key.chars().all(fits) {
            bail!("{key:?} is not a valid key name: a valid config key must consist of alphanumeric characters, '-', '_' or '.'");
        }
        if entries.insert(key.to_owned(), value).is_some() {
            bail!("cannot add key {key:?}, another key by that name already exists{place}");
        }
        Ok(())
    };
    for source in files {
        let (key, path) = source.split_once('=').map_or((None, source.as_str()), |(key, path)| (Some(key), path));
        let path = std::path::Path::new(path);
        if path.is_dir() {
            if let Some(key) = key {
                bail!("cannot give a key name for a directory path: {key}");
            }
            let listed = std::fs::read_dir(path).with_context(|| format!("read folder {}", path.display()))?;
            for entry in listed {
                let entry = entry?.path();
                if entry.is_file() {
                    put(&file_name(&entry), file(&entry)?)?;
                }
            }
        } else {
            put(&key.map_or_else(|| file_name(path), str::to_owned), file(path)?)?;
        }
    }
    for literal in literals {
        let Some((key, value)) = literal.split_once('=') else {
            bail!("invalid literal source {literal}, expected key=value");
        };
        let value = value.strip_prefix(['\'', '"']).and_then(|inner| inner.strip_suffix(['\'', '"'])).unwrap_or(value);
        put(key, value.as_bytes().to_vec())?;
    }
    for path in variables {
        let text = String::from_utf8(file(std::path::Path::new(path))?).map_err(|_| anyhow!("env file {path} is not UTF-8 text"))?;
        for line in text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (key, value) = match line.split_once('=') {
                Some((key, value)) => (key, value.to_owned()),
                None => (line, std::env::var(line).unwrap_or_default()),
            };
            put(key, value.into_bytes())?;
        }
    }
    Ok(entries)
}

fn file_name(path: &std::path::Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn file(path: &std::path::Path) -> Result<Vec<u8>> {
    let unread = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => anyhow!("error reading {}: no such file or directory", path.display()),
        _ => anyhow!(error).context(format!("error reading {}", path.display())),
    };
    let size = std::fs::metadata(path).map_err(unread)?.len();
    if size > FILE_BYTES_MAX {
        bail!("{} is larger than an object can be ({size} bytes)", path.display());
    }
    std::fs::read(path).map_err(unread)
}

flags! {
    /// create a secret from files, folders or literal values
    Secret {
        /// file or folder, as PATH or KEY=PATH; may be repeated
        #[argh(option)]
        from_file: Vec<String>,
        /// KEY=VALUE; may be repeated
        #[argh(option)]
        from_literal: Vec<String>,
        /// file of KEY=VALUE lines; may be repeated
        #[argh(option)]
        from_env_file: Vec<String>,
        /// what kind of secret it is
        #[argh(option)]
        r#type: Option<String>,
    }
}

pub async fn secret(cx: &Context, flags: Secret) -> Result<u8> {
    let entries = entries("", &flags.from_file, &flags.from_literal, &flags.from_env_file)?;
    make(cx, flags.common(), secret_object(name(cx, &flags.names)?, flags.r#type.as_deref(), entries)).await
}

fn secret_object(name: &str, kind: Option<&str>, entries: BTreeMap<String, Vec<u8>>) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}});
    if let Some(kind) = kind {
        object["type"] = kind.into();
    }
    for (key, value) in entries {
        object["data"][key] = BASE64.encode(value).into();
    }
    object
}

flags! {
    /// create a secret with the credentials of an image registry
    RegistrySecret {
        /// address of the registry
        #[argh(option, default = "\"https://index.docker.io/v1/\".to_owned()")]
        docker_server: String,
        /// user name
        #[argh(option, default = "String::new()")]
        docker_username: String,
        /// password
        #[argh(option, default = "String::new()")]
        docker_password: String,
        /// mail address
        #[argh(option, default = "String::new()")]
        docker_email: String,
        /// a config.json of docker's instead
        #[argh(option)]
        from_file: Vec<String>,
    }
}

pub async fn registry_secret(cx: &Context, flags: RegistrySecret) -> Result<u8> {
    let content = match flags.from_file.first() {
        Some(path) => file(std::path::Path::new(path.rsplit('=').next().unwrap_or(path)))?,
        None => {
            if flags.docker_username.is_empty() || flags.docker_password.is_empty() {
                bail!("either --from-file or the combination of --docker-username, --docker-password and --docker-server is required");
            }
            registry_config(&flags.docker_server, &flags.docker_username, &flags.docker_password, &flags.docker_email).into_bytes()
        }
    };
    let entries = BTreeMap::from([(".dockerconfigjson".to_owned(), content)]);
    make(cx, flags.common(), secret_object(name(cx, &flags.names)?, Some("kubernetes.io/dockerconfigjson"), entries)).await
}

/// Docker's configuration, its fields in the order in which kubectl writes them.
fn registry_config(server: &str, user: &str, password: &str, mail: &str) -> String {
    let quoted = |text: &str| Value::from(text).to_string();
    let mail = if mail.is_empty() { String::new() } else { format!("\"email\":{},", quoted(mail)) };
    let both = BASE64.encode(format!("{user}:{password}"));
    format!(
        "{{\"auths\":{{{}:{{\"username\":{},\"password\":{},{mail}\"auth\":\"{both}\"}}}}}}",
        quoted(server),
        quoted(user),
        quoted(password)
    )
}

flags! {
    /// create a secret with a certificate and its key
    TlsSecret {
        /// file with the certificate, PEM
        #[argh(option)]
        cert: Option<String>,
        /// file with the key, PEM
        #[argh(option)]
        key: Option<String>,
    }
}

pub async fn tls_secret(cx: &Context, flags: TlsSecret) -> Result<u8> {
    let (Some(certificate), Some(key)) = (&flags.cert, &flags.key) else { bail!("key and cert must be specified") };
    let (certificate, key) = (file(std::path::Path::new(certificate))?, file(std::path::Path::new(key))?);
    let identity = crate::wire::tls::Identity { certificate: &certificate, key: &key };
    crate::wire::tls::server(identity, None).map_err(|error| anyhow!("tls: {error:#}"))?;
    let entries = BTreeMap::from([("tls.crt".to_owned(), certificate), ("tls.key".to_owned(), key)]);
    make(cx, flags.common(), secret_object(name(cx, &flags.names)?, Some("kubernetes.io/tls"), entries)).await
}

flags! {
    /// create a job
    Job {
        /// image to run
        #[argh(option)]
        image: Option<String>,
        /// make the job that this cron job would, as cronjob/NAME
        #[argh(option)]
        from: Option<String>,
    }
}

pub async fn job(cx: &Context, flags: Job) -> Result<u8> {
    let (name, command) = name_and_command(cx, &flags.names)?;
    let object = match (&flags.image, &flags.from) {
        (Some(image), None) => json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name},
            "spec": {"template": {"metadata": {}, "spec": {"containers": [container(name, image, command)], "restartPolicy": "Never"}}},
            "status": {},
        }),
        (None, Some(from)) => {
            let Some(cron) = from
                .split_once('/')
                .filter(|(kind, _)| matches!(*kind, "cronjob" | "cronjobs" | "cj" | "cronjob.batch"))
                .map(|(_, name)| name)
            else {
                bail!("from must be an existing cronjob, as cronjob/NAME");
            };
            let path = format!("/apis/batch/v1/namespaces/{}/cronjobs/{cron}", cx.namespace()?);
            job_of_cron(name, &cx.client()?.get(&path).await?)
        }
        _ => bail!("either --image or --from must be specified"),
    };
    make(cx, flags.common(), object).await
}

fn job_of_cron(name: &str, cron: &Value) -> Value {
    let template = &cron["spec"]["jobTemplate"];
    let mut metadata = json!({"name": name, "annotations": {"cronjob.kubernetes.io/instantiate": "manual"}});
    for (key, value) in template["metadata"]["annotations"].as_object().into_iter().flatten() {
        metadata["annotations"][key] = value.clone();
    }
    if template["metadata"]["labels"].is_object() {
        metadata["labels"] = template["metadata"]["labels"].clone();
    }
    metadata["ownerReferences"] = json!([{
        "apiVersion": "batch/v1", "kind": "CronJob", "controller": true,
        "name": cron["metadata"]["name"], "uid": cron["metadata"]["uid"]}]);
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template["spec"], "status": {}})
}

flags! {
    /// create a cron job
    CronJob {
        /// image to run
        #[argh(option)]
        image: Option<String>,
        /// when to run, as '*/5 * * * *'
        #[argh(option)]
        schedule: Option<String>,
        /// what to do when the command ends: OnFailure or Never
        #[argh(option, default = "\"OnFailure\".to_owned()")]
        restart: String,
    }
}

pub async fn cron_job(cx: &Context, flags: CronJob) -> Result<u8> {
    let (name, command) = name_and_command(cx, &flags.names)?;
    let (Some(image), Some(schedule)) = (&flags.image, &flags.schedule) else {
        let missing = [("image", flags.image.is_none()), ("schedule", flags.schedule.is_none())];
        let missing: Vec<String> = missing.iter().filter(|(_, missing)| *missing).map(|(flag, _)| format!("{flag:?}")).collect();
        bail!("required flag(s) {} not set", missing.join(", "));
    };
    let template = json!({"metadata": {}, "spec": {"containers": [container(name, image, command)], "restartPolicy": flags.restart}});
    let object = json!({
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": name},
        "spec": {"schedule": schedule, "jobTemplate": {"metadata": {"name": name}, "spec": {"template": template}}},
        "status": {},
    });
    make(cx, flags.common(), object).await
}

flags! {
    /// create a service
    Service {
        /// port pairs, as PORT or PORT:TARGET; may be repeated
        #[argh(option)]
        tcp: Vec<String>,
        /// the address itself; None makes a headless service
        #[argh(option)]
        clusterip: Option<String>,
        /// the port on each node
        #[argh(option)]
        node_port: Option<i64>,
        /// the name that an ExternalName service stands for
        #[argh(option)]
        external_name: Option<String>,
    }
}

pub async fn service(cx: &Context, flags: Service) -> Result<u8> {
    let kind = match cx.verb.name.rsplit(' ').next() {
        Some("nodeport") => "NodePort",
        Some("loadbalancer") => "LoadBalancer",
        Some("externalname") => "ExternalName",
        _ => "ClusterIP",
    };
    let object = service_object(name(cx, &flags.names)?, kind, &flags.tcp, &flags.clusterip, flags.node_port, &flags.external_name)?;
    make(cx, flags.common(), object).await
}

fn service_object(
    name: &str,
    kind: &str,
    tcp: &[String],
    address: &Option<String>,
    node_port: Option<i64>,
    external_name: &Option<String>,
) -> Result<Value> {
    let headless = address.as_deref() == Some("None");
    if tcp.is_empty() && kind != "ExternalName" && !headless {
        bail!("at least one tcp port specifier must be provided");
    }
    let mut ports = vec![];
    for pair in tcp.iter().flat_map(|pairs| pairs.split(',')) {
        let (port, target) = pair.split_once(':').unwrap_or((pair, pair));
        let number: u16 = port.parse().map_err(|_| anyhow!("invalid port {port:?} in {pair:?}"))?;
        let target = target.parse::<u16>().map_or_else(|_| Value::from(target), Value::from);
        let mut entry = json!({"name": pair.replace(':', "-"), "port": number, "protocol": "TCP", "targetPort": target});
        if let Some(node_port) = node_port.filter(|_| kind == "NodePort") {
            entry["nodePort"] = node_port.into();
        }
        ports.push(entry);
    }
    let mut spec = json!({"selector": {"app": name}, "type": kind});
    if !ports.is_empty() {
        spec["ports"] = json!(ports);
    }
    if let Some(address) = address {
        spec["clusterIP"] = address.as_str().into();
    }
    match (kind, external_name) {
        ("ExternalName", Some(external)) => spec["externalName"] = external.as_str().into(),
        ("ExternalName", None) => bail!("required flag(s) \"external-name\" not set"),
        _ => {}
    }
    Ok(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": {"app": name}},
        "spec": spec, "status": {"loadBalancer": {}}}))
}

flags! {
    /// create a role or a cluster role
    Role {
        /// what may be done; may be repeated
        #[argh(option)]
        verb: Vec<String>,
        /// with what, as pods or deployments.apps or pods/log; may be repeated
        #[argh(option)]
        resource: Vec<String>,
        /// only with those of these names; may be repeated
        #[argh(option)]
        resource_name: Vec<String>,
        /// paths of the server, for cluster roles; may be repeated
        #[argh(option, long = "non-resource-url")]
        paths: Vec<String>,
        /// labels of the cluster roles whose rules a cluster role gathers, as KEY=VALUE
        #[argh(option)]
        aggregation_rule: Option<String>,
    }
}

/// What a rule can allow; other verbs some extension may know.
const VERBS: [&str; 14] = [
    "*",
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
    "use",
    "bind",
    "impersonate",
    "escalate",
    "approve",
];

pub async fn role(cx: &Context, flags: Role) -> Result<u8> {
    let words = |list: &[String]| -> Vec<String> { list.iter().flat_map(|words| words.split(',')).map(str::to_owned).collect() };
    let verbs = words(&flags.verb);
    if let Some(labels) = flags.aggregation_rule.as_deref().filter(|_| cx.verb.name.ends_with("clusterrole")) {
        if !verbs.is_empty() || !flags.resource.is_empty() || !flags.paths.is_empty() {
            bail!("aggregation rule must be specified without nonResourceURLs, resources or verbs");
        }
        let labels: Map<String, Value> =
            labels.split(',').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key.to_owned(), value.into())).collect();
        let object = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name(cx, &flags.names)?},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": labels}]}, "rules": null});
        return make(cx, flags.common(), object).await;
    }
    if verbs.is_empty() {
        bail!("at least one verb must be specified");
    }
    for verb in verbs.iter().filter(|verb| !VERBS.contains(&verb.as_str())) {
        cx.note(&format!("Warning: '{verb}' is not a standard resource verb"));
    }
    if flags.resource.is_empty() && flags.paths.is_empty() {
        bail!("at least one resource must be specified");
    }
    // Resources of one group make one rule.
    let mut groups: Vec<(String, Vec<String>)> = vec![];
    for word in words(&flags.resource) {
        let (word, sub) = word.split_once('/').map_or((word.as_str(), None), |(word, sub)| (word, Some(sub)));
        let (plural, group) = match super::known(word) {
            Some(row) => (row.plural.to_string(), row.group.to_string()),
            None => {
                let row = cx.resolver()?.resolve(word).await?;
                (row.plural.to_string(), row.group.to_string())
            }
        };
        let plural = sub.map_or(plural.clone(), |sub| format!("{plural}/{sub}"));
        match groups.iter_mut().find(|(known, _)| *known == group) {
            Some((_, plurals)) => plurals.push(plural),
            None => groups.push((group, vec![plural])),
        }
    }
    let names = words(&flags.resource_name);
    let mut rules: Vec<Value> = vec![];
    for (group, plurals) in groups {
        let mut rule = json!({"apiGroups": [group], "resources": plurals, "verbs": verbs});
        if !names.is_empty() {
            rule["resourceNames"] = json!(names);
        }
        rules.push(rule);
    }
    if !flags.paths.is_empty() {
        rules.push(json!({"nonResourceURLs": words(&flags.paths), "verbs": verbs}));
    }
    let kind = if cx.verb.name.ends_with("clusterrole") { "ClusterRole" } else { "Role" };
    let object =
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name(cx, &flags.names)?}, "rules": rules});
    make(cx, flags.common(), object).await
}

flags! {
    /// give the rights of a role to users, groups and service accounts
    RoleBinding {
        /// the role
        #[argh(option)]
        role: Option<String>,
        /// the cluster role
        #[argh(option)]
        clusterrole: Option<String>,
        /// a user; may be repeated
        #[argh(option, long = "user")]
        users: Vec<String>,
        /// a group; may be repeated
        #[argh(option)]
        group: Vec<String>,
        /// a service account, as NAMESPACE:NAME; may be repeated
        #[argh(option)]
        serviceaccount: Vec<String>,
    }
}

const GROUP: &str = "rbac.authorization.k8s.io";

/// Those to whom a binding gives a role; each text may name several, parted by commas.
pub fn subjects(users: &[String], groups: &[String], accounts: &[String]) -> Result<Vec<Value>> {
    let mut subjects: Vec<Value> = vec![];
    for (kind, names) in [("User", users), ("Group", groups)] {
        subjects.extend(names.iter().flat_map(|names| names.split(',')).map(|name| json!({"apiGroup": GROUP, "kind": kind, "name": name})));
    }
    for account in accounts.iter().flat_map(|names| names.split(',')) {
        let Some((namespace, name)) = account.split_once(':').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty()) else {
            bail!("serviceaccount must be <namespace>:<name>");
        };
        subjects.push(json!({"kind": "ServiceAccount", "namespace": namespace, "name": name}));
    }
    Ok(subjects)
}

pub async fn role_binding(cx: &Context, flags: RoleBinding) -> Result<u8> {
    let cluster = cx.verb.name.ends_with("clusterrolebinding");
    let (kind, role) = match (&flags.role, &flags.clusterrole) {
        (Some(role), None) if !cluster => ("Role", role),
        (None, Some(role)) => ("ClusterRole", role),
        _ if cluster => bail!("required flag(s) \"clusterrole\" not set"),
        _ => bail!("exactly one of clusterrole or role must be specified"),
    };
    let subjects = subjects(&flags.users, &flags.group, &flags.serviceaccount)?;
    let mut object = json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": if cluster { "ClusterRoleBinding" } else { "RoleBinding" },
        "metadata": {"name": name(cx, &flags.names)?},
        "roleRef": {"apiGroup": GROUP, "kind": kind, "name": role},
    });
    if !subjects.is_empty() {
        object["subjects"] = json!(subjects);
    }
    make(cx, flags.common(), object).await
}

flags! {
    /// create an ingress
    Ingress {
        /// the class of the ingress
        #[argh(option)]
        class: Option<String>,
        /// where to send what no rule takes, as SERVICE:PORT
        #[argh(option)]
        default_backend: Option<String>,
        /// KEY=VALUE; may be repeated
        #[argh(option)]
        annotation: Vec<String>,
        /// HOST/PATH=SERVICE:PORT[,tls[=SECRET]]; a path that ends in * is a prefix; may be repeated
        #[argh(option)]
        rule: Vec<String>,
    }
}

pub async fn ingress(cx: &Context, flags: Ingress) -> Result<u8> {
    if flags.rule.is_empty() && flags.default_backend.is_none() {
        bail!(
            "not enough information provided: every ingress has to either specify a default-backend (which catches all traffic) or a list \
                of rules (which catch specific paths)"
        );
    }
    let mut metadata = json!({"name": name(cx, &flags.names)?});
    for pair in &flags.annotation {
        let Some((key, value)) = pair.split_once('=') else {
            bail!("annotation {pair} is invalid and should be in format key=[value]");
        };
        metadata["annotations"][key] = value.into();
    }
    let mut spec = ingress_spec(&flags.rule)?;
    if let Some(class) = &flags.class {
        spec["ingressClassName"] = class.as_str().into();
    }
    if let Some(default) = &flags.default_backend {
        let Some(backend) = backend(default) else {
            bail!("default-backend {default} is invalid and should be in format svcname:svcport");
        };
        spec["defaultBackend"] = backend;
    }
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": spec,
        "status": {"loadBalancer": {}}});
    make(cx, flags.common(), object).await
}

/// `web:80`, `web:http`.
fn backend(text: &str) -> Option<Value> {
    let (service, port) = text.split_once(':').filter(|(service, port)| !service.is_empty() && !port.is_empty())?;
    let port = port.parse::<u16>().map_or_else(|_| json!({"name": port}), |number| json!({"number": number}));
    Some(json!({"service": {"name": service, "port": port}}))
}

/// Rules of one host stand together; `tls` names its secret.
fn ingress_spec(rules: &[String]) -> Result<Value> {
    let mut hosts: Vec<(String, Vec<Value>)> = vec![];
    let mut tls: Vec<Value> = vec![];
    for rule in rules {
        let wrong = || anyhow!("rule {rule} is invalid and should be in format host/path=svcname:svcport[,tls[=secret]]");
        let (place, target) = rule.split_once('=').ok_or_else(wrong)?;
        let (host, path) = place.find('/').map(|at| place.split_at(at)).ok_or_else(wrong)?;
        let (target, secret) = target.split_once(',').map_or((target, None), |(target, tls)| (target, Some(tls)));
        let backend = backend(target).ok_or_else(wrong)?;
        let (path, kind) = path.strip_suffix('*').map_or((path, "Exact"), |path| (path, "Prefix"));
        let entry = json!({"backend": backend, "path": path, "pathType": kind});
        match hosts.iter_mut().find(|(known, _)| known == host) {
            Some((_, paths)) => paths.push(entry),
            None => hosts.push((host.to_owned(), vec![entry])),
        }
        match secret.map(|secret| secret.strip_prefix("tls")) {
            None => {}
            Some(None) => return Err(wrong()),
            Some(Some(secret)) => {
                let mut entry = json!({});
                if !host.is_empty() {
                    entry["hosts"] = json!([host]);
                }
                if let Some(secret) = secret.strip_prefix('=').filter(|secret| !secret.is_empty()) {
                    entry["secretName"] = secret.into();
                }
                tls.push(entry);
            }
        }
    }
    let rule = |(host, paths): (String, Vec<Value>)| match host.is_empty() {
        true => json!({"http": {"paths": paths}}),
        false => json!({"host": host, "http": {"paths": paths}}),
    };
    let mut spec = json!({});
    if !hosts.is_empty() {
        spec["rules"] = hosts.into_iter().map(rule).collect();
    }
    if !tls.is_empty() {
        spec["tls"] = tls.into();
    }
    Ok(spec)
}

flags! {
    /// create a resource quota
    Quota {
        /// limits, as cpu=1,memory=1Gi,pods=2
        #[argh(option, default = "String::new()")]
        hard: String,
        /// scopes, parted by commas
        #[argh(option)]
        scopes: Option<String>,
    }
}

pub async fn quota(cx: &Context, flags: Quota) -> Result<u8> {
    let mut hard = Map::new();
    for pair in flags.hard.split(',').filter(|pair| !pair.is_empty()) {
        let Some((name, amount)) = pair.split_once('=') else { bail!("Invalid argument syntax {pair}, expected <resource>=<value>") };
        hard.insert(name.to_owned(), amount.into());
    }
    let mut spec = json!({"hard": hard});
    if let Some(scopes) = &flags.scopes {
        spec["scopes"] = json!(scopes.split(',').collect::<Vec<_>>());
    }
    let object =
        json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name(cx, &flags.names)?}, "spec": spec, "status": {}});
    make(cx, flags.common(), object).await
}

flags! {
    /// create a pod disruption budget
    DisruptionBudget {
        /// label selector of the pods
        #[argh(option)]
        selector: Option<String>,
        /// how many pods, or what share of them, must stay
        #[argh(option)]
        min_available: Option<String>,
        /// how many pods, or what share of them, may be away
        #[argh(option)]
        max_unavailable: Option<String>,
    }
}

pub async fn disruption_budget(cx: &Context, flags: DisruptionBudget) -> Result<u8> {
    let Some(selector) = &flags.selector else { bail!("a selector must be specified") };
    selector::Labels::parse(selector).map_err(|error| anyhow!("{error:#}"))?;
    let mut labels = Map::new();
    for pair in selector.split(',') {
        let Some((key, value)) = pair.split_once('=') else { bail!("only key=value selectors are supported, got {pair:?}") };
        labels.insert(key.trim_end_matches('=').to_owned(), value.trim_start_matches('=').into());
    }
    let amount = |text: &String| text.parse::<i64>().map_or_else(|_| Value::from(text.as_str()), Value::from);
    let mut spec = json!({"selector": {"matchLabels": labels}});
    match (&flags.min_available, &flags.max_unavailable) {
        (Some(min), None) => spec["minAvailable"] = amount(min),
        (None, Some(max)) => spec["maxUnavailable"] = amount(max),
        (Some(_), Some(_)) => bail!("min-available and max-unavailable cannot be both specified"),
        (None, None) => bail!("one of min-available or max-unavailable must be specified"),
    }
    let status = json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0});
    let metadata = json!({"name": name(cx, &flags.names)?});
    let object = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata, "spec": spec, "status": status});
    make(cx, flags.common(), object).await
}

flags! {
    /// create a priority class
    PriorityClass {
        /// how important its pods are
        #[argh(option)]
        value: Option<i64>,
        /// what it is for
        #[argh(option)]
        description: Option<String>,
        /// pods that name no class are of this one
        #[argh(switch)]
        global_default: bool,
        /// whether its pods push others away: PreemptLowerPriority or Never
        #[argh(option, default = "\"PreemptLowerPriority\".to_owned()")]
        preemption_policy: String,
    }
}

pub async fn priority_class(cx: &Context, flags: PriorityClass) -> Result<u8> {
    let mut object = json!({
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": name(cx, &flags.names)?},
        "value": flags.value.unwrap_or_default(),
        "preemptionPolicy": flags.preemption_policy,
    });
    if let Some(description) = &flags.description {
        object["description"] = description.as_str().into();
    }
    if flags.global_default {
        object["globalDefault"] = true.into();
    }
    make(cx, flags.common(), object).await
}

/// ask for a token of a service account
#[derive(FromArgs, ArgsInfo)]
pub struct Token {
    #[argh(positional)]
    names: Vec<String>,
    /// whom the token is for; may be repeated
    #[argh(option)]
    audience: Vec<String>,
    /// how long it holds, as 10m
    #[argh(option)]
    duration: Option<String>,
    /// output format
    #[argh(option, short = 'o', arg_name = "format")]
    output: Option<String>,
}

pub async fn token(cx: &Context, flags: Token) -> Result<u8> {
    let mut spec = json!({});
    if !flags.audience.is_empty() {
        spec["audiences"] = json!(flags.audience);
    }
    if let Some(duration) = &flags.duration {
        spec["expirationSeconds"] = super::duration(duration)?.as_secs().into();
    }
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {}, "spec": spec});
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/{}/token", cx.namespace()?, name(cx, &flags.names)?);
    let answer = match cx.client()?.create(&path, &Query::new(), &request).await {
        Ok(answer) => answer,
        Err(error) => match refusal(&error) {
            Some(refusal) => bail!("failed to create token: {}", refusal.message),
            None => return Err(error),
        },
    };
    match Form::parse(flags.output.as_deref(), None)? {
        form if form.is_table() => {
            // Behind a pipe the token is all there is.
            let end = if std::io::stdout().is_terminal() { "\n" } else { "" };
            cx.print(&format!("{}{end}", answer["status"]["token"].as_str().unwrap_or_default()))?;
        }
        form => cx.print(&super::output::render(&form, &answer, true)?)?,
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::super::yaml::yaml;
    use super::*;

    #[test]
    fn objects_are_those_that_kubectl_makes() {
        let made = deployment_object("web", &["nginx", "r:5000/shop/redis_x:7"], 2, 80, &[]);
        let expected = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  labels:\n    app: web\n  name: web\nspec:\n  replicas: 2\n  \
            selector:\n    matchLabels:\n      app: web\n  strategy: {}\n  template:\n    metadata:\n      labels:\n        app: \
            web\n    spec:\n      containers:\n      - image: nginx\n        name: nginx\n        ports:\n        - containerPort: \
            80\n        resources: {}\n      - image: r:5000/shop/redis_x:7\n        name: redis-x\n        resources: {}\nstatus: {}\n";
        assert_eq!(yaml(&made), expected);
        let made = service_object("svc", "NodePort", &["80:8080".into()], &None, Some(30080), &None).unwrap();
        let expected = "apiVersion: v1\nkind: Service\nmetadata:\n  labels:\n    app: svc\n  name: svc\nspec:\n  ports:\n  - name: \
            80-8080\n    nodePort: 30080\n    port: 80\n    protocol: TCP\n    targetPort: 8080\n  selector:\n    app: svc\n  type: \
            NodePort\nstatus:\n  loadBalancer: {}\n";
        assert_eq!(yaml(&made), expected);
        assert!(service_object("svc", "ClusterIP", &[], &None, None, &None).is_err());
        let config = registry_config("r.io", "u", "p", "e@x");
        assert_eq!(
            BASE64.encode(config),
            "eyJhdXRocyI6eyJyLmlvIjp7InVzZXJuYW1lIjoidSIsInBhc3N3b3JkIjoicCIsImVtYWlsIjoiZUB4IiwiYXV0aCI6ImRUcHcifX19"
        );
    }

    #[test]
    fn values_come_from_literals_and_mistakes_are_named() {
        let literals = |list: &[&str]| entries("", &[], &list.iter().map(|literal| (*literal).to_owned()).collect::<Vec<_>>(), &[]);
        assert_eq!(literals(&["a=b", "c=d=e"]).unwrap()["c"], b"d=e");
        assert!(literals(&["a"]).unwrap_err().to_string().starts_with("invalid literal source a"));
        assert!(literals(&["a=1", "a=2"]).unwrap_err().to_string().contains("already exists"));
        assert!(literals(&["a b=1"]).unwrap_err().to_string().contains("not a valid key name"));
    }
}
