//! `events`: what happened lately, oldest first, of everything or of one object.

use anyhow::{Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use super::Context;
use super::describe::{event_age, plain, since, time};
use super::output::{self, Form};
use super::tabwriter::Tabwriter;
use crate::client::{Change, JSON, Query};

pub const EXAMPLES: &str = "edgectl events
edgectl events --for pod/web-1 --watch
edgectl events --types=Warning -A";

/// list events
#[derive(FromArgs, ArgsInfo)]
pub struct Flags {
    #[argh(positional)]
    names: Vec<String>,
    /// only about this object, as TYPE/NAME
    #[argh(option, long = "for")]
    about: Option<String>,
    /// only of these types, as Warning,Normal
    #[argh(option)]
    types: Vec<String>,
    /// of all namespaces
    #[argh(switch, short = 'A')]
    all_namespaces: bool,
    /// after listing, show more as they come
    #[argh(switch, short = 'w')]
    watch: bool,
    /// print no header line
    #[argh(switch)]
    no_headers: bool,
    /// output format
    #[argh(option, short = 'o', arg_name = "format")]
    output: Option<String>,
}

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    if !flags.names.is_empty() {
        bail!("unknown argument {:?}; to see the events of one object, use --for TYPE/NAME", flags.names[0]);
    }
    let form = Form::parse(flags.output.as_deref(), None)?;
    let types: Vec<String> = flags.types.iter().flat_map(|types| types.split(',')).map(str::to_lowercase).collect();
    if types.iter().any(|kind| !matches!(kind.as_str(), "normal" | "warning")) {
        bail!("valid --types are Normal or Warning");
    }
    let mut query = Query::new();
    if let Some(about) = &flags.about {
        let (kind, name) = about.split_once('/').ok_or_else(|| anyhow!("--for must be in resource/name form"))?;
        let resource = cx.resolver()?.resolve(kind).await?;
        query.set("fieldSelector", format!("involvedObject.kind={},involvedObject.name={name}", resource.kind));
    }
    let namespace = cx.namespace()?;
    let path = if flags.all_namespaces { "/api/v1/events".to_owned() } else { format!("/api/v1/namespaces/{namespace}/events") };
    let mut list = cx.client()?.list(&path, &query).await?;
    let version = plain(&list["metadata"]["resourceVersion"]);
    let wanted = |event: &Value| types.is_empty() || types.contains(&plain(&event["type"]).to_lowercase());
    let mut events = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
    events.retain(wanted);
    events.sort_by_key(|event| {
        [&event["series"]["lastObservedTime"], &event["lastTimestamp"], &event["eventTime"]].into_iter().find_map(time)
    });
    if events.is_empty() && !flags.watch {
        match flags.all_namespaces {
            true => cx.note("No events found."),
            false => cx.note(&format!("No events found in {namespace} namespace.")),
        }
        return Ok(0);
    }
    let mut writer = Tabwriter::for_tables();
    match &form {
        Form::Table { .. } => {
            if !flags.no_headers {
                writer.write(if flags.all_namespaces { "NAMESPACE\t" } else { "" });
                writer.write("LAST SEEN\tTYPE\tREASON\tOBJECT\tMESSAGE\n");
            }
            events.iter().for_each(|event| writer.write(&row(event, flags.all_namespaces)));
            cx.print(&writer.flush())?;
        }
        form => cx.print(&output::render(
            form,
            &json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": events}),
            true,
        )?)?,
    }
    if !flags.watch {
        return Ok(0);
    }
    let mut watch = cx.client()?.watch(&path, &query.with("resourceVersion", version), JSON).await?;
    while let Some((change, event)) = watch.next().await? {
        if !matches!(change, Change::Added | Change::Modified) || !wanted(&event) {
            continue;
        }
        match &form {
            Form::Table { .. } => {
                writer.write(&row(&event, flags.all_namespaces));
                cx.print(&writer.flush())?;
            }
            form => cx.print(&output::render(form, &event, false)?)?,
        }
    }
    Ok(0)
}

fn row(event: &Value, with_namespace: bool) -> String {
    let namespace = if with_namespace { format!("{}\t", plain(&event["metadata"]["namespace"])) } else { String::new() };
    let about = &event["involvedObject"];
    // An event that came once and says no time of its own was when it was made.
    let age = match event_age(event) {
        age if age == "<unknown>" => since(&event["metadata"]["creationTimestamp"]),
        age => age,
    };
    let (kind, reason, message) = (plain(&event["type"]), plain(&event["reason"]), plain(&event["message"]));
    format!(
        "{namespace}{age}\t{kind}\t{reason}\t{}/{}\t{}\n",
        plain(&about["kind"]),
        plain(&about["name"]),
        message.trim().replace('\n', " ")
    )
}
