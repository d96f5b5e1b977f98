//! Mount options as mount(8) and the OCI specification write them, sorted into what the kernel wants where.
//! Pure: a table and a loop.

use crate::sys::mount::attribute;

/// One mount's options, sorted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// A bind mount; `recursive` binds what is mounted below as well.
    pub bind: bool,
    pub recursive: bool,
    /// MOUNT_ATTR_* for this mount.
    pub set: u64,
    pub clear: u64,
    /// MOUNT_ATTR_* for this mount and all below (`rro` and the like).
    pub set_recursive: u64,
    pub clear_recursive: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE, and whether for all below too.
    pub propagation: Option<(u64, bool)>,
    /// `tmpcopyup`: a new tmpfs starts with what it hides.
    pub copy_up: bool,
    /// `idmap` or `ridmap` (true).
    pub id_mapped: Option<bool>,
    /// What is left for the file system: `key=value` or a flag.
    pub data: Vec<String>,
}

/// Name, bits to set, bits to clear. `r` before such a name: recursive.
const ATTRIBUTES: [(&str, u64, u64); 19] = [
    ("ro", attribute::RDONLY, 0),
    ("rw", 0, attribute::RDONLY),
    ("nosuid", attribute::NOSUID, 0),
    ("suid", 0, attribute::NOSUID),
    ("nodev", attribute::NODEV, 0),
    ("dev", 0, attribute::NODEV),
    ("noexec", attribute::NOEXEC, 0),
    ("exec", 0, attribute::NOEXEC),
    ("noatime", attribute::NOATIME, attribute::ATIME),
    ("atime", 0, attribute::ATIME),
    ("strictatime", attribute::STRICTATIME, attribute::ATIME),
    ("nostrictatime", 0, attribute::ATIME),
    ("relatime", 0, attribute::ATIME),
    ("norelatime", 0, attribute::ATIME),
    ("nodiratime", attribute::NODIRATIME, 0),
    ("diratime", 0, attribute::NODIRATIME),
    ("nosymfollow", attribute::NOSYMFOLLOW, 0),
    ("symfollow", 0, attribute::NOSYMFOLLOW),
    ("defaults", 0, 0),
];

pub const SHARED: u64 = libc::MS_SHARED as u64;
pub const SLAVE: u64 = libc::MS_SLAVE as u64;
pub const PRIVATE: u64 = libc::MS_PRIVATE as u64;
pub const UNBINDABLE: u64 = libc::MS_UNBINDABLE as u64;

/// Every option with a meaning of its own, for the features document.
pub fn names() -> Vec<String> {
    let attributes = ATTRIBUTES.iter().flat_map(|(name, ..)| [(*name).to_owned(), format!("r{name}")]).filter(|name| name != "rdefaults");
    let others = [
        "bind",
        "rbind",
        "tmpcopyup",
        "idmap",
        "ridmap",
        "shared",
        "rshared",
        "slave",
        "rslave",
        "private",
        "rprivate",
        "unbindable",
        "runbindable",
    ];
    let mut names: Vec<_> = attributes.chain(others.map(String::from)).collect();
    names.sort_unstable();
    names
}

/// `rslave` and its kin.
pub fn propagation(name: &str) -> Option<(u64, bool)> {
    Some(match name {
        "shared" => (SHARED, false),
        "rshared" => (SHARED, true),
        "slave" => (SLAVE, false),
        "rslave" => (SLAVE, true),
        "private" => (PRIVATE, false),
        "rprivate" => (PRIVATE, true),
        "unbindable" => (UNBINDABLE, false),
        "runbindable" => (UNBINDABLE, true),
        _ => return None,
    })
}

/// Sorts the options; a later one wins over an earlier one.
pub fn parse<'a>(options: impl IntoIterator<Item = &'a str>) -> Options {
    let mut sorted = Options::default();
    let attributes = |name: &str| ATTRIBUTES.iter().find(|(known, ..)| *known == name).map(|(_, set, clear)| (*set, *clear));
    for option in options {
        if let Some((set, clear)) = attributes(option) {
            sorted.set = sorted.set & !clear | set;
            sorted.clear = sorted.clear & !set | clear;
        } else if let Some((set, clear)) = option.strip_prefix('r').and_then(attributes) {
            sorted.set_recursive = sorted.set_recursive & !clear | set;
            sorted.clear_recursive = sorted.clear_recursive & !set | clear;
        } else if let Some(propagation) = propagation(option) {
            sorted.propagation = Some(propagation);
        } else {
            match option {
                "bind" => sorted.bind = true,
                "rbind" => (sorted.bind, sorted.recursive) = (true, true),
                "tmpcopyup" => sorted.copy_up = true,
                "idmap" => sorted.id_mapped = Some(false),
                "ridmap" => sorted.id_mapped = Some(true),
                // Of the file system as a whole, or of mount(8) only: nothing to do for a new mount.
                "async" | "auto" | "noauto" | "nouser" | "user" | "_netdev" | "loud" | "remount" => {}
                other => sorted.data.push(other.into()),
            }
        }
    }
    // The kernel wants the whole access time field cleared whenever a value is set in it, mount_setattr(2).
    if sorted.set & attribute::ATIME != 0 {
        sorted.clear |= attribute::ATIME;
    }
    if sorted.set_recursive & attribute::ATIME != 0 {
        sorted.clear_recursive |= attribute::ATIME;
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_where_the_kernel_wants_them() {
        let check = |text: &str, expected: Options| assert_eq!(parse(text.split(',')), expected, "{text}");
        check(
            "nosuid,strictatime,mode=755,size=65536k",
            Options {
                set: attribute::NOSUID | attribute::STRICTATIME,
                clear: attribute::ATIME,
                data: vec!["mode=755".into(), "size=65536k".into()],
                ..Options::default()
            },
        );
        check(
            "rbind,ro,rslave",
            Options { bind: true, recursive: true, set: attribute::RDONLY, propagation: Some((SLAVE, true)), ..Options::default() },
        );
        check("ro,rw", Options { clear: attribute::RDONLY, ..Options::default() });
        check("rw,ro", Options { set: attribute::RDONLY, ..Options::default() });
        check("rbind,rro", Options { bind: true, recursive: true, set_recursive: attribute::RDONLY, ..Options::default() });
        check("relatime,tmpcopyup", Options { clear: attribute::ATIME, copy_up: true, ..Options::default() });
    }
}
