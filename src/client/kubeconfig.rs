//! The kubeconfig: found, merged and read as kubectl does it, and changed so that everything in it that is not ours stays.
//! It never runs a sign-in program and never prints a key.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use nix::fcntl::{Flock, FlockArg};
use serde_yaml::{Mapping, Value};

use crate::base::file;

/// Of the text in a lock file.
const HOLDER_BYTES_MAX: u64 = 512;
/// How long another program may hold the file's lock.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// The three lists of named entries: the list, and the field that holds the content of an entry.
const LISTS: [(&str, &str); 3] = [("clusters", "cluster"), ("users", "user"), ("contexts", "context")];

/// What the command line says about the server, over what the kubeconfig says.
#[derive(Debug, Default, Clone)]
pub struct Overrides {
    pub context: Option<String>,
    pub cluster: Option<String>,
    pub user: Option<String>,
    pub server: Option<String>,
    pub token: Option<String>,
    pub certificate_authority: Option<String>,
    pub client_certificate: Option<String>,
    pub client_key: Option<String>,
    pub tls_server_name: Option<String>,
    pub insecure: bool,
}

/// A server and how to speak to it. Certificates and keys are PEM.
#[derive(Default, Clone)]
pub struct Target {
    /// `https://host:port`, perhaps with a path.
    pub server: String,
    pub certificate_authority: Option<Vec<u8>>,
    pub client_certificate: Option<Vec<u8>>,
    pub client_key: Option<Vec<u8>>,
    pub token: Option<String>,
    pub tls_server_name: Option<String>,
    pub insecure: bool,
}

/// Several files read as one: the first file that names something wins.
#[derive(Debug, Default, Clone)]
pub struct Kubeconfig {
    pub merged: Value,
}

/// A context to be written, with the cluster and the user it stands for; all three carry its name.
pub struct NewContext<'a> {
    pub name: &'a str,
    pub server: &'a str,
    pub certificate_authority: &'a str,
    pub client_certificate: &'a str,
    pub client_key: &'a str,
}

/// Where the kubeconfig is: the file given, or the list in `$KUBECONFIG`, or `~/.kube/config`.
pub fn files(explicit: Option<&str>) -> Vec<PathBuf> {
    if let Some(path) = explicit.filter(|path| !path.is_empty()) {
        return vec![PathBuf::from(path)];
    }
    let listed: Vec<PathBuf> = match std::env::var_os("KUBECONFIG") {
        Some(list) => std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect(),
        None => vec![],
    };
    if !listed.is_empty() {
        return listed;
    }
    std::env::home_dir().map(|home| home.join(".kube/config")).into_iter().collect()
}

/// The file that new entries go to: the only one, or the last of the list that exists.
pub fn file_for_new_entries(explicit: Option<&str>) -> Result<PathBuf> {
    let files = files(explicit);
    let existing = files.iter().rev().find(|path| path.exists());
    existing.or(files.last()).cloned().ok_or_else(|| anyhow!("no home folder to keep a kubeconfig in; set KUBECONFIG"))
}

/// Reads and merges the files. A file of the list that is missing counts as empty; one named by flag must exist.
pub fn load(explicit: Option<&str>) -> Result<Kubeconfig> {
    let files = files(explicit);
    let mut merged = Mapping::new();
    for path in &files {
        if !path.exists() && explicit.is_none() {
            continue;
        }
        let content = read(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for (key, value) in content {
            let Some(name) = key.as_str() else { continue };
            match LISTS.iter().find(|(list, _)| *list == name) {
                Some((_, field)) => {
                    let list = merged.entry(key.clone()).or_insert_with(|| Value::Sequence(vec![]));
                    let Value::Sequence(list) = list else { continue };
                    for mut entry in value.as_sequence().into_iter().flatten().cloned() {
                        if !list.iter().any(|known| known["name"] == entry["name"]) {
                            absolute_paths(&mut entry[*field], folder);
                            list.push(entry);
                        }
                    }
                }
                None => {
                    let empty = value.as_str() == Some("") || value.is_null();
                    if !empty && !merged.contains_key(&key) {
                        merged.insert(key, value);
                    }
                }
            }
        }
    }
    Ok(Kubeconfig { merged: Value::Mapping(merged) })
}

/// Paths in a kubeconfig are relative to the file that holds them.
fn absolute_paths(entry: &mut Value, folder: &Path) {
    let Value::Mapping(fields) = entry else { return };
    for key in ["certificate-authority", "client-certificate", "client-key", "tokenFile"] {
        if let Some(Value::String(path)) = fields.get_mut(key).filter(|path| path.as_str() != Some("")) {
            *path = folder.join(&*path).to_string_lossy().into_owned();
        }
    }
}

fn read(path: &Path) -> Result<Mapping> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!("stat {}: no such file or directory", path.display()),
        Err(error) => return Err(error).with_context(|| format!("read kubeconfig {}", path.display())),
    };
    match serde_yaml::from_str(&text).with_context(|| format!("error loading config file {:?}", path.display().to_string()))? {
        Value::Mapping(fields) => Ok(fields),
        Value::Null => Ok(Mapping::new()),
        _ => bail!("error loading config file {:?}: not a kubeconfig", path.display().to_string()),
    }
}

