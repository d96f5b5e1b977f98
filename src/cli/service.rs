//! The daemons of a board as services of its init system: systemd's units, OpenRC's scripts, and for any other init the lines that a
//! person adds to /etc/inittab. It starts them and does not wait for what they do.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::base::file;

const INITTAB: &str = "/etc/inittab";

/// What starts the daemons of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    Systemd,
    OpenRc,
    /// Busybox's, or one that we do not know: nothing of it is changed.
    Inittab,
}

impl Init {
    pub fn of_machine() -> Self {
        // sd_booted(3); OpenRC makes its folder at boot.
        match (Path::new("/run/systemd/system").exists(), Path::new("/run/openrc").exists()) {
            (true, _) => Self::Systemd,
            (_, true) => Self::OpenRc,
            _ => Self::Inittab,
        }
    }
}

/// `edgectl master` or `edgectl agent`, as it is to run from now on and after each boot.
pub struct Service<'a> {
    pub role: &'static str,
    pub root: &'a Path,
    pub node: &'a str,
}

impl Service<'_> {
    fn unit(&self) -> String {
        format!("edgectl-{}", self.role)
    }

    fn arguments(&self) -> String {
        format!("{} --root {} --name {}", self.role, self.root.display(), self.node)
    }

    /// Where the init system looks for it.
    fn path(&self, init: Init) -> Option<String> {
        match init {
            Init::Systemd => Some(format!("/etc/systemd/system/{}.service", self.unit())),
            Init::OpenRc => Some(format!("/etc/init.d/{}", self.unit())),
            Init::Inittab => None,
        }
    }

    /// The file of its init system, with the mode that this wants; None if there is none.
    fn file(&self, init: Init, program: &str) -> Option<(String, String, u32)> {
        let (role, arguments) = (self.role, self.arguments());
        let (content, mode) = match init {
            // What the agent has started outlives it; KillMode=process, systemd.kill(5).
            Init::Systemd => (
                format!(
                    "[Unit]\nDescription=edgectl {role}\nWants=network-online.target\nAfter=network-online.target\n\n\
                     [Service]\nExecStart={program} {arguments}\nRestart=always\nRestartSec=1\nKillMode=process\nDelegate=yes\n\
                     TasksMax=infinity\nLimitNOFILE=1048576\nOOMScoreAdjust=-999\n\n[Install]\nWantedBy=multi-user.target\n"
                ),
                0o644,
            ),
            Init::OpenRc => (
                format!(
                    "#!/sbin/openrc-run\ndescription=\"edgectl {role}\"\nsupervisor=supervise-daemon\ncommand=\"{program}\"\n\
                     command_args=\"{arguments}\"\nrespawn_delay=1\nrespawn_max=0\n\ndepend() {{\n\tneed net\n}}\n"
                ),
                0o755,
            ),
            Init::Inittab => return None,
        };
        Some((self.path(init)?, content, mode))
    }

    fn commands(&self, init: Init) -> Vec<Vec<String>> {
        let unit = self.unit();
        let words = |line: &str| line.split(' ').map(str::to_owned).collect();
        match init {
            Init::Systemd => {
                vec![
                    words("systemctl daemon-reload"),
                    words(&format!("systemctl enable {unit}")),
                    words(&format!("systemctl restart {unit}")),
                ]
            }
            Init::OpenRc => vec![words(&format!("rc-update add {unit} default")), words(&format!("rc-service {unit} restart"))],
            Init::Inittab => Vec::new(),
        }
    }

    /// What ends it, now and at the next boot.
    fn ends(&self, init: Init) -> Vec<Vec<String>> {
        let unit = self.unit();
        let words = |line: &str| line.split(' ').map(str::to_owned).collect();
        match init {
            Init::Systemd => vec![words(&format!("systemctl disable --now {unit}"))],
            Init::OpenRc => {
                let stop = words(&format!("rc-service {unit} stop"));
                // That it is in no runlevel any more would be an error.
                let is_enabled = fs::symlink_metadata(format!("/etc/runlevels/default/{unit}")).is_ok();
                std::iter::once(stop).chain(is_enabled.then(|| words(&format!("rc-update delete {unit} default")))).collect()
            }
            Init::Inittab => Vec::new(),
        }
    }
}

