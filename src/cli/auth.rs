//! `auth can-i` and `auth whoami`: what the server thinks of whoever asks.

use anyhow::{Result, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

use super::Context;
use super::describe::rule_rows;
use super::output::{self, Form};
use super::tabwriter::Tabwriter;
use crate::client::Query;

pub const CAN_I_EXAMPLES: &str = "edgectl auth can-i create pods --all-namespaces
edgectl auth can-i get pods --subresource=log
edgectl auth can-i --list";

/// check whether an action is allowed
#[derive(FromArgs, ArgsInfo)]
pub struct CanIFlags {
    #[argh(positional)]
    words: Vec<String>,
    /// the subresource, as log or scale
    #[argh(option, default = "String::new()")]
    subresource: String,
    /// list everything that is allowed
    #[argh(switch)]
    list: bool,
    /// print nothing; the exit code tells
    #[argh(switch, short = 'q')]
    quiet: bool,
    /// in all namespaces
    #[argh(switch, short = 'A')]
    all_namespaces: bool,
    /// print no header line
    #[argh(switch)]
    no_headers: bool,
}

pub async fn can_i(cx: &Context, flags: CanIFlags) -> Result<u8> {
    let namespace = if flags.all_namespaces { String::new() } else { cx.namespace()? };
    if flags.list {
        return list(cx, &namespace, flags.no_headers).await;
    }
    let (verb, what, name) = match flags.words.as_slice() {
        [verb, what] => (verb, what.as_str(), None),
        [verb, what, name] => (verb, what.as_str(), Some(name.as_str())),
        _ => bail!(
            "you must specify two arguments: verb resource or verb resource/resourceName.\nSee 'edgectl auth can-i -h' for help and \
                examples."
        ),
    };
    let spec = if what.starts_with('/') {
        json!({"nonResourceAttributes": {"path": what, "verb": verb}})
    } else {
        let (word, name) = what.split_once('/').map_or((what, name), |(word, name)| (word, Some(name)));
        let (group, plural, namespaced) = match cx.resolver()?.resolve(word).await {
            Ok(row) => (row.group.to_string(), row.plural.to_string(), row.namespaced),
            Err(_) if word == "*" => ("*".to_owned(), "*".to_owned(), true),
            Err(_) => {
                if !flags.quiet {
                    cx.note(&format!("Warning: the server doesn't have a resource type '{word}'\n"));
                }
                (String::new(), word.to_owned(), true)
            }
        };
        let mut attributes = json!({"verb": verb, "group": group, "resource": plural});
        if namespaced && !namespace.is_empty() {
            attributes["namespace"] = namespace.as_str().into();
        } else if !namespaced && !flags.all_namespaces && !flags.quiet {
            let group = if group.is_empty() { String::new() } else { format!(" in group '{group}'") };
            cx.note(&format!("Warning: resource '{plural}' is not namespace scoped{group}\n"));
        }
        if let Some(name) = name {
            attributes["name"] = name.into();
        }
        if !flags.subresource.is_empty() {
            attributes["subresource"] = flags.subresource.as_str().into();
        }
        json!({"resourceAttributes": attributes})
    };
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec});
    let answer = cx.client()?.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &Query::new(), &review).await?;
    let status = &answer["status"];
    let allowed = status["allowed"] == true;
    if !flags.quiet {
        let mut text = if allowed { "yes" } else { "no" }.to_owned();
        for (key, label) in [("reason", ""), ("evaluationError", "")] {
            if let Some(why) = status[key].as_str().filter(|why| !why.is_empty() && !allowed) {
                text += &format!(" - {label}{why}");
            }
        }
        cx.println(&text)?;
    }
    Ok(u8::from(!allowed))
}

async fn list(cx: &Context, namespace: &str, no_headers: bool) -> Result<u8> {
    let namespace = if namespace.is_empty() { "default" } else { namespace };
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": namespace}});
    let answer = cx.client()?.create("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", &Query::new(), &review).await?;
    let status = &answer["status"];
    if status["incomplete"] == true {
        cx.note("warning: the list may be incomplete");
    }
    let rules = ["resourceRules", "nonResourceRules"].into_iter().flat_map(|list| status[list].as_array().into_iter().flatten());
    let mut writer = Tabwriter::for_tables();
    if !no_headers {
        writer.write("Resources\tNon-Resource URLs\tResource Names\tVerbs\n");
    }
    for row in rule_rows(rules) {
        writer.write(&format!("{}\n", row.join("\t")));
    }
    cx.print(&writer.flush())?;
    Ok(0)
}

/// show as whom the server knows you
#[derive(FromArgs, ArgsInfo)]
pub struct WhoamiFlags {
    /// output format
    #[argh(option, short = 'o', arg_name = "format")]
    output: Option<String>,
}

pub async fn whoami(cx: &Context, flags: WhoamiFlags) -> Result<u8> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = cx.client()?.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", &Query::new(), &review).await?;
    let form = Form::parse(flags.output.as_deref(), None)?;
    if !form.is_table() {
        cx.print(&output::render(&form, &answer, true)?)?;
        return Ok(0);
    }
    let user = &answer["status"]["userInfo"];
    let list = |value: &Value| value.as_array().map(|words| words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "));
    let mut writer = Tabwriter::for_tables();
    writer.write("ATTRIBUTE\tVALUE\n");
    for (label, key) in [("Username", "username"), ("UID", "uid")] {
        if let Some(text) = user[key].as_str().filter(|text| !text.is_empty()) {
            writer.write(&format!("{label}\t{text}\n"));
        }
    }
    if let Some(groups) = list(&user["groups"]) {
        writer.write(&format!("Groups\t[{groups}]\n"));
    }
    for (key, value) in user["extra"].as_object().into_iter().flatten() {
        writer.write(&format!("Extra: {key}\t[{}]\n", list(value).unwrap_or_default()));
    }
    cx.print(&writer.flush())?;
    Ok(0)
}
