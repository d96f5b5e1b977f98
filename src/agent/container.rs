//! From a container of a pod to what the runtime starts: command, user, mounts, capabilities, limits. Pure but for the
//! look into the image's user database. It starts nothing. <https://kubernetes.io/docs/tasks/configure-pod-container/security-context/>

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

use super::environment::expand;
use super::resources;
use super::volumes::{Content, Folders};
use crate::api::pod::{Container, Pod, VolumeMount};
use crate::image::{Config, Image};
use crate::runtime::spec::{DefaultContainer, Mount, NamespaceKind, Spec, User, default_container};

/// A user database longer than this is not read.
const PASSWD_BYTES_MAX: u64 = 1 << 20;

/// What a container needs beside what it says itself.
pub struct Surroundings<'a> {
    pub image: &'a Image,
    pub environment: Vec<String>,
    pub volumes: &'a BTreeMap<String, Content>,
    pub folders: &'a Folders,
    /// The node's files that appear in the container: where it sees them, where they are.
    pub files: Vec<(&'static str, PathBuf)>,
    /// The file behind `terminationMessagePath`.
    pub termination_log: PathBuf,
    pub node_memory_bytes: u64,
    /// A lower score than this the kernel would refuse.
    pub oom_score_min: i32,
}

/// The container as the runtime wants it; root, namespaces of the pod and cgroup are filled in by the runtime.
///
/// # Errors
/// A sentence for the status: Kubernetes' `CreateContainerConfigError`.
pub fn spec(pod: &Pod, container: &Container, around: &Surroundings) -> Result<Spec, String> {
    let config = &around.image.config;
    let security = &container.security_context;
    let user = user(pod, container, around.image)?;
    let args = args(container, config, &around.environment)?;
    let mut environment = around.environment.clone();
    if !environment.iter().any(|variable| variable.starts_with("HOME=")) {
        environment.push(format!("HOME={}", home(around.image, user.uid)));
    }
    if container.tty && !environment.iter().any(|variable| variable.starts_with("TERM=")) {
        environment.push("TERM=xterm".into());
    }
    let seccomp = security.seccomp_profile.as_ref().or(pod.spec.security_context.seccomp_profile.as_ref());
    let mut share = Vec::new();
    if pod.spec.host_network {
        share.push(NamespaceKind::Network);
    }
    let mut spec = default_container(DefaultContainer {
        args,
        env: environment,
        cwd: if container.working_dir.is_empty() { config.working_dir.clone() } else { container.working_dir.clone() },
        user,
        terminal: container.tty,
        rootfs_readonly: security.read_only_root_filesystem,
        share,
        mounts: mounts(container, around)?,
        capabilities_add: security.capabilities.add.clone(),
        capabilities_drop: security.capabilities.drop.clone(),
        privileged: security.privileged,
        no_new_privileges: security.allow_privilege_escalation == Some(false),
        unconfined: seccomp.is_some_and(|profile| profile.kind == "Unconfined"),
        resources: resources::of_container(container),
        oom_score_adj: Some(resources::oom_score_adj(pod, container, around.node_memory_bytes).max(around.oom_score_min)),
        ..DefaultContainer::default()
    });
    // The pod's own /dev/shm stands in for the one that a lone container would have.
    let shm = around.folders.shm();
    for mount in &mut spec.mounts {
        if mount.destination == Path::new("/dev/shm") && !pod.spec.host_ipc {
            *mount = bind("/dev/shm".into(), &shm, false);
        }
    }
    Ok(spec)
}

/// `command` stands for the image's entry point and its arguments, `args` for the arguments only.
/// <https://kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container/>
fn args(container: &Container, config: &Config, environment: &[String]) -> Result<Vec<String>, String> {
    let expanded = |words: &[String]| words.iter().map(|word| expand(word, |name| variable(environment, name))).collect::<Vec<_>>();
    let args = match (container.command.is_empty(), container.args.is_empty()) {
        (true, true) => [config.entrypoint.clone(), config.cmd.clone()].concat(),
        (true, false) => [config.entrypoint.clone(), expanded(&container.args)].concat(),
        (false, _) => [expanded(&container.command), expanded(&container.args)].concat(),
    };
    match args.is_empty() {
        true => Err(format!("no command specified: neither container {:?} nor its image says what to run", container.name)),
        false => Ok(args),
    }
}

fn variable<'a>(environment: &'a [String], name: &str) -> Option<&'a str> {
    environment.iter().find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='))
}

