//! HTTP/1.1, HTTP/2 and TLS on smol, shared by the API server, the agent, the command line and the image client.
//! It knows no Kubernetes object and no path; what a request means is its caller's affair.

pub mod body;
pub mod client;
pub mod dial;
mod io;
pub mod messages;
pub mod pin;
pub mod resolve;
pub mod server;
pub mod spdy;
pub mod tls;
pub mod tunnel;
pub mod websocket;
