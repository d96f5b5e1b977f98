//! The only unsafe code: one kernel call per function, owned descriptors in and out.
//! It decides nothing and keeps nothing.

pub mod descriptors;
pub mod filter;
pub mod mount;
pub mod process;
