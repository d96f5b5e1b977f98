//! A container's file system. The creator opens every source as a detached mount (open_tree(2), fsmount(2)) while it still sees the
//! host; the child puts them together inside its own mount namespace and leaves the host's tree by pivot_root(2).
//! Targets are looked up inside the root by descriptors only, see `path`; nothing becomes visible in the host's namespace.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::cgroup::Cgroup;
use super::mount_option::{self, Options};
use super::path::{self, Leaf};
use super::spec::{Linux, Mount, Spec};
use crate::sys::mount::{Attributes, attribute, set_attributes};

mod copy_up;
mod device;
mod overlay;

pub use device::terminal;
pub use overlay::Overlay;

/// Everything a container's tree is made of, opened by the creator and inherited by the child.
pub struct Rootfs {
    root: OwnedFd,
    readonly: bool,
    /// The root's propagation once all is mounted.
    propagation: (u64, bool),
    mounts: Vec<Prepared>,
    devices: Option<device::Devices>,
    masked: Vec<PathBuf>,
    readonly_paths: Vec<PathBuf>,
    cwd: PathBuf,
    console: bool,
}

struct Prepared {
    destination: PathBuf,
    options: Options,
    source: Source,
}

enum Source {
    /// A tree of the host.
    Tree(Tree),
    /// A file system to be made by the child: it belongs to the child's namespaces.
    New { kind: String, source: String },
    /// v1's folder of folders: names of the controllers, their trees, links for those that share one.
    Cgroups { trees: Vec<(String, Tree)>, links: Vec<(String, String)> },
}

/// A tree of the host to be bound.
enum Tree {
    /// Copied by the creator, where the child could not: a user namespace may not reach the path, identifiers are mapped with the
    /// creator's rights, and only the creator's own mounts are of the host's propagation group.
    Open(OwnedFd),
    /// Copied by the child when its turn comes, so that the kernel lists the container's mounts in the order of config.json.
    Path(PathBuf),
    /// Likewise, of something inside a folder that others may write to.
    Beneath(PathBuf, PathBuf),
}

/// What the child needs later.
pub struct Entered {
    /// The terminal's two ends, if one was asked for.
    pub console: Option<(OwnedFd, OwnedFd)>,
}

impl Rootfs {
    /// Opens all sources. `overlay`, if given, is the root in place of the spec's.
    pub fn prepare(spec: &Spec, bundle: &Path, overlay: Option<&Overlay>, cgroup: &Cgroup, own_user: bool) -> Result<Self> {
        let empty = Linux::default();
        let linux = spec.linux.as_ref().unwrap_or(&empty);
        let root_spec = spec.root.as_ref().context("root is required")?;
        let root = match overlay {
            Some(overlay) => overlay.open().context("mount the overlay")?,
            None => {
                let path = bundle.join(&root_spec.path);
                clone_tree(CWD, &path, true).with_context(|| format!("open rootfs {}", path.display()))?
            }
        };
        set_propagation(root.as_fd(), (mount_option::PRIVATE, true)).context("make the root private")?;
        let propagation = match linux.rootfs_propagation.as_str() {
            "" => (mount_option::PRIVATE, true),
            name => {
                let parsed = mount_option::propagation(name).with_context(|| format!("unknown rootfsPropagation {name:?}"))?;
                (parsed.0, true)
            }
        };
        let mounts = spec.mounts.iter().map(|mount| {
            let named = || format!("prepare mount {}", mount.destination.display());
            Prepared::new(mount, bundle, cgroup, own_user).with_context(named)
        });
        let mounts = mounts.collect::<Result<Vec<_>>>()?;
        // A bound /dev is the host's own: nothing is made in it.
        let bound = mounts.iter().any(|mount| mount.destination == Path::new("/dev") && matches!(mount.source, Source::Tree(_)));
        let process = spec.process.as_ref();
        Ok(Self {
            root,
            readonly: root_spec.readonly,
            propagation,
            mounts,
            devices: if bound { None } else { Some(device::Devices::prepare(&linux.devices, own_user)?) },
            masked: linux.masked_paths.clone(),
            readonly_paths: linux.readonly_paths.clone(),
            cwd: process.map_or_else(|| "/".into(), |process| PathBuf::from(&process.cwd)),
            console: process.is_some_and(|process| process.terminal),
        })
    }

