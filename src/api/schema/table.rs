//! Reads table.bin, the embedded schema of every built-in kind, where it lies: no parsing at start, nothing on the heap.
//! A `Message`, `Field` or `Type` is a small index into it. It knows shapes only, never what a field is for.
//!
//! Layout, little endian, made by `generate`: magic, offsets of six sections and of the end, then
//! messages {name, package, first field: u16, fields, flags: u8}, fields {name, type, attribute: u16, protobuf number, flags: u8},
//! types {form, argument: u16}, attributes {list kind, patch strategy: u8, patch merge key, list map keys, flags: u16},
//! kinds {group, version, kind, message: u16} sorted by their names, and strings {length: u16, UTF-8}, which others name by offset / 2.

use std::ops::Range;

static TABLE: &[u8] = include_bytes!("table.bin");

const MESSAGES: usize = 0;
const FIELDS: usize = 1;
const TYPES: usize = 2;
const ATTRIBUTES: usize = 3;
const KINDS: usize = 4;
const STRINGS: usize = 5;

const REQUIRED: u8 = 1;
const INLINE: u8 = 2;
const OMIT_EMPTY: u8 = 4;
const POINTER: u8 = 8;
const OMIT_ZERO: u8 = 16;

/// A struct of the API, as `Container`. It is a number: copy it freely.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Message(u16);

/// A field of a `Message`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Field(u16);

/// What a value looks like in JSON and in protobuf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Type {
    Bool,
    Int32,
    Int64,
    Double,
    String,
    /// Base64 in JSON.
    Bytes,
    Quantity,
    Time,
    MicroTime,
    /// Go's duration text in JSON, as `1m30s`.
    Duration,
    IntOrString,
    /// Any JSON object: `RawExtension`.
    Raw,
    /// `FieldsV1`, any JSON object.
    Fields,
    /// Any JSON value at all.
    Json,
    SchemaOrArray,
    SchemaOrBool,
    SchemaOrStrings,
    Message(Message),
    List(&'static Elements),
    Map(&'static Elements),
    /// A list in JSON, in protobuf a message whose field 1 repeats.
    WrappedList(&'static Elements),
    /// A string out of a closed set.
    Enum(Values),
}

/// Names the type of a list's elements or a map's values: its four bytes in the table.
pub type Elements = [u8; 4];

/// The values of a closed set of strings.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Values(u16);

/// `+listType` of a field: who owns what when lists are merged by server-side apply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListKind {
    /// Nothing said: as a whole.
    Unset,
    Atomic,
    Set,
    Map,
}

/// `patchStrategy` of a field, for strategic merge patches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Strategy {
    pub merge: bool,
    pub replace: bool,
    pub retain_keys: bool,
}

impl Message {
    fn row(self) -> &'static [u8; 8] {
        row(MESSAGES, self.0)
    }

    /// `Container`.
    pub fn name(self) -> &'static str {
        string(u16_at(self.row(), 0))
    }

    /// `io.k8s.api.core.v1`, the prefix of its name in OpenAPI.
    pub fn package(self) -> &'static str {
        string(u16_at(self.row(), 2))
    }

    /// Its fields in the order of the Go source; those of `inline` messages are behind one field without a name of its own in JSON.
    pub fn fields(self) -> impl Iterator<Item = Field> {
        self.range().map(Field)
    }

    /// The field that JSON calls `name`, also when it belongs to an inline message.
    pub fn field(self, name: &str) -> Option<Field> {
        self.fields().find_map(|field| match field.inlined() {
            Some(inner) => inner.field(name),
            None => (field.name() == name).then_some(field),
        })
    }

    /// All fields as JSON has them, inline messages unfolded.
    pub fn json_fields(self) -> JsonFields {
        let mut levels = [const { 0..0 }; INLINE_DEPTH];
        levels[0] = self.range();
        JsonFields { levels, depth: 0 }
    }

    fn range(self) -> Range<u16> {
        let first = u16_at(self.row(), 4);
        first..first + self.row()[6] as u16
    }

    /// The field with this protobuf number.
    pub fn numbered(self, number: u32) -> Option<Field> {
        self.fields().find(|field| field.number() == number)
    }

    /// `+structType=atomic`: server-side apply owns it as a whole.
    pub fn is_atomic(self) -> bool {
        self.row()[7] & 1 != 0
    }

    /// `io.k8s.api.core.v1.Container`.
    pub fn openapi_name(self) -> String {
        format!("{}.{}", self.package(), self.name())
    }
}

/// Inline messages within each other, the outermost included; `NamedRuleWithOperations` has them all.
const INLINE_DEPTH: usize = 3;

/// Walks the fields of a message and of its inline messages.
pub struct JsonFields {
    levels: [Range<u16>; INLINE_DEPTH],
    depth: usize,
}

impl Iterator for JsonFields {
    type Item = Field;

    fn next(&mut self) -> Option<Field> {
        loop {
            let Some(index) = self.levels[self.depth].next() else {
                self.depth = self.depth.checked_sub(1)?;
                continue;
            };
            match Field(index).inlined() {
                Some(inner) => {
                    self.depth += 1;
                    self.levels[self.depth] = inner.range();
                }
                None => return Some(Field(index)),
            }
        }
    }
}

