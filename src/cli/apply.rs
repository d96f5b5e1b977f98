//! `apply`: makes objects as a manifest wants them, again and again, keeping what others wrote. On the client with the manifest kept in an
//! annotation, or on the server (`--server-side`).

use std::collections::BTreeSet;

use anyhow::{Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::{Map, Value, json};

use super::create::{Shown, is_strict, validation};
use super::manifest::file_flags;
use super::output::{self, DryRun, Form};
use super::select::{self, Pick, Wanted};
use super::{Context, delete, three_way};
use crate::api::selector;
use crate::client::{Patch, Query, Resource, is_not_found, refusal};

/// Where the manifest is kept.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// How often a patch is made anew after somebody else changed the object.
const TRIES_MAX: u32 = 5;

pub const EXAMPLES: &str = "# Make everything in a file, or change it to what the file says
edgectl apply -f web.yaml
# A folder with all that is below it
edgectl apply -R -f manifests/
# What the server would answer, without doing it
edgectl apply -f web.yaml --dry-run=server -o yaml";

file_flags! {
    /// make objects as files want them
    pub struct Flags {
        /// output format
        #[argh(option, short = 'o', arg_name = "format")]
        output: Option<String>,
        /// only show what would be done: on the client, or as the server would answer
        #[argh(option, arg_name = "client|server|none")]
        dry_run: Option<String>,
        /// how to treat fields that the kind does not have
        #[argh(option, arg_name = "strict|warn|ignore|true|false")]
        validate: Option<String>,
        /// let the server merge
        #[argh(switch)]
        server_side: bool,
        /// take fields over that others own, with --server-side
        #[argh(switch)]
        force_conflicts: bool,
        /// delete and create anew what cannot be changed
        #[argh(switch)]
        force: bool,
        /// overwrite what others changed; always done
        #[argh(option, arg_name = "true|false")]
        overwrite: Option<String>,
        /// name that owns the fields
        #[argh(option)]
        field_manager: Option<String>,
        /// apply only the objects with these labels
        #[argh(option, short = 'l')]
        selector: Option<String>,
        /// delete what was applied once and is not in the files; with -l or --all
        #[argh(switch)]
        prune: bool,
        /// prune all that was applied, whatever its labels
        #[argh(switch)]
        all: bool,
        /// kinds to prune, as core/v1/ConfigMap; may be repeated
        #[argh(option)]
        prune_allowlist: Vec<String>,
        /// what becomes of what belongs to objects that are pruned
        #[argh(option, arg_name = "background|orphan|foreground")]
        cascade: Option<String>,
        /// apply this subresource, with --server-side
        #[argh(option)]
        subresource: Option<String>,
        /// keep managedFields in JSON and YAML
        #[argh(switch)]
        show_managed_fields: bool,
    }
}

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    if flags.filename.is_empty() && flags.kustomize.is_none() {
        bail!("must specify one of -f and -k");
    }
    let _always_overwritten = &flags.overwrite;
    let form = Form::parse(flags.output.as_deref(), None)?;
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    if flags.server_side && dry_run == DryRun::Client {
        bail!("--dry-run=client doesn't work with --server-side (did you mean --dry-run=server instead?)");
    }
    if flags.force_conflicts && !flags.server_side {
        bail!("--force-conflicts only works with --server-side");
    }
    let sources = flags.sources(is_strict(&flags.validate));
    let picks = select::picks(cx, &Wanted { sources, ..Wanted::default() }).await?;
    let selector = selector::Labels::parse(flags.selector.as_deref().unwrap_or_default()).map_err(|error| anyhow!("{error:#}"))?;
    let prune = Prune::new(cx, &flags).await?;
    let mut kept = vec![];
    let mut namespaces = BTreeSet::new();
    let mut shown = Shown::new(cx, &form, flags.show_managed_fields);
    let is_selected = |pick: &Pick| match pick {
        Pick::One { document: Some(document), .. } => selector.matches(&document.object["metadata"]["labels"]),
        _ => false,
    };
    let picks: Vec<Pick> = picks.into_iter().filter(is_selected).collect();
    if picks.is_empty() {
        bail!("no objects passed to apply");
    }
    for pick in picks {
        let Pick::One { resource, namespace, name, document: Some(document) } = pick else { continue };
        if name.is_empty() {
            let generates = document.object["metadata"]["generateName"].is_string();
            cx.fail(&match generates {
                true => anyhow!(
                    "from {}: cannot use generate name with apply",
                    document.object["metadata"]["generateName"].as_str().unwrap_or_default()
                ),
                false => anyhow!("error when applying {:?}: resource name may not be empty", document.source),
            });
            continue;
        }
        let one = One { cx, flags: &flags, dry_run, resource: &resource, namespace: &namespace, name: &name };
        let done =
            if flags.server_side { one.on_server(&document.object).await } else { one.on_client(&document.object, &document.source).await };
        match done {
            Ok((object, operation)) => {
                kept.push(object["metadata"]["uid"].as_str().unwrap_or_default().to_owned());
                namespaces.insert(namespace);
                shown.object(&resource, object, operation, dry_run)?;
            }
            Err(error) if refusal(&error).is_some() || error.is::<Conflict>() => cx.fail(&error),
            Err(error) => return Err(error),
        }
    }
    // Who could not be applied is not known to be wanted no more.
    if let Some(prune) = prune.filter(|_| !cx.failed.get()) {
        prune.run(cx, &kept, &namespaces, dry_run, &mut shown).await?;
    }
    shown.end_as_list()?;
    Ok(0)
}