impl Kubeconfig {
    pub fn current_context(&self) -> Option<&str> {
        self.merged["current-context"].as_str().filter(|name| !name.is_empty())
    }

    /// The entries of `clusters`, `users` or `contexts`: name and content.
    pub fn entries(&self, list: &str) -> impl Iterator<Item = (&str, &Value)> {
        let field = LISTS.iter().find(|(name, _)| *name == list).map_or("", |(_, field)| field);
        let entries = self.merged[list].as_sequence().into_iter().flatten();
        entries.filter_map(move |entry| Some((entry["name"].as_str()?, &entry[field])))
    }

    fn entry(&self, list: &str, name: &str) -> Option<&Value> {
        self.entries(list).find(|(known, _)| *known == name).map(|(_, content)| content)
    }

    /// The namespace of a context, `default` if it names none.
    pub fn namespace(&self, context: Option<&str>) -> &str {
        let context = context.or(self.current_context()).and_then(|name| self.entry("contexts", name));
        context.and_then(|context| context["namespace"].as_str()).filter(|name| !name.is_empty()).unwrap_or("default")
    }

    /// The server to speak to.
    ///
    /// # Errors
    /// If a name leads nowhere, a certificate cannot be read, or there is no server at all ([`NoServer`]).
    pub fn target(&self, overrides: &Overrides) -> Result<Target> {
        let context_name = overrides.context.as_deref().or(self.current_context());
        let context = match context_name {
            Some(name) => match self.entry("contexts", name) {
                Some(context) => context.clone(),
                None if overrides.context.is_some() => bail!("context {name:?} does not exist"),
                None => Value::Null,
            },
            None => Value::Null,
        };
        let lookup = |list: &str, kind: &str, chosen: &Option<String>| -> Result<Value> {
            let name = chosen.as_deref().or(context[kind].as_str()).unwrap_or_default();
            match self.entry(list, name) {
                Some(entry) => Ok(entry.clone()),
                None if chosen.is_some() => bail!("{kind} {name:?} does not exist"),
                None => Ok(Value::Null),
            }
        };
        let cluster = lookup("clusters", "cluster", &overrides.cluster)?;
        let user = lookup("users", "user", &overrides.user)?;
        let text = |entry: &Value, key: &str| entry[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let Some(server) = overrides.server.clone().or_else(|| text(&cluster, "server")) else {
            return Err(anyhow!(NoServer { context: context_name.map(str::to_owned) }));
        };
        let server = if server.contains("://") { server } else { format!("http://{server}") };
        if text(&cluster, "proxy-url").is_some() {
            bail!("the kubeconfig reaches {server} through a proxy (proxy-url), which is not supported; connect directly");
        }
        for method in ["exec", "auth-provider"] {
            if !user[method].is_null() && overrides.token.is_none() && overrides.client_certificate.is_none() {
                bail!("the kubeconfig's user signs in by {method}, which is not supported; use a client certificate or a token");
            }
        }
        let token = match (&overrides.token, text(&user, "token"), text(&user, "tokenFile")) {
            (Some(token), ..) => Some(token.clone()),
            (None, Some(token), _) => Some(token),
            (None, None, Some(path)) => {
                let token = fs::read_to_string(&path).with_context(|| format!("read token file {path}"))?;
                Some(token.trim().to_owned())
            }
            (None, None, None) => None,
        };
        let insecure = overrides.insecure || cluster["insecure-skip-tls-verify"].as_bool() == Some(true);
        Ok(Target {
            certificate_authority: pem(&overrides.certificate_authority, &cluster, "certificate-authority")?.filter(|_| !insecure),
            client_certificate: pem(&overrides.client_certificate, &user, "client-certificate")?,
            client_key: pem(&overrides.client_key, &user, "client-key")?,
            tls_server_name: overrides.tls_server_name.clone().or_else(|| text(&cluster, "tls-server-name")),
            server: server.trim_end_matches('/').to_owned(),
            token,
            insecure,
        })
    }
}

/// There is no kubeconfig, or it names no server.
#[derive(Debug)]
pub struct NoServer {
    pub context: Option<String>,
}

impl std::fmt::Display for NoServer {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match &self.context {
            Some(context) => write!(f, "the kubeconfig names no server for context {context:?}"),
            None => write!(f, "no kubeconfig names a server"),
        }
    }
}

