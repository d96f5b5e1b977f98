//! `explain`: the fields of a kind, from the server's own OpenAPI document. It knows no field itself.

use anyhow::{Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::Value;

use super::Context;
use crate::api::text;
use crate::client::Resource;

/// `explain --recursive` goes no deeper: some kinds hold themselves.
const DEPTH_MAX: usize = 24;
/// Descriptions are folded at this column.
const WIDTH: usize = 80;
/// How many values of a closed set a list of fields names.
const VALUES_SHOWN: usize = 4;

pub const EXAMPLES: &str = "edgectl explain pods
edgectl explain deployment.spec.strategy
edgectl explain pods.spec --recursive";

/// describe the fields of a resource
#[derive(FromArgs, ArgsInfo)]
pub struct Flags {
    #[argh(positional)]
    names: Vec<String>,
    /// show the fields of the fields too
    #[argh(switch)]
    recursive: bool,
    /// the version to explain, as apps/v1
    #[argh(option)]
    api_version: Option<String>,
    /// output format: plaintext
    #[argh(option, short = 'o', arg_name = "form")]
    output: Option<String>,
}

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    let [path] = flags.names.as_slice() else {
        bail!(
            "You must specify the type of resource to explain. Use \"edgectl api-resources\" for a complete list of supported resources."
        );
    };
    if flags.output.as_deref().is_some_and(|output| output != "plaintext") {
        bail!("--output must be 'plaintext'");
    }
    let (resource, fields) = find(cx, path).await?;
    let (group, version) = match &flags.api_version {
        Some(version) => {
            version.split_once('/').map_or((String::new(), version.clone()), |(group, version)| (group.to_owned(), version.to_owned()))
        }
        None => (resource.group.to_string(), resource.version.to_string()),
    };
    let client = cx.client()?;
    let index = client.get("/openapi/v3").await?;
    let key = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
    let Some(address) = index["paths"][&key]["serverRelativeURL"].as_str() else {
        bail!("couldn't find resource for \"{group}/{version}, Resource={}\"", resource.plural);
    };
    let document = client.get(address).await?;
    let schemas = &document["components"]["schemas"];
    let is_it = |schema: &&Value| {
        let kinds = schema["x-kubernetes-group-version-kind"].as_array().into_iter().flatten();
        kinds.into_iter().any(|known| {
            known["kind"] == *resource.kind && known["version"] == version && known["group"].as_str().unwrap_or_default() == group
        })
    };
    let root = schemas.as_object().into_iter().flatten().map(|(_, schema)| schema).find(is_it);
    let root = root.ok_or_else(|| anyhow!("GVR ({group}/{version}, Resource={}) not found in OpenAPI schema", resource.plural))?;
    let mut page = String::new();
    if !group.is_empty() {
        page += &format!("GROUP:      {group}\n");
    }
    page += &format!("KIND:       {}\nVERSION:    {version}\n\n", resource.kind);
    cx.print(&page)?;
    cx.print(&explain(schemas, root, &fields, flags.recursive)?)?;
    Ok(0)
}

/// The resource that a path begins with, and the fields behind it. A group may hold dots itself.
async fn find(cx: &Context, path: &str) -> Result<(Resource, Vec<String>)> {
    let parts: Vec<&str> = path.trim_end_matches('.').split('.').collect();
    let resolver = cx.resolver()?;
    let fields = |from: usize| parts[from..].iter().map(|part| (*part).to_owned()).collect();
    if let Some(row) = super::known(parts[0]) {
        // `deployments.apps.spec`: the longest beginning that names the same resource.
        let longest = (1..=parts.len()).rev().find(|end| super::known(&parts[..*end].join(".")).is_some()).unwrap_or(1);
        let row = super::known(&parts[..longest].join(".")).unwrap_or(row);
        return Ok((row, fields(longest)));
    }
    for end in (1..=parts.len()).rev() {
        if let Ok(row) = resolver.resolve(&parts[..end].join(".")).await {
            return Ok((row, fields(end)));
        }
    }
    let row = resolver.resolve(parts[0]).await?;
    Ok((row, fields(1)))
}

/// The schema behind references.
fn resolved<'a>(schemas: &'a Value, mut schema: &'a Value) -> &'a Value {
    for _ in 0..DEPTH_MAX {
        let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
        schema = match reference.and_then(|reference| reference.rsplit('/').next()) {
            Some(name) => &schemas[name],
            None if schema["items"].is_object() => &schema["items"],
            None if schema["additionalProperties"].is_object() => &schema["additionalProperties"],
            None => return schema,
        };
    }
    schema
}

fn type_name(schemas: &Value, schema: &Value) -> String {
    if schema["items"].is_object() {
        return format!("[]{}", type_name(schemas, &schema["items"]));
    }
    if schema["additionalProperties"].is_object() {
        return format!("map[string]{}", type_name(schemas, &schema["additionalProperties"]));
    }
    let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
    match reference {
        // A reference to a scalar, as a time, is called by what it is.
        Some(_) if resolved(schemas, schema)["type"].as_str().is_some_and(|kind| kind != "object") => {
            type_name(schemas, resolved(schemas, schema))
        }
        Some(reference) => reference.rsplit(['/', '.']).next().unwrap_or("Object").to_owned(),
        None => schema["type"].as_str().filter(|kind| *kind != "object").unwrap_or("Object").to_owned(),
    }
}

