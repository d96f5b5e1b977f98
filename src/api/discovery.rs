//! The discovery documents of the built-in resources, in both forms: aggregated (apidiscovery.k8s.io/v2) and one document per group
//! version. Custom resources are added by whoever serves them, as more `Group`s.

use serde_json::{Map, Value, json};

use super::schema::{Resource, groups, resources};

/// Content type of the aggregated documents.
pub const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// `/api`, aggregated.
pub fn aggregated_api() -> Vec<u8> {
    aggregated(|group| group.is_empty())
}

/// `/apis`, aggregated.
pub fn aggregated_apis() -> Vec<u8> {
    aggregated(|group| !group.is_empty())
}

fn aggregated(wanted: impl Fn(&str) -> bool) -> Vec<u8> {
    let items = groups().into_iter().filter(|(group, _)| wanted(group)).map(|(group, versions)| {
        let versions = versions.iter().map(|version| {
            let resources = of_version(group, version).map(aggregated_resource).collect();
            aggregated_version(version, resources)
        });
        aggregated_group(group, versions.collect())
    });
    write(&aggregated_list(items.collect()))
}

/// `APIGroupDiscoveryList` of these groups.
pub fn aggregated_list(items: Vec<Value>) -> Value {
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

/// One group of the aggregated list.
pub fn aggregated_group(group: &str, versions: Vec<Value>) -> Value {
    let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
    json!({"metadata": metadata, "versions": versions})
}

/// One version of a group of the aggregated list.
pub fn aggregated_version(version: &str, resources: Vec<Value>) -> Value {
    json!({"version": version, "freshness": "Current", "resources": resources})
}

fn aggregated_resource(row: &Resource) -> Value {
    let mut entry = json!({
        "resource": row.plural, "responseKind": {"group": row.group, "version": row.version, "kind": row.kind},
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" }, "singularResource": row.singular, "verbs": row.verbs,
    });
    names(row, &mut entry);
    if !row.subresources.is_empty() {
        let subresources = row.subresources.iter().map(|sub| {
            let (group, version, kind) = sub.kind;
            let (group, version) = if version.is_empty() { (row.group, row.version) } else { (group, version) };
            json!({"subresource": sub.name, "responseKind": {"group": group, "version": version, "kind": kind}, "verbs": sub.verbs})
        });
        entry["subresources"] = subresources.collect();
    }
    entry
}

/// `/api`.
pub fn api_versions() -> Vec<u8> {
    write(&json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}))
}

/// `/apis`.
pub fn api_group_list() -> Vec<u8> {
    let all = groups().into_iter().filter(|(group, _)| !group.is_empty());
    let list: Vec<Value> = all.map(|(group, versions)| group_entry(group, &versions).into()).collect();
    write(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list}))
}

/// `/apis/{group}`; `None` if nothing built in belongs to it.
pub fn api_group(group: &str) -> Option<Vec<u8>> {
    let (_, versions) = groups().into_iter().find(|(name, _)| *name == group && !name.is_empty())?;
    let mut entry = group_entry(group, &versions);
    entry.insert("kind".into(), "APIGroup".into());
    entry.insert("apiVersion".into(), "v1".into());
    Some(write(&entry.into()))
}

/// One group of `APIGroupList`; the first version is the preferred one.
pub fn group_entry(group: &str, versions: &[&str]) -> Map<String, Value> {
    let version = |version: &&str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    let mut entry = Map::new();
    entry.insert("name".into(), group.into());
    entry.insert("versions".into(), versions.iter().map(version).collect());
    entry.insert("preferredVersion".into(), versions.first().map(version).unwrap_or_default());
    entry
}

/// `/api/v1` (group "") and `/apis/{group}/{version}`; `None` if nothing built in belongs to it.
pub fn api_resource_list(group: &str, version: &str) -> Option<Vec<u8>> {
    let rows: Vec<&Resource> = of_version(group, version).collect();
    let group_version = rows.first()?.api_version();
    let mut list = Vec::new();
    for row in rows {
        let mut entry =
            json!({"name": row.plural, "singularName": row.singular, "namespaced": row.namespaced, "kind": row.kind, "verbs": row.verbs});
        names(row, &mut entry);
        list.push(entry);
        for sub in row.subresources {
            let name = format!("{}/{}", row.plural, sub.name);
            let mut entry = json!({"name": name, "singularName": "", "namespaced": row.namespaced, "kind": sub.kind.2, "verbs": sub.verbs});
            if !sub.kind.1.is_empty() {
                entry["group"] = sub.kind.0.into();
                entry["version"] = sub.kind.1.into();
            }
            list.push(entry);
        }
    }
    let mut document = json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": list});
    if !group.is_empty() {
        document["apiVersion"] = "v1".into();
    }
    Some(write(&document))
}

fn names(row: &Resource, entry: &mut Value) {
    if !row.short_names.is_empty() {
        entry["shortNames"] = row.short_names.into();
    }
    if !row.categories.is_empty() {
        entry["categories"] = row.categories.into();
    }
}

fn of_version(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    resources().filter(move |row| row.group == group && row.version == version)
}

fn write(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("a JSON value can always be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn aggregated_documents_hold_every_resource_once() {
        let (api, apis) = (read(&aggregated_api()), read(&aggregated_apis()));
        assert_eq!(api["items"][0]["metadata"], json!({}));
        let mut count = 0;
        for group in api["items"].as_array().unwrap().iter().chain(apis["items"].as_array().unwrap()) {
            for version in group["versions"].as_array().unwrap() {
                count += version["resources"].as_array().unwrap().len();
            }
        }
        assert_eq!(count, resources().count());
        let pods =
            api["items"][0]["versions"][0]["resources"].as_array().unwrap().iter().find(|entry| entry["resource"] == "pods").unwrap();
        let eviction = pods["subresources"].as_array().unwrap().iter().find(|entry| entry["subresource"] == "eviction").unwrap();
        assert_eq!(eviction["responseKind"], json!({"group": "policy", "version": "v1", "kind": "Eviction"}));
    }

    #[test]
    fn plain_documents_are_those_of_upstream() {
        let apps = read(&api_resource_list("apps", "v1").unwrap());
        assert_eq!(apps["groupVersion"], "apps/v1");
        let entry = |name: &str| apps["resources"].as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap().clone();
        assert_eq!(entry("deployments")["shortNames"], json!(["deploy"]));
        assert_eq!(
            entry("deployments/scale"),
            json!({"name": "deployments/scale", "singularName": "", "namespaced": true, "group": "autoscaling", "version": "v1", "kind": "Scale",
                "verbs": ["get", "patch", "update"]})
        );
        let group = read(&api_group("autoscaling").unwrap());
        assert_eq!(group["preferredVersion"]["groupVersion"], "autoscaling/v2");
        assert_eq!((api_group("no"), api_group(""), api_resource_list("apps", "v2")), (None, None, None));
        assert_eq!(read(&api_group_list())["groups"].as_array().unwrap().len(), 21);
        assert_eq!(read(&api_versions())["versions"], json!(["v1"]));
    }
}
