//! Which resources a server has and what people call them: `po`, `deploy.apps`, `all`. The built-in ones are known without asking;
//! only what is not among them costs a request.

use std::borrow::Cow;
use std::cell::OnceCell;

use anyhow::{Result, bail};
use serde_json::Value;

use super::{Client, JSON, Query};
use crate::api::schema;
use crate::api::text::likely;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

type Text = Cow<'static, str>;

/// One resource of a server, as one version of its group serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    pub group: Text,
    pub version: Text,
    pub plural: Text,
    pub singular: Text,
    pub kind: Text,
    pub namespaced: bool,
    pub short_names: Vec<Text>,
    pub categories: Vec<Text>,
    pub verbs: Vec<Text>,
    pub subresources: Vec<Text>,
}

impl From<&'static schema::Resource> for Resource {
    fn from(row: &'static schema::Resource) -> Self {
        let texts = |names: &'static [&'static str]| names.iter().map(|name| Cow::Borrowed(*name)).collect();
        Self {
            group: row.group.into(),
            version: row.version.into(),
            plural: row.plural.into(),
            singular: row.singular.into(),
            kind: row.kind.into(),
            namespaced: row.namespaced,
            short_names: texts(row.short_names),
            categories: texts(row.categories),
            verbs: texts(row.verbs),
            subresources: row.subresources.iter().map(|sub| Cow::Borrowed(sub.name)).collect(),
        }
    }
}

