//! One container as its shim sees it: the process, the pipes it prints to, its log, its record.
//! It starts and removes nothing; workers do.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::process::{Pid, PidfdFlags, WaitStatus, pidfd_open};

use super::log::{Log, Stream};
use super::protocol::{Attach, AttachInput};
use super::status::{ContainerState, ContainerStatus, Exit};
use crate::base::time::Timestamp;

/// Bytes read from a container at once, and how often before others get their turn.
const CHUNK_BYTES: usize = 16 * 1024;
const CHUNKS_A_TURN: usize = 8;

pub struct Container {
    pub status: ContainerStatus,
    /// Holds its record, bundle and root.
    pub folder: PathBuf,
    /// The process, from creation until it is reaped.
    pub pidfd: Option<OwnedFd>,
    /// The read ends of standard output and error, or the terminal alone, until they end.
    pub outputs: [Option<OwnedFd>; 2],
    /// The write end of standard input, held open for a container that asked for one.
    pub stdin: Option<OwnedFd>,
    /// Those who see what it prints as it comes.
    pub viewers: Vec<Viewer>,
    pub log: Log,
    pub losing_lines: bool,
    pub tty: bool,
    /// Requests are carried out one after the other.
    pub busy: bool,
    /// How its process ended, while the worker that started it has not reported yet.
    pub ended: Option<WaitStatus>,
    /// The connection that asked for its removal while it still ran.
    pub removal: Option<Option<u32>>,
}

/// A client that is attached. Its pipes are never waited for: what they do not take at once it misses, so it is sent away.
pub struct Viewer {
    /// The number of its connection.
    pub client: u32,
    outputs: [Option<OwnedFd>; 2],
    is_behind: bool,
}

impl Container {
    /// The worker has made the container's process, which is this process's child by now.
    pub fn created(&mut self, pid: i32, terminal: Option<OwnedFd>) -> io::Result<()> {
        self.pidfd = Some(pidfd_open(Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?, PidfdFlags::empty())?);
        self.status.pid = Some(pid);
        if let Some(terminal) = terminal {
            rustix::io::ioctl_fionbio(&terminal, true)?;
            self.outputs[0] = Some(terminal);
        }
        self.status.save(&self.folder)
    }

    pub fn started(&mut self, now: Timestamp) -> io::Result<()> {
        self.status.state = ContainerState::Running { started_at: now };
        self.status.save(&self.folder)
    }

    /// The process has been reaped. What it printed is in the pipes still, and goes to the log first: whoever sees the exit finds the whole log.
    pub fn exited(&mut self, status: WaitStatus, oom_killed: bool, now: Timestamp) -> io::Result<()> {
        for stream in [Stream::Stdout, Stream::Stderr] {
            while self.copy_output(stream, now) {}
        }
        let started_at = match self.status.state {
            ContainerState::Running { started_at } => Some(started_at),
            ContainerState::Created | ContainerState::Exited(_) => None,
        };
        let (code, signal) = exit_code(status);
        self.pidfd = None;
        self.stdin = None;
        self.status.pid = None;
        self.status.state = ContainerState::Exited(Exit { code, signal, oom_killed, started_at, finished_at: now });
        self.status.save(&self.folder)
    }

    pub fn has_exited(&self) -> bool {
        matches!(self.status.state, ContainerState::Exited(_))
    }

    /// Copies what the container has printed to its log; true if there may be more at once.
    pub fn copy_output(&mut self, stream: Stream, now: Timestamp) -> bool {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        for _ in 0..CHUNKS_A_TURN {
            let Some(output) = &self.outputs[stream as usize] else { return false };
            chunk.clear();
            match rustix::io::read(output, rustix::buffer::spare_capacity(&mut chunk)) {
                // EIO is how a terminal ends when the last process that has it open is gone.
                Ok(0) | Err(rustix::io::Errno::IO) => {
                    self.outputs[stream as usize] = None;
                    self.logged(|log| log.finish(stream, now));
                    return false;
                }
                Ok(_) => {
                    self.logged(|log| log.write(stream, &chunk, now));
                    self.viewers.iter_mut().for_each(|viewer| viewer.show(stream, &chunk));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn logged(&mut self, write: impl FnOnce(&mut Log) -> io::Result<()>) {
        match write(&mut self.log) {
            Ok(()) => self.losing_lines = false,
            // Once: complaints go to a tmpfs, and a full disk stays full for a while.
            Err(_) if self.losing_lines => {}
            Err(error) => {
                self.losing_lines = true;
                log::error!("container={} loses log lines: {error}", self.status.id);
            }
        }
    }

    /// Lets a client see what is printed from now on; answers the terminal, or standard input as far as it is to be had.
    pub fn attach(&mut self, client: u32, attach: &Attach, fds: Vec<OwnedFd>) -> io::Result<Option<OwnedFd>> {
        let mut fds = fds.into_iter();
        let mut output = |is_wanted: bool| is_wanted.then(|| fds.next().ok_or(io::ErrorKind::InvalidInput)).transpose();
        let outputs = [output(attach.stdout)?, output(attach.stderr)?];
        for output in outputs.iter().flatten() {
            rustix::io::ioctl_fionbio(output, true)?;
        }
        let input = match attach.input {
            _ if self.tty => self.outputs[0].as_ref().map(OwnedFd::try_clone).transpose()?,
            AttachInput::Not => None,
            AttachInput::Shared => self.stdin.as_ref().map(OwnedFd::try_clone).transpose()?,
            AttachInput::Given => self.stdin.take(),
        };
        self.viewers.push(Viewer { client, outputs, is_behind: false });
        Ok(input)
    }

    /// Lets go of the viewers that could not take what was printed; answers their numbers.
    pub fn viewers_behind(&mut self) -> Vec<u32> {
        self.viewers.extract_if(.., |viewer| viewer.is_behind).map(|viewer| viewer.client).collect()
    }

    /// Sets the size of its terminal in characters.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let terminal = self.outputs[0].as_ref().filter(|_| self.tty).ok_or(io::ErrorKind::NotConnected)?;
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(terminal.as_fd(), size)?)
    }
}

impl Viewer {
    fn show(&mut self, stream: Stream, chunk: &[u8]) {
        let Some(output) = &self.outputs[stream as usize] else { return };
        match rustix::io::write(output, chunk) {
            Ok(written) if written == chunk.len() => {}
            Ok(_) | Err(rustix::io::Errno::AGAIN) => self.is_behind = true,
            // It has closed this one, and may read the other.
            Err(_) => self.outputs[stream as usize] = None,
        }
    }
}

/// The code as a shell has it, and the signal that ended the process.
pub fn exit_code(status: WaitStatus) -> (i32, Option<i32>) {
    match status.terminating_signal() {
        Some(signal) => (128 + signal, Some(signal)),
        None => (status.exit_status().unwrap_or(255), None),
    }
}
