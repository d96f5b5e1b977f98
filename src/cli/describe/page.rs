//! The page that a description is written on: indented lines of tab-parted cells, and the pieces that many kinds share.
//! It asks nobody for anything.

use serde_json::{Map, Value};

use crate::base::time::Timestamp;
use crate::cli::table::age;
use crate::cli::tabwriter::Tabwriter;

/// Annotations longer than this go on lines of their own, cut.
const ANNOTATION_MAX: usize = 140;
/// What `apply` keeps for itself.
const HIDDEN_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A description being written.
pub struct Page {
    writer: Tabwriter,
    done: String,
}

impl Page {
    pub fn new() -> Self {
        Self { writer: Tabwriter::for_descriptions(), done: String::new() }
    }

    /// A line, two spaces deep for each level.
    pub fn line(&mut self, level: usize, text: &str) {
        self.writer.write(&format!("{}{text}\n", "  ".repeat(level)));
    }

    /// `Label:` and a value.
    pub fn field(&mut self, level: usize, label: &str, value: &str) {
        self.line(level, &format!("{label}:\t{value}"));
    }

    /// `Label:` and a value, if it has one.
    pub fn field_if(&mut self, level: usize, label: &str, value: &Value) {
        let text = plain(value);
        if !text.is_empty() {
            self.field(level, label, &text);
        }
    }

    /// Ends all columns: what follows has widths of its own.
    pub fn end_columns(&mut self) {
        self.done += &self.writer.flush();
    }

    /// The page as it was written, with its tabs.
    pub fn finish_as_written(self) -> String {
        self.done + &self.writer.pending()
    }

    pub fn finish(mut self) -> String {
        self.end_columns();
        self.done
    }

    /// Several values of one label below each other, `<none>` if there is none.
    pub fn list(&mut self, indent: &str, label: &str, values: &[String]) {
        if values.is_empty() {
            return self.line(0, &format!("{indent}{label}:\t<none>"));
        }
        for (index, value) in values.iter().enumerate() {
            let head = if index == 0 { format!("{label}:") } else { String::new() };
            self.line(0, &format!("{indent}{head}\t{value}"));
        }
    }

    /// Labels, a node selector: `key=value` below each other.
    pub fn labels(&mut self, indent: &str, label: &str, labels: &Value) {
        self.list(indent, label, &pairs(labels, "="));
    }

    pub fn annotations(&mut self, label: &str, annotations: &Value) {
        let empty = Map::new();
        let shown: Vec<(&String, &Value)> =
            annotations.as_object().unwrap_or(&empty).iter().filter(|(key, _)| *key != HIDDEN_ANNOTATION).collect();
        if shown.is_empty() {
            return self.line(0, &format!("{label}:\t<none>"));
        }
        for (index, (key, value)) in shown.into_iter().enumerate() {
            let head = if index == 0 { format!("{label}:") } else { String::new() };
            let value = plain(value);
            let value = value.strip_suffix('\n').unwrap_or(&value);
            if value.len() + key.len() + 2 <= ANNOTATION_MAX && !value.contains('\n') {
                self.line(0, &format!("{head}\t{key}: {value}"));
                continue;
            }
            self.line(0, &format!("{head}\t{key}:"));
            for line in value.split('\n') {
                let cut: String = line.chars().take(ANNOTATION_MAX - 2).collect();
                let dots = if cut.len() < line.len() { "..." } else { "" };
                self.line(0, &format!("\t  {cut}{dots}"));
            }
        }
    }

    /// Name, namespace, labels and annotations, as most kinds begin.
    pub fn head(&mut self, object: &Value) {
        let metadata = &object["metadata"];
        self.field(0, "Name", &plain(&metadata["name"]));
        self.field(0, "Namespace", &plain(&metadata["namespace"]));
    }

    pub fn labels_and_annotations(&mut self, object: &Value) {
        self.labels("", "Labels", &object["metadata"]["labels"]);
        self.annotations("Annotations", &object["metadata"]["annotations"]);
    }

