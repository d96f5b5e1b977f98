//! What the two sides of a container's birth say to each other, one message a datagram, so that none is ever half there.
//! It holds no state: the order of messages is the affair of `container` and `init`.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, anyhow, bail};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType,
};

/// The longest message; a longer error text is cut.
const MESSAGE_MAX_BYTES: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Parent to child: identifiers are mapped, or hooks have run; go on.
    Go,
    /// Child to parent: the namespaces are there; run the hooks of the runtime namespace.
    Namespaces,
    /// The intermediate process to the parent: the process wanted has this number.
    Pid(i32),
    /// Child to parent: everything but the execution is done.
    Ready,
    /// Starter to child: execute.
    Start,
    /// Child to whoever waits: it ended in this error.
    Failed(String),
}

/// A connected pair of sockets that keep message boundaries, both closed on execution.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).context("make a socket pair")
}

pub fn send(socket: impl AsFd, message: &Message) -> Result<()> {
    let bytes = match message {
        Message::Go => b"G".to_vec(),
        Message::Namespaces => b"N".to_vec(),
        Message::Pid(pid) => format!("P{pid}").into_bytes(),
        Message::Ready => b"R".to_vec(),
        Message::Start => b"S".to_vec(),
        Message::Failed(text) => {
            let mut bytes = b"F".to_vec();
            bytes.extend_from_slice(text.as_bytes());
            bytes.truncate(MESSAGE_MAX_BYTES);
            bytes
        }
    };
    rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL).context("send to the other side")?;
    Ok(())
}

/// The next message, or `None` when the other side is closed: it executed, or died.
pub fn receive(socket: impl AsFd) -> Result<Option<Message>> {
    let mut bytes = [0; MESSAGE_MAX_BYTES];
    let length = loop {
        match rustix::net::recv(&socket, &mut bytes, RecvFlags::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            // A child killed with our message unread resets the connection: it is closed all the same.
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => break other.context("receive from the other side")?.0,
        }
    };
    let text = String::from_utf8_lossy(&bytes[1.min(length)..length]).into_owned();
    Ok(Some(match bytes[..length].first() {
        None => return Ok(None),
        Some(b'G') => Message::Go,
        Some(b'N') => Message::Namespaces,
        Some(b'P') => Message::Pid(text.parse().context("read a process number")?),
        Some(b'R') => Message::Ready,
        Some(b'S') => Message::Start,
        Some(b'F') => Message::Failed(text),
        Some(other) => bail!("message of unknown kind {other}"),
    }))
}

/// Waits for exactly this message; a failure of the other side becomes ours.
pub fn expect(socket: impl AsFd, wanted: &Message) -> Result<()> {
    match receive(socket)? {
        Some(message) if message == *wanted => Ok(()),
        Some(Message::Failed(text)) => Err(anyhow!(text)),
        Some(other) => bail!("got {other:?} in place of {wanted:?}"),
        None => bail!("the other side died before it said {wanted:?}"),
    }
}

/// Sends a descriptor with `text` beside it (SCM_RIGHTS), as console sockets and seccomp listeners expect it.
pub fn send_descriptor(socket: impl AsFd, descriptor: BorrowedFd, text: &[u8]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        bail!("no room for a descriptor in a control message");
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL).context("send a descriptor")?;
    Ok(())
}

/// Receives one descriptor, closed on execution.
pub fn receive_descriptor(socket: impl AsFd) -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; MESSAGE_MAX_BYTES];
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .context("receive a descriptor")?;
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    received.context("a message without a descriptor")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_in_order_and_an_end_is_seen() {
        let (here, there) = pair().unwrap();
        let messages = [
            Message::Go,
            Message::Namespaces,
            Message::Pid(4_194_303),
            Message::Ready,
            Message::Start,
            Message::Failed("mount /proc: permission denied".into()),
        ];
        for message in &messages {
            send(&here, message).unwrap();
        }
        drop(here);
        for message in messages {
            assert_eq!(receive(&there).unwrap(), Some(message));
        }
        assert_eq!(receive(&there).unwrap(), None);
    }

    #[test]
    fn a_failure_of_the_other_side_is_the_error_one_gets() {
        let (here, there) = pair().unwrap();
        send(&here, &Message::Failed("exec /bin/no: no such file".into())).unwrap();
        assert_eq!(expect(&there, &Message::Ready).unwrap_err().to_string(), "exec /bin/no: no such file");
    }

    #[test]
    fn a_descriptor_arrives_as_the_same_file() {
        let (here, there) = pair().unwrap();
        let (one, other) = pair().unwrap();
        send_descriptor(&here, one.as_fd(), b"/dev/pts/0").unwrap();
        let arrived = receive_descriptor(&there).unwrap();
        send(&arrived, &Message::Go).unwrap();
        assert_eq!(receive(&other).unwrap(), Some(Message::Go));
    }
}
