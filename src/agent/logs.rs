//! Reads what containers printed, from files in the format of the Container Runtime Interface, through rotations and as they
//! grow. It never writes one, and holds no more than a chunk in memory.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_lite::FutureExt;
use futures_lite::stream::{self, Stream};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use smol::{Async, Timer};

use crate::base::file;
use crate::base::time::Timestamp;

const CHUNK_BYTES: usize = 64 << 10;
/// Rotated files looked for: `path.1` and so on.
const ROTATED_MAX: u32 = 16;
/// How soon a follower notices that a container which prints nothing has ended.
const END_CHECK: Duration = Duration::from_millis(500);

/// What a reader wants, as `PodLogOptions` has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    pub follow: bool,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    /// So many entries from the end.
    pub tail: Option<u64>,
    pub limit_bytes: Option<u64>,
}

/// The log at `path`, oldest line first. With `follow`, until `ended` says that nothing more comes.
///
/// # Errors
/// If there is no such log.
pub fn read(
    path: PathBuf,
    wanted: Wanted,
    ended: impl Fn() -> bool + 'static,
) -> io::Result<impl Stream<Item = Result<Bytes, Box<dyn std::error::Error + Send + Sync>>>> {
    let files = begin(&path, wanted.tail)?;
    let changes = match wanted.follow {
        true => Some(watch(&path)?),
        false => None,
    };
    let reader = Reader { path, files, current: None, changes, entries: Entries::new(wanted), ended: Box::new(ended) };
    Ok(stream::unfold(reader, |mut reader| async move {
        match reader.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), reader)),
            Ok(None) => None,
            Err(error) => Some((Err(error.into()), reader)),
        }
    }))
}

/// The ends of the last lines, without times and streams; at most `max_bytes` of the file are looked at.
pub fn last_lines(path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
    let mut log = File::open(path)?;
    let from = log.metadata()?.len().saturating_sub(max_bytes as u64 * 2);
    log.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes)?;
    let mut entries = Entries::new(Wanted::default());
    let whole = match (from, bytes.iter().position(|byte| *byte == b'\n')) {
        (0, _) | (_, None) => 0,
        (_, Some(at)) => at + 1,
    };
    Ok(entries.convert(&bytes[whole..]))
}

/// Removes a log with what was rotated out of it.
pub fn remove(path: &Path) -> io::Result<()> {
    (1..=ROTATED_MAX).try_for_each(|number| file::remove(&rotated(path, number)))?;
    file::remove(path)
}

fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn watch(path: &Path) -> io::Result<Async<Inotify>> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let events = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE;
    inotify.add_watch(path.parent().unwrap_or(path), events)?;
    Async::new_nonblocking(inotify)
}

/// The files to read, oldest first, each already at its place.
fn begin(path: &Path, tail: Option<u64>) -> io::Result<VecDeque<File>> {
    let mut newest_first = vec![File::open(path)?];
    for number in 1..=ROTATED_MAX {
        match File::open(rotated(path, number)) {
            Ok(file) => newest_first.push(file),
            Err(_) => break,
        }
    }
    let mut left = tail;
    let mut files = VecDeque::new();
    for mut file in newest_first {
        if let Some(entries) = left {
            if entries == 0 && !files.is_empty() {
                break;
            }
            left = Some(seek_to_last(&mut file, entries)?);
        }
        files.push_front(file);
    }
    Ok(files)
}

