//! What the command line tells: tables, the features document, the example spec.

use anyhow::{Context, Result, bail};

use crate::runtime::container::State;
use crate::runtime::spec::{self, DefaultContainer, NamespaceKind, Spec};
use crate::runtime::{capability, mount_option};

/// `list` as a table.
pub fn table(states: &[State]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED"].map(String::from);
    let rows = states.iter().map(|state| {
        let status = format!("{:?}", state.status).to_lowercase();
        [state.id.clone(), state.pid.to_string(), status, state.bundle.display().to_string(), state.created.clone()]
    });
    let rows: Vec<[String; 5]> = std::iter::once(header).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths = [width(0), width(1), width(2), width(3)];
    let line = |row: &[String; 5]| {
        let padded = widths.iter().zip(row).map(|(width, text)| format!("{text:width$}   "));
        format!("{}{}\n", padded.collect::<String>(), row[4])
    };
    rows.iter().map(line).collect()
}

/// The lines of ps(1) for these processes, with its header.
pub fn processes(options: &[String], processes: &[i32]) -> Result<String> {
    let output = std::process::Command::new("ps").args(options).output().context("run ps")?;
    if !output.status.success() {
        bail!("ps: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let header = lines.next().context("ps printed nothing")?;
    let column = header.split_whitespace().position(|name| name == "PID").context("ps printed no PID column")?;
    let ours =
        |line: &&str| line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok()).is_some_and(|pid| processes.contains(&pid));
    Ok(std::iter::once(header).chain(lines.filter(ours)).map(|line| format!("{line}\n")).collect())
}

/// The specification's features document (features.md).
pub fn features() -> String {
    let namespaces: Vec<_> = NamespaceKind::ALL.iter().map(|kind| serde_json::to_value(kind).expect("an enum of names")).collect();
    let text = serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": spec::VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": mount_option::names(),
        "linux": {
            "namespaces": namespaces,
            "capabilities": capability::NAMES.as_slice(),
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false},
            "seccomp": crate::runtime::seccomp::features(),
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "mountExtensions": {"idmap": {"enabled": true}},
        },
    });
    serde_json::to_string_pretty(&text).expect("a document with string keys")
}

/// What `spec` writes: a shell in ./rootfs.
pub fn example() -> Spec {
    spec::default_container(DefaultContainer {
        args: vec!["sh".into()],
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(), "TERM=xterm".into()],
        terminal: true,
        hostname: "edge".into(),
        rootfs: "rootfs".into(),
        rootfs_readonly: true,
        no_new_privileges: true,
        ..DefaultContainer::default()
    })
}
