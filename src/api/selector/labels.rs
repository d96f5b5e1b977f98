//! Label selectors: equality and set based, as text and as the `LabelSelector` of objects. It knows no object but its labels.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::Malformed;

/// A label selector: all requirements must hold. An empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    requirements: Vec<Requirement>,
    /// Set for the selector that matches nothing.
    nothing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// Requirements in one selector.
const REQUIREMENTS_MAX: usize = 1000;

impl Labels {
    /// Matches nothing: what a `LabelSelector` that is not there means.
    pub fn nothing() -> Self {
        Self { nothing: true, ..Self::default() }
    }

    /// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1,m<2`.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let mut requirements = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (requirement, after) = requirement(rest).map_err(|why| Malformed(format!("unable to parse requirement: {why}")))?;
            requirements.push(requirement);
            rest = after.trim_start();
            if let Some(after) = rest.strip_prefix(',') {
                rest = after.trim_start();
                if rest.is_empty() {
                    return Err(Malformed("found '', expected: identifier after ','".into()));
                }
            } else if !rest.is_empty() {
                return Err(Malformed(format!("found '{rest}', expected: ',' or 'end of string'")));
            }
            if requirements.len() > REQUIREMENTS_MAX {
                return Err(Malformed(format!("more than {REQUIREMENTS_MAX} requirements")));
            }
        }
        Ok(Self { requirements, nothing: false })
    }

    /// Reads a `LabelSelector` (`matchLabels`, `matchExpressions`). Null matches nothing, `{}` everything, as upstream has it.
    pub fn from_selector(selector: &Value) -> Result<Self, Malformed> {
        let Value::Object(selector) = selector else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement { key: key.clone(), operator: Operator::In, values: vec![value] });
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            requirements.push(expression_of(expression)?);
        }
        Ok(Self { requirements, nothing: false })
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// Judges labels given as a JSON object; anything else has no labels.
    pub fn matches(&self, labels: &Value) -> bool {
        self.judge(|key| labels.get(key).and_then(Value::as_str))
    }

    pub fn matches_map(&self, labels: &BTreeMap<String, String>) -> bool {
        self.judge(|key| labels.get(key).map(String::as_str))
    }

    /// Judges labels that `get` looks up.
    pub fn judge<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.holds(get(&requirement.key)))
    }
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|known| known == value);
        let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
        match self.operator {
            Operator::In => value.is_some_and(listed),
            Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => match (number(value), number(self.values.first().map(String::as_str))) {
                (Some(value), Some(bound)) => (self.operator == Operator::GreaterThan) == (value > bound) && value != bound,
                _ => false,
            },
        }
    }
}

/// Canonical text, as upstream prints it; it reads back as the same selector.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            let Requirement { key, operator, values } = requirement;
            if index > 0 {
                f.write_str(",")?;
            }
            let mut sorted = values.clone();
            sorted.sort();
            let list = sorted.join(",");
            match operator {
                Operator::In if values.len() == 1 => write!(f, "{key}={list}")?,
                Operator::In => write!(f, "{key} in ({list})")?,
                Operator::NotIn if values.len() == 1 => write!(f, "{key}!={list}")?,
                Operator::NotIn => write!(f, "{key} notin ({list})")?,
                Operator::Exists => write!(f, "{key}")?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::GreaterThan => write!(f, "{key}>{list}")?,
                Operator::LessThan => write!(f, "{key}<{list}")?,
            }
        }
        Ok(())
    }
}

