//! Pulling: what comes out of it, who may, from where, and what happens when it goes wrong.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::json;

use super::lab::{self, Certificates, IMAGES, Node, Proxy, Registry, Scratch};

#[test]
fn images_are_unpacked_as_umoci_unpacks_them() {
    let data = Scratch::new();
    let registry = Registry::new(&data);
    for image in IMAGES {
        registry.push(&lab::layout(image), &format!("{image}:1"), &[]);
        let node = Node::new();
        let name = format!("{}/{image}:1", registry.host());
        node.image(&["pull", &name]);
        let id = lab::id_of(&lab::images().join(image), "latest");
        assert_eq!(node.ids(), [id.as_str()]);
        let (expected, found) = (lab::picture_by_umoci(&lab::images().join(image), "latest"), node.picture(&id));
        lab::assert_same(&expected, &found, image);
        node.image(&["rm", &name]);
        node.assert_empty();
    }
}

#[test]
fn zstd_layers_and_docker_media_types_give_the_same_image() {
    let data = Scratch::new();
    let registry = Registry::new(&data);
    registry.push(&lab::layout("layers"), "zstd:1", &["--dest-compress-format", "zstd", "--format", "oci"]);
    registry.push(&lab::layout("layers"), "docker:1", &["--format", "v2s2"]);
    let raw = |name: &str| {
        let url = format!("docker://{}/{name}", registry.host());
        lab::run(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &url]))
    };
    assert!(raw("zstd:1").contains("tar+zstd"), "{}", raw("zstd:1"));
    assert!(raw("docker:1").contains("vnd.docker.distribution.manifest.v2"));
    let expected = lab::picture_by_umoci(&lab::images().join("layers"), "latest");
    for name in ["zstd:1", "docker:1"] {
        let node = Node::new();
        node.image(&["pull", &format!("{}/{name}", registry.host())]);
        lab::assert_same(&expected, &node.picture(&node.ids()[0]), name);
    }
}

#[test]
fn an_index_gives_the_image_of_the_platform_by_tag_and_by_digest() {
    let data = Scratch::new();
    let registry = Registry::new(&data);
    let platforms = [("busybox", "amd64", ""), ("redis", "arm", "v6"), ("nginx", "arm", "v7"), ("layers", "arm64", "v8")];
    let mut manifests = Vec::new();
    for (image, architecture, variant) in platforms {
        registry.push(&lab::layout(image), &format!("multi:{image}"), &[]);
        let url = format!("docker://{}/multi:{image}", registry.host());
        let raw = lab::run(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &url]));
        let digest = lab::run(Command::new("skopeo").args(["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &url]));
        let mut platform = json!({ "os": "linux", "architecture": architecture });
        if !variant.is_empty() {
            platform["variant"] = json!(variant);
        }
        manifests.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.trim(), "size": raw.len(), "platform": platform,
        }));
    }
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests }).to_string();
    let url = format!("http://{}/v2/multi/manifests/all", registry.host());
    let head = lab::run(Command::new("curl").args([
        "-fsS",
        "-i",
        "-X",
        "PUT",
        "-H",
        "Content-Type: application/vnd.oci.image.index.v1+json",
        "-d",
        &index,
        &url,
    ]));
    let digest = head.lines().find_map(|line| line.strip_prefix("Docker-Content-Digest: ")).unwrap().trim();
    let check = |platform: &str, image: &str| {
        for version in [":all".to_owned(), format!("@{digest}")] {
            let node = Node::new();
            node.image(&["pull", "--platform", platform, &format!("{}/multi{version}", registry.host())]);
            assert_eq!(node.ids(), [lab::id_of(&lab::images().join(image), "latest")], "{platform} {version}");
            assert!(node.image(&["ls", "--digests"]).contains(digest));
        }
    };
    check("linux/amd64", "busybox");
    check("linux/arm/v6", "redis");
    check("linux/arm/v7", "nginx");
    check("linux/arm64", "layers");
    let error = Node::new().refused(&["pull", "--platform", "linux/riscv64", &format!("{}/multi:all", registry.host())]);
    assert!(error.contains("no image for linux/riscv64 in the index, only for linux/amd64, linux/arm/v6"), "{error}");
}

