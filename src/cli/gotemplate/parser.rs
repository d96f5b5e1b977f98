//! Words of a template become bodies of steps. It never looks at an object. Its errors are those of Go, which tell the line alone.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter, Result as Shown};

use anyhow::{Result, bail};

use super::lexer::{Item, What, lex};
use super::value::Val;
use super::{DEPTH_MAX, NAME, functions, print};

#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Text(String),
    Action(Pipe),
    If { pipe: Pipe, then: Vec<Step>, otherwise: Vec<Step> },
    With { pipe: Pipe, then: Vec<Step>, otherwise: Vec<Step> },
    Range { pipe: Pipe, then: Vec<Step>, otherwise: Vec<Step> },
    Template { pos: usize, name: String, pipe: Option<Pipe> },
    Break,
    Continue,
}

/// `$a, $b := one | two`
#[derive(Debug, Clone, PartialEq)]
pub struct Pipe {
    pub pos: usize,
    pub declares: Vec<String>,
    /// The variables are there already.
    pub assigns: bool,
    pub commands: Vec<Command>,
}

/// A function or a value, and arguments.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    pub pos: usize,
    pub words: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where Go says that it is, which is not always where it begins.
    pub pos: usize,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Dot,
    Nil,
    /// A number, a text or a boolean, and how it was written.
    Literal(Val<'static>, String),
    Field(Vec<String>),
    Variable(String, Vec<String>),
    /// Fields behind a parenthesis or a function.
    Chain(Box<Node>, Vec<String>),
    Function(String),
    Pipe(Pipe),
}

impl Display for Pipe {
    fn fmt(&self, f: &mut Formatter<'_>) -> Shown {
        if !self.declares.is_empty() {
            write!(f, "{} {} ", self.declares.join(", "), if self.assigns { "=" } else { ":=" })?;
        }
        for (index, command) in self.commands.iter().enumerate() {
            write!(f, "{}{command}", if index > 0 { " | " } else { "" })?;
        }
        Ok(())
    }
}

impl Display for Command {
    fn fmt(&self, f: &mut Formatter<'_>) -> Shown {
        for (index, word) in self.words.iter().enumerate() {
            let space = if index > 0 { " " } else { "" };
            match &word.kind {
                Kind::Pipe(_) => write!(f, "{space}({word})")?,
                _ => write!(f, "{space}{word}")?,
            }
        }
        Ok(())
    }
}

impl Display for Node {
    fn fmt(&self, f: &mut Formatter<'_>) -> Shown {
        let fields = |f: &mut Formatter<'_>, fields: &[String]| fields.iter().try_for_each(|field| write!(f, ".{field}"));
        match &self.kind {
            Kind::Dot => f.write_str("."),
            Kind::Nil => f.write_str("nil"),
            Kind::Literal(_, text) | Kind::Function(text) => f.write_str(text),
            Kind::Field(names) => fields(f, names),
            Kind::Variable(name, names) => {
                f.write_str(name)?;
                fields(f, names)
            }
            Kind::Chain(node, names) => {
                match &node.kind {
                    Kind::Pipe(_) => write!(f, "({node})")?,
                    _ => write!(f, "{node}")?,
                }
                fields(f, names)
            }
            Kind::Pipe(pipe) => write!(f, "{pipe}"),
        }
    }
}

/// The bodies of a template and of those that it defines, by name.
pub fn parse(source: &str) -> Result<BTreeMap<String, Vec<Step>>> {
    let mut parser = Parser {
        items: lex(source),
        at: 0,
        read: 0,
        bodies: BTreeMap::new(),
        variables: vec!["$".to_owned()],
        ranges: 0,
        depth: 0,
        action_line: 0,
    };
    let mut body = vec![];
    while parser.peek().what != What::Eof {
        if parser.at_definition() {
            parser.definition()?;
            continue;
        }
        match parser.step()? {
            Part::Step(step) => body.push(step),
            other => return parser.fail(format!("unexpected {other}")),
        }
    }
    parser.add(NAME.to_owned(), body)?;
    Ok(parser.bodies)
}

/// What an action is: a step, or the end of a body.
enum Part {
    Step(Step),
    Else,
    End,
}

