//! Runs a command in a container for someone at the other end of the tunnel: the messages of the request's body are what it
//! reads, those of the answer's what it prints, and the last one is how it ended. When the request ends, so does the command.
//! Or attaches them to the container's own first process, which goes on when they leave.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_lite::FutureExt;
use hyper::body::Incoming;
use hyper::{Response, StatusCode};
use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;
use serde_json::Value;
use smol::channel::{self, Sender};
use smol::{Async, Timer};

use super::Node;
use super::server::Answered;
use crate::api::streams::{self, CLOSE, ERROR, MESSAGE_BYTES_MAX, RESIZE, STDERR, STDIN, STDOUT};
use crate::base::task;
use crate::runtime::pod::{AttachInput, Attached, ExecConfig, ExecProcess, ExecStdio};
use crate::wire::body::Body;
use crate::wire::messages::{self, Messages};

/// Messages that the master has not taken yet; then the command's output is not read.
const WAITING_MAX: usize = 16;
/// Read from a pipe at once.
const READ_BYTES: usize = 16 << 10;
/// How long what a command has started may hold its output open once it has ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// What a container may print ahead of someone attached to it, before they are sent away.
const ATTACHED_BYTES_MAX: usize = 1 << 20;
/// What programs expect of a terminal that kubectl opens.
const TERMINAL_KIND: &str = "TERM=xterm";

/// What was asked for: the parameters of core/v1 PodExecOptions.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn read(query: &str) -> Self {
        let mut wanted = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            let is_set = matches!(&*value, "true" | "1");
            match &*key {
                "command" => wanted.command.push(value.into_owned()),
                "stdin" => wanted.stdin = is_set,
                "stdout" => wanted.stdout = is_set,
                "stderr" => wanted.stderr = is_set,
                "tty" => wanted.tty = is_set,
                _ => {}
            }
        }
        wanted
    }
}

/// The ends of a command's input and output that are ours. With a terminal, input and output are the same.
struct Ends {
    input: Option<Async<OwnedFd>>,
    outputs: Vec<(u8, Async<OwnedFd>)>,
    terminal: Option<OwnedFd>,
}

/// Runs a command in the container at `namespace`, `pod`, `container`.
///
/// # Errors
/// 404 if it does not run, 400 if the command is none or cannot be started.
pub async fn answer(node: &Rc<Node>, [namespace, pod, container]: [&str; 3], query: &str, body: Incoming) -> Answered {
    let wanted = Wanted::read(query);
    if wanted.command.is_empty() {
        return Err((StatusCode::BAD_REQUEST, "you must specify at least one command for the container".into()));
    }
    let (uid, id) = node.running(namespace, pod, container).map_err(|why| (StatusCode::NOT_FOUND, why))?;
    let name = format!("{namespace}/{pod} container={container}");
    let begun = begin(node, &uid, &id, &wanted).await;
    let begun = begun.map(|(process, ends)| {
        log::info!("pod={name} exec {} pid={}", wanted.command[0], process.pid);
        let ended: Ended = Box::pin(async { Ok(streams::ended(process.wait().await?)) });
        (ended, ends)
    });
    Ok(respond(begun, body, name))
}

