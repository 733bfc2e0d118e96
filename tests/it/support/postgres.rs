//! A real PostgreSQL for the tests: throw-away servers, their standbys, PgBouncer, and a misbehaving proxy.
//!
//! A [`Server`] and a [`Pooler`] are processes with a temporary folder, in the care of a shell that holds a
//! pipe from the test process. When the pipe closes, however the test process ended, that shell kills what it
//! started and removes the folder; so nothing is left behind, not even by a static or by SIGKILL.
//!
//! PostgreSQL refuses to run as root: where the tests do, it runs as the user `postgres`.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// Ports to listen on: below those the kernel gives to clients, so that a stopped server finds its own free
/// again and no client that dials it meanwhile is connected to itself.
const PORTS: std::ops::Range<u32> = 20_000..32_000;

/// How often another port is tried when somebody else was faster.
const ATTEMPTS: usize = 5;

/// A PostgreSQL program, of the newest version in `/usr/lib/postgresql`, else on the PATH.
pub(crate) fn program(name: &str) -> PathBuf {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin").join(name)))
        })
        .filter(|(_, program)| program.is_file())
        .collect();
    versions.sort();
    let newest = versions.pop().map(|(_, program)| program);
    newest.or_else(|| on_path(name)).unwrap_or_else(|| {
        let package = if name == "pgbouncer" { name } else { "postgresql" };
        panic!("no program {name}: these tests need {package} (Debian: apt-get install {package})")
    })
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let system = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// Runs statements with psql through any port, also a pooler's or a proxy's: the rows, or its complaint.
pub(crate) fn psql(port: u16, user: &str, database: &str, text: &str) -> Result<String, String> {
    let mut child = plain(&program("psql"))
        .args(["-X", "-w", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1"])
        .args(["-p", &port.to_string(), "-U", user, "-d", database])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts psql");
    let mut stdin = child.stdin.take().expect("it is piped");
    let output = thread::scope(|scope| {
        // A psql that could not connect reads nothing.
        scope.spawn(move || stdin.write_all(text.as_bytes()).unwrap_or_default());
        child.wait_with_output().expect("waits for psql")
    });
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim_end().to_owned())
    }
}

/// The server for tests that need no more than a database; one in a test process.
pub(crate) fn shared() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(Server::start)
}

/// Creates an empty database on the [`shared`] server; its name.
pub(crate) fn fresh_database() -> String {
    static DATABASES: AtomicUsize = AtomicUsize::new(1);
    let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    shared().sql("postgres", &format!("CREATE DATABASE {name} TEMPLATE template0"));
    name
}

/// The roles that `patchwarden store grants` names.
pub(crate) const OWNER: &str = "patchwarden_owner";
pub(crate) const GATEWAY: &str = "patchwarden_gateway";

/// A database on the [`shared`] server, with its tables; its name.
pub(crate) fn fresh_store() -> String {
    let name = fresh_database();
    shared().make_store(&name);
    name
}

/// A PostgreSQL of its own; killed and removed when dropped.
pub(crate) struct Server {
    keeper: Keeper,
    port: u16,
    standbys: AtomicUsize,
}

impl Server {
    /// An empty one that accepts connections. It does not fsync.
    pub(crate) fn start() -> Self {
        Self::start_with("fsync = off\n")
    }

    /// Like [`Server::start`], with fsync.
    pub(crate) fn start_durable() -> Self {
        Self::start_with("fsync = on\n")
    }

    fn start_with(config: &str) -> Self {
        static TEMPLATE: OnceLock<Keeper> = OnceLock::new();
        let template = TEMPLATE.get_or_init(|| {
            let keeper = Keeper::new("QUIT", |_| Vec::new());
            let mut initdb = unprivileged(&program("initdb"), keeper.folder());
            initdb.args(["--auth=trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C"]);
            run(initdb.args(["-D", "data"]));
            keeper
        });
        Self::launch(config, |folder| {
            let mut copy = unprivileged(Path::new("cp"), folder);
            run(copy.arg("-a").arg(template.folder().join("data")).arg("data"));
        })
    }

