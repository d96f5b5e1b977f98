//! `get`: tables from the server, or the objects themselves in any form of `-o`, once or as they change. It never changes anything.

use std::time::Instant;

use anyhow::{Result, bail};
use argh::{ArgsInfo, FromArgs};
use hyper::Method;
use serde_json::{Value, json};

use super::Context;
use super::jsonpath::{Template, compare};
use super::manifest::file_flags;
use super::output::{self, Form};
use super::select::{self, Pick, Wanted};
use super::table::{Options, Printer};
use super::tabwriter::Tabwriter;
use crate::api::quantity::Quantity;
use crate::client::{Change, JSON, PAGE_OBJECTS, Query, TABLE, is_not_found, refusal};

pub const EXAMPLES: &str = "# List all pods in the namespace, with more columns
edgectl get pods -o wide
# List deployments and services of all namespaces together
edgectl get deploy,svc -A
# One field of one object
edgectl get pod web-1 -o jsonpath='{.status.podIP}'
# Follow the pods with a label
edgectl get pods -l app=web -w";

file_flags! {
    /// display one or many resources
    pub struct Flags {
        #[argh(positional)]
        names: Vec<String>,
        /// output format: json, yaml, name, wide, jsonpath=TEMPLATE, jsonpath-file=FILE, jsonpath-as-json=TEMPLATE, go-template=TEMPLATE,
        /// go-template-file=FILE, custom-columns=SPEC, custom-columns-file=FILE
        #[argh(option, short = 'o', arg_name = "format")]
        output: Option<String>,
        /// template for -o jsonpath and -o go-template
        #[argh(option)]
        template: Option<String>,
        /// list the objects of all namespaces
        #[argh(switch, short = 'A')]
        all_namespaces: bool,
        /// label selector, as key1=value1,key2 in (a,b),!key3
        #[argh(option, short = 'l', default = "String::new()")]
        selector: String,
        /// field selector, as metadata.name=x,status.phase!=Running
        #[argh(option, default = "String::new()")]
        field_selector: String,
        /// after listing, show the changes as they come
        #[argh(switch, short = 'w')]
        watch: bool,
        /// show changes only, without listing first
        #[argh(switch)]
        watch_only: bool,
        /// show what happened to each object that -w prints
        #[argh(switch)]
        output_watch_events: bool,
        /// sort by this JSONPath, as .metadata.creationTimestamp
        #[argh(option)]
        sort_by: Option<String>,
        /// show all labels as the last column
        #[argh(switch)]
        show_labels: bool,
        /// labels to show as columns of their own
        #[argh(option, short = 'L')]
        label_columns: Vec<String>,
        /// print no header line
        #[argh(switch)]
        no_headers: bool,
        /// name the kind of each object
        #[argh(switch)]
        show_kind: bool,
        /// show also the pods that have ended; they always are
        #[argh(option, short = 'a', arg_name = "true|false")]
        show_all: Option<String>,
        /// an object that is not there is no error
        #[argh(switch)]
        ignore_not_found: bool,
        /// keep managedFields in JSON and YAML
        #[argh(switch)]
        show_managed_fields: bool,
        /// read this subresource: status or scale
        #[argh(option)]
        subresource: Option<String>,
        /// how many objects to ask for at once; 0 is all
        #[argh(option)]
        chunk_size: Option<u32>,
        /// let the server make the table
        #[argh(option, arg_name = "true|false")]
        server_print: Option<String>,
        /// a path of the server, printed as it answers
        #[argh(option)]
        raw: Option<String>,
    }
}

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    let _accepted = &flags.show_all;
    if let Some(path) = &flags.raw {
        let bytes = cx.client()?.raw(Method::GET, path, "application/json, */*", None).await?;
        cx.print(&bytes)?;
        return Ok(0);
    }
    let form = Form::parse(flags.output.as_deref(), flags.template.as_deref())?;
    let sources = flags.sources(false);
    if flags.names.is_empty() && flags.filename.is_empty() && flags.kustomize.is_none() {
        cx.note(
            "You must specify the type of resource to get. Use \"edgectl api-resources\" for a complete list of supported resources.\n",
        );
        bail!(
            "Required resource not specified.\nUse \"edgectl explain <resource>\" for a detailed description of that resource (e.g. \
                edgectl explain pods).\nSee 'edgectl get -h' for help and examples"
        );
    }
    let wanted = Wanted {
        names: &flags.names,
        sources,
        selector: &flags.selector,
        field_selector: &flags.field_selector,
        all: false,
        all_namespaces: flags.all_namespaces,
        types_suffice: true,
    };
    let picks = select::picks(cx, &wanted).await?;
    let get = Get { cx, flags: &flags, form: &form, picks: &picks };
    if flags.watch || flags.watch_only {
        return get.watch().await;
    }
    match &form {
        Form::Table { wide } => get.tables(*wide).await,
        _ => get.objects().await,
    }
}

