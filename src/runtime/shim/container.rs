//! One container as its shim sees it: the process, the pipes it prints to, its log, its record.
//! It starts and removes nothing; workers do.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

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

/// What a pipe is made to hold when the container has ended and what it printed last has to fit: as much as any user may ask for.
const LAST_BYTES: usize = 1 << 20;

/// A client that is attached. What its pipes do not take at once it misses, so it is sent away - but for one that was given the
/// container's input: it is to the container what a terminal is to a program, which waits when nobody reads on.
pub struct Viewer {
    /// The number of its connection.
    pub client: u32,
    outputs: [Option<OwnedFd>; 2],
    is_waited_for: bool,
    /// What has been read and logged and did not fit into its pipes. The container's output is not read meanwhile.
    rest: [Vec<u8>; 2],
    /// When a pipe took something last.
    since: Instant,
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
        self.viewers.iter_mut().for_each(Viewer::make_room);
        for stream in [Stream::Stdout, Stream::Stderr] {
            while self.copy_chunk(stream, now) {}
        }
        self.viewers.iter_mut().filter(|viewer| viewer.is_full()).for_each(|viewer| viewer.is_behind = true);
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

    /// Copies what the container has printed to its log and to those who are attached, for a turn.
    pub fn copy_output(&mut self, stream: Stream, now: Timestamp) {
        for _ in 0..CHUNKS_A_TURN {
            if self.is_held() || !self.copy_chunk(stream, now) {
                return;
            }
        }
    }

    /// True if there was something.
    fn copy_chunk(&mut self, stream: Stream, now: Timestamp) -> bool {
        let Some(output) = &self.outputs[stream as usize] else { return false };
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        match rustix::io::read(output, rustix::buffer::spare_capacity(&mut chunk)) {
            // EIO is how a terminal ends when the last process that has it open is gone.
            Ok(0) | Err(rustix::io::Errno::IO) => {
                self.outputs[stream as usize] = None;
                self.logged(|log| log.finish(stream, now));
                false
            }
            Ok(_) => {
                self.logged(|log| log.write(stream, &chunk, now));
                self.viewers.iter_mut().for_each(|viewer| viewer.show(stream, &chunk));
                true
            }
            Err(error) => error == rustix::io::Errno::INTR,
        }
    }

    /// Whether somebody is waited for who has not read on.
    pub fn is_held(&self) -> bool {
        self.viewers.iter().any(Viewer::is_full)
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
        let is_waited_for = attach.input == AttachInput::Given;
        self.viewers.push(Viewer { client, outputs, is_waited_for, rest: Default::default(), since: Instant::now(), is_behind: false });
        Ok(input)
    }

    /// Lets go of the viewers that could not take what was printed, or have not for `patience`; answers their numbers.
    pub fn viewers_behind(&mut self, patience: Duration) -> Vec<u32> {
        let is_over = |viewer: &mut Viewer| viewer.is_behind || viewer.is_full() && viewer.since.elapsed() >= patience;
        self.viewers.extract_if(.., is_over).map(|viewer| viewer.client).collect()
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
        if self.outputs[stream as usize].is_none() || self.is_behind {
            return;
        }
        // Only behind what has to go first is there something to keep before it is tried.
        let was_full = self.is_full();
        self.rest[stream as usize].extend_from_slice(chunk);
        if !was_full {
            self.since = Instant::now();
        }
        self.flush();
        if self.is_full() && !self.is_waited_for {
            self.is_behind = true;
        }
    }

    /// Writes what its pipes take.
    pub fn flush(&mut self) {
        for (output, rest) in self.outputs.iter_mut().zip(&mut self.rest) {
            let Some(pipe) = output.as_ref().filter(|_| !rest.is_empty()) else { continue };
            match rustix::io::write(pipe, rest) {
                Ok(written) => {
                    self.since = Instant::now();
                    rest.drain(..written);
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                // It has closed this one, and may read the other.
                Err(_) => (*output, *rest) = (None, Vec::new()),
            }
            if rest.is_empty() {
                *rest = Vec::new();
            }
        }
    }

    fn is_full(&self) -> bool {
        self.rest.iter().any(|rest| !rest.is_empty())
    }

    /// The pipes that have to take something before the container is read on, and when they took something last.
    pub fn held_by(&self) -> impl Iterator<Item = (&OwnedFd, Instant)> {
        self.outputs
            .iter()
            .zip(&self.rest)
            .filter(|(_, rest)| !rest.is_empty())
            .filter_map(|(output, _)| Some((output.as_ref()?, self.since)))
    }

    /// There will be no other time to write.
    fn make_room(&mut self) {
        for output in self.outputs.iter().flatten() {
            // With less room some of what was printed last is lost, and the client is told so.
            let _ = rustix::pipe::fcntl_setpipe_size(output, LAST_BYTES);
        }
        self.flush();
    }
}

/// The code as a shell has it, and the signal that ended the process.
pub fn exit_code(status: WaitStatus) -> (i32, Option<i32>) {
    match status.terminating_signal() {
        Some(signal) => (128 + signal, Some(signal)),
        None => (status.exit_status().unwrap_or(255), None),
    }
}