    /// Starts what `fill` puts into `data` of a folder, on a port of its own.
    fn launch(config: &str, fill: impl FnOnce(&Path)) -> Self {
        let keeper =
            Keeper::new("QUIT", |folder| vec![program("postgres"), "-D".into(), folder.join("data")]);
        fill(keeper.folder());
        let settings = keeper.folder().join("data/postgresql.conf");
        let sockets = keeper.folder().display();
        append(
            &settings,
            &format!(
                "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{sockets}'\n\
                 max_connections = 200\nshared_buffers = 32MB\nwal_keep_size = 256MB\n\
                 wal_retrieve_retry_interval = 200ms\n{config}"
            ),
        );
        let mut server = Self { keeper, port: 0, standbys: AtomicUsize::new(0) };
        for _ in 0..ATTEMPTS {
            server.port = free_port();
            append(&settings, &format!("port = {}\n", server.port));
            if server.try_begin() {
                return server;
            }
        }
        panic!("the server does not start:\n{}", server.log())
    }

    /// The port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Makes both roles, where they are not there yet, and the tables in a database, as `docs/fleets.md` says.
    pub(crate) fn make_store(&self, database: &str) {
        static MAKING: Mutex<()> = Mutex::new(());
        let one = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        for role in [OWNER, GATEWAY] {
            let there = self.sql("postgres", &format!("SELECT 1 FROM pg_roles WHERE rolname = '{role}'"));
            if there.is_empty() {
                self.sql("postgres", &format!("CREATE ROLE {role} LOGIN"));
            }
        }
        drop(one);
        let schema = format!(
            "REVOKE ALL ON SCHEMA public FROM PUBLIC; GRANT USAGE, CREATE ON SCHEMA public TO {OWNER}; GRANT USAGE ON SCHEMA public TO {GATEWAY}"
        );
        self.sql(database, &schema);
        let made = super::gateway::program()
            .args(["store", "migrate", "--gateway-role", GATEWAY, "--store", &self.url(OWNER, database)])
            .output()
            .expect("the binary runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// Where a user finds a database.
    pub(crate) fn url(&self, user: &str, database: &str) -> String {
        url(self.port, user, database)
    }

    /// The process id of the postmaster, of the last one if it is stopped.
    pub(crate) fn pid(&self) -> u32 {
        self.keeper.pid()
    }

    /// What it logged since the first start.
    pub(crate) fn log(&self) -> String {
        self.keeper.log()
    }

    /// Runs statements as the superuser: the rows, columns parted by `|`.
    pub(crate) fn sql(&self, database: &str, text: &str) -> String {
        match self.try_sql("postgres", database, text) {
            Ok(rows) => rows,
            Err(complaint) => panic!("{text}\n{complaint}"),
        }
    }

    /// Runs statements as anybody: the rows, or what psql complained about.
    pub(crate) fn try_sql(&self, user: &str, database: &str, text: &str) -> Result<String, String> {
        psql(self.port, user, database, text)
    }

    /// Stops it at once, as a crash would; it keeps its data.
    pub(crate) fn stop(&self) {
        self.keeper.stop();
    }

    /// Starts it again after [`Server::stop`], with the same port and data; it accepts connections.
    pub(crate) fn begin(&self) {
        let begun = (0..ATTEMPTS).any(|_| self.try_begin());
        assert!(begun, "the server does not start again:\n{}", self.log());
    }

    /// Changes a setting for good and waits until new sessions have it.
    pub(crate) fn set(&self, name: &str, value: &str) {
        let loaded = || self.sql("postgres", "SELECT pg_conf_load_time()");
        let before = loaded();
        let value = value.replace('\'', "''");
        self.sql("postgres", &format!("ALTER SYSTEM SET {name} = '{value}';\nSELECT pg_reload_conf();"));
        wait_until("the settings are reloaded", || loaded() != before);
    }

    /// A second server that streams from this one: `standby1`, the next `standby2`. With `synchronous` no
    /// commit here returns from now on before it is there too, and none at all while it is stopped.
    pub(crate) fn standby(&self, synchronous: bool) -> Self {
        let name = format!("standby{}", self.standbys.fetch_add(1, Ordering::Relaxed) + 1);
        let standby = Self::launch("", |folder| {
            let mut backup = unprivileged(&program("pg_basebackup"), folder);
            backup.args(["-R", "-X", "stream", "--checkpoint=fast", "--no-sync", "-d"]);
            backup.arg(format!("host=127.0.0.1 port={} user=postgres application_name={name}", self.port));
            run(backup.args(["-D", "data"]));
            // Else a copied setting would have it wait for a standby of its own once it is promoted.
            append(&folder.join("data/postgresql.auto.conf"), "synchronous_standby_names = ''\n");
        });
        let (column, wanted) = if synchronous { ("sync_state", "sync") } else { ("state", "streaming") };
        if synchronous {
            self.set("synchronous_standby_names", &name);
        }
        let query = format!("SELECT {column} FROM pg_stat_replication WHERE application_name = '{name}'");
        wait_until("the standby streams", || self.sql("postgres", &query) == wanted);
        standby
    }

    /// Writes a file into its data folder, for nobody else to read.
    pub(crate) fn write_file(&self, name: &str, text: &str) {
        let path = self.keeper.folder().join("data").join(name);
        fs::write(&path, text).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
        if let Some((user, group)) = owner() {
            chown(&path, Some(user), Some(group)).expect("its owner");
        }
    }

    /// How large a file processes that it starts from now on may make, in bytes; `unlimited` again.
    pub(crate) fn limit_files(&self, bytes: &str) {
        let limit = format!("--fsize={bytes}:unlimited");
        run(unprivileged(Path::new("prlimit"), self.keeper.folder()).args([
            "--pid",
            &self.pid().to_string(),
            &limit,
        ]));
    }

    /// Makes a standby a primary and waits until it is.
    pub(crate) fn promote(&self) {
        self.sql("postgres", "SELECT pg_promote(true, 30)");
        wait_until("the standby is a primary", || self.sql("postgres", "SELECT pg_is_in_recovery()") == "f");
    }

    /// False if it gave up.
    fn try_begin(&self) -> bool {
        let pid = self.keeper.begin();
        let file = self.keeper.folder().join("data/postmaster.pid");
        self.keeper.becomes(|| {
            let text = fs::read_to_string(&file).unwrap_or_default();
            let mut lines = text.lines();
            let ours = lines.next().is_some_and(|line| line.trim() == pid.to_string());
            ours && lines.nth(6).is_some_and(|line| line.trim() == "ready")
        })
    }
}

/// The real PgBouncer in transaction mode, three connections for each user and database; killed when dropped.
pub(crate) struct Pooler {
    keeper: Keeper,
    port: u16,
}

impl Pooler {
    /// In front of a server.
    pub(crate) fn start(server: &Server) -> Self {
        Self::before(server.port())
    }

    /// In front of anything that listens on a port, such as a [`Proxy`].
    pub(crate) fn before(upstream: u16) -> Self {
        let keeper = Keeper::new("KILL", |folder| vec![program("pgbouncer"), folder.join("pgbouncer.ini")]);
        let folder = keeper.folder();
        // A trusted user must be known: the server is asked, as `postgres`.
        fs::write(folder.join("users"), "\"postgres\" \"\"\n").expect("writes the users");
        for _ in 0..ATTEMPTS {
            let port = free_port();
            let users = folder.join("users");
            let config = format!(
                "[databases]\n* = host=127.0.0.1 port={upstream} auth_user=postgres\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
                 auth_type = trust\nauth_file = {}\nadmin_users = postgres\npool_mode = transaction\n\
                 default_pool_size = 3\nmax_client_conn = 200\nserver_login_retry = 1\n\
                 ignore_startup_parameters =\n",
                users.display()
            );
            fs::write(folder.join("pgbouncer.ini"), config).expect("writes the settings");
            keeper.begin();
            if keeper.becomes(|| keeper.log().contains("process up")) {
                return Self { keeper, port };
            }
        }
        panic!("PgBouncer does not start:\n{}", keeper.log())
    }

    /// The port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where a user finds a database, through the pooler; the database `pgbouncer` is its console.
    pub(crate) fn url(&self, user: &str, database: &str) -> String {
        url(self.port, user, database)
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        self.keeper.log()
    }
}

/// At which moment a [`Proxy`] cuts a connection whose client commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// The server never sees the COMMIT.
    BeforeItArrives,
    /// The server has answered it, but the client does not see the answer.
    AfterItArrived,
    /// Nothing is cut; the client sees the answer so much later.
    Late(Duration),
}

/// A TCP proxy before a server that can be told to misbehave; without TLS. Closes everything when dropped.
pub(crate) struct Proxy {
    port: u16,
    wires: Arc<Wires>,
}

impl Proxy {
    /// In front of a server or pooler that listens on a port.
    pub(crate) fn before(upstream: u16) -> Self {
        let bound = (0..ATTEMPTS).find_map(|_| TcpListener::bind(("127.0.0.1", free_port())).ok());
        let listener = bound.expect("a port to listen on");
        let port = listener.local_addr().expect("its address").port();
        let state = State {
            upstream,
            closed: false,
            refusing: false,
            stalled: false,
            commits: 0,
            cut: None,
            connections: Vec::new(),
        };
        let wires = Arc::new(Wires { state: Mutex::new(state), changed: Condvar::new() });
        let accepting = Arc::clone(&wires);
        thread::spawn(move || accepting.accept(&listener));
        Self { port, wires }
    }

