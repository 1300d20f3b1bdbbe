//! Signatures of AWS requests (version 4), as far as tests need them to check one and to make another.
//! Source: "Signature Version 4 signing process", AWS General Reference.

use std::fmt::Write;

use ring::digest::{SHA256, digest};
use ring::hmac::{HMAC_SHA256, Key, sign};

/// Who signs.
#[derive(Debug, Clone, Copy)]
pub struct Signer<'a> {
    /// His access key.
    pub access_key: &'a str,
    /// Its secret.
    pub secret_key: &'a str,
}

/// The head of a request (with its empty line), taken apart.
struct Head<'a> {
    method: &'a str,
    target: &'a str,
    headers: Vec<(&'a str, &'a str)>,
}

impl<'a> Head<'a> {
    fn read(head: &'a str) -> Option<Self> {
        let mut lines = head.lines();
        let mut words = lines.next()?.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        let headers = lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim()));
        Some(Self { method, target, headers: headers.collect() })
    }

    fn header(&self, name: &str) -> Option<&'a str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }

    /// Scope, names of the headers that are signed, and signature: `Credential=KEY/SCOPE, SignedHeaders=A;B, Signature=…`
    fn authorization(&self) -> Option<(&'a str, &'a str, &'a str)> {
        let text = self.header("authorization")?.strip_prefix("AWS4-HMAC-SHA256 ")?;
        let part = |name: &str| text.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
        Some((part("Credential")?, part("SignedHeaders")?, part("Signature")?))
    }

    fn signature(&self, secret: &str, scope: &str, signed: &str) -> Option<String> {
        let (path, query) = self.target.split_once('?').unwrap_or((self.target, ""));
        let mut pairs: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).collect();
        pairs.sort_unstable();
        let pairs = pairs.iter().map(|pair| if pair.contains('=') { (*pair).to_owned() } else { format!("{pair}=") });
        let query = pairs.collect::<Vec<_>>().join("&");
        let mut canonical = format!("{}\n{path}\n{query}\n", self.method);
        for name in signed.split(';') {
            let value = self.header(name)?.split_whitespace().collect::<Vec<_>>().join(" ");
            writeln!(canonical, "{name}:{value}").ok()?;
        }
        let payload = self.header("x-amz-content-sha256")?;
        write!(canonical, "\n{signed}\n{payload}").ok()?;
        let hash = hex(digest(&SHA256, canonical.as_bytes()).as_ref());
        let to_sign = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{hash}", self.header("x-amz-date")?);
        let first = format!("AWS4{secret}").into_bytes();
        let key = scope.split('/').fold(first, |key, part| mac(&key, part));
        Some(hex(&mac(&key, &to_sign)))
    }
}

/// The same request signed by `with`, if it was signed well by `by` and carried his session token. The token goes.
pub fn sign_again(head: &str, by: Signer<'_>, token: &str, with: Signer<'_>) -> Option<String> {
    const TOKEN: &str = "x-amz-security-token";
    let request = Head::read(head)?;
    let (credential, signed, signature) = request.authorization()?;
    let (access_key, scope) = credential.split_once('/')?;
    let is_his = access_key == by.access_key && request.header(TOKEN) == Some(token);
    if !is_his || request.signature(by.secret_key, scope, signed)? != signature {
        return None;
    }
    let signed = signed.split(';').filter(|name| *name != TOKEN).collect::<Vec<_>>().join(";");
    let signature = request.signature(with.secret_key, scope, &signed)?;
    let mut again = format!("{} {} HTTP/1.1\r\n", request.method, request.target);
    for (name, value) in &request.headers {
        match name.to_ascii_lowercase().as_str() {
            TOKEN => {}
            "authorization" => {
                let key = with.access_key;
                let words =
                    format!("AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={signed}, Signature={signature}");
                write!(again, "{name}: {words}\r\n").ok()?;
            }
            _ => write!(again, "{name}: {value}\r\n").ok()?,
        }
    }
    Some(again + "\r\n")
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    sign(&Key::new(HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example "GET object" of the Amazon S3 API reference, "Signature calculations: transferring payload in a single chunk".
    #[test]
    fn the_documented_example_has_the_documented_signature() {
        let head = "GET /test.txt HTTP/1.1\r\nHost: examplebucket.s3.amazonaws.com\r\nRange: bytes=0-9\r\n\
                    x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\r\n\
                    x-amz-date: 20130524T000000Z\r\n\r\n";
        let scope = "20130524/us-east-1/s3/aws4_request";
        let signed = "host;range;x-amz-content-sha256;x-amz-date";
        let signature = Head::read(head).unwrap().signature("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", scope, signed);
        assert_eq!(signature.unwrap(), "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
    }
}
