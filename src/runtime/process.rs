//! From a process inside its namespaces to the program it is to become: limits, user, capabilities, filter, execution.
//! Prepared by the creator, so that what can be wrong in a config.json is found before anything is made.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{Access, AtFlags, CWD, Mode};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::capability::{self, Sets};
use super::container::Stdio;
use super::seccomp::Filter;
use super::spec::{ConsoleSize, Process, Seccomp};
use super::{channel, rootfs};
use crate::sys::{filter, process};

/// A process that is ready to be made.
pub struct Prepared {
    arguments: Vec<CString>,
    environment: Vec<CString>,
    /// PATH of the environment.
    search: Option<String>,
    cwd: String,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    umask: u32,
    capabilities: Sets,
    limits: Vec<(Resource, Rlimit)>,
    no_new_privileges: bool,
    apparmor_profile: String,
    selinux_label: String,
    console_size: Option<ConsoleSize>,
    filter: Option<Filter>,
    seccomp_listener: Option<OwnedFd>,
}

impl Prepared {
    pub fn new(process: &Process, seccomp: Option<&Seccomp>) -> Result<Self> {
        process.check()?;
        let c_strings = |strings: &[String]| -> Result<Vec<CString>> {
            strings.iter().map(|text| CString::new(text.as_str()).with_context(|| format!("a zero byte in {text:?}"))).collect()
        };
        let filter = seccomp.map(|seccomp| Filter::new(seccomp, process)).transpose().context("make the seccomp filter")?.flatten();
        let seccomp_listener = match seccomp {
            Some(seccomp) if !seccomp.listener_path.is_empty() => {
                Some(connect(Path::new(&seccomp.listener_path)).context("connect to the seccomp agent")?)
            }
            _ => None,
        };
        Ok(Self {
            arguments: c_strings(&process.args)?,
            environment: c_strings(&process.env)?,
            search: process.env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=").map(Into::into)),
            cwd: process.cwd.clone(),
            uid: process.user.uid,
            gid: process.user.gid,
            groups: process.user.additional_gids.clone(),
            umask: process.user.umask.unwrap_or(0o022) & 0o777,
            capabilities: process.capabilities.as_ref().map(Sets::parse).transpose()?.unwrap_or_default(),
            limits: process
                .rlimits
                .iter()
                .map(|limit| Ok((resource(&limit.kind)?, rlimit(limit.soft, limit.hard))))
                .collect::<Result<_>>()?,
            no_new_privileges: process.no_new_privileges,
            apparmor_profile: process.apparmor_profile.clone(),
            selinux_label: process.selinux_label.clone(),
            console_size: process.console_size,
            filter,
            seccomp_listener,
        })
    }

    /// Resource limits, and the labels that hold from the next execution. With all privileges still there.
    pub fn limit(&self) -> Result<()> {
        for (resource, limit) in &self.limits {
            rustix::process::setrlimit(*resource, *limit).with_context(|| format!("set limit {resource:?}"))?;
        }
        if self.apparmor_profile.is_empty() && self.selinux_label.is_empty() {
            return Ok(());
        }
        let proc = rootfs::private_proc()?;
        let label = |file: &str, value: &str| -> Result<()> {
            let mut file = rootfs::open_file_below(&proc, &Path::new(&format!("{}", std::process::id())).join(file))?;
            Ok(file.write_all(value.as_bytes())?)
        };
        if !self.apparmor_profile.is_empty() {
            let value = format!("exec {}", self.apparmor_profile);
            // Its own file since Linux 5.8, before the one shared by all security modules.
            label("attr/apparmor/exec", &value)
                .or_else(|_| label("attr/exec", &value))
                .with_context(|| format!("set AppArmor profile {}", self.apparmor_profile))?;
        }
        if !self.selinux_label.is_empty() {
            label("attr/exec", &self.selinux_label).with_context(|| format!("set SELinux label {}", self.selinux_label))?;
        }
        Ok(())
    }

