//! Which descriptors a forked process goes on with.
//! It opens nothing and says nothing of what they refer to.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::process::close_range;

/// The first descriptor behind standard input, output and error.
const FIRST: i32 = 3;

/// Closes all but standard input, output, error and copies of `kept`, which come back in their order.
///
/// Only for a process just forked that never again uses, nor drops, anything that owned a descriptor before.
pub fn keep_only(kept: &[BorrowedFd]) -> io::Result<Vec<OwnedFd>> {
    let end = FIRST + kept.len() as i32;
    // First all of them out of the way of the places they are to have.
    let aside = kept.iter().map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, end)).collect::<Result<Vec<_>, _>>()?;
    let mut owned = Vec::with_capacity(kept.len());
    for (place, fd) in (FIRST..end).zip(&aside) {
        // SAFETY: dup3(2) takes integers only. What it closes at `place` belonged to an owner that by the rule above is used no more.
        if unsafe { libc::dup3(fd.as_raw_fd(), place, libc::O_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: dup3(2) has just made `place` a descriptor of ours; its former owner is used no more.
        owned.push(unsafe { OwnedFd::from_raw_fd(place) });
    }
    std::mem::forget(aside);
    close_range(end as u32, u32::MAX)?;
    Ok(owned)
}
