//! Objects travel in the version of the path and are kept in one: what stands between.

use serde_json::Value;

use crate::api::schema::Resource;

/// A stored object as this version of its resource shows it.
pub fn of(resource: &'static Resource, mut stored: Value) -> Value {
    stored["apiVersion"] = resource.api_version().into();
    stored["kind"] = resource.kind.into();
    stored
}

/// An object of this version as it is stored.
pub fn stored(resource: &'static Resource, object: Value) -> Value {
    of(resource.stored_as(), object)
}
