//! `edgectl reset`: takes a board out of its cluster: the services of its daemons, its pods, their network and mounts, and all of its
//! folders. What another has made stays, and so do clusters of `edgectl up`. It may be interrupted and repeated; files go last.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use argh::{ArgsInfo, FromArgs};
use rustix::mount::UnmountFlags;

use super::service::{self, Init};
use super::up::cgroup;
use super::up::cluster::remove_folder;
use super::up::preflight;
use super::{Context, confirmed};
use crate::agent;
use crate::base::place::Places;
use crate::base::{address, file};
use crate::network::remove as network;
use crate::runtime::pod::Runtime;

/// The cgroups of pods, below which each has its own.
const PODS_GROUP: &str = "kubepods";
/// What `edgectl up` has below the same folders.
const CLUSTERS: &str = "clusters";

#[derive(FromArgs, ArgsInfo, Debug)]
/// take this board out of its cluster
pub struct Flags {
    /// do not ask
    #[argh(switch, short = 'y')]
    yes: bool,
    /// do not ask, as kubeadm has it
    #[argh(switch, short = 'f')]
    force: bool,
    /// folder below which etc/edgectl, var/lib/edgectl and run/edgectl lie
    #[argh(option, default = "PathBuf::from(\"/\")")]
    root: PathBuf,
}

pub const EXAMPLES: &str = "# On the board that is to leave; then 'edgectl delete node NAME' where the master is
edgectl reset
# Also what a script does
edgectl reset --yes";

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    preflight::need_root("reset")?;
    let places = Places::below(&flags.root);
    let folders = [&places.config, &places.state, &places.run].map(|folder| folder.display().to_string()).join(", ");
    let question = format!("This ends all pods of this board and removes {folders}, a master's objects and keys among them. Go on?");
    ensure!(flags.yes || flags.force || confirmed(&question)?, "nothing was changed");

    let said = |removed: Vec<String>| removed.iter().try_for_each(|line| cx.println(&format!("removed {line}")));
    said(service::remove(&flags.root, Init::of_machine()).context("end the services")?)?;
    if let Some((role, pid)) = running(&flags.root) {
        bail!("edgectl {role} runs below {} (process {pid}): end it, and what starts it, first", flags.root.display());
    }
    said(stop_pods(&places).await?)?;
    said(network::remove(address::BRIDGE, &[agent::DNS_ADDRESS]).await.context("take the pod network away")?)?;
    said(unmount_volumes(&places)?)?;
    said(cgroup::remove_empty(PODS_GROUP)?.iter().map(|group| format!("cgroup {}", group.display())).collect())?;
    for folder in [&places.run, &places.state, &places.config] {
        said(empty(folder)?)?;
    }
    // Only if no other's log is in it.
    let _ = fs::remove_dir(&places.logs);
    cx.println("This board is in no cluster any more.")?;
    Ok(0)
}

/// A daemon of this root that runs here: one that stands in the same mounts. It would make again what is removed.
fn running(root: &Path) -> Option<(String, u32)> {
    let mounts = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let here = mounts("self");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let command = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let words: Vec<&str> = command.split('\0').collect();
        let role = words.get(1).filter(|role| ["master", "agent"].contains(role))?;
        let below = words.windows(2).find(|pair| pair[0] == "--root").map_or("/", |pair| pair[1]);
        let is_ours = Path::new(below) == root && mounts(&pid.to_string()) == here;
        is_ours.then(|| ((*role).to_owned(), pid))
    })
}

/// Ends every pod with its shim; goes on after an error and tells the first. Their logs go, too.
async fn stop_pods(places: &Places) -> Result<Vec<String>> {
    let (mut removed, mut failed) = (Vec::new(), None);
    for pod in Runtime::new(&places.run).pods().await? {
        let config = pod.config();
        match pod.stop().await {
            Ok(()) => {
                remove_folder(&places.logs.join(format!("{}_{}_{}", config.namespace, config.name, config.uid)))?;
                removed.push(format!("pod {}/{}", config.namespace, config.name));
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(removed), Err)
}

/// Volumes in memory, each a tmpfs.
fn unmount_volumes(places: &Places) -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let volumes = fs::canonicalize(places.run.join("volumes")).unwrap_or_default();
    let below = |point: &&str| !volumes.as_os_str().is_empty() && Path::new(point).starts_with(&volumes);
    let mut removed = Vec::new();
    // Later ones may lie on earlier ones.
    for point in mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(below).collect::<Vec<_>>().into_iter().rev() {
        rustix::mount::unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).with_context(|| format!("unmount {point}"))?;
        removed.push(format!("mount {point}"));
    }
    Ok(removed)
}

/// Removes a folder with all that is in it but clusters of `edgectl up`.
fn empty(folder: &Path) -> Result<Vec<String>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut held = false;
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
        if path.ends_with(CLUSTERS) {
            continue;
        }
        held = true;
        match path.is_symlink() || !path.is_dir() {
            true => file::remove(&path).with_context(|| format!("remove {}", path.display()))?,
            false => remove_folder(&path)?,
        }
    }
    // It stays if clusters are in it, or if it is a disk of its own.
    Ok(match fs::remove_dir(folder).is_ok() {
        true => vec![folder.display().to_string()],
        false if held => vec![format!("what was in {}", folder.display())],
        false => Vec::new(),
    })
}
