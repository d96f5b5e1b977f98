//! Reads tar as layers have it: ustar, PAX and GNU headers with long names, extended attributes and sparse files.
//! It never touches a file system and trusts no length: all that is kept in memory has a named bound.

use std::ffi::CString;
use std::io::{self, BufRead, Read};

use anyhow::{Context, Result, bail};

use super::recipe;

const BLOCK: usize = 512;
/// Longest PAX header or GNU long name that is read into memory.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// Most pieces of data between the holes of one sparse file.
const SEGMENTS_MAX: usize = 1 << 17;

/// One member of the archive, all extensions applied.
#[derive(Debug)]
pub struct Entry {
    /// As written: may be absolute, may hold `..`.
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    pub xattrs: Vec<(CString, Vec<u8>)>,
    /// Bytes of content that follow in the archive; zero but for files.
    pub size: u64,
    pub sparse: Option<Sparse>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Fifo,
    /// Major and minor number.
    CharacterDevice(u32, u32),
    BlockDevice(u32, u32),
}

/// A file with holes: where the bytes of the content belong.
#[derive(Debug, PartialEq, Eq)]
pub struct Sparse {
    /// Offset and length of each piece, in the order of the content.
    pub segments: Vec<(u64, u64)>,
    pub file_bytes: u64,
}

/// What PAX headers say of the next entry.
#[derive(Clone, Debug, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link_path: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(CString, Vec<u8>)>,
    sparse_major: Option<u64>,
    sparse_name: Option<Vec<u8>>,
    sparse_bytes: Option<u64>,
    sparse_numbers: Vec<u64>,
    is_sparse: bool,
}

/// A tar stream that is read once, front to back.
pub struct Archive<R> {
    reader: R,
    /// Notes every byte that is not handed out as content.
    recipe: Option<recipe::Writer>,
    content_left: u64,
    padding: u64,
    global: Extensions,
}

impl<R: BufRead> Archive<R> {
    pub fn new(reader: R, recipe: Option<recipe::Writer>) -> Self {
        Self { reader, recipe, content_left: 0, padding: 0, global: Extensions::default() }
    }

    pub fn recipe(&mut self) -> Option<&mut recipe::Writer> {
        self.recipe.as_mut()
    }

    /// The next member; what was not read of the one before is passed over. `None` after the last: the stream is then read to its end.
    ///
    /// # Errors
    /// When the stream ends within a member, or is no tar.
    pub fn next(&mut self) -> Result<Option<Entry>> {
        let mut extensions = self.global.clone();
        let mut long_path = None;
        let mut long_link = None;
        loop {
            let (content, padding) = (std::mem::take(&mut self.content_left), std::mem::take(&mut self.padding));
            if self.pass_over(content)? < content {
                bail!("the archive ends in the middle of a file");
            }
            // Some writers leave out what would fill the last block, and the end mark too; Go's reader takes that for the end.
            if self.pass_over(padding)? < padding {
                return Ok(None);
            }
            let Some(header) = self.header()? else { return Ok(None) };
            let size = number(&header[124..136]).context("size of a tar entry")?;
            let size = u64::try_from(size).ok().context("size of a tar entry is negative")?;
            match header[156] {
                b'x' => extensions.apply(&self.extension(size)?)?,
                b'g' => {
                    let records = self.extension(size)?;
                    self.global.apply(&records)?;
                    extensions.apply(&records)?;
                }
                b'L' => long_path = Some(text(&self.extension(size)?).to_vec()),
                b'K' => long_link = Some(text(&self.extension(size)?).to_vec()),
                // The name of a volume: says nothing of any file.
                b'V' => self.expect_content(size),
                kind => {
                    let path = extensions.path.take().or(long_path).unwrap_or_else(|| header_path(&header));
                    let link = extensions.link_path.take().or(long_link).unwrap_or_else(|| text(&header[157..257]).to_vec());
                    let shown = String::from_utf8_lossy(&path).into_owned();
                    return self
                        .entry(&header, kind, path, link, size, extensions)
                        .with_context(|| format!("tar entry {shown:?}"))
                        .map(Some);
                }
            }
        }
    }

    /// Hands out the next `length` bytes of the content, in pieces, without copying. They are not noted in the recipe.
    pub fn content(&mut self, length: u64, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if length > self.content_left {
            bail!("content is shorter than its map says");
        }
        let mut left = length;
        while left > 0 {
            let buffer = self.reader.fill_buf().context("read the archive")?;
            if buffer.is_empty() {
                bail!("the archive ends in the middle of a file");
            }
            let amount = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            sink(&buffer[..amount])?;
            self.reader.consume(amount);
            left -= amount as u64;
            self.content_left -= amount as u64;
        }
        Ok(())
    }

