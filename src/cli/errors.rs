//! How an error is told: in kubectl's words where kubectl has some, with what to do next where we know it. It never adds a guess.

use anyhow::Error;
use serde_json::Value;

use crate::client::kubeconfig::NoServer;
use crate::client::{Refusal, Unreachable};

/// The text for standard error, without a line end.
pub fn render(error: &Error) -> String {
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        return render_refusal(refusal);
    }
    if let Some(unreachable) = error.downcast_ref::<Unreachable>() {
        if unreachable.is_connection_refused() {
            let server = &unreachable.server;
            return format!(
                "The connection to the server {server} was refused - did you specify the right host or port?\n\
                 If the cluster is not running, `edgectl up` starts one on this machine."
            );
        }
        return format!("Unable to connect to the server: {:#}", unreachable.why);
    }
    if error.downcast_ref::<NoServer>().is_some() {
        return format!(
            "error: {error}\n`edgectl up` starts a cluster on this machine and writes its kubeconfig; \
             for one that runs elsewhere, pass its file with --kubeconfig or KUBECONFIG."
        );
    }
    let text = format!("{error:#}");
    if text.starts_with("error: ") || text.starts_with("Error ") { text } else { format!("error: {text}") }
}

fn render_refusal(refusal: &Refusal) -> String {
    match refusal.reason.as_str() {
        "Invalid" => render_invalid(refusal),
        "Unauthorized" => format!("error: You must be logged in to the server ({})", refusal.message),
        "" => format!("Error from server: {}", refusal.message),
        reason => format!("Error from server ({reason}): {}", refusal.message),
    }
}

/// An invalid object is told field by field.
fn render_invalid(refusal: &Refusal) -> String {
    let details = &refusal.details;
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let causes: Vec<String> = details["causes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|cause| match text(cause, "field") {
            field if field.is_empty() => text(cause, "message"),
            field => format!("{field}: {}", text(cause, "message")),
        })
        .collect();
    let (kind, name) = (text(details, "kind"), text(details, "name"));
    let subject = if !kind.is_empty() || !name.is_empty() {
        format!("The {kind} {name:?} is invalid")
    } else if causes.is_empty() && !refusal.message.is_empty() {
        format!("The request is invalid: {}", refusal.message)
    } else {
        "The request is invalid".to_owned()
    };
    match causes.as_slice() {
        [] => subject,
        [only] => format!("{subject}: {only}"),
        several => {
            let mut text = format!("{subject}: ");
            for cause in several {
                text += &format!("\n* {cause}");
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;
    use serde_json::json;

    fn check(code: u16, reason: &str, message: &str, details: Value, expected: &str) {
        let refusal = Refusal { code, reason: reason.into(), message: message.into(), details };
        assert_eq!(render(&anyhow!(refusal)), expected);
    }

    #[test]
    fn refusals_are_told_in_kubectls_words() {
        check(404, "NotFound", "pods \"x\" not found", Value::Null, "Error from server (NotFound): pods \"x\" not found");
        check(401, "Unauthorized", "Unauthorized", Value::Null, "error: You must be logged in to the server (Unauthorized)");
        check(418, "", "no", Value::Null, "Error from server: no");
        let one = json!({"kind": "Deployment", "name": "web", "causes": [{"field": "spec.replicas", "message": "Invalid value: -1"}]});
        check(422, "Invalid", "m", one, "The Deployment \"web\" is invalid: spec.replicas: Invalid value: -1");
        let two = json!({"kind": "Pod", "name": "web", "causes": [{"field": "a", "message": "b"}, {"field": "c", "message": "d"}]});
        check(422, "Invalid", "m", two, "The Pod \"web\" is invalid: \n* a: b\n* c: d");
    }

    #[test]
    fn other_errors_begin_with_error_and_say_what_to_do_next() {
        assert_eq!(render(&anyhow!("a").context("b")), "error: b: a");
        assert_eq!(render(&anyhow!("error: a")), "error: a");
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let unreachable = Unreachable { server: "127.0.0.1:6443".into(), why: anyhow!(refused).context("connect") };
        assert!(render(&anyhow!(unreachable)).starts_with("The connection to the server 127.0.0.1:6443 was refused"));
        assert!(render(&anyhow!(NoServer { context: None })).contains("`edgectl up`"));
    }
}
