//! `create -f` and `replace`: sends whole objects as they are. What a manifest does not say is the server's to fill in.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use super::apply::with_last_applied;
use super::manifest::{Document, file_flags};
use super::output::{self, DryRun, Form};
use super::select::{self, Pick, Wanted};
use super::{Context, delete, duration};
use crate::client::{Query, Resource, is_not_found, refusal};

pub const EXAMPLES: &str = "# Everything in a file, or in a folder
edgectl create -f web.yaml
edgectl create -f manifests/ -R
# From standard input
cat web.yaml | edgectl create -f -
# Without a file: see edgectl create deployment --help and the like
edgectl create deployment web --image=nginx --replicas=2";

file_flags! {
    /// create resources from files or standard input
    pub struct Flags {
        #[argh(positional)]
        names: Vec<String>,
        /// output format
        #[argh(option, short = 'o', arg_name = "format")]
        output: Option<String>,
        /// only show what would be created: on the client, or as the server would answer
        #[argh(option, arg_name = "client|server|none")]
        dry_run: Option<String>,
        /// how to treat fields that the kind does not have
        #[argh(option, arg_name = "strict|warn|ignore|true|false")]
        validate: Option<String>,
        /// keep the manifest in an annotation, so that apply can be used later
        #[argh(switch)]
        save_config: bool,
        /// name that owns the fields
        #[argh(option, default = "\"kubectl-create\".to_owned()")]
        field_manager: String,
        /// create only the objects with these labels
        #[argh(option, short = 'l')]
        selector: Option<String>,
        /// keep managedFields in JSON and YAML
        #[argh(switch)]
        show_managed_fields: bool,
        /// POST standard input or the file to this path of the server
        #[argh(option)]
        raw: Option<String>,
    }
}

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    if let Some(kind) = flags.names.first() {
        bail!("unknown thing to create: {kind:?}; 'edgectl create --help' lists what can be created without a file");
    }
    if flags.filename.is_empty() && flags.kustomize.is_none() {
        bail!("must specify one of -f and -k");
    }
    let form = Form::parse(flags.output.as_deref(), None)?;
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    let sources = flags.sources(is_strict(&flags.validate));
    if let Some(path) = &flags.raw {
        for document in super::manifest::read(cx, &sources).await? {
            let answer = cx.client()?.create(path, &Query::new(), &document.object).await?;
            cx.println(&answer.to_string())?;
        }
        return Ok(0);
    }
    let picks = select::picks(cx, &Wanted { sources, ..Wanted::default() }).await?;
    if picks.is_empty() {
        bail!("no objects passed to create");
    }
    let query = Query::new()
        .with("fieldManager", &flags.field_manager)
        .with("fieldValidation", validation(&flags.validate)?)
        .with("dryRun", dry_run.query());
    let selector =
        crate::api::selector::Labels::parse(flags.selector.as_deref().unwrap_or_default()).map_err(|error| anyhow!("{error:#}"))?;
    let mut shown = Shown::new(cx, &form, flags.show_managed_fields);
    for pick in picks {
        let Pick::One { resource, namespace, document: Some(document), .. } = pick else { continue };
        if !selector.matches(&document.object["metadata"]["labels"]) {
            continue;
        }
        let object = if flags.save_config { with_last_applied(&document.object) } else { document.object.clone() };
        match send(cx, &resource, &namespace, &object, &query, dry_run).await {
            Ok(object) => shown.object(&resource, object, "created", dry_run)?,
            Err(error) if refusal(&error).is_some() => cx.fail(&select::in_source(error, "creating", Some(&document))),
            Err(error) => return Err(error),
        }
    }
    shown.end()?;
    Ok(0)
}

/// Creates one object; a client's dry run only says so.
pub async fn send(cx: &Context, resource: &Resource, namespace: &str, object: &Value, query: &Query, dry_run: DryRun) -> Result<Value> {
    if dry_run == DryRun::Client {
        return Ok(object.clone());
    }
    cx.client()?.create(&resource.list_path(Some(namespace)), query, object).await
}

/// `--validate` as the server's fieldValidation.
pub fn validation(validate: &Option<String>) -> Result<&'static str> {
    match validate.as_deref() {
        None | Some("true" | "strict") => Ok("Strict"),
        Some("warn") => Ok("Warn"),
        Some("false" | "ignore") => Ok("Ignore"),
        Some(other) => bail!("invalid - validate option {other:?}; must be one of: strict (or true), warn, ignore (or false)"),
    }
}

pub fn is_strict(validate: &Option<String>) -> bool {
    matches!(validate.as_deref(), None | Some("true" | "strict"))
}

/// Shows the objects a verb made or changed: one line each, or all of them in the form asked for.
pub struct Shown<'a> {
    cx: &'a Context,
    form: &'a Form,
    managed_fields: bool,
    first: bool,
    /// JSON and the like come as one list if there are several.
    objects: Vec<Value>,
}

impl<'a> Shown<'a> {
    pub fn new(cx: &'a Context, form: &'a Form, managed_fields: bool) -> Self {
        Self { cx, form, managed_fields, first: true, objects: vec![] }
    }

