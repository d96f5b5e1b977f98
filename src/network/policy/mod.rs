//! Which connections the pods of this node may take and make. The agent tells the whole of it, in addresses and ports;
//! `apply_policies` brings the kernel's table to it, and changes nothing but what is different. It knows no Kubernetes object.
//!
//! The table judges what this node forwards, and needs nothing of the bridge: pods reach even their neighbours through the
//! gateway (see `pod`), so that every packet passes the forward hook of the family `ip`, without br_netfilter and without the
//! bridge family of nf_tables, which boards' kernels often lack. Where br_netfilter is there, it calls the same hook. At that hook
//! a Service's address has become a pod's, and the client's is still its own. What the node itself sends to its pods, and they
//! to it, is not forwarded, and so is free as Kubernetes has it.

mod plan;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::nftables::{self, Connection, Transaction};
use super::{Cidr, Network, Protocol};
use rules::Ruleset;

pub use rules::TABLE;

/// Rules that others change meanwhile are read again, this many times.
const ATTEMPTS_MAX: usize = 10;

/// The isolated pods of this node, by their address, with all that they may do nevertheless; a pod that is not named is free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    pub ingress: BTreeMap<Ipv4Addr, BTreeSet<Allowance>>,
    pub egress: BTreeMap<Ipv4Addr, BTreeSet<Allowance>>,
    /// By the name under which allowances mean it.
    pub groups: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    pub sockets: BTreeMap<String, BTreeSet<(Ipv4Addr, Protocol, u16)>>,
}

/// Connections from somebody, or to somebody.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allowance {
    pub peers: Peers,
    /// Of the side that is connected to; `None` for whatever protocol and port.
    pub ports: Option<BTreeSet<Ports>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peers {
    Anyone,
    Group(String),
    Block {
        within: Cidr,
        except: BTreeSet<Cidr>,
    },
    /// To these addresses by these ports.
    Sockets(String),
}

/// From the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    pub protocol: Protocol,
    pub first: u16,
    pub last: u16,
}

impl Ports {
    pub fn one(protocol: Protocol, port: u16) -> Self {
        Self { protocol, first: port, last: port }
    }

    pub fn all(protocol: Protocol) -> Self {
        Self { protocol, first: 0, last: u16::MAX }
    }
}

/// The table as the kernel has it.
#[derive(Debug, Default)]
pub struct Policies {
    /// The ruleset of which `known` is true. None before the first look, and after a failure.
    generation: Option<u32>,
    known: Ruleset,
}

impl Policies {
    /// Changes to other tables of ours have made the one generation of the other: nothing here became untrue by them.
    pub fn follow(&mut self, from: u32, to: u32) {
        if self.generation == Some(from) {
            self.generation = Some(to);
        }
    }

    /// The rules may not be what they should be, now that the ruleset is of this generation.
    pub fn is_due(&self, generation: u32) -> bool {
        !self.known.is_empty() && self.generation != Some(generation)
    }

    /// Brings the table to what is desired, in one transaction: no packet meets half of it. Answers the generations of the
    /// ruleset before and after, and the bytes sent, if anything was to be changed. Blocks; see [`Transaction::commit`].
    fn apply(&mut self, connection: &Connection, isolation: &Isolation) -> Result<Option<(u32, u32, usize)>> {
        let desired = Ruleset::of(isolation);
        for _ in 0..ATTEMPTS_MAX {
            let generation = nftables::generation(connection).context("read the generation of the rules")?;
            let mut transaction = Transaction::new(rules::TABLE, generation);
            if self.generation == Some(generation) || self.is_there(connection, &self.known)? {
                plan::write(&mut transaction, &self.known, &desired);
            } else if !self.is_there(connection, &desired)? {
                if self.generation.is_some() && self.known == desired {
                    log::warn!("table {} was changed by others, mending it", rules::TABLE);
                }
                plan::rebuild(&mut transaction, &desired);
            }
            self.generation = None;
            if transaction.is_empty() {
                (self.generation, self.known) = (Some(generation), desired);
                return Ok(None);
            }
            let bytes = transaction.bytes();
            match transaction.commit(connection) {
                Err(error) if error.raw_os_error() == Some(libc::ERESTART) => {}
                Err(error) => return Err(error).with_context(|| format!("write table {}", rules::TABLE)),
                Ok(()) => {
                    let next = nftables::next_generation(generation);
                    (self.generation, self.known) = (Some(next), desired);
                    return Ok(Some((generation, next, bytes)));
                }
            }
        }
        bail!("the rules change faster than table {} can be written", rules::TABLE)
    }

    /// Whether the kernel's table is this one.
    fn is_there(&self, connection: &Connection, ruleset: &Ruleset) -> Result<bool> {
        let sets: Vec<_> = ruleset.sets().collect();
        let observed = nftables::observe(connection, rules::TABLE, &sets).with_context(|| format!("read table {}", rules::TABLE))?;
        Ok(observed.is_some_and(|observed| ruleset.is_observed(&observed)))
    }
}

impl Network {
    /// What the pods of this node may do from now on; see `apply_policies`.
    pub fn set_policies(&self, isolation: Isolation) {
        self.isolation.replace(Some(Arc::new(isolation)));
    }

    /// Brings the kernel's rules to what was set last; when it is done they stand.
    pub async fn apply_policies(&self) -> Result<()> {
        let mut tables = self.tables.lock_arc().await;
        let Some(isolation) = self.isolation.borrow().clone() else { return Ok(()) };
        let connection = Connection::open().context("open nf_tables socket")?;
        let written = smol::unblock(move || -> Result<Option<usize>> {
            let written = tables.policies.apply(&connection, &isolation)?;
            Ok(written.map(|(from, to, bytes)| {
                tables.services.follow(from, to);
                bytes
            }))
        });
        if let Some(bytes) = written.await.context("set up rules of network policies")? {
            log::debug!("rules of network policies written, {bytes} bytes");
        }
        Ok(())
    }
}
