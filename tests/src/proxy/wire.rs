//! Requests and answers of HTTP/1.1 as they lie on the wire.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use super::{Answer, Request};

pub(super) fn ask(connection: &mut BufReader<TcpStream>, request: &Request<'_>) -> io::Result<(Vec<u8>, u64)> {
    connection.get_mut().write_all(&request.head)?;
    connection.get_mut().write_all(&request.body)?;
    loop {
        let (head, len) = read_head(connection)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if head.get(9..12) != Some(b"100") {
            return Ok((head, len));
        }
    }
}

/// Whether a body follows the head of an answer.
pub(super) fn has_body(head: &[u8], request: &Request<'_>) -> bool {
    request.seen.method != "HEAD" && !matches!(head.get(9..12), Some(b"204" | b"304"))
}

pub(super) fn is_chunked(head: &[u8]) -> bool {
    find(head, "transfer-encoding").is_some()
}

/// All of an answer whose head has come.
pub(super) fn whole(
    connection: &mut BufReader<TcpStream>,
    request: &Request<'_>,
    mut head: Vec<u8>,
    len: u64,
) -> io::Result<Answer> {
    let mut body = Vec::new();
    if !has_body(&head, request) {
        return Ok(Answer { head, body });
    }
    if is_chunked(&head) {
        read_chunks(connection, &mut body)?;
        let text = String::from_utf8_lossy(&head).into_owned();
        let chunked = |line: &str| line.to_ascii_lowercase().starts_with("transfer-encoding");
        let without: Vec<&str> = text.lines().filter(|line| !chunked(line)).collect();
        let without = without.join("\r\n");
        head = format!("{}\r\nContent-Length: {}\r\n\r\n", without.trim_end(), body.len()).into_bytes();
    } else {
        connection.by_ref().take(len).read_to_end(&mut body)?;
        if body.len() as u64 != len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Answer { head, body })
}

pub(super) fn read_chunks(connection: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let mut line = String::new();
        connection.read_line(&mut line)?;
        let len = u64::from_str_radix(line.trim(), 16).map_err(|_| io::ErrorKind::InvalidData)?;
        connection.by_ref().take(len).read_to_end(body)?;
        connection.read_line(&mut String::new())?;
        if len == 0 {
            return Ok(());
        }
    }
}

/// A request's or answer's head with its empty line, and the length of its body. `None` at the end of the connection.
pub(super) fn read_head(reader: &mut impl BufRead) -> io::Result<Option<(Vec<u8>, u64)>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if reader.read_until(b'\n', &mut head)? == 0 {
            return Ok(None);
        }
    }
    let len = find(&head, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    Ok(Some((head, len)))
}

pub(super) fn find(head: &[u8], name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(head);
    text.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}
