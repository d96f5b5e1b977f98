//! What connections to the cluster's Services lead to on this node. The agent tells Service by Service what it should be;
//! `apply_services` brings the kernel's rules to it, and changes nothing but what is different. It knows addresses and ports,
//! and no Kubernetes object.

mod plan;
mod rules;

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use smol::Timer;

use super::nftables::{self, Connection, Observed, Transaction};
use super::{Cidr, Network, Protocol, conntrack};
use conntrack::Stale;
use plan::{Elements, Plan, Users};
pub(super) use rules::TABLE;

/// How often it is looked whether others have changed the kernel's rules: one small question to the kernel.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Rules that others change meanwhile are read again, this many times.
const ATTEMPTS_MAX: usize = 10;

/// One port of a Service, as this node serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The port's name within the Service; empty if it is the only one.
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    /// The Service's own address.
    pub address: Ipv4Addr,
    /// Its other addresses, by which it is reached from outside: `externalIPs` and those of a load balancer.
    pub external_addresses: Vec<Ipv4Addr>,
    /// Of these, the ones by which only some networks may come.
    pub sources: BTreeMap<Ipv4Addr, Vec<Cidr>>,
    /// The port of every node's own addresses.
    pub node_port: Option<u16>,
    /// Behind the own address.
    pub backends: Vec<Backend>,
    /// Behind the other addresses and the node port.
    pub external_backends: Vec<Backend>,
    /// Connections from outside keep their source address: their backends are all on this node. Who is on this node himself, a pod
    /// or the node, has the backends of the own address instead.
    pub keeps_source: bool,
    /// For how long a client comes to the same backend again, in seconds. Here it does for as long as the backends are the
    /// same ones, however long that is: its address alone says which, and nothing is kept of it.
    pub affinity_seconds: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    pub address: Ipv4Addr,
    pub port: u16,
}

/// Which addresses are meant where rules name no Service.
#[derive(Clone, Copy, Debug)]
pub struct Networks {
    pub services: Cidr,
    /// Of this node's pods.
    pub pods: Cidr,
}

/// What is to be changed with the next `apply_services`, by `namespace/name`; a Service without ports is to go.
pub type Pending = BTreeMap<String, Vec<ServicePort>>;

/// The Services as the kernel has them.
#[derive(Debug, Default)]
pub struct Services {
    /// The ruleset of which all below is true. None before the first look, and after a failure.
    generation: Option<u32>,
    /// Somebody has asked for rules at all.
    is_started: bool,
    known: BTreeMap<String, Vec<ServicePort>>,
    pending: Pending,
    users: Users,
    /// Two Services want the same address and port: who has it depends on all of them.
    has_conflicts: bool,
}

impl Services {
    /// Changes to other tables of ours have made the one generation of the other: nothing here became untrue by them.
    pub fn follow(&mut self, from: u32, to: u32) {
        if self.generation == Some(from) {
            self.generation = Some(to);
        }
    }

    /// The rules may not be what they should be, now that the ruleset is of this generation.
    fn is_due(&self, generation: u32) -> bool {
        self.is_started && self.generation != Some(generation)
    }

    pub fn take(&mut self, pending: Pending) {
        self.is_started = true;
        self.pending.extend(pending);
        let known = &self.known;
        self.pending.retain(|name, ports| known.get(name).map_or(&[][..], Vec::as_slice) != ports.as_slice());
    }

    /// Writes what is pending, and whatever else is not as it should be; answers the generations of the ruleset
    /// before and after, and how many bytes that took. Blocks; see [`Transaction::commit`].
    pub fn apply(&mut self, connection: &Connection, networks: Networks) -> Result<(u32, u32, usize)> {
        for _ in 0..ATTEMPTS_MAX {
            let generation = nftables::generation(connection).context("read the generation of the rules")?;
            let plan = match self.generation == Some(generation) && !self.has_conflicts && !plan::is_contested(&self.pending, &self.known) {
                true => self.plan_changes(),
                false => {
                    let observed = nftables::observe(connection, TABLE, &rules::SETS);
                    let observed = observed.with_context(|| format!("read table {}", TABLE))?;
                    let is_other = self.generation.is_some_and(|known| known != generation);
                    let plan = self.plan_all(observed.as_ref(), networks);
                    if is_other && self.pending.is_empty() && !plan.is_empty() {
                        log::warn!("table {} was changed by others, mending it", TABLE);
                    }
                    plan
                }
            };
            // Whatever is only half written is looked at before the next change.
            self.generation = None;
            match write(connection, generation, &plan, networks) {
                Ok((next, bytes)) => {
                    self.generation = Some(next);
                    let stale = self.settle(plan);
                    // By now nothing new can come to lead there.
                    if !stale.is_empty() {
                        match conntrack::forget(connection, &stale) {
                            Ok(connections) => log::debug!("{connections} connections to backends that are gone forgotten"),
                            Err(error) => log::warn!("forget connections to backends that are gone: {error}"),
                        }
                    }
                    return Ok((generation, next, bytes));
                }
                Err(error) if error.raw_os_error() == Some(libc::ERESTART) => {}
                Err(error) => return Err(error).with_context(|| format!("write table {}", TABLE)),
            }
        }
        bail!("the rules change faster than table {} can be written", TABLE)
    }

