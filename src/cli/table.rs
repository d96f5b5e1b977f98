//! Prints the server's tables as kubectl does: columns by priority, namespaces and labels beside them. It computes no cell itself,
//! but for servers that make no tables.

use serde_json::Value;

use super::tabwriter::Tabwriter;
use crate::base::time::Timestamp;

/// What `get` was asked to show beside the table's own columns.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub wide: bool,
    pub with_namespace: bool,
    /// `pod/` or `deployment.apps/` before each name; empty for none.
    pub kind_prefix: String,
    pub headers: bool,
    pub show_labels: bool,
    pub label_columns: Vec<String>,
}

/// Prints tables of one kind one after another: headers once, columns that keep their width.
pub struct Printer {
    options: Options,
    /// Column definitions of the last table that had any: those of a watch come only once.
    columns: Vec<Value>,
    headers_written: bool,
}

impl Printer {
    pub fn new(options: Options) -> Self {
        Self { options, columns: vec![], headers_written: false }
    }

    /// Writes the rows of a table, or of a plain object or list.
    pub fn write(&mut self, table: &Value, writer: &mut Tabwriter) {
        let plain;
        let table = if table["kind"] == "Table" {
            table
        } else {
            plain = plain_table(table);
            &plain
        };
        if let Some(columns) = table["columnDefinitions"].as_array().filter(|columns| !columns.is_empty()) {
            if *columns != self.columns && !self.columns.is_empty() && columns.len() != self.columns.len() {
                self.headers_written = false;
            }
            self.columns = columns.clone();
        }
        let rows: Vec<&Value> = table["rows"].as_array().into_iter().flatten().collect();
        if rows.is_empty() {
            return;
        }
        let shown: Vec<usize> =
            (0..self.columns.len()).filter(|at| self.options.wide || self.columns[*at]["priority"].as_i64().unwrap_or(0) == 0).collect();
        if self.options.headers && !self.headers_written {
            self.headers_written = true;
            let mut titles: Vec<String> = vec![];
            if self.options.with_namespace {
                titles.push("NAMESPACE".into());
            }
            titles.extend(shown.iter().map(|at| self.columns[*at]["name"].as_str().unwrap_or_default().to_uppercase()));
            titles.extend(self.options.label_columns.iter().map(|label| label.rsplit('/').next().unwrap_or(label).to_uppercase()));
            if self.options.show_labels {
                titles.push("LABELS".into());
            }
            writer.write(&format!("{}\n", titles.join("\t")));
        }
        for row in rows {
            let metadata = &row["object"]["metadata"];
            let mut cells: Vec<String> = vec![];
            if self.options.with_namespace {
                cells.push(metadata["namespace"].as_str().unwrap_or_default().to_owned());
            }
            for at in &shown {
                let cell = cell_text(&row["cells"][*at]);
                let is_name = self.columns[*at]["format"] == "name" || self.columns[*at]["name"] == "Name";
                cells.push(if is_name { format!("{}{cell}", self.options.kind_prefix) } else { cell });
            }
            for label in &self.options.label_columns {
                cells.push(metadata["labels"][label].as_str().unwrap_or_default().to_owned());
            }
            if self.options.show_labels {
                cells.push(labels_text(&metadata["labels"]));
            }
            writer.write(&format!("{}\n", cells.join("\t")));
        }
    }
}

/// One cell: only its first line, with what would disturb a terminal escaped.
fn cell_text(cell: &Value) -> String {
    let text = match cell {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let (line, cut) = match text.find(['\n', '\r', '\u{c}']) {
        Some(end) => (&text[..end], "..."),
        None => (text.as_str(), ""),
    };
    format!("{}{cut}", line.replace('\u{1b}', "^[").replace('\t', " "))
}

/// `app=web,tier=front`, in order.
pub fn labels_text(labels: &Value) -> String {
    match labels.as_object().filter(|labels| !labels.is_empty()) {
        Some(labels) => {
            let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
            pairs.join(",")
        }
        None => "<none>".to_owned(),
    }
}

/// A table of names and ages, for objects that come without one.
fn plain_table(object: &Value) -> Value {
    let items = object["items"].as_array().cloned().unwrap_or_else(|| vec![object.clone()]);
    let now = Timestamp::now();
    let rows: Vec<Value> = items
        .into_iter()
        .map(|item| {
            let created = item["metadata"]["creationTimestamp"].as_str().and_then(Timestamp::parse);
            let age = created.map_or("<unknown>".to_owned(), |created| age(now.since(created).as_secs()));
            serde_json::json!({"cells": [item["metadata"]["name"], age], "object": {"metadata": item["metadata"]}})
        })
        .collect();
    serde_json::json!({"kind": "Table", "columnDefinitions": [{"name": "Name", "format": "name"}, {"name": "Age"}], "rows": rows})
}

/// An age as people read it: `5s`, `3m20s`, `5h`, `2d`, `3y40d` (k8s.io/apimachinery/pkg/util/duration, HumanDuration).
pub fn age(seconds: u64) -> String {
    let (minutes, hours, days, years) = (seconds / 60, seconds / 3600, seconds / 86_400, seconds / 31_536_000);
    let pair = |whole: u64, unit: &str, rest: u64, small: &str| {
        if rest == 0 { format!("{whole}{unit}") } else { format!("{whole}{unit}{rest}{small}") }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => pair(days, "d", hours % 24, "h"),
        _ if years < 2 => format!("{days}d"),
        _ if years < 8 => pair(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn table() -> Value {
        json!({"kind": "Table", "columnDefinitions": [
            {"name": "Name", "format": "name", "priority": 0}, {"name": "Status", "priority": 0}, {"name": "IP", "priority": 1}],
            "rows": [
                {"cells": ["web", "Running\nreally", "10.0.0.1"],
                 "object": {"metadata": {"namespace": "shop", "labels": {"a": "b", "x/tier": "f"}}}},
                {"cells": ["db", null, 3], "object": {"metadata": {"namespace": "default"}}}]})
    }

    fn check(options: Options, expected: &str) {
        let mut writer = Tabwriter::for_tables();
        Printer::new(options).write(&table(), &mut writer);
        assert_eq!(writer.flush(), expected);
    }

    #[test]
    fn tables_show_what_was_asked_for() {
        let headers = Options { headers: true, ..Options::default() };
        check(headers.clone(), "NAME   STATUS\nweb    Running...\ndb     \n");
        check(Options { wide: true, ..headers.clone() }, "NAME   STATUS       IP\nweb    Running...   10.0.0.1\ndb                  3\n");
        check(
            Options { with_namespace: true, kind_prefix: "pod/".into(), ..headers.clone() },
            "NAMESPACE   NAME      STATUS\nshop        pod/web   Running...\ndefault     pod/db    \n",
        );
        check(
            Options { show_labels: true, label_columns: vec!["x/tier".into()], ..headers },
            "NAME   STATUS       TIER   LABELS\nweb    Running...   f      a=b,x/tier=f\ndb                         <none>\n",
        );
        check(Options::default(), "web   Running...\ndb    \n");
    }

    #[test]
    fn ages_read_as_kubectl_prints_them() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (599, "9m59s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (12_000, "3h20m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (700_000, "8d"),
            (40_000_000, "462d"),
            (70_000_000, "2y80d"),
            (300_000_000, "9y"),
        ] {
            assert_eq!(age(seconds), text, "{seconds}");
        }
    }
}
