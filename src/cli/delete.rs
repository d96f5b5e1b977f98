//! `delete`: asks for objects to be deleted and, unless told otherwise, waits until they are gone.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use super::manifest::file_flags;
use super::output::{self, DryRun};
use super::select::{self, Pick, Wanted};
use super::{Context, confirmed, duration, follow};
use crate::client::{Query, Resource, is_not_found, refusal};

/// What is waited for if nobody says how long: as good as for ever.
const WAIT_DEFAULT: Duration = Duration::from_secs(168 * 3600);

pub const EXAMPLES: &str = "# What a file made
edgectl delete -f web.yaml
# By name, and by label
edgectl delete pod web-1
edgectl delete pods,services -l app=web
# At once, without waiting
edgectl delete pod web-1 --now --wait=false";

file_flags! {
    /// delete resources by file, name, label or all of a kind
    pub struct Flags {
        #[argh(positional)]
        names: Vec<String>,
        /// label selector
        #[argh(option, short = 'l', default = "String::new()")]
        selector: String,
        /// field selector
        #[argh(option, default = "String::new()")]
        field_selector: String,
        /// all objects of the kinds, in the namespace
        #[argh(switch)]
        all: bool,
        /// in all namespaces
        #[argh(switch, short = 'A')]
        all_namespaces: bool,
        /// wait until the objects are gone
        #[argh(option, arg_name = "true|false")]
        wait: Option<String>,
        /// how long to wait; 0 is as long as it takes
        #[argh(option)]
        timeout: Option<String>,
        /// seconds that pods get to end in good order; -1 is what they say themselves
        #[argh(option, default = "-1")]
        grace_period: i64,
        /// end at once, without confirmation by the node; only with --grace-period=0
        #[argh(switch)]
        force: bool,
        /// give pods one second to end
        #[argh(switch)]
        now: bool,
        /// what becomes of what belongs to the objects
        #[argh(option, arg_name = "background|orphan|foreground|true|false")]
        cascade: Option<String>,
        /// what is not there is no error
        #[argh(option, arg_name = "true|false")]
        ignore_not_found: Option<String>,
        /// only show what would be deleted
        #[argh(option, arg_name = "client|server|none")]
        dry_run: Option<String>,
        /// output format: name
        #[argh(option, short = 'o', arg_name = "form")]
        output: Option<String>,
        /// ask before each deletion
        #[argh(switch, short = 'i')]
        interactive: bool,
        /// DELETE this path of the server
        #[argh(option)]
        raw: Option<String>,
    }
}

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    if let Some(path) = &flags.raw {
        let answer = cx.client()?.delete(path, &json!({})).await?;
        cx.println(&answer.to_string())?;
        return Ok(0);
    }
    if flags.output.as_deref().is_some_and(|output| output != "name") {
        bail!("unexpected -o output mode: {}. We only support '-o name'", flags.output.unwrap_or_default());
    }
    if flags.all && !flags.selector.is_empty() {
        bail!("setting 'all' parameter but found a non empty selector. ");
    }
    if flags.now && flags.grace_period >= 0 {
        bail!("--now and --grace-period cannot be specified together");
    }
    let mut grace = if flags.now { 1 } else { flags.grace_period };
    if flags.force {
        if grace > 0 {
            bail!("--force and --grace-period greater than 0 cannot be specified together");
        }
        if grace < 0 {
            grace = 0;
        }
    }
    // Zero without --force would leave the pod running behind our back: one second is as good.
    let wait = flags.wait.as_deref().map_or(!flags.force, |wait| wait == "true");
    if grace == 0 && !flags.force {
        grace = 1;
    }
    if flags.force {
        cx.note(
            "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. The resource \
            may continue to run on the cluster indefinitely.",
        );
    }
    let wanted = Wanted {
        names: &flags.names,
        sources: flags.sources(false),
        selector: &flags.selector,
        field_selector: &flags.field_selector,
        all: flags.all,
        all_namespaces: flags.all_namespaces,
        types_suffice: false,
    };
    let picks = select::picks(cx, &wanted).await?;
    let options = options(flags.cascade.as_deref(), grace, dry_run)?;
    let ignore = match flags.ignore_not_found.as_deref() {
        Some(text) => text == "true",
        None => flags.all,
    };
    let query = Query::new().with("labelSelector", &flags.selector).with("fieldSelector", &flags.field_selector);
    let mut going = vec![];
    let mut seen = 0;
    for pick in picks {
        let path = pick.path();
        let mut document = None;
        let targets: Vec<(Resource, String, String)> = match pick {
            Pick::One { resource, namespace, name, document: from } => {
                document = from;
                vec![(resource, namespace, name)]
            }
            Pick::List { resource, .. } => {
                let list = cx.client()?.list(&path, &query).await;
                let list = list.map_err(|error| select::unlisted(error, &resource, &flags.selector, &flags.field_selector))?;
                let text = |item: &Value, key: &str| item["metadata"][key].as_str().unwrap_or_default().to_owned();
                let items = list["items"].as_array().into_iter().flatten();
                items.map(|item| (resource.clone(), text(item, "namespace"), text(item, "name"))).collect()
            }
        };
        for (resource, namespace, name) in targets {
            seen += 1;
            if flags.interactive && !confirmed(&format!("Do you want to delete {}/{name}?", resource.qualified_singular()))? {
                continue;
            }
            match delete_one(cx, &resource, &namespace, &name, &options, dry_run).await {
                Ok(uid) => {
                    tell(cx, &flags, &resource, &namespace, &name, dry_run)?;
                    going.push((resource, namespace, name, uid));
                }
                Err(error) if ignore && is_not_found(&error) => {}
                Err(error) if refusal(&error).is_some() => cx.fail(&select::in_source(error, "deleting", document.as_ref())),
                Err(error) => return Err(error),
            }
        }
    }
    if seen == 0 {
        cx.println("No resources found")?;
    }
    if !wait || dry_run != DryRun::None {
        return Ok(0);
    }
    let timeout = flags.timeout.as_deref().map(duration).transpose()?.filter(|timeout| !timeout.is_zero()).unwrap_or(WAIT_DEFAULT);
    let deadline = Instant::now() + timeout;
    for (resource, namespace, name, uid) in going {
        if !gone(cx, &resource, &namespace, &name, uid.as_deref(), Some(deadline)).await? {
            bail!("timed out waiting for the condition on {}/{name}", resource.plural);
        }
    }
    Ok(0)
}

