//! Archives of images that somebody laid into the node's `preload` folder, for boards without a registry: each is loaded once,
//! when the agent starts. One that is broken is told in the log and stops nothing. It removes neither archives nor images.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::base::file;
use crate::image::Images;

const FOLDER: &str = "preload";
/// What has been loaded already, beside the folder: that one may be read-only.
const RECORD: &str = "preload.json";
const ENDINGS: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"];

/// Tells an archive from another one under the same name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    modified_seconds: i64,
    modified_nanoseconds: i64,
}

/// Loads what is new in the folder below `state`; true if there was something.
///
/// # Errors
/// If the folder cannot be listed or the record not be written; never for the sake of an archive.
pub async fn load(images: &Images, state: &Path) -> anyhow::Result<bool> {
    let folder = state.join(FOLDER);
    let mut names = Vec::new();
    match fs::read_dir(&folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        entries => {
            for entry in entries.with_context(|| format!("list {}", folder.display()))? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
        }
    }
    names.retain(|name| ENDINGS.iter().any(|ending| name.ends_with(ending)));
    names.sort();
    let record = state.join(RECORD);
    // Unreadable, it is as good as none: loading again changes nothing.
    let before: BTreeMap<String, Stamp> = fs::read(&record).ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
    let mut loaded = BTreeMap::new();
    for name in names {
        match load_one(images, &folder.join(&name), before.get(&name)).await {
            Ok(stamp) => drop(loaded.insert(name, stamp)),
            Err(error) => log::error!("preload {name}: {error:#}"),
        }
    }
    let changed = loaded != before;
    if changed {
        file::replace(&record, &serde_json::to_vec(&loaded)?, 0o600).with_context(|| format!("write {}", record.display()))?;
    }
    Ok(changed)
}

async fn load_one(images: &Images, path: &Path, known: Option<&Stamp>) -> anyhow::Result<Stamp> {
    let archive = File::open(path)?;
    let found = archive.metadata()?;
    let stamp = Stamp { bytes: found.len(), modified_seconds: found.mtime(), modified_nanoseconds: found.mtime_nsec() };
    if known != Some(&stamp) {
        for image in images.load(archive).await? {
            let name = image.names.first().cloned().unwrap_or_else(|| image.id.to_string());
            log::info!("image={name} preloaded from {}", path.display());
        }
    }
    Ok(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Build, Config, Reference};

    #[test]
    fn archives_are_loaded_once_and_a_broken_one_stops_nothing() {
        let state = std::env::temp_dir().join(format!("edgectl-preload-{}", crate::base::id::uid()));
        let folder = state.join(FOLDER);
        fs::create_dir_all(&folder).unwrap();
        fs::write(state.join("content"), "content").unwrap();
        smol::block_on(async {
            let elsewhere = Images::open(&state.join("elsewhere")).unwrap();
            let name = Reference::parse("preloaded:v1").unwrap();
            let files = vec![(state.join("content"), "/content".into())];
            let built = elsewhere.build(Build { name: name.clone(), files, config: Config::default() }).await.unwrap();
            let archive = folder.join("good.tar");
            elsewhere.save(vec![(built, vec![name.clone()])], File::create(&archive).unwrap()).await.unwrap();
            fs::write(folder.join("a-broken.tar.gz"), "no archive").unwrap();
            fs::write(folder.join("notes.txt"), "not even called one").unwrap();

            let images = Images::open(&state.join("images")).unwrap();
            load(&images, &state).await.unwrap();
            let image = images.get(&name).unwrap().expect("the good one is loaded after the broken one");

            // Once: what a person removes does not come back with the next start.
            images.remove(&image.id).await.unwrap();
            load(&images, &state).await.unwrap();
            assert!(images.get(&name).unwrap().is_none());

            // A new archive under the old name is another one.
            let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
            File::options().append(true).open(&archive).unwrap().set_modified(later).unwrap();
            load(&images, &state).await.unwrap();
            assert!(images.get(&name).unwrap().is_some());
        });
        fs::remove_dir_all(&state).unwrap();
    }
}
