//! Pulls from a server of the test's own that misbehaves on purpose. What a real registry does is tested in tests/registry.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::super::{Credentials, Images, Registries};
use super::*;
use crate::base::{id, task};

/// What a client asked.
#[derive(Clone, Debug, Default)]
struct Asked {
    path: String,
    headers: HashMap<String, String>,
}

impl Asked {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What it gets.
#[derive(Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// The connection is closed after so many bytes of the body.
    cut_at: Option<usize>,
}

impl Reply {
    fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// An HTTP server on loopback that keeps a list of what it was asked. It lives as long as the test.
struct Server {
    authority: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    fn new(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (asked.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || serve(stream, &log, &*answer));
            }
        });
        Self { authority, asked }
    }

    fn asked_for(&self, part: &str) -> Vec<Asked> {
        self.asked.lock().unwrap().iter().filter(|asked| asked.path.contains(part)).cloned().collect()
    }

    fn reference(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{rest}", self.authority)).unwrap()
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Asked>>, answer: &(dyn Fn(&Asked) -> Reply + Send + Sync)) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let mut asked = Asked { path: first.split(' ').nth(1).unwrap_or_default().to_owned(), ..Asked::default() };
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').unwrap();
        asked.headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    log.lock().unwrap().push(asked.clone());
    let reply = answer(&asked);
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\ncontent-length: {}\r\n", reply.status, reply.body.len());
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    // A client that hung up is one of the things under test.
    let _ = stream.write_all((head + "\r\n").as_bytes());
    let _ = stream.write_all(&reply.body[..reply.cut_at.unwrap_or(reply.body.len())]);
    let _ = stream.flush();
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read(&mut [0; 1]);
}

/// An image as a registry has it.
#[derive(Clone)]
struct Stock {
    blobs: HashMap<String, Vec<u8>>,
    manifest: Vec<u8>,
    layer: Digest,
    layer_bytes: usize,
}

impl Stock {
    /// One layer of half a megabyte that does not compress, in the file `data`.
    fn new() -> Self {
        let mut seed = 1u64;
        let noise = std::iter::repeat_with(|| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed as u8
        });
        Self::with_file("data", &noise.take(500_000).collect::<Vec<u8>>())
    }

    fn with_file(path: &str, content: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        let mut tar = header.as_bytes().to_vec();
        tar.extend_from_slice(content);
        tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&tar).unwrap();
        let layer = encoder.finish().unwrap();
        let config = format!(r#"{{"os":"linux","config":{{"Cmd":["x"]}},"rootfs":{{"diff_ids":["{}"]}}}}"#, Digest::of(&tar)).into_bytes();
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{}","size":{}}},"layers":[{{"digest":"{}","size":{}}}]}}"#,
            Digest::of(&config),
            config.len(),
            Digest::of(&layer),
            layer.len()
        );
        let (digest, layer_bytes) = (Digest::of(&layer), layer.len());
        let blobs = [config, layer].into_iter().map(|blob| (Digest::of(&blob).to_string(), blob)).collect();
        Self { blobs, manifest: manifest.into_bytes(), layer: digest, layer_bytes }
    }

    /// As a registry that behaves.
    fn answer(&self, asked: &Asked) -> Reply {
        let path = asked.path.split('?').next().unwrap_or_default();
        if path.contains("/manifests/") {
            let reply = Reply { body: self.manifest.clone(), ..Reply::new(200) };
            return reply.with("content-type", "application/vnd.oci.image.manifest.v1+json");
        }
        let Some(blob) = path.rsplit('/').next().and_then(|digest| self.blobs.get(digest)) else { return Reply::new(404) };
        match asked.header("range").strip_prefix("bytes=").and_then(|range| range.trim_end_matches('-').parse::<usize>().ok()) {
            Some(from) if from >= blob.len() => Reply::new(416),
            Some(from) => Reply { body: blob[from..].to_vec(), ..Reply::new(206) }
                .with("content-range", format!("bytes {from}-{}/{}", blob.len() - 1, blob.len())),
            None => Reply { body: blob.clone(), ..Reply::new(200) },
        }
    }

    fn is_layer(&self, asked: &Asked) -> bool {
        asked.path.contains(&self.layer.to_string())
    }
}