struct Get<'a> {
    cx: &'a Context,
    flags: &'a Flags,
    form: &'a Form,
    picks: &'a [Pick],
}

impl Get<'_> {
    fn path(&self, pick: &Pick) -> String {
        match &self.flags.subresource {
            Some(subresource) => format!("{}/{subresource}", pick.path()),
            None => pick.path(),
        }
    }

    fn query(&self) -> Query {
        Query::new().with("labelSelector", &self.flags.selector).with("fieldSelector", &self.flags.field_selector)
    }

    fn unlisted(&self, error: anyhow::Error, pick: &Pick) -> anyhow::Error {
        select::unlisted(error, pick.resource(), &self.flags.selector, &self.flags.field_selector)
    }

    async fn unfound(&self, error: anyhow::Error, pick: &Pick) -> anyhow::Error {
        match pick {
            Pick::One { namespace, .. } => select::unfound(self.cx, error, namespace).await,
            Pick::List { .. } => error,
        }
    }

    fn limit(&self) -> String {
        match self.flags.chunk_size {
            Some(0) => String::new(),
            Some(size) => size.to_string(),
            None => PAGE_OBJECTS.to_string(),
        }
    }

    fn accept(&self) -> &'static str {
        if self.form.is_table() && self.flags.server_print.as_deref() != Some("false") { TABLE } else { JSON }
    }

    /// Templates and columns see the whole object.
    fn shows_managed_fields(&self) -> bool {
        self.flags.show_managed_fields || !matches!(self.form, Form::Json | Form::Yaml)
    }

    /// The printer for one kind; `among` are all kinds that are shown, which decides whether names carry theirs.
    fn printer(&self, pick: &Pick, among: &[&Pick], wide: bool) -> Printer {
        let several = among.iter().any(|other| !is_same_kind(pick, other));
        let kind_prefix =
            if several || self.flags.show_kind { format!("{}/", pick.resource().qualified_singular()) } else { String::new() };
        Printer::new(Options {
            wide,
            with_namespace: self.flags.all_namespaces && pick.resource().namespaced,
            kind_prefix,
            headers: !self.flags.no_headers,
            show_labels: self.flags.show_labels,
            label_columns: self.flags.label_columns.iter().flat_map(|labels| labels.split(',')).map(str::to_owned).collect(),
        })
    }

    async fn tables(&self, wide: bool) -> Result<u8> {
        let sort = self.flags.sort_by.as_deref().map(Template::parse_relaxed).transpose()?;
        let mut writer = Tabwriter::for_tables();
        let mut errors = vec![];
        let mut found: Vec<(&Pick, Vec<Value>)> = vec![];
        for pick in self.picks {
            match self.pages(pick, sort.as_ref()).await {
                Ok(tables) => found.push((pick, tables)),
                Err(error) if self.flags.ignore_not_found && is_not_found(&error) => {}
                Err(error) if refusal(&error).is_some() => errors.push(error),
                Err(error) => return Err(error),
            }
        }
        let kinds: Vec<&Pick> = found.iter().map(|(pick, _)| *pick).collect();
        let mut written = false;
        let mut last: Option<(&Pick, Printer)> = None;
        for (pick, tables) in &found {
            if !last.as_ref().is_some_and(|(other, _)| is_same_kind(pick, other)) {
                written |= self.flush(&mut writer, written)?;
                writer.forget();
                last = Some((pick, self.printer(pick, &kinds, wide)));
            }
            if let Some((_, printer)) = &mut last {
                tables.iter().for_each(|table| printer.write(table, &mut writer));
            }
        }
        written |= self.flush(&mut writer, written)?;
        for error in &errors {
            self.cx.fail(error);
        }
        if !written && errors.is_empty() && !self.flags.ignore_not_found {
            if self.flags.all_namespaces || self.picks.iter().all(|pick| !pick.resource().namespaced) {
                self.cx.note("No resources found");
            } else {
                self.cx.note(&format!("No resources found in {} namespace.", self.cx.namespace()?));
            }
        }
        Ok(0)
    }

    /// Prints what was written, an empty line before it if it is not the first.
    fn flush(&self, writer: &mut Tabwriter, written: bool) -> Result<bool> {
        let text = writer.flush();
        if text.is_empty() {
            return Ok(false);
        }
        let separator = if written && !self.flags.no_headers { "\n" } else { "" };
        self.cx.print(&format!("{separator}{text}"))?;
        Ok(true)
    }

    /// One object, or all pages of a list, as tables.
    async fn pages(&self, pick: &Pick, sort: Option<&Template>) -> Result<Vec<Value>> {
        let client = self.cx.client()?;
        let path = self.path(pick);
        if let Pick::One { .. } = pick {
            return match client.get_as(&path, &Query::new(), self.accept()).await {
                Ok(table) => Ok(vec![table]),
                Err(error) => Err(self.unfound(error, pick).await),
            };
        }
        let mut query = self.query();
        match sort {
            Some(_) => query.set("includeObject", "Object"),
            None => query.set("limit", self.limit()),
        }
        let mut tables = vec![];
        loop {
            let table = client.get_as(&path, &query, self.accept()).await;
            let mut table = table.map_err(|error| self.unlisted(error, pick))?;
            let next = table["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
            if let (Some(sort), Some(rows)) = (sort, table["rows"].as_array_mut()) {
                sort_by(rows, |row| &row["object"], sort);
            }
            tables.push(table);
            if next.is_empty() {
                return Ok(tables);
            }
            query.set("continue", next);
        }
    }

    async fn objects(&self) -> Result<u8> {
        let client = self.cx.client()?;
        let mut items = vec![];
        let mut errors = vec![];
        for pick in self.picks {
            let read = match pick {
                Pick::One { .. } => match client.get(&self.path(pick)).await {
                    Ok(object) => Ok(vec![object]),
                    Err(error) => Err(self.unfound(error, pick).await),
                },
                Pick::List { .. } => client
                    .list(&self.path(pick), &self.query())
                    .await
                    .map(|mut list| list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
                    .map_err(|error| self.unlisted(error, pick)),
            };
            match read {
                Ok(objects) => items.extend(objects),
                Err(error) if self.flags.ignore_not_found && is_not_found(&error) => {}
                Err(error) if refusal(&error).is_some() => errors.push(error),
                Err(error) => return Err(error),
            }
        }
        if let Some(sort) = self.flags.sort_by.as_deref() {
            sort_by(&mut items, |item| item, &Template::parse_relaxed(sort)?);
        }
        let single = matches!(self.picks, [Pick::One { .. }]);
        let nothing = items.is_empty()
            && (single
                || !errors.is_empty()
                || self.flags.ignore_not_found && !self.picks.iter().any(|pick| matches!(pick, Pick::List { .. })));
        if !nothing {
            let mut object = match (single, items.len()) {
                (true, 1) => items.remove(0),
                _ => json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items}),
            };
            if !self.shows_managed_fields() {
                output::without_managed_fields(&mut object);
            }
            let text = match self.form {
                Form::Columns(columns) => {
                    let rows: Vec<&Value> = match object["items"].as_array() {
                        Some(items) if !single => items.iter().collect(),
                        _ => vec![&object],
                    };
                    columns.render(&rows, !self.flags.no_headers)?.into_bytes()
                }
                form => output::render(form, &object, true)?,
            };
            self.cx.print(&text)?;
        }
        for error in &errors {
            self.cx.fail(error);
        }
        Ok(0)
    }

    async fn watch(&self) -> Result<u8> {
        let [pick] = self.picks else {
            bail!("you may only specify a single resource type");
        };
        let client = self.cx.client()?;
        let wide = matches!(self.form, Form::Table { wide: true });
        let mut show = Show { printer: self.printer(pick, &[pick], wide), writer: Tabwriter::for_tables(), first: true, get: self };
        let mut query = self.query();
        let path = match pick {
            Pick::One { resource, namespace, name, .. } => {
                query.set("fieldSelector", format!("metadata.name={name}"));
                resource.list_path(Some(namespace))
            }
            Pick::List { .. } => pick.path(),
        };
        let started = Instant::now();
        let mut version = String::new();
        let mut page = query.clone().with("limit", self.limit());
        loop {
            let list = match pick {
                Pick::One { .. } => client.get_as(&pick.path(), &Query::new(), self.accept()).await,
                Pick::List { .. } => client.get_as(&path, &page, self.accept()).await,
            };
            let list = match list {
                Err(error) if self.flags.ignore_not_found && is_not_found(&error) => break,
                list => list?,
            };
            if version.is_empty() {
                version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
            }
            let next = list["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
            if !self.flags.watch_only {
                show.objects(Change::Added, list)?;
            }
            if next.is_empty() {
                break;
            }
            page.set("continue", next);
        }
        query.set("resourceVersion", &version);
        let mut watch = client.watch(&path, &query, self.accept()).await?;
        // The limit on one answer is one on how long a watch goes on.
        let end = self.cx.request_timeout()?.map(|limit| started + limit);
        loop {
            let over = async {
                match end {
                    Some(end) => smol::Timer::at(end).await,
                    None => std::future::pending().await,
                };
                Ok(None)
            };
            let Some((change, object)) = futures_lite::future::or(watch.next(), over).await? else { return Ok(0) };
            if change != Change::Bookmark {
                show.objects(change, object)?;
            }
        }
    }
}

