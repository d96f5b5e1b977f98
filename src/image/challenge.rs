//! What a registry says about how to log in, in its WWW-Authenticate headers. It never logs in.

/// One way to log in that a registry offers: `Bearer realm="…",service="…",scope="…"`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Challenge {
    /// Lower case.
    pub scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Reads WWW-Authenticate (RFC 9110, section 11.6.1): several challenges, each a word and parameters, quoted or not.
pub fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let word = &rest[..end];
        if word.is_empty() {
            return challenges;
        }
        rest = &rest[end..];
        let Some(value) = rest.strip_prefix('=') else {
            challenges.push(Challenge { scheme: word.to_lowercase(), parameters: Vec::new() });
            continue;
        };
        let value_end;
        let value = match value.strip_prefix('"') {
            Some(quoted) => {
                let mut text = String::new();
                let mut characters = quoted.char_indices();
                value_end = loop {
                    match characters.next() {
                        Some((at, '"')) => break value.len() - quoted.len() + at + 1,
                        Some((_, '\\')) => text.extend(characters.next().map(|(_, it)| it)),
                        Some((_, it)) => text.push(it),
                        None => break value.len(),
                    }
                };
                text
            }
            None => {
                value_end = value.find([' ', '\t', ',']).unwrap_or(value.len());
                value[..value_end].to_owned()
            }
        };
        rest = &rest[1 + value_end..];
        if let Some(challenge) = challenges.last_mut() {
            challenge.parameters.push((word.to_lowercase(), value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(scheme: &str, parameters: &[(&str, &str)]) -> Challenge {
        let parameters = parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Challenge { scheme: scheme.to_owned(), parameters }
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let check = |header: &str, expected: &[Challenge]| assert_eq!(parse(header), expected, "{header}");
        check("", &[]);
        check("Basic realm=\"r\"", &[challenge("basic", &[("realm", "r")])]);
        check(
            "Bearer realm=\"https://auth.example/token\",service=\"registry\",scope=\"repository:a/b:pull,push\"",
            &[challenge(
                "bearer",
                &[("realm", "https://auth.example/token"), ("service", "registry"), ("scope", "repository:a/b:pull,push")],
            )],
        );
        check(
            "Negotiate, BASIC realm=\"a \\\"b\\\"\" , Bearer realm=x, error=invalid_token",
            &[
                challenge("negotiate", &[]),
                challenge("basic", &[("realm", "a \"b\"")]),
                challenge("bearer", &[("realm", "x"), ("error", "invalid_token")]),
            ],
        );
        check("Basic realm=\"open", &[challenge("basic", &[("realm", "open")])]);
    }
}
