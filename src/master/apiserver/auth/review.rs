//! Questions about rights and identities, answered and not kept: SubjectAccessReview and its relatives, SelfSubjectReview, TokenReview.

use serde_json::{Value, json};

use super::token::Tokens;
use super::{Attributes, Decision, MASTERS, User, authorize, rbac};
use crate::api::status::Status;
use crate::base::time::Timestamp;
use crate::master::store::Objects;

/// Whether a resource is such a question.
pub fn is_review(group: &str, plural: &str) -> bool {
    match group {
        "authorization.k8s.io" => {
            ["selfsubjectaccessreviews", "selfsubjectrulesreviews", "subjectaccessreviews", "localsubjectaccessreviews"].contains(&plural)
        }
        "authentication.k8s.io" => ["selfsubjectreviews", "tokenreviews"].contains(&plural),
        _ => false,
    }
}

/// Fills in the status of a review.
///
/// # Errors
/// 400 or 422 for a question that makes no sense.
pub fn answer(objects: &Objects, tokens: &Tokens, user: &User, plural: &str, namespace: &str, mut review: Value) -> Result<Value, Status> {
    let spec = review["spec"].clone();
    review["status"] = match plural {
        "selfsubjectaccessreviews" => access(objects, user, &spec)?,
        "subjectaccessreviews" => access(objects, &subject(&spec)?, &spec)?,
        "localsubjectaccessreviews" => {
            if spec["resourceAttributes"]["namespace"] != namespace {
                return Err(Status::bad_request("spec.resourceAttributes.namespace: Invalid value: must match metadata.namespace"));
            }
            access(objects, &subject(&spec)?, &spec)?
        }
        "selfsubjectrulesreviews" => rules(objects, user, spec["namespace"].as_str().unwrap_or_default())?,
        "selfsubjectreviews" => {
            review["metadata"]["creationTimestamp"] = Timestamp::now().to_string().into();
            json!({"userInfo": user.to_json()})
        }
        _ => token(objects, tokens, &spec),
    };
    Ok(review)
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn subject(spec: &Value) -> Result<User, Status> {
    let name = spec["user"].as_str().unwrap_or_default().to_owned();
    let groups = strings(&spec["groups"]);
    if name.is_empty() && groups.is_empty() {
        return Err(Status::bad_request("spec.user: Required value: at least one of user or group must be specified"));
    }
    Ok(User { name, groups, uid: spec["uid"].as_str().unwrap_or_default().to_owned(), ..User::default() })
}

fn access(objects: &Objects, user: &User, spec: &Value) -> Result<Value, Status> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let text = |value: &'_ Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let fields = ["verb", "group", "version", "resource", "subresource", "namespace", "name"].map(|field| text(resource, field));
    let [verb, group, version, plural, subresource, namespace, name] = &fields;
    let (path_verb, path_text) = (text(path, "verb"), text(path, "path"));
    let attributes = match (resource.is_object(), path.is_object()) {
        (true, false) => Attributes { verb, group, version, resource: plural, subresource, namespace, name, path: "", field_selector: "" },
        (false, true) => Attributes::path(&path_verb, &path_text),
        _ => {
            return Err(Status::bad_request(
                "spec.resourceAttributes: Invalid value: exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ));
        }
    };
    let (allowed, reason) = match authorize(objects, user, &attributes) {
        Decision::Allowed(reason) => (true, reason),
        Decision::NoOpinion(reason) => (false, reason),
    };
    let mut status = json!({"allowed": allowed});
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    Ok(status)
}

fn rules(objects: &Objects, user: &User, namespace: &str) -> Result<Value, Status> {
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    let mut all = rbac::rules_of(objects, user, namespace);
    if user.is_in(MASTERS) {
        let every = || vec!["*".to_owned()];
        all.push(rbac::Rule { verbs: every(), api_groups: every(), resources: every(), ..Default::default() });
        all.push(rbac::Rule { verbs: every(), paths: every(), ..Default::default() });
    }
    for rule in all {
        if !rule.paths.is_empty() {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.paths}));
            continue;
        }
        let mut shown = json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
        if !rule.resource_names.is_empty() {
            shown["resourceNames"] = json!(rule.resource_names);
        }
        resources.push(shown);
    }
    Ok(json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false}))
}

fn token(objects: &Objects, tokens: &Tokens, spec: &Value) -> Value {
    match tokens.authenticate(objects, spec["token"].as_str().unwrap_or_default(), &strings(&spec["audiences"])) {
        Ok((user, audiences)) => json!({"authenticated": true, "user": user.to_json(), "audiences": audiences}),
        Err(why) => json!({"authenticated": false, "user": {}, "error": why}),
    }
}
