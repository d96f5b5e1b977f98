//! The forms of `-o`: what each verb prints of an object, beside tables. It fetches nothing.

use std::io::ErrorKind;

use anyhow::{Result, anyhow, bail};
use serde_json::{Value, json};

use super::gotemplate;
use super::jsonpath::{Template, text_of};
use super::tabwriter::Tabwriter;
use super::yaml;
use crate::client::Resource;

/// The forms that kubectl lists when it knows one not.
const ALLOWED: &str = "custom-columns,custom-columns-file,go-template,go-template-file,json,jsonpath,jsonpath-as-json,\
    jsonpath-file,kyaml,name,template,templatefile,wide,yaml";

/// What `-o` asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    Table { wide: bool },
    Name,
    Json,
    Yaml,
    JsonPath(Template),
    JsonPathAsJson(Template),
    GoTemplate(gotemplate::Template),
    Columns(Columns),
}

impl Form {
    /// Reads `-o` and `--template`; no `-o` is a table, but for a template alone, which is Go's.
    pub fn parse(output: Option<&str>, template: Option<&str>) -> Result<Self> {
        let output = output.unwrap_or_default();
        let (form, argument) = output.split_once('=').map_or((output, template), |(form, argument)| (form, Some(argument)));
        let needed = |what: &str| -> Result<&str> {
            match argument.filter(|argument| !argument.is_empty()) {
                Some(argument) => Ok(argument),
                None => bail!("{} format specified but no {what} given", what.replace(' ', "-")),
            }
        };
        let file = || -> Result<String> {
            let path = needed("template")?;
            std::fs::read_to_string(path).map_err(|error| match error.kind() {
                ErrorKind::NotFound => anyhow!("error reading --template {path}, open {path}: no such file or directory"),
                _ => anyhow!("error reading --template {path}, {error}"),
            })
        };
        Ok(match form {
            "" if argument.is_none_or(str::is_empty) => Self::Table { wide: false },
            "wide" => Self::Table { wide: true },
            "name" => Self::Name,
            "json" => Self::Json,
            "yaml" => Self::Yaml,
            "jsonpath" => Self::JsonPath(template_of(needed("template")?)?),
            "jsonpath-file" => Self::JsonPath(template_of(file()?.as_str())?),
            "jsonpath-as-json" => Self::JsonPathAsJson(template_of(needed("template")?)?),
            "custom-columns" => Self::Columns(Columns::parse(needed("custom columns")?)?),
            "custom-columns-file" => Self::Columns(Columns::parse_file(&file()?)?),
            "" | "go-template" | "template" => Self::GoTemplate(go_template_of(needed("template")?)?),
            "go-template-file" | "templatefile" => Self::GoTemplate(go_template_of(&file()?)?),
            "kyaml" => bail!("-o kyaml is not supported; -o yaml says the same"),
            other => bail!("unable to match a printer suitable for the output format {other:?}, allowed formats are: {ALLOWED}"),
        })
    }

    pub fn is_table(&self) -> bool {
        matches!(self, Self::Table { .. })
    }
}

fn template_of(text: &str) -> Result<Template> {
    Template::parse(text).map_err(|error| anyhow!("error parsing jsonpath {text}, {error}"))
}

fn go_template_of(text: &str) -> Result<gotemplate::Template> {
    gotemplate::Template::parse(text).map_err(|error| anyhow!("error parsing template {text}, {error}"))
}

/// Without `--show-managed-fields` nobody wants to see them.
pub fn without_managed_fields(object: &mut Value) {
    // Not by index: that would put a null where there is nothing.
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    for item in object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        without_managed_fields(item);
    }
}

/// One object, or a list, in one of the forms that are no table. Several YAML documents are parted by `---`, which `first` says.
pub fn render(form: &Form, object: &Value, first: bool) -> Result<Vec<u8>> {
    let text = match form {
        Form::Yaml => {
            let separator = if first { "" } else { "---\n" };
            format!("{separator}{}", yaml::yaml(object))
        }
        Form::Json => yaml::json(object),
        Form::Name => items(object).into_iter().map(|item| format!("{}\n", name(item))).collect(),
        Form::JsonPath(template) => match template.render(object) {
            Ok(text) => text,
            Err(error) => bail!("error executing jsonpath {:?}: Error executing template: {error:#}", template.source()),
        },
        // The one form that may give bytes that are no text.
        Form::GoTemplate(template) => {
            return template.render(object).map_err(|error| anyhow!("error executing template {}: {error}", template.quoted_source()));
        }
        Form::JsonPathAsJson(template) => {
            let results = template.results(object, false)?.concat();
            let results: Vec<Value> = results.iter().map(|found| found.value().clone()).collect();
            yaml::json(&json!(results))
        }
        Form::Columns(columns) => columns.render(&items(object), true)?,
        Form::Table { .. } => format!("{}\n", name(object)),
    };
    Ok(text.into_bytes())
}

