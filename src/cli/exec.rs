//! `exec`: runs a command in a container, with this terminal as its own if that is asked for, and ends with its exit code.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use futures_lite::FutureExt;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde_json::Value;
use smol::Timer;
use smol::channel::{self, Receiver, Sender};

use super::{Context, logs};
use crate::api::meta;
use crate::api::streams::{self, CLOSE, ERROR, MESSAGE_BYTES_MAX, PROTOCOLS, STDERR, STDIN, STDOUT};
use crate::base::task;
use crate::wire::websocket;

/// Messages to the server that wait to be sent; then nothing more is read.
const WAITING_MAX: usize = 16;
/// Read from standard input at once.
const READ_BYTES: usize = 16 << 10;
/// How soon the command learns that the window has another size.
const RESIZE_INTERVAL: Duration = Duration::from_millis(250);

pub const EXAMPLES: &str = "edgectl exec web-1 -- ls /
edgectl exec -it deployment/web -c nginx -- sh
echo hello | edgectl exec -i web-1 -- tee /tmp/greeting";

/// run a command in a container
#[derive(FromArgs, ArgsInfo)]
pub struct Flags {
    #[argh(positional)]
    words: Vec<String>,
    /// the container
    #[argh(option, short = 'c')]
    container: Option<String>,
    /// pass standard input to the command
    #[argh(switch, short = 'i')]
    stdin: bool,
    /// give the command a terminal
    #[argh(switch, short = 't')]
    tty: bool,
    /// only what the command prints
    #[argh(switch, short = 'q')]
    quiet: bool,
    /// how long to wait until a pod of the workload runs
    #[argh(option, default = "\"1m0s\".to_owned()")]
    pod_running_timeout: String,
}

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    let Flags { words, container, stdin, mut tty, quiet, pod_running_timeout } = flags;
    let help = "See 'edgectl exec -h' for help and examples";
    let name = match (words.first(), cx.names_before_dash()) {
        (None, _) | (_, Some(0)) => bail!("pod, type/name or --filename must be specified\n{help}"),
        (Some(_), Some(1)) if words.len() == 1 => bail!("you must specify at least one command for the container\n{help}"),
        (Some(name), Some(1)) => name,
        (Some(_), None) if words.len() == 1 => bail!("you must specify at least one command for the container\n{help}"),
        _ => bail!("exec [POD] [COMMAND] is not supported anymore. Use exec [POD] -- [COMMAND] instead\n{help}"),
    };
    let (pod, _) = logs::pod_of(cx, name, &pod_running_timeout).await?;
    if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        bail!("cannot exec into a container in a completed pod; current phase is {phase}");
    }
    let container = match container {
        Some(container) => container,
        None => default_container(cx, &pod, quiet)?,
    };
    if tty && !io::stdin().is_terminal() {
        cx.note("Unable to use a TTY - input is not a terminal or the right kind of file");
        tty = false;
    }
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("container", &container);
    for word in &words[1..] {
        query.append_pair("command", word);
    }
    // A terminal has one output.
    for (key, is_set) in [("stdin", stdin), ("stdout", true), ("stderr", !tty), ("tty", tty)] {
        if is_set {
            query.append_pair(key, "true");
        }
    }
    let path = format!("/api/v1/namespaces/{}/pods/{}/exec?{}", meta::namespace(&pod), meta::name(&pod), query.finish());
    let status = session(cx, &path, stdin, tty.then_some(Sizes { redraw: false })).await?;
    match streams::code_of(&status) {
        Ok(0) => Ok(0),
        Ok(code) => {
            cx.note(&format!("command terminated with exit code {code}"));
            Ok(u8::try_from(code).unwrap_or(1))
        }
        Err(why) => Err(anyhow!("{why}")),
    }
}

/// How the far side learns the size of this terminal.
pub struct Sizes {
    /// Another size comes first, so that a program that runs already draws itself anew.
    pub redraw: bool,
}