/// Attaches to the first process of the container at `namespace`, `pod`, `container`.
///
/// # Errors
/// 404 if it does not run.
pub async fn attach(node: &Rc<Node>, [namespace, pod, container]: [&str; 3], query: &str, body: Incoming) -> Answered {
    let missing = |why| (StatusCode::NOT_FOUND, why);
    let wanted = Wanted::read(query);
    let (uid, id) = node.running(namespace, pod, container).map_err(missing)?;
    let known = node.pod_of(namespace, pod).map_err(missing)?.pod();
    let known = known.spec.init_containers.iter().chain(&known.spec.containers).find(|known| known.name == container);
    let known = known.ok_or_else(|| missing(format!("pod {namespace}/{pod} has no container {container}")))?;
    let name = format!("{namespace}/{pod} container={container}");
    let input = match (wanted.stdin && known.stdin, known.stdin_once) {
        (false, _) => AttachInput::Not,
        (true, false) => AttachInput::Shared,
        (true, true) => AttachInput::Given,
    };
    let begun = begin_attached(node, &uid, &id, &wanted, input, known.tty).await;
    let begun = begun.map(|(attached, ends)| {
        log::info!("pod={name} attach");
        // How the container itself ended is in its pod's status.
        let ended: Ended = Box::pin(async {
            Ok(match attached.wait().await {
                Ok(()) => streams::ended(0),
                Err(error) => streams::failed(&format!("{error:#}")),
            })
        });
        (ended, ends)
    });
    Ok(respond(begun, body, name))
}

/// The Status of the end, when it comes. Dropping it ends what was begun.
type Ended = Pin<Box<dyn Future<Output = Result<Value>>>>;

/// The client has asked for a stream: if nothing was begun, why is told there, as the kubelet does.
fn respond(begun: Result<(Ended, Ends)>, body: Incoming, name: String) -> Response<Body> {
    let (ended, ends) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            let status = streams::failed(&format!("{error:#}"));
            let message = messages::frame(&streams::message(ERROR, status.to_string().as_bytes()));
            return Response::new(Body::stream(futures_lite::stream::once(Ok(message))));
        }
    };
    let (sender, output) = channel::bounded(WAITING_MAX);
    task::spawn(async move {
        if let Err(error) = converse(ended, ends, Messages::new(body, MESSAGE_BYTES_MAX), &sender).await {
            log::debug!("pod={name} exec: {error:#}");
        }
    })
    .detach();
    Response::new(Body::stream(output))
}

async fn begin(node: &Node, uid: &str, id: &str, wanted: &Wanted) -> Result<(ExecProcess, Ends)> {
    let pod = node.runtime.pod(uid).await?.context("the pod has gone")?;
    let mut config = ExecConfig { args: wanted.command.clone(), ..ExecConfig::default() };
    if wanted.tty {
        config.env.push(TERMINAL_KIND.into());
        let mut process = pod.exec(id, config, ExecStdio::Terminal).await?;
        let terminal = process.terminal.take().context("the shim gives no terminal")?;
        let copy = || terminal.try_clone().and_then(Async::new).context("take the terminal");
        let input = wanted.stdin.then(copy).transpose()?;
        let outputs = vec![(STDOUT, copy()?)];
        return Ok((process, Ends { input, outputs, terminal: Some(terminal) }));
    }
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("make a pipe");
    let nothing = || std::fs::File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from).context("open /dev/null");
    let ours = |end: OwnedFd| Async::new(end).context("wait on a pipe");
    let (stdin, input) = match wanted.stdin {
        true => {
            let (theirs, end) = pipe()?;
            (theirs, Some(ours(end)?))
        }
        false => (nothing()?, None),
    };
    let mut outputs = Vec::new();
    let mut output = |channel: u8, is_wanted: bool| -> Result<OwnedFd> {
        if !is_wanted {
            return nothing();
        }
        let (end, theirs) = pipe()?;
        outputs.push((channel, ours(end)?));
        Ok(theirs)
    };
    let fds = [stdin, output(STDOUT, wanted.stdout)?, output(STDERR, wanted.stderr)?];
    let process = pod.exec(id, config, ExecStdio::Fds(fds)).await?;
    Ok((process, Ends { input, outputs, terminal: None }))
}

