//! What is wrong with a configuration whose every value can be read.
//!
//! Values that do not go together, limits that mean nothing, files that are not what they should be. All of it is found
//! at once, each with its key; nothing is connected to and nothing is made.

use std::time::Duration;

use super::Config;
use super::layers::Layers;
use crate::audit::anchor::Anchors;
use crate::metrics::Metrics;
use crate::server::Tls;
use crate::units::Size;
use crate::upstream::client_address::TrustedProxies;
use crate::upstream::{self, Upstream};
use crate::{access, audit, log};

/// With less a slow moment of the database looks like the end of a gateway.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);
/// With less the protocol layer cannot read.
const SMALLEST_HEAD: Size = Size(8 << 10);

impl Config {
    /// What stands in the way of every command.
    pub(super) fn check(&self, layers: &mut Layers) {
        for limit in self.limits.zeros() {
            layers.wrong(&format!("limits.{limit}"), "is zero; a limit cannot be switched off");
        }
        if self.limits.header_bytes < SMALLEST_HEAD {
            layers.wrong(
                "limits.header_bytes",
                format!("is less than {SMALLEST_HEAD}, too little to read any head"),
            );
        }
        if !log::LEVELS.contains(&self.log_level.as_str()) {
            layers.wrong(
                "log.level",
                format!("is `{}`; write one of {}", self.log_level, log::LEVELS.join(", ")),
            );
        }
        if self.audit.lease.0 < SHORTEST_LEASE {
            layers.wrong("audit.lease", "is less than 1s; a gateway would be taken for gone while it works");
        }
        for (key, span) in [
            ("policies.reload", self.policies_reload),
            ("tls.reload", self.tls.reload),
            ("settle.every", self.settle.every),
            ("audit.idle_every", self.audit.idle_every),
        ] {
            if span.0.is_zero() {
                layers.wrong(key, "is zero; write how often to look, like `10s`");
            }
        }
        for (key, span) in [
            ("settle.back_off", self.settle.back_off),
            ("settle.undecidable_after", self.settle.undecidable_after),
        ] {
            if span.0.is_zero() {
                layers.wrong(key, "is zero; a reading that fails once says nothing yet");
            }
        }
        if self.upstream.late_write_limit.0.is_zero() {
            layers.wrong(
                "upstream.late_write_limit",
                "is zero; a write without an answer may always land later",
            );
        }
        if self.audit.name.as_deref().is_some_and(|name| !audit::is_name(name)) {
            layers.wrong(
                "audit.name",
                "is no name for a log; write one like \"gw.example.com\": up to 128 visible ASCII characters without `+`",
            );
        }
        if let Err(text) = TrustedProxies::new(&self.client_address) {
            wrong_at(layers, "client_address.trusted_proxies", &text);
        }
        if self.listen.port() != 0 && self.listen == self.admin_listen {
            layers.wrong("admin_listen", "is the gateway's own port; give the admin listener another");
        }
        let bare = self.admin.cert_file.is_none() && self.admin.key_file.is_none();
        if bare && !self.admin.plaintext && !self.admin_listen.ip().to_canonical().is_loopback() {
            layers.wrong(
                "admin_listen",
                format!(
                    "{} can be reached from a network, and tokens would cross it in the clear; set admin.cert_file and admin.key_file, or say admin.plaintext = true, or listen on 127.0.0.1",
                    self.admin_listen
                ),
            );
        }
    }

    /// What serving needs beyond a readable configuration; everything but the network and the store.
    pub(super) fn check_serving(&self, layers: &mut Layers) {
        match Upstream::new(&self.upstream, self.limits.connect.0, std::sync::Arc::new(Metrics::new())) {
            Ok(_) => {}
            Err(error @ upstream::Error::CaFile { .. }) => {
                wrong_at(layers, "upstream.ca_file", &error.to_string());
            }
            Err(upstream::Error::ClientCertificate(text)) => {
                let key = text.split([' ', ':']).next().unwrap_or("upstream.client_cert_file").to_owned();
                wrong_at(layers, &key, &text);
            }
            Err(error) => wrong_at(layers, "upstream.url", &error.to_string()),
        }
        for (name, settings) in [("tls", &self.tls), ("admin", &self.admin.tls())] {
            if let Err(text) = Tls::new(settings, name) {
                let key = text.split([' ', ':']).next().unwrap_or(name).to_owned();
                wrong_at(layers, &key, &text);
            }
        }
        self.check_credential(layers);
        for wrong in Anchors::new(&self.anchor, self.limits.connect.0).err().unwrap_or_default() {
            layers.wrong(wrong.key, wrong.what);
        }
        if let Some(path) = &self.admin.token_file
            && let Err(error) = access::check_token_file(path)
        {
            layers.wrong("admin.token_file", format!("{} holds no token: {error}", path.display()));
        }
        // The folder itself is made when it is opened.
        let there = self.data.ancestors().find(|path| path.exists()).filter(|path| !path.is_dir());
        if let Some(file) = there {
            layers.wrong(
                "data",
                format!(
                    "{} cannot be made: {} is no folder; name a folder this user may write",
                    self.data.display(),
                    file.display()
                ),
            );
        }
    }
}

impl Config {
    /// Id and secret go together, and there is one secret. A file that is not there yet is waited for.
    fn check_credential(&self, layers: &mut Layers) {
        let settle = &self.settle;
        match (&settle.client_id, &settle.client_secret, &settle.client_secret_file) {
            (Some(_), None, None) => layers.wrong(
                "settle.client_id",
                "has no secret; set settle.client_secret_file or PATCHWARDEN_SETTLE_CLIENT_SECRET",
            ),
            (None, Some(_), _) => layers.wrong("settle.client_secret", "belongs to no settle.client_id"),
            (None, None, Some(_)) => {
                layers.wrong("settle.client_secret_file", "belongs to no settle.client_id");
            }
            (Some(_), Some(_), Some(_)) => layers.wrong(
                "settle.client_secret_file",
                "is a second secret beside settle.client_secret; set one of them",
            ),
            (None, None, None) | (Some(_), Some(_), None) | (Some(_), None, Some(_)) => {}
        }
    }
}

/// Notes a text that may begin with the key itself.
fn wrong_at(layers: &mut Layers, key: &str, text: &str) {
    layers.wrong(key, text.strip_prefix(key).unwrap_or(text).trim_start_matches([':', ' ']));
}
