//! Makes an image of one layer out of files of this machine, without a registry and without an archive on disk.
//! It runs nothing: there is no build language.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::document::{Config, Platform};
use super::save::config_document;
use super::store::Store;
use super::{Image, Reference, tree};
use crate::base::time::Timestamp;

/// What to make.
#[derive(Clone, Debug)]
pub struct Build {
    pub name: Reference,
    /// Files of this machine and where they go in the image: absolute paths. They belong to root there and keep their permissions.
    pub files: Vec<(PathBuf, PathBuf)>,
    pub config: Config,
}

/// Makes the image; the same files and configuration give the same id. Blocks; belongs on a thread of its own.
pub fn build(store: &Store, build: &Build) -> Result<Image> {
    let _kept = store.keep_layers()?;
    let mut tar: Box<dyn Read> = Box::new(io::empty());
    let mut created = 0;
    for (source, target) in &build.files {
        let file = File::open(source).with_context(|| format!("open {}", source.display()))?;
        let metadata = file.metadata().with_context(|| format!("look at {}", source.display()))?;
        if !metadata.is_file() {
            bail!("{} is no file", source.display());
        }
        created = created.max(metadata.mtime());
        let header =
            header(target, metadata.len(), metadata.permissions().mode()).with_context(|| format!("place {}", target.display()))?;
        let padding = metadata.len().next_multiple_of(512) - metadata.len();
        tar = Box::new(tar.chain(Cursor::new(header)).chain(file.take(metadata.len())).chain(io::repeat(0).take(padding)));
    }
    let tar = BufReader::with_capacity(256 << 10, tar.chain(io::repeat(0).take(1024)));
    let partial = store.begin_unnamed()?;
    let diff_id = tree::unpack(tar, partial.path())?;
    if !store.has_layer(&diff_id) {
        store.publish(vec![(diff_id, partial)])?;
    }
    // The files' time and not the clock's: the same files give the same image.
    let created = Timestamp::from_seconds(created).to_string();
    let config = config_document(&build.config, &Platform::host(), &created, &diff_id)?;
    store.record(&config, Some(&build.name), None)
}

fn header(target: &Path, size: u64, mode: u32) -> Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    header.set_path(target.strip_prefix("/").unwrap_or(target))?;
    header.set_size(size);
    header.set_mode(mode & 0o7777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header.as_bytes().to_vec())
}
