//! `diff`: what `apply` would change, shown by the `diff` program (or by what KUBECTL_EXTERNAL_DIFF names). The server is only asked what
//! would become of the objects; nothing is changed. Exit code 1 says that something would, 2 that it could not be found out.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::Value;

use super::manifest::file_flags;
use super::select::{self, Pick, Wanted};
use super::{Context, apply, errors, output, yaml};
use crate::api::selector;
use crate::base::id;
use crate::client::refusal;

pub const EXAMPLES: &str = "# What would change if the file were applied
edgectl diff -f web.yaml
# Side by side
KUBECTL_EXTERNAL_DIFF='diff -y' edgectl diff -f web.yaml";

/// Something would change.
const DIFFERS: u8 = 1;
/// It could not be found out.
const FAILED: u8 = 2;

file_flags! {
    /// show what apply would change
    pub struct Flags {
        #[argh(positional)]
        names: Vec<String>,
        /// compare only the objects with these labels
        #[argh(option, short = 'l', default = "String::new()")]
        selector: String,
        /// as apply --server-side would change it
        #[argh(switch)]
        server_side: bool,
        /// take fields over that others own, with --server-side
        #[argh(switch)]
        force_conflicts: bool,
        /// name that owns the fields
        #[argh(option)]
        field_manager: Option<String>,
        /// show the values of secrets too
        #[argh(switch)]
        show_secrets: bool,
        /// compare managedFields too
        #[argh(switch)]
        show_managed_fields: bool,
    }
}

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    match compare(cx, &flags).await {
        Ok(code) => Ok(code),
        Err(error) => {
            cx.show_warnings();
            cx.note(&errors::render(&error));
            Ok(FAILED)
        }
    }
}

async fn compare(cx: &Context, flags: &Flags) -> Result<u8> {
    if !flags.names.is_empty() {
        bail!("Unexpected args: [{}]\nSee 'edgectl diff -h' for help and examples", flags.names.join(" "));
    }
    if flags.filename.is_empty() && flags.kustomize.is_none() {
        bail!("must specify one of -f and -k");
    }
    if flags.force_conflicts && !flags.server_side {
        bail!("--force-conflicts only works with --server-side");
    }
    let selector = selector::Labels::parse(&flags.selector).map_err(|error| anyhow!("{error:#}"))?;
    let (live, merged) = (Folder::new("LIVE")?, Folder::new("MERGED")?);
    for pick in select::picks(cx, &Wanted { sources: flags.sources(false), ..Wanted::default() }).await? {
        let Pick::One { resource, namespace, name, document: Some(document) } = pick else { continue };
        if !selector.matches(&document.object["metadata"]["labels"]) {
            continue;
        }
        let manager = flags.field_manager.as_deref();
        let foreseen = match flags.server_side {
            true => apply::foreseen_by_server(cx, &resource, &namespace, &name, &document.object, manager, flags.force_conflicts).await,
            false => apply::foreseen(cx, &resource, &namespace, &name, &document.object, manager).await,
        };
        let (mut before, mut after) = match foreseen {
            Ok(foreseen) => foreseen,
            Err(error) if refusal(&error).is_some() => return Err(select::in_source(error, "comparing", Some(&document))),
            Err(error) => return Err(error),
        };
        if !flags.show_managed_fields {
            before.iter_mut().chain([&mut after]).for_each(output::without_managed_fields);
        }
        if &*resource.kind == "Secret" && resource.group.is_empty() && !flags.show_secrets {
            mask(&mut before, &mut after);
        }
        let version = resource.api_version().replace('/', ".");
        let file = format!("{version}.{}.{namespace}.{name}", resource.kind);
        merged.write(&file, &after)?;
        if let Some(before) = before {
            live.write(&file, &before)?;
        }
    }
    show(&live.0, &merged.0)
}

/// Runs the program that shows the difference.
fn show(live: &Path, merged: &Path) -> Result<u8> {
    let chosen = std::env::var("KUBECTL_EXTERNAL_DIFF").ok().filter(|program| !program.trim().is_empty());
    let words = chosen.unwrap_or_else(|| "diff -u -N".to_owned());
    let mut words = words.split_whitespace();
    let program = words.next().unwrap_or("diff");
    let status = Command::new(program).args(words).args([live, merged]).status();
    let status = status.with_context(|| format!("run {program} (KUBECTL_EXTERNAL_DIFF may name another program)"))?;
    match status.code() {
        Some(0) => Ok(0),
        Some(1) => Ok(DIFFERS),
        _ => bail!("{program} failed ({status})"),
    }
}

/// Nobody is to read a secret on a screen: only which of its values differ is shown.
fn mask(before: &mut Option<Value>, after: &mut Value) {
    let mut nothing = Value::Null;
    let before = before.as_mut().unwrap_or(&mut nothing);
    for field in ["data", "stringData"] {
        let old = before[field].as_object().cloned().unwrap_or_default();
        let new = after[field].as_object().cloned().unwrap_or_default();
        for (key, value) in before.get_mut(field).and_then(Value::as_object_mut).into_iter().flatten() {
            let changed = new.get(key).is_some_and(|new| new != value);
            *value = if changed { "*** (before)" } else { "***" }.into();
        }
        for (key, value) in after.get_mut(field).and_then(Value::as_object_mut).into_iter().flatten() {
            let changed = old.get(key).is_some_and(|old| old != value);
            *value = if changed { "*** (after)" } else { "***" }.into();
        }
    }
}

/// A folder for the owner alone, gone when the comparison is over.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("{name}-{}", id::uid().replace('-', "")));
        std::fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("create folder {}", path.display()))?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, object: &Value) -> Result<()> {
        let path = self.0.join(name);
        std::fs::write(&path, yaml::yaml(object)).with_context(|| format!("write {}", path.display()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Its files are in the system's folder for what may go.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_show_only_which_values_differ() {
        let mut before = Some(json!({"data": {"a": "1", "b": "2", "gone": "3"}}));
        let mut after = json!({"data": {"a": "1", "b": "4", "new": "5"}});
        mask(&mut before, &mut after);
        assert_eq!(before, Some(json!({"data": {"a": "***", "b": "*** (before)", "gone": "***"}})));
        assert_eq!(after, json!({"data": {"a": "***", "b": "*** (after)", "new": "***"}}));
        let (mut nothing, mut after) = (None, json!({"data": {"a": "1"}}));
        mask(&mut nothing, &mut after);
        assert_eq!((nothing, after), (None, json!({"data": {"a": "***"}})));
    }
}
