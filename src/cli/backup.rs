//! `edgectl backup` and `edgectl restore`: all that a master cannot make again - the objects of one revision, the authority and the key of
//! service account tokens - in one file, and back. Nothing is touched before the file was read whole and found right, and nothing that is
//! there is lost: it is moved aside.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use argh::{ArgsInfo, FromArgs};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::Context;
use crate::base::file;
use crate::base::place::Places;
use crate::base::time::Timestamp;
use crate::client::{Client, Manner, kubeconfig};
use crate::master::store::{self, Store, dump};

/// The form of the file, of which this program knows one.
const FORMAT: &str = "edgectl-backup/1";
const MANIFEST: &str = "manifest.json";
const OBJECTS: &str = "objects.jsonl";
/// What is kept of the authority, and with which mode it lies in its folder.
const KEYS: [(&str, u32); 3] = [("ca.crt", 0o644), ("ca.key", 0o600), ("service-account.key", 0o600)];

/// How much a backup may unpack to: four times what a master's answer may hold.
const UNPACKED_BYTES_MAX: u64 = 1 << 30;
/// A master takes a while to tell all that it has over a slow link.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);

#[derive(FromArgs, ArgsInfo, Debug)]
/// write all that this board's master needs into one file
pub struct BackupFlags {
    /// the file, or - for standard output
    #[argh(positional)]
    file: String,
    /// folder below which the master's etc/edgectl and var/lib/edgectl lie
    #[argh(option, default = "PathBuf::from(\"/\")")]
    root: PathBuf,
}

#[derive(FromArgs, ArgsInfo, Debug)]
/// make this board's master what it was when a backup was made
pub struct RestoreFlags {
    /// the file, or - for standard input
    #[argh(positional)]
    file: String,
    /// folder below which the master's etc/edgectl and var/lib/edgectl lie
    #[argh(option, default = "PathBuf::from(\"/\")")]
    root: PathBuf,
    /// move aside what is there
    #[argh(switch)]
    force: bool,
}

pub const BACKUP_EXAMPLES: &str = "# On the master's board, whether the master runs or not
edgectl backup cluster.tar.gz
# To another machine
edgectl backup - | ssh nas 'cat > cluster.tar.gz'";

pub const RESTORE_EXAMPLES: &str = "# On a board where no master runs; then start it, or 'edgectl init'
edgectl restore cluster.tar.gz
# In the place of what is there
edgectl restore --force cluster.tar.gz";

/// What the file holds, told first.
#[derive(Serialize, Deserialize)]
struct Manifest {
    format: String,
    time: String,
    revision: u64,
    objects: usize,
    /// In hexadecimal, of each other member.
    sha256: BTreeMap<String, String>,
}

pub async fn backup(cx: &Context, flags: BackupFlags) -> Result<u8> {
    let places = Places::below(&flags.root);
    let path = places.store();
    ensure!(path.exists(), "there is no master's state at {}: a backup is made on the master's board", path.display());
    let objects = match store::is_open_elsewhere(&path)? {
        true => ask(&places).await.context("ask the master that runs")?,
        false => Store::open(Some(&path))?.dump().flatten().collect(),
    };
    let head = dump::check(&objects).context("what the master told is not whole")?;
    let mut members = BTreeMap::from([(OBJECTS.to_owned(), objects)]);
    for (name, _) in KEYS {
        let path = places.pki().join(name);
        members.insert(name.to_owned(), fs::read(&path).with_context(|| format!("read {}", path.display()))?);
    }
    let archive = pack(head, &members).context("pack the backup")?;
    match flags.file.as_str() {
        "-" => cx.print_bytes(&archive)?,
        path => file::replace(path.as_ref(), &archive, 0o600).with_context(|| format!("write {path}"))?,
    }
    cx.note(&format!(
        "{} objects at revision {}, the authority and its keys: whoever has the file has the cluster",
        head.objects, head.revision
    ));
    Ok(0)
}

/// All objects, from the master itself.
async fn ask(places: &Places) -> Result<Vec<u8>> {
    let target = kubeconfig::load(places.admin_kubeconfig().to_str())?.target(&kubeconfig::Overrides::default())?;
    let client = Client::new(&target, Manner { timeout: Some(REQUEST_TIMEOUT), ..Manner::default() })?;
    Ok(client.raw(hyper::Method::GET, "/edgectl/backup", "*/*", None).await?.into())
}

fn pack(head: dump::Head, members: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>> {
    let now = Timestamp::now();
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        time: now.to_string(),
        revision: head.revision,
        objects: head.objects,
        sha256: members.iter().map(|(name, content)| (name.clone(), sha256(content))).collect(),
    };
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    let manifest = serde_json::to_vec_pretty(&manifest)?;
    let others = members.iter().map(|(name, content)| (name.as_str(), content));
    for (name, content) in [(MANIFEST, &manifest)].into_iter().chain(others) {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(now.seconds()).unwrap_or_default());
        archive.append_data(&mut header, name, content.as_slice())?;
    }
    Ok(archive.into_inner()?.finish()?)
}

