//! The words of a template. It knows no grammar: a mistake is the last word, told when the parser comes to it.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The text is what is wrong.
    Error,
    Bool,
    /// One character that means something to the parser, as the comma.
    Char,
    CharConstant,
    Assign,
    Declare,
    Eof,
    Field,
    Identifier,
    LeftDelim,
    LeftParen,
    Number,
    Pipe,
    RawString,
    RightDelim,
    RightParen,
    Space,
    String,
    Text,
    Variable,
    Keyword,
}

#[derive(Debug, Clone)]
pub struct Item {
    pub what: What,
    /// In bytes, from the start of the template.
    pub pos: usize,
    pub text: String,
    pub line: usize,
}

const KEYWORDS: &[&str] = &["block", "break", "continue", "define", "else", "end", "if", "nil", "range", "template", "with"];

const SPACES: [char; 4] = [' ', '\t', '\r', '\n'];

/// All words of a template; the last is the end or a mistake.
pub fn lex(input: &str) -> Vec<Item> {
    let mut lexer = Lexer { input, at: 0, start: 0, line: 1, counted: 0, items: vec![] };
    match lexer.all() {
        Ok(()) => lexer.push(What::Eof, "EOF".to_owned()),
        Err(problem) => lexer.push(What::Error, problem),
    }
    lexer.items
}

