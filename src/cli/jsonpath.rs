//! kubectl's dialect of JSONPath: text with `{…}` parts, `{range}…{end}`, filters, slices, unions and `..`. It reads values and writes
//! text;
//! it never changes an object.

use anyhow::{Result, bail};
use serde_json::Value;
use std::cmp::Ordering;

/// How deep templates and values may nest.
const DEPTH_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Text(String),
    Field(String),
    Slice { from: Option<i64>, to: Option<i64>, single: bool },
    Filter { left: Vec<Node>, operator: String, right: Vec<Node> },
    Union(Vec<Vec<Node>>),
    Number(Value),
    Bool(bool),
    Wildcard,
    Recursive,
    Range,
    End,
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    /// As it was typed, for messages.
    source: String,
    actions: Vec<Vec<Node>>,
}

impl Template {
    pub fn parse(text: &str) -> Result<Self> {
        let mut actions = vec![];
        let mut rest = text;
        while let Some(start) = rest.find('{') {
            if start > 0 {
                actions.push(vec![Node::Text(rest[..start].to_owned())]);
            }
            let mut parser = Parser { input: &rest[start + 1..], at: 0, depth: 0 };
            actions.push(parser.action()?);
            rest = &parser.input[parser.at..];
        }
        if !rest.is_empty() {
            actions.push(vec![Node::Text(rest.to_owned())]);
        }
        Ok(Self { source: text.to_owned(), actions })
    }

    /// Reads what people write for `--sort-by` and custom columns as well: `.metadata.name`, `metadata.name`, `{.metadata.name}`.
    pub fn parse_relaxed(text: &str) -> Result<Self> {
        let inner = text.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')).unwrap_or(text);
        if inner.contains(['{', '}']) {
            bail!("unexpected path string, expected a 'name1.name2' or '.name1.name2' or '{{name1.name2}}' or '{{.name1.name2}}'");
        }
        let dot = if inner.starts_with(['.', '[', '$', '@']) { "" } else { "." };
        Self::parse(&format!("{{{dot}{inner}}}"))
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Everything each part of the template finds. `missing_is_empty` is off only where kubectl itself insists.
    pub fn results<'a>(&'a self, root: &'a Value, missing_is_empty: bool) -> Result<Vec<Vec<Found<'a>>>> {
        let mut out = vec![];
        let at = run(&self.actions, 0, &Found::Ref(root), missing_is_empty, false, 0, &mut out)?;
        if at < self.actions.len() {
            bail!("not in range, nothing to end");
        }
        Ok(out)
    }

    /// The text that the template makes of `root`.
    pub fn render(&self, root: &Value) -> Result<String> {
        let mut text = String::new();
        for results in self.results(root, true)? {
            let parts: Vec<String> = results.iter().map(|found| found.text()).collect();
            text += &parts.join(" ");
        }
        Ok(text)
    }
}

/// A value of the object or one that the template itself holds.
#[derive(Debug, Clone)]
pub enum Found<'a> {
    Ref(&'a Value),
    Own(Value),
}

impl<'a> Found<'a> {
    pub fn value(&self) -> &Value {
        match self {
            Self::Ref(value) => value,
            Self::Own(value) => value,
        }
    }

    pub fn text(&self) -> String {
        text_of(self.value())
    }

    fn children(&self) -> Vec<Found<'a>> {
        match self {
            Self::Ref(Value::Array(items)) => items.iter().map(Found::Ref).collect(),
            Self::Ref(Value::Object(fields)) => fields.values().map(Found::Ref).collect(),
            _ => vec![],
        }
    }
}

/// A value as kubectl prints it in a text: strings bare, lists and maps as JSON.
pub fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        // Go escapes what means something in HTML.
        other => other.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026"),
    }
}

