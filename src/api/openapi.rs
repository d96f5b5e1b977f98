//! OpenAPI v3 of the built-in kinds, written on demand from the schema table and never kept: what kubectl needs to decide whether
//! the server validates, and what `kubectl explain` shows. There are no descriptions, only structure.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use super::schema::{Field, Kind, ListKind, Message, Resource, Type, element, kind, kinds, resources};

/// Fingerprint of the documents; it changes when they do, so that clients may keep them for good.
pub fn hash() -> String {
    // FNV-1a over what the documents are made of.
    let mut hash = 0xcbf29ce484222325u64;
    let mut add = |text: &str| text.bytes().for_each(|byte| hash = (hash ^ u64::from(byte)).wrapping_mul(0x100000001b3));
    add(env!("CARGO_PKG_VERSION"));
    kinds().for_each(|kind| kind.message.json_fields().for_each(|field| add(field.name())));
    format!("{hash:016X}")
}

/// `/openapi/v3`: where the document of each group version is.
pub fn v3_index() -> Vec<u8> {
    let mut paths = Map::new();
    for row in resources() {
        let path = root(row.group, row.version);
        paths.entry(&path[1..]).or_insert_with(|| json!({"serverRelativeURL": format!("/openapi/v3{path}?hash={}", hash())}));
    }
    write(&json!({"paths": paths}))
}

pub const V2_MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// `/openapi/v2`, a document without a path, as protobuf (google/gnostic openapiv2/OpenAPIv2.proto). kubectl asks it about what is
/// in no document of v3, the kind `List` above all, and without any answer refuses the manifest; that it finds nothing in it is fine.
pub fn v2() -> Vec<u8> {
    let field = |number: u8, content: &[u8]| {
        // One byte holds lengths of up to seven bits.
        assert!(content.len() < 128, "a field of {} bytes", content.len());
        [&[number << 3 | 2, content.len() as u8], content].concat()
    };
    let info = [field(1, b"Kubernetes"), field(2, super::VERSION.as_bytes())].concat();
    [field(1, b"2.0"), field(2, &info)].concat()
}

