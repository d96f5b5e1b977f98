//! Turns a command line as people type it for kubectl into the plain form that argh reads: `--flag=value`, `-owide`, `-it`, flags after
//! names, global flags anywhere. It knows no flag by itself: everything is derived from the verbs' own descriptions of their flags.

use anyhow::{Result, anyhow, bail};
use argh::{ArgsInfo, FlagInfo, FlagInfoKind, FromArgs, Optionality};

use crate::api::text::likely;

/// The flags that every verb takes.
#[derive(FromArgs, ArgsInfo, Debug, Default, Clone)]
/// global flags
pub struct Global {
    /// the namespace to work in
    #[argh(option, short = 'n')]
    pub namespace: Option<String>,
    /// path of the kubeconfig file to use
    #[argh(option)]
    pub kubeconfig: Option<String>,
    /// the kubeconfig's context to use
    #[argh(option)]
    pub context: Option<String>,
    /// the kubeconfig's cluster to use
    #[argh(option)]
    pub cluster: Option<String>,
    /// the kubeconfig's user to use
    #[argh(option)]
    pub user: Option<String>,
    /// address and port of the API server
    #[argh(option, short = 's')]
    pub server: Option<String>,
    /// bearer token for the API server
    #[argh(option)]
    pub token: Option<String>,
    /// file with the certificate authority of the API server
    #[argh(option)]
    pub certificate_authority: Option<String>,
    /// file with a client certificate
    #[argh(option)]
    pub client_certificate: Option<String>,
    /// file with the key of the client certificate
    #[argh(option)]
    pub client_key: Option<String>,
    /// the name the server's certificate must carry
    #[argh(option)]
    pub tls_server_name: Option<String>,
    /// do not check the server's certificate
    #[argh(switch)]
    pub insecure_skip_tls_verify: bool,
    /// how long to wait for one answer of the server (1s, 2m, 3h; 0 is no limit)
    #[argh(option)]
    pub request_timeout: Option<String>,
    /// user to act as
    #[argh(option, arg_name = "user")]
    pub r#as: Option<String>,
    /// group to act as, may be repeated
    #[argh(option, arg_name = "group")]
    pub as_group: Vec<String>,
    /// UID to act as
    #[argh(option, arg_name = "uid")]
    pub as_uid: Option<String>,
    /// treat the server's warnings as errors
    #[argh(switch)]
    pub warnings_as_errors: bool,
    /// number of the log level: 6 shows each request
    #[argh(option, short = 'v')]
    pub v: Option<u8>,
}

const OUTPUT: &str = "--output";

/// A command line taken apart.
#[derive(Debug, Default, PartialEq)]
pub struct Line {
    /// Global flags in argh's plain form.
    pub global: Vec<String>,
    /// The verb's flags in argh's plain form.
    pub flags: Vec<String>,
    /// Everything that is no flag.
    pub positionals: Vec<String>,
    /// How many of the positionals came before `--`, if it was there.
    pub dash: Option<usize>,
    /// `-h` or `--help` was there.
    pub help: bool,
}

impl Line {
    /// What the verb's argh description reads: flags first, then the rest behind `--` so that no name is taken for a flag.
    pub fn argh(&self) -> Vec<&str> {
        let flags = self.flags.iter().map(String::as_str);
        flags.chain(["--"]).chain(self.positionals.iter().map(String::as_str)).collect()
    }
}

/// A flag whose value may be left out is described by the list of its values, parted by bars: `true|false`. Left out, it is the first one.
fn value_when_bare<'a>(flag: &FlagInfo<'a>) -> Option<&'a str> {
    match flag.kind {
        FlagInfoKind::Option { arg_name } => arg_name.split_once('|').map(|(first, _)| first),
        FlagInfoKind::Switch => None,
    }
}

