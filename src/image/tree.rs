//! Unpacks one layer into a folder that can be a lower layer of an overlay file system: whiteouts become what overlayfs understands.
//! It never follows a name out of that folder: every path is resolved by the kernel below the folder's descriptor, openat2(2).
//!
//! A folder that a layer only implies by a file in it gets mode 0755 and belongs to root, until `adopt` gives it what the layers
//! below have there: overlayfs shows the attributes of the topmost.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io::BufRead;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown,
    fsetxattr, fstat, ftruncate, futimens, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, openat2, renameat, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;

use super::archive::{Archive, Entry, Kind};
use super::digest::{Digest, Hashing};
use super::recipe::{self, Displaced};
use super::store::LayerRecord;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names of AUFS's own housekeeping (OCI image layer specification, "Whiteouts").
const RESERVED: &[u8] = b".wh..wh.";
/// Implied folders that are remembered; of more, the rest keeps what it was made with.
const IMPLIED_MAX: usize = 4096;
/// Folders kept open: neighbours in a tar mostly share one.
const OPEN_MAX: usize = 16;

/// Unpacks a plain tar into `tree` below `folder`, beside its recipe and record, and answers its digest: the layer's diffID.
/// The stream is read to its end.
/// Nothing is synced: that is for the caller to do once for all layers.
///
/// # Errors
/// Names the entry at fault. An entry that leads out of the layer is one; the folder is then to be thrown away.
pub fn unpack(source: impl BufRead, folder: &Path) -> Result<Digest> {
    let mut archive = Archive::new(Hashing::new(source), Some(recipe::Writer::create(&folder.join("recipe"))?));
    let mut tree = Tree::create(folder)?;
    while let Some(entry) = archive.next()? {
        tree.place(&mut archive, &entry).with_context(|| format!("unpack {:?}", String::from_utf8_lossy(&entry.path)))?;
    }
    tree.close_folders(0)?;
    let (recipe, source) = archive.finish();
    recipe.map_or(Ok(()), recipe::Writer::finish)?;
    let (diff_id, tar_bytes) = source.finish();
    let record = LayerRecord { tar_bytes, content_bytes: tree.content_bytes, displaced: tree.displaced, implied: tree.implied };
    let path = folder.join("layer.json");
    let json = serde_json::to_vec(&record).context("write the layer's record")?;
    fs::write(&path, json).with_context(|| format!("write {}", path.display()))?;
    Ok(diff_id)
}

