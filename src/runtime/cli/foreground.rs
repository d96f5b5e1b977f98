//! `run` and `exec` without `--detach`: the command stays, passes signals and the terminal's bytes on, and ends as the process did.

use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};
use rustix::termios::{OptionalActions, Termios};

use super::Relay;
use crate::runtime::channel;
use crate::runtime::container::Stdio;
use crate::runtime::spec::Process;
use crate::sys::process;

/// Bytes passed on at a time.
const CHUNK_BYTES: usize = 16 * 1024;

/// The process's descriptors, and the socket on which its terminal will come to us if it is we who shall relay it.
pub fn stdio(console_socket: Option<&str>, detached: bool, process: Option<&Process>) -> Result<(Stdio, Relay)> {
    let terminal = process.is_some_and(|process| process.terminal);
    match console_socket {
        Some(path) => Ok((Stdio::Console(crate::runtime::process::connect(path.as_ref())?), None)),
        None if !terminal => Ok((Stdio::Inherit, None)),
        None if detached => bail!("a terminal and --detach need a --console-socket"),
        None => {
            let (ours, theirs) = channel::pair()?;
            Ok((Stdio::Console(theirs), Some(ours)))
        }
    }
}

/// Waits for the process's end. Gives its exit code, or 128 and the signal that ended it.
pub fn wait(child: BorrowedFd, relay: Relay) -> Result<u8> {
    let terminal = relay.map(|socket| channel::receive_descriptor(&socket)).transpose().context("receive the terminal")?;
    let _raw = terminal.as_ref().map(|_| Raw::enter()).transpose()?;
    // SIGCHLD and the like are ours; those that cannot be caught never come.
    let passed = SigSet::all();
    passed.thread_block().context("block signals")?;
    let signals = SignalFd::with_flags(&passed, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("make a signal descriptor")?;
    let mut input_open = terminal.is_some();
    if let Some(terminal) = &terminal {
        resize(terminal);
    }
    loop {
        let stdin = std::io::stdin();
        let mut events = vec![PollFd::new(&child, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        if let Some(terminal) = &terminal {
            events.push(PollFd::new(terminal, PollFlags::IN));
            if input_open {
                events.push(PollFd::new(&stdin, PollFlags::IN));
            }
        }
        match rustix::event::poll(&mut events, None) {
            Err(Errno::INTR) => continue,
            other => other.context("wait for the process")?,
        };
        let ready: Vec<bool> = events.iter().map(|event| !event.revents().is_empty()).collect();
        drop(events);
        if ready[1] {
            while let Some(signal) = signals.read_signal().context("read a signal")? {
                pass_on(child, terminal.as_ref(), signal.ssi_signo as i32)?;
            }
        }
        if let Some(terminal) = &terminal {
            if ready[2] {
                // The end of a terminal is EIO: nobody has its other side open.
                copy(terminal.as_fd(), std::io::stdout().as_fd())
                    .or_else(|error| if error == Errno::IO { Ok(false) } else { Err(error) })?;
            }
            if ready.get(3) == Some(&true) {
                input_open = copy(stdin.as_fd(), terminal.as_fd())?;
            }
        }
        if ready[0] {
            if let Some(terminal) = &terminal {
                // What it said last.
                rustix::io::ioctl_fionbio(terminal, true)?;
                while copy(terminal.as_fd(), std::io::stdout().as_fd()).unwrap_or(false) {}
            }
            let status = rustix::process::waitid(WaitId::PidFd(child), WaitIdOptions::EXITED).context("wait for the process")?;
            let status = status.context("the process is nobody's child")?;
            let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
            return Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX));
        }
    }
}

fn pass_on(child: BorrowedFd, terminal: Option<&OwnedFd>, signal: i32) -> Result<()> {
    match Signal::try_from(signal) {
        Ok(Signal::SIGCHLD | Signal::SIGPIPE | Signal::SIGURG) => Ok(()),
        Ok(Signal::SIGWINCH) if terminal.is_some() => {
            terminal.into_iter().for_each(resize);
            Ok(())
        }
        _ => match process::pidfd_send_signal(child, signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other.context("pass a signal on"),
        },
    }
}

/// The process's terminal gets the size of ours, if we have one.
fn resize(terminal: &OwnedFd) {
    if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdin()) {
        // A size that does not arrive is not worth an end.
        let _ = rustix::termios::tcsetwinsize(terminal, size);
    }
}

/// One read and all of it written. False at the end.
fn copy(from: BorrowedFd, to: BorrowedFd) -> rustix::io::Result<bool> {
    let mut bytes = [0; CHUNK_BYTES];
    let length = rustix::io::read(from, &mut bytes)?;
    let mut rest = &bytes[..length];
    while !rest.is_empty() {
        let written = rustix::io::write(to, rest)?;
        rest = &rest[written..];
    }
    Ok(length > 0)
}

/// Our own terminal passes every byte through as long as this lives.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self(None));
        }
        let before = rustix::termios::tcgetattr(&stdin).context("read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(&stdin, OptionalActions::Flush, &raw).context("set the terminal's mode")?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Nothing can be done about it while ending.
            let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Flush, before);
        }
    }
}