fn is_same_kind(one: &Pick, other: &Pick) -> bool {
    let (one, other) = (one.resource(), other.resource());
    one.kind == other.kind && one.group == other.group
}

/// Prints what a watch brings.
struct Show<'a> {
    get: &'a Get<'a>,
    printer: Printer,
    writer: Tabwriter,
    first: bool,
}

impl Show<'_> {
    fn objects(&mut self, change: Change, mut object: Value) -> Result<()> {
        if self.get.form.is_table() {
            if self.get.flags.output_watch_events {
                with_event_column(&mut object, change);
            }
            self.printer.write(&object, &mut self.writer);
            return self.get.cx.print(&self.writer.flush());
        }
        if !self.get.shows_managed_fields() {
            output::without_managed_fields(&mut object);
        }
        let whole = object["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) && object.get("items").is_some_and(Value::is_array);
        let kind = object["kind"].as_str().unwrap_or_default().trim_end_matches("List").to_owned();
        let version = object["apiVersion"].clone();
        let items = if whole { object["items"].as_array_mut().map(std::mem::take).unwrap_or_default() } else { vec![object] };
        for mut item in items {
            if item["kind"].is_null() {
                item["kind"] = kind.as_str().into();
                item["apiVersion"] = version.clone();
            }
            let item = match self.get.flags.output_watch_events {
                true => json!({"type": event_name(change), "object": item}),
                false => item,
            };
            let text = match self.get.form {
                Form::Columns(columns) => columns.render(&[&item], self.first && !self.get.flags.no_headers)?.into_bytes(),
                form => output::render(form, &item, self.first)?,
            };
            self.first = false;
            self.get.cx.print(&text)?;
        }
        Ok(())
    }
}

