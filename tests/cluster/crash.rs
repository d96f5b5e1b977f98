//! The promise of the store: the master is killed in the midst of writes, again and again, and every write that it
//! acknowledged is there, none is there by half, and no revision is given twice.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{Lab, wait_until};

const ROUNDS: usize = 12;
const WRITERS: usize = 3;
const WRITES: usize = 150;

#[test]
fn killing_the_master_loses_no_acknowledged_write() {
    let lab = Lab::new("crash");
    lab.up();
    let mut acknowledged = 0;
    let mut revision = 0;
    for round in 0..ROUNDS {
        let writers: Vec<_> = (0..WRITERS).map(|writer| write(&lab, round, writer)).collect();
        // A different moment each time, seen in what the writers have been told.
        let master = lab.daemon("master");
        let (sender, told) = std::sync::mpsc::channel();
        let readers: Vec<_> = writers
            .into_iter()
            .map(|mut child| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
                    let names: Vec<String> = lines
                        .map_while(Result::ok)
                        .filter_map(|line| Some(line.strip_prefix("configmap/")?.strip_suffix(" created")?.to_owned()))
                        .inspect(|_| sender.send(()).unwrap_or_default())
                        .collect();
                    child.wait().unwrap();
                    names
                })
            })
            .collect();
        for _ in 0..(round + 1) * 17 {
            told.recv_timeout(Duration::from_secs(60)).expect("the writers write");
        }
        lab.kill(master);
        let names: Vec<String> = readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect();
        drop(told);
        acknowledged += names.len();
        wait_until("another master", || lab.find_daemon("master").is_some_and(|pid| pid != master));
        let (found, now) = list(&lab);
        assert!(now > revision, "round {round}: revision {now} comes after {revision}");
        revision = now;
        for name in &names {
            let data = found.get(name).unwrap_or_else(|| panic!("round {round}: {name} was acknowledged and is gone"));
            assert_eq!(data.as_str(), Some(&*content(name)), "round {round}: {name} is there by half");
        }
        for (name, data) in &found {
            if name.starts_with('w') {
                assert_eq!(data.as_str(), Some(&*content(name)), "round {round}: {name} is there by half");
            }
        }
    }
    println!("{acknowledged} writes acknowledged in {ROUNDS} rounds");
    assert!(acknowledged > ROUNDS * 17, "too few writes were acknowledged to prove anything");
    lab.end();
}

fn content(name: &str) -> String {
    name.repeat(50)
}

/// One process that creates many objects and says so of each that was acknowledged.
fn write(lab: &Lab, round: usize, writer: usize) -> std::process::Child {
    let names = (0..WRITES).map(|number| format!("w{round}-{writer}-{number}"));
    let manifest: String = names
        .map(|name| format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{k: {}}}\n", content(&name)))
        .collect();
    let file = lab.file(&format!("writer-{writer}.yaml"));
    std::fs::write(&file, manifest).unwrap();
    lab.edgectl(&["create", "-f", &file.to_string_lossy()]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// All ConfigMaps' data with the revision of the list.
fn list(lab: &Lab) -> (BTreeMap<String, Value>, u64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let output = lab.run(&["get", "--raw", "/api/v1/namespaces/default/configmaps"]);
        if let Ok(list) = serde_json::from_slice::<Value>(&output.stdout)
            && output.status.success()
        {
            let revision = list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
            let item = |item: &Value| (item["metadata"]["name"].as_str().unwrap().to_owned(), item["data"]["k"].clone());
            return (list["items"].as_array().unwrap().iter().map(item).collect(), revision);
        }
        assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&output.stderr));
    }
}
