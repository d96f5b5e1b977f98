//! Describes what makes pods: Deployments, ReplicaSets, StatefulSets, DaemonSets, Jobs, CronJobs. It asks nobody: pods, events and
//! ReplicaSets are handed in.

use serde_json::Value;

use super::page::{Page, controller, date, joined, number, or, plain, selector_text, time, yes_no};
use super::pod::template;
use crate::cli::table::age;

/// How many pods of a controller are in which phase.
#[derive(Debug, Default, PartialEq)]
pub struct Phases {
    running: usize,
    waiting: usize,
    succeeded: usize,
    failed: usize,
}

impl Phases {
    /// Counts the pods that the owner controls.
    pub fn count(pods: &[Value], owner: &Value) -> Self {
        let mut phases = Self::default();
        for pod in pods {
            let owners = pod["metadata"]["ownerReferences"].as_array().into_iter().flatten();
            let own =
                owners.filter(|reference| reference["controller"] == true).any(|reference| reference["uid"] == owner["metadata"]["uid"]);
            match pod["status"]["phase"].as_str().filter(|_| own) {
                Some("Running") => phases.running += 1,
                Some("Pending") => phases.waiting += 1,
                Some("Succeeded") => phases.succeeded += 1,
                Some("Failed") => phases.failed += 1,
                _ => {}
            }
        }
        phases
    }

    fn text(&self) -> String {
        format!("{} Running / {} Waiting / {} Succeeded / {} Failed", self.running, self.waiting, self.succeeded, self.failed)
    }
}

pub fn deployment(deployment: &Value, replica_sets: &[Value], events: Option<&[Value]>) -> String {
    let (spec, status) = (&deployment["spec"], &deployment["status"]);
    let mut page = Page::new();
    page.head(deployment);
    page.field(0, "CreationTimestamp", &date(&deployment["metadata"]["creationTimestamp"]));
    page.labels_and_annotations(deployment);
    page.field(0, "Selector", &selector_text(&spec["selector"]));
    let replicas = format!(
        "{} desired | {} updated | {} total | {} available | {} unavailable",
        number(&spec["replicas"]),
        number(&status["updatedReplicas"]),
        number(&status["replicas"]),
        number(&status["availableReplicas"]),
        number(&status["unavailableReplicas"])
    );
    page.field(0, "Replicas", &replicas);
    page.field(0, "StrategyType", &plain(&spec["strategy"]["type"]));
    page.field(0, "MinReadySeconds", &number(&spec["minReadySeconds"]).to_string());
    let rolling = &spec["strategy"]["rollingUpdate"];
    if rolling.is_object() {
        let text = format!("{} max unavailable, {} max surge", plain(&rolling["maxUnavailable"]), plain(&rolling["maxSurge"]));
        page.field(0, "RollingUpdateStrategy", &text);
    }
    template(&mut page, &spec["template"]);
    page.conditions_with_reason(&status["conditions"]);
    let own = |set: &&Value| {
        let owners = set["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        owners.filter(|owner| owner["controller"] == true).any(|owner| owner["uid"] == deployment["metadata"]["uid"])
    };
    let mut own: Vec<&Value> = replica_sets.iter().filter(own).collect();
    own.sort_by_key(|set| plain(&set["metadata"]["creationTimestamp"]));
    let current = own.iter().position(|set| same_template(&set["spec"]["template"], &spec["template"]));
    let current: Vec<&Value> = current.map(|at| own.remove(at)).into_iter().collect();
    if !own.is_empty() || !current.is_empty() {
        page.field(0, "OldReplicaSets", &sets_text(&own));
        page.field(0, "NewReplicaSet", &sets_text(&current));
    }
    page.events(events);
    page.finish()
}

/// Two templates are the same but for the label that tells ReplicaSets apart.
pub fn same_template(one: &Value, other: &Value) -> bool {
    let bare = |template: &Value| {
        let mut template = template.clone();
        if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
            labels.remove("pod-template-hash");
        }
        template
    };
    bare(one) == bare(other)
}