#[test]
fn tls_and_passwords_are_asked_for_and_the_errors_say_what_to_give() {
    let data = Scratch::new();
    Registry::new(&data).push(&lab::layout("busybox"), "busybox:1", &[]);
    let certificates = Certificates::new(&data);
    lab::shell("htpasswd -Bbc $0 me 'pass:word' 2>/dev/null", &[data.path("htpasswd").as_os_str()]);
    let settings = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}", data.path("htpasswd").display());
    let http = format!("  tls: {{certificate: {}, key: {}}}", certificates.certificate.display(), certificates.key.display());
    let registry = Registry::with(&data, &settings, &http);
    let host = registry.host();
    let name = format!("{host}/busybox:1");
    let refused = |yaml: &str, expected: &str| {
        let node = Node::with_registries(yaml);
        let error = node.refused(&["pull", &name]);
        assert!(error.contains(expected) && error.contains(&name), "{error}");
        node.assert_empty();
    };
    let authority = certificates.authority.display();
    let auth = "auth: {username: me, password: 'pass:word'}";
    refused("", "it speaks TLS");
    refused(&format!("configs: {{'{host}': {{tls: {{}}, {auth}}}}}"), "certificate is not trusted");
    refused(&format!("configs: {{'{host}': {{tls: {{ca_file: {authority}}}}}}}"), "unauthorized");
    refused(&format!("configs: {{'{host}': {{tls: {{ca_file: {authority}}}, auth: {{username: me, password: no}}}}}}"), "\"me\"");
    Node::with_registries(&format!("configs: {{'{host}': {{tls: {{ca_file: {authority}}}, {auth}}}}}")).image(&["pull", &name]);
    Node::with_registries(&format!("configs: {{'{host}': {{tls: {{insecure_skip_verify: true}}, {auth}}}}}")).image(&["pull", &name]);
    // As `docker login` leaves it behind.
    let config = data.path("config.json");
    std::fs::write(&config, json!({ "auths": { host.as_str(): { "auth": STANDARD.encode("me:pass:word") } } }).to_string()).unwrap();
    let node = Node::with_registries(&format!("configs: {{'{host}': {{tls: {{ca_file: {authority}}}}}}}"));
    node.image(&["pull", "--authfile", config.to_str().unwrap(), &name]);
}

#[test]
fn tokens_come_from_the_server_that_the_registry_names() {
    let data = Scratch::new();
    Registry::new(&data).push(&lab::layout("nginx"), "team/nginx:1", &[]);
    let certificates = Certificates::new(&data);
    let realm = token_server(&certificates);
    let settings = format!(
        "auth: {{token: {{realm: 'http://{realm}/token', service: registry, issuer: test, rootcertbundle: {}}}}}",
        certificates.authority.display()
    );
    let registry = Registry::with(&data, &settings, "");
    let host = registry.host();
    let name = format!("{host}/team/nginx:1");
    let yaml = |password: &str| format!("configs: {{'{host}': {{auth: {{username: me, password: {password}}}}}}}");
    Node::with_registries(&yaml("secret")).image(&["pull", &name]);
    let error = Node::with_registries(&yaml("wrong")).refused(&["pull", &name]);
    assert!(error.contains("unauthorized") && error.contains("the login \"me\""), "{error}");
    let error = Node::new().refused(&["pull", &name]);
    assert!(error.contains("unauthorized"), "{error}");
}

/// Gives tokens as the distribution specification has them to the user `me`. Answers its address.
fn token_server(certificates: &Certificates) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(&certificates.certificate_der)] }).to_string();
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &certificates.key_der, &random).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let lines: Vec<String> =
                BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let right = lines
                .iter()
                .any(|line| line.to_lowercase().starts_with("authorization: basic") && line.ends_with(&STANDARD.encode("me:secret")));
            let asked = lines[0].contains("scope=repository%3Ateam%2Fnginx%3Apull") && lines[0].contains("service=registry");
            let body = if right && asked {
                let access = json!([{ "type": "repository", "name": "team/nginx", "actions": ["pull"] }]);
                let claims = json!({ "iss": "test", "sub": "me", "aud": "registry", "nbf": 0, "iat": 0, "exp": u32::MAX, "jti": "1", "access": access });
                let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(&header), URL_SAFE_NO_PAD.encode(claims.to_string()));
                let signature = key.sign(&random, signed.as_bytes()).unwrap();
                json!({ "token": format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)) }).to_string()
            } else {
                String::new()
            };
            let status = if body.is_empty() { "401 Unauthorized" } else { "200 OK" };
            let reply = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(reply.as_bytes()).unwrap();
        }
    });
    address
}

#[test]
fn names_of_docker_io_come_from_a_mirror() {
    let data = Scratch::new();
    let registry = Registry::new(&data);
    registry.push(&lab::layout("busybox"), "library/busybox:latest", &[]);
    registry.push(&lab::layout("redis"), "hub/library/redis:7", &[]);
    let yaml = format!("mirrors: {{docker.io: {{endpoint: ['http://{}']}}}}", registry.host());
    let node = Node::with_registries(&yaml);
    node.image(&["pull", "busybox"]);
    assert!(node.image(&["ls"]).contains("docker.io/library/busybox   latest"));
    let yaml = format!("mirrors: {{'*': {{endpoint: ['http://{}'], rewrite: {{'(.*)': 'hub/$1'}}}}}}", registry.host());
    let node = Node::with_registries(&yaml);
    node.image(&["pull", "redis:7"]);
    assert!(node.image(&["ls"]).contains("docker.io/library/redis"));
}

