//! Which namespaces a container makes, which it joins, and in what way: the plan of its birth.
//! The kernel's rules behind it: a child of clone(2) that makes a user namespace has no right any more to join namespaces of the
//! host's, and a joined PID namespace is for children only. In both cases an intermediate process joins and then makes the child.

use std::fs::{self, File};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};
use rustix::thread::LinkNameSpaceType;

use super::spec::{IdMapping, Linux, NamespaceKind, Spec};
use crate::sys::process::clone;

#[derive(Debug)]
pub struct Plan {
    /// CLONE_NEW* for clone3; never the cgroup namespace, see `own_cgroup`.
    pub make: u64,
    /// A new cgroup namespace, to be unshared by the child once it is inside its cgroup: clone would take the parent's as root.
    pub own_cgroup: bool,
    /// To be joined in this order.
    pub join: Vec<(NamespaceKind, OwnedFd)>,
    /// An intermediate process is needed.
    pub intermediate: bool,
    /// Contents for uid_map and gid_map if a user namespace is made.
    pub maps: Option<(String, String)>,
    /// Contents for timens_offsets if a time namespace with offsets is made.
    pub time_offsets: Option<String>,
}

impl Plan {
    pub fn new(spec: &Spec) -> Result<Self> {
        let empty = Linux::default();
        let linux = spec.linux.as_ref().unwrap_or(&empty);
        let mut plan = Self { make: 0, own_cgroup: false, join: Vec::new(), intermediate: false, maps: None, time_offsets: None };
        for namespace in &linux.namespaces {
            match &namespace.path {
                Some(path) => {
                    let file = File::open(path).with_context(|| format!("open namespace {}", path.display()))?;
                    plan.join.push((namespace.kind, file.into()));
                }
                None if namespace.kind == NamespaceKind::Cgroup => plan.own_cgroup = true,
                None => plan.make |= namespace.kind.clone_flag(),
            }
        }
        // The user namespace last: before, we have all rights over the others.
        plan.join.sort_by_key(|(kind, _)| *kind == NamespaceKind::User);
        let joins = |wanted| plan.join.iter().any(|(kind, _)| *kind == wanted);
        let makes_user = plan.make & clone::NEWUSER != 0;
        plan.intermediate = joins(NamespaceKind::Pid) || joins(NamespaceKind::User) || makes_user && !plan.join.is_empty();
        if makes_user {
            if linux.uid_mappings.is_empty() || linux.gid_mappings.is_empty() {
                bail!("a user namespace needs uidMappings and gidMappings");
            }
            plan.maps = Some((map(&linux.uid_mappings), map(&linux.gid_mappings)));
        }
        if !linux.time_offsets.is_empty() {
            if plan.make & clone::NEWTIME == 0 {
                bail!("timeOffsets need a time namespace of their own");
            }
            let line = |(clock, offset): (&String, &super::spec::TimeOffset)| format!("{clock} {} {}\n", offset.secs, offset.nanosecs);
            plan.time_offsets = Some(linux.time_offsets.iter().map(line).collect());
        }
        Ok(plan)
    }

    /// Whether the container has a user namespace that is not its creator's.
    pub fn has_user(&self) -> bool {
        self.make & clone::NEWUSER != 0 || self.join.iter().any(|(kind, _)| *kind == NamespaceKind::User)
    }

    /// Moves the calling thread into all namespaces to be joined; a PID or time namespace holds for its children.
    pub fn join(&self) -> Result<()> {
        for (kind, file) in &self.join {
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(file), Some(link_type(*kind)))
                .with_context(|| format!("join the {} namespace", kind.proc_name()))?;
        }
        Ok(())
    }
}

/// Fills in the identifiers of a new user namespace; `pid` waits for it.
pub fn write_maps(pid: i32, (uids, gids): &(String, String)) -> Result<()> {
    fs::write(format!("/proc/{pid}/uid_map"), uids).context("write uid_map")?;
    fs::write(format!("/proc/{pid}/gid_map"), gids).context("write gid_map")
}

/// user_namespaces(7): `inside outside length` a line.
pub fn map(mappings: &[IdMapping]) -> String {
    mappings.iter().map(|map| format!("{} {} {}\n", map.container_id, map.host_id, map.size)).collect()
}

fn link_type(kind: NamespaceKind) -> LinkNameSpaceType {
    match kind {
        NamespaceKind::User => LinkNameSpaceType::User,
        NamespaceKind::Cgroup => LinkNameSpaceType::ControlGroup,
        NamespaceKind::Ipc => LinkNameSpaceType::InterProcessCommunication,
        NamespaceKind::Mount => LinkNameSpaceType::Mount,
        NamespaceKind::Network => LinkNameSpaceType::Network,
        NamespaceKind::Pid => LinkNameSpaceType::ProcessID,
        NamespaceKind::Time => LinkNameSpaceType::Time,
        NamespaceKind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::spec::Namespace;

    fn plan(namespaces: &[(NamespaceKind, Option<&str>)]) -> Result<Plan> {
        let mapping = vec![IdMapping { container_id: 0, host_id: 1000, size: 10 }];
        Plan::new(&Spec {
            linux: Some(Linux {
                namespaces: namespaces.iter().map(|(kind, path)| Namespace { kind: *kind, path: path.map(Into::into) }).collect(),
                uid_mappings: mapping.clone(),
                gid_mappings: mapping,
                ..Linux::default()
            }),
            ..Spec::default()
        })
    }

    #[test]
    fn an_intermediate_process_is_needed_only_for_joined_pids_and_users() {
        use NamespaceKind::*;
        let check = |namespaces: &[(NamespaceKind, Option<&str>)], expected| {
            assert_eq!(plan(namespaces).unwrap().intermediate, expected, "{namespaces:?}");
        };
        check(&[(Mount, None), (Pid, None), (Network, Some("/proc/self/ns/net"))], false);
        check(&[(Mount, None), (User, None), (Pid, None)], false);
        check(&[(Mount, None), (User, None), (Network, Some("/proc/self/ns/net"))], true);
        check(&[(Mount, None), (Pid, Some("/proc/self/ns/pid"))], true);
    }

    #[test]
    fn the_user_namespace_is_joined_last_and_the_cgroup_namespace_made_late() {
        use NamespaceKind::*;
        let plan =
            plan(&[(User, Some("/proc/self/ns/user")), (Network, Some("/proc/self/ns/net")), (Cgroup, None), (Mount, None)]).unwrap();
        assert_eq!(plan.join.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [Network, User]);
        assert!(plan.own_cgroup);
        assert_eq!(plan.make, clone::NEWNS);
    }
}