fn event_name(change: Change) -> &'static str {
    match change {
        Change::Added => "ADDED",
        Change::Modified => "MODIFIED",
        Change::Deleted => "DELETED",
        Change::Bookmark => "BOOKMARK",
    }
}

fn with_event_column(table: &mut Value, change: Change) {
    if let Some(columns) = table["columnDefinitions"].as_array_mut().filter(|columns| !columns.is_empty()) {
        columns.insert(0, json!({"name": "Event", "priority": 0}));
    }
    for row in table["rows"].as_array_mut().into_iter().flatten() {
        if let Some(cells) = row["cells"].as_array_mut() {
            // All of one width, whatever comes first.
            cells.insert(0, format!("{:<8}", event_name(change)).into());
        }
    }
}

/// Sorts as kubectl does: numbers and quantities by value, texts by their letters with the numbers in them counted; what has no such
/// field first.
fn sort_by<T>(rows: &mut [T], object: impl Fn(&T) -> &Value, path: &Template) {
    rows.sort_by(|a, b| {
        let key =
            |row: &T| path.results(object(row), true).ok().and_then(|results| results.concat().first().map(|found| found.value().clone()));
        let (a, b) = (key(a), key(b));
        match (&a, &b) {
            (Some(Value::String(one)), Some(Value::String(other))) => match (Quantity::parse(one), Quantity::parse(other)) {
                (Ok(one), Ok(other)) => one.cmp(&other),
                _ => natural(one, other),
            },
            (Some(one), Some(other)) => compare(one, other).unwrap_or(std::cmp::Ordering::Equal),
            (one, other) => one.is_some().cmp(&other.is_some()),
        }
    });
}

