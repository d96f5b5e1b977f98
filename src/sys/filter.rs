//! Programs the kernel runs for us: seccomp filters and the cgroup device program.
//! It builds none of them; `runtime::seccomp` and `runtime::cgroup` do.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One classic BPF instruction, `struct sock_filter` of linux/filter.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub k: u32,
}

/// One eBPF instruction, `struct bpf_insn` of linux/bpf.h. `registers` holds the source in its upper half.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedInstruction {
    pub code: u8,
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

/// seccomp(2) SECCOMP_SET_MODE_FILTER with SECCOMP_FILTER_FLAG_* `flags`; with the flag NEW_LISTENER the notification descriptor comes back.
/// Needs no_new_privs or CAP_SYS_ADMIN. At most 4096 instructions (BPF_MAXINSNS).
pub fn install_seccomp(program: &[Instruction], flags: u32) -> io::Result<Option<OwnedFd>> {
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: *const Instruction,
    }
    const SET_MODE_FILTER: u32 = 1;
    const NEW_LISTENER: u32 = 1 << 3;
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let fprog = Program { length, instructions: program.as_ptr() };
    // SAFETY: seccomp(2): `fprog` has the layout of struct sock_fprog and points to `length` live instructions, which the kernel copies
    // and verifies. What the filter then forbids can make later calls fail but cannot touch memory.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const fprog) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: seccomp(2): with NEW_LISTENER a success returns a fresh descriptor that nobody else owns.
        fd if flags & NEW_LISTENER != 0 => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) })),
        _ => Ok(None),
    }
}

/// bpf(2) BPF_PROG_LOAD of a BPF_PROG_TYPE_CGROUP_DEVICE program (Linux 4.15). The kernel's verifier has the last word on it.
pub fn load_device_program(program: &[ExtendedInstruction]) -> io::Result<OwnedFd> {
    /// The start of `union bpf_attr` for BPF_PROG_LOAD; what follows in it may be left out.
    #[repr(C)]
    struct Load {
        program_type: u32,
        count: u32,
        instructions: u64,
        license: u64,
    }
    const PROG_LOAD: i32 = 5;
    const CGROUP_DEVICE: u32 = 15;
    let load = Load {
        program_type: CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
    };
    // SAFETY: bpf(2): the kernel reads `load` for its size, `count` instructions and a C string, all live during the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    // SAFETY: bpf(2): a non-negative result of BPF_PROG_LOAD is a fresh descriptor that nobody else owns.
    if fd >= 0 { Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }) } else { Err(io::Error::last_os_error()) }
}

/// bpf(2) BPF_PROG_ATTACH of a device program to a cgroup v2 folder, beside those of its ancestors (BPF_F_ALLOW_MULTI).
pub fn attach_device_program(cgroup: BorrowedFd, program: BorrowedFd) -> io::Result<()> {
    #[repr(C)]
    struct Attach {
        target: i32,
        program: i32,
        attach_type: u32,
        flags: u32,
    }
    const PROG_ATTACH: i32 = 8;
    const CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    let attach = Attach { target: cgroup.as_raw_fd(), program: program.as_raw_fd(), attach_type: CGROUP_DEVICE, flags: ALLOW_MULTI };
    // SAFETY: bpf(2): the kernel reads `attach` for its size; it holds integers only.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attach, size_of::<Attach>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
