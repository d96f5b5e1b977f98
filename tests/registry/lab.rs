//! What these tests share: images, registries, certificates, a store of one's own, and pictures of file trees.
//! Everything a test starts or writes ends with it.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;

pub const IMAGES: [&str; 5] = ["busybox", "nginx", "apache2", "redis", "layers"];

/// The folder with an OCI layout for each image, made on first use.
pub fn images() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images");
        run(Command::new(here.join("tests/images/make")).arg(&folder));
        folder
    })
}

/// Runs a program that must succeed, and gives what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn shell(script: &str, arguments: &[&OsStr]) -> String {
    run(Command::new("bash").args(["-euc", script]).args(arguments))
}

/// A folder that goes with the test.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("edgectl-registry-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A place for `edgectl --root`.
pub struct Node(Scratch);

impl Node {
    pub fn new() -> Self {
        Self(Scratch::new())
    }

    pub fn with_registries(yaml: &str) -> Self {
        let node = Self::new();
        std::fs::create_dir_all(node.0.path("etc/edgectl")).unwrap();
        std::fs::write(node.0.path("etc/edgectl/registries.yaml"), yaml).unwrap();
        node
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgectl"));
        command.arg("image").args(words).arg("--root").arg(&self.0.0).stdin(Stdio::null());
        command
    }

