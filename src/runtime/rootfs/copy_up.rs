//! `tmpcopyup`: a new tmpfs starts with a copy of the folder that it is about to hide. Works on descriptors only and follows no link.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use crate::runtime::path;

/// Deeper trees are refused; each level holds two descriptors.
const DEPTH_MAX: usize = 64;

/// Copies what is in `from` (a folder, O_PATH will do) into `to`, with owners and modes. The umask must be zero.
pub fn copy(from: BorrowedFd, to: BorrowedFd) -> Result<()> {
    let source = open(from, Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY)?;
    let stat = rustix::fs::fstat(&source)?;
    let root = open(to, Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY)?;
    rustix::fs::fchmod(&root, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    rustix::fs::fchown(&root, Some(rustix::fs::Uid::from_raw(stat.st_uid)), Some(rustix::fs::Gid::from_raw(stat.st_gid)))?;
    folder(source.as_fd(), root.as_fd(), DEPTH_MAX)
}

fn folder(from: BorrowedFd, to: BorrowedFd, depth: usize) -> Result<()> {
    if depth == 0 {
        bail!("more than {DEPTH_MAX} folders deep");
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        one(from, to, Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name.to_bytes())), depth)
            .with_context(|| format!("copy {}", name.to_string_lossy()))?;
    }
    Ok(())
}

fn one(from: BorrowedFd, to: BorrowedFd, name: &Path, depth: usize) -> Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, mode)?;
            let (source, target) =
                (open(from, name, OFlags::RDONLY | OFlags::DIRECTORY)?, open(to, name, OFlags::RDONLY | OFlags::DIRECTORY)?);
            folder(source.as_fd(), target.as_fd(), depth - 1)?;
        }
        FileType::RegularFile => {
            let mut source = File::from(open(from, name, OFlags::RDONLY)?);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut target = File::from(rustix::fs::openat(to, name, flags, mode)?);
            std::io::copy(&mut source, &mut target)?;
        }
        FileType::Symlink => rustix::fs::symlinkat(rustix::fs::readlinkat(from, name, Vec::new())?, to, name)?,
        kind => rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?,
    }
    keep_owner(to, name, &stat)
}

fn keep_owner(folder: BorrowedFd, name: &Path, stat: &Stat) -> Result<()> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // A change of owner takes set-user-ID away.
        rustix::fs::chmodat(folder, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    }
    Ok(())
}

fn open(folder: BorrowedFd, name: &Path, flags: OFlags) -> Result<std::os::fd::OwnedFd> {
    use rustix::fs::ResolveFlags;
    Ok(path::open_with(folder, name, flags | OFlags::NOFOLLOW, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?)
}
