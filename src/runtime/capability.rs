//! Capabilities by name: capabilities(7) as config.json writes them, to the bits that the kernel takes.
//! It changes no process; `runtime::init` does.

use anyhow::{Context, Result};
use rustix::thread::CapabilitySet;

use super::spec::Capabilities;

/// In the order of their numbers, include/uapi/linux/capability.h.
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The five sets of a process as bit masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sets {
    pub bounding: CapabilitySet,
    pub effective: CapabilitySet,
    pub permitted: CapabilitySet,
    pub inheritable: CapabilitySet,
    pub ambient: CapabilitySet,
}

impl Default for Sets {
    /// None at all.
    fn default() -> Self {
        let none = CapabilitySet::empty();
        Self { bounding: none, effective: none, permitted: none, inheritable: none, ambient: none }
    }
}

impl Sets {
    /// A name nobody knows is an error: silently having fewer capabilities than asked for is hard to find.
    pub fn parse(names: &Capabilities) -> Result<Self> {
        Ok(Self {
            bounding: mask(&names.bounding)?,
            effective: mask(&names.effective)?,
            permitted: mask(&names.permitted)?,
            inheritable: mask(&names.inheritable)?,
            ambient: mask(&names.ambient)?,
        })
    }

    /// Less those that this process may not hand out, as when the runtime itself runs with fewer. runc and crun do the same.
    pub fn limited_to(self, available: CapabilitySet) -> Self {
        let permitted = self.permitted & available;
        let inheritable = self.inheritable & available;
        Self {
            bounding: self.bounding & available,
            effective: self.effective & permitted,
            permitted,
            inheritable,
            ambient: self.ambient & permitted & inheritable,
        }
    }
}

/// The single capability with this number.
pub fn bit(number: usize) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1 << number)
}

fn mask(names: &[String]) -> Result<CapabilitySet> {
    names.iter().try_fold(CapabilitySet::empty(), |mask, name| {
        let number = NAMES.iter().position(|known| *known == name).with_context(|| format!("unknown capability {name:?}"))?;
        Ok(mask | bit(number))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_of_the_kernels_numbers() {
        assert_eq!(mask(&["CAP_CHOWN".into()]).unwrap(), CapabilitySet::CHOWN);
        assert_eq!(mask(&["CAP_SYS_ADMIN".into()]).unwrap(), CapabilitySet::SYS_ADMIN);
        assert_eq!(mask(&["CAP_SETFCAP".into()]).unwrap(), CapabilitySet::SETFCAP);
        assert_eq!(mask(&["CAP_CHECKPOINT_RESTORE".into()]).unwrap(), CapabilitySet::CHECKPOINT_RESTORE);
        assert!(mask(&["CAP_FLY".into()]).is_err());
    }

    #[test]
    fn ambient_needs_permitted_and_inheritable() {
        let sets = Sets { ambient: bit(0) | bit(1), permitted: bit(0) | bit(1), inheritable: bit(0), ..Sets::default() };
        assert_eq!(sets.limited_to(CapabilitySet::all()).ambient, bit(0));
    }
}
