//! Role-based access control, evaluated from the Roles, ClusterRoles and bindings in the store.
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>. It only ever allows; it never denies.

use serde::Deserialize;
use serde_json::Value;

use super::{Attributes, Decision, MASTERS, User};
use crate::api::schema::{self, Resource};
use crate::api::selector::Labels;
use crate::api::status::Status;
use crate::master::store::{Object, Objects};

pub const GROUP: &str = "rbac.authorization.k8s.io";

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub paths: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Role {
    rules: Option<Vec<Rule>>,
    aggregation_rule: Option<Aggregation>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Aggregation {
    cluster_role_selectors: Vec<Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Binding {
    subjects: Option<Vec<Subject>>,
    role_ref: RoleRef,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RoleRef {
    kind: String,
    name: String,
}

impl Rule {
    pub fn allows(&self, attributes: &Attributes) -> bool {
        if !matches(&self.verbs, attributes.verb) {
            return false;
        }
        if !attributes.path.is_empty() {
            return self.paths.iter().any(|allowed| path_matches(allowed, attributes.path));
        }
        let resource = attributes.full_resource();
        let resource_matches = |allowed: &String| {
            let all_with_subresource = || !attributes.subresource.is_empty() && allowed.strip_prefix("*/") == Some(attributes.subresource);
            allowed == "*" || *allowed == resource || all_with_subresource()
        };
        matches(&self.api_groups, attributes.group)
            && self.resources.iter().any(resource_matches)
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == attributes.name))
    }

    /// One rule for each single right that this rule gives.
    fn single_rights(&self) -> Vec<Rule> {
        let mut rights = Vec::new();
        for verb in &self.verbs {
            for path in &self.paths {
                rights.push(Rule { verbs: vec![verb.clone()], paths: vec![path.clone()], ..Rule::default() });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let right = Rule {
                        verbs: vec![verb.clone()],
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        ..Rule::default()
                    };
                    if self.resource_names.is_empty() {
                        rights.push(right.clone());
                    }
                    for name in &self.resource_names {
                        rights.push(Rule { resource_names: vec![name.clone()], ..right.clone() });
                    }
                }
            }
        }
        rights
    }

    /// Whether this rule gives all that `right`, a single right, gives.
    fn covers(&self, right: &Rule) -> bool {
        let within = |allowed: &[String], wanted: &[String]| wanted.iter().all(|each| matches(allowed, each));
        let resource = |allowed: &String, wanted: &String| {
            let subresource = || wanted.split_once('/').is_some_and(|(_, sub)| allowed.strip_prefix("*/") == Some(sub));
            allowed == "*" || allowed == wanted || subresource()
        };
        let resources = right.resources.iter().all(|wanted| self.resources.iter().any(|allowed| resource(allowed, wanted)));
        let names = self.resource_names.is_empty()
            || !right.resource_names.is_empty() && right.resource_names.iter().all(|name| self.resource_names.contains(name));
        let paths = right.paths.iter().all(|wanted| self.paths.iter().any(|allowed| path_matches(allowed, wanted)));
        within(&self.verbs, &right.verbs) && within(&self.api_groups, &right.api_groups) && resources && names && paths
    }
}

fn matches(allowed: &[String], wanted: &str) -> bool {
    allowed.iter().any(|each| each == "*" || each == wanted)
}

