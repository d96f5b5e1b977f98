//! mount_setattr(2), the one mount call that `rustix` lacks.
//! It resolves no path: the mount is always given by a descriptor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// MOUNT_ATTR_* of linux/mount.h.
pub mod attribute {
    pub const RDONLY: u64 = 0x1;
    pub const NOSUID: u64 = 0x2;
    pub const NODEV: u64 = 0x4;
    pub const NOEXEC: u64 = 0x8;
    /// The mask of the access time modes; RELATIME is zero in it.
    pub const ATIME: u64 = 0x70;
    pub const NOATIME: u64 = 0x10;
    pub const STRICTATIME: u64 = 0x20;
    pub const NODIRATIME: u64 = 0x80;
    pub const IDMAP: u64 = 0x10_0000;
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
#[derive(Default)]
pub struct Attributes {
    /// Of `attribute`: what to add.
    pub set: u64,
    /// Of `attribute`: what to take away, before `set`.
    pub clear: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE; zero leaves it.
    pub propagation: u64,
    /// A user namespace for IDMAP.
    pub userns_fd: u64,
}

/// mount_setattr(2) (Linux 5.12) on the mount that `mount` refers to, and with `recursive` on all below it.
pub fn set_attributes(mount: BorrowedFd, attributes: &Attributes, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: mount_setattr(2): an empty C string path with AT_EMPTY_PATH, and a structure that is live and read for its own size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<Attributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