    /// The kernel has what is known: only what is pending can be different.
    fn plan_changes(&self) -> Plan {
        let (mut before, mut after) = (Elements::default(), Elements::default());
        for (name, ports) in &self.pending {
            before.add(self.known.get(name).map_or(&[], Vec::as_slice));
            after.add(ports);
        }
        let users = self.users.moved(&before, &after);
        Plan::new(&before, after, &self.users, users)
    }

    /// Others may have changed the kernel's rules, or an agent before this one has written them.
    fn plan_all(&self, observed: Option<&Observed>, networks: Networks) -> Plan {
        let before = observed.map(Elements::observed).unwrap_or_default();
        let usable = observed.filter(|observed| rules::is_usable(observed, &before, networks));
        let mut after = Elements::default();
        for (_, ports) in self.known.iter().filter(|(name, _)| !self.pending.contains_key(*name)) {
            after.add(ports);
        }
        self.pending.values().for_each(|ports| after.add(ports));
        let users = Users::default().moved(&Elements::default(), &after);
        match usable {
            Some(observed) => Plan::new(&before, after, &rules::kinds_of(observed).collect(), users),
            None => Plan { rebuild: true, ..Plan::new(&Elements::default(), after, &Users::default(), users) },
        }
    }

    /// Answers which connections have to be forgotten.
    fn settle(&mut self, plan: Plan) -> Stale {
        if !plan.conflicts.is_empty() && !self.has_conflicts {
            let contested: Vec<String> = plan.conflicts.iter().map(ToString::to_string).collect();
            log::warn!("more than one Service wants {}", contested.join(", "));
        }
        self.has_conflicts = !plan.conflicts.is_empty();
        self.users = plan.users;
        for (name, ports) in std::mem::take(&mut self.pending) {
            match ports.is_empty() {
                true => self.known.remove(&name),
                false => self.known.insert(name, ports),
            };
        }
        plan.stale
    }
}

/// Brings the kernel from what was to what should be, in one transaction or, if that would be too large, in several, each of
/// which leaves every Service whole. Answers the generation that it made, and the bytes sent.
fn write(connection: &Connection, generation: u32, plan: &Plan, networks: Networks) -> io::Result<(u32, usize)> {
    let (mut generation, mut bytes) = (generation, 0);
    let mut transaction = Transaction::new(TABLE, generation);
    if plan.rebuild {
        rules::rebuild(&mut transaction, networks);
    }
    for step in &plan.steps {
        rules::step(&mut transaction, step);
        if transaction.bytes() >= nftables::TRANSACTION_BYTES_MAX {
            bytes += transaction.bytes();
            transaction.commit(connection)?;
            generation = nftables::next_generation(generation);
            transaction = Transaction::new(TABLE, generation);
        }
    }
    if !transaction.is_empty() {
        bytes += transaction.bytes();
        transaction.commit(connection)?;
        generation = nftables::next_generation(generation);
    }
    Ok((generation, bytes))
}

impl Network {
    /// What the Service is from now on; see `apply_services`.
    pub fn set_service(&self, name: &str, ports: Vec<ServicePort>) {
        self.pending.borrow_mut().insert(name.to_owned(), ports);
    }

    /// Brings the kernel's rules to what was set. What failed is tried again by the next call.
    pub async fn apply_services(&self) -> Result<()> {
        let mut tables = self.tables.lock_arc().await;
        tables.services.take(self.pending.take());
        let connection = Connection::open().context("open nf_tables socket")?;
        let networks = Networks { services: self.config.service_cidr, pods: self.config.pod_cidr };
        let written = smol::unblock(move || -> Result<usize> {
            let (from, to, bytes) = tables.services.apply(&connection, networks)?;
            tables.policies.follow(from, to);
            Ok(bytes)
        });
        let bytes = written.await.context("set up rules of Services")?;
        log::debug!("rules of Services written, {bytes} bytes");
        Ok(())
    }

    /// Mends the rules of Services, of policies and of the pod network when others have changed them, for ever.
    pub async fn keep_services(&self) {
        loop {
            Timer::after(LOOK_EVERY).await;
            if let Err(error) = self.mend_rules().await {
                log::error!("{error:#}");
            }
        }
    }

    async fn mend_rules(&self) -> Result<()> {
        let connection = Connection::open().context("open nf_tables socket")?;
        let generation = nftables::generation(&connection).context("read the generation of the rules")?;
        let tables = self.tables.lock().await;
        let (has_services, has_policies) = (tables.services.is_due(generation), tables.policies.is_due(generation));
        drop(tables);
        // First what shuts pods off, and all of it even if the first fails.
        let isolated = if has_policies { self.apply_policies().await } else { Ok(()) };
        if has_services {
            self.apply_firewall().await?;
            self.apply_services().await?;
        }
        isolated
    }
}