struct One<'a> {
    cx: &'a Context,
    flags: &'a Flags,
    dry_run: DryRun,
    resource: &'a Resource,
    namespace: &'a str,
    name: &'a str,
}

impl One<'_> {
    fn query(&self, manager: &str) -> Result<Query> {
        let manager = self.flags.field_manager.as_deref().unwrap_or(manager);
        let query = Query::new().with("fieldManager", manager).with("fieldValidation", validation(&self.flags.validate)?);
        Ok(query.with("dryRun", self.dry_run.query()))
    }

    async fn on_server(&self, object: &Value) -> Result<(Value, &'static str)> {
        let mut path = self.resource.path(self.namespace, self.name);
        if let Some(subresource) = &self.flags.subresource {
            path = format!("{path}/{subresource}");
        }
        let query = self.query("kubectl")?.with("force", self.flags.force_conflicts);
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        match self.cx.client()?.patch(&path, &query, Patch::Apply, &object).await {
            Ok(object) => Ok((object, "serverside-applied")),
            Err(error) => match refusal(&error) {
                Some(refusal) if refusal.code == 409 => {
                    let mut message = refusal.message.clone();
                    message += "\nPlease review the fields above--they currently have other managers. Here\nare the ways you \
                        can resolve this warning:\n\
                        * If you intend to manage all of these fields, please re-run the apply\n  command with the `--force-conflicts` \
                        flag.\n\
                        * If you do not intend to manage all of the fields, please edit your\n  manifest to remove references to the \
                        fields that should keep their\n  current managers.\n\
                        * You may co-own fields by updating your manifest to match the existing\n  value; in this case, you'll become \
                        the manager if the other manager(s)\n  stop managing the field (remove it from their configuration).\n\
                        See https://kubernetes.io/docs/reference/using-api/server-side-apply/#conflicts";
                    Err(anyhow!(Conflict(message)))
                }
                _ => Err(error),
            },
        }
    }

    async fn on_client(&self, object: &Value, source: &str) -> Result<(Value, &'static str)> {
        let client = self.cx.client()?;
        let path = self.resource.path(self.namespace, self.name);
        let wanted = with_last_applied(object);
        let query = self.query("kubectl-client-side-apply")?;
        let mut tries = 0;
        loop {
            let live = match client.get(&path).await {
                Ok(live) => live,
                Err(error) if is_not_found(&error) => {
                    if self.dry_run == DryRun::Client {
                        return Ok((wanted, "created"));
                    }
                    let created = client.create(&self.resource.list_path(Some(self.namespace)), &query, &wanted).await;
                    return Ok((created.map_err(|error| in_file(error, "creating", source))?, "created"));
                }
                Err(error) => return Err(error),
            };
            let kept = live["metadata"]["annotations"][LAST_APPLIED].as_str();
            if kept.is_none() && tries == 0 {
                self.cx.note(&format!(
                    "Warning: resource {}/{} is missing the {LAST_APPLIED} annotation which is required by edgectl apply. edgectl apply \
                        should only be used on resources created declaratively by either edgectl create --save-config or edgectl apply. \
                        The missing annotation will be patched automatically.",
                    self.resource.plural, self.name
                ));
            }
            let last = kept.and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null);
            let (kind, mut patch) =
                three_way::patch(&self.resource.api_version(), &self.resource.kind, &last, &without_nulls(&wanted), &live);
            drop_server_fields(&mut patch);
            if patch.as_object().is_some_and(Map::is_empty) {
                return Ok((live, "unchanged"));
            }
            if self.dry_run == DryRun::Client {
                return Ok((wanted, "configured"));
            }
            match client.patch(&path, &query, kind, &patch).await {
                Ok(object) => return Ok((object, "configured")),
                Err(error) if refusal(&error).is_some_and(|refusal| refusal.reason == "Conflict") && tries < TRIES_MAX => tries += 1,
                Err(error)
                    if self.flags.force
                        && refusal(&error).is_some_and(|refusal| matches!(refusal.reason.as_str(), "Invalid" | "Conflict")) =>
                {
                    client.delete(&path, &delete::options(None, -1, DryRun::None)?).await?;
                    delete::gone(self.cx, self.resource, self.namespace, self.name, None, None).await?;
                    let created = client.create(&self.resource.list_path(Some(self.namespace)), &query, &wanted).await?;
                    return Ok((created, "configured"));
                }
                Err(error) => return Err(told_with_patch(error, self.resource, self.namespace, self.name, &patch, source)),
            }
        }
    }
}

