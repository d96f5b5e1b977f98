//! Which devices a container may use: devices.allow and devices.deny on v1, on v2 a small eBPF program made here.
//! No rules: the parent's stay as they are. With rules, the devices that every container has are allowed after them.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Hierarchy, write};
use crate::runtime::spec::DeviceRule;
use crate::sys::filter::{self, ExtendedInstruction};

/// Always usable: null, zero, full, random, urandom, tty, ptmx and all pseudo terminals, OCI "Default Devices".
const ALWAYS: [(i64, i64); 8] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, -1)];

/// Any node may be made, which the runtime itself does for those that config.json lists; using it is another matter. As runc and crun have it.
const MAKE_ANY: [Rule; 2] = [
    Rule { allow: true, kind: Some(2), major: -1, minor: -1, access: MAKE },
    Rule { allow: true, kind: Some(1), major: -1, minor: -1, access: MAKE },
];

const READ: i32 = 2;
const WRITE: i32 = 4;
const MAKE: i32 = 1;

/// One rule with its fields as numbers; -1 for any.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rule {
    allow: bool,
    /// 1: block, 2: character (BPF_DEVCG_DEV_*).
    kind: Option<i32>,
    major: i64,
    minor: i64,
    /// Of READ, WRITE, MAKE (BPF_DEVCG_ACC_*).
    access: i32,
}

pub fn limit_v1(hierarchies: &[Hierarchy], rules: &[DeviceRule]) -> Result<()> {
    if rules.is_empty() {
        return Ok(());
    }
    let hierarchy = hierarchies.iter().find(|hierarchy| hierarchy.has("devices")).context("no devices hierarchy is mounted")?;
    let (allow, deny) = (hierarchy.path.join("devices.allow"), hierarchy.path.join("devices.deny"));
    for rule in all(rules)? {
        write(if rule.allow { &allow } else { &deny }, &rule.v1())?;
    }
    Ok(())
}

pub fn limit_v2(folder: &Path, rules: &[DeviceRule]) -> Result<()> {
    if rules.is_empty() {
        return Ok(());
    }
    let program = filter::load_device_program(&program(&all(rules)?)).context("load the device program")?;
    let cgroup = File::open(folder).with_context(|| format!("open {}", folder.display()))?;
    filter::attach_device_program(cgroup.as_fd(), program.as_fd()).with_context(|| format!("attach devices to {}", folder.display()))
}

fn all(rules: &[DeviceRule]) -> Result<Vec<Rule>> {
    let always = ALWAYS
        .iter()
        .map(|(major, minor)| Ok(Rule { allow: true, kind: Some(2), major: *major, minor: *minor, access: READ | WRITE | MAKE }));
    let mut parsed = rules.iter().map(Rule::parse).chain(always).chain(MAKE_ANY.map(Ok)).collect::<Result<Vec<_>>>()?;
    if parsed.first().is_some_and(Rule::is_everything) && parsed[0].allow && rules.len() == 1 {
        // All devices allowed: nothing to add.
        parsed.truncate(1);
    }
    Ok(parsed)
}

impl Rule {
    fn parse(rule: &DeviceRule) -> Result<Self> {
        let kind = match rule.kind.as_str() {
            "" | "a" => None,
            "b" => Some(1),
            "c" | "u" => Some(2),
            other => bail!("device rule of unknown type {other:?}"),
        };
        let mut access = 0;
        for letter in rule.access.chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MAKE,
                other => bail!("device rule with unknown access {other:?}"),
            };
        }
        let access = if rule.access.is_empty() { READ | WRITE | MAKE } else { access };
        let number = |value: Option<i64>| value.filter(|value| *value >= 0).unwrap_or(-1);
        Ok(Self { allow: rule.allow, kind, major: number(rule.major), minor: number(rule.minor), access })
    }

    fn is_everything(&self) -> bool {
        self.kind.is_none() && self.major < 0 && self.minor < 0 && self.access == READ | WRITE | MAKE
    }

    fn v1(&self) -> String {
        let kind = match self.kind {
            None => return "a".into(),
            Some(1) => 'b',
            Some(_) => 'c',
        };
        let number = |value: i64| if value < 0 { "*".into() } else { value.to_string() };
        let access: String =
            [(READ, 'r'), (WRITE, 'w'), (MAKE, 'm')].iter().filter(|(bit, _)| self.access & bit != 0).map(|(_, c)| c).collect();
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }
}

