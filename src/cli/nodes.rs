//! `cordon`, `uncordon` and `taint`: which pods a node takes. It moves no pod.

use anyhow::{Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use super::Context;
use super::describe::taint_text;
use super::output::{self, DryRun};
use super::select::{self, Found, Wanted};
use crate::client::{Patch, Query, refusal};

pub const CORDON_EXAMPLES: &str = "edgectl cordon n1";
pub const UNCORDON_EXAMPLES: &str = "edgectl uncordon n1";
pub const TAINT_EXAMPLES: &str = "edgectl taint node n1 dedicated=web:NoSchedule
edgectl taint node n1 dedicated:NoSchedule-
edgectl taint node n1 dedicated-";

/// let no new pods onto nodes, or let them again
#[derive(FromArgs, ArgsInfo)]
pub struct CordonFlags {
    #[argh(positional)]
    names: Vec<String>,
    /// label selector
    #[argh(option, short = 'l', default = "String::new()")]
    selector: String,
    /// only show what would be done
    #[argh(option, arg_name = "client|server|none")]
    dry_run: Option<String>,
}

pub async fn cordon(cx: &Context, flags: CordonFlags) -> Result<u8> {
    mark(cx, flags, true).await
}

pub async fn uncordon(cx: &Context, flags: CordonFlags) -> Result<u8> {
    mark(cx, flags, false).await
}

async fn mark(cx: &Context, flags: CordonFlags, closed: bool) -> Result<u8> {
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    if flags.names.is_empty() && flags.selector.is_empty() {
        bail!("USAGE: {} NODE [flags]\nSee 'edgectl {} -h' for help and examples", cx.verb.name, cx.verb.name);
    }
    mark_nodes(cx, &flags.names, &flags.selector, closed, dry_run).await?;
    Ok(0)
}

/// Closes the nodes to new pods, or opens them; answers which they are.
pub async fn mark_nodes(cx: &Context, names: &[String], selector: &str, closed: bool, dry_run: DryRun) -> Result<Vec<Found>> {
    let word = if closed { "cordoned" } else { "uncordoned" };
    let nodes = nodes(cx, names, selector, false).await?;
    for found in &nodes {
        let is_closed = found.object["spec"]["unschedulable"] == true;
        if is_closed == closed {
            cx.print(&output::done(&found.resource, &found.name, &format!("already {word}"), dry_run))?;
            continue;
        }
        if dry_run != DryRun::Client {
            let value = if closed { json!(true) } else { Value::Null };
            let query = Query::new().with("dryRun", dry_run.query());
            cx.client()?.patch(&found.path(), &query, Patch::Strategic, &json!({"spec": {"unschedulable": value}})).await?;
        }
        cx.print(&output::done(&found.resource, &found.name, word, dry_run))?;
    }
    Ok(nodes)
}

async fn nodes(cx: &Context, names: &[String], selector: &str, all: bool) -> Result<Vec<Found>> {
    let words: Vec<String> =
        std::iter::once("nodes".to_owned()).chain(names.iter().map(|name| name.trim_start_matches("node/").to_owned())).collect();
    select::objects(cx, &Wanted { names: &words, selector, all, ..Wanted::default() }).await
}

/// update the taints on one or more nodes
#[derive(FromArgs, ArgsInfo)]
pub struct TaintFlags {
    #[argh(positional)]
    words: Vec<String>,
    /// all nodes
    #[argh(switch)]
    all: bool,
    /// label selector
    #[argh(option, short = 'l', default = "String::new()")]
    selector: String,
    /// change taints that are there already
    #[argh(switch)]
    overwrite: bool,
    /// only show what would be done
    #[argh(option, arg_name = "client|server|none")]
    dry_run: Option<String>,
    /// name that owns the fields
    #[argh(option, default = "\"kubectl-taint\".to_owned()")]
    field_manager: String,
}

/// What shall be done to the taints of a node.
#[derive(Debug, Default, PartialEq)]
struct Changes {
    add: Vec<Value>,
    /// Keys, with the effect if only that one goes.
    remove: Vec<(String, String)>,
}

impl Changes {
    fn parse(words: &[String]) -> Result<Self> {
        let mut changes = Self::default();
        for word in words {
            if let Some(rest) = word.strip_suffix('-') {
                let (key, effect) = rest.split_once(':').unwrap_or((rest, ""));
                let key = key.split('=').next().unwrap_or(key);
                changes.remove.push((key.to_owned(), effect.to_owned()));
                continue;
            }
            let Some((left, effect)) = word.rsplit_once(':') else { bail!("invalid taint spec: {word}") };
            let (key, value) = left.split_once('=').unwrap_or((left, ""));
            if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
                bail!("invalid taint effect: {effect}, unsupported taint effect\nSee 'edgectl taint -h' for help and examples");
            }
            let mut taint = json!({"key": key, "effect": effect});
            if !value.is_empty() {
                taint["value"] = value.into();
            }
            changes.add.push(taint);
        }
        if changes == Self::default() {
            bail!("at least one taint update is required");
        }
        Ok(changes)
    }

    /// The taints afterwards, and how that is called.
    fn apply(&self, node: &str, present: &[Value], overwrite: bool) -> Result<(Vec<Value>, &'static str)> {
        let same = |one: &Value, other: &Value| one["key"] == other["key"] && one["effect"] == other["effect"];
        if !overwrite {
            let taken: Vec<&str> = self
                .add
                .iter()
                .filter(|taint| present.iter().any(|known| same(taint, known)))
                .filter_map(|taint| taint["key"].as_str())
                .collect();
            if !taken.is_empty() {
                bail!("node {node} already has {} taint(s) with same effect(s) and --overwrite is false", taken.join(","));
            }
        }
        let mut taints = self.add.clone();
        taints.extend(present.iter().filter(|known| !self.add.iter().any(|taint| same(taint, known))).cloned());
        for (key, effect) in &self.remove {
            let count = taints.len();
            taints.retain(|taint| !(taint["key"] == key.as_str() && (effect.is_empty() || taint["effect"] == effect.as_str())));
            if taints.len() == count {
                let what = if effect.is_empty() { key.clone() } else { taint_text(&json!({"key": key, "effect": effect})) };
                bail!("taint {what:?} not found");
            }
        }
        let operation = match (self.add.is_empty(), self.remove.is_empty()) {
            (false, false) => "modified",
            _ if overwrite => "modified",
            (true, _) => "untainted",
            (false, true) => "tainted",
        };
        Ok((taints, operation))
    }
}