fn tell(cx: &Context, flags: &Flags, resource: &Resource, namespace: &str, name: &str, dry_run: DryRun) -> Result<()> {
    if flags.output.is_some() {
        return cx.println(&format!("{}/{name}", resource.qualified_singular()));
    }
    let how = if flags.force { "force deleted" } else { "deleted" };
    let place = if namespace.is_empty() { String::new() } else { format!(" from {namespace} namespace") };
    cx.println(&format!("{} {name:?} {how}{place}{}", resource.qualified_singular(), output::suffix(dry_run)))
}

/// `DeleteOptions` as flags say them; `grace_seconds` below zero leaves it to the object.
pub fn options(cascade: Option<&str>, grace_seconds: i64, dry_run: DryRun) -> Result<Value> {
    let policy = match cascade {
        None | Some("background" | "true") => "Background",
        Some("foreground") => "Foreground",
        Some("orphan" | "false") => "Orphan",
        Some(other) => bail!("invalid cascade value ({other}). Must be \"background\", \"foreground\", or \"orphan\""),
    };
    let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy});
    if grace_seconds >= 0 {
        options["gracePeriodSeconds"] = grace_seconds.into();
    }
    if dry_run == DryRun::Server {
        options["dryRun"] = json!(["All"]);
    }
    Ok(options)
}

/// Deletes one object; answers the UID of what goes.
async fn delete_one(
    cx: &Context,
    resource: &Resource,
    namespace: &str,
    name: &str,
    options: &Value,
    dry_run: DryRun,
) -> Result<Option<String>> {
    let path = resource.path(namespace, name);
    if dry_run == DryRun::Client {
        cx.client()?.get(&path).await?;
        return Ok(None);
    }
    let answer = cx.client()?.delete(&path, options).await?;
    let uid = if answer["kind"] == "Status" { &answer["details"]["uid"] } else { &answer["metadata"]["uid"] };
    Ok(uid.as_str().map(str::to_owned))
}

/// Waits until the object with this UID is gone; false if the deadline came first.
pub async fn gone(
    cx: &Context,
    resource: &Resource,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
    deadline: Option<Instant>,
) -> Result<bool> {
    if !resource.has_verb("watch") {
        return Ok(true);
    }
    let other = |object: &Value| uid.is_some_and(|uid| object["metadata"]["uid"] != uid);
    match cx.client()?.get(&resource.path(namespace, name)).await {
        Ok(object) if other(&object) => return Ok(true),
        Ok(_) => {}
        Err(error) if is_not_found(&error) => return Ok(true),
        Err(error) => return Err(error),
    }
    let judge = |object: Option<&Value>| Ok(object.is_none_or(other).then_some(()));
    Ok(follow::until(cx.client()?, resource, namespace, name, deadline, judge).await?.is_some())
}
