//! `set image`, `set env`, `set resources`: changes the containers of whatever has a pod template, by a patch of just that.

use anyhow::{Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use super::create::Shown;
use super::generate::subjects;
use super::manifest::file_flags;
use super::output::{DryRun, Form};
use super::select::{self, Found, Wanted};
use super::{Context, three_way};
use crate::api::quantity::Quantity;
use crate::client::{Query, refusal};

pub const IMAGE_EXAMPLES: &str = "edgectl set image deployment/web nginx=nginx:1.27
edgectl set image deployments,daemonsets -l app=web '*=nginx:1.27'";
pub const ENV_EXAMPLES: &str = "edgectl set env deployment/web STAGE=test OLD-
edgectl set env deployment/web --list";
pub const RESOURCES_EXAMPLES: &str = "edgectl set resources deployment web -c=nginx --limits=cpu=200m,memory=512Mi
edgectl set resources deployment web --requests=cpu=100m";

file_flags! {
    /// change something of the containers of workloads and pods
    pub struct Flags {
        #[argh(positional)]
        words: Vec<String>,
        /// all objects of the kinds, in the namespace
        #[argh(switch)]
        all: bool,
        /// label selector
        #[argh(option, short = 'l', default = "String::new()")]
        selector: String,
        /// only the containers of this name; * is any letters
        #[argh(option, short = 'c', default = "\"*\".to_owned()")]
        containers: String,
        /// limits, as cpu=200m,memory=512Mi (resources)
        #[argh(option)]
        limits: Option<String>,
        /// requests, as cpu=100m (resources)
        #[argh(option)]
        requests: Option<String>,
        /// show the variables and change none (env)
        #[argh(switch)]
        list: bool,
        /// take variables from configmap/NAME or secret/NAME (env)
        #[argh(option)]
        from: Option<String>,
        /// the keys that are taken, parted by commas; all unless given (env)
        #[argh(option)]
        keys: Option<String>,
        /// a variable, as KEY=VALUE; may be repeated (env)
        #[argh(option, short = 'e')]
        env: Vec<String>,
        /// what stands before the names of the variables taken (env)
        #[argh(option, default = "String::new()")]
        prefix: String,
        /// only show what would be done
        #[argh(option, arg_name = "client|server|none")]
        dry_run: Option<String>,
        /// output format
        #[argh(option, short = 'o', arg_name = "format")]
        output: Option<String>,
        /// name that owns the fields
        #[argh(option, default = "\"kubectl-set\".to_owned()")]
        field_manager: String,
    }
}

/// Where an object has its pod spec.
pub fn pod_spec(object: &mut Value) -> Option<&mut Value> {
    let path = match object["kind"].as_str() {
        Some("Pod") => "/spec",
        Some("CronJob") => "/spec/jobTemplate/spec/template/spec",
        _ => "/spec/template/spec",
    };
    object.pointer_mut(path).filter(|spec| spec["containers"].is_array())
}

/// The containers that `pattern` names, init containers included.
fn containers<'a>(spec: &'a mut Value, pattern: &'a str) -> impl Iterator<Item = &'a mut Value> {
    let fields = spec.as_object_mut().into_iter().flatten();
    let lists = fields.filter(|(key, _)| *key == "containers" || *key == "initContainers");
    let all = lists.flat_map(|(_, list)| list.as_array_mut().into_iter().flatten());
    all.filter(move |container| matches(pattern, container["name"].as_str().unwrap_or_default()))
}

/// `*` stands for any letters.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => match name.strip_prefix(head) {
            Some(tail) => rest.is_empty() || (0..=tail.len()).filter(|at| tail.is_char_boundary(*at)).any(|at| matches(rest, &tail[at..])),
            None => false,
        },
    }
}

pub async fn image(cx: &Context, flags: Flags) -> Result<u8> {
    let start = flags.words.iter().position(|word| word.contains('=')).unwrap_or(flags.words.len());
    let (names, changes) = flags.words.split_at(start);
    let changes: Vec<(&str, &str)> = changes.iter().filter_map(|change| change.split_once('=')).collect();
    if changes.is_empty() {
        bail!("at least one image update is required");
    }
    apply(cx, &flags, names, "image updated", |_, spec| {
        for (name, image) in &changes {
            let mut found = false;
            for container in containers(spec, name) {
                container["image"] = (*image).into();
                found = true;
            }
            if !found {
                bail!("unable to find container named {name:?}");
            }
        }
        Ok(())
    })
    .await
}