impl std::error::Error for NoServer {}

/// A certificate or key: the file given by flag, the data embedded in the kubeconfig, or the file it names.
fn pem(path: &Option<String>, entry: &Value, key: &str) -> Result<Option<Vec<u8>>> {
    let data = entry[format!("{key}-data").as_str()].as_str().filter(|data| !data.is_empty());
    let path = path.as_deref().or(if data.is_some() { None } else { entry[key].as_str().filter(|path| !path.is_empty()) });
    match (path, data) {
        (Some(path), _) => fs::read(path).map(Some).with_context(|| format!("unable to read {key} {path}")),
        (None, Some(data)) => {
            let data: String = data.split_whitespace().collect();
            BASE64.decode(data).map(Some).map_err(|_| anyhow!("{key}-data of the kubeconfig is not base64"))
        }
        (None, None) => Ok(None),
    }
}

/// Puts a context with its cluster and user into the file and makes it the current one. Entries of the same name are replaced.
pub fn merge(path: &Path, context: &NewContext) -> Result<()> {
    let name = context.name;
    let base64 = |text: &str| BASE64.encode(text);
    let cluster = mapping([("server", context.server.into()), ("certificate-authority-data", base64(context.certificate_authority))]);
    let user = mapping([("client-certificate-data", base64(context.client_certificate)), ("client-key-data", base64(context.client_key))]);
    let link = mapping([("cluster", name.to_owned()), ("user", name.to_owned())]);
    edit(path, |config| {
        set_entry(config, "clusters", name, cluster);
        set_entry(config, "users", name, user);
        set_entry(config, "contexts", name, link);
        config.insert("current-context".into(), name.into());
        Ok(())
    })
}

fn mapping<const N: usize>(fields: [(&str, String); N]) -> Value {
    Value::Mapping(fields.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
}

/// Takes a context, its cluster and its user out of the file again. If it was the current one, none is current afterwards.
/// A file that holds nothing else any more is removed.
pub fn remove(path: &Path, name: &str) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let mut nothing_left = false;
    edit(path, |config| {
        for (list, _) in LISTS {
            if let Some(Value::Sequence(entries)) = config.get_mut(list) {
                entries.retain(|entry| entry["name"].as_str() != Some(name));
            }
        }
        if config.get("current-context").and_then(Value::as_str) == Some(name) {
            config.insert("current-context".into(), "".into());
        }
        nothing_left = config.iter().all(|(key, value)| match value {
            Value::Sequence(entries) => entries.is_empty(),
            Value::Mapping(fields) => fields.is_empty(),
            Value::String(text) => text.is_empty() || matches!(key.as_str(), Some("kind" | "apiVersion")),
            other => other.is_null(),
        });
        Ok(())
    })?;
    if nothing_left {
        file::remove(path).with_context(|| format!("remove empty kubeconfig {}", path.display()))?;
    }
    Ok(())
}

