//! Waits until one object is as wanted, or gone: reads it, watches it, and looks again when the watch ends. It changes nothing.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures_lite::FutureExt;
use serde_json::Value;
use smol::Timer;

use crate::client::{Change, Client, JSON, Query, Resource, refusal};

/// The pause before a watch that ended is begun anew.
const PAUSE: Duration = Duration::from_millis(300);

/// Shows `judge` the object as it is and as it becomes (`None`: it is not there), until it answers something or the deadline passes,
/// which is `Ok(None)`.
///
/// # Errors
/// What `judge` says, or that the server cannot be asked.
pub async fn until<T>(
    client: &Client,
    resource: &Resource,
    namespace: &str,
    name: &str,
    deadline: Option<Instant>,
    mut judge: impl FnMut(Option<&Value>) -> Result<Option<T>>,
) -> Result<Option<T>> {
    let path = resource.list_path(Some(namespace));
    let one = Query::new().with("fieldSelector", format!("metadata.name={name}"));
    let follow = async {
        loop {
            let list = client.list(&path, &one).await?;
            if let Some(answer) = judge(list["items"].as_array().and_then(|items| items.first()))? {
                return Ok(Some(answer));
            }
            let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
            let query = one.clone().with("resourceVersion", version).with("allowWatchBookmarks", "true");
            let mut watch = client.watch(&path, &query, JSON).await?;
            loop {
                match watch.next().await {
                    Ok(Some((Change::Bookmark, _))) => {}
                    Ok(Some((change, object))) => {
                        if let Some(answer) = judge(Some(&object).filter(|_| change != Change::Deleted))? {
                            return Ok(Some(answer));
                        }
                    }
                    Ok(None) => break,
                    // Too old, or broken off: the next list tells what happened meanwhile.
                    Err(error) => {
                        if refusal(&error).is_some_and(|refusal| refusal.code != 410) {
                            return Err(error);
                        }
                        break;
                    }
                }
            }
            Timer::after(PAUSE).await;
        }
    };
    match deadline {
        None => follow.await,
        Some(deadline) => {
            let expired = async {
                Timer::at(deadline).await;
                Ok(None)
            };
            follow.or(expired).await
        }
    }
}
