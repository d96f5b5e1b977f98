//! Brings one pod's status to the API: only what changed, the newest only, beside the pod's own work. With the API away it
//! keeps trying, ever more slowly; the pod does not notice.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use event_listener::Event as Wake;
use serde_json::{Value, json};
use smol::Timer;

use crate::api::pod::Pod;
use crate::base::task;
use crate::client::{Client, Patch, Query, is_not_found, refusal};

const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_LAST: Duration = Duration::from_secs(30);

pub struct Report(Rc<Inner>);

struct Inner {
    client: Client,
    path: String,
    uid: String,
    /// What the API should have.
    desired: RefCell<Value>,
    /// What it has, as far as is known.
    sent: RefCell<Value>,
    sending: Cell<bool>,
    sent_all: Wake,
    /// The status of an ended pod is what the API has already.
    kept: Cell<bool>,
}

impl Report {
    pub fn new(client: Client, pod: &Pod) -> Self {
        let path = format!("/api/v1/namespaces/{}/pods/{}", pod.metadata.namespace, pod.metadata.name);
        let sent = RefCell::new(pod.status.clone());
        Self(Rc::new(Inner {
            client,
            path,
            uid: pod.metadata.uid.clone(),
            desired: RefCell::new(Value::Null),
            sent,
            sending: Cell::new(false),
            sent_all: Wake::new(),
            kept: Cell::new(false),
        }))
    }

    /// The API knows how the pod ended; nothing is to be told of it.
    pub fn keep(&self) {
        self.0.kept.set(true);
    }

    /// The status should read so now.
    pub fn send(&self, pod: &Pod, status: Value) {
        if self.0.kept.get() || *self.0.desired.borrow() == status {
            return;
        }
        log::debug!("pod={} status phase={}", pod.full_name(), status["phase"]);
        self.0.desired.replace(status);
        if !self.0.sending.replace(true) {
            let inner = self.0.clone();
            task::spawn(async move {
                inner.deliver().await;
                inner.sending.set(false);
                inner.sent_all.notify(usize::MAX);
            })
            .detach();
        }
    }

    /// Deletes the object for good; true if it is gone.
    pub async fn delete(&self, pod: &Pod) -> bool {
        // The last status goes first: how the pod ended is told before it is gone.
        while self.0.sending.get() {
            self.0.sent_all.listen().await;
        }
        let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": self.0.uid}});
        match self.0.client.delete(&self.0.path, &options).await {
            Ok(_) => true,
            Err(error) if is_not_found(&error) || refusal(&error).is_some_and(|refusal| refusal.code == 409) => true,
            Err(error) => {
                log::warn!("pod={} tell the API that it is gone: {error:#}", pod.full_name());
                false
            }
        }
    }
}

impl Inner {
    async fn deliver(&self) {
        let mut pause = PAUSE_FIRST;
        loop {
            let desired = self.desired.borrow().clone();
            let missing = difference(&desired, &self.sent.borrow());
            if missing.as_object().is_none_or(serde_json::Map::is_empty) {
                return;
            }
            let patch = json!({"metadata": {"uid": self.uid}, "status": missing});
            match self.client.patch(&format!("{}/status", self.path), &Query::new(), Patch::Merge, &patch).await {
                Ok(_) => {
                    self.sent.replace(desired);
                    pause = PAUSE_FIRST;
                }
                // Gone, or another pod of the same name: nobody is there to be told.
                Err(error) if is_not_found(&error) || refusal(&error).is_some_and(|refusal| refusal.code == 409) => return,
                // Asking again would get the same answer, and the pod's deletion waits for its last status.
                Err(error) if refusal(&error).is_some_and(|refusal| (400..429).contains(&refusal.code)) => {
                    log::error!("{}: report status: {error:#}", self.path);
                    return;
                }
                Err(error) => {
                    log::warn!("{}: report status: {error:#}", self.path);
                    Timer::after(pause).await;
                    pause = (pause * 2).min(PAUSE_LAST);
                }
            }
        }
    }
}

/// The fields of `desired` that `sent` has otherwise, as a merge patch (RFC 7396): a field that is no longer wanted becomes null.
fn difference(desired: &Value, sent: &Value) -> Value {
    let nothing = serde_json::Map::new();
    let (desired, sent) = (desired.as_object().unwrap_or(&nothing), sent.as_object().unwrap_or(&nothing));
    let changed =
        desired.iter().filter(|(field, value)| sent.get(*field) != Some(*value)).map(|(field, value)| (field.clone(), value.clone()));
    // Only what the agent itself writes is taken back.
    let dropped =
        ["podIP", "podIPs", "reason", "message"].into_iter().filter(|field| sent.contains_key(*field) && !desired.contains_key(*field));
    changed.chain(dropped.map(|field| (field.to_owned(), Value::Null))).collect::<serde_json::Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_sent() {
        for (desired, sent, patch) in [
            (json!({"phase": "Running"}), json!({"phase": "Pending"}), json!({"phase": "Running"})),
            (json!({"phase": "Running"}), json!({"phase": "Running", "qosClass": "BestEffort"}), json!({})),
            (json!({"phase": "Failed"}), json!({"phase": "Failed", "podIP": "1.2.3.4"}), json!({"podIP": null})),
        ] {
            assert_eq!(difference(&desired, &sent), patch);
        }
    }
}
