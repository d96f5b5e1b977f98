//! `edgectl runtime …`, also under the name `edge-runtime`: the command line that runc and crun share, so that podman, containerd and
//! the public test suites can drive our containers. It parses, calls `container`, and prints.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::container::{self, Container, CreateOptions, StartBy, Status, Stdio};
use super::seal;
use super::spec::{self, Capabilities, Process, Resources, Spec};
use crate::base::time::Timestamp;

mod flag;
mod foreground;
mod report;

use flag::{Flag, Given};

/// Where containers are remembered unless `--root` says otherwise.
const ROOT: &str = "/run/edge-runtime";

/// How runc and crun end when they fail themselves.
const FAILED: u8 = 1;

const GLOBAL: &[Flag] = &[
    Flag::value("root", None),
    Flag::value("log", None),
    Flag::value("log-format", None),
    Flag::value("log-level", None),
    Flag::value("cgroup-manager", None),
    Flag::value("rootless", None),
    Flag::value("criu", None),
    Flag::switch("debug", None),
    Flag::switch("systemd-cgroup", None),
    Flag::switch("help", Some('h')),
    Flag::switch("version", Some('v')),
];

const CREATE: &[Flag] = &[
    Flag::value("bundle", Some('b')),
    Flag::value("config", Some('f')),
    Flag::value("console-socket", None),
    Flag::value("pid-file", None),
    Flag::value("preserve-fds", None),
    Flag::switch("no-pivot", None),
    Flag::switch("no-new-keyring", None),
    Flag::switch("no-subreaper", None),
    Flag::switch("keep", None),
    Flag::switch("detach", Some('d')),
];

const EXEC: &[Flag] = &[
    Flag::value("process", Some('p')),
    Flag::value("console-socket", None),
    Flag::value("pid-file", None),
    Flag::value("preserve-fds", None),
    Flag::value("cwd", None),
    Flag::value("env", Some('e')),
    Flag::value("user", Some('u')),
    Flag::value("additional-gids", Some('g')),
    Flag::value("cap", Some('c')),
    Flag::value("process-label", None),
    Flag::value("apparmor", None),
    Flag::value("cgroup", None),
    Flag::switch("no-new-privs", None),
    Flag::switch("tty", Some('t')),
    Flag::switch("detach", Some('d')),
    Flag::switch("ignore-paused", None),
];

const UPDATE: &[Flag] = &[
    Flag::value("resources", Some('r')),
    Flag::value("memory", None),
    Flag::value("memory-reservation", None),
    Flag::value("memory-swap", None),
    Flag::value("cpu-share", None),
    Flag::value("cpu-quota", None),
    Flag::value("cpu-period", None),
    Flag::value("cpu-burst", None),
    Flag::value("cpuset-cpus", None),
    Flag::value("cpuset-mems", None),
    Flag::value("pids-limit", None),
    Flag::value("blkio-weight", None),
];

const FORCE: &[Flag] = &[Flag::switch("force", Some('f'))];
const ALL: &[Flag] = &[Flag::switch("all", Some('a'))];
const LIST: &[Flag] = &[Flag::value("format", Some('f')), Flag::switch("quiet", Some('q'))];
const PS: &[Flag] = &[Flag::value("format", Some('f'))];
const SPEC: &[Flag] = &[Flag::value("bundle", Some('b')), Flag::switch("rootless", None)];

struct Verb {
    name: &'static str,
    usage: &'static str,
    flags: &'static [Flag],
    run: fn(&Command) -> Result<u8>,
}

