//! Sets of fields, as `metadata.managedFields` keeps them (FieldsV1): a tree whose edges are `f:name`, `k:{"key":…}`, `v:…`, `i:…`.
//! It knows nothing of schemas or objects.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// A set of paths. Each node may be a member itself and have members below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    pub member: bool,
    pub children: BTreeMap<String, Set>,
}

/// Nesting of FieldsV1 that is read; deeper sets belong to no object.
const DEPTH_MAX: usize = 100;

impl Set {
    /// Reads FieldsV1; `None` if it is none.
    pub fn parse(fields: &Value) -> Option<Self> {
        Self::parse_below(fields, 0)
    }

    fn parse_below(fields: &Value, depth: usize) -> Option<Self> {
        let fields = fields.as_object().filter(|_| depth < DEPTH_MAX)?;
        let mut set = Self::default();
        for (key, below) in fields {
            if key == "." {
                set.member = true;
                continue;
            }
            let below = below.as_object()?;
            let mut child = Self::parse_below(&Value::Object(below.clone()), depth + 1)?;
            // An edge that leads nowhere is the member itself.
            child.member |= below.is_empty();
            set.children.insert(key.clone(), child);
        }
        Some(set)
    }

    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".into(), json!({}));
        }
        for (key, child) in &self.children {
            map.insert(key.clone(), child.to_json());
        }
        map.into()
    }

    pub fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(Self::is_empty)
    }

    pub fn child(&mut self, element: &str) -> &mut Self {
        self.children.entry(element.into()).or_default()
    }

    pub fn insert(&mut self, path: &[String]) {
        path.iter().fold(self, |set, element| set.child(element)).member = true;
    }

    /// Takes out one member; what is below it stays.
    pub fn remove(&mut self, path: &[&str]) {
        match path {
            [] => self.member = false,
            [first, rest @ ..] => {
                if let Some(child) = self.children.get_mut(*first) {
                    child.remove(rest);
                }
            }
        }
    }

    pub fn union(mut self, other: &Self) -> Self {
        self.member |= other.member;
        for (key, theirs) in &other.children {
            let mine = self.children.remove(key).unwrap_or_default();
            self.children.insert(key.clone(), mine.union(theirs));
        }
        self
    }

    pub fn intersection(&self, other: &Self) -> Self {
        let shared = self.children.iter().filter_map(|(key, mine)| Some((key.clone(), mine.intersection(other.children.get(key)?))));
        Self { member: self.member && other.member, children: shared.collect() }.pruned()
    }

    pub fn difference(&self, other: &Self) -> Self {
        let children = self.children.iter().map(|(key, mine)| {
            let rest = other.children.get(key).map_or_else(|| mine.clone(), |theirs| mine.difference(theirs));
            (key.clone(), rest)
        });
        Self { member: self.member && !other.member, children: children.collect() }.pruned()
    }

    /// Without edges that lead to nothing.
    pub fn pruned(self) -> Self {
        let children = self.children.into_iter().map(|(key, child)| (key, child.pruned())).filter(|(_, child)| !child.is_empty());
        Self { member: self.member, children: children.collect() }
    }

    /// The paths of all members, as `.spec.containers[name="a"].image`; those of one level before those below it.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, path: &str, paths: &mut Vec<String>) {
        let below = |key: &str| format!("{path}{}", readable(key));
        paths.extend(self.children.iter().filter(|(_, child)| child.member).map(|(key, _)| below(key)));
        self.children.iter().for_each(|(key, child)| child.collect(&below(key), paths));
    }
}

/// The element of a field.
pub(super) fn field(name: &str) -> String {
    format!("f:{name}")
}

/// `.name`, `[key="value"]`, `[="value"]`, `[3]`.
fn readable(element: &str) -> String {
    match element.split_at_checked(2) {
        Some(("f:", name)) => format!(".{name}"),
        Some(("k:", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
        Some(("v:", value)) => format!("[={value}]"),
        Some(("i:", index)) => format!("[{index}]"),
        _ => element.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(fields: Value) -> Set {
        Set::parse(&fields).unwrap()
    }

    #[test]
    fn fields_read_back_what_they_write() {
        let fields = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}, "f:finalizers": {"v:\"x\"": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}}}}});
        assert_eq!(set(fields.clone()).to_json(), fields);
        let paths = set(fields).paths();
        assert_eq!(
            paths,
            [
                ".metadata.labels",
                ".metadata.finalizers[=\"x\"]",
                ".metadata.labels.a",
                ".spec.containers[name=\"a\"]",
                ".spec.containers[name=\"a\"].image"
            ]
        );
        assert_eq!(Set::parse(&json!([])), None);
    }

    #[test]
    fn sets_add_and_take_away_members() {
        let (a, b) = (set(json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}})), set(json!({"f:a": {}, "f:d": {}})));
        assert_eq!(a.difference(&b).to_json(), json!({"f:a": {"f:b": {}}, "f:c": {}}));
        assert_eq!(a.intersection(&b).to_json(), json!({"f:a": {}}));
        assert_eq!(a.clone().union(&b).to_json(), json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}, "f:d": {}}));
        assert!(a.difference(&a).is_empty());
    }
}
