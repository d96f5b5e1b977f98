//! Writes what a container prints in the format of the Container Runtime Interface: `TIME stdout F line`, one entry a line, `P` for a piece of a line.
//! It rotates by size and number, and the path always names the current file. It never waits for a reader and never reads what it wrote.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::base::time::Timestamp;

/// The longest piece of a line in one entry, in bytes, as containerd and CRI-O cut them.
pub const PIECE_MAX: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// One container's log file and the unfinished last line of each of its streams.
pub struct Log {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    max_bytes: u64,
    files_max: u32,
    unfinished: [Vec<u8>; 2],
}

impl Log {
    /// Opens the log at `path` and goes on behind what it holds; its folder is made if need be. A file that would grow beyond `max_bytes`
    /// (0: without bound) becomes `path.1`, that one `path.2` and so on; `files_max` of them are kept, the current one included.
    pub fn open(path: &Path, max_bytes: u64, files_max: u32) -> io::Result<Log> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let size_bytes = file.metadata()?.len();
        Ok(Log { path: path.to_owned(), file, size_bytes, max_bytes, files_max, unfinished: [Vec::new(), Vec::new()] })
    }

    /// Takes in what `stream` printed at `now` and writes every entry that is complete. After an error (a full disk) the file still ends with
    /// a whole entry and the chunk is lost: a container must not stop because its log cannot be written.
    pub fn write(&mut self, stream: Stream, chunk: &[u8], now: Timestamp) -> io::Result<()> {
        let mut entries = Vec::new();
        split(&mut self.unfinished[stream as usize], stream, chunk, now, &mut entries);
        self.append(&entries)
    }

    /// Writes the rest of a line that `stream` left without a newline: as a piece, so that a reader adds none.
    pub fn finish(&mut self, stream: Stream, now: Timestamp) -> io::Result<()> {
        let rest = std::mem::take(&mut self.unfinished[stream as usize]);
        if rest.is_empty() {
            return Ok(());
        }
        let mut entries = Vec::new();
        push_entry(&mut entries, &now.rfc3339_nanos(), stream, Tag::Piece, &[&rest]);
        self.append(&entries)
    }

    fn append(&mut self, entries: &[u8]) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let full = self.max_bytes > 0 && self.size_bytes > 0 && self.size_bytes + entries.len() as u64 > self.max_bytes;
        if full {
            self.rotate()?;
        }
        if let Err(error) = self.file.write_all(entries) {
            // Half an entry would garble the next one as well; if even this fails, that is what happens.
            let _ = self.file.set_len(self.size_bytes);
            return Err(error);
        }
        self.size_bytes += entries.len() as u64;
        Ok(())
    }

    /// A reader that follows sees the end of the old file, finds another inode at the path, and reads on there. The path is never
    /// without a file: the old one gets its second name first, then the fresh one is renamed over it.
    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.files_max.saturating_sub(1)).rev() {
            absent_is_fine(fs::rename(self.rotated(number), self.rotated(number + 1)))?;
        }
        if self.files_max > 1 {
            absent_is_fine(fs::remove_file(self.rotated(1)))?;
            absent_is_fine(fs::hard_link(&self.path, self.rotated(1)))?;
        }
        let fresh = suffixed(&self.path, "new");
        absent_is_fine(fs::remove_file(&fresh))?;
        let file = OpenOptions::new().append(true).create_new(true).open(&fresh)?;
        fs::rename(&fresh, &self.path)?;
        self.file = file;
        self.size_bytes = 0;
        Ok(())
    }

    fn rotated(&self, number: u32) -> PathBuf {
        suffixed(&self.path, &number.to_string())
    }
}

#[derive(Clone, Copy)]
enum Tag {
    Full,
    Piece,
}

/// Cuts `chunk`, which follows the bytes in `unfinished`, into entries; what has no newline yet and is no full piece stays in `unfinished`.
fn split(unfinished: &mut Vec<u8>, stream: Stream, mut chunk: &[u8], now: Timestamp, entries: &mut Vec<u8>) {
    let time = now.rfc3339_nanos();
    entries.reserve(chunk.len() + 64);
    while !chunk.is_empty() {
        let room = PIECE_MAX - unfinished.len();
        // One byte further than the piece: a newline right behind a full piece ends the line.
        let window = &chunk[..chunk.len().min(room + 1)];
        match window.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                push_entry(entries, &time, stream, Tag::Full, &[unfinished, &chunk[..end]]);
                unfinished.clear();
                chunk = &chunk[end + 1..];
            }
            None if chunk.len() > room => {
                push_entry(entries, &time, stream, Tag::Piece, &[unfinished, &chunk[..room]]);
                unfinished.clear();
                chunk = &chunk[room..];
            }
            None => {
                unfinished.extend_from_slice(chunk);
                return;
            }
        }
    }
    // A line of 16 KiB once must not cost that for ever.
    *unfinished = Vec::new();
}

