//! What the API gives: writes and reads a second, and how soon watchers have a change. Small ConfigMaps, synced to disk.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::try_join_all;
use hyper::Method;
use serde_json::{Value, json};
use smol::channel::{Receiver, Sender, unbounded};

use crate::link::{JSON, Link};
use crate::master::Master;
use crate::{row, task};

const CONFIG_MAPS: &str = "/api/v1/namespaces/rates/configmaps";
const EACH: Duration = Duration::from_secs(3);
const CLIENTS: usize = 32;
/// Watchers of the fan-out, and the connections that they share.
const WATCHERS: [usize; 3] = [1, 100, 1000];
const CONNECTIONS: usize = 50;
const CHANGES: usize = 50;

fn config_map(name: &str, value: usize) -> Value {
    let data = json!({"key": value.to_string(), "other": "x".repeat(100)});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

pub async fn measure(master: &Master, admin: &Link) -> Result<()> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "rates"}});
    admin.write(Method::POST, "/api/v1/namespaces", JSON, &namespace).await?;
    let links = try_join_all((0..CONNECTIONS).map(|_| master.admin())).await?;
    for clients in [1, CLIENTS] {
        let what = if clients == 1 { "one client".to_owned() } else { format!("{clients} clients") };
        let writes = at_once(&links[..clients], |link, client, turn| async move {
            link.write(Method::POST, CONFIG_MAPS, JSON, &config_map(&format!("c-{clients}-{client}-{turn}"), 0)).await.map(drop)
        });
        row(&format!("API writes, {what}"), format!("{:.0}", writes.await?), None, "1/s", "ConfigMaps made, synced to disk");
        let reads = at_once(&links[..clients], |link, client, _| async move {
            link.get(&format!("{CONFIG_MAPS}/c-{clients}-{client}-0")).await.map(drop)
        });
        row(&format!("API reads, {what}"), format!("{:.0}", reads.await?), None, "1/s", "ConfigMaps");
    }
    for watchers in WATCHERS {
        fan_out(admin, &links, watchers).await?;
    }
    Ok(())
}

/// How often a second all of them together get it done, one after the other each.
async fn at_once<F: Future<Output = Result<()>>>(links: &[Link], act: impl Fn(Link, usize, usize) -> F) -> Result<f64> {
    let since = Instant::now();
    let one = async |client: usize, link: &Link| -> Result<usize> {
        let mut turn = 0;
        while since.elapsed() < EACH {
            act(link.clone(), client, turn).await?;
            turn += 1;
        }
        Ok(turn)
    };
    let turns = try_join_all(links.iter().enumerate().map(|(client, link)| one(client, link))).await?;
    Ok(turns.iter().sum::<usize>() as f64 / since.elapsed().as_secs_f64())
}

/// From asking for a change until the last watcher has it.
async fn fan_out(admin: &Link, links: &[Link], watchers: usize) -> Result<()> {
    let path = format!("{CONFIG_MAPS}/fan-{watchers}");
    admin.write(Method::POST, CONFIG_MAPS, JSON, &config_map(&format!("fan-{watchers}"), 0)).await?;
    let (heard, hears): (Sender<()>, Receiver<()>) = unbounded();
    let selected = format!("{CONFIG_MAPS}?watch=true&fieldSelector=metadata.name%3Dfan-{watchers}");
    let mut listening = Vec::new();
    for link in links.iter().cycle().take(watchers) {
        let mut lines = link.watch(&selected).await?;
        let heard = heard.clone();
        listening.push(task::spawn(async move { while lines.next().await.is_some() && heard.send(()).await.is_ok() {} }));
    }
    let hears = Rc::new(hears);
    let all = async || {
        for _ in 0..watchers {
            // It ends with the watchers, which are held here.
            let _ = hears.recv().await;
        }
    };
    // The object itself comes first.
    all().await;
    let mut took = Vec::with_capacity(CHANGES);
    for change in 1..=CHANGES {
        let since = Instant::now();
        let changed = config_map(&format!("fan-{watchers}"), change);
        let write = admin.write(Method::PUT, &path, JSON, &changed);
        let (written, ()) = futures_util::join!(write, all());
        written?;
        took.push(since.elapsed());
    }
    took.sort_unstable();
    let ms = |at: usize| format!("{:.2}", took[at.min(CHANGES - 1)].as_secs_f64() * 1000.0);
    row(
        &format!("a change until {watchers} watchers have it, median"),
        ms(CHANGES / 2),
        None,
        "ms",
        &format!("p99 {} ms", ms(CHANGES * 99 / 100)),
    );
    Ok(())
}
