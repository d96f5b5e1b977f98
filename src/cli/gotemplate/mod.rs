//! Go's text/template, as `-o go-template` has it: text with `{{…}}` parts, run on an object. It reads values and writes bytes; it never
//! changes an object and calls nothing but the functions below.
//!
//! There are: trim markers and comments; pipelines, parentheses, fields behind them; variables (`:=` and `=`); strings, raw strings,
//! characters, numbers, booleans and nil; if, else if, with, else with, range (also over whole numbers, with index or key, else, break,
//! continue), define, template and block; and, or, not, eq, ne, lt, le, gt, ge, len, index, slice, print, printf, println, html, js,
//! urlquery, and kubectl's own exists and base64decode. There are not: `call` (no value is a function), complex numbers, floats in
//! hexadecimal, `*` and `[n]` in formats. Numbers are Go's int64 and float64, and print as those do.

mod eval;
mod functions;
mod lexer;
mod parser;
mod print;
mod value;

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::Value;

use value::Val;

/// How deep expressions and bodies may nest; bodies that run, calls of templates among them, four times as deep.
const DEPTH_MAX: usize = 100;

/// What kubectl calls the template in its errors.
const NAME: &str = "output";

/// A parsed template, with those that it defines.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    /// As it was typed, for messages.
    source: String,
    bodies: BTreeMap<String, Vec<parser::Step>>,
}

impl Template {
    pub fn parse(source: &str) -> Result<Self> {
        Ok(Self { source: source.to_owned(), bodies: parser::parse(source)? })
    }

    /// The template in quotes, as errors name it.
    pub fn quoted_source(&self) -> String {
        print::quoted(self.source.as_bytes())
    }

    /// What the template makes of `root`.
    pub fn render(&self, root: &Value) -> Result<Vec<u8>> {
        let mut out = vec![];
        eval::run(self, root, &mut out)?;
        Ok(out)
    }
}

