//! Where images lie on disk and who may change what: one index file, configurations, unpacked layers, and what is being written.
//! It never holds state in memory, so that the agent and the command line can work on the same folder at the same time.
//!
//! ```text
//! index.json         which images there are, their names and layers; replaced as a whole
//! configs/HEX        configuration documents, byte for byte: their digest is the image's id
//! layers/HEX/        one layer by its diffID: tree/ (unpacked), recipe (what else its tar held), displaced/, layer.json
//! partial/NAME/      a layer being unpacked; NAME.lock is held by whoever does it
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::document::ConfigDocument;
use super::recipe::Displaced;
use super::{Digest, Image, Reference, tree};
use crate::base::time::Timestamp;
use crate::base::{file, id};

/// A configuration document larger than this is refused; real ones have a few KiB.
pub const CONFIG_BYTES_MAX: usize = 4 << 20;

/// The folder. Cheap to clone; may be used from any thread.
#[derive(Clone)]
pub struct Store {
    root: Arc<Path>,
}

#[derive(Default, Serialize, Deserialize)]
struct Index {
    images: BTreeMap<Digest, Record>,
}

/// What the index says of one image.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Record {
    /// Complete names with tags.
    pub names: BTreeSet<String>,
    /// Complete names with the digest that a registry gave them.
    pub digests: BTreeSet<String>,
    /// diffIDs, lowest first.
    pub layers: Vec<Digest>,
    /// Of all files in all layers.
    pub size_bytes: u64,
    pub pulled_at_seconds: i64,
}

/// What is kept beside an unpacked layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Length of the layer as an uncompressed tar.
    pub tar_bytes: u64,
    /// Length of all its files.
    pub content_bytes: u64,
    pub displaced: Vec<Displaced>,
    /// Folders whose attributes the layer leaves to those below it, as long as it is not known which those are.
    pub implied: BTreeSet<Vec<u8>>,
}

/// A lock on a file of the store; released when dropped, also by the death of the process.
pub struct Held {
    _file: File,
}

/// A layer being unpacked. Dropped without [`Store::publish`], it takes its folder away.
pub struct Partial {
    path: PathBuf,
    lock: PathBuf,
    _held: Held,
}

impl Partial {
    /// The folder to unpack into: `tree` and all else of the layer.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next open.
        let _ = file::remove_tree(&self.path);
        let _ = file::remove(&self.lock);
    }
}

