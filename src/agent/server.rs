//! The agent's end of the tunnel: dials the master, stays connected, and answers what the API server asks of this node.
//! It listens on no port. Paths are the kubelet's own. <https://kubernetes.io/docs/reference/node/kubelet-auth/> names them.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use smol::Timer;

use super::Node;
use super::logs::{self, Wanted};
use super::{exec, port_forward, stats};
use crate::base::time::Timestamp;
use crate::wire::body::Body;
use crate::wire::tunnel;

const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LAST: Duration = Duration::from_secs(10);

/// Keeps the tunnel open as long as the process lives.
pub async fn run(node: Rc<Node>) {
    let path = format!("/api/v1/nodes/{}/tunnel", node.facts.node_name);
    let mut pause = PAUSE_FIRST;
    loop {
        match node.client.upgrade(&path, tunnel::PROTOCOL).await {
            Ok(upgraded) => {
                pause = PAUSE_FIRST;
                let node = node.clone();
                let answer = Rc::new(move |request| answer(node.clone(), request));
                if let Err(error) = tunnel::serve(upgraded, answer).await {
                    log::warn!("tunnel: {error:#}");
                }
            }
            Err(error) => log::warn!("open the tunnel: {error:#}"),
        }
        Timer::after(pause).await;
        pause = (pause * 2).min(PAUSE_LAST);
    }
}

async fn answer(node: Rc<Node>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let answered = match parts.as_slice() {
        ["containerLogs", namespace, pod, container] => container_logs(&node, namespace, pod, container, &query),
        ["exec", namespace, pod, container] => exec::answer(&node, [namespace, pod, container], &query, request.into_body()).await,
        ["stats", "summary"] => stats::summary(&node).await,
        ["metrics", "resource"] => stats::metrics(&node).await,
        ["attach", namespace, pod, container] => exec::attach(&node, [namespace, pod, container], &query, request.into_body()).await,
        ["portForward", namespace, pod] => port_forward::answer(&node, namespace, pod, &query, request.into_body()).await,
        _ => Err((StatusCode::NOT_FOUND, format!("this node has nothing at {path}"))),
    };
    answered.unwrap_or_else(|(code, message)| {
        let mut refusal = Response::new(Body::full(message));
        *refusal.status_mut() = code;
        refusal
    })
}

pub type Answered = Result<Response<Body>, (StatusCode, String)>;

fn container_logs(node: &Rc<Node>, namespace: &str, pod: &str, container: &str, query: &str) -> Answered {
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let pairs: Vec<(Cow<str>, Cow<str>)> = form_urlencoded::parse(query.as_bytes()).collect();
    let parameter = |name: &str| pairs.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| &**value);
    let is_set = |name: &str| matches!(parameter(name), Some("true" | "1"));
    let number = |name: &str| match parameter(name) {
        None => Ok(None),
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| bad(format!("{name} must be a number that is not negative, not {text:?}"))),
    };
    let since = match (number("sinceSeconds")?, parameter("sinceTime")) {
        (Some(seconds), _) => Some(Timestamp(Timestamp::now().0 - seconds as i64 * 1_000_000)),
        (None, Some(text)) => Some(Timestamp::parse(text).ok_or_else(|| bad(format!("sinceTime {text:?} is no RFC 3339 time")))?),
        (None, None) => None,
    };
    let wanted = Wanted {
        follow: is_set("follow"),
        since,
        timestamps: is_set("timestamps"),
        tail: number("tailLines")?,
        limit_bytes: number("limitBytes")?,
    };
    let (path, uid, attempt) = node.log_of(namespace, pod, container, is_set("previous")).map_err(bad)?;
    let (observer, container) = (node.clone(), container.to_owned());
    let ended = move || !observer.runs(&uid, &container, attempt);
    let stream = logs::read(path, wanted, ended).map_err(|error| bad(format!("read the log: {error}")))?;
    let mut answer = Response::new(Body::stream(stream));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(answer)
}