/// Moves to the begin of the last `entries` lines; answers how many are missing.
fn seek_to_last(file: &mut File, entries: u64) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut left = entries;
    let mut chunk = vec![0; CHUNK_BYTES];
    let length = end;
    while end > 0 {
        let start = end.saturating_sub(CHUNK_BYTES as u64);
        let part = &mut chunk[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        for (index, byte) in part.iter().enumerate().rev() {
            let at = start + index as u64;
            if *byte == b'\n' && at + 1 < length {
                left = left.saturating_sub(1);
            }
            if *byte == b'\n' && (left == 0 || entries == 0) {
                file.seek(SeekFrom::Start(at + 1))?;
                return Ok(0);
            }
        }
        end = start;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(left.saturating_sub(u64::from(length > 0)))
}

struct Reader {
    path: PathBuf,
    files: VecDeque<File>,
    current: Option<File>,
    changes: Option<Async<Inotify>>,
    entries: Entries,
    ended: Box<dyn Fn() -> bool>,
}

impl Reader {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.entries.full {
                return Ok(None);
            }
            let Some(mut file) = self.current.take().or_else(|| self.files.pop_front()) else { return Ok(None) };
            // Asked before reading: what is printed before the end is read, whenever the end is noticed.
            let over = (self.ended)();
            let (file, chunk) = smol::unblock(move || {
                let mut chunk = vec![0; CHUNK_BYTES];
                let length = file.read(&mut chunk)?;
                chunk.truncate(length);
                io::Result::Ok((file, chunk))
            })
            .await?;
            if !chunk.is_empty() {
                self.current = Some(file);
                let text = self.entries.take(&chunk);
                if !text.is_empty() {
                    return Ok(Some(text.into()));
                }
                continue;
            }
            if !self.files.is_empty() {
                continue;
            }
            match self.newer_than(&file)? {
                Some(newer) => self.files = newer,
                None if self.changes.is_none() || over => return Ok(None),
                None => {
                    self.current = Some(file);
                    self.wait().await?;
                }
            }
        }
    }

    /// The files after one that was rotated away; None if it is still the one that is written.
    fn newer_than(&self, file: &File) -> io::Result<Option<VecDeque<File>>> {
        if self.changes.is_none() {
            return Ok(None);
        }
        let inode = file.metadata()?.ino();
        let mut newer = VecDeque::new();
        for number in 0..=ROTATED_MAX {
            let path = if number == 0 { self.path.clone() } else { rotated(&self.path, number) };
            match fs::metadata(&path) {
                Ok(found) if found.ino() == inode => return Ok((!newer.is_empty()).then_some(newer)),
                Ok(_) => newer.push_front(File::open(&path)?),
                // Between the two renames of a rotation, or the last of the rotated ones.
                Err(_) if number == 0 => return Ok(None),
                Err(_) => return Ok(Some(newer)),
            }
        }
        Ok(Some(newer))
    }

    async fn wait(&self) -> io::Result<()> {
        let Some(changes) = &self.changes else { return Ok(()) };
        let changed = async {
            changes.readable().await?;
            // What changed does not matter, only that it did.
            let _ = changes.get_ref().read_events();
            Ok(())
        };
        let check = async {
            Timer::after(END_CHECK).await;
            Ok(())
        };
        changed.or(check).await
    }
}

/// Turns entries of the log into what the container printed.
struct Entries {
    wanted: Wanted,
    /// An entry of which the end has not been read.
    rest: Vec<u8>,
    /// The last entry was a piece of a line: the next one goes on with it.
    inside: bool,
    written: u64,
    /// As many bytes as were wanted are out.
    full: bool,
}

impl Entries {
    fn new(wanted: Wanted) -> Self {
        Self { wanted, rest: Vec::new(), inside: false, written: 0, full: false }
    }

    fn take(&mut self, chunk: &[u8]) -> Vec<u8> {
        let Some(end) = chunk.iter().rposition(|byte| *byte == b'\n') else {
            self.rest.extend_from_slice(chunk);
            return Vec::new();
        };
        let mut whole = std::mem::take(&mut self.rest);
        whole.extend_from_slice(&chunk[..=end]);
        self.rest = chunk[end + 1..].to_vec();
        self.convert(&whole)
    }

    fn convert(&mut self, entries: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(entries.len());
        for entry in entries.split_inclusive(|byte| *byte == b'\n') {
            self.convert_one(entry, &mut text);
        }
        if let Some(limit) = self.wanted.limit_bytes {
            text.truncate(limit.saturating_sub(self.written) as usize);
            self.full = self.written + text.len() as u64 >= limit;
        }
        self.written += text.len() as u64;
        text
    }

