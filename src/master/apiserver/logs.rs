//! `pods/log`: finds the container, asks the node that runs it, and passes on what comes, without keeping it.

use hyper::Request;
use hyper::Response;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use serde_json::Value;

use super::query::Query;
use super::respond;
use crate::api::meta;
use crate::api::status::Status;
use crate::master::nodes::Nodes;
use crate::wire::body::{self, Body};

/// Of a node's error text.
const ERROR_BYTES_MAX: usize = 16 << 10;
/// Parameters of a log request that go on to the node, as kubelet names them.
const PARAMETERS: [&str; 8] = ["follow", "previous", "tailLines", "sinceSeconds", "sinceTime", "timestamps", "limitBytes", "stream"];

/// Answers `pods/log`.
///
/// # Errors
/// 400 if no container or a wrong one is named; what the node says; 503 if it is not connected.
pub async fn answer(nodes: &Nodes, pod: &Value, query: &Query) -> Result<Response<Body>, Status> {
    let (node, container) = place_of(pod, query.get("container"))?;
    let Some(node) = node else {
        return Ok(respond::text(200, ""));
    };
    let asked = query.pairs.iter().filter(|(key, _)| PARAMETERS.contains(&&**key));
    let asked = form_urlencoded::Serializer::new(String::new()).extend_pairs(asked).finish();
    let path = format!("/containerLogs/{}/{}/{container}?{asked}", meta::namespace(pod), meta::name(pod));
    let request = Request::get(path).body(Body::empty()).map_err(|error| Status::bad_request(error.to_string()))?;
    let (parts, incoming) = accepted(nodes.request(node, request).await?).await?.into_parts();
    let mut response = respond::stream("text/plain", Body::relay(incoming));
    if let Some(content_type) = parts.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, content_type.clone());
    }
    Ok(response)
}

/// The node that runs the pod, if one does yet, and the container that is meant.
///
/// # Errors
/// 400 if no container or a wrong one is named.
pub fn place_of<'a>(pod: &'a Value, container: &'a str) -> Result<(Option<&'a str>, &'a str), Status> {
    let container = container_of(pod, container)?;
    Ok((pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()), container))
}

/// A node's answer, if it is a good one.
///
/// # Errors
/// What the node says.
pub async fn accepted(answer: Response<Incoming>) -> Result<Response<Incoming>, Status> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let code = answer.status().as_u16();
    let text = body::read_all(answer.into_body(), ERROR_BYTES_MAX).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    Err(match code {
        400 => Status::bad_request(text),
        404 => Status::new(404, "NotFound", text),
        _ => Status::internal(text),
    })
}

/// The container that is meant: the one that is named, the default one, or the only one.
fn container_of<'a>(pod: &'a Value, asked: &'a str) -> Result<&'a str, Status> {
    let names = |field: &str| -> Vec<&'a str> {
        pod["spec"][field].as_array().into_iter().flatten().filter_map(|container| container["name"].as_str()).collect()
    };
    let (containers, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let pod_name = meta::name(pod);
    if !asked.is_empty() {
        let known = [&containers, &init, &ephemeral].iter().any(|names| names.contains(&asked));
        return if known { Ok(asked) } else { Err(Status::bad_request(format!("container {asked} is not valid for pod {pod_name}"))) };
    }
    let default = meta::annotation(pod, "kubectl.kubernetes.io/default-container").filter(|name| containers.contains(name));
    match (default, &containers[..]) {
        (Some(name), _) => Ok(name),
        (None, [only]) => Ok(only),
        _ => {
            let mut why = format!("a container name must be specified for pod {pod_name}, choose one of: [{}]", containers.join(" "));
            if !init.is_empty() {
                why += &format!(" or one of the init containers: [{}]", init.join(" "));
            }
            Err(Status::bad_request(why))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_container_of_a_log_is_named_or_the_only_one() {
        let one = json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container_of(&one, ""), Ok("a"));
        assert_eq!(container_of(&one, "i"), Ok("i"));
        assert_eq!(container_of(&one, "x").unwrap_err().message, "container x is not valid for pod web");
        let two = json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(container_of(&two, "").unwrap_err().message, "a container name must be specified for pod web, choose one of: [a b]");
    }
}