/// Gives the implied folders of the layer unpacked in `tree` owner, mode and time of what lies below them: the topmost of `below` that
/// has a folder there. Doing it again changes nothing.
pub fn adopt(tree: &Path, implied: &BTreeSet<Vec<u8>>, below: &[PathBuf]) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |root: &Path, path: &[u8]| {
        let root = openat(CWD, root, flags, Mode::empty())?;
        openat2(&root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
    };
    for path in implied {
        let shown = || format!("{:?} of {}", String::from_utf8_lossy(path), tree.display());
        let lower = below.iter().map(|root| open(root, path)).find(|found| !matches!(found, Err(Errno::NOENT)));
        let lower = match lower {
            Some(Ok(lower)) => lower,
            // Nothing below, or something that this folder replaces.
            None | Some(Err(Errno::NOTDIR | Errno::LOOP)) => continue,
            Some(Err(error)) => return Err(error).with_context(|| format!("look below {}", shown())),
        };
        let folder = match open(tree, path) {
            Ok(folder) => folder,
            // A later entry of the layer put something else there.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => return Err(error).with_context(|| format!("open {}", shown())),
        };
        let stat = fstat(&lower).with_context(|| format!("look below {}", shown()))?;
        fchown(&folder, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
            .and_then(|()| fchmod(&folder, Mode::from_raw_mode(stat.st_mode & 0o7777)))
            .and_then(|()| futimens(&folder, &mtime_of(&stat)))
            .with_context(|| format!("set the attributes of {}", shown()))?;
    }
    Ok(())
}

fn mtime_of(stat: &Stat) -> Timestamps {
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
    Timestamps { last_access: time, last_modification: time }
}

struct Tree {
    root: OwnedFd,
    /// Where displaced things go, made when there is the first.
    attic: std::path::PathBuf,
    displaced: Vec<Displaced>,
    /// Folders without an entry of their own.
    implied: BTreeSet<Vec<u8>>,
    /// Open folders, the one used last at the end.
    folders: Vec<Folder>,
    content_bytes: u64,
}

struct Folder {
    path: Vec<u8>,
    fd: OwnedFd,
    /// Given to it when it is closed: making something in a folder changes its time.
    mtime: Timespec,
}

impl Tree {
    fn create(folder: &Path) -> Result<Self> {
        let path = folder.join("tree");
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        let root =
            openat(CWD, &path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).with_context(|| format!("open {}", path.display()))?;
        fchmod(&root, Mode::from_raw_mode(0o755)).context("set the mode of the root")?;
        Ok(Self {
            root,
            attic: folder.join("displaced"),
            displaced: Vec::new(),
            implied: BTreeSet::new(),
            folders: Vec::new(),
            content_bytes: 0,
        })
    }

    fn place<R: BufRead>(&mut self, archive: &mut Archive<R>, entry: &Entry) -> Result<()> {
        let path = clean(&entry.path)?;
        let Some((parent, name)) = split(&path) else {
            // The root itself.
            return match entry.kind {
                Kind::Directory => self.place_folder(b"", entry),
                _ => bail!("the root of a layer must be a folder"),
            };
        };
        let frames = archive.recipe().map_or(0, |recipe| recipe.frames());
        if name.starts_with(WHITEOUT) {
            return self.white_out(parent, name, frames);
        }
        match &entry.kind {
            Kind::Directory => {
                self.make_folder(parent, name, frames)?;
                self.place_folder(&path, entry)
            }
            Kind::File => self.place_file(archive, entry, &path, parent, name),
            Kind::HardLink(target) => {
                let target = clean(target).context("hard link")?;
                let (target_parent, target_name) = split(&target).context("a hard link to the root of the layer")?;
                // A descriptor of its own: opening the other parent may close this one.
                let from = self.folder(target_parent, frames)?.fd.try_clone().context("duplicate a descriptor")?;
                let shown = || format!("hard link to {:?}", String::from_utf8_lossy(&target));
                let is_folder = statat(&from, target_name, AtFlags::SYMLINK_NOFOLLOW)
                    .map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
                    .with_context(|| format!("{}: it is not in this layer", shown()))?;
                if is_folder {
                    bail!("{}: it is a folder", shown());
                }
                if target == path {
                    return Ok(());
                }
                self.make(parent, name, frames, &mut |folder| linkat(&from, target_name, folder, name, AtFlags::empty()))
                    .with_context(shown)
            }
            Kind::Symlink(target) => {
                self.make(parent, name, frames, &mut |folder| symlinkat(target.as_slice(), folder, name))?;
                self.attributes_at(parent, name, entry)
            }
            Kind::Fifo => self.place_node(parent, name, frames, FileType::Fifo, 0, entry),
            Kind::CharacterDevice(major, minor) => {
                self.place_node(parent, name, frames, FileType::CharacterDevice, makedev(*major, *minor), entry)
            }
            Kind::BlockDevice(major, minor) => self.place_node(parent, name, frames, FileType::BlockDevice, makedev(*major, *minor), entry),
        }
    }

    fn place_file<R: BufRead>(&mut self, archive: &mut Archive<R>, entry: &Entry, path: &[u8], parent: &[u8], name: &[u8]) -> Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let frames = archive.recipe().map_or(0, |recipe| recipe.frames());
        let mut opened = None;
        self.make(parent, name, frames, &mut |folder| {
            opened = Some(openat(folder, name, flags, Mode::from_raw_mode(0o600))?);
            Ok(())
        })?;
        let file = opened.context("the file was not opened")?;
        let whole = [(0, entry.size)];
        let segments = entry.sparse.as_ref().map_or(&whole[..], |sparse| &sparse.segments);
        for (offset, length) in segments.iter().filter(|(_, length)| *length > 0) {
            let mut at = *offset;
            archive.content(*length, &mut |mut piece| {
                while !piece.is_empty() {
                    let written = rustix::io::pwrite(&file, piece, at).context("write")?;
                    at += written as u64;
                    piece = &piece[written..];
                }
                Ok(())
            })?;
            if let Some(recipe) = archive.recipe() {
                recipe.content(path, *offset, *length)?;
            }
        }
        if let Some(sparse) = &entry.sparse {
            ftruncate(&file, sparse.file_bytes).context("set the length")?;
        }
        self.content_bytes += entry.size;
        attributes(&file, entry)
    }

    /// Attributes of a folder that is there. Its time is set when it is closed.
    fn place_folder(&mut self, path: &[u8], entry: &Entry) -> Result<()> {
        self.implied.remove(path);
        let folder = self.folder(path, 0)?;
        folder.mtime = timestamps(entry).last_modification;
        attributes(&folder.fd, entry)
    }

    fn place_node(&mut self, parent: &[u8], name: &[u8], frames: u64, kind: FileType, device: u64, entry: &Entry) -> Result<()> {
        self.make(parent, name, frames, &mut |folder| mknodat(folder, name, kind, Mode::from_raw_mode(0o600), device))?;
        self.attributes_at(parent, name, entry)
    }

    /// Attributes of what is not to be opened: symbolic links, devices, fifos.
    fn attributes_at(&mut self, parent: &[u8], name: &[u8], entry: &Entry) -> Result<()> {
        let folder = &self.folder(parent, 0)?.fd;
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).context("set the owner")?;
        if !matches!(entry.kind, Kind::Symlink(_)) {
            // Made by ourselves a moment ago in a folder that nobody else writes to: no link can stand here.
            chmodat(folder, name, Mode::from_raw_mode(entry.mode), AtFlags::empty()).context("set the mode")?;
        }
        for (attribute, value) in kept(entry) {
            // There is no lsetxattrat in older kernels: the way goes through the open folder.
            let path = [format!("/proc/self/fd/{}/", folder.as_raw_fd()).as_bytes(), name].concat();
            permit(lsetxattr(path, attribute.as_c_str(), value, XattrFlags::empty()), attribute)?;
        }
        utimensat(folder, name, &timestamps(entry), AtFlags::SYMLINK_NOFOLLOW).context("set the time")
    }

    /// `.wh.NAME` hides NAME of the layers below, `.wh..wh..opq` all that they have in this folder.
    fn white_out(&mut self, parent: &[u8], name: &[u8], frames: u64) -> Result<()> {
        if name == OPAQUE {
            return make_opaque(&self.folder(parent, frames)?.fd);
        }
        if name.starts_with(RESERVED) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            bail!("a whiteout of {:?} leaves the layer", String::from_utf8_lossy(hidden));
        }
        // Below a link or a file of this layer nothing shines through anyway; some tools write such whiteouts.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        if !parent.is_empty()
            && let Err(Errno::LOOP | Errno::NOTDIR) =
                openat2(&self.root, parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)
        {
            return Ok(());
        }
        let folder = &self.folder(parent, frames)?.fd;
        match mknodat(folder, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
            // The layer itself has something there, which stays; of a folder, what lies below it must not shine through.
            Err(Errno::EXIST) => match openat(folder, hidden, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
                Ok(folder) => make_opaque(&folder),
                Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
                Err(error) => Err(error).context("open the folder"),
            },
            other => other.context("make a whiteout"),
        }
    }

    /// Makes something at a name; what the layer had there before gives way.
    fn make(&mut self, parent: &[u8], name: &[u8], frames: u64, make: &mut dyn FnMut(&OwnedFd) -> rustix::io::Result<()>) -> Result<()> {
        match make(&self.folder(parent, frames)?.fd) {
            Err(Errno::EXIST) => {
                self.displace(parent, name, frames)?;
                make(&self.folder(parent, frames)?.fd).context("make it")
            }
            other => other.context("make it"),
        }
    }

    /// Makes a folder unless it is there. In the place of a whiteout it becomes opaque: the layers below must not shine through.
    fn make_folder(&mut self, parent: &[u8], name: &[u8], frames: u64) -> Result<()> {
        let folder = &self.folder(parent, frames)?.fd;
        let mode = Mode::from_raw_mode(0o755);
        match mkdirat(folder, name, mode) {
            Err(Errno::EXIST) => {}
            other => return other.context("make the folder"),
        }
        let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).context("look at it")?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            return Ok(());
        }
        self.displace(parent, name, frames)?;
        let folder = &self.folder(parent, frames)?.fd;
        mkdirat(folder, name, mode).context("make the folder")?;
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            make_opaque(&openat(folder, name, flags, Mode::empty()).context("open the folder")?)?;
        }
        Ok(())
    }

    /// Takes away what an entry of the same layer is to replace. Content that the recipe names is kept aside.
    fn displace(&mut self, parent: &[u8], name: &[u8], frames: u64) -> Result<()> {
        let folder = self.folder(parent, frames)?.fd.try_clone().context("duplicate a descriptor")?;
        let stat = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).context("look at what is there")?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Directory) {
            return unlinkat(&folder, name, AtFlags::empty()).context("replace what is there");
        }
        if self.displaced.is_empty() {
            fs::create_dir(&self.attic).with_context(|| format!("make {}", self.attic.display()))?;
        }
        let number = self.displaced.len() as u64;
        renameat(folder, name, CWD, self.attic.join(number.to_string())).context("replace what is there")?;
        let path = if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() };
        self.displaced.push(Displaced { path, number, frames });
        // Open folders may be the one that moved or lie below it.
        if kind == FileType::Directory { self.close_folders(0) } else { Ok(()) }
    }

    /// The open folder at a clean path; what is missing of it is made.
    fn folder(&mut self, path: &[u8], frames: u64) -> Result<&mut Folder> {
        if let Some(at) = self.folders.iter().rposition(|folder| folder.path == path) {
            let last = self.folders.len() - 1;
            self.folders[at..].rotate_left(1);
            return Ok(&mut self.folders[last]);
        }
        let fd = match self.open_folder(path) {
            Err(Errno::NOENT | Errno::NOTDIR) if !path.is_empty() => {
                let (parent, name) = split(path).context("the root of the layer is gone")?;
                self.folder(parent, frames)?;
                if let Ok(stat) = statat(&self.folder(parent, frames)?.fd, name, AtFlags::SYMLINK_NOFOLLOW)
                    && FileType::from_raw_mode(stat.st_mode) == FileType::Symlink
                {
                    bail!("{:?} is a symbolic link that leads to no folder of this layer", String::from_utf8_lossy(path));
                }
                self.make_folder(parent, name, frames)?;
                if self.implied.len() < IMPLIED_MAX {
                    self.implied.insert(path.to_vec());
                }
                self.open_folder(path)
            }
            other => other,
        };
        let fd = match fd {
            Err(Errno::XDEV | Errno::LOOP) => bail!("{:?} leads out of the layer by a symbolic link", String::from_utf8_lossy(path)),
            other => other.with_context(|| format!("open the folder {:?}", String::from_utf8_lossy(path)))?,
        };
        let stat = fstat(&fd).context("look at the folder")?;
        let mtime = mtime_of(&stat).last_modification;
        self.close_folders(OPEN_MAX - 1)?;
        self.folders.push(Folder { path: path.to_vec(), fd, mtime });
        let last = self.folders.len() - 1;
        Ok(&mut self.folders[last])
    }

    fn open_folder(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Closes all but the `keep` folders used last, giving each the time it is to have.
    fn close_folders(&mut self, keep: usize) -> Result<()> {
        let surplus = self.folders.len().saturating_sub(keep);
        for folder in self.folders.drain(..surplus) {
            let times = Timestamps { last_access: folder.mtime, last_modification: folder.mtime };
            futimens(&folder.fd, &times).context("set the time of a folder")?;
        }
        Ok(())
    }
}

