//! Reads what clients send: bodies of bounded size in JSON, YAML or protobuf, checked against the schema of the kind that is expected.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_lite::FutureExt;
use http_body_util::{BodyExt, Limited};
use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;
use serde_json::Value;
use smol::Timer;

use super::query::FieldValidation;
use crate::api::schema::{self, Kind};
use crate::api::status::Status;
use crate::api::validation::{self, FieldProblem};
use crate::api::{decode, protobuf};

/// Upstream's limit of a request body.
pub const BODY_BYTES_MAX: usize = 3 << 20;
/// A client that has not sent its body by then is given up; upstream gives a whole request 60 s.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// A body that was not read yet; authorization comes first.
pub struct Unread(Pin<Box<dyn hyper::body::Body<Data = Bytes, Error = Box<dyn std::error::Error + Send + Sync>>>>);

impl Unread {
    pub fn new<B>(body: B) -> Self
    where
        B: hyper::body::Body<Data = Bytes> + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        Self(Box::pin(body.map_err(Into::into)))
    }

    /// # Errors
    /// 413, 504 for a client that is too slow, or 400 for one that went away in the middle.
    pub async fn read(self) -> Result<Bytes, Status> {
        let whole = async { Some(Limited::new(self.0, BODY_BYTES_MAX).collect().await) };
        let late = async {
            Timer::after(READ_TIMEOUT).await;
            None
        };
        match whole.or(late).await {
            Some(Ok(collected)) => Ok(collected.to_bytes()),
            Some(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(Status::too_large(BODY_BYTES_MAX)),
            Some(Err(error)) => Err(Status::bad_request(format!("error reading the request body: {error}"))),
            None => Err(Status::timeout("the request body did not come in time")),
        }
    }
}

/// The media type of a request's body without parameters; JSON if it has none, as the Python client sends it.
pub fn media_type(headers: &HeaderMap) -> &str {
    let header = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match header.split(';').next().unwrap_or_default().trim() {
        "" => "application/json",
        media_type => media_type,
    }
}

/// Reads one document in the format that the headers name.
///
/// # Errors
/// 415 for another format, 400 for one that is broken.
fn document(headers: &HeaderMap, body: &[u8]) -> Result<(Value, Vec<FieldProblem>), Status> {
    let read = match media_type(headers) {
        "application/json" => decode::json(body),
        "application/yaml" => decode::yaml(body),
        "application/vnd.kubernetes.protobuf" => protobuf::decode(body).map(|value| (value, Vec::new())),
        _ => return Err(Status::unsupported_media_type(ACCEPTED)),
    };
    let (value, problems) = read.map_err(|error| Status::bad_request(format!("couldn't get version/kind; {error:#}")))?;
    if !value.is_object() {
        return Err(Status::bad_request("couldn't get version/kind; json parse error: the body is no object"));
    }
    Ok((value, problems))
}

