//! Who may use the admin listener.
//!
//! A token is `pw_` and 64 hex digits, shown once; the store keeps its SHA-256, which needs no salt for 256 random bits.
//! In comes a request's headers, out goes a [`Role`] or why not. Tokens are compared in constant time, and all of them.
//! The store is asked at most once a second; what this process creates or revokes counts at once. While the store does
//! not answer, the tokens known last still open: an outage is when metrics and readiness are needed. `admin.token_file`
//! holds one token more, of an operator, read at start.

use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::audit::Audit;
use crate::clock::Time;
use crate::id;
use crate::store::TokenRow;

/// How old the known tokens may be.
const FRESH: Duration = Duration::from_secs(1);
/// How long the store may take to list them.
const ASK: Duration = Duration::from_secs(2);
/// Shortest token a token file may hold.
const MIN_FILE_TOKEN: usize = 20;
const MAX_NAME: usize = 64;

/// What a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Reader,
    /// Also changes.
    Operator,
}

impl Role {
    /// Reads `reader` or `operator`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "reader" => Ok(Self::Reader),
            "operator" => Ok(Self::Operator),
            _ => Err("a role is `reader` or `operator`".to_owned()),
        }
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Operator => "operator",
        }
    }
}

/// Who asks: a token, or whoever may open the socket in the data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The token's name; `admin.sock` for the socket.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

/// A new token's secret and the hash to keep of it.
pub fn mint() -> (String, String) {
    let mut random = [0u8; 32];
    id::fill_random(&mut random);
    let secret = format!("pw_{}", hex::encode(random));
    let hash = hex::encode(id::sha256(&[secret.as_bytes()]));
    (secret, hash)
}

/// A token's name: what its owner finds it by in the list.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(plain) {
        return Ok(());
    }
    Err(format!("a token's name has 1 to {MAX_NAME} letters, digits, `.`, `_` or `-`"))
}

/// A token as it is listed: without its secret, without its hash.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the names are the API's")]
pub struct Listed {
    pub name: String,
    pub role: String,
    pub created_at: Time,
    pub revoked_at: Option<Time>,
}

/// Tokens of a store as they are listed, oldest first.
pub fn listed(rows: Vec<TokenRow>) -> Vec<Listed> {
    let of = |row: TokenRow| Listed {
        name: row.name,
        role: row.role,
        created_at: Time(row.created_at),
        revoked_at: row.revoked_at.map(Time),
    };
    let mut tokens: Vec<Listed> = rows.into_iter().map(of).collect();
    tokens.sort_by(|a, b| (a.created_at, &a.name).cmp(&(b.created_at, &b.name)));
    tokens
}

/// Why a request may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It carries no bearer token, or more than one.
    Missing,
    /// Its token is none of ours, or was revoked.
    Unknown,
    /// No token was ever read from the store, and now it does not answer.
    Unavailable,
}

/// SHA-256 of a secret, and what it opens.
struct Known {
    name: String,
    hash: Vec<u8>,
    role: Role,
}

#[derive(Default)]
struct Cached {
    /// When the store was asked last; nothing makes it be asked again.
    asked: Option<Instant>,
    /// Nothing before the store answered once.
    known: Option<Vec<Known>>,
}

/// Authorises requests of the admin listener.
pub struct Access {
    audit: Audit,
    file: Option<Known>,
    cached: Mutex<Cached>,
}

impl Access {
    /// Over the tokens of the store and the one in `token_file`.
    pub fn new(audit: Audit, token_file: Option<&Path>) -> io::Result<Self> {
        let file = token_file.map(read_token).transpose()?;
        Ok(Self { audit, file, cached: Mutex::default() })
    }

    /// Whose token a request carries, and what it opens.
    pub async fn authorise(&self, headers: &HeaderMap) -> Result<Caller, Denied> {
        let presented = id::sha256(&[bearer(headers).ok_or(Denied::Missing)?.as_bytes()]);
        // The file's token opens without the store.
        if let Some(caller) = opens(self.file.iter(), &presented) {
            return Ok(caller);
        }
        let mut cached = self.cached.lock().await;
        if cached.asked.is_none_or(|asked| asked.elapsed() > FRESH) {
            if let Some(known) = self.read().await {
                cached.known = Some(known);
            }
            cached.asked = Some(Instant::now());
        }
        let known = cached.known.as_ref().ok_or(Denied::Unavailable)?;
        opens(known.iter(), &presented).ok_or(Denied::Unknown)
    }

    /// A new token's secret; nothing when the name is taken.
    pub async fn create(&self, name: &str, role: Role) -> Result<Option<String>, String> {
        let (secret, hash) = mint();
        let created = self.audit.create_token(name, role.as_str(), &hash).await;
        self.cached.lock().await.asked = None;
        Ok(created?.then_some(secret))
    }

    /// All tokens, without what they open with.
    pub async fn list(&self) -> Result<Vec<Listed>, String> {
        self.audit.tokens().await.map(listed)
    }

