//! Every setting in one table: its key, kind, default and meaning.
//!
//! The table drives the printed configuration, the names of variables, how their text is read, and which keys are
//! known. A test holds it against the defaults of the structs that own the sections, so it cannot drift from them.
//! Limits come from `limits::described`. What stands under `[rules.…]` belongs to the policies and is not listed.

use std::fmt::Write as _;

use crate::limits;

/// How the text of a flag or a variable becomes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// As it is: also durations, sizes, paths and addresses.
    Text,
    /// `true` or `false`.
    Switch,
    /// A whole number.
    Count,
    /// Separated by commas.
    List,
}

/// One setting.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    /// `listen`, `upstream.url`.
    pub key: String,
    /// How it is read.
    pub kind: Kind,
    /// Its default as TOML, or what to write where there is none.
    pub shown: String,
    /// Whether `shown` is a default, not an example.
    pub has_default: bool,
    /// One line for people.
    pub meaning: &'static str,
}

impl Setting {
    /// Its section, empty at the top, and its name there.
    pub(super) fn place(&self) -> (&str, &str) {
        self.key.split_once('.').unwrap_or(("", &self.key))
    }

    /// The variable for it: `PATCHWARDEN_UPSTREAM_URL`.
    pub(super) fn variable(&self) -> String {
        format!("PATCHWARDEN_{}", self.key.to_ascii_uppercase().replace('.', "_"))
    }
}

/// Shorter names of variables, beside the ones made from the key.
pub(super) const SHORT_VARIABLES: [(&str, &str); 3] = [
    ("PATCHWARDEN_UPSTREAM", "upstream.url"),
    ("PATCHWARDEN_STORE", "store.url"),
    ("PATCHWARDEN_POLICIES", "policies.dir"),
];

/// Settings whose value is printed nowhere.
pub(super) const SECRETS: [&str; 1] = ["settle.client_secret"];

const TEXT: Kind = Kind::Text;