/// A store of its own, removed in the end.
struct Scratch(PathBuf, Images);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("edgectl-pull-{}{}", id::suffix(), id::suffix()));
        let images = Images::open(&path).unwrap();
        Self(path, images)
    }

    fn pull(&self, reference: &Reference) -> Result<Image> {
        task::run(self.1.pull(reference, &PullOptions::default()))
    }

    fn assert_nothing_visible(&self) {
        assert_eq!(self.1.list().unwrap().len(), 0);
        assert_eq!(std::fs::read_dir(self.0.join("layers")).unwrap().count(), 0);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn starts_of(asked: &[Asked]) -> Vec<usize> {
    asked.iter().map(|it| it.header("range").trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0)).collect()
}

#[test]
fn a_connection_that_breaks_goes_on_where_it_broke() {
    let stock = Stock::new();
    let shelf = stock.clone();
    let server = Server::new(move |asked| {
        let reply = shelf.answer(asked);
        let cut_at = Some(100_000).filter(|at| shelf.is_layer(asked) && *at < reply.body.len());
        Reply { cut_at, ..reply }
    });
    let scratch = Scratch::new();
    let image = scratch.pull(&server.reference("app:1")).unwrap();
    let starts = starts_of(&server.asked_for(&stock.layer.to_string()));
    assert_eq!(starts, (0..=stock.layer_bytes / 100_000).map(|n| n * 100_000).collect::<Vec<_>>());
    assert_eq!(std::fs::read(image.layers[0].join("data")).unwrap().len(), 500_000);
}

#[test]
fn after_a_registry_died_half_way_the_next_pull_asks_only_for_the_rest() {
    let stock = Stock::new();
    let (shelf, dead) = (stock.clone(), Arc::new(Mutex::new(false)));
    let switch = dead.clone();
    let server = Server::new(move |asked| {
        let mut dead = switch.lock().unwrap();
        if *dead {
            return Reply::new(503).with("retry-after", "0");
        }
        if shelf.is_layer(asked) && asked.header("range").is_empty() {
            *dead = true;
            return Reply { cut_at: Some(300_000), ..shelf.answer(asked) };
        }
        shelf.answer(asked)
    });
    let scratch = Scratch::new();
    let reference = server.reference("app:1");
    // One executor for both pulls, as in an agent.
    task::run(async {
        let error = format!("{:#}", scratch.1.pull(&reference, &PullOptions::default()).await.unwrap_err());
        assert!(error.contains(&format!("pull {reference}")) && error.contains("300000 of"), "{error}");
        scratch.assert_nothing_visible();
        *dead.lock().unwrap() = false;
        scratch.1.pull(&reference, &PullOptions::default()).await.unwrap();
    });
    let starts = starts_of(&server.asked_for(&stock.layer.to_string()));
    assert_eq!((starts[0], *starts.last().unwrap()), (0, 300_000), "{starts:?}");
    assert!(scratch.1.get(&reference).unwrap().is_some());
}

#[test]
fn a_server_that_knows_no_ranges_is_read_from_the_front_again() {
    let stock = Stock::new();
    let (shelf, first) = (stock.clone(), Mutex::new(true));
    let server = Server::new(move |asked| {
        let cut = shelf.is_layer(asked) && std::mem::take(&mut *first.lock().unwrap());
        let asked = Asked { path: asked.path.clone(), ..Asked::default() };
        Reply { cut_at: cut.then_some(77_777), ..shelf.answer(&asked) }
    });
    let image = Scratch::new();
    let pulled = image.pull(&server.reference("app:1")).unwrap();
    assert_eq!(std::fs::metadata(pulled.layers[0].join("data")).unwrap().len(), 500_000);
}

