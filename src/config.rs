//! The configuration: what is in force, and where each value came from.
//!
//! Comes in: flags, the environment (read here and nowhere else) and `patchwarden.toml`, laid into one table by
//! `layers`. Each section then goes to the struct of the module that owns it, key by key, so that every error is
//! found at once and named with its key and the place it came from. Goes out: a [`Config`] that can be served, as far as
//! that can be known without a network. Refuses what would only fail later or would be less safe than it looks: limits
//! of zero, certificates that do not fit, an admin port that is open to a network without TLS.

mod check;
mod defaults;
mod layers;
mod provenance;

use std::fmt;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

pub use defaults::default_text;
pub use layers::{Flags, Origin, Problem};
pub use provenance::Provenance;

use crate::bundle::Overlays;
use crate::limits::Limits;
use crate::pipeline::UngovernedWrites;
use crate::policy::{self, Mode};
use crate::schema::UnknownMembers;
use crate::server::TlsSettings;
use crate::store::{self, Location};
use crate::units::Span;
use crate::upstream::client_address::{self};
use crate::upstream::{self};
use crate::{audit, log, settle};
use layers::Layers;

/// The keys that stand in no section.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Top {
    listen: SocketAddr,
    admin_listen: SocketAddr,
    data: PathBuf,
    mode: Mode,
    unknown_members: UnknownMembers,
    ungoverned_writes: UngovernedWrites,
}

impl Default for Top {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7080)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 7081)),
            data: PathBuf::from("patchwarden-data"),
            mode: Mode::Enforce,
            unknown_members: UnknownMembers::Warn,
            ungoverned_writes: UngovernedWrites::Forward,
        }
    }
}

/// `[store]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Store {
    url: Option<String>,
    password_file: Option<PathBuf>,
    prepared_statements: bool,
}

/// `[policies]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Policies {
    dir: Option<PathBuf>,
    reload: Span,
}

impl Default for Policies {
    fn default() -> Self {
        Self { dir: None, reload: Span::secs(10) }
    }
}

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Log {
    format: Option<log::Format>,
    level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: None, level: "info".to_owned() }
    }
}

/// `[admin]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// File of an admin token beside those in the store.
    pub token_file: Option<PathBuf>,
    /// Whether `/metrics` needs no token.
    pub open_metrics: bool,
    /// Names by which browsers reach the port, beside its address.
    pub hosts: Vec<String>,
    /// Whether an address other than loopback may go without TLS.
    pub plaintext: bool,
    /// The certificate and its chain, PEM.
    pub cert_file: Option<PathBuf>,
    /// Its private key, PEM.
    pub key_file: Option<PathBuf>,
}

impl Admin {
    /// TLS of the admin port.
    pub fn tls(&self) -> TlsSettings {
        TlsSettings {
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            ..TlsSettings::default()
        }
    }
}

/// What is in force.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where the admin listener is.
    pub admin_listen: SocketAddr,
    /// The data folder.
    pub data: PathBuf,
    /// Whether a denial stops a request.
    pub mode: Mode,
    /// What members meet that the schema does not know.
    pub unknown_members: UnknownMembers,
    /// What watched writes meet.
    pub ungoverned_writes: UngovernedWrites,
    /// The guarded API.
    pub upstream: upstream::Settings,
    /// Where the log is kept.
    pub store: Location,
    /// How it is reached.
    pub store_settings: store::Settings,
    /// Folder of rules that are added to those of the bundle.
    pub policies_dir: Option<PathBuf>,
    /// How often it is looked at.
    pub policies_reload: Span,
    /// TLS of the gateway's port.
    pub tls: TlsSettings,
    /// Whose `X-Forwarded-For` is believed.
    pub client_address: client_address::Settings,
    /// The admin listener.
    pub admin: Admin,
    /// The log of changes.
    pub audit: audit::Settings,
    /// Where heads of the log go beside the store.
    pub anchor: audit::anchor::Settings,
    /// How held identities are settled by the gateway itself.
    pub settle: settle::Settings,
    /// How the gateway's own log is written.
    pub log_format: log::Format,
    /// From which level on.
    pub log_level: String,
    /// Every limit.
    pub limits: Limits,
    /// `[rules.…]`: settings laid over rules of the bundle.
    pub rules: Table,
    /// The file that was read.
    pub file: Option<PathBuf>,
    provenance: Vec<Provenance>,
}

/// All that is wrong with flags, variables and file.
#[derive(Debug)]
pub struct Errors {
    /// As far as it could be read; what is wrong keeps its default.
    pub config: Box<Config>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What is odd: perhaps why.
    pub warnings: Vec<String>,
}

impl std::error::Error for Errors {}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.problems.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl Config {
    /// Reads all layers. `needs_upstream` is for commands that serve, or check what would be served: then the upstream
    /// must be given and certificates and tokens are read too. The texts beside the configuration are warnings.
    pub fn load(flags: &Flags, needs_upstream: bool) -> Result<(Self, Vec<String>), Errors> {
        Self::lay(Layers::read(flags, std::env::vars_os().collect()), needs_upstream)
    }

