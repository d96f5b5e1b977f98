//! Keeps containers from overwriting this program (CVE-2019-5736): whoever runs inside a container's namespaces shows its program as
//! /proc/PID/exe, and a container may make us execute that. So the process that makes containers runs from a read-only mount of its
//! own program, which nobody can make writable: it is attached nowhere.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags};
use rustix::mount::OpenTreeFlags;

use crate::sys::mount::{Attributes, attribute, set_attributes};
use crate::sys::process;

const PROGRAM: &str = "/proc/self/exe";

/// Executes this program once more, from a read-only mount; returns when it already does run from one.
pub fn own_program() -> Result<()> {
    let own = rustix::fs::open(PROGRAM, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context("open the own program")?;
    if rustix::fs::fstatvfs(&own).context("look at the own program")?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let mount = program(Path::new(PROGRAM))?;
    let strings = |strings: Vec<OsString>| {
        strings.into_iter().map(|text| CString::new(text.into_vec()).expect("what the kernel gave us has no zero byte")).collect::<Vec<_>>()
    };
    let arguments = strings(std::env::args_os().collect());
    let environment = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    let environment = strings(environment.collect());
    Err(process::exec_fd(mount.as_fd(), &arguments, &environment)).context("execute the own program from a read-only mount")
}

/// A read-only mount of `program` that is attached nowhere; what is executed by the descriptor (as /proc/self/fd/N, too) runs from it.
pub fn program(program: &Path) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(CWD, program, flags).with_context(|| format!("make a mount of {}", program.display()))?;
    let readonly = Attributes { set: attribute::RDONLY, propagation: libc::MS_PRIVATE as u64, ..Attributes::default() };
    set_attributes(mount.as_fd(), &readonly, false).with_context(|| format!("make the mount of {} read-only", program.display()))?;
    Ok(mount)
}
