//! Says what is wrong with an object: fields the schema does not have (`check_fields`), and values Kubernetes does not accept.
//! It never repairs; `defaults` does.

mod fields;

pub use fields::{FieldProblem, check_fields};
