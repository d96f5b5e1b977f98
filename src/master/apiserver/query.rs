//! The query parameters of the API: ListOptions, CreateOptions, UpdateOptions, PatchOptions and TableOptions of meta/v1 in one.
//! Unknown parameters are ignored, as upstream does; the streams read theirs from `pairs`.

use crate::api::status::Status;

/// What to do about unknown and duplicate fields of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VersionMatch {
    #[default]
    Unset,
    Exact,
    NotOlderThan,
}

/// What a row of a Table carries beside its cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

#[derive(Clone, Debug, Default)]
pub struct Query {
    pub label_selector: String,
    pub field_selector: String,
    /// Objects in one answer; 0 is all.
    pub limit: usize,
    pub continue_token: String,
    pub resource_version: String,
    pub resource_version_match: VersionMatch,
    pub watch: bool,
    pub allow_watch_bookmarks: bool,
    pub send_initial_events: Option<bool>,
    pub timeout_seconds: Option<u64>,
    pub include_object: IncludeObject,
    pub field_manager: String,
    pub field_validation: FieldValidation,
    pub force: bool,
    pub dry_run: bool,
    /// Parameters of DeleteOptions may also come in the query.
    pub grace_period_seconds: Option<i64>,
    pub propagation_policy: String,
    /// All of them, decoded, in order.
    pub pairs: Vec<(String, String)>,
}

impl Query {
    /// Reads the part of a URL after `?`.
    ///
    /// # Errors
    /// 400 for a value that its parameter cannot have.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let mut query = Self::default();
        for (key, value) in form_urlencoded::parse(text.as_bytes()) {
            query.set(&key, &value)?;
            query.pairs.push((key.into_owned(), value.into_owned()));
        }
        Ok(query)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Status> {
        match key {
            "labelSelector" => self.label_selector = value.into(),
            "fieldSelector" => self.field_selector = value.into(),
            "limit" => self.limit = number(key, value)?.unwrap_or(0),
            "continue" => self.continue_token = value.into(),
            "resourceVersion" => self.resource_version = value.into(),
            "resourceVersionMatch" => {
                self.resource_version_match = match value {
                    "" => VersionMatch::Unset,
                    "Exact" => VersionMatch::Exact,
                    "NotOlderThan" => VersionMatch::NotOlderThan,
                    _ => return Err(unsupported(key, value, &["Exact", "NotOlderThan"])),
                }
            }
            "watch" => self.watch = boolean(value),
            "allowWatchBookmarks" => self.allow_watch_bookmarks = boolean(value),
            "sendInitialEvents" => self.send_initial_events = Some(boolean(value)),
            "timeoutSeconds" => self.timeout_seconds = number(key, value)?,
            "includeObject" => {
                self.include_object = match value {
                    "" | "Metadata" => IncludeObject::Metadata,
                    "Object" => IncludeObject::Object,
                    "None" => IncludeObject::None,
                    _ => return Err(unsupported(key, value, &["Metadata", "None", "Object"])),
                }
            }
            "fieldManager" if value.len() > 128 => {
                return Err(Status::bad_request("fieldManager: Too long: may not be more than 128 bytes"));
            }
            "fieldManager" => self.field_manager = value.into(),
            "fieldValidation" => {
                self.field_validation = match value {
                    "" | "Warn" => FieldValidation::Warn,
                    "Strict" => FieldValidation::Strict,
                    "Ignore" => FieldValidation::Ignore,
                    _ => return Err(unsupported(key, value, &["Ignore", "Strict", "Warn"])),
                }
            }
            "force" => self.force = boolean(value),
            "dryRun" => match value {
                "" => (),
                "All" => self.dry_run = true,
                _ => return Err(unsupported(key, value, &["All"])),
            },
            "gracePeriodSeconds" => self.grace_period_seconds = number(key, value)?,
            "propagationPolicy" => self.propagation_policy = value.into(),
            _ => (),
        }
        Ok(())
    }

    /// The first value of a parameter, "" if it is not there.
    pub fn get(&self, key: &str) -> &str {
        self.pairs.iter().find(|pair| pair.0 == key).map_or("", |pair| &pair.1)
    }
}

/// As upstream reads them: `true`, `1`, and also the bare name, are true.
pub fn boolean(value: &str) -> bool {
    !(value == "0" || value.eq_ignore_ascii_case("false"))
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<Option<T>, Status> {
    if value.is_empty() {
        return Ok(None);
    }
    value.parse().map(Some).map_err(|_| Status::bad_request(format!("{key}: Invalid value: {value:?}: must be a number in range")))
}

fn unsupported(key: &str, value: &str, supported: &[&str]) -> Status {
    let supported: Vec<String> = supported.iter().map(|each| format!("{each:?}")).collect();
    Status::bad_request(format!("{key}: Unsupported value: {value:?}: supported values: {}", supported.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_as_clients_send_them() {
        let query =
            Query::parse("&limit=500&labelSelector=a%3Db%2Cc+in+(d)&watch=1&dryRun=All&fieldValidation=Strict&timeout=32s").unwrap();
        assert_eq!((query.limit, &*query.label_selector, query.watch, query.dry_run), (500, "a=b,c in (d)", true, true));
        assert_eq!((query.field_validation, query.get("timeout")), (FieldValidation::Strict, "32s"));
        assert!(Query::parse("sendInitialEvents=true&allowWatchBookmarks=true").unwrap().send_initial_events.unwrap());
        assert!(!Query::parse("watch=False").unwrap().watch);
        for bad in ["limit=x", "dryRun=Some", "fieldValidation=strict", "resourceVersionMatch=Older", "includeObject=x"] {
            assert_eq!(Query::parse(bad).unwrap_err().code, 400, "{bad}");
        }
    }
}