    /// In the child: makes the tree ready, everything but leaving the host's.
    pub fn assemble(&self) -> Result<Entered> {
        // So that nothing done here is seen outside, and unmounting the old root unmounts nothing there.
        rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).context("make / a slave")?;
        let root = self.root.as_fd();
        // On top of /, which exists on every host and is reachable for everybody; lookups of the host's paths still start below it.
        attach_at(root, CWD, Path::new("/")).context("attach the root")?;
        for mount in &self.mounts {
            mount.apply(root).with_context(|| format!("mount {}", mount.destination.display()))?;
        }
        if let Some(devices) = &self.devices {
            devices.make(root).context("make devices")?;
        }
        let console = if self.console { Some(device::console(root).context("make the console")?) } else { None };
        self.mask().context("mask paths")?;
        for path in &self.readonly_paths {
            let named = || format!("make {} read-only", path.display());
            let target = match path::open_without_links(root, path) {
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                other => other.with_context(named)?,
            };
            let tree = clone_tree(&target, Path::new(""), true).with_context(named)?;
            set_attributes(tree.as_fd(), &Attributes { set: attribute::RDONLY, ..Attributes::default() }, true).with_context(named)?;
            attach(tree.as_fd(), target.as_fd()).with_context(named)?;
        }
        if self.cwd != Path::new("/") {
            path::open_or_make(root, &self.cwd, Leaf::Directory).context("make the working directory")?;
        }
        if self.readonly {
            set_attributes(root, &Attributes { set: attribute::RDONLY, ..Attributes::default() }, false)
                .context("make the root read-only")?;
        }
        Ok(Entered { console })
    }

    /// In the child: makes the container's root the root and forgets the host's tree.
    ///
    /// With `no_pivot`, for hosts that run from an initial RAM disk, which cannot be unmounted: the tree is moved over it instead.
    pub fn enter(&self, no_pivot: bool) -> Result<()> {
        rustix::process::fchdir(&self.root).context("go to the root")?;
        if no_pivot {
            rustix::mount::mount_move(".", "/").context("move the root over /")?;
            rustix::process::chroot(".").context("chroot")?;
        } else {
            // pivot_root(2), "pivot_root(".", ".")": the old root lands on top of the new one and is taken off at once.
            rustix::process::pivot_root(".", ".").context("pivot_root")?;
            rustix::mount::unmount(".", UnmountFlags::DETACH).context("unmount the host's tree")?;
        }
        rustix::process::chdir("/").context("go to /")?;
        if self.propagation.0 != mount_option::PRIVATE {
            set_propagation(self.root.as_fd(), self.propagation).context("set the root's propagation")?;
        }
        Ok(())
    }

    /// Hides files behind the host's /dev/null and folders behind one empty read-only tmpfs.
    fn mask(&self) -> Result<()> {
        let root = self.root.as_fd();
        let mut tmpfs: Option<OwnedFd> = None;
        for path in &self.masked {
            let named = || format!("mask {}", path.display());
            let target = match path::open_without_links(root, path) {
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                other => other.with_context(named)?,
            };
            let cover = if is_directory(&target)? {
                match &tmpfs {
                    // It is attached by now, so it can be copied.
                    Some(first) => clone_tree(first, Path::new(""), false).with_context(named)?,
                    None => {
                        let options = mount_option::parse(["ro", "nosuid", "nodev", "noexec", "size=0", "mode=555"]);
                        new_filesystem("tmpfs", "tmpfs", &options).with_context(named)?
                    }
                }
            } else {
                // Not the container's /dev/null, which may be anything by now (CVE-2025-31133).
                let null = clone_tree(CWD, Path::new("/dev/null"), false).with_context(named)?;
                let stat = rustix::fs::fstat(&null).with_context(named)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || stat.st_rdev != rustix::fs::makedev(1, 3) {
                    bail!("mask {}: the host's /dev/null is none", path.display());
                }
                null
            };
            attach(cover.as_fd(), target.as_fd()).with_context(named)?;
            if tmpfs.is_none() && is_directory(&cover)? {
                tmpfs = Some(cover);
            }
        }
        Ok(())
    }
}

