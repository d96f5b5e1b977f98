//! `Status`, the error every layer of the API returns (meta/v1). It carries what the client is told and nothing else:
//! no source chain, no secrets. HTTP codes are chosen here and nowhere else.

use std::borrow::Cow;
use std::fmt;

use serde_json::{Map, Value, json};

/// One reason why an object was refused; `StatusCause` of meta/v1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueInvalid`, `FieldValueRequired`, `FieldManagerConflict`, … (`CauseType` of meta/v1).
    pub reason: Cow<'static, str>,
    pub message: String,
    /// JSON path without a leading dot, as `spec.containers[0].name`; empty if no field is meant.
    pub field: String,
}

/// An answer of `kind: Status` with `status: Failure`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// HTTP status code, 400–599.
    pub code: u16,
    /// `StatusReason` of meta/v1, as `NotFound`; empty if none fits.
    pub reason: &'static str,
    pub message: String,
    /// Boxed, so that a `Result` that is fine stays small.
    pub details: Box<Details>,
}

/// `StatusDetails` of meta/v1; `kind` is the plural resource name for errors about a resource, the kind for invalid objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    pub name: String,
    pub group: String,
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    /// Seconds until the client should try again; 0 is left out.
    pub retry_after_seconds: u32,
}

impl Status {
    /// A failure without details. `reason` is one of meta/v1's `StatusReason`s.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Box::default() }
    }

    fn about(code: u16, reason: &'static str, group: &str, plural: &str, name: &str, what: &str) -> Self {
        let message = format!("{} \"{name}\" {what}", qualified(group, plural));
        let details = Details { name: name.into(), group: group.into(), kind: plural.into(), ..Details::default() };
        Self { code, reason, message, details: Box::new(details) }
    }

    /// 404: `deployments.apps "x" not found`.
    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        Self::about(404, "NotFound", group, plural, name, "not found")
    }

    /// 404 for a path that nobody serves.
    pub fn no_such_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// 409: `deployments.apps "x" already exists`.
    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        Self::about(409, "AlreadyExists", group, plural, name, "already exists")
    }

    /// 409 with upstream's text around `why`, as a stale resourceVersion or a failed precondition gives it.
    pub fn conflict(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Self {
        let mut status = Self::about(409, "Conflict", group, plural, name, "");
        status.message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(group, plural));
        status
    }

    /// The text of a conflict over the resourceVersion; clients look for it.
    pub const MODIFIED: &'static str = "the object has been modified; please apply your changes to the latest version and try again";

    /// 409 of a server-side apply: one cause `FieldManagerConflict` per field, those of one manager together.
    pub fn apply_conflict(causes: Vec<Cause>) -> Self {
        let message = if let [one] = &causes[..] {
            format!("Apply failed with 1 conflict: {}: {}", one.message, one.field)
        } else {
            let mut lines = Vec::new();
            for (index, cause) in causes.iter().enumerate() {
                if index == 0 || causes[index - 1].message != cause.message {
                    lines.push(format!("{}:", cause.message.replacen("conflict ", "conflicts ", 1)));
                }
                lines.push(format!("- {}", cause.field));
            }
            format!("Apply failed with {} conflicts: {}", causes.len(), lines.join("\n"))
        };
        let details = Details { causes, ..Details::default() };
        Self { code: 409, reason: "Conflict", message, details: Box::new(details) }
    }

    /// 422: `Deployment.apps "x" is invalid: spec.replicas: Invalid value: …`.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let list: Vec<String> = causes
            .iter()
            .map(|cause| if cause.field.is_empty() { cause.message.clone() } else { format!("{}: {}", cause.field, cause.message) })
            .collect();
        let list = if let [one] = &list[..] { one.clone() } else { format!("[{}]", list.join(", ")) };
        let message = format!("{} \"{name}\" is invalid: {list}", qualified(group, kind));
        let details = Details { name: name.into(), group: group.into(), kind: kind.into(), causes, ..Details::default() };
        Self { code: 422, reason: "Invalid", message, details: Box::new(details) }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403: `pods "x" is forbidden: why`.
    pub fn forbidden(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Self {
        let mut status = Self::about(403, "Forbidden", group, plural, name, "");
        let name = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
        status.message = format!("{}{name} is forbidden: {why}", qualified(group, plural));
        status
    }

    /// 405.
    pub fn method_not_allowed(verb: &str) -> Self {
        Self::new(405, "MethodNotAllowed", format!("{verb} is not supported on this resource"))
    }

    /// 406.
    pub fn not_acceptable(accepted: &str) -> Self {
        Self::new(406, "NotAcceptable", format!("only the following media types are accepted: {accepted}"))
    }

    /// 410: a resourceVersion or continue token that is too old.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413.
    pub fn too_large(limit_bytes: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit_bytes}"))
    }

    /// 415.
    pub fn unsupported_media_type(accepted: &str) -> Self {
        let message = format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 429. `retry_after_seconds` 0 means that waiting alone does not help, as when a disruption budget is used up.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let mut status = Self::new(429, "TooManyRequests", message);
        status.details.retry_after_seconds = retry_after_seconds;
        status
    }

    /// 500.
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "Timeout", message)
    }

    pub fn is_not_found(&self) -> bool {
        self.reason == "NotFound"
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }

    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }

    pub fn with_cause(mut self, reason: impl Into<Cow<'static, str>>, message: impl Into<String>, field: impl Into<String>) -> Self {
        self.details.causes.push(Cause { reason: reason.into(), message: message.into(), field: field.into() });
        self
    }

    /// The body of the answer.
    pub fn to_json(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        let details = self.details.to_json();
        if !details.is_empty() {
            status["details"] = Value::Object(details);
        }
        status
    }
}