/// A path without empty and `.` components, relative to the root of the layer. Absolute names are meant so by those who write them.
fn clean(path: &[u8]) -> Result<Vec<u8>> {
    let mut clean = Vec::with_capacity(path.len());
    for component in path.split(|b| *b == b'/').filter(|component| !matches!(*component, b"" | b".")) {
        if component == b".." {
            bail!("{:?} leads out of the layer by \"..\"", String::from_utf8_lossy(path));
        }
        if component.contains(&0) {
            bail!("{:?} holds a NUL byte", String::from_utf8_lossy(path));
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(component);
    }
    Ok(clean)
}

/// Parent and last component of a clean path; `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => Some((&path[..at], &path[at + 1..])),
        None => (!path.is_empty()).then_some((&[], path)),
    }
}

/// Owner first: chown(2) takes setuid bits and capabilities away. Then the mode, which would change an access list set before it.
fn attributes(fd: &OwnedFd, entry: &Entry) -> Result<()> {
    fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid))).context("set the owner")?;
    fchmod(fd, Mode::from_raw_mode(entry.mode)).context("set the mode")?;
    for (name, value) in kept(entry) {
        permit(fsetxattr(fd, name.as_c_str(), value, XattrFlags::empty()), name)?;
    }
    if entry.kind == Kind::Directory { Ok(()) } else { futimens(fd, &timestamps(entry)).context("set the time") }
}

/// Extended attributes that a layer may set. `trusted.` and `user.overlay.` would give orders to overlayfs, labels belong to the host.
fn kept(entry: &Entry) -> impl Iterator<Item = &(CString, Vec<u8>)> {
    entry.xattrs.iter().filter(|(name, _)| {
        let name = name.to_bytes();
        name == b"security.capability"
            || name.starts_with(b"system.posix_acl_")
            || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
    })
}

/// A file system that has no such attributes is no reason to refuse an image, unless a program would lack its capabilities.
fn permit(result: rustix::io::Result<()>, name: &CString) -> Result<()> {
    match result {
        Err(Errno::OPNOTSUPP | Errno::PERM) if name.to_bytes() != b"security.capability" => Ok(()),
        other => other.with_context(|| format!("set the extended attribute {name:?}")),
    }
}

fn make_opaque(folder: impl AsFd) -> Result<()> {
    fsetxattr(folder, c"trusted.overlay.opaque", b"y", XattrFlags::empty()).context("make the folder opaque")
}

fn timestamps(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime.0, tv_nsec: entry.mtime.1 as _ };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests;
