//! The volumes of a pod: folders, tmpfs, the node's own paths, and files made of ConfigMaps, Secrets, tokens and the pod's
//! fields. `plan` says what each is to be, `apply` makes it so. What is secret stays on the run directory's tmpfs.
//! It mounts nothing into a container: the runtime does. <https://kubernetes.io/docs/concepts/storage/volumes/>

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::environment::{self, Facts, Found, Source};
use super::resources::quantity;
use crate::api::pod::{ConfigMapSource, DownwardSource, HostPath, KeyToPath, Pod, SecretSource, TokenSource, Volume};
use crate::base::file;
use crate::base::time::Timestamp;

/// The mode of files and the name of the link to their present state. k8s.io/kubernetes/pkg/volume/util/atomic_writer.go.
const FILE_MODE: u32 = 0o644;
const DATA_LINK: &str = "..data";
const TOKEN_SECONDS: u64 = 3600;
const SHM_BYTES: u64 = 64 << 20;

/// What a volume is to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// An empty folder on the state directory's disk.
    Folder,
    /// An empty tmpfs, of at most so many bytes.
    Memory(Option<u64>),
    Host(HostPath),
    /// Files that are replaced all at once.
    Files(Vec<VolumeFile>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct VolumeFile {
    /// Below the volume, without `..`.
    pub path: String,
    pub mode: u32,
    pub content: Vec<u8>,
}

/// A token that a volume wants, by the volume's name and the token's place among its sources.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenWanted {
    pub audience: String,
    pub seconds: u64,
}

pub type Tokens = BTreeMap<TokenWanted, String>;

/// The ConfigMaps and Secrets that the pod's volumes read.
pub fn sources(pod: &Pod) -> Vec<Source> {
    let mut sources = Vec::new();
    for volume in &pod.spec.volumes {
        let projected = volume.projected.iter().flat_map(|projected| &projected.sources);
        let config_maps = volume.config_map.iter().chain(projected.clone().filter_map(|source| source.config_map.as_ref()));
        let secrets = volume.secret.iter().chain(projected.filter_map(|source| source.secret.as_ref()));
        sources.extend(config_maps.map(|source| Source::ConfigMap(source.name.clone())));
        sources.extend(secrets.map(|source| Source::Secret(source.secret_name.clone())));
    }
    sources
}

/// Whether volumes of the pod show its own fields.
pub fn show_fields(pod: &Pod) -> bool {
    let projected =
        |volume: &Volume| volume.projected.iter().flat_map(|projected| &projected.sources).any(|source| source.downward_api.is_some());
    pod.spec.volumes.iter().any(|volume| volume.downward_api.is_some() || projected(volume))
}

/// The service account tokens that the pod's volumes hold.
pub fn tokens(pod: &Pod) -> Vec<TokenWanted> {
    let projected = pod.spec.volumes.iter().filter_map(|volume| volume.projected.as_ref());
    projected.flat_map(|projected| &projected.sources).filter_map(|source| source.service_account_token.as_ref()).map(wanted).collect()
}

fn wanted(source: &TokenSource) -> TokenWanted {
    TokenWanted { audience: source.audience.clone(), seconds: source.expiration_seconds.unwrap_or(TOKEN_SECONDS) }
}

/// What each volume of the pod is to be.
///
/// # Errors
/// A sentence that names the volume and what it lacks.
pub fn plan(pod: &Pod, found: &Found, tokens: &Tokens, facts: &Facts) -> Result<BTreeMap<String, Content>, String> {
    let plan_one = |volume: &Volume| {
        let content = content(pod, volume, found, tokens, facts).map_err(|why| format!("volume \"{}\": {why}", volume.name))?;
        Ok((volume.name.clone(), content))
    };
    pod.spec.volumes.iter().map(plan_one).collect()
}

