//! The real binary under test: `patchwarden serve` with a data folder and ports of its own.
//!
//! A [`Setup`] says how to start it, a [`Gateway`] is one that listens. Everything it writes to standard error is
//! kept and printed when a test fails. No `PATCHWARDEN_*` variable of whoever runs the tests reaches it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::client::{self, Answer};
use super::upstream::Upstream;
use super::{machine_token, postgres};

const PATIENCE: Duration = Duration::from_secs(30);

static TOKENS: AtomicUsize = AtomicUsize::new(1);

/// How a gateway is to be started.
pub(crate) struct Setup {
    upstream: String,
    config: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    folder: Option<PathBuf>,
    /// Where the whole suite is run over PostgreSQL: this gateway's database.
    store: Option<String>,
}

impl Setup {
    /// Text that goes into its `patchwarden.toml`; top-level keys before tables.
    pub(crate) fn config(mut self, toml: &str) -> Self {
        self.config += toml;
        self.config += "\n";
        self
    }

    /// Further flags of `serve`.
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The folder for `data` and `patchwarden.toml`, where a test needs to prepare or share it.
    pub(crate) fn folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// With the key of fingerprints that all gateways of one store share.
    pub(crate) fn shared_fingerprints(self) -> Self {
        static KEY: LazyLock<TempDir> = LazyLock::new(|| {
            let folder = TempDir::new().expect("a temporary folder");
            fs::write(folder.path().join("key"), "5a".repeat(32)).expect("writes the key");
            folder
        });
        let key = KEY.path().join("key").display().to_string();
        self.env("PATCHWARDEN_AUDIT_FINGERPRINT_KEY_FILE", &key)
    }

    /// Starts it and waits until it listens.
    pub(crate) async fn start(self) -> Gateway {
        let mut gateway = self.spawn();
        gateway.wait_until_listening().await;
        gateway
    }

    /// Starts what is expected to give up by itself.
    pub(crate) async fn run_to_exit(self) -> (ExitStatus, Vec<String>) {
        let mut gateway = self.spawn();
        let status = gateway.wait_for_exit().await;
        (status, gateway.logs())
    }

    /// One that is not started: for commands on its folder.
    pub(crate) fn idle(mut self) -> Gateway {
        let folder = self.folder.clone().expect("a folder of the test's own");
        self.store = self.other_store(&folder);
        self.into_gateway(folder, None)
    }

    fn into_gateway(self, folder: PathBuf, temporary: Option<TempDir>) -> Gateway {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        Gateway {
            setup: self,
            folder,
            _temporary: temporary,
            child: None,
            logs: Logs::default(),
            run_began_at: 0,
            addr: nowhere,
            admin_addr: nowhere,
            token: machine_token(),
        }
    }

    /// Starts it without waiting for anything: it has no addresses until [`Gateway::wait_until_listening`].
    pub(crate) fn spawn(mut self) -> Gateway {
        let temporary = self.folder.is_none().then(|| TempDir::new().expect("a temporary folder"));
        let folder = match (&self.folder, &temporary) {
            (Some(folder), _) => folder.clone(),
            (None, temporary) => temporary.as_ref().expect("one of the two").path().to_owned(),
        };
        self.store = self.other_store(&folder);
        fs::write(folder.join("patchwarden.toml"), &self.config).expect("writes the config");
        let mut gateway = self.into_gateway(folder, temporary);
        gateway.launch();
        gateway
    }
}

impl Setup {
    /// With `PATCHWARDEN_TEST_STORE=postgres` every gateway that names no store has a database of its own.
    fn other_store(&self, folder: &Path) -> Option<String> {
        let wanted = std::env::var("PATCHWARDEN_TEST_STORE").is_ok_and(|store| store == "postgres");
        if !wanted || self.config.contains("[store]") || self.args.iter().any(|arg| arg == "--store") {
            return None;
        }
        let note = folder.join("store-url");
        let url = fs::read_to_string(&note)
            .unwrap_or_else(|_| postgres::shared().url(postgres::GATEWAY, &postgres::fresh_store()));
        fs::write(&note, &url).expect("writes");
        Some(url)
    }
}

