//! Reading back what a table holds: which rules, by their comments, and which elements. It reads no expression: a rule
//! says by its comment what it is.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};

use super::attribute::{self, Writer};
use super::{Connection, Element, FAMILY, SUBSYSTEM, Set, expression, header};

/// A list that changed while it was read is read again, this many times.
const READS_MAX: usize = 10;

/// A table as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Comments of the rules in their order, by chain; a rule without one has an empty comment.
    pub rules: BTreeMap<String, Vec<String>>,
    /// By the set's name.
    pub elements: BTreeMap<String, BTreeSet<Element>>,
}

/// What the table and these sets of it hold; `None` if one of them is missing.
pub fn observe(connection: &Connection, table: &str, sets: &[Set]) -> io::Result<Option<Observed>> {
    let mut observed = Observed { rules: rules(connection, table)?, elements: BTreeMap::new() };
    for set in sets {
        match elements(connection, table, set.name) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            other => observed.elements.insert(set.name.to_owned(), other?),
        };
    }
    Ok(Some(observed))
}

/// The number of the ruleset as it is now; each transaction of whomever makes the next one.
pub fn generation(connection: &Connection) -> io::Result<u32> {
    let request = header(SUBSYSTEM << 8 | libc::NFT_MSG_GETGEN as u16, NLM_F_REQUEST, 0, FAMILY, 0);
    connection.send(&request)?;
    let answer = connection.receive()?;
    for message in messages(&answer) {
        if let Some(code) = message.error()? {
            return Err(io::Error::from_raw_os_error(code));
        }
        if let Some(id) = attribute::find(message.body, attribute::GENERATION_ID) {
            return id.try_into().map(u32::from_be_bytes).map_err(io::Error::other);
        }
    }
    Err(io::Error::other("the kernel's answer has no generation"))
}

fn rules(connection: &Connection, table: &str) -> io::Result<BTreeMap<String, Vec<String>>> {
    let mut rules = BTreeMap::<String, Vec<String>>::new();
    let answer = dump(connection, libc::NFT_MSG_GETRULE, |at| at.string(attribute::RULE_TABLE, table))?;
    for message in messages(&answer) {
        // Kernels before 5.16 pay no heed to the table that was asked for.
        if attribute::find(message.body, attribute::RULE_TABLE).map(attribute::text).as_deref() != Some(table) {
            continue;
        }
        let chain = attribute::find(message.body, attribute::RULE_CHAIN).map(attribute::text).unwrap_or_default();
        let comment = attribute::find(message.body, attribute::RULE_USERDATA).and_then(attribute::comment_of);
        rules.entry(chain).or_default().push(comment.unwrap_or_default());
    }
    Ok(rules)
}

fn elements(connection: &Connection, table: &str, set: &str) -> io::Result<BTreeSet<Element>> {
    let answer = dump(connection, libc::NFT_MSG_GETSETELEM, |at| {
        at.string(attribute::ELEMENTS_TABLE, table);
        at.string(attribute::ELEMENTS_SET, set);
    })?;
    let part = |element, number| {
        let data = attribute::find(element, number)?;
        match attribute::find(data, attribute::DATA_VERDICT) {
            Some(verdict) => expression::chain_of(verdict).map(String::into_bytes),
            None => attribute::find(data, attribute::DATA_VALUE).map(<[u8]>::to_vec),
        }
    };
    let mut elements = BTreeSet::new();
    for message in messages(&answer) {
        let list = attribute::find(message.body, attribute::ELEMENTS_LIST).unwrap_or_default();
        for (_, element) in attribute::read(list) {
            let value = part(element, attribute::ELEMENT_DATA).unwrap_or_default();
            let end = part(element, attribute::ELEMENT_KEY_END).unwrap_or_default();
            elements.extend(part(element, attribute::ELEMENT_KEY).map(|key| Element { key: [key, end].concat(), value }));
        }
    }
    Ok(elements)
}

/// All answers to a request for a list, in one piece.
fn dump(connection: &Connection, message: libc::c_int, write: impl Fn(&mut Writer)) -> io::Result<Vec<u8>> {
    let mut request = header(SUBSYSTEM << 8 | message as u16, NLM_F_REQUEST | NLM_F_DUMP, 0, FAMILY, 0).to_vec();
    write(&mut Writer(&mut request));
    let length = (request.len() as u32).to_ne_bytes();
    request[..4].copy_from_slice(&length);
    for _ in 0..READS_MAX {
        if let Some(answers) = dump_once(connection, &request)? {
            return Ok(answers);
        }
    }
    Err(io::Error::other("the list changes faster than it can be read"))
}

/// `None` if the list changed meanwhile. Reads to the end also then: what follows belongs to the next request.
fn dump_once(connection: &Connection, request: &[u8]) -> io::Result<Option<Vec<u8>>> {
    connection.send(request)?;
    let mut answers = Vec::new();
    let mut is_whole = true;
    loop {
        let answer = connection.receive()?;
        for message in messages(&answer) {
            is_whole &= message.flags & NLM_F_DUMP_INTR == 0;
            match message.error()? {
                Some(libc::EINTR) => is_whole = false,
                Some(code) if code != 0 => return Err(io::Error::from_raw_os_error(code)),
                _ => {}
            }
            if message.kind == libc::NLMSG_DONE as u16 {
                return Ok(is_whole.then_some(answers));
            }
        }
        answers.extend_from_slice(&answer);
        answers.resize(answers.len().next_multiple_of(4), 0);
    }
}

/// One message of an answer; `body` is what stands behind nfnetlink's header.
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    whole: &'a [u8],
    pub body: &'a [u8],
}

impl Message<'_> {
    /// The error number in it, 0 for an acknowledgement; `None` if the message is neither.
    pub fn error(&self) -> io::Result<Option<i32>> {
        let has_code = self.kind == libc::NLMSG_ERROR as u16 || self.kind == libc::NLMSG_DONE as u16;
        if !has_code {
            return Ok(None);
        }
        let code = self.whole.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
        code.map(|code| Some(-code)).ok_or_else(|| io::Error::other("the kernel's answer is too short"))
    }
}

/// The messages in `bytes`; ends at the first that is malformed.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let whole = bytes.get(..length).filter(|whole| whole.len() >= 16)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes(whole[4..6].try_into().ok()?),
            flags: u16::from_ne_bytes(whole[6..8].try_into().ok()?),
            sequence: u32::from_ne_bytes(whole[8..12].try_into().ok()?),
            whole,
            body: whole.get(20..).unwrap_or_default(),
        })
    })
}