async fn begin_attached(node: &Node, uid: &str, id: &str, wanted: &Wanted, input: AttachInput, tty: bool) -> Result<(Attached, Ends)> {
    let pod = node.runtime.pod(uid).await?.context("the pod has gone")?;
    let mut outputs = Vec::new();
    let mut output = |channel: u8, is_wanted: bool| -> Result<Option<OwnedFd>> {
        if !is_wanted {
            return Ok(None);
        }
        let (end, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("make a pipe")?;
        if input != AttachInput::Given {
            // The shim does not wait, so there must be room for what comes at once; with less it works all the same.
            let _ = rustix::pipe::fcntl_setpipe_size(&theirs, ATTACHED_BYTES_MAX);
        }
        outputs.push((channel, Async::new(end).context("wait on a pipe")?));
        Ok(Some(theirs))
    };
    // A terminal has one output.
    let given = [output(STDOUT, wanted.stdout || tty && wanted.stderr)?, output(STDERR, wanted.stderr && !tty)?];
    let mut attached = pod.attach(id, input, given).await?;
    let taken = attached.input.take();
    let terminal = if tty { taken.as_ref().map(OwnedFd::try_clone).transpose()? } else { None };
    let input = taken.filter(|_| input != AttachInput::Not).map(Async::new).transpose().context("wait on the container's input")?;
    Ok((attached, Ends { input, outputs, terminal }))
}

type Output = Sender<Result<Bytes, Box<dyn std::error::Error + Send + Sync>>>;

/// Carries messages both ways until the command has ended and all that it printed is on its way, or nobody listens any more.
async fn converse(ended: Ended, ends: Ends, from_client: Messages, sender: &Output) -> Result<()> {
    let Ends { input, outputs, terminal } = ends;
    let printing: Vec<_> = outputs.into_iter().map(|(channel, end)| task::spawn(print(channel, end, sender.clone()))).collect();
    let ended = async {
        let status = ended.await?;
        let drained = async {
            for printed in printing {
                printed.await;
            }
        };
        drained
            .or(async {
                Timer::after(DRAIN_TIMEOUT).await;
            })
            .await;
        let message = streams::message(ERROR, status.to_string().as_bytes());
        // Nobody listens: then nobody wants to know.
        let _ = sender.send(Ok(messages::frame(&message))).await;
        Ok(())
    };
    // A command is ended by its handle being dropped.
    ended.or(listen(from_client, input, terminal)).await
}

/// Sends what the command prints, until its end.
async fn print(channel: u8, end: Async<OwnedFd>, sender: Output) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = end.read_with(|end| Ok(rustix::io::read(end.as_fd(), &mut buffer)?)).await;
        match read {
            // EIO is the end of a terminal: pty(7).
            Ok(0) | Err(_) => return,
            Ok(length) => {
                if sender.send(Ok(messages::frame(&streams::message(channel, &buffer[..length])))).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Takes what the client sends; returns when it is gone.
async fn listen(mut messages: Messages, mut input: Option<Async<OwnedFd>>, terminal: Option<OwnedFd>) -> Result<()> {
    while let Some(message) = messages.next().await? {
        let Some((channel, content)) = message.split_first() else { continue };
        match (*channel, content) {
            (STDIN, content) => {
                if let Some(end) = &input
                    && write(end, content).await.is_err()
                {
                    // The command has closed its input, and may go on without.
                    input = None;
                }
            }
            (CLOSE, [STDIN]) => input = None,
            (RESIZE, content) => {
                if let (Some(terminal), Some((columns, rows))) = (&terminal, streams::size_of(content)) {
                    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                    rustix::termios::tcsetwinsize(terminal, size).context("set the terminal's size")?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

async fn write(end: &Async<OwnedFd>, mut content: &[u8]) -> io::Result<()> {
    while !content.is_empty() {
        let written = end.write_with(|end| Ok(rustix::io::write(end.as_fd(), content)?)).await?;
        content = &content[written..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_read_from_the_query() {
        let wanted = Wanted::read("command=sh&command=-c&command=echo+a%26b&stdin=true&stdout=1&tty=false&container=web");
        let command = ["sh", "-c", "echo a&b"].map(str::to_owned).to_vec();
        assert_eq!(wanted, Wanted { command, stdin: true, stdout: true, stderr: false, tty: false });
    }
}
