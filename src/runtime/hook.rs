//! Hooks: programs that config.json names, run at given points of a container's life with its state on their standard input.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::spec::Hook;

/// Runs them one after the other; the first that fails ends it. `state` is the container's state as JSON.
pub fn run(hooks: &[Hook], state: &[u8]) -> Result<()> {
    hooks.iter().try_for_each(|hook| one(hook, state).with_context(|| format!("run hook {}", hook.path.display())))
}

fn one(hook: &Hook, state: &[u8]) -> Result<()> {
    let mut command = Command::new(&hook.path);
    if let Some((name, arguments)) = hook.args.split_first() {
        command.arg0(name).args(arguments);
    }
    command.env_clear();
    command.envs(hook.env.iter().filter_map(|entry| entry.split_once('=')));
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().expect("a piped standard input is there once");
    // A hook need not read its state. What it has to take is far less than a pipe holds.
    let _ = input.write_all(state);
    drop(input);
    let deadline = hook.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let status = loop {
        match deadline {
            None => break child.wait()?,
            Some(deadline) => match child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    child.kill()?;
                    child.wait()?;
                    bail!("not done after {} s", hook.timeout.unwrap_or_default());
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            },
        }
    };
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}
