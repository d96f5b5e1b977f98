//! The web server of the demonstration: says which pod answered. One thread, one connection at a time, no file, no name
//! looked up; SIGTERM ends it at once, also as process 1, which no signal ends that it does not ask for.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use argh::FromArgs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The first argument of the process; no verb that people type.
pub const ROLE: &str = "hello";

/// A client that is slower than this is let go.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(1);
/// Only the first line of a request is of interest.
const REQUEST_BYTES_MAX: usize = 4096;

/// answer web requests with the name of this pod
#[derive(FromArgs)]
struct Flags {
    /// the port to listen on
    #[argh(option, default = "8080")]
    port: u16,
}

/// The process behind `ROLE`: the exit code.
pub fn main(words: &[String]) -> u8 {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match Flags::from_args(&[ROLE], &words) {
        Ok(flags) => serve(flags.port),
        Err(exit) => Err(anyhow::anyhow!("{}", exit.output.trim())),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error:#}");
            1
        }
    }
}

fn serve(port: u16) -> Result<()> {
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    ends.thread_block().context("block signals")?;
    let ends = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC).context("open signalfd")?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("listen on port {port}"))?;
    listener.set_nonblocking(true).context("listen")?;
    println!("listening on port {port}");
    loop {
        let mut events = [PollFd::new(ends.as_fd(), PollFlags::POLLIN), PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut events, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => bail!("wait for events: {error}"),
        }
        if events[0].any().unwrap_or(false) {
            return Ok(());
        }
        match listener.accept() {
            Ok((client, _)) => {
                if let Err(error) = answer(client) {
                    eprintln!("{error:#}");
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => eprintln!("accept: {error}"),
        }
    }
}

fn answer(mut client: TcpStream) -> Result<()> {
    client.set_nonblocking(false).context("wait for the client")?;
    client.set_read_timeout(Some(CLIENT_TIMEOUT)).context("limit the client")?;
    client.set_write_timeout(Some(CLIENT_TIMEOUT)).context("limit the client")?;
    let mut request = Vec::new();
    let mut buffer = [0; 512];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
        match client.read(&mut buffer).context("read the request")? {
            0 => break,
            length => request.extend_from_slice(&buffer[..length]),
        }
    }
    let line = String::from_utf8_lossy(&request);
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or("/"));
    let address = client.local_addr().context("read the own address")?;
    let page = page(path, &address.to_string())?;
    let body = if method == "HEAD" { "" } else { &page };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        page.len()
    );
    client.write_all(format!("{head}{body}").as_bytes()).context("write the answer")
}

fn page(path: &str, address: &str) -> Result<String> {
    let host = nix::unistd::gethostname().context("read the host name")?;
    let mut page = format!("Hello from {}\n", host.to_string_lossy());
    writeln!(page, "address  {address}")?;
    writeln!(page, "path     {}", path.escape_debug())?;
    writeln!(page, "version  {}", env!("CARGO_PKG_VERSION"))?;
    Ok(page)
}
