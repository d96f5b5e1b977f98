//! Makes room when the disk of the images fills up: those that nobody has used for longest go first, never one that a container
//! runs from or a pod of this node names. <https://kubernetes.io/docs/concepts/architecture/garbage-collection/#containers-images>

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::Node;
use super::recorder::Severity;
use crate::base::time::Timestamp;
use crate::image::{Claim, Digest, Image, Images};

/// The kubelet's defaults: `imageGCHighThresholdPercent`, `imageGCLowThresholdPercent`, `imageMinimumGCAge`.
const HIGH_PERCENT: u64 = 85;
const LOW_PERCENT: u64 = 80;
const AGE_MIN: Duration = Duration::from_secs(120);

/// When each image was last seen in use. In memory: an idle node writes nothing.
pub type Uses = BTreeMap<Digest, Timestamp>;

#[derive(Clone, Copy)]
struct Disk {
    total_bytes: u64,
    available_bytes: u64,
}

impl Disk {
    fn of(folder: &Path) -> anyhow::Result<Self> {
        let stat = rustix::fs::statvfs(folder).with_context(|| format!("look at {}", folder.display()))?;
        Ok(Self { total_bytes: stat.f_blocks * stat.f_frsize, available_bytes: stat.f_bavail * stat.f_frsize })
    }

    fn used_percent(self) -> u64 {
        100 - (self.available_bytes * 100).checked_div(self.total_bytes).unwrap_or(100)
    }

    /// What is missing until no more than the low threshold is used.
    fn wanted_bytes(self) -> u64 {
        (self.total_bytes * (100 - LOW_PERCENT) / 100).saturating_sub(self.available_bytes)
    }
}

/// Removes images if the disk is fuller than the high threshold, until it is below the low one.
///
/// # Errors
/// If the disk or the image store cannot be read, or an image not be removed.
pub async fn collect(node: &Node) -> anyhow::Result<()> {
    let now = Timestamp::now();
    let pods = node.places.state.join("pods");
    let mut used: BTreeSet<Digest> =
        smol::unblock(move || Claim::all(&pods)).await.context("look who uses images")?.iter().map(|claim| claim.image).collect();
    let folder = node.places.state.join("images");
    if Disk::of(&folder)?.used_percent() >= HIGH_PERCENT {
        used.extend(node.named_images()?);
    }
    let mut uses = node.image_uses.take();
    let freed = free(&node.images, || Disk::of(&folder), &used, &mut uses, now).await;
    node.image_uses.replace(uses);
    if let Some((wanted, freed)) = freed? {
        let why = "Failed to garbage collect required amount of images.";
        let message = format!("{why} Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free.");
        log::error!("node={} {message}", node.facts.node_name);
        node.recorder.node(Severity::Warning, "FreeDiskSpaceFailed", message);
    }
    Ok(())
}

/// The bytes that were wanted and those that could be had, if the latter are too few.
async fn free(
    images: &Images,
    disk: impl Fn() -> anyhow::Result<Disk>,
    used: &BTreeSet<Digest>,
    uses: &mut Uses,
    now: Timestamp,
) -> anyhow::Result<Option<(u64, u64)>> {
    uses.extend(used.iter().map(|image| (*image, now)));
    let before = disk()?;
    if before.used_percent() < HIGH_PERCENT {
        return Ok(None);
    }
    let present = images.list().context("list images")?;
    uses.retain(|id, _| present.iter().any(|image| image.id == *id));
    for image in plan(&present, used, uses, now) {
        if disk()?.wanted_bytes() == 0 {
            break;
        }
        images.remove(&image.id).await.with_context(|| format!("remove image {}", image.id))?;
        log::info!("image={} removed for disk space names={:?}", image.id, image.names);
    }
    let after = disk()?;
    let freed = after.available_bytes.saturating_sub(before.available_bytes);
    Ok((after.wanted_bytes() > 0).then(|| (before.wanted_bytes(), freed)))
}