impl Prepared {
    fn new(mount: &Mount, bundle: &Path, cgroup: &Cgroup, own_user: bool) -> Result<Self> {
        let mut options = mount_option::parse(mount.options.iter().map(String::as_str));
        let destination = Path::new("/").join(&mount.destination);
        let source = if mount.kind == "cgroup" || mount.kind == "cgroup2" {
            // What only the file system would have understood: the tree is bound, not mounted anew.
            options.data.clear();
            options.propagation = Some((mount_option::PRIVATE, false));
            cgroups(cgroup, &options, own_user)?
        } else if options.bind || mount.kind == "bind" {
            let path = bundle.join(&mount.source);
            let shared = options.propagation.is_some_and(|(propagation, _)| propagation == mount_option::SHARED);
            let mut tree = match &mount.sub_path {
                None => Tree::Path(path),
                Some(sub_path) => Tree::Beneath(path, sub_path.clone()),
            };
            if own_user || shared || options.id_mapped.is_some() {
                let open = tree.open(&options)?;
                if let Some(recursive) = options.id_mapped {
                    overlay::map_ids(open.as_fd(), &mount.uid_mappings, &mount.gid_mappings, recursive)?;
                }
                tree = Tree::Open(open);
            }
            Source::Tree(tree)
        } else {
            Source::New { kind: mount.kind.clone(), source: mount.source.clone() }
        };
        Ok(Self { destination, options, source })
    }

    fn apply(&self, root: BorrowedFd) -> Result<()> {
        match &self.source {
            Source::Tree(tree) => {
                let tree = tree.take(&self.options)?;
                let leaf = if is_directory(&tree)? { Leaf::Directory } else { Leaf::File };
                let target = path::open_or_make(root, &self.destination, leaf)?;
                attach(tree.as_fd(), target.as_fd())
            }
            Source::New { kind, source } => {
                let target = path::open_or_make(root, &self.destination, Leaf::Directory)?;
                self.refuse_fake_proc(root, kind, &target)?;
                let mount = match new_filesystem(kind, source, &self.options) {
                    // A user namespace may not mount a sysfs of a network namespace that is not its own: the host's then.
                    Err(error) if kind == "sysfs" && error.downcast_ref() == Some(&Errno::PERM) => {
                        let tree = clone_tree(CWD, Path::new("/sys"), true).context("open /sys")?;
                        restrict(tree.as_fd(), &self.options)?;
                        tree
                    }
                    other => other?,
                };
                if self.options.copy_up {
                    copy_up::copy(target.as_fd(), mount.as_fd()).context("copy up")?;
                }
                attach(mount.as_fd(), target.as_fd())?;
                self.options.propagation.map_or(Ok(()), |propagation| set_propagation(mount.as_fd(), propagation))
            }
            Source::Cgroups { trees, links } => {
                let target = path::open_or_make(root, &self.destination, Leaf::Directory)?;
                let writable =
                    Options { set: self.options.set & !attribute::RDONLY, data: vec!["mode=755".into()], ..self.options.clone() };
                let tmpfs = new_filesystem("tmpfs", "tmpfs", &writable)?;
                attach(tmpfs.as_fd(), target.as_fd())?;
                for (name, tree) in trees {
                    rustix::fs::mkdirat(&tmpfs, name.as_str(), Mode::from_raw_mode(0o755))?;
                    attach_at(tree.take(&self.options)?.as_fd(), tmpfs.as_fd(), Path::new(name))
                        .with_context(|| format!("mount {name}"))?;
                }
                for (target, name) in links {
                    rustix::fs::symlinkat(target.as_str(), &tmpfs, name.as_str())?;
                }
                restrict(tmpfs.as_fd(), &self.options)
            }
        }
    }

    /// /proc and /sys must be real folders directly below the root (CVE-2019-16884, CVE-2023-27561): a link could lead the kernel's files
    /// to where later steps do not look for them.
    fn refuse_fake_proc(&self, root: BorrowedFd, kind: &str, target: &OwnedFd) -> Result<()> {
        if kind == "proc" || kind == "sysfs" {
            let direct = path::open_without_links(root, &self.destination).context("a symbolic link where a folder has to be")?;
            let (seen, wanted) = (rustix::fs::fstat(&direct)?, rustix::fs::fstat(target)?);
            if (seen.st_dev, seen.st_ino) != (wanted.st_dev, wanted.st_ino) {
                bail!("replaced while it was looked at");
            }
        }
        Ok(())
    }
}

impl Tree {
    /// The detached tree, as it is to be attached.
    fn take(&self, options: &Options) -> Result<OwnedFd> {
        match self {
            Self::Open(tree) => tree.try_clone().context("keep the tree"),
            Self::Path(_) | Self::Beneath(..) => self.open(options),
        }
    }

