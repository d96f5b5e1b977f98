//! `edgectl down`: takes a cluster of `edgectl up` away, whole or half, so that nothing of it is left: processes (and with
//! them namespaces, mounts and links), cgroups, the kubeconfig's context, files. It may be repeated.

use std::io::{self, Write};
use std::time::Instant;

use anyhow::{Context as _, Result};
use argh::{ArgsInfo, FromArgs};

use super::super::Context;
use super::cluster::{self, Cluster, Kubeconfig};
use super::{cgroup, preflight};
use crate::client::kubeconfig;

#[derive(FromArgs, ArgsInfo, Debug)]
/// take a cluster of this machine away
pub struct Flags {
    /// the cluster's name
    #[argh(option, default = "cluster::DEFAULT_NAME.to_owned()")]
    pub name: String,
}

pub const EXAMPLES: &str = "# The cluster of a plain 'edgectl up'
edgectl down
# The one of 'edgectl up --name shop'
edgectl down --name shop";

/// Files go last: until then the record says what is still to be done.
pub async fn run(_: &Context, flags: Flags) -> Result<u8> {
    let cluster = Cluster::new(&flags.name)?;
    preflight::need_root("down")?;
    let say = |line: &str| writeln!(io::stdout(), "{line}").context("write to standard output");
    if !cluster.has_files() && !cgroup::exists(&cluster)? {
        say(&format!("There is no cluster {}", cluster.name()))?;
        return Ok(0);
    }
    let since = Instant::now();
    let _lock = cluster.lock()?;
    cgroup::destroy(&cluster)?;
    match cluster.record() {
        Ok(record) => {
            for known in record.map(|record| record.kubeconfigs).unwrap_or_default() {
                let path = known.path.display();
                take_out(&known, &cluster.context()).with_context(|| format!("take context {} out of {path}", cluster.context()))?;
            }
        }
        // Half a record cannot be: it is replaced whole. Whoever changed it must mend the kubeconfig, too.
        Err(error) => log::warn!("context {} stays in the kubeconfig: {error:#}", cluster.context()),
    }
    cluster.remove_files()?;
    say(&format!("Cluster {} is gone ({} ms)", cluster.name(), since.elapsed().as_millis()))?;
    Ok(0)
}

/// Removes the context. The one that was the current one before is it again, unless the user has chosen another since.
fn take_out(known: &Kubeconfig, context: &str) -> Result<()> {
    kubeconfig::remove(&known.path, context)?;
    let Some(previous) = known.previous_context.as_deref().filter(|_| known.path.exists()) else { return Ok(()) };
    let left = kubeconfig::load(known.path.to_str())?;
    let is_there = left.entries("contexts").any(|(name, _)| name == previous);
    if left.current_context().is_none() && is_there {
        kubeconfig::edit(&known.path, |config| {
            config.insert("current-context".into(), previous.into());
            Ok(())
        })?;
    }
    Ok(())
}
