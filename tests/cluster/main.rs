//! Whole clusters on this machine, made by `edgectl up` and judged from the outside. Each test has a cluster of its own
//! name and a kubeconfig of its own, and ends by showing that nothing of it is left. They need root.

mod api;
mod attach;
mod autonomy;
mod backup;
mod crash;
mod exec;
mod failover;
mod faults;
mod join;
mod lab;
mod node;
mod nodes;
mod pods;
mod policy;
mod port_forward;
mod pull;
mod reset;
mod services;
mod top;
mod up;
mod verbs;
mod volumes;