fn push_entry(entries: &mut Vec<u8>, time: &str, stream: Stream, tag: Tag, parts: &[&[u8]]) {
    entries.extend_from_slice(time.as_bytes());
    entries.push(b' ');
    entries.extend_from_slice(stream.name().as_bytes());
    entries.extend_from_slice(match tag {
        Tag::Full => b" F ",
        Tag::Piece => b" P ",
    });
    for part in parts {
        entries.extend_from_slice(part);
    }
    entries.push(b'\n');
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_764_000_000_123_456);
    const TIME: &str = "2025-11-24T16:00:00.123456000Z";

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("edgectl-log-{name}-{}", crate::base::id::uid()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn check(chunks: &[&[u8]], expected: &[(&str, &[u8])]) {
        let (mut unfinished, mut entries) = (Vec::new(), Vec::new());
        for chunk in chunks {
            split(&mut unfinished, Stream::Stdout, chunk, NOW, &mut entries);
        }
        let mut wanted = Vec::new();
        for (tag, text) in expected {
            wanted.extend_from_slice(format!("{TIME} stdout {tag} ").as_bytes());
            wanted.extend_from_slice(text);
            wanted.push(b'\n');
        }
        assert_eq!(String::from_utf8_lossy(&entries), String::from_utf8_lossy(&wanted));
    }

    #[test]
    fn lines_become_entries_however_they_arrive() {
        check(&[b"one\ntwo\n"], &[("F", b"one"), ("F", b"two")]);
        check(&[b"o", b"ne", b"\n", b"\n"], &[("F", b"one"), ("F", b"")]);
        check(&[b"one\ntw"], &[("F", b"one")]);
        check(&[b"\xff\x00\r\xfe\n"], &[("F", b"\xff\x00\r\xfe")]);
    }

    #[test]
    fn long_lines_become_pieces_of_16_kib() {
        let long = vec![b'x'; 2 * PIECE_MAX + 5];
        let (piece, rest) = (&long[..PIECE_MAX], &long[..5]);
        check(&[&long, b"\n"], &[("P", piece), ("P", piece), ("F", rest)]);
        check(&[&long[..PIECE_MAX], b"\n"], &[("F", piece)]);
        check(&[&long[..PIECE_MAX], b"xxxxx\n"], &[("P", piece), ("F", rest)]);
        let single: Vec<&[u8]> = long.chunks(1).chain([&b"\n"[..]]).collect();
        check(&single, &[("P", piece), ("P", piece), ("F", rest)]);
    }

    #[test]
    fn a_line_without_newline_is_written_as_a_piece_at_the_end() {
        let folder = folder("end");
        let path = folder.join("deeper/0.log");
        let mut log = Log::open(&path, 0, 1).unwrap();
        log.write(Stream::Stderr, b"half", NOW).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        log.finish(Stream::Stderr, NOW).unwrap();
        log.finish(Stream::Stdout, NOW).unwrap();
        drop(log);
        Log::open(&path, 0, 1).unwrap().write(Stream::Stdout, b"more\n", NOW).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{TIME} stderr P half\n{TIME} stdout F more\n"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn rotation_keeps_so_many_files_and_the_newest_lines() {
        let folder = folder("rotate");
        let path = folder.join("0.log");
        let entry_bytes = TIME.len() + " stdout F 000\n".len();
        let mut log = Log::open(&path, 2 * entry_bytes as u64, 3).unwrap();
        for number in 0..9 {
            log.write(Stream::Stdout, format!("{number:03}\n").as_bytes(), NOW).unwrap();
        }
        let lines = |path: &Path| {
            let text = fs::read_to_string(path).unwrap();
            text.lines().map(|line| line[line.len() - 3..].to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(lines(&path), ["008"]);
        assert_eq!(lines(&folder.join("0.log.1")), ["006", "007"]);
        assert_eq!(lines(&folder.join("0.log.2")), ["004", "005"]);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_reader_that_follows_misses_nothing_while_files_rotate() {
        use std::io::Read;
        use std::os::unix::fs::MetadataExt;

        let folder = folder("follow");
        let path = folder.join("0.log");
        let mut log = Log::open(&path, 200, 2).unwrap();
        let mut reader = File::open(&path).unwrap();
        let mut seen = String::new();
        for number in 0..100 {
            log.write(Stream::Stdout, format!("{number}\n").as_bytes(), NOW).unwrap();
            reader.read_to_string(&mut seen).unwrap();
            if fs::metadata(&path).unwrap().ino() != reader.metadata().unwrap().ino() {
                reader = File::open(&path).unwrap();
                reader.read_to_string(&mut seen).unwrap();
            }
        }
        let expected: String = (0..100).map(|number| format!("{TIME} stdout F {number}\n")).collect();
        assert_eq!(seen, expected);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_full_disk_loses_the_chunk_and_leaves_whole_entries() {
        let mut log = Log::open(Path::new("/dev/full"), 0, 1).unwrap();
        assert_eq!(log.write(Stream::Stdout, b"lost\n", NOW).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
