//! Removes bootstrap tokens that have expired (upstream `pkg/controller/bootstrap/tokencleaner.go`). Whether a token is good is not its
//! affair: the API server reads the expiration itself.

use std::rc::Rc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::feed::{Index, Notice};
use super::queue::Queue;
use super::{Loop, Name, Shared};
use crate::api::schema::Resource;
use crate::base::time::Timestamp;
use crate::master::store::objects::DeleteOptions;
use crate::master::store::{Key, Object};

const NAMESPACE: &str = "kube-system";
const NAME_PREFIX: &str = "bootstrap-token-";
const TYPE: &str = "bootstrap.kubernetes.io/token";

pub struct Controller {
    shared: Rc<Shared>,
    secrets: &'static Resource,
    queue: Queue<Name>,
}

impl Controller {
    pub fn new(shared: &Rc<Shared>) -> Rc<Self> {
        let controller = Rc::new(Self { secrets: shared.resource("", "v1", "secrets"), shared: shared.clone(), queue: Queue::new() });
        let listener = controller.clone();
        shared.feed.listen(move |notice, _: &Index| listener.notice(notice));
        controller
    }

    fn notice(&self, notice: &Notice) {
        let key = &notice.object.key;
        if notice.is(self.secrets) && key.namespace == NAMESPACE && key.name.starts_with(NAME_PREFIX) && !notice.is_deleted() {
            self.queue.add(Name::of(key));
        }
    }
}

impl Loop for Controller {
    type Key = Name;
    const NAME: &'static str = "bootstrap-token";
    const WORKERS: usize = 1;

    fn queue(&self) -> &Queue<Name> {
        &self.queue
    }

    async fn sync(&self, name: &Name) -> anyhow::Result<Option<Duration>> {
        let objects = self.shared.objects();
        let Some(object) = objects.store().get(&Key::new(self.secrets, &name.namespace, &name.name)) else { return Ok(None) };
        let Some(expiration) = expiration(&object) else { return Ok(None) };
        let now = self.shared.now();
        if now < expiration {
            return Ok(Some(expiration.since(now)));
        }
        let options = DeleteOptions { uid: Some(object.uid.clone()), ..DeleteOptions::default() };
        match objects.delete(self.secrets, &name.namespace, &name.name, &options).await {
            Ok(_) => log::info!("secret={name} deleted: the token has expired"),
            Err(status) if status.is_not_found() || status.is_conflict() => (),
            Err(status) => return Err(status.into()),
        }
        Ok(None)
    }
}

/// Until when a token is good; None if it is for ever, or the secret is none of a token.
fn expiration(object: &Object) -> Option<Timestamp> {
    let secret = object.value();
    let text = secret["data"]["expiration"].as_str().filter(|_| secret["type"] == TYPE)?;
    Timestamp::parse(&String::from_utf8(STANDARD.decode(text).ok()?).ok()?)
}
