//! `edgectl` as people type it: the table of verbs, what all of them share, and how their errors are told.
//! It runs no daemon and knows no file of the cluster but the kubeconfig.

mod apply;
mod args;
mod attach;
mod auth;
mod backup;
mod change;
mod cluster;
mod completion;
mod config;
mod create;
mod delete;
mod describe;
mod diff;
mod drain;
mod edit;
mod errors;
mod events;
mod exec;
mod explain;
mod follow;
mod generate;
mod get;
mod gotemplate;
mod image;
mod init;
mod join;
mod jsonpath;
mod labels;
mod logs;
mod manifest;
mod nodes;
mod output;
mod port_forward;
mod reset;
mod rollout;
mod run;
mod select;
mod service;
mod set;
mod table;
mod tabwriter;
mod three_way;
mod token;
mod top;
pub mod up;
mod verbs;
mod wait;
mod yaml;

use std::cell::{Cell, OnceCell};
use std::io::Write;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use argh::{ArgsInfo, FromArgs};

use crate::api::text;
use crate::base::{log as lines, task};
use crate::client::discovery::{self, Resolver};
use crate::client::kubeconfig::{self, Kubeconfig, Overrides};
use crate::client::{Client, Manner, Resource};
use args::{Global, Line};
use verbs::{Answer, GROUPS, Verb, verbs};

/// What one invocation of a verb works with.
pub struct Context {
    verb: &'static Verb,
    global: Global,
    line: Line,
    kubeconfig: OnceCell<Kubeconfig>,
    client: OnceCell<Client>,
    resolver: OnceCell<Resolver>,
    /// Something went wrong that was told already; the exit code says so at the end.
    failed: Cell<bool>,
}

impl Context {
    /// The verb's own flags and names, read by argh.
    fn flags<F: FromArgs>(&self) -> Result<F> {
        F::from_args(&["edgectl", self.verb.name], &self.line.argh()).map_err(|exit| {
            let text = exit.output.trim().trim_start_matches("Error: ").to_owned();
            if let Some(word) = text.strip_prefix("Unrecognized argument: ") {
                return anyhow!("Unexpected args: [{word}]\nSee 'edgectl {} -h' for help and examples", self.verb.name);
            }
            let quoted: Vec<&str> = text.split('\'').collect();
            match quoted.as_slice() {
                ["Error parsing option ", flag, " with value ", value, ..] => {
                    let value = value.to_owned();
                    self.wrong_value(flag, value, &format!("strconv.ParseInt: parsing {value:?}: invalid syntax"))
                }
                _ => anyhow!("{text}\nSee 'edgectl {} --help' for usage.", self.verb.name),
            }
        })
    }

    /// Says that a flag (`--tail`) cannot have this value.
    fn wrong_value(&self, flag: &str, value: &str, why: &str) -> anyhow::Error {
        let info = (self.verb.info)();
        let known = info.flags.iter().find(|known| known.long == flag);
        let shown = known.map_or(flag.to_owned(), args::names);
        anyhow!("invalid argument {value:?} for {shown:?} flag: {why}\nSee 'edgectl {} --help' for usage.", self.verb.name)
    }

    /// The duration that a flag gives.
    fn duration(&self, flag: &str, value: &str) -> Result<Duration> {
        duration(value).map_err(|error| self.wrong_value(flag, value, &error.to_string()))
    }

    /// How long one answer may take, if `--request-timeout` says so.
    fn request_timeout(&self) -> Result<Option<Duration>> {
        const WRONG: &str = "Invalid timeout value. Timeout must be a single integer in seconds, or an integer followed by a corresponding \
            time unit (e.g. 1s | 2m | 3h)";
        let Some(text) = self.global.request_timeout.as_deref() else { return Ok(None) };
        Ok(Some(duration(text).map_err(|_| anyhow!(WRONG))?).filter(|timeout| !timeout.is_zero()))
    }

    /// How many names stood before `--`; all of them if it was not there.
    fn names_before_dash(&self) -> Option<usize> {
        self.line.dash
    }

    pub fn kubeconfig(&self) -> Result<&Kubeconfig> {
        if let Some(known) = self.kubeconfig.get() {
            return Ok(known);
        }
        let loaded = kubeconfig::load(self.global.kubeconfig.as_deref())?;
        Ok(self.kubeconfig.get_or_init(|| loaded))
    }