fn items(object: &Value) -> Vec<&Value> {
    match object["items"].as_array() {
        Some(items) if object["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) => items.iter().collect(),
        _ => vec![object],
    }
}

/// `deployment.apps/web`, by what the object says of itself.
pub fn name(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    match object["apiVersion"].as_str().and_then(|version| version.split_once('/')) {
        Some((group, _)) => format!("{kind}.{group}/{name}"),
        None => format!("{kind}/{name}"),
    }
}

/// `deployment.apps/web created`, with what a dry run adds.
pub fn done(resource: &Resource, name: &str, operation: &str, dry_run: DryRun) -> String {
    format!("{}/{name} {operation}{}\n", resource.qualified_singular(), suffix(dry_run))
}

/// What a line says of an operation that was only tried.
pub fn suffix(dry_run: DryRun) -> &'static str {
    match dry_run {
        DryRun::None => "",
        DryRun::Client => " (dry run)",
        DryRun::Server => " (server dry run)",
    }
}

/// `--dry-run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DryRun {
    None,
    Client,
    Server,
}

impl DryRun {
    pub fn parse(text: Option<&str>) -> Result<Self> {
        match text {
            None | Some("none" | "false") => Ok(Self::None),
            Some("client" | "true" | "unchanged") => Ok(Self::Client),
            Some("server") => Ok(Self::Server),
            Some(other) => bail!("Invalid dry-run value ({other}). Must be \"none\", \"server\", or \"client\"."),
        }
    }

    /// What stands in the query.
    pub fn query(self) -> &'static str {
        if self == Self::Server { "All" } else { "" }
    }
}

/// `-o custom-columns`: headers and where their values are.
#[derive(Debug, Clone, PartialEq)]
pub struct Columns {
    headers: Vec<String>,
    templates: Vec<Template>,
}

impl Columns {
    fn parse(spec: &str) -> Result<Self> {
        let mut columns = Self { headers: vec![], templates: vec![] };
        for part in spec.split(',') {
            let Some((header, path)) = part.split_once(':') else {
                bail!("unexpected custom-columns spec: {part}, expected <header>:<json-path-expr>")
            };
            columns.headers.push(header.to_owned());
            columns.templates.push(Template::parse_relaxed(path)?);
        }
        Ok(columns)
    }

    fn parse_file(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let words = |line: Option<&str>| -> Vec<String> { line.unwrap_or_default().split_whitespace().map(str::to_owned).collect() };
        let (headers, paths) = (words(lines.next()), words(lines.next()));
        if headers.is_empty() || headers.len() != paths.len() {
            bail!("number of headers ({}) and field specifications ({}) don't match", headers.len(), paths.len());
        }
        Ok(Self { headers, templates: paths.iter().map(|path| Template::parse_relaxed(path)).collect::<Result<_>>()? })
    }

    /// Rows below their headers.
    pub fn render(&self, objects: &[&Value], headers: bool) -> Result<String> {
        let mut writer = Tabwriter::for_tables();
        if headers {
            writer.write(&format!("{}\n", self.headers.join("\t")));
        }
        for object in objects {
            let mut cells = vec![];
            for template in &self.templates {
                let found = template.results(object, true)?.concat();
                let texts: Vec<String> = found.iter().map(|found| shown(found.value())).collect();
                cells.push(if texts.is_empty() { "<none>".to_owned() } else { texts.join(",") });
            }
            writer.write(&format!("{}\n", cells.join("\t")));
        }
        Ok(writer.flush())
    }
}

/// A value in a custom column, as Go prints one.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<none>".to_owned(),
        Value::Array(_) | Value::Object(_) => gotemplate::shown(value),
        other => text_of(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_and_mistakes_named() {
        assert_eq!(Form::parse(None, None).unwrap(), Form::Table { wide: false });
        assert_eq!(Form::parse(Some("wide"), None).unwrap(), Form::Table { wide: true });
        assert!(matches!(Form::parse(Some("jsonpath={.a}"), None).unwrap(), Form::JsonPath(_)));
        assert!(matches!(Form::parse(Some("jsonpath"), Some("{.a}")).unwrap(), Form::JsonPath(_)));
        let error = |output: &str| Form::parse(Some(output), None).unwrap_err().to_string();
        assert!(error("foo").starts_with("unable to match a printer suitable for the output format \"foo\""));
        assert_eq!(error("jsonpath"), "template format specified but no template given");
        assert!(matches!(Form::parse(None, Some("{{.a}}")).unwrap(), Form::GoTemplate(_)));
        assert_eq!(error("go-template={{.a"), "error parsing template {{.a, template: output:1: unclosed action");
        assert!(error("kyaml").contains("not supported"));
    }

    #[test]
    fn custom_columns_show_what_there_is() {
        let objects = [json!({"metadata": {"name": "a", "labels": {"x": "1"}}, "list": [1, "b"]}), json!({"metadata": {"name": "bb"}})];
        let objects: Vec<&Value> = objects.iter().collect();
        let columns = Columns::parse("NAME:.metadata.name,LABELS:.metadata.labels,LIST:.list,ITEM:.list[*]").unwrap();
        assert_eq!(
            columns.render(&objects, true).unwrap(),
            "NAME   LABELS     LIST     ITEM\na      map[x:1]   [1 b]    1,b\nbb     <none>     <none>   <none>\n"
        );
        assert!(Columns::parse("NAME").is_err());
    }

    #[test]
    fn names_carry_kind_and_group() {
        assert_eq!(name(&json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}})), "pod/a");
        assert_eq!(name(&json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "a"}})), "deployment.apps/a");
    }
}