impl Field {
    fn row(self) -> &'static [u8; 8] {
        row(FIELDS, self.0)
    }

    fn attribute(self) -> &'static [u8; 8] {
        row(ATTRIBUTES, u16_at(self.row(), 4))
    }

    fn flag(self, flag: u8) -> bool {
        self.row()[7] & flag != 0
    }

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        string(u16_at(self.row(), 0))
    }

    pub fn ty(self) -> Type {
        type_at(u16_at(self.row(), 2))
    }

    /// Protobuf field number, 0 if the field is not in protobuf.
    pub fn number(self) -> u32 {
        self.row()[6].into()
    }

    /// A client must give it.
    pub fn required(self) -> bool {
        self.flag(REQUIRED)
    }

    /// Go leaves it out when it is zero.
    pub fn omit_empty(self) -> bool {
        self.flag(OMIT_EMPTY)
    }

    /// Go leaves it out when it is a struct without a field set.
    pub fn omit_zero(self) -> bool {
        self.flag(OMIT_ZERO)
    }

    /// A pointer in Go: zero and absent are different.
    pub fn pointer(self) -> bool {
        self.flag(POINTER)
    }

    /// The message whose fields stand in the outer JSON object, if this is one.
    pub fn inlined(self) -> Option<Message> {
        match self.ty() {
            Type::Message(message) if self.flag(INLINE) => Some(message),
            _ => None,
        }
    }

    pub fn list_kind(self) -> ListKind {
        match self.attribute()[0] {
            1 => ListKind::Atomic,
            2 => ListKind::Set,
            3 => ListKind::Map,
            _ => ListKind::Unset,
        }
    }

    /// `+listMapKey`s of a list of kind `Map`.
    pub fn list_map_keys(self) -> impl Iterator<Item = &'static str> + Clone {
        string(u16_at(self.attribute(), 4)).split(',').filter(|key| !key.is_empty())
    }

    /// `+mapType=atomic` or `+structType=atomic` on the field or its type.
    pub fn is_atomic(self) -> bool {
        u16_at(self.attribute(), 6) & 1 != 0
    }

    pub fn strategy(self) -> Strategy {
        let bits = self.attribute()[1];
        Strategy { merge: bits & 1 != 0, replace: bits & 2 != 0, retain_keys: bits & 4 != 0 }
    }

    /// `patchMergeKey`.
    pub fn merge_key(self) -> Option<&'static str> {
        Some(string(u16_at(self.attribute(), 2))).filter(|key| !key.is_empty())
    }
}

impl Values {
    pub fn iter(self) -> impl Iterator<Item = &'static str> {
        string(self.0).split('\n')
    }
}

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.openapi_name())
    }
}

impl std::fmt::Debug for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a list holds or a map maps to.
pub fn element(of: &'static Elements) -> Type {
    read_type(of)
}

/// (group, version, kind, message) of row `index`; rows are sorted.
pub(super) fn kind_row(index: usize) -> Option<(&'static str, &'static str, &'static str, Message)> {
    if index >= kinds() {
        return None;
    }
    let row: &[u8; 8] = row(KINDS, index as u16);
    Some((string(u16_at(row, 0)), string(u16_at(row, 2)), string(u16_at(row, 4)), Message(u16_at(row, 6))))
}

/// Number of rows that `kind_row` has.
pub(super) fn kinds() -> usize {
    let (start, end) = section(KINDS);
    (end - start) / 8
}

fn type_at(index: u16) -> Type {
    read_type(row(TYPES, index))
}

fn read_type(row: &'static Elements) -> Type {
    let argument = u16_at(row, 2);
    match u16_at(row, 0) {
        0 => Type::Bool,
        1 => Type::Int32,
        2 => Type::Int64,
        3 => Type::Double,
        4 => Type::String,
        5 => Type::Bytes,
        6 => Type::Quantity,
        7 => Type::Time,
        8 => Type::MicroTime,
        9 => Type::Duration,
        10 => Type::IntOrString,
        11 => Type::Raw,
        12 => Type::Fields,
        13 => Type::Json,
        14 => Type::SchemaOrArray,
        15 => Type::SchemaOrBool,
        16 => Type::SchemaOrStrings,
        17 => Type::Message(Message(argument)),
        18 => Type::List(self::row(TYPES, argument)),
        19 => Type::Map(self::row(TYPES, argument)),
        20 => Type::WrappedList(self::row(TYPES, argument)),
        21 => Type::Enum(Values(argument)),
        form => panic!("table.bin has a type of form {form}; generate and table.rs disagree"),
    }
}

/// (start, end) of a section, in bytes.
fn section(index: usize) -> (usize, usize) {
    let offset = |at: usize| {
        let at = 8 + at * 4;
        u32::from_le_bytes([TABLE[at], TABLE[at + 1], TABLE[at + 2], TABLE[at + 3]]) as usize
    };
    (offset(index), offset(index + 1))
}

fn row<const N: usize>(table: usize, index: u16) -> &'static [u8; N] {
    let at = section(table).0 + index as usize * N;
    TABLE[at..at + N].try_into().expect("a slice of N bytes is an array of N")
}

fn u16_at<const N: usize>(row: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([row[at], row[at + 1]])
}

fn string(half_offset: u16) -> &'static str {
    let at = section(STRINGS).0 + half_offset as usize * 2;
    let length = u16::from_le_bytes([TABLE[at], TABLE[at + 1]]) as usize;
    std::str::from_utf8(&TABLE[at + 2..at + 2 + length]).expect("generate writes UTF-8 only")
}
