//! edgectl
mod args;
mod jsonpath;
mod tabwriter;
