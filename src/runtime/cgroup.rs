//! A container's cgroup: one folder on v2, one in every hierarchy on v1 and hybrid systems.
//! What to write where is planned in `v1` and `v2`; here it is done. It never touches the folders above, except to hand
//! controllers (v2) or processors (v1 cpuset) down to those that lack them.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cgroups_rs::FreezerState;
use cgroups_rs::fs::freezer::FreezerController;
use serde::{Deserialize, Serialize};

use super::spec::Resources;

mod device;
mod v1;
mod v2;

const ROOT: &str = "/sys/fs/cgroup";
/// statfs(2).
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// How long killed processes may take to leave.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cgroup {
    V2(PathBuf),
    V1(Vec<Hierarchy>),
}

/// The container's folder in one hierarchy of v1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// `cpu`, `cpuacct`; `name=systemd` for one without controllers.
    pub controllers: Vec<String>,
    pub mount: PathBuf,
    pub path: PathBuf,
}

/// The way in, opened before the child is made and for its use.
pub enum Entrance {
    /// To be born in: clone3 takes the folder.
    V2(OwnedFd),
    /// The `tasks` files: a thread that writes `0` moves itself.
    V1(Vec<File>),
}

impl Cgroup {
    /// The cgroup at `path` (below the root of every hierarchy), whether or not it is there.
    pub fn at(path: &Path) -> Result<Self> {
        let path = path.strip_prefix("/").unwrap_or(path);
        if path.as_os_str().is_empty() || path.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
            bail!("cgroup path {} is not below the root", path.display());
        }
        if unified() {
            return Ok(Self::V2(Path::new(ROOT).join(path)));
        }
        let mut hierarchies = v1::hierarchies();
        if hierarchies.is_empty() {
            bail!("no cgroup hierarchy is mounted");
        }
        for hierarchy in &mut hierarchies {
            hierarchy.path = hierarchy.mount.join(path);
        }
        Ok(Self::V1(hierarchies))
    }

    /// Makes the cgroup at `path` and sets its limits. That it exists already is fine.
    pub fn create(path: &Path, resources: &Resources) -> Result<Self> {
        let cgroup = Self::at(path)?;
        match &cgroup {
            Self::V2(folder) => make(folder)?,
            Self::V1(hierarchies) => {
                for hierarchy in hierarchies {
                    make(&hierarchy.path)?;
                    if hierarchy.has("cpuset") {
                        v1::inherit_processors(&hierarchy.mount, &hierarchy.path)?;
                    }
                }
            }
        }
        let limited = match &cgroup {
            Self::V2(folder) => v2::enable_controllers(folder).and_then(|()| device::limit_v2(folder, &resources.devices)),
            Self::V1(hierarchies) => device::limit_v1(hierarchies, &resources.devices),
        };
        let limited = limited.and_then(|()| cgroup.update(resources));
        if let Err(error) = limited {
            // The first error is the one to report.
            let _ = cgroup.remove();
            return Err(error);
        }
        Ok(cgroup)
    }

    /// Where a process is now.
    pub fn of(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/cgroup");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        if unified() {
            let own = text.lines().find_map(|line| line.strip_prefix("0::/")).with_context(|| format!("{path} has no line of v2"))?;
            return Ok(Self::V2(Path::new(ROOT).join(own)));
        }
        let mut hierarchies = v1::hierarchies();
        for hierarchy in &mut hierarchies {
            let own = text.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let same = fields.next()?.split(',').eq(hierarchy.controllers.iter().map(String::as_str));
                fields.next().filter(|_| same)
            });
            hierarchy.path = hierarchy.mount.join(own.unwrap_or_default().trim_start_matches('/'));
        }
        Ok(Self::V1(hierarchies))
    }

    /// Sets the limits that are given and leaves the others. Devices stay as they were at creation.
    pub fn update(&self, resources: &Resources) -> Result<()> {
        match self {
            Self::V2(folder) => v2::plan(resources)?.iter().try_for_each(|(file, value)| write(&folder.join(file), value)),
            Self::V1(hierarchies) => v1::apply(hierarchies, &v1::plan(resources)),
        }
    }

    pub fn entrance(&self) -> Result<Entrance> {
        Ok(match self {
            Self::V2(folder) => {
                let file = File::open(folder).with_context(|| format!("open {}", folder.display()))?;
                Entrance::V2(file.into())
            }
            Self::V1(hierarchies) => Entrance::V1(
                hierarchies
                    .iter()
                    .map(|hierarchy| {
                        let path = hierarchy.path.join("tasks");
                        OpenOptions::new().write(true).open(&path).with_context(|| format!("open {}", path.display()))
                    })
                    .collect::<Result<_>>()?,
            ),
        })
    }

    /// Every process in the cgroup and in those that the container made below it.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let mut found = Vec::new();
        collect(self.main(), &mut found)?;
        Ok(found)
    }

    /// Stops (or lets go on) every process.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let deadline = Instant::now() + EMPTY_TIMEOUT;
        let (freezer, folder) = self.freezer()?;
        loop {
            let done = if frozen { freezer.freeze() } else { freezer.thaw() };
            done.map_err(|error| v1::told(&error, folder))?;
            match (self.freezer_state()?, frozen) {
                (FreezerState::Frozen, true) | (FreezerState::Thawed, false) => return Ok(()),
                _ => (),
            }
            if Instant::now() > deadline {
                bail!("{} does not become {}", folder.display(), if frozen { "frozen" } else { "thawed" });
            }
            // v1 stays FREEZING while a process is busy, and has to be told again: kernel's freezer-subsystem.rst.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether its processes are stopped, or about to be.
    pub fn frozen(&self) -> bool {
        self.freezer_state().is_ok_and(|state| !matches!(state, FreezerState::Thawed))
    }

    fn freezer(&self) -> Result<(FreezerController, &Path)> {
        let folder = self.folder("freezer").context("no freezer hierarchy is mounted")?;
        Ok((FreezerController::new(folder.to_owned(), PathBuf::new(), matches!(self, Self::V2(_))), folder))
    }

    fn freezer_state(&self) -> Result<FreezerState> {
        let (freezer, folder) = self.freezer()?;
        if let Self::V1(_) = self {
            return freezer.state().map_err(|error| v1::told(&error, folder));
        }
        // The crate reads what is wanted, cgroup.freeze; what has come of it is in cgroup.events.
        let events = folder.join("cgroup.events");
        let text = fs::read_to_string(&events).with_context(|| format!("read {}", events.display()))?;
        Ok(if text.lines().any(|line| line == "frozen 1") { FreezerState::Frozen } else { FreezerState::Thawed })
    }

    /// Kills every process and waits until they are gone.
    pub fn kill(&self) -> Result<()> {
        let deadline = Instant::now() + EMPTY_TIMEOUT;
        loop {
            let processes = self.processes()?;
            if processes.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("processes {processes:?} do not die");
            }
            // cgroup.kill (Linux 5.14) also gets those that fork meanwhile; elsewhere the next round does.
            let killed = matches!(self, Self::V2(folder) if fs::write(folder.join("cgroup.kill"), "1").is_ok());
            if !killed {
                for process in processes {
                    // Gone meanwhile is what we want.
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), nix::sys::signal::Signal::SIGKILL);
                }
                if self.frozen() {
                    // v1's frozen processes do not die before they thaw.
                    self.freeze(false)?;
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Removes the cgroup with all that the container made below it. There must be no process in it any more.
    pub fn remove(&self) -> Result<()> {
        match self {
            Self::V2(folder) => remove(folder),
            Self::V1(hierarchies) => {
                let removed = hierarchies.iter().map(|hierarchy| remove(&hierarchy.path));
                removed.collect::<Vec<_>>().into_iter().collect()
            }
        }
    }

    /// The folder whose member list counts.
    pub fn main(&self) -> &Path {
        match self {
            Self::V2(folder) => folder,
            Self::V1(hierarchies) => {
                let preferred = ["freezer", "pids", "memory"];
                preferred.iter().find_map(|name| self.v1(name)).unwrap_or(&hierarchies[0].path)
            }
        }
    }

    /// The folder where this controller's files are.
    pub fn folder(&self, controller: &str) -> Option<&Path> {
        match self {
            Self::V2(folder) => Some(folder),
            Self::V1(_) => self.v1(controller),
        }
    }

    fn v1(&self, controller: &str) -> Option<&Path> {
        match self {
            Self::V2(_) => None,
            Self::V1(hierarchies) => {
                hierarchies.iter().find(|hierarchy| hierarchy.has(controller)).map(|hierarchy| hierarchy.path.as_path())
            }
        }
    }
}

impl Hierarchy {
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|own| own == controller)
    }
}

