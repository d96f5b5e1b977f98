//! `label` and `annotate`: sets and removes the keys of one map in an object's metadata, and shows them with `--list`.

use anyhow::{Result, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::{Map, Value, json};

use super::Context;
use super::create::Shown;
use super::manifest::file_flags;
use super::output::{DryRun, Form};
use super::select::{self, Wanted};
use crate::client::{Patch, Query, refusal};

pub const LABEL_EXAMPLES: &str = "# Set a label, change one, remove one
edgectl label node n1 disktype=ssd
edgectl label --overwrite pods web-1 tier=back
edgectl label node n1 disktype-";
pub const ANNOTATE_EXAMPLES: &str = "edgectl annotate deployment web description='the shop'
edgectl annotate deployment web description-";

file_flags! {
    /// update the labels or annotations of resources
    pub struct Flags {
        #[argh(positional)]
        words: Vec<String>,
        /// change keys that have another value already
        #[argh(switch)]
        overwrite: bool,
        /// show what there is, after the changes
        #[argh(switch)]
        list: bool,
        /// all objects of the kinds, in the namespace
        #[argh(switch)]
        all: bool,
        /// in all namespaces
        #[argh(switch, short = 'A')]
        all_namespaces: bool,
        /// label selector
        #[argh(option, short = 'l', default = "String::new()")]
        selector: String,
        /// field selector
        #[argh(option, default = "String::new()")]
        field_selector: String,
        /// only show what would be done
        #[argh(option, arg_name = "client|server|none")]
        dry_run: Option<String>,
        /// output format
        #[argh(option, short = 'o', arg_name = "format")]
        output: Option<String>,
        /// change only an object of this version
        #[argh(option)]
        resource_version: Option<String>,
        /// name that owns the fields
        #[argh(option)]
        field_manager: Option<String>,
    }
}

/// What is done to the map: keys to set, keys to remove.
#[derive(Debug, Default, PartialEq)]
struct Changes {
    set: Vec<(String, String)>,
    remove: Vec<String>,
}

impl Changes {
    /// Takes `key=value` and `key-` off the end of the words; what is before them names objects.
    fn split<'a>(words: &'a [String], field: &str) -> Result<(&'a [String], Self)> {
        let is_change = |word: &String| !word.contains('/') && word.ends_with('-') || word.contains('=') || word.ends_with('-');
        let start = words.iter().position(is_change).unwrap_or(words.len());
        let mut changes = Self::default();
        for word in &words[start..] {
            match (word.split_once('='), word.strip_suffix('-')) {
                (Some((key, value)), _) if !key.is_empty() => changes.set.push((key.to_owned(), value.to_owned())),
                (None, Some(key)) if !key.is_empty() => changes.remove.push(key.to_owned()),
                _ => bail!("invalid change {word:?}: expected KEY=VALUE to set or KEY- to remove; names come before"),
            }
        }
        if changes.set.iter().any(|(key, _)| changes.remove.contains(key)) {
            let one = if field == "labels" { "a label" } else { "an annotation" };
            bail!("can not both modify and remove {one} in the same command");
        }
        Ok((&words[..start], changes))
    }
}

pub async fn label(cx: &Context, flags: Flags) -> Result<u8> {
    change(cx, flags, "labels").await
}

pub async fn annotate(cx: &Context, flags: Flags) -> Result<u8> {
    change(cx, flags, "annotations").await
}

async fn change(cx: &Context, flags: Flags, field: &str) -> Result<u8> {
    let form = Form::parse(flags.output.as_deref(), None)?;
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    let (names, changes) = Changes::split(&flags.words, field)?;
    if changes == Changes::default() && !flags.list {
        bail!("at least one {} update is required", field.trim_end_matches('s'));
    }
    let wanted = Wanted {
        names,
        sources: flags.sources(false),
        selector: &flags.selector,
        field_selector: &flags.field_selector,
        all: flags.all,
        all_namespaces: flags.all_namespaces,
        types_suffice: flags.list,
    };
    let manager = flags.field_manager.as_deref().unwrap_or(if field == "labels" { "kubectl-label" } else { "kubectl-annotate" });
    let mut shown = Shown::new(cx, &form, false);
    for found in select::objects(cx, &wanted).await? {
        let empty = Map::new();
        let present = found.object["metadata"][field].as_object().unwrap_or(&empty);
        if !flags.overwrite {
            let taken = changes.set.iter().find(|(key, value)| present.get(key).is_some_and(|known| *known != value.as_str()));
            if let Some((key, _)) = taken {
                let known = present[key].as_str().unwrap_or_default();
                match field {
                    "labels" => cx.fail(&anyhow::anyhow!("'{key}' already has a value ({known}), and --overwrite is false")),
                    _ => cx.fail(&anyhow::anyhow!(
                        "--overwrite is false but found the following declared annotation(s): '{key}' already has a value ({known})"
                    )),
                }
                continue;
            }
        }
        for key in changes.remove.iter().filter(|key| field == "labels" && !present.contains_key(*key)) {
            cx.println(&format!("label {key:?} not found."))?;
        }
        let mut map = Map::new();
        for (key, value) in &changes.set {
            if present.get(key).is_none_or(|known| *known != value.as_str()) {
                map.insert(key.clone(), value.as_str().into());
            }
        }
        for key in changes.remove.iter().filter(|key| present.contains_key(*key)) {
            map.insert(key.clone(), Value::Null);
        }
        let operation = match (field, map.is_empty(), map.values().all(Value::is_null)) {
            ("labels", true, _) => "not labeled",
            ("labels", false, true) => "unlabeled",
            ("labels", false, false) => "labeled",
            _ => "annotated",
        };
        let mut object = found.object.clone();
        if !map.is_empty() {
            let mut patch = json!({"metadata": {field: map}});
            if let Some(version) = &flags.resource_version {
                patch["metadata"]["resourceVersion"] = version.as_str().into();
            }
            if dry_run == DryRun::Client {
                json_patch::merge(&mut object, &patch);
            } else {
                let query = Query::new().with("fieldManager", manager).with("dryRun", dry_run.query());
                match cx.client()?.patch(&found.path(), &query, Patch::Merge, &patch).await {
                    Ok(changed) => object = changed,
                    Err(error) if refusal(&error).is_some() => {
                        cx.fail(&error);
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        if flags.list {
            let pairs = object["metadata"][field].as_object().into_iter().flatten();
            for (key, value) in pairs {
                cx.println(&format!("{key}={}", value.as_str().unwrap_or_default()))?;
            }
        } else {
            shown.object(&found.resource, object, operation, dry_run)?;
        }
    }
    shown.end_as_list()?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_stand_behind_the_names() {
        let words = |line: &str| -> Vec<String> { line.split(' ').map(str::to_owned).collect() };
        let line = words("node n1 disktype=ssd empty= old-");
        let (names, changes) = Changes::split(&line, "labels").unwrap();
        assert_eq!(names, ["node", "n1"]);
        assert_eq!(changes.set, [("disktype".to_owned(), "ssd".to_owned()), ("empty".to_owned(), String::new())]);
        assert_eq!(changes.remove, ["old"]);
        let line = words("nodes n1 node-role.kubernetes.io/master-");
        assert_eq!(Changes::split(&line, "labels").unwrap().1.remove, ["node-role.kubernetes.io/master"]);
        assert!(Changes::split(&words("pod a x=1 x-"), "labels").is_err());
        assert!(Changes::split(&words("pod a x=1 b"), "labels").is_err());
    }
}
