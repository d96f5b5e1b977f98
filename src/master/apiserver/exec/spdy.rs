//! The client's side of `exec` and `attach` over SPDY, as kubectl spoke it up to 1.29 and speaks it still where a WebSocket does not get
//! through: a stream for each channel, named by its header `streamType`.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_lite::FutureExt;
use hyper::upgrade::Upgraded;
use serde_json::Value;
use smol::Timer;

use super::ToNode;
use crate::api::status::Status;
use crate::api::streams::{self, CLOSE, ERROR, RESIZE, STDERR, STDIN, STDOUT};
use crate::master::apiserver::query::{Query, boolean};
use crate::wire::messages::{self, Messages};
use crate::wire::spdy::{Side, Stream, over};

/// What may go over the streams, the oldest last: the second version ended output properly, the third brought the terminal's size,
/// the fourth the end of the command as a Status.
pub const PROTOCOLS: [&str; 4] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// How long the client may take to open its streams, and to hang up when all is said.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
pub const GOODBYE_TIMEOUT: Duration = Duration::from_secs(10);
/// A window's size takes some thirty.
const RESIZE_BYTES_MAX: usize = 1 << 10;

/// The streams that a client of this request opens.
pub struct Wanted {
    channels: Vec<u8>,
    /// The end is told as a Status, not in words.
    with_status: bool,
}

impl Wanted {
    /// # Errors
    /// 400 if the client wants to hear and say nothing.
    pub fn read(query: &Query, protocol: &str) -> Result<Self, Status> {
        let is_set = |key: &str| !query.get(key).is_empty() && boolean(query.get(key));
        let (tty, with_status) = (is_set("tty"), protocol == PROTOCOLS[0]);
        let asked = [("stdin", STDIN, true), ("stdout", STDOUT, true), ("stderr", STDERR, !tty)];
        let mut channels: Vec<u8> =
            asked.into_iter().filter(|(key, _, is_possible)| *is_possible && is_set(key)).map(|(_, channel, _)| channel).collect();
        if channels.is_empty() {
            return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        channels.push(ERROR);
        if tty && PROTOCOLS[..2].contains(&protocol) {
            channels.push(RESIZE);
        }
        Ok(Self { channels, with_status })
    }
}

fn channel_of(stream: &Stream) -> Option<u8> {
    Some(match stream.header("streamtype") {
        "stdin" => STDIN,
        "stdout" => STDOUT,
        "stderr" => STDERR,
        "error" => ERROR,
        "resize" => RESIZE,
        _ => return None,
    })
}

/// Carries messages both ways until the command has ended or the client is gone.
pub async fn relay(
    connection: Upgraded,
    wanted: Wanted,
    asked: impl Future<Output = Result<Messages, Bytes>>,
    to_node: ToNode,
) -> Result<()> {
    let session = over(connection, Side::Server);
    let opened = async {
        let mut opened: Vec<(u8, Stream)> = Vec::new();
        while opened.len() < wanted.channels.len() {
            let stream = session.accept().await.context("the client has gone")?;
            // Others, and a second one for the same, are given up by being dropped.
            if let Some(channel) = channel_of(&stream)
                && wanted.channels.contains(&channel)
                && opened.iter().all(|(known, _)| *known != channel)
            {
                opened.push((channel, stream));
            }
        }
        Ok(opened)
    };
    let timeout = async {
        Timer::after(STREAMS_TIMEOUT).await;
        Err(anyhow::anyhow!("the client has not opened its streams within {} s", STREAMS_TIMEOUT.as_secs()))
    };
    let opened = opened.or(timeout).await?;
    let stream = |channel: u8| opened.iter().find(|(known, _)| *known == channel).map(|(_, stream)| stream);
    let down = async {
        match asked.await {
            Ok(mut from_node) => {
                while let Some(message) = from_node.next().await? {
                    tell(&message, stream, wanted.with_status).await?;
                }
            }
            Err(refusal) => tell(&refusal, stream, wanted.with_status).await?,
        }
        anyhow::Ok(())
    };
    let gone = async { while session.accept().await.is_some() {} };
    let up = async {
        let input = async {
            if let Some(stdin) = stream(STDIN) {
                forward_input(stdin, &to_node).await;
            }
            std::future::pending().await
        };
        let sizes = async {
            if let Some(resize) = stream(RESIZE) {
                forward_sizes(resize, &to_node).await;
            }
            std::future::pending().await
        };
        gone.or(input).or(sizes).await;
        // The node learns it by the end of the body, and ends the command.
        to_node.close();
        std::future::pending().await
    };
    down.or(up).await?;
    for (_, stream) in &opened {
        stream.finish().await;
    }
    // The client closes, so that nothing of what was said last is lost on its way; what it still says is of no use any more.
    let leftover = async {
        if let Some(stdin) = stream(STDIN) {
            while let Ok(Some(_)) = stdin.read().await {}
        }
        std::future::pending().await
    };
    let timeout = async {
        Timer::after(GOODBYE_TIMEOUT).await;
    };
    let gone = async { while session.accept().await.is_some() {} };
    gone.or(leftover).or(timeout).await;
    Ok(())
}

/// A message of the node, on the stream of its channel.
async fn tell<'a>(message: &[u8], stream: impl Fn(u8) -> Option<&'a Stream>, with_status: bool) -> Result<()> {
    let Some((channel, content)) = message.split_first() else { return Ok(()) };
    let Some(stream) = stream(*channel) else { return Ok(()) };
    match *channel {
        STDOUT | STDERR => stream.write(content).await,
        ERROR if with_status => stream.write(content).await,
        ERROR => stream.write(in_words(content).as_bytes()).await,
        _ => Ok(()),
    }
}