impl Display for Part {
    fn fmt(&self, f: &mut Formatter<'_>) -> Shown {
        f.write_str(if matches!(self, Self::Else) { "{{else}}" } else { "{{end}}" })
    }
}

struct Parser {
    items: Vec<Item>,
    at: usize,
    /// The last word that was looked at, whose line errors tell.
    read: usize,
    bodies: BTreeMap<String, Vec<Step>>,
    variables: Vec<String>,
    /// How many ranges of this body are open.
    ranges: usize,
    depth: usize,
    action_line: usize,
}

impl Parser {
    fn peek(&mut self) -> Item {
        let at = self.at.min(self.items.len() - 1);
        self.read = self.read.max(at);
        self.items[at].clone()
    }

    fn next(&mut self) -> Item {
        let item = self.peek();
        self.at += 1;
        item
    }

    fn peek_word(&mut self) -> Item {
        while self.peek().what == What::Space {
            self.at += 1;
        }
        self.peek()
    }

    fn next_word(&mut self) -> Item {
        self.peek_word();
        self.next()
    }

    fn fail<T>(&self, message: impl Display) -> Result<T> {
        bail!("template: {NAME}:{}: {message}", self.items[self.read].line)
    }

    fn unexpected<T>(&self, item: &Item, context: &str) -> Result<T> {
        let text = match item.what {
            What::Error => {
                let mut started = String::new();
                if self.action_line != 0 && self.action_line != item.line {
                    let within = if item.text.ends_with(" action") { "" } else { " in action" };
                    started = format!("{within} started at {NAME}:{}", self.action_line);
                }
                return self.fail(format!("{}{started}", item.text));
            }
            What::Eof => "EOF".to_owned(),
            What::Keyword => format!("<{}>", item.text),
            _ if item.text.len() > 10 => {
                let short: String = item.text.chars().take(10).collect();
                format!("{}...", print::quoted(short.as_bytes()))
            }
            _ => print::quoted(item.text.as_bytes()),
        };
        self.fail(format!("unexpected {text} in {context}"))
    }

    fn expect(&mut self, what: What, context: &str) -> Result<()> {
        let item = self.next_word();
        if item.what == what { Ok(()) } else { self.unexpected(&item, context) }
    }

    fn add(&mut self, name: String, body: Vec<Step>) -> Result<()> {
        let is_empty = |body: &[Step]| body.iter().all(|step| matches!(step, Step::Text(text) if text.trim().is_empty()));
        if self.bodies.get(&name).is_none_or(|known| is_empty(known)) {
            self.bodies.insert(name, body);
        } else if !is_empty(&body) {
            return self.fail(format!("template: multiple definition of template {}", print::quoted(name.as_bytes())));
        }
        Ok(())
    }

    /// Whether `{{define` comes; if so, it is passed.
    fn at_definition(&mut self) -> bool {
        let before = self.at;
        let comes = self.next().what == What::LeftDelim && {
            let word = self.next_word();
            word.what == What::Keyword && word.text == "define"
        };
        if !comes {
            self.at = before;
        }
        comes
    }

    fn definition(&mut self) -> Result<()> {
        let name = self.name("define clause")?;
        self.expect(What::RightDelim, "define clause")?;
        self.own_body(name, "define clause")
    }

    /// The body of a template of its own, which sees no variables and no ranges around it.
    fn own_body(&mut self, name: String, context: &str) -> Result<()> {
        let outside = (std::mem::replace(&mut self.variables, vec!["$".to_owned()]), self.ranges, self.action_line);
        (self.ranges, self.action_line) = (0, 0);
        let (body, end) = self.body()?;
        if !matches!(end, Part::End) {
            return self.fail(format!("unexpected {end} in {context}"));
        }
        self.add(name, body)?;
        (self.variables, self.ranges, self.action_line) = outside;
        Ok(())
    }

