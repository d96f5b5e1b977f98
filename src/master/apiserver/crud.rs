//! The verbs on whole objects - get, create, update, patch, delete, deletecollection - for every stored resource alike.
//! Objects travel in the version that was asked for and are stored in one; what a kind does beyond that is admission's affair.

use hyper::{HeaderMap, Response};
use serde_json::{Value, json};

use super::auth::{User, node, rbac};
use super::list::Filter;
use super::negotiate::Form;
use super::query::{FieldValidation, Query};
use super::{content, respond, tables, unsupported, versions};
use crate::api::schema::{Kind, Resource};
use crate::api::status::{self, Cause, Status};
use crate::api::{apply, decode, defaults, meta, patch};
use crate::base::time::Timestamp;
use crate::master::store::objects::{DeleteOptions, Deleted, Part, Propagation};
use crate::master::store::{Object, Objects};
use crate::wire::body::Body;

const PATCHES: &str =
    "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";
/// Operations of one JSON patch; upstream's bound.
const PATCH_OPERATIONS_MAX: usize = 10_000;

/// One request for one resource, with what every verb needs of it.
pub struct Call<'a> {
    pub objects: &'a Objects,
    pub user: &'a User,
    pub resource: &'static Resource,
    pub namespace: &'a str,
    pub name: &'a str,
    pub subresource: &'a str,
    pub query: &'a Query,
    pub headers: &'a HeaderMap,
    pub form: Form,
}