/// `/openapi/v3/apis/{group}/{version}` (`/openapi/v3/api/v1` for the group ""); `None` if nothing built in belongs to it.
pub fn v3(group: &str, version: &str) -> Option<Vec<u8>> {
    let rows: Vec<&Resource> = resources().filter(|row| row.group == group && row.version == version).collect();
    if rows.is_empty() {
        return None;
    }
    // Piece by piece: the whole document as one tree would need ten times its size.
    let info = format!(r#"{{"openapi":"3.0.0","info":{{"title":"Kubernetes","version":"{}"}},"paths":"#, super::VERSION);
    let mut out = info.into_bytes();
    let mut separator = b'{';
    let mut entry = |out: &mut Vec<u8>, key: &str, value: &Value| {
        out.push(separator);
        separator = b',';
        out.extend(write(&key.into()));
        out.push(b':');
        out.extend(write(value));
    };
    for row in &rows {
        for (path, value) in paths(row) {
            entry(&mut out, &path, &value);
        }
    }
    out.extend_from_slice(br#"},"components":{"schemas":"#);
    separator = b'{';
    let mut queue: VecDeque<Message> = rows.iter().flat_map(|row| kinds_of(row)).map(|kind| kind.message).collect();
    let mut seen: Vec<Message> = Vec::new();
    let mut entry = |out: &mut Vec<u8>, key: &str, value: &Value| {
        out.push(separator);
        separator = b',';
        out.extend(write(&key.into()));
        out.push(b':');
        out.extend(write(value));
    };
    while let Some(message) = queue.pop_front() {
        if seen.contains(&message) {
            continue;
        }
        seen.push(message);
        entry(&mut out, &message.openapi_name(), &schema(message, group, version));
        message.json_fields().for_each(|field| queue.extend(messages(field.ty())));
    }
    for (name, value) in special() {
        entry(&mut out, name, &value);
    }
    out.extend_from_slice(b"}}}");
    Some(out)
}

/// The kinds whose schemas a resource's paths name.
fn kinds_of(row: &Resource) -> Vec<Kind> {
    let mut found: Vec<Kind> = [row.kind, row.list_kind].into_iter().filter_map(|name| kind(row.group, row.version, name)).collect();
    found.extend(row.subresources.iter().filter_map(|sub| kind_of_sub(row, sub.kind)));
    found.extend(kind("", "v1", "DeleteOptions"));
    found.extend(kind("", "v1", "Status"));
    found
}

fn kind_of_sub(row: &Resource, (group, version, name): (&str, &str, &str)) -> Option<Kind> {
    if version.is_empty() { kind(row.group, row.version, name) } else { kind(group, version, name) }
}

fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

/// The paths of one resource with their operations.
fn paths(row: &Resource) -> Vec<(String, Value)> {
    let root = root(row.group, row.version);
    let collection =
        if row.namespaced { format!("{root}/namespaces/{{namespace}}/{}", row.plural) } else { format!("{root}/{}", row.plural) };
    let own = kind(row.group, row.version, row.kind);
    let list = kind(row.group, row.version, row.list_kind);
    let mut all = Vec::new();
    if row.namespaced && row.has_verb("list") {
        all.push((format!("{root}/{}", row.plural), operations(row, &["list"], own, list)));
    }
    let on_collection: Vec<&str> = ["list", "create", "deletecollection"].into_iter().filter(|verb| row.has_verb(verb)).collect();
    all.push((collection.clone(), operations(row, &on_collection, own, list)));
    let on_one: Vec<&str> = ["get", "update", "patch", "delete"].into_iter().filter(|verb| row.has_verb(verb)).collect();
    if !on_one.is_empty() {
        all.push((format!("{collection}/{{name}}"), operations(row, &on_one, own, list)));
    }
    for sub in row.subresources {
        let kind = kind_of_sub(row, sub.kind);
        all.push((format!("{collection}/{{name}}/{}", sub.name), operations(row, sub.verbs, kind, None)));
    }
    all
}

fn operations(row: &Resource, verbs: &[&str], kind: Option<Kind>, list: Option<Kind>) -> Value {
    let mut path = Map::new();
    for verb in verbs {
        let (method, action) = match *verb {
            "create" => ("post", "post"),
            "update" => ("put", "put"),
            "deletecollection" => ("delete", "deletecollection"),
            "list" => ("get", "list"),
            other => (other, other),
        };
        let mut operation = json!({"x-kubernetes-action": action});
        let Some(kind) = kind else { continue };
        operation["x-kubernetes-group-version-kind"] = group_version_kind(kind);
        let parameters: &[&str] = match *verb {
            "create" | "update" => &["dryRun", "fieldManager", "fieldValidation"],
            "patch" => &["dryRun", "fieldManager", "fieldValidation", "force"],
            "delete" | "deletecollection" => &["dryRun", "gracePeriodSeconds", "propagationPolicy"],
            "list" => &["labelSelector", "fieldSelector", "limit", "continue", "resourceVersion", "watch"],
            _ => &[],
        };
        let parameters = parameters.iter().map(|name| {
            let ty = match *name {
                "force" | "watch" => "boolean",
                "limit" | "gracePeriodSeconds" => "integer",
                _ => "string",
            };
            json!({"in": "query", "name": name, "schema": {"type": ty, "uniqueItems": true}})
        });
        operation["parameters"] = parameters.collect();
        match *verb {
            "create" | "update" => {
                operation["requestBody"] = json!({"content": {"*/*": {"schema": reference(kind.message)}}, "required": true})
            }
            "patch" => {
                let patch = json!({"schema": {"type": "object"}});
                operation["requestBody"] = json!({"content": {"application/apply-patch+yaml": patch, "application/json-patch+json": patch,
                    "application/merge-patch+json": patch, "application/strategic-merge-patch+json": patch}, "required": true});
            }
            _ => {}
        }
        let answer = if *verb == "list" { list.unwrap_or(kind) } else { kind };
        operation["responses"] =
            json!({"200": {"description": "OK", "content": {"application/json": {"schema": reference(answer.message)}}}});
        path.insert(method.into(), operation);
    }
    let mut parameters = vec![json!({"in": "path", "name": "name", "required": true, "schema": {"type": "string", "uniqueItems": true}})];
    if row.namespaced {
        parameters.push(json!({"in": "path", "name": "namespace", "required": true, "schema": {"type": "string", "uniqueItems": true}}));
    }
    path.insert("parameters".into(), parameters.into());
    path.into()
}

fn group_version_kind(kind: Kind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.name})
}

