//! Flags as runc and crun take them: `--name value`, `--name=value`, `-n value`, `-nvalue`, `-dt`; the first word that is no flag ends them,
//! so that a container's command keeps its own.

use anyhow::{Context, Result, bail};

#[derive(Clone, Copy)]
pub struct Flag {
    name: &'static str,
    short: Option<char>,
    takes_value: bool,
}

/// The flags of one command line.
#[derive(Default)]
pub struct Given(Vec<(&'static str, String)>);

impl Flag {
    pub const fn value(name: &'static str, short: Option<char>) -> Self {
        Self { name, short, takes_value: true }
    }

    pub const fn switch(name: &'static str, short: Option<char>) -> Self {
        Self { name, short, takes_value: false }
    }
}

impl Given {
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(given, value)| *given == name && value != "false")
    }

    /// The last one wins.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(given, _)| *given == name).map(|(_, value)| value.as_str())
    }

    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(given, _)| *given == name).map(|(_, value)| value.as_str())
    }
}

/// Takes the flags off the front of `words`; gives them and the rest.
pub fn split<'a>(words: &'a [String], flags: &[Flag]) -> Result<(Given, &'a [String])> {
    let mut given = Given::default();
    let mut at = 0;
    while let Some(word) = words.get(at) {
        if word == "--" {
            at += 1;
            break;
        }
        if word == "-" || !word.starts_with('-') {
            break;
        }
        at += 1;
        let mut next = |shown: &str| {
            let value = words.get(at).cloned().with_context(|| format!("{shown} needs a value"));
            at += 1;
            value
        };
        if let Some(long) = word.strip_prefix("--") {
            let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value.to_owned())));
            let flag = flags.iter().find(|flag| flag.name == name).with_context(|| format!("unknown flag --{name}"))?;
            let value = match value {
                Some(value) => value,
                None if flag.takes_value => next(word)?,
                None => String::new(),
            };
            given.0.push((flag.name, value));
            continue;
        }
        let mut letters = word[1..].chars();
        while let Some(letter) = letters.next() {
            let Some(flag) = flags.iter().find(|flag| flag.short == Some(letter)) else { bail!("unknown flag -{letter}") };
            let rest = letters.as_str();
            let value = match flag.takes_value {
                false => String::new(),
                true if rest.is_empty() => next(word)?,
                true => {
                    letters = "".chars();
                    rest.strip_prefix('=').unwrap_or(rest).to_owned()
                }
            };
            given.0.push((flag.name, value));
        }
    }
    Ok((given, words.get(at..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[Flag::value("bundle", Some('b')), Flag::switch("tty", Some('t')), Flag::switch("detach", Some('d'))];

    #[test]
    fn flags_come_in_every_form_and_end_at_the_first_other_word() {
        let check = |line: &str, bundle: Option<&str>, tty: bool, rest: &[&str]| {
            let words: Vec<String> = line.split(' ').map(Into::into).collect();
            let (given, left) = split(&words, FLAGS).unwrap();
            assert_eq!((given.value("bundle"), given.has("tty")), (bundle, tty), "{line}");
            assert_eq!(left, rest, "{line}");
        };
        check("--bundle /b id", Some("/b"), false, &["id"]);
        check("--bundle=/b -t id ls -l --tty", Some("/b"), true, &["id", "ls", "-l", "--tty"]);
        check("-dtb /b id", Some("/b"), true, &["id"]);
        check("-b/b --tty=false id", Some("/b"), false, &["id"]);
        check("-- -x", None, false, &["-x"]);
    }

    #[test]
    fn unknown_flags_and_missing_values_are_errors() {
        for line in ["--bundel x", "-x", "--bundle", "-b"] {
            let words: Vec<String> = line.split(' ').map(Into::into).collect();
            assert!(split(&words, FLAGS).is_err(), "{line}");
        }
    }
}
