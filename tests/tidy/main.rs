//! The house rules that a machine can judge: who may import whom, where unsafe code stands, how files begin.
//! It reads the tree as text and runs nothing of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may import whom; what is not listed may not. A folder always sees itself and its own.
/// The second column is by the longest folder that matches.
const IMPORTS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("sys", &["base"]),
    ("api", &["base"]),
    ("wire", &["base", "api"]),
    ("client", &["base", "api", "wire"]),
    ("runtime", &["base", "sys"]),
    ("network", &["base", "sys"]),
    ("image", &["base", "sys", "wire"]),
    ("agent", &["base", "api", "client", "wire", "runtime", "network", "image"]),
    ("cli", &["base", "api", "client", "wire"]),
    ("cli/backup", &["master/store"]),
    ("cli/image", &["image"]),
    ("cli/reset", &["agent", "network", "runtime"]),
    ("cli/up", &["image", "network"]),
    ("master", &["base", "api", "wire"]),
    ("master/store", &["base", "api"]),
    ("master/scheduler", &["base", "api", "master/store", "master/recorder"]),
    ("master/controllers", &["base", "api", "master/store", "master/recorder", "master/pki"]),
    ("master/recorder", &["base", "api", "master/store"]),
    ("master/apiserver", &["base", "api", "wire", "master/store", "master/nodes"]),
];

/// rustfmt keeps code within 140; this is for what it leaves alone.
const LINE_COLUMNS_MAX: usize = 170;

struct Source {
    /// Below `src`, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// `master/store` for `master/store/disk.rs`; `master/pki` for `master/pki.rs`.
    fn folder(&self) -> &str {
        let path = self.path.trim_end_matches(".rs").trim_end_matches("/mod");
        match path.match_indices('/').nth(1) {
            Some((at, _)) => &path[..at],
            None => path,
        }
    }

    /// The lines before the first test module, numbered from 1.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let only_tests = self.path.ends_with("tests.rs") || self.path.contains("/tests/") || self.path.ends_with("testdata.rs");
        let lines = self.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        lines.take_while(move |(_, line)| !only_tests && !line.trim_start_matches("pub ").starts_with("mod tests {"))
    }
}

fn sources() -> Vec<Source> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths.sort();
    let read = |path: PathBuf| Source {
        path: path.strip_prefix(&root).unwrap().to_string_lossy().into_owned(),
        text: fs::read_to_string(path).unwrap(),
    };
    paths.into_iter().map(read).collect()
}

fn check(name: &str, wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{name}:\n  {}\n", wrong.join("\n  "));
}

/// The longest entry of the table that the folder is in.
fn allowed(folder: &str) -> Vec<&'static str> {
    let top = folder.split('/').next().unwrap_or(folder);
    let of = |name: &str| IMPORTS.iter().find(|(listed, _)| *listed == name).map(|(_, allowed)| *allowed);
    match (of(folder), of(top), top == "master") {
        // A part of the master sees what its own row says, not what the master as a whole sees.
        (Some(own), _, true) => own.to_vec(),
        (Some(own), Some(shared), false) => [own, shared].concat(),
        (None, Some(shared), _) if top == "master" => [shared, &["master"]].concat(),
        (None, Some(shared), _) => shared.to_vec(),
        (own, None, _) => own.unwrap_or_default().to_vec(),
    }
}