/// The members of a backup, each as its manifest says.
fn unpack(archive: impl Read) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut unpacked = tar::Archive::new(GzDecoder::new(archive).take(UNPACKED_BYTES_MAX));
    let mut members = BTreeMap::new();
    for entry in unpacked.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).with_context(|| format!("read {name}"))?;
        members.insert(name, content);
    }
    // The checksum of the whole comes last.
    io::copy(&mut unpacked.into_inner(), &mut io::sink())?;
    let manifest: Manifest = serde_json::from_slice(&members.remove(MANIFEST).with_context(|| format!("it has no {MANIFEST}"))?)
        .with_context(|| format!("read {MANIFEST}"))?;
    ensure!(manifest.format == FORMAT, "its format is {:?}, and this program knows {FORMAT:?} alone", manifest.format);
    for name in KEYS.map(|(name, _)| name).into_iter().chain([OBJECTS]) {
        let content = members.get(name).with_context(|| format!("it has no {name}"))?;
        ensure!(manifest.sha256.get(name) == Some(&sha256(content)), "{name} is not what the manifest says");
    }
    Ok(members)
}

fn sha256(content: &[u8]) -> String {
    digest(&SHA256, content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub async fn restore(cx: &Context, flags: RestoreFlags) -> Result<u8> {
    let source: Box<dyn Read> = match flags.file.as_str() {
        "-" => Box::new(io::stdin()),
        path => Box::new(File::open(path).with_context(|| format!("open {path}"))?),
    };
    let members = unpack(source).with_context(|| format!("{} is no whole backup", flags.file))?;
    let objects = &members[OBJECTS];
    let head = dump::check(objects).with_context(|| format!("{} is no whole backup", flags.file))?;
    let places = Places::below(&flags.root);
    let store = places.store();
    if store.exists() && store::is_open_elsewhere(&store)? {
        bail!("a master runs on {}: stop it first ('systemctl stop edgectl-master', 'rc-service edgectl-master stop')", store.display());
    }
    let pki = places.pki();
    let is_other = |name: &str| fs::read(pki.join(name)).is_ok_and(|known| known != members[name]);
    let other_authority = is_other("ca.key") || is_other("ca.crt");
    let exists = store.exists() || other_authority || is_other("service-account.key");
    if exists && !flags.force {
        bail!("there is a master's state at {} and {} already: --force moves it aside", store.display(), pki.display());
    }

    for folder in [&places.state, &pki] {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let restored = store.with_extension("restored");
    dump::restore(objects, &restored).context("make the store")?;
    // Kubeconfigs of another authority would be those of nobody: the master makes them again.
    let kubeconfigs = [places.admin_kubeconfig(), places.agent_kubeconfig()];
    if exists {
        let keys: Vec<PathBuf> = KEYS.iter().map(|(name, _)| pki.join(name)).collect();
        let aside = set_aside(&places, &store, keys.iter().chain(kubeconfigs.iter().filter(|_| other_authority)))?;
        cx.println(&format!("What was there is in {}", aside.display()))?;
    }
    if other_authority {
        for path in &kubeconfigs {
            file::remove(path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    for (name, mode) in KEYS {
        let path = pki.join(name);
        file::replace(&path, &members[name], mode).with_context(|| format!("write {}", path.display()))?;
    }
    // Last: whoever was interrupted before finds the store as it was, or none.
    fs::rename(&restored, &store)
        .and_then(|()| File::open(&places.state)?.sync_all())
        .with_context(|| format!("put {} in place", store.display()))?;
    cx.println(&format!("{} objects are restored, as they were at revision {}. The master may be started.", head.objects, head.revision))?;
    Ok(0)
}

/// Copies of the files, in a folder of their own; what is not there is left out. The store gets a second name: it stays in its place until
/// another one takes that.
fn set_aside<'a>(places: &Places, store: &Path, files: impl Iterator<Item = &'a PathBuf>) -> Result<PathBuf> {
    let folder = places.state.join(format!("before-restore-{}", Timestamp::now().to_string().replace(':', "-")));
    let set = || -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        for file in files.filter(|file| file.exists()) {
            file::replace(&folder.join(file.file_name().unwrap_or_default()), &fs::read(file)?, 0o600)?;
        }
        if store.exists() {
            fs::hard_link(store, folder.join(store.file_name().unwrap_or_default()))?;
        }
        File::open(&folder)?.sync_all()
    };
    set().with_context(|| format!("set aside in {}", folder.display()))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> BTreeMap<String, Vec<u8>> {
        let content = |name: &str| (name.to_owned(), name.repeat(1000).into_bytes());
        KEYS.iter().map(|(name, _)| content(name)).chain([content(OBJECTS)]).collect()
    }

    fn packed(members: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
        pack(dump::Head { revision: 7, objects: 0 }, members).unwrap()
    }

    #[test]
    fn what_is_packed_comes_out_again_and_nothing_else_does() {
        let archive = packed(&members());
        assert_eq!(unpack(archive.as_slice()).unwrap(), members());
        let refused = |archive: &[u8], why: &str| {
            let error = format!("{:#}", unpack(archive).unwrap_err());
            assert!(error.contains(why), "{why}: {error}");
        };
        refused(b"nonsense, and more of it", "invalid gzip header");
        for length in 0..archive.len() {
            assert!(unpack(&archive[..length]).is_err(), "cut off after {length} bytes of {}", archive.len());
        }
        for at in 10..archive.len() {
            let mut damaged = archive.clone();
            damaged[at] ^= 0x55;
            // Repetition can be told in more than one way: what comes out then is the same.
            assert!(unpack(damaged.as_slice()).map_or(true, |found| found == members()), "byte {at} is another one");
        }
        let mut fewer = members();
        fewer.remove("ca.key");
        refused(&packed(&fewer), "it has no ca.key");
        let other = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        refused(&other.into_inner().unwrap().finish().unwrap(), "it has no manifest.json");
    }
}