/// `subPath`, or what `subPathExpr` comes to.
fn sub_path(wanted: &VolumeMount, environment: &[String]) -> Result<Option<PathBuf>, String> {
    let missing = RefCell::new(Vec::new());
    let lookup = |name: &str| {
        variable(environment, name).or_else(|| {
            missing.borrow_mut().push(name.to_owned());
            None
        })
    };
    let path = if wanted.sub_path_expr.is_empty() { wanted.sub_path.clone() } else { expand(&wanted.sub_path_expr, lookup) };
    if let Some(name) = missing.into_inner().first() {
        return Err(format!("subPathExpr {:?}: missing value for {name:?}", wanted.sub_path_expr));
    }
    Ok((!path.is_empty()).then(|| path.into()))
}

fn mounts(container: &Container, around: &Surroundings) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    let is_mounted = |path: &str| container.volume_mounts.iter().any(|mount| mount.mount_path == path);
    for (destination, source) in &around.files {
        // A volume that the user mounts there wins.
        if !is_mounted(destination) {
            mounts.push(bind((*destination).into(), source, false));
        }
    }
    if !container.termination_message_path.is_empty() {
        mounts.push(bind(container.termination_message_path.as_str().into(), &around.termination_log, false));
    }
    for wanted in &container.volume_mounts {
        let content = around.volumes.get(&wanted.name).ok_or_else(|| format!("volume {:?} of a volumeMount not found", wanted.name))?;
        let volume = around.folders.path(&wanted.name, content);
        // What the API filled in is not the container's to change.
        let read_only = wanted.read_only || matches!(content, Content::Files(_));
        let mut mount = bind(wanted.mount_path.as_str().into(), &volume, read_only);
        // The runtime looks it up when it mounts: containers that run already may change the volume until then.
        mount.sub_path = sub_path(wanted, &around.environment)?;
        mount.options.push(
            match wanted.mount_propagation.as_str() {
                "HostToContainer" => "rslave",
                "Bidirectional" => "rshared",
                _ => "rprivate",
            }
            .into(),
        );
        mounts.push(mount);
    }
    // A mount below another must come after it.
    mounts.sort_by_key(|mount| mount.destination.components().count());
    Ok(mounts)
}

fn bind(destination: PathBuf, source: &Path, read_only: bool) -> Mount {
    Mount {
        destination,
        kind: "bind".into(),
        source: source.to_string_lossy().into_owned(),
        options: vec!["rbind".into(), if read_only { "ro" } else { "rw" }.into()],
        ..Mount::default()
    }
}

fn user(pod: &Pod, container: &Container, image: &Image) -> Result<User, String> {
    let (of_pod, own) = (&pod.spec.security_context, &container.security_context);
    let (name, group) = image.config.user.split_once(':').unwrap_or((&image.config.user, ""));
    let wanted = own.run_as_user.or(of_pod.run_as_user);
    let passwd = |image: &Image| read_in_image(&image.layers, "etc/passwd").unwrap_or_default();
    let (uid, image_gid) = match (wanted, name) {
        (Some(uid), _) => (uid, gid_of_user(&passwd(image), uid).unwrap_or(0)),
        (None, "") => (0, 0),
        (None, name) => match name.parse::<u32>() {
            Ok(uid) => (uid, gid_of_user(&passwd(image), uid).unwrap_or(0)),
            Err(_) => {
                find_user(&passwd(image), name).ok_or_else(|| format!("unable to find user {name}: no matching entries in passwd file"))?
            }
        },
    };
    if own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
        if uid == 0 {
            let (pod, container) = (pod.full_name(), &container.name);
            return Err(format!("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})"));
        }
        if wanted.is_none() && name.parse::<u32>().is_err() {
            return Err(format!("container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"));
        }
    }
    let gid = match (own.run_as_group.or(of_pod.run_as_group), wanted, group) {
        (Some(gid), _, _) => gid,
        (None, None, group) if !group.is_empty() => match group.parse() {
            Ok(gid) => gid,
            Err(_) => {
                let text = read_in_image(&image.layers, "etc/group").unwrap_or_default();
                find_group(&text, group).ok_or_else(|| format!("unable to find group {group}: no matching entries in group file"))?
            }
        },
        _ => image_gid,
    };
    let mut additional_gids = of_pod.supplemental_groups.clone();
    additional_gids.extend(of_pod.fs_group);
    if wanted.is_none() && !name.is_empty() && name.parse::<u32>().is_err() {
        additional_gids.extend(groups_of(&read_in_image(&image.layers, "etc/group").unwrap_or_default(), name));
    }
    additional_gids.sort_unstable();
    additional_gids.dedup();
    Ok(User { uid, gid, additional_gids, ..User::default() })
}