impl Resource {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods`, `deployments.apps`: how messages name it.
    pub fn qualified(&self) -> String {
        qualified(&self.plural, &self.group)
    }

    /// `pod`, `deployment.apps`: how one object of it is named, as in `deployment.apps/web`.
    pub fn qualified_singular(&self) -> String {
        qualified(&self.kind.to_lowercase(), &self.group)
    }

    /// The path of the list, in one namespace or (`None`) in all of them.
    pub fn list_path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { format!("/api/{}", self.version) } else { format!("/apis/{}/{}", self.group, self.version) };
        match namespace.filter(|namespace| self.namespaced && !namespace.is_empty()) {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{}", self.plural),
            None => format!("{root}/{}", self.plural),
        }
    }

    /// The path of one object.
    pub fn path(&self, namespace: &str, name: &str) -> String {
        format!("{}/{name}", self.list_path(Some(namespace)))
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    fn is_called(&self, name: &str) -> bool {
        self.plural == name
            || self.singular == name
            || self.short_names.iter().any(|short| short == name)
            || self.kind.to_lowercase() == name
    }
}

fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

/// A word that names no resource.
#[derive(Debug)]
pub struct Unknown {
    pub word: String,
    /// What was probably meant.
    pub likely: Option<String>,
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "the server doesn't have a resource type {:?}", self.word)?;
        match &self.likely {
            Some(likely) => write!(f, ", did you mean {likely:?}?"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Unknown {}

/// Finds resources by what they are called, asking the server at most once.
pub struct Resolver {
    client: Client,
    served: OnceCell<Vec<Resource>>,
}

impl Resolver {
    pub fn new(client: Client) -> Self {
        Self { client, served: OnceCell::new() }
    }

    /// The resource that a word names: `pods`, `po`, `Pod`, `deployments.apps`, `deployments.v1.apps`.
    ///
    /// # Errors
    /// If the server has none of that name ([`Unknown`]), or cannot be asked.
    pub async fn resolve(&self, word: &str) -> Result<Resource> {
        if let Some(row) = built_in_called(word) {
            return Ok(row);
        }
        let served = self.served().await?;
        if let Some(row) = served.iter().find(|row| named(row, word)) {
            return Ok(row.clone());
        }
        let lower = word.to_lowercase();
        let names =
            served.iter().flat_map(|row| [&*row.plural, &*row.singular].into_iter().chain(row.short_names.iter().map(|name| &**name)));
        let likely = likely(&lower, names).map(str::to_owned);
        bail!(Unknown { word: word.to_owned(), likely })
    }

    /// The resource of a manifest's `apiVersion` and `kind`; none if the server has no such kind.
    pub async fn resolve_kind(&self, api_version: &str, kind: &str) -> Result<Option<Resource>> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        if let Some(row) = schema::resource_of_kind(group, version, kind) {
            return Ok(Some(row.into()));
        }
        let is_it = |row: &&Resource| row.kind == kind && row.group == group && row.version == version;
        Ok(self.served().await?.iter().find(is_it).cloned())
    }

    /// Every resource of a category such as `all`, in the order of discovery.
    pub async fn category(&self, name: &str) -> Result<Vec<Resource>> {
        let members = |rows: &[Resource]| -> Vec<Resource> {
            let mut found: Vec<Resource> = vec![];
            for row in rows.iter().filter(|row| row.categories.iter().any(|category| category == name) && row.has_verb("list")) {
                // Of several versions of one resource the first is the preferred one.
                if !found.iter().any(|known| known.plural == row.plural && known.group == row.group) {
                    found.push(row.clone());
                }
            }
            found
        };
        Ok(members(self.served().await?))
    }

    /// Everything the server has, preferred versions first, in the order of discovery.
    pub async fn served(&self) -> Result<&Vec<Resource>> {
        if let Some(served) = self.served.get() {
            return Ok(served);
        }
        let mut rows = vec![];
        for path in ["/api", "/apis"] {
            let answer = self.client.get_as(path, &Query::new(), AGGREGATED).await?;
            match answer["kind"].as_str() {
                Some("APIGroupDiscoveryList") => rows.extend(aggregated(&answer)),
                _ => rows.extend(self.one_by_one(&answer).await?),
            }
        }
        Ok(self.served.get_or_init(|| rows))
    }

    /// A server without aggregated discovery is asked for each group version.
    async fn one_by_one(&self, index: &Value) -> Result<Vec<Resource>> {
        let texts = |list: &Value| -> Vec<String> {
            list.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
        };
        let mut paths: Vec<String> = texts(&index["versions"]).into_iter().map(|version| format!("/api/{version}")).collect();
        for group in index["groups"].as_array().into_iter().flatten() {
            for version in group["versions"].as_array().into_iter().flatten() {
                paths.extend(version["groupVersion"].as_str().map(|version| format!("/apis/{version}")));
            }
        }
        let mut rows = vec![];
        for path in paths {
            // A group whose server is away hides no other.
            let Ok(list) = self.client.get_as(&path, &Query::new(), JSON).await else { continue };
            rows.extend(listed(&list));
        }
        Ok(rows)
    }
}

/// The resources every server of ours has; empty ones (reviews) included.
pub fn built_in() -> impl Iterator<Item = Resource> {
    schema::resources().map(Resource::from)
}

/// The built-in resource that a word names.
pub fn built_in_called(word: &str) -> Option<Resource> {
    built_in().find(|row| named(row, word))
}

fn named(row: &Resource, word: &str) -> bool {
    let lower = word.to_lowercase();
    if row.is_called(&lower) {
        return true;
    }
    let Some((name, rest)) = lower.split_once('.') else { return false };
    if !row.is_called(name) {
        return false;
    }
    let group_and_version = rest.split_once('.').map_or((rest, ""), |(version, group)| (version, group));
    row.group == rest || (row.version == group_and_version.0 && row.group == group_and_version.1)
}

fn aggregated(answer: &Value) -> Vec<Resource> {
    let mut rows = vec![];
    for group in answer["items"].as_array().into_iter().flatten() {
        for version in group["versions"].as_array().into_iter().flatten() {
            for resource in version["resources"].as_array().into_iter().flatten() {
                let text = |value: &Value| Cow::Owned(value.as_str().unwrap_or_default().to_owned());
                let subresources = resource["subresources"].as_array().into_iter().flatten();
                rows.push(Resource {
                    group: text(&group["metadata"]["name"]),
                    version: text(&version["version"]),
                    plural: text(&resource["resource"]),
                    singular: text(&resource["singularResource"]),
                    kind: text(&resource["responseKind"]["kind"]),
                    namespaced: resource["scope"] == "Namespaced",
                    short_names: texts(&resource["shortNames"]),
                    categories: texts(&resource["categories"]),
                    verbs: texts(&resource["verbs"]),
                    subresources: subresources.map(|sub| text(&sub["subresource"])).collect(),
                });
            }
        }
    }
    rows
}

fn listed(list: &Value) -> Vec<Resource> {
    let (group, version) = match list["groupVersion"].as_str().unwrap_or_default().split_once('/') {
        Some((group, version)) => (group.to_owned(), version.to_owned()),
        None => (String::new(), list["groupVersion"].as_str().unwrap_or_default().to_owned()),
    };
    let mut rows: Vec<Resource> = vec![];
    for resource in list["resources"].as_array().into_iter().flatten() {
        let text = |key: &str| resource[key].as_str().unwrap_or_default().to_owned();
        let name = text("name");
        if let Some((parent, sub)) = name.split_once('/') {
            if let Some(row) = rows.iter_mut().find(|row| row.plural == parent) {
                row.subresources.push(sub.to_owned().into());
            }
            continue;
        }
        rows.push(Resource {
            group: group.clone().into(),
            version: version.clone().into(),
            plural: name.into(),
            singular: text("singularName").into(),
            kind: text("kind").into(),
            namespaced: resource["namespaced"] == true,
            short_names: texts(&resource["shortNames"]),
            categories: texts(&resource["categories"]),
            verbs: texts(&resource["verbs"]),
            subresources: vec![],
        });
    }
    rows
}

fn texts(list: &Value) -> Vec<Text> {
    list.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(|text| text.to_owned().into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_found_by_every_name_they_have() {
        for (word, plural, group) in [
            ("pods", "pods", ""),
            ("pod", "pods", ""),
            ("po", "pods", ""),
            ("Pod", "pods", ""),
            ("deploy", "deployments", "apps"),
            ("deployments.apps", "deployments", "apps"),
            ("deploy.apps", "deployments", "apps"),
            ("deployment.v1.apps", "deployments", "apps"),
            ("cj", "cronjobs", "batch"),
            ("svc", "services", ""),
            ("ns", "namespaces", ""),
            ("no", "nodes", ""),
            ("ev", "events", ""),
            ("events.events.k8s.io", "events", "events.k8s.io"),
            ("netpol", "networkpolicies", "networking.k8s.io"),
        ] {
            let row = built_in().find(|row| named(row, word)).unwrap_or_else(|| panic!("{word}"));
            assert_eq!((&*row.plural, &*row.group), (plural, group), "{word}");
        }
        assert!(built_in().all(|row| !named(&row, "podz")));
    }

    #[test]
    fn paths_are_those_of_the_api() {
        let row = |word: &str| built_in().find(|row| named(row, word)).unwrap();
        assert_eq!(row("pods").path("shop", "web"), "/api/v1/namespaces/shop/pods/web");
        assert_eq!(row("deploy").list_path(None), "/apis/apps/v1/deployments");
        assert_eq!(row("nodes").path("shop", "n1"), "/api/v1/nodes/n1");
        assert_eq!(row("deploy").qualified_singular(), "deployment.apps");
    }
}