    fn name(&mut self, context: &str) -> Result<String> {
        let item = self.next_word();
        if !matches!(item.what, What::String | What::RawString) {
            return self.unexpected(&item, context);
        }
        let text = self.unquote(&item)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Steps up to `{{end}}` or `{{else}}`.
    fn body(&mut self) -> Result<(Vec<Step>, Part)> {
        let mut steps = vec![];
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.fail("the template nests too deep");
        }
        while self.peek_word().what != What::Eof {
            match self.step()? {
                Part::Step(step) => steps.push(step),
                end => {
                    self.depth -= 1;
                    return Ok((steps, end));
                }
            }
        }
        self.fail("unexpected EOF")
    }

    fn step(&mut self) -> Result<Part> {
        let item = self.next_word();
        match item.what {
            What::Text => Ok(Part::Step(Step::Text(item.text))),
            What::LeftDelim => {
                self.action_line = item.line;
                let part = self.action();
                self.action_line = 0;
                part
            }
            _ => self.unexpected(&item, "input"),
        }
    }

    fn action(&mut self) -> Result<Part> {
        let item = self.peek_word();
        let keyword = if item.what == What::Keyword { item.text.as_str() } else { "" };
        if !matches!(keyword, "" | "." | "nil" | "define") {
            self.at += 1;
        }
        Ok(Part::Step(match keyword {
            "break" | "continue" => {
                let end = self.next_word();
                if end.what != What::RightDelim {
                    return self.unexpected(&end, &format!("{{{{{keyword}}}}}"));
                }
                if self.ranges == 0 {
                    return self.fail(format!("{{{{{keyword}}}}} outside {{{{range}}}}"));
                }
                if keyword == "break" { Step::Break } else { Step::Continue }
            }
            "else" => {
                // `{{else if` is `{{else}}{{if`: the word stays.
                let next = self.peek_word();
                if !(next.what == What::Keyword && matches!(next.text.as_str(), "if" | "with")) {
                    self.expect(What::RightDelim, "else")?;
                }
                return Ok(Part::Else);
            }
            "end" => {
                self.expect(What::RightDelim, "end")?;
                return Ok(Part::End);
            }
            "if" | "with" | "range" => self.control(keyword)?,
            "block" => {
                let pos = self.peek_word().pos;
                let name = self.name("block clause")?;
                let pipe = self.pipeline("block clause", What::RightDelim)?;
                self.own_body(name.clone(), "block clause")?;
                Step::Template { pos, name, pipe: Some(pipe) }
            }
            "template" => {
                let pos = self.peek_word().pos;
                let name = self.name("template clause")?;
                let pipe = match self.peek_word().what {
                    What::RightDelim => {
                        self.at += 1;
                        None
                    }
                    _ => Some(self.pipeline("template clause", What::RightDelim)?),
                };
                Step::Template { pos, name, pipe }
            }
            _ => Step::Action(self.pipeline("command", What::RightDelim)?),
        }))
    }