/// Reads an object of the kind that is expected. Apart from its kind nothing in it is judged.
///
/// # Errors
/// 415, 400; 400 for problems with fields if `validation` is strict. With `Warn` they go to `warnings`.
pub fn object(
    headers: &HeaderMap,
    body: &[u8],
    kind: Kind,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, Status> {
    let (mut value, problems) = document(headers, body)?;
    expect_kind(&mut value, kind)?;
    check(&mut value, problems, kind, validation, warnings)?;
    Ok(value)
}

/// Options that come as a body, as those of a deletion; an empty body is none.
///
/// # Errors
/// 415, 400.
pub fn options(headers: &HeaderMap, body: &[u8]) -> Result<Value, Status> {
    if body.is_empty() {
        return Ok(Value::Null);
    }
    Ok(document(headers, body)?.0)
}

fn expect_kind(value: &mut Value, kind: Kind) -> Result<(), Status> {
    let expected = kind.api_version();
    for (field, expected) in [("apiVersion", &*expected), ("kind", kind.name)] {
        match value[field].as_str().unwrap_or_default() {
            "" => value[field] = expected.into(),
            given if given == expected => (),
            given if field == "apiVersion" => {
                return Err(Status::bad_request(format!(
                    "the API version in the data ({given}) does not match the expected API version ({expected})"
                )));
            }
            given => {
                return Err(Status::bad_request(format!(
                    "{given} in version {:?} cannot be handled as a {expected}: the kind in the data does not match",
                    kind.version
                )));
            }
        }
    }
    Ok(())
}

/// Checks fields against the schema, and takes out what it does not know.
///
/// # Errors
/// 400 for values of a wrong type; for unknown and duplicate fields too if `validation` is strict.
pub fn check(
    value: &mut Value,
    duplicates: Vec<FieldProblem>,
    kind: Kind,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let problems: Vec<FieldProblem> = duplicates.into_iter().chain(validation::check_fields(kind, value)).collect();
    if let Some(fatal) = problems.iter().find(|problem| problem.is_fatal()) {
        let (name, version) = (kind.name, kind.version);
        return Err(Status::bad_request(format!("{name} in version {version:?} cannot be handled as a {name}: {fatal}")));
    }
    let problems = problems.iter().map(ToString::to_string);
    match validation {
        FieldValidation::Ignore => (),
        FieldValidation::Warn => warnings.extend(problems),
        FieldValidation::Strict => {
            let list: Vec<String> = problems.collect();
            if !list.is_empty() {
                return Err(Status::bad_request(format!("strict decoding error: {}", list.join(", "))));
            }
        }
    }
    Ok(())
}

/// A kind by its names, for bodies whose kind is not the resource's own.
///
/// # Errors
/// 500 if the table does not have it.
pub fn known_kind(group: &str, version: &str, name: &str) -> Result<Kind, Status> {
    schema::kind(group, version, name).ok_or_else(|| Status::internal(format!("the schema has no {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content_type: &str, body: &str, validation: FieldValidation) -> Result<(Value, Vec<String>), Status> {
        let mut headers = HeaderMap::new();
        if !content_type.is_empty() {
            headers.insert(CONTENT_TYPE, content_type.parse().unwrap());
        }
        let mut warnings = Vec::new();
        let kind = schema::kind("", "v1", "ConfigMap").unwrap();
        object(&headers, body.as_bytes(), kind, validation, &mut warnings).map(|value| (value, warnings))
    }

    #[test]
    fn bodies_are_read_in_the_format_they_say() {
        let (value, _) = read("", r#"{"data": {"a": "b"}}"#, FieldValidation::Strict).unwrap();
        assert_eq!((&value["kind"], &value["data"]["a"]), (&"ConfigMap".into(), &"b".into()));
        let (value, _) = read("application/yaml; charset=utf-8", "apiVersion: v1\ndata: {a: b}", FieldValidation::Strict).unwrap();
        assert_eq!(value["data"]["a"], "b");
        assert_eq!(read("text/plain", "", FieldValidation::Strict).unwrap_err().code, 415);
        assert_eq!(read("", "[]", FieldValidation::Strict).unwrap_err().code, 400);
        assert_eq!(read("", r#"{"kind": "Pod"}"#, FieldValidation::Strict).unwrap_err().code, 400);
    }

    #[test]
    fn unknown_fields_are_refused_told_or_dropped() {
        let body = r#"{"dataa": {}, "data": {}}"#;
        let strict = read("", body, FieldValidation::Strict).unwrap_err();
        assert!(strict.message.starts_with("strict decoding error: unknown field \"dataa\""), "{strict}");
        let (value, warnings) = read("", body, FieldValidation::Warn).unwrap();
        assert!(warnings[0].starts_with("unknown field \"dataa\"") && value.get("dataa").is_none());
        assert!(read("", body, FieldValidation::Ignore).unwrap().1.is_empty());
        assert_eq!(read("", r#"{"data": 7}"#, FieldValidation::Ignore).unwrap_err().code, 400);
    }
}