impl Details {
    fn to_json(&self) -> Map<String, Value> {
        let mut map = Map::new();
        for (key, value) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            if !value.is_empty() {
                map.insert(key.into(), value.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            map.insert("causes".into(), self.causes.iter().map(Cause::to_json).collect());
        }
        if self.retry_after_seconds > 0 {
            map.insert("retryAfterSeconds".into(), self.retry_after_seconds.into());
        }
        map
    }
}

impl Cause {
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        for (key, value) in [("reason", &*self.reason), ("message", &self.message), ("field", &self.field)] {
            if !value.is_empty() {
                map.insert(key.into(), value.into());
            }
        }
        Value::Object(map)
    }
}

/// The answer to a deletion that is complete: `status: Success` with what was deleted.
pub fn success(group: &str, plural: &str, name: &str, uid: &str) -> Value {
    let details = Details { name: name.into(), group: group.into(), kind: plural.into(), uid: uid.into(), ..Details::default() };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details.to_json()})
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

/// `deployments.apps`, or `pods` for the core group.
fn qualified(group: &str, name: &str) -> String {
    if group.is_empty() { name.into() } else { format!("{name}.{group}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_upstream_writes_them() {
        assert_eq!(Status::not_found("apps", "deployments", "x").message, "deployments.apps \"x\" not found");
        assert_eq!(Status::already_exists("", "pods", "x").message, "pods \"x\" already exists");
        assert_eq!(
            Status::conflict("", "pods", "x", Status::MODIFIED).message,
            "Operation cannot be fulfilled on pods \"x\": the object has been modified; please apply your changes to the latest version \
                and try again"
        );
        assert_eq!(Status::forbidden("", "pods", "", "why").message, "pods is forbidden: why");
        let cause = |field: &str| Cause { reason: "FieldValueRequired".into(), message: "Required value".into(), field: field.into() };
        assert_eq!(Status::invalid("", "Pod", "x", vec![cause("spec")]).message, "Pod \"x\" is invalid: spec: Required value");
        assert_eq!(
            Status::invalid("apps", "Deployment", "x", vec![cause("a"), cause("b")]).message,
            "Deployment.apps \"x\" is invalid: [a: Required value, b: Required value]"
        );
    }

    #[test]
    fn the_body_leaves_out_what_is_empty() {
        let body = Status::bad_request("no").to_json();
        assert_eq!(
            body,
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "reason": "BadRequest", "code": 400})
        );
        let body = Status::not_found("apps", "deployments", "x").to_json();
        assert_eq!(body["details"], json!({"name": "x", "group": "apps", "kind": "deployments"}));
    }

    #[test]
    fn apply_conflicts_are_grouped_by_manager() {
        let cause = |manager: &str, field: &str| Cause {
            reason: "FieldManagerConflict".into(),
            message: format!("conflict with \"{manager}\""),
            field: field.into(),
        };
        let one = Status::apply_conflict(vec![cause("a", ".spec.replicas")]);
        assert_eq!(one.message, "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas");
        let two = Status::apply_conflict(vec![cause("a", ".x"), cause("a", ".y")]);
        assert_eq!(two.message, "Apply failed with 2 conflicts: conflicts with \"a\":\n- .x\n- .y");
    }
}
