//! Which form of an answer the client takes best: the object, a Table of it, its metadata alone, or aggregated discovery.
//! All answers are JSON; a protobuf form is never chosen, because every client that asks for it also takes JSON.

use hyper::HeaderMap;
use hyper::header::{ACCEPT, ACCEPT_ENCODING};

/// The version of `meta.k8s.io` in which a transformed answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaVersion {
    V1,
    V1beta1,
}

impl MetaVersion {
    pub fn api_version(self) -> &'static str {
        match self {
            MetaVersion::V1 => "meta.k8s.io/v1",
            MetaVersion::V1beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Plain,
    Table(MetaVersion),
    /// `PartialObjectMetadata` for one object, `PartialObjectMetadataList` for a list.
    Metadata(MetaVersion),
    /// `APIGroupDiscoveryList` of apidiscovery.k8s.io/v2.
    Aggregated,
}

/// What a path can answer with beside the plain object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offers {
    Plain,
    Transformed,
    Discovery,
}

/// The media types of a 406.
pub const ACCEPTED: &str = "application/json";

/// The first acceptable form of the Accept header, best quality first. None: 406.
pub fn form(headers: &HeaderMap, offers: Offers) -> Option<Form> {
    let mut clauses: Vec<(f32, &str)> = Vec::new();
    for header in headers.get_all(ACCEPT) {
        for clause in header.to_str().unwrap_or_default().split(',').map(str::trim).filter(|clause| !clause.is_empty()) {
            let quality = parameter(clause, "q").and_then(|q| q.parse().ok()).unwrap_or(1.0);
            clauses.push((quality, clause));
        }
    }
    if clauses.is_empty() {
        return Some(Form::Plain);
    }
    clauses.sort_by(|a, b| b.0.total_cmp(&a.0));
    clauses.into_iter().find_map(|(_, clause)| clause_form(clause, offers))
}

fn clause_form(clause: &str, offers: Offers) -> Option<Form> {
    let media_type = clause.split(';').next().unwrap_or_default().trim();
    if !["application/json", "application/*", "*/*"].contains(&media_type) {
        return None;
    }
    let version = match parameter(clause, "v") {
        Some("v1beta1") => MetaVersion::V1beta1,
        _ => MetaVersion::V1,
    };
    let group = parameter(clause, "g");
    match (parameter(clause, "as"), offers) {
        (None, _) => Some(Form::Plain),
        (Some("Table"), Offers::Transformed) if group == Some("meta.k8s.io") => Some(Form::Table(version)),
        (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Offers::Transformed) if group == Some("meta.k8s.io") => {
            Some(Form::Metadata(version))
        }
        (Some("APIGroupDiscoveryList"), Offers::Discovery) if parameter(clause, "v") == Some("v2") => Some(Form::Aggregated),
        _ => None,
    }
}

fn parameter<'a>(clause: &'a str, name: &str) -> Option<&'a str> {
    clause.split(';').skip(1).find_map(|parameter| {
        let (key, value) = parameter.split_once('=')?;
        (key.trim() == name).then(|| value.trim().trim_matches('"'))
    })
}

/// Whether a large answer may be compressed.
pub fn takes_gzip(headers: &HeaderMap) -> bool {
    let encodings = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    encodings.flat_map(|value| value.split(',')).any(|encoding| {
        let encoding = encoding.trim();
        encoding.split(';').next() == Some("gzip") && !encoding.ends_with("q=0")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, offers: Offers, expected: Option<Form>) {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(ACCEPT, accept.parse().unwrap());
        }
        assert_eq!(form(&headers, offers), expected, "{accept}");
    }

    #[test]
    fn the_first_form_that_can_be_given_is_chosen() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        check(kubectl, Offers::Transformed, Some(Form::Table(MetaVersion::V1)));
        check(kubectl, Offers::Plain, Some(Form::Plain));
        check("application/json;as=Table;v=v1beta1;g=meta.k8s.io", Offers::Transformed, Some(Form::Table(MetaVersion::V1beta1)));
        check("application/json;as=Table;v=v1;g=meta.k8s.io", Offers::Plain, None);
        check("", Offers::Transformed, Some(Form::Plain));
        check("application/vnd.kubernetes.protobuf,application/json", Offers::Transformed, Some(Form::Plain));
        check("application/vnd.kubernetes.protobuf, */*", Offers::Transformed, Some(Form::Plain));
        check("application/vnd.kubernetes.protobuf", Offers::Transformed, None);
        check("application/com.github.proto-openapi.spec.v2@v1.0+protobuf", Offers::Plain, None);
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,\
                        application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        check(metadata, Offers::Transformed, Some(Form::Metadata(MetaVersion::V1)));
        let discovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                         application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        check(discovery, Offers::Discovery, Some(Form::Aggregated));
        check("text/html;q=0.9, application/json;q=0.1", Offers::Plain, Some(Form::Plain));
    }

    #[test]
    fn gzip_is_used_only_when_asked_for() {
        let mut headers = HeaderMap::new();
        assert!(!takes_gzip(&headers));
        headers.insert(ACCEPT_ENCODING, "deflate, gzip;q=1.0".parse().unwrap());
        assert!(takes_gzip(&headers));
        headers.insert(ACCEPT_ENCODING, "gzip;q=0".parse().unwrap());
        assert!(!takes_gzip(&headers));
    }
}
