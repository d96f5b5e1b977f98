//! One client's end of the shim's socket: what has arrived, what is still to go, and what the client waits for.
//! A client that does not read is dropped at a bound; it never holds up the loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::protocol::{self, Arrived, Inbox, Reply, Request};

/// Bytes that may wait for a client to read them; the status of a pod with a hundred containers has about a quarter of that.
const OUTBOX_MAX: usize = 128 * 1024;

/// What the answer to the client's last request depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Waits {
    /// The next request.
    Nothing,
    /// Requests of clients that are gone to finish.
    Settled,
    /// The worker that carries out its request.
    Worker,
    /// The process that it executed, by its PID.
    Process(i32),
    /// The container that it is attached to to exit, by its number.
    Attached(u32),
    /// Containers to exit, for as long as it likes.
    Events,
}

pub struct Connection {
    socket: UnixStream,
    inbox: Inbox,
    outbox: Vec<u8>,
    pub waits: Waits,
}

impl Connection {
    pub fn new(socket: UnixStream) -> io::Result<Connection> {
        socket.set_nonblocking(true)?;
        Ok(Connection { socket, inbox: Inbox::default(), outbox: Vec::new(), waits: Waits::Nothing })
    }

    /// Reads what is there. False: the client has hung up, or sent what no client of ours sends.
    pub fn receive(&mut self) -> bool {
        matches!(self.inbox.receive(&self.socket), Ok(Arrived::Something | Arrived::NothingNow))
    }

    /// The next whole request, once the one before is answered.
    pub fn request(&mut self) -> io::Result<Option<(Request, Vec<OwnedFd>)>> {
        match self.waits {
            Waits::Nothing => self.inbox.take(),
            _ => Ok(None),
        }
    }

    /// Sends or queues `reply`. False: the client is to be dropped.
    pub fn reply(&mut self, reply: &Reply, terminal: Option<OwnedFd>) -> bool {
        let Ok(frame) = protocol::encode(reply) else { return false };
        let Some(terminal) = terminal else {
            self.outbox.extend(frame);
            return self.outbox.len() <= OUTBOX_MAX && self.flush();
        };
        // A descriptor goes with its frame's first byte, so the frame must not queue behind another: nothing is queued for a client that waits for a terminal.
        match protocol::send(&self.socket, &frame, &[terminal.as_fd()]) {
            Ok(sent) => {
                self.outbox.extend(&frame[sent..]);
                true
            }
            Err(_) => false,
        }
    }

    /// Sends what is queued as far as the client takes it. False: it has hung up.
    pub fn flush(&mut self) -> bool {
        while !self.outbox.is_empty() {
            match protocol::send(&self.socket, &self.outbox, &[]) {
                Ok(sent) if sent == self.outbox.len() => self.outbox = Vec::new(),
                Ok(sent) => drop(self.outbox.drain(..sent)),
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }

    pub fn has_more_to_send(&self) -> bool {
        !self.outbox.is_empty()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_never_reads_is_dropped_at_the_bound() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(near).unwrap();
        let reply = Reply::Failed("x".repeat(10_000));
        let taken = (0..200).take_while(|_| connection.reply(&reply, None)).count();
        assert!((OUTBOX_MAX / 10_000..200).contains(&taken), "{taken}");
        assert!(connection.outbox.len() <= OUTBOX_MAX + 11_000);
        drop(far);
        assert!(!connection.flush());
    }

    #[test]
    fn a_request_waits_for_the_answer_to_the_one_before() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(near).unwrap();
        for _ in 0..2 {
            protocol::send(&far, &protocol::encode(&Request::Status).unwrap(), &[]).unwrap();
        }
        assert!(connection.receive());
        assert!(connection.request().unwrap().is_some());
        connection.waits = Waits::Worker;
        assert!(connection.request().unwrap().is_none());
        connection.waits = Waits::Nothing;
        assert!(connection.request().unwrap().is_some());
        assert!(connection.request().unwrap().is_none());
    }
}