fn reference(message: Message) -> Value {
    json!({"$ref": format!("#/components/schemas/{}", message.openapi_name())})
}

/// The schema of one message. `group` and `version` are those of the document, under which options are named as well.
fn schema(message: Message, group: &str, version: &str) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for field in message.json_fields() {
        if field.required() {
            required.push(Value::from(field.name()));
        }
        properties.insert(field.name().into(), property(field));
    }
    let mut schema = json!({"type": "object"});
    if !properties.is_empty() {
        schema["properties"] = properties.into();
    }
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    if message.is_atomic() {
        schema["x-kubernetes-map-type"] = "atomic".into();
    }
    let mut names: Vec<Value> = kinds().filter(|kind| kind.message == message).map(group_version_kind).collect();
    if message.package() == "io.k8s.apimachinery.pkg.apis.meta.v1" && !names.is_empty() {
        names = [("", "v1"), (group, version)]
            .map(|(group, version)| json!({"group": group, "version": version, "kind": message.name()}))
            .into();
        names.dedup();
    }
    if !names.is_empty() {
        schema["x-kubernetes-group-version-kind"] = names.into();
    }
    schema
}

fn property(field: Field) -> Value {
    let mut property = shape(field.ty());
    if property.get("$ref").is_some() && !field.pointer() {
        property = json!({"allOf": [property]});
        if matches!(field.ty(), Type::Message(_)) {
            property["default"] = json!({});
        }
    }
    match field.list_kind() {
        ListKind::Unset => {}
        ListKind::Atomic => property["x-kubernetes-list-type"] = "atomic".into(),
        ListKind::Set => property["x-kubernetes-list-type"] = "set".into(),
        ListKind::Map => {
            property["x-kubernetes-list-type"] = "map".into();
            property["x-kubernetes-list-map-keys"] = field.list_map_keys().collect();
        }
    }
    if field.is_atomic() && !matches!(field.ty(), Type::Message(_)) {
        property["x-kubernetes-map-type"] = "atomic".into();
    }
    let strategy = field.strategy();
    let words = [(strategy.merge, "merge"), (strategy.retain_keys, "retainKeys"), (strategy.replace, "replace")];
    let words: Vec<&str> = words.into_iter().filter_map(|(set, word)| set.then_some(word)).collect();
    if !words.is_empty() {
        property["x-kubernetes-patch-strategy"] = words.join(",").into();
    }
    if let Some(key) = field.merge_key() {
        property["x-kubernetes-patch-merge-key"] = key.into();
    }
    property
}

fn shape(ty: Type) -> Value {
    let named = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    match ty {
        Type::Bool => json!({"type": "boolean"}),
        Type::Int32 => json!({"type": "integer", "format": "int32"}),
        Type::Int64 => json!({"type": "integer", "format": "int64"}),
        Type::Double => json!({"type": "number", "format": "double"}),
        Type::String => json!({"type": "string"}),
        Type::Bytes => json!({"type": "string", "format": "byte"}),
        Type::Enum(values) => json!({"type": "string", "enum": values.iter().collect::<Vec<_>>()}),
        Type::Quantity => named(QUANTITY),
        Type::Time => named(TIME),
        Type::MicroTime => named(MICRO_TIME),
        Type::Duration => named(DURATION),
        Type::IntOrString => named(INT_OR_STRING),
        Type::Raw => named(RAW_EXTENSION),
        Type::Fields => named(FIELDS_V1),
        Type::Json => named(JSON),
        Type::SchemaOrArray => named(SCHEMA_OR_ARRAY),
        Type::SchemaOrBool => named(SCHEMA_OR_BOOL),
        Type::SchemaOrStrings => named(SCHEMA_OR_STRINGS),
        Type::Message(message) => reference(message),
        Type::List(of) | Type::WrappedList(of) => json!({"type": "array", "items": shape(element(of))}),
        Type::Map(of) => json!({"type": "object", "additionalProperties": shape(element(of))}),
    }
}

