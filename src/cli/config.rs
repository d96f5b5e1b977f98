//! `config`: looks into the kubeconfig and changes what it points to. Keys and tokens are shown only with `--raw`.

use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use serde_yaml::{Mapping, Value as Yaml};

use super::Context;
use super::output::{self, Form};
use super::tabwriter::Tabwriter;
use super::yaml;
use crate::client::kubeconfig;

/// look at the kubeconfig, or change it
#[derive(FromArgs, ArgsInfo)]
pub struct Flags {
    #[argh(positional)]
    names: Vec<String>,
    /// only what the current context uses (view)
    #[argh(switch)]
    minify: bool,
    /// put the content of files in place of their names (view)
    #[argh(switch)]
    flatten: bool,
    /// show keys and tokens (view)
    #[argh(switch)]
    raw: bool,
    /// keep the content of the files instead of their names (set-cluster, set-credentials)
    #[argh(switch)]
    embed_certs: bool,
    /// the current context (set-context)
    #[argh(switch)]
    current: bool,
    /// print no header line
    #[argh(switch)]
    no_headers: bool,
    /// output format
    #[argh(option, short = 'o', arg_name = "format")]
    output: Option<String>,
}

/// The file that has the entry, else the one for new entries.
fn file_of(cx: &Context, list: &str, name: &str) -> Result<PathBuf> {
    for path in kubeconfig::files(cx.global.kubeconfig.as_deref()) {
        if !path.exists() {
            continue;
        }
        let config = kubeconfig::load(path.to_str())?;
        let found = match list {
            "current-context" => config.current_context().is_some(),
            list => config.entries(list).any(|(known, _)| known == name),
        };
        if found {
            return Ok(path);
        }
    }
    kubeconfig::file_for_new_entries(cx.global.kubeconfig.as_deref())
}

fn one_name<'a>(flags: &'a Flags, usage: &str) -> Result<&'a str> {
    match flags.names.as_slice() {
        [name] => Ok(name),
        _ => bail!("Unexpected args: {:?}\nUsage: edgectl config {usage}", flags.names),
    }
}

pub async fn view(cx: &Context, flags: Flags) -> Result<u8> {
    let config = cx.kubeconfig()?;
    let mut object: Value = serde_json::to_value(&config.merged).map_err(|error| anyhow!("the kubeconfig is no JSON: {error}"))?;
    for (key, value) in [("apiVersion", "v1"), ("kind", "Config")] {
        object[key] = value.into();
    }
    for list in ["clusters", "contexts", "users"] {
        if !object[list].is_array() {
            object[list] = Value::Null;
        }
    }
    if object["current-context"].is_null() {
        object["current-context"] = "".into();
    }
    if flags.minify {
        let Some(current) = cx.global.context.clone().or_else(|| config.current_context().map(str::to_owned)) else {
            bail!("cannot locate context: current-context must exist in order to minify");
        };
        let context = config.entries("contexts").find(|(name, _)| *name == current).map(|(_, context)| context.clone());
        let context = context.ok_or_else(|| anyhow!("cannot locate context {current}"))?;
        let keep = |list: &mut Value, name: Option<&str>| {
            if let Some(list) = list.as_array_mut() {
                list.retain(|entry| entry["name"].as_str() == name);
            }
        };
        keep(&mut object["contexts"], Some(&current));
        keep(&mut object["clusters"], context["cluster"].as_str());
        keep(&mut object["users"], context["user"].as_str());
        object["current-context"] = current.as_str().into();
    }
    if flags.flatten {
        flatten(&mut object)?;
    }
    if !flags.raw && !flags.flatten {
        hide(&mut object);
    }
    let text = match flags.output.as_deref() {
        None | Some("yaml") => yaml::yaml(&object).into_bytes(),
        output => output::render(&Form::parse(output, None)?, &object, true)?,
    };
    cx.print(&text)?;
    Ok(0)
}

fn flatten(object: &mut Value) -> Result<()> {
    for (list, field, keys) in
        [("clusters", "cluster", &["certificate-authority"][..]), ("users", "user", &["client-certificate", "client-key"][..])]
    {
        for entry in object[list].as_array_mut().into_iter().flatten() {
            for key in keys {
                let Some(path) = entry[field][key].as_str().map(str::to_owned) else { continue };
                let content = std::fs::read(&path).map_err(|error| anyhow!("read {path}: {error}"))?;
                entry[field][format!("{key}-data")] = BASE64.encode(content).into();
                if let Some(fields) = entry[field].as_object_mut() {
                    fields.remove(*key);
                }
            }
        }
    }
    Ok(())
}

