//! The filter that every container gets that asks for no other: what the kernel offers, less what has no namespaces, reaches other
//! processes or the kernel itself, or has been a way out before. Some of it comes back with the capability that guards it anyway.
//! The same calls as Docker's and containerd's default profiles forbid.

use rustix::thread::CapabilitySet;

use super::compile::{self, Comparison, Condition, Verdict};
use super::table::Architecture;
use super::{ALLOW, ENOSYS, EPERM};
use crate::sys::filter::Instruction;

/// Forbidden whatever the capabilities.
const NEVER: [&str; 33] = [
    "_sysctl",
    "add_key",
    "bdflush",
    "create_module",
    "get_kernel_syms",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "migrate_pages",
    "move_pages",
    "nfsservctl",
    "nice",
    "oldfstat",
    "oldlstat",
    "oldolduname",
    "oldstat",
    "olduname",
    "pciconfig_iobase",
    "pciconfig_read",
    "pciconfig_write",
    "pivot_root",
    "query_module",
    "request_key",
    "swapoff",
    "swapon",
    "sysfs",
    "uselib",
    "userfaultfd",
    "ustat",
    "vm86",
];

/// Forbidden without one of these capabilities.
const GUARDED: [(&str, CapabilitySet); 54] = {
    const ADMIN: CapabilitySet = CapabilitySet::SYS_ADMIN;
    const NICE: CapabilitySet = CapabilitySet::SYS_NICE;
    const TIME: CapabilitySet = CapabilitySet::SYS_TIME;
    [
        ("acct", CapabilitySet::SYS_PACCT),
        ("bpf", ADMIN.union(CapabilitySet::BPF)),
        ("chroot", CapabilitySet::SYS_CHROOT),
        ("clock_settime", TIME),
        ("clock_settime64", TIME),
        ("delete_module", CapabilitySet::SYS_MODULE),
        ("fanotify_init", ADMIN),
        ("finit_module", CapabilitySet::SYS_MODULE),
        ("fsconfig", ADMIN),
        ("fsmount", ADMIN),
        ("fsopen", ADMIN),
        ("fspick", ADMIN),
        ("get_mempolicy", NICE),
        ("init_module", CapabilitySet::SYS_MODULE),
        ("ioperm", CapabilitySet::SYS_RAWIO),
        ("iopl", CapabilitySet::SYS_RAWIO),
        ("kcmp", CapabilitySet::SYS_PTRACE),
        ("listns", ADMIN),
        ("lookup_dcookie", ADMIN),
        ("lsm_get_self_attr", ADMIN),
        ("lsm_list_modules", ADMIN),
        ("lsm_set_self_attr", ADMIN),
        ("mbind", NICE),
        ("mount", ADMIN),
        ("mount_setattr", ADMIN),
        ("move_mount", ADMIN),
        ("open_by_handle_at", CapabilitySet::DAC_READ_SEARCH),
        ("open_tree", ADMIN),
        ("open_tree_attr", ADMIN),
        ("perf_event_open", ADMIN.union(CapabilitySet::PERFMON)),
        ("pidfd_getfd", CapabilitySet::SYS_PTRACE),
        ("process_madvise", CapabilitySet::SYS_PTRACE),
        ("quotactl", ADMIN),
        ("quotactl_fd", ADMIN),
        ("reboot", CapabilitySet::SYS_BOOT),
        ("set_mempolicy", NICE),
        ("set_mempolicy_home_node", NICE),
        ("setdomainname", ADMIN),
        ("sethostname", ADMIN),
        ("setns", ADMIN),
        ("settimeofday", TIME),
        ("stime", TIME),
        ("syslog", ADMIN.union(CapabilitySet::SYSLOG)),
        ("umount", ADMIN),
        ("umount2", ADMIN),
        ("unshare", ADMIN),
        ("vhangup", CapabilitySet::SYS_TTY_CONFIG),
        ("vm86old", CapabilitySet::empty()),
        ("afs_syscall", CapabilitySet::empty()),
        ("getpmsg", CapabilitySet::empty()),
        ("putpmsg", CapabilitySet::empty()),
        ("security", CapabilitySet::empty()),
        ("tuxcall", CapabilitySet::empty()),
        ("vserver", CapabilitySet::empty()),
    ]
};