    /// The content that is left, to be read like a file. Not noted in the recipe.
    pub fn reader(&mut self) -> Content<'_, R> {
        Content(self)
    }

    /// Gives back the recipe and the reader, once `next` has said `None`.
    pub fn finish(self) -> (Option<recipe::Writer>, R) {
        (self.recipe, self.reader)
    }

    fn entry(&mut self, header: &[u8; BLOCK], kind: u8, path: Vec<u8>, link: Vec<u8>, size: u64, extensions: Extensions) -> Result<Entry> {
        let device = || -> Result<(u32, u32)> { Ok((id(number(&header[329..337])?)?, id(number(&header[337..345])?)?)) };
        let mut sparse_header = None;
        let kind = match kind {
            // In archives of before 1988 a folder is a file whose name ends in a slash.
            b'0' | b'\0' | b'7' if path.ends_with(b"/") => Kind::Directory,
            b'0' | b'\0' | b'7' => Kind::File,
            b'S' => {
                sparse_header = Some(self.sparse_of_gnu(header)?);
                Kind::File
            }
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' => Kind::CharacterDevice(device()?.0, device()?.1),
            b'4' => Kind::BlockDevice(device()?.0, device()?.1),
            b'5' | b'D' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => bail!("entries of type {:?} are not supported", other as char),
        };
        // Only files and GNU's folder listings have content, whatever the size field of the others says.
        let has_content = kind == Kind::File || header[156] == b'D';
        let size = if has_content { extensions.size.unwrap_or(size) } else { 0 };
        self.expect_content(size);
        let field = |range: std::ops::Range<usize>| number(&header[range]);
        let uid = extensions.uid.map_or_else(|| field(108..116), |uid| Ok(uid as i64)).and_then(id).context("uid")?;
        let gid = extensions.gid.map_or_else(|| field(116..124), |gid| Ok(gid as i64)).and_then(id).context("gid")?;
        let mtime = extensions.mtime.map_or_else(|| field(136..148).map(|seconds| (seconds, 0)), Ok).context("mtime")?;
        let mode = field(100..108).context("mode")? as u32 & 0o7777;
        let sparse = match sparse_header {
            None if extensions.is_sparse && kind == Kind::File => Some(self.sparse_of_pax(&extensions)?),
            other => other,
        };
        let path = extensions.sparse_name.unwrap_or(path);
        // What is left of the content: the map of PAX 1.0 lies before the data.
        let size = if kind == Kind::File { self.content_left } else { 0 };
        if let Some(sparse) = &sparse {
            sparse.check(size)?;
        }
        Ok(Entry { path, kind, mode, uid, gid, mtime, xattrs: extensions.xattrs, size, sparse })
    }

    /// The map in the header of a type `S` entry and in the blocks behind it (GNU tar manual, "Storing Sparse Files").
    fn sparse_of_gnu(&mut self, header: &[u8; BLOCK]) -> Result<Sparse> {
        let mut segments = Vec::new();
        let mut read = |area: &[u8]| -> Result<()> {
            for pair in area.chunks_exact(24).take_while(|pair| pair[0] != 0) {
                segments.push((positive(number(&pair[..12])?)?, positive(number(&pair[12..])?)?));
            }
            if segments.len() > SEGMENTS_MAX {
                bail!("a sparse file of more than {SEGMENTS_MAX} pieces");
            }
            Ok(())
        };
        read(&header[386..482])?;
        let mut more = header[482] != 0;
        while more {
            let mut block = [0; BLOCK];
            self.noted(&mut block)?;
            read(&block[..504])?;
            more = block[504] != 0;
        }
        Ok(Sparse { segments, file_bytes: positive(number(&header[483..495])?)? })
    }

    fn sparse_of_pax(&mut self, extensions: &Extensions) -> Result<Sparse> {
        let file_bytes = extensions.sparse_bytes.context("a sparse file without its size")?;
        if extensions.sparse_major.unwrap_or(0) == 0 {
            return Ok(Sparse { segments: pairs(&extensions.sparse_numbers)?, file_bytes });
        }
        // Version 1.0: decimal numbers on lines of their own, first how many pairs, in whole blocks before the data.
        let mut numbers = Vec::new();
        let mut digits = Vec::new();
        let mut wanted = 1;
        while numbers.len() < wanted {
            let mut block = [0; BLOCK];
            if self.content_left < BLOCK as u64 {
                bail!("the map of a sparse file ends early");
            }
            self.noted(&mut block)?;
            self.content_left -= BLOCK as u64;
            for byte in block {
                if numbers.len() == wanted {
                    break;
                }
                if byte != b'\n' {
                    digits.push(byte);
                    continue;
                }
                let value = decimal(&digits)?;
                digits.clear();
                if numbers.is_empty() {
                    if value > SEGMENTS_MAX as u64 {
                        bail!("a sparse file of more than {SEGMENTS_MAX} pieces");
                    }
                    wanted += 2 * value as usize;
                }
                numbers.push(value);
            }
        }
        Ok(Sparse { segments: pairs(&numbers[1..])?, file_bytes })
    }

    fn expect_content(&mut self, size: u64) {
        self.content_left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    /// The next header block, its checksum verified. `None` at the end, with all behind it read.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        if self.reader.fill_buf().context("read the archive")?.is_empty() {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        self.noted(&mut block)?;
        if block == [0; BLOCK] {
            self.pass_over(u64::MAX)?;
            return Ok(None);
        }
        let said = number(&block[148..156]).context("checksum of a tar header")?;
        let blanked = block[..148].iter().chain(&[b' '; 8]).chain(&block[156..]);
        // Some old writers summed signed bytes.
        let (unsigned, signed) = blanked.fold((0, 0), |(u, s), byte| (u + i64::from(*byte), s + i64::from(*byte as i8)));
        if said != unsigned && said != signed {
            bail!("this is no tar archive, or a damaged one: the checksum of a header is wrong");
        }
        Ok(Some(block))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > EXTENSION_BYTES_MAX {
            bail!("a tar extension header of {size} bytes, at most {EXTENSION_BYTES_MAX} are read");
        }
        let mut content = vec![0; size as usize];
        self.noted(&mut content)?;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(content)
    }

    fn noted(&mut self, target: &mut [u8]) -> Result<()> {
        self.reader.read_exact(target).context("the archive ends early")?;
        match &mut self.recipe {
            Some(recipe) => recipe.raw(target),
            None => Ok(()),
        }
    }

    /// Passes over `length` bytes, fewer if the stream ends before. Answers how many.
    fn pass_over(&mut self, length: u64) -> Result<u64> {
        let mut left = length;
        while left > 0 {
            let buffer = self.reader.fill_buf().context("read the archive")?;
            if buffer.is_empty() {
                break;
            }
            let amount = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if let Some(recipe) = &mut self.recipe {
                recipe.raw(&buffer[..amount])?;
            }
            self.reader.consume(amount);
            left -= amount as u64;
        }
        Ok(length - left)
    }
}