/// Reads the first requirement of `text` and gives back what follows.
fn requirement(text: &str) -> Result<(Requirement, &str), String> {
    if let Some(rest) = text.strip_prefix('!') {
        let (key, rest) = key(rest.trim_start())?;
        return Ok((Requirement { key, operator: Operator::DoesNotExist, values: Vec::new() }, rest));
    }
    let (key, rest) = key(text)?;
    let rest = rest.trim_start();
    let one = |operator, rest: &str| -> Result<(Requirement, usize), String> {
        let trimmed = rest.trim_start();
        let end = trimmed.find(',').unwrap_or(trimmed.len());
        let value = trimmed[..end].trim();
        check_value(value)?;
        Ok((Requirement { key: key.clone(), operator, values: vec![value.to_owned()] }, rest.len() - trimmed.len() + end))
    };
    for (symbol, operator) in
        [("==", Operator::In), ("!=", Operator::NotIn), ("=", Operator::In), (">", Operator::GreaterThan), ("<", Operator::LessThan)]
    {
        let Some(after) = rest.strip_prefix(symbol) else { continue };
        let (requirement, used) = one(operator, after)?;
        if matches!(operator, Operator::GreaterThan | Operator::LessThan) && requirement.values[0].parse::<i64>().is_err() {
            return Err("for 'Gt', 'Lt' operators, the value must be an integer".into());
        }
        return Ok((requirement, &after[used..]));
    }
    for (word, operator) in [("notin", Operator::NotIn), ("in", Operator::In)] {
        let Some(after) = rest.strip_prefix(word) else { continue };
        let Some(list) = after.trim_start().strip_prefix('(') else { return Err(format!("found '{after}' expected: '('")) };
        let (inside, after) = list.split_once(')').ok_or_else(|| format!("found '{list}', expected: ',', or ')'"))?;
        let values: Vec<String> = inside.split(',').map(|value| value.trim().to_owned()).collect();
        values.iter().try_for_each(|value| check_value(value))?;
        return Ok((Requirement { key, operator, values }, after));
    }
    if rest.is_empty() || rest.starts_with(',') {
        return Ok((Requirement { key, operator: Operator::Exists, values: Vec::new() }, rest));
    }
    Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", rest.split([',', ' ']).next().unwrap_or_default()))
}

fn key(text: &str) -> Result<(String, &str), String> {
    let end = text.find(|c: char| c.is_whitespace() || "=!<>,()".contains(c)).unwrap_or(text.len());
    let key = &text[..end];
    let name = key.rsplit('/').next().unwrap_or_default();
    if name.is_empty() || name.len() > 63 || key.matches('/').count() > 1 || !word(name) {
        return Err(format!("<nil>: Invalid value: \"{key}\": name part must consist of alphanumeric characters, '-', '_' or '.'"));
    }
    Ok((key.to_owned(), &text[end..]))
}

fn check_value(value: &str) -> Result<(), String> {
    if value.len() > 63 || !value.is_empty() && !word(value) {
        return Err(format!(
            "values[0][]: Invalid value: \"{value}\": a valid label must be an empty string or consist of alphanumeric characters, '-', \
                '_' or '.', and must start and end with an alphanumeric character"
        ));
    }
    Ok(())
}

fn word(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

fn expression_of(expression: &Value) -> Result<Requirement, Malformed> {
    let text = |key: &str| expression.get(key).and_then(Value::as_str).unwrap_or_default();
    let operator = match text("operator") {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan,
        "Lt" => Operator::LessThan,
        other => return Err(Malformed(format!("\"{other}\" is not a valid label selector operator"))),
    };
    let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
    let values = values.map(|value| value.as_str().unwrap_or_default().to_owned()).collect();
    Ok(Requirement { key: text("key").into(), operator, values })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn label_selectors_match_as_written() {
        let labels = json!({"app": "web", "tier": "front", "n": "5", "example.com/x": ""});
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app == web", true),
            ("app=db", false),
            ("app!=db", true),
            ("missing!=db", true),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("app in (web, db)", true),
            ("app in (db)", false),
            ("app notin (db),tier=front", true),
            ("app notin (web)", false),
            ("missing notin (a)", true),
            ("n>4", true),
            ("n>5", false),
            ("n<6", true),
            ("n<5", false),
            ("example.com/x=", true),
            ("example.com/x", true),
            ("app=web,tier=back", false),
            (" app = web , tier ", true),
        ] {
            assert_eq!(Labels::parse(selector).unwrap().matches(&labels), expected, "{selector}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for text in ["a=b=c", "=", "a in b", "a in (b", "a,", "a b", "a/b/c=d", "-a=b", "a=b c", "a>x", "!", "a=-"] {
            assert!(Labels::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn label_selector_objects_match_as_their_text() {
        let selector = json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["front", "back"]},
            {"key": "x", "operator": "DoesNotExist"}]});
        let selector = Labels::from_selector(&selector).unwrap();
        assert_eq!(selector.to_string(), "app=web,tier in (back,front),!x");
        assert_eq!(Labels::parse(&selector.to_string()).unwrap().to_string(), selector.to_string());
        assert!(selector.matches(&json!({"app": "web", "tier": "back"})) && !selector.matches(&json!({"app": "web"})));
        assert!(!Labels::from_selector(&Value::Null).unwrap().matches(&json!({})));
        assert!(Labels::from_selector(&json!({})).unwrap().is_everything());
        assert!(Labels::from_selector(&json!({"matchExpressions": [{"key": "a", "operator": "Is"}]})).is_err());
    }
}
