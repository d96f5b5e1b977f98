//! One log line per state change, to standard error: `I 12:34:56.789 pod=shop/web-1 starting -> running`.
//! It never writes to a file: where the lines go is the affair of whoever starts the process.

use std::io::Write;

use super::time::Timestamp;

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record) {
        if !self.enabled(record.metadata()) || !record.target().starts_with(env!("CARGO_PKG_NAME")) {
            return;
        }
        let now = Timestamp::now().rfc3339_micros();
        let letter = &record.level().as_str()[..1];
        // A log that cannot be written is no reason to stop what is being logged.
        let _ = writeln!(std::io::stderr().lock(), "{letter} {} {}", &now[11..23], record.args());
    }

    fn flush(&self) {}
}

/// Starts logging at `level`. A second call changes the level only.
pub fn init(level: log::LevelFilter) {
    // The error means that a logger is set already, which is this one.
    let _ = log::set_logger(&Stderr);
    log::set_max_level(level);
}
