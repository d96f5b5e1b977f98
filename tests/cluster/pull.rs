//! Pods whose images come from a real registry: with a password from an imagePullSecret, by a mirror from registries.yaml,
//! and what is said when the registry refuses.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::lab::{Lab, text, wait_until};

/// Debian's docker-registry on loopback, which wants a password; gone when dropped.
struct Registry {
    process: Child,
    port: u16,
}

impl Registry {
    fn start(folder: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let passwords = Command::new("htpasswd").args(["-Bbn", "user", "secret"]).output().unwrap();
        fs::write(folder.join("passwords"), passwords.stdout).unwrap();
        let (data, passwords) = (folder.join("data"), folder.join("passwords"));
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n\
             auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
            data.display(),
            passwords.display()
        );
        fs::write(folder.join("config.yml"), config).unwrap();
        let process = Command::new("docker-registry")
            .args(["serve", &folder.join("config.yml").to_string_lossy()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { process, port };
        wait_until("the registry listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        registry
    }

    fn push(&self, image: &str, name: &str) {
        let layouts = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/test-images");
        let made = Command::new("tests/images/make").arg(&layouts).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(made.status.success(), "{}", text(&made.stderr));
        let source = format!("oci:{}:latest", layouts.join(image).display());
        let target = format!("docker://127.0.0.1:{}/{name}", self.port);
        let arguments = ["copy", "-q", "--dest-tls-verify=false", "--dest-creds=user:secret", &source, &target];
        let pushed = Command::new("skopeo").args(arguments).output().unwrap();
        assert!(pushed.status.success(), "{}", text(&pushed.stderr));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn waiting(lab: &Lab, pod: &str) -> Value {
    let pod: Value = serde_json::from_str(&lab.ok(&["get", "pod", pod, "-o", "json"])).unwrap();
    pod["status"]["containerStatuses"][0]["state"].clone()
}

#[test]
fn images_come_from_registries_with_passwords_and_mirrors() {
    let lab = Lab::new("pull");
    let folder = lab.file("registry");
    fs::create_dir_all(&folder).unwrap();
    let registry = Registry::start(&folder);
    registry.push("busybox", "private/busybox:v1");
    registry.push("nginx", "library/nginx:1.7.9");
    lab.up();
    let host = format!("127.0.0.1:{}", registry.port);
    let pod = |name: &str, image: &str, more: &str| {
        let manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  {more}\n  \
             containers: [{{name: c, image: \"{image}\"}}]\n"
        );
        let file = lab.file(&format!("{name}.yaml"));
        fs::write(&file, manifest).unwrap();
        lab.ok(&["apply", "-f", &file.to_string_lossy()]);
    };

    let private = format!("{host}/private/busybox:v1");
    pod("refused", &private, "restartPolicy: Always");
    wait_until("the refusal is told", || {
        let state = waiting(&lab, "refused");
        matches!(state["waiting"]["reason"].as_str(), Some("ErrImagePull" | "ImagePullBackOff"))
    });
    let message = waiting(&lab, "refused")["waiting"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&private) && message.contains("imagePullSecrets"), "names the image and the way out: {message}");

    let server = format!("--docker-server={host}");
    lab.ok(&["create", "secret", "docker-registry", "pull", &server, "--docker-username=user", "--docker-password=secret"]);
    pod("allowed", &private, "imagePullSecrets: [{name: pull}]");
    lab.ok(&["wait", "pod", "allowed", "--for=jsonpath={.status.containerStatuses[0].imageID}", "--timeout=60s"]);

    // The mirror, with the node's own password, written while the agent runs.
    let registries = format!(
        "mirrors:\n  docker.io:\n    endpoint: [\"http://{host}\"]\nconfigs:\n  \"{host}\":\n    auth: {{username: user, password: secret}}\n"
    );
    let config = lab.root().join("etc/edgectl/registries.yaml");
    fs::write(&config, registries).unwrap();
    pod("web", "nginx:1.7.9", "restartPolicy: Always");
    lab.ok(&["wait", "pod", "web", "--for=condition=Ready", "--timeout=60s"]);
    let events = lab.ok(&["get", "events"]);
    assert!(events.contains("Successfully pulled image \"nginx:1.7.9\" in "), "{events}");
    lab.ok(&["delete", "pod", "--all"]);
    drop(registry);
    lab.end();
}
