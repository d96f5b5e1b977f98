//! Picks the role of this process from its name and its first argument; the only file that knows every folder.
//! It decides nothing else.

mod api;
mod base;
mod cli;
mod client;
mod master;
mod network;
mod sys;
mod wire;

fn main() {
    base::log::init(log::LevelFilter::Info);
}