    pub fn tolerations(&mut self, label: &str, tolerations: &Value) {
        let mut tolerations: Vec<&Value> = tolerations.as_array().into_iter().flatten().collect();
        tolerations.sort_by_key(|toleration| plain(&toleration["key"]));
        let texts: Vec<String> = tolerations.into_iter().map(toleration_text).collect();
        self.list("", label, &texts);
    }

    /// Type, status and reason of a workload's conditions.
    pub fn conditions_with_reason(&mut self, conditions: &Value) {
        let conditions: Vec<&Value> = conditions.as_array().into_iter().flatten().collect();
        if conditions.is_empty() {
            return;
        }
        self.line(0, "Conditions:");
        self.line(1, "Type\tStatus\tReason");
        self.line(1, "----\t------\t------");
        for condition in conditions {
            self.line(1, &format!("{} \t{}\t{}", plain(&condition["type"]), plain(&condition["status"]), plain(&condition["reason"])));
        }
    }

    /// The events of an object, oldest first; none if the server was not asked.
    pub fn events(&mut self, events: Option<&[Value]>) {
        let Some(events) = events else { return };
        if events.is_empty() {
            return self.field(0, "Events", "<none>");
        }
        self.end_columns();
        self.line(0, "Events:");
        self.line(1, "Type\tReason\tAge\tFrom\tMessage");
        self.line(1, "----\t------\t----\t----\t-------");
        let mut events: Vec<&Value> = events.iter().collect();
        events.sort_by_key(|event| time(&event["lastTimestamp"]).map(|at| at.0).unwrap_or_default());
        for event in events {
            let from = match plain(&event["source"]["component"]) {
                component if component.is_empty() => plain(&event["reportingComponent"]),
                component => component,
            };
            let message = plain(&event["message"]);
            let message = match plain(&event["involvedObject"]["fieldPath"]) {
                path if path.is_empty() => message.trim().to_owned(),
                path => format!("{path}: {}", message.trim()),
            };
            let (kind, reason) = (plain(&event["type"]), plain(&event["reason"]));
            self.line(1, &format!("{kind}\t{reason}\t{}\t{from}\t{message}", event_age(event)));
        }
    }
}

/// `5s (x3 over 2m)`.
pub fn event_age(event: &Value) -> String {
    let first = if time(&event["eventTime"]).is_some() { since(&event["eventTime"]) } else { since(&event["firstTimestamp"]) };
    let count = event["count"].as_i64().unwrap_or_default();
    if event["series"].is_object() {
        format!("{} (x{} over {first})", since(&event["series"]["lastObservedTime"]), plain(&event["series"]["count"]))
    } else if count > 1 {
        format!("{} (x{count} over {first})", since(&event["lastTimestamp"]))
    } else {
        first
    }
}

/// A scalar without quotes; nothing for what is not there.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// A text, or what stands for its absence.
pub fn or(text: String, absent: &str) -> String {
    if text.is_empty() { absent.to_owned() } else { text }
}

/// A number; 0 if it is not there.
pub fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

/// The texts of a list.
pub fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(plain).collect()
}

/// `True` or `False`.
pub fn yes_no(value: &Value) -> &'static str {
    if value == true { "True" } else { "False" }
}

/// `key=value` of each entry of a map.
pub fn pairs(map: &Value, between: &str) -> Vec<String> {
    let entries = map.as_object().into_iter().flatten();
    entries.map(|(key, value)| format!("{key}{between}{}", plain(value))).collect()
}

/// `a=1,b=2`, or `<none>`.
pub fn joined(map: &Value) -> String {
    or(pairs(map, "=").join(","), "<none>")
}