#[test]
fn damaged_blobs_leave_nothing_and_the_next_try_works() {
    type Damage = fn(Reply) -> Reply;
    let flipped: Damage = |mut reply| {
        reply.body[250_000] ^= 1;
        reply
    };
    let truncated: Damage = |mut reply| {
        reply.body.truncate(200_000);
        reply
    };
    let longer: Damage = |mut reply| {
        reply.body.extend_from_slice(&[0; 100]);
        reply
    };
    let missing: Damage = |_| Reply::new(404);
    for (damage, expected) in
        [(flipped, "its digest is"), (truncated, "it has only 200000 bytes"), (longer, "longer than the"), (missing, "not found: layer")]
    {
        let stock = Stock::new();
        let (shelf, damaged) = (stock.clone(), Arc::new(Mutex::new(true)));
        let switch = damaged.clone();
        let server = Server::new(move |asked| {
            let reply = shelf.answer(asked);
            match shelf.is_layer(asked) && *switch.lock().unwrap() {
                true if !asked.header("range").is_empty() => Reply::new(416),
                true => damage(reply),
                false => reply,
            }
        });
        let scratch = Scratch::new();
        let reference = server.reference("app:1");
        let error = format!("{:#}", scratch.pull(&reference).unwrap_err());
        assert!(error.contains(expected) && error.contains(&stock.layer.to_string()), "{error}");
        scratch.assert_nothing_visible();
        *damaged.lock().unwrap() = false;
        scratch.pull(&reference).unwrap();
    }
}

#[test]
fn a_layer_that_leads_out_is_refused_and_leaves_nothing() {
    let stock = Stock::with_file("../../../evil", b"x");
    let server = Server::new(move |asked| stock.answer(asked));
    let scratch = Scratch::new();
    let error = format!("{:#}", scratch.pull(&server.reference("app:1")).unwrap_err());
    assert!(error.contains("leads out of the layer"), "{error}");
    scratch.assert_nothing_visible();
    assert_eq!(std::fs::read_dir(scratch.0.join("partial")).unwrap().count(), 0);
}