    /// The port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where a user finds a database, through the proxy.
    pub(crate) fn url(&self, user: &str, database: &str) -> String {
        url(self.port, user, database)
    }

    /// Cuts, once, the connection that sends the `nth` COMMIT of all connections from now on; 1 is the next.
    pub(crate) fn cut_at_commit(&self, nth: usize, when: When) {
        assert!(nth > 0, "the next COMMIT is the first");
        let mut state = self.wires.state();
        state.cut = Some((state.commits + nth, when));
    }

    /// Whether the cut asked for has happened, or none was.
    pub(crate) fn has_cut(&self) -> bool {
        self.wires.state().cut.is_none()
    }

    /// How many COMMITs clients have sent so far.
    pub(crate) fn commits(&self) -> usize {
        self.wires.state().commits
    }

    /// Closes all connections there are.
    pub(crate) fn cut_all(&self) {
        for wire in self.wires.state().connections.drain(..) {
            wire.close();
        }
        self.wires.changed.notify_all();
    }

    /// Whether new connections are closed at once.
    pub(crate) fn refuse(&self, refusing: bool) {
        self.wires.state().refusing = refusing;
    }

    /// Whether nothing is passed on, in either direction; it is kept until it may be.
    pub(crate) fn stall(&self, stalled: bool) {
        self.wires.state().stalled = stalled;
        self.wires.changed.notify_all();
    }