type Logs = Arc<Mutex<Vec<String>>>;

/// A gateway process; killed when dropped.
pub(crate) struct Gateway {
    setup: Setup,
    folder: PathBuf,
    _temporary: Option<TempDir>,
    child: Option<Child>,
    logs: Logs,
    /// Number of lines that earlier runs on the same folder wrote.
    run_began_at: usize,
    addr: SocketAddr,
    admin_addr: SocketAddr,
    /// What [`Gateway::patch`] and its like send.
    pub(crate) token: String,
}

impl Gateway {
    /// In front of `upstream`, with defaults.
    pub(crate) async fn start(upstream: &Upstream) -> Self {
        Self::before(&upstream.url()).start().await
    }

    /// To be started in front of `url`.
    pub(crate) fn before(url: &str) -> Setup {
        Setup {
            upstream: url.to_owned(),
            config: String::new(),
            args: Vec::new(),
            env: Vec::new(),
            folder: None,
            store: None,
        }
    }

    fn launch(&mut self) {
        self.run_began_at = self.logs().len();
        let mut child = program()
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--log-format",
                "json",
            ])
            .arg("--data")
            .arg(self.data())
            .arg("--config")
            .arg(self.folder.join("patchwarden.toml"))
            .args(["--upstream", &self.setup.upstream])
            .args(&self.setup.args)
            .envs(self.setup.store.iter().map(|url| ("PATCHWARDEN_STORE", url)))
            .envs(self.setup.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let (stderr, logs) = (child.stderr.take().expect("a pipe"), self.logs.clone());
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stderr).split(b'\n');
            while let Some(Ok(line)) = lines.next() {
                let line = String::from_utf8_lossy(&line).into_owned();
                logs.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        self.child = Some(child);
    }

    /// Waits for the `listening` event of this run and learns the addresses.
    pub(crate) async fn wait_until_listening(&mut self) {
        let event = self.wait_for_event("listening").await;
        let address = |name: &str| event[name].as_str().and_then(|text| text.parse().ok());
        let (Some(addr), Some(admin)) = (address("gateway"), address("admin")) else {
            panic!("`listening` without addresses: {event}");
        };
        (self.addr, self.admin_addr) = (addr, admin);
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// The data folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The configuration file; takes effect with [`Gateway::restart`].
    pub(crate) fn config_file(&self) -> PathBuf {
        self.folder.join("patchwarden.toml")
    }

    /// Everything written to standard error so far, by all runs.
    pub(crate) fn logs(&self) -> Vec<String> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The events of that name in the log, of all runs.
    pub(crate) fn events(&self, name: &str) -> Vec<Value> {
        self.logs().iter().filter_map(|line| event_in(line, name)).collect()
    }

    /// The first event of that name in this run, which may be still to come.
    pub(crate) async fn wait_for_event(&mut self, name: &str) -> Value {
        let since = Instant::now();
        loop {
            let exited = self.child.as_mut().is_none_or(|child| child.try_wait().ok().flatten().is_some());
            if let Some(event) =
                self.logs().iter().skip(self.run_began_at).find_map(|line| event_in(line, name))
            {
                return event;
            }
            // The reader of the pipe may be a moment behind the end of the process.
            let patience = if exited { Duration::from_secs(2) } else { PATIENCE };
            if since.elapsed() > patience {
                panic!("no event `{name}` (exited: {exited}); see the log below");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, None).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.request("PATCH", path, Some(body)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.request("DELETE", path, None).await
    }

    /// With the gateway's `token` as the bearer.
    pub(crate) async fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.request_with(method, path, &[], body).await
    }

    /// The same with further headers.
    pub(crate) async fn request_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Answer {
        let authorization = format!("Bearer {}", self.token);
        let headers = [&[("Authorization", authorization.as_str())], headers].concat();
        client::request(self.addr, method, path, &headers, body).await
    }

    /// GET on the admin listener.
    pub(crate) async fn admin_get(&self, path: &str, token: Option<&str>) -> Answer {
        let authorization = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = authorization.iter().map(|value| ("Authorization", value.as_str())).collect();
        client::request(self.admin_addr, "GET", path, &headers, None).await
    }

    /// A new admin token of that role.
    pub(crate) fn admin_token(&self, role: &str) -> String {
        let serial = TOKENS.fetch_add(1, Ordering::SeqCst);
        let name = format!("{role}-{serial}");
        let output = self.cli_ok(&["token", "create", "--role", role, "--name", &name]);
        output.trim().to_owned()
    }

    /// `history` with further filters, as JSON.
    pub(crate) fn history(&self, args: &[&str]) -> Value {
        json_of(&self.cli_ok(&[&["history", "--format", "json"], args].concat()))
    }

    /// `show ID`, as JSON.
    pub(crate) fn show(&self, id: &str) -> Value {
        json_of(&self.cli_ok(&["show", id, "--format", "json"]))
    }

    /// Runs the binary with `args` and this data folder.
    pub(crate) fn cli(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the binary runs")
    }

    /// The binary with `args`, this data folder and this store, yet to be run.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = program();
        command.args(args).arg("--data").arg(self.data()).current_dir(&self.folder).stdin(Stdio::null());
        command.envs(self.setup.store.iter().map(|url| ("PATCHWARDEN_STORE", url)));
        command
    }

    /// Writes a file beside the data folder; its path.
    pub(crate) fn folder_file(&self, name: &str, text: &str) -> String {
        let path = self.folder.join(name);
        std::fs::write(&path, text).expect("writes");
        path.display().to_string()
    }

    /// Standard output of a run that must succeed.
    pub(crate) fn cli_ok(&self, args: &[&str]) -> String {
        let output = self.cli(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "`patchwarden {}`: {}\n{out}{err}", args.join(" "), output.status);
        out.into_owned()
    }

    /// The process id, for whoever sends signals of its own.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running gateway").id()
    }

    /// Sends a signal by its name: `TERM`, `HUP`, `STOP`, `CONT`.
    /// Its resident memory, in KiB.
    pub(crate) fn memory(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its size");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(sent.expect("`kill` runs").success());
    }

    /// SIGTERM, then the wait for its end.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait_for_exit().await
    }

    pub(crate) async fn wait_for_exit(&mut self) -> ExitStatus {
        let since = Instant::now();
        let mut child = self.child.take().expect("a running gateway");
        loop {
            match child.try_wait().expect("a child can be waited for") {
                Some(status) => {
                    // Its last lines may still be in the pipe.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    return status;
                }
                None if since.elapsed() > PATIENCE => {
                    self.child = Some(child);
                    panic!("the gateway does not end; see the log below");
                }
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// SIGKILL: no time for last words.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts again on the same data folder, on new ports; a gateway that still runs is killed first.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.launch();
        self.wait_until_listening().await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("the gateway's log:\n{}", self.logs().join("\n"));
        }
    }
}

/// The binary, with nothing of the environment that could configure it.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_patchwarden"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PATCHWARDEN_") {
            command.env_remove(name);
        }
    }
    command.env("NO_COLOR", "1");
    command
}

/// The id of the change an answer belongs to.
pub(crate) fn change_of(answer: &Answer) -> String {
    let change = answer.get("patchwarden-change");
    change.unwrap_or_else(|| panic!("no change id: {} {}", answer.status, answer.text())).to_owned()
}

#[expect(clippy::disallowed_methods, reason = "a test reads output without the code under test")]
fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("no JSON ({error}): {text}"))
}

#[expect(clippy::disallowed_methods, reason = "a test reads logs without the code under test")]
fn event_in(line: &str, name: &str) -> Option<Value> {
    let event: Value = serde_json::from_str(line).ok()?;
    (event["event"] == name).then_some(event)
}
