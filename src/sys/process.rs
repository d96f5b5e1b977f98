//! Processes: clone3(2), signals by pidfd, execution, and what a new program inherits.
//! It waits for nobody: waitid(2) and poll(2) are safe calls of `rustix`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Namespace and placement flags of clone(2), in the 64-bit form that clone3 takes.
pub mod clone {
    pub const NEWTIME: u64 = 0x80;
    pub const PARENT: u64 = 0x8000;
    pub const NEWNS: u64 = 0x2_0000;
    pub const NEWCGROUP: u64 = 0x200_0000;
    pub const NEWUTS: u64 = 0x400_0000;
    pub const NEWIPC: u64 = 0x800_0000;
    pub const NEWUSER: u64 = 0x1000_0000;
    pub const NEWPID: u64 = 0x2000_0000;
    pub const NEWNET: u64 = 0x4000_0000;
    pub(super) const PIDFD: u64 = 0x1000;
    pub(super) const INTO_CGROUP: u64 = 0x2_0000_0000;
}

/// Which side of clone3 one is on.
pub enum Fork {
    Parent(Child),
    Child,
}

/// A process just made. Dropping it neither kills nor reaps.
#[derive(Debug)]
pub struct Child {
    /// In the caller's PID namespace.
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// `struct clone_args` of linux/sched.h, up to `cgroup` (5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// clone3(2) as fork(2) with `flags` (of `clone`), the child born in the cgroup v2 folder `cgroup` if given (Linux 5.7).
///
/// Refuses to run in a process with several threads: the child would have one of them only, and any lock another held
/// (the allocator's first of all) would stay locked for ever.
pub fn clone3(flags: u64, cgroup: Option<BorrowedFd>) -> io::Result<Fork> {
    // unshare(2): this flag changes nothing for the only thread of a process, and is refused to one of several.
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_THREAD).is_err() {
        return Err(io::Error::other("clone from a process with several threads"));
    }
    let mut pidfd: i32 = -1;
    let args = CloneArgs {
        flags: flags | clone::PIDFD | if cgroup.is_some() { clone::INTO_CGROUP } else { 0 },
        pidfd: &raw mut pidfd as u64,
        // With CLONE_PARENT the kernel takes the exit signal from the caller and refuses another.
        exit_signal: if flags & clone::PARENT == 0 { libc::SIGCHLD as u64 } else { 0 },
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    // SAFETY: clone(2). Without CLONE_VM the child gets a copy of the address space and goes on on the same (copied) stack,
    // as stack = 0 asks; no CLONE_SETTLS, CLONE_FILES, CLONE_SIGHAND or CLONE_THREAD is among our flags. The only thread is the
    // caller (checked above), so all memory, locks included, is as consistent in the child as it is here. The kernel
    // reads `args` for its size and writes one int to `pidfd`, both live until after the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        // SAFETY: clone(2): with CLONE_PIDFD and success the kernel has stored a fresh descriptor, which nobody else owns.
        pid => Ok(Fork::Parent(Child { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })),
    }
}

/// pidfd_send_signal(2) with any signal number, real-time ones included.
pub fn pidfd_send_signal(pidfd: BorrowedFd, signal: i32) -> io::Result<()> {
    // SAFETY: pidfd_send_signal(2) with a null siginfo passes integers only.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0usize, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// close_range(2) of all descriptors from `first` to `last`, both included (Linux 5.9).
///
/// The caller must not use any `OwnedFd` of that range afterwards; that is why only a process about to execute or end calls it.
pub fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: close_range(2) takes integers only. A descriptor closed behind an `OwnedFd` is memory safe; the rule above keeps it
    // from being an I/O safety bug: nothing that owns one is used between here and execve.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets every signal back to its default and unblocks all, as a new program expects it: Rust's start code ignores SIGPIPE.
pub fn reset_signals() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: signal(2) with SIG_DFL installs no handler, so no code of ours can be entered. It fails (EINVAL) for SIGKILL,
        // SIGSTOP and those the C library keeps, which have their default already.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    nix::sys::signal::SigSet::empty().thread_set_mask().map_err(io::Error::from)
}

/// execveat(2) of an open program: the file behind `program`, whatever its name is by now. Returns only on failure.
pub fn exec_fd(program: BorrowedFd, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>();
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: execveat(2): the path is an empty C string as AT_EMPTY_PATH wants it; both vectors are null-terminated and point to
    // C strings that the caller's slices keep alive until the call has failed or this program is no more.
    unsafe {
        libc::syscall(libc::SYS_execveat, program.as_raw_fd(), c"".as_ptr(), arguments.as_ptr(), environment.as_ptr(), libc::AT_EMPTY_PATH)
    };
    io::Error::last_os_error()
}

/// keyctl(2) KEYCTL_JOIN_SESSION_KEYRING: a fresh anonymous session keyring, so that the container cannot read its creator's keys.
pub fn new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: keyctl_join_session_keyring(3): a null name asks for an anonymous keyring; no memory is touched.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0usize) };
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
