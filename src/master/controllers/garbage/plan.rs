//! Decides what becomes of an object by the state of its owners and dependents (upstream `pkg/controller/garbagecollector`).
//! Pure: who exists is told to it.

use crate::api::meta::{FOREGROUND, ORPHAN};
use crate::api::workloads::ObjectMeta;
use crate::master::store::objects::Propagation;

/// How an owner named by a reference stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// It exists under that uid.
    Solid,
    /// It does not, or the name is by now another object's.
    Absent,
    /// It is being deleted and waits for its dependents to go first.
    Waiting,
    /// Its kind is not known here, or a namespaced owner is named by an object of the cluster: nobody can say that it is gone.
    Unknown,
}

/// One that names the object as its owner.
#[derive(Clone, Copy, Debug)]
pub struct Dependent {
    /// `blockOwnerDeletion` of its reference.
    pub blocks: bool,
    /// It waits for dependents of its own.
    pub waiting: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Op {
    /// Take these owners, by uid, out of the object's references.
    DropOwners(Vec<String>),
    /// The object's dependents lose it as owner, then it loses this finalizer.
    Orphan,
    /// Its dependents are gone: it loses the finalizer of foreground deletion.
    Finish,
    /// Have its dependents judged; it waits for them.
    VisitDependents,
    /// Two owners wait for each other through it: its own references must not block any more.
    Unblock,
    Delete(Propagation),
}

/// What to do with an object. `owners` are its references with how each stands.
pub fn plan(metadata: &ObjectMeta, owners: &[(String, Owner)], dependents: &[Dependent]) -> Vec<Op> {
    let has = |finalizer: &str| metadata.finalizers.iter().any(|each| each == finalizer);
    if metadata.is_deleting() {
        return match (has(ORPHAN), has(FOREGROUND)) {
            (true, _) => vec![Op::Orphan],
            (_, true) if dependents.iter().any(|dependent| dependent.blocks) => vec![Op::VisitDependents],
            // Those that do not block are deleted too, but nobody waits for them.
            (_, true) => vec![Op::VisitDependents, Op::Finish],
            _ => Vec::new(),
        };
    }
    let those = |state: Owner| owners.iter().filter(move |(_, owner)| *owner == state);
    if owners.is_empty() || those(Owner::Unknown).next().is_some() {
        return Vec::new();
    }
    if those(Owner::Solid).next().is_some() {
        let gone: Vec<String> = those(Owner::Absent).chain(those(Owner::Waiting)).map(|(uid, _)| uid.clone()).collect();
        return if gone.is_empty() { Vec::new() } else { vec![Op::DropOwners(gone)] };
    }
    if those(Owner::Waiting).next().is_some() && !dependents.is_empty() {
        let delete = Op::Delete(Propagation::Foreground);
        return if dependents.iter().any(|dependent| dependent.waiting) { vec![Op::Unblock, delete] } else { vec![delete] };
    }
    vec![Op::Delete(match (has(ORPHAN), has(FOREGROUND)) {
        (true, _) => Propagation::Orphan,
        (_, true) => Propagation::Foreground,
        _ => Propagation::Background,
    })]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::Timestamp;

    fn object(deleting: bool, finalizers: &[&str]) -> ObjectMeta {
        ObjectMeta {
            deletion_timestamp: deleting.then_some(Timestamp(1)),
            finalizers: finalizers.iter().map(|each| (*each).to_owned()).collect(),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn owners_decide_over_their_dependents() {
        use Owner::{Absent, Solid, Unknown, Waiting};
        let check = |owners: &[Owner], expected: &[Op]| {
            let owners: Vec<_> = owners.iter().enumerate().map(|(index, owner)| (index.to_string(), *owner)).collect();
            assert_eq!(plan(&object(false, &[]), &owners, &[]), expected, "{owners:?}");
        };
        check(&[], &[]);
        check(&[Solid], &[]);
        check(&[Absent], &[Op::Delete(Propagation::Background)]);
        check(&[Absent, Absent], &[Op::Delete(Propagation::Background)]);
        check(&[Solid, Absent], &[Op::DropOwners(vec!["1".to_owned()])]);
        check(&[Waiting, Solid, Absent], &[Op::DropOwners(vec!["2".to_owned(), "0".to_owned()])]);
        check(&[Unknown, Absent], &[]);
        check(&[Waiting], &[Op::Delete(Propagation::Background)]);
    }

    #[test]
    fn a_waiting_owner_makes_its_dependents_wait_for_theirs() {
        let owners = [("0".to_owned(), Owner::Waiting)];
        let plain = Dependent { blocks: true, waiting: false };
        assert_eq!(plan(&object(false, &[]), &owners, &[plain]), [Op::Delete(Propagation::Foreground)]);
        let circle = Dependent { blocks: true, waiting: true };
        assert_eq!(plan(&object(false, &[]), &owners, &[circle]), [Op::Unblock, Op::Delete(Propagation::Foreground)]);
    }

    #[test]
    fn an_object_being_deleted_goes_as_its_finalizers_say() {
        let blocking = Dependent { blocks: true, waiting: false };
        let other = Dependent { blocks: false, waiting: false };
        let check = |finalizers: &[&str], dependents: &[Dependent], expected: &[Op]| {
            assert_eq!(plan(&object(true, finalizers), &[("0".to_owned(), Owner::Absent)], dependents), expected, "{finalizers:?}");
        };
        check(&[], &[blocking], &[]);
        check(&["example.com/mine"], &[blocking], &[]);
        check(&[ORPHAN], &[blocking], &[Op::Orphan]);
        check(&[FOREGROUND], &[blocking, other], &[Op::VisitDependents]);
        check(&[FOREGROUND], &[other], &[Op::VisitDependents, Op::Finish]);
        check(&[FOREGROUND], &[], &[Op::VisitDependents, Op::Finish]);
    }
}
