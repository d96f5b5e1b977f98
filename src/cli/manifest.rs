//! Reads manifests: files, folders, standard input, addresses of the cluster itself; YAML or JSON, several documents, lists taken apart.
//! It checks only what must be known to send an object on; everything else is judged by the server.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use hyper::Method;
use serde_json::Value;

use super::Context;
use crate::api::{convert, decode};
use crate::client::JSON;

/// A manifest longer than this is a mistake.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// Folders are read no deeper than this.
const DEPTH_MAX: usize = 32;

/// One object of a manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Where it was read from, as the user named it.
    pub source: String,
    pub object: Value,
    /// What the user has to know about how it was read.
    warning: Option<String>,
}

/// Which manifests a verb reads; every verb with `-f` has these flags.
#[derive(Debug, Default, Clone)]
pub struct Sources<'a> {
    pub filenames: &'a [String],
    pub recursive: bool,
    pub kustomize: Option<&'a str>,
    /// Keys that stand twice are errors.
    pub strict: bool,
}

/// The flags of a verb that takes manifests: its own, and those that name files.
macro_rules! file_flags {
    ($(#[$doc:meta])* pub struct $name:ident { $($fields:tt)* }) => {
        $(#[$doc])*
        #[derive(FromArgs, ArgsInfo)]
        pub struct $name {
            $($fields)*
            /// file or folder with the objects; - is standard input
            #[argh(option, short = 'f')]
            filename: Vec<String>,
            /// kustomization folder
            #[argh(option, short = 'k')]
            kustomize: Option<String>,
            /// read folders of -f with all that is below them
            #[argh(switch, short = 'R')]
            recursive: bool,
        }

        impl $name {
            fn sources(&self, strict: bool) -> $crate::cli::manifest::Sources<'_> {
                $crate::cli::manifest::Sources {
                    filenames: &self.filename,
                    recursive: self.recursive,
                    kustomize: self.kustomize.as_deref(),
                    strict,
                }
            }
        }
    };
}
pub(super) use file_flags;

/// Reads all sources, in the order given.
pub async fn read(cx: &Context, sources: &Sources<'_>) -> Result<Vec<Document>> {
    if sources.kustomize.is_some() {
        bail!("kustomizations (-k) are not supported; build them elsewhere and pass the result with -f -");
    }
    let mut documents = vec![];
    for name in sources.filenames.iter().flat_map(|names| names.split(',')) {
        if name == "-" {
            let mut text = vec![];
            std::io::stdin().take(MANIFEST_BYTES_MAX).read_to_end(&mut text).context("read standard input")?;
            documents.extend(parse(&text, "STDIN", sources.strict)?);
        } else if name.starts_with("http://") || name.starts_with("https://") {
            documents.extend(parse(&fetch(cx, name).await?, name, sources.strict)?);
        } else {
            for file in files(Path::new(name), sources.recursive)? {
                let shown = file.display().to_string();
                let size = std::fs::metadata(&file).with_context(|| format!("read {shown}"))?.len();
                if size > MANIFEST_BYTES_MAX {
                    bail!("{shown} is larger than any manifest ({size} bytes)");
                }
                let text = std::fs::read(&file).with_context(|| format!("read {shown}"))?;
                documents.extend(parse(&text, &shown, sources.strict)?);
            }
        }
    }
    for warning in documents.iter().filter_map(|document| document.warning.as_ref()) {
        cx.warn(warning);
    }
    Ok(documents)
}

/// Only the cluster's own API is fetched from: anything else on the network could be anything.
async fn fetch(cx: &Context, url: &str) -> Result<Vec<u8>> {
    let client = cx.client()?;
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority != client.authority() {
        bail!("{url} is not an address of the cluster; download it first and pass the file, or pipe it to -f -");
    }
    Ok(client.raw(Method::GET, path, JSON, None).await?.to_vec())
}

fn files(path: &Path, recursive: bool) -> Result<Vec<PathBuf>> {
    if !path.exists() {
        bail!("the path {:?} does not exist", path.display().to_string());
    }
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = vec![];
    walk(path, recursive, 0, &mut found)?;
    if found.is_empty() {
        let what = "recognized file extensions are [.json .yaml .yml]";
        bail!("error reading {:?}: {what}, and the folder has none", path.display().to_string());
    }
    Ok(found)
}

fn walk(folder: &Path, recursive: bool, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    if depth > DEPTH_MAX {
        bail!("{} is more than {DEPTH_MAX} folders deep", folder.display());
    }
    let entries = std::fs::read_dir(folder).with_context(|| format!("read folder {}", folder.display()))?;
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            if recursive {
                walk(&entry, recursive, depth + 1, found)?;
            }
        } else if entry.extension().is_some_and(|extension| ["json", "yaml", "yml"].iter().any(|known| extension == *known)) {
            found.push(entry);
        }
    }
    Ok(())
}

