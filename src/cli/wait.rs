//! `wait`: until objects have a condition, a value, exist, or are gone.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::Value;

use super::jsonpath::{Template, text_of};
use super::manifest::Sources;
use super::output::{self, DryRun};
use super::select::{self, Pick, Wanted};
use super::{Context, delete, duration, follow};
use crate::client::{Query, Resource, is_not_found};

const TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is looked whether something exists by now.
const PAUSE: Duration = Duration::from_millis(500);

pub const EXAMPLES: &str = "edgectl wait --for=condition=Ready pod/web-1
edgectl wait --for=condition=Available deployment/web --timeout=60s
edgectl wait --for=jsonpath='{.status.phase}'=Running pods -l app=web
edgectl wait --for=delete pod/web-1";

/// wait for a condition on one or many resources
#[derive(FromArgs, ArgsInfo)]
pub struct Flags {
    #[argh(positional)]
    names: Vec<String>,
    /// what to wait for: create, delete, condition=NAME[=VALUE], jsonpath='{PATH}'[=VALUE]
    #[argh(option, long = "for")]
    condition: Vec<String>,
    /// how long to wait; 0 is only to look, below that a week
    #[argh(option)]
    timeout: Option<String>,
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
    /// file, folder or address with the objects
    #[argh(option, short = 'f')]
    filename: Vec<String>,
    /// read folders of -f with all that is below them
    #[argh(switch, short = 'R')]
    recursive: bool,
    /// output format
    #[argh(option, short = 'o', arg_name = "format")]
    output: Option<String>,
}

enum Goal {
    Create,
    Delete,
    Condition { name: String, value: String },
    Path { template: Template, value: Option<String> },
}

impl Goal {
    fn parse(text: &str) -> Result<Self> {
        let lower = text.to_lowercase();
        if lower == "delete" {
            return Ok(Self::Delete);
        }
        if lower == "create" {
            return Ok(Self::Create);
        }
        if let Some(condition) = text.strip_prefix("condition=") {
            let (name, value) = condition.split_once('=').unwrap_or((condition, "true"));
            return Ok(Self::Condition { name: name.to_lowercase(), value: value.to_lowercase() });
        }
        if let Some(path) = text.strip_prefix("jsonpath=") {
            // The value stands behind the brace that closes the path.
            let end = path.rfind('}').map_or(path.len(), |end| end + 1);
            let (path, rest) = path.split_at(end);
            let rest = rest.trim_start_matches(['\'', '"']);
            let value = rest.strip_prefix('=').map(|value| value.trim_matches(['\'', '"']).to_owned());
            if value.is_none() && !rest.is_empty() {
                bail!(
                    "jsonpath wait format must be --for=jsonpath='{{.status.readyReplicas}}'=3 or \
                        --for=jsonpath='{{.status.readyReplicas}}'"
                );
            }
            return Ok(Self::Path { template: Template::parse_relaxed(path.trim_matches(['\'', '"']))?, value });
        }
        bail!("unrecognized condition: {text:?}")
    }

    /// The object is as it should be.
    fn is_met(&self, object: &Value) -> Result<bool> {
        match self {
            Self::Create => Ok(true),
            Self::Delete => Ok(false),
            Self::Condition { name, value } => {
                let generation = object["metadata"]["generation"].as_i64();
                let lags = |seen: &Value| seen.as_i64().is_some_and(|seen| generation.is_some_and(|generation| seen < generation));
                let same = |condition: &&Value| condition["type"].as_str().is_some_and(|known| known.to_lowercase() == *name);
                let Some(condition) = object["status"]["conditions"].as_array().into_iter().flatten().find(same) else { return Ok(false) };
                let stale = lags(&condition["observedGeneration"])
                    || (condition["observedGeneration"].is_null() && lags(&object["status"]["observedGeneration"]));
                Ok(!stale && condition["status"].as_str().is_some_and(|known| known.to_lowercase() == *value))
            }
            Self::Path { template, value } => {
                let results = template.results(object, true)?.concat();
                match (results.as_slice(), value) {
                    ([], _) => Ok(false),
                    ([_, _, ..], Some(_)) => bail!("given jsonpath expression matches more than one value"),
                    ([found], Some(value)) => match found.value() {
                        Value::Object(_) | Value::Array(_) => bail!("jsonpath leads to a nested object or list which is not supported"),
                        scalar => Ok(text_of(scalar) == *value),
                    },
                    (_, None) => Ok(true),
                }
            }
        }
    }
}

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    let Some(condition) = flags.condition.last() else { bail!("--for must be specified") };
    let goal = Goal::parse(condition)?;
    let timeout = match flags.timeout.as_deref() {
        None => TIMEOUT,
        Some(text) if text.starts_with('-') => Duration::from_secs(7 * 24 * 3600),
        Some(text) => duration(text)?,
    };
    let deadline = Instant::now() + timeout;
    let wanted = Wanted {
        names: &flags.names,
        sources: Sources { filenames: &flags.filename, recursive: flags.recursive, kustomize: None, strict: false },
        selector: &flags.selector,
        field_selector: &flags.field_selector,
        all: flags.all,
        all_namespaces: flags.all_namespaces,
        types_suffice: false,
    };
    let query = Query::new().with("labelSelector", &flags.selector).with("fieldSelector", &flags.field_selector);
    let mut seen = 0;
    let mut late = vec![];
    for pick in select::picks(cx, &wanted).await? {
        for (resource, namespace, name) in targets(cx, &pick, &query, &goal, deadline).await? {
            seen += 1;
            if one(cx, &resource, &namespace, &name, &goal, deadline).await? {
                match flags.output.as_deref() {
                    Some("name") => cx.println(&format!("{}/{name}", resource.qualified_singular()))?,
                    _ => cx.print(&output::done(&resource, &name, "condition met", DryRun::None))?,
                }
            } else {
                late.push(format!("timed out waiting for the condition on {}/{name}", resource.plural));
            }
        }
    }
    match late.as_slice() {
        [] => {}
        [only] => bail!("{only}"),
        several => {
            several.iter().for_each(|line| cx.note(line));
            return Ok(1);
        }
    }
    if seen == 0 && !matches!(goal, Goal::Delete) {
        bail!("no matching resources found");
    }
    Ok(0)
}