/// A value as Go prints one.
pub fn shown(value: &Value) -> String {
    let mut out = vec![];
    print::plain(&mut out, &Val::Boxed(value));
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(template: &str) -> String {
        let object = json!({
            "kind": "List",
            "items": [
                {"metadata": {"name": "a", "labels": {"app": "web", "tier": "back"}, "generation": 2}, "ratio": 0.25, "on": true, "none": null},
                {"metadata": {"name": "b"}, "list": [1, "x", null]},
            ],
            "data": {"tls.crt": "aGVsbG8=", "bad": "a!"},
        });
        match Template::parse(template).and_then(|template| template.render(&object)) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => error.to_string(),
        }
    }

    fn check(template: &str, expected: &str) {
        assert_eq!(said(template), expected, "{template}");
    }

    #[test]
    fn templates_print_what_go_prints() {
        check("{{range .items}}{{.metadata.name}}{{\"\\n\"}}{{end}}", "a\nb\n");
        check("{{index .data \"tls.crt\" | base64decode}}", "hello");
        check("{{range $k, $v := (index .items 0).metadata.labels}}{{$k}}={{$v}},{{end}}", "app=web,tier=back,");
        check("{{range $i, $_ := .items}}{{$i}}{{else}}none{{end}}{{range .none}}x{{else}}none{{end}}", "01none");
        check("{{if eq .kind \"Pod\"}}a{{else if eq .kind \"List\" \"Pod\"}}b{{else}}c{{end}}", "b");
        check("{{with .kind}}{{.}}{{end}}{{with .nosuch}}a{{else with .data}}{{len .}}{{end}}", "List2");
        check(
            "{{range .items}}{{if .list}}{{break}}{{end}}{{.metadata.name}}{{end}}{{range 3}}{{if not .}}{{continue}}{{end}}{{.}}{{end}}",
            "a12",
        );
        check(
            "{{.nosuch}} {{.nosuch.deeper}} {{index .data \"x\"}} {{range .items}}{{.none}} {{end}}",
            "<no value> <no value> <no value> <no value> <no value> ",
        );
        check(
            "{{(index .items 0).metadata}} {{(index .items 1).list}}",
            "map[generation:2 labels:map[app:web tier:back] name:a] [1 x <nil>]",
        );
        check(
            "{{with index .items 0}}{{.ratio}} {{.on}} {{printf \"%T %T %T\" .ratio .metadata.generation 1}}{{end}}",
            "0.25 true float64 int64 int",
        );
        check("a {{- 1 -}} b {{- /* gone */ -}} c {{/* gone */}} d", "a1bc  d");
        check("{{$x := 1}}{{if true}}{{$x = 2}}{{$x := 3}}{{end}}{{$x}} {{$.kind}}", "2 List");
        check(
            "{{define \"t\"}}<{{.}}>{{end}}{{template \"t\" .kind}}{{template \"t\"}}{{block \"b\" 3}}[{{.}}]{{end}}",
            "<List><<no value>>[3]",
        );
        check(
            "{{`raw\\n`}} {{'a'}} {{0x10}} {{017}} {{1_000}} {{-3}} {{1e6}} {{\"\\x41\\u00e9\\101\"}}",
            "raw\\n 97 16 15 1000 -3 1e+06 AéA",
        );
        check(
            "{{and 1 0}} {{or 0 .kind}} {{not .nosuch}} {{ne 1 2}} {{lt 1 2}} {{le 2 2}} {{gt 1.5 1.0}} {{ge \"b\" \"a\"}}",
            "0 List true true true true true true",
        );
        check("{{eq .nosuch nil}} {{eq .nosuch \"\"}} {{eq (index .items 0).metadata.generation 2}}", "true false true");
        check("{{slice .kind 1 3}} {{slice .items 0 1 | len}} {{index .kind 0}} {{len \"é\"}}", "is 1 76 2");
        check("{{exists .data \"bad\"}} {{exists .items 1 \"list\" 2}} {{exists .items 5}} {{exists .data}}", "true false false true");
        check(
            "{{html \"<a b='c'>\"}} {{js \"it's <\\n\"}} {{urlquery \"a b&é*~\"}}",
            "&lt;a b=&#39;c&#39;&gt; it\\'s \\u003C\\u000A a+b%26%C3%A9%2A~",
        );
        check("{{print 1 2 \"a\" \"b\" 3 4}}|{{println \"a\" 1}}|{{\"q\" | printf \"%s-%s\" \"p\"}}", "1 2ab3 4|a 1\n|p-q");
    }

    #[test]
    fn formats_are_those_of_go() {
        let check = |arguments: &str, expected: &str| check(&format!("{{{{printf {arguments}}}}}"), expected);
        check("\"%s %d %q %v %t\" \"a\" 3 \"b\\\"c\" nil true", "a 3 \"b\\\"c\" <nil> true");
        check("\"%-10s|%5s|%05d|%+d|% d|%.2s\" \"ab\" \"cd\" 42 5 5 \"abc\"", "ab        |   cd|00042|+5| 5|ab");
        check("\"%x %X %#x %x %o %b %c %U %q\" 255 255 255 \"hi\" 8 5 65 65 65", "ff FF 0xff 6869 10 101 A U+0041 'A'");
        check("\"%6.2f|%e|%g|%v|%08.3f\" 3.14159 1234.5 0.00001 1234567.0 3.14159", "  3.14|1.234500e+03|1e-05|1.234567e+06|0003.142");
        check("\"%d %s %z\" \"a\" 3 1", "%!d(string=a) %!s(int=3) %!z(int=1)");
        check("\"%d %d\" 1", "1 %!d(MISSING)");
        check("\"%d\" 1 \"x\" nil", "1%!(EXTRA string=x, <nil>)");
        check("\"100%% %\"", "100% %!(NOVERB)");
        check(
            "\"%q %d\" .data .data",
            "map[\"bad\":\"a!\" \"tls.crt\":\"aGVsbG8=\"] map[%!d(string=bad):%!d(string=a!) %!d(string=tls.crt):%!d(string=aGVsbG8=)]",
        );
    }

    #[test]
    fn mistakes_are_told_as_go_tells_them() {
        for (template, expected) in [
            ("{{.kind", "1: unclosed action"),
            ("\n{{if .kind}}\n{{.kind}", "3: bad character U+007D '}'"),
            ("{{if .kind}}", "1: unexpected EOF"),
            ("{{end}}", "1: unexpected {{end}}"),
            ("{{if}}{{end}}", "1: missing value for if"),
            ("{{nosuch}}", "1: function \"nosuch\" not defined"),
            ("{{$x}}", "1: undefined variable \"$x\""),
            ("{{break}}", "1: {{break}} outside {{range}}"),
            ("{{.kind | 3}}", "1: non executable command in pipeline stage 2"),
            ("{{\"a\".x}}", "1: unexpected . after term \"\\\"a\\\"\""),
            ("{{'ab'}}", "1: malformed character constant: 'ab'"),
            ("{{\"a}}", "1: unterminated quoted string"),
            ("{{/* a", "1: unclosed comment"),
            ("{{99999999999999999999}}", "1: integer overflow: \"99999999999999999999\""),
            ("{{ ( .kind }}", "1: unclosed left paren"),
            ("{{range $a, $b, $c := .}}{{end}}", "1: too many declarations in range"),
            ("\n  {{.kind.x}}", "2:9: executing \"output\" at <.kind.x>: can't evaluate field x in type interface {}"),
            ("{{template \"t\" 1}}", "1:11: executing \"output\" at <{{template \"t\" 1}}>: template \"t\" not defined"),
            ("{{index .nosuch 1}}", "1:2: executing \"output\" at <index .nosuch 1>: error calling index: index of untyped nil"),
            ("{{index .items 9}}", "1:2: executing \"output\" at <index .items 9>: error calling index: index out of range: 9"),
            ("{{range .kind}}{{end}}", "1:8: executing \"output\" at <.kind>: range can't iterate over List"),
            ("{{range .items}}{{.none.x}}{{end}}", "1:23: executing \"output\" at <.none.x>: nil pointer evaluating interface {}.x"),
            (
                "{{eq 1 \"a\"}}",
                "1:2: executing \"output\" at <eq 1 \"a\">: error calling eq: incompatible types for comparison: int and string",
            ),
            (
                "{{.data | base64decode}}",
                "1:10: executing \"output\" at <base64decode>: wrong type for value; expected string; got map[string]interface {}",
            ),
            (
                "{{base64decode .data.bad}}",
                "1:2: executing \"output\" at <base64decode .data.bad>: error calling base64decode: base64 decode failed: illegal base64 data at input byte 1",
            ),
            ("{{not 1 2}}", "1:2: executing \"output\" at <not>: wrong number of args for not: want 1 got 2"),
            ("{{nil}}", "1:2: executing \"output\" at <nil>: nil is not a command"),
        ] {
            assert_eq!(said(template), format!("template: output:{expected}"), "{template}");
        }
    }

    /// Texts that are templates by half: whatever they are, there is an answer.
    #[test]
    fn no_text_breaks_it() {
        const PARTS: &[&str] = &[
            "{{",
            "}}",
            "{{- ",
            " -}}",
            " ",
            "\n",
            ".",
            ".items",
            ".data",
            ".kind",
            "$",
            "$x",
            ":=",
            "=",
            ",",
            "|",
            "(",
            ")",
            "if ",
            "else ",
            "end",
            "range ",
            "with ",
            "define \"t\"",
            "template \"t\" ",
            "block \"b\" ",
            "break",
            "continue",
            "nil",
            "true",
            "1",
            "-1",
            "9",
            "1.5",
            "0x1f",
            "'a'",
            "'\\n'",
            "\"s\"",
            "\"\\xff\"",
            "`r`",
            "\"",
            "'",
            "`",
            "\\",
            "/* c */",
            "é",
            "index ",
            "slice ",
            "len ",
            "printf ",
            "\"%5.2x|%q|%-9v|%U\" ",
            "print ",
            "html ",
            "js ",
            "urlquery ",
            "eq ",
            "lt ",
            "and ",
            "or ",
            "not ",
            "exists ",
            "base64decode ",
        ];
        let mut seed = u64::from_ne_bytes(crate::base::id::random());
        println!("seed {seed}");
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..random(6) + 1 {
                let inside: String = (0..random(6)).map(|_| PARTS[random(PARTS.len())]).collect();
                text += &if random(4) == 0 { inside } else { format!("{{{{{inside}}}}}") };
            }
            said(&text);
        }
    }

    #[test]
    fn templates_nest_to_a_bound() {
        assert!(said("{{define \"t\"}}{{template \"t\"}}{{end}}{{template \"t\"}}").contains("exceeded maximum template depth"));
        assert!(said(&format!("{{{{{}1{}}}}}", "(".repeat(5000), ")".repeat(5000))).contains("max expression depth exceeded"));
        assert!(said(&"{{if 1}}".repeat(5000)).contains("nests too deep"));
        assert!(said(&format!("{{{{if 1}}}}{}", "{{else if 1}}".repeat(5000))).contains("nests too deep"));
    }
}
