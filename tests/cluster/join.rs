//! Boards join a master by token and hash, and what is wrong is refused in words that help; `edgectl up --nodes` does the same.

use std::fs;
use std::process::{Command, Output};

use crate::lab::{Lab, text, wait_until};

/// The line that the master's board prints: master, token, hash.
fn join_line(lab: &Lab, arguments: &[&str]) -> [String; 3] {
    let line = lab.ok(&[&["token", "create", "--print-join-command"], arguments].concat());
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["edgectl", "join", master, "--token", token, "--ca-hash", hash] = words.as_slice() else { panic!("{line}") };
    [master, token, hash].map(|word| (*word).to_owned())
}

/// `edgectl join` on a board that is plugged into the lab's network, with its folders below `root`.
fn join(lab: &Lab, [master, token, hash]: &[String; 3], name: &str, root: &str) -> Output {
    let init = lab.init().to_string();
    Command::new("nsenter")
        .args(["-t", &init, "-n", env!("CARGO_BIN_EXE_edgectl"), "join", master])
        .args(["--token", token, "--ca-hash", hash, "--name", name, "--no-service", "--root"])
        .arg(lab.file(root))
        .output()
        .unwrap()
}

fn joined(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn refused(output: &Output, why: &str) {
    let error = text(&output.stderr);
    assert!(!output.status.success() && error.contains(why), "expected {why:?}: {error}");
}

/// Who the agent's kubeconfig below `root` makes its bearer.
fn identity(lab: &Lab, root: &str) -> String {
    let init = lab.init().to_string();
    let output = Command::new("nsenter")
        .args(["-t", &init, "-n", env!("CARGO_BIN_EXE_edgectl"), "auth", "whoami", "--kubeconfig"])
        .arg(lab.file(root).join("etc/edgectl/agent.conf"))
        .output()
        .unwrap();
    joined(&output)
}

#[test]
fn a_board_joins_by_token_and_hash_and_what_is_wrong_is_refused() {
    let lab = Lab::new("join");
    lab.up();
    let line = join_line(&lab, &[]);
    let [master, token, hash] = line.clone();
    assert!(master.ends_with(":6443") && hash.starts_with("sha256:"), "{line:?}");

    let said = joined(&join(&lab, &line, "board", "board"));
    assert!(said.contains("is now node board") && said.contains("edgectl agent --root"), "{said}");
    let who = identity(&lab, "board");
    assert!(who.contains("system:node:board") && who.contains("system:nodes"), "{who}");
    let config = fs::metadata(lab.file("board/etc/edgectl/agent.conf")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&config.permissions()) & 0o777, 0o600);
    assert!(!lab.file("board/etc/edgectl/agent.key").exists(), "the key stands in the kubeconfig alone");

    // Again: nothing changes.
    let before = fs::read(lab.file("board/etc/edgectl/agent.conf")).unwrap();
    assert!(joined(&join(&lab, &line, "board", "board")).contains("is already node board"));
    assert_eq!(fs::read(lab.file("board/etc/edgectl/agent.conf")).unwrap(), before);
    refused(&join(&lab, &line, "other", "board"), "this board is node \"board\" of that cluster already");

    let wrong = |token: &str, hash: &str| [master.clone(), token.to_owned(), hash.to_owned()];
    let changed = if token.ends_with('a') { "b" } else { "a" };
    let other_token = format!("{}{changed}", &token[..token.len() - 1]);
    refused(&join(&lab, &wrong(&other_token, &hash), "fresh", "fresh"), "the master does not accept the token");
    refused(&join(&lab, &wrong("nonsense", &hash), "fresh", "fresh"), "the token is not of the form");
    let other_hash = format!("sha256:{}", "0".repeat(64));
    refused(&join(&lab, &wrong(&token, &other_hash), "fresh", "fresh"), "has another authority than --ca-hash says");
    refused(&join(&lab, &wrong(&token, &other_hash), "board", "board"), "belongs to another cluster already");
    refused(&join(&lab, &wrong(&token, "sha256:12"), "fresh", "fresh"), "64 hex digits");
    refused(&join(&lab, &line, "Fresh_1", "fresh"), "no name for a node");
    let nobody = [master.replace("6443", "6444"), token.clone(), hash.clone()];
    refused(&join(&lab, &nobody, "fresh", "fresh"), "cannot be reached");

    // The lab's own node lives; and another board of the same name has its certificate for a moment already.
    refused(&join(&lab, &line, &lab.node(), "fresh"), "is taken by a node that is alive and has another key");
    refused(&join(&lab, &line, "board", "fresh"), "has just been given to another board");
    assert!(!lab.file("fresh/etc/edgectl/agent.conf").exists());
    assert!(joined(&join(&lab, &line, "fresh", "fresh")).contains("is now node fresh"));

    lab.end();
}