/// Carries input and output over a WebSocket at `path`; with `sizes`, this terminal is the far side's. Answers the Status of the end.
pub async fn session(cx: &Context, path: &str, stdin: bool, sizes: Option<Sizes>) -> Result<Value> {
    let (sender, receiver) = cx.client()?.websocket(path, &PROTOCOLS, MESSAGE_BYTES_MAX).await?;
    let _raw = sizes.is_some().then(Raw::new).transpose()?;
    converse(sender, receiver, stdin, sizes).await
}

/// The container that the pod's annotation names, or its first; of several, the user is told which.
pub fn default_container(cx: &Context, pod: &Value, quiet: bool) -> Result<String> {
    let containers = pod["spec"]["containers"].as_array().map_or(&[][..], Vec::as_slice);
    let names: Vec<&str> = containers.iter().filter_map(|container| container["name"].as_str()).collect();
    if let Some(name) = meta::annotation(pod, "kubectl.kubernetes.io/default-container").filter(|name| names.contains(name)) {
        return Ok(name.to_owned());
    }
    let first = *names.first().context("the pod has no container")?;
    if names.len() > 1 && !quiet {
        cx.note(&format!("Defaulted container \"{first}\" out of: {}", names.join(", ")));
    }
    Ok(first.to_owned())
}

/// Carries input and output until the server tells how the command ended.
async fn converse(mut sender: websocket::Sender, mut receiver: websocket::Receiver, stdin: bool, sizes: Option<Sizes>) -> Result<Value> {
    let (outgoing, waiting) = channel::bounded(WAITING_MAX);
    if let Some(sizes) = sizes {
        task::spawn(watch_size(outgoing.clone(), sizes.redraw)).detach();
    }
    if stdin {
        // A read from a terminal cannot be called off: this thread ends with the process.
        std::thread::spawn(move || read_input(&outgoing));
    }
    let send = async {
        send_all(&mut sender, waiting).await?;
        std::future::pending().await
    };
    let receive = async {
        while let Some(message) = receiver.next().await? {
            match message.split_first() {
                Some((&STDOUT, content)) => show(&mut io::stdout().lock(), content)?,
                Some((&STDERR, content)) => show(&mut io::stderr().lock(), content)?,
                Some((&ERROR, content)) => return serde_json::from_slice(content).context("read how the command ended"),
                _ => {}
            }
        }
        bail!("the connection ended before the command did")
    };
    receive.or(send).await
}

async fn send_all(sender: &mut websocket::Sender, waiting: Receiver<Vec<u8>>) -> Result<()> {
    while let Ok(message) = waiting.recv().await {
        sender.send(message).await?;
    }
    Ok(())
}

fn show(out: &mut impl Write, content: &[u8]) -> Result<()> {
    out.write_all(content).and_then(|()| out.flush()).context("write what the command prints")
}

/// Sends what comes by standard input, and its end.
fn read_input(outgoing: &Sender<Vec<u8>>) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let message = match io::stdin().lock().read(&mut buffer) {
            Ok(0) | Err(_) => vec![CLOSE, STDIN],
            Ok(length) => streams::message(STDIN, &buffer[..length]),
        };
        let is_end = message[0] == CLOSE;
        if outgoing.send_blocking(message).is_err() || is_end {
            return;
        }
    }
}

/// Sends the window's size at the beginning, and whenever it is another.
async fn watch_size(outgoing: Sender<Vec<u8>>, redraw: bool) {
    let mut last = None;
    let now = || tcgetwinsize(io::stdout().as_fd()).ok().map(|size| (size.ws_col, size.ws_row));
    if let Some((columns, rows)) = now().filter(|_| redraw) {
        // Nobody listens: the next size finds that out as well.
        let _ = outgoing.send(streams::resize(columns.saturating_add(1), rows.saturating_add(1))).await;
    }
    loop {
        let size = now();
        if let Some((columns, rows)) = size.filter(|_| size != last)
            && outgoing.send(streams::resize(columns, rows)).await.is_err()
        {
            return;
        }
        last = size;
        Timer::after(RESIZE_INTERVAL).await;
    }
}

/// A terminal whose keys go to the command as they are; it is put back when dropped.
struct Raw(Termios);

impl Raw {
    fn new() -> Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd()).context("look at the terminal")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).context("set the terminal up")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone, and the process is about to end.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.0);
    }
}
