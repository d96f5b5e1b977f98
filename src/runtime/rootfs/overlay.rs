//! A root made of image layers with one writable folder on top, mounted detached: no path of the host ever shows it.
//! Layers are given to the kernel by descriptors, so their names may hold any character and may be as many as the kernel takes.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::runtime::namespace;
use crate::runtime::spec::IdMapping;
use crate::sys::mount::{Attributes, attribute, set_attributes};
use crate::sys::process::{self, Fork, clone};

/// As many layers as overlayfs takes (OVL_MAX_STACK).
const LAYERS_MAX: usize = 500;

/// The longest string that fsconfig(2) takes.
const FSCONFIG_VALUE_MAX_BYTES: usize = 255;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Image layers, the topmost first.
    pub lower: Vec<PathBuf>,
    /// The writable folder; none: read-only.
    pub upper: Option<PathBuf>,
    /// An empty folder on the same file system as `upper`.
    pub work: Option<PathBuf>,
}

impl Overlay {
    pub fn open(&self) -> Result<OwnedFd> {
        if self.lower.is_empty() || self.lower.len() > LAYERS_MAX {
            bail!("{} layers; 1 to {LAYERS_MAX} are possible", self.lower.len());
        }
        let open = |path: &Path| {
            rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .with_context(|| format!("open {}", path.display()))
        };
        let lower = self.lower.iter().map(|path| open(path)).collect::<Result<Vec<_>>>()?;
        let upper = self.upper.as_deref().map(open).transpose()?;
        let work = self.work.as_deref().map(open).transpose()?;
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).context("open file system \"overlay\"")?;
        let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&context, key, value).with_context(|| format!("set {key}"));
        set("source", "overlay")?;
        // Since Linux 6.7 (6.5 with a bug for a single layer) one key a layer; before, one string of at most 255 bytes.
        let one_by_one = lower.len() > 1 && set("lowerdir+", &name(&lower[0])).is_ok();
        if one_by_one {
            lower[1..].iter().try_for_each(|layer| set("lowerdir+", &name(layer)))?;
        } else {
            let joined = lower.iter().map(name).collect::<Vec<_>>().join(":");
            if joined.len() > FSCONFIG_VALUE_MAX_BYTES {
                return mounted(&joined, upper.as_ref(), work.as_ref());
            }
            set("lowerdir", &joined)?;
        }
        if let (Some(upper), Some(work)) = (&upper, &work) {
            set("upperdir", &name(upper))?;
            set("workdir", &name(work))?;
            // Nothing of a container's own is of use after a power cut, so nothing is synced, at its end least of all (Linux 5.10).
            rustix::mount::fsconfig_set_flag(&context, "volatile").context("set volatile")?;
        }
        rustix::mount::fsconfig_create(&context).context("put the layers together")?;
        Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
    }
}

/// For kernels that take many layers by mount(2) only: mounted in a place of its own, copied detached, and unmounted at once.
fn mounted(lower: &str, upper: Option<&OwnedFd>, work: Option<&OwnedFd>) -> Result<OwnedFd> {
    let place = std::env::temp_dir().join(format!("edge-overlay-{}", crate::base::id::uid()));
    std::fs::create_dir(&place).with_context(|| format!("make {}", place.display()))?;
    let mut options = format!("lowerdir={lower}");
    if let (Some(upper), Some(work)) = (upper, work) {
        options += &format!(",upperdir={},workdir={}", name(upper), name(work));
    }
    let options = std::ffi::CString::new(options).expect("paths of /proc/self/fd have no zero byte");
    let mounted = rustix::mount::mount("overlay", &place, "overlay", rustix::mount::MountFlags::empty(), Some(options.as_c_str()));
    let tree = mounted.context("mount").and_then(|()| {
        let tree = super::clone_tree(CWD, &place, false).context("copy the mount");
        rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH).context("unmount")?;
        tree
    });
    std::fs::remove_dir(&place).with_context(|| format!("remove {}", place.display()))?;
    tree
}

fn name(folder: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", folder.as_raw_fd())
}

/// Makes a detached tree show its files' owners through the mappings (mount_setattr(2), MOUNT_ATTR_IDMAP). The user namespace
/// that carries them needs a process only while it is opened.
pub fn map_ids(tree: BorrowedFd, uids: &[IdMapping], gids: &[IdMapping], recursive: bool) -> Result<()> {
    if uids.is_empty() || gids.is_empty() {
        bail!("an idmap mount needs uidMappings and gidMappings");
    }
    let child = match process::clone3(clone::NEWUSER, None).context("make a user namespace")? {
        Fork::Child => loop {
            nix::unistd::pause();
        },
        Fork::Parent(child) => child,
    };
    let open = || -> Result<File> {
        namespace::write_maps(child.pid, &(namespace::map(uids), namespace::map(gids)))?;
        File::open(format!("/proc/{}/ns/user", child.pid)).context("open the user namespace")
    };
    let opened = open();
    process::pidfd_send_signal(child.pidfd.as_fd(), libc::SIGKILL).context("end the user namespace's process")?;
    rustix::process::waitid(rustix::process::WaitId::PidFd(child.pidfd.as_fd()), rustix::process::WaitIdOptions::EXITED)?;
    let namespace = opened?;
    let attributes = Attributes { set: attribute::IDMAP, userns_fd: namespace.as_raw_fd() as u64, ..Attributes::default() };
    set_attributes(tree, &attributes, recursive).context("map identifiers")
}
