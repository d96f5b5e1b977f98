//! What happens to an object between its defaults and its validation: rules that look at other objects or that Kubernetes' own
//! admission plugins and registry strategies apply. Everyone's writes pass here, controllers' too; no user is known.

mod limits;
mod pods;
mod quota;
pub mod services;

use serde_json::{Value, json};

use crate::api::meta;
use crate::api::schema::{self, Resource};
use crate::api::status::Status;
use crate::master::store::Objects;

/// Completes and judges an object that is about to be created (`live` is none) or changed; `store::objects::Admit`.
///
/// # Errors
/// 403, 404 or 422, as upstream's plugins give them.
pub fn admit(objects: &Objects, resource: &'static Resource, object: &mut Value, live: Option<&Value>) -> Result<(), Status> {
    let stored = resource.stored_as();
    if live.is_none() {
        if stored.namespaced {
            namespace_takes_content(objects, stored, object)?;
        }
        if stored.subresource("status").is_some() && object.get("status").is_none() {
            object["status"] = json!({});
        }
    }
    match (stored.group, stored.plural, live) {
        ("", "pods", None) => {
            limits::apply(objects, object);
            pods::admit(objects, object)?;
        }
        ("", "services", live) => services::admit(objects, object, live)?,
        ("", "secrets", _) => encode_string_data(object),
        ("", "namespaces", live) => begin_namespace(object, live),
        ("", "persistentvolumes", None) => object["status"]["phase"] = "Pending".into(),
        ("", "persistentvolumeclaims", None) => {
            object["status"]["phase"] = "Pending".into();
            default_class(objects, object);
        }
        ("batch", "jobs", None) => select_own_pods(object),
        _ => (),
    }
    limits::check(objects, stored, object, live)?;
    quota::check(objects, stored, object, live)
}

/// NamespaceLifecycle: nothing is made in a namespace that is not there or that goes.
fn namespace_takes_content(objects: &Objects, resource: &Resource, object: &Value) -> Result<(), Status> {
    let name = meta::namespace(object);
    let namespaces = schema::resource("", "v1", "namespaces").ok_or_else(Status::no_such_resource)?;
    let namespace = objects.get(namespaces, "", name)?.value();
    if namespace["status"]["phase"] != "Terminating" && !meta::is_deleting(&namespace) {
        return Ok(());
    }
    // Events about what goes are the one thing that still makes sense.
    if resource.plural == "events" {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {name} because it is being terminated");
    let refused = Status::forbidden(resource.group, resource.plural, meta::name(object), why);
    Err(refused.with_cause("NamespaceTerminating", format!("namespace {name} is being terminated"), "metadata.namespace"))
}

/// `stringData` is a way to write `data`, never kept.
fn encode_string_data(secret: &mut Value) {
    use base64::Engine;
    let Some(map) = secret.as_object_mut() else { return };
    let Some(plain) = map.remove("stringData") else { return };
    for (key, text) in plain.as_object().into_iter().flatten() {
        let data = map.entry("data").or_insert_with(|| json!({}));
        if !data.is_object() {
            *data = json!({});
        }
        data[key] = base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or_default()).into();
    }
}

fn begin_namespace(namespace: &mut Value, live: Option<&Value>) {
    let name = meta::name(namespace).to_owned();
    meta::set_label(namespace, "kubernetes.io/metadata.name", &name);
    if live.is_none() {
        namespace["status"]["phase"] = "Active".into();
        let finalizers = namespace["spec"]["finalizers"].as_array().cloned().unwrap_or_default();
        if !finalizers.iter().any(|finalizer| finalizer == "kubernetes") {
            let all: Vec<Value> = finalizers.into_iter().chain(["kubernetes".into()]).collect();
            namespace["spec"]["finalizers"] = all.into();
        }
    }
}

/// DefaultStorageClass: a claim that names no class gets the default one, the newest if there are several.
fn default_class(objects: &Objects, claim: &mut Value) {
    let annotation = "volume.beta.kubernetes.io/storage-class";
    if claim["spec"].get("storageClassName").is_some_and(|class| !class.is_null()) || meta::annotation(claim, annotation).is_some() {
        return;
    }
    let Some(classes) = schema::resource("storage.k8s.io", "v1", "storageclasses") else { return };
    let is_default = |class: &Value| meta::annotation(class, "storageclass.kubernetes.io/is-default-class") == Some("true");
    let classes = objects.list(classes, None).0.into_iter().map(|class| class.value()).filter(is_default);
    let newest = classes.max_by_key(|class| meta::text(class, "creationTimestamp").to_owned());
    if let Some(class) = newest {
        claim["spec"]["storageClassName"] = meta::name(&class).into();
    }
}

/// A Job selects its pods by its own uid, unless the user said otherwise. k8s.io/kubernetes/pkg/registry/batch/job/strategy.go.
fn select_own_pods(job: &mut Value) {
    if job["spec"]["manualSelector"] == true {
        return;
    }
    let (name, uid) = (meta::name(job).to_owned(), meta::uid(job).to_owned());
    let template = &mut job["spec"]["template"];
    if !template.is_object() {
        return;
    }
    let labels = [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ];
    for (key, value) in labels {
        meta::set_label(template, key, value);
    }
    job["spec"]["selector"] = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_data_becomes_data() {
        let mut secret = json!({"data": {"a": "eA=="}, "stringData": {"a": "y", "b": "z"}});
        encode_string_data(&mut secret);
        assert_eq!(secret, json!({"data": {"a": "eQ==", "b": "eg=="}}));
    }

    #[test]
    fn a_namespace_begins_active_and_held() {
        let mut namespace = json!({"metadata": {"name": "shop"}});
        begin_namespace(&mut namespace, None);
        assert_eq!(
            namespace,
            json!({"metadata": {"name": "shop", "labels": {"kubernetes.io/metadata.name": "shop"}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
        );
    }

    #[test]
    fn a_job_selects_its_own_pods() {
        let mut job = json!({"metadata": {"name": "once", "uid": "u"}, "spec": {"template": {"metadata": {"labels": {"a": "b"}}}}});
        select_own_pods(&mut job);
        assert_eq!(job["spec"]["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}));
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "once");
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["a"], "b");
    }
}