fn content(pod: &Pod, volume: &Volume, found: &Found, tokens: &Tokens, facts: &Facts) -> Result<Content, String> {
    if let Some(source) = &volume.empty_dir {
        let limit = source.size_limit.as_ref().and_then(quantity).map(|limit| limit.value().max(0) as u64).filter(|limit| *limit > 0);
        return match source.medium.as_str() {
            "" => Ok(Content::Folder),
            "Memory" => Ok(Content::Memory(limit)),
            other => Err(format!("emptyDir medium {other:?} is not supported on this node")),
        };
    }
    if let Some(source) = &volume.host_path {
        return Ok(Content::Host(source.clone()));
    }
    let mut files = Files::default();
    if let Some(source) = &volume.config_map {
        files.add_config_map(source, source.default_mode, found)?;
    } else if let Some(source) = &volume.secret {
        files.add_secret(source, source.default_mode, found)?;
    } else if let Some(source) = &volume.downward_api {
        files.add_fields(source, source.default_mode, pod, facts)?;
    } else if let Some(projected) = &volume.projected {
        for source in &projected.sources {
            if let Some(source) = &source.config_map {
                files.add_config_map(source, projected.default_mode, found)?;
            } else if let Some(source) = &source.secret {
                files.add_secret(source, projected.default_mode, found)?;
            } else if let Some(source) = &source.downward_api {
                files.add_fields(source, projected.default_mode, pod, facts)?;
            } else if let Some(source) = &source.service_account_token {
                let token = tokens.get(&wanted(source)).ok_or("the service account token is missing")?;
                files.add(&source.path, projected.default_mode, token.as_bytes())?;
            }
        }
    } else {
        return Err("this node knows none of its sources; it knows emptyDir, hostPath, configMap, secret, downwardAPI and projected".into());
    }
    Ok(Content::Files(files.0))
}

#[derive(Default)]
struct Files(Vec<VolumeFile>);

impl Files {
    fn add(&mut self, path: &str, mode: Option<u32>, content: &[u8]) -> Result<(), String> {
        let relative = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if path.is_empty() || !relative || path.starts_with("..") {
            return Err(format!("the path {path:?} is not below the volume"));
        }
        self.0.retain(|file| file.path != path);
        self.0.push(VolumeFile { path: path.to_owned(), mode: mode.unwrap_or(FILE_MODE), content: content.to_vec() });
        Ok(())
    }

    fn add_config_map(&mut self, source: &ConfigMapSource, mode: Option<u32>, found: &Found) -> Result<(), String> {
        self.add_keys(&Source::ConfigMap(source.name.clone()), &source.items, source.optional, mode, found)
    }

    fn add_secret(&mut self, source: &SecretSource, mode: Option<u32>, found: &Found) -> Result<(), String> {
        self.add_keys(&Source::Secret(source.secret_name.clone()), &source.items, source.optional, mode, found)
    }

    fn add_keys(&mut self, source: &Source, items: &[KeyToPath], optional: bool, mode: Option<u32>, found: &Found) -> Result<(), String> {
        let data = match found.get(source) {
            Some(data) => data,
            None if optional => return Ok(()),
            None => return Err(environment::missing(source)),
        };
        if items.is_empty() {
            return data.iter().try_for_each(|(key, content)| self.add(key, mode, content));
        }
        for item in items {
            match data.get(&item.key) {
                Some(content) => self.add(&item.path, item.mode.or(mode), content)?,
                None if optional => (),
                None => return Err(format!("{} references non-existent key: {}", source.name(), item.key)),
            }
        }
        Ok(())
    }

    fn add_fields(&mut self, source: &DownwardSource, mode: Option<u32>, pod: &Pod, facts: &Facts) -> Result<(), String> {
        for item in &source.items {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => environment::field_of(pod, &field.field_path, facts)?,
                (None, Some(reference)) => environment::resource_of(pod, None, reference, facts)?,
                (None, None) => continue,
            };
            self.add(&item.path, item.mode.or(mode), text.as_bytes())?;
        }
        Ok(())
    }
}

/// Where one pod's volumes are.
#[derive(Clone, Debug)]
pub struct Folders {
    /// On disk; survives a reboot.
    pub state: PathBuf,
    /// On a tmpfs.
    pub run: PathBuf,
}

impl Folders {
    /// The folder or path that is mounted for a volume.
    pub fn path(&self, name: &str, content: &Content) -> PathBuf {
        match content {
            Content::Folder => self.state.join("volumes").join(name),
            Content::Memory(_) | Content::Files(_) => self.run.join("volumes").join(name),
            Content::Host(source) => PathBuf::from(&source.path),
        }
    }

    /// The pod's own /dev/shm, which its containers share.
    pub fn shm(&self) -> PathBuf {
        self.run.join("shm")
    }
}

/// Makes the volumes what the plan says; what is so already is left alone. `group`: `fsGroup`, the owner of what is in them.
///
/// # Errors
/// If the kernel refuses, or a host path is not of the type that was asked for.
pub fn apply(plan: &BTreeMap<String, Content>, folders: &Folders, group: Option<u32>) -> anyhow::Result<()> {
    let shm = folders.shm();
    make_tmpfs(&shm, Some(SHM_BYTES)).context("make /dev/shm")?;
    for (name, content) in plan {
        let path = folders.path(name, content);
        let made = match content {
            Content::Folder => make_folder(&path, group),
            Content::Memory(limit) => make_tmpfs(&path, *limit).and_then(|()| own(&path, group, 0o2777, 0o777)),
            Content::Host(source) => check_host_path(source),
            Content::Files(files) => write_files(&path, files, group),
        };
        made.with_context(|| format!("volume \"{name}\""))?;
    }
    Ok(())
}