/// Key, kind, TOML of the default (after `?`: an example), meaning.
#[rustfmt::skip]
const OWN: &[(&str, Kind, &str, &str)] = &[
    ("listen", TEXT, "\"127.0.0.1:7080\"", "where clients connect; port 0 picks a free one"),
    ("admin_listen", TEXT, "\"127.0.0.1:7081\"", "probes, metrics and the history; never on the same port"),
    ("data", TEXT, "\"patchwarden-data\"", "folder of what makes this instance itself; created 0700"),
    ("mode", TEXT, "\"enforce\"", "enforce | observe: what a denial would have been is recorded and forwarded"),
    ("unknown_members", TEXT, "\"warn\"", "warn | refuse: members of a governed request the schema does not know"),
    ("ungoverned_writes", TEXT, "\"forward\"", "forward | refuse: the watched routes of the catalogue"),
    ("upstream.url", TEXT, "?\"http://infisical:8080\"", "required: scheme, host and port of the Infisical API"),
    ("upstream.ca_file", TEXT, "?\"/etc/ssl/corp.pem\"", "PEM roots to trust instead of the system's"),
    ("upstream.client_cert_file", TEXT, "?\"/etc/patchwarden/upstream.crt\"", "certificate and chain shown to the upstream, PEM"),
    ("upstream.client_key_file", TEXT, "?\"/etc/patchwarden/upstream.key\"", "its private key, PEM"),
    ("upstream.ip_allow_listing", Kind::Switch, "true", "false: the organisation's plan has no IP allow-listing"),
    ("upstream.late_write_limit", TEXT, "\"120s\"", "how long a write without an answer may still land"),
    ("store.url", TEXT, "?\"sqlite:patchwarden-data/patchwarden.db\"", "default: patchwarden.db in the data folder"),
    ("store.password_file", TEXT, "?\"/etc/patchwarden/store-password\"", "PostgreSQL's password; read anew for every connection"),
    ("store.prepared_statements", Kind::Switch, "false", "true: a round trip less, but not through a pooler that shares connections"),
    ("policies.dir", TEXT, "?\"policies\"", "folder of rules that are added to those in the binary"),
    ("policies.reload", TEXT, "\"10s\"", "how often the folder is looked at; SIGHUP looks at once"),
    ("tls.cert_file", TEXT, "?\"/etc/patchwarden/tls.crt\"", "certificate and chain of the gateway's port, PEM"),
    ("tls.key_file", TEXT, "?\"/etc/patchwarden/tls.key\"", "its private key, PEM"),
    ("tls.reload", TEXT, "\"10s\"", "how often the files of both ports are looked at; SIGHUP looks at once"),
    ("tls.client_ca_file", TEXT, "?\"/etc/patchwarden/clients.pem\"", "roots of the certificates clients must show"),
    ("client_address.trusted_proxies", Kind::List, "[]", "ranges of the proxies in front, like \"10.0.0.0/8\""),
    ("admin.token_file", TEXT, "?\"/run/secrets/admin-token\"", "file of an admin token beside those made by `patchwarden token create`"),
    ("admin.open_metrics", Kind::Switch, "false", "true: /metrics needs no token"),
    ("admin.hosts", Kind::List, "[]", "names by which browsers reach the admin port, beside its address"),
    ("admin.plaintext", Kind::Switch, "false", "true: an admin address other than loopback may go without TLS"),
    ("admin.cert_file", TEXT, "?\"/etc/patchwarden/admin.crt\"", "certificate and chain of the admin port, PEM"),
    ("admin.key_file", TEXT, "?\"/etc/patchwarden/admin.key\"", "its private key, PEM"),
    ("audit.name", TEXT, "?\"patchwarden.example\"", "first part of the name of this instance's log"),
    ("audit.fingerprint_key_file", TEXT, "?\"/etc/patchwarden/fingerprint.key\"", "key of fingerprints, one for all gateways on one store; default: one in the data folder"),
    ("audit.commit_wait", TEXT, "\"5s\"", "how long a change waits for its intent to be written"),
    ("audit.lease", TEXT, "\"10s\"", "how long other gateways on one PostgreSQL take this one to be alive unheard"),
    ("audit.check_at_start", Kind::Switch, "true", "the whole log is read once after a start, beside what is served; false: only its end"),
    ("audit.wal_soft", TEXT, "\"64MiB\"", "write-ahead log size from which writing waits a little for it to be copied back"),
    ("audit.wal_hard", TEXT, "\"512MiB\"", "write-ahead log size from which no change is let through"),
    ("audit.reserve", TEXT, "\"256MiB\"", "disk space kept for outcomes, beside room for wal_hard; with less left no change is let through"),
    ("audit.idle_every", TEXT, "\"1h\"", "after this without an entry one says that there was none"),
    ("anchor.file", TEXT, "?\"/mnt/other/patchwarden.head\"", "the log's newest signed head is also kept in this file, on other storage; one gateway a file"),
    ("anchor.url", TEXT, "?\"https://anchors.example.com/patchwarden/gw-1\"", "and PUT here; asked for with GET at start; one gateway a URL"),
    ("anchor.token_file", TEXT, "?\"/run/secrets/anchor-token\"", "file of the bearer token for anchor.url; read anew for each use"),
    ("anchor.witnesses", Kind::List, "[]", "C2SP witnesses that cosign it, each \"URL KEY\": submission prefix and public key"),
    ("anchor.ca_file", TEXT, "?\"/etc/ssl/corp.pem\"", "PEM roots to trust for anchor.url and witnesses instead of the system's"),
    ("anchor.every", TEXT, "\"1m\"", "how often a head that is new goes out"),
    ("anchor.back_off", TEXT, "\"5m\"", "longest wait between two tries of what cannot be reached"),
    ("anchor.timeout", TEXT, "\"10s\"", "time of one exchange with a destination"),
    ("anchor.start_timeout", TEXT, "\"3s\"", "how long the start waits for the head that anchor.file and anchor.url have"),
    ("settle.client_id", TEXT, "?\"2f1d3b6c-5a0e-4a7b-9a43-0c8f3f1d2e4b\"", "universal auth of a machine identity that may read identities; without it the gateway settles only by others' reads"),
    ("settle.client_secret", TEXT, "?\"…\"", "its secret; better from the variable, or from a file"),
    ("settle.client_secret_file", TEXT, "?\"/run/secrets/settle-client-secret\"", "a file that holds it instead; read anew for every login"),
    ("settle.every", TEXT, "\"10s\"", "how often identities held by an unknown outcome are looked for"),
    ("settle.back_off", TEXT, "\"5m\"", "longest wait between two tries of what cannot be read"),
    ("settle.undecidable_after", TEXT, "\"7d\"", "without a reading for so long nobody will know what became of a change"),
    ("log.format", TEXT, "?\"json\"", "pretty | json; default: pretty on a terminal, else json"),
    ("log.level", TEXT, "\"info\"", "off | error | warn | info | debug | trace"),
];