    /// A gateway of its own: nothing from a file or the environment, free ports, everything in one folder.
    pub fn isolated(upstream: SocketAddr, folder: &Path) -> Result<Self, Errors> {
        let values = vec![
            ("listen", "127.0.0.1:0".to_owned()),
            ("admin_listen", "127.0.0.1:0".to_owned()),
            ("data", folder.display().to_string()),
            ("upstream.url", format!("http://{upstream}")),
            // A few changes need no room beside them, and temporary folders are small.
            ("audit.reserve", "0B".to_owned()),
            ("audit.wal_hard", "8MiB".to_owned()),
        ];
        let flags = Flags { config: Some(PathBuf::from("/dev/null")), values };
        Self::lay(Layers::read(&flags, Vec::new()), true).map(|(config, _)| config)
    }

    fn lay(mut layers: Layers, serves: bool) -> Result<(Self, Vec<String>), Errors> {
        let provenance = provenance::of(&layers);
        let top: Top = section(&mut layers, "");
        let store: Store = section(&mut layers, "store");
        let policies: Policies = section(&mut layers, "policies");
        let log: Log = section(&mut layers, "log");
        let data = top.data.join("patchwarden.db");
        let url = store.url.unwrap_or_else(|| format!("sqlite:{}", data.display()));
        let store_settings = store::Settings {
            password_file: store.password_file,
            prepared_statements: store.prepared_statements,
        };
        let location = Location::parse(&url, &store_settings).unwrap_or_else(|error| {
            layers.wrong("store.url", error.to_string().trim_start_matches("store.url: ").to_owned());
            Location::Sqlite(data)
        });
        let mut config = Self {
            listen: top.listen,
            admin_listen: top.admin_listen,
            data: top.data,
            mode: top.mode,
            unknown_members: top.unknown_members,
            ungoverned_writes: top.ungoverned_writes,
            upstream: section(&mut layers, "upstream"),
            store: location,
            store_settings,
            policies_dir: policies.dir,
            policies_reload: policies.reload,
            tls: section(&mut layers, "tls"),
            client_address: section(&mut layers, "client_address"),
            admin: section(&mut layers, "admin"),
            audit: section(&mut layers, "audit"),
            anchor: section(&mut layers, "anchor"),
            settle: section(&mut layers, "settle"),
            log_format: log.format.unwrap_or_else(format_here),
            log_level: log.level,
            limits: section(&mut layers, "limits"),
            rules: std::mem::take(&mut layers.rules),
            file: layers.file.clone(),
            provenance,
        };
        config.fill_in("store.url", format!("\"{url}\""));
        config.fill_in("log.format", format!("\"{}\"", config.log_format));
        config.check(&mut layers);
        if serves {
            config.check_serving(&mut layers);
        }
        let Layers { problems, warnings, .. } = layers;
        if problems.is_empty() {
            Ok((config, warnings))
        } else {
            Err(Errors { config: Box::new(config), problems, warnings })
        }
    }

    /// What every setting is, and where it came from, in the order of the printed defaults.
    pub fn provenance(&self) -> &[Provenance] {
        &self.provenance
    }

    /// What is laid over single rules.
    pub fn overlays(&self) -> Overlays {
        Overlays { table: self.rules.clone(), file: self.file.clone() }
    }

    /// What holds for all rules.
    pub fn judging(&self) -> policy::Settings {
        policy::Settings { ip_allow_listing: self.upstream.ip_allow_listing, mode: self.mode }
    }

    /// The value of a setting whose default depends on others.
    fn fill_in(&mut self, key: &str, value: String) {
        let unset = self.provenance.iter_mut().find(|line| line.key == key && line.value.is_none());
        if let Some(line) = unset {
            line.value = Some(value);
        }
    }
}

fn format_here() -> log::Format {
    if std::io::stderr().is_terminal() { log::Format::Pretty } else { log::Format::Json }
}

/// Reads one section, or the keys outside of all when `name` is empty. Each key is tried by itself, so that all that
/// is wrong is found; what is wrong keeps its default.
fn section<T: DeserializeOwned + Default>(layers: &mut Layers, name: &str) -> T {
    let mut table = match name {
        "" => layers.table.clone(),
        name => layers.table.get(name).and_then(Value::as_table).cloned().unwrap_or_default(),
    };
    if name.is_empty() {
        table.retain(|_, value| !value.is_table());
    }
    let settings = defaults::settings();
    let mut good = Table::new();
    for (key, value) in table {
        let alone = Table::from_iter([(key.clone(), value.clone())]);
        match alone.try_into::<T>() {
            Ok(_) => {
                good.insert(key, value);
            }
            Err(error) => {
                let full = if name.is_empty() { key } else { format!("{name}.{key}") };
                let like = settings.iter().find(|setting| setting.key == full);
                let like =
                    like.map(|setting| format!("; write one like {}", setting.shown)).unwrap_or_default();
                layers.wrong(&full, format!("{}{like}", error.message()));
            }
        }
    }
    good.try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests;
