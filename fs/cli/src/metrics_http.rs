//! The metrics over HTTP, for a Prometheus that scrapes: `GET /metrics`, nothing else.
//!
//! One connection at a time, each with a time limit and a bound on what it may send, so that no client can make the daemon
//! hold more than one thread and a few KiB. Written here because what is needed is a page of code, and the small server
//! crates there are have had no release for years.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use axiomfs_mount::Control;

use crate::failure::Failure;

/// Time for a client to send its request and to take the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest request read, in bytes.
const MAX_REQUEST: usize = 8 << 10;
/// Pause after a failed accept, so that a lack of descriptors is no busy loop.
const PAUSE: Duration = Duration::from_millis(200);

/// `HOST:PORT`, or a port alone, which is then this machine's only.
///
/// # Errors
/// In words, for the command line.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let port = text.parse::<u16>().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    port.or_else(|_| text.parse()).map_err(|_| "give an address and a port, as 127.0.0.1:9184, or a port".to_owned())
}

/// Listens; [`Listener::serve`] then answers.
///
/// # Errors
/// [`Failure`] if the address can't be used.
pub fn listen(address: SocketAddr) -> Result<Listener, Failure> {
    TcpListener::bind(address).map(Listener).map_err(|error| {
        Failure::caused(format!("Could not serve metrics on {address}"), &error)
            .hint("choose another --metrics address")
    })
}

/// A socket that nobody answers yet.
#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    /// Where it listens: the port that was chosen, if it was 0.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.local_addr().ok()
    }

    /// Answers on a thread of its own until the process ends.
    pub fn serve(self, control: Arc<dyn Control>) {
        let listener = self.0;
        thread::spawn(move || {
            for connection in listener.incoming() {
                let done = connection.and_then(|stream| answer(stream, &*control));
                if let Err(error) = done {
                    tracing::debug!(%error, "a client of the metrics was not answered");
                    if !matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock | ErrorKind::BrokenPipe) {
                        thread::sleep(PAUSE);
                    }
                }
            }
        });
    }
}

fn answer(mut stream: TcpStream, control: &dyn Control) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = read_request(&mut stream)?;
    let (status, body) = match first_line(&request) {
        Some(["GET", "/metrics"]) => ("200 OK", control.metrics()),
        Some(["GET", _]) => ("404 Not Found", "Only /metrics is here\n".to_owned()),
        Some(_) => ("405 Method Not Allowed", "Only GET is answered\n".to_owned()),
        None => ("400 Bad Request", "This is not HTTP\n".to_owned()),
    };
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

/// What comes up to the empty line, the bound or the time limit.
fn read_request(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let start = Instant::now();
    let mut request = Vec::new();
    let mut block = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MAX_REQUEST {
        if start.elapsed() > PATIENCE {
            return Err(ErrorKind::TimedOut.into());
        }
        match stream.read(&mut block)? {
            0 => break,
            n => request.extend_from_slice(&block[..n]),
        }
    }
    Ok(request)
}

/// Method and path (without a query) of the request line.
fn first_line(request: &[u8]) -> Option<[&str; 2]> {
    let line = request.split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.trim_end().split(' ');
    let (method, target) = (words.next()?, words.next()?);
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    Some([method, target.split('?').next()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_for_this_machine_only() {
        assert_eq!(parse_address("9184").unwrap().to_string(), "127.0.0.1:9184");
        assert_eq!(parse_address("0.0.0.0:80").unwrap().to_string(), "0.0.0.0:80", "told otherwise");
        assert!(parse_address("localhost").is_err() && parse_address("99999").is_err() && parse_address("").is_err());
    }

    #[test]
    fn request_lines_are_read_and_nothing_else_is() {
        assert_eq!(first_line(b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n"), Some(["GET", "/metrics"]));
        for bad in [&b""[..], b"GET", b"GET /metrics", b"GET /metrics SMTP\r\n", b"\xff\xfe / HTTP/1.1"] {
            assert_eq!(first_line(bad), None);
        }
    }
}