fn path_matches(allowed: &str, path: &str) -> bool {
    allowed == path || allowed.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

pub fn authorize(objects: &Objects, user: &User, attributes: &Attributes) -> Decision {
    let mut reasons = Vec::new();
    let mut allowed = None;
    visit(objects, user, attributes.namespace, &mut |source, rules| {
        match rules {
            Ok(rules) if rules.iter().any(|rule| rule.allows(attributes)) => allowed = Some(source.to_owned()),
            Ok(_) => (),
            Err(missing) => reasons.push(missing),
        }
        allowed.is_none()
    });
    match allowed {
        Some(source) => Decision::Allowed(format!("RBAC: allowed by {source}")),
        None if reasons.is_empty() => Decision::NoOpinion(String::new()),
        None => Decision::NoOpinion(format!("RBAC: {}", reasons.join(", "))),
    }
}

/// All rules that a user has in a namespace ("" for those of the whole cluster only).
pub fn rules_of(objects: &Objects, user: &User, namespace: &str) -> Vec<Rule> {
    let mut all = Vec::new();
    visit(objects, user, namespace, &mut |_, rules| {
        all.extend(rules.unwrap_or_default());
        true
    });
    all
}

/// Told a binding and its rules; says whether to go on.
type Visitor<'a> = &'a mut dyn FnMut(&str, Result<Vec<Rule>, String>) -> bool;

/// Calls `each` with every binding that names the user and the rules it gives, or why it gives none, until `each` says false.
fn visit(objects: &Objects, user: &User, namespace: &str, each: Visitor) {
    let cluster = [("clusterrolebindings", None)];
    let own = [("rolebindings", Some(namespace))];
    let places = cluster.into_iter().chain(own.into_iter().filter(|(_, namespace)| namespace.is_some_and(|name| !name.is_empty())));
    for (plural, namespace) in places {
        let Some(resource) = rbac_resource(plural) else { continue };
        for object in objects.list(resource, namespace).0 {
            let Ok(binding) = object.view::<Binding>() else { continue };
            let subjects = binding.subjects.unwrap_or_default();
            let Some(subject) = subjects.iter().find(|subject| subject.names(user, &object.key.namespace)) else { continue };
            let kind = if namespace.is_some() { "RoleBinding" } else { "ClusterRoleBinding" };
            let full_name = match &*object.key.namespace {
                "" => object.key.name.clone(),
                namespace => format!("{}/{namespace}", object.key.name),
            };
            let source = format!(
                "{kind} {full_name:?} of {} {:?} to {} {:?}",
                binding.role_ref.kind, binding.role_ref.name, subject.kind, subject.name
            );
            if !each(&source, role_rules(objects, &binding.role_ref, &object.key.namespace)) {
                return;
            }
        }
    }
}

impl Subject {
    fn names(&self, user: &User, binding_namespace: &str) -> bool {
        match &*self.kind {
            "User" => self.name == user.name,
            "Group" => user.is_in(&self.name),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() { binding_namespace } else { &self.namespace };
                let account = user.name.strip_prefix(super::SERVICE_ACCOUNT).and_then(|account| account.split_once(':'));
                account == Some((namespace, &self.name))
            }
            _ => false,
        }
    }
}

fn rbac_resource(plural: &str) -> Option<&'static Resource> {
    schema::resource(GROUP, "v1", plural)
}

fn role_rules(objects: &Objects, reference: &RoleRef, namespace: &str) -> Result<Vec<Rule>, String> {
    let (plural, namespace) = if reference.kind == "Role" { ("roles", namespace) } else { ("clusterroles", "") };
    let resource = rbac_resource(plural).ok_or("no roles are served")?;
    let object = objects.get(resource, namespace, &reference.name).map_err(|status| status.message)?;
    let role: Role = object.view().map_err(|error| format!("{error:#}"))?;
    let mut rules = role.rules.unwrap_or_default();
    for selector in role.aggregation_rule.unwrap_or_default().cluster_role_selectors {
        rules.extend(aggregated(objects, resource, &object, &selector));
    }
    Ok(rules)
}

/// The rules of the other cluster roles that a selector of an aggregated one chooses; they may be aggregated themselves, once.
fn aggregated(objects: &Objects, resource: &'static Resource, aggregate: &Object, selector: &Value) -> Vec<Rule> {
    let Ok(labels) = Labels::from_selector(selector) else { return Vec::new() };
    let mut rules = Vec::new();
    for object in objects.list(resource, None).0 {
        if object.key.name == aggregate.key.name || !labels.matches_map(&object.labels) {
            continue;
        }
        let Ok(role) = object.view::<Role>() else { continue };
        rules.extend(role.rules.unwrap_or_default());
    }
    rules
}