/// Fields that others own; what to do about it is said with it.
#[derive(Debug)]
struct Conflict(String);

impl std::fmt::Display for Conflict {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Conflict {}

/// What `--prune` takes away: objects that were applied once and are in the manifests no more.
struct Prune {
    resources: Vec<Resource>,
    selector: String,
    cascade: Option<String>,
}

/// The kinds that are pruned unless others are named, as kubectl has them.
const PRUNED: [(&str, &str); 16] = [
    ("v1", "ConfigMap"),
    ("v1", "Endpoints"),
    ("v1", "Namespace"),
    ("v1", "PersistentVolumeClaim"),
    ("v1", "PersistentVolume"),
    ("v1", "Pod"),
    ("v1", "ReplicationController"),
    ("v1", "Secret"),
    ("v1", "Service"),
    ("batch/v1", "Job"),
    ("batch/v1", "CronJob"),
    ("networking.k8s.io/v1", "Ingress"),
    ("apps/v1", "DaemonSet"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "ReplicaSet"),
    ("apps/v1", "StatefulSet"),
];

impl Prune {
    async fn new(cx: &Context, flags: &Flags) -> Result<Option<Self>> {
        if flags.all && flags.selector.is_some() {
            bail!("cannot set --all and --selector at the same time");
        }
        if !flags.prune {
            return Ok(None);
        }
        if !flags.all && flags.selector.is_none() {
            bail!(
                "all resources selected for prune without explicitly passing --all. To prune all resources, pass the --all flag. If you did \
                    not mean to prune all resources, specify a label selector"
            );
        }
        let mut resources = vec![];
        let mut kinds: Vec<(String, String)> = vec![];
        for named in flags.prune_allowlist.iter().flat_map(|named| named.split(',')) {
            let parts: Vec<&str> = named.split('/').collect();
            match parts.as_slice() {
                ["core", version, kind] => kinds.push(((*version).to_owned(), (*kind).to_owned())),
                [group, version, kind] => kinds.push((format!("{group}/{version}"), (*kind).to_owned())),
                _ => bail!("invalid GroupVersionKind format: {named}, please follow <group/version/kind>"),
            }
        }
        if kinds.is_empty() {
            kinds = PRUNED.iter().map(|(version, kind)| ((*version).to_owned(), (*kind).to_owned())).collect();
        }
        for (version, kind) in kinds {
            let resource = cx.resolver()?.resolve_kind(&version, &kind).await?;
            resources.push(resource.ok_or_else(|| anyhow!("no matches for kind {kind:?} in version {version:?}"))?);
        }
        Ok(Some(Self { resources, selector: flags.selector.clone().unwrap_or_default(), cascade: flags.cascade.clone() }))
    }