/// How a command ended, as older clients read it: nothing if all is well.
fn in_words(status: &[u8]) -> String {
    let status: Value = serde_json::from_slice(status).unwrap_or_default();
    if status["status"] == "Success" { String::new() } else { status["message"].as_str().unwrap_or_default().to_owned() }
}

async fn forward_input(stdin: &Stream, to_node: &ToNode) {
    loop {
        let message = match stdin.read().await {
            Ok(Some(content)) => streams::message(STDIN, &content),
            Ok(None) | Err(_) => vec![CLOSE, STDIN],
        };
        let is_end = message[0] == CLOSE;
        if to_node.send(Ok(messages::frame(&message))).await.is_err() || is_end {
            return;
        }
    }
}

/// Sizes come one a line, cut anyhow.
async fn forward_sizes(resize: &Stream, to_node: &ToNode) {
    let mut line = Vec::new();
    while let Ok(Some(content)) = resize.read().await {
        for byte in content {
            if byte != b'\n' {
                line.push(byte);
            } else if to_node.send(Ok(messages::frame(&streams::message(RESIZE, &line)))).await.is_err() {
                return;
            } else {
                line.clear();
            }
        }
        if line.len() > RESIZE_BYTES_MAX {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_those_that_the_request_and_its_protocol_have() {
        let wanted = |query: &str, protocol: &str| Wanted::read(&Query::parse(query).unwrap(), protocol).map(|wanted| wanted.channels);
        let [v4, v3, v2, v1] = PROTOCOLS;
        assert_eq!(wanted("stdin=true&stdout=1&stderr=true", v4).unwrap(), [STDIN, STDOUT, STDERR, ERROR]);
        for (protocol, with_size) in [(v4, true), (v3, true), (v2, false), (v1, false)] {
            let channels = wanted("stdin=true&stdout=true&stderr=true&tty=true", protocol).unwrap();
            assert_eq!(channels, [&[STDIN, STDOUT, ERROR][..], if with_size { &[RESIZE] } else { &[] }].concat(), "{protocol}");
        }
        assert_eq!(wanted("stdin=false&stdout=true", v4).unwrap(), [STDOUT, ERROR]);
        assert!(wanted("tty=true", v4).is_err());
    }

    #[test]
    fn older_clients_are_told_the_end_in_words() {
        assert_eq!(in_words(streams::ended(0).to_string().as_bytes()), "");
        assert_eq!(in_words(streams::ended(3).to_string().as_bytes()), "command terminated with non-zero exit code: exit status 3");
    }
}