    fn control(&mut self, keyword: &str) -> Result<Step> {
        let known = self.variables.len();
        let pipe = self.pipeline(keyword, What::RightDelim)?;
        let range = usize::from(keyword == "range");
        self.ranges += range;
        let (then, end) = self.body()?;
        self.ranges -= range;
        let mut otherwise = vec![];
        if matches!(end, Part::Else) {
            let next = self.peek();
            if next.what == What::Keyword && next.text == keyword && matches!(keyword, "if" | "with") {
                self.at += 1;
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return self.fail("the template nests too deep");
                }
                otherwise.push(self.control(keyword)?);
                self.depth -= 1;
            } else {
                let (body, end) = self.body()?;
                if !matches!(end, Part::End) {
                    return self.fail(format!("expected end; found {end}"));
                }
                otherwise = body;
            }
        }
        self.variables.truncate(known);
        Ok(match keyword {
            "if" => Step::If { pipe, then, otherwise },
            "with" => Step::With { pipe, then, otherwise },
            _ => Step::Range { pipe, then, otherwise },
        })
    }

    fn pipeline(&mut self, context: &str, end: What) -> Result<Pipe> {
        let mut pipe = Pipe { pos: self.peek_word().pos, declares: vec![], assigns: false, commands: vec![] };
        loop {
            let variable = self.peek_word();
            if variable.what != What::Variable {
                break;
            }
            let before = self.at;
            self.at += 1;
            let next = self.peek_word();
            let declares = matches!(next.what, What::Assign | What::Declare);
            if !(declares || next.what == What::Char && next.text == ",") {
                // It is an argument.
                self.at = before;
                break;
            }
            self.at += 1;
            pipe.assigns = next.what == What::Assign;
            pipe.declares.push(variable.text.clone());
            self.variables.push(variable.text);
            if declares {
                break;
            }
            if context != "range" || pipe.declares.len() > 1 {
                return self.fail(format!("too many declarations in {context}"));
            }
            if !matches!(self.peek_word().what, What::Variable | What::RightDelim | What::RightParen) {
                return self.fail("range can only initialize variables");
            }
        }
        loop {
            let item = self.next_word();
            match item.what {
                what if what == end => break,
                What::Keyword if !matches!(item.text.as_str(), "." | "nil") => return self.unexpected(&item, context),
                What::Bool
                | What::CharConstant
                | What::Field
                | What::Identifier
                | What::Number
                | What::Keyword
                | What::RawString
                | What::String
                | What::Variable
                | What::LeftParen => {
                    self.at -= 1;
                    let command = self.command()?;
                    pipe.commands.push(command);
                }
                _ => return self.unexpected(&item, context),
            }
        }
        if pipe.commands.is_empty() {
            return self.fail(format!("missing value for {context}"));
        }
        for (index, command) in pipe.commands.iter().enumerate().skip(1) {
            if matches!(command.words[0].kind, Kind::Dot | Kind::Nil | Kind::Literal(..)) {
                return self.fail(format!("non executable command in pipeline stage {}", index + 1));
            }
        }
        Ok(pipe)
    }

    fn command(&mut self) -> Result<Command> {
        let mut command = Command { pos: self.peek_word().pos, words: vec![] };
        loop {
            self.peek_word();
            command.words.extend(self.operand()?);
            let item = self.next();
            match item.what {
                What::Space => continue,
                What::RightDelim | What::RightParen => self.at -= 1,
                What::Pipe => {}
                _ => return self.unexpected(&item, "operand"),
            }
            break;
        }
        if command.words.is_empty() {
            return self.fail("empty command");
        }
        Ok(command)
    }

    fn operand(&mut self) -> Result<Option<Node>> {
        let Some(node) = self.term()? else { return Ok(None) };
        let pos = self.peek().pos;
        let mut fields = vec![];
        while self.peek().what == What::Field {
            fields.push(self.next().text[1..].to_owned());
        }
        if fields.is_empty() {
            return Ok(Some(node));
        }
        let kind = match node.kind {
            Kind::Field(names) => Kind::Field([names, fields].concat()),
            Kind::Variable(name, names) => Kind::Variable(name, [names, fields].concat()),
            Kind::Literal(..) | Kind::Nil | Kind::Dot => {
                return self.fail(format!("unexpected . after term {}", print::quoted(node.to_string().as_bytes())));
            }
            _ => Kind::Chain(Box::new(node), fields),
        };
        Ok(Some(Node { pos, kind }))
    }

    fn term(&mut self) -> Result<Option<Node>> {
        let item = self.next_word();
        let kind = match item.what {
            What::Identifier if functions::is_known(&item.text) => Kind::Function(item.text),
            What::Identifier => return self.fail(format!("function {} not defined", print::quoted(item.text.as_bytes()))),
            What::Keyword if item.text == "." => Kind::Dot,
            What::Keyword if item.text == "nil" => Kind::Nil,
            What::Variable if self.variables.contains(&item.text) => Kind::Variable(item.text, vec![]),
            What::Variable => return self.fail(format!("undefined variable {}", print::quoted(item.text.as_bytes()))),
            What::Field => Kind::Field(vec![item.text[1..].to_owned()]),
            What::Bool => Kind::Literal(Val::Bool(item.text == "true"), item.text),
            What::Number => match number(&item.text) {
                Ok(number) => Kind::Literal(number, item.text),
                Err(wrong) => return self.fail(format!("{wrong}: {}", print::quoted(item.text.as_bytes()))),
            },
            What::CharConstant => match unescaped(&item.text[1..item.text.len() - 1], '\'').map(String::from_utf8) {
                Some(Ok(text)) if text.chars().count() == 1 => {
                    Kind::Literal(Val::Int(text.chars().map(|c| i64::from(u32::from(c))).sum()), item.text)
                }
                Some(Ok(text)) if text.is_empty() => return self.fail("invalid syntax"),
                Some(_) => return self.fail(format!("malformed character constant: {}", item.text)),
                None => return self.fail("invalid syntax"),
            },
            What::String | What::RawString => {
                let text = self.unquote(&item)?;
                Kind::Literal(Val::Text(text.into()), item.text)
            }
            What::LeftParen => {
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return self.fail("max expression depth exceeded");
                }
                let pipe = self.pipeline("parenthesized pipeline", What::RightParen)?;
                self.depth -= 1;
                return Ok(Some(Node { pos: pipe.pos, kind: Kind::Pipe(pipe) }));
            }
            _ => {
                self.at -= 1;
                return Ok(None);
            }
        };
        Ok(Some(Node { pos: item.pos, kind }))
    }

    fn unquote(&self, item: &Item) -> Result<Vec<u8>> {
        let inner = &item.text[1..item.text.len() - 1];
        if item.what == What::RawString {
            return Ok(inner.replace('\r', "").into_bytes());
        }
        match unescaped(inner, '"') {
            Some(text) => Ok(text),
            None => self.fail("invalid syntax"),
        }
    }
}

