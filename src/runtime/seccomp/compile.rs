//! Verdicts to classic BPF: a binary search over ranges of numbers with the same verdict, so that a call costs some eight steps and a
//! filter of four hundred calls some two hundred instructions. Pure.

use anyhow::{Result, bail};

use super::table::Architecture;
use crate::sys::filter::Instruction;

/// What the filter returns for one call: the action of the first branch whose conditions all hold, or `otherwise`.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub branches: Vec<(Vec<Condition>, u32)>,
    pub otherwise: u32,
}

/// On one of the six arguments, all 64 bits of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Condition {
    pub argument: u8,
    pub comparison: Comparison,
    /// For MaskedEqual the mask.
    pub value: u64,
    /// For MaskedEqual what has to be left.
    pub other: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Comparison {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    MaskedEqual,
}

/// BPF_MAXINSNS.
const INSTRUCTIONS_MAX: usize = 4096;
const KILL_PROCESS: u32 = 0x8000_0000;

// linux/bpf_common.h, linux/filter.h
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

// struct seccomp_data of linux/seccomp.h, on little-endian machines
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const fn instruction(code: u16, k: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, k }
}

/// The whole filter. Calls that the table does not have get `unknown`; other architectures than the given kill the process: their
/// numbers mean other calls.
pub fn program(architectures: &[Architecture], unknown: u32, verdict: &dyn Fn(&str) -> Verdict) -> Result<Vec<Instruction>> {
    let mut program = vec![instruction(LOAD, ARCHITECTURE)];
    for architecture in architectures {
        let body = search(&ranges(*architecture, unknown, verdict));
        program.push(Instruction { jump_true: 1, ..instruction(JUMP_EQUAL, architecture.audit()) });
        program.push(instruction(JUMP, body.len() as u32 + 1));
        program.push(instruction(LOAD, NUMBER));
        program.extend(body);
    }
    program.push(instruction(RETURN, KILL_PROCESS));
    if program.len() > INSTRUCTIONS_MAX {
        bail!("{} instructions, the kernel takes {INSTRUCTIONS_MAX}", program.len());
    }
    Ok(program)
}

/// First number of each range with the same verdict, ascending from zero.
fn ranges(architecture: Architecture, unknown: u32, verdict: &dyn Fn(&str) -> Verdict) -> Vec<(u32, Verdict)> {
    let unknown = Verdict { branches: Vec::new(), otherwise: unknown };
    let mut ranges: Vec<(u32, Verdict)> = vec![(0, unknown.clone())];
    let mut push = |start: u32, verdict: Verdict| {
        if ranges.last().is_some_and(|(last, _)| *last == start) {
            ranges.pop();
        }
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((start, verdict));
        }
    };
    for (number, name) in architecture.calls() {
        push(number, verdict(name));
        push(number + 1, unknown.clone());
    }
    ranges
}

fn search(ranges: &[(u32, Verdict)]) -> Vec<Instruction> {
    if let [(_, verdict)] = ranges {
        return leaf(verdict);
    }
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let (start, left, right) = (right[0].0, search(left), search(right));
    let mut program = Vec::with_capacity(left.len() + right.len() + 2);
    match u8::try_from(left.len()) {
        Ok(length) => program.push(Instruction { jump_true: length, ..instruction(JUMP_GREATER_OR_EQUAL, start) }),
        // Too far for a conditional jump.
        Err(_) => {
            program.push(Instruction { jump_false: 1, ..instruction(JUMP_GREATER_OR_EQUAL, start) });
            program.push(instruction(JUMP, left.len() as u32));
        }
    }
    program.extend(left);
    program.extend(right);
    program
}

fn leaf(verdict: &Verdict) -> Vec<Instruction> {
    let mut program = Vec::new();
    for (conditions, action) in &verdict.branches {
        let tests: Vec<Vec<Test>> = conditions.iter().map(test).collect();
        let length: usize = tests.iter().map(Vec::len).sum();
        let mut at = 0;
        for test in tests {
            let end = at + test.len();
            for Test { code, k, on_true, on_false } in test {
                // From the next instruction: to the end of this condition, or past the branch and its verdict.
                let distance = |target: Target| match target {
                    Target::Next => 0,
                    Target::Holds => (end - at - 1) as u8,
                    Target::Fails => (length - at - 1 + 1) as u8,
                };
                program.push(Instruction { code, k, jump_true: distance(on_true), jump_false: distance(on_false) });
                at += 1;
            }
        }
        program.push(instruction(RETURN, *action));
    }
    program.push(instruction(RETURN, verdict.otherwise));
    program
}

#[derive(Clone, Copy)]
enum Target {
    Next,
    Holds,
    Fails,
}

struct Test {
    code: u16,
    k: u32,
    on_true: Target,
    on_false: Target,
}

