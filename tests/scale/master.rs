//! The master that is measured: a process of its own below a folder of its own, and what the kernel says of it.
//! It never reads a figure from the master itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use smol::Timer;

use crate::link::{Authority, Link};

const START_DEADLINE: Duration = Duration::from_secs(10);
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);
/// Two seconds in a row that differ by less than this many ticks are rest.
const TICKS_ALIKE: u64 = 10;

pub struct Master {
    child: Child,
    folder: PathBuf,
}

impl Master {
    pub async fn start(binary: &Path) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("edgectl-scale-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let log = fs::File::create(folder.join("log"))?;
        let mut command = Command::new(binary);
        command.arg("master").arg("--root").arg(&folder).args(["--name", "master"]).stdin(Stdio::null()).stderr(log);
        let master = Self { child: command.spawn().with_context(|| format!("start {}", binary.display()))?, folder };
        let since = Instant::now();
        while master.admin().await.is_err() {
            if since.elapsed() > START_DEADLINE {
                bail!("the master does not answer: {}", master.log());
            }
            Timer::after(Duration::from_millis(20)).await;
        }
        Ok(master)
    }

    pub fn authority(&self) -> Result<Authority> {
        Authority::read(&self.folder.join("etc/edgectl/pki"))
    }

    /// A connection of the administrator's.
    pub async fn admin(&self) -> Result<Link> {
        let link = Link::connect(self.authority()?.client("kubernetes-admin", "system:masters")?).await?;
        link.get("/readyz").await?;
        Ok(link)
    }

    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        log.lines().rev().take(5).collect::<Vec<_>>().join("\n")
    }

    fn proc(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.child.id());
        fs::read_to_string(&path).with_context(|| format!("{path}: {}", self.log()))
    }

    fn number(&self, file: &str, key: &str) -> Result<u64> {
        let text = self.proc(file)?;
        let line = text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("{file} has no {key}"))?;
        Ok(line.split_whitespace().next().context("a number")?.parse()?)
    }

    pub fn pss_bytes(&self) -> Result<u64> {
        Ok(self.number("smaps_rollup", "Pss:")? * 1024)
    }

    /// Bytes that it made the kernel write to a disk, also below a file system that has none of its own.
    pub fn written_bytes(&self) -> Result<u64> {
        self.number("io", "write_bytes:")
    }

    /// Hundredths of a second of processor.
    pub fn cpu_ticks(&self) -> Result<u64> {
        cpu_ticks(&self.proc("stat")?)
    }

    /// Waits until it does no more than it will always do.
    pub async fn settle(&self) -> Result<()> {
        let (since, mut last) = (Instant::now(), u64::MAX);
        while since.elapsed() < SETTLE_DEADLINE {
            let before = self.cpu_ticks()?;
            Timer::after(Duration::from_secs(1)).await;
            let used = self.cpu_ticks()? - before;
            if used < 90 && used.abs_diff(last) < TICKS_ALIKE {
                return Ok(());
            }
            last = used;
        }
        println!("the master does not come to rest within {} s", SETTLE_DEADLINE.as_secs());
        Ok(())
    }
}

pub fn cpu_ticks(stat: &str) -> Result<u64> {
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

impl Drop for Master {
    fn drop(&mut self) {
        // It is gone already, or goes now; its folder has served.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