/// Takes away all that `apply` made.
///
/// # Errors
/// If something is left; the next call goes on.
pub fn remove(folders: &Folders) -> anyhow::Result<()> {
    let volumes = folders.run.join("volumes");
    let entries = fs::read_dir(&volumes).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in entries.chain([folders.shm()]) {
        match unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => (),
            Err(error) => bail!("unmount {}: {error}", path.display()),
        }
    }
    file::remove_tree(&folders.run).with_context(|| format!("remove {}", folders.run.display()))?;
    file::remove_tree(&folders.state).with_context(|| format!("remove {}", folders.state.display()))
}

fn make_folder(path: &Path, group: Option<u32>) -> anyhow::Result<()> {
    let private = DirBuilder::new().recursive(true).mode(0o755).create(path.parent().unwrap_or(path));
    private.with_context(|| format!("make {}", path.display()))?;
    match fs::create_dir(path) {
        Ok(()) => own(path, group, 0o2777, 0o777),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error).with_context(|| format!("make {}", path.display())),
    }
}

fn own(path: &Path, group: Option<u32>, mode_of_group: u32, mode: u32) -> anyhow::Result<()> {
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group))?;
    }
    fs::set_permissions(path, Permissions::from_mode(if group.is_some() { mode_of_group } else { mode }))?;
    Ok(())
}

fn make_tmpfs(path: &Path, limit: Option<u64>) -> anyhow::Result<()> {
    fs::create_dir_all(path)?;
    if is_mounted(path)? {
        return Ok(());
    }
    let size = limit.map_or(String::new(), |bytes| format!(",size={bytes}"));
    let options = std::ffi::CString::new(format!("mode=1777{size}"))?;
    mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())
        .with_context(|| format!("mount tmpfs on {}", path.display()))
}

/// A mount point is on another device than the folder it is in.
fn is_mounted(path: &Path) -> anyhow::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let parent = path.parent().context("it has no parent")?;
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}

fn check_host_path(source: &HostPath) -> anyhow::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let path = Path::new(&source.path);
    ensure!(path.is_absolute(), "host path {} is not absolute", path.display());
    match source.kind.as_str() {
        "DirectoryOrCreate" => fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?,
        "FileOrCreate" if !path.exists() => {
            fs::OpenOptions::new().create(true).append(true).open(path).with_context(|| format!("make {}", path.display()))?;
        }
        _ => (),
    }
    let found = fs::metadata(path).with_context(|| format!("host path {}", path.display()))?;
    let kind = found.file_type();
    let (fits, wanted) = match source.kind.as_str() {
        "Directory" | "DirectoryOrCreate" => (kind.is_dir(), "directory"),
        "File" | "FileOrCreate" => (kind.is_file(), "file"),
        "Socket" => (kind.is_socket(), "socket"),
        "CharDevice" => (kind.is_char_device(), "character device"),
        "BlockDevice" => (kind.is_block_device(), "block device"),
        _ => (true, ""),
    };
    ensure!(fits, "hostPath type check failed: {} is not a {wanted}", path.display());
    Ok(())
}

/// A new folder with all files, then one rename of the link `..data` that names it: a reader sees all of the old or all of the new.
fn write_files(volume: &Path, files: &[VolumeFile], group: Option<u32>) -> anyhow::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(volume)?;
    let link = volume.join(DATA_LINK);
    let before = fs::read_link(&link).ok();
    if let Some(before) = &before
        && holds(&volume.join(before), files)
    {
        return Ok(());
    }
    let name = format!("..{}", Timestamp::now().rfc3339_micros().replace(['-', ':'], "_"));
    let folder = volume.join(&name);
    for file in files {
        let path = folder.join(&file.path);
        let parent = path.parent().context("a file has a folder")?;
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        fs::write(&path, &file.content)?;
        if group.is_some() {
            std::os::unix::fs::chown(&path, None, group)?;
        }
        let readable = if group.is_some() { 0o440 } else { 0 };
        fs::set_permissions(&path, Permissions::from_mode(file.mode & 0o777 | readable))?;
    }
    fs::create_dir_all(&folder)?;
    let fresh = volume.join("..data_tmp");
    file::remove(&fresh)?;
    symlink(&name, &fresh)?;
    fs::rename(&fresh, &link)?;
    let tops: std::collections::BTreeSet<&str> = files.iter().filter_map(|file| file.path.split('/').next()).collect();
    for top in &tops {
        match symlink(Path::new(DATA_LINK).join(top), volume.join(top)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => (),
        }
    }
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        let named = entry.file_name();
        let named = named.to_string_lossy();
        if !named.starts_with("..") && !tops.contains(named.as_ref()) {
            file::remove(&entry.path())?;
        }
    }
    match before {
        Some(before) => Ok(file::remove_tree(&volume.join(before))?),
        None => Ok(()),
    }
}

