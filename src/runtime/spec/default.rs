//! The container that one gets without asking for anything: mounts, paths hidden and made read-only, capabilities, devices.
//! The same as containerd and Docker give; it takes plain values and knows no Kubernetes object.

use std::path::{Path, PathBuf};

use super::{
    Capabilities, Device, DeviceRule, Linux, Mount, Namespace, NamespaceKind, Process, Resources, Root, Seccomp, Spec, User, VERSION,
};

/// What differs between two ordinary containers. Everything else follows from it.
#[derive(Clone, Debug, Default)]
pub struct DefaultContainer {
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute; empty: `/`.
    pub cwd: String,
    pub user: User,
    pub terminal: bool,
    /// Empty: whatever the uts namespace has.
    pub hostname: String,
    pub rootfs: PathBuf,
    pub rootfs_readonly: bool,
    /// Namespaces to join; those not named here are made: mount, pid, ipc, network, uts, cgroup.
    pub join: Vec<(NamespaceKind, PathBuf)>,
    /// Namespaces to share with the creator of the container instead.
    pub share: Vec<NamespaceKind>,
    /// Beside the default ones, after them.
    pub mounts: Vec<Mount>,
    /// Names without `CAP_` are accepted; `ALL` stands for every capability.
    pub capabilities_add: Vec<String>,
    pub capabilities_drop: Vec<String>,
    /// All capabilities, all devices, nothing masked or read-only, no filter.
    pub privileged: bool,
    pub no_new_privileges: bool,
    /// No seccomp filter; otherwise the built-in one.
    pub unconfined: bool,
    /// Absolute below the cgroup root.
    pub cgroups_path: Option<PathBuf>,
    pub resources: Resources,
    pub oom_score_adj: Option<i32>,
}

/// Docker's and containerd's default set.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// moby/oci/defaults.go and containerd/oci/spec.go.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The spec of an ordinary container.
pub fn default_container(wanted: DefaultContainer) -> Spec {
    let capabilities = capabilities(&wanted);
    let namespaces =
        [NamespaceKind::Mount, NamespaceKind::Pid, NamespaceKind::Ipc, NamespaceKind::Network, NamespaceKind::Uts, NamespaceKind::Cgroup]
            .into_iter()
            .filter(|kind| !wanted.share.contains(kind))
            .map(|kind| Namespace { kind, path: wanted.join.iter().find(|(joined, _)| *joined == kind).map(|(_, path)| path.clone()) })
            .collect();
    let paths = |list: &[&str]| if wanted.privileged { Vec::new() } else { list.iter().map(PathBuf::from).collect() };
    let mut resources = wanted.resources;
    let mut devices = if wanted.privileged { every_device() } else { device_rules() };
    devices.append(&mut resources.devices);
    resources.devices = devices;
    let mut mounts = default_mounts(wanted.privileged, wanted.share.contains(&NamespaceKind::Network));
    mounts.extend(wanted.mounts);
    Spec {
        version: VERSION.into(),
        process: Some(Process {
            terminal: wanted.terminal,
            user: wanted.user,
            args: wanted.args,
            env: wanted.env,
            cwd: if wanted.cwd.is_empty() { "/".into() } else { wanted.cwd },
            capabilities: Some(Capabilities {
                bounding: capabilities.clone(),
                effective: capabilities.clone(),
                permitted: capabilities,
                ..Capabilities::default()
            }),
            no_new_privileges: wanted.no_new_privileges,
            oom_score_adj: wanted.oom_score_adj,
            ..Process::default()
        }),
        root: Some(Root { path: wanted.rootfs, readonly: wanted.rootfs_readonly }),
        hostname: wanted.hostname,
        mounts,
        linux: Some(Linux {
            namespaces,
            cgroups_path: wanted.cgroups_path,
            resources: Some(resources),
            devices: if wanted.privileged { host_devices() } else { Vec::new() },
            seccomp: (!wanted.privileged && !wanted.unconfined).then(|| Seccomp { runtime_default: true, ..Seccomp::default() }),
            masked_paths: paths(&MASKED),
            readonly_paths: paths(&READONLY),
            ..Linux::default()
        }),
        ..Spec::default()
    }
}

/// The default mounts of the specification and of containerd, in the order in which they must be made.
fn default_mounts(privileged: bool, host_network: bool) -> Vec<Mount> {
    let access = if privileged { "rw" } else { "ro" };
    let mount = |destination: &str, kind: &str, options: &[&str]| Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: kind.into(),
        options: options.iter().map(|option| (*option).into()).collect(),
        ..Mount::default()
    };
    let sys = if host_network {
        // A sysfs of another network namespace than one's own cannot be mounted in a user namespace; bound it always can be.
        Mount { source: "/sys".into(), ..mount("/sys", "bind", &["rbind", "nosuid", "noexec", "nodev", access]) }
    } else {
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", access])
    };
    vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        sys,
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ]
}