/// Takes `words` apart. A flag of the verb wins over a global one of the same name. Unknown flags are errors that name the likely one;
/// `lenient` skips them instead, which is how the verb itself is found.
pub fn split(words: &[String], verb: &[FlagInfo], lenient: bool) -> Result<Line> {
    let global = Global::get_args_info();
    let mut line = Line::default();
    let mut words = words.iter();
    let mut given: Vec<(bool, &str, Option<String>)> = vec![];
    let mut template = None;
    while let Some(word) = words.next() {
        if word == "--" {
            line.dash = Some(line.positionals.len());
            line.positionals.extend(words.by_ref().cloned());
        } else if let Some(long) = word.strip_prefix("--") {
            let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value.to_owned())));
            if name == "help" {
                line.help = true;
                continue;
            }
            if name == "template" && takes_template(verb) {
                let next = value.or_else(|| words.next().cloned());
                template = Some(next.ok_or_else(|| anyhow!("flag needs an argument: --template"))?);
                continue;
            }
            let same = |flag: &&FlagInfo| flag.long.trim_start_matches("--") == name;
            let Some((own, flag)) = find(verb, global.flags, same) else {
                if lenient {
                    continue;
                }
                let names = verb.iter().chain(global.flags).map(|flag| flag.long.trim_start_matches("--"));
                match likely(name, names) {
                    Some(near) => bail!("unknown flag: --{name}, did you mean --{near}?"),
                    None => bail!("unknown flag: --{name}"),
                }
            };
            let value = match value {
                Some(value) => Some(value),
                None => bare(flag, &mut words, &format!("--{name}"))?,
            };
            given.push((own, flag.long, checked(flag, value)?));
        } else if word.len() > 1 && word.starts_with('-') {
            let mut letters = word[1..].chars();
            while let Some(letter) = letters.next() {
                if letter == 'h' && !verb.iter().any(|flag| flag.short == Some('h')) {
                    line.help = true;
                    continue;
                }
                let Some((own, flag)) = find(verb, global.flags, |flag| flag.short == Some(letter)) else {
                    if lenient {
                        break;
                    }
                    bail!("unknown shorthand flag: {letter:?} in {word}");
                };
                let rest = letters.as_str();
                let takes_rest = !matches!(flag.kind, FlagInfoKind::Switch) && !rest.is_empty();
                let value = if takes_rest || rest.starts_with('=') {
                    letters = "".chars();
                    Some(rest.strip_prefix('=').unwrap_or(rest).to_owned())
                } else {
                    bare(flag, &mut words, &format!("{letter:?} in {word}"))?
                };
                given.push((own, flag.long, checked(flag, value)?));
            }
        } else {
            line.positionals.push(word.clone());
        }
    }
    if let Some(template) = template {
        let form = given.iter().rev().find(|(own, long, _)| *own && *long == OUTPUT).and_then(|(.., form)| form.as_deref());
        match form.unwrap_or("go-template") {
            form if form.contains('=') => {}
            form => given.push((true, OUTPUT, Some(format!("{form}={template}")))),
        }
    }
    // The last one of a flag wins, unless it may be repeated.
    for (index, (own, long, value)) in given.iter().enumerate() {
        let table = if *own { verb } else { global.flags };
        let flag = table.iter().find(|flag| flag.long == *long).expect("the flag was found in this very table");
        let later = given[index + 1..].iter().any(|(other_own, other, _)| other_own == own && other == long);
        if later && flag.optionality != Optionality::Repeating {
            continue;
        }
        let target = if *own { &mut line.flags } else { &mut line.global };
        match (&flag.kind, value.as_deref()) {
            (FlagInfoKind::Switch, Some("false")) => {}
            (FlagInfoKind::Switch, _) => target.push((*long).to_owned()),
            (FlagInfoKind::Option { .. }, value) => target.extend([(*long).to_owned(), value.unwrap_or_default().to_owned()]),
        }
    }
    Ok(line)
}

