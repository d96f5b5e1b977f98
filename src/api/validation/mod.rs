//! Says what is wrong with an object: fields the schema does not have (`check_fields`), and values Kubernetes does not accept (`object`).
//! It never repairs; `defaults` does.

mod access;
mod container;
mod data;
mod environment;
mod fields;
mod handler;
mod ingress;
mod metadata;
mod names;
mod object;
mod pod;
mod report;
mod selector;
mod service;
mod storage;
mod volume;
mod workload;

pub use fields::{FieldProblem, check_fields};
pub use names::is_subdomain;
pub use object::{object, subresource};
