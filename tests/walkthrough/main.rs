//! A beginner's course as a person walks it: each line is typed into a shell, to edgectl and, where it names an object, to an unmodified
//! kubectl, and what must be seen is waited for. It has no harness: it is to be read while it runs. It closes with how many lines
//! passed and failed; what is not built yet is no line. Needs root.

mod course;
#[allow(dead_code, reason = "shared with the cluster tests")]
#[path = "../cluster/lab.rs"]
mod lab;
mod nodes;
#[allow(dead_code, reason = "shared with the image tests")]
#[path = "../registry/lab.rs"]
mod registry;
mod services;
mod start;
mod workloads;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use course::Course;

/// A line of the course: its number there, what it is about, and the walk.
type Line = (u8, &'static str, fn(&Course));

const LINES: &[Line] = &[
    (1, "a cluster of one machine", start::cluster),
    (2, "an image runs", start::run),
    (3, "a Service with a port on the node", start::expose),
    (4, "three replicas, and all of them answer", start::scale_up),
    (5, "one replica less", start::scale_down),
    (6, "another version, and nobody who asks meanwhile notices", start::set_image),
    (7, "back to the version before", start::undo),
    (8, "a pod of two containers", start::two_containers),
    (9, "a master and two boards that join it", nodes::join),
    (10, "a kubeconfig at home, and Tab", start::home),
    (11, "what runs where, and why", workloads::describe),
    (12, "pods on different nodes reach each other", nodes::reach),
    (13, "names", services::names),
    (14, "the course's own manifest", workloads::apply),
    (15, "the manifest is changed, and deleted", workloads::change),
    (16, "the master takes pods, and takes none again", nodes::taint),
    (17, "a node loses its power", nodes::power),
    (18, "pods on the node with the label", nodes::label),
    (24, "a Service follows its pods", services::follow),
    (26, "namespaces", workloads::namespaces),
    (27, "the daemons are restarted", nodes::restart),
];

fn main() -> ExitCode {
    // What goes wrong is told with the line that it belongs to.
    std::panic::set_hook(Box::new(|_| ()));
    let begun = Instant::now();
    let course = match catch_unwind(Course::begin) {
        Ok(course) => course,
        Err(why) => {
            println!("FAILED before the first line: {}\n\n0 passed, 1 failed", message(&*why));
            return ExitCode::FAILURE;
        }
    };
    let wanted: Vec<u8> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let (mut passed, mut failed) = (0, 0);
    for (number, about, walk) in LINES.iter().filter(|(number, ..)| wanted.is_empty() || wanted.contains(number)) {
        println!("\n{number:>2}  {about}");
        let since = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| walk(&course))) {
            Ok(()) => {
                passed += 1;
                println!("    ok ({:.1} s)", since.elapsed().as_secs_f32());
            }
            Err(why) => {
                failed += 1;
                println!("    FAILED {}", message(&*why).replace('\n', "\n    "));
            }
        }
    }
    if let Err(why) = catch_unwind(AssertUnwindSafe(|| course.end())) {
        failed += 1;
        println!("\nFAILED something is left behind: {}", message(&*why));
    }
    println!("\n{passed} passed, {failed} failed ({:.0} s)", begun.elapsed().as_secs_f32());
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn message(why: &(dyn Any + Send)) -> String {
    let text = why.downcast_ref::<String>().cloned();
    text.or_else(|| why.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "it panicked".to_owned())
}