/// Runs the actions from `at` on `root`; answers where it stopped: at the end, or behind the `{end}` of the range it is in.
fn run<'a>(
    actions: &'a [Vec<Node>],
    mut at: usize,
    root: &Found<'a>,
    lenient: bool,
    in_range: bool,
    depth: usize,
    out: &mut Vec<Vec<Found<'a>>>,
) -> Result<usize> {
    if depth > DEPTH_MAX {
        bail!("ranges nest deeper than {DEPTH_MAX}");
    }
    while let Some(action) = actions.get(at) {
        at += 1;
        match action.first() {
            Some(Node::Range) => {
                let items = walk(&action[1..], vec![root.clone()], lenient)?;
                let mut end = None;
                for item in &items {
                    end = Some(run(actions, at, item, lenient, true, depth + 1, out)?);
                }
                at = match end {
                    Some(end) => end,
                    None => skip_range(actions, at),
                };
            }
            Some(Node::End) if in_range => return Ok(at),
            Some(Node::End) => bail!("not in range, nothing to end"),
            _ => out.push(walk(action, vec![root.clone()], lenient)?),
        }
    }
    Ok(at)
}

fn skip_range(actions: &[Vec<Node>], mut at: usize) -> usize {
    let mut open = 1;
    while let (true, Some(action)) = (open > 0, actions.get(at)) {
        open = match action.first() {
            Some(Node::Range) => open + 1,
            Some(Node::End) => open - 1,
            _ => open,
        };
        at += 1;
    }
    at
}

fn walk<'a>(nodes: &'a [Node], mut current: Vec<Found<'a>>, lenient: bool) -> Result<Vec<Found<'a>>> {
    for node in nodes {
        current = step(node, current, lenient)?;
    }
    Ok(current)
}

fn step<'a>(node: &'a Node, input: Vec<Found<'a>>, lenient: bool) -> Result<Vec<Found<'a>>> {
    let mut out = vec![];
    match node {
        Node::Text(text) => out.push(Found::Own(Value::from(text.as_str()))),
        Node::Number(number) => out.extend(input.iter().map(|_| Found::Own(number.clone()))),
        Node::Bool(bool) => out.extend(input.iter().map(|_| Found::Own(Value::from(*bool)))),
        Node::Field(name) => {
            for found in &input {
                if let Found::Ref(Value::Object(fields)) = found {
                    out.extend(fields.get(name).map(Found::Ref));
                }
            }
            if out.is_empty() && !input.is_empty() && !lenient {
                bail!("{name} is not found");
            }
        }
        Node::Wildcard => out.extend(input.iter().flat_map(Found::children)),
        Node::Recursive => {
            for found in input {
                descend(found, 0, &mut out);
            }
        }
        Node::Union(parts) => {
            for part in parts {
                out.extend(walk(part, input.clone(), lenient)?);
            }
        }
        Node::Slice { from, to, single } => {
            for found in &input {
                let items = match found.value() {
                    Value::Null => continue,
                    Value::Array(_) => found.children(),
                    other => bail!("{} is not array or slice", kind_of(other)),
                };
                let length = items.len() as i64;
                let place = |at: i64| if at < 0 { at + length } else { at };
                let from = place(from.unwrap_or(0));
                let to = if *single { from + 1 } else { place(to.unwrap_or(length)) };
                if from != to && (from >= length || from < 0) {
                    if lenient && length == 0 {
                        continue;
                    }
                    bail!("array index out of bounds: index {from}, length {length}");
                }
                if from != to && to > length {
                    bail!("array index out of bounds: index {}, length {length}", to - 1);
                }
                out.extend(items.into_iter().skip(from as usize).take((to - from).max(0) as usize));
            }
        }
        Node::Filter { left, operator, right } => {
            for found in &input {
                let items = match found.value() {
                    Value::Array(_) => found.children(),
                    other => bail!("{other} is not array or slice and cannot be filtered"),
                };
                for item in items {
                    if passes(&item, left, operator, right)? {
                        out.push(item);
                    }
                }
            }
        }
        Node::Range | Node::End => bail!("range and end stand at the start of their braces"),
    }
    Ok(out)
}

fn descend<'a>(found: Found<'a>, depth: usize, out: &mut Vec<Found<'a>>) {
    let children = found.children();
    if !children.is_empty() && depth < 2 * DEPTH_MAX {
        out.push(found);
        for child in children {
            descend(child, depth + 1, out);
        }
    }
}