/// Whether `--template` may stand beside `-o`, and belongs into it: where that is described as taking any format, and the verb has no
/// `--template` of its own.
fn takes_template(verb: &[FlagInfo]) -> bool {
    let has_format = |flag: &FlagInfo| flag.long == OUTPUT && matches!(flag.kind, FlagInfoKind::Option { arg_name: "format" });
    verb.iter().any(has_format) && !verb.iter().any(|flag| flag.long == "--template")
}

fn find<'a, 'b>(
    verb: &'b [FlagInfo<'a>],
    global: &'b [FlagInfo<'a>],
    matches: impl Fn(&&FlagInfo) -> bool,
) -> Option<(bool, &'b FlagInfo<'a>)> {
    // argh describes its own --help, which is dealt with before.
    let own = verb.iter().filter(|flag| flag.long != "--help").find(|flag| matches(flag));
    own.map(|flag| (true, flag)).or_else(|| global.iter().find(|flag| matches(flag)).map(|flag| (false, flag)))
}

/// The value of a flag that stands without `=`.
fn bare(flag: &FlagInfo, words: &mut std::slice::Iter<String>, shown: &str) -> Result<Option<String>> {
    if matches!(flag.kind, FlagInfoKind::Switch) {
        return Ok(None);
    }
    if let Some(value) = value_when_bare(flag) {
        return Ok(Some(value.to_owned()));
    }
    match words.next() {
        Some(value) => Ok(Some(value.clone())),
        None => bail!("flag needs an argument: {shown}"),
    }
}

/// Reads the value given to a boolean as Go reads one; any other flag's value is left as it is.
fn checked(flag: &FlagInfo, value: Option<String>) -> Result<Option<String>> {
    let is_boolean = match flag.kind {
        FlagInfoKind::Switch => true,
        FlagInfoKind::Option { arg_name } => arg_name == "true|false",
    };
    match value.as_deref() {
        Some("1" | "t" | "T" | "TRUE" | "True") if is_boolean => Ok(Some("true".into())),
        Some("0" | "f" | "F" | "FALSE" | "False") if is_boolean => Ok(Some("false".into())),
        Some("true" | "false") | None => Ok(value),
        Some(other) if is_boolean => {
            bail!("invalid argument {other:?} for {:?} flag: strconv.ParseBool: parsing {other:?}: invalid syntax", names(flag))
        }
        Some(_) => Ok(value),
    }
}

/// A flag's names as an error gives them: `-w, --watch`.
pub fn names(flag: &FlagInfo) -> String {
    flag.short.map_or(flag.long.to_owned(), |short| format!("-{short}, {}", flag.long))
}

/// The help of one verb: what it does, how it is typed, its flags.
pub fn help(usage: &str, about: &str, examples: &str, flags: &[FlagInfo]) -> String {
    let mut text = format!("{about}\n\n");
    if !examples.is_empty() {
        text += "Examples:\n";
        for line in examples.lines() {
            text += &format!("  {line}\n");
        }
        text += "\n";
    }
    let shown: Vec<&FlagInfo> = flags.iter().filter(|flag| flag.long != "--help" && !flag.hidden).collect();
    if !shown.is_empty() {
        text += "Options:\n";
        for flag in shown {
            text += &flag_help(flag);
        }
        text += "\n";
    }
    text + &format!("Usage:\n  edgectl {usage}\n\nUse \"edgectl options\" for the flags that every command takes.\n")
}

