//! The gateway, assembled: from a configuration to two open ports, and back down.
//!
//! [`start`] makes every part in the order of the house and opens the ports last, so that nothing is half started when a
//! part cannot be made; what cannot is a [`Failure`] with its exit code. A log that cannot be written yet is no failure: the
//! gateway starts degraded. [`Running::stop`] stops accepting, lets what is in flight end, and writes what waits.

mod offline;
mod reload;
mod verifying;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Access;
use crate::api::{self, Phase, Readiness};
use crate::audit::{self, Audit, InForce, Status};
use crate::bundle::{self, Bundle};
use crate::clock::Clock;
use crate::config::Config;
use crate::keys::Keys;
use crate::log;
use crate::metrics::Metrics;
use crate::passthrough::{self, Passthrough};
use crate::pipeline::{Gateway, Memory};
use crate::policy::Mode;
use crate::server::{self, Door, Server, Socket, Tls};
use crate::settle::{self, Settler};
use crate::upstream::Upstream;
use crate::upstream::client_address::TrustedProxies;

pub use offline::{anchors, offline};
use offline::{fingerprint, open_keys};
use reload::{Folder, Reload};
use verifying::Verifying;

const ADMIN_CONNECTIONS: usize = 256;
const PROBE: Duration = Duration::from_secs(10);
/// The mode is said at start and this often, while it is not the one that enforces.
const MODE_REMINDER: Duration = Duration::from_secs(3600);

/// The part of `/readyz` that tells of the gateway's own credential.
const SETTLE: &str = "settle";

/// The part of `/readyz` that tells of where heads go beside the store.
const ANCHOR: &str = "anchor";

/// Why a command could not end well.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// For people, one problem a line; empty when there is nothing to say.
    pub message: String,
}

impl Failure {
    #[expect(clippy::needless_pass_by_value, reason = "so that map_err takes it by name")]
    fn misconfigured(message: impl ToString) -> Self {
        Self { code: 2, message: message.to_string() }
    }

    #[expect(clippy::needless_pass_by_value, reason = "so that map_err takes it by name")]
    fn unable(message: impl ToString) -> Self {
        Self { code: 3, message: message.to_string() }
    }
}

/// A gateway that serves.
pub struct Running {
    /// Where clients connect.
    pub gateway: SocketAddr,
    /// Where operators do.
    pub admin: SocketAddr,
    audit: Audit,
    readiness: Readiness,
    /// Ends what serves clients, then what serves operators.
    stop: CancellationToken,
    stop_admin: CancellationToken,
    servers: TaskTracker,
    admin_servers: TaskTracker,
    tasks: TaskTracker,
    shutdown: Duration,
}

/// Runs until SIGTERM or SIGINT.
pub async fn serve(config: Config) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::unable)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::unable)?;
    let running = start(config).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    running.stop().await;
    log::stopped();
    Ok(())
}

