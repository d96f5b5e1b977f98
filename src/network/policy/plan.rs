//! The steps from one table of policies to another. Pure: it asks and changes nothing.

use std::collections::BTreeSet;

use super::super::nftables::{Element, Transaction};
use super::rules::{self, EGRESS, INGRESS, Line, Ruleset};

/// What is to be done, in this order: what is led to comes before what leads there, and goes after it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes<'a> {
    create_sets: Vec<&'a str>,
    create_chains: Vec<(&'a str, &'a [Line])>,
    /// By set; what has its key again is replaced.
    delete_elements: Vec<(&'a str, Vec<Element>)>,
    add_elements: Vec<(&'a str, Vec<Element>)>,
    delete_chains: Vec<&'a str>,
    delete_sets: Vec<&'a str>,
}

pub fn plan<'a>(before: &'a Ruleset, after: &'a Ruleset) -> Changes<'a> {
    let mut changes = Changes::default();
    let none = BTreeSet::new();
    for (name, elements) in &after.elements {
        let known = before.elements.get(name);
        if known.is_none() {
            changes.create_sets.push(name);
        }
        let known = known.unwrap_or(&none);
        let [gone, come] = [known.difference(elements), elements.difference(known)].map(|elements| elements.cloned().collect::<Vec<_>>());
        if !gone.is_empty() {
            changes.delete_elements.push((name, gone));
        }
        if !come.is_empty() {
            changes.add_elements.push((name, come));
        }
    }
    // A chain's name says what is in it: it never changes.
    let missing = |one: &'a Ruleset, other: &'a Ruleset| one.chains.iter().filter(|(key, _)| !other.chains.contains_key(*key));
    changes.create_chains.extend(missing(after, before).map(|((_, name), lines)| (name.as_str(), lines.as_slice())));
    changes.delete_chains.extend(missing(before, after).map(|((_, name), _)| name.as_str()));
    changes.delete_sets.extend(before.elements.keys().filter(|name| !after.elements.contains_key(*name)).map(String::as_str));
    changes
}

/// The table anew, or none.
pub fn rebuild(transaction: &mut Transaction, after: &Ruleset) {
    // Deleting what is not there is an error; creating what is there is none.
    transaction.create_table();
    transaction.delete_table();
    write(transaction, &Ruleset::default(), after);
}

/// From the one to the other; a table in which no pod is isolated is no table.
pub fn write(transaction: &mut Transaction, before: &Ruleset, after: &Ruleset) {
    if after.is_empty() {
        if !before.is_empty() {
            transaction.delete_table();
        }
        return;
    }
    let changes = plan(before, after);
    if before.is_empty() {
        transaction.create_table();
        for (name, hook) in [EGRESS, INGRESS] {
            transaction.create_chain(name, Some(hook));
        }
    }
    changes.create_sets.iter().for_each(|name| transaction.create_set(rules::set(name)));
    changes.create_chains.iter().for_each(|(name, _)| transaction.create_chain(name, None));
    for (name, lines) in &changes.create_chains {
        lines.iter().for_each(|line| transaction.add_rule(name, &line.to_string(), &line.expressions()));
    }
    changes.delete_elements.iter().for_each(|(name, elements)| transaction.delete_elements(rules::set(name), elements));
    changes.add_elements.iter().for_each(|(name, elements)| transaction.add_elements(rules::set(name), elements));
    if before.is_empty() {
        rules::base_rules().iter().for_each(|(chain, comment, expressions)| transaction.add_rule(chain, comment, expressions));
    }
    changes.delete_chains.iter().for_each(|name| transaction.delete_chain(name));
    changes.delete_sets.iter().for_each(|name| transaction.delete_set(name));
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::super::Protocol;
    use super::super::{Allowance, Isolation, Peers, Ports};
    use super::*;

    const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 3);

    fn group(ports: &[u16]) -> Allowance {
        let ports = (!ports.is_empty()).then(|| ports.iter().map(|port| Ports::one(Protocol::Tcp, *port)).collect());
        Allowance { peers: Peers::Group("shop web".into()), ports }
    }

    fn ingress(pods: &[Ipv4Addr], allowances: &[Allowance], members: &[u8]) -> Isolation {
        Isolation {
            ingress: pods.iter().map(|pod| (*pod, allowances.iter().cloned().collect())).collect(),
            groups: [("shop web".to_owned(), members.iter().map(|last| [10, 244, 1, *last].into()).collect())].into(),
            ..Isolation::default()
        }
    }

    /// The steps from one state to another, as few words: chains and sets without the hash in their name.
    fn steps(before: &Isolation, after: &Isolation) -> Vec<String> {
        let [before, after] = [before, after].map(Ruleset::of);
        let changes = plan(&before, &after);
        let kind = |name: &str| name.rsplit_once('-').filter(|(_, hash)| hash.len() == 16).map_or(name, |(kind, _)| kind).to_owned();
        let mut steps: Vec<String> = Vec::new();
        steps.extend(changes.create_sets.iter().map(|name| format!("create {}", kind(name))));
        steps.extend(changes.create_chains.iter().map(|(name, lines)| format!("create {} of {}", kind(name), lines.len())));
        steps.extend(changes.delete_elements.iter().map(|(name, elements)| format!("{} -{}", kind(name), elements.len())));
        steps.extend(changes.add_elements.iter().map(|(name, elements)| format!("{} +{}", kind(name), elements.len())));
        steps.extend(changes.delete_chains.iter().map(|name| format!("delete {}", kind(name))));
        steps.extend(changes.delete_sets.iter().map(|name| format!("delete {}", kind(name))));
        steps
    }

    #[test]
    fn pods_that_may_the_same_share_a_chain() {
        let one = ingress(&[POD], &[group(&[])], &[7]);
        let two = ingress(&[POD, OTHER], &[group(&[])], &[7]);
        assert_eq!(
            steps(&Isolation::default(), &one),
            [
                "create egress-pods",
                "create ingress-pods",
                "create pods",
                "create selves",
                "create ingress of 2",
                "ingress-pods +1",
                "pods +1",
                "selves +1"
            ]
        );
        assert_eq!(steps(&one, &two), ["ingress-pods +1", "selves +1"]);
        assert_eq!(steps(&two, &two), [""; 0]);
    }

    #[test]
    fn who_is_selected_is_one_element() {
        let of = |members: &[u8]| ingress(&[POD], &[group(&[])], members);
        assert_eq!(steps(&of(&[7]), &of(&[7, 8])), ["pods +1"]);
        assert_eq!(steps(&of(&[7]), &of(&[8])), ["pods -1", "pods +1"]);
    }

    #[test]
    fn what_is_allowed_changes_only_its_chains() {
        let of = |allowances: &[Allowance]| ingress(&[POD], allowances, &[7]);
        let changed = ["create ingress of 2", "create ports of 1", "ingress-pods -1", "ingress-pods +1", "delete ingress", "delete ports"];
        assert_eq!(steps(&of(&[group(&[80])]), &of(&[group(&[81])])), changed);
        assert_eq!(
            steps(&of(&[group(&[80])]), &of(&[])),
            ["create ingress of 1", "ingress-pods -1", "ingress-pods +1", "delete ingress", "delete ports", "delete pods"]
        );
        let block = |except: &[&str]| {
            let except = except.iter().map(|hole| hole.parse().unwrap()).collect();
            of(&[Allowance { peers: Peers::Block { within: "192.0.2.0/24".parse().unwrap(), except }, ports: None }])
        };
        assert_eq!(
            steps(&of(&[]), &block(&["192.0.2.8/32", "192.0.2.9/32"])),
            ["create ingress of 2", "create block of 3", "ingress-pods -1", "ingress-pods +1", "delete ingress"]
        );
        assert_eq!(steps(&of(&[]), &block(&[])), ["create ingress of 2", "ingress-pods -1", "ingress-pods +1", "delete ingress"]);
    }

    #[test]
    fn without_an_isolated_pod_there_is_nothing() {
        let left = Isolation { ingress: [].into(), ..ingress(&[POD], &[group(&[80])], &[7]) };
        assert!(Ruleset::of(&left).is_empty());
        let mut transaction = Transaction::new(rules::TABLE, 1);
        write(&mut transaction, &Ruleset::default(), &Ruleset::of(&left));
        assert!(transaction.is_empty());
    }
}