pub async fn taint(cx: &Context, flags: TaintFlags) -> Result<u8> {
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    let Some((kind, words)) = flags.words.split_first() else {
        bail!("one or more taint updates are required, behind the type and the name of a node")
    };
    let (kind, first) = kind.split_once('/').map_or((kind.as_str(), None), |(kind, name)| (kind, Some(name.to_owned())));
    if super::known(kind).is_none_or(|row| &*row.plural != "nodes") {
        bail!("invalid resource type {kind}, only node types are supported");
    }
    let is_change = |word: &String| word.contains(':') || word.contains('=') || word.ends_with('-');
    let start = words.iter().position(is_change).unwrap_or(words.len());
    let (names, changes) = words.split_at(start);
    let changes = Changes::parse(changes)?;
    let names: Vec<String> = first.into_iter().chain(names.iter().cloned()).collect();
    let query = Query::new().with("fieldManager", &flags.field_manager).with("dryRun", dry_run.query());
    for found in nodes(cx, &names, &flags.selector, flags.all).await? {
        let present = found.object["spec"]["taints"].as_array().cloned().unwrap_or_default();
        let (taints, operation) = match changes.apply(&found.name, &present, flags.overwrite) {
            Ok(done) => done,
            Err(error) => {
                cx.fail(&anyhow!("{error}"));
                continue;
            }
        };
        let value = if taints.is_empty() { Value::Null } else { json!(taints) };
        if dry_run != DryRun::Client {
            match cx.client()?.patch(&found.path(), &query, Patch::Strategic, &json!({"spec": {"taints": value}})).await {
                Ok(_) => {}
                Err(error) if refusal(&error).is_some() => {
                    cx.fail(&error);
                    continue;
                }
                Err(error) => return Err(error),
            }
        }
        // kubectl does not say of a taint that it was only tried.
        cx.print(&output::done(&found.resource, &found.name, operation, DryRun::None))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_come_and_go() {
        let words = |line: &str| -> Vec<String> { line.split(' ').map(str::to_owned).collect() };
        let master = json!({"key": "node-role.kubernetes.io/master", "effect": "NoSchedule"});
        let changes = Changes::parse(&words("node-role.kubernetes.io/master-")).unwrap();
        assert_eq!(changes.apply("m", std::slice::from_ref(&master), false).unwrap(), (vec![], "untainted"));
        assert_eq!(changes.apply("m", &[], false).unwrap_err().to_string(), "taint \"node-role.kubernetes.io/master\" not found");
        let changes = Changes::parse(&words("node-role.kubernetes.io/master=:NoSchedule")).unwrap();
        assert_eq!(changes.apply("m", &[], false).unwrap(), (vec![master.clone()], "tainted"));
        assert!(changes.apply("m", &[master], false).unwrap_err().to_string().contains("already has"));
        assert!(Changes::parse(&words("a=b:Sometimes")).is_err());
        assert!(Changes::parse(&words("a")).is_err());
    }
}
