//! Picks the role of this process from its name and its first argument; the only file that knows every folder.
//! It decides nothing else.

mod base;
mod cli;
mod network;
mod sys;
mod wire;

fn main() {
    base::log::init(log::LevelFilter::Info);
}