    /// Leads new connections to another port, as after a failover.
    pub(crate) fn lead_to(&self, upstream: u16) {
        self.wires.state().upstream = upstream;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.wires.state().closed = true;
        self.cut_all();
        // Wakes the thread that accepts.
        TcpStream::connect(("127.0.0.1", self.port)).ok();
    }
}

struct Wires {
    state: Mutex<State>,
    /// Tells those that stall.
    changed: Condvar,
}

struct State {
    upstream: u16,
    closed: bool,
    refusing: bool,
    stalled: bool,
    commits: usize,
    /// At which of the commits to cut.
    cut: Option<(usize, When)>,
    connections: Vec<Arc<Wire>>,
}

impl Wires {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming().flatten() {
            let mut state = self.state();
            if state.closed {
                return;
            }
            if state.refusing {
                continue;
            }
            let Ok(server) = TcpStream::connect(("127.0.0.1", state.upstream)) else { continue };
            client.set_nodelay(true).ok();
            server.set_nodelay(true).ok();
            let wire = Arc::new(Wire { client, server, talk: Mutex::new(Talk::default()) });
            state.connections.push(Arc::clone(&wire));
            let there = (Arc::clone(self), Arc::clone(&wire));
            thread::spawn(move || {
                there.0.pass_questions(&there.1).ok();
                there.0.finish(&there.1);
            });
            let back = (Arc::clone(self), wire);
            thread::spawn(move || {
                back.0.pass_answers(&back.1).ok();
                back.0.finish(&back.1);
            });
        }
    }

    fn finish(&self, wire: &Arc<Wire>) {
        wire.close();
        self.state().connections.retain(|other| !Arc::ptr_eq(other, wire));
        self.changed.notify_all();
    }

    /// Writes unless stalled, else once it is over.
    fn pass(&self, wire: &Wire, to: &TcpStream, bytes: &[u8]) -> io::Result<()> {
        let stalls = |state: &mut State| state.stalled && !wire.talk().closed;
        drop(self.changed.wait_while(self.state(), stalls).unwrap_or_else(PoisonError::into_inner));
        let mut to = to;
        to.write_all(bytes)
    }

    /// Client to server, a message at a time.
    fn pass_questions(&self, wire: &Wire) -> io::Result<()> {
        let mut client = BufReader::new(&wire.client);
        loop {
            let greeting = message(&mut client, 0)?;
            // Requests for TLS or GSSAPI are answered with a single byte, and the greeting follows.
            let code = greeting.get(4..8).unwrap_or_default();
            let asks = [80_877_103_u32, 80_877_104].iter().any(|request| code == request.to_be_bytes());
            wire.talk().bare_answers += usize::from(asks);
            self.pass(wire, &wire.server, &greeting)?;
            if !asks {
                break;
            }
        }
        // The greeting ends with a ReadyForQuery as well.
        wire.talk().asked = 1;
        loop {
            let question = message(&mut client, 1)?;
            match self.cut_here(&question) {
                Some(When::BeforeItArrives) => return Ok(()),
                Some(When::AfterItArrived) => {
                    let mut talk = wire.talk();
                    talk.withhold = Some(talk.asked);
                }
                Some(When::Late(by)) => {
                    let mut talk = wire.talk();
                    talk.delay = Some((talk.asked, by));
                }
                None => {}
            }
            // Query, Sync and FunctionCall each bring a ReadyForQuery.
            wire.talk().asked += usize::from(matches!(question[0], b'Q' | b'S' | b'F'));
            self.pass(wire, &wire.server, &question)?;
        }
    }