    pub fn object(&mut self, resource: &Resource, mut object: Value, operation: &str, dry_run: DryRun) -> Result<()> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        match self.form {
            Form::Table { .. } => self.cx.print(&output::done(resource, &name, operation, dry_run)),
            Form::Name => self.cx.print(&format!("{}/{name}\n", resource.qualified_singular())),
            _ => {
                if !self.managed_fields {
                    output::without_managed_fields(&mut object);
                }
                if object["kind"].is_null() {
                    object["kind"] = Value::from(&*resource.kind);
                    object["apiVersion"] = resource.api_version().into();
                }
                self.objects.push(object);
                Ok(())
            }
        }
    }

    /// Prints what was kept back. Objects come one after another, as kubectl prints those it makes.
    pub fn end(&mut self) -> Result<()> {
        for object in std::mem::take(&mut self.objects) {
            let text = output::render(self.form, &object, self.first)?;
            self.first = false;
            self.cx.print(&text)?;
        }
        Ok(())
    }

    /// Prints what was kept back, several objects as one list, as `apply` does.
    pub fn end_as_list(&mut self) -> Result<()> {
        if self.objects.len() > 1 {
            let items = std::mem::take(&mut self.objects);
            self.objects = vec![json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items})];
        }
        self.end()
    }
}

pub const REPLACE_EXAMPLES: &str = "# Replace an object by what the file says
edgectl replace -f web.yaml
# Delete it and create it anew
edgectl replace --force -f web.yaml";

file_flags! {
    /// replace resources by what a file says
    pub struct ReplaceFlags {
        /// output format
        #[argh(option, short = 'o', arg_name = "format")]
        output: Option<String>,
        /// only show what would be replaced
        #[argh(option, arg_name = "client|server|none")]
        dry_run: Option<String>,
        /// how to treat fields that the kind does not have
        #[argh(option, arg_name = "strict|warn|ignore|true|false")]
        validate: Option<String>,
        /// delete the object and create it anew
        #[argh(switch)]
        force: bool,
        /// seconds to end in good order, with --force
        #[argh(option, default = "-1")]
        grace_period: i64,
        /// how long to wait for a deletion, with --force
        #[argh(option, default = "\"0s\".to_owned()")]
        timeout: String,
        /// what becomes of what belongs to the object, with --force
        #[argh(option, arg_name = "background|orphan|foreground")]
        cascade: Option<String>,
        /// keep the manifest in an annotation
        #[argh(switch)]
        save_config: bool,
        /// name that owns the fields
        #[argh(option, default = "\"kubectl-replace\".to_owned()")]
        field_manager: String,
        /// replace this subresource: status or scale
        #[argh(option)]
        subresource: Option<String>,
    }
}

pub async fn replace(cx: &Context, flags: ReplaceFlags) -> Result<u8> {
    if flags.filename.is_empty() && flags.kustomize.is_none() {
        bail!("must specify one of -f and -k");
    }
    let form = Form::parse(flags.output.as_deref(), None)?;
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    if flags.grace_period >= 0 && !flags.force {
        bail!("--grace-period must have --force specified");
    }
    let sources = flags.sources(is_strict(&flags.validate));
    let picks = select::picks(cx, &Wanted { sources, ..Wanted::default() }).await?;
    let query = Query::new()
        .with("fieldManager", &flags.field_manager)
        .with("fieldValidation", validation(&flags.validate)?)
        .with("dryRun", dry_run.query());
    let mut shown = Shown::new(cx, &form, false);
    for pick in picks {
        let path = pick.path();
        let Pick::One { resource, namespace, name, document: Some(document) } = pick else { continue };
        let object = if flags.save_config || document_was_applied(&document) {
            with_last_applied(&document.object)
        } else {
            document.object.clone()
        };
        let path = match &flags.subresource {
            Some(subresource) => format!("{path}/{subresource}"),
            None => path,
        };
        let done = async {
            if dry_run == DryRun::Client {
                cx.client()?.get(&path).await?;
                return Ok(object.clone());
            }
            if !flags.force {
                return replace_one(cx, &path, &query, object.clone()).await;
            }
            let options = delete::options(flags.cascade.as_deref(), flags.grace_period, DryRun::None)?;
            match cx.client()?.delete(&path, &options).await {
                Ok(_) => {}
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(error),
            }
            let wait = duration(&flags.timeout)?;
            let deadline = Instant::now() + if wait.is_zero() { Duration::from_secs(300) } else { wait };
            delete::gone(cx, &resource, &namespace, &name, None, Some(deadline)).await?;
            cx.client()?.create(&resource.list_path(Some(&namespace)), &query, &object).await
        };
        match done.await {
            Ok(object) => shown.object(&resource, object, "replaced", dry_run)?,
            Err(error) if refusal(&error).is_some() => cx.fail(&select::in_source(error, "replacing", Some(&document))),
            Err(error) => return Err(error),
        }
    }
    shown.end()?;
    Ok(0)
}

fn document_was_applied(document: &Document) -> bool {
    !document.object["metadata"]["annotations"][super::apply::LAST_APPLIED].is_null()
}

/// Replaces the object whatever version it has, unless the manifest insists on one.
async fn replace_one(cx: &Context, path: &str, query: &Query, mut object: Value) -> Result<Value> {
    if object["metadata"]["resourceVersion"].as_str().is_none_or(str::is_empty) {
        let live = cx.client()?.get(path).await?;
        object["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
    }
    cx.client()?.update(path, query, &object).await
}