    /// Closes a token from now on; false when there is none of that name in use.
    pub async fn revoke(&self, name: &str) -> Result<bool, String> {
        let revoked = self.audit.revoke_token(name).await;
        // The lock waits for a reading that began before. The name goes by hand: the store may stop answering now.
        let mut cached = self.cached.lock().await;
        cached.asked = None;
        cached.known.iter_mut().for_each(|known| known.retain(|known| known.name != name));
        revoked
    }

    async fn read(&self) -> Option<Vec<Known>> {
        let rows = match timeout(ASK, self.audit.tokens()).await {
            Ok(Ok(rows)) => rows,
            Ok(Err(error)) => {
                tracing::warn!(event = "tokens_unreadable", error, "the admin tokens could not be read");
                return None;
            }
            Err(_late) => return None,
        };
        let known = rows.into_iter().filter(|row| row.revoked_at.is_none()).filter_map(|row| {
            let (hash, role) = (hex::decode(row.hash).ok()?, Role::parse(&row.role).ok()?);
            Some(Known { name: row.name, hash, role })
        });
        Some(known.collect())
    }
}

/// Looks at every token, whichever fits.
fn opens<'k>(known: impl Iterator<Item = &'k Known>, presented: &[u8; 32]) -> Option<Caller> {
    let opened = known.fold(None, |opened: Option<&Known>, known| {
        let fits = verify_slices_are_equal(&known.hash, presented).is_ok();
        let is_more = opened.is_none_or(|opened| opened.role < known.role);
        if fits && is_more { Some(known) } else { opened }
    });
    opened.map(|known| Caller { name: known.name.clone(), role: known.role })
}

/// The one bearer token of a request.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (Some(only), None) = (all.next(), all.next()) else { return None };
    let (scheme, token) = only.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Whether a file holds an admin token, and only that.
pub fn check_token_file(path: &Path) -> io::Result<()> {
    read_token(path).map(drop)
}

fn read_token(path: &Path) -> io::Result<Known> {
    let text = fs::read_to_string(path)?;
    let token = text.trim();
    if token.len() < MIN_FILE_TOKEN || token.contains(|c: char| !c.is_ascii_graphic()) {
        let what = format!(
            "{}: not one token of at least {MIN_FILE_TOKEN} visible ASCII characters",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let hash = id::sha256(&[token.as_bytes()]).to_vec();
    Ok(Known { name: "admin.token_file".to_owned(), hash, role: Role::Operator })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn store(folder: &Path) -> Audit {
        Audit::of_folder(folder).await
    }

    fn with(authorization: &[&str]) -> HeaderMap {
        authorization.iter().map(|value| (AUTHORIZATION, value.parse().unwrap())).collect()
    }

    #[tokio::test]
    async fn a_token_opens_until_it_is_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let access = Access::new(store(folder.path()).await, None).unwrap();
        let reader = Caller { name: "ci".into(), role: Role::Reader };
        assert_eq!(access.authorise(&with(&["Bearer pw_00"])).await, Err(Denied::Unknown));
        let secret = access.create("ci", Role::Reader).await.unwrap().unwrap();
        assert!(secret.len() == 67 && secret.starts_with("pw_"), "{secret}");
        assert_eq!(access.create("ci", Role::Operator).await, Ok(None));
        let headers = with(&[&format!("bearer {secret}")]);
        assert_eq!(access.authorise(&headers).await, Ok(reader));
        assert_eq!(access.revoke("ci").await, Ok(true));
        assert_eq!(access.authorise(&headers).await, Err(Denied::Unknown));
        assert_eq!(access.revoke("ci").await, Ok(false));
        let listed = access.list().await.unwrap();
        assert!(listed.len() == 1 && listed[0].revoked_at.is_some());
        let kept =
            format!("{:?}", access.audit.tokens().await.unwrap().iter().map(|t| &t.hash).collect::<Vec<_>>());
        assert!(!kept.contains(&secret[3..]), "only the hash is kept");
    }

    #[tokio::test]
    async fn a_token_file_opens_for_an_operator() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        fs::write(
            &file,
            "an-admin-token-of-our-own
",
        )
        .unwrap();
        let audit = store(folder.path()).await;
        let access = Access::new(audit.clone(), Some(&file)).unwrap();
        let headers = with(&["Bearer an-admin-token-of-our-own"]);
        let operator = Caller { name: "admin.token_file".into(), role: Role::Operator };
        assert_eq!(access.authorise(&headers).await, Ok(operator));
        fs::write(&file, "short").unwrap();
        assert!(Access::new(audit, Some(&file)).is_err());
    }

    #[tokio::test]
    async fn only_one_bearer_token_counts() {
        let folder = tempfile::tempdir().unwrap();
        let access = Access::new(store(folder.path()).await, None).unwrap();
        for headers in [&[][..], &["Basic eA=="], &["Bearer"], &["Bearer "], &["Bearer a", "Bearer b"]] {
            assert_eq!(access.authorise(&with(headers)).await, Err(Denied::Missing), "{headers:?}");
        }
    }
}