struct Lexer<'a> {
    input: &'a str,
    at: usize,
    /// Where the word begins.
    start: usize,
    /// The line of the byte up to which lines were counted.
    line: usize,
    counted: usize,
    items: Vec<Item>,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        &self.input[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn push(&mut self, what: What, text: String) {
        self.line += self.input[self.counted..self.start].matches('\n').count();
        self.counted = self.start;
        self.items.push(Item { what, pos: self.start, text, line: self.line });
    }

    /// What was read since the start of the word is a word.
    fn emit(&mut self, what: What) {
        self.push(what, self.input[self.start..self.at].to_owned());
        self.start = self.at;
    }

    fn all(&mut self) -> Result<(), String> {
        while let Some(length) = self.rest().find("{{") {
            let action = self.at + length;
            let trims = trims_left(&self.input[action + 2..]);
            let text = &self.input[self.at..action];
            let kept = if trims { text.trim_end_matches(SPACES) } else { text };
            self.at += kept.len();
            if !kept.is_empty() {
                self.emit(What::Text);
            }
            self.start = action;
            self.at = action + 2;
            let marker = if trims { 2 } else { 0 };
            if self.input[self.at + marker..].starts_with("/*") {
                self.at += marker;
                self.start = self.at;
                self.comment()?;
            } else {
                self.emit(What::LeftDelim);
                self.at += marker;
                self.action()?;
            }
            self.start = self.at;
        }
        self.at = self.input.len();
        if self.at > self.start {
            self.emit(What::Text);
        }
        Ok(())
    }

    fn comment(&mut self) -> Result<(), String> {
        let Some(length) = self.rest()[2..].find("*/") else { return Err("unclosed comment".to_owned()) };
        self.at += 2 + length + 2;
        let Some(trims) = self.right() else { return Err("comment ends before closing delimiter".to_owned()) };
        self.close(trims);
        Ok(())
    }

    /// Whether an action ends here, and if, whether it takes the spaces behind it along.
    fn right(&self) -> Option<bool> {
        let rest = self.rest();
        match trims_right(rest) && rest[2..].starts_with("}}") {
            true => Some(true),
            false => rest.starts_with("}}").then_some(false),
        }
    }

    /// Goes behind the end of an action.
    fn close(&mut self, trims: bool) {
        self.at += if trims { 4 } else { 2 };
        if trims {
            self.at += self.rest().len() - self.rest().trim_start_matches(SPACES).len();
        }
    }

    fn action(&mut self) -> Result<(), String> {
        let mut parens = 0;
        loop {
            self.start = self.at;
            if let Some(trims) = self.right() {
                if parens > 0 {
                    return Err("unclosed left paren".to_owned());
                }
                self.start += if trims { 2 } else { 0 };
                self.push(What::RightDelim, "}}".to_owned());
                self.close(trims);
                return Ok(());
            }
            let Some(next) = self.peek() else { return Err("unclosed action".to_owned()) };
            self.at += next.len_utf8();
            match next {
                ' ' | '\t' | '\r' | '\n' => self.space(),
                '=' => self.emit(What::Assign),
                ':' if self.rest().starts_with('=') => {
                    self.at += 1;
                    self.emit(What::Declare);
                }
                ':' => return Err("expected :=".to_owned()),
                '|' => self.emit(What::Pipe),
                '"' => self.quote('"', What::String, "unterminated quoted string")?,
                '\'' => self.quote('\'', What::CharConstant, "unterminated character constant")?,
                '`' => {
                    let Some(length) = self.rest().find('`') else { return Err("unterminated raw quoted string".to_owned()) };
                    self.at += length + 1;
                    self.emit(What::RawString);
                }
                '$' => self.name(What::Variable)?,
                '.' if self.peek().is_some_and(|c| !c.is_ascii_digit()) => self.name(What::Field)?,
                '.' | '+' | '-' | '0'..='9' => self.number()?,
                c if is_alphanumeric(c) => self.word()?,
                '(' => {
                    parens += 1;
                    self.emit(What::LeftParen);
                }
                ')' if parens == 0 => return Err("unexpected right paren".to_owned()),
                ')' => {
                    parens -= 1;
                    self.emit(What::RightParen);
                }
                c if c.is_ascii_graphic() => self.emit(What::Char),
                c => return Err(format!("unrecognized character in action: {}", named(c))),
            }
        }
    }

    fn space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start_matches(SPACES).len();
        // The last of them may belong to the end of the action.
        let last = &self.input[self.at - 1..];
        if trims_right(last) && last[2..].starts_with("}}") {
            self.at -= 1;
        }
        if self.at > self.start {
            self.emit(What::Space);
        }
    }

    fn quote(&mut self, quote: char, what: What, unterminated: &str) -> Result<(), String> {
        let mut escaped = false;
        for (index, c) in self.rest().char_indices() {
            match c {
                '\n' => break,
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                c if c == quote => {
                    self.at += index + 1;
                    self.emit(what);
                    return Ok(());
                }
                _ => {}
            }
        }
        Err(unterminated.to_owned())
    }

    /// What stands behind `.` or `$`.
    fn name(&mut self, what: What) -> Result<(), String> {
        let alone = self.is_over();
        self.alphanumeric()?;
        self.emit(if alone && what == What::Field { What::Keyword } else { what });
        Ok(())
    }

    fn word(&mut self) -> Result<(), String> {
        self.alphanumeric()?;
        let word = &self.input[self.start..self.at];
        self.emit(match word {
            "true" | "false" => What::Bool,
            word if KEYWORDS.contains(&word) => What::Keyword,
            _ => What::Identifier,
        });
        Ok(())
    }

    fn alphanumeric(&mut self) -> Result<(), String> {
        if self.is_over() {
            return Ok(());
        }
        let length = self.rest().find(|c| !is_alphanumeric(c)).unwrap_or(self.rest().len());
        self.at += length;
        match self.peek().filter(|_| !self.is_over()) {
            Some(c) => Err(format!("bad character {}", named(c))),
            None => Ok(()),
        }
    }

    /// Whether what follows ends a name.
    fn is_over(&self) -> bool {
        self.peek().is_none_or(|c| SPACES.contains(&c) || matches!(c, '.' | ',' | '|' | ':' | ')' | '(')) || self.rest().starts_with("}}")
    }

    /// A number, or a pair of them that is a complex one, which the parser refuses.
    fn number(&mut self) -> Result<(), String> {
        self.at = self.start;
        let mut fits = self.digits();
        if fits && self.peek().is_some_and(|c| matches!(c, '+' | '-')) {
            fits = self.digits() && self.input[..self.at].ends_with('i');
        }
        if !fits {
            return Err(format!("bad number syntax: {}", super::print::quoted(&self.input.as_bytes()[self.start..self.at])));
        }
        self.emit(What::Number);
        Ok(())
    }

    /// Goes behind a number; whether that ends there.
    fn digits(&mut self) -> bool {
        let take = |lexer: &mut Self, set: &str| {
            let one = lexer.peek().is_some_and(|c| set.contains(c));
            lexer.at += usize::from(one);
            one
        };
        take(self, "+-");
        let mut digits = "0123456789_";
        if take(self, "0") {
            if take(self, "xX") {
                digits = "0123456789abcdefABCDEF_";
            } else if take(self, "oO") {
                digits = "01234567_";
            } else if take(self, "bB") {
                digits = "01_";
            }
        }
        while take(self, digits) {}
        if take(self, ".") {
            while take(self, digits) {}
        }
        if digits.len() == 11 && take(self, "eE") {
            take(self, "+-");
            while take(self, digits) {}
        }
        if digits.len() == 23 && take(self, "pP") {
            take(self, "+-");
            while take(self, "0123456789_") {}
        }
        take(self, "i");
        let more = self.peek().filter(|c| is_alphanumeric(*c));
        self.at += more.map_or(0, char::len_utf8);
        more.is_none()
    }
}

fn is_alphanumeric(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

fn trims_left(text: &str) -> bool {
    text.strip_prefix('-').is_some_and(|text| text.starts_with(SPACES))
}

fn trims_right(text: &str) -> bool {
    text.strip_prefix(SPACES).is_some_and(|text| text.starts_with('-'))
}

/// `U+00A7 '§'`
fn named(c: char) -> String {
    match c.is_control() {
        true => format!("U+{:04X}", u32::from(c)),
        false => format!("U+{:04X} '{c}'", u32::from(c)),
    }
}