/// `web-2` before `web-10`.
fn natural(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (length_a, length_b) = (digits(a), digits(b));
        if length_a > 0 && length_b > 0 {
            let (one, other) = (a[..length_a].trim_start_matches('0'), b[..length_b].trim_start_matches('0'));
            let order = one.len().cmp(&other.len()).then(one.cmp(other)).then(length_a.cmp(&length_b));
            if order.is_ne() {
                return order;
            }
            (a, b) = (&a[length_a..], &b[length_b..]);
            continue;
        }
        match (a.chars().next(), b.chars().next()) {
            (Some(one), Some(other)) if one == other => (a, b) = (&a[one.len_utf8()..], &b[other.len_utf8()..]),
            (one, other) => return one.cmp(&other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_sort_by_value_and_by_the_numbers_in_names() {
        let check = |path: &str, mut rows: Vec<Value>, expected: &[&str]| {
            sort_by(&mut rows, |row| row, &Template::parse_relaxed(path).unwrap());
            let names: Vec<&str> = rows.iter().map(|row| row["n"].as_str().unwrap()).collect();
            assert_eq!(names, expected, "{path}");
        };
        check(".n", vec![json!({"n": "web-10"}), json!({"n": "web-2"}), json!({"n": "a"})], &["a", "web-2", "web-10"]);
        check(".q", vec![json!({"n": "b", "q": "1Gi"}), json!({"n": "a", "q": "500Mi"}), json!({"n": "c"})], &["c", "a", "b"]);
        check(".i", vec![json!({"n": "b", "i": 10}), json!({"n": "a", "i": 9})], &["a", "b"]);
    }
}