    /// `TIME STREAM TAG CONTENT`; a line that is none of that is given as it is.
    fn convert_one(&mut self, entry: &[u8], text: &mut Vec<u8>) {
        let mut parts = entry.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(_), Some(tag), Some(content)) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            text.extend_from_slice(entry);
            return;
        };
        let time = String::from_utf8_lossy(time);
        if self.wanted.since.is_some_and(|since| Timestamp::parse(&time).is_some_and(|at| at < since)) {
            return;
        }
        if self.wanted.timestamps && !self.inside {
            text.extend_from_slice(time.as_bytes());
            text.push(b' ');
        }
        self.inside = tag.first() == Some(&b'P');
        let content = if self.inside { content.strip_suffix(b"\n").unwrap_or(content) } else { content };
        text.extend_from_slice(content);
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::StreamExt;

    use super::*;

    fn folder() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("logs-{}", crate::base::id::uid()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn entry(second: u32, text: &str) -> String {
        format!("2026-01-01T00:00:{second:02}.000000000Z stdout F {text}\n")
    }

    fn all(path: &Path, wanted: Wanted) -> String {
        let bytes = smol::block_on(async {
            let stream = read(path.to_owned(), wanted, || true).unwrap();
            Box::pin(stream).map(|chunk| chunk.unwrap().to_vec()).fold(Vec::new(), |all, chunk| [all, chunk].concat()).await
        });
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn logs_are_read_through_rotations_in_order() {
        let folder = folder();
        let path = folder.join("0.log");
        fs::write(rotated(&path, 2), entry(1, "one")).unwrap();
        fs::write(rotated(&path, 1), entry(2, "two") + &entry(3, "three")).unwrap();
        fs::write(&path, entry(4, "four")).unwrap();
        let with = |tail| Wanted { tail, ..Wanted::default() };
        assert_eq!(all(&path, with(None)), "one\ntwo\nthree\nfour\n");
        for (tail, expected) in [(0, ""), (1, "four\n"), (2, "three\nfour\n"), (3, "two\nthree\nfour\n"), (9, "one\ntwo\nthree\nfour\n")] {
            assert_eq!(all(&path, with(Some(tail))), expected, "tail {tail}");
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn times_limits_and_pieces_are_kept() {
        let folder = folder();
        let path = folder.join("0.log");
        let piece = "2026-01-01T00:00:05.000000000Z stdout P long \n";
        fs::write(&path, entry(1, "old") + piece + &entry(6, "line")).unwrap();
        assert_eq!(all(&path, Wanted::default()), "old\nlong line\n");
        let since = Timestamp::parse("2026-01-01T00:00:02Z");
        assert_eq!(all(&path, Wanted { since, ..Wanted::default() }), "long line\n");
        let timed = all(&path, Wanted { since, timestamps: true, ..Wanted::default() });
        assert_eq!(timed, "2026-01-01T00:00:05.000000000Z long line\n");
        assert_eq!(all(&path, Wanted { limit_bytes: Some(6), ..Wanted::default() }), "old\nlo");
        assert_eq!(last_lines(&path, 1000).unwrap(), b"old\nlong line\n");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn followers_miss_nothing_while_the_log_rotates() {
        let folder = folder();
        let path = folder.join("0.log");
        fs::write(&path, entry(1, "one")).unwrap();
        let over = std::rc::Rc::new(std::cell::Cell::new(false));
        let ended = over.clone();
        let text = smol::block_on(async {
            let wanted = Wanted { follow: true, ..Wanted::default() };
            let mut stream = Box::pin(read(path.clone(), wanted, move || ended.get()).unwrap());
            let mut text = stream.next().await.unwrap().unwrap().to_vec();
            fs::write(&path, entry(1, "one") + &entry(2, "two")).unwrap();
            fs::rename(rotated(&path, 1), rotated(&path, 2)).ok();
            fs::rename(&path, rotated(&path, 1)).unwrap();
            fs::write(&path, entry(3, "three")).unwrap();
            over.set(true);
            while let Some(chunk) = stream.next().await {
                text.extend_from_slice(&chunk.unwrap());
            }
            String::from_utf8(text).unwrap()
        });
        assert_eq!(text, "one\ntwo\nthree\n");
        fs::remove_dir_all(folder).unwrap();
    }
}