/// The content of one entry.
pub struct Content<'a, R>(&'a mut Archive<R>);

impl<R: BufRead> BufRead for Content<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let left = usize::try_from(self.0.content_left).unwrap_or(usize::MAX);
        if left == 0 {
            return Ok(&[]);
        }
        let buffer = self.0.reader.fill_buf()?;
        if buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends in the middle of a file"));
        }
        Ok(&buffer[..buffer.len().min(left)])
    }

    fn consume(&mut self, amount: usize) {
        self.0.content_left -= amount as u64;
        self.0.reader.consume(amount);
    }
}

impl<R: BufRead> Read for Content<'_, R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let amount = available.len().min(target.len());
        target[..amount].copy_from_slice(&available[..amount]);
        self.consume(amount);
        Ok(amount)
    }
}

impl Sparse {
    fn check(&self, content_bytes: u64) -> Result<()> {
        let mut end = 0;
        let mut sum = 0u64;
        for (offset, length) in &self.segments {
            if *offset < end || offset.checked_add(*length).is_none_or(|end| end > self.file_bytes) {
                bail!("the map of a sparse file is wrong");
            }
            end = offset + length;
            sum += length;
        }
        if sum != content_bytes { bail!("the map of a sparse file does not fit its content") } else { Ok(()) }
    }
}

