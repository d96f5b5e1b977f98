//! The three patches a client may send: JSON patch (RFC 6902), merge patch (RFC 7396) and strategic merge patch.
//! They give the new object; whether it is valid is for others to say. Server-side apply is in `apply`.

mod strategic;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub use strategic::strategic;

/// Operations in one JSON patch, as upstream bounds them (`maxJSONPatchOperations`).
pub const JSON_OPERATIONS_MAX: usize = 10_000;

/// Bytes that the `copy` operations of one JSON patch may add together, as upstream bounds them (`JSONPatchMaxCopyBytes`):
/// each could double the object.
pub const JSON_COPIES_MAX_BYTES: usize = 3 << 20;

/// Applies a JSON patch.
pub fn json(document: &Value, patch: &Value) -> Result<Value> {
    let operations = patch.as_array().map_or(0, Vec::len);
    ensure!(operations <= JSON_OPERATIONS_MAX, "The allowed maximum operations in a JSON patch is {JSON_OPERATIONS_MAX}, got {operations}");
    let patch: json_patch::Patch = serde_json::from_value(patch.clone()).context("the JSON patch is malformed")?;
    let mut document = document.clone();
    let mut copied = 0;
    for operation in &patch.0 {
        if let json_patch::PatchOperation::Copy(copy) = operation {
            copied += document.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len());
            ensure!(copied <= JSON_COPIES_MAX_BYTES, "the copy operations of the patch add more than {JSON_COPIES_MAX_BYTES} bytes");
        }
        json_patch::patch(&mut document, std::slice::from_ref(operation))?;
    }
    Ok(document)
}

/// Applies a merge patch.
pub fn merge(document: &Value, patch: &Value) -> Result<Value> {
    ensure!(patch.is_object(), "a merge patch must be a JSON object");
    let mut document = document.clone();
    json_patch::merge(&mut document, patch);
    Ok(document)
}

#[cfg(test)]
mod tests {
    use serde_json::json as value;

    use super::*;

    #[test]
    fn json_patches_add_remove_replace_and_test() {
        let document = value!({"a": {"b": 1}, "l": [1, 2], "m": {"x/y": 0}});
        let patch = value!([{"op": "test", "path": "/a/b", "value": 1}, {"op": "add", "path": "/l/-", "value": 3}, {"op": "remove", "path": "/m/x~1y"},
            {"op": "replace", "path": "/a", "value": 5}]);
        assert_eq!(json(&document, &patch).unwrap(), value!({"a": 5, "l": [1, 2, 3], "m": {}}));
        for bad in [
            value!([{"op": "test", "path": "/a/b", "value": 2}]),
            value!([{"op": "remove", "path": "/nothing"}]),
            value!([{"op": "no", "path": "/a"}]),
            value!({"a": 1}),
        ] {
            assert!(json(&document, &bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn copies_cannot_grow_an_object_without_end() {
        let document = value!({"a": ["x".repeat(1000)]});
        let double = value!({"op": "copy", "from": "/a", "path": "/a/-"});
        let error = json(&document, &Value::Array(vec![double.clone(); 40])).unwrap_err().to_string();
        assert!(error.starts_with("the copy operations of the patch add more than"), "{error}");
        assert!(json(&document, &value!([double])).is_ok());
    }

    #[test]
    fn merge_patches_take_out_nulls() {
        let document = value!({"a": {"b": 1, "c": 2}, "l": [1, 2]});
        let patch = value!({"a": {"b": null, "d": {"e": null, "f": 1}}, "l": [3]});
        assert_eq!(merge(&document, &patch).unwrap(), value!({"a": {"c": 2, "d": {"f": 1}}, "l": [3]}));
        assert!(merge(&document, &value!([])).is_err());
    }
}
