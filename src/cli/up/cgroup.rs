//! The cgroups of a cluster: one group in each hierarchy of the machine, v1 or v2, that holds every process of it and no
//! other. By them `down` finds what belongs to a cluster, whatever became of its records. It mounts nothing on the host.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::XattrFlags;

use super::cluster::Cluster;

/// The group of a node's init and daemons: in v2 a group with groups below it has no processes of its own.
pub const INIT_GROUP: &str = "init";

/// What containers are limited by, of the controllers of v2.
const CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// The extended attribute that names the controllers which the root of the hierarchy hands down for clusters alone.
const HANDED_DOWN: &str = "trusted.edgectl.handed-down";

/// How long killed processes may take to go: one may hang on a slow disk.
const KILL_DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

/// One tree of cgroups, cgroups(7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub mount_point: PathBuf,
    /// The mount options that name a v1 hierarchy, such as `memory` or `name=systemd`; `None` for v2.
    pub v1_options: Option<String>,
}

/// The hierarchies that are mounted here.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let found = parse_hierarchies(&mounts);
    ensure!(!found.is_empty(), "no cgroups are mounted: mount cgroup2 on /sys/fs/cgroup (your init system does that as a rule)");
    Ok(found)
}

/// The controllers that are to be had, of v1 and v2 together.
///
/// # Errors
/// If no cgroups are mounted, or v2 does not say what it has.
pub fn controllers() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for hierarchy in hierarchies()? {
        let names = match hierarchy.v1_options {
            Some(options) => options,
            None => {
                let file = hierarchy.mount_point.join("cgroup.controllers");
                fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?
            }
        };
        found.extend(names.split([',', ' ', '\n']).filter(|name| !name.is_empty()).map(str::to_owned));
    }
    Ok(found)
}

/// proc_pid_mountinfo(5).
fn parse_hierarchies(mounts: &str) -> Vec<Hierarchy> {
    let mut devices = BTreeSet::new();
    let mut found = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (left, right): (Vec<&str>, Vec<&str>) = (left.split(' ').collect(), right.split(' ').collect());
        let ([_, _, device, _, mount_point, ..], [kind, _, options, ..]) = (left.as_slice(), right.as_slice()) else { continue };
        let v1_options = match *kind {
            "cgroup2" => None,
            "cgroup" => {
                let names = |word: &&str| !["rw", "ro", "xattr", "noprefix", "clone_children"].contains(word);
                let names_only = |word: &&str| names(word) && !word.starts_with("release_agent=");
                Some(options.split(',').filter(names_only).collect::<Vec<_>>().join(","))
            }
            _ => continue,
        };
        // The same hierarchy may be mounted in several places.
        if devices.insert(*device) {
            found.push(Hierarchy { mount_point: mount_point.into(), v1_options });
        }
    }
    found
}

impl Hierarchy {
    fn cluster(&self, cluster: &Cluster) -> PathBuf {
        self.mount_point.join(format!("edgectl-{}", cluster.name()))
    }

    fn node(&self, cluster: &Cluster, node: &str) -> PathBuf {
        self.cluster(cluster).join(node)
    }