impl Entrance {
    /// Moves the calling thread, which must be the only one of its process, into the v1 folders.
    ///
    /// `tasks`, not `cgroup.procs`: for the caller's own single thread the kernel needs no lock over all processes, which
    /// costs a wait for every processor (kernel commit 9a3284fad42f).
    pub fn enter(&self) -> Result<()> {
        if let Self::V1(files) = self {
            for mut file in files {
                file.write_all(b"0").context("enter the cgroup")?;
            }
        }
        Ok(())
    }
}

/// Whether v2 is all there is.
pub fn unified() -> bool {
    // The type of f_type differs between architectures.
    rustix::fs::statfs(ROOT).is_ok_and(|stat| stat.f_type as i64 == CGROUP2_MAGIC)
}

fn make(folder: &Path) -> Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => fs::create_dir_all(folder),
        other => other,
    }
    .with_context(|| format!("make {}", folder.display()))
}

fn write(file: &Path, value: &str) -> Result<()> {
    // Never creates: a cgroup lacks the file when its controller is missing.
    let written = OpenOptions::new().write(true).open(file).and_then(|mut file| file.write_all(value.as_bytes()));
    written.with_context(|| format!("write {value:?} to {}", file.display()))
}

fn collect(folder: &Path, found: &mut Vec<i32>) -> Result<()> {
    let list = match fs::read_to_string(folder.join("cgroup.procs")) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        // A threaded cgroup of v2 does not list processes; its domain does.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => String::new(),
        other => other.with_context(|| format!("read {}/cgroup.procs", folder.display()))?,
    };
    found.extend(list.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in children(folder) {
        collect(&child, found)?;
    }
    Ok(())
}

fn children(folder: &Path) -> Vec<PathBuf> {
    // Two links are the folder's own: without more there is nothing to look for.
    use std::os::linux::fs::MetadataExt;
    if fs::metadata(folder).is_ok_and(|metadata| metadata.st_nlink() == 2) {
        return Vec::new();
    }
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn remove(folder: &Path) -> Result<()> {
    let deadline = Instant::now() + EMPTY_TIMEOUT;
    loop {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            // A process that is dying, or folders below.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                for child in children(folder) {
                    remove(&child)?;
                }
                std::thread::sleep(Duration::from_micros(500));
            }
            other => return other.with_context(|| format!("remove {}", folder.display())),
        }
    }
}
