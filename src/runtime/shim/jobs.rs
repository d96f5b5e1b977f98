//! What the shim's workers do: make a container's root and process, start it, execute in it, remove it. Each runs in a process of its own
//! that ends afterwards, so mounts and working folders may be changed at will.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result};

use super::protocol::{Create, Exec};
use super::worker::Made;
use crate::base::file;
use crate::runtime::channel;
use crate::runtime::container::{self, Container, CreateOptions, Overlay, StartBy, Stdio};
use crate::runtime::spec::{Process, Spec};

/// The name of the container's specification in its folder, until it is created.
pub const CONFIG: &str = "config.json";

/// The container's process waits to be started when this returns. `stdio` is empty for a terminal.
pub fn create(folder: &Path, state: &Path, create: &Create, stdio: Vec<OwnedFd>) -> Result<Made> {
    let made = try_create(folder, state, create, stdio);
    if made.is_err() {
        // The first error is the one to report.
        let _ = file::remove_tree(&create.rootfs.writable);
        let _ = file::remove_tree(folder);
    }
    made
}

fn try_create(folder: &Path, state: &Path, create: &Create, stdio: Vec<OwnedFd>) -> Result<Made> {
    let spec = Spec::read(&folder.join(CONFIG))?;
    let [upper, work] = ["upper", "work"].map(|name| create.rootfs.writable.join(name));
    for folder in [&upper, &work] {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let (console, stdio) = Console::or_given(create.tty, stdio)?;
    let options = CreateOptions {
        id: &create.container,
        bundle: folder,
        spec,
        state_root: state,
        stdio,
        overlay: Some(Overlay { lower: create.rootfs.lower.clone(), upper: Some(upper), work: Some(work) }),
        start_by: StartBy::Anyone,
        preserve_fds: 0,
        no_pivot: false,
        new_keyring: true,
    };
    let container = container::create(options)?;
    // The runtime's own record has it from now on.
    file::remove(&folder.join(CONFIG)).context("remove config.json")?;
    Ok(Made { pid: Some(container.pid()), terminal: console.terminal()? })
}

pub fn start(state: &Path, id: &str) -> Result<Made> {
    Container::load(state, id)?.start()?;
    Ok(Made::default())
}

pub fn exec(state: &Path, exec: &Exec, stdio: Vec<OwnedFd>) -> Result<Made> {
    let container = Container::load(state, &exec.container)?;
    let process = process(container.spec(), exec)?;
    let (console, stdio) = Console::or_given(exec.tty, stdio)?;
    let child = container.exec(&process, stdio, 0)?;
    Ok(Made { pid: Some(child.pid), terminal: console.terminal()? })
}

/// The container's own process as far as `exec` does not say otherwise.
fn process(spec: &Spec, exec: &Exec) -> Result<Process> {
    let mut process = spec.process.clone().context("the container has no process")?;
    process.args = exec.args.clone();
    process.env.extend(exec.env.iter().cloned());
    process.terminal = exec.tty;
    if let Some(cwd) = &exec.cwd {
        process.cwd = cwd.clone();
    }
    if let Some(user) = &exec.user {
        process.user.uid = user.uid;
        process.user.gid = user.gid;
        process.user.additional_gids = user.additional_gids.clone();
    }
    Ok(process)
}

/// Removes all of an exited container but its log.
pub fn remove(folder: &Path, state: &Path, id: &str) -> Result<Made> {
    Container::load(state, id)?.delete(true)?;
    remove_files(folder)?;
    Ok(Made::default())
}

/// The name in a container's folder that leads to its writable layer, so that a pod whose shim is gone can be removed whole.
pub const WRITABLE: &str = "writable";

/// Removes a container's folder and its writable layer.
pub fn remove_files(folder: &Path) -> Result<()> {
    if let Ok(writable) = fs::read_link(folder.join(WRITABLE)) {
        file::remove_tree(&writable).with_context(|| format!("remove {}", writable.display()))?;
    }
    file::remove_tree(folder).with_context(|| format!("remove {}", folder.display()))
}

/// Where the runtime sends the controlling side of a terminal, if there is to be one.
struct Console(Option<OwnedFd>);

impl Console {
    fn or_given(tty: bool, given: Vec<OwnedFd>) -> Result<(Console, Stdio)> {
        if tty {
            let (near, far) = channel::pair()?;
            return Ok((Console(Some(near)), Stdio::Console(far)));
        }
        let count = given.len();
        let given = given.try_into().ok().with_context(|| format!("{count} descriptors for input, output and error"))?;
        Ok((Console(None), Stdio::Fds(given)))
    }

    /// It has been sent by the time the process is there.
    fn terminal(self) -> Result<Option<OwnedFd>> {
        self.0.map(|socket| channel::receive_descriptor(socket).context("receive the terminal")).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::shim::protocol::ExecUser;

    #[test]
    fn an_executed_process_differs_from_the_containers_own_only_where_asked() {
        let own =
            Process { args: vec!["server".to_owned()], env: vec!["PATH=/bin".to_owned()], cwd: "/srv".to_owned(), ..Process::default() };
        let spec = Spec { process: Some(own.clone()), ..Spec::default() };
        let mut exec = Exec { container: "c1".to_owned(), args: vec!["ls".to_owned()], env: Vec::new(), cwd: None, user: None, tty: false };
        assert_eq!(process(&spec, &exec).unwrap(), Process { args: exec.args.clone(), ..own.clone() });
        exec.env = vec!["A=b".to_owned()];
        exec.cwd = Some("/tmp".to_owned());
        exec.user = Some(ExecUser { uid: 7, gid: 8, additional_gids: vec![9] });
        let asked = process(&spec, &exec).unwrap();
        assert_eq!((asked.env, asked.cwd.as_str()), (vec!["PATH=/bin".to_owned(), "A=b".to_owned()], "/tmp"));
        assert_eq!((asked.user.uid, asked.user.gid, asked.user.additional_gids), (7, 8, vec![9]));
    }
}