/// Puts or replaces the entry `name` of one of the lists.
pub fn set_entry(config: &mut Mapping, list: &str, name: &str, content: Value) {
    let field = LISTS.iter().find(|(known, _)| *known == list).map_or(list, |(_, field)| field);
    let entries = config.entry(list.into()).or_insert(Value::Null);
    if !entries.is_sequence() {
        *entries = Value::Sequence(vec![]);
    }
    let Value::Sequence(entries) = entries else { return };
    match entries.iter_mut().find(|entry| entry["name"].as_str() == Some(name)) {
        Some(entry) => entry[field] = content,
        None => entries.push(Value::Mapping([(field.into(), content), ("name".into(), name.into())].into_iter().collect())),
    }
}

/// Changes a kubeconfig under kubectl's lock file, replacing it in one step. A new file and its folder are for the owner alone.
pub fn edit(path: &Path, change: impl FnOnce(&mut Mapping) -> Result<()>) -> Result<()> {
    // Behind a link the real file is replaced, not the link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).with_context(|| format!("create folder {}", folder.display()))?;
    }
    let _lock = Lock::take(&path)?;
    let mut config = if path.exists() { read(&path)? } else { Mapping::new() };
    for (key, value) in [("apiVersion", "v1"), ("kind", "Config")] {
        config.entry(key.into()).or_insert_with(|| value.into());
    }
    change(&mut config)?;
    let text = serde_yaml::to_string(&config).context("write kubeconfig as YAML")?;
    file::replace(&path, text.as_bytes(), 0o600).with_context(|| format!("write kubeconfig {}", path.display()))
}

/// The file `config.lock` beside the kubeconfig, as kubectl makes it. Ours say who holds them, so that one whose holder was killed is in
/// nobody's way; an empty one is kubectl's, and respected.
struct Lock(PathBuf);

impl Lock {
    fn take(path: &Path) -> Result<Self> {
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let name = PathBuf::from(name);
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match fs::OpenOptions::new().write(true).create_new(true).open(&name) {
                Ok(mut file) => {
                    let lock = Self(name);
                    file.write_all(holder(std::process::id())?.as_bytes()).with_context(|| format!("lock {}", path.display()))?;
                    return Ok(lock);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && clear_left_behind(&name)? => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    bail!("{} is in use by another program; if none runs, remove {}", path.display(), name.display())
                }
                Err(error) => return Err(error).with_context(|| format!("lock {}", path.display())),
            }
        }
    }
}

/// What stands in a lock file of ours. With the machine's name: a home folder may be shared.
fn holder(pid: u32) -> Result<String> {
    let host = nix::unistd::gethostname().context("read the host name")?;
    Ok(format!("edgectl {} {pid}", host.to_string_lossy()))
}

