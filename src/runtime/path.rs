//! Paths of a container that its image or its other processes may have filled with symbolic links: looked up inside the root
//! only, by openat2(2), and given back as descriptors, so that what was checked is what is used (CVE-2021-30465, CVE-2025-31133).
//! Nothing here ever follows a link out of the root or through a link of /proc.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// As many links as the kernel follows in one lookup, path_resolution(7).
const LINKS_MAX: usize = 40;

/// What stands at the end of a path that has to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    Directory,
    File,
}

/// Opens `path` as seen from inside `root`, links included. An O_PATH descriptor.
pub fn open(root: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    open_with(root, path, OFlags::PATH, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Opens `path` inside `root` and refuses (ELOOP) any symbolic link on the way.
pub fn open_without_links(root: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    // Not with O_NOFOLLOW, which together with O_PATH would open a link at the end itself.
    open_with(root, path, OFlags::PATH, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
}

/// openat2(2), repeated while renames elsewhere make the kernel unsure whether `..` left the root (EAGAIN).
pub fn open_with(root: impl AsFd, path: &Path, flags: OFlags, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    const TRIES: usize = 128;
    let mut result = Err(Errno::AGAIN);
    for _ in 0..TRIES {
        result = rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
        if !matches!(result, Err(Errno::AGAIN)) {
            break;
        }
    }
    result
}

/// Opens `path` inside `root`; what is missing of it is made first: folders of mode 755, at the end a `leaf`.
pub fn open_or_make(root: impl AsFd, path: &Path, leaf: Leaf) -> Result<OwnedFd> {
    match open(&root, path) {
        Err(Errno::NOENT) => {}
        other => return other.with_context(|| format!("open {} in the container", path.display())),
    }
    let made = make(&root, path, leaf).with_context(|| format!("make {} in the container", path.display()))?;
    open(&root, &made).with_context(|| format!("open {} in the container", made.display()))
}

/// Opens `path` beneath `root`, which no link on the way may leave (EXDEV); folders that are missing are made as the root is.
/// Whoever else writes there meanwhile can only make it fail (CVE-2017-1002101, CVE-2021-25741).
pub fn open_beneath_or_make(root: impl AsFd, path: &Path) -> Result<OwnedFd> {
    match open_with(&root, path, OFlags::PATH, ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS) {
        Err(Errno::NOENT) => {}
        Err(Errno::XDEV) => bail!("{} leads out of the volume", path.display()),
        other => return other.with_context(|| format!("open {} in the volume", path.display())),
    }
    make_beneath(&root, path).with_context(|| format!("make {} in the volume", path.display()))
}

/// Here links are not followed at all: one that points to nothing is no place for a folder.
fn make_beneath(root: impl AsFd, path: &Path) -> Result<OwnedFd> {
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&root)?.st_mode & 0o7777);
    let (folder, inside) = (OFlags::DIRECTORY | OFlags::RDONLY, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS);
    let mut at = open_with(&root, Path::new("."), folder, inside)?;
    for part in path.components() {
        let Component::Normal(part) = part else { bail!("it is not a plain path") };
        at = match open_with(&at, Path::new(part), folder, inside) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&at, part, mode)?;
                let made = open_with(&at, Path::new(part), folder, inside)?;
                // What the umask took away.
                rustix::fs::fchmod(&made, mode)?;
                made
            }
            other => other?,
        };
    }
    Ok(at)
}

