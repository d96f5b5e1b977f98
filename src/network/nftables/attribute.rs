//! Netlink attributes as nf_tables has them: their numbers, writing them, and reading them back.
//! It knows lengths and padding only; what an attribute means is its caller's affair.

// linux/netfilter/nf_tables.h: enum nft_*_attributes.
pub const LIST_ELEMENT: u16 = 1;
pub const TABLE_NAME: u16 = 1;
pub const CHAIN_TABLE: u16 = 1;
pub const CHAIN_NAME: u16 = 3;
pub const CHAIN_HOOK: u16 = 4;
pub const CHAIN_TYPE: u16 = 7;
pub const HOOK_NUMBER: u16 = 1;
pub const HOOK_PRIORITY: u16 = 2;
pub const RULE_TABLE: u16 = 1;
pub const RULE_CHAIN: u16 = 2;
pub const RULE_EXPRESSIONS: u16 = 4;
pub const RULE_USERDATA: u16 = 7;
pub const EXPRESSION_NAME: u16 = 1;
pub const EXPRESSION_DATA: u16 = 2;
pub const SET_TABLE: u16 = 1;
pub const SET_NAME: u16 = 2;
pub const SET_FLAGS: u16 = 3;
pub const SET_KEY_TYPE: u16 = 4;
pub const SET_KEY_BYTES: u16 = 5;
pub const SET_DATA_TYPE: u16 = 6;
pub const SET_DATA_BYTES: u16 = 7;
pub const SET_DESCRIPTION: u16 = 9;
pub const DESCRIPTION_CONCATENATION: u16 = 2;
pub const FIELD_BYTES: u16 = 1;
pub const SET_ID: u16 = 10;
pub const ELEMENTS_TABLE: u16 = 1;
pub const ELEMENTS_SET: u16 = 2;
pub const ELEMENTS_LIST: u16 = 3;
pub const ELEMENT_KEY: u16 = 1;
pub const ELEMENT_DATA: u16 = 2;
pub const ELEMENT_KEY_END: u16 = 10;
pub const DATA_VALUE: u16 = 1;
pub const DATA_VERDICT: u16 = 2;
pub const GENERATION_ID: u16 = 1;
pub const BATCH_GENERATION: u16 = libc::NFNL_BATCH_GENID as u16;

/// The flag of an attribute that holds attributes; the bits that are no part of its number.
const NESTED: u16 = 1 << 15;
const NUMBER_MASK: u16 = !(3 << 14);

/// libnftnl's mark of a rule's comment in its user data.
const USERDATA_COMMENT: u8 = 0;
/// Its length has eight bits and counts the zero behind it.
const COMMENT_BYTES_MAX: usize = 127;

/// Appends attributes to a message.
pub struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    pub fn bytes(&mut self, number: u16, value: &[u8]) {
        self.with(number, |buffer| buffer.extend_from_slice(value));
    }

    /// A number in network order, as nf_tables has all of its numbers.
    pub fn be32(&mut self, number: u16, value: u32) {
        self.bytes(number, &value.to_be_bytes());
    }

    /// A text with the zero that ends it.
    pub fn string(&mut self, number: u16, value: &str) {
        self.with(number, |buffer| {
            buffer.extend_from_slice(value.as_bytes());
            buffer.push(0);
        });
    }

    pub fn nested(&mut self, number: u16, write: impl FnOnce(&mut Writer)) {
        self.with(number | NESTED, |buffer| write(&mut Writer(buffer)));
    }

    /// Attributes as they were read.
    pub fn raw(&mut self, attributes: &[u8]) {
        self.0.extend_from_slice(attributes);
    }

    fn with(&mut self, number: u16, write: impl FnOnce(&mut Vec<u8>)) {
        let begin = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        write(self.0);
        let length = u16::try_from(self.0.len() - begin).expect("an attribute is kept below 64 KB by ELEMENTS_PER_MESSAGE");
        self.0[begin..begin + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[begin + 2..begin + 4].copy_from_slice(&number.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// The attributes in `bytes`, each with its number; ends at the first that is malformed.
pub fn read(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) as usize;
        let number = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & NUMBER_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((number, value))
    })
}

/// The first attribute of that number.
pub fn find(bytes: &[u8], number: u16) -> Option<&[u8]> {
    read(bytes).find(|(found, _)| *found == number).map(|(_, value)| value)
}

/// A text without the zero that ends it.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// A rule's user data that holds a comment, which is cut at its maximum.
pub fn comment(text: &str) -> Vec<u8> {
    let text = &text.as_bytes()[..text.len().min(COMMENT_BYTES_MAX)];
    [&[USERDATA_COMMENT, text.len() as u8 + 1], text, &[0]].concat()
}

/// The comment in a rule's user data.
pub fn comment_of(userdata: &[u8]) -> Option<String> {
    let [USERDATA_COMMENT, length, rest @ ..] = userdata else { return None };
    Some(text(rest.get(..*length as usize)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_back_what_they_write() {
        let mut bytes = Vec::new();
        let mut at = Writer(&mut bytes);
        at.string(3, "edgectl");
        at.nested(4, |at| at.be32(1, 7));
        at.bytes(5, &[1]);
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(text(find(&bytes, 3).unwrap()), "edgectl");
        assert_eq!(find(find(&bytes, 4).unwrap(), 1), Some(7_u32.to_be_bytes().as_slice()));
        assert_eq!(read(&bytes).map(|(number, _)| number).collect::<Vec<_>>(), [3, 4, 5]);
    }

    #[test]
    fn malformed_attributes_end_the_reading() {
        for bytes in [&[][..], &[8, 0], &[9, 0, 1, 0, 1, 1, 1, 1], &[3, 0, 1, 0]] {
            assert_eq!(read(bytes).count(), 0, "{bytes:?}");
        }
    }

    #[test]
    fn a_comment_is_what_it_was_or_is_cut() {
        assert_eq!(comment_of(&comment("pods leave")).as_deref(), Some("pods leave"));
        assert_eq!(comment_of(&comment(&"x".repeat(300))).map(|text| text.len()), Some(COMMENT_BYTES_MAX));
        assert_eq!(comment_of(&[1, 2, 0]), None);
    }
}