#[test]
fn another_host_never_sees_the_login() {
    let stock = Stock::new();
    let shelf = stock.clone();
    let other = Server::new(move |asked| shelf.answer(asked));
    let target = format!("http://{}", other.authority);
    let shelf = stock.clone();
    let server = Server::new(move |asked| match asked.header("authorization") {
        "" => Reply::new(401).with("www-authenticate", "Basic realm=\"x\""),
        _ if asked.path.contains("/blobs/") => Reply::new(307).with("location", format!("{target}{}", asked.path)),
        _ => shelf.answer(asked),
    });
    let auths = format!(r#"{{"auths":{{"{}":{{"username":"me","password":"secret"}}}}}}"#, server.authority);
    let credentials = Credentials::from_docker_config_json(auths.as_bytes()).unwrap();
    let scratch = Scratch::new();
    let options = PullOptions { credentials, ..PullOptions::default() };
    task::run(scratch.1.pull(&server.reference("app:1"), &options)).unwrap();
    assert!(server.asked_for("/manifests/").iter().any(|asked| asked.header("authorization").starts_with("Basic ")));
    let seen = other.asked_for("");
    assert!(seen.len() == 2 && seen.iter().all(|asked| asked.header("authorization").is_empty()), "{seen:?}");
}

#[test]
fn a_token_is_asked_for_where_the_registry_says_and_again_when_it_runs_out() {
    let stock = Stock::new();
    let tokens = Server::new(|asked| match asked.header("authorization") {
        "Basic bWU6c2VjcmV0" => Reply { body: br#"{"access_token":"right"}"#.to_vec(), ..Reply::new(200) },
        _ => Reply::new(401),
    });
    let realm = format!("http://{}/token", tokens.authority);
    let shelf = stock.clone();
    let uses = Mutex::new(0);
    let server = Server::new(move |asked| {
        let mut uses = uses.lock().unwrap();
        // Each token serves twice.
        if asked.header("authorization") == "Bearer right" && *uses < 2 {
            *uses += 1;
            return shelf.answer(asked);
        }
        *uses = 0;
        Reply::new(401).with("www-authenticate", format!("Bearer realm=\"{realm}\",service=\"the registry\",scope=\"repository:app:pull\""))
    });
    let auths = format!(
        r#"{{"auths":{{"{0}/app":{{"username":"me","password":"wrong"}},"{0}":{{"username":"me","password":"secret"}}}}}}"#,
        server.authority
    );
    let credentials = Credentials::from_docker_config_json(auths.as_bytes()).unwrap();
    let scratch = Scratch::new();
    let options = PullOptions { credentials, ..PullOptions::default() };
    task::run(scratch.1.pull(&server.reference("app:1"), &options)).unwrap();
    let asked = tokens.asked_for("/token");
    assert!(asked.iter().all(|asked| asked.path == "/token?service=the+registry&scope=repository%3Aapp%3Apull"), "{asked:?}");
    assert_eq!(asked.len(), 3, "a wrong login, the right one, and once more: {asked:?}");
    let error = format!("{:#}", Scratch::new().pull(&server.reference("app:1")).unwrap_err());
    assert!(error.contains("unauthorized") && error.contains("imagePullSecrets"), "{error}");
}

#[test]
fn mirrors_are_asked_in_their_order_with_the_name_of_the_registry() {
    let stock = Stock::new();
    let broken = Server::new(|_| Reply::new(404));
    let shelf = stock.clone();
    let good = Server::new(move |asked| shelf.answer(asked));
    let yaml = format!(
        "mirrors: {{docker.io: {{endpoint: ['http://{}', 'http://{}/pre/v2'], rewrite: {{'^library/(.*)': 'hub/$1'}}}}}}",
        broken.authority, good.authority
    );
    let scratch = Scratch::new();
    let options = PullOptions { registries: Rc::new(Registries::parse(yaml.as_bytes()).unwrap()), ..PullOptions::default() };
    let reference = Reference::parse("nginx").unwrap();
    let image = task::run(scratch.1.pull(&reference, &options)).unwrap();
    assert_eq!(image.names, ["docker.io/library/nginx:latest"]);
    assert_eq!(broken.asked_for("")[0].path, "/v2/hub/nginx/manifests/latest?ns=docker.io");
    assert_eq!(good.asked_for("")[0].path, "/pre/v2/hub/nginx/manifests/latest?ns=docker.io");
}

#[test]
fn errors_name_the_image_the_registry_and_what_is_wrong() {
    let check = |reply: fn(&Asked) -> Reply, expected: &str| {
        let server = Server::new(reply);
        let reference = server.reference("team/app:v9");
        let error = format!("{:#}", Scratch::new().pull(&reference).unwrap_err());
        assert!(error.starts_with(&format!("pull {reference}: http://{}: ", server.authority)), "{error}");
        assert!(error.contains(expected), "{error}");
    };
    check(|_| Reply::new(404), "not found: there is no \"v9\" of \"team/app\"");
    check(|_| Reply::new(401), "unauthorized");
    check(|_| Reply::new(403), "403 Forbidden");
    check(|_| Reply::new(500).with("retry-after", "0"), "500 Internal Server Error");
    check(|_| Reply { body: b"<html>".to_vec(), ..Reply::new(200) }, "read manifest");
    check(|_| Reply { body: b"Client sent an HTTP request to an HTTPS server.\n".to_vec(), ..Reply::new(400) }, "it speaks TLS");
}

#[test]
fn a_layer_is_fetched_once_however_many_ask_for_it() {
    let stock = Stock::new();
    let shelf = stock.clone();
    let server = Server::new(move |asked| shelf.answer(asked));
    let scratch = Scratch::new();
    let second = Images::open(&scratch.0).unwrap();
    let (one, other) = (server.reference("app:1"), server.reference("app:2"));
    let options = PullOptions::default();
    let (one, other) = task::run(futures_util::future::join(scratch.1.pull(&one, &options), second.pull(&other, &options)));
    assert_eq!(one.unwrap().id, other.unwrap().id);
    assert_eq!(server.asked_for(&stock.layer.to_string()).len(), 1);
    assert_eq!(scratch.1.list().unwrap()[0].names.len(), 2);
}