    fn overrides(&self) -> Overrides {
        let global = self.global.clone();
        Overrides {
            context: global.context,
            cluster: global.cluster,
            user: global.user,
            server: global.server,
            token: global.token,
            certificate_authority: global.certificate_authority,
            client_certificate: global.client_certificate,
            client_key: global.client_key,
            tls_server_name: global.tls_server_name,
            insecure: global.insecure_skip_tls_verify,
        }
    }

    /// The API server that flags and kubeconfig name.
    pub fn client(&self) -> Result<&Client> {
        if let Some(known) = self.client.get() {
            return Ok(known);
        }
        let target = self.kubeconfig()?.target(&self.overrides())?;
        let manner = Manner {
            timeout: self.request_timeout()?,
            impersonate_user: self.global.r#as.clone(),
            impersonate_groups: self.global.as_group.clone(),
            impersonate_uid: self.global.as_uid.clone(),
        };
        let client = Client::new(&target, manner)?;
        Ok(self.client.get_or_init(|| client))
    }

    /// The server's address, as the kubeconfig or the flag has it.
    pub fn server(&self) -> Result<String> {
        Ok(self.kubeconfig()?.target(&self.overrides())?.server)
    }

    pub fn resolver(&self) -> Result<&Resolver> {
        if let Some(known) = self.resolver.get() {
            return Ok(known);
        }
        let resolver = Resolver::new(self.client()?.clone());
        Ok(self.resolver.get_or_init(|| resolver))
    }

    /// The namespace to work in: the flag's, the context's, or `default`.
    pub fn namespace(&self) -> Result<String> {
        match self.global.namespace.as_deref().filter(|namespace| !namespace.is_empty()) {
            Some(namespace) => Ok(namespace.to_owned()),
            None => Ok(self.kubeconfig()?.namespace(self.global.context.as_deref()).to_owned()),
        }
    }

    /// The namespace that `-n` names, if it is there.
    pub fn namespace_flag(&self) -> Option<&str> {
        self.global.namespace.as_deref().filter(|namespace| !namespace.is_empty())
    }

    /// Writes to standard output. A reader that hung up ends the program quietly.
    pub fn print(&self, text: &(impl AsRef<[u8]> + ?Sized)) -> Result<()> {
        self.show_warnings();
        self.print_bytes(text.as_ref())
    }

    pub fn print_bytes(&self, bytes: &[u8]) -> Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| anyhow!(error).context("write to standard output"))
    }

    pub fn println(&self, text: &str) -> Result<()> {
        self.print(&format!("{text}\n"))
    }

    /// Writes a line to standard error.
    pub fn note(&self, text: &str) {
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// Tells an error and goes on; the exit code will be 1.
    pub fn fail(&self, error: &anyhow::Error) {
        self.show_warnings();
        self.failed.set(true);
        self.note(&errors::render(error));
    }

    fn show_warnings(&self) {
        let Some(client) = self.client.get() else { return };
        for warning in client.take_warnings() {
            self.warn(&warning);
        }
    }

    pub fn warn(&self, warning: &str) {
        if self.global.warnings_as_errors {
            self.failed.set(true);
        }
        self.note(&format!("Warning: {warning}"));
    }
}

/// Runs one command line; `words` are the arguments behind the program's name. Answers the exit code.
pub fn main(words: Vec<String>) -> u8 {
    lines::init(log::LevelFilter::Warn);
    match dispatch(&words) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => 141,
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "{}", errors::render(&error));
            1
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe))
}

fn dispatch(words: &[String]) -> Answer {
    let rough = args::split(words, &[], true)?;
    // A global flag's value is no verb, so the first positional of the rough reading is one.
    let Some(first) = rough.positionals.first() else {
        if words.iter().any(|word| word == "--version") {
            print_all(&format!("edgectl v{}\n", env!("CARGO_PKG_VERSION")));
            return Ok(0);
        }
        args::split(words, &[], false).map_err(|error| anyhow!("{error}\nRun 'edgectl help' for usage."))?;
        print_all(&overview());
        return Ok(0);
    };
    match first.as_str() {
        "help" => return help(&rough.positionals[1..]),
        "options" => {
            args::split(words, &[], false).map_err(|error| anyhow!("{error}\nRun 'edgectl options' without flags."))?;
            print_all("The following options can be passed to any command:\n\n");
            print_all(&Global::get_args_info().flags.iter().filter(|flag| flag.long != "--help").map(args::flag_help).collect::<String>());
            return Ok(0);
        }
        _ => {}
    }
    let verb = find(words, first)?;
    let info = (verb.info)();
    let line = args::split(words, info.flags, false).map_err(|error| anyhow!("{error}\nSee 'edgectl {} --help' for usage.", verb.name))?;
    if line.help {
        print_all(&args::help(verb.usage, verb.about, verb.examples, info.flags));
        return Ok(0);
    }
    let mut line = line;
    // The words of the verb itself are the first of the names.
    let own = verb.name.split(' ').count();
    line.positionals.drain(..own);
    line.dash = line.dash.map(|dash| dash.saturating_sub(own));
    let global_words: Vec<&str> = line.global.iter().map(String::as_str).collect();
    let global = Global::from_args(&["edgectl"], &global_words).map_err(|exit| anyhow!("{}", exit.output.trim()))?;
    if global.v.is_some_and(|level| level >= 6) {
        lines::init(log::LevelFilter::Debug);
    }
    let cx = Context {
        verb,
        global,
        line,
        kubeconfig: OnceCell::new(),
        client: OnceCell::new(),
        resolver: OnceCell::new(),
        failed: Cell::new(false),
    };
    let answer = task::run((verb.run)(&cx));
    cx.show_warnings();
    answer.map(|code| if code == 0 && cx.failed.get() { 1 } else { code })
}

