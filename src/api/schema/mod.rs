//! What exists: every built-in kind and its fields (`Kind`, read in place from an embedded table), and every resource that is served
//! (`Resource`). It says nothing of custom resources, which bring their own rows at run time.

mod resources;
mod table;

use std::cmp::Ordering;

pub use resources::{Resource, groups, resource, resource_of_kind, resources};
pub use table::{Field, ListKind, Message, Type, element};

/// A kind with its group and version. It is a small copy; two are equal if all three names are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub group: &'static str,
    pub version: &'static str,
    pub name: &'static str,
    pub message: Message,
}

/// The group of what has no group of its own: options, `Status`, `Table`.
const META: &str = "meta.k8s.io";
/// Kinds of `meta.k8s.io/v1` that clients send under the group and version they are working with.
const IN_EVERY_GROUP: [&str; 12] = [
    "APIGroup",
    "APIGroupList",
    "APIResourceList",
    "APIVersions",
    "CreateOptions",
    "DeleteOptions",
    "GetOptions",
    "ListOptions",
    "PatchOptions",
    "Status",
    "UpdateOptions",
    "WatchEvent",
];

/// Looks a kind up; those of meta/v1 that every group has (`DeleteOptions`, `Status`, …) are found under any group and version.
pub fn kind(group: &str, version: &str, name: &str) -> Option<Kind> {
    find(group, version, name).or_else(|| if IN_EVERY_GROUP.contains(&name) { find(META, "v1", name) } else { None })
}

/// The kind an object says it is, by its `apiVersion` (`v1`, `apps/v1`) and `kind`.
pub fn kind_of(api_version: &str, name: &str) -> Option<Kind> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    kind(group, version, name)
}

/// All kinds of the table.
pub fn kinds() -> impl Iterator<Item = Kind> {
    (0..table::kinds()).filter_map(nth)
}

fn nth(index: usize) -> Option<Kind> {
    table::kind_row(index).map(|(group, version, name, message)| Kind { group, version, name, message })
}

fn find(group: &str, version: &str, name: &str) -> Option<Kind> {
    let (mut low, mut high) = (0, table::kinds());
    while low < high {
        let middle = (low + high) / 2;
        let kind = nth(middle)?;
        match (kind.group, kind.version, kind.name).cmp(&(group, version, name)) {
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
            Ordering::Equal => return Some(kind),
        }
    }
    None
}

impl Kind {
    /// `v1`, `apps/v1`.
    pub fn api_version(self) -> String {
        if self.group.is_empty() { self.version.into() } else { format!("{}/{}", self.group, self.version) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_group_version_and_name() {
        let pod = kind("", "v1", "Pod").unwrap();
        assert_eq!((pod.message.name(), pod.message.package()), ("Pod", "io.k8s.api.core.v1"));
        assert_eq!(kind_of("apps/v1", "Deployment").unwrap().api_version(), "apps/v1");
        assert_eq!(kind("apps", "v1", "Pod"), None);
        assert_eq!(kind("batch", "v1", "DeleteOptions").unwrap().group, META);
        for kind in kinds() {
            assert_eq!(find(kind.group, kind.version, kind.name), Some(kind));
        }
    }

    #[test]
    fn fields_know_their_type_number_and_merge_keys() {
        let spec = kind("", "v1", "Pod").unwrap().message.field("spec").unwrap();
        let Type::Message(spec) = spec.ty() else { panic!("{spec:?}") };
        let containers = spec.field("containers").unwrap();
        assert_eq!((containers.number(), containers.merge_key(), containers.list_kind()), (2, Some("name"), ListKind::Map));
        assert!(containers.strategy().merge && containers.required());
        let Type::List(elements) = containers.ty() else { panic!() };
        let Type::Message(container) = element(elements) else { panic!() };
        let ports = container.field("ports").unwrap();
        assert_eq!(ports.list_map_keys().collect::<Vec<_>>(), ["containerPort", "protocol"]);
        // hostPath belongs to the inline VolumeSource.
        let Type::List(volumes) = spec.field("volumes").unwrap().ty() else { panic!() };
        let Type::Message(volume) = element(volumes) else { panic!() };
        assert!(volume.field("hostPath").is_some() && volume.field("volumeSource").is_none());
        assert!(spec.field("volumes").unwrap().strategy().retain_keys);
        let Type::Enum(values) = container.field("imagePullPolicy").unwrap().ty() else { panic!() };
        assert_eq!(values.iter().collect::<Vec<_>>(), ["Always", "Never", "IfNotPresent"]);
    }

    #[test]
    fn every_field_of_every_message_can_be_read() {
        fn visit(ty: Type, seen: &mut Vec<Message>) {
            match ty {
                Type::Message(message) if !seen.contains(&message) => {
                    seen.push(message);
                    // The walk has room for no more inline messages within each other than there are.
                    assert!(message.json_fields().all(|field| message.field(field.name()) == Some(field)), "{message:?}");
                    message.fields().for_each(|field| visit(field.ty(), seen));
                }
                Type::List(inner) | Type::Map(inner) | Type::WrappedList(inner) => visit(element(inner), seen),
                _ => {}
            }
        }
        let mut seen = Vec::new();
        kinds().for_each(|kind| visit(Type::Message(kind.message), &mut seen));
        assert!(seen.len() > 600, "{}", seen.len());
    }
}