/// The program for BPF_PROG_TYPE_CGROUP_DEVICE: the last rule that speaks of the access decides, and if none does it is allowed.
///
/// An allowing rule speaks of an access when it names all that is wanted, a denying one when it names any of it.
fn program(rules: &[Rule]) -> Vec<ExtendedInstruction> {
    /// struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor; loaded into registers 2 (type), 3 (access), 4 and 5.
    const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> ExtendedInstruction {
        ExtendedInstruction { code, registers: source << 4 | destination, offset, immediate }
    }
    const LOAD_WORD: u8 = 0x61;
    const MOVE_REGISTER: u8 = 0xbf;
    const MOVE: u8 = 0xb7;
    const AND: u8 = 0x57;
    const SHIFT_RIGHT: u8 = 0x77;
    const JUMP_UNEQUAL: u8 = 0x55;
    const JUMP_EQUAL: u8 = 0x15;
    const EXIT: u8 = 0x95;
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE_REGISTER, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut test = Vec::new();
        if let Some(kind) = rule.kind {
            test.push(instruction(JUMP_UNEQUAL, 2, 0, 0, kind));
        }
        if rule.access != READ | WRITE | MAKE {
            test.push(instruction(MOVE_REGISTER, 1, 3, 0, 0));
            if rule.allow {
                test.push(instruction(AND, 1, 0, 0, !rule.access));
                test.push(instruction(JUMP_UNEQUAL, 1, 0, 0, 0));
            } else {
                test.push(instruction(AND, 1, 0, 0, rule.access));
                test.push(instruction(JUMP_EQUAL, 1, 0, 0, 0));
            }
        }
        if rule.major >= 0 {
            test.push(instruction(JUMP_UNEQUAL, 4, 0, 0, rule.major as i32));
        }
        if rule.minor >= 0 {
            test.push(instruction(JUMP_UNEQUAL, 5, 0, 0, rule.minor as i32));
        }
        // Past the rest of the tests and the two instructions of the verdict.
        let length = test.len();
        for (at, jump) in test.iter_mut().enumerate().filter(|(_, i)| matches!(i.code, JUMP_UNEQUAL | JUMP_EQUAL)) {
            jump.offset = (length - at - 1 + 2) as i16;
        }
        code.append(&mut test);
        code.push(instruction(MOVE, 0, 0, 0, i32::from(rule.allow)));
        code.push(instruction(EXIT, 0, 0, 0, 0));
        if rule.is_everything() {
            // Earlier rules are never reached, and the verifier refuses code that is not.
            return code;
        }
    }
    code.push(instruction(MOVE, 0, 0, 0, 1));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> DeviceRule {
        DeviceRule { allow, kind: kind.into(), major: Some(major), minor: Some(minor), access: access.into() }
    }

    /// Runs the few instructions that `program` uses.
    fn verdict(code: &[ExtendedInstruction], kind: i64, access: i64, major: i64, minor: i64) -> bool {
        let mut registers = [0i64; 11];
        let mut at = 0usize;
        loop {
            let ExtendedInstruction { code: operation, registers: pair, offset, immediate } = code[at];
            let (to, from, immediate) = ((pair & 15) as usize, (pair >> 4) as usize, i64::from(immediate));
            at += 1;
            match operation {
                0x61 => registers[to] = [access << 16 | kind, major, minor][offset as usize / 4],
                0xbf => registers[to] = registers[from],
                0xb7 => registers[to] = immediate,
                0x57 => registers[to] &= immediate,
                0x77 => registers[to] >>= immediate,
                0x55 if registers[to] != immediate => at += offset as usize,
                0x15 if registers[to] == immediate => at += offset as usize,
                0x55 | 0x15 => {}
                0x95 => return registers[0] != 0,
                other => panic!("unknown operation {other:#x}"),
            }
        }
    }

    #[test]
    fn the_last_rule_that_speaks_of_an_access_decides() {
        let rules =
            [rule(false, "a", -1, -1, "rwm"), rule(true, "c", -1, -1, "m"), rule(true, "c", 10, 200, "rw"), rule(false, "c", 5, 2, "w")];
        let code = program(&rules.iter().map(Rule::parse).collect::<Result<Vec<_>>>().unwrap());
        let check = |kind, access, major, minor, expected| {
            assert_eq!(verdict(&code, kind, access, major, minor), expected, "{kind} {access} {major}:{minor}");
        };
        check(2, 1, 8, 0, true);
        check(1, 1, 8, 0, false);
        check(2, 2, 8, 0, false);
        check(2, 6, 10, 200, true);
        check(2, 7, 10, 200, false);
        check(2, 2, 10, 201, false);
        check(2, 4, 5, 2, false);
    }

    #[test]
    fn the_kernel_takes_the_default_program_and_v1_its_lines() {
        let rules = [rule(false, "a", -1, -1, "rwm"), rule(true, "b", 8, -1, "r")];
        let all = all(&rules).unwrap();
        assert_eq!(all.iter().take(3).map(Rule::v1).collect::<Vec<_>>(), ["a", "b 8:* r", "c 1:3 rwm"]);
        let code = program(&all);
        assert!(verdict(&code, 2, 6, 136, 9) && !verdict(&code, 1, 4, 8, 1));
        filter::load_device_program(&code).unwrap();
    }
}