/// Installs and starts the services, each again if it is there already; answers what a person has to do instead, if somebody has to.
pub fn start(services: &[Service], init: Init) -> Result<Option<String>> {
    let program = std::env::current_exe().context("find this program")?;
    let program = program.to_str().context("the path of this program is no text")?;
    for service in services {
        let words = [program, &service.root.to_string_lossy()].map(|word| word.contains(|c: char| c.is_whitespace() || c == '"'));
        ensure!(!words.contains(&true), "a path of a service may have no blank in it: {program}, {}", service.root.display());
        if let Some((path, content, mode)) = service.file(init, program) {
            if fs::read_to_string(&path).ok().as_ref() != Some(&content) {
                file::replace(path.as_ref(), content.as_bytes(), mode).with_context(|| format!("write {path}"))?;
            }
            for command in service.commands(init) {
                run(&command)?;
            }
        }
    }
    Ok((init == Init::Inittab).then(|| inittab(services, program)))
}

/// Stops the services that `start` has made for this root and takes them away; answers which. It may be repeated.
///
/// # Errors
/// If one does not go, or is one that a person must take away.
pub fn remove(root: &Path, init: Init) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for role in ["agent", "master"] {
        let service = Service { role, root, node: "" };
        // Up to the node's name.
        let command = service.arguments();
        let path = service.path(init).unwrap_or_else(|| INITTAB.to_owned());
        if !fs::read_to_string(&path).is_ok_and(|content| content.contains(&command)) {
            continue;
        }
        ensure!(init != Init::Inittab, "{INITTAB} starts edgectl {role}: take that line out, and then 'kill -HUP 1'");
        for line in service.ends(init) {
            run(&line)?;
        }
        file::remove(path.as_ref()).with_context(|| format!("remove {path}"))?;
        removed.push(format!("service {} ({path})", service.unit()));
    }
    if init == Init::Systemd && !removed.is_empty() {
        run(&["systemctl".to_owned(), "daemon-reload".to_owned()])?;
    }
    Ok(removed)
}

/// What to do where we change nothing ourselves.
fn inittab(services: &[Service], program: &str) -> String {
    let lines: String = services.iter().map(|service| format!("  null::respawn:{program} {}\n", service.arguments())).collect();
    format!("This machine has neither systemd nor OpenRC. Add to /etc/inittab, and then 'kill -HUP 1':\n{lines}")
}

fn run(command: &[String]) -> Result<()> {
    let line = command.join(" ");
    let output = Command::new(&command[0]).args(&command[1..]).output().with_context(|| format!("run {line}"))?;
    if !output.status.success() {
        bail!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The command lines, for whoever starts the daemons otherwise.
pub fn by_hand(services: &[Service]) -> String {
    let lines: String = services.iter().map(|service| format!("  edgectl {}\n", service.arguments())).collect();
    format!("No service was made. What has to run:\n{lines}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_init_system_gets_its_own_file() {
        let agent = Service { role: "agent", root: Path::new("/"), node: "web" };
        let line = "/usr/bin/edgectl agent --root / --name web";
        let (path, unit, mode) = agent.file(Init::Systemd, "/usr/bin/edgectl").unwrap();
        assert_eq!((path.as_str(), mode), ("/etc/systemd/system/edgectl-agent.service", 0o644));
        assert!(unit.contains(&format!("\nExecStart={line}\n")) && unit.contains("\nKillMode=process\n"), "{unit}");
        let (path, script, mode) = agent.file(Init::OpenRc, "/usr/bin/edgectl").unwrap();
        assert_eq!((path.as_str(), mode), ("/etc/init.d/edgectl-agent", 0o755));
        assert!(
            script.starts_with("#!/sbin/openrc-run\n") && script.contains("\ncommand_args=\"agent --root / --name web\"\n"),
            "{script}"
        );
        assert!(script.ends_with("depend() {\n\tneed net\n}\n"), "{script}");
        assert!(agent.file(Init::Inittab, "/usr/bin/edgectl").is_none());
        assert_eq!(agent.ends(Init::Systemd), [["systemctl", "disable", "--now", "edgectl-agent"]]);
        assert_eq!(agent.ends(Init::OpenRc), [["rc-service", "edgectl-agent", "stop"]]);
        assert!(inittab(&[agent], "/usr/bin/edgectl").ends_with(&format!("\n  null::respawn:{line}\n")));
    }
}