#[test]
fn tokens_are_made_listed_and_end() {
    let lab = Lab::new("token");
    lab.up();
    let token = lab.ok(&["token", "create", "--ttl", "2h", "--description", "for the shelf"]);
    let token = token.trim();
    let listed = lab.ok(&["token", "list"]);
    let row = listed.lines().find(|line| line.starts_with(token)).expect("it is listed");
    assert!(row.contains("1h59m") && row.contains("authentication") && row.contains("for the shelf"), "{listed}");
    let said = lab.ok(&["token", "delete", token]);
    assert_eq!(said.trim(), format!("bootstrap token \"{}\" deleted", &token[..6]));
    assert!(!lab.ok(&["token", "list"]).contains(token));

    // Expired, and gone with its time.
    let line = join_line(&lab, &["--ttl", "1s", "abcdef.0123456789abcdef"]);
    assert_eq!(line[1], "abcdef.0123456789abcdef");
    wait_until("the expired token is removed", || !lab.ok(&["token", "list"]).contains("abcdef."));
    refused(&join(&lab, &line, "late", "late"), "wrong, or has expired");
    lab.end();
}

#[test]
fn a_cluster_of_three_nodes_comes_is_mended_and_goes_without_a_trace() {
    let lab = Lab::new("three");
    let up = || lab.ok(&["up", "--nodes", "3", "--name", &lab.name]);
    let said = up();
    let ready = || {
        let nodes = lab.ok(&["get", "nodes", "--no-headers"]);
        (1..=3).filter(|number| nodes.lines().any(|line| line.starts_with(&lab.node_of(*number)) && line.contains(" Ready "))).count()
    };
    assert_eq!(ready(), 3, "{said}");
    let addresses = lab.ok(&["get", "nodes", "-ojsonpath={.items[*].status.addresses[0].address}"]);
    assert_eq!(addresses, "172.30.0.2 172.30.0.3 172.30.0.4");
    // The token that they joined with is gone.
    assert_eq!(lab.ok(&["token", "list"]).lines().count(), 1);

    let processes = lab.processes();
    assert!(up().contains("is running already"));
    lab.up();
    assert_eq!(lab.processes(), processes, "up without --nodes leaves it as it is");
    let fewer = lab.run(&["up", "--nodes", "2", "--name", &lab.name]);
    assert!(!fewer.status.success() && text(&fewer.stderr).contains("has 3 nodes already"), "{}", text(&fewer.stderr));

    // A node that was killed comes back as it was; with the first one, all do.
    for number in [2, 1] {
        lab.kill(lab.init_of(number));
        wait_until("the node ends", || lab.find_init_of(number).is_none());
        up();
        assert_eq!(ready(), 3);
    }
    lab.end();
}

#[test]
fn a_cluster_of_one_node_grows() {
    let lab = Lab::new("grow");
    lab.up();
    let first = lab.init();
    lab.ok(&["up", "--nodes", "2", "--name", &lab.name]);
    assert_eq!(lab.ok(&["get", "nodes", "-oname"]), format!("node/{}\nnode/{}\n", lab.node_of(1), lab.node_of(2)));
    assert_eq!(lab.init(), first);
    lab.end();
}