/// The objects of one text.
fn parse(text: &[u8], source: &str, strict: bool) -> Result<Vec<Document>> {
    let documents = decode::yaml_documents(text).map_err(|error| anyhow!("error parsing {source}: {error:#}"))?;
    let several = documents.len() > 1;
    let mut found = vec![];
    for (index, (object, problems)) in documents.into_iter().enumerate() {
        let place = if several { format!("{source}, document {}", index + 1) } else { source.to_owned() };
        if let Some(problem) = problems.first().filter(|_| strict) {
            bail!("error parsing {place}: {problem}");
        }
        take_apart(object, source, &place, &mut found)?;
    }
    Ok(found)
}

fn take_apart(mut object: Value, source: &str, place: &str, found: &mut Vec<Document>) -> Result<()> {
    if !object.is_object() {
        bail!("error parsing {place}: an object was expected, with apiVersion and kind");
    }
    let missing: Vec<&str> = ["apiVersion", "kind"].into_iter().filter(|key| object[key].as_str().is_none_or(str::is_empty)).collect();
    if !missing.is_empty() {
        bail!("error parsing {place}: {} not set", missing.join(" and "));
    }
    let kind = object["kind"].as_str().unwrap_or_default();
    if kind.ends_with("List") && object["items"].is_array() {
        let (item_kind, version) = (kind.trim_end_matches("List").to_owned(), object["apiVersion"].clone());
        for mut item in object["items"].as_array_mut().map(std::mem::take).unwrap_or_default() {
            if item["kind"].is_null() && !item_kind.is_empty() && item.is_object() {
                item["kind"] = item_kind.as_str().into();
                item["apiVersion"] = version.clone();
            }
            take_apart(item, source, place, found)?;
        }
        return Ok(());
    }
    let warning = convert::to_served(&mut object).map(|said| format!("{place}: {said}"));
    found.push(Document { source: source.to_owned(), object, warning });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn objects(text: &str) -> Result<Vec<Value>> {
        Ok(parse(text.as_bytes(), "web.yml", true)?.into_iter().map(|document| document.object).collect())
    }

    #[test]
    fn documents_and_lists_are_taken_apart() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n# nothing\n---\napiVersion: v1\nkind: List\nitems:\n- \
            {apiVersion: v1, kind: Pod, metadata: {name: b}}\n- {apiVersion: v1, kind: Service, metadata: {name: c}}\n";
        let names: Vec<String> =
            objects(text).unwrap().iter().map(|object| object["metadata"]["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let list = r#"{"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"a"}}]}"#;
        assert_eq!(objects(list).unwrap(), [json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}})]);
    }

    #[test]
    fn errors_name_file_document_line_and_cause() {
        let error = |text: &str| objects(text).unwrap_err().to_string();
        let tabs = error("apiVersion: v1\nkind: Pod\nmetadata:\n\tname: a\n");
        assert!(tabs.starts_with("error parsing web.yml: line 4 column 1: ") && tabs.contains("tab") && tabs.contains("spaces"), "{tabs}");
        assert_eq!(error("kind: Pod\n"), "error parsing web.yml: apiVersion not set");
        assert_eq!(error("apiVersion: v1\nkind: Pod\n---\na: 1\n"), "error parsing web.yml, document 2: apiVersion and kind not set");
        assert!(error("- a\n").contains("an object was expected"));
        assert!(error("apiVersion: v1\nkind: Pod\nkind: Pod\n").contains("duplicate field \"kind\""));
    }

    #[test]
    fn what_yaml_1_1_reads_otherwise_is_read_by_the_schema() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {a: yes, b: 0644}}\nspec:\n  hostNetwork: yes\n  containers: \
            [{name: a, tty: off, env: [{name: A, value: on}]}]\n  volumes: [{name: v, secret: {secretName: s, defaultMode: 0400}}]\n";
        let object = objects(text).unwrap().remove(0);
        assert_eq!(object["spec"]["hostNetwork"], json!(true));
        assert_eq!(object["spec"]["containers"][0]["tty"], json!(false));
        assert_eq!(object["spec"]["containers"][0]["env"][0]["value"], json!("on"));
        assert_eq!(object["spec"]["volumes"][0]["secret"]["defaultMode"], json!(256));
        assert_eq!(object["metadata"]["labels"], json!({"a": "yes", "b": "0644"}));
    }
}
