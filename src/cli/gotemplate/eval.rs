//! Runs a template on an object. The order in which things are looked at, and what an error says, are those of Go's text/template.

use std::fmt::Display;

use anyhow::{Result, bail};
use serde_json::Value;

use super::parser::{Command, Kind, Node, Pipe, Step};
use super::value::Val;
use super::{DEPTH_MAX, NAME, Template, functions, print};

/// Writes what `template` makes of `root`.
pub fn run(template: &Template, root: &Value, out: &mut Vec<u8>) -> Result<()> {
    let root = Val::Boxed(root).unboxed();
    let mut state = State { template, name: NAME, variables: vec![("$", root.clone())], at: None, depth: 0, out };
    state.body(&root, &template.bodies[NAME]).map(|_| ())
}

/// What comes after a step.
#[derive(PartialEq)]
enum Then {
    Next,
    Break,
    Continue,
}

/// A part of the template that errors can name.
type Place<'a> = (usize, &'a dyn Display);

struct State<'a, 'o> {
    template: &'a Template,
    /// The template that runs.
    name: &'a str,
    variables: Vec<(&'a str, Val<'a>)>,
    /// What was looked at last.
    at: Option<Place<'a>>,
    depth: usize,
    out: &'o mut Vec<u8>,
}

impl<'a> State<'a, '_> {
    fn fail<T>(&self, message: impl Display) -> Result<T> {
        let Some((pos, part)) = self.at else { bail!("template: {NAME}: {message}") };
        let before = &self.template.source[..pos];
        let line = before.matches('\n').count() + 1;
        let column = before.rfind('\n').map_or(pos, |newline| pos - newline - 1);
        bail!("template: {NAME}:{line}:{column}: executing {} at <{part}>: {message}", print::quoted(self.name.as_bytes()))
    }

    fn body(&mut self, dot: &Val<'a>, steps: &'a [Step]) -> Result<Then> {
        self.depth += 1;
        if self.depth > 4 * DEPTH_MAX {
            return self.fail(format!("exceeded maximum template depth ({})", 4 * DEPTH_MAX));
        }
        let mut then = Then::Next;
        for step in steps {
            then = self.step(dot, step)?;
            if then != Then::Next {
                break;
            }
        }
        self.depth -= 1;
        Ok(then)
    }

    fn step(&mut self, dot: &Val<'a>, step: &'a Step) -> Result<Then> {
        match step {
            Step::Text(text) => self.out.extend_from_slice(text.as_bytes()),
            Step::Break => return Ok(Then::Break),
            Step::Continue => return Ok(Then::Continue),
            Step::Action(pipe) => {
                let value = self.pipe(dot, pipe)?;
                match value.unboxed() {
                    _ if !pipe.declares.is_empty() => {}
                    Val::Missing => self.out.extend_from_slice(b"<no value>"),
                    value => print::plain(self.out, &value),
                }
            }
            Step::If { pipe, then, otherwise } | Step::With { pipe, then, otherwise } => {
                let known = self.variables.len();
                let value = self.pipe(dot, pipe)?;
                let next = match (value.truth(), step) {
                    (true, Step::With { .. }) => self.body(&value, then)?,
                    (true, _) => self.body(dot, then)?,
                    (false, _) => self.body(dot, otherwise)?,
                };
                self.variables.truncate(known);
                return Ok(next);
            }
            Step::Range { pipe, then, otherwise } => {
                let known = self.variables.len();
                let next = self.range(dot, pipe, then, otherwise)?;
                self.variables.truncate(known);
                return Ok(next);
            }
            Step::Template { pos, name, pipe } => {
                let Some(body) = self.template.bodies.get(name) else {
                    let call = match pipe {
                        Some(pipe) => format!("{{{{template {} {pipe}}}}}", print::quoted(name.as_bytes())),
                        None => format!("{{{{template {}}}}}", print::quoted(name.as_bytes())),
                    };
                    self.at = None;
                    return self.fail_at(*pos, &call, format!("template {} not defined", print::quoted(name.as_bytes())));
                };
                let value = match pipe {
                    Some(pipe) => self.pipe(dot, pipe)?,
                    None => Val::Missing,
                };
                let outside = (std::mem::replace(&mut self.variables, vec![("$", value.clone())]), self.name);
                self.name = name;
                self.body(&value, body)?;
                (self.variables, self.name) = outside;
            }
        }
        Ok(Then::Next)
    }

    /// As `fail`, at a part of the template that is only here.
    fn fail_at<T>(&self, pos: usize, part: &dyn Display, message: String) -> Result<T> {
        let state =
            State { template: self.template, name: self.name, variables: vec![], at: Some((pos, part)), depth: 0, out: &mut vec![] };
        state.fail(message)
    }

    fn range(&mut self, dot: &Val<'a>, pipe: &'a Pipe, then: &'a [Step], otherwise: &'a [Step]) -> Result<Then> {
        let value = self.pipe(dot, pipe)?.unboxed();
        let rounds: Box<dyn Iterator<Item = (Val<'a>, Val<'a>)>> = match &value {
            Val::Missing => Box::new(std::iter::empty()),
            Val::List(items) => Box::new(items.iter().enumerate().map(|(index, item)| (Val::Int(index as i64), Val::Boxed(item)))),
            Val::Map(fields) => Box::new(fields.iter().map(|(key, value)| (Val::Text(key.as_bytes().into()), Val::Boxed(value)))),
            Val::Int(_) | Val::Int64(_) | Val::Byte(_) => {
                if pipe.declares.len() > 1 {
                    let count = String::from_utf8_lossy(&print::sprint(std::slice::from_ref(&value))).into_owned();
                    return self.fail(format!("can't use {count} to iterate over more than one variable"));
                }
                let of = value.clone();
                Box::new((0..value.whole().unwrap_or_default()).map(move |number| {
                    let number = match of {
                        Val::Int64(_) => Val::Int64(number),
                        Val::Byte(_) => Val::Byte(number as u8),
                        _ => Val::Int(number),
                    };
                    (Val::Missing, number)
                }))
            }
            other => {
                let shown = String::from_utf8_lossy(&print::sprint(std::slice::from_ref(other))).into_owned();
                return self.fail(format!("range can't iterate over {shown}"));
            }
        };
        let known = self.variables.len();
        let mut rounds = rounds.peekable();
        if rounds.peek().is_none() {
            return self.body(dot, otherwise);
        }
        for (index, element) in rounds {
            let values = if pipe.declares.len() > 1 { vec![index, element.clone()] } else { vec![element.clone()] };
            for (place, (name, value)) in pipe.declares.iter().zip(values).enumerate() {
                match pipe.assigns {
                    true => self.assign(name, value)?,
                    // They stand on top, where the pipeline put them.
                    false => self.variables[known - pipe.declares.len() + place].1 = value,
                }
            }
            let next = self.body(&element, then)?;
            self.variables.truncate(known);
            if next == Then::Break {
                break;
            }
        }
        Ok(Then::Next)
    }

    fn assign(&mut self, name: &str, value: Val<'a>) -> Result<()> {
        match self.variables.iter_mut().rev().find(|(known, _)| *known == name) {
            Some((_, place)) => *place = value,
            None => return self.fail(format!("undefined variable: {name}")),
        }
        Ok(())
    }

    fn pipe(&mut self, dot: &Val<'a>, pipe: &'a Pipe) -> Result<Val<'a>> {
        self.at = Some((pipe.pos, pipe));
        let mut value = None;
        for command in &pipe.commands {
            value = Some(self.command(dot, command, value)?.unboxed());
        }
        let value = value.unwrap_or(Val::Missing);
        for name in &pipe.declares {
            match pipe.assigns {
                true => self.assign(name, value.clone())?,
                false => self.variables.push((name, value.clone())),
            }
        }
        Ok(value)
    }

    /// `last` is what the command before in the pipeline gave.
    fn command(&mut self, dot: &Val<'a>, command: &'a Command, last: Option<Val<'a>>) -> Result<Val<'a>> {
        let (first, arguments) = (&command.words[0], &command.words[1..]);
        if let Kind::Function(name) = &first.kind {
            return self.call(dot, first, name, (command.pos, command), arguments, last);
        }
        let has_arguments = !arguments.is_empty() || last.is_some();
        if matches!(first.kind, Kind::Dot | Kind::Nil | Kind::Literal(..)) {
            self.at = Some((first.pos, first));
        }
        if has_arguments && matches!(&first.kind, Kind::Dot | Kind::Nil | Kind::Literal(..) | Kind::Pipe(_)) {
            return self.fail(format!("can't give argument to non-function {first}"));
        }
        match &first.kind {
            Kind::Nil => self.fail("nil is not a command"),
            _ => self.value(dot, first, has_arguments),
        }
    }

    /// What a word stands for; only a method could have arguments, and nothing here has one.
    fn value(&mut self, dot: &Val<'a>, node: &'a Node, has_arguments: bool) -> Result<Val<'a>> {
        if !matches!(node.kind, Kind::Pipe(_)) {
            self.at = Some((node.pos, node));
        }
        match &node.kind {
            Kind::Dot => Ok(dot.clone()),
            Kind::Nil => Ok(Val::Missing),
            Kind::Literal(value, _) => Ok(value.clone()),
            Kind::Field(names) => self.fields(dot.clone(), names, has_arguments),
            Kind::Variable(name, names) => {
                let Some((_, value)) = self.variables.iter().rev().find(|(known, _)| known == name) else {
                    return self.fail(format!("undefined variable: {name}"));
                };
                let value = value.clone();
                if names.is_empty() && has_arguments {
                    return self.fail(format!("can't give argument to non-function {node}"));
                }
                self.fields(value, names, has_arguments)
            }
            Kind::Chain(inner, names) => {
                if inner.kind == Kind::Nil {
                    return self.fail(format!("indirection through explicit nil in {node}"));
                }
                let value = self.value(dot, inner, false)?;
                self.fields(value, names, has_arguments)
            }
            Kind::Function(name) => self.call(dot, node, name, (node.pos, node), &[], None),
            Kind::Pipe(pipe) => self.pipe(dot, pipe),
        }
    }

    fn fields(&mut self, value: Val<'a>, names: &'a [String], has_arguments: bool) -> Result<Val<'a>> {
        let mut value = value;
        for (index, name) in names.iter().enumerate() {
            let outer = value.type_name();
            value = match value.unboxed() {
                Val::Missing if outer == "interface {}" => return self.fail(format!("nil pointer evaluating {outer}.{name}")),
                Val::Missing => Val::Missing,
                Val::Map(_) if has_arguments && index + 1 == names.len() => {
                    return self.fail(format!("{name} is not a method but has arguments"));
                }
                Val::Map(fields) => fields.get(name).map_or(Val::Missing, Val::Boxed),
                _ => return self.fail(format!("can't evaluate field {name} in type {outer}")),
            };
        }
        Ok(value)
    }

    fn call(
        &mut self,
        dot: &Val<'a>,
        node: &'a Node,
        name: &str,
        whole: Place<'a>,
        arguments: &'a [Node],
        last: Option<Val<'a>>,
    ) -> Result<Val<'a>> {
        self.at = Some((node.pos, node));
        let (least, more) = functions::arity(name);
        let count = arguments.len() + usize::from(last.is_some());
        if more && count < least {
            return self.fail(format!("wrong number of args for {name}: want at least {least} got {}", arguments.len()));
        }
        if !more && count != least {
            return self.fail(format!("wrong number of args for {name}: want {least} got {count}"));
        }
        let mut values = vec![];
        for (index, argument) in arguments.iter().enumerate() {
            let text = index == 0 && functions::wants_text(name);
            self.at = Some((argument.pos, argument));
            let value = match &argument.kind {
                Kind::Nil if text => return self.fail("cannot assign nil to string"),
                Kind::Literal(value, shown) if text && !matches!(value, Val::Text(_)) => {
                    return self.fail(format!("expected string; found {shown}"));
                }
                _ => self.value(dot, argument, false)?,
            };
            values.push(if text { self.text(value)? } else { value });
            // The rest is not looked at once it is known.
            if matches!((name, values[index].truth()), ("and", false) | ("or", true)) {
                return Ok(values.remove(index));
            }
        }
        if let Some(last) = last {
            values.push(if values.is_empty() && functions::wants_text(name) { self.text(last)? } else { last });
        }
        match functions::call(name, values) {
            Ok(value) => Ok(value),
            Err(error) => {
                self.at = Some(whole);
                self.fail(format!("error calling {name}: {error:#}"))
            }
        }
    }

    /// A value where only a text fits.
    fn text(&self, value: Val<'a>) -> Result<Val<'a>> {
        let outer = value.type_name();
        match value.unboxed() {
            Val::Missing if outer != "interface {}" => self.fail("invalid value; expected string"),
            value @ Val::Text(_) => Ok(value),
            Val::Missing => self.fail(format!("wrong type for value; expected string; got {outer}")),
            other => self.fail(format!("wrong type for value; expected string; got {}", other.type_name())),
        }
    }
}