    /// Server to client, a message at a time; ends when the answer to withhold is complete.
    fn pass_answers(&self, wire: &Wire) -> io::Result<()> {
        let mut server = BufReader::new(&wire.server);
        loop {
            // What was asked is known once there is an answer.
            if server.fill_buf()?.is_empty() {
                return Ok(());
            }
            let bare = wire.talk().bare_answers > 0;
            let answer = if bare { vec![byte(&mut server)?] } else { message(&mut server, 1)? };
            let withheld = {
                let mut talk = wire.talk();
                talk.bare_answers -= usize::from(bare);
                let withheld = talk.withhold.is_some_and(|from| talk.answered >= from);
                talk.answered += usize::from(!bare && answer[0] == b'Z');
                if withheld && answer[0] == b'Z' {
                    return Ok(());
                }
                withheld
            };
            if !withheld {
                let delay = {
                    let mut talk = wire.talk();
                    let answered = talk.answered;
                    talk.delay.take_if(|(from, _)| answered > *from)
                };
                if let Some((_, by)) = delay {
                    thread::sleep(by);
                }
                self.pass(wire, &wire.client, &answer)?;
            }
        }
    }

    /// Counts the commits; when the one to cut is there, what to do with it.
    fn cut_here(&self, question: &[u8]) -> Option<When> {
        if !is_commit(question) {
            return None;
        }
        let mut state = self.state();
        state.commits += 1;
        let (nth, when) = state.cut?;
        if state.commits != nth {
            return None;
        }
        state.cut = None;
        Some(when)
    }
}

/// A connection on both sides of a [`Proxy`].
struct Wire {
    client: TcpStream,
    server: TcpStream,
    talk: Mutex<Talk>,
}

#[derive(Default)]
struct Talk {
    closed: bool,
    /// Single bytes, without a header, that the server still has to answer.
    bare_answers: usize,
    /// How many ReadyForQuery the client can expect.
    asked: usize,
    /// How many it was sent.
    answered: usize,
    /// After how many the answer begins that it is not to get.
    withhold: Option<usize>,
    /// The same, for the answer that it gets late.
    delay: Option<(usize, Duration)>,
}

impl Wire {
    fn talk(&self) -> MutexGuard<'_, Talk> {
        self.talk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.talk().closed = true;
        self.client.shutdown(Shutdown::Both).ok();
        self.server.shutdown(Shutdown::Both).ok();
    }
}

/// A message of the protocol, its length after `prefix` bytes.
fn message(from: &mut impl io::Read, prefix: usize) -> io::Result<Vec<u8>> {
    let mut message = vec![0; prefix + 4];
    from.read_exact(&mut message)?;
    let length = message[prefix..].iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
    let rest = length.checked_sub(4).ok_or(io::ErrorKind::InvalidData)?;
    message.resize(prefix + 4 + rest, 0);
    from.read_exact(&mut message[prefix + 4..])?;
    Ok(message)
}

fn byte(from: &mut impl io::Read) -> io::Result<u8> {
    let mut byte = [0];
    from.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Whether it is a simple query that ends with a COMMIT after something else, as the log's writer sends it; a reader's is
/// a COMMIT alone.
fn is_commit(question: &[u8]) -> bool {
    let text = question.strip_prefix(b"Q").and_then(|rest| rest.get(4..)).unwrap_or_default();
    let text = text.strip_suffix(b"\0").unwrap_or(text).trim_ascii();
    text.ends_with(b"; COMMIT")
}

fn url(port: u16, user: &str, database: &str) -> String {
    format!("postgres://{user}@127.0.0.1:{port}/{database}")
}

fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in PORTS {
        // Test processes that run side by side begin in different places.
        let offset = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + offset % (PORTS.end - PORTS.start);
        let port = u16::try_from(port).expect("the range is of ports");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {} and {}", PORTS.start, PORTS.end)
}

/// Asks again and again until it holds.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn append(file: &Path, text: &str) {
    let mut file = OpenOptions::new().append(true).open(file).expect("opens the settings");
    file.write_all(text.as_bytes()).expect("writes the settings");
}

