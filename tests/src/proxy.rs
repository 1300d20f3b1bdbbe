//! A proxy between the program and an S3 server that does to requests what networks and busy servers do.

mod wire;

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use wire::{ask, find, has_body, is_chunked, read_head, whole};

/// Longest silence of the server behind.
const BEHIND: Duration = Duration::from_secs(60);

/// A request as a plan of faults sees it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `GET`, `PUT`, `HEAD`, `DELETE`.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// All of its header lines.
    pub headers: String,
    /// Requests before this one.
    pub number: u64,
}

impl Seen {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<String> {
        find(self.headers.as_bytes(), name)
    }

    /// Whether it is a listing.
    pub fn is_list(&self) -> bool {
        self.target.contains("list-type=2")
    }

    /// What it is counted as: its method, `LIST` for a listing.
    pub fn kind(&self) -> &str {
        if self.is_list() { "LIST" } else { &self.method }
    }
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trick {
    /// It passes.
    Pass,
    /// It passes after a while.
    Late(Duration),
    /// It is answered with this status and code, and not carried out.
    Refuse(u16, &'static str),
    /// The connection breaks in the middle of its body, or before its answer if it has none.
    Reset,
    /// It is carried out, and its answer ends half-way: in its body, in its head if it has none.
    CutShort,
    /// Nothing is said for this long, then the connection ends.
    Silence(Duration),
    /// A byte in the middle of the answer's body is another one; of the request's if it has a body.
    Flip,
    /// It is carried out, and the connection ends without an answer.
    LoseReply,
    /// A listing shows what the same one showed first.
    OldList,
    /// A refused condition is answered as if the request had been carried out.
    PretendSuccess,
}

/// A request's body on its way to the server.
#[derive(Debug, Clone, Copy)]
pub struct Upload {
    /// Its length in bytes.
    pub bytes: u64,
    /// When its head had come.
    pub begun: Instant,
    /// When its last byte had come.
    pub ended: Instant,
}

/// What went over the wire for one request: as the program sent it and as it was answered.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// The request's head.
    pub request: Seen,
    /// Its body.
    pub sent: Vec<u8>,
    /// Head and body of the answer, empty if there was none.
    pub answered: Vec<u8>,
}

/// Requests of one kind.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    so_far: u64,
    now: u64,
    most: u64,
}

type Rewrite = dyn Fn(&str) -> Option<String> + Send + Sync;
type Plan = dyn Fn(&Seen) -> Trick + Send + Sync;

struct Shared {
    upstream: u16,
    plan: RwLock<Arc<Plan>>,
    rewrite: RwLock<Option<Arc<Rewrite>>>,
    down: AtomicBool,
    stopped: AtomicBool,
    seen: AtomicU64,
    tricks: Mutex<HashMap<(String, Trick), u64>>,
    counts: Mutex<HashMap<String, Count>>,
    /// While somebody wants them.
    exchanges: Mutex<Option<Vec<Exchange>>>,
    lists: Mutex<HashMap<String, Answer>>,
    uploads: Mutex<Vec<Upload>>,
}

/// A running proxy.
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    shared: Arc<Shared>,
}

struct Request<'a> {
    seen: Seen,
    head: Vec<u8>,
    body: Vec<u8>,
    under_way: Option<UnderWay<'a>>,
}