#[test]
fn a_registry_that_dies_half_way_and_comes_back_is_asked_for_the_rest() {
    let data = Scratch::new();
    let registry = Arc::new(Registry::new(&data));
    let noise = lab::noise(&data, 8 << 20);
    registry.push(&format!("oci:{}:latest", noise.display()), "noise:1", &[]);
    let victim = registry.clone();
    let proxy = Proxy::new(registry.port, 3 << 20, move || {
        victim.kill();
        victim.restart();
    });
    let node = Node::new();
    node.image(&["pull", &format!("127.0.0.1:{}/noise:1", proxy.port)]);
    let ranges = proxy.ranges();
    let start: u64 = ranges[0].trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
    assert!(ranges.len() == 1 && start > 1 << 20, "{ranges:?}");
    assert_eq!(node.ids(), [lab::id_of(&noise, "latest")]);
}

#[test]
fn a_registry_that_stays_dead_is_an_error_that_leaves_nothing() {
    let data = Scratch::new();
    let registry = Arc::new(Registry::new(&data));
    let noise = lab::noise(&data, 8 << 20);
    registry.push(&format!("oci:{}:latest", noise.display()), "noise:1", &[]);
    let victim = registry.clone();
    let proxy = Proxy::new(registry.port, 3 << 20, move || victim.kill());
    let name = format!("127.0.0.1:{}/noise:1", proxy.port);
    let node = Node::new();
    let error = node.refused(&["pull", &name]);
    assert!(error.contains(&format!("pull {name}: http://127.0.0.1")) && error.contains("bytes came"), "{error}");
    node.assert_empty();
    registry.restart();
    node.image(&["pull", &name]);
}

#[test]
fn a_pull_that_is_killed_is_swept_by_the_next_that_opens_the_store() {
    let data = Scratch::new();
    let registry = Registry::new(&data);
    let noise = lab::noise(&data, 8 << 20);
    registry.push(&format!("oci:{}:latest", noise.display()), "noise:1", &[]);
    let (reached, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let barriers = (reached.clone(), go_on.clone());
    let proxy = Proxy::new(registry.port, 3 << 20, move || {
        barriers.0.wait();
        barriers.1.wait();
    });
    let name = format!("127.0.0.1:{}/noise:1", proxy.port);
    let node = Node::new();
    let mut pulling = node.command(&["pull", &name]).stderr(Stdio::null()).spawn().unwrap();
    reached.wait();
    // Another process leaves alone what this one is at.
    assert_eq!(node.ids(), [""; 0]);
    assert_ne!(std::fs::read_dir(node.store().join("partial")).unwrap().count(), 0);
    pulling.kill().unwrap();
    pulling.wait().unwrap();
    go_on.wait();
    node.assert_empty();
    node.image(&["pull", &name]);
}

#[test]
fn blobs_that_the_registry_holds_damaged_are_refused() {
    let data = Scratch::new();
    let registry = Registry::new(&data);
    registry.push(&lab::layout("nginx"), "nginx:1", &[]);
    registry.push(&lab::layout("redis"), "redis:1", &[]);
    let largest = |name: &str| {
        let url = format!("docker://{}/{name}", registry.host());
        let raw = lab::run(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &url]));
        let manifest: serde_json::Value = serde_json::from_str(&raw).unwrap();
        let layer = manifest["layers"].as_array().unwrap().iter().max_by_key(|it| it["size"].as_u64()).unwrap()["digest"]
            .as_str()
            .unwrap()
            .to_owned();
        let hex = layer.trim_start_matches("sha256:");
        data.path(&format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    };
    let mut bytes = std::fs::read(largest("nginx:1")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(largest("nginx:1"), &bytes).unwrap();
    let file = std::fs::File::options().write(true).open(largest("redis:1")).unwrap();
    file.set_len(100_000).unwrap();
    for (name, expected) in [("nginx:1", "its digest is"), ("redis:1", "it has only 100000 bytes of it")] {
        let node = Node::new();
        let error = node.refused(&["pull", &format!("{}/{name}", registry.host())]);
        assert!(error.contains(expected), "{error}");
        assert_eq!(node.ids(), [""; 0]);
    }
    let error = Node::new().refused(&["pull", &format!("{}/nginx:2", registry.host())]);
    assert!(error.contains("not found: there is no \"2\" of \"nginx\""), "{error}");
}

#[test]
fn two_processes_pull_the_same_image_at_once() {
    let data = Scratch::new();
    let registry = Registry::new(&data);
    registry.push(&lab::layout("redis"), "redis:1", &[]);
    let name = format!("{}/redis:1", registry.host());
    let node = Node::new();
    let mut pulling: Vec<_> = (0..3).map(|_| node.command(&["pull", "-q", &name]).stdout(Stdio::null()).spawn().unwrap()).collect();
    assert!(pulling.iter_mut().all(|it| it.wait().unwrap().success()));
    assert_eq!(node.ids(), [lab::id_of(&lab::images().join("redis"), "latest")]);
}