impl Call<'_> {
    /// The object, or one of its subresources, in the form that was asked for.
    pub fn answer(&self, code: u16, value: &Value) -> Response<Body> {
        match self.form {
            Form::Table(version) => {
                let layout = tables::of(self.resource, self.subresource);
                let list = json!({"metadata": {"resourceVersion": value["metadata"]["resourceVersion"]}});
                respond::json(code, &tables::table(layout, &[value], &list, version, self.query.include_object, true))
            }
            Form::Metadata(version) => respond::json(code, &tables::partial(value, version)),
            Form::Plain | Form::Aggregated => respond::json(code, value),
        }
    }

    pub fn stored(&self, object: &Object) -> Value {
        versions::of(self.resource, object.value())
    }

    /// Who is written down as having set the fields: what was asked for, or the program.
    fn manager(&self) -> String {
        if !self.query.field_manager.is_empty() {
            return self.query.field_manager.clone();
        }
        let agent = self.headers.get(hyper::header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        let program: String = agent.split('/').next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(128).collect();
        if program.is_empty() { "unknown".into() } else { program }
    }

    /// Notes who set the fields that differ. What changes all the time and is forgotten at the end keeps no such notes.
    pub fn track(&self, live: Option<&Value>, mut value: Value) -> Value {
        if self.resource.stored_as().volatile {
            return value;
        }
        let kind = self.resource.schema();
        defaults::apply(kind, &mut value);
        let manager = self.manager();
        let writer = apply::Writer { manager: &manager, subresource: self.subresource };
        apply::track_update(Some(kind), live, value, writer, Timestamp::now())
    }

    /// What stands between a user and an object beyond the right to the verb.
    fn guard(&self, value: &Value, live: Option<&Value>) -> Result<(), Status> {
        node::restrict(self.user, self.resource, self.subresource, value, live)?;
        let rights = ["rules", "aggregationRule", "roleRef", "subjects"];
        if self.subresource.is_empty() && live.is_none_or(|live| rights.iter().any(|field| live.get(*field) != value.get(*field))) {
            rbac::check_escalation(self.objects, self.user, self.resource, value)?;
        }
        Ok(())
    }

    pub fn part(&self) -> Part {
        match self.subresource {
            "" => Part::Whole,
            "status" => Part::Status,
            _ => Part::Subresource,
        }
    }

    pub fn get(&self) -> Result<Response<Body>, Status> {
        let object = self.objects.get(self.resource, self.namespace, self.name)?;
        Ok(self.answer(200, &self.stored(&object)))
    }

    pub async fn create(&self, body: &[u8]) -> Result<Response<Body>, Status> {
        let mut warnings = Vec::new();
        let kind = self.resource.schema();
        let mut value = content::object(self.headers, body, kind, self.query.field_validation, &mut warnings)?;
        self.settle_namespace(&mut value)?;
        if meta::name(&value).is_empty() && meta::text(&value, "generateName").is_empty() {
            let cause = Cause {
                reason: "FieldValueRequired".into(),
                message: "Required value: name or generateName is required".into(),
                field: "metadata.name".into(),
            };
            return Err(Status::invalid(self.resource.group, self.resource.kind, "", vec![cause]));
        }
        let mut response = self.create_value(value).await?;
        respond::warn(&mut response, &warnings);
        Ok(response)
    }

    async fn create_value(&self, mut value: Value) -> Result<Response<Body>, Status> {
        self.guard(&value, None)?;
        if let Some(metadata) = value["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        self.begin(&mut value);
        let value = self.track(None, value);
        let object = self.objects.create(self.resource, self.namespace, versions::stored(self.resource, value), self.query.dry_run).await?;
        Ok(self.written(201, &object, &[]))
    }

    /// The answer to a write, with what there is to be said about it.
    fn written(&self, code: u16, object: &Object, warnings: &[String]) -> Response<Body> {
        let value = self.stored(object);
        let mut response = self.answer(code, &value);
        respond::warn(&mut response, warnings);
        if self.subresource.is_empty() {
            respond::warn(&mut response, &unsupported::warnings(self.resource, &value));
        }
        response
    }

    /// What the server and not the client says about a new object, and only the request knows.
    fn begin(&self, value: &mut Value) {
        if (self.resource.group, self.resource.plural) == ("certificates.k8s.io", "certificatesigningrequests") {
            let User { name, uid, groups, extra } = self.user;
            for (field, content) in [("username", json!(name)), ("uid", json!(uid)), ("groups", json!(groups)), ("extra", json!(extra))] {
                let empty = content.as_str() == Some("") || content.as_object().is_some_and(serde_json::Map::is_empty);
                match value["spec"].as_object_mut() {
                    // What the client says of itself counts for nothing.
                    Some(spec) if empty => drop(spec.remove(field)),
                    _ => value["spec"][field] = content,
                }
            }
        }
    }

    /// The namespace of the path goes into the object; another one in it is a mistake.
    fn settle_namespace(&self, value: &mut Value) -> Result<(), Status> {
        let given = meta::namespace(value);
        if !self.resource.namespaced {
            if !given.is_empty() {
                meta::metadata_mut(value).remove("namespace");
            }
            return Ok(());
        }
        if self.namespace.is_empty() {
            return Err(Status::bad_request("an empty namespace may not be set during creation"));
        }
        if !given.is_empty() && given != self.namespace {
            return Err(Status::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
        }
        meta::set(value, "namespace", self.namespace);
        Ok(())
    }

    fn same_name(&self, value: &mut Value) -> Result<(), Status> {
        match meta::name(value) {
            "" => meta::set(value, "name", self.name),
            name if name == self.name => (),
            name => {
                let why = format!("the name of the object ({name}) does not match the name on the URL ({})", self.name);
                return Err(Status::bad_request(why));
            }
        }
        self.settle_namespace(value)
    }

    pub async fn update(&self, body: &[u8]) -> Result<Response<Body>, Status> {
        let mut warnings = Vec::new();
        let mut desired = content::object(self.headers, body, self.resource.schema(), self.query.field_validation, &mut warnings)?;
        self.same_name(&mut desired)?;
        let replace = |live: &Value| {
            let live = versions::of(self.resource, live.clone());
            let value = desired.clone();
            self.guard(&value, Some(&live))?;
            Ok(versions::stored(self.resource, self.track(Some(&live), value)))
        };
        let updated = self.objects.update(self.resource, self.namespace, self.name, self.part(), self.query.dry_run, replace).await;
        let object = match updated {
            Err(missing) if missing.is_not_found() && self.may_create_by_update() && meta::resource_version(&desired).is_empty() => {
                return self.create_value(desired).await;
            }
            other => other?,
        };
        Ok(self.written(200, &object, &warnings))
    }

    /// Kinds whose upstream strategy has AllowCreateOnUpdate.
    fn may_create_by_update(&self) -> bool {
        self.subresource.is_empty()
            && matches!(
                (self.resource.group, self.resource.plural),
                ("", "endpoints" | "events" | "limitranges" | "services") | ("coordination.k8s.io", "leases")
            )
    }

    pub async fn patch(&self, body: &[u8]) -> Result<Response<Body>, Status> {
        let media_type = content::media_type(self.headers);
        if media_type == "application/apply-patch+yaml" {
            return self.apply(body).await;
        }
        let (change, duplicates) = decode::json(body).map_err(|error| Status::bad_request(format!("error decoding patch: {error:#}")))?;
        if change.as_array().is_some_and(|operations| operations.len() > PATCH_OPERATIONS_MAX) {
            return Err(Status::too_large(PATCH_OPERATIONS_MAX));
        }
        if self.query.force {
            return Err(Status::bad_request("force: Forbidden: may not be specified for non-apply patch"));
        }
        let kind = self.resource.schema();
        let mut warnings = Vec::new();
        let change_live = |live: &Value| {
            let live = versions::of(self.resource, live.clone());
            let patched = match media_type {
                "application/json-patch+json" => patch::json(&live, &change),
                "application/merge-patch+json" => patch::merge(&live, &change),
                "application/strategic-merge-patch+json" => patch::strategic(kind, &live, &change),
                _ => return Err(Status::unsupported_media_type(PATCHES)),
            };
            let mut value = patched.map_err(|error| rejected_patch(&error))?;
            warnings.clear();
            let validation = self.query.field_validation;
            content::check(&mut value, duplicates.clone(), kind, validation, &mut warnings)?;
            self.finish_patch(&live, &mut value)?;
            Ok(versions::stored(self.resource, self.track(Some(&live), value)))
        };
        let object = self.objects.update(self.resource, self.namespace, self.name, self.part(), self.query.dry_run, change_live).await?;
        Ok(self.written(200, &object, &warnings))
    }

    fn finish_patch(&self, live: &Value, value: &mut Value) -> Result<(), Status> {
        for field in ["apiVersion", "kind"] {
            if value[field] != live[field] {
                value[field] = live[field].clone();
            }
        }
        self.same_name(value)?;
        self.guard(value, Some(live))
    }

    /// Server-side apply, <https://kubernetes.io/docs/reference/using-api/server-side-apply/>; creates what is not there.
    async fn apply(&self, body: &[u8]) -> Result<Response<Body>, Status> {
        if self.query.field_manager.is_empty() {
            return Err(Status::bad_request(
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
            ));
        }
        let kind = self.resource.schema();
        let (mut config, duplicates) =
            decode::yaml(body).map_err(|error| Status::bad_request(format!("error decoding YAML: {error:#}")))?;
        if !config.is_object() {
            return Err(Status::bad_request("error decoding YAML: the body is no object"));
        }
        let mut warnings = Vec::new();
        self.check_applied(&config, kind)?;
        // Unknown fields of an applied configuration are an error whatever was asked for: nobody could own them.
        content::check(&mut config, duplicates, kind, FieldValidation::Strict, &mut warnings)?;
        self.same_name(&mut config)?;
        let writer = apply::Writer { manager: &self.query.field_manager, subresource: self.subresource };
        let merged = |live: Option<&Value>| {
            let applied = apply::apply(Some(kind), live, &config, writer, self.query.force, Timestamp::now());
            applied.map_err(apply::Refused::status)
        };
        let change_live = |live: &Value| {
            let live = versions::of(self.resource, live.clone());
            let mut value = merged(Some(&live))?;
            self.finish_patch(&live, &mut value)?;
            Ok(versions::stored(self.resource, value))
        };
        let updated = self.objects.update(self.resource, self.namespace, self.name, self.part(), self.query.dry_run, change_live).await;
        let (code, object) = match updated {
            Err(missing) if missing.is_not_found() && self.subresource.is_empty() && meta::text(&config, "uid").is_empty() => {
                let mut value = merged(None)?;
                self.guard(&value, None)?;
                self.begin(&mut value);
                let value = versions::stored(self.resource, value);
                (201, self.objects.create(self.resource, self.namespace, value, self.query.dry_run).await?)
            }
            other => (200, other?),
        };
        Ok(self.written(code, &object, &warnings))
    }

    fn check_applied(&self, config: &Value, kind: Kind) -> Result<(), Status> {
        for (field, expected) in [("apiVersion", kind.api_version()), ("kind", kind.name.to_owned())] {
            match config[field].as_str().unwrap_or_default() {
                "" => return Err(Status::bad_request(format!("invalid object type: {field} is missing"))),
                given if given != expected => {
                    return Err(Status::bad_request(format!("{field} {given} does not match the {expected} of the URL")));
                }
                _ => (),
            }
        }
        Ok(())
    }

    pub async fn delete(&self, body: &[u8]) -> Result<Response<Body>, Status> {
        let options = delete_options(self.query, &content::options(self.headers, body)?)?;
        let deleted = self.objects.delete(self.resource, self.namespace, self.name, &options).await?;
        Ok(match deleted {
            Deleted::Pending(object) => self.answer(200, &self.stored(&object)),
            // Upstream's ReturnDeletedObject.
            Deleted::Gone(object) if returns_deleted(self.resource) => self.answer(200, &self.stored(&object)),
            Deleted::Gone(object) => {
                respond::json(200, &status::success(self.resource.group, self.resource.plural, self.name, &object.uid))
            }
        })
    }

    /// Deletes all that the selectors choose, one by one; what goes in the meantime is fine.
    pub async fn delete_collection(&self, body: &[u8], filter: &Filter) -> Result<Response<Body>, Status> {
        let options = delete_options(self.query, &content::options(self.headers, body)?)?;
        let namespace = Some(self.namespace).filter(|namespace| !namespace.is_empty());
        let (all, revision) = self.objects.list(self.resource, namespace);
        let mut items = Vec::new();
        for object in all.iter().filter(|object| filter.matches(object)) {
            match self.objects.delete(self.resource, &object.key.namespace, &object.key.name, &options).await {
                Ok(Deleted::Gone(object) | Deleted::Pending(object)) => items.push(self.stored(&object)),
                Err(gone) if gone.is_not_found() => (),
                Err(other) => return Err(other),
            }
        }
        Ok(respond::json(
            200,
            &json!({
                "kind": self.resource.list_kind, "apiVersion": self.resource.api_version(),
                "metadata": {"resourceVersion": revision.to_string()}, "items": items,
            }),
        ))
    }
}

fn returns_deleted(resource: &Resource) -> bool {
    resource.group.is_empty()
        && matches!(
            resource.plural,
            "pods" | "podtemplates" | "persistentvolumes" | "persistentvolumeclaims" | "resourcequotas" | "serviceaccounts" | "services"
        )
}

fn rejected_patch(error: &anyhow::Error) -> Status {
    Status::new(422, "Invalid", format!("the server rejected our request due to an error in our request: {error:#}"))
}

/// DeleteOptions come in the body, in the query, or both; the body wins. dryRun counts wherever it stands: to overlook it would delete.
///
/// # Errors
/// 400 or 422 for options that contradict or do not exist.
pub fn delete_options(query: &Query, body: &Value) -> Result<DeleteOptions, Status> {
    let invalid = |field: &str, message: String| {
        let cause = Cause { reason: "FieldValueNotSupported".into(), message, field: field.into() };
        Status::invalid("meta.k8s.io", "DeleteOptions", "", vec![cause])
    };
    let mut dry_run = query.dry_run;
    for stage in body["dryRun"].as_array().into_iter().flatten() {
        if stage != "All" {
            return Err(invalid("dryRun", format!("Unsupported value: {stage}: supported values: \"All\"")));
        }
        dry_run = true;
    }
    let policy = body["propagationPolicy"].as_str().unwrap_or(&query.propagation_policy);
    let propagation = match (policy, body["orphanDependents"].as_bool()) {
        ("", None) => Propagation::Default,
        ("", Some(true)) => Propagation::Orphan,
        ("", Some(false)) => Propagation::Background,
        (_, Some(_)) => return Err(Status::bad_request("propagationPolicy: orphanDependents and deletionPropagation cannot be both set")),
        ("Background", None) => Propagation::Background,
        ("Foreground", None) => Propagation::Foreground,
        ("Orphan", None) => Propagation::Orphan,
        (other, None) => {
            let supported = "supported values: \"Background\", \"Foreground\", \"Orphan\"";
            return Err(invalid("propagationPolicy", format!("Unsupported value: {other:?}: {supported}")));
        }
    };
    let text = |field: &str| body["preconditions"][field].as_str().map(str::to_owned);
    Ok(DeleteOptions {
        dry_run,
        grace_seconds: body["gracePeriodSeconds"].as_i64().or(query.grace_period_seconds),
        uid: text("uid"),
        resource_version: text("resourceVersion"),
        propagation,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_deletion_come_from_body_and_query() {
        let read = |query: &str, body: Value| delete_options(&Query::parse(query).unwrap(), &body);
        assert!(read("", json!({"dryRun": ["All"]})).unwrap().dry_run);
        assert!(read("dryRun=All", Value::Null).unwrap().dry_run);
        assert_eq!(read("dryRun=All", json!({"dryRun": ["Some"]})).unwrap_err().code, 422);
        let options = read("propagationPolicy=Orphan&gracePeriodSeconds=5", json!({"propagationPolicy": "Foreground"})).unwrap();
        assert_eq!((options.propagation, options.grace_seconds), (Propagation::Foreground, Some(5)));
        let options = read("", json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "u"}})).unwrap();
        assert_eq!((options.grace_seconds, options.uid.as_deref()), (Some(0), Some("u")));
        assert!(read("", json!({"propagationPolicy": "Later"})).is_err());
    }
}