/// The verb that a line means: the longest name that its first words are.
fn find(words: &[String], first: &str) -> Result<&'static Verb> {
    let mut family: Vec<&Verb> = verbs().filter(|verb| verb.name.split(' ').next() == Some(first)).collect();
    if family.is_empty() {
        if ABSENT.contains(&first) {
            bail!("kubectl's {first:?} is not among the commands of edgectl\nRun 'edgectl help' for what is.");
        }
        let near = text::likely(
            first,
            ["help", "options"].into_iter().chain(verbs().map(|verb| verb.name.split(' ').next().unwrap_or(verb.name))),
        );
        match near {
            Some(near) => bail!("unknown command {first:?} for \"edgectl\"\n\nDid you mean this?\n\t{near}"),
            None => bail!("unknown command {first:?} for \"edgectl\"\nRun 'edgectl help' for usage."),
        }
    }
    family.sort_by_key(|verb| std::cmp::Reverse(verb.name.split(' ').count()));
    let mut mistake = None;
    for verb in &family {
        // Read with the verb's own flags, so that none of their values is taken for a word of its name.
        let line = match args::split(words, (verb.info)().flags, true) {
            Ok(line) => line,
            Err(error) => {
                mistake = Some(anyhow!("{error}\nSee 'edgectl {} --help' for usage.", verb.name));
                continue;
            }
        };
        let words = verb.name.split(' ').count();
        if verb.name.split(' ').zip(&line.positionals).filter(|(word, typed)| is_called(word, typed)).count() == words {
            return Ok(verb);
        }
    }
    if let Some(mistake) = mistake {
        return Err(mistake);
    }
    let rough = args::split(words, &[], true)?;
    let typed: Vec<&str> = rough.positionals.iter().map(String::as_str).collect();
    // The part of the line that is the beginning of some verb.
    let depth = (1..=typed.len()).rev().find(|depth| verbs().any(|verb| is_below(verb.name, &typed[..*depth].join(" ")))).unwrap_or(1);
    let parent = typed[..depth].join(" ");
    let Some(next) = typed.get(depth).filter(|_| !rough.help) else {
        print_all(&below(&parent));
        std::process::exit(0);
    };
    let names = verbs().filter_map(|verb| verb.name.strip_prefix(&parent)?.strip_prefix(' ')?.split(' ').next());
    match text::likely(next, names) {
        Some(near) => bail!("unknown command \"{parent} {next}\", did you mean \"{parent} {near}\"?"),
        None => bail!("unknown command {next:?}\nSee 'edgectl {parent} -h' for help and examples"),
    }
}

/// The short names that words of verbs have.
const SHORT: [(&str, &str); 14] = [
    ("node", "nodes"),
    ("node", "no"),
    ("pod", "pods"),
    ("pod", "po"),
    ("deployment", "deploy"),
    ("namespace", "ns"),
    ("serviceaccount", "sa"),
    ("configmap", "cm"),
    ("cronjob", "cj"),
    ("poddisruptionbudget", "pdb"),
    ("priorityclass", "pc"),
    ("service", "svc"),
    ("quota", "resourcequota"),
    ("ingress", "ing"),
];

fn is_called(word: &str, typed: &str) -> bool {
    word == typed || SHORT.contains(&(word, typed))
}

fn is_below(name: &str, parent: &str) -> bool {
    name.strip_prefix(parent).is_some_and(|rest| rest.starts_with(' '))
}

