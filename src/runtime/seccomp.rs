//! Seccomp filters as the kernel takes them: from linux.seccomp of config.json, or the built-in default, which is compiled ahead of time
//! for the capabilities that containers have by default. It installs none; `runtime::process` does, last of all.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};

use super::capability::Sets;
use super::spec::{Process, Seccomp, SeccompArgument};
use crate::sys::filter::Instruction;
use compile::{Comparison, Condition, Verdict};
use table::Architecture;

mod compile;
mod default;
mod table;

/// A filter for one process.
pub struct Filter {
    program: Vec<Instruction>,
    flags: u32,
    /// What goes with the listener to a seccomp agent.
    metadata: Vec<u8>,
}

/// Action names of the specification, and what the filter returns for them (linux/seccomp.h).
const ACTIONS: [(&str, u32); 9] = [
    ("SCMP_ACT_ALLOW", 0x7fff_0000),
    ("SCMP_ACT_ERRNO", 0x0005_0000),
    ("SCMP_ACT_KILL", 0),
    ("SCMP_ACT_KILL_THREAD", 0),
    ("SCMP_ACT_KILL_PROCESS", 0x8000_0000),
    ("SCMP_ACT_TRAP", 0x0003_0000),
    ("SCMP_ACT_TRACE", 0x7ff0_0000),
    ("SCMP_ACT_LOG", 0x7ffc_0000),
    ("SCMP_ACT_NOTIFY", 0x7fc0_0000),
];

/// SECCOMP_FILTER_FLAG_*. All threads at once: there is only one.
const FLAGS: [(&str, u32); 4] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", 0),
    ("SECCOMP_FILTER_FLAG_LOG", 1 << 1),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", 1 << 2),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", 1 << 5),
];
const NEW_LISTENER: u32 = 1 << 3;

const COMPARISONS: [(&str, Comparison); 7] = [
    ("SCMP_CMP_NE", Comparison::NotEqual),
    ("SCMP_CMP_LT", Comparison::Less),
    ("SCMP_CMP_LE", Comparison::LessOrEqual),
    ("SCMP_CMP_EQ", Comparison::Equal),
    ("SCMP_CMP_GE", Comparison::GreaterOrEqual),
    ("SCMP_CMP_GT", Comparison::Greater),
    ("SCMP_CMP_MASKED_EQ", Comparison::MaskedEqual),
];

const ERRNO: u32 = 0x0005_0000;
const ENOSYS: u32 = ERRNO | libc::ENOSYS as u32;
const EPERM: u32 = ERRNO | libc::EPERM as u32;
const ALLOW: u32 = 0x7fff_0000;