    pub fn try_image(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    pub fn image(&self, words: &[&str]) -> String {
        run(&mut self.command(words))
    }

    /// What a verb that must fail says.
    pub fn refused(&self, words: &[&str]) -> String {
        let output = self.try_image(words);
        assert!(!output.status.success(), "{words:?} went well");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub fn store(&self) -> PathBuf {
        self.0.path("var/lib/edgectl/images")
    }

    pub fn ids(&self) -> Vec<String> {
        self.image(&["ls", "-q"]).lines().map(str::to_owned).collect()
    }

    /// Neither image nor layer, whole or half.
    pub fn assert_empty(&self) {
        assert_eq!(self.ids(), [""; 0]);
        for folder in ["layers", "partial", "configs"] {
            assert_eq!(std::fs::read_dir(self.store().join(folder)).unwrap().count(), 0, "{folder}");
        }
    }

    /// The layers of an image as an overlay, seen as `picture` sees it.
    pub fn picture(&self, id: &str) -> String {
        let index: Value = serde_json::from_slice(&std::fs::read(self.store().join("index.json")).unwrap()).unwrap();
        let layers = index["images"][id]["layers"].as_array().unwrap().clone();
        let mut folders: Vec<String> =
            layers.iter().map(|it| format!("layers/{}/tree", it.as_str().unwrap().trim_start_matches("sha256:"))).collect();
        folders.reverse();
        let script = format!(
            "mount -t tmpfs none /mnt && mkdir /mnt/empty /mnt/all && cd $0 && mount -t overlay none -o lowerdir={}:/mnt/empty /mnt/all && cd /mnt/all && {PICTURE}",
            folders.join(":")
        );
        run(Command::new("unshare").args(["--mount", "bash", "-euc", &script]).arg(self.store()))
    }
}

/// All names with kind, mode, owner, links, time, target and device; the content of files; extended attributes.
const PICTURE: &str = r"
find . ! -type d -printf '%P %y %m %U %G %n %T@ %l\n' | sort
find . -type d -printf '%P %y %m %U %G\n' | sort
find . -type f -exec sha256sum {} + | sort
find . \( -type b -o -type c \) -exec stat -c '%n %t %T' {} + | sort
getfattr -hRd -m - . | sort";

/// An image of a layout as umoci unpacks it.
pub fn picture_by_umoci(layout: &Path, tag: &str) -> String {
    let scratch = Scratch::new();
    let script = format!("umoci unpack --image $0:{tag} $1 && cd $1/rootfs && {PICTURE}");
    shell(&script, &[layout.as_os_str(), scratch.path("bundle").as_os_str()])
}

/// Two pictures are one; if not, shows only the lines that differ.
pub fn assert_same(expected: &str, found: &str, what: &str) {
    let only =
        |one: &str, other: &str| one.lines().filter(|line| !other.lines().any(|it| it == *line)).map(str::to_owned).collect::<Vec<_>>();
    assert!(expected == found, "{what}: expected {:?}, found {:?}", only(expected, found), only(found, expected));
}

/// Debian's docker-registry on a loopback port of its own.
pub struct Registry {
    process: Arc<Mutex<Child>>,
    config: PathBuf,
    pub port: u16,
}

impl Registry {
    /// `settings` are YAML of its configuration besides storage and address, `http` such of the section `http`.
    pub fn with(data: &Scratch, settings: &str, http: &str) -> Self {
        let port = free_port();
        let config = data.path(&format!("config-{port}.yml"));
        let storage = data.path("data");
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n{settings}\nhttp:\n  addr: 127.0.0.1:{port}\n{http}\n",
            storage.display()
        );
        std::fs::write(&config, text).unwrap();
        let process = Arc::new(Mutex::new(start(&config, port)));
        Self { process, config, port }
    }

    pub fn new(data: &Scratch) -> Self {
        Self::with(data, "", "")
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Copies an image into it. `options` are skopeo's.
    pub fn push(&self, source: &str, name: &str, options: &[&str]) {
        let target = format!("docker://{}/{name}", self.host());
        run(Command::new("skopeo").args(["copy", "-q", "--dest-tls-verify=false"]).args(options).args([source, &target]));
    }

    pub fn kill(&self) {
        let mut process = self.process.lock().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    pub fn restart(&self) {
        *self.process.lock().unwrap() = start(&self.config, self.port);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.kill();
    }
}

fn start(config: &Path, port: u16) -> Child {
    let mut command = Command::new("docker-registry");
    let mut process = command.arg("serve").arg(config).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if process.try_wait().unwrap().is_some() {
            let mut said = String::new();
            process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("docker-registry ended: {said}");
        }
        assert!(Instant::now() < deadline, "docker-registry does not listen");
        std::thread::yield_now();
    }
    // Nobody reads what it says; a full pipe must not stop it.
    let mut stderr = process.stderr.take().unwrap();
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
    process
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn layout(image: &str) -> String {
    format!("oci:{}:latest", images().join(image).display())
}

/// The digest of the configuration: what an image's id must be.
pub fn id_of(layout_folder: &Path, tag: &str) -> String {
    let config = shell("skopeo inspect --raw --config oci:$0:$1 | sha256sum", &[layout_folder.as_os_str(), OsStr::new(tag)]);
    format!("sha256:{}", config.split(' ').next().unwrap())
}

/// An image of one layer of noise, which does not compress. umoci's `insert` leaves out the end of its tar; that must not matter.
pub fn noise(scratch: &Scratch, bytes: u64) -> PathBuf {
    let folder = scratch.path("noise");
    let script = "umoci init --layout $0 && umoci new --image $0:latest && head -c $1 /dev/urandom >$0.bin && printf odd >>$0.bin && umoci insert --image $0:latest $0.bin /noise";
    shell(script, &[folder.as_os_str(), OsStr::new(&bytes.to_string())]);
    folder
}

/// An authority and a certificate of it for 127.0.0.1, as files.
pub struct Certificates {
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub certificate_der: Vec<u8>,
    pub key_der: Vec<u8>,
}

impl Certificates {
    pub fn new(folder: &Scratch) -> Self {
        let authority_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).unwrap();
        let issuer = Issuer::new(params, authority_key);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let write = |name: &str, pem: String| {
            let path = folder.path(name);
            std::fs::write(&path, pem).unwrap();
            path
        };
        Self {
            authority: write("ca.pem", authority.pem()),
            certificate: write("server.pem", certificate.pem()),
            key: write("server.key", key.serialize_pem()),
            certificate_der: certificate.der().to_vec(),
            key_der: key.serialize_der(),
        }
    }
}

/// Passes bytes on to a registry, notes what clients ask, and does something once after so many bytes came back.
pub struct Proxy {
    pub port: u16,
    asked: Arc<Mutex<Vec<u8>>>,
}

impl Proxy {
    pub fn new(upstream: u16, limit: u64, at_limit: impl FnOnce() + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        let passed = Arc::new(AtomicU64::new(0));
        let at_limit = Arc::new(Mutex::new(Some(at_limit)));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A registry that is dead cannot be connected to: the client sees a closed connection.
                let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)) else { continue };
                let (from, to, log) = (client.try_clone().unwrap(), server.try_clone().unwrap(), log.clone());
                std::thread::spawn(move || relay(from, to, |bytes| log.lock().unwrap().extend_from_slice(bytes)));
                let (passed, at_limit) = (passed.clone(), at_limit.clone());
                std::thread::spawn(move || {
                    relay(server, client, |bytes| {
                        if passed.fetch_add(bytes.len() as u64, Ordering::SeqCst) + bytes.len() as u64 >= limit
                            && let Some(action) = at_limit.lock().unwrap().take()
                        {
                            action();
                        }
                    })
                });
            }
        });
        Self { port, asked }
    }

    /// The ranges that clients asked for: `bytes=1234-`.
    pub fn ranges(&self) -> Vec<String> {
        let asked = String::from_utf8_lossy(&self.asked.lock().unwrap()).into_owned();
        asked.lines().filter_map(|line| line.strip_prefix("range: ")).map(|range| range.trim().to_owned()).collect()
    }
}

/// Small pieces, so that a limit is met on the way and not beyond the end.
fn relay(mut from: TcpStream, mut to: TcpStream, mut seen: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(amount @ 1..) = from.read(&mut buffer) {
        seen(&buffer[..amount]);
        if to.write_all(&buffer[..amount]).is_err() {
            break;
        }
    }
    // Either side may be gone already.
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
