//! Puts into every namespace what each pod counts on: the ServiceAccount `default` and the ConfigMap `kube-root-ca.crt`, and puts them
//! back when they go. It never touches other ServiceAccounts and ConfigMaps, nor anything in a namespace that is being deleted.

use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};

use super::feed::{Index, Notice};
use super::queue::Queue;
use super::replicaset::is_namespace_ending;
use super::{Loop, Name, Shared};
use crate::api::meta;
use crate::api::schema::Resource;
use crate::api::status::Status;
use crate::master::store::Key;
use crate::master::store::objects::Part;

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
const ROOT_CA_KEY: &str = "ca.crt";
/// As upstream's root-ca-cert-publisher says it.
const ROOT_CA_DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
    endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of \
    Kubernetes clusters.";

pub struct Controller {
    shared: Rc<Shared>,
    root_ca_pem: String,
    namespaces: &'static Resource,
    accounts: &'static Resource,
    config_maps: &'static Resource,
    queue: Queue<Name>,
}

impl Controller {
    pub fn new(shared: &Rc<Shared>, root_ca_pem: String) -> Rc<Self> {
        let controller = Rc::new(Self {
            root_ca_pem,
            namespaces: shared.resource("", "v1", "namespaces"),
            accounts: shared.resource("", "v1", "serviceaccounts"),
            config_maps: shared.resource("", "v1", "configmaps"),
            shared: shared.clone(),
            queue: Queue::new(),
        });
        let listener = controller.clone();
        shared.feed.listen(move |notice, _: &Index| listener.notice(notice));
        controller
    }

    fn notice(&self, notice: &Notice) {
        let key = &notice.object.key;
        let account_gone = notice.is(self.accounts) && key.name == ACCOUNT && notice.is_deleted();
        let root_ca_changed = notice.is(self.config_maps) && key.name == ROOT_CA;
        if notice.is(self.namespaces) && !notice.is_deleted() {
            self.queue.add(Name::of(key));
        } else if account_gone || root_ca_changed {
            self.queue.add(Name::new("", &key.namespace));
        }
    }

    async fn provide(&self, resource: &'static Resource, namespace: &str, name: &str, content: Value) -> Result<(), Status> {
        let mut object = content;
        object["metadata"]["name"] = name.into();
        object["metadata"]["namespace"] = namespace.into();
        match self.shared.objects().create(resource, namespace, object, false).await {
            Err(status) if !status.is_already_exists() => Err(status),
            _ => Ok(()),
        }
    }

    async fn provide_root_ca(&self, namespace: &str) -> Result<(), Status> {
        let objects = self.shared.objects();
        let data = json!({ROOT_CA_KEY: self.root_ca_pem});
        if objects.store().get(&Key::new(self.config_maps, namespace, ROOT_CA)).is_none() {
            let metadata = json!({"annotations": {"kubernetes.io/description": ROOT_CA_DESCRIPTION}});
            return self.provide(self.config_maps, namespace, ROOT_CA, json!({"metadata": metadata, "data": data})).await;
        }
        let restored = objects
            .update(self.config_maps, namespace, ROOT_CA, Part::Whole, false, |live| {
                let mut desired = live.clone();
                desired["data"] = data.clone();
                Ok(desired)
            })
            .await;
        restored.map(drop)
    }
}

impl Loop for Controller {
    type Key = Name;
    const NAME: &'static str = "namespace-defaults";
    const WORKERS: usize = 1;

    fn queue(&self) -> &Queue<Name> {
        &self.queue
    }

    async fn sync(&self, name: &Name) -> anyhow::Result<Option<Duration>> {
        let store = self.shared.objects().store();
        let Some(namespace) = store.get(&Key::new(self.namespaces, "", &name.name)) else { return Ok(None) };
        if meta::is_deleting(&namespace.value()) {
            return Ok(None);
        }
        let account = async {
            match store.get(&Key::new(self.accounts, &name.name, ACCOUNT)) {
                Some(_) => Ok(()),
                None => self.provide(self.accounts, &name.name, ACCOUNT, json!({})).await,
            }
        };
        let (account, root_ca) = futures_util::join!(account, self.provide_root_ca(&name.name));
        for refused in [account, root_ca].into_iter().filter_map(Result::err) {
            if !is_namespace_ending(&refused) && !refused.is_not_found() {
                return Err(refused.into());
            }
        }
        Ok(None)
    }
}
