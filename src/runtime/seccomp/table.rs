//! System calls by name on the architectures we run on, and their 32-bit companions. The numbers are the kernel's own, see `generate`.

/// One line a call, sorted by name; `-` where an architecture has none.
const TABLE: &str = include_str!("syscalls.txt");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    X86_64,
    Aarch64,
    Arm,
    X86,
}

impl Architecture {
    /// What this kernel runs: its own architecture first.
    pub const NATIVE: &[Self] = if cfg!(target_arch = "x86_64") {
        &[Self::X86_64, Self::X86]
    } else if cfg!(target_arch = "aarch64") {
        &[Self::Aarch64, Self::Arm]
    } else {
        &[Self::Arm]
    };

    /// The one this program is for, and those of the named that the kernel runs as well. Names of others are of no use here.
    pub fn named(names: &[String]) -> Vec<Self> {
        Self::NATIVE
            .iter()
            .enumerate()
            .filter(|(at, own)| *at == 0 || names.iter().any(|name| name == own.name()))
            .map(|(_, own)| *own)
            .collect()
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
            Self::Arm => "SCMP_ARCH_ARM",
            Self::X86 => "SCMP_ARCH_X86",
        }
    }

    /// AUDIT_ARCH_* of linux/audit.h.
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
            Self::X86 => 0x4000_0003,
        }
    }

    /// Every call with its number, in the order of their numbers.
    pub fn calls(self) -> Vec<(u32, &'static str)> {
        let column = match self {
            Self::X86_64 => 1,
            Self::Aarch64 => 2,
            Self::Arm => 3,
            Self::X86 => 4,
        };
        let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
        let mut calls: Vec<_> = lines
            .filter_map(|line| {
                let mut fields = line.split(' ');
                let name = fields.next()?;
                Some((fields.nth(column - 1)?.parse().ok()?, name))
            })
            .collect();
        calls.sort_unstable();
        calls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_this_kernels_headers_and_known_ones_elsewhere() {
        let number =
            |architecture: Architecture, name: &str| architecture.calls().iter().find(|(_, own)| *own == name).map(|(number, _)| *number);
        assert_eq!(number(Architecture::NATIVE[0], "openat"), Some(libc::SYS_openat as u32));
        assert_eq!(number(Architecture::NATIVE[0], "clone3"), Some(libc::SYS_clone3 as u32));
        assert_eq!(number(Architecture::X86_64, "read"), Some(0));
        assert_eq!(number(Architecture::Aarch64, "read"), Some(63));
        assert_eq!(number(Architecture::Arm, "read"), Some(3));
        assert_eq!(number(Architecture::Arm, "cacheflush"), Some(0x000f_0002));
        assert_eq!(number(Architecture::Aarch64, "open"), None);
    }
}