/// All settings, sections together, in the order they are printed.
pub(super) fn settings() -> Vec<Setting> {
    let own = OWN.iter().map(|&(key, kind, shown, meaning)| {
        let example = shown.strip_prefix('?');
        Setting {
            key: key.to_owned(),
            kind,
            shown: example.unwrap_or(shown).to_owned(),
            has_default: example.is_none(),
            meaning,
        }
    });
    let limits = limits::described().into_iter().map(|(name, shown, meaning)| Setting {
        key: format!("limits.{name}"),
        kind: if shown.starts_with('"') { Kind::Text } else { Kind::Count },
        shown,
        has_default: true,
        meaning,
    });
    own.chain(limits).collect()
}

/// The commented file that `patchwarden config --default` prints. It loads, and says what holds without it; only
/// what has no default stands in a comment, but for the URL that must be given.
pub fn default_text() -> String {
    let mut text = String::from(
        "# Every setting of Patchwarden with its default. A setting in a comment has none, or one that depends.\n\
         # A flag beats a variable, a variable beats this file. The variable for `key` in [section] is\n\
         # PATCHWARDEN_SECTION_KEY; with _FILE after it, it names a file that holds the value.\n\
         # Durations: 500ms 30s 5m 12h 3d. Sizes: 512B 64KiB 1MiB 2GiB. No limit may be zero.\n\n",
    );
    let mut open = "";
    let settings = settings();
    for setting in &settings {
        let (section, name) = setting.place();
        if section != open {
            open = section;
            let _ = write!(text, "\n[{section}]\n");
        }
        let hidden = if setting.has_default || setting.key == "upstream.url" { "" } else { "# " };
        let assignment = format!("{hidden}{name} = {}", setting.shown);
        let _ = writeln!(text, "{assignment:<44} # {}", setting.meaning);
    }
    text + "\n# Lays settings over a rule of the bundle without copying it; the names are the rule's own.\n\
            # [rules.token-lifetime]\n\
            # access_token_ttl = { at_most = \"12h\" }\n\
            # level = \"warn\"                               # deny | warn | off\n"
}

/// The known name that is nearest to an unknown one: as a whole, or in its last part when the section is missing.
pub(super) fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> &'a str {
    let last = |text: &str| text.rsplit_once('.').map_or(0, |(section, _)| section.len() + 1);
    let away = |text: &str| {
        let whole = distance(unknown, text);
        if text.contains('.') {
            whole.min(2 + distance(&unknown[last(unknown)..], &text[last(text)..]))
        } else {
            whole
        }
    };
    known.min_by_key(|text| away(text)).unwrap_or_default()
}

/// Letters to add, drop or change (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, c) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, d) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(c != *d);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