impl Filter {
    /// The filter, or none if nothing would be forbidden.
    pub fn new(seccomp: &Seccomp, process: &Process) -> Result<Option<Self>> {
        if seccomp.runtime_default {
            let names = process.capabilities.clone().unwrap_or_default();
            let program = default::program(Sets::parse(&names)?.bounding);
            return Ok(Some(Self { program, flags: 0, metadata: Vec::new() }));
        }
        let default = action(&seccomp.default_action, seccomp.default_errno_ret).context("defaultAction")?;
        if default == ALLOW && seccomp.syscalls.is_empty() {
            return Ok(None);
        }
        let mut rules: HashMap<&str, Verdict> = HashMap::new();
        let mut notifies = false;
        for rule in &seccomp.syscalls {
            let action = action(&rule.action, rule.errno_ret).with_context(|| format!("rule for {:?}", rule.names))?;
            notifies |= action & 0x7fff_0000 == 0x7fc0_0000;
            let conditions =
                rule.args.iter().map(condition).collect::<Result<Vec<_>>>().with_context(|| format!("rule for {:?}", rule.names))?;
            for name in &rule.names {
                let verdict = rules.entry(name.as_str()).or_insert_with(|| Verdict { branches: Vec::new(), otherwise: default });
                add(verdict, &conditions, action);
            }
        }
        // What this program does not know of, the container should take for a kernel that does not know it either; then its C library
        // falls back to what it used before. runc does the same.
        let unknown = if default & 0xffff_0000 == ERRNO { ENOSYS } else { default };
        let architectures = Architecture::named(&seccomp.architectures);
        let verdict = |name: &str| rules.get(name).cloned().unwrap_or(Verdict { branches: Vec::new(), otherwise: default });
        let mut flags = 0;
        for name in &seccomp.flags {
            let known = FLAGS.iter().find(|(known, _)| known == name).with_context(|| format!("unknown flag {name:?}"))?;
            flags |= known.1;
        }
        if notifies {
            if seccomp.listener_path.is_empty() {
                bail!("SCMP_ACT_NOTIFY needs a listenerPath");
            }
            flags |= NEW_LISTENER;
        }
        let program = compile::program(&architectures, unknown, &verdict)?;
        Ok(Some(Self { program, flags, metadata: seccomp.listener_metadata.clone().into_bytes() }))
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

/// Several conditions on the same argument are alternatives, as runc and libseccomp take them; otherwise all have to hold.
fn add(verdict: &mut Verdict, conditions: &[Condition], action: u32) {
    let repeated = conditions.iter().enumerate().any(|(at, one)| conditions[..at].iter().any(|other| other.argument == one.argument));
    if conditions.is_empty() {
        verdict.otherwise = action;
    } else if repeated {
        verdict.branches.extend(conditions.iter().map(|condition| (vec![*condition], action)));
    } else {
        verdict.branches.push((conditions.to_vec(), action));
    }
}

fn action(name: &str, errno: Option<u32>) -> Result<u32> {
    let (_, value) = ACTIONS.iter().find(|(known, _)| *known == name).with_context(|| format!("unknown action {name:?}"))?;
    let data = match name {
        "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE" => errno.unwrap_or(libc::EPERM as u32) & 0xffff,
        _ => 0,
    };
    Ok(value | data)
}

fn condition(argument: &SeccompArgument) -> Result<Condition> {
    let (_, comparison) =
        COMPARISONS.iter().find(|(known, _)| *known == argument.op).with_context(|| format!("unknown operator {:?}", argument.op))?;
    if argument.index > 5 {
        bail!("argument {} of at most 5", argument.index);
    }
    Ok(Condition { argument: argument.index, comparison: *comparison, value: argument.value, other: argument.value_two })
}

/// What the features document says of it.
pub fn features() -> serde_json::Value {
    let names = |list: &[(&'static str, u32)]| list.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    serde_json::json!({
        "enabled": true,
        "actions": names(&ACTIONS),
        "operators": COMPARISONS.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        "archs": Architecture::NATIVE.iter().map(|architecture| architecture.name()).collect::<Vec<_>>(),
        "knownFlags": names(&FLAGS),
        "supportedFlags": names(&FLAGS),
    })
}

#[cfg(test)]
mod tests {
    use super::compile::tests::run;
    use super::*;
    use crate::runtime::spec::SeccompRule;

    fn rule(name: &str, action: &str, args: &[(u8, u64, u64, &str)]) -> SeccompRule {
        let args = args.iter().map(|(index, value, value_two, op)| SeccompArgument {
            index: *index,
            value: *value,
            value_two: *value_two,
            op: (*op).into(),
        });
        SeccompRule { names: vec![name.into()], action: action.into(), errno_ret: None, args: args.collect() }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_spec_becomes_a_filter_that_tells_its_verdicts() {
        let seccomp = Seccomp {
            default_action: "SCMP_ACT_ERRNO".into(),
            architectures: vec!["SCMP_ARCH_X86_64".into()],
            syscalls: vec![
                rule("read", "SCMP_ACT_ALLOW", &[]),
                rule("personality", "SCMP_ACT_ALLOW", &[(0, 0, 0, "SCMP_CMP_EQ"), (0, 8, 0, "SCMP_CMP_EQ")]),
                rule("clone", "SCMP_ACT_ALLOW", &[(0, 0x7e02_0000, 0, "SCMP_CMP_MASKED_EQ")]),
                rule("kill", "SCMP_ACT_ALLOW", &[(0, 5, 0, "SCMP_CMP_GE"), (1, 9, 0, "SCMP_CMP_NE")]),
                rule("no_such_call", "SCMP_ACT_ALLOW", &[]),
            ],
            ..Seccomp::default()
        };
        let filter = Filter::new(&seccomp, &Process::default()).unwrap().unwrap();
        let check = |number: u32, arguments: [u64; 6], expected: u32| {
            assert_eq!(run(filter.program(), 0xc000_003e, number, arguments), expected, "{number} {arguments:x?}");
        };
        check(0, [0; 6], ALLOW);
        check(1, [0; 6], EPERM);
        check(135, [8, 0, 0, 0, 0, 0], ALLOW);
        check(135, [9, 0, 0, 0, 0, 0], EPERM);
        check(56, [0x11, 0, 0, 0, 0, 0], ALLOW);
        check(56, [0x1000_0011, 0, 0, 0, 0, 0], EPERM);
        check(62, [5, 8, 0, 0, 0, 0], ALLOW);
        check(62, [1 << 32, 8, 0, 0, 0, 0], ALLOW);
        check(62, [4, 8, 0, 0, 0, 0], EPERM);
        check(62, [5, 9, 0, 0, 0, 0], EPERM);
        check(100_000, [0; 6], ENOSYS);
        check(0x4000_0000, [0; 6], ENOSYS);
        assert_eq!(run(filter.program(), 0x4000_0003, 3, [0; 6]), 0x8000_0000, "x86 is not listed");
    }

    #[test]
    fn unknown_words_are_errors_and_nothing_to_forbid_is_no_filter() {
        let seccomp = |default: &str, flag: &str| Seccomp {
            default_action: default.into(),
            flags: if flag.is_empty() { Vec::new() } else { vec![flag.into()] },
            syscalls: if flag.is_empty() { Vec::new() } else { vec![rule("read", "SCMP_ACT_KILL", &[])] },
            ..Seccomp::default()
        };
        let make = |seccomp: Seccomp| Filter::new(&seccomp, &Process::default());
        assert!(make(seccomp("SCMP_ACT_ALLOW", "")).unwrap().is_none());
        assert!(make(seccomp("SCMP_ACT_MAYBE", "")).is_err());
        assert!(make(seccomp("SCMP_ACT_ALLOW", "SECCOMP_FILTER_FLAG_X")).is_err());
        assert_eq!(make(seccomp("SCMP_ACT_ALLOW", "SECCOMP_FILTER_FLAG_LOG")).unwrap().unwrap().flags(), 2);
    }
}