fn hide(object: &mut Value) {
    for entry in object["clusters"].as_array_mut().into_iter().flatten() {
        let data = &mut entry["cluster"]["certificate-authority-data"];
        if data.is_string() {
            *data = "DATA+OMITTED".into();
        } else if let Some(cluster) = entry["cluster"].as_object_mut() {
            cluster.retain(|_, value| !value.is_null());
        }
    }
    for entry in object["users"].as_array_mut().into_iter().flatten() {
        let Some(user) = entry["user"].as_object_mut() else { continue };
        for (key, value) in user {
            match key.as_str() {
                "client-certificate-data" | "client-key-data" => *value = "DATA+OMITTED".into(),
                "token" | "password" => *value = "REDACTED".into(),
                _ => {}
            }
        }
    }
}

pub async fn current_context(cx: &Context, _: Flags) -> Result<u8> {
    match cx.kubeconfig()?.current_context() {
        Some(name) => cx.println(name)?,
        None => bail!("current-context is not set"),
    }
    Ok(0)
}

pub async fn get_contexts(cx: &Context, flags: Flags) -> Result<u8> {
    let config = cx.kubeconfig()?;
    let mut contexts: Vec<_> =
        config.entries("contexts").filter(|(name, _)| flags.names.is_empty() || flags.names.iter().any(|asked| asked == name)).collect();
    contexts.sort_by_key(|(name, _)| *name);
    let mut writer = Tabwriter::for_tables();
    let by_name = flags.output.as_deref() == Some("name");
    if !flags.no_headers && !by_name {
        writer.write("CURRENT\tNAME\tCLUSTER\tAUTHINFO\tNAMESPACE\n");
    }
    for (name, context) in contexts {
        let text = |key: &str| context[key].as_str().unwrap_or_default();
        let star = if config.current_context() == Some(name) { "*" } else { "" };
        writer.write(&match by_name {
            true => format!("{name}\n"),
            false => format!("{star}\t{name}\t{}\t{}\t{}\n", text("cluster"), text("user"), text("namespace")),
        });
    }
    cx.print(&writer.flush())?;
    if let Some(missing) = flags.names.iter().find(|asked| !config.entries("contexts").any(|(name, _)| name == asked.as_str())) {
        bail!("context {missing} not found");
    }
    Ok(0)
}

async fn names(cx: &Context, list: &str) -> Result<u8> {
    let mut names: Vec<&str> = cx.kubeconfig()?.entries(list).map(|(name, _)| name).collect();
    names.sort_unstable();
    cx.print(&format!("NAME\n{}", names.iter().map(|name| format!("{name}\n")).collect::<String>()))?;
    Ok(0)
}

pub async fn get_clusters(cx: &Context, _: Flags) -> Result<u8> {
    names(cx, "clusters").await
}

pub async fn get_users(cx: &Context, _: Flags) -> Result<u8> {
    names(cx, "users").await
}

pub async fn use_context(cx: &Context, flags: Flags) -> Result<u8> {
    let name = one_name(&flags, "use-context CONTEXT_NAME")?;
    if !cx.kubeconfig()?.entries("contexts").any(|(known, _)| known == name) {
        bail!("no context exists with the name: {name:?}");
    }
    kubeconfig::edit(&file_of(cx, "current-context", name)?, |config| {
        config.insert("current-context".into(), name.into());
        Ok(())
    })?;
    cx.println(&format!("Switched to context {name:?}."))?;
    Ok(0)
}

pub async fn set_context(cx: &Context, flags: Flags) -> Result<u8> {
    let name = match (flags.current, flags.names.as_slice()) {
        (true, []) => cx.kubeconfig()?.current_context().map(str::to_owned).ok_or_else(|| anyhow!("no current context is set"))?,
        (false, [name]) => name.clone(),
        (true, _) => bail!("you cannot specify both a context name and --current"),
        (false, _) => bail!("you must specify a non-empty context name or --current"),
    };
    let mut context = cx.kubeconfig()?.entries("contexts").find(|(known, _)| *known == name).map(|(_, context)| context.clone());
    let known = context.is_some();
    let content = context.get_or_insert_with(|| Yaml::Mapping(Mapping::new()));
    for (key, value) in [("namespace", &cx.global.namespace), ("cluster", &cx.global.cluster), ("user", &cx.global.user)] {
        if let Some(value) = value {
            content[key] = value.as_str().into();
        }
    }
    let content = content.clone();
    kubeconfig::edit(&file_of(cx, "contexts", &name)?, |config| {
        kubeconfig::set_entry(config, "contexts", &name, content);
        Ok(())
    })?;
    cx.println(&format!("Context {name:?} {}.", if known { "modified" } else { "created" }))?;
    Ok(0)
}