/// The line of one flag in a help text.
pub fn flag_help(flag: &FlagInfo) -> String {
    let short = flag.short.map_or("    ".into(), |short| format!("-{short}, "));
    let value = match flag.kind {
        FlagInfoKind::Switch => String::new(),
        // A list of values is as they are typed, anything else the name of a value.
        FlagInfoKind::Option { arg_name } if arg_name.contains('|') => format!("={arg_name}"),
        FlagInfoKind::Option { arg_name } => format!("={}", arg_name.to_uppercase()),
    };
    format!("    {short}{}{value}:\n        {}\n", flag.long, flag.description)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(FromArgs, ArgsInfo, Debug)]
    /// test
    struct Flags {
        /// output
        #[argh(option, short = 'o', arg_name = "format")]
        _output: Option<String>,
        /// files
        #[argh(option, short = 'f')]
        _filename: Vec<String>,
        /// in
        #[argh(switch, short = 'i')]
        _stdin: bool,
        /// tty
        #[argh(switch, short = 't')]
        _tty: bool,
        /// wait
        #[argh(option, arg_name = "true|false")]
        _wait: Option<String>,
        /// dry run
        #[argh(option, arg_name = "client|server|none")]
        _dry_run: Option<String>,
        /// all
        #[argh(switch, short = 'A')]
        _all_namespaces: bool,
    }

    fn read(line: &str) -> Result<Line> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        split(&words, Flags::get_args_info().flags, false)
    }

    fn check(line: &str, global: &str, flags: &str, positionals: &str) {
        let read = read(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(
            (read.global.join(" "), read.flags.join(" "), read.positionals.join(" ")),
            (global.into(), flags.into(), positionals.into()),
            "{line}"
        );
    }

    #[test]
    fn every_way_to_type_a_flag_is_read() {
        check("pods", "", "", "pods");
        check("-owide pods", "", "--output wide", "pods");
        check("-o wide pods", "", "--output wide", "pods");
        check("-o=wide pods", "", "--output wide", "pods");
        check("--output=wide pods", "", "--output wide", "pods");
        check("--output wide pods", "", "--output wide", "pods");
        check("pods -nshop web", "--namespace shop", "", "pods web");
        check("pods -n=shop", "--namespace shop", "", "pods");
        check("-it web", "", "--stdin --tty", "web");
        check("-itowide web", "", "--stdin --tty --output wide", "web");
        check("-f-", "", "--filename -", "");
        check("-f -", "", "--filename -", "");
        check("-fa -f b --filename=c", "", "--filename a --filename b --filename c", "");
        check("--output=jsonpath={.a}={.b}", "", "--output jsonpath={.a}={.b}", "");
        check("--template={{.a}} x", "", "--output go-template={{.a}}", "x");
        check("--template {.a} -o jsonpath x", "", "--output jsonpath={.a}", "x");
        check("--template {.a} -o jsonpath={.b}", "", "--output jsonpath={.b}", "");
        check("--stdin=false --tty=true", "", "--tty", "");
        check("-A", "", "--all-namespaces", "");
        check("--wait x", "", "--wait true", "x");
        check("--wait=false x", "", "--wait false", "x");
        check("--wait=0 x", "", "--wait false", "x");
        check("--dry-run x", "", "--dry-run client", "x");
        check("--dry-run=server x", "", "--dry-run server", "x");
        check("--kubeconfig=/k --v=6 pods -v 7", "--kubeconfig /k --v 7", "", "pods");
        check("a- b=c", "", "", "a- b=c");
        check("-", "", "", "-");
        check("-ojson -oyaml", "", "--output yaml", "");
    }

    #[test]
    fn words_behind_two_dashes_are_no_flags() {
        let line = read("web -it -- ls -l --help").unwrap();
        assert_eq!((line.positionals.join(" "), line.dash, line.help), ("web ls -l --help".into(), Some(1), false));
        assert_eq!(line.argh(), ["--stdin", "--tty", "--", "web", "ls", "-l", "--help"]);
    }

    #[test]
    fn mistakes_name_the_likely_flag() {
        let error = |line| read(line).unwrap_err().to_string();
        assert_eq!(error("--ouput=wide"), "unknown flag: --ouput, did you mean --output?");
        assert_eq!(error("--namspace x"), "unknown flag: --namspace, did you mean --namespace?");
        assert_eq!(error("--zzz"), "unknown flag: --zzz");
        assert_eq!(error("-zA"), "unknown shorthand flag: 'z' in -zA");
        assert_eq!(error("-o"), "flag needs an argument: 'o' in -o");
        assert_eq!(error("--output"), "flag needs an argument: --output");
        assert!(error("--tty=perhaps").contains("invalid argument"));
    }
}