/// What stands between quotes, its escapes undone.
fn unescaped(text: &str, quote: char) -> Option<Vec<u8>> {
    let mut out = vec![];
    let mut rest = text.chars();
    let mut coded = [0; 4];
    while let Some(c) = rest.next() {
        if c != '\\' {
            out.extend_from_slice(c.encode_utf8(&mut coded).as_bytes());
            continue;
        }
        let escape = rest.next()?;
        let mut digits = |count: usize, radix: u32| {
            let digits: String = rest.by_ref().take(count).collect();
            u32::from_str_radix(&digits, radix).ok().filter(|_| digits.len() == count && !digits.starts_with('+'))
        };
        match escape {
            'a' => out.push(7),
            'b' => out.push(8),
            'f' => out.push(12),
            'n' => out.push(b'\n'),
            'r' => out.push(b'\r'),
            't' => out.push(b'\t'),
            'v' => out.push(11),
            '\\' => out.push(b'\\'),
            c if c == quote => out.push(quote as u8),
            'x' => out.push(u8::try_from(digits(2, 16)?).ok()?),
            'u' => out.extend_from_slice(char::from_u32(digits(4, 16)?)?.encode_utf8(&mut coded).as_bytes()),
            'U' => out.extend_from_slice(char::from_u32(digits(8, 16)?)?.encode_utf8(&mut coded).as_bytes()),
            first @ '0'..='7' => {
                let value = (u32::from(first) - u32::from('0')) * 64 + digits(2, 8)?;
                out.push(u8::try_from(value).ok()?);
            }
            _ => return None,
        }
    }
    Some(out)
}

/// A number by Go's rules for constants.
fn number(text: &str) -> Result<Val<'static>, &'static str> {
    const WRONG: &str = "illegal number syntax";
    let (sign, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (if text.starts_with('-') { "-" } else { "" }, digits),
        None => ("", text),
    };
    let prefix = digits.get(..2).unwrap_or_default().to_lowercase();
    let (radix, digits) = match prefix.as_str() {
        "0x" => (16, &digits[2..]),
        "0o" => (8, &digits[2..]),
        "0b" => (2, &digits[2..]),
        _ if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'_')) => {
            (8, &digits[1..])
        }
        _ => (10, digits),
    };
    if text.contains("__") || digits.ends_with('_') || (radix == 10 && digits.starts_with('_')) {
        return Err(WRONG);
    }
    let digits = format!("{sign}{}", digits.replace('_', ""));
    if radix != 10 || !digits.contains(['.', 'e', 'E']) {
        return match i64::from_str_radix(&digits, radix) {
            Ok(whole) => Ok(Val::Int(whole)),
            Err(error) if matches!(error.kind(), std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow) => {
                Err("integer overflow")
            }
            Err(_) => Err(WRONG),
        };
    }
    digits.parse().map(Val::Float).map_err(|_| WRONG)
}