/// A certificate of the first node's own that is good for ten minutes, asked for with the one that its agent has; and its key.
fn short_certificate(lab: &Lab) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{}", lab.node()));
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let encode = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    let manifest = serde_json::json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "short"},
        "spec": {"signerName": "kubernetes.io/kube-apiserver-client-kubelet", "usages": ["client auth"], "expirationSeconds": 600,
            "request": encode(&request)},
    });
    let path = lab.file("short.json");
    fs::write(&path, manifest.to_string()).unwrap();
    let as_node = ["--as", &format!("system:node:{}", lab.node()), "--as-group", "system:nodes"];
    lab.ok(&[&["create", "-f", path.to_str().unwrap()], &as_node[..]].concat());
    let certificate = || lab.ok(&["get", "csr", "short", "-ojsonpath={.status.certificate}"]);
    wait_until("it is signed", || !certificate().is_empty());
    (certificate(), encode(&key.serialize_pem()))
}

#[test]
fn an_agent_renews_its_certificate_before_it_ends_and_works_on() {
    let lab = Lab::new("renew");
    lab.up();
    let path = lab.root().join("etc/edgectl/agent.conf");
    let field = |config: &str, name: &str| {
        let line = config.lines().find_map(|line| line.trim().strip_prefix(name)).expect("it has the field");
        line.trim_start_matches(':').trim().to_owned()
    };
    let first = fs::read_to_string(&path).unwrap();
    let (certificate, key) = short_certificate(&lab);
    let short = first.replace(&field(&first, "client-certificate-data"), &certificate).replace(&field(&first, "client-key-data"), &key);
    fs::write(&path, &short).unwrap();

    // With the next start it sees how little time is left.
    let (agent, requests) = (lab.daemon("agent"), || lab.ok(&["get", "csr", "-oname"]).lines().count());
    assert_eq!(requests(), 1);
    lab.kill(agent);
    wait_until("the certificate is renewed", || field(&fs::read_to_string(&path).unwrap(), "client-certificate-data") != certificate);
    assert_eq!(requests(), 2);
    let renewed = fs::read_to_string(&path).unwrap();
    assert_ne!(field(&renewed, "client-key-data"), key);
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions()) & 0o777, 0o600);

    // The same agent is let in with it when its connections were cut.
    let agent = lab.daemon("agent");
    lab.kill(lab.daemon("master"));
    let lease = || lab.run(&["get", "lease", "-n", "kube-node-lease", &lab.node(), "-oname"]).status.success();
    wait_until("the node speaks again", lease);
    assert_eq!(lab.daemon("agent"), agent);
    lab.up();
    assert_eq!(requests(), 2, "and it asks no more");
    lab.end();
}

#[test]
fn a_master_that_runs_is_marked_once_and_says_how_others_join() {
    let lab = Lab::new("init");
    lab.up();
    let init = || {
        let (pid, name) = (lab.init().to_string(), lab.node());
        let words = ["init", "--no-service", "--root", "/run/edgectl", "--name", &name];
        joined(
            &Command::new("nsenter")
                .args(["-t", &pid, "-m", "-n", "-u", "-p", env!("CARGO_BIN_EXE_edgectl")])
                .args(words)
                .output()
                .unwrap(),
        )
    };
    let said = init();
    let line = said.lines().find_map(|line| line.trim().strip_prefix("edgectl join ")).expect("it says how to join");
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let [master, _, token, _, hash] = words.as_slice() else { panic!("{line}") };
    assert!(joined(&join(&lab, &[master, token, hash].map(Clone::clone), "board", "board")).contains("is now node board"));

    let taints = || lab.ok(&["get", "node", &lab.node(), "-ojsonpath={.spec.taints[*].key}"]);
    assert_eq!(taints(), "node-role.kubernetes.io/master");
    assert!(lab.ok(&["get", "nodes"]).contains(" control-plane,master "), "{}", lab.ok(&["get", "nodes"]));
    // Whoever lets pods onto it has decided that.
    lab.ok(&["taint", "node", &lab.node(), "node-role.kubernetes.io/master-"]);
    init();
    assert_eq!(taints(), "");
    lab.end();
}