/// One condition: the upper half of the argument first, the lower half if that does not decide.
fn test(condition: &Condition) -> Vec<Test> {
    use Target::{Fails, Holds, Next};
    let offset = ARGUMENTS + 8 * u32::from(condition.argument);
    let plain = |code, k| Test { code, k, on_true: Next, on_false: Next };
    let jump = |code, k, on_true, on_false| Test { code, k, on_true, on_false };
    let (high, low) = ((condition.value >> 32) as u32, condition.value as u32);
    let ordered = |code, holds, fails| {
        vec![
            plain(LOAD, offset + 4),
            jump(JUMP_GREATER, high, holds, Next),
            jump(JUMP_EQUAL, high, Next, fails),
            plain(LOAD, offset),
            jump(code, low, holds, fails),
        ]
    };
    match condition.comparison {
        Comparison::Equal => {
            vec![plain(LOAD, offset + 4), jump(JUMP_EQUAL, high, Next, Fails), plain(LOAD, offset), jump(JUMP_EQUAL, low, Holds, Fails)]
        }
        Comparison::NotEqual => {
            vec![plain(LOAD, offset + 4), jump(JUMP_EQUAL, high, Next, Holds), plain(LOAD, offset), jump(JUMP_EQUAL, low, Fails, Holds)]
        }
        Comparison::GreaterOrEqual => ordered(JUMP_GREATER_OR_EQUAL, Holds, Fails),
        Comparison::Greater => ordered(JUMP_GREATER, Holds, Fails),
        Comparison::Less => ordered(JUMP_GREATER_OR_EQUAL, Fails, Holds),
        Comparison::LessOrEqual => ordered(JUMP_GREATER, Fails, Holds),
        // Nothing of the upper half counts.
        Comparison::MaskedEqual if high == 0 && condition.other >> 32 == 0 => {
            vec![plain(LOAD, offset), plain(AND, low), jump(JUMP_EQUAL, condition.other as u32, Holds, Fails)]
        }
        Comparison::MaskedEqual => vec![
            plain(LOAD, offset + 4),
            plain(AND, high),
            jump(JUMP_EQUAL, (condition.other >> 32) as u32, Next, Fails),
            plain(LOAD, offset),
            plain(AND, low),
            jump(JUMP_EQUAL, condition.other as u32, Holds, Fails),
        ],
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Runs the few instructions that filters here use, as the kernel would.
    pub fn run(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut accumulator = 0u32;
        let mut at = 0usize;
        loop {
            let Instruction { code, jump_true, jump_false, k } = program[at];
            at += 1;
            let mut branch = |taken: bool| at += usize::from(if taken { jump_true } else { jump_false });
            match code {
                LOAD => {
                    accumulator = match k {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        _ => {
                            let argument = arguments[((k - ARGUMENTS) / 8) as usize];
                            if (k - ARGUMENTS).is_multiple_of(8) { argument as u32 } else { (argument >> 32) as u32 }
                        }
                    }
                }
                AND => accumulator &= k,
                JUMP => at += k as usize,
                JUMP_EQUAL => branch(accumulator == k),
                JUMP_GREATER => branch(accumulator > k),
                JUMP_GREATER_OR_EQUAL => branch(accumulator >= k),
                RETURN => return k,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn every_comparison_looks_at_all_64_bits() {
        let check = |comparison, value: u64, argument: u64, expected: bool| {
            let condition = Condition { argument: 1, comparison, value, other: value & argument };
            let program = leaf(&Verdict { branches: vec![(vec![condition], 1)], otherwise: 2 });
            let seen = run(&program, 0, 0, [0, argument, 0, 0, 0, 0]) == 1;
            assert_eq!(seen, expected, "{comparison:?} {value:#x} {argument:#x}");
        };
        let numbers = [0, 1, 5, u64::from(u32::MAX), 1 << 32, (1 << 32) + 1, (5 << 32) + 1, u64::MAX];
        for value in numbers {
            for argument in numbers {
                check(Comparison::Equal, value, argument, argument == value);
                check(Comparison::NotEqual, value, argument, argument != value);
                check(Comparison::Less, value, argument, argument < value);
                check(Comparison::LessOrEqual, value, argument, argument <= value);
                check(Comparison::Greater, value, argument, argument > value);
                check(Comparison::GreaterOrEqual, value, argument, argument >= value);
                check(Comparison::MaskedEqual, value, argument, true);
            }
        }
        let odd = Condition { argument: 0, comparison: Comparison::MaskedEqual, value: 1, other: 1 };
        let program = leaf(&Verdict { branches: vec![(vec![odd], 1)], otherwise: 2 });
        assert_eq!((run(&program, 0, 0, [3; 6]), run(&program, 0, 0, [2; 6])), (1, 2));
    }

    #[test]
    fn the_search_finds_the_verdict_of_every_call_on_every_architecture() {
        for architecture in [Architecture::X86_64, Architecture::Aarch64, Architecture::Arm, Architecture::X86] {
            // Verdicts that change from call to call: the worst case, with jumps too far for one byte.
            let of = |name: &str| Verdict { branches: Vec::new(), otherwise: name.bytes().map(u32::from).sum() };
            let program = program(&[architecture], 7, &of).unwrap();
            for (number, name) in architecture.calls() {
                assert_eq!(run(&program, architecture.audit(), number, [0; 6]), of(name).otherwise, "{name}");
            }
            for number in [1000, 0x4000_0000, u32::MAX] {
                assert_eq!(run(&program, architecture.audit(), number, [0; 6]), 7, "{number}");
            }
            assert_eq!(run(&program, 1, 0, [0; 6]), KILL_PROCESS);
        }
    }
}
