//! `attach`: this terminal, or this input and output, at the first process of a container that runs already. The process goes on when
//! this one leaves.

use std::io::{self, IsTerminal};

use anyhow::{Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};
use serde_json::Value;

use super::exec::{self, Sizes};
use super::{Context, logs};
use crate::api::meta;
use crate::api::streams;

pub const EXAMPLES: &str = "edgectl attach web-1
edgectl attach -it deployment/shell -c bash";

/// attach to a process that runs in a container
#[derive(FromArgs, ArgsInfo)]
pub struct Flags {
    #[argh(positional)]
    names: Vec<String>,
    /// the container
    #[argh(option, short = 'c')]
    container: Option<String>,
    /// pass standard input to the container
    #[argh(switch, short = 'i')]
    stdin: bool,
    /// standard input is a terminal
    #[argh(switch, short = 't')]
    tty: bool,
    /// only what the container prints
    #[argh(switch, short = 'q')]
    quiet: bool,
    /// how long to wait until a pod of the workload runs
    #[argh(option, default = "\"1m0s\".to_owned()")]
    pod_running_timeout: String,
}

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    let help = "See 'edgectl attach -h' for help and examples";
    let name = match flags.names.as_slice() {
        [] => bail!("at least 1 argument is required for attach\n{help}"),
        [name] => name.clone(),
        [kind, name] => format!("{kind}/{name}"),
        names => bail!("expected POD, TYPE/NAME, or TYPE NAME, (at most 2 arguments) saw {}: [{}]\n{help}", names.len(), names.join(" ")),
    };
    let (pod, _) = logs::pod_of(cx, &name, &flags.pod_running_timeout).await?;
    let Flags { container, stdin, tty, quiet, .. } = flags;
    session(cx, &pod, container.as_deref(), Manner { stdin, tty, quiet }).await?;
    Ok(0)
}

/// What of ours is attached, and whether the user is told about it.
pub struct Manner {
    pub stdin: bool,
    pub tty: bool,
    pub quiet: bool,
}

/// Attaches until the container has ended.
///
/// # Errors
/// Why there is nothing to attach to, or what went wrong meanwhile. How the container ended is none.
pub async fn session(cx: &Context, pod: &Value, container: Option<&str>, manner: Manner) -> Result<()> {
    let Manner { stdin, mut tty, quiet } = manner;
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        bail!("cannot attach a container in a completed pod; current phase is {phase}");
    }
    let name = match container {
        Some(container) => container.to_owned(),
        None => exec::default_container(cx, pod, quiet)?,
    };
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    let all: Vec<&Value> = lists.iter().flat_map(|list| pod["spec"][list].as_array().into_iter().flatten()).collect();
    let Some(known) = all.iter().find(|known| known["name"] == *name) else {
        let names: Vec<&str> = all.iter().filter_map(|known| known["name"].as_str()).collect();
        bail!("cannot attach to the container: container {name} is not valid for pod {} out of: {}", meta::name(pod), names.join(", "));
    };
    let has_tty = known["tty"] == true;
    if tty && !has_tty && !quiet {
        cx.note(&format!("error: Unable to use a TTY - container {name} did not allocate one"));
    }
    // What has a terminal can be attached to in no other way.
    tty = has_tty && stdin;
    if tty && !io::stdin().is_terminal() {
        cx.note("Unable to use a TTY - input is not a terminal or the right kind of file");
        tty = false;
    }
    if !quiet {
        cx.note(
            "All commands and output from this session will be recorded in container logs, including credentials and sensitive information \
             passed through the command prompt.",
        );
        cx.note("If you don't see a command prompt, try pressing enter.");
    }
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("container", &name);
    for (key, is_set) in [("stdin", stdin), ("stdout", true), ("stderr", !has_tty), ("tty", has_tty)] {
        if is_set {
            query.append_pair(key, "true");
        }
    }
    let path = format!("/api/v1/namespaces/{}/pods/{}/attach?{}", meta::namespace(pod), meta::name(pod), query.finish());
    let status = exec::session(cx, &path, stdin, tty.then_some(Sizes { redraw: true })).await?;
    // The code of a Status is for commands; this one says only whether all was shown.
    streams::code_of(&status).map_err(|why| anyhow!("{why}"))?;
    if tty && !quiet && pod["spec"]["restartPolicy"] == "Always" {
        let (pod, namespace) = (meta::name(pod), meta::namespace(pod));
        cx.println(&format!(
            "Session ended, resume using 'edgectl attach {pod} -c {name} -n {namespace} -i -t' command when the pod is running"
        ))?;
    }
    Ok(())
}