fn help(words: &[String]) -> Answer {
    let name = words.join(" ");
    if name.is_empty() {
        print_all(&overview());
        return Ok(0);
    }
    if let Some(verb) = verbs().find(|verb| verb.name == name) {
        print_all(&args::help(verb.usage, verb.about, verb.examples, (verb.info)().flags));
        return Ok(0);
    }
    if verbs().any(|verb| is_below(verb.name, &name)) {
        print_all(&below(&name));
        return Ok(0);
    }
    bail!("unknown help topic {name:?}; 'edgectl help' lists the commands")
}

/// Words that do nothing alone, and what the verbs below them are for.
const FAMILIES: [(&str, &str); 7] = [
    ("top", "Display resource (CPU/memory) usage"),
    ("set", "Set specific features on objects"),
    ("rollout", "Manage the rollout of a resource"),
    ("auth", "Ask what is allowed, and as whom"),
    ("config", "Look at the kubeconfig, or change it"),
    ("image", "Pull, list, remove, load and save images"),
    ("token", "Make, list and delete the tokens that boards join with"),
];

/// What kubectl has and this program has not.
const ABSENT: [&str; 6] = ["cp", "debug", "proxy", "certificate", "kustomize", "plugin"];

fn overview() -> String {
    let mut text = String::from("edgectl is a Kubernetes for boards, and its command line.\n");
    for (title, verbs) in GROUPS {
        text += &format!("\n{title}:\n");
        let mut last = "";
        for verb in verbs.iter().filter(|verb| !verb.name.starts_with("__")) {
            let word = verb.name.split(' ').next().unwrap_or(verb.name);
            // A family of verbs stands in one line, that of its first.
            if word != last {
                let family = FAMILIES.iter().find(|(name, _)| *name == word).map_or(verb.about, |(_, about)| about);
                text += &format!("  {word:<16} {family}\n");
            }
            last = word;
        }
    }
    text + "\nUsage:\n  edgectl [flags] [options]\n\nUse \"edgectl <command> --help\" for more information about a given command.\nUse \
        \"edgectl options\" for a list of global command-line options (applies to all commands).\n"
}

/// What there is below a verb of several words.
fn below(parent: &str) -> String {
    let mut text = String::from("Available Commands:\n");
    for verb in verbs().filter(|verb| is_below(verb.name, parent)) {
        text += &format!("  {:<20} {}\n", &verb.name[parent.len() + 1..], verb.about);
    }
    text + &format!(
        "\nUsage:\n  edgectl {parent} COMMAND [flags]\n\nUse \"edgectl {parent} <command> --help\" for more information about a given \
            command.\n"
    )
}

/// A built-in resource, found without asking a server.
fn known(word: &str) -> Option<Resource> {
    discovery::built_in_called(word)
}

fn print_all(text: &str) {
    // Help that nobody reads to its end has done its work.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Reads a duration as Go writes it: `1h30m`, `90s`, `1.5s`, `200ms`; a bare number counts seconds.
fn duration(text: &str) -> Result<Duration> {
    let wrong = || anyhow!("time: invalid duration {text:?}");
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| wrong());
    }
    let nanos = text::parse_duration(text).and_then(|nanos| u64::try_from(nanos).ok());
    nanos.map(Duration::from_nanos).ok_or_else(wrong)
}

/// Asks a question that `y` answers.
fn confirmed(question: &str) -> Result<bool> {
    print_all(&format!("{question} (y/n): "));
    std::io::stdout().flush().context("ask on standard output")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, seconds) in [("5s", 5.0), ("1m30s", 90.0), ("2h", 7200.0), ("1.5s", 1.5), ("200ms", 0.2), ("7", 7.0), ("0", 0.0)] {
            assert_eq!(duration(text).unwrap().as_secs_f64(), seconds, "{text}");
        }
        for text in ["", "s", "5x", "-5s", "5s3"] {
            assert!(duration(text).is_err() || text.is_empty(), "{text}");
        }
    }

    #[test]
    fn verbs_are_named_once_and_flags_have_one_meaning() {
        let mut names: Vec<&str> = verbs().map(|verb| verb.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        for verb in verbs() {
            let info = (verb.info)();
            let mut shorts: Vec<char> = info.flags.iter().filter_map(|flag| flag.short).collect();
            shorts.sort_unstable();
            assert!(shorts.windows(2).all(|pair| pair[0] != pair[1]), "{}: {shorts:?}", verb.name);
            assert!(verb.usage.starts_with(verb.name), "{}", verb.name);
        }
    }
}