/// Goes down `path` part by part, following links that point to nothing yet, and makes what is missing. Gives the path without links.
fn make(root: impl AsFd, path: &Path, leaf: Leaf) -> Result<PathBuf> {
    let mut todo: VecDeque<OsString> = parts(path).collect();
    let mut at = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        if part == OsStr::new("..") {
            at.pop();
            continue;
        }
        let folder = open(&root, &at)?;
        match rustix::fs::readlinkat(&folder, part.as_os_str(), Vec::new()) {
            Ok(target) => {
                links += 1;
                if links > LINKS_MAX {
                    bail!("more than {LINKS_MAX} symbolic links");
                }
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                    todo.push_front(part);
                }
                continue;
            }
            // It is there and no link.
            Err(Errno::INVAL) => {}
            Err(Errno::NOENT) if todo.is_empty() && leaf == Leaf::File => {
                rustix::fs::mknodat(&folder, part.as_os_str(), rustix::fs::FileType::RegularFile, Mode::from_raw_mode(0o644), 0)?;
            }
            Err(Errno::NOENT) => rustix::fs::mkdirat(&folder, part.as_os_str(), Mode::from_raw_mode(0o755))?,
            Err(error) => return Err(error.into()),
        }
        at.push(part);
    }
    Ok(at)
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn with_root(test: impl FnOnce(&Path, OwnedFd)) {
        let root = std::env::temp_dir().join(crate::base::id::uid());
        std::fs::create_dir(&root).unwrap();
        let fd = rustix::fs::open(&root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        test(&root, fd);
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_link_to_an_absolute_path_stays_inside_the_root() {
        with_root(|root, fd| {
            symlink("/outside", root.join("link")).unwrap();
            open_or_make(&fd, Path::new("/link/deep/file"), Leaf::File).unwrap();
            assert!(root.join("outside/deep/file").is_file());
            assert!(!Path::new("/outside").exists());
        });
    }

    #[test]
    fn going_up_ends_at_the_root() {
        with_root(|root, fd| {
            symlink("../../../../up", root.join("link")).unwrap();
            open_or_make(&fd, Path::new("../../link/x"), Leaf::Directory).unwrap();
            assert!(root.join("up/x").is_dir());
        });
    }

    #[test]
    fn links_in_a_circle_are_an_error() {
        with_root(|root, fd| {
            symlink("b", root.join("a")).unwrap();
            symlink("a", root.join("b")).unwrap();
            assert!(open_or_make(&fd, Path::new("/a/x"), Leaf::Directory).is_err());
        });
    }

    #[test]
    fn a_path_beneath_follows_links_inside_and_refuses_those_that_lead_out() {
        with_root(|root, fd| {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o777)).unwrap();
            std::fs::create_dir(root.join("real")).unwrap();
            symlink("real", root.join("inside")).unwrap();
            symlink("/etc", root.join("absolute")).unwrap();
            symlink("../../../../../../etc", root.join("up")).unwrap();
            symlink("/proc/self/root", root.join("magic")).unwrap();
            symlink("nowhere", root.join("dangling")).unwrap();
            let opened = |path: &str| {
                let found = open_beneath_or_make(&fd, Path::new(path))?;
                anyhow::Ok(std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found)))?)
            };
            let root = root.canonicalize().unwrap();
            assert_eq!(opened("inside").unwrap(), root.join("real"));
            assert_eq!(opened("made/deep").unwrap(), root.join("made/deep"));
            assert_eq!(std::fs::metadata(root.join("made/deep")).unwrap().permissions().mode() & 0o7777, 0o777);
            for path in ["absolute", "up", "magic", "absolute/deep", "up/made", "dangling", "dangling/x", "../x", "/etc"] {
                assert!(opened(path).is_err(), "{path}");
            }
        });
    }

    #[test]
    fn a_folder_that_is_swapped_for_a_link_meanwhile_never_leads_out() {
        use std::os::fd::AsRawFd;
        use std::sync::atomic::{AtomicBool, Ordering};
        with_root(|root, fd| {
            std::fs::create_dir_all(root.join("a/made")).unwrap();
            symlink("/", root.join("link")).unwrap();
            let done = AtomicBool::new(false);
            let mut opened = 0;
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        // renameat2(2), RENAME_EXCHANGE: there is always something under the name.
                        let exchange = rustix::fs::RenameFlags::EXCHANGE;
                        rustix::fs::renameat_with(&fd, "a", &fd, "link", exchange).unwrap();
                    }
                });
                for _ in 0..20_000 {
                    if let Ok(found) = open_beneath_or_make(&fd, Path::new("a/made")) {
                        let path = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).unwrap();
                        opened += 1;
                        assert!(path.starts_with(root), "{}", path.display());
                    }
                }
                done.store(true, Ordering::Relaxed);
            });
            assert!(opened > 0 && !Path::new("/made").exists());
        });
    }

    #[test]
    fn a_link_is_refused_where_none_may_be() {
        with_root(|root, fd| {
            std::fs::create_dir(root.join("real")).unwrap();
            symlink("real", root.join("link")).unwrap();
            assert!(open_without_links(&fd, Path::new("/real")).is_ok());
            assert_eq!(open_without_links(&fd, Path::new("/link")).unwrap_err(), Errno::LOOP);
        });
    }
}