fn sets_text(sets: &[&Value]) -> String {
    let text = |set: &&Value| {
        let (current, wanted) = (number(&set["status"]["replicas"]), number(&set["spec"]["replicas"]));
        format!("{} ({current}/{wanted} replicas created)", plain(&set["metadata"]["name"]))
    };
    or(sets.iter().map(text).collect::<Vec<_>>().join(", "), "<none>")
}

/// ReplicaSets, and ReplicationControllers, whose selector is a plain map.
pub fn replica_set(set: &Value, phases: &Phases, events: Option<&[Value]>) -> String {
    let (spec, status) = (&set["spec"], &set["status"]);
    let mut page = Page::new();
    page.head(set);
    let is_set = set["kind"] == "ReplicaSet";
    page.field(0, "Selector", &if is_set { selector_text(&spec["selector"]) } else { joined(&spec["selector"]) });
    page.labels_and_annotations(set);
    if let Some(controller) = controller(set).filter(|_| is_set) {
        page.field(0, "Controlled By", &controller);
    }
    page.field(0, "Replicas", &format!("{} current / {} desired", number(&status["replicas"]), number(&spec["replicas"])));
    page.field(0, "Pods Status", &phases.text());
    template(&mut page, &spec["template"]);
    page.conditions_with_reason(&status["conditions"]);
    page.events(events);
    page.finish()
}

pub fn stateful_set(set: &Value, phases: &Phases, events: Option<&[Value]>) -> String {
    let (spec, status) = (&set["spec"], &set["status"]);
    let mut page = Page::new();
    page.head(set);
    page.field(0, "CreationTimestamp", &date(&set["metadata"]["creationTimestamp"]));
    page.field(0, "Selector", &selector_text(&spec["selector"]));
    page.labels_and_annotations(set);
    page.field(0, "Replicas", &format!("{} desired | {} total", number(&spec["replicas"]), number(&status["replicas"])));
    page.field(0, "Update Strategy", &plain(&spec["updateStrategy"]["type"]));
    let rolling = &spec["updateStrategy"]["rollingUpdate"];
    if !rolling["partition"].is_null() {
        page.field(1, "Partition", &plain(&rolling["partition"]));
        page.field_if(1, "MaxUnavailable", &rolling["maxUnavailable"]);
    }
    page.field(0, "Pods Status", &phases.text());
    template(&mut page, &spec["template"]);
    let claims: Vec<&Value> = spec["volumeClaimTemplates"].as_array().into_iter().flatten().collect();
    page.line(0, if claims.is_empty() { "Volume Claims:\t<none>" } else { "Volume Claims:" });
    for claim in claims {
        page.field(1, "Name", &plain(&claim["metadata"]["name"]));
        page.field(1, "StorageClass", &plain(&claim["spec"]["storageClassName"]));
        page.labels("  ", "Labels", &claim["metadata"]["labels"]);
        page.labels("  ", "Annotations", &claim["metadata"]["annotations"]);
        page.field(1, "Capacity", &or(plain(&claim["spec"]["resources"]["requests"]["storage"]), "<default>"));
        page.field(1, "Access Modes", &format!("[{}]", super::page::texts(&claim["spec"]["accessModes"]).join(" ")));
    }
    page.events(events);
    page.finish()
}

pub fn daemon_set(set: &Value, phases: &Phases, events: Option<&[Value]>) -> String {
    let (spec, status) = (&set["spec"], &set["status"]);
    let mut page = Page::new();
    page.head(set);
    page.field(0, "Selector", &selector_text(&spec["selector"]));
    page.field(0, "Node-Selector", &joined(&spec["template"]["spec"]["nodeSelector"]));
    page.labels_and_annotations(set);
    for (label, field) in [
        ("Desired Number of Nodes Scheduled", "desiredNumberScheduled"),
        ("Current Number of Nodes Scheduled", "currentNumberScheduled"),
        ("Number of Nodes Scheduled with Up-to-date Pods", "updatedNumberScheduled"),
        ("Number of Nodes Scheduled with Available Pods", "numberAvailable"),
        ("Number of Nodes Misscheduled", "numberMisscheduled"),
    ] {
        page.line(0, &format!("{label}: {}", number(&status[field])));
    }
    page.field(0, "Pods Status", &phases.text());
    template(&mut page, &spec["template"]);
    page.events(events);
    page.finish()
}

