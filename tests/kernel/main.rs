//! What we ask of the kernel, judged by the kernel: /proc, cgroup files, other programs on the same input. They need root.

mod runtime;
