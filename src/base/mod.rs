//! What every other folder stands on: timestamps, identifiers, log lines, files that survive a power cut.
//! It knows nothing of Kubernetes objects, of the kernel beyond plain files, or of the network.

pub mod address;
pub mod file;
pub mod id;
pub mod log;
pub mod place;
pub mod task;
pub mod time;