fn passes(item: &Found, left: &[Node], operator: &str, right: &[Node]) -> Result<bool> {
    let lefts = walk(left, vec![item.clone()], true)?;
    if operator == "exists" {
        return Ok(!lefts.is_empty());
    }
    let rights = walk(right, vec![item.clone()], true)?;
    let ([left], [right]) = (lefts.as_slice(), rights.as_slice()) else {
        // A missing field equals nothing; comparing two lists is a mistake in the template.
        return match lefts.len() > 1 || rights.len() > 1 {
            true => bail!("can only compare one element at a time"),
            false => Ok(operator == "!="),
        };
    };
    let order = compare(left.value(), right.value());
    Ok(match operator {
        "==" | "=" => order == Some(Ordering::Equal),
        "!=" => order != Some(Ordering::Equal),
        "<" => order == Some(Ordering::Less),
        ">" => order == Some(Ordering::Greater),
        "<=" => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        ">=" => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
        _ => bail!("unrecognized filter operator {operator}"),
    })
}

/// Orders two values of the same kind; values of different kinds have no order.
pub fn compare(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        (Value::Number(left), Value::Number(right)) => left.as_f64()?.partial_cmp(&right.as_f64()?),
        _ => None,
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "map[string]interface {}",
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Number(_) => "int64",
        Value::Array(_) => "[]interface {}",
        Value::Null => "nil",
    }
}