    /// Makes `group` and prepares it to hold processes: a v1 cpuset is born empty.
    fn create(&self, group: &Path) -> Result<()> {
        match fs::create_dir(group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("make cgroup {}", group.display()));
            }
            _ => {}
        }
        let parent = group.parent().context("a cgroup has a parent")?;
        if self.v1_options.is_none() {
            return Ok(());
        }
        for name in ["cpuset.cpus", "cpuset.mems"] {
            let (from, to) = (parent.join(name), group.join(name));
            if from.exists() {
                let value = fs::read_to_string(&from).with_context(|| format!("read {}", from.display()))?;
                fs::write(&to, value.trim()).with_context(|| format!("write {}", to.display()))?;
            }
        }
        Ok(())
    }

    /// v2: gives the groups below `group` what containers are limited by; answers what was not given before. What cannot be
    /// given is not there, or v1 has it.
    fn hand_controllers_down(&self, group: &Path) -> Result<Vec<&'static str>> {
        if self.v1_options.is_some() {
            return Ok(Vec::new());
        }
        let path = group.join("cgroup.subtree_control");
        let given = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let is_given = |controller: &&str| given.split_whitespace().any(|name| name == *controller);
        let wanted = CONTROLLERS.into_iter().filter(|controller| !is_given(controller));
        Ok(wanted.filter(|controller| fs::write(&path, format!("+{controller}")).is_ok()).collect())
    }

    /// v2: notes on the cluster's group what `up` has changed at the root of the hierarchy, for the last `down` to undo.
    fn note_handed_down(&self, cluster: &Cluster, given: &[&str]) -> Result<()> {
        let mut all: BTreeSet<String> = given.iter().map(|controller| (*controller).to_owned()).collect();
        for other in fs::read_dir(&self.mount_point).with_context(|| format!("list {}", self.mount_point.display()))?.flatten() {
            all.extend(handed_down(&other.path()));
        }
        let group = self.cluster(cluster);
        if all.is_empty() {
            return Ok(());
        }
        let value = all.into_iter().collect::<Vec<_>>().join(" ");
        rustix::fs::setxattr(&group, HANDED_DOWN, value.as_bytes(), XattrFlags::empty())
            .with_context(|| format!("note the controllers of cgroup {}", group.display()))
    }
}

/// What `note_handed_down` has noted on a group.
fn handed_down(group: &Path) -> Vec<String> {
    let mut value = [0; 256];
    // A group without the note is not ours, or nothing was changed for it.
    let length = rustix::fs::getxattr(group, HANDED_DOWN, &mut value).unwrap_or(0);
    String::from_utf8_lossy(&value[..length]).split_whitespace().map(str::to_owned).collect()
}

/// Makes the node's group in each hierarchy and moves the calling process there.
pub fn enter(cluster: &Cluster, node: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let given = hierarchy.hand_controllers_down(&hierarchy.mount_point)?;
        hierarchy.create(&hierarchy.cluster(cluster))?;
        if hierarchy.v1_options.is_none() {
            hierarchy.note_handed_down(cluster, &given)?;
        }
        hierarchy.hand_controllers_down(&hierarchy.cluster(cluster))?;
        let group = hierarchy.node(cluster, node);
        hierarchy.create(&group)?;
        join(&group)?;
    }
    Ok(())
}

/// Moves the calling process into the group `init` of each hierarchy, as its own cgroup namespace has them mounted.
pub fn enter_init() -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.mount_point.join(INIT_GROUP);
        hierarchy.create(&group)?;
        join(&group)?;
    }
    Ok(())
}

fn join(group: &Path) -> Result<()> {
    // 0 is the process that writes, whatever its number is in which namespace.
    fs::write(group.join("cgroup.procs"), "0").with_context(|| format!("enter cgroup {}", group.display()))
}

/// Whether there is a group of the cluster.
pub fn exists(cluster: &Cluster) -> Result<bool> {
    Ok(hierarchies()?.iter().any(|hierarchy| hierarchy.cluster(cluster).exists()))
}

/// The processes of one node, by their numbers in the caller's PID namespace.
pub fn node_processes(cluster: &Cluster, node: &str) -> Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    for hierarchy in hierarchies()? {
        collect(&hierarchy.node(cluster, node), &mut found)?;
    }
    Ok(found)
}