pub async fn set_cluster(cx: &Context, flags: Flags) -> Result<u8> {
    let name = one_name(&flags, "set-cluster NAME")?;
    let mut values = vec![("server", cx.global.server.as_deref()), ("tls-server-name", cx.global.tls_server_name.as_deref())];
    values.push(("certificate-authority", cx.global.certificate_authority.as_deref()));
    let insecure = cx.global.insecure_skip_tls_verify.then(|| ("insecure-skip-tls-verify", Yaml::Bool(true)));
    let values = values.into_iter().filter_map(|(key, value)| Some((key, Yaml::from(value?)))).chain(insecure);
    set(cx, "clusters", name, embedded(&flags, values)?)?;
    cx.println(&format!("Cluster {name:?} set."))?;
    Ok(0)
}

pub async fn set_credentials(cx: &Context, flags: Flags) -> Result<u8> {
    let name = one_name(&flags, "set-credentials NAME")?;
    let global = &cx.global;
    let values = [("token", &global.token), ("client-certificate", &global.client_certificate), ("client-key", &global.client_key)];
    let values = values.into_iter().filter_map(|(key, value)| Some((key, Yaml::from(value.as_deref()?))));
    set(cx, "users", name, embedded(&flags, values)?)?;
    cx.println(&format!("User {name:?} set."))?;
    Ok(0)
}

/// With `--embed-certs` the content of certificates and keys in place of their names.
fn embedded<'a>(flags: &Flags, values: impl Iterator<Item = (&'a str, Yaml)>) -> Result<Vec<(String, Yaml)>> {
    let embed = |(key, value): (&str, Yaml)| match value.as_str() {
        Some(path) if matches!(key, "certificate-authority" | "client-certificate" | "client-key") => {
            if !flags.embed_certs {
                // In the kubeconfig a name is taken from where that file is, here from where the user is.
                let path = std::path::absolute(path).map_err(|error| anyhow!("find {path}: {error}"))?;
                return Ok((key.to_owned(), Yaml::from(path.to_string_lossy().as_ref())));
            }
            let content = std::fs::read(path).map_err(|error| anyhow!("could not read {key} data from {path}: {error}"))?;
            Ok((format!("{key}-data"), Yaml::from(BASE64.encode(content))))
        }
        _ => Ok((key.to_owned(), value)),
    };
    values.map(embed).collect()
}

/// Sets fields of an entry, which is made if it is not there.
fn set(cx: &Context, list: &str, name: &str, values: Vec<(String, Yaml)>) -> Result<()> {
    let known = cx.kubeconfig()?.entries(list).find(|(known, _)| *known == name).map(|(_, entry)| entry.clone());
    let mut entry = known.unwrap_or_else(|| Yaml::Mapping(Mapping::new()));
    for (key, value) in values {
        entry[key.as_str()] = value;
    }
    kubeconfig::edit(&file_of(cx, list, name)?, |config| {
        kubeconfig::set_entry(config, list, name, entry);
        Ok(())
    })
}

/// The place that a dotted path means: `clusters.NAME.server`, `current-context`. Names of entries may have dots themselves.
struct Place {
    list: &'static str,
    field: &'static str,
    name: String,
    key: Option<String>,
}

/// What a dotted path means; none if it is a property of the whole file.
fn place(cx: &Context, path: &str) -> Result<Option<Place>> {
    let Some((list, rest)) = path.split_once('.') else { return Ok(None) };
    let (list, field) = match list {
        "clusters" => ("clusters", "cluster"),
        "contexts" => ("contexts", "context"),
        "users" => ("users", "user"),
        other => bail!("unable to parse {path:?}: {other:?} is not one of clusters, contexts, users"),
    };
    let (name, key) = match rest.rsplit_once('.') {
        Some((name, key)) if !cx.kubeconfig()?.entries(list).any(|(known, _)| known == rest) => (name, Some(key.to_owned())),
        _ => (rest, None),
    };
    Ok(Some(Place { list, field, name: name.to_owned(), key }))
}