/// CLONE_NEW*, all of them that clone(2) takes.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// Address families without namespaces, or with a history: DECnet, IRDA, ATM and their like, AF_ALG (38), AF_VSOCK (40).
const SOCKET_FAMILIES: [u64; 9] = [12, 19, 20, 23, 25, 34, 37, 38, 40];

/// Execution domains that programs use: Linux, with addresses not randomised or as 2.6, and the question for the current one.
const PERSONALITIES: [u64; 5] = [0, 8, 0x20000, 0x20008, 0xffff_ffff];

/// For the capabilities that containers have by default, see `tests::default_filters_are_as_compiled`.
#[cfg(target_arch = "x86_64")]
const COMPILED: &[u8] = include_bytes!("default-x86_64.bpf");
#[cfg(target_arch = "aarch64")]
const COMPILED: &[u8] = include_bytes!("default-aarch64.bpf");
#[cfg(target_arch = "arm")]
const COMPILED: &[u8] = include_bytes!("default-armv7.bpf");

/// The filter for a process with these capabilities in its bounding set.
pub fn program(capabilities: CapabilitySet) -> Vec<Instruction> {
    let all = GUARDED.iter().fold(CapabilitySet::empty(), |all, (_, guard)| all | *guard);
    if capabilities & all == CapabilitySet::SYS_CHROOT { decode(COMPILED) } else { compiled(Architecture::NATIVE, capabilities) }
}

fn compiled(architectures: &[Architecture], capabilities: CapabilitySet) -> Vec<Instruction> {
    compile::program(architectures, ENOSYS, &|name| verdict(name, capabilities)).expect("the default filter is far shorter than the limit")
}

fn verdict(name: &str, capabilities: CapabilitySet) -> Verdict {
    let always = |otherwise| Verdict { branches: Vec::new(), otherwise };
    let admin = capabilities.contains(CapabilitySet::SYS_ADMIN);
    if let Some((_, guard)) = GUARDED.iter().find(|(guarded, _)| *guarded == name) {
        return always(if capabilities.intersects(*guard) { ALLOW } else { EPERM });
    }
    // Only the lower half of these arguments reaches the kernel's code.
    let masked = |value, mask: u64| Condition { argument: 0, comparison: Comparison::MaskedEqual, value: mask, other: value };
    match name {
        "clone" if !admin => Verdict { branches: vec![(vec![masked(0, CLONE_NAMESPACES)], ALLOW)], otherwise: EPERM },
        // Its flags lie in memory, where a filter cannot look. C libraries go back to clone.
        "clone3" if !admin => always(ENOSYS),
        "socket" => Verdict {
            branches: SOCKET_FAMILIES.iter().map(|family| (vec![masked(*family, 0xffff_ffff)], EPERM)).collect(),
            otherwise: ALLOW,
        },
        "personality" => {
            Verdict { branches: PERSONALITIES.iter().map(|value| (vec![masked(*value, 0xffff_ffff)], ALLOW)).collect(), otherwise: EPERM }
        }
        _ if NEVER.contains(&name) => always(EPERM),
        _ => always(ALLOW),
    }
}

/// struct sock_filter, little-endian.
fn decode(bytes: &[u8]) -> Vec<Instruction> {
    let decode = |chunk: &[u8; 8]| Instruction {
        code: u16::from_le_bytes([chunk[0], chunk[1]]),
        jump_true: chunk[2],
        jump_false: chunk[3],
        k: u32::from_le_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]),
    };
    bytes.as_chunks::<8>().0.iter().map(decode).collect()
}

#[cfg(test)]
mod tests {
    use super::super::compile::tests::run;
    use super::*;