/// The user and group to run servers as: nobody in particular unless we are root.
fn owner() -> Option<(u32, u32)> {
    static OWNER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *OWNER.get_or_init(|| {
        let me = TempDir::new().expect("a temporary folder");
        let root = fs::metadata(me.path()).expect("its owner").uid() == 0;
        root.then(|| {
            let passwd = fs::read_to_string("/etc/passwd").expect("reads the users");
            let mut users = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
            let user = users.find(|fields| fields[0] == "postgres");
            let user = user.expect("a user `postgres`: PostgreSQL does not run as root");
            let id = |field: usize| user[field].parse().expect("an id is a number");
            (id(2), id(3))
        })
    })
}

/// A command that nobody's `PG…` variables reach and that speaks English.
fn plain(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C").env("PGCONNECT_TIMEOUT", "10");
    command
}

/// A plain command that does not run as root, in a folder: what it makes by relative paths is gone with that.
fn unprivileged(program: &Path, folder: &Path) -> Command {
    let mut command = plain(program);
    command.current_dir(folder);
    if let Some((user, group)) = owner() {
        command.uid(user).gid(group);
    }
    command
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("starts a program of PostgreSQL");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {complaint}");
}

/// Takes orders, one a line, until the pipe closes; then kills and removes.
const KEEPER: &str = r#"
folder=$1 signal=$2 pid=
shift 2
halt() {
    [ -z "$pid" ] || { kill -"$signal" "$pid"; wait "$pid"; pid=; }
}
while read -r order; do
    case $order in
        begin) "$@" </dev/null >>"$folder/log" 2>&1 & pid=$!; echo "$pid" ;;
        alive) sleep 0.02; if kill -0 "$pid"; then echo yes; else echo no; fi ;;
        stop) halt; echo stopped ;;
    esac
done
halt
cd /
# Twice, should an initdb or a copy still be writing.
rm -rf "$folder" || { sleep 0.5; rm -rf "$folder"; }
"#;

/// A folder, and the process in it if there is one, in the care of a shell that outlives us.
struct Keeper {
    folder: PathBuf,
    shell: Mutex<Shell>,
    pid: AtomicU32,
}

struct Shell {
    child: Child,
    /// None once the shell is told to finish.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Keeper {
    /// A new folder, for a command that `signal` kills at once.
    fn new(signal: &str, command: impl FnOnce(&Path) -> Vec<PathBuf>) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        if let Some((user, group)) = owner() {
            chown(folder.path(), Some(user), Some(group)).expect("gives the folder away");
        }
        let mut child = unprivileged(Path::new("sh"), folder.path())
            .args(["-c", KEEPER, "keeper"])
            .arg(folder.path())
            .arg(signal)
            .args(command(folder.path()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // What interrupts the tests is not to kill it before it has cleaned up.
            .process_group(0)
            .spawn()
            .expect("starts a shell");
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        let shell = Mutex::new(Shell { child, orders, answers });
        Self { folder: folder.keep(), shell, pid: AtomicU32::new(0) }
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn pid(&self) -> u32 {
        self.pid.load(Ordering::SeqCst)
    }

    fn log(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    fn order(&self, order: &str) -> String {
        let mut shell = self.shell.lock().unwrap_or_else(PoisonError::into_inner);
        let orders = shell.orders.as_mut().expect("it takes orders until it is dropped");
        writeln!(orders, "{order}").expect("the shell listens");
        let mut answer = String::new();
        shell.answers.read_line(&mut answer).expect("the shell answers");
        answer.trim().to_owned()
    }

    /// Starts the command; its process id.
    fn begin(&self) -> u32 {
        let pid = self.order("begin").parse().expect("a process id");
        self.pid.store(pid, Ordering::SeqCst);
        pid
    }

    fn stop(&self) {
        self.order("stop");
    }

    /// Waits until the command is `ready`; false if it ended before.
    fn becomes(&self, mut ready: impl FnMut() -> bool) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if ready() {
                return true;
            }
            if self.order("alive") == "no" {
                return false;
            }
        }
        panic!("it runs but does not accept connections:\n{}", self.log())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let shell = self.shell.get_mut().unwrap_or_else(PoisonError::into_inner);
        shell.orders = None;
        shell.child.wait().ok();
    }
}
