//! state.json: what is remembered of a container from one command to the next, in a folder of its own below the state root.
//! The folder's existence is what makes an identifier taken. It lies on a tmpfs and is never synced.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroup;
use super::spec::Spec;

/// The socket on which a created container waits for its start; its absence tells that start was called.
pub const START_SOCKET: &str = "start";

const ID_MAX_BYTES: usize = 255;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    /// In the PID namespace of the creator.
    pub pid: i32,
    /// When the process started, in clock ticks since boot, proc_pid_stat(5): tells it from a later one with the same number.
    pub start_ticks: u64,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// RFC 3339.
    pub created: String,
    pub cgroup: Cgroup,
    pub spec: Spec,
}

/// Identifiers become file names: the same set that runc takes.
pub fn check_id(id: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if id.is_empty() || id.len() > ID_MAX_BYTES || id == "." || id == ".." || !id.bytes().all(allowed) {
        bail!("container id {id:?} is not of 1 to {ID_MAX_BYTES} letters, digits and _+-.");
    }
    Ok(())
}

/// Takes the identifier: makes its folder, readable by root only.
pub fn claim(root: &Path, id: &str) -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    check_id(id)?;
    let folder = root.join(id);
    let make = || fs::DirBuilder::new().mode(0o700).create(&folder);
    let made = match make() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::DirBuilder::new().mode(0o700).recursive(true).create(root).with_context(|| format!("make {}", root.display()))?;
            make()
        }
        other => other,
    };
    match made {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!("container with id {id} exists already"),
        other => other.with_context(|| format!("make {}", folder.display()))?,
    }
    Ok(folder)
}

impl Record {
    pub fn save(&self, folder: &Path) -> Result<()> {
        let (path, temporary) = (folder.join("state.json"), folder.join(".state.json"));
        let bytes = serde_json::to_vec(self).expect("a record has string keys only and writes to memory");
        fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &path)).with_context(|| format!("write {}", path.display()))
    }

    pub fn load(root: &Path, id: &str) -> Result<Self> {
        check_id(id)?;
        let path = root.join(id).join("state.json");
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => bail!("container {id} does not exist"),
            other => other.with_context(|| format!("read {}", path.display()))?,
        };
        serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))
    }

    /// Whether the container's first process still runs: a zombie does not.
    pub fn runs(&self) -> bool {
        process_start(self.pid).is_some_and(|(state, ticks)| ticks == self.start_ticks && !matches!(state, 'Z' | 'X' | 'x'))
    }
}

/// State letter and start time of a process, if there is one of this number.
pub fn process_start(pid: i32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, parentheses and spaces too.
    let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
    let state = fields.next()?.chars().next()?;
    // Field 22; `state` was field 3.
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_cannot_leave_the_state_root() {
        for id in ["a", "web-1_x.y+z", "0"] {
            check_id(id).unwrap();
        }
        for id in ["", ".", "..", "a/b", "a b", "ä", "a\n", &"x".repeat(256)] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn a_process_is_known_by_number_and_start() {
        let own = std::process::id() as i32;
        let (state, ticks) = process_start(own).unwrap();
        assert!(ticks > 0 && state != 'Z');
        assert_eq!(process_start(-1), None);
    }
}