fn holds(folder: &Path, files: &[VolumeFile]) -> bool {
    fn count(folder: &Path) -> usize {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
    }
    let same = |file: &VolumeFile| fs::read(folder.join(&file.path)).is_ok_and(|content| content == file.content);
    files.iter().all(same) && count(folder) == files.len()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(volumes: serde_json::Value) -> Pod {
        Pod::read(&json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"volumes": volumes}})).unwrap()
    }

    fn found() -> Found {
        let data = BTreeMap::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
        BTreeMap::from([(Source::ConfigMap("m".into()), data.clone()), (Source::Secret("s".into()), data)])
    }

    fn file(path: &str, mode: u32, content: &str) -> VolumeFile {
        VolumeFile { path: path.into(), mode, content: content.as_bytes().to_vec() }
    }

    #[test]
    fn volumes_become_folders_and_files() {
        let pod = pod(json!([
            {"name": "disk", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "all", "configMap": {"name": "m"}},
            {"name": "one", "secret": {"secretName": "s", "defaultMode": 0o400, "items": [{"key": "b", "path": "x/y"}]}},
            {"name": "mixed", "projected": {"sources": [
                {"configMap": {"name": "m", "items": [{"key": "a", "path": "a"}]}},
                {"secret": {"name": "s", "items": [{"key": "b", "path": "b", "mode": 0o600}]}},
                {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
            ]}},
        ]));
        let tokens = Tokens::from([(TokenWanted { audience: String::new(), seconds: 600 }, "jwt".to_owned())]);
        assert_eq!(self::tokens(&pod), tokens.keys().cloned().collect::<Vec<_>>());
        let plan = plan(&pod, &found(), &tokens, &Facts::default()).unwrap();
        assert_eq!(plan["disk"], Content::Folder);
        assert_eq!(plan["memory"], Content::Memory(Some(1 << 20)));
        assert_eq!(plan["all"], Content::Files(vec![file("a", 0o644, "1"), file("b", 0o644, "2")]));
        assert_eq!(plan["one"], Content::Files(vec![file("x/y", 0o400, "2")]));
        let mixed = vec![file("a", 0o644, "1"), file("b", 0o600, "2"), file("ns", 0o644, "n"), file("token", 0o644, "jwt")];
        assert_eq!(plan["mixed"], Content::Files(mixed));
    }

    #[test]
    fn volumes_name_what_they_lack() {
        for (volume, why) in [
            (json!({"name": "v", "configMap": {"name": "none"}}), "volume \"v\": configmap \"none\" not found"),
            (json!({"name": "v", "secret": {"secretName": "none", "optional": true}}), ""),
            (
                json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "z", "path": "z"}]}}),
                "volume \"v\": m references non-existent key: z",
            ),
            (
                json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "a", "path": "../a"}]}}),
                "volume \"v\": the path \"../a\" is not below the volume",
            ),
        ] {
            let planned = plan(&pod(json!([volume])), &found(), &Tokens::new(), &Facts::default());
            assert_eq!(planned.err().unwrap_or_default(), why);
        }
    }

    #[test]
    fn files_are_replaced_all_at_once_and_old_ones_go() {
        let folder = std::env::temp_dir().join(format!("volume-{}", crate::base::id::uid()));
        write_files(&folder, &[file("a", 0o644, "1"), file("d/b", 0o600, "2")], None).unwrap();
        assert_eq!(fs::read_to_string(folder.join("d/b")).unwrap(), "2");
        let first = fs::read_link(folder.join(DATA_LINK)).unwrap();
        write_files(&folder, &[file("a", 0o644, "1"), file("d/b", 0o600, "2")], None).unwrap();
        assert_eq!(fs::read_link(folder.join(DATA_LINK)).unwrap(), first, "nothing is written when nothing changed");
        write_files(&folder, &[file("a", 0o640, "3")], None).unwrap();
        assert_eq!(fs::read_to_string(folder.join("a")).unwrap(), "3");
        assert!(!folder.join("d").exists() && !folder.join(first).exists());
        fs::remove_dir_all(&folder).unwrap();
    }
}