impl Store {
    /// Opens the store in `root`, makes it if it is not there, and sweeps what a crash left unfinished.
    pub fn open(root: &Path) -> Result<Self> {
        let store = Self { root: root.into() };
        for folder in ["configs", "layers", "partial"] {
            let path = root.join(folder);
            // Layers hold files with setuid bits: nobody but root may reach them.
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).with_context(|| format!("make {}", path.display()))?;
        }
        store.sweep_partial()?;
        store.sweep_unreferenced()?;
        Ok(store)
    }

    /// The folder of a layer, whether or not it is there.
    pub fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    pub fn has_layer(&self, diff_id: &Digest) -> bool {
        self.layer(diff_id).exists()
    }

    pub fn layer_record(&self, diff_id: &Digest) -> Result<LayerRecord> {
        let path = self.layer(diff_id).join("layer.json");
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))
    }

    /// The configuration document of an image.
    pub fn config(&self, id: &Digest) -> Result<Vec<u8>> {
        let path = self.root.join("configs").join(id.hex());
        fs::read(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Keeps the layers that are on disk from being collected until it is dropped. To be held from before the first layer is
    /// looked for until the image that names it is recorded.
    pub fn keep_layers(&self) -> Result<Held> {
        self.lock("layers.lock", FlockOperation::LockShared)
    }

    /// Claims the unpacking of a layer under a name of its own. `None` while another process or task is at it.
    pub fn begin(&self, name: &str) -> Result<Option<Partial>> {
        let lock = self.root.join("partial").join(format!("{name}.lock"));
        let Some(held) = try_lock_removable(&lock)? else { return Ok(None) };
        let path = self.root.join("partial").join(name);
        file::remove_tree(&path).with_context(|| format!("sweep {}", path.display()))?;
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Some(Partial { path, lock, _held: held }))
    }

    /// Claims a folder for a layer whose diffID is not known yet.
    pub fn begin_unnamed(&self) -> Result<Partial> {
        loop {
            if let Some(partial) = self.begin(&format!("unnamed-{}{}", id::suffix(), id::suffix()))? {
                return Ok(partial);
            }
        }
    }

    /// Makes finished layers visible: all that was written reaches the disk first, then each is renamed into place.
    pub fn publish(&self, finished: Vec<(Digest, Partial)>) -> Result<()> {
        if finished.is_empty() {
            return Ok(());
        }
        let layers = self.root.join("layers");
        let folder = File::open(&layers).with_context(|| format!("open {}", layers.display()))?;
        rustix::fs::syncfs(&folder).context("write the layers to disk")?;
        for (diff_id, partial) in &finished {
            // Another process may have brought the same layer under another name meanwhile.
            if !self.has_layer(diff_id) {
                let target = self.layer(diff_id);
                fs::rename(partial.path(), &target).with_context(|| format!("rename to {}", target.display()))?;
            }
        }
        folder.sync_all().with_context(|| format!("sync {}", layers.display()))
    }

    /// Records an image whose layers are all here. A name that another image had moves to this one.
    pub fn record(&self, config: &[u8], name: Option<&Reference>, repo_digest: Option<String>) -> Result<Image> {
        let image = Digest::of(config);
        let layers = ConfigDocument::parse(config)?.rootfs.diff_ids;
        if let Some(missing) = layers.iter().find(|layer| !self.has_layer(layer)) {
            bail!("layer {missing} of image {image} is not here");
        }
        self.adopt(&layers)?;
        let size_bytes = layers.iter().map(|layer| Ok(self.layer_record(layer)?.content_bytes)).sum::<Result<u64>>()?;
        let path = self.root.join("configs").join(image.hex());
        if !path.exists() {
            file::replace(&path, config, 0o600).with_context(|| format!("write {}", path.display()))?;
        }
        self.change(|index| {
            if let Some(name) = name.filter(|name| name.tag.is_some() && name.digest.is_none()) {
                let name = name.to_string();
                for (_, other) in index.images.iter_mut().filter(|(id, _)| **id != image) {
                    other.names.remove(&name);
                }
                index.images.entry(image).or_default().names.insert(name);
            }
            let record = index.images.entry(image).or_default();
            record.digests.extend(repo_digest);
            record.layers = layers;
            record.size_bytes = size_bytes;
            record.pulled_at_seconds = Timestamp::now().seconds();
            Ok(())
        })?;
        self.image(&image)?.with_context(|| format!("image {image} was removed as soon as it was recorded"))
    }

    /// Completes layers that leave attributes of folders to the layers below. A layer that several images have keeps those of the first:
    /// other stacks under the same layer are rare, and have the same folders then.
    fn adopt(&self, layers: &[Digest]) -> Result<()> {
        for (at, layer) in layers.iter().enumerate() {
            let mut record = self.layer_record(layer)?;
            if record.implied.is_empty() {
                continue;
            }
            let below: Vec<PathBuf> = layers[..at].iter().rev().map(|layer| self.layer(layer).join("tree")).collect();
            tree::adopt(&self.layer(layer).join("tree"), &record.implied, &below)?;
            record.implied.clear();
            // The folders first: the record says that they are done.
            let folder = File::open(self.layer(layer)).with_context(|| format!("open layer {layer}"))?;
            rustix::fs::syncfs(&folder).context("write the layer to disk")?;
            let json = serde_json::to_vec(&record).context("write the layer's record")?;
            file::replace(&self.layer(layer).join("layer.json"), &json, 0o600)
                .with_context(|| format!("write the record of layer {layer}"))?;
        }
        Ok(())
    }

    pub fn image(&self, id: &Digest) -> Result<Option<Image>> {
        self.read()?.images.remove(id).map(|record| self.describe(*id, record)).transpose()
    }

    pub fn images(&self) -> Result<Vec<Image>> {
        self.read()?.images.into_iter().map(|(id, record)| self.describe(id, record)).collect()
    }

    /// The image behind a name. A digest is looked for under the same repository only, as a registry may refuse it elsewhere.
    pub fn find(&self, reference: &Reference) -> Result<Option<Image>> {
        let by_digest = reference.digest.map(|digest| reference.with_digest(&digest));
        let by_name = reference.to_string();
        let has = |record: &Record| match &by_digest {
            Some(digest) => record.digests.contains(digest),
            None => record.names.contains(&by_name),
        };
        let found = self.read()?.images.into_iter().find(|(_, record)| has(record));
        found.map(|(id, record)| self.describe(id, record)).transpose()
    }

    /// Takes a name from an image; with `None`, all names and the image itself. The image goes with its last name.
    /// Returns whether the image is gone.
    pub fn forget(&self, id: &Digest, name: Option<&Reference>) -> Result<bool> {
        let gone = self.change(|index| {
            let Some(record) = index.images.get_mut(id) else { return Ok(true) };
            if let Some(name) = name {
                record.names.remove(&name.to_string());
                if let Some(digest) = &name.digest {
                    record.digests.remove(&name.with_digest(digest));
                }
                if !record.names.is_empty() || (name.digest.is_some() && !record.digests.is_empty()) {
                    return Ok(false);
                }
            }
            index.images.remove(id);
            Ok(true)
        })?;
        if gone {
            self.sweep_unreferenced()?;
        }
        Ok(gone)
    }

    /// Takes a name from an image, or with `None` all of them, but leaves it in the store.
    pub fn untag(&self, id: &Digest, name: Option<&Reference>) -> Result<()> {
        self.change(|index| {
            if let Some(record) = index.images.get_mut(id) {
                match name {
                    Some(name) => drop(record.names.remove(&name.to_string())),
                    None => record.names.clear(),
                }
                // A name with a digest is as good as one with a tag: without any tag, none may find it.
                if record.names.is_empty() {
                    record.digests.clear();
                }
            }
            Ok(())
        })
    }

    /// Removes layers and configurations that no image names. Does nothing while someone brings an image: whoever comes next does it.
    pub fn sweep_unreferenced(&self) -> Result<()> {
        let Some(alone) = self.try_lock("layers.lock")? else { return Ok(()) };
        let index = self.read()?;
        let configs: BTreeSet<String> = index.images.keys().map(Digest::hex).collect();
        let layers: BTreeSet<String> = index.images.values().flat_map(|record| &record.layers).map(Digest::hex).collect();
        let mut doomed = Vec::new();
        for name in names(&self.root.join("layers"))?.into_iter().filter(|name| !layers.contains(name)) {
            // Renamed first: a layer that is half removed must not be taken for a whole one after a crash.
            let Some(grave) = self.begin(&format!("removed-{name}"))? else { continue };
            let path = self.root.join("layers").join(&name);
            fs::rename(&path, grave.path()).with_context(|| format!("remove layer {}", path.display()))?;
            doomed.push(grave);
        }
        for name in names(&self.root.join("configs"))?.into_iter().filter(|name| !configs.contains(name)) {
            let path = self.root.join("configs").join(name);
            file::remove(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        // Removing many files takes a while, and nobody need wait for it.
        drop(alone);
        drop(doomed);
        Ok(())
    }

    fn sweep_partial(&self) -> Result<()> {
        let mut left: BTreeSet<String> = BTreeSet::new();
        for name in names(&self.root.join("partial"))? {
            left.insert(name.strip_suffix(".lock").unwrap_or(&name).to_owned());
        }
        for name in left {
            // What is locked is alive. Claiming and dropping the rest removes it.
            drop(self.begin(&name)?);
        }
        Ok(())
    }

    fn describe(&self, id: Digest, record: Record) -> Result<Image> {
        let config = ConfigDocument::parse(&self.config(&id)?).with_context(|| format!("configuration of image {id}"))?;
        Ok(Image {
            id,
            names: record.names.into_iter().collect(),
            digests: record.digests.into_iter().collect(),
            size_bytes: record.size_bytes,
            config: config.config,
            created: config.created.as_deref().and_then(Timestamp::parse),
            pulled: Timestamp::from_seconds(record.pulled_at_seconds),
            layers: record.layers.iter().map(|layer| self.layer(layer).join("tree")).collect(),
            diff_ids: record.layers,
        })
    }

    fn read(&self) -> Result<Index> {
        let path = self.root.join("index.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Index::default()),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Index) -> Result<T>) -> Result<T> {
        let _held = self.lock("index.lock", FlockOperation::LockExclusive)?;
        let mut index = self.read()?;
        let result = change(&mut index)?;
        let path = self.root.join("index.json");
        let bytes = serde_json::to_vec(&index).context("write the image index")?;
        file::replace(&path, &bytes, 0o600).with_context(|| format!("write {}", path.display()))?;
        Ok(result)
    }

    fn lock(&self, name: &str, operation: FlockOperation) -> Result<Held> {
        let file = open_lock(&self.root.join(name))?;
        flock(&file, operation).with_context(|| format!("lock {name}"))?;
        Ok(Held { _file: file })
    }

    fn try_lock(&self, name: &str) -> Result<Option<Held>> {
        let file = open_lock(&self.root.join(name))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Held { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("lock {name}")),
        }
    }
}

fn open_lock(path: &Path) -> Result<File> {
    File::options().create(true).truncate(false).write(true).open(path).with_context(|| format!("open {}", path.display()))
}

/// Locks a file that its holder removes in the end: a lock on a file that is gone meanwhile is none.
fn try_lock_removable(path: &Path) -> Result<Option<Held>> {
    use std::os::unix::fs::MetadataExt;
    loop {
        let file = open_lock(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("lock {}", path.display())),
        }
        let mine = file.metadata().with_context(|| format!("look at {}", path.display()))?.ino();
        if fs::metadata(path).is_ok_and(|there| there.ino() == mine) {
            return Ok(Some(Held { _file: file }));
        }
    }
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", folder.display()))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}