/// The messages that a type names.
fn messages(ty: Type) -> Option<Message> {
    match ty {
        Type::Message(message) => Some(message),
        Type::List(of) | Type::WrappedList(of) | Type::Map(of) => messages(element(of)),
        _ => None,
    }
}

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const DURATION: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Duration";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW_EXTENSION: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const FIELDS_V1: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1";
const JSON: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON";
const SCHEMA_OR_ARRAY: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray";
const SCHEMA_OR_BOOL: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool";
const SCHEMA_OR_STRINGS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray";

/// Types with a form of their own, which every document names.
fn special() -> [(&'static str, Value); 11] {
    [
        (QUANTITY, json!({"oneOf": [{"type": "string"}, {"type": "number"}]})),
        (TIME, json!({"type": "string", "format": "date-time"})),
        (MICRO_TIME, json!({"type": "string", "format": "date-time"})),
        (DURATION, json!({"type": "string"})),
        (INT_OR_STRING, json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})),
        (RAW_EXTENSION, json!({"type": "object"})),
        (FIELDS_V1, json!({"type": "object"})),
        (JSON, json!({})),
        (SCHEMA_OR_ARRAY, json!({})),
        (SCHEMA_OR_BOOL, json!({})),
        (SCHEMA_OR_STRINGS, json!({})),
    ]
}

fn write(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("a JSON value can always be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_version_has_a_document_whose_references_resolve() {
        let index: Value = serde_json::from_slice(&v3_index()).unwrap();
        for path in index["paths"].as_object().unwrap().keys() {
            let mut parts = path.split('/').skip(1);
            let (first, second) = (parts.next().unwrap(), parts.next());
            let (group, version) = second.map_or(("", first), |version| (first, version));
            let document: Value = serde_json::from_slice(&v3(group, version).unwrap()).unwrap();
            let schemas = document["components"]["schemas"].as_object().unwrap();
            check_references(&document, schemas, path);
        }
        assert_eq!(v3("none", "v1"), None);
    }

    fn check_references(value: &Value, schemas: &Map<String, Value>, path: &str) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(name)) = map.get("$ref") {
                    assert!(schemas.contains_key(name.rsplit('/').next().unwrap()), "{path}: {name}");
                }
                map.values().for_each(|value| check_references(value, schemas, path));
            }
            Value::Array(list) => list.iter().for_each(|value| check_references(value, schemas, path)),
            _ => {}
        }
    }

    #[test]
    fn patch_names_its_kind_and_says_that_the_server_validates() {
        let document: Value = serde_json::from_slice(&v3("apps", "v1").unwrap()).unwrap();
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"], json!({"group": "apps", "version": "v1", "kind": "Deployment"}));
        assert!(patch["parameters"].as_array().unwrap().iter().any(|parameter| parameter["name"] == "fieldValidation"));
        let spec = &document["components"]["schemas"]["io.k8s.api.apps.v1.DeploymentSpec"];
        assert_eq!(spec["required"], json!(["selector", "template"]));
        assert_eq!(spec["properties"]["replicas"], json!({"type": "integer", "format": "int32"}));
        let conditions = &document["components"]["schemas"]["io.k8s.api.apps.v1.DeploymentStatus"]["properties"]["conditions"];
        assert_eq!(conditions["x-kubernetes-list-map-keys"], json!(["type"]));
    }
}