pub fn job(job: &Value, events: Option<&[Value]>) -> String {
    let (spec, status) = (&job["spec"], &job["status"]);
    let mut page = Page::new();
    page.head(job);
    page.field(0, "Selector", &selector_text(&spec["selector"]));
    page.labels_and_annotations(job);
    if let Some(controller) = controller(job) {
        page.field(0, "Controlled By", &controller);
    }
    page.field_if(0, "Parallelism", &spec["parallelism"]);
    page.field(0, "Completions", &or(plain(&spec["completions"]), "<unset>"));
    page.field_if(0, "Completion Mode", &spec["completionMode"]);
    page.field_if(0, "Suspend", &spec["suspend"]);
    page.field_if(0, "Backoff Limit", &spec["backoffLimit"]);
    page.field_if(0, "TTL Seconds After Finished", &spec["ttlSecondsAfterFinished"]);
    for (label, field) in [("Start Time", "startTime"), ("Completed At", "completionTime")] {
        if status[field].is_string() {
            page.field(0, label, &date(&status[field]));
        }
    }
    if let (Some(start), Some(end)) = (time(&status["startTime"]), time(&status["completionTime"])) {
        page.field(0, "Duration", &age(end.since(start).as_secs()));
    }
    if let Some(seconds) = spec["activeDeadlineSeconds"].as_i64() {
        page.field(0, "Active Deadline Seconds", &format!("{seconds}s"));
    }
    let ready = status["ready"].as_i64().map_or(String::new(), |ready| format!(" ({ready} Ready)"));
    let (active, succeeded, failed) = (number(&status["active"]), number(&status["succeeded"]), number(&status["failed"]));
    page.field(0, "Pods Statuses", &format!("{active} Active{ready} / {succeeded} Succeeded / {failed} Failed"));
    if spec["completionMode"] == "Indexed" {
        page.field(0, "Completed Indexes", &or(plain(&status["completedIndexes"]), "<none>"));
    }
    template(&mut page, &spec["template"]);
    page.events(events);
    page.finish()
}

pub fn cron_job(cron: &Value, events: Option<&[Value]>) -> String {
    let (spec, status) = (&cron["spec"], &cron["status"]);
    let unset = |value: &Value| or(plain(value), "<unset>");
    let mut page = Page::new();
    page.head(cron);
    page.labels_and_annotations(cron);
    page.field(0, "Schedule", &plain(&spec["schedule"]));
    page.field(0, "Concurrency Policy", &plain(&spec["concurrencyPolicy"]));
    page.field(0, "Suspend", if spec["suspend"].is_null() { "<unset>" } else { yes_no(&spec["suspend"]) });
    page.field(0, "Time Zone", &unset(&spec["timeZone"]));
    page.field(0, "Successful Job History Limit", &unset(&spec["successfulJobsHistoryLimit"]));
    page.field(0, "Failed Job History Limit", &unset(&spec["failedJobsHistoryLimit"]));
    let deadline = spec["startingDeadlineSeconds"].as_i64().map_or("<unset>".to_owned(), |seconds| format!("{seconds}s"));
    page.field(0, "Starting Deadline Seconds", &deadline);
    let job = &spec["jobTemplate"]["spec"];
    page.field(0, "Selector", &if job["selector"].is_object() { selector_text(&job["selector"]) } else { "<unset>".to_owned() });
    page.field(0, "Parallelism", &unset(&job["parallelism"]));
    page.field(0, "Completions", &unset(&job["completions"]));
    if let Some(seconds) = job["activeDeadlineSeconds"].as_i64() {
        page.field(0, "Active Deadline Seconds", &format!("{seconds}s"));
    }
    template(&mut page, &job["template"]);
    let last = &status["lastScheduleTime"];
    page.field(0, "Last Schedule Time", &if last.is_string() { date(last) } else { "<unset>".to_owned() });
    let active: Vec<String> = status["active"].as_array().into_iter().flatten().map(|job| plain(&job["name"])).collect();
    page.field(0, "Active Jobs", &or(active.join(", "), "<none>"));
    page.events(events);
    page.finish()
}
