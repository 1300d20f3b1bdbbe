//! `s3://bucket/prefix?endpoint=…&region=…&profile=…&path_style=…`

use std::fmt;

/// Where a store lies: the URL's parts, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Location {
    /// The bucket's name.
    pub bucket: String,
    /// What all names begin with; empty, or without a slash at either end.
    pub prefix: String,
    /// Another server than Amazon's, as `http://127.0.0.1:8333`; else the environment or the profile may name one.
    pub endpoint: Option<String>,
    /// The region; else the environment or the profile says it.
    pub region: Option<String>,
    /// Whose section of the shared configuration and credentials files is used.
    pub profile: Option<String>,
    /// Whether the bucket stands in the path of requests and not in the host name. By default for custom endpoints only, whose servers
    /// rarely have a host name per bucket.
    pub path_style: Option<bool>,
}

/// Why a URL is no location, in words for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLocation(pub String);

impl fmt::Display for BadLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadLocation {}

impl Location {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`BadLocation`] that says which part is wrong.
    pub fn parse(url: &str) -> Result<Self, BadLocation> {
        let bad = |what: &str| BadLocation(what.to_owned());
        let rest = url.strip_prefix("s3://").ok_or_else(|| bad("It does not begin with s3://"))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        if bucket.contains('@') || bucket.contains(':') {
            return Err(bad("No credentials or ports go before the path; write s3://BUCKET/PREFIX?endpoint=URL"));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if !(1..=255).contains(&bucket.len()) || !bucket.bytes().all(plain) {
            return Err(BadLocation(format!("{bucket:?} is no bucket's name")));
        }
        let prefix = decode(prefix).ok_or_else(|| bad("The prefix is not well encoded"))?.trim_matches('/').to_owned();
        if prefix.len() > 500 || prefix.split('/').any(|part| part == "." || part == "..") || prefix.contains("//") {
            return Err(bad("The prefix is too long or has empty parts, \".\" or \"..\""));
        }
        let mut location = Self { bucket: bucket.to_owned(), prefix, ..Self::default() };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value).ok_or_else(|| BadLocation(format!("The value of {key} is not well encoded")))?;
            location.set(key, value)?;
        }
        Ok(location)
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), BadLocation> {
        if value.is_empty() {
            return Err(BadLocation(format!("{key} has no value")));
        }
        match key {
            "endpoint" => {
                let host = value.strip_prefix("http://").or_else(|| value.strip_prefix("https://"));
                if host.is_none_or(|host| host.is_empty() || host.contains('@')) {
                    return Err(BadLocation("endpoint must be http://HOST:PORT or https://HOST:PORT".to_owned()));
                }
                self.endpoint = Some(value.trim_end_matches('/').to_owned());
            }
            "region" => self.region = Some(value),
            "profile" => self.profile = Some(value),
            "path_style" => {
                self.path_style = Some(match value.as_str() {
                    "true" => true,
                    "false" => false,
                    _ => return Err(BadLocation("path_style must be true or false".to_owned())),
                });
            }
            _ => {
                let known = "endpoint, region, profile, path_style";
                return Err(BadLocation(format!("There is no parameter {key:?}; there are {known}")));
            }
        }
        Ok(())
    }

    /// The full name of an object, or what all full names begin with.
    pub(crate) fn name(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}/{key}", self.prefix) }
    }
}

/// For messages: bucket, prefix and server. There is no secret in a location.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        let parts = [("endpoint", &self.endpoint), ("region", &self.region), ("profile", &self.profile)];
        let set = parts.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        for (i, (key, value)) in set.enumerate() {
            write!(f, "{}{key}={value}", if i == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

/// Percent-decoded text.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |b: u8| char::from(b).to_digit(16);
                u8::try_from(digit(rest.next()?)? * 16 + digit(rest.next()?)?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown() {
        let url = "s3://vault/a/b%20c/?endpoint=http%3A%2F%2F127.0.0.1:8333/&region=eu-1&profile=me&path_style=false";
        let location = Location::parse(url).unwrap();
        assert_eq!((location.bucket.as_str(), location.prefix.as_str()), ("vault", "a/b c"));
        assert_eq!(location.endpoint.as_deref(), Some("http://127.0.0.1:8333"));
        assert_eq!(location.path_style, Some(false));
        assert_eq!(location.to_string(), "s3://vault/a/b c?endpoint=http://127.0.0.1:8333&region=eu-1&profile=me");
        assert_eq!(location.name("config"), "a/b c/config");
        let plain = Location::parse("s3://vault").unwrap();
        assert_eq!((plain.to_string().as_str(), plain.name("config").as_str()), ("s3://vault", "config"));
        assert_eq!(plain.path_style, None);
    }

    #[test]
    fn wrong_urls_say_what_is_wrong() {
        for (url, word) in [
            ("s3://", "bucket"),
            ("s3:///x", "bucket"),
            ("s3://key:secret@bucket/x", "credentials"),
            ("s3://b/../x", "prefix"),
            ("s3://b/x%4", "encoded"),
            ("s3://b/x?endpoint=ftp://x", "endpoint"),
            ("s3://b/x?endpoint=http://key:secret@x", "endpoint"),
            ("s3://b/x?regoin=x", "regoin"),
            ("s3://b/x?region=", "no value"),
            ("s3://b/x?path_style=yes", "path_style"),
        ] {
            let error = Location::parse(url).expect_err(url).to_string();
            assert!(error.contains(word), "{url}: {error}");
            assert!(!error.contains("secret"), "{url}: {error}");
        }
    }
}