    fn open(&self, options: &Options) -> Result<OwnedFd> {
        let named = |path: &Path| format!("open {}", path.display());
        let tree = match self {
            Self::Open(_) => return self.take(options),
            Self::Path(path) => clone_tree(CWD, path, options.recursive).with_context(|| named(path))?,
            Self::Beneath(path, sub_path) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let root = rustix::fs::open(path, flags, Mode::empty()).with_context(|| named(path))?;
                let found = path::open_beneath_or_make(&root, sub_path).with_context(|| named(path))?;
                clone_tree(&found, Path::new(""), options.recursive).with_context(|| named(path))?
            }
        };
        restrict(tree.as_fd(), options)?;
        set_propagation(tree.as_fd(), options.propagation.unwrap_or((mount_option::SLAVE, true))).context("set propagation")?;
        Ok(tree)
    }
}

/// The container's own cgroup folders. Bound, not mounted: with a cgroup namespace they look the same.
fn cgroups(cgroup: &Cgroup, options: &Options, own_user: bool) -> Result<Source> {
    let tree = |path: &Path| -> Result<Tree> {
        let tree = Tree::Path(path.into());
        if own_user { Ok(Tree::Open(tree.open(options)?)) } else { Ok(tree) }
    };
    Ok(match cgroup {
        Cgroup::V2(folder) => Source::Tree(tree(folder)?),
        Cgroup::V1(hierarchies) => {
            let mut trees = Vec::new();
            let mut links = Vec::new();
            for hierarchy in hierarchies {
                let name = hierarchy.mount.file_name().context("a hierarchy mounted at /")?.to_string_lossy().into_owned();
                links.extend(
                    hierarchy.controllers.iter().filter(|own| **own != name && !own.contains('=')).map(|own| (name.clone(), own.clone())),
                );
                trees.push((name, tree(&hierarchy.path)?));
            }
            Source::Cgroups { trees, links }
        }
    })
}

/// A new detached file system with all its options (fsopen(2), fsconfig(2), fsmount(2)).
fn new_filesystem(kind: &str, source: &str, options: &Options) -> Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).with_context(|| format!("open file system {kind:?}"))?;
    if !source.is_empty() {
        rustix::mount::fsconfig_set_string(&context, "source", source).context("set its source")?;
    }
    for option in &options.data {
        match option.split_once('=') {
            Some((key, value)) => rustix::mount::fsconfig_set_string(&context, key, value),
            None => rustix::mount::fsconfig_set_flag(&context, option.as_str()),
        }
        .with_context(|| format!("set option {option:?} of {kind}"))?;
    }
    rustix::mount::fsconfig_create(&context)?;
    // fsmount knows no "clear": a new mount has nothing set.
    let attributes = MountAttrFlags::from_bits_retain((options.set | options.set_recursive) as u32);
    Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// A detached copy of what is mounted at `path`, with all below it if `recursive`.
fn clone_tree(at: impl AsFd, path: &Path, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let recursive = if recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
    rustix::mount::open_tree(at, path, flags | recursive)
}

/// Attaches a detached mount exactly where the descriptor `target` points.
fn attach(mount: BorrowedFd, target: BorrowedFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", target, "", flags).context("attach")
}

fn attach_at(mount: BorrowedFd, folder: impl AsFd, name: &Path) -> Result<()> {
    Ok(rustix::mount::move_mount(mount, "", folder, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Sets and clears the attributes asked for on a tree that exists already.
fn restrict(mount: BorrowedFd, options: &Options) -> Result<()> {
    for (set, clear, recursive) in [(options.set, options.clear, false), (options.set_recursive, options.clear_recursive, true)] {
        if set | clear != 0 {
            set_attributes(mount, &Attributes { set, clear, ..Attributes::default() }, recursive).context("set mount attributes")?;
        }
    }
    Ok(())
}

fn set_propagation(mount: BorrowedFd, (propagation, recursive): (u64, bool)) -> Result<()> {
    Ok(set_attributes(mount, &Attributes { propagation, ..Attributes::default() }, recursive)?)
}

fn is_directory(file: impl AsFd) -> Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode) == FileType::Directory)
}

/// A procfs of the child's own, attached nowhere, so that nothing can be mounted over its files (CVE-2025-52881).
pub fn private_proc() -> Result<OwnedFd> {
    new_filesystem("proc", "proc", &Options::default()).context("mount a private procfs")
}

/// Opens a file below `folder` for writing, neither through links nor over mount points.
pub fn open_file_below(folder: impl AsFd, name: &Path) -> Result<File> {
    use rustix::fs::ResolveFlags;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(File::from(path::open_with(folder, name, OFlags::WRONLY, resolve)?))
}

/// fchownat(2) of what a descriptor points to.
fn own(file: BorrowedFd, uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    Ok(rustix::fs::chownat(file, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
}