pub async fn env(cx: &Context, flags: Flags) -> Result<u8> {
    let is_change = |word: &String| word.contains('=') || (word.ends_with('-') && !word.contains('/'));
    let start = flags.words.iter().position(is_change).unwrap_or(flags.words.len());
    let (names, changes) = flags.words.split_at(start);
    let mut variables = taken(cx, &flags).await?;
    for change in flags.env.iter().chain(changes).filter_map(|change| change.split_once('=')) {
        variables.push(json!({"name": change.0, "value": change.1}));
    }
    let removed: Vec<&str> = changes.iter().filter(|change| !change.contains('=')).filter_map(|change| change.strip_suffix('-')).collect();
    if flags.list {
        return list(cx, &flags, names).await;
    }
    if variables.is_empty() && removed.is_empty() {
        bail!("at least one environment variable must be provided");
    }
    apply(cx, &flags, names, "env updated", |_, spec| {
        let mut found = false;
        for container in containers(spec, &flags.containers) {
            found = true;
            if !container["env"].is_array() {
                container["env"] = json!([]);
            }
            let Some(env) = container["env"].as_array_mut() else { continue };
            env.retain(|variable| !removed.iter().any(|name| variable["name"] == *name));
            for variable in &variables {
                match env.iter_mut().find(|known| known["name"] == variable["name"]) {
                    Some(known) => *known = variable.clone(),
                    None => env.push(variable.clone()),
                }
            }
            if env.is_empty()
                && let Some(container) = container.as_object_mut()
            {
                container.remove("env");
            }
        }
        if !found {
            bail!("no containers match {:?}", flags.containers);
        }
        Ok(())
    })
    .await
}

/// One variable for each key of the config map or secret that `--from` names.
async fn taken(cx: &Context, flags: &Flags) -> Result<Vec<Value>> {
    let Some(from) = &flags.from else { return Ok(vec![]) };
    let Some((kind, name)) = from.split_once('/') else { bail!("--from must be configmap/NAME or secret/NAME") };
    let (plural, source) = match super::known(kind).as_ref().map(|row| row.kind.to_string()).as_deref() {
        Some("ConfigMap") => ("configmaps", "configMapKeyRef"),
        Some("Secret") => ("secrets", "secretKeyRef"),
        _ => bail!("--from must be configmap/NAME or secret/NAME"),
    };
    let object = cx.client()?.get(&format!("/api/v1/namespaces/{}/{plural}/{name}", cx.namespace()?)).await?;
    let chosen: Option<Vec<&str>> = flags.keys.as_deref().map(|keys| keys.split(',').collect());
    let keys = object["data"].as_object().into_iter().flatten().map(|(key, _)| key);
    let keys = keys.filter(|key| chosen.as_ref().is_none_or(|chosen| chosen.contains(&key.as_str())));
    let variable = |key: &String| {
        let name_of_variable = key.to_uppercase().replace(['-', '.'], "_");
        if name_of_variable != *key {
            cx.note(&format!("Warning: key {key} transferred to {name_of_variable}"));
        }
        let variable = format!("{}{name_of_variable}", flags.prefix);
        json!({"name": variable, "valueFrom": {source: {"key": key, "name": name}}})
    };
    Ok(keys.map(variable).collect())
}

async fn list(cx: &Context, flags: &Flags, names: &[String]) -> Result<u8> {
    for mut found in objects(cx, flags, names).await? {
        let (kind, name) = (found.resource.kind.to_string(), found.name.clone());
        let Some(spec) = pod_spec(&mut found.object) else { continue };
        for container in containers(spec, &flags.containers) {
            cx.println(&format!("# {kind} {name}, container {}", container["name"].as_str().unwrap_or_default()))?;
            for variable in container["env"].as_array().into_iter().flatten() {
                let name = variable["name"].as_str().unwrap_or_default();
                match variable["value"].as_str() {
                    Some(value) => cx.println(&format!("{name}={value}"))?,
                    None => cx.println(&format!("# {name} from {}", source_text(&variable["valueFrom"])))?,
                }
            }
        }
    }
    Ok(0)
}