    /// Puts the process's three standard descriptors in place; a terminal (`console`: master and slave) becomes its controlling one.
    pub fn connect(&self, stdio: Stdio, console: Option<(OwnedFd, OwnedFd)>) -> Result<()> {
        match (stdio, console) {
            (Stdio::Console(socket), Some((master, slave))) => {
                if let Some(ConsoleSize { height, width }) = self.console_size {
                    let size = rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
                    rustix::termios::tcsetwinsize(&master, size).context("set the terminal's size")?;
                }
                let name = rustix::pty::ptsname(&master, Vec::new())?;
                channel::send_descriptor(&socket, master.as_fd(), name.as_bytes()).context("send the terminal")?;
                rustix::process::ioctl_tiocsctty(&slave).context("take the terminal")?;
                duplicate([slave.as_fd(), slave.as_fd(), slave.as_fd()])?;
            }
            (Stdio::Fds(fds), None) => duplicate([fds[0].as_fd(), fds[1].as_fd(), fds[2].as_fd()])?,
            (Stdio::Inherit, None) => {}
            (Stdio::Console(_), None) => bail!("a console socket, but process.terminal is not set"),
            (_, Some(_)) => bail!("process.terminal is set, but there is no console socket"),
        }
        self.own_stdio()
    }

    /// So that the user can open /dev/stdout again by its name. Sockets, and files the user may not be given, stay as they are.
    fn own_stdio(&self) -> Result<()> {
        if self.uid == 0 {
            return Ok(());
        }
        for fd in [std::io::stdin().as_fd(), std::io::stdout().as_fd(), std::io::stderr().as_fd()] {
            let Ok(stat) = rustix::fs::fstat(fd) else { continue };
            // /dev/null is everybody's.
            if stat.st_uid == self.uid || stat.st_rdev == rustix::fs::makedev(1, 3) {
                continue;
            }
            match rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(self.uid)), None) {
                Err(Errno::PERM | Errno::INVAL | Errno::ROFS) => {}
                other => other.context("give the standard descriptors to the user")?,
            }
        }
        Ok(())
    }

    /// Gives up everything but what the program shall have, except what its seccomp filter needs. Gives the program's path.
    ///
    /// From here no descriptor of the host's may be open but those of `keep` and `0..first_closed` (CVE-2024-21626).
    pub fn become_user(&mut self, first_closed: u32, keep: &[&OwnedFd]) -> Result<String> {
        let mut keep: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).collect();
        keep.extend(self.seccomp_listener.as_ref().map(|fd| fd.as_raw_fd() as u32));
        close_others(first_closed, keep)?;
        rustix::process::umask(Mode::from_raw_mode(self.umask));
        let arrived = rustix::process::chdir(self.cwd.as_str());
        let available = rustix::thread::capabilities(None).context("read capabilities")?.permitted;
        let wanted = self.capabilities.limited_to(available);
        drop_bounding(self.capabilities.bounding)?;
        rustix::thread::set_keep_capabilities(true).context("keep capabilities")?;
        let groups: Vec<_> = self.groups.iter().map(|gid| rustix::process::Gid::from_raw(*gid)).collect();
        rustix::thread::set_thread_groups(&groups).context("set groups")?;
        let gid = rustix::process::Gid::from_raw(self.gid);
        rustix::thread::set_thread_res_gid(gid, gid, gid).with_context(|| format!("become group {}", self.gid))?;
        let uid = rustix::process::Uid::from_raw(self.uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid).with_context(|| format!("become user {}", self.uid))?;
        let filter_needs = if self.filter.is_some() && !self.no_new_privileges { CapabilitySet::SYS_ADMIN } else { CapabilitySet::empty() };
        set_capabilities(&wanted, filter_needs & available)?;
        for number in (0..capability::NAMES.len()).filter(|number| wanted.ambient.contains(capability::bit(*number))) {
            rustix::thread::configure_capability_in_ambient_set(capability::bit(number), true).context("set ambient capabilities")?;
        }
        self.capabilities = wanted;
        if self.no_new_privileges {
            rustix::thread::set_no_new_privs(true).context("set no_new_privs")?;
        }
        if arrived.is_err() {
            // A folder on a network file system may be open to the user only.
            rustix::process::chdir(self.cwd.as_str()).with_context(|| format!("go to {}", self.cwd))?;
        }
        // A folder outside the root has no path inside it: the kernel says "(unreachable)".
        let cwd = rustix::process::getcwd(Vec::new()).context("find the working directory")?;
        if !cwd.as_bytes().starts_with(b"/") {
            bail!("the working directory {} is outside the container", self.cwd);
        }
        if !self.environment.iter().any(|entry| entry.as_bytes().starts_with(b"HOME=")) {
            self.environment.push(CString::new(format!("HOME={}", home(self.uid))).expect("a line of passwd has no zero byte"));
        }
        self.find()
    }

    /// Executes. Returns only if that failed.
    pub fn execute(&self, program: &str) -> anyhow::Error {
        let execute = || -> Result<()> {
            let path = CString::new(program).context("a zero byte in the path")?;
            process::reset_signals().context("reset signals")?;
            if let Some(filter) = &self.filter {
                let listener = filter::install_seccomp(filter.program(), filter.flags()).context("install the seccomp filter")?;
                if let (Some(listener), Some(agent)) = (listener, &self.seccomp_listener) {
                    channel::send_descriptor(agent, listener.as_fd(), filter.metadata()).context("send the seccomp listener")?;
                }
                if !self.no_new_privileges {
                    set_capabilities(&self.capabilities, CapabilitySet::empty())?;
                }
            }
            nix::unistd::execve(&path, &self.arguments, &self.environment)?;
            Ok(())
        };
        let error = execute().expect_err("execve returns only when it failed");
        error.context(format!("exec {program:?}"))
    }

    /// The program's path, looked up in PATH as the user that it will run as.
    fn find(&self) -> Result<String> {
        let name = self.arguments[0].to_str().context("the program's name is not UTF-8")?;
        let check = |path: &str| -> rustix::io::Result<()> {
            if fs::metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
                return Err(Errno::ISDIR);
            }
            rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
        };
        if name.contains('/') {
            check(name).with_context(|| format!("exec {name:?}"))?;
            return Ok(name.into());
        }
        let mut worst = anyhow!("executable file not found in $PATH");
        for folder in self.search.as_deref().unwrap_or_default().split(':') {
            let path = format!("{}/{name}", if folder.is_empty() { "." } else { folder });
            match check(&path) {
                Ok(()) => return Ok(path),
                Err(Errno::ACCESS) => worst = Errno::ACCESS.into(),
                Err(_) => {}
            }
        }
        Err(worst.context(format!("exec {name:?}")))
    }
}