/// Makes every part and opens the ports.
pub async fn start(config: Config) -> Result<Running, Failure> {
    // From here on the signal asks for a reload; unheard, it would end the process.
    let hangup = signal(SignalKind::hangup()).map_err(Failure::unable)?;
    // Before they are loaded: what changes in between is a change.
    let content = config.policies_dir.as_deref().map(bundle::content);
    let bundle = load_bundle(&config)?;
    let metrics = Arc::new(Metrics::new());
    let upstream = Upstream::new(&config.upstream, config.limits.connect.0, metrics.clone());
    let upstream = upstream.map_err(Failure::misconfigured)?;
    let trusted = TrustedProxies::new(&config.client_address).map_err(Failure::misconfigured)?;
    let tls = Tls::new(&config.tls, "tls").map_err(Failure::misconfigured)?;
    let admin_tls = Tls::new(&config.admin.tls(), "admin").map_err(Failure::misconfigured)?;
    let keys = Arc::new(open_keys(&config)?);
    let (gateway_port, gateway_address) = bind(config.listen, "listen").await?;
    let (admin_port, admin_address) = bind(config.admin_listen, "admin_listen").await?;

    let tasks = TaskTracker::new();
    let (stop, stop_admin) = (CancellationToken::new(), CancellationToken::new());
    let audit = Audit::start(audit::Parts {
        store: config.store.clone(),
        late_write_limit: config.upstream.late_write_limit.0,
        data: config.data.clone(),
        settings: config.audit.clone(),
        anchors: anchors(&config)?,
        keys: keys.clone(),
        clock: Clock::System,
        metrics: metrics.clone(),
        tasks: tasks.clone(),
        in_force: Some(InForce { policy: bundle.digest().clone(), config: fingerprint(&config, &keys) }),
    });
    let audit = audit.await.map_err(Failure::unable)?;
    let access = Access::new(audit.clone(), config.admin.token_file.as_deref());
    let access = access.map_err(|error| Failure::misconfigured(format!("admin.token_file: {error}")))?;
    audit.keep_bundle(bundle.digest(), bundle.text());
    let readiness = Readiness::new();
    let told = readiness.clone();
    audit.publish(Box::new(move |wrong| match wrong {
        Some((since, wrong)) => told.problem(ANCHOR, since, wrong),
        None => told.solved(ANCHOR),
    }));
    let bundle = Arc::new(RwLock::new(Arc::new(bundle)));
    let settler = settler(&config, &bundle, &upstream, &audit, &keys, &metrics, readiness.clone());
    let gateway =
        assemble(&config, bundle.clone(), upstream.clone(), &audit, keys, &metrics, trusted, &tasks, &stop);

    let servers = TaskTracker::new();
    let admin_servers = TaskTracker::new();
    let limits = door_limits(&config, config.limits.connections);
    let handler: server::Handler =
        Arc::new(move |request, peer| Box::pin(gateway.clone().handle(request, peer)));
    let service = server::gateway(handler, config.limits.requests, metrics.clone());
    let server = Server::new(limits, Some(metrics.clone()));
    let (door, until) = (Door::Tcp(gateway_port, tls.clone()), stop.clone());
    servers.spawn(async move { server.serve(door, service, until).await });

    let state = api::State::new(api::Parts {
        audit: audit.clone(),
        access,
        bundle: bundle.clone(),
        metrics: metrics.clone(),
        readiness: readiness.clone(),
        clock: Clock::System,
        open_metrics: config.admin.open_metrics,
        hosts: config.admin.hosts.clone(),
    });
    let admin_limits = door_limits(&config, ADMIN_CONNECTIONS);
    let server = Server::new(admin_limits, None);
    let (door, router, until) =
        (Door::Tcp(admin_port, admin_tls.clone()), api::admin(state.clone()), stop_admin.clone());
    admin_servers.spawn(async move { server.serve(door, router, until).await });
    let socket =
        serve_socket(config.data.join("admin.sock"), state, admin_limits, audit.clone(), stop_admin.clone());
    admin_servers.spawn(socket);
    servers.spawn(settler.run(stop.clone()));
    if config.audit.check_at_start {
        let verifying = Verifying {
            audit: audit.clone(),
            store: config.store.clone(),
            readiness: readiness.clone(),
            metrics: metrics.clone(),
        };
        servers.spawn(verifying.run(stop.clone()));
    }
    servers.spawn(look_around(upstream, config.mode, stop.clone()));
    let reload = Reload {
        certificates: tls.into_iter().chain(admin_tls).collect(),
        policies: content.map(|content| Folder::new(&config, content, bundle)),
        every: (config.tls.reload.0, config.policies_reload.0),
        hangup,
        audit: audit.clone(),
        readiness: readiness.clone(),
        metrics: metrics.clone(),
    };
    servers.spawn(reload.run(stop.clone()));

    readiness.enter(Phase::Ready);
    log::listening(gateway_address, admin_address);
    Ok(Running {
        gateway: gateway_address,
        admin: admin_address,
        audit,
        readiness,
        stop,
        stop_admin,
        servers,
        admin_servers,
        tasks,
        shutdown: config.limits.shutdown.0,
    })
}

impl Running {
    /// Its log.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Stops accepting, lets what is in flight end within `limits.shutdown`, and writes what waits.
    pub async fn stop(self) {
        self.readiness.enter(Phase::Stopping);
        self.stop.cancel();
        self.servers.close();
        self.tasks.close();
        // A change whose client left is still carried to its outcome, which the log must take before it closes.
        let served = async {
            self.servers.wait().await;
            self.tasks.wait().await;
        };
        let _ = tokio::time::timeout(self.shutdown + Duration::from_secs(5), served).await;
        self.audit.stop().await;
        self.stop_admin.cancel();
        self.admin_servers.close();
        let _ = tokio::time::timeout(Duration::from_secs(5), self.admin_servers.wait()).await;
    }
}

/// The policies, exactly as a gateway with this configuration has them.
pub fn load_bundle(config: &Config) -> Result<Bundle, Failure> {
    Bundle::load(config.policies_dir.as_deref(), &config.overlays(), config.judging()).map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        Failure { code: 1, message: lines.join("\n") }
    })
}

