//! Who runs from which image: a file beside the writable layer of each container, so that the command line sees it without asking
//! anybody, and so that it goes with what it speaks of. It never touches an image.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Digest;

const FILE: &str = "image.json";

/// A container's hold on an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub image: Digest,
    /// In words for people: `pod shop/web, container nginx`.
    pub holder: String,
}

impl Claim {
    /// Notes it in the container's folder, which is made if it is not there.
    ///
    /// # Errors
    /// If the folder cannot be written to.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        // Not synced: after a power cut no container runs.
        fs::write(&path, serde_json::to_vec(self)?).with_context(|| format!("write {}", path.display()))
    }

    /// All claims of `pods/POD/containers/CONTAINER`.
    ///
    /// # Errors
    /// If the folders cannot be read; what goes away meanwhile is no error.
    pub fn all(pods: &Path) -> Result<Vec<Self>> {
        let mut claims = Vec::new();
        for pod in entries(pods)? {
            for container in entries(&pod.join("containers"))? {
                let path = container.join(FILE);
                match fs::read(&path) {
                    Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => (),
                    read => {
                        // Cut off by a power cut, it speaks of nothing that runs.
                        claims.extend(serde_json::from_slice::<Self>(&read.with_context(|| format!("read {}", path.display()))?).ok());
                    }
                }
            }
        }
        Ok(claims)
    }
}

fn entries(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let list = || fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
    match list() {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(Vec::new()),
        listed => listed.with_context(|| format!("list {}", folder.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_found_until_their_folder_goes() {
        let pods = std::env::temp_dir().join(format!("edgectl-claims-{}", crate::base::id::uid()));
        assert_eq!(Claim::all(&pods).unwrap(), []);
        let claim = Claim { image: Digest::of(b"a"), holder: "pod shop/web, container nginx".into() };
        let container = pods.join("uid/containers/1");
        claim.write(&container).unwrap();
        fs::create_dir_all(pods.join("uid/containers/2")).unwrap();
        fs::create_dir_all(pods.join("other/volumes")).unwrap();
        assert_eq!(Claim::all(&pods).unwrap(), [claim]);
        fs::remove_dir_all(&container).unwrap();
        assert_eq!(Claim::all(&pods).unwrap(), []);
        fs::remove_dir_all(&pods).unwrap();
    }
}
