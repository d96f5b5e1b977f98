//! Which objects a command line means: `pods`, `po,svc`, `pod web-1`, `deploy/web svc/web`, `all`, `-f file`, `-l app=web`.
//! It reads and lists; what happens to the objects is the verb's affair.

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

use super::Context;
use super::manifest::{self, Document, Sources};
use crate::client::discovery::Unknown;
use crate::client::{Query, Refusal, Resource, is_not_found, refusal};

/// What the command line says of the objects.
#[derive(Debug, Default, Clone)]
pub struct Wanted<'a> {
    pub names: &'a [String],
    pub sources: Sources<'a>,
    pub selector: &'a str,
    pub field_selector: &'a str,
    /// `--all`: every object of the types, without which a verb that changes them insists on names.
    pub all: bool,
    pub all_namespaces: bool,
    /// A type alone means all of its objects, as for `get`.
    pub types_suffice: bool,
}

/// One object, or all of one type.
#[derive(Debug, Clone)]
pub enum Pick {
    One {
        resource: Resource,
        namespace: String,
        name: String,
        document: Option<Document>,
    },
    /// In one namespace, or in all (or of the cluster) if there is none.
    List {
        resource: Resource,
        namespace: Option<String>,
    },
}

impl Pick {
    pub fn resource(&self) -> &Resource {
        match self {
            Self::One { resource, .. } | Self::List { resource, .. } => resource,
        }
    }

    /// The path of the object or of the list.
    pub fn path(&self) -> String {
        match self {
            Self::One { resource, namespace, name, .. } => resource.path(namespace, name),
            Self::List { resource, namespace } => resource.list_path(namespace.as_deref()),
        }
    }
}

/// An object that was read, and where it came from.
#[derive(Debug, Clone)]
pub struct Found {
    pub resource: Resource,
    pub namespace: String,
    pub name: String,
    /// As the server has it.
    pub object: Value,
}

impl Found {
    pub fn path(&self) -> String {
        self.resource.path(&self.namespace, &self.name)
    }
}

/// Finds out what the command line means, without reading an object.
pub async fn picks(cx: &Context, wanted: &Wanted<'_>) -> Result<Vec<Pick>> {
    if !wanted.sources.filenames.is_empty() || wanted.sources.kustomize.is_some() {
        if !wanted.names.is_empty() {
            bail!("when paths, URLs, or stdin is provided as input, you may not specify resource arguments as well");
        }
        let mut picks = vec![];
        for document in manifest::read(cx, &wanted.sources).await? {
            picks.push(locate(cx, document).await?);
        }
        return Ok(picks);
    }
    let Some(first) = wanted.names.first() else {
        bail!(
            "You must provide one or more resources by argument or filename.\nExample resource specifications include:\n   '-f \
                rsrc.yaml'\n   '--filename=rsrc.json'\n   '<resource> <name>'\n   '<resource>'"
        );
    };
    let selects = !wanted.selector.is_empty() || !wanted.field_selector.is_empty();
    if first.contains('/') {
        let mut picks = vec![];
        for word in wanted.names {
            let Some((kind, name)) = word.split_once('/') else {
                bail!(
                    "there is no need to specify a resource type as a separate argument when passing arguments in resource/name form \
                        (e.g. 'edgectl get resource/<resource_name>' instead of 'edgectl get resource resource/<resource_name>'"
                );
            };
            if kind.is_empty() || name.is_empty() {
                bail!("arguments in resource/name form must have a single resource and name");
            }
            if name.contains('/') {
                bail!("arguments in resource/name form may not have more than one slash");
            }
            if selects || wanted.all {
                bail!("name cannot be provided when a selector is specified");
            }
            for kind in kind.split(',') {
                picks.push(one(cx, cx.resolver()?.resolve(kind).await?, name, wanted.all_namespaces)?);
            }
        }
        return Ok(picks);
    }
    let resources = types(cx, first).await?;
    let names = &wanted.names[1..];
    if names.iter().any(|word| word.contains('/')) {
        bail!(
            "there is no need to specify a resource type as a separate argument when passing arguments in resource/name form (e.g. \
                'edgectl get resource/<resource_name>' instead of 'edgectl get resource resource/<resource_name>'"
        );
    }
    let mut picks = vec![];
    for resource in resources {
        if names.is_empty() {
            if !wanted.types_suffice && !selects && !wanted.all {
                bail!("resource(s) were provided, but no name was specified");
            }
            let namespace = if wanted.all_namespaces || !resource.namespaced { None } else { Some(cx.namespace()?) };
            picks.push(Pick::List { resource, namespace });
            continue;
        }
        if selects || wanted.all {
            bail!("name cannot be provided when a selector is specified");
        }
        for name in names {
            picks.push(one(cx, resource.clone(), name, wanted.all_namespaces)?);
        }
    }
    Ok(picks)
}