const VERBS: &[Verb] = &[
    Verb { name: "create", usage: "create [flags] ID", flags: CREATE, run: create },
    Verb { name: "start", usage: "start ID", flags: &[], run: start },
    Verb { name: "run", usage: "run [flags] ID", flags: CREATE, run },
    Verb { name: "exec", usage: "exec [flags] ID COMMAND [ARGS]", flags: EXEC, run: exec },
    Verb { name: "state", usage: "state ID", flags: &[], run: state },
    Verb { name: "kill", usage: "kill [--all] ID [SIGNAL]", flags: ALL, run: kill },
    Verb { name: "delete", usage: "delete [--force] ID", flags: FORCE, run: delete },
    Verb { name: "list", usage: "list [--format table|json] [--quiet]", flags: LIST, run: list },
    Verb { name: "ps", usage: "ps [--format table|json] ID [PS OPTIONS]", flags: PS, run: ps },
    Verb { name: "pause", usage: "pause ID", flags: &[], run: |command| container(command)?.pause().map(|()| 0) },
    Verb { name: "resume", usage: "resume ID", flags: &[], run: |command| container(command)?.resume().map(|()| 0) },
    Verb { name: "update", usage: "update [flags] ID", flags: UPDATE, run: update },
    Verb { name: "features", usage: "features", flags: &[], run: |_| print(&report::features()).map(|()| 0) },
    Verb { name: "spec", usage: "spec [--bundle DIR]", flags: SPEC, run: write_spec },
];

/// One invocation, taken apart.
struct Command {
    root: PathBuf,
    flags: Given,
    positionals: Vec<String>,
}

/// The words behind the program's name if they are for us.
pub fn words(mut arguments: impl Iterator<Item = OsString>) -> Option<Vec<String>> {
    let program = arguments.next()?;
    let ours = Path::new(&program).file_name().is_some_and(|name| name == "edge-runtime");
    let mut words: Vec<String> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
    if !ours {
        if words.first().is_none_or(|word| word != "runtime") {
            return None;
        }
        words.remove(0);
    }
    Some(words)
}

/// Runs one command; gives the exit code.
pub fn main(words: &[String]) -> u8 {
    let (global, rest) = match flag::split(words, GLOBAL) {
        Ok(split) => split,
        Err(error) => return fail(&Given::default(), &error),
    };
    match run_verb(&global, rest) {
        Ok(code) => code,
        Err(error) => fail(&global, &error),
    }
}

fn run_verb(global: &Given, rest: &[String]) -> Result<u8> {
    if global.has("version") {
        print(&format!("edge-runtime version {}\nspec: {}", env!("CARGO_PKG_VERSION"), spec::VERSION))?;
        return Ok(0);
    }
    let named = rest.first().filter(|_| !global.has("help"));
    let Some(name) = named.filter(|name| *name != "help") else {
        print(&usage())?;
        return Ok(if global.has("help") || named.is_some() { 0 } else { FAILED });
    };
    if global.has("systemd-cgroup") || global.value("cgroup-manager") == Some("systemd") {
        bail!("cgroups by systemd are not supported: use the cgroupfs manager");
    }
    let verb = VERBS.iter().find(|verb| verb.name == name).with_context(|| format!("unknown command {name:?}: see edge-runtime --help"))?;
    let (flags, positionals) = flag::split(&rest[1..], verb.flags).with_context(|| format!("usage: edge-runtime {}", verb.usage))?;
    let command = Command {
        root: std::path::absolute(global.value("root").unwrap_or(ROOT)).context("find --root")?,
        flags,
        positionals: positionals.to_vec(),
    };
    (verb.run)(&command)
}

fn usage() -> String {
    let verbs: Vec<_> =
        VERBS.iter().map(|verb| format!("  edge-runtime [--root DIR] [--log FILE] [--log-format text|json] {}", verb.usage)).collect();
    format!("Containers by the OCI runtime specification.\n\nUsage:\n{}", verbs.join("\n"))
}

/// Tells the error where the caller wants it: engines read `--log`, people standard error.
fn fail(global: &Given, error: &anyhow::Error) -> u8 {
    let text = format!("{error:#}");
    let line = match global.value("log-format") {
        Some("json") => serde_json::json!({"level": "error", "msg": text, "time": Timestamp::now().to_string()}).to_string(),
        _ => format!("time=\"{}\" level=error msg={text:?}", Timestamp::now()),
    };
    if let Some(path) = global.value("log") {
        let file = fs::OpenOptions::new().append(true).create(true).open(path);
        // A log that cannot be written is no reason to hide the error: standard error has it.
        let _ = file.and_then(|mut file| writeln!(file, "{line}"));
    }
    // Nobody may be listening any more.
    let _ = writeln!(std::io::stderr(), "{text}");
    FAILED
}

fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("write to standard output")
}

fn id(command: &Command) -> Result<&str> {
    command.positionals.first().map(String::as_str).context("a container id is required")
}

fn container(command: &Command) -> Result<Container> {
    Container::load(&command.root, id(command)?)
}

fn preserved(command: &Command) -> Result<u32> {
    command.flags.value("preserve-fds").map_or(Ok(0), |count| count.parse().with_context(|| format!("--preserve-fds {count:?}")))
}

fn create(command: &Command) -> Result<u8> {
    seal::own_program()?;
    let stdio = match command.flags.value("console-socket") {
        Some(path) => Stdio::Console(super::process::connect(Path::new(path))?),
        None => Stdio::Inherit,
    };
    made(command, stdio, StartBy::Anyone)?;
    Ok(0)
}

fn run(command: &Command) -> Result<u8> {
    seal::own_program()?;
    let detached = command.flags.has("detach");
    let (stdio, terminal) = foreground::stdio(command.flags.value("console-socket"), detached, bundle_spec(command)?.1.process.as_ref())?;
    let mut container = made(command, stdio, StartBy::Holder)?;
    if let Err(error) = container.start() {
        // The first error is the one to report.
        let _ = container.delete(true);
        return Err(error);
    }
    if detached {
        return Ok(0);
    }
    let child = container.pidfd().context("no child")?.try_clone_to_owned().context("keep the child")?;
    let code = foreground::wait(child.as_fd(), terminal)?;
    if !command.flags.has("keep") {
        container.delete(true)?;
    }
    Ok(code)
}

fn bundle_spec(command: &Command) -> Result<(PathBuf, Spec)> {
    let bundle = std::path::absolute(command.flags.value("bundle").unwrap_or(".")).context("find the bundle")?;
    let spec = match command.flags.value("config") {
        Some(path) => Spec::read(Path::new(path))?,
        None => Spec::load(&bundle)?,
    };
    Ok((bundle, spec))
}

fn made(command: &Command, stdio: Stdio, start_by: StartBy) -> Result<Container> {
    let (bundle, spec) = bundle_spec(command)?;
    let container = container::create(CreateOptions {
        id: id(command)?,
        bundle: &bundle,
        spec,
        state_root: &command.root,
        stdio,
        overlay: None,
        start_by,
        preserve_fds: preserved(command)?,
        no_pivot: command.flags.has("no-pivot"),
        new_keyring: !command.flags.has("no-new-keyring"),
    })?;
    if let Err(error) = write_pid(command, container.pid()) {
        // The first error is the one to report.
        let _ = container.delete(true);
        return Err(error);
    }
    Ok(container)
}

/// Engines watch for the file and read it at once: it appears whole.
fn write_pid(command: &Command, pid: i32) -> Result<()> {
    let Some(path) = command.flags.value("pid-file").map(Path::new) else { return Ok(()) };
    let mut name = OsString::from(".");
    name.push(path.file_name().context("--pid-file names no file")?);
    let temporary = path.with_file_name(name);
    fs::write(&temporary, pid.to_string()).and_then(|()| fs::rename(&temporary, path)).with_context(|| format!("write {}", path.display()))
}

fn start(command: &Command) -> Result<u8> {
    container(command)?.start()?;
    Ok(0)
}

fn state(command: &Command) -> Result<u8> {
    let state = container(command)?.state();
    print(&serde_json::to_string_pretty(&state).context("write the state")?)?;
    Ok(0)
}

fn kill(command: &Command) -> Result<u8> {
    let name = command.positionals.get(1).map_or("TERM", String::as_str);
    container(command)?.kill(signal(name)?, command.flags.has("all"))?;
    Ok(0)
}