impl Extensions {
    /// Applies records of the form `LENGTH KEY=VALUE\n`, pax(1). Values may hold any byte.
    fn apply(&mut self, records: &[u8]) -> Result<()> {
        let mut rest = records;
        while !rest.is_empty() {
            let space = rest.iter().position(|b| *b == b' ').context("a PAX record without its length")?;
            let length = decimal(&rest[..space])?;
            let record =
                usize::try_from(length).ok().and_then(|length| rest.get(space + 1..length)).context("a PAX record that ends early")?;
            let record = record.strip_suffix(b"\n").context("a PAX record without its end")?;
            rest = &rest[length as usize..];
            let equals = record.iter().position(|b| *b == b'=').context("a PAX record without a value")?;
            self.set(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link_path = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(seconds(value)?),
            b"GNU.sparse.major" => {
                self.sparse_major = Some(decimal(value)?);
                self.is_sparse = true;
            }
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse_bytes = Some(decimal(value)?);
                self.is_sparse = true;
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse_numbers.push(decimal(value)?),
            b"GNU.sparse.map" => {
                self.sparse_numbers = value.split(|b| *b == b',').filter(|n| !n.is_empty()).map(decimal).collect::<Result<_>>()?
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    let name = CString::new(name).context("an extended attribute's name")?;
                    self.xattrs.retain(|(other, _)| *other != name);
                    self.xattrs.push((name, value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>> {
    if !numbers.len().is_multiple_of(2) || numbers.len() / 2 > SEGMENTS_MAX {
        bail!("the map of a sparse file is wrong");
    }
    Ok(numbers.chunks(2).map(|pair| (pair[0], pair[1])).collect())
}

/// Name and, in POSIX archives, the prefix before it. GNU uses the place of the prefix for times.
fn header_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = text(&header[..100]);
    let prefix = if &header[257..263] == b"ustar\0" { text(&header[345..500]) } else { b"" };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// A numeric header field: octal digits between blanks, or base 256 in two's complement when the first bit is set.
fn number(field: &[u8]) -> Result<i64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let start = if negative { -1 } else { 0 };
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let mut value: i128 = start << 8 | i128::from(first);
        for byte in &field[1..] {
            value = value << 8 | i128::from(*byte);
        }
        return i64::try_from(value).context("a number in a tar header is too large");
    }
    let mut value: i64 = 0;
    for byte in field.iter().skip_while(|b| **b == b' ').take_while(|b| **b != b' ' && **b != 0) {
        if !(b'0'..=b'7').contains(byte) {
            bail!("a number in a tar header is not octal");
        }
        value =
            value.checked_mul(8).and_then(|v| v.checked_add(i64::from(byte - b'0'))).context("a number in a tar header is too large")?;
    }
    Ok(value)
}

fn decimal(text: &[u8]) -> Result<u64> {
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|text| text.parse().ok()).with_context(|| format!("{:?} is no number", String::from_utf8_lossy(text)))
}

/// Seconds with a fraction, possibly before 1970.
fn seconds(text: &[u8]) -> Result<(i64, u32)> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.iter().position(|b| *b == b'.').map_or((text, &b""[..]), |at| (&text[..at], &text[at + 1..]));
    let whole = i64::try_from(decimal(whole)?).context("a time is too large")?;
    let mut nanos = 0;
    for place in 0..9 {
        let digit = fraction.get(place).map_or(0, |b| b.wrapping_sub(b'0'));
        if digit > 9 {
            bail!("a time is no number");
        }
        nanos = nanos * 10 + u32::from(digit);
    }
    Ok(match (negative, nanos) {
        (false, _) => (whole, nanos),
        (true, 0) => (-whole, 0),
        (true, _) => (-whole - 1, 1_000_000_000 - nanos),
    })
}

fn positive(value: i64) -> Result<u64> {
    u64::try_from(value).context("a number in a tar header is negative")
}

/// Owners and device numbers. The highest means "leave as it is" to chown(2).
fn id(value: i64) -> Result<u32> {
    u32::try_from(value).ok().filter(|id| *id != u32::MAX).with_context(|| format!("{value} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
        let mut archive = Archive::new(bytes, None);
        let mut all = Vec::new();
        while let Some(entry) = archive.next()? {
            let mut content = Vec::new();
            archive.content(entry.size, &mut |piece| {
                content.extend_from_slice(piece);
                Ok(())
            })?;
            all.push((entry, content));
        }
        Ok(all)
    }

    fn header(path: &str, kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_path(path).unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o4755);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_700_000_000);
        header.set_cksum();
        header
    }

    fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        let mut bytes = header("pax", tar::EntryType::XHeader, body.len() as u64).as_bytes().to_vec();
        body.resize(body.len().next_multiple_of(512), 0);
        bytes.extend_from_slice(&body);
        bytes
    }

    #[test]
    fn plain_entries_give_names_owners_modes_and_content() {
        let mut bytes = header("a/b", tar::EntryType::Regular, 3).as_bytes().to_vec();
        bytes.extend_from_slice(b"abc");
        bytes.resize(1024, 0);
        bytes.extend_from_slice(&[0; 1024]);
        let all = entries(&bytes).unwrap();
        let (entry, content) = &all[0];
        assert_eq!((entry.path.as_slice(), &entry.kind, content.as_slice()), (&b"a/b"[..], &Kind::File, &b"abc"[..]));
        assert_eq!((entry.mode, entry.uid, entry.gid, entry.mtime), (0o4755, 7, 8, (1_700_000_000, 0)));
        assert_eq!(all.len(), 1);
    }

    #[test]
    fn pax_records_win_and_may_hold_line_ends() {
        let long = "x/".repeat(200) + "end";
        let mut bytes = pax(&[
            ("path", long.as_bytes()),
            ("mtime", b"-1.25"),
            ("uid", b"3000000"),
            ("SCHILY.xattr.security.capability", b"\x01\x00\n2 =\n\xff"),
        ]);
        bytes.extend_from_slice(header("short", tar::EntryType::Regular, 0).as_bytes());
        let (entry, _) = &entries(&bytes).unwrap()[0];
        assert_eq!(entry.path, long.as_bytes());
        assert_eq!(entry.mtime, (-2, 750_000_000));
        assert_eq!(entry.uid, 3_000_000);
        assert_eq!(entry.xattrs, [(c"security.capability".to_owned(), b"\x01\x00\n2 =\n\xff".to_vec())]);
    }

    #[test]
    fn gnu_long_names_and_large_numbers_are_read() {
        let long = "d/".repeat(100) + "name";
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        header.set_uid(1 << 30);
        header.set_mode(0o644);
        builder.append_data(&mut header, &long, &b"hi"[..]).unwrap();
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        builder.append_link(&mut link, "link", &long).unwrap();
        let all = entries(&builder.into_inner().unwrap()).unwrap();
        assert_eq!((all[0].0.path.as_slice(), all[0].0.uid), (long.as_bytes(), 1 << 30));
        assert_eq!(all[1].0.kind, Kind::Symlink(long.into_bytes()));
    }

    #[test]
    fn sparse_maps_of_all_three_pax_forms_are_read() {
        let expected = Sparse { segments: vec![(0, 2), (4096, 3)], file_bytes: 10_000 };
        let data = |bytes: &mut Vec<u8>, content: &[u8]| {
            bytes.extend_from_slice(header("f", tar::EntryType::Regular, content.len() as u64).as_bytes());
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        };
        let mut first = pax(&[
            ("GNU.sparse.size", b"10000"),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"2"),
            ("GNU.sparse.offset", b"4096"),
            ("GNU.sparse.numbytes", b"3"),
        ]);
        data(&mut first, b"abcde");
        let mut second = pax(&[("GNU.sparse.size", b"10000"), ("GNU.sparse.map", b"0,2,4096,3"), ("GNU.sparse.name", b"g")]);
        data(&mut second, b"abcde");
        let mut third = pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"10000")]);
        let mut content = b"2\n0\n2\n4096\n3\n".to_vec();
        content.resize(512, 0);
        content.extend_from_slice(b"abcde");
        data(&mut third, &content);
        for bytes in [first, second, third] {
            let (entry, content) = &entries(&bytes).unwrap()[0];
            assert_eq!((entry.sparse.as_ref(), content.as_slice()), (Some(&expected), &b"abcde"[..]));
        }
    }

    #[test]
    fn an_archive_may_end_without_the_padding_of_its_last_file() {
        for end in 0..=512 {
            let mut bytes = header("f", tar::EntryType::Regular, 3).as_bytes().to_vec();
            bytes.extend_from_slice(b"abc");
            bytes.resize(515 + end, 0);
            // Beyond the padding, half a header is no end.
            assert_eq!(entries(&bytes).is_ok(), end <= 509, "{end}");
        }
    }

    #[test]
    fn damaged_archives_are_refused() {
        let check = |bytes: &[u8], expected: &str| {
            let error = format!("{:#}", entries(bytes).unwrap_err());
            assert!(error.contains(expected), "{error}");
        };
        check(&[1; 512], "tar header");
        check(&[b'0'; 100], "ends early");
        check(&header("f", tar::EntryType::Regular, 1000).as_bytes()[..], "middle of a file");
        check(header("f", tar::EntryType::XHeader, 1 << 40).as_bytes(), "extension header");
        check(header("f", tar::EntryType::new(b'M'), 0).as_bytes(), "not supported");
        let mut bad = pax(&[("GNU.sparse.size", b"5"), ("GNU.sparse.map", b"0,9")]);
        bad.extend_from_slice(header("f", tar::EntryType::Regular, 9).as_bytes());
        check(&bad, "map of a sparse file");
        let mut bad = header("f", tar::EntryType::XHeader, 4).as_bytes().to_vec();
        bad.extend_from_slice(b"9 a=");
        bad.resize(1024, 0);
        check(&bad, "PAX record");
    }
}