fn explain(schemas: &Value, root: &Value, fields: &[String], recursive: bool) -> Result<String> {
    let mut schema = root;
    let mut description = root["description"].as_str().unwrap_or_default();
    let mut page = String::new();
    for (index, name) in fields.iter().enumerate() {
        let inside = resolved(schemas, schema);
        let Some(field) = inside["properties"].get(name) else {
            let names = inside["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str());
            match text::likely(name, names) {
                Some(near) => bail!("field {name:?} does not exist, did you mean {near:?}?"),
                None => bail!("field {name:?} does not exist"),
            }
        };
        description = field["description"].as_str().or_else(|| resolved(schemas, field)["description"].as_str()).unwrap_or_default();
        if index + 1 == fields.len() {
            page += &format!("FIELD: {name} <{}>{}\n", type_name(schemas, field), required(inside, name));
            let values: Vec<&str> = field["enum"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            match values.is_empty() {
                true => page.push('\n'),
                false => page += &format!("ENUM:\n{}", values.iter().map(|value| format!("    {value}\n")).collect::<String>()),
            }
            page.push('\n');
        }
        schema = field;
    }
    page += "DESCRIPTION:\n";
    page += &folded(if description.is_empty() { "<empty>" } else { description }, 4);
    if !description.is_empty() {
        page += "    \n";
    }
    let inside = resolved(schemas, schema);
    if inside["properties"].as_object().is_some_and(|properties| !properties.is_empty()) {
        page += "FIELDS:\n";
        list(schemas, inside, 1, recursive, &mut page);
    }
    page.push('\n');
    Ok(page)
}

fn required(schema: &Value, name: &str) -> &'static str {
    let required = schema["required"].as_array().into_iter().flatten().any(|known| known == name);
    if required { " -required-" } else { "" }
}

fn values(field: &Value, level: usize) -> String {
    let values: Vec<&str> = field["enum"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if values.is_empty() {
        return String::new();
    }
    let indent = "  ".repeat(level);
    let more = if values.len() > VALUES_SHOWN { ", ...." } else { "" };
    let shown: Vec<&str> = values.into_iter().take(VALUES_SHOWN).map(|value| if value.is_empty() { "\"\"" } else { value }).collect();
    format!("{indent}enum: {}{more}\n", shown.join(", "))
}

fn list(schemas: &Value, schema: &Value, level: usize, recursive: bool, page: &mut String) {
    let indent = "  ".repeat(level);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        *page += &format!("{indent}{name}\t<{}>{}\n", type_name(schemas, field), required(schema, name));
        *page += &values(field, level);
        if recursive {
            if level < DEPTH_MAX {
                let inside = resolved(schemas, field);
                if inside["properties"].is_object() {
                    list(schemas, inside, level + 1, recursive, page);
                }
            }
            continue;
        }
        let description = field["description"].as_str().or_else(|| resolved(schemas, field)["description"].as_str());
        *page += &folded(description.filter(|text| !text.is_empty()).unwrap_or("<no description>"), 4);
        page.push('\n');
    }
}

/// A text in lines of at most `WIDTH`, all as deep as said.
fn folded(text: &str, indent: usize) -> String {
    let mut out = String::new();
    for paragraph in text.split('\n') {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            if !line.is_empty() && indent + line.len() + 1 + word.len() > WIDTH {
                out += &format!("{}{line}\n", " ".repeat(indent));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line += word;
        }
        out += &format!("{}{line}\n", " ".repeat(indent));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_followed_through_references() {
        let schemas = json!({
            "Pod": {"properties": {"spec": {"allOf": [{"$ref": "#/components/schemas/io.k8s.PodSpec"}], "description": "the spec"}}},
            "io.k8s.PodSpec": {"required": ["containers"], "properties": {
                "containers": {"type": "array", "items": {"$ref": "#/components/schemas/io.k8s.Container"}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}}}},
            "io.k8s.Container": {"properties": {"image": {"type": "string", "description": "where from"}}},
        });
        let text = explain(&schemas, &schemas["Pod"], &["spec".into()], false).unwrap();
        assert!(text.contains("FIELD: spec <PodSpec>\n"), "{text}");
        assert!(text.contains("  containers\t<[]Container> -required-\n"), "{text}");
        assert!(text.contains("  labels\t<map[string]string>\n"), "{text}");
        let text = explain(&schemas, &schemas["Pod"], &["spec".into(), "containers".into()], false).unwrap();
        assert!(text.contains("  image\t<string>\n    where from\n"), "{text}");
        let error = explain(&schemas, &schemas["Pod"], &["spce".into()], false).unwrap_err().to_string();
        assert_eq!(error, "field \"spce\" does not exist, did you mean \"spec\"?");
    }
}