async fn bind(address: SocketAddr, key: &str) -> Result<(TcpListener, SocketAddr), Failure> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok::<_, std::io::Error>((listener, address))
    };
    let flag = key.replace('_', "-");
    bound.await.map_err(|error| {
        Failure::unable(format!("{key} (--{flag}): {address}: {error}; name another address or port 0"))
    })
}

#[expect(clippy::too_many_arguments, reason = "each part once, at the one place that knows all of them")]
fn assemble(
    config: &Config,
    bundle: Arc<RwLock<Arc<Bundle>>>,
    upstream: Upstream,
    audit: &Audit,
    keys: Arc<Keys>,
    metrics: &Arc<Metrics>,
    trusted: TrustedProxies,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Arc<Gateway> {
    let limits = passthrough::Limits { head: config.limits.passthrough_head, tunnels: config.limits.tunnels };
    let passthrough =
        Passthrough::new(upstream.clone(), limits, tasks.clone(), stop.clone(), metrics.clone());
    Arc::new(Gateway {
        upstream,
        audit: audit.clone(),
        bundle,
        keys,
        clock: Clock::System,
        metrics: metrics.clone(),
        limits: config.limits.clone(),
        trusted,
        passthrough,
        ungoverned: config.ungoverned_writes,
        unknown_members: config.unknown_members,
        late_write_limit: config.upstream.late_write_limit.0,
        mode: mode_name(config.mode),
        tasks: tasks.clone(),
        memory: Memory::new(&config.limits, metrics),
    })
}

fn settler(
    config: &Config,
    bundle: &Arc<RwLock<Arc<Bundle>>>,
    upstream: &Upstream,
    audit: &Audit,
    keys: &Arc<Keys>,
    metrics: &Arc<Metrics>,
    readiness: Readiness,
) -> Settler {
    let report: settle::Report = Box::new(move |wrong| match wrong {
        Some((since, wrong)) => readiness.problem(SETTLE, since, wrong),
        None => readiness.solved(SETTLE),
    });
    Settler::new(settle::Parts {
        upstream: upstream.clone(),
        audit: audit.clone(),
        bundle: bundle.clone(),
        keys: keys.clone(),
        clock: Clock::System,
        metrics: metrics.clone(),
        limits: config.limits.clone(),
        late_write_limit: config.upstream.late_write_limit.0,
        settings: config.settle.clone(),
        report,
    })
}

fn door_limits(config: &Config, connections: usize) -> server::Limits {
    let limits = &config.limits;
    server::Limits {
        connections,
        headers: limits.headers,
        header_bytes: limits.header_bytes,
        streams: limits.streams,
        handshake: limits.handshake,
        header_read: limits.header_read,
        idle: limits.idle,
        shutdown: limits.shutdown,
    }
}

const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Observe => "observe",
    }
}

/// The Unix socket opens once this process holds the data folder's lock: before that it may be another one's.
async fn serve_socket(
    path: PathBuf,
    state: api::State,
    limits: server::Limits,
    audit: Audit,
    stop: CancellationToken,
) {
    let mut status = audit.watch();
    // A store that was opened shows it too, when its disk has no room for changes.
    let is_locked = |status: &Status| *status == Status::Up || audit.reader().is_some();
    let locked = stop.run_until_cancelled(async { status.wait_for(is_locked).await.is_ok() }).await;
    if locked != Some(true) {
        return;
    }
    match Socket::bind(&path) {
        Ok(socket) => Server::new(limits, None).serve(Door::Unix(socket), api::socket(state), stop).await,
        Err(error) => {
            tracing::error!(event = "socket_failed", error = %error, "{} cannot be opened", path.display());
        }
    }
}

/// Says at start what an operator should know and need not stop the gateway: an upstream that is not there, a mode that
/// does not enforce.
async fn look_around(upstream: Upstream, mode: Mode, stop: CancellationToken) {
    let look = async {
        if let Err(problem) = upstream.status_probe(PROBE).await {
            tracing::error!(event = "upstream_problem", "{problem}");
        }
        let mut hour = tokio::time::interval(MODE_REMINDER);
        loop {
            hour.tick().await;
            if mode == Mode::Observe {
                tracing::warn!(event = "mode", mode = "observe", "denials are recorded and forwarded");
            }
        }
    };
    let _: Option<()> = stop.run_until_cancelled(look).await;
}