/// A label selector in one line: `app=web,tier in (a,b),!old`; `<none>` for an empty one.
pub fn selector_text(selector: &Value) -> String {
    let mut parts: Vec<(String, String)> = vec![];
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        parts.push((key.clone(), format!("{key}={}", plain(value))));
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = plain(&expression["key"]);
        let mut values = texts(&expression["values"]);
        values.sort();
        let values = values.join(",");
        let text = match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({values})"),
            Some("NotIn") => format!("{key} notin ({values})"),
            Some("Exists") => key.clone(),
            Some("DoesNotExist") => format!("!{key}"),
            _ => continue,
        };
        parts.push((key, text));
    }
    parts.sort();
    let parts: Vec<String> = parts.into_iter().map(|(_, text)| text).collect();
    or(parts.join(","), "<none>")
}

/// `Kind/name` of the controller that made the object.
pub fn controller(object: &Value) -> Option<String> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["controller"] == true)?;
    Some(format!("{}/{}", plain(&owner["kind"]), plain(&owner["name"])))
}

fn toleration_text(toleration: &Value) -> String {
    let (key, value, effect) = (plain(&toleration["key"]), plain(&toleration["value"]), plain(&toleration["effect"]));
    let mut text = key;
    if !value.is_empty() {
        text += &format!("={value}");
    }
    if !effect.is_empty() {
        text += &format!(":{effect}");
    }
    if toleration["operator"] == "Exists" && value.is_empty() {
        text += if text.is_empty() { "op=Exists" } else { " op=Exists" };
    }
    if let Some(seconds) = toleration["tolerationSeconds"].as_i64() {
        text += &format!(" for {seconds}s");
    }
    text
}

pub fn time(value: &Value) -> Option<Timestamp> {
    value.as_str().and_then(Timestamp::parse)
}

/// How long ago something was.
pub fn since(value: &Value) -> String {
    time(value).map_or("<unknown>".to_owned(), |at| age(Timestamp::now().since(at).as_secs()))
}

/// `Mon, 02 Jan 2006 15:04:05 +0000`, RFC 1123 with a numeric zone.
pub fn date(value: &Value) -> String {
    let Some(at) = time(value) else { return "Mon, 01 Jan 0001 00:00:00 +0000".to_owned() };
    let text = at.to_string();
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][at.seconds().div_euclid(86_400).rem_euclid(7) as usize];
    let month: usize = text[5..7].parse().unwrap_or(1);
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    format!("{weekday}, {} {} {} {} +0000", &text[8..10], months[(month - 1) % 12], &text[..4], &text[11..19])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn dates_and_selectors_read_as_kubectl_prints_them() {
        assert_eq!(date(&json!("2006-01-02T15:04:05Z")), "Mon, 02 Jan 2006 15:04:05 +0000");
        assert_eq!(date(&json!("2026-11-23T14:00:00Z")), "Mon, 23 Nov 2026 14:00:00 +0000");
        let selector = json!({"matchLabels": {"b": "1"}, "matchExpressions": [
            {"key": "a", "operator": "In", "values": ["y", "x"]}, {"key": "c", "operator": "DoesNotExist"}]});
        assert_eq!(selector_text(&selector), "a in (x,y),b=1,!c");
        assert_eq!(selector_text(&json!({})), "<none>");
    }

    #[test]
    fn annotations_that_are_long_go_below_their_key() {
        let mut page = Page::new();
        page.annotations("Annotations", &json!({"a": "b", "long": "x".repeat(150), HIDDEN_ANNOTATION: "{}"}));
        let text = page.finish();
        assert_eq!(text, format!("Annotations:  a: b\n              long:\n                {}...\n", "x".repeat(138)));
    }

    #[test]
    fn tolerations_are_told_in_one_line_each() {
        let check = |toleration: Value, expected: &str| assert_eq!(toleration_text(&toleration), expected);
        check(json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}), "a:NoExecute op=Exists for 300s");
        check(json!({"operator": "Exists"}), "op=Exists");
        check(json!({"key": "a", "value": "b", "effect": "NoSchedule"}), "a=b:NoSchedule");
    }
}
