//! `rollout`: how a Deployment, DaemonSet or StatefulSet comes from one state of its template to the next, and back. What happens is the
//! controllers' affair; this only looks and asks.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::{Map, Value, json};

use super::describe::{self, same_template, selector_query};
use super::manifest::file_flags;
use super::output::{self, DryRun, Form};
use super::select::{self, Found, Wanted};
use super::tabwriter::Tabwriter;
use super::{Context, duration, follow, three_way};
use crate::base::time::Timestamp;
use crate::client::{Patch, Query, refusal};

const REVISION: &str = "deployment.kubernetes.io/revision";
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";
/// Annotations that belong to a Deployment or a ReplicaSet itself and do not travel between them.
const OWN_ANNOTATIONS: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    "deployment.kubernetes.io/revision-history",
    "deployment.kubernetes.io/desired-replicas",
    "deployment.kubernetes.io/max-replicas",
    "deprecated.deployment.rollback.to",
];

pub const STATUS_EXAMPLES: &str = "edgectl rollout status deployment/web --timeout=60s";
pub const HISTORY_EXAMPLES: &str = "edgectl rollout history deployment/web
edgectl rollout history deployment/web --revision=2";
pub const UNDO_EXAMPLES: &str = "edgectl rollout undo deployment/web
edgectl rollout undo deployment/web --to-revision=1";

file_flags! {
    /// look at, repeat, pause or take back a rollout
    pub struct Flags {
        #[argh(positional)]
        names: Vec<String>,
        /// label selector
        #[argh(option, short = 'l', default = "String::new()")]
        selector: String,
        /// the revision to look at, or to wait for
        #[argh(option, default = "0")]
        revision: i64,
        /// the revision to go back to; 0 is the one before
        #[argh(option, default = "0")]
        to_revision: i64,
        /// wait until the rollout is over (status)
        #[argh(option, short = 'w', arg_name = "true|false")]
        watch: Option<String>,
        /// how long to wait; 0 is as long as it takes (status)
        #[argh(option)]
        timeout: Option<String>,
        /// only show what would be done
        #[argh(option, arg_name = "client|server|none")]
        dry_run: Option<String>,
        /// output format
        #[argh(option, short = 'o', arg_name = "format")]
        output: Option<String>,
        /// name that owns the fields
        #[argh(option, default = "\"kubectl-rollout\".to_owned()")]
        field_manager: String,
    }
}

async fn objects(cx: &Context, flags: &Flags) -> Result<Vec<Found>> {
    let wanted =
        Wanted { names: &flags.names, sources: flags.sources(false), selector: &flags.selector, types_suffice: true, ..Wanted::default() };
    if flags.names.is_empty() && flags.filename.is_empty() && flags.kustomize.is_none() {
        bail!("required resource not specified");
    }
    select::objects(cx, &wanted).await
}

pub async fn status(cx: &Context, flags: Flags) -> Result<u8> {
    let watch = flags.watch.as_deref() != Some("false");
    let timeout = flags.timeout.as_deref().map(duration).transpose()?.filter(|timeout| !timeout.is_zero());
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    for found in objects(cx, &flags).await? {
        let mut told = String::new();
        let judge = |object: Option<&Value>| {
            let Some(object) = object else { bail!("object has been deleted") };
            let (text, done) = progress(object, flags.revision)?;
            // A change that changes nothing for the reader is not told again.
            if text != told {
                cx.print(&text)?;
                told = text;
            }
            Ok((done || !watch).then_some(()))
        };
        if follow::until(cx.client()?, &found.resource, &found.namespace, &found.name, deadline, judge).await?.is_none() {
            bail!("timed out waiting for the condition");
        }
    }
    Ok(0)
}

