//! `version`, `cluster-info`, `api-resources`, `api-versions`: what kind of cluster this is.

use anyhow::{Result, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use super::Context;
use super::output::{self, Form};
use super::tabwriter::Tabwriter;
use crate::client::{Query, Resource};

/// print the client and server version
#[derive(FromArgs, ArgsInfo)]
pub struct VersionFlags {
    /// only the client's; no server is asked
    #[argh(switch)]
    client: bool,
    /// output format: yaml or json
    #[argh(option, short = 'o', arg_name = "form")]
    output: Option<String>,
}

pub async fn version(cx: &Context, flags: VersionFlags) -> Result<u8> {
    let own = concat!("v", env!("CARGO_PKG_VERSION"));
    let (major, minor) = (env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"));
    let platform = format!("linux/{}", std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"));
    let server = if flags.client { Ok(None) } else { server_version(cx).await.map(Some) };
    let known = server.as_ref().ok().and_then(Option::as_ref);
    match flags.output.as_deref() {
        None => {
            cx.println(&format!("Client Version: {own}"))?;
            if let Some(server) = known {
                cx.println(&format!("Server Version: {}", server["gitVersion"].as_str().unwrap_or_default()))?;
            }
        }
        Some("yaml" | "json") => {
            let mut versions = json!({"clientVersion": {"major": major, "minor": minor, "gitVersion": own, "platform": platform}});
            if let Some(server) = known {
                versions["serverVersion"] = server.clone();
            }
            cx.print(&output::render(&Form::parse(flags.output.as_deref(), None)?, &versions, true)?)?;
        }
        Some(_) => bail!("--output must be 'yaml' or 'json'"),
    }
    server.map(|_| 0)
}

async fn server_version(cx: &Context) -> Result<Value> {
    cx.client()?.get("/version").await
}

/// display addresses of the control plane and of services that say they belong to the cluster
#[derive(FromArgs, ArgsInfo)]
pub struct InfoFlags {}

pub async fn info(cx: &Context, _: InfoFlags) -> Result<u8> {
    let client = cx.client()?;
    let server = cx.server()?;
    let query = Query::new().with("labelSelector", "kubernetes.io/cluster-service=true");
    let services = client.list("/api/v1/namespaces/kube-system/services", &query).await?;
    cx.println(&format!("Kubernetes control plane is running at {server}"))?;
    for service in services["items"].as_array().into_iter().flatten() {
        let metadata = &service["metadata"];
        let name = metadata["name"].as_str().unwrap_or_default();
        let title = metadata["labels"]["kubernetes.io/name"].as_str().unwrap_or(name);
        let ingress = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str();
        let port = &service["spec"]["ports"][0];
        let link = match ingress {
            Some(ip) => format!("http://{ip}:{}", port["port"]),
            None => {
                let scheme = if port["port"] == 443 { "https:" } else { "" };
                let port_name = port["name"].as_str().map(|name| format!(":{name}")).unwrap_or_default();
                let suffix = if scheme.is_empty() && port_name.is_empty() { String::new() } else { port_name };
                format!("{server}/api/v1/namespaces/kube-system/services/{scheme}{name}{suffix}/proxy")
            }
        };
        cx.println(&format!("{title} is running at {link}"))?;
    }
    cx.println("\nTo further debug and diagnose cluster problems, use 'edgectl cluster-info dump'.")?;
    Ok(0)
}

/// print nodes, events and workloads of the cluster as JSON
#[derive(FromArgs, ArgsInfo)]
pub struct DumpFlags {
    /// namespaces to dump, parted by commas; kube-system and the current one if not given
    #[argh(option)]
    namespaces: Option<String>,
    /// all namespaces
    #[argh(switch, short = 'A')]
    all_namespaces: bool,
    /// output format
    #[argh(option, short = 'o', arg_name = "format", default = "\"json\".to_owned()")]
    output: String,
}

pub async fn dump(cx: &Context, flags: DumpFlags) -> Result<u8> {
    let form = Form::parse(Some(&flags.output), None)?;
    let client = cx.client()?;
    let mut paths = vec!["/api/v1/nodes".to_owned()];
    let namespaces: Vec<String> = if flags.all_namespaces {
        let list = client.list("/api/v1/namespaces", &Query::new()).await?;
        list["items"].as_array().into_iter().flatten().filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned)).collect()
    } else {
        let listed = flags.namespaces.as_deref().unwrap_or_default();
        let own = cx.namespace()?;
        if listed.is_empty() { vec!["kube-system".into(), own] } else { listed.split(',').map(str::to_owned).collect() }
    };
    for namespace in &namespaces {
        for resource in ["events", "replicationcontrollers", "services"] {
            paths.push(format!("/api/v1/namespaces/{namespace}/{resource}"));
        }
        for resource in ["daemonsets", "deployments", "replicasets"] {
            paths.push(format!("/apis/apps/v1/namespaces/{namespace}/{resource}"));
        }
        paths.push(format!("/api/v1/namespaces/{namespace}/pods"));
    }
    for (index, path) in paths.iter().enumerate() {
        cx.print(&output::render(&form, &client.list(path, &Query::new()).await?, index == 0)?)?;
    }
    Ok(0)
}

/// print the resources that the server has
#[derive(FromArgs, ArgsInfo)]
pub struct ResourcesFlags {
    /// only this group
    #[argh(option)]
    api_group: Option<String>,
    /// only those of namespaces, or only those of the cluster
    #[argh(option, arg_name = "true|false")]
    namespaced: Option<String>,
    /// only those with all of these verbs, as list,watch
    #[argh(option)]
    verbs: Vec<String>,
    /// only those of all these categories
    #[argh(option)]
    categories: Vec<String>,
    /// output format: wide or name
    #[argh(option, short = 'o', arg_name = "form")]
    output: Option<String>,
    /// sort by name or kind
    #[argh(option)]
    sort_by: Option<String>,
    /// print no header line
    #[argh(switch)]
    no_headers: bool,
    /// accepted; nothing is kept from one command to the next
    #[argh(switch)]
    cached: bool,
}

pub async fn resources(cx: &Context, flags: ResourcesFlags) -> Result<u8> {
    let _nothing_is_cached = flags.cached;
    let words = |list: &[String]| -> Vec<String> { list.iter().flat_map(|words| words.split(',')).map(str::to_owned).collect() };
    let (verbs, categories) = (words(&flags.verbs), words(&flags.categories));
    let mut rows: Vec<Resource> = vec![];
    for row in cx.resolver()?.served().await? {
        let fits = !row.verbs.is_empty()
            && flags.api_group.as_deref().is_none_or(|group| row.group == group)
            && flags.namespaced.as_deref().is_none_or(|namespaced| row.namespaced == (namespaced == "true"))
            && verbs.iter().all(|verb| row.has_verb(verb))
            && categories.iter().all(|category| row.categories.iter().any(|known| known == category));
        // The first version of a group that has a resource is the preferred one.
        if fits && !rows.iter().any(|known| known.group == row.group && known.plural == row.plural) {
            rows.push(row.clone());
        }
    }
    match flags.sort_by.as_deref() {
        None => rows.sort_by(|a, b| (&a.group, &a.plural).cmp(&(&b.group, &b.plural))),
        Some("name") => rows.sort_by(|a, b| a.plural.cmp(&b.plural)),
        Some("kind") => rows.sort_by(|a, b| a.kind.cmp(&b.kind)),
        Some(_) => bail!("--sort-by accepts only name or kind"),
    }
    let mut writer = Tabwriter::for_tables();
    let wide = match flags.output.as_deref() {
        None | Some("") => false,
        Some("wide") => true,
        Some("name") => {
            for row in &rows {
                cx.println(&row.qualified())?;
            }
            return Ok(0);
        }
        Some(other) => bail!("--output {other} is not available"),
    };
    if !flags.no_headers {
        writer.write(if wide {
            "NAME\tSHORTNAMES\tAPIVERSION\tNAMESPACED\tKIND\tVERBS\tCATEGORIES\n"
        } else {
            "NAME\tSHORTNAMES\tAPIVERSION\tNAMESPACED\tKIND\n"
        });
    }
    for row in &rows {
        let mut line = format!("{}\t{}\t{}\t{}\t{}", row.plural, row.short_names.join(","), row.api_version(), row.namespaced, row.kind);
        if wide {
            line += &format!("\t{}\t{}", row.verbs.join(","), row.categories.join(","));
        }
        writer.write(&format!("{line}\n"));
    }
    cx.print(&writer.flush())?;
    Ok(0)
}

/// print the versions of the API that the server has
#[derive(FromArgs, ArgsInfo)]
pub struct VersionsFlags {}

pub async fn versions(cx: &Context, _: VersionsFlags) -> Result<u8> {
    let groups = cx.client()?.get("/apis").await?;
    let core = cx.client()?.get("/api").await?;
    let mut versions: Vec<String> =
        core["versions"].as_array().into_iter().flatten().filter_map(|version| version.as_str().map(str::to_owned)).collect();
    for group in groups["groups"].as_array().into_iter().flatten() {
        versions.extend(
            group["versions"].as_array().into_iter().flatten().filter_map(|version| version["groupVersion"].as_str().map(str::to_owned)),
        );
    }
    versions.sort();
    cx.println(&versions.join("\n"))?;
    Ok(0)
}