fn one(cx: &Context, resource: Resource, name: &str, all_namespaces: bool) -> Result<Pick> {
    if all_namespaces && resource.namespaced {
        bail!("a resource cannot be retrieved by name across all namespaces");
    }
    let namespace = if resource.namespaced { cx.namespace()? } else { String::new() };
    Ok(Pick::One { resource, namespace, name: name.to_owned(), document: None })
}

/// The resources that one word names: `po,svc` several, `all` a whole category.
pub async fn types(cx: &Context, word: &str) -> Result<Vec<Resource>> {
    let resolver = cx.resolver()?;
    let mut resources = vec![];
    for part in word.split(',') {
        match resolver.resolve(part).await {
            Ok(resource) => resources.push(resource),
            Err(error) if error.is::<Unknown>() => {
                let members = resolver.category(part).await?;
                if members.is_empty() {
                    return Err(error);
                }
                resources.extend(members);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(resources)
}

/// Finds the resource and the namespace of a manifest's object.
pub async fn locate(cx: &Context, mut document: Document) -> Result<Pick> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &mut document.object;
    let (version, kind, name) = (text(&object["apiVersion"]), text(&object["kind"]), text(&object["metadata"]["name"]));
    let Some(resource) = cx.resolver()?.resolve_kind(&version, &kind).await? else {
        let namespace = text(&object["metadata"]["namespace"]);
        bail!(
            "resource mapping not found for name: {name:?} namespace: {namespace:?} from {:?}: no matches for kind {kind:?} in version \
                {version:?}\nensure CRDs are installed first",
            document.source
        );
    };
    if !resource.namespaced {
        return Ok(Pick::One { resource, namespace: String::new(), name, document: Some(document) });
    }
    let own = text(&object["metadata"]["namespace"]);
    if let Some(asked) = cx.namespace_flag().filter(|asked| !own.is_empty() && *asked != own) {
        bail!(
            "the namespace from the provided object {own:?} does not match the namespace {asked:?}. You must pass '--namespace={own}' \
                to perform this operation."
        );
    }
    let namespace = if own.is_empty() { cx.namespace()? } else { own };
    if object["metadata"].is_null() {
        object["metadata"] = serde_json::json!({});
    }
    if object["metadata"].is_object() {
        object["metadata"]["namespace"] = namespace.as_str().into();
    }
    Ok(Pick::One { resource, namespace, name, document: Some(document) })
}

/// Reads every object that is meant. What cannot be read is told and counted, and the rest goes on.
pub async fn objects(cx: &Context, wanted: &Wanted<'_>) -> Result<Vec<Found>> {
    let query = Query::new().with("labelSelector", wanted.selector).with("fieldSelector", wanted.field_selector);
    let mut found = vec![];
    for pick in picks(cx, wanted).await? {
        let path = pick.path();
        match pick {
            Pick::One { resource, namespace, name, document } => match cx.client()?.get(&path).await {
                Ok(object) => found.push(Found { resource, namespace, name, object }),
                Err(error) if refusal(&error).is_some() => cx.fail(&in_source(error, "retrieving", document.as_ref())),
                Err(error) => return Err(error),
            },
            Pick::List { resource, .. } => {
                let list = cx.client()?.list(&path, &query).await;
                let mut list = list.map_err(|error| unlisted(error, &resource, wanted.selector, wanted.field_selector))?;
                for object in list["items"].as_array_mut().map(std::mem::take).unwrap_or_default() {
                    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
                    found.push(Found { resource: resource.clone(), namespace: text("namespace"), name: text("name"), object });
                }
            }
        }
    }
    Ok(found)
}

/// Says of a list that was refused what was asked for.
pub fn unlisted(error: anyhow::Error, resource: &Resource, selector: &str, fields: &str) -> anyhow::Error {
    let Some(refusal) = refusal(&error).filter(|refusal| matches!(refusal.reason.as_str(), "BadRequest" | "NotFound")) else {
        return error;
    };
    let which = match (selector, fields) {
        ("", "") => return error,
        _ => format!("that match label selector {selector:?}, field selector {fields:?}"),
    };
    let message =
        format!("Unable to find \"{}/{}, Resource={}\" {which}: {}", resource.group, resource.version, resource.plural, refusal.message);
    anyhow!(Refusal { message, ..refusal.clone() })
}

/// Says that the namespace is missing, if that is why an object is.
pub async fn unfound(cx: &Context, error: anyhow::Error, namespace: &str) -> anyhow::Error {
    if !is_not_found(&error) || namespace.is_empty() {
        return error;
    }
    match cx.client() {
        Ok(client) => match client.get(&format!("/api/v1/namespaces/{namespace}")).await {
            Err(reason) if is_not_found(&reason) => reason,
            _ => error,
        },
        Err(_) => error,
    }
}

/// Says in a refusal from which manifest the object came.
pub fn in_source(error: anyhow::Error, doing: &str, document: Option<&Document>) -> anyhow::Error {
    match (refusal(&error), document) {
        (Some(refusal), Some(document)) => anyhow!(refusal.clone().when(doing, &document.source)),
        _ => error,
    }
}
