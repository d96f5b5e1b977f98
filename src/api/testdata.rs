//! What upstream's own code makes of given objects, kept as compressed lines of JSON, and a comparison that says where two differ.
//! Only tests see it. defaults.jsonl: {in, out} of Scheme.Default; objects.jsonl: {pb, json} of k8s.io/api/testdata/HEAD (1.36).

use serde_json::Value;

/// The lines of a compressed file.
pub fn lines(compressed: &[u8]) -> Vec<Value> {
    let text = zstd::decode_all(compressed).expect("test data is readable");
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("test data is JSON"))
        .collect()
}

/// Panics at the first place where the two differ. Go writes null for a list or a time that was never set, which counts as absent.
pub fn assert_same(ours: &Value, theirs: &Value, path: &str) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for key in ours.keys().chain(theirs.keys()) {
                let (ours, theirs) = (ours.get(key).unwrap_or(&Value::Null), theirs.get(key).unwrap_or(&Value::Null));
                assert_same(ours, theirs, &format!("{path}.{key}"));
            }
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            assert_eq!(ours.len(), theirs.len(), "{path}");
            for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                assert_same(ours, theirs, &format!("{path}[{index}]"));
            }
        }
        _ => assert_eq!(ours, theirs, "{path}"),
    }
}
