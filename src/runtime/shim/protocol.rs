//! What the agent and a shim say to each other: frames of a 32-bit little-endian length and that many bytes of JSON, descriptors riding on the first byte.
//! One request is answered before the next on a connection; it knows nothing of what the requests do.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
    sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::status::ContainerStatus;

/// The longest frame in bytes: an exec request with as long a command line as anyone types. Longer ones end the connection.
pub const FRAME_MAX: usize = 256 * 1024;

/// The most descriptors that ride on one frame: standard input, output and error.
pub const FDS_MAX: usize = 3;

/// The length in front of each frame, in bytes.
pub const HEADER_BYTES: usize = 4;

/// Bytes that may arrive before they are taken: the longest frame, and the beginning of the next that came along with its end.
const WAITING_MAX: usize = HEADER_BYTES + FRAME_MAX + READ_BYTES;

/// Read at once from a socket, in bytes.
const READ_BYTES: usize = 4096;

/// What a client asks of a shim.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Answered with `Ready` once the pod stands, and never before requests of a client that is gone are finished.
    Hello,
    Create(Create),
    Start {
        container: String,
    },
    /// `signal` as the kernel numbers it.
    Kill {
        container: String,
        signal: i32,
    },
    Remove {
        container: String,
    },
    /// With three descriptors, or none for a terminal. Answered with `Started` (the terminal's descriptor on it), later with `Ended`; closing the connection kills
    /// the process.
    Exec(Exec),
    /// To a running container, with one descriptor for each output that is wanted: what it prints from now on is written there as well. Answered with `Attached` (on it
    /// the descriptor of its terminal, or of its standard input if that is asked for and open), later with `Ended`, or with `Failed` for who reads too slowly.
    Attach(Attach),
    /// The size of a container's terminal in characters.
    Resize {
        container: String,
        columns: u16,
        rows: u16,
    },
    Status,
    /// Answered with `Exited` for each container that has exited, then for each that does.
    Events,
}

/// A container whose `config.json` lies in its folder already.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Create {
    pub container: String,
    pub name: String,
    pub attempt: u32,
    pub rootfs: Rootfs,
    pub log_path: PathBuf,
    pub log_max_bytes: u64,
    pub log_files_max: u32,
    pub stdin: bool,
    pub tty: bool,
}

/// A container's root: read-only folders, the first on top, and a folder in which the container's own changes are kept.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Rootfs {
    pub lower: Vec<PathBuf>,
    pub writable: PathBuf,
}

/// A further process in a running container; what is not set here is as the container's own process has it.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Exec {
    pub container: String,
    pub args: Vec<String>,
    /// `NAME=value`, added to the container's environment.
    pub env: Vec<String>,
    pub cwd: Option<String>,
    pub user: Option<ExecUser>,
    pub tty: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ExecUser {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
}

#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Attach {
    pub container: String,
    pub input: AttachInput,
    pub stdout: bool,
    pub stderr: bool,
}

/// What is to become of a container's standard input.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum AttachInput {
    Not,
    /// It stays open when the client goes.
    Shared,
    /// It is the client's alone, and ends with it; in return the container waits for the client to read what it prints.
    Given,
}

/// What a shim answers.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// The shim's own process, and the first process of the pod's PID namespace where its containers share one.
    Ready {
        pid: i32,
        init: Option<i32>,
    },
    Done,
    Status(Vec<ContainerStatus>),
    Exited(ContainerStatus),
    Started {
        pid: i32,
    },
    Attached,
    Ended {
        code: i32,
    },
    Failed(String),
}

/// The bytes of one frame.
///
/// # Errors
/// `InvalidInput` when the message is longer than `FRAME_MAX`.
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - HEADER_BYTES;
    if length > FRAME_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("message of {length} bytes, at most {FRAME_MAX} fit")));
    }
    frame[..HEADER_BYTES].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

/// The length that a frame's header announces.
///
/// # Errors
/// `InvalidData` when it is longer than `FRAME_MAX`.
pub fn body_length(header: [u8; HEADER_BYTES]) -> io::Result<usize> {
    match u32::from_le_bytes(header) as usize {
        length if length <= FRAME_MAX => Ok(length),
        length => Err(io::Error::new(io::ErrorKind::InvalidData, format!("frame of {length} bytes, at most {FRAME_MAX} are taken"))),
    }
}

