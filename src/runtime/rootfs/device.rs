//! /dev of a container: the nodes and links that the specification promises, those asked for, and the console.
//! In a user namespace, where nobody may make nodes, the host's are bound instead.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, Dev, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;

use super::{attach, clone_tree, own};
use crate::runtime::path::{self, Leaf};
use crate::runtime::spec::Device;

/// OCI "Default Devices"; all of mode 666 and root's.
const DEFAULT: [(&str, u32, u32); 6] =
    [("/dev/null", 1, 3), ("/dev/zero", 1, 5), ("/dev/full", 1, 7), ("/dev/random", 1, 8), ("/dev/urandom", 1, 9), ("/dev/tty", 5, 0)];

/// OCI "Dev symbolic links".
const LINKS: [(&str, &str); 4] =
    [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2")];

/// statfs(2).
const DEVPTS_MAGIC: i64 = 0x1cd1;

pub struct Devices(Vec<Node>);

struct Node {
    path: PathBuf,
    kind: FileType,
    number: Dev,
    mode: u32,
    uid: u32,
    gid: u32,
    /// The host's node, where none may be made.
    bound: Option<OwnedFd>,
}

impl Devices {
    pub fn prepare(asked: &[Device], own_user: bool) -> Result<Self> {
        let mut nodes = Vec::with_capacity(DEFAULT.len() + asked.len());
        for device in asked {
            let kind = match device.kind.as_str() {
                "c" | "u" => FileType::CharacterDevice,
                "b" => FileType::BlockDevice,
                "p" => FileType::Fifo,
                other => bail!("device {} of unknown type {other:?}", device.path.display()),
            };
            nodes.push(Node {
                path: device.path.clone(),
                kind,
                number: if kind == FileType::Fifo { 0 } else { rustix::fs::makedev(device.major as u32, device.minor as u32) },
                mode: device.file_mode.unwrap_or(0o666) & 0o7777,
                uid: device.uid.unwrap_or(0),
                gid: device.gid.unwrap_or(0),
                bound: None,
            });
        }
        for (path, major, minor) in DEFAULT {
            if !nodes.iter().any(|node| node.path == Path::new(path)) {
                let number = rustix::fs::makedev(major, minor);
                nodes.push(Node { path: path.into(), kind: FileType::CharacterDevice, number, mode: 0o666, uid: 0, gid: 0, bound: None });
            }
        }
        if own_user {
            for node in nodes.iter_mut().filter(|node| node.kind != FileType::Fifo) {
                let tree = clone_tree(CWD, &node.path, false).with_context(|| format!("open {}", node.path.display()))?;
                node.bound = Some(tree);
            }
        }
        Ok(Self(nodes))
    }

    /// The umask must be zero.
    pub fn make(&self, root: BorrowedFd) -> Result<()> {
        let dev = path::open_or_make(root, Path::new("/dev"), Leaf::Directory)?;
        for node in &self.0 {
            let named = || format!("make {}", node.path.display());
            if let Some(bound) = &node.bound {
                let target = path::open_or_make(root, &node.path, Leaf::File)?;
                attach(bound.as_fd(), target.as_fd()).with_context(named)?;
                continue;
            }
            let name = node.path.file_name().with_context(named)?;
            let other;
            let folder = match node.path.parent().context("a device in place of the root")? {
                parent if parent == Path::new("/dev") => &dev,
                parent => {
                    other = path::open_or_make(root, parent, Leaf::Directory)?;
                    &other
                }
            };
            match rustix::fs::mknodat(folder, name, node.kind, Mode::from_raw_mode(node.mode), node.number) {
                // From the image, when /dev is not a mount of its own: fine if it is the same.
                Err(Errno::EXIST) => {
                    let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).with_context(named)?;
                    if FileType::from_raw_mode(stat.st_mode) != node.kind || stat.st_rdev != node.number {
                        bail!("make {}: there is something else", node.path.display());
                    }
                }
                other => other.with_context(named)?,
            }
            if node.uid != 0 || node.gid != 0 {
                let file = path::open_with(folder, Path::new(name), OFlags::PATH | OFlags::NOFOLLOW, rustix::fs::ResolveFlags::BENEATH)?;
                own(file.as_fd(), node.uid, node.gid).with_context(named)?;
            }
        }
        let link = |name: &str, target: &str| match rustix::fs::symlinkat(target, &dev, name) {
            Err(Errno::EXIST) => Ok(()),
            other => other.with_context(|| format!("link /dev/{name}")),
        };
        for (name, target) in LINKS {
            link(name, target)?;
        }
        if rustix::fs::accessat(CWD, "/proc/kcore", rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok() {
            link("core", "/proc/kcore")?;
        }
        if rustix::fs::accessat(&dev, "pts/ptmx", rustix::fs::Access::EXISTS, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            link("ptmx", "pts/ptmx")?;
        }
        Ok(())
    }
}

/// Opens a pseudo terminal of the container's own devpts and binds its slave to /dev/console. Gives master and slave.
pub fn console(root: BorrowedFd) -> Result<(OwnedFd, OwnedFd)> {
    let (master, slave) = terminal(root)?;
    let target = path::open_or_make(root, Path::new("/dev/console"), Leaf::File)?;
    // The slave by its descriptor, never by a name that something else may have taken (CVE-2025-52565).
    let tree = clone_tree(&slave, Path::new(""), false)?;
    attach(tree.as_fd(), target.as_fd())?;
    Ok((master, slave))
}

/// Opens a pseudo terminal of the devpts mounted inside `root`.
pub fn terminal(root: BorrowedFd) -> Result<(OwnedFd, OwnedFd)> {
    use rustix::fs::ResolveFlags;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let master = path::open_with(root, Path::new("/dev/pts/ptmx"), OFlags::RDWR | OFlags::NOCTTY, resolve).context("open /dev/pts/ptmx")?;
    let real =
        rustix::fs::fstatfs(&master)?.f_type as i64 == DEVPTS_MAGIC && rustix::fs::fstat(&master)?.st_rdev == rustix::fs::makedev(5, 2);
    if !real {
        bail!("/dev/pts/ptmx is no pseudo terminal");
    }
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    Ok((master, slave))
}