/// Nobody may give away rights that they do not have, unless they may `escalate` (roles) or `bind` (bindings).
/// Called before such an object is written.
///
/// # Errors
/// 403 that lists what is missing.
pub fn check_escalation(objects: &Objects, user: &User, resource: &Resource, object: &Value) -> Result<(), Status> {
    if resource.group != GROUP || user.is_in(MASTERS) {
        return Ok(());
    }
    let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
    let (name, namespace) = (text(&object["metadata"]["name"]), text(&object["metadata"]["namespace"]));
    let may = |verb, resource: &str, namespace: &str, name: &str| {
        let attributes = Attributes { verb, group: GROUP, version: "v1", resource, namespace, name, ..Attributes::default() };
        matches!(super::authorize(objects, user, &attributes), Decision::Allowed(_))
    };
    let wanted: Vec<Rule> = match resource.plural {
        "roles" | "clusterroles" => {
            if may("escalate", resource.plural, &namespace, &name) {
                return Ok(());
            }
            let mut rules: Vec<Rule> = serde_json::from_value(object["rules"].clone()).unwrap_or_default();
            if object["aggregationRule"].is_object() {
                // Nobody knows what roles it will find.
                let every = || vec!["*".to_owned()];
                rules.push(Rule { verbs: every(), api_groups: every(), resources: every(), ..Rule::default() });
                rules.push(Rule { verbs: every(), paths: every(), ..Rule::default() });
            }
            rules
        }
        "rolebindings" | "clusterrolebindings" => {
            let reference = RoleRef { kind: text(&object["roleRef"]["kind"]), name: text(&object["roleRef"]["name"]) };
            let roles = if reference.kind == "Role" { "roles" } else { "clusterroles" };
            if may("bind", roles, &namespace, &reference.name) {
                return Ok(());
            }
            let refuse = |why| Status::forbidden(GROUP, resource.plural, &name, why);
            role_rules(objects, &reference, &namespace).map_err(refuse)?
        }
        _ => return Ok(()),
    };
    let owned = rules_of(objects, user, &namespace);
    let missing: Vec<Rule> =
        wanted.iter().flat_map(Rule::single_rights).filter(|right| !owned.iter().any(|rule| rule.covers(right))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let show = |rule: &Rule| match &rule.paths[..] {
        [] => format!("{{APIGroups:{:?}, Resources:{:?}, Verbs:{:?}}}", rule.api_groups, rule.resources, rule.verbs),
        paths => format!("{{NonResourceURLs:{paths:?}, Verbs:{:?}}}", rule.verbs),
    };
    let list: String = missing.iter().map(|rule| format!("\n{}", show(rule))).collect();
    let why = format!("user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:{list}", user.name, user.groups);
    Err(Status::forbidden(GROUP, resource.plural, &name, why))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(value: Value) -> Rule {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn rules_allow_what_they_name_and_nothing_else() {
        let pods = rule(json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log", "*/scale"]}));
        let get = Attributes { verb: "get", resource: "pods", namespace: "shop", name: "web", ..Attributes::default() };
        assert!(pods.allows(&get));
        assert!(pods.allows(&Attributes { subresource: "log", ..get.clone() }));
        assert!(pods.allows(&Attributes { resource: "replicationcontrollers", subresource: "scale", ..get.clone() }));
        assert!(!pods.allows(&Attributes { subresource: "exec", ..get.clone() }));
        assert!(!pods.allows(&Attributes { group: "apps", ..get.clone() }));
        assert!(!pods.allows(&Attributes { verb: "delete", ..get.clone() }));
        let named = rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["web"]}));
        assert!(named.allows(&get) && !named.allows(&Attributes { name: "db", ..get }));
        let paths = rule(json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/apis/*"]}));
        for (path, allowed) in [("/healthz", true), ("/healthz/x", false), ("/apis/apps", true), ("/metrics", false)] {
            assert_eq!(paths.allows(&Attributes::path("get", path)), allowed, "{path}");
        }
    }

    #[test]
    fn a_right_is_covered_only_by_one_as_wide() {
        let owned = rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}));
        let covered = |wanted: Value| rule(wanted).single_rights().iter().all(|right| owned.covers(right));
        assert!(covered(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["web"]})));
        assert!(!covered(json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]})));
        assert!(!covered(json!({"verbs": ["get"], "apiGroups": ["*"], "resources": ["pods"]})));
        assert!(!covered(json!({"verbs": ["get"], "nonResourceURLs": ["/x"]})));
    }
}