/// How far a rollout is, in kubectl's words, and whether it is over.
fn progress(object: &Value, revision: i64) -> Result<(String, bool)> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let count = |field: &str| status[field].as_i64().unwrap_or_default();
    let observed = object["metadata"]["generation"].as_i64().unwrap_or_default() <= count("observedGeneration");
    match object["kind"].as_str().unwrap_or_default() {
        "Deployment" => {
            if revision > 0 {
                let current = object["metadata"]["annotations"][REVISION].as_str().and_then(|text| text.parse::<i64>().ok());
                if current != Some(revision) {
                    bail!("desired revision ({revision}) is different from the running revision ({})", current.unwrap_or_default());
                }
            }
            if !observed {
                return Ok(("Waiting for deployment spec update to be observed...\n".into(), false));
            }
            let late = status["conditions"].as_array().into_iter().flatten();
            if late
                .filter(|condition| condition["type"] == "Progressing")
                .any(|condition| condition["reason"] == "ProgressDeadlineExceeded")
            {
                bail!("deployment {name:?} exceeded its progress deadline");
            }
            let head = format!("Waiting for deployment {name:?} rollout to finish: ");
            let wanted = spec["replicas"].as_i64().unwrap_or(1);
            let (updated, total, available) = (count("updatedReplicas"), count("replicas"), count("availableReplicas"));
            if updated < wanted {
                Ok((format!("{head}{updated} out of {wanted} new replicas have been updated...\n"), false))
            } else if total > updated {
                Ok((format!("{head}{} old replicas are pending termination...\n", total - updated), false))
            } else if available < updated {
                Ok((format!("{head}{available} of {updated} updated replicas are available...\n"), false))
            } else {
                Ok((format!("deployment {name:?} successfully rolled out\n"), true))
            }
        }
        "DaemonSet" => {
            if spec["updateStrategy"]["type"] != "RollingUpdate" {
                bail!("rollout status is only available for RollingUpdate strategy type");
            }
            if !observed {
                return Ok(("Waiting for daemon set spec update to be observed...\n".into(), false));
            }
            let head = format!("Waiting for daemon set {name:?} rollout to finish: ");
            let (wanted, updated, available) = (count("desiredNumberScheduled"), count("updatedNumberScheduled"), count("numberAvailable"));
            if updated < wanted {
                Ok((format!("{head}{updated} out of {wanted} new pods have been updated...\n"), false))
            } else if available < wanted {
                Ok((format!("{head}{available} of {wanted} updated pods are available...\n"), false))
            } else {
                Ok((format!("daemon set {name:?} successfully rolled out\n"), true))
            }
        }
        "StatefulSet" => {
            if spec["updateStrategy"]["type"] != "RollingUpdate" {
                bail!("rollout status is only available for RollingUpdate strategy type");
            }
            if !observed {
                return Ok(("Waiting for statefulset spec update to be observed...\n".into(), false));
            }
            let wanted = spec["replicas"].as_i64().unwrap_or(1);
            if count("readyReplicas") < wanted {
                return Ok((format!("Waiting for {} pods to be ready...\n", wanted - count("readyReplicas")), false));
            }
            let partition = spec["updateStrategy"]["rollingUpdate"]["partition"].as_i64().unwrap_or_default();
            let updated = count("updatedReplicas");
            if partition > 0 {
                let goal = wanted - partition;
                return match updated < goal {
                    true => Ok((
                        format!("Waiting for partitioned roll out to finish: {updated} out of {goal} new pods have been updated...\n"),
                        false,
                    )),
                    false => Ok((format!("partitioned roll out complete: {updated} new pods have been updated...\n"), true)),
                };
            }
            let (update, current) =
                (status["updateRevision"].as_str().unwrap_or_default(), status["currentRevision"].as_str().unwrap_or_default());
            match update != current {
                true => Ok((format!("waiting for statefulset rolling update to complete {updated} pods at revision {update}...\n"), false)),
                false => {
                    Ok((format!("statefulset rolling update complete {} pods at revision {current}...\n", count("currentReplicas")), true))
                }
            }
        }
        other => bail!("no status viewer has been implemented for {}", other),
    }
}

/// One state that a workload's template had.
struct Revision {
    cause: String,
    template: Value,
    /// A ReplicaSet, or a ControllerRevision.
    object: Value,
}

/// The revisions of a workload, oldest first.
async fn revisions(cx: &Context, found: &Found) -> Result<BTreeMap<i64, Revision>> {
    let is_deployment = &*found.resource.kind == "Deployment";
    let plural = match &*found.resource.kind {
        "Deployment" => "replicasets",
        "DaemonSet" | "StatefulSet" => "controllerrevisions",
        other => bail!("no history viewer has been implemented for {other:?}"),
    };
    let path = format!("/apis/apps/v1/namespaces/{}/{plural}", found.namespace);
    let query = Query::new().with("labelSelector", selector_query(&found.object["spec"]["selector"]));
    let list = cx.client()?.list(&path, &query).await?;
    let mut revisions = BTreeMap::new();
    for object in list["items"].as_array().into_iter().flatten() {
        let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        if !owners.filter(|owner| owner["controller"] == true).any(|owner| owner["uid"] == found.object["metadata"]["uid"]) {
            continue;
        }
        let annotations = &object["metadata"]["annotations"];
        let number =
            if is_deployment { annotations[REVISION].as_str().and_then(|text| text.parse().ok()) } else { object["revision"].as_i64() };
        let Some(number) = number else { continue };
        let template = if is_deployment { &object["spec"]["template"] } else { &object["data"]["spec"]["template"] };
        let cause = annotations[CHANGE_CAUSE].as_str().filter(|cause| !cause.is_empty()).unwrap_or("<none>").to_owned();
        revisions.insert(number, Revision { cause, template: template.clone(), object: object.clone() });
    }
    Ok(revisions)
}