struct Parser<'a> {
    input: &'a str,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.input[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// What stands inside one pair of braces, up to and with the closing one.
    fn action(&mut self) -> Result<Vec<Node>> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            bail!("the template nests deeper than {DEPTH_MAX}");
        }
        let mut nodes = vec![];
        loop {
            let Some(next) = self.peek() else { bail!("unclosed action") };
            match next {
                '}' => {
                    self.at += 1;
                    return Ok(nodes);
                }
                '\r' | '\n' => bail!("unclosed action"),
                ' ' | '@' | '$' => self.at += 1,
                '[' if self.rest().starts_with("[?(") => nodes.push(self.filter()?),
                '[' => self.array(&mut nodes)?,
                '.' if self.rest().starts_with("..") => {
                    if nodes.last() == Some(&Node::Recursive) {
                        bail!("invalid multiple recursive descent");
                    }
                    self.at += 2;
                    nodes.push(Node::Recursive);
                    if self.peek().is_some_and(|c| c.is_alphanumeric() || c == '_') {
                        nodes.push(Node::Field(self.word(true)));
                    }
                }
                '.' => {
                    self.at += 1;
                    let name = self.word(true);
                    // `{.}` is the object itself.
                    match name.as_str() {
                        "" => {}
                        "*" => nodes.push(Node::Wildcard),
                        _ => nodes.push(Node::Field(name)),
                    }
                }
                '"' | '\'' => nodes.push(Node::Text(self.quoted(next)?)),
                '+' | '-' | '0'..='9' => {
                    let end = self.rest().find(|c: char| !matches!(c, '+' | '-' | '.' | '0'..='9')).unwrap_or(self.rest().len());
                    let text = self.rest()[..end].to_owned();
                    self.at += end;
                    let number = text.trim_start_matches('+');
                    let whole = number.parse::<i64>().map(Value::from).ok();
                    let Some(value) = whole.or_else(|| number.parse::<f64>().ok().map(Value::from)) else {
                        bail!("cannot parse number {text}")
                    };
                    nodes.push(Node::Number(value));
                }
                c if c.is_alphanumeric() || c == '_' => match self.word(false).as_str() {
                    "range" if nodes.is_empty() => nodes.push(Node::Range),
                    "end" if nodes.is_empty() => nodes.push(Node::End),
                    "true" => nodes.push(Node::Bool(true)),
                    "false" => nodes.push(Node::Bool(false)),
                    other => bail!("unrecognized identifier {other}"),
                },
                c => bail!("unrecognized character in action: {c:?}"),
            }
        }
    }

    /// A name up to the next character that cannot be in one; a backslash takes any character into it.
    fn word(&mut self, escapes: bool) -> String {
        let mut name = String::new();
        let mut escaped = false;
        while let Some(c) = self.peek() {
            if !escaped && matches!(c, ' ' | '\t' | '\r' | '\n' | '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}') {
                break;
            }
            self.at += c.len_utf8();
            if escapes && !escaped && c == '\\' {
                escaped = true;
            } else {
                escaped = false;
                name.push(c);
            }
        }
        name
    }

    fn quoted(&mut self, quote: char) -> Result<String> {
        self.at += 1;
        let mut text = String::new();
        loop {
            let Some(c) = self.peek().filter(|c| *c != '\n') else { bail!("unterminated quoted string") };
            self.at += c.len_utf8();
            if c == quote {
                return Ok(text);
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            let Some(escape) = self.peek() else { bail!("unterminated quoted string") };
            self.at += escape.len_utf8();
            text.push(match escape {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                '\\' | '"' | '\'' => escape,
                other => bail!("unquote string: invalid escape \\{other}"),
            });
        }
    }

    fn array(&mut self, nodes: &mut Vec<Node>) -> Result<()> {
        let Some(end) = self.rest().find([']', '\n']).filter(|end| self.rest()[*end..].starts_with(']')) else {
            bail!("unterminated array")
        };
        let text = self.rest()[1..end].to_owned();
        self.at += end + 1;
        let parts: Vec<&str> = text.split(',').map(|part| part.trim_matches(' ')).collect();
        if parts.len() > 1 {
            let union = parts.iter().map(|part| self.index(part)).collect::<Result<_>>()?;
            nodes.push(Node::Union(union));
        } else {
            nodes.extend(self.index(&text)?);
        }
        Ok(())
    }

    /// One entry between brackets: `'key'`, `*`, `3`, `-1`, `1:3`.
    fn index(&self, text: &str) -> Result<Vec<Node>> {
        if text == "*" {
            return Ok(vec![Node::Slice { from: None, to: None, single: false }]);
        }
        if let Some(key) = text.strip_prefix('\'').and_then(|key| key.strip_suffix('\'')) {
            let mut parser = Parser { input: &format!(".{key}}}"), at: 0, depth: self.depth };
            return parser.action();
        }
        let number = |part: &str| match part {
            "" => Ok(None),
            _ => part.parse::<i64>().map(Some).map_err(|_| anyhow::anyhow!("invalid array index {text}")),
        };
        let parts: Vec<&str> = text.split(':').collect();
        match parts.as_slice() {
            [only] if !only.is_empty() => Ok(vec![Node::Slice { from: number(only)?, to: None, single: true }]),
            [from, to] | [from, to, "" | "1"] => Ok(vec![Node::Slice { from: number(from)?, to: number(to)?, single: false }]),
            _ => bail!("invalid array index {text}"),
        }
    }

    fn filter(&mut self) -> Result<Node> {
        self.at += "[?(".len();
        let mut quote = None;
        let mut end = None;
        for (at, c) in self.rest().char_indices() {
            match (quote, c) {
                (_, '\n') => break,
                (None, '"' | '\'') => quote = Some(c),
                (Some(open), c) if c == open => quote = None,
                (None, ')') => {
                    end = Some(at);
                    break;
                }
                _ => {}
            }
        }
        let Some(end) = end else { bail!("unterminated filter") };
        let text = self.rest()[..end].to_owned();
        self.at += end + 1;
        if self.peek() != Some(']') {
            bail!("unclosed array expect ]");
        }
        self.at += 1;
        let parse = |text: &str| Parser { input: &format!("{text}}}"), at: 0, depth: self.depth }.action();
        let Some(start) = text.find(['!', '<', '>', '=']) else {
            return Ok(Node::Filter { left: parse(&text)?, operator: "exists".into(), right: vec![] });
        };
        let length = text[start..].find(|c: char| !matches!(c, '!' | '<' | '>' | '=')).unwrap_or(text.len() - start);
        let (operator, right) = text[start..].split_at(length);
        Ok(Node::Filter { left: parse(&text[..start])?, operator: operator.to_owned(), right: parse(right)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object() -> Value {
        json!({
            "kind": "List",
            "items": [
                {"kind": "None", "metadata": {"name": "127.0.0.1", "labels": {"kubernetes.io/hostname": "127.0.0.1", "a.b": "x"}},
                 "status": {"capacity": {"cpu": "4"}, "addresses": [{"type": "LegacyHostIP", "address": "127.0.0.1"}]}},
                {"kind": "None", "metadata": {"name": "127.0.0.2"},
                 "status": {"capacity": {"cpu": "8"}, "ready": true, "addresses": [
                     {"type": "LegacyHostIP", "address": "127.0.0.2"}, {"type": "another", "address": "127.0.0.3"}]}},
            ],
            "users": [{"name": "myself", "user": {}, "age": 3}, {"name": "e2e", "user": {"username": "admin"}, "age": 40}],
        })
    }

    fn check(template: &str, expected: &str) {
        let object = object();
        let text = Template::parse(template).and_then(|template| template.render(&object));
        assert_eq!(text.unwrap_or_else(|error| panic!("{template}: {error}")), expected, "{template}");
    }

    #[test]
    fn templates_print_what_kubectl_prints() {
        check("kind is {.kind}", "kind is List");
        check("{.kind}", "List");
        check("{['kind']}", "List");
        check("{$.kind} {@.kind}", "List List");
        check("{.items[*].metadata.name}", "127.0.0.1 127.0.0.2");
        check("{.items[0].metadata.name}", "127.0.0.1");
        check("{.items[-1].metadata.name}", "127.0.0.2");
        check("{.items[-1:].metadata.name}", "127.0.0.2");
        check("{.items[0:1].metadata.name}", "127.0.0.1");
        check("{.users[*].name}", "myself e2e");
        check("{.users[?(@.name==\"e2e\")].user.username}", "admin");
        check("{.users[?(@.name=='e2e')].user.username}", "admin");
        check("{.users[?(@.age>5)].name}", "e2e");
        check("{.users[?(@.age<=3)].name}", "myself");
        check("{.users[?(@.user.username)].name}", "e2e");
        check("{.items[?(@.status.ready==true)].metadata.name}", "127.0.0.2");
        check(
            "{range .items[*]}[{.metadata.name}, {.status.capacity}] {end}",
            "[127.0.0.1, {\"cpu\":\"4\"}] [127.0.0.2, {\"cpu\":\"8\"}] ",
        );
        check("{range .items[*]}{.metadata.name}{\"\\t\"}{.status.capacity.cpu}{'\\n'}{end}", "127.0.0.1\t4\n127.0.0.2\t8\n");
        check("{range .items[*]}{range .status.addresses[*]}{.address},{end};{end}!", "127.0.0.1,;127.0.0.2,127.0.0.3,;!");
        check("{range .none[*]}x{range .y}z{end}{end}after", "after");
        check("{..name}", "127.0.0.1 127.0.0.2 myself e2e");
        check("{.items[*]['metadata.name', 'status.capacity']}", "127.0.0.1 127.0.0.2 {\"cpu\":\"4\"} {\"cpu\":\"8\"}");
        check("{.items[0].metadata.labels.kubernetes\\.io/hostname}", "127.0.0.1");
        check("{.items[0].metadata.labels['a\\.b']}", "x");
        check("{.missing.deeper}", "");
        check("{.items[0].status.addresses[?(@.type!=\"x\")].address}", "127.0.0.1");
        check("no braces", "no braces");
    }

    #[test]
    fn mistakes_are_errors() {
        for (template, expected) in [
            ("{.kind", "unclosed action"),
            ("{.items[}", "unterminated array"),
            ("{.items[x]}", "invalid array index x"),
            ("{.items[9]}", "array index out of bounds: index 9, length 2"),
            ("{foo}", "unrecognized identifier foo"),
            ("{end}", "not in range, nothing to end"),
            ("{'a}", "unterminated quoted string"),
            ("{.kind[0]}", "string is not array or slice"),
            ("{.items[?(@.kind]}", "unterminated filter"),
        ] {
            let object = object();
            let error = Template::parse(template).and_then(|template| template.render(&object)).unwrap_err();
            assert_eq!(error.to_string(), expected, "{template}");
        }
    }

    #[test]
    fn relaxed_paths_need_no_braces() {
        let object = json!({"metadata": {"name": "web"}});
        for path in ["metadata.name", ".metadata.name", "{.metadata.name}", "{metadata.name}"] {
            assert_eq!(Template::parse_relaxed(path).unwrap().render(&object).unwrap(), "web", "{path}");
        }
    }
}
