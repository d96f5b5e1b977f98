//! Builds answers: JSON bodies, Status errors, Warning headers, compression of what is large. It decides no code of its own.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::Response;
use hyper::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, VARY};
use serde_json::Value;

use crate::api::status::Status;
use crate::wire::body::Body;

pub const JSON: &str = "application/json";
/// Answers longer than this are compressed for those who take it; upstream's threshold.
const GZIP_BYTES_MIN: usize = 128 << 10;
/// Characters of one warning, and of all of an answer; upstream's bounds.
const WARNING_CHARS_MAX: usize = 256;
const WARNINGS_CHARS_MAX: usize = 4096;

pub fn bytes(code: u16, content_type: &str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = code.try_into().expect("callers pass codes of HTTP");
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap_or(HeaderValue::from_static(JSON)));
    // What the API says is true now and for this user only.
    response.headers_mut().insert(hyper::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

pub fn json(code: u16, value: &Value) -> Response<Body> {
    bytes(code, JSON, serde_json::to_vec(value).expect("a Value serializes"))
}

pub fn text(code: u16, text: impl Into<String>) -> Response<Body> {
    bytes(code, "text/plain; charset=utf-8", text.into())
}

pub fn status(status: &Status) -> Response<Body> {
    let mut response = json(status.code, &status.to_json());
    if status.code == 405 {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(""));
    }
    // Clients try again by themselves if, and only if, this header is there.
    if status.details.retry_after_seconds > 0 {
        response.headers_mut().insert(RETRY_AFTER, status.details.retry_after_seconds.into());
    }
    response
}

/// Refuses a switch to SPDY: which protocols are ours, in headers, and in words.
pub fn no_common_protocol((headers, why): (HeaderMap, String)) -> Response<Body> {
    let mut response = text(403, why);
    response.headers_mut().extend(headers);
    response
}

/// A stream of JSON objects, one a line.
pub fn stream(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(hyper::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// Adds `Warning: 299 - "…"` headers (RFC 9111 once had them, KEP-1693 keeps them); kubectl prints each to standard error.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    let mut room = WARNINGS_CHARS_MAX;
    for warning in warnings {
        let warning: String = warning.chars().filter(|c| !c.is_control()).take(WARNING_CHARS_MAX.min(room)).collect();
        room -= warning.chars().count();
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(HeaderName::from_static("warning"), value);
        }
        if room == 0 {
            return;
        }
    }
}

/// Compresses a body at hand if it is large. Fast rather than small: the time is taken from everyone else.
pub fn compress(mut response: Response<Body>) -> Response<Body> {
    let Body::Full(Some(body)) = response.body() else { return response };
    if body.len() < GZIP_BYTES_MIN || response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 6), Compression::fast());
    let compressed = encoder.write_all(body).and_then(|()| encoder.finish());
    let compressed = compressed.expect("writing to memory does not fail");
    response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().append(VARY, HeaderValue::from_static("Accept-Encoding"));
    *response.body_mut() = Body::full(compressed);
    response
}
