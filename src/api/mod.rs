//! The nouns of Kubernetes: the schema table of every built-in kind, and what follows from it - decoding, defaulting, validation,
//! patches, selectors, discovery documents. Pure functions over `serde_json::Value`: it never reads a file, a clock or a socket.

pub mod apply;
pub mod convert;
pub mod decode;
pub mod defaults;
pub mod discovery;
pub mod meta;
pub mod openapi;
pub mod patch;
pub mod pod;
pub mod protobuf;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod services;
pub mod status;
pub mod streams;
#[cfg(test)]
pub mod testdata;
pub mod text;
pub mod validation;
pub mod workloads;

/// The version of Kubernetes whose API this is, and ours behind it, as `/version` and the nodes tell it.
pub const VERSION: &str = concat!("v1.36.0+edgectl.", env!("CARGO_PKG_VERSION"));