/// `15`, `TERM` or `SIGTERM`.
fn signal(name: &str) -> Result<i32> {
    if let Ok(number) = name.parse::<i32>() {
        if (1..=libc::SIGRTMAX()).contains(&number) {
            return Ok(number);
        }
        bail!("unknown signal {name}");
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let real_time = |base: i32, rest: &str| if rest.is_empty() { Some(base) } else { rest.parse::<i32>().ok().map(|more| base + more) };
    let number = match (full.strip_prefix("SIGRTMIN"), full.strip_prefix("SIGRTMAX")) {
        (Some(rest), _) => real_time(libc::SIGRTMIN(), rest),
        (_, Some(rest)) => real_time(libc::SIGRTMAX(), rest),
        _ => full.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32),
    };
    number.with_context(|| format!("unknown signal {name}"))
}

fn delete(command: &Command) -> Result<u8> {
    let force = command.flags.has("force");
    match container(command) {
        // Killed in the middle of create there is a folder and no more.
        Err(error) if force => {
            let folder = command.root.join(id(command)?);
            if folder.join("state.json").exists() {
                return Err(error);
            }
            crate::base::file::remove_tree(&folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        other => other?.delete(force)?,
    }
    Ok(0)
}

fn list(command: &Command) -> Result<u8> {
    let mut found = Vec::new();
    for entry in fs::read_dir(&command.root).into_iter().flatten().flatten() {
        // One that is just being made or removed is not there yet, or no more.
        found.extend(Container::load(&command.root, &entry.file_name().to_string_lossy()));
    }
    found.sort_by(|a, b| a.id().cmp(b.id()));
    let states: Vec<_> = found.iter().map(Container::state).collect();
    if command.flags.has("quiet") {
        return states.iter().try_for_each(|state| print(&state.id)).map(|()| 0);
    }
    let text = match command.flags.value("format").unwrap_or("table") {
        "json" => serde_json::to_string(&states).context("write the list")?,
        "table" => report::table(&states),
        other => bail!("unknown format {other:?}"),
    };
    print(text.trim_end())?;
    Ok(0)
}

fn ps(command: &Command) -> Result<u8> {
    let processes = container(command)?.processes()?;
    match command.flags.value("format").unwrap_or("table") {
        "json" => print(&serde_json::to_string(&processes).context("write the list")?)?,
        "table" => {
            let options = if command.positionals.len() > 1 { command.positionals[1..].to_vec() } else { vec!["-ef".into()] };
            print(report::processes(&options, &processes)?.trim_end())?;
        }
        other => bail!("unknown format {other:?}"),
    }
    Ok(0)
}

fn update(command: &Command) -> Result<u8> {
    let mut resources = match command.flags.value("resources") {
        None => Resources::default(),
        Some("-") => serde_json::from_reader(std::io::stdin()).context("read resources from standard input")?,
        Some(path) => {
            serde_json::from_slice(&fs::read(path).with_context(|| format!("read {path}"))?).with_context(|| format!("read {path}"))?
        }
    };
    resources.devices.clear();
    let number =
        |name: &str| command.flags.value(name).map(|text| text.parse::<i64>().with_context(|| format!("--{name} {text:?}"))).transpose();
    let memory = resources.memory.get_or_insert_default();
    memory.limit = number("memory")?.or(memory.limit);
    memory.reservation = number("memory-reservation")?.or(memory.reservation);
    memory.swap = number("memory-swap")?.or(memory.swap);
    let cpu = resources.cpu.get_or_insert_default();
    cpu.shares = number("cpu-share")?.map(i64::unsigned_abs).or(cpu.shares);
    cpu.quota = number("cpu-quota")?.or(cpu.quota);
    cpu.period = number("cpu-period")?.map(i64::unsigned_abs).or(cpu.period);
    cpu.burst = number("cpu-burst")?.map(i64::unsigned_abs).or(cpu.burst);
    let list = |name: &str, old: &mut String| {
        if let Some(list) = command.flags.value(name) {
            *old = list.into();
        }
    };
    list("cpuset-cpus", &mut cpu.cpus);
    list("cpuset-mems", &mut cpu.mems);
    if let Some(limit) = number("pids-limit")? {
        resources.pids = Some(spec::Pids { limit });
    }
    if let Some(weight) = number("blkio-weight")? {
        resources.block_io.get_or_insert_default().weight = Some(u16::try_from(weight).context("--blkio-weight")?);
    }
    container(command)?.update(&resources)?;
    Ok(0)
}

fn write_spec(command: &Command) -> Result<u8> {
    let path = Path::new(command.flags.value("bundle").unwrap_or(".")).join("config.json");
    if path.exists() {
        bail!("{} exists already", path.display());
    }
    let text = serde_json::to_string_pretty(&report::example()).context("write the spec")?;
    fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    Ok(0)
}

fn exec(command: &Command) -> Result<u8> {
    seal::own_program()?;
    let container = container(command)?;
    if !matches!(container.status(), Status::Running | Status::Created | Status::Paused) {
        bail!("container {} is not running", container.id());
    }
    let process = exec_process(command, &container)?;
    let detached = command.flags.has("detach");
    let (stdio, terminal) = foreground::stdio(command.flags.value("console-socket"), detached, Some(&process))?;
    let child = container.exec(&process, stdio, preserved(command)?)?;
    write_pid(command, child.pid)?;
    if detached {
        return Ok(0);
    }
    foreground::wait(child.pidfd.as_fd(), terminal)
}

/// The process asked for: the whole of it from a file, or the container's own with what the flags say.
fn exec_process(command: &Command, container: &Container) -> Result<Process> {
    let flags = &command.flags;
    if let Some(path) = flags.value("process") {
        let bytes = fs::read(path).with_context(|| format!("read {path}"))?;
        let mut process: Process = serde_json::from_slice(&bytes).with_context(|| format!("read {path}"))?;
        process.terminal |= flags.has("tty");
        return Ok(process);
    }
    let mut process = container.spec().process.clone().unwrap_or_default();
    process.args = command.positionals.get(1..).unwrap_or_default().to_vec();
    process.terminal = flags.has("tty");
    process.console_size = None;
    process.no_new_privileges |= flags.has("no-new-privs");
    process.env.extend(flags.values("env").map(Into::into));
    if let Some(cwd) = flags.value("cwd") {
        process.cwd = cwd.into();
    }
    if let Some(user) = flags.value("user") {
        let (uid, gid) = user.split_once(':').map_or((user, None), |(uid, gid)| (uid, Some(gid)));
        process.user.uid = uid.parse().with_context(|| format!("--user {user:?} is not UID[:GID]"))?;
        if let Some(gid) = gid {
            process.user.gid = gid.parse().with_context(|| format!("--user {user:?} is not UID[:GID]"))?;
        }
    }
    for gid in flags.values("additional-gids") {
        process.user.additional_gids.push(gid.parse().with_context(|| format!("--additional-gids {gid:?}"))?);
    }
    if let Some(profile) = flags.value("apparmor") {
        process.apparmor_profile = profile.into();
    }
    if let Some(label) = flags.value("process-label") {
        process.selinux_label = label.into();
    }
    let more: Vec<String> = flags.values("cap").map(Into::into).collect();
    let capabilities = process.capabilities.get_or_insert_with(Capabilities::default);
    for set in [&mut capabilities.bounding, &mut capabilities.effective, &mut capabilities.permitted] {
        set.extend(more.iter().cloned());
    }
    Ok(process)
}

/// The socket on which a terminal comes to the command that relays it.
type Relay = Option<OwnedFd>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_go_by_number_and_by_either_name() {
        for (name, number) in [("9", 9), ("KILL", 9), ("sigkill", 9), ("SIGHUP", 1), ("RTMIN+1", libc::SIGRTMIN() + 1)] {
            assert_eq!(signal(name).unwrap(), number, "{name}");
        }
        for name in ["0", "-1", "999", "NONE", ""] {
            assert!(signal(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_words_are_ours_by_verb_or_by_name() {
        let words = |line: &str| words(line.split(' ').map(OsString::from));
        assert_eq!(words("edgectl runtime list"), Some(vec!["list".to_owned()]));
        assert_eq!(words("/usr/bin/edge-runtime list"), Some(vec!["list".to_owned()]));
        assert_eq!(words("edgectl get pods"), None);
    }
}
