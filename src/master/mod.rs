//! The one leader of a cluster: the API server, the store, the controllers and the scheduler in one process.
//! It runs no container and touches no kernel state.

pub mod apiserver;
pub mod controllers;
pub mod nodes;
pub mod pki;
mod recorder;
pub mod scheduler;
pub mod store;