#[test]
fn folders_import_only_what_they_may() {
    let mut wrong = Vec::new();
    for source in sources() {
        if source.path == "main.rs" {
            continue;
        }
        let folder = source.folder();
        let top = folder.split('/').next().unwrap();
        let allowed = allowed(folder);
        assert!(IMPORTS.iter().any(|(listed, _)| *listed == top), "{}: the table of imports does not know {top}", source.path);
        for (number, line) in source.code() {
            for (at, _) in line.match_indices("crate::") {
                let target: Vec<&str> =
                    line[at + 7..].split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').next().unwrap().split("::").collect();
                let name = target[0];
                let whole = format!("{name}/{}", target.get(1).unwrap_or(&""));
                if name.is_empty() || name.chars().next().is_some_and(char::is_uppercase) {
                    continue;
                }
                let own = match top {
                    "master" => folder == "master" || whole == folder || whole.starts_with(&format!("{folder}/")),
                    _ => name == top,
                };
                if !own && !allowed.contains(&name) && !allowed.contains(&whole.as_str()) {
                    wrong.push(format!("src/{}:{number}: {folder} may not see {}", source.path, target.join("::")));
                }
            }
        }
    }
    check("imports that the table in tests/tidy does not allow", wrong);
}

#[test]
fn files_open_with_what_they_are_for() {
    let headless = sources().into_iter().filter(|source| !source.text.starts_with("//! ")).map(|source| format!("src/{}", source.path));
    check("files that do not begin with //! and what they are for", headless.collect());
}

#[test]
fn unsafe_code_stands_in_sys_with_its_proof() {
    let mut wrong = Vec::new();
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let is_unsafe =
                code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl") || code.contains("unsafe extern");
            if !is_unsafe {
                continue;
            }
            if !source.path.starts_with("sys/") {
                wrong.push(format!("src/{}:{}: unsafe outside src/sys", source.path, index + 1));
            } else if !lines[index.saturating_sub(8)..=index].iter().any(|line| line.contains("SAFETY")) {
                wrong.push(format!("src/{}:{}: no SAFETY comment proves it", source.path, index + 1));
            }
        }
    }
    check("unsafe code", wrong);
}

#[test]
fn code_has_none_of_what_the_style_bans() {
    const BANNED: &[(&str, &str)] = &[
        (".unwrap()", "return the error, or expect() the reason why it cannot fail"),
        ("todo!(", "finish it"),
        ("unimplemented!(", "finish it"),
        ("dbg!(", "use log"),
        ("TODO", "do it, or leave it out"),
        ("FIXME", "mend it"),
        ("allow(dead_code)", "delete the code"),
        ("allow(unused", "delete the code"),
        ("#[ignore", "a test that does not run proves nothing"),
        ("ToSocketAddrs", "the C library's resolver is unsafe in a static binary: use wire::resolve"),
    ];
    let mut wrong = Vec::new();
    for source in sources() {
        for (number, line) in source.code() {
            for (banned, instead) in BANNED {
                if line.contains(banned) {
                    wrong.push(format!("src/{}:{number}: {banned} ({instead})", source.path));
                }
            }
        }
    }
    check("what the style bans", wrong);
}

#[test]
fn lines_fit_the_page() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (index, line) in source.text.lines().enumerate() {
            // Test data and tables of text may be longer.
            let is_text = line.trim_start().starts_with(['"', 'r', '(']) || line.contains("concat!(") || source.path.contains("test");
            if line.chars().count() > LINE_COLUMNS_MAX && !is_text {
                wrong.push(format!("src/{}:{}: {} columns", source.path, index + 1, line.chars().count()));
            }
        }
    }
    check("lines longer than the page", wrong);
}

#[test]
fn folders_have_no_names_that_say_nothing() {
    const EMPTY_NAMES: [&str; 6] = ["utils", "util", "common", "manager", "types", "helpers"];
    let named = |source: &Source| source.path.trim_end_matches(".rs").split('/').any(|part| EMPTY_NAMES.contains(&part));
    check("names that say nothing", sources().iter().filter(|source| named(source)).map(|source| source.path.clone()).collect());
}

#[test]
fn architecture_names_every_folder() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let mut folders: BTreeMap<String, ()> = BTreeMap::new();
    for source in sources() {
        if let Some((top, _)) = source.path.split_once('/') {
            folders.insert(format!("src/{top}"), ());
        }
    }
    let missing = folders.into_keys().filter(|folder| !text.contains(folder.as_str()));
    check("folders that ARCHITECTURE.md does not name", missing.collect());
}