pub async fn history(cx: &Context, flags: Flags) -> Result<u8> {
    let form = Form::parse(flags.output.as_deref(), None)?;
    for found in objects(cx, &flags).await? {
        let revisions = revisions(cx, &found).await?;
        let title = format!("{}/{}", found.resource.qualified_singular(), found.name);
        if flags.revision > 0 {
            let Some(revision) = revisions.get(&flags.revision) else { bail!("unable to find the specified revision") };
            match form {
                Form::Table { .. } => {
                    cx.print(&format!("{title} with revision #{}\n{}\n", flags.revision, describe::template(&revision.template)))?
                }
                _ => cx.print(&output::render(&form, &revision.object, true)?)?,
            }
            continue;
        }
        if !form.is_table() {
            let mut objects: Vec<Value> = revisions.into_values().map(|revision| revision.object).collect();
            let object = if objects.len() == 1 {
                objects.remove(0)
            } else {
                json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": objects})
            };
            cx.print(&output::render(&form, &object, true)?)?;
            continue;
        }
        let mut writer = Tabwriter::for_descriptions();
        writer.write("REVISION\tCHANGE-CAUSE\n");
        for (number, revision) in &revisions {
            writer.write(&format!("{number}\t{}\n", revision.cause));
        }
        cx.print(&format!("{title} \n{}\n", if revisions.is_empty() { "No rollout history found.".to_owned() } else { writer.flush() }))?;
    }
    Ok(0)
}

pub async fn undo(cx: &Context, flags: Flags) -> Result<u8> {
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    for found in objects(cx, &flags).await? {
        match undo_one(cx, &found, &flags, dry_run).await {
            Ok(operation) => cx.print(&output::done(&found.resource, &found.name, &operation, dry_run))?,
            Err(error) if refusal(&error).is_some() => cx.fail(&error),
            Err(error) => return Err(error),
        }
    }
    Ok(0)
}

async fn undo_one(cx: &Context, found: &Found, flags: &Flags, dry_run: DryRun) -> Result<String> {
    let object = &found.object;
    let is_deployment = &*found.resource.kind == "Deployment";
    if object["spec"]["paused"] == true {
        bail!("you cannot rollback a paused deployment; resume it first with 'edgectl rollout resume' and try again");
    }
    let revisions = revisions(cx, found).await?;
    let target = match flags.to_revision {
        0 => {
            // Of the last two, the one that is not running.
            let mut last = revisions.iter().rev();
            match (last.next(), last.next()) {
                (Some(_), Some(before)) => before,
                _ => bail!("no rollout history found for {} {:?}", found.resource.kind.to_lowercase(), found.name),
            }
        }
        wanted => revisions.get_key_value(&wanted).ok_or_else(|| anyhow!("unable to find specified revision {wanted} in history"))?,
    };
    let (number, revision) = target;
    if same_template(&revision.template, &object["spec"]["template"]) {
        return Ok(format!("skipped rollback (current template already matches revision {number})"));
    }
    if dry_run == DryRun::Client {
        return Ok("rolled back".into());
    }
    if object["metadata"]["annotations"][super::apply::LAST_APPLIED].is_string() {
        cx.note(&format!(
            "Warning: resource {}/{} was previously managed with 'edgectl apply'. Rolling back will not update the {} annotation, which \
                may cause unexpected behavior on future 'edgectl apply' operations. Consider using 'edgectl apply' with your previous \
                configuration file instead.",
            found.resource.plural,
            found.name,
            super::apply::LAST_APPLIED
        ));
    }
    let query = Query::new().with("fieldManager", &flags.field_manager).with("dryRun", dry_run.query());
    let client = cx.client()?;
    if !is_deployment {
        client.patch(&found.path(), &query, Patch::Strategic, &revision.object["data"]).await?;
        return Ok("rolled back".into());
    }
    let mut template = revision.template.clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove("pod-template-hash");
    }
    let pick = |annotations: &Value, own: bool| -> Map<String, Value> {
        let annotations = annotations.as_object().into_iter().flatten();
        annotations
            .filter(|(key, _)| OWN_ANNOTATIONS.contains(&key.as_str()) == own)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    let mut annotations = pick(&object["metadata"]["annotations"], true);
    annotations.extend(pick(&revision.object["metadata"]["annotations"], false));
    let patch = json!([
        {"op": "replace", "path": "/spec/template", "value": template},
        {"op": "replace", "path": "/metadata/annotations", "value": annotations},
    ]);
    client.patch(&found.path(), &query, Patch::Json, &patch).await?;
    Ok("rolled back".into())
}