/// The objects that a pick means; those that shall come into being are waited for.
async fn targets(cx: &Context, pick: &Pick, query: &Query, goal: &Goal, deadline: Instant) -> Result<Vec<(Resource, String, String)>> {
    let path = pick.path();
    loop {
        let found = match pick {
            Pick::One { resource, namespace, name, .. } => match cx.client()?.get(&path).await {
                Ok(_) => vec![(resource.clone(), namespace.clone(), name.clone())],
                // What is not there need not be waited for, nor told of.
                Err(error) if is_not_found(&error) && matches!(goal, Goal::Delete) => return Ok(vec![]),
                Err(error) if is_not_found(&error) && matches!(goal, Goal::Create) => vec![],
                Err(error) => return Err(error),
            },
            Pick::List { resource, .. } => {
                let list = cx.client()?.list(&path, query).await?;
                let text = |item: &Value, key: &str| item["metadata"][key].as_str().unwrap_or_default().to_owned();
                let items = list["items"].as_array().into_iter().flatten();
                items.map(|item| (resource.clone(), text(item, "namespace"), text(item, "name"))).collect()
            }
        };
        if !found.is_empty() || !matches!(goal, Goal::Create) {
            return Ok(found);
        }
        if Instant::now() + PAUSE > deadline {
            bail!("timed out waiting for the condition on {}", pick.resource().plural);
        }
        smol::Timer::after(PAUSE).await;
    }
}

async fn one(cx: &Context, resource: &Resource, namespace: &str, name: &str, goal: &Goal, deadline: Instant) -> Result<bool> {
    if matches!(goal, Goal::Delete) {
        return delete::gone(cx, resource, namespace, name, None, Some(deadline)).await;
    }
    if Instant::now() >= deadline {
        return goal.is_met(&cx.client()?.get(&resource.path(namespace, name)).await?);
    }
    let mut was_there = false;
    let judge = |object: Option<&Value>| match object {
        Some(object) => {
            was_there = true;
            Ok(goal.is_met(object)?.then_some(()))
        }
        None if was_there => bail!("{} {name:?} was deleted while it was waited for", resource.qualified()),
        None => Ok(None),
    };
    Ok(follow::until(cx.client()?, resource, namespace, name, Some(deadline), judge).await?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn goals_are_met_by_conditions_and_values() {
        let object = json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 2, "phase": "Running", "n": 3,
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "Old", "status": "True", "observedGeneration": 1}]}});
        let check = |goal: &str, expected: bool| assert_eq!(Goal::parse(goal).unwrap().is_met(&object).unwrap(), expected, "{goal}");
        check("condition=Ready", true);
        check("condition=ready=true", true);
        check("condition=Ready=False", false);
        check("condition=Missing", false);
        check("condition=Old", false);
        check("jsonpath={.status.phase}=Running", true);
        check("jsonpath='{.status.phase}'=Running", true);
        check("jsonpath={.status.n}=3", true);
        check("jsonpath={.status.n}=4", false);
        check("jsonpath={.status.phase}", true);
        check("jsonpath={.status.missing}=x", false);
        assert!(Goal::parse("ready").is_err());
    }
}