/// Who may go, in the order in which they go: one that was never seen in use counts from when it came.
fn plan<'a>(present: &'a [Image], used: &BTreeSet<Digest>, uses: &Uses, now: Timestamp) -> Vec<&'a Image> {
    let last = |image: &Image| uses.get(&image.id).copied().unwrap_or(image.pulled);
    let mut unused: Vec<&Image> = present.iter().filter(|image| !used.contains(&image.id) && now.since(image.pulled) >= AGE_MIN).collect();
    unused.sort_by_key(|image| (last(image), image.pulled));
    unused
}

impl Node {
    /// The images that pods of this node name, whether or not a container of theirs runs already.
    fn named_images(&self) -> anyhow::Result<BTreeSet<Digest>> {
        let mut found = BTreeSet::new();
        let pods: Vec<_> = self.pods.borrow().values().map(|mailbox| mailbox.pod()).collect();
        let names: BTreeSet<&str> = pods
            .iter()
            .filter(|pod| !matches!(pod.status["phase"].as_str(), Some("Succeeded" | "Failed")))
            .flat_map(|pod| pod.spec.init_containers.iter().chain(&pod.spec.containers))
            .map(|container| container.image.as_str())
            .collect();
        for name in names {
            // What is no name cannot be the name of an image that is here.
            if let Ok(reference) = crate::image::Reference::parse(name)
                && let Some(image) = self.images.get(&reference).context("look up an image")?
            {
                found.insert(image.id);
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Build, Config, Reference};

    const IMAGES: u64 = 5;

    /// Five images on a disk where each takes a tenth, as much as `others` is taken by what is no image.
    async fn check(others: u64, used: &[usize], left: &[usize], short: Option<(u64, u64)>) {
        let folder = std::env::temp_dir().join(format!("edgectl-gc-{}", crate::base::id::uid()));
        let images = Images::open(&folder.join("images")).unwrap();
        let mut ids = Vec::new();
        for number in 0..IMAGES {
            let content = folder.join(number.to_string());
            std::fs::write(&content, number.to_string()).unwrap();
            let name = Reference::parse(&format!("image{number}:v1")).unwrap();
            ids.push(images.build(Build { name, files: vec![(content, "/content".into())], config: Config::default() }).await.unwrap().id);
        }
        let now = Timestamp::now().plus(Duration::from_secs(3600));
        // The first was used longest ago.
        let mut uses: Uses = ids.iter().enumerate().map(|(at, id)| (*id, Timestamp::now().plus(Duration::from_secs(at as u64)))).collect();
        let disk = || Ok(Disk { total_bytes: 1000, available_bytes: 1000 - others - 100 * images.list()?.len() as u64 });
        let used: BTreeSet<Digest> = used.iter().map(|at| ids[*at]).collect();
        assert_eq!(free(&images, disk, &used, &mut uses, now).await.unwrap(), short);
        let found: Vec<usize> = (0..ids.len()).filter(|at| images.list().unwrap().iter().any(|image| image.id == ids[*at])).collect();
        assert_eq!(found, left);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_longest_unused_go_until_there_is_room_and_never_one_in_use() {
        smol::block_on(async {
            check(340, &[], &[0, 1, 2, 3, 4], None).await;
            check(350, &[], &[1, 2, 3, 4], None).await;
            check(450, &[0, 2], &[0, 2, 4], None).await;
            check(450, &[0, 1, 3, 4], &[0, 1, 3, 4], Some((150, 100))).await;
        });
    }

    #[test]
    fn an_image_that_has_just_come_is_left_alone() {
        let image = |pulled: Timestamp, id: &[u8]| Image {
            id: Digest::of(id),
            names: Vec::new(),
            digests: Vec::new(),
            size_bytes: 1,
            config: Config::default(),
            created: None,
            pulled,
            layers: Vec::new(),
            diff_ids: Vec::new(),
        };
        let now = Timestamp::from_seconds(10_000);
        let present = [image(Timestamp::from_seconds(9_900), b"new"), image(Timestamp::from_seconds(9_800), b"old")];
        let planned: Vec<Digest> = plan(&present, &BTreeSet::new(), &Uses::new(), now).iter().map(|image| image.id).collect();
        assert_eq!(planned, [Digest::of(b"old")]);
    }
}
