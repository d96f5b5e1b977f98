//! Picks the role of this process from its name and its first argument; the only file that knows every folder.
//! It decides nothing else.

mod agent;
mod api;
mod base;
mod cli;
mod client;
mod image;
mod master;
mod network;
mod runtime;
mod sys;
mod wire;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    base::log::init(log::LevelFilter::Info);
    // Before anything else touches memory: a shim keeps every page that it has dirtied.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|verb| verb == runtime::shim::ROLE)
        && let Some(folder) = words.next()
    {
        return runtime::shim::main(Path::new(&folder));
    }
    if let Some(words) = runtime::cli::words(std::env::args_os()) {
        return ExitCode::from(runtime::cli::main(&words));
    }
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    ExitCode::from(match words.split_first() {
        Some((role, rest)) if role == cli::up::node::ROLE => cli::up::node::main(rest),
        Some((role, rest)) if role == cli::up::hello::ROLE => cli::up::hello::main(rest),
        _ => cli::main(words),
    })
}
