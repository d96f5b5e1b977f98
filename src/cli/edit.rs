//! `edit`: an object in the editor, and what was changed there sent as a patch. A mistake brings the editor back with the reason on top.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::Value;

use super::manifest::file_flags;
use super::output::{self, DryRun};
use super::select::{self, Found, Wanted};
use super::{Context, errors, three_way, yaml};
use crate::api::decode;
use crate::base::id;
use crate::client::{Query, refusal};

pub const EXAMPLES: &str = "edgectl edit deployment web
EDITOR=nano edgectl edit daemonset -n kube-system node-exporter
edgectl edit deployment/web -o json";

const HEAD: &str = "# Please edit the object below. Lines beginning with a '#' will be ignored,\n# and an empty file will abort the \
    edit. If an error occurs while saving this file will be\n# reopened with the relevant failures.\n#\n";

file_flags! {
    /// edit a resource in the editor that KUBE_EDITOR or EDITOR names
    pub struct Flags {
        #[argh(positional)]
        names: Vec<String>,
        /// form to edit in: yaml or json
        #[argh(option, short = 'o', arg_name = "format")]
        output: Option<String>,
        /// edit this subresource
        #[argh(option)]
        subresource: Option<String>,
        /// how to treat fields that the kind does not have
        #[argh(option, arg_name = "strict|warn|ignore|true|false")]
        validate: Option<String>,
        /// name that owns the fields
        #[argh(option, default = "\"kubectl-edit\".to_owned()")]
        field_manager: String,
    }
}

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    let as_json = match flags.output.as_deref() {
        None | Some("yaml") => false,
        Some("json") => true,
        Some(other) => bail!("the form to edit in is yaml or json, not {other:?}"),
    };
    let wanted = Wanted { names: &flags.names, sources: flags.sources(false), types_suffice: true, ..Wanted::default() };
    let found = select::objects(cx, &wanted).await?;
    if found.is_empty() && !cx.failed.get() {
        bail!("no objects to edit");
    }
    let query =
        Query::new().with("fieldManager", &flags.field_manager).with("fieldValidation", super::create::validation(&flags.validate)?);
    for found in found {
        edit(cx, &found, &flags, &query, as_json).await?;
    }
    Ok(0)
}

async fn edit(cx: &Context, found: &Found, flags: &Flags, query: &Query, as_json: bool) -> Result<()> {
    let mut before = found.object.clone();
    output::without_managed_fields(&mut before);
    let mut text = if as_json { yaml::json(&before) } else { yaml::yaml(&before) };
    let mut reason = String::new();
    let file = Draft::new(if as_json { "json" } else { "yaml" });
    loop {
        let head = if as_json { String::new() } else { format!("{HEAD}{reason}") };
        let edited = file.edit(&format!("{head}{text}"))?;
        let bare: String = edited.lines().filter(|line| as_json || !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
        if bare.trim().is_empty() {
            bail!("Edit cancelled, saved file was empty.");
        }
        if bare == text {
            match reason.is_empty() {
                true => cx.note("Edit cancelled, no changes made."),
                false => bail!("Edit cancelled, no valid changes were saved; what you wrote is in {}", file.keep()),
            }
            return Ok(());
        }
        text = bare;
        match send(cx, found, flags, query, &before, &text).await {
            Ok(None) => {
                cx.note("Edit cancelled, no changes made.");
                return Ok(());
            }
            Ok(Some(_)) => return cx.print(&output::done(&found.resource, &found.name, "edited", DryRun::None)),
            Err(error) => {
                let told = errors::render(&error);
                cx.note(&told);
                reason = told.lines().map(|line| format!("# {line}\n")).collect::<String>() + "#\n";
            }
        }
    }
}

/// Sends what was changed; none if nothing was.
async fn send(cx: &Context, found: &Found, flags: &Flags, query: &Query, before: &Value, text: &str) -> Result<Option<Value>> {
    let (after, _) = decode::yaml(text.as_bytes()).map_err(|error| anyhow!("the edited file had a syntax error: {error:#}"))?;
    for field in ["/apiVersion", "/kind", "/metadata/name", "/metadata/namespace"] {
        if after.pointer(field) != before.pointer(field) {
            bail!("{} may not be changed", field[1..].replace('/', "."));
        }
    }
    let version = found.resource.api_version();
    let (kind, patch) = three_way::difference(&version, &found.resource.kind, before, &after);
    if patch.as_object().is_some_and(serde_json::Map::is_empty) {
        return Ok(None);
    }
    let mut path = found.path();
    if let Some(subresource) = &flags.subresource {
        path = format!("{path}/{subresource}");
    }
    let answer = cx.client()?.patch(&path, query, kind, &patch).await;
    if let Err(error) = &answer
        && refusal(error).is_none()
    {
        return Err(anyhow!("{}", errors::render(error)));
    }
    answer.map(Some)
}

/// The file in the editor, gone when the edit is over.
struct Draft {
    path: PathBuf,
    kept: std::cell::Cell<bool>,
}

impl Draft {
    fn new(extension: &str) -> Self {
        Self { path: std::env::temp_dir().join(format!("edgectl-edit-{}.{extension}", id::uid())), kept: std::cell::Cell::new(false) }
    }

    fn edit(&self, text: &str) -> Result<String> {
        write(&self.path, text).with_context(|| format!("write {}", self.path.display()))?;
        let named = |name: &str| std::env::var(name).ok().filter(|editor| !editor.trim().is_empty());
        let editor = named("KUBE_EDITOR").or_else(|| named("EDITOR")).unwrap_or_else(|| "vi".to_owned());
        // The editor may come with arguments of its own, as `code --wait`.
        let status = Command::new("/bin/sh").arg("-c").arg(format!("{editor} \"$1\"")).arg("sh").arg(&self.path).status();
        let status = status.with_context(|| format!("start the editor {editor:?}"))?;
        if !status.success() {
            bail!("there was a problem with the editor {editor:?} ({status}); set EDITOR to another one");
        }
        std::fs::read_to_string(&self.path).with_context(|| format!("read {}", self.path.display()))
    }

    /// Leaves the file where it is, and says where.
    fn keep(&self) -> String {
        self.kept.set(true);
        self.path.display().to_string()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept.get() {
            // Nothing of worth is in it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}
