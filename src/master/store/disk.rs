//! The lasting half of the store: one redb file. It is read once at the start and written by the writer only.
//! Leases and events never reach it, so an idle cluster writes nothing.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Key, Object, State};
use crate::api::schema;

/// `GROUP/VERSION/PLURAL NUL NAMESPACE NUL NAME` → revision (8 bytes, little endian) and the object's JSON.
const OBJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("objects");
/// `revisions`: every revision up to this one may have been given out.
const COUNTERS: TableDefinition<&str, u64> = TableDefinition::new("counters");
const REVISIONS: &str = "revisions";

/// Revisions are reserved on disk by this many at a time: changes that stay in memory use revisions too,
/// and no revision may be given twice, not even after a crash.
const REVISIONS_RESERVED: u64 = 1 << 20;

/// How long another process may hold the file before that is an error, and how often it is asked for.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(5);

/// All objects are in memory, so the database needs pages only for the paths to what it changes.
const CACHE_BYTES: usize = 256 << 10;

pub struct Disk {
    database: Database,
    reserved: u64,
}

/// One change of the lasting state.
pub enum Op<'a> {
    Put(&'a Object),
    Remove(&'a Key),
}

impl Disk {
    /// Opens or makes the database and reads all of it into `state`.
    pub fn open(path: &Path, state: &mut State) -> anyhow::Result<Self> {
        let database = open_when_free(path)?;
        let begin = database.begin_write()?;
        {
            // Makes the tables of a new database; on one that has them this changes nothing.
            begin.open_table(OBJECTS)?;
            begin.open_table(COUNTERS)?;
        }
        begin.commit()?;
        let read = database.begin_read()?;
        for entry in read.open_table(OBJECTS)?.iter()? {
            let (path, bytes) = entry?;
            let object = parse(path.value(), bytes.value()).with_context(|| format!("object {:?}", path.value().replace('\0', " ")))?;
            state.revision = state.revision.max(object.revision);
            state.table_mut(object.key.resource).put(&Arc::new(object));
        }
        let reserved = read.open_table(COUNTERS)?.get(REVISIONS)?.map_or(0, |value| value.value());
        state.revision = state.revision.max(reserved);
        Ok(Self { database, reserved })
    }

    /// Makes all of `ops` lasting, in one synced transaction; does nothing if there is nothing to do.
    pub fn write(&mut self, ops: &[Op], revision: u64) -> Result<(), redb::Error> {
        let reserve = (revision > self.reserved).then(|| revision + REVISIONS_RESERVED);
        if ops.is_empty() && reserve.is_none() {
            return Ok(());
        }
        let transaction = self.database.begin_write()?;
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            for op in ops {
                match op {
                    Op::Put(object) => {
                        let mut bytes = object.revision.to_le_bytes().to_vec();
                        bytes.extend_from_slice(&object.json);
                        objects.insert(path(&object.key).as_str(), bytes.as_slice())?;
                    }
                    Op::Remove(key) => {
                        objects.remove(path(key).as_str())?;
                    }
                }
            }
            if let Some(reserve) = reserve {
                transaction.open_table(COUNTERS)?.insert(REVISIONS, reserve)?;
            }
        }
        transaction.commit()?;
        self.reserved = reserve.unwrap_or(self.reserved);
        Ok(())
    }
}

/// A master that was killed holds its file until the kernel has taken it apart; the next one may be there before that.
fn open_when_free(path: &Path) -> anyhow::Result<Database> {
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match Database::builder().set_cache_size(CACHE_BYTES).create(path) {
            Err(DatabaseError::DatabaseAlreadyOpen) if Instant::now() < deadline => std::thread::sleep(LOCK_POLL),
            Err(DatabaseError::DatabaseAlreadyOpen) => bail!("another process has it open: is a second master running?"),
            opened => return Ok(opened?),
        }
    }
}

/// Whether another process has the database open, told by the lock that redb holds then; whatever is in the file, nothing of it changes.
///
/// # Errors
/// If it cannot be opened or locked.
pub fn is_open_elsewhere(path: &Path) -> anyhow::Result<bool> {
    match File::open(path).map(|file| file.try_lock()) {
        Ok(Ok(())) => Ok(false),
        Ok(Err(TryLockError::WouldBlock)) => Ok(true),
        Ok(Err(TryLockError::Error(error))) | Err(error) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

pub fn path(key: &Key) -> String {
    let Key { resource, namespace, name } = key;
    format!("{}/{}/{}\0{namespace}\0{name}", resource.group, resource.version, resource.plural)
}

/// Reads an object by its path from what is kept of it.
pub fn parse(path: &str, bytes: &[u8]) -> anyhow::Result<Object> {
    let mut parts = path.split('\0');
    let (Some(resource), Some(namespace), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        bail!("its path has not three parts");
    };
    let mut parts = resource.split('/');
    let (Some(group), Some(version), Some(plural), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        bail!("its resource has not three parts");
    };
    let resource =
        schema::resource(group, version, plural).context("this program does not know its resource; was it written by a newer one?")?;
    let (revision, json) = bytes.split_first_chunk().context("its revision is missing")?;
    Object::read(Key::new(resource, namespace, name), u64::from_le_bytes(*revision), json.into())
}
