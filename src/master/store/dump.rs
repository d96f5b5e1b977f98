//! All lasting objects as lines of text, of one revision: what a backup holds, and what a database is made of again. It knows nothing of
//! archives and keys.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::disk::{self, Disk, Op};
use super::{Object, State, Store};
use crate::base::file;

/// Revisions go on this far behind those of the dump. How many were given out since it was made nobody knows, and none may be given twice:
/// who watches since one of them is told to list again. A million changes a second take twelve days to come so far.
const REVISIONS_SKIPPED: u64 = 1 << 40;

/// What a dump is of: its first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub revision: u64,
    pub objects: usize,
}

#[derive(Deserialize)]
struct Line {
    path: String,
    revision: u64,
    object: Value,
}

impl Store {
    /// The lines of all objects that last, at one revision.
    pub fn dump(&self) -> impl Iterator<Item = Vec<u8>> + use<> {
        let state = self.shared.read();
        let lasting = state.tables.values().flat_map(|table| table.objects.values()).filter(|object| !object.key.resource.volatile);
        let objects: Vec<Arc<Object>> = lasting.cloned().collect();
        let head = Head { revision: state.revision, objects: objects.len() };
        let head = format!("{{\"revision\":{},\"objects\":{}}}\n", head.revision, head.objects).into_bytes();
        std::iter::once(head).chain(objects.into_iter().map(|object| line(&object)))
    }
}

fn line(object: &Object) -> Vec<u8> {
    let path = Value::from(disk::path(&object.key));
    let start = format!("{{\"path\":{path},\"revision\":{},\"object\":", object.revision);
    [start.as_bytes(), &object.json, b"}\n"].concat()
}

/// Reads a dump whole; a database can be made of it if this can.
fn read(dump: &[u8]) -> Result<(Head, Vec<Object>)> {
    let mut lines = dump.split_inclusive(|byte| *byte == b'\n');
    let head: Head = serde_json::from_slice(lines.next().unwrap_or_default()).context("read the first line")?;
    let mut objects = Vec::new();
    for (index, line) in lines.enumerate() {
        let object = serde_json::from_slice(line).map_err(anyhow::Error::from).and_then(|line: Line| {
            let json = serde_json::to_vec(&line.object)?;
            disk::parse(&line.path, &[&line.revision.to_le_bytes(), json.as_slice()].concat())
        });
        objects.push(object.with_context(|| format!("read object {}", index + 1))?);
    }
    ensure!(objects.len() == head.objects, "it holds {} objects of {}", objects.len(), head.objects);
    Ok((head, objects))
}

/// Whether a dump is whole, and what it is of.
///
/// # Errors
/// If it is not, or holds what this program does not know.
pub fn check(dump: &[u8]) -> Result<Head> {
    read(dump).map(|(head, _)| head)
}

/// Makes a database at `path`, in the place of what is there, that holds what the dump does.
///
/// # Errors
/// As [`check`], and if the disk does not take it.
pub fn restore(dump: &[u8], path: &Path) -> Result<()> {
    let (head, objects) = read(dump)?;
    file::remove(path).with_context(|| format!("remove {}", path.display()))?;
    let mut disk = Disk::open(path, &mut State::empty()).with_context(|| format!("make {}", path.display()))?;
    let ops: Vec<Op> = objects.iter().map(Op::Put).collect();
    disk.write(&ops, head.revision + REVISIONS_SKIPPED).with_context(|| format!("write {}", path.display()))?;
    drop(disk);
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(|| format!("sync {}", folder.display()))
}