/// Nothing, except the devices that every container has, pseudo terminals, and making (not using) device nodes.
fn device_rules() -> Vec<DeviceRule> {
    let rule = |allow, kind: &str, major, minor, access: &str| DeviceRule { allow, kind: kind.into(), major, minor, access: access.into() };
    vec![
        rule(false, "", None, None, "rwm"),
        rule(true, "c", None, None, "m"),
        rule(true, "b", None, None, "m"),
        rule(true, "c", Some(1), Some(3), "rwm"),
        rule(true, "c", Some(1), Some(5), "rwm"),
        rule(true, "c", Some(1), Some(7), "rwm"),
        rule(true, "c", Some(1), Some(8), "rwm"),
        rule(true, "c", Some(1), Some(9), "rwm"),
        rule(true, "c", Some(5), Some(0), "rwm"),
        rule(true, "c", Some(5), Some(2), "rwm"),
        rule(true, "c", Some(136), None, "rwm"),
    ]
}

fn every_device() -> Vec<DeviceRule> {
    vec![DeviceRule { allow: true, access: "rwm".into(), ..DeviceRule::default() }]
}

/// The character and block devices directly in the host's /dev, for privileged containers. A host without /dev has none.
fn host_devices() -> Vec<Device> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let mut devices: Vec<Device> = entries
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            let kind = if metadata.file_type().is_char_device() {
                "c"
            } else if metadata.file_type().is_block_device() {
                "b"
            } else {
                return None;
            };
            Some(Device {
                kind: kind.into(),
                path: entry.path(),
                major: rustix::fs::major(metadata.rdev()).into(),
                minor: rustix::fs::minor(metadata.rdev()).into(),
                file_mode: Some(metadata.mode() & 0o7777),
                uid: Some(metadata.uid()),
                gid: Some(metadata.gid()),
            })
        })
        .filter(|device| device.path != Path::new("/dev/console"))
        .collect();
    devices.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    devices
}

/// The default set, less what is dropped, plus what is added; `ALL` first, so that `drop: [ALL], add: [CHOWN]` leaves CHOWN.
fn capabilities(wanted: &DefaultContainer) -> Vec<String> {
    let full = |name: &String| {
        let name = name.to_ascii_uppercase();
        if name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
    };
    let all = |list: &[String]| list.iter().any(|name| full(name) == "CAP_ALL");
    let every = || crate::runtime::capability::NAMES.iter().map(|name| (*name).into()).collect::<Vec<String>>();
    if wanted.privileged {
        return every();
    }
    let mut set: Vec<String> = if all(&wanted.capabilities_add) {
        every()
    } else if all(&wanted.capabilities_drop) {
        Vec::new()
    } else {
        CAPABILITIES.iter().map(|name| (*name).into()).collect()
    };
    let dropped: Vec<String> = wanted.capabilities_drop.iter().map(full).collect();
    set.retain(|name| !dropped.contains(name));
    for name in wanted.capabilities_add.iter().map(full).filter(|name| name != "CAP_ALL") {
        if !set.contains(&name) {
            set.push(name);
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_the_default_set_less_dropped_plus_added() {
        let check = |add: &[&str], drop: &[&str], expected: &[&str]| {
            let wanted = DefaultContainer {
                capabilities_add: add.iter().map(|name| (*name).into()).collect(),
                capabilities_drop: drop.iter().map(|name| (*name).into()).collect(),
                ..DefaultContainer::default()
            };
            assert_eq!(capabilities(&wanted), expected, "add {add:?} drop {drop:?}");
        };
        check(&[], &[], &CAPABILITIES);
        check(&["NET_BIND_SERVICE"], &["ALL"], &["CAP_NET_BIND_SERVICE"]);
        check(&[], &["all"], &[]);
        check(&["ALL"], &["ALL"], &crate::runtime::capability::NAMES);
        check(&[], &CAPABILITIES[1..], &CAPABILITIES[..1]);
    }

    #[test]
    fn a_joined_namespace_has_its_path_and_a_shared_one_is_left_out() {
        let spec = default_container(DefaultContainer {
            args: vec!["sh".into()],
            rootfs: "rootfs".into(),
            join: vec![(NamespaceKind::Network, "/proc/7/ns/net".into())],
            share: vec![NamespaceKind::Pid],
            ..DefaultContainer::default()
        });
        spec.check().unwrap();
        assert_eq!(spec.namespace(NamespaceKind::Network).unwrap().path, Some("/proc/7/ns/net".into()));
        assert_eq!(spec.namespace(NamespaceKind::Ipc).unwrap().path, None);
        assert!(spec.namespace(NamespaceKind::Pid).is_none());
    }
}
