//! Containers by the OCI runtime specification, in our own code: namespaces, cgroups, root file systems, filters.
//! It knows no image, no network address and no Kubernetes object, and keeps no process of its own running.

pub mod capability;
pub mod cgroup;
pub mod channel;
pub mod cli;
pub mod container;
mod exec;
mod hook;
mod init;
mod mount_option;
mod namespace;
mod path;
pub mod pod;
mod process;
mod record;
mod rootfs;
mod seal;
mod seccomp;
pub mod shim;
pub mod spec;
