//! Where the server is, and how to log in.
//!
//! The address is libpq's (`postgres://USER@HOST:PORT/DATABASE?sslmode=…&sslrootcert=…&sslcert=…&sslkey=…`). What leaves
//! this machine is encrypted and the server's certificate verified, unless the address says otherwise. A password file is
//! read anew for every connection, so that a rotated password is picked up.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr as _;

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};

use super::super::{Error, Settings};
use super::{PATIENCE, inside};

/// A database on a server. Shown without a password.
#[derive(Clone)]
pub struct Server {
    options: PgConnectOptions,
    password_file: Option<PathBuf>,
    prepared: bool,
}

impl Server {
    /// Reads an address. An error never repeats it.
    pub fn parse(url: &str, settings: &Settings) -> Result<Self, Error> {
        let options = PgConnectOptions::from_str(url).map_err(|error| {
            Error::Url(format!("cannot be read: {error}; write postgres://USER@HOST:PORT/DATABASE"))
        })?;
        let rest = url.split_once("://").map_or("", |(_, rest)| rest);
        let (authority, query) = rest.split_once('?').unwrap_or((rest, ""));
        let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
        if settings.password_file.is_some() && user.contains(':') {
            return Err(Error::Url(
                "holds a password, and store.password_file is another; keep the file".to_owned(),
            ));
        }
        let local = options.get_socket().is_some() || is_local(options.get_host());
        let options = match (query.contains("sslmode=") || query.contains("ssl-mode="), local) {
            (true, _) => options,
            (false, true) => options.ssl_mode(PgSslMode::Prefer),
            (false, false) => options.ssl_mode(PgSslMode::VerifyFull),
        };
        // A parameter more than the protocol's own would be refused by a pooler.
        let options =
            options.extra_float_digits(None).application_name("patchwarden").disable_statement_logging();
        Ok(Self {
            options,
            password_file: settings.password_file.clone(),
            prepared: settings.prepared_statements,
        })
    }

    /// Whether statements are prepared by name.
    pub(super) fn prepared(&self) -> bool {
        self.prepared
    }

    /// How to connect now.
    pub(super) fn options(&self) -> Result<PgConnectOptions, Error> {
        let Some(path) = &self.password_file else { return Ok(self.options.clone()) };
        let read = std::fs::read_to_string(path);
        let password =
            read.map_err(|error| Error::Wait(format!("store.password_file: {}: {error}", path.display())))?;
        Ok(self.options.clone().password(password.trim_end_matches(['\r', '\n'])))
    }

    /// A connection.
    pub(super) async fn connect(&self) -> Result<PgConnection, Error> {
        let options = self.options()?;
        let connected = tokio::time::timeout(PATIENCE, options.connect()).await;
        connected
            .map_err(|_| Error::Wait(format!("{self}: no connection within {} s", PATIENCE.as_secs())))?
            .map_err(|error| match inside(&error) {
                Error::Wait(what) => Error::Wait(format!("{self}: {what}")),
                other => other,
            })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.options;
        let database = options.get_database().unwrap_or_else(|| options.get_username());
        match options.get_socket() {
            Some(socket) => {
                write!(out, "postgres://{}@/{database}?host={}", options.get_username(), socket.display())
            }
            None => write!(
                out,
                "postgres://{}@{}:{}/{database}",
                options.get_username(),
                options.get_host(),
                options.get_port()
            ),
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

fn is_local(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.starts_with('/') || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