#[derive(Clone)]
struct Answer {
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Proxy {
    /// Starts one in front of what listens at `upstream`.
    ///
    /// # Panics
    /// When there is no port.
    pub fn start(upstream: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            upstream,
            plan: RwLock::new(Arc::new(|_| Trick::Pass)),
            rewrite: RwLock::default(),
            down: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            seen: AtomicU64::new(0),
            tricks: Mutex::default(),
            counts: Mutex::default(),
            exchanges: Mutex::default(),
            lists: Mutex::default(),
            uploads: Mutex::default(),
        });
        let serving = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if serving.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let shared = serving.clone();
                thread::spawn(move || {
                    // A broken connection is what this is for.
                    shared.serve(&client).unwrap_or_default();
                });
            }
        });
        Proxy { port, shared }
    }

    /// From now on requests meet what `plan` says.
    pub fn plan(&self, plan: impl Fn(&Seen) -> Trick + Send + Sync + 'static) {
        *self.shared.plan.write().expect("no plan panics") = Arc::new(plan);
    }

    /// From now on the server gets what `rewrite` makes of a request's head; the head itself where it makes nothing.
    pub fn rewrite(&self, rewrite: impl Fn(&str) -> Option<String> + Send + Sync + 'static) {
        *self.shared.rewrite.write().expect("no panic") = Some(Arc::new(rewrite));
    }

    /// The store goes, or comes back: connections end and none is answered.
    pub fn down(&self, down: bool) {
        self.shared.down.store(down, Ordering::SeqCst);
    }

    /// Requests so far, tricked ones included.
    pub fn requests(&self) -> u64 {
        self.shared.seen.load(Ordering::SeqCst)
    }

    /// Requests that did not simply pass.
    pub fn tricks(&self) -> u64 {
        self.shared.tricks.lock().expect("no panic").values().sum()
    }

    /// Requests of a kind that met this trick.
    pub fn tricked(&self, kind: &str, trick: Trick) -> u64 {
        self.shared.tricks.lock().expect("no panic").get(&(kind.to_owned(), trick)).copied().unwrap_or(0)
    }

    /// From now on all that passes is kept.
    pub fn record(&self) {
        *self.shared.exchanges.lock().expect("no panic") = Some(Vec::new());
    }

    /// What passed since [`Proxy::record`]; nothing is kept any more.
    pub fn recorded(&self) -> Vec<Exchange> {
        self.shared.exchanges.lock().expect("no panic").take().unwrap_or_default()
    }

    /// Bodies that came from the program.
    pub fn uploads(&self) -> Vec<Upload> {
        self.shared.uploads.lock().expect("no panic").clone()
    }

    /// Requests so far with this method, `LIST` for listings.
    pub fn count(&self, method: &str) -> u64 {
        self.shared.count(method).so_far
    }

    /// The most requests of this kind that were under way at the same moment, since the proxy began or was last asked.
    pub fn most_at_once(&self, kind: &str) -> u64 {
        let mut counts = self.shared.counts.lock().expect("no panic");
        let count = counts.entry(kind.to_owned()).or_default();
        std::mem::replace(&mut count.most, count.now)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // The listener looks up at the next connection.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

impl Shared {
    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut reader = BufReader::with_capacity(256 << 10, client.try_clone()?);
        let mut behind: Option<BufReader<TcpStream>> = None;
        while !self.down.load(Ordering::SeqCst) && !self.stopped.load(Ordering::SeqCst) {
            let Some((head, len)) = read_head(&mut reader)? else { break };
            let seen = self.note(&head);
            let under_way = Some(UnderWay::begin(self, &seen));
            let trick = if self.down.load(Ordering::SeqCst) { Trick::Reset } else { self.trick(&seen) };
            if trick == Trick::Reset {
                // Bytes that nobody reads turn the end of the connection into a reset.
                let half = usize::try_from(len / 2).unwrap_or(usize::MAX);
                reader.read_exact(&mut vec![0; half])?;
                break;
            }
            if find(&head, "expect").is_some() {
                (&*client).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let rewrite = self.rewrite.read().expect("no panic").clone();
            let head = rewrite.and_then(|rewrite| rewrite(&seen.headers)).map_or(head, String::into_bytes);
            let begun = Instant::now();
            let mut body = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
            reader.read_exact(&mut body)?;
            if len > 0 {
                let upload = Upload { bytes: len, begun, ended: Instant::now() };
                self.uploads.lock().expect("no panic").push(upload);
            }
            self.keep(&seen, &body);
            if !self.answer(client, &mut behind, Request { seen, head, body, under_way }, trick)? {
                break;
            }
        }
        client.shutdown(Shutdown::Both)
    }

    fn note(&self, head: &[u8]) -> Seen {
        let text = String::from_utf8_lossy(head);
        let mut words = text.split(' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let number = self.seen.fetch_add(1, Ordering::SeqCst);
        Seen { method: word(), target: word(), headers: text.to_string(), number }
    }

    fn keep(&self, seen: &Seen, body: &[u8]) {
        if let Some(exchanges) = &mut *self.exchanges.lock().expect("no panic") {
            exchanges.push(Exchange { request: seen.clone(), sent: body.to_vec(), answered: Vec::new() });
        }
    }

    fn keep_answer(&self, seen: &Seen, answer: &Answer) {
        let mut exchanges = self.exchanges.lock().expect("no panic");
        let all = exchanges.iter_mut().flatten();
        if let Some(exchange) = all.rev().find(|exchange| exchange.request.number == seen.number) {
            exchange.answered = [&answer.head[..], &answer.body].concat();
        }
    }

    fn is_recording(&self) -> bool {
        self.exchanges.lock().expect("no panic").is_some()
    }

    fn count(&self, kind: &str) -> Count {
        self.counts.lock().expect("no panic").get(kind).copied().unwrap_or_default()
    }

    fn trick(&self, seen: &Seen) -> Trick {
        let plan = self.plan.read().expect("no plan panics").clone();
        let trick = plan(seen);
        if trick != Trick::Pass {
            *self.tricks.lock().expect("no panic").entry((seen.kind().to_owned(), trick)).or_default() += 1;
        }
        trick
    }

    /// Whether the connection goes on.
    fn answer(
        &self,
        mut client: &TcpStream,
        behind: &mut Option<BufReader<TcpStream>>,
        mut request: Request<'_>,
        trick: Trick,
    ) -> io::Result<bool> {
        match trick {
            Trick::Late(time) => thread::sleep(time),
            Trick::Silence(time) => {
                thread::sleep(time);
                return Ok(false);
            }
            Trick::Refuse(status, code) => {
                drop(request.under_way.take());
                let body = format!("<Error><Code>{code}</Code><Message>A trick of the proxy</Message></Error>");
                let body = if request.seen.method == "HEAD" { String::new() } else { body };
                let len = body.len();
                write!(
                    client,
                    "HTTP/1.1 {status} Trick\r\nContent-Type: application/xml\r\nContent-Length: {len}\r\n\r\n{body}"
                )?;
                return Ok(true);
            }
            Trick::Flip if !request.body.is_empty() => {
                let middle = request.body.len() / 2;
                request.body[middle] ^= 0x10;
            }
            _ => {}
        }
        let (head, len) = self.forward(behind, &request)?;
        let Some(connection) = behind else { return Err(io::ErrorKind::NotConnected.into()) };
        if matches!(trick, Trick::Pass | Trick::Late(_))
            && !request.seen.is_list()
            && !self.is_recording()
            && has_body(&head, &request)
            && !is_chunked(&head)
        {
            drop(request.under_way.take());
            client.write_all(&head)?;
            return Ok(io::copy(&mut connection.take(len), &mut client)? == len);
        }
        let mut answer = whole(connection, &request, head, len)?;
        self.keep_answer(&request.seen, &answer);
        // Before the program can know: what it begins then is not beside this one.
        drop(request.under_way.take());
        if request.seen.is_list() {
            let first = self
                .lists
                .lock()
                .expect("no panic")
                .entry(request.seen.target)
                .or_insert_with(|| answer.clone())
                .clone();
            if trick == Trick::OldList {
                answer = first;
            }
        }
        match trick {
            Trick::LoseReply => return Ok(false),
            Trick::CutShort if answer.body.is_empty() => {
                client.write_all(&answer.head[..answer.head.len() / 2])?;
                return Ok(false);
            }
            Trick::CutShort => {
                client.write_all(&answer.head)?;
                client.write_all(&answer.body[..answer.body.len() / 2])?;
                return Ok(false);
            }
            Trick::PretendSuccess if answer.head.starts_with(b"HTTP/1.1 412") => {
                client.write_all(b"HTTP/1.1 200 OK\r\nETag: \"x\"\r\nContent-Length: 0\r\n\r\n")?;
                return Ok(true);
            }
            Trick::Flip if request.body.is_empty() && !answer.body.is_empty() => {
                let middle = answer.body.len() / 2;
                answer.body[middle] ^= 0x10;
            }
            _ => {}
        }
        client.write_all(&answer.head)?;
        client.write_all(&answer.body)?;
        Ok(true)
    }

    /// The head of the server's answer and the length of its body, over a connection that is kept.
    fn forward(&self, behind: &mut Option<BufReader<TcpStream>>, request: &Request<'_>) -> io::Result<(Vec<u8>, u64)> {
        if let Some(mut connection) = behind.take()
            && let Ok(head) = ask(&mut connection, request)
        {
            *behind = Some(connection);
            return Ok(head);
        }
        let stream = TcpStream::connect(("127.0.0.1", self.upstream))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(BEHIND))?;
        let mut connection = BufReader::with_capacity(256 << 10, stream);
        let head = ask(&mut connection, request)?;
        *behind = Some(connection);
        Ok(head)
    }
}

/// A request from its head to its answer, among those of its kind.
struct UnderWay<'a> {
    shared: &'a Shared,
    kind: String,
}

impl UnderWay<'_> {
    fn begin<'a>(shared: &'a Shared, seen: &Seen) -> UnderWay<'a> {
        let kind = seen.kind().to_owned();
        let mut counts = shared.counts.lock().expect("no panic");
        let count = counts.entry(kind.clone()).or_default();
        (count.so_far, count.now) = (count.so_far + 1, count.now + 1);
        count.most = count.most.max(count.now);
        drop(counts);
        UnderWay { shared, kind }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.shared.counts.lock().expect("no panic").entry(self.kind.clone()).or_default().now -= 1;
    }
}
