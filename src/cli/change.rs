//! `scale` and `patch`: one small change to objects that are there already. What may be changed is for the server to say.

use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use super::create::Shown;
use super::manifest::file_flags;
use super::output::{DryRun, Form};
use super::select::{self, Wanted};
use super::{Context, duration, follow};
use crate::api::decode;
use crate::client::{Patch, Query, refusal};

pub const SCALE_EXAMPLES: &str = "edgectl scale deployment web --replicas=3
edgectl scale --current-replicas=2 --replicas=3 deployment/web
edgectl scale --replicas=0 deployment -l app=web";

file_flags! {
    /// set how many pods a deployment, replica set, replication controller or stateful set has
    pub struct ScaleFlags {
        #[argh(positional)]
        names: Vec<String>,
        /// how many pods there shall be
        #[argh(option)]
        replicas: Option<i64>,
        /// change only if there are so many now
        #[argh(option, default = "-1")]
        current_replicas: i64,
        /// change only an object of this version
        #[argh(option)]
        resource_version: Option<String>,
        /// wait so long until it is done; 0 is not at all
        #[argh(option, default = "\"0s\".to_owned()")]
        timeout: String,
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

pub async fn scale(cx: &Context, flags: ScaleFlags) -> Result<u8> {
    let Some(replicas) = flags.replicas else { bail!("required flag(s) \"replicas\" not set") };
    if replicas < 0 {
        bail!("The --replicas=COUNT flag is required, and COUNT must be greater than or equal to 0");
    }
    let form = Form::parse(flags.output.as_deref(), None)?;
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    let wanted =
        Wanted { names: &flags.names, sources: flags.sources(false), selector: &flags.selector, all: flags.all, ..Wanted::default() };
    let found = select::objects(cx, &wanted).await?;
    if found.is_empty() && !cx.failed.get() {
        bail!("no objects passed to scale");
    }
    let timeout = duration(&flags.timeout)?;
    let query = Query::new().with("fieldManager", "kubectl-scale").with("dryRun", dry_run.query());
    let mut shown = Shown::new(cx, &form, false);
    for found in found {
        let current = found.object["spec"]["replicas"].as_i64().unwrap_or_default();
        if flags.current_replicas >= 0 && current != flags.current_replicas {
            cx.fail(&anyhow!("Expected replicas to be {}, was {current}", flags.current_replicas));
            continue;
        }
        let mut patch = json!({"spec": {"replicas": replicas}});
        if let Some(version) = &flags.resource_version {
            patch["metadata"]["resourceVersion"] = version.as_str().into();
        }
        let mut object = found.object.clone();
        object["spec"]["replicas"] = replicas.into();
        if dry_run != DryRun::Client {
            match cx.client()?.patch(&format!("{}/scale", found.path()), &query, Patch::Merge, &patch).await {
                Ok(_) => {}
                Err(error) if refusal(&error).is_some() => {
                    cx.fail(&error);
                    continue;
                }
                Err(error) => return Err(error),
            }
        }
        if !timeout.is_zero() && dry_run == DryRun::None {
            let deadline = Some(Instant::now() + timeout);
            let judge = |object: Option<&Value>| {
                let reached = |object: &Value| {
                    object["status"]["replicas"].as_i64().unwrap_or_default() == replicas
                        && object["status"]["observedGeneration"].as_i64() >= object["metadata"]["generation"].as_i64()
                };
                Ok(object.is_none_or(reached).then_some(()))
            };
            if follow::until(cx.client()?, &found.resource, &found.namespace, &found.name, deadline, judge).await?.is_none() {
                bail!("timed out waiting for {:?} to be synced", found.name);
            }
        }
        shown.object(&found.resource, object, "scaled", dry_run)?;
    }
    shown.end_as_list()?;
    Ok(0)
}

pub const PATCH_EXAMPLES: &str = "edgectl patch node n1 -p '{\"spec\":{\"unschedulable\":true}}'
edgectl patch deployment web --type=json -p '[{\"op\":\"remove\",\"path\":\"/spec/paused\"}]'
edgectl patch deployment web --subresource=scale --type=merge -p '{\"spec\":{\"replicas\":2}}'";

file_flags! {
    /// change fields of a resource by a patch
    pub struct PatchFlags {
        #[argh(positional)]
        names: Vec<String>,
        /// the patch, JSON or YAML
        #[argh(option, short = 'p')]
        patch: Option<String>,
        /// file with the patch
        #[argh(option)]
        patch_file: Option<String>,
        /// kind of patch: json, merge or strategic
        #[argh(option, default = "\"strategic\".to_owned()")]
        r#type: String,
        /// patch this subresource
        #[argh(option)]
        subresource: Option<String>,
        /// only show what would be done
        #[argh(option, arg_name = "client|server|none")]
        dry_run: Option<String>,
        /// output format
        #[argh(option, short = 'o', arg_name = "format")]
        output: Option<String>,
        /// name that owns the fields
        #[argh(option, default = "\"kubectl-patch\".to_owned()")]
        field_manager: String,
    }
}

pub async fn patch(cx: &Context, flags: PatchFlags) -> Result<u8> {
    let kind = match flags.r#type.to_lowercase().as_str() {
        "json" => Patch::Json,
        "merge" => Patch::Merge,
        "strategic" => Patch::Strategic,
        other => bail!("--type must be one of [json merge strategic], not {other:?}"),
    };
    let text = match (&flags.patch, &flags.patch_file) {
        (Some(text), None) => text.clone(),
        (None, Some(path)) => std::fs::read_to_string(path).with_context(|| format!("unable to read patch file {path}"))?,
        _ => bail!("must specify --patch or --patch-file containing the contents of the patch"),
    };
    let (patch, _) = decode::yaml(text.as_bytes()).map_err(|error| anyhow!("unable to parse {text:?}: {error:#}"))?;
    let form = Form::parse(flags.output.as_deref(), None)?;
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    let wanted = Wanted { names: &flags.names, sources: flags.sources(false), ..Wanted::default() };
    let query = Query::new().with("fieldManager", &flags.field_manager).with("dryRun", dry_run.query());
    let mut shown = Shown::new(cx, &form, false);
    for found in select::objects(cx, &wanted).await? {
        let mut path = found.path();
        if let Some(subresource) = &flags.subresource {
            path = format!("{path}/{subresource}");
        }
        let changed = match dry_run {
            DryRun::Client => Ok(found.object.clone()),
            _ => cx.client()?.patch(&path, &query, kind, &patch).await,
        };
        match changed {
            Ok(object) => {
                let same = object == found.object && dry_run != DryRun::Client;
                let (operation, told) = if same { ("patched (no change)", DryRun::None) } else { ("patched", dry_run) };
                // Of a subresource, it is that which was patched.
                let mut resource = found.resource;
                if object["kind"] == "Scale" {
                    (resource.group, resource.kind) = ("autoscaling".into(), "Scale".into());
                }
                shown.object(&resource, object, operation, told)?;
            }
            Err(error) if refusal(&error).is_some() => cx.fail(&error),
            Err(error) => return Err(error),
        }
    }
    shown.end()?;
    Ok(0)
}
