//! What is known of a container, and its record on the run directory's tmpfs, which also tells the story when the shim itself is gone.
//! A record lives until the container is removed; it decides nothing.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::base::file;
use crate::base::time::Timestamp;

/// The record's name in the container's folder.
pub const FILE: &str = "status.json";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStatus {
    pub id: String,
    pub name: String,
    /// How many containers of this name the pod had before.
    pub attempt: u32,
    /// Seen from the machine's PID namespace; none once it has exited.
    pub pid: Option<i32>,
    #[serde(serialize_with = "micros", deserialize_with = "from_micros")]
    pub created_at: Timestamp,
    pub state: ContainerState,
}

/// A container moves forward only, from one of these to a later one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ContainerState {
    Created,
    Running {
        #[serde(serialize_with = "micros", deserialize_with = "from_micros")]
        started_at: Timestamp,
    },
    Exited(Exit),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// As a shell has it: the process's own code, or 128 and the signal's number.
    pub code: i32,
    pub signal: Option<i32>,
    /// The kernel killed at least one of the container's processes because its memory limit was reached.
    pub oom_killed: bool,
    /// None when it was killed before it was started.
    #[serde(serialize_with = "maybe_micros", deserialize_with = "maybe_from_micros")]
    pub started_at: Option<Timestamp>,
    #[serde(serialize_with = "micros", deserialize_with = "from_micros")]
    pub finished_at: Timestamp,
}

impl ContainerStatus {
    /// Writes the record into the container's folder.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        file::replace(&folder.join(FILE), &serde_json::to_vec(self)?, 0o600)
    }

    pub fn load(folder: &Path) -> io::Result<ContainerStatus> {
        Ok(serde_json::from_slice(&fs::read(folder.join(FILE))?)?)
    }

    /// What is left to say of it when its shim has died: it gets no further, and nobody saw how it ended.
    pub fn without_shim(mut self, now: Timestamp) -> ContainerStatus {
        let started_at = match self.state {
            ContainerState::Exited(_) => return self,
            ContainerState::Created => None,
            ContainerState::Running { started_at } => Some(started_at),
        };
        self.pid = None;
        self.state = ContainerState::Exited(Exit { code: 137, signal: Some(9), oom_killed: false, started_at, finished_at: now });
        self
    }
}

fn micros<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    at.0.serialize(serializer)
}

fn from_micros<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    i64::deserialize(deserializer).map(Timestamp)
}

fn maybe_micros<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    at.map(|at| at.0).serialize(serializer)
}

fn maybe_from_micros<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    Ok(Option::<i64>::deserialize(deserializer)?.map(Timestamp))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: ContainerState) -> ContainerStatus {
        ContainerStatus { id: "c1".to_owned(), name: "web".to_owned(), attempt: 2, pid: Some(42), created_at: Timestamp(5), state }
    }

    #[test]
    fn records_read_back_what_was_written() {
        let folder = std::env::temp_dir().join(format!("edgectl-status-{}", crate::base::id::uid()));
        fs::create_dir_all(&folder).unwrap();
        let exit = Exit { code: 137, signal: Some(9), oom_killed: true, started_at: None, finished_at: Timestamp(7) };
        for state in [ContainerState::Created, ContainerState::Running { started_at: Timestamp(6) }, ContainerState::Exited(exit)] {
            status(state.clone()).save(&folder).unwrap();
            assert_eq!(ContainerStatus::load(&folder).unwrap(), status(state));
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_lost_shim_ends_what_ran_and_leaves_what_had_ended() {
        let lost = status(ContainerState::Running { started_at: Timestamp(6) }).without_shim(Timestamp(9));
        let ContainerState::Exited(exit) = &lost.state else { panic!("{lost:?}") };
        assert_eq!((exit.code, exit.started_at, exit.finished_at, lost.pid), (137, Some(Timestamp(6)), Timestamp(9), None));
        assert_eq!(lost.clone().without_shim(Timestamp(11)), lost);
    }
}
