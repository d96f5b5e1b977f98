//! What goes over the streams of `exec`: messages that begin with the number of a channel, as kubectl and its server have them
//! (`v5.channel.k8s.io`, KEP-4006), and the Status in which a command's end is told. Pure; who carries them is another matter.

use serde_json::{Value, json};

/// The protocols that are spoken, the best one first. The fifth version can close one channel alone.
pub const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

/// What SPDY's streams hold for `port-forward`, and SPDY for that within a WebSocket.
pub const PORT_FORWARD: &str = "portforward.k8s.io";
pub const PORT_FORWARD_TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
/// Holds one Status, at the end.
pub const ERROR: u8 = 3;
/// Holds `{"Width":80,"Height":24}` whenever the terminal's size changes.
pub const RESIZE: u8 = 4;
/// Followed by the channel that ends.
pub const CLOSE: u8 = 255;

/// The longest message: what is read at once from a pipe, with room to spare.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// A message of a channel.
pub fn message(channel: u8, content: &[u8]) -> Vec<u8> {
    [&[channel], content].concat()
}

/// The Status of a command that has ended: k8s.io/apimachinery NonZeroExitCode.
pub fn ended(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {}, "status": "Failure", "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode", "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

/// The Status of a command that could not be run.
pub fn failed(why: &str) -> Value {
    json!({"metadata": {}, "status": "Failure", "message": why, "reason": "InternalError", "code": 500})
}

/// The code with which a command ended, read from its Status.
///
/// # Errors
/// What the Status says, if the command did not run to an end.
pub fn code_of(status: &Value) -> Result<i32, String> {
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array().map_or(&[][..], Vec::as_slice);
    let code = causes.iter().find(|cause| cause["reason"] == "ExitCode").and_then(|cause| cause["message"].as_str()?.parse().ok());
    code.ok_or_else(|| status["message"].as_str().unwrap_or("the command ended without a word").to_owned())
}

/// A terminal's columns and rows.
pub fn size_of(content: &[u8]) -> Option<(u16, u16)> {
    let size: Value = serde_json::from_slice(content).ok()?;
    let number = |field: &str| u16::try_from(size[field].as_u64()?).ok();
    Some((number("Width")?, number("Height")?))
}

pub fn resize(columns: u16, rows: u16) -> Vec<u8> {
    message(RESIZE, json!({"Width": columns, "Height": rows}).to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_command_reads_back() {
        assert_eq!(code_of(&ended(0)), Ok(0));
        assert_eq!(code_of(&ended(3)), Ok(3));
        assert_eq!(code_of(&failed("no such file")), Err("no such file".into()));
    }

    #[test]
    fn sizes_read_back() {
        let message = resize(80, 24);
        assert_eq!((message[0], size_of(&message[1..])), (RESIZE, Some((80, 24))));
        assert_eq!(size_of(b"{\"Width\":-1}"), None);
    }
}
