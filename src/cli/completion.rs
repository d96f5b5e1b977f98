//! `completion bash`: a small script that asks the program itself, and what it is answered: verbs, flags, kinds, names, namespaces.
//! Names come from the cluster; one that does not answer quickly offers none.

use std::time::Duration;

use anyhow::{Result, bail};
use argh::{ArgsInfo, FlagInfoKind, FromArgs};
use futures_lite::FutureExt;

use super::args::{self, Global};
use super::{Context, verbs};
use crate::client::{Query, discovery};

/// Nobody waits longer for Tab.
const PATIENCE: Duration = Duration::from_secs(2);

const BASH: &str = r#"# bash completion for edgectl: source <(edgectl completion bash)
_edgectl() {
    local IFS=$'\n' current="${COMP_WORDS[COMP_CWORD]}"
    local words=("${COMP_WORDS[@]:1:COMP_CWORD-1}")
    COMPREPLY=($(compgen -W "$(edgectl __complete -- "${words[@]}" "$current" 2>/dev/null)" -- "$current"))
    [[ ${COMPREPLY[0]} == */ || ${COMPREPLY[0]} == *= ]] && compopt -o nospace
    return 0
}
complete -o default -F _edgectl edgectl
"#;

pub const EXAMPLES: &str = "source <(edgectl completion bash)";

/// print the script that completes command lines in a shell
#[derive(FromArgs, ArgsInfo)]
pub struct Flags {
    /// the shell: bash
    #[argh(positional)]
    shell: Vec<String>,
}

pub async fn run(cx: &Context, flags: Flags) -> Result<u8> {
    match flags.shell.as_slice() {
        [shell] if shell == "bash" => cx.print(BASH)?,
        [] => bail!("Shell not specified.\nSee 'edgectl completion -h' for help and examples"),
        [other, ..] => bail!("there is no completion for {other:?}, only for bash"),
    }
    Ok(0)
}

/// what could stand at the end of a command line
#[derive(FromArgs, ArgsInfo)]
pub struct CompleteFlags {
    #[argh(positional)]
    words: Vec<String>,
}

pub async fn complete(cx: &Context, flags: CompleteFlags) -> Result<u8> {
    let (current, before) = flags.words.split_last().map_or((String::new(), &[][..]), |(last, rest)| (last.clone(), rest));
    let mut offers = offers(cx, before, &current).await;
    offers.retain(|offer| offer.starts_with(&current));
    offers.sort();
    offers.dedup();
    cx.print(&offers.iter().map(|offer| format!("{offer}\n")).collect::<String>())?;
    Ok(0)
}

async fn offers(cx: &Context, before: &[String], current: &str) -> Vec<String> {
    let Ok(line) = args::split(before, &[], true) else { return vec![] };
    let typed = line.positionals.join(" ");
    // The longest verb that the line begins with, and whatever could make it longer.
    let verb =
        verbs().filter(|verb| typed == verb.name || typed.starts_with(&format!("{} ", verb.name))).max_by_key(|verb| verb.name.len());
    let longer = |name: &'static str| -> Option<String> {
        let rest = if typed.is_empty() { name } else { name.strip_prefix(&typed)?.strip_prefix(' ')? };
        rest.split(' ').next().map(str::to_owned)
    };
    let mut offers: Vec<String> = verbs().filter(|verb| !verb.name.starts_with("__")).filter_map(|verb| longer(verb.name)).collect();
    let Some(verb) = verb else { return offers };
    let info = (verb.info)();
    if current.starts_with('-') {
        let flags = info.flags.iter().chain(Global::get_args_info().flags).filter(|flag| !flag.hidden);
        return flags
            .map(|flag| match flag.kind {
                FlagInfoKind::Switch => flag.long.to_owned(),
                FlagInfoKind::Option { .. } => format!("{}=", flag.long),
            })
            .collect();
    }
    if matches!(before.last().map(String::as_str), Some("-n" | "--namespace")) {
        return names(cx, "namespaces", None).await;
    }
    // With the verb's own flags known, their values are not taken for names.
    let positionals = args::split(before, info.flags, true).map(|line| line.positionals).unwrap_or_default();
    let own = verb.name.split(' ').count();
    let namespace = before.iter().position(|word| word == "-n" || word == "--namespace").and_then(|at| before.get(at + 1));
    let of_pods = matches!(verb.name, "logs");
    match positionals.get(own..).unwrap_or_default() {
        [] if of_pods => offers.extend(names(cx, "pods", namespace).await),
        [] if matches!(verb.name, "cordon" | "uncordon") => offers.extend(names(cx, "nodes", None).await),
        [] => match current.split_once('/') {
            Some((kind, _)) => offers.extend(names(cx, kind, namespace).await.into_iter().map(|name| format!("{kind}/{name}"))),
            None => offers.extend(discovery::built_in().filter(|row| row.has_verb("list")).map(|row| row.plural.to_string())),
        },
        [kind, ..] if !kind.contains('/') => offers.extend(names(cx, kind, namespace).await),
        _ => {}
    }
    offers
}

/// The names of the objects of a kind; none if the cluster is away.
async fn names(cx: &Context, kind: &str, namespace: Option<&String>) -> Vec<String> {
    let ask = async {
        let resource = cx.resolver()?.resolve(kind).await?;
        let namespace = match namespace {
            Some(namespace) => namespace.clone(),
            None => cx.namespace()?,
        };
        let list = cx.client()?.list(&resource.list_path(Some(&namespace)), &Query::new()).await?;
        let items = list["items"].as_array().into_iter().flatten();
        Ok(items.filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned)).collect())
    };
    let late = async {
        smol::Timer::after(PATIENCE).await;
        Ok(vec![])
    };
    let answer: Result<Vec<String>> = ask.or(late).await;
    answer.unwrap_or_default()
}