/// Lines of passwd(5) or group(5), split.
fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

fn find_user(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let fields = lines(passwd).find(|fields| fields[0] == name)?;
    Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}

fn gid_of_user(passwd: &str, uid: u32) -> Option<u32> {
    let uid = uid.to_string();
    lines(passwd).find(|fields| fields.get(2) == Some(&uid.as_str()))?.get(3)?.parse().ok()
}

fn find_group(group: &str, name: &str) -> Option<u32> {
    lines(group).find(|fields| fields[0] == name)?.get(2)?.parse().ok()
}

fn groups_of(group: &str, user: &str) -> Vec<u32> {
    let member = |fields: &Vec<&str>| fields.get(3).is_some_and(|members| members.split(',').any(|member| member == user));
    lines(group).filter(member).filter_map(|fields| fields.get(2)?.parse().ok()).collect()
}

fn home(image: &Image, uid: u32) -> String {
    let passwd = read_in_image(&image.layers, "etc/passwd").unwrap_or_default();
    let text = uid.to_string();
    let found =
        lines(&passwd).find(|fields| fields.get(2) == Some(&text.as_str())).and_then(|fields| fields.get(5).map(|home| (*home).to_owned()));
    found.filter(|home| !home.is_empty()).unwrap_or_else(|| if uid == 0 { "/root".into() } else { "/".into() })
}

/// The file as the topmost layer has it. Links are followed inside the layer only.
fn read_in_image(layers: &[PathBuf], path: &str) -> Option<String> {
    for layer in layers.iter().rev() {
        let Ok(root) = open(layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) else { continue };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let Ok(found) = openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) else { continue };
        let mut text = String::new();
        let mut file = File::from(found);
        if !file.metadata().ok()?.is_file() {
            // A whiteout: the layers below do not count any more.
            return None;
        }
        file.by_ref().take(PASSWD_BYTES_MAX).read_to_string(&mut text).ok()?;
        return Some(text);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www:/var/www:/bin/false\nweb:x:1000:1001::/home/web:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww-data:x:33:web\nextra:x:44:other,web\n";

    #[test]
    fn users_and_groups_are_found_by_name() {
        assert_eq!(find_user(PASSWD, "web"), Some((1000, 1001)));
        assert_eq!(find_user(PASSWD, "nobody"), None);
        assert_eq!(gid_of_user(PASSWD, 33), Some(33));
        assert_eq!(find_group(GROUP, "extra"), Some(44));
        assert_eq!(groups_of(GROUP, "web"), [33, 44]);
    }

    #[test]
    fn a_sub_path_may_be_made_of_variables_that_are_set() {
        let environment = ["NAME=web-1".to_owned(), "EMPTY=".to_owned()];
        for (plain, expression, path) in [
            ("", "", Ok(None)),
            ("$(NAME)", "", Ok(Some("$(NAME)".into()))),
            ("", "logs/$(NAME)", Ok(Some("logs/web-1".into()))),
            ("", "$(EMPTY)", Ok(None)),
            ("", "logs/$(OTHER)", Err("subPathExpr \"logs/$(OTHER)\": missing value for \"OTHER\"".to_owned())),
        ] {
            let wanted = VolumeMount { sub_path: plain.into(), sub_path_expr: expression.into(), ..VolumeMount::default() };
            assert_eq!(sub_path(&wanted, &environment), path, "{plain} {expression}");
        }
    }

    #[test]
    fn command_and_args_stand_for_entry_point_and_cmd() {
        let config = Config { entrypoint: vec!["/entry".into()], cmd: vec!["cmd".into()], ..Config::default() };
        let environment = ["WHO=world".to_owned()];
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for (command, given, made) in [
            (vec![], vec![], vec!["/entry", "cmd"]),
            (vec![], vec!["$(WHO)"], vec!["/entry", "world"]),
            (vec!["sh"], vec![], vec!["sh"]),
            (vec!["sh"], vec!["-c", "$(NONE)"], vec!["sh", "-c", "$(NONE)"]),
        ] {
            let container = Container { command: words(&command), args: words(&given), ..Container::default() };
            assert_eq!(args(&container, &config, &environment), Ok(words(&made)));
        }
        assert!(args(&Container::default(), &Config::default(), &[]).is_err());
    }
}
