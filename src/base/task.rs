//! The one executor of a process: everything asynchronous runs on the thread that called `run`, so futures need not be `Send`.
//! Blocking work goes to `smol::unblock`, never here.

use std::future::Future;

use smol::{LocalExecutor, Task};

thread_local! {
    static EXECUTOR: &'static LocalExecutor<'static> = Box::leak(Box::new(LocalExecutor::new()));
}

/// Runs `main` to its end, and beside it whatever is spawned.
pub fn run<T>(main: impl Future<Output = T>) -> T {
    EXECUTOR.with(|executor| smol::block_on(executor.run(main)))
}

/// Starts a task beside the caller. It ends when the [`Task`] is dropped, unless it was detached.
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    EXECUTOR.with(|executor| executor.spawn(future))
}
