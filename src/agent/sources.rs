//! Looks once a minute whether ConfigMaps and Secrets that the node's volumes show have changed, each once however many pods show
//! it, and tells the pods' workers. It keeps versions only, never what is in them. No watches: a stream for each object would cost
//! memory here and on the master as long as the pod lives, a look costs one small request, and the kubelet promises a minute.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;
use smol::Timer;

use super::Node;
use super::environment::Source;
use super::worker::Mailbox;

/// The kubelet's default `syncFrequency`.
const INTERVAL: Duration = Duration::from_secs(60);

pub type Versions = BTreeMap<Source, Version>;

/// What is remembered of an object that was read.
#[derive(Clone, Debug, PartialEq)]
pub enum Version {
    Absent,
    Present(String),
    /// It will never be another: there is no need to look again.
    Immutable,
}

impl Version {
    pub fn of(object: Option<&Value>) -> Self {
        match object {
            None => Self::Absent,
            Some(object) if object["immutable"] == true => Self::Immutable,
            Some(object) => Self::Present(object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned()),
        }
    }
}

/// Runs as long as the agent does.
pub async fn keep(node: Rc<Node>) {
    loop {
        Timer::after(INTERVAL).await;
        let mailboxes: Vec<Rc<Mailbox>> = node.pods.borrow().values().cloned().collect();
        if let Err(error) = look(&node, &mailboxes).await {
            log::debug!("look at ConfigMaps and Secrets: {error:#}");
        }
    }
}

/// # Errors
/// If the API cannot be asked: the next look will tell.
async fn look(node: &Node, mailboxes: &[Rc<Mailbox>]) -> anyhow::Result<()> {
    let shown: Vec<(String, Versions)> =
        mailboxes.iter().map(|mailbox| (mailbox.pod().metadata.namespace.clone(), mailbox.versions.borrow().clone())).collect();
    let mut observed = BTreeMap::new();
    for (namespace, source) in wanted(&shown) {
        let object = node.read(namespace, source).await?;
        observed.insert((namespace, source), Version::of(object.as_ref()));
    }
    for (mailbox, (namespace, versions)) in mailboxes.iter().zip(&shown) {
        if is_outdated(namespace, versions, &observed) {
            mailbox.outdated();
        }
    }
    Ok(())
}

/// Each object that may have changed, once.
fn wanted(shown: &[(String, Versions)]) -> BTreeSet<(&str, &Source)> {
    let mutable = |(source, version)| (version != &Version::Immutable).then_some(source);
    shown.iter().flat_map(|(namespace, versions)| versions.iter().filter_map(mutable).map(|source| (namespace.as_str(), source))).collect()
}

fn is_outdated(namespace: &str, versions: &Versions, observed: &BTreeMap<(&str, &Source), Version>) -> bool {
    let changed = |(source, version)| observed.get(&(namespace, source)).is_some_and(|observed| observed != version);
    versions.iter().filter(|(_, version)| **version != Version::Immutable).any(changed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn present(version: &str) -> Version {
        Version::of(Some(&json!({"metadata": {"resourceVersion": version}})))
    }

    #[test]
    fn each_object_is_looked_at_once_and_an_immutable_one_not_at_all() {
        let map = |name: &str| Source::ConfigMap(name.into());
        let immutable = Version::of(Some(&json!({"immutable": true, "metadata": {"resourceVersion": "1"}})));
        let shown = [
            ("a".to_owned(), Versions::from([(map("m"), present("1")), (map("fixed"), immutable.clone())])),
            ("a".to_owned(), Versions::from([(map("m"), present("2")), (Source::Secret("m".into()), Version::of(None))])),
            ("b".to_owned(), Versions::from([(map("m"), present("1"))])),
        ];
        let (m, secret, fixed) = (map("m"), Source::Secret("m".into()), map("fixed"));
        assert_eq!(wanted(&shown), BTreeSet::from([("a", &m), ("a", &secret), ("b", &m)]));
        let outdated = |observed: &[((&str, &Source), Version)]| {
            let observed = observed.iter().cloned().collect();
            shown.iter().map(|(namespace, versions)| is_outdated(namespace, versions, &observed)).collect::<Vec<_>>()
        };
        assert_eq!(outdated(&[(("a", &m), present("2")), (("b", &m), present("1"))]), [true, false, false]);
        assert_eq!(outdated(&[(("a", &secret), present("9")), (("a", &fixed), present("9"))]), [false, true, false]);
        assert_eq!(outdated(&[(("b", &m), Version::Absent)]), [false, false, true]);
    }
}