/// Connects to a stream socket at a path of any length.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let named = || format!("connect to {}", path.display());
    // A socket address holds 108 bytes; through its folder's descriptor any path fits.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = rustix::fs::open(parent, rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, Mode::empty()).with_context(named)?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(path.file_name().with_context(named)?);
    Ok(std::os::unix::net::UnixStream::connect(short).with_context(named)?.into())
}

fn duplicate(fds: [std::os::fd::BorrowedFd; 3]) -> Result<()> {
    nix::unistd::dup2_stdin(fds[0])
        .and_then(|()| nix::unistd::dup2_stdout(fds[1]))
        .and_then(|()| nix::unistd::dup2_stderr(fds[2]))
        .context("put the standard descriptors in place")
}

/// Closes every descriptor from `first` on, except `keep`.
fn close_others(first: u32, mut keep: Vec<u32>) -> Result<()> {
    keep.retain(|fd| *fd >= first);
    keep.sort_unstable();
    let mut from = first;
    for fd in keep {
        if fd > from {
            process::close_range(from, fd - 1).context("close descriptors")?;
        }
        from = fd + 1;
    }
    process::close_range(from, u32::MAX).context("close descriptors")
}

fn drop_bounding(keep: CapabilitySet) -> Result<()> {
    for number in 0..u64::BITS as usize {
        let capability = capability::bit(number);
        if keep.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // Past the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            other => other.context("drop capabilities from the bounding set")?,
        }
    }
    Ok(())
}

fn set_capabilities(sets: &Sets, more: CapabilitySet) -> Result<()> {
    let sets = CapabilitySets { effective: sets.effective | more, permitted: sets.permitted | more, inheritable: sets.inheritable };
    rustix::thread::set_capabilities(None, sets).context("set capabilities")
}

/// The home folder that the container's own /etc/passwd says, as login programs would set it.
fn home(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let uid = uid.to_string();
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(uid.as_str()));
    line.and_then(|line| line.split(':').nth(5)).filter(|home| !home.is_empty() && !home.contains('\0')).unwrap_or("/").into()
}

fn rlimit(soft: u64, hard: u64) -> Rlimit {
    let finite = |value: u64| (value != u64::MAX).then_some(value);
    Rlimit { current: finite(soft), maximum: finite(hard) }
}

fn resource(name: &str) -> Result<Resource> {
    Ok(match name {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        other => bail!("unknown limit {other:?}"),
    })
}