    async fn run(
        &self,
        cx: &Context,
        kept: &[String],
        namespaces: &BTreeSet<String>,
        dry_run: DryRun,
        shown: &mut Shown<'_>,
    ) -> Result<()> {
        let query = Query::new().with("labelSelector", &self.selector);
        let options = delete::options(self.cascade.as_deref(), -1, dry_run)?;
        let in_namespaces: Vec<Option<&str>> = namespaces.iter().filter(|name| !name.is_empty()).map(|name| Some(name.as_str())).collect();
        let (namespaced, cluster_wide): (Vec<_>, Vec<_>) = self.resources.iter().partition(|resource| resource.namespaced);
        let places = in_namespaces.iter().flat_map(|place| namespaced.iter().map(move |resource| (*resource, *place)));
        for (resource, place) in places.chain(cluster_wide.iter().map(|resource| (*resource, None))) {
            let mut list = cx.client()?.list(&resource.list_path(place), &query).await?;
            for mut object in list["items"].as_array_mut().map(std::mem::take).unwrap_or_default() {
                let metadata = &object["metadata"];
                let applied = metadata["annotations"][LAST_APPLIED].is_string();
                if !applied || kept.iter().any(|uid| metadata["uid"] == uid.as_str()) || !metadata["deletionTimestamp"].is_null() {
                    continue;
                }
                let name = metadata["name"].as_str().unwrap_or_default().to_owned();
                if dry_run != DryRun::Client {
                    cx.client()?.delete(&resource.path(place.unwrap_or_default(), &name), &options).await?;
                }
                object["kind"] = Value::from(&*resource.kind);
                object["apiVersion"] = resource.api_version().into();
                shown.object(resource, object, "pruned", dry_run)?;
            }
        }
        Ok(())
    }
}

/// What is and what would be after an `apply` of the object, which is not done.
pub async fn foreseen(
    cx: &Context,
    resource: &Resource,
    namespace: &str,
    name: &str,
    object: &Value,
    manager: Option<&str>,
) -> Result<(Option<Value>, Value)> {
    let client = cx.client()?;
    let path = resource.path(namespace, name);
    let query = Query::new().with("fieldManager", manager.unwrap_or("kubectl-client-side-apply")).with("dryRun", "All");
    let live = match client.get(&path).await {
        Ok(live) => live,
        Err(error) if is_not_found(&error) => {
            return Ok((None, client.create(&resource.list_path(Some(namespace)), &query, object).await?));
        }
        Err(error) => return Err(error),
    };
    let last = live["metadata"]["annotations"][LAST_APPLIED].as_str().and_then(|text| serde_json::from_str(text).ok());
    let mut wanted = without_nulls(object);
    // The map stays even if the manifest has none: what apply keeps is in it.
    if !wanted["metadata"]["annotations"].is_object() {
        wanted["metadata"]["annotations"] = json!({});
    }
    let (kind, mut patch) = three_way::patch(&resource.api_version(), &resource.kind, &last.unwrap_or(Value::Null), &wanted, &live);
    drop_server_fields(&mut patch);
    // Asked even if nothing would change: the server may have something to say about the manifest.
    let after = client.patch(&path, &query, kind, &patch).await?;
    Ok((Some(live), after))
}

/// The same of an `apply --server-side`.
pub async fn foreseen_by_server(
    cx: &Context,
    resource: &Resource,
    namespace: &str,
    name: &str,
    object: &Value,
    manager: Option<&str>,
    force: bool,
) -> Result<(Option<Value>, Value)> {
    let client = cx.client()?;
    let path = resource.path(namespace, name);
    let query = Query::new().with("fieldManager", manager.unwrap_or("kubectl")).with("force", force).with("dryRun", "All");
    let live = match client.get(&path).await {
        Ok(live) => Some(live),
        Err(error) if is_not_found(&error) => None,
        Err(error) => return Err(error),
    };
    Ok((live, client.patch(&path, &query, Patch::Apply, object).await?))
}

file_flags! {
    /// show the manifests that apply keeps with objects
    pub struct LastFlags {
        #[argh(positional)]
        names: Vec<String>,
        /// all objects of the kinds, in the namespace
        #[argh(switch)]
        all: bool,
        /// label selector
        #[argh(option, short = 'l', default = "String::new()")]
        selector: String,
        /// yaml or json
        #[argh(option, short = 'o', arg_name = "form", default = "\"yaml\".to_owned()")]
        output: String,
    }
}

pub async fn view_last(cx: &Context, flags: LastFlags) -> Result<u8> {
    let form = Form::parse(Some(&flags.output), None)?;
    if !matches!(form, Form::Json | Form::Yaml) {
        bail!("Unexpected -o output mode: {}, the flag 'output' must be one of yaml|json", flags.output);
    }
    let wanted =
        Wanted { names: &flags.names, sources: flags.sources(false), selector: &flags.selector, all: flags.all, ..Wanted::default() };
    for found in select::objects(cx, &wanted).await? {
        let Some(kept) = found.object["metadata"]["annotations"][LAST_APPLIED].as_str() else {
            bail!("no last-applied-configuration annotation found on resource: {}", found.name);
        };
        let object = serde_json::from_str(kept).map_err(|error| anyhow!("the manifest kept with {} is no JSON: {error}", found.name))?;
        cx.print(&output::render(&form, &object, true)?)?;
    }
    Ok(0)
}

fn in_file(error: anyhow::Error, doing: &str, source: &str) -> anyhow::Error {
    match refusal(&error) {
        Some(refusal) => anyhow!(refusal.clone().when(doing, source)),
        None => error,
    }
}

/// A refused patch is shown, so that one sees what was tried.
fn told_with_patch(error: anyhow::Error, resource: &Resource, namespace: &str, name: &str, patch: &Value, source: &str) -> anyhow::Error {
    let Some(refusal) = refusal(&error).filter(|refusal| refusal.reason != "Invalid") else { return error };
    let mut refusal = refusal.clone();
    refusal.message = format!(
        "error when applying patch:\n{patch}\nto:\nResource: \"{}, Resource={}\", GroupVersionKind: \"{}, Kind={}\"\nName: {name:?}, \
            Namespace: {namespace:?}\nfor: {source:?}: error when patching {source:?}: {}",
        resource.api_version(),
        resource.plural,
        resource.api_version(),
        resource.kind,
        refusal.message
    );
    anyhow!(refusal)
}

/// The object with itself kept in its annotation.
pub fn with_last_applied(object: &Value) -> Value {
    let mut bare = object.clone();
    if !bare["metadata"].is_object() {
        bare["metadata"] = json!({});
    }
    match &mut bare["metadata"]["annotations"] {
        Value::Object(annotations) => {
            annotations.remove(LAST_APPLIED);
        }
        other => *other = json!({}),
    }
    // kubectl writes what means something in HTML escaped, and so its annotation is told apart from none of ours.
    let text = bare.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    let mut object = bare;
    object["metadata"]["annotations"][LAST_APPLIED] = format!("{text}\n").into();
    object
}

/// Manifests that came out of a server often carry nulls that say nothing.
fn without_nulls(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|key, value| !(key == "creationTimestamp" && value.is_null()));
    }
    object
}

/// What a manifest may carry of the server's own and no patch can change.
fn drop_server_fields(patch: &mut Value) {
    let Some(fields) = patch.as_object_mut() else { return };
    // The manifest may be of another version of the same kind.
    fields.remove("apiVersion");
    fields.remove("kind");
    if let Some(Value::Object(metadata)) = fields.get_mut("metadata") {
        metadata.remove("creationTimestamp");
        metadata.remove("managedFields");
        if metadata.is_empty() {
            fields.remove("metadata");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_is_kept_without_itself() {
        let object = json!({"kind": "Pod", "metadata": {"name": "a", "annotations": {"x": "<y>", LAST_APPLIED: "old"}}});
        let kept = with_last_applied(&object);
        let text = kept["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap();
        assert_eq!(text, "{\"kind\":\"Pod\",\"metadata\":{\"annotations\":{\"x\":\"\\u003cy\\u003e\"},\"name\":\"a\"}}\n");
        let bare = with_last_applied(&json!({"kind": "Pod"}));
        assert_eq!(bare["metadata"]["annotations"][LAST_APPLIED], "{\"kind\":\"Pod\",\"metadata\":{\"annotations\":{}}}\n");
    }
}