pub async fn set_property(cx: &Context, flags: Flags) -> Result<u8> {
    let [path, value] = flags.names.as_slice() else {
        bail!("Unexpected args: {:?}\nUsage: edgectl config set PROPERTY_NAME PROPERTY_VALUE", flags.names)
    };
    let value = match value.as_str() {
        "true" => Yaml::Bool(true),
        "false" => Yaml::Bool(false),
        other => Yaml::from(other),
    };
    match place(cx, path)? {
        None if path == "current-context" => kubeconfig::edit(&file_of(cx, path, "")?, |config| {
            config.insert(path.as_str().into(), value);
            Ok(())
        })?,
        Some(Place { list, name, key: Some(key), .. }) => set(cx, list, &name, vec![(key, value)])?,
        _ => bail!("unable to set {path:?}: only current-context and the fields of clusters, contexts and users can be set"),
    }
    cx.println(&format!("Property {path:?} set."))?;
    Ok(0)
}

pub async fn unset_property(cx: &Context, flags: Flags) -> Result<u8> {
    let path = one_name(&flags, "unset PROPERTY_NAME")?;
    let place = place(cx, path)?;
    let (list, name) = place.as_ref().map_or((path, ""), |place| (place.list, place.name.as_str()));
    kubeconfig::edit(&file_of(cx, list, name)?, |config| {
        let Some(place) = &place else {
            config.remove(path);
            return Ok(());
        };
        let Some(Yaml::Sequence(entries)) = config.get_mut(list) else { return Ok(()) };
        match &place.key {
            None => entries.retain(|entry| entry["name"].as_str() != Some(name)),
            Some(key) => {
                for entry in entries.iter_mut().filter(|entry| entry["name"].as_str() == Some(name)) {
                    if let Some(fields) = entry[place.field].as_mapping_mut() {
                        fields.remove(key.as_str());
                    }
                }
            }
        }
        Ok(())
    })?;
    cx.println(&format!("Property {path:?} unset."))?;
    Ok(0)
}

/// Takes an entry out of its list; answers the file that had it.
fn remove(cx: &Context, list: &str, name: &str) -> Result<PathBuf> {
    let path = file_of(cx, list, name)?;
    if !cx.kubeconfig()?.entries(list).any(|(known, _)| known == name) {
        bail!("cannot delete {} {name}, not in {}", list.trim_end_matches('s'), path.display());
    }
    kubeconfig::edit(&path, |config| {
        if let Some(Yaml::Sequence(entries)) = config.get_mut(list) {
            entries.retain(|entry| entry["name"].as_str() != Some(name));
        }
        Ok(())
    })?;
    Ok(path)
}

pub async fn delete_cluster(cx: &Context, flags: Flags) -> Result<u8> {
    let name = one_name(&flags, "delete-cluster NAME")?;
    cx.println(&format!("deleted cluster {name} from {}", remove(cx, "clusters", name)?.display()))?;
    Ok(0)
}

pub async fn delete_user(cx: &Context, flags: Flags) -> Result<u8> {
    let name = one_name(&flags, "delete-user NAME")?;
    cx.println(&format!("deleted user {name} from {}", remove(cx, "users", name)?.display()))?;
    Ok(0)
}

pub async fn delete_context(cx: &Context, flags: Flags) -> Result<u8> {
    let name = one_name(&flags, "delete-context NAME")?;
    let path = remove(cx, "contexts", name)?;
    if cx.kubeconfig()?.current_context() == Some(name) {
        cx.note("warning: this removed your active context, use \"edgectl config use-context\" to select a different one");
    }
    cx.println(&format!("deleted context {name} from {}", path.display()))?;
    Ok(0)
}

pub async fn rename_context(cx: &Context, flags: Flags) -> Result<u8> {
    let [from, to] = flags.names.as_slice() else {
        bail!("Unexpected args: {:?}\nUsage: edgectl config rename-context CONTEXT_NAME NEW_NAME", flags.names)
    };
    let known = |name: &str| -> Result<bool> { Ok(cx.kubeconfig()?.entries("contexts").any(|(known, _)| known == name)) };
    if !known(from)? {
        bail!("cannot rename the context {from:?}, it's not in the kubeconfig");
    }
    if known(to)? {
        bail!("cannot rename the context {from:?}, the context {to:?} already exists");
    }
    kubeconfig::edit(&file_of(cx, "contexts", from)?, |config| {
        if let Some(Yaml::Sequence(contexts)) = config.get_mut("contexts") {
            for entry in contexts.iter_mut().filter(|entry| entry["name"].as_str() == Some(from)) {
                entry["name"] = to.as_str().into();
            }
        }
        if config.get("current-context").and_then(Yaml::as_str) == Some(from) {
            config.insert("current-context".into(), to.as_str().into());
        }
        Ok(())
    })?;
    cx.println(&format!("Context {from:?} renamed to {to:?}."))?;
    Ok(0)
}
