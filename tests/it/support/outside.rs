//! What stands outside a gateway's host: a witness that keeps to C2SP `tlog-witness`, and a place that keeps a head.
//!
//! Both are small HTTP servers of their own, one thread a connection, and know nothing of the code under test: notes,
//! signatures and proofs are read here by the specifications alone. Both can be told to misbehave, taken away, and put back
//! at the same address with what they had persisted.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ct_merkle::{ConsistencyProof, RootHash};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// One request as it came.
struct Asked {
    method: String,
    path: String,
    authorization: Option<String>,
    body: Vec<u8>,
}

type Answer = (u16, &'static str, String);
type Handler = Arc<dyn Fn(Asked) -> Option<Answer> + Send + Sync>;

/// A server that can be taken away; one connection a request. A handler that returns nothing never answers.
struct Server {
    addr: SocketAddr,
    handler: Handler,
    stop: Arc<AtomicBool>,
}

impl Server {
    fn start(addr: SocketAddr, handler: Handler) -> Self {
        let listener = TcpListener::bind(addr).expect("a free port");
        let (addr, stop) = (listener.local_addr().expect("bound"), Arc::new(AtomicBool::new(false)));
        let (serve, stopped) = (handler.clone(), stop.clone());
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (serve, stopped) = (serve.clone(), stopped.clone());
                std::thread::spawn(move || answer(connection.ok()?, &serve, &stopped));
            }
        });
        Self { addr, handler, stop }
    }

    fn close(&self) {
        if !self.stop.swap(true, Ordering::SeqCst) {
            let _ = TcpStream::connect(self.addr);
            // The port is free once nobody can connect any more.
            while TcpStream::connect(self.addr).is_ok() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn again(&mut self) {
        self.close();
        *self = Self::start(self.addr, self.handler.clone());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

fn answer(connection: TcpStream, handler: &Handler, stopped: &AtomicBool) -> Option<()> {
    let mut reader = BufReader::new(connection.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let (mut length, mut authorization) = (0, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "authorization" => authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let Some((status, kind, text)) = handler(Asked { method, path, authorization, body }) else {
        while !stopped.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(50));
        }
        return None;
    };
    let head = format!("HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nConnection: close\r\n");
    let mut connection = connection;
    connection.write_all(format!("{head}Content-Length: {}\r\n\r\n{text}", text.len()).as_bytes()).ok()
}

/// How a witness answers a checkpoint that it would cosign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Honest,
    /// By a key that nobody configured.
    ForeignKey,
    /// By its own key, over something else.
    Forged,
    /// With its own line many times over, and lines of others.
    Chatty,
    Status(u16),
    /// It has seen so much of every log.
    Claims(u64),
    NoLines,
    Silent,
}

/// A head somebody signed, as far as a witness needs it.
struct Head {
    origin: String,
    size: u64,
    root: Vec<u8>,
    /// With its last line feed.
    text: String,
    /// Name, key id, signature.
    signatures: Vec<(String, Vec<u8>, Vec<u8>)>,
}

impl Head {
    fn read(note: &str) -> Option<Self> {
        let (text, lines) = note.rsplit_once("\n\n").map(|(text, lines)| (format!("{text}\n"), lines))?;
        let mut body = text.lines();
        let (origin, size, root) =
            (body.next()?.to_owned(), body.next()?, STANDARD.decode(body.next()?).ok()?);
        let signature = |line: &str| {
            let (name, encoded) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
            let bytes = STANDARD.decode(encoded).ok()?;
            Some((name.to_owned(), bytes.get(..4)?.to_vec(), bytes[4..].to_vec()))
        };
        let signatures = lines.lines().map(signature).collect::<Option<Vec<_>>>()?;
        let size = number(size)?;
        Some(Self { origin, size, root, signatures, text })
    }
}

/// A decimal without leading zeroes.
fn number(text: &str) -> Option<u64> {
    text.parse::<u64>().ok().filter(|number| number.to_string() == text)
}

fn key_id(name: &str, kind: u8, public: &[u8]) -> Vec<u8> {
    let digest = Sha256::new().chain_update(name).chain_update([b'\n', kind]).chain_update(public).finalize();
    digest[..4].to_vec()
}

struct Known {
    /// Keys by the log's name.
    logs: BTreeMap<String, Vec<Vec<u8>>>,
    manner: Manner,
    /// Status of each answer.
    statuses: Vec<u16>,
    file: PathBuf,
}

impl Known {
    /// What it cosigned last, by the log's name; read from its file each time.
    fn latest(&self) -> BTreeMap<String, (u64, Vec<u8>)> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let line = |line: &str| {
            let mut words = line.split(' ');
            let (origin, size, root) = (words.next()?, words.next()?, words.next()?);
            Some((origin.to_owned(), (size.parse().ok()?, STANDARD.decode(root).ok()?)))
        };
        text.lines().map(|text| line(text).expect("its own file")).collect()
    }

    fn persist(&self, latest: &BTreeMap<String, (u64, Vec<u8>)>) {
        let line = |(origin, (size, root)): (&String, &(u64, Vec<u8>))| {
            format!("{origin} {size} {}\n", STANDARD.encode(root))
        };
        let new = self.file.with_extension("new");
        std::fs::write(&new, latest.iter().map(line).collect::<String>()).expect("writes");
        std::fs::rename(new, &self.file).expect("renames");
    }
}

/// A witness.
pub(crate) struct Witness {
    server: Server,
    known: Arc<Mutex<Known>>,
    key: String,
    _folder: TempDir,
}

impl Witness {
    pub(crate) fn start(name: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let seed = Sha256::digest(name);
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("a seed");
        let public = pair.public_key().as_ref().to_vec();
        let id = hex::encode(key_id(name, 4, &public));
        let key = format!("{name}+{id}+{}", STANDARD.encode([&[4], &public[..]].concat()));
        let known = Arc::new(Mutex::new(Known {
            logs: BTreeMap::new(),
            manner: Manner::Honest,
            statuses: Vec::new(),
            file: folder.path().join("latest"),
        }));
        let (state, name) = (known.clone(), name.to_owned());
        let handler = move |asked: Asked| {
            // One at a time: looking and persisting are one step.
            let mut known = state.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = cosign(&known, &asked, &name, &pair);
            known.statuses.extend(answer.as_ref().map(|answer| answer.0));
            answer
        };
        let server = Server::start(SocketAddr::from(([127, 0, 0, 1], 0)), Arc::new(handler));
        Self { server, known, key, _folder: folder }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its public key, to be configured and trusted.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// As `anchor.witnesses` names it.
    pub(crate) fn setting(&self) -> String {
        format!("http://{}/submit {}", self.server.addr, self.key)
    }

    /// Cosigns the logs of these keys, one a line, from now on.
    pub(crate) fn trust(&self, keys: &str) {
        for key in keys.lines() {
            let parts: Vec<_> = key.splitn(3, '+').collect();
            let bytes = STANDARD.decode(parts[2]).expect("a key");
            assert_eq!(bytes[0], 1, "the key of a log");
            self.known().logs.entry(parts[0].to_owned()).or_default().push(bytes[1..].to_vec());
        }
    }

    pub(crate) fn behave(&self, manner: Manner) {
        self.known().manner = manner;
    }

    /// How much of each log it cosigned.
    pub(crate) fn seen(&self) -> BTreeMap<String, u64> {
        self.known().latest().into_iter().map(|(origin, (size, _))| (origin, size)).collect()
    }

    /// Statuses of its answers so far.
    pub(crate) fn statuses(&self) -> Vec<u16> {
        self.known().statuses.clone()
    }

    pub(crate) fn go_away(&self) {
        self.server.close();
    }

    pub(crate) fn come_back(&mut self) {
        self.server.again();
    }
}

/// `add-checkpoint`, check by check in the order of the specification.
fn cosign(known: &Known, asked: &Asked, name: &str, pair: &Ed25519KeyPair) -> Option<Answer> {
    let plain = |status: u16, text: &str| Some((status, "text/plain", format!("{text}\n")));
    let size = |size: u64| Some((409, "text/x.tlog.size", format!("{size}\n")));
    if asked.method != "POST" || asked.path != "/submit/add-checkpoint" {
        return plain(405, "no such call");
    }
    let read = || {
        let text = std::str::from_utf8(&asked.body).ok()?;
        let (asked, note) = text.split_once("\n\n")?;
        let mut lines = asked.split('\n');
        let old = number(lines.next()?.strip_prefix("old ")?)?;
        let hash = |line: &str| STANDARD.decode(line).ok().filter(|hash| hash.len() == 32);
        let proof = lines.map(hash).collect::<Option<Vec<_>>>().filter(|proof| proof.len() <= 63)?;
        Some((old, proof, Head::read(note)?))
    };
    let Some((old, proof, head)) = read() else { return plain(400, "unreadable") };
    let Some(keys) = known.logs.get(&head.origin) else { return plain(404, "unknown log") };
    let is_signed = keys.iter().any(|key| {
        let id = key_id(&head.origin, 1, key);
        head.signatures.iter().any(|(name, of, signature)| {
            let fits = || UnparsedPublicKey::new(&ED25519, key).verify(head.text.as_bytes(), signature);
            *name == head.origin && *of == id && fits().is_ok()
        })
    });
    if !is_signed {
        return plain(403, "no trusted signature");
    }
    if let Manner::Claims(claimed) = known.manner {
        return size(claimed);
    }
    if old > head.size {
        return plain(400, "the old size is larger");
    }
    let mut latest = known.latest();
    let before = latest.get(&head.origin).cloned();
    let before_size = before.as_ref().map_or(0, |(size, _)| *size);
    if old != before_size {
        return size(before_size);
    }
    if let Some((before_size, before_root)) = &before {
        if *before_size == head.size && *before_root != head.root {
            return size(*before_size);
        }
        let root = |bytes: &[u8], size| RootHash::<Sha256>::new(bytes.try_into().expect("32 bytes"), size);
        let proves = || {
            let proof = ConsistencyProof::<Sha256>::try_from_bytes(proof.concat()).ok()?;
            let (new, old) = (root(&head.root, head.size), root(before_root, *before_size));
            new.verify_consistency(&old, &proof).ok()
        };
        let is_consistent = if *before_size == head.size { proof.is_empty() } else { proves().is_some() };
        if !is_consistent {
            return plain(422, "the proof does not hold");
        }
    } else if !proof.is_empty() {
        return plain(422, "a proof from nothing");
    }
    match known.manner {
        Manner::Status(status) => return plain(status, "as told"),
        Manner::NoLines => return plain(200, "these are no lines"),
        Manner::Silent => return None,
        Manner::Claims(_) | Manner::Honest | Manner::ForeignKey | Manner::Forged | Manner::Chatty => {}
    }
    latest.insert(head.origin.clone(), (head.size, head.root.clone()));
    known.persist(&latest);
    let at = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let line = |name: &str, pair: &Ed25519KeyPair, text: &str| {
        let signed = pair.sign(format!("cosignature/v1\ntime {at}\n{text}").as_bytes());
        let id = key_id(name, 4, pair.public_key().as_ref());
        format!(
            "\u{2014} {name} {}\n",
            STANDARD.encode([&id, &at.to_be_bytes()[..], signed.as_ref()].concat())
        )
    };
    let other = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed");
    let foreign = line("somebody.else", &other, &head.text);
    let lines = match known.manner {
        Manner::ForeignKey => foreign,
        Manner::Forged => line(name, pair, "something else\n"),
        Manner::Chatty => foreign + &line(name, pair, &head.text).repeat(20),
        _ => line(name, pair, &head.text),
    };
    Some((200, "text/plain; charset=utf-8", lines))
}

/// What a place does instead of what it is asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shelf {
    pub(crate) text: Option<String>,
    /// The token it wants.
    pub(crate) token: Option<String>,
    pub(crate) status: Option<u16>,
    pub(crate) is_silent: bool,
    /// Methods of the requests so far.
    pub(crate) asked: Vec<String>,
}

/// A place that keeps one text: PUT and GET of `/heads/gw-1`.
pub(crate) struct Place {
    server: Server,
    shelf: Arc<Mutex<Shelf>>,
}

impl Place {
    pub(crate) fn start() -> Self {
        let shelf = Arc::new(Mutex::new(Shelf::default()));
        let state = shelf.clone();
        let handler = move |asked: Asked| {
            let mut shelf = state.lock().unwrap_or_else(PoisonError::into_inner);
            shelf.asked.push(asked.method.clone());
            let plain = |status: u16, text: &str| Some((status, "text/plain", text.to_owned()));
            if shelf.is_silent {
                return None;
            }
            let wanted = shelf.token.as_ref().map(|token| format!("Bearer {token}"));
            if wanted.is_some() && asked.authorization != wanted {
                // As some servers do, it says what it got.
                return plain(401, &format!("{:?} is no token", asked.authorization));
            }
            if let Some(status) = shelf.status {
                return plain(status, "as told");
            }
            match (asked.method.as_str(), asked.path.as_str(), &shelf.text) {
                ("GET", "/heads/gw-1", Some(text)) => plain(200, text),
                ("PUT", "/heads/gw-1", _) => {
                    shelf.text = String::from_utf8(asked.body).ok();
                    plain(201, "")
                }
                _ => plain(404, "nothing"),
            }
        };
        let server = Server::start(SocketAddr::from(([127, 0, 0, 1], 0)), Arc::new(handler));
        Self { server, shelf }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/heads/gw-1", self.server.addr)
    }

    pub(crate) fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn go_away(&self) {
        self.server.close();
    }

    pub(crate) fn come_back(&mut self) {
        self.server.again();
    }
}