    fn encode(program: &[Instruction]) -> Vec<u8> {
        let bytes = |i: &Instruction| {
            let [a, b] = i.code.to_le_bytes();
            let [w, x, y, z] = i.k.to_le_bytes();
            [a, b, i.jump_true, i.jump_false, w, x, y, z]
        };
        program.iter().flat_map(bytes).collect()
    }

    /// With UPDATE_FILTERS set in the environment the files are written anew.
    #[test]
    fn default_filters_are_as_compiled() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/runtime/seccomp");
        for (name, architectures) in [
            ("x86_64", &[Architecture::X86_64, Architecture::X86][..]),
            ("aarch64", &[Architecture::Aarch64, Architecture::Arm]),
            ("armv7", &[Architecture::Arm]),
        ] {
            let path = folder.join(format!("default-{name}.bpf"));
            let bytes = encode(&compiled(architectures, CapabilitySet::SYS_CHROOT));
            if std::env::var_os("UPDATE_FILTERS").is_some() {
                std::fs::write(&path, &bytes).unwrap();
            }
            assert!(std::fs::read(&path).unwrap() == bytes, "{name}: run the test once with UPDATE_FILTERS=1");
            assert!(encode(&decode(&bytes)) == bytes, "{name}: reads back otherwise");
        }
    }

    #[test]
    fn every_name_is_one_that_the_kernel_knows() {
        let calls: Vec<_> =
            [Architecture::X86_64, Architecture::Aarch64, Architecture::Arm, Architecture::X86].map(Architecture::calls).concat();
        for name in NEVER.iter().chain(GUARDED.iter().map(|(name, _)| name)) {
            assert!(calls.iter().any(|(_, known)| known == name), "{name}");
        }
    }

    #[test]
    fn dangerous_calls_are_forbidden_until_their_capability_is_there() {
        let check = |architecture: Architecture, name: &str, arguments: [u64; 6], capabilities: CapabilitySet, expected: u32| {
            let number = architecture.calls().iter().find(|(_, known)| *known == name).unwrap().0;
            let program = compiled(&[architecture], capabilities);
            assert_eq!(run(&program, architecture.audit(), number, arguments), expected, "{name} {arguments:x?}");
        };
        let (none, admin) = (CapabilitySet::empty(), CapabilitySet::SYS_ADMIN);
        for architecture in [Architecture::X86_64, Architecture::Aarch64, Architecture::Arm] {
            check(architecture, "mount", [0; 6], none, EPERM);
            check(architecture, "mount", [0; 6], admin, ALLOW);
            check(architecture, "keyctl", [0; 6], admin, EPERM);
            check(architecture, "execve", [0; 6], none, ALLOW);
            check(architecture, "clone", [0x1200_0011, 0, 0, 0, 0, 0], none, EPERM);
            check(architecture, "clone", [0x003d_0f00, 0, 0, 0, 0, 0], none, ALLOW);
            check(architecture, "clone3", [0; 6], none, ENOSYS);
            check(architecture, "clone3", [0; 6], admin, ALLOW);
            check(architecture, "socket", [2, 1, 0, 0, 0, 0], none, ALLOW);
            check(architecture, "socket", [38, 5, 0, 0, 0, 0], none, EPERM);
            check(architecture, "socket", [(1 << 32) + 38, 5, 0, 0, 0, 0], none, EPERM);
            check(architecture, "personality", [0xffff_ffff, 0, 0, 0, 0, 0], none, ALLOW);
            check(architecture, "personality", [0x0040_0000, 0, 0, 0, 0, 0], none, EPERM);
        }
    }

    #[test]
    fn other_capabilities_than_the_default_get_a_filter_of_their_own() {
        let chroot = CapabilitySet::SYS_CHROOT;
        assert!(program(chroot | CapabilitySet::CHOWN) == compiled(Architecture::NATIVE, chroot));
        assert!(program(CapabilitySet::empty()) != program(chroot));
    }
}