/// Where the value of a variable comes from, in words.
fn source_text(source: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (field, resource, map, secret) =
        (&source["fieldRef"], &source["resourceFieldRef"], &source["configMapKeyRef"], &source["secretKeyRef"]);
    if field.is_object() {
        format!("field path {}", text(&field["fieldPath"]))
    } else if resource.is_object() {
        format!("resource field {}", text(&resource["resource"]))
    } else if map.is_object() {
        format!("configmap {}, key {}", text(&map["name"]), text(&map["key"]))
    } else {
        format!("secret {}, key {}", text(&secret["name"]), text(&secret["key"]))
    }
}

pub async fn resources(cx: &Context, flags: Flags) -> Result<u8> {
    if flags.limits.is_none() && flags.requests.is_none() {
        bail!("you must specify an update to requests or limits (in the form of --requests/--limits)");
    }
    let amounts = |text: &str| -> Result<Vec<(String, String)>> {
        let pair = |pair: &str| match pair.split_once('=') {
            Some((_, amount)) if Quantity::parse(amount).is_err() => {
                Err(anyhow!("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"))
            }
            Some((name, amount)) => Ok((name.to_owned(), amount.to_owned())),
            None => Err(anyhow!("invalid argument syntax {pair}, expected <resource>=<value>")),
        };
        text.split(',').map(pair).collect()
    };
    let mut changes = vec![];
    for (list, text) in [("limits", &flags.limits), ("requests", &flags.requests)] {
        if let Some(text) = text {
            changes.push((list, amounts(text)?));
        }
    }
    apply(cx, &flags, &flags.words, "resource requirements updated", |_, spec| {
        let mut found = false;
        for container in containers(spec, &flags.containers) {
            found = true;
            for (list, amounts) in &changes {
                for (name, amount) in amounts {
                    match amount.as_str() {
                        "0" => {
                            if let Some(list) = container["resources"][list].as_object_mut() {
                                list.remove(name);
                            }
                        }
                        amount => container["resources"][list][name] = amount.into(),
                    }
                }
            }
        }
        if !found {
            bail!("unable to find container named {}", flags.containers);
        }
        Ok(())
    })
    .await
}

pub async fn service_account(cx: &Context, flags: Flags) -> Result<u8> {
    let Some((account, names)) = flags.words.split_last() else { bail!("serviceaccount is required") };
    apply(cx, &flags, names, "serviceaccount updated", |_, spec| {
        spec["serviceAccountName"] = account.as_str().into();
        Ok(())
    })
    .await
}

/// The selector of a Service; those of workloads never change.
pub async fn selector(cx: &Context, flags: Flags) -> Result<u8> {
    let Some((expression, names)) = flags.words.split_last() else { bail!("one resource and one selector are required") };
    let mut labels = serde_json::Map::new();
    for pair in expression.split(',') {
        let Some((key, value)) = pair.split_once('=') else { bail!("a service selects by key=value alone, not by {pair:?}") };
        labels.insert(key.to_owned(), value.into());
    }
    let form = Form::parse(flags.output.as_deref(), None)?;
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    let query = Query::new().with("fieldManager", &flags.field_manager).with("dryRun", dry_run.query());
    let mut shown = Shown::new(cx, &form, false);
    for found in objects(cx, &flags, names).await? {
        if &*found.resource.kind != "Service" {
            cx.fail(&anyhow!("setting a selector is only supported for Services"));
            continue;
        }
        let mut after = found.object.clone();
        after["spec"]["selector"] = Value::Object(labels.clone());
        let (kind, patch) = three_way::difference(&found.resource.api_version(), &found.resource.kind, &found.object, &after);
        if dry_run != DryRun::Client {
            after = cx.client()?.patch(&found.path(), &query, kind, &patch).await?;
        }
        shown.object(&found.resource, after, "selector updated", dry_run)?;
    }
    shown.end()?;
    Ok(0)
}

file_flags! {
    /// give the role of a binding to more users, groups and service accounts
    pub struct SubjectFlags {
        #[argh(positional)]
        names: Vec<String>,
        /// a user; may be repeated
        #[argh(option, long = "user")]
        users: Vec<String>,
        /// a group; may be repeated
        #[argh(option)]
        group: Vec<String>,
        /// a service account, as NAMESPACE:NAME; may be repeated
        #[argh(option)]
        serviceaccount: Vec<String>,
        /// all objects of the kinds, in the namespace
        #[argh(switch)]
        all: bool,
        /// label selector
        #[argh(option, short = 'l', default = "String::new()")]
        selector: String,
        /// only show what would be done
        #[argh(option, arg_name = "client|server|none")]
        dry_run: Option<String>,
        /// output format
        #[argh(option, short = 'o', arg_name = "format")]
        output: Option<String>,
    }
}

