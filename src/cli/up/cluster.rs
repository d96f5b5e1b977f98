//! A cluster of `edgectl up`: its name, where it keeps what, and who may work on it. Everything that `down` has to take
//! away lies below the two folders here, in the cgroups of `cgroup`, or in the kubeconfig that the record names.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::base::{file, place::Places};

/// What outlives a reboot of the machine, and what does not.
const STATE: &str = "/var/lib/edgectl/clusters";
const RUN: &str = "/run/edgectl/clusters";

const RECORD_FILE: &str = "cluster.json";

/// Names of nodes are host names (64 bytes at most, sethostname(2)), and begin with the cluster's.
const NAME_BYTES_MAX: usize = 40;

pub const DEFAULT_NAME: &str = "edgectl";

/// A cluster by its name; whether it exists is another question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    name: String,
}

/// What `up` has decided and a later `up` or `down` must know. Written before the first thing that it speaks of is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// On 127.0.0.1 of the host.
    pub api_port: u16,
    /// How many it has.
    #[serde(default = "one")]
    pub nodes: u8,
    /// The files that hold the cluster's context.
    #[serde(default)]
    pub kubeconfigs: Vec<Kubeconfig>,
}

fn one() -> u8 {
    1
}

/// A file that holds the cluster's context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kubeconfig {
    pub path: PathBuf,
    /// What was the current context before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_context: Option<String>,
}

/// The right to change a cluster; given back when dropped.
pub struct Lock(#[expect(dead_code, reason = "held for its lock")] Flock<File>);

impl Cluster {
    /// A name is a DNS label (RFC 1123), for nodes are called after it.
    pub fn new(name: &str) -> Result<Self> {
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let ends_well = !name.starts_with('-') && !name.ends_with('-');
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_inner) || !ends_well {
            bail!(
                "invalid cluster name {name:?}: at most {NAME_BYTES_MAX} lower case letters, digits and '-', \
                 with a letter or digit at both ends"
            );
        }
        Ok(Self { name: name.to_owned() })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Of the kubeconfig's context, cluster and user.
    pub fn context(&self) -> String {
        if self.name == DEFAULT_NAME { self.name.clone() } else { format!("edgectl-{}", self.name) }
    }

    /// Of a node; they count from 1.
    pub fn node(&self, number: u8) -> String {
        format!("{}-{number}", self.name)
    }

    pub fn state(&self) -> PathBuf {
        Path::new(STATE).join(&self.name)
    }

    pub fn run(&self) -> PathBuf {
        Path::new(RUN).join(&self.name)
    }

    /// What the node sees as `node::ROOT`.
    pub fn root(&self, node: &str) -> PathBuf {
        self.state().join(node)
    }

    /// The node's folders as the host sees them.
    pub fn places(&self, node: &str) -> Places {
        Places::below(&self.root(node))
    }

    /// What the node's daemons say.
    pub fn log(&self, node: &str) -> PathBuf {
        self.run().join(format!("{node}.log"))
    }

    /// Waits until nobody else works on the cluster. Makes its folder below /run.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.run();
        loop {
            fs::create_dir_all(&path).with_context(|| format!("make folder {}", path.display()))?;
            let folder = File::open(&path).with_context(|| format!("open folder {}", path.display()))?;
            let lock = match Flock::lock(folder, FlockArg::LockExclusive) {
                Ok(lock) => lock,
                Err((_, error)) => bail!("lock folder {}: {error}", path.display()),
            };
            // Who held it may have been `down`, and the folder another one by now.
            let is_same = fs::metadata(&path).is_ok_and(|there| lock.metadata().is_ok_and(|ours| ours.ino() == there.ino()));
            if is_same {
                return Ok(Lock(lock));
            }
        }
    }

    /// What an earlier `up` decided; `None` if there was none.
    pub fn record(&self) -> Result<Option<Record>> {
        let path = self.state().join(RECORD_FILE);
        match fs::read(&path) {
            Ok(content) => serde_json::from_slice(&content).map(Some).with_context(|| format!("read {}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    pub fn write_record(&self, record: &Record) -> Result<()> {
        let path = self.state().join(RECORD_FILE);
        fs::create_dir_all(self.state()).with_context(|| format!("make folder {}", self.state().display()))?;
        let content = serde_json::to_vec_pretty(record).context("write record")?;
        file::replace(&path, &content, 0o600).with_context(|| format!("write {}", path.display()))
    }

    /// Whether there is any folder of it.
    pub fn has_files(&self) -> bool {
        self.state().exists() || self.run().exists()
    }

    /// Removes all folders of the cluster, and those above them that are empty then.
    pub fn remove_files(&self) -> Result<()> {
        for path in [self.state(), self.run()] {
            remove_folder(&path)?;
            for above in path.ancestors().skip(1).take(2) {
                // It holds other clusters, or another's files.
                if fs::remove_dir(above).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Removes a folder with all that is in it; that it is not there is fine.
pub fn remove_folder(path: &Path) -> Result<()> {
    refuse_mounts_below(path)?;
    file::remove_tree(path).with_context(|| format!("remove {}", path.display()))
}

/// Nothing of a cluster is mounted where the host sees it. If something is, it is none of ours, and removing the folder
/// would remove what is mounted.
fn refuse_mounts_below(path: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(4)).find(|point| Path::new(point).starts_with(path));
    ensure!(below.is_none(), "{} is mounted; unmount it first", below.unwrap_or_default());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_names_are_labels() {
        for name in ["edgectl", "a", "shop-2", "0"] {
            assert!(Cluster::new(name).is_ok(), "{name}");
        }
        for name in ["", "-a", "a-", "A", "a.b", "a/b", "..", "ü", &"a".repeat(41)] {
            assert!(Cluster::new(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_default_cluster_has_the_plain_context() {
        assert_eq!(Cluster::new(DEFAULT_NAME).unwrap().context(), "edgectl");
        assert_eq!(Cluster::new("shop").unwrap().context(), "edgectl-shop");
    }
}
