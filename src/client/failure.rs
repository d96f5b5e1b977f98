//! What can go wrong between us and the API server, told apart as far as callers act differently. It prints nothing itself.

use std::fmt;

use serde_json::Value;

/// The server's own `Status`, as it came.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Refusal {
    /// HTTP status code.
    pub code: u16,
    /// `NotFound`, `Conflict`, …; empty if the server gave none.
    pub reason: String,
    pub message: String,
    /// `details` of the Status; null if it has none.
    pub details: Value,
}

impl Refusal {
    /// Reads an answer that is no success. A body that is no `Status` becomes the message.
    pub fn read(code: u16, body: &[u8]) -> Self {
        if let Ok(status) = serde_json::from_slice::<Value>(body)
            && status["kind"] == "Status"
        {
            return Self::from_status(&status, code);
        }
        let text = String::from_utf8_lossy(body).trim().to_owned();
        let (reason, default) = match code {
            401 => ("Unauthorized", "the server has asked for the client to provide credentials"),
            403 => ("Forbidden", "access is forbidden"),
            404 => ("NotFound", "the server could not find the requested resource"),
            405 => ("MethodNotAllowed", "the server does not allow this method on the requested resource"),
            429 => ("TooManyRequests", "the server has received too many requests and has asked us to try again later"),
            503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
            500.. => ("InternalError", "an error on the server has prevented the request from succeeding"),
            _ => ("", "the server rejected our request for an unknown reason"),
        };
        let message = if text.is_empty() || text.len() > 1024 { default.to_owned() } else { text };
        Self { code, reason: reason.to_owned(), message, details: Value::Null }
    }

    /// Reads a `Status` object, as it also comes in an `ERROR` event of a watch.
    pub fn from_status(status: &Value, code: u16) -> Self {
        let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
        let code = status["code"].as_u64().map_or(code, |code| code as u16);
        Self { code, reason: text("reason"), message: text("message"), details: status["details"].clone() }
    }

    /// Says in the message what was being done, to what: `error when creating "web.yaml": …`.
    pub fn when(mut self, doing: &str, source: &str) -> Self {
        self.message = format!("error when {doing} {source:?}: {}", self.message);
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// The server could not be reached, or the connection broke.
#[derive(Debug)]
pub struct Unreachable {
    /// `host:port`.
    pub server: String,
    pub why: anyhow::Error,
}

impl Unreachable {
    pub fn is_connection_refused(&self) -> bool {
        self.why
            .chain()
            .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused))
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "speak to {}: {:#}", self.server, self.why)
    }
}

impl std::error::Error for Unreachable {}

/// The server's refusal inside an error, if that is what it is.
pub fn refusal(error: &anyhow::Error) -> Option<&Refusal> {
    error.downcast_ref::<Refusal>()
}

/// The error is the server saying that the object, or the resource, is not there.
pub fn is_not_found(error: &anyhow::Error) -> bool {
    refusal(error).is_some_and(|refusal| refusal.reason == "NotFound")
}