pub async fn subject(cx: &Context, flags: SubjectFlags) -> Result<u8> {
    let subjects = subjects(&flags.users, &flags.group, &flags.serviceaccount)?;
    if subjects.is_empty() {
        bail!("you must specify at least one value of user, group or serviceaccount");
    }
    let form = Form::parse(flags.output.as_deref(), None)?;
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    let query = Query::new().with("fieldManager", "kubectl-set").with("dryRun", dry_run.query());
    let wanted =
        Wanted { names: &flags.names, sources: flags.sources(false), selector: &flags.selector, all: flags.all, ..Wanted::default() };
    let mut shown = Shown::new(cx, &form, false);
    for found in select::objects(cx, &wanted).await? {
        if !matches!(&*found.resource.kind, "RoleBinding" | "ClusterRoleBinding") {
            cx.fail(&anyhow!("setting subjects is only supported for RoleBinding/ClusterRoleBinding"));
            continue;
        }
        let mut present = found.object["subjects"].as_array().cloned().unwrap_or_default();
        present.extend(subjects.iter().filter(|subject| !present.contains(subject)).cloned().collect::<Vec<_>>());
        let mut after = found.object.clone();
        after["subjects"] = present.into();
        let (kind, patch) = three_way::difference(&found.resource.api_version(), &found.resource.kind, &found.object, &after);
        if dry_run != DryRun::Client {
            after = cx.client()?.patch(&found.path(), &query, kind, &patch).await?;
        }
        shown.object(&found.resource, after, "subjects updated", dry_run)?;
    }
    shown.end()?;
    Ok(0)
}

async fn objects(cx: &Context, flags: &Flags, names: &[String]) -> Result<Vec<Found>> {
    let wanted = Wanted { names, sources: flags.sources(false), selector: &flags.selector, all: flags.all, ..Wanted::default() };
    select::objects(cx, &wanted).await
}

/// Changes the pod spec of each object and sends the difference.
async fn apply(
    cx: &Context,
    flags: &Flags,
    names: &[String],
    operation: &str,
    change: impl Fn(&Found, &mut Value) -> Result<()>,
) -> Result<u8> {
    let form = Form::parse(flags.output.as_deref(), None)?;
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    let query = Query::new().with("fieldManager", &flags.field_manager).with("dryRun", dry_run.query());
    let mut shown = Shown::new(cx, &form, false);
    for found in objects(cx, flags, names).await? {
        let mut after = found.object.clone();
        let Some(spec) = pod_spec(&mut after) else {
            cx.fail(&anyhow!("{}/{} has no pod template", found.resource.plural, found.name));
            continue;
        };
        if let Err(error) = change(&found, spec) {
            cx.fail(&error);
            continue;
        }
        let (kind, patch) = three_way::difference(&found.resource.api_version(), &found.resource.kind, &found.object, &after);
        if patch.as_object().is_some_and(serde_json::Map::is_empty) && !operation.starts_with("serviceaccount") {
            continue;
        }
        if dry_run != DryRun::Client {
            match cx.client()?.patch(&found.path(), &query, kind, &patch).await {
                Ok(object) => after = object,
                Err(error) if refusal(&error).is_some() => {
                    let refused = refusal(&error).cloned().unwrap_or_default();
                    cx.fail(&anyhow!("failed to patch {operation} to pod template: {}", refused.message));
                    continue;
                }
                Err(error) => return Err(error),
            }
        }
        shown.object(&found.resource, after, operation, dry_run)?;
    }
    shown.end_as_list()?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_containers() {
        for (pattern, name, expected) in [
            ("*", "a", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("a*c", "abc", true),
            ("a*d", "abc", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn pod_specs_are_found_in_every_workload() {
        let spec = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "b"}]});
        for mut object in [
            json!({"kind": "Pod", "spec": spec}),
            json!({"kind": "Deployment", "spec": {"template": {"spec": spec}}}),
            json!({"kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": {"spec": spec}}}}}),
        ] {
            assert_eq!(containers(pod_spec(&mut object).unwrap(), "*").count(), 2);
        }
        assert!(pod_spec(&mut json!({"kind": "Service", "spec": {}})).is_none());
    }
}