/// Kills every process of the cluster and removes its groups, again and again until there is neither: one that was just
/// about to enter may come after the others have gone.
pub fn destroy(cluster: &Cluster) -> Result<()> {
    let hierarchies = hierarchies()?;
    let groups: Vec<PathBuf> = hierarchies.iter().map(|hierarchy| hierarchy.cluster(cluster)).collect();
    let noted: Vec<(PathBuf, String)> = hierarchies
        .iter()
        .flat_map(|hierarchy| {
            let path = hierarchy.mount_point.join("cgroup.subtree_control");
            handed_down(&hierarchy.cluster(cluster)).into_iter().map(move |controller| (path.clone(), controller))
        })
        .collect();
    end(&groups, cluster.name())?;
    for (path, controller) in noted {
        // Another cluster that still has it keeps the note.
        let _ = fs::write(path, format!("-{controller}"));
    }
    Ok(())
}

/// Removes the groups of this name from the roots of all hierarchies, with those below them, if no process is in them; answers which went.
pub fn remove_empty(name: &str) -> Result<Vec<PathBuf>> {
    let groups = hierarchies()?.into_iter().map(|hierarchy| hierarchy.mount_point.join(name)).filter(|group| group.exists());
    // What is busy has processes of another's.
    Ok(groups.filter(|group| remove(group).is_ok()).collect())
}

/// As [`destroy`], of one node; the cluster's groups stay.
pub fn destroy_node(cluster: &Cluster, node: &str) -> Result<()> {
    let groups: Vec<PathBuf> = hierarchies()?.iter().map(|hierarchy| hierarchy.node(cluster, node)).collect();
    end(&groups, node)
}

/// Ends all processes in the groups, and removes them.
fn end(groups: &[PathBuf], whose: &str) -> Result<()> {
    let deadline = Instant::now() + KILL_DEADLINE;
    loop {
        let mut left = BTreeSet::new();
        for group in groups {
            thaw(group);
            collect(group, &mut left)?;
        }
        for pid in &left {
            // That it has gone meanwhile is what we want.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        let removed = groups.iter().try_for_each(|group| remove(group));
        match removed {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::ResourceBusy => {
                return Err(error).with_context(|| format!("remove the cgroups of {whose}"));
            }
            Err(_) if Instant::now() > deadline => bail!("processes {left:?} of {whose} do not end"),
            // The kernel lets go of the last process a moment after it has ended.
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// The groups below `group`, and last itself; none if it is not there.
fn tree(group: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        other => other.with_context(|| format!("list cgroup {}", group.display()))?,
    };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        found.extend(tree(&entry.path())?);
    }
    found.push(group.to_owned());
    Ok(found)
}

fn collect(group: &Path, into: &mut BTreeSet<i32>) -> Result<()> {
    for group in tree(group)? {
        // The group may have gone since it was listed.
        let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        into.extend(processes.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    }
    Ok(())
}

/// A frozen process of v1 does not even die.
fn thaw(group: &Path) {
    for group in tree(group).unwrap_or_default() {
        // Only the freezer's groups have the file.
        let _ = fs::write(group.join("freezer.state"), "THAWED");
    }
}

/// Removes a group with all below it.
fn remove(group: &Path) -> io::Result<()> {
    let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    for group in tree(group).unwrap_or_default() {
        fs::remove_dir(&group).or_else(|error| if absent(&error) { Ok(()) } else { Err(error) })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_from_the_mounts() {
        let mounts = "\
25 18 0:22 / /sys/fs/cgroup rw,relatime shared:9 - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
27 25 0:24 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,release_agent=/lib/systemd/x,name=systemd
28 25 0:25 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
29 25 0:25 / /mnt/again rw - cgroup cgroup rw,cpu,cpuacct
";
        let expected = [("unified", None), ("systemd", Some("name=systemd")), ("cpu,cpuacct", Some("cpu,cpuacct"))];
        let expected = expected.map(|(name, options)| Hierarchy {
            mount_point: Path::new("/sys/fs/cgroup").join(name),
            v1_options: options.map(str::to_owned),
        });
        assert_eq!(parse_hierarchies(mounts), expected);
        assert_eq!(parse_hierarchies("25 18 0:22 / / rw - ext4 /dev/vda rw\n"), []);
    }
}