/// Bytes and descriptors that arrived on a connection and are no whole frame yet.
#[derive(Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// What one read from a connection came to.
#[derive(Debug, PartialEq)]
pub enum Arrived {
    Something,
    NothingNow,
    Closed,
}

impl Inbox {
    /// Reads once from `socket`, whatever its blocking mode.
    ///
    /// # Errors
    /// `InvalidData` when more descriptors or bytes arrive than a frame may carry; else what recvmsg(2) says.
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<Arrived> {
        let mut buffer = [0; READ_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        let received = match received {
            Ok(received) => received,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Arrived::NothingNow),
            Err(rustix::io::Errno::CONNRESET) => return Ok(Arrived::Closed),
            Err(error) => return Err(error.into()),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if self.fds.len() > FDS_MAX || received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {FDS_MAX} descriptors in one frame")));
        }
        if received.bytes == 0 {
            return Ok(Arrived::Closed);
        }
        self.bytes.extend_from_slice(&buffer[..received.bytes]);
        if self.bytes.len() > WAITING_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {WAITING_MAX} bytes before the last answer")));
        }
        Ok(Arrived::Something)
    }

    /// Takes the first whole frame and the descriptors that came with it, or nothing while it is not whole.
    ///
    /// # Errors
    /// `InvalidData` when the frame is too long or is no `T`: the connection is of no use any more.
    pub fn take<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let Some(header) = self.bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let end = HEADER_BYTES + body_length(*header)?;
        let Some(body) = self.bytes.get(HEADER_BYTES..end) else { return Ok(None) };
        let message = serde_json::from_slice(body)?;
        if self.bytes.len() == end {
            self.bytes = Vec::new();
        } else {
            self.bytes.drain(..end);
        }
        Ok(Some((message, std::mem::take(&mut self.fds))))
    }
}

/// Sends as much of `bytes` as the socket takes, the descriptors with the first byte; returns how many bytes went.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("more than {FDS_MAX} descriptors in one frame")));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn exec() -> Request {
        let user = Some(ExecUser { uid: 1000, gid: 1000, additional_gids: vec![27] });
        let args = vec!["sh".to_owned(), "-c".to_owned(), "true".to_owned()];
        Request::Exec(Exec { container: "c1".to_owned(), args, env: vec!["A=b".to_owned()], cwd: None, user, tty: false })
    }

    #[test]
    fn frames_read_back_byte_by_byte() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut inbox = Inbox::default();
        let mut bytes = encode(&exec()).unwrap();
        bytes.extend(encode(&Request::Status).unwrap());
        let mut seen = Vec::new();
        for byte in bytes {
            near.write_all(&[byte]).unwrap();
            assert_eq!(inbox.receive(&far).unwrap(), Arrived::Something);
            while let Some((request, fds)) = inbox.take::<Request>().unwrap() {
                assert!(fds.is_empty());
                seen.push(request);
            }
        }
        assert_eq!(seen, [exec(), Request::Status]);
        drop(near);
        assert_eq!(inbox.receive(&far).unwrap(), Arrived::Closed);
    }

    #[test]
    fn descriptors_arrive_with_their_frame() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let frame = encode(&exec()).unwrap();
        assert_eq!(send(&near, &frame, &[writer.as_fd()]).unwrap(), frame.len());
        drop(writer);
        let mut inbox = Inbox::default();
        inbox.receive(&far).unwrap();
        let (request, fds) = inbox.take::<Request>().unwrap().unwrap();
        assert_eq!((request, fds.len()), (exec(), 1));
        std::fs::File::from(fds.into_iter().next().unwrap()).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn oversized_and_senseless_frames_are_refused() {
        for bytes in [&(FRAME_MAX as u32 + 1).to_le_bytes()[..], b"\x02\0\0\0{}", b"\x03\0\0\0\xff\xff\xff"] {
            let mut inbox = Inbox { bytes: bytes.to_vec(), fds: Vec::new() };
            assert_eq!(inbox.take::<Request>().unwrap_err().kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
        assert!(encode(&"x".repeat(FRAME_MAX)).is_err());
    }

    #[test]
    fn too_many_descriptors_are_refused() {
        let (near, far) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut inbox = Inbox::default();
        for _ in 0..2 {
            send(&near, b"x", &[file.as_fd(), file.as_fd()]).unwrap();
        }
        assert_eq!(inbox.receive(&far).unwrap(), Arrived::Something);
        assert_eq!(inbox.receive(&far).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