/// Removes a lock file whose holder, a program of ours on this machine, has ended without it; answers whether it did. Whoever removes
/// one has it locked, so that of two who find the same neither takes away what the other has made since.
fn clear_left_behind(name: &Path) -> Result<bool> {
    let Ok(file) = fs::File::open(name) else { return Ok(false) };
    let Ok(mut file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { return Ok(false) };
    let mut text = String::new();
    let Ok(_) = (&mut *file).take(HOLDER_BYTES_MAX).read_to_string(&mut text) else { return Ok(false) };
    let Some(pid) = text.rsplit(' ').next().and_then(|pid| pid.parse::<u32>().ok()) else { return Ok(false) };
    let is_same = fs::metadata(name).is_ok_and(|there| file.metadata().is_ok_and(|ours| ours.ino() == there.ino()));
    if text != holder(pid)? || Path::new(&format!("/proc/{pid}")).exists() || !is_same {
        return Ok(false);
    }
    fs::remove_file(name).with_context(|| format!("remove {}, which nobody holds any more", name.display()))?;
    Ok(true)
}

impl Drop for Lock {
    fn drop(&mut self) {
        // If it cannot be removed, the next writer says which file is in the way.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn folder() -> PathBuf {
        let path = std::env::temp_dir().join(format!("kubeconfig-{}", crate::base::id::uid()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    const OTHERS: &str = "apiVersion: v1\nkind: Config\npreferences: {colors: true}\nclusters:\n- name: prod\n  cluster: {server: \
        'https://prod:6443', certificate-authority: ca.pem}\nusers:\n- name: me\n  user: {token: secret}\ncontexts:\n- name: prod\n  \
        context: {cluster: prod, user: me, namespace: shop}\ncurrent-context: prod\n";

    fn edge() -> NewContext<'static> {
        NewContext {
            name: "edge",
            server: "https://127.0.0.1:6443",
            certificate_authority: "CA",
            client_certificate: "CRT",
            client_key: "KEY",
        }
    }

    #[test]
    fn a_lock_whose_holder_was_killed_is_in_nobodys_way() {
        let folder = std::env::temp_dir().join(format!("edgectl-lock-{}", crate::base::id::uid()));
        fs::create_dir_all(&folder).unwrap();
        let (config, lock) = (folder.join("config"), folder.join("config.lock"));
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        for (text, is_cleared) in [
            (holder(ended.id()).unwrap(), true),
            (holder(std::process::id()).unwrap(), false),
            (String::new(), false),
            (format!("edgectl another-host {}", ended.id()), false),
        ] {
            fs::write(&lock, &text).unwrap();
            assert_eq!((clear_left_behind(&lock).unwrap(), lock.exists()), (is_cleared, !is_cleared), "{text:?}");
        }
        fs::write(&lock, holder(ended.id()).unwrap()).unwrap();
        drop(Lock::take(&config).unwrap());
        assert!(!lock.exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn merging_and_removing_keeps_what_is_not_ours() {
        let folder = folder();
        let path = folder.join("config");
        fs::write(&path, OTHERS).unwrap();
        fs::write(folder.join("ca.pem"), "PROD CA").unwrap();
        merge(&path, &edge()).unwrap();
        merge(&path, &edge()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let config = load(path.to_str()).unwrap();
        assert_eq!(config.current_context(), Some("edge"));
        let target = config.target(&Overrides::default()).unwrap();
        assert_eq!((target.server.as_str(), config.namespace(None)), ("https://127.0.0.1:6443", "default"));
        assert_eq!(target.client_key.as_deref(), Some(&b"KEY"[..]));
        let prod = config.target(&Overrides { context: Some("prod".into()), ..Overrides::default() }).unwrap();
        assert_eq!((config.namespace(Some("prod")), prod.token.as_deref()), ("shop", Some("secret")));
        assert_eq!(prod.certificate_authority.as_deref(), Some(&b"PROD CA"[..]));
        remove(&path, "edge").unwrap();
        let left: Value = serde_yaml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let before: Value = serde_yaml::from_str(&OTHERS.replace("current-context: prod", "current-context: ''")).unwrap();
        assert_eq!(left, before);
        assert!(!folder.join("config.lock").exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_file_that_held_only_our_context_goes_with_it() {
        let folder = folder();
        let path = folder.join("new/config");
        merge(&path, &edge()).unwrap();
        remove(&path, "edge").unwrap();
        assert!(!path.exists());
        remove(&path, "edge").unwrap();
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_leads_nowhere_is_named() {
        let folder = folder();
        let path = folder.join("config");
        fs::write(&path, OTHERS).unwrap();
        let config = load(path.to_str()).unwrap();
        let error = |overrides: Overrides| config.target(&overrides).err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert_eq!(error(Overrides { context: Some("x".into()), ..Overrides::default() }), "context \"x\" does not exist");
        assert_eq!(error(Overrides { user: Some("x".into()), ..Overrides::default() }), "user \"x\" does not exist");
        assert!(error(Overrides::default()).starts_with("unable to read certificate-authority"));
        assert!(Kubeconfig::default().target(&Overrides::default()).err().unwrap().is::<NoServer>());
        fs::write(&path, "clusters: [").unwrap();
        assert!(format!("{:#}", load(path.to_str()).unwrap_err()).starts_with("error loading config file"));
        assert!(load(folder.join("none").to_str()).unwrap_err().to_string().ends_with("no such file or directory"));
        fs::remove_dir_all(folder).unwrap();
    }
}