pub async fn restart(cx: &Context, flags: Flags) -> Result<u8> {
    change(cx, &flags, "restarted", |object| {
        if object["spec"]["paused"] == true {
            bail!("can't restart paused deployment (run rollout resume first)");
        }
        if !object["spec"]["template"].is_object() {
            bail!("restarting is not supported");
        }
        let now = Timestamp::now().to_string();
        object["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"] = now.into();
        Ok(())
    })
    .await
}

pub async fn pause(cx: &Context, flags: Flags) -> Result<u8> {
    change(cx, &flags, "paused", |object| {
        match object["kind"].as_str() {
            Some("Deployment") if object["spec"]["paused"] == true => bail!("is already paused"),
            Some("Deployment") => object["spec"]["paused"] = true.into(),
            _ => bail!("pausing is not supported"),
        }
        Ok(())
    })
    .await
}

pub async fn resume(cx: &Context, flags: Flags) -> Result<u8> {
    change(cx, &flags, "resumed", |object| {
        match object["kind"].as_str() {
            Some("Deployment") if object["spec"]["paused"] != true => bail!("is not paused"),
            Some("Deployment") => object["spec"]["paused"] = false.into(),
            _ => bail!("resuming is not supported"),
        }
        Ok(())
    })
    .await
}

async fn change(cx: &Context, flags: &Flags, operation: &str, change: impl Fn(&mut Value) -> Result<()>) -> Result<u8> {
    let dry_run = DryRun::parse(flags.dry_run.as_deref())?;
    let query = Query::new().with("fieldManager", &flags.field_manager).with("dryRun", dry_run.query());
    for found in objects(cx, flags).await? {
        let mut after = found.object.clone();
        if let Err(error) = change(&mut after) {
            cx.fail(&anyhow!("{} {:?} {error}", found.resource.qualified(), found.name));
            continue;
        }
        let (kind, patch) = three_way::difference(&found.resource.api_version(), &found.resource.kind, &found.object, &after);
        if dry_run != DryRun::Client {
            match cx.client()?.patch(&found.path(), &query, kind, &patch).await {
                Ok(_) => {}
                Err(error) if refusal(&error).is_some() => {
                    cx.fail(&error);
                    continue;
                }
                Err(error) => return Err(error),
            }
        }
        cx.print(&output::done(&found.resource, &found.name, operation, dry_run))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(generation: i64, status: Value) -> Value {
        json!({"kind": "Deployment", "metadata": {"name": "web", "generation": generation}, "spec": {"replicas": 3}, "status": status})
    }

    #[test]
    fn progress_is_told_step_by_step() {
        let check = |object: Value, expected: &str, done: bool| assert_eq!(progress(&object, 0).unwrap(), (expected.to_owned(), done));
        check(deployment(2, json!({"observedGeneration": 1})), "Waiting for deployment spec update to be observed...\n", false);
        check(
            deployment(2, json!({"observedGeneration": 2, "updatedReplicas": 1, "replicas": 4})),
            "Waiting for deployment \"web\" rollout to finish: 1 out of 3 new replicas have been updated...\n",
            false,
        );
        check(
            deployment(2, json!({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 4})),
            "Waiting for deployment \"web\" rollout to finish: 1 old replicas are pending termination...\n",
            false,
        );
        check(
            deployment(2, json!({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 2})),
            "Waiting for deployment \"web\" rollout to finish: 2 of 3 updated replicas are available...\n",
            false,
        );
        check(
            deployment(2, json!({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 3})),
            "deployment \"web\" successfully rolled out\n",
            true,
        );
        let late = json!({"observedGeneration": 2, "conditions": [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]});
        assert_eq!(progress(&deployment(2, late), 0).unwrap_err().to_string(), "deployment \"web\" exceeded its progress deadline");
    }
}
