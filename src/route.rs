//! Step 1: which requests are governed or watched.
//!
//! In come the request line and the catalogue, out comes a [`Match`]. For every method that can write, the *shadows* of
//! the path (decoded and cut; flattened as a lenient server does, and left in its segments as a literal one does) are
//! compared with the governed and watched routes. A request with a shadow that matches must have that route's one
//! canonical spelling: origin form, exact method, lower-case hyphenated UUIDs; any other spelling is refused. Everything
//! else passes.

use std::borrow::Cow;
use std::sync::Arc;

use http::{Method, Uri, Version};
use percent_encoding::percent_decode;
use uuid::Uuid;

use crate::id::{TargetId, canonical_uuid};
use crate::operation::{Catalogue, CatalogueEntry, Class, Object, Operation, js_trim};
use crate::refusal::{Code, Refusal};

/// How often a path is percent-decoded at most.
const MAX_DECODINGS: usize = 3;
/// The parameter that names the target, and its kind on watched routes.
const TARGET_PARAMETER: &str = "identityId";
const WATCHED_TARGET: &str = "identity";

/// What a request is to the gateway.
#[derive(Debug)]
pub enum Match {
    /// Judged and recorded.
    Governed(Governed),
    /// Forwarded and recorded.
    Watched(Watched),
    /// Forwarded.
    Passthrough,
}

/// A governed request in canonical spelling. Only [`find`] makes one.
#[derive(Debug)]
pub struct Governed {
    operation: Arc<Operation>,
    target: TargetId,
    path: String,
}

impl Governed {
    /// What it would do.
    pub fn operation(&self) -> &Arc<Operation> {
        &self.operation
    }

    /// To what.
    pub fn target(&self) -> &TargetId {
        &self.target
    }

    /// The canonical path.
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// A watched request in canonical spelling. Only [`find`] makes one.
#[derive(Debug)]
pub struct Watched {
    name: String,
    target: Option<TargetId>,
    path: String,
    shares: Option<Arc<Object>>,
}

impl Watched {
    /// The catalogue's name for it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The object whose fields the request has under the same names, if any.
    pub fn shares(&self) -> Option<&Arc<Object>> {
        self.shares.as_ref()
    }

    /// The identity, where the route names one.
    pub fn target(&self) -> Option<&TargetId> {
        self.target.as_ref()
    }

    /// The canonical path, without the query.
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// Finds what a request line means; refuses every other spelling of a governed or watched route.
pub fn find(catalogue: &Catalogue, method: &Method, uri: &Uri, version: Version) -> Result<Match, Refusal> {
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(Match::Passthrough);
    }
    // From HTTP/2 on the authority comes in a field of its own; before, it makes the absolute form.
    let is_absolute = version < Version::HTTP_2 && uri.authority().is_some();
    let shadows = shadows(uri.path().as_bytes());
    let mut hits = hits(catalogue, method, &shadows).peekable();
    let Some(&first) = hits.peek() else {
        return if is_absolute { hidden_in_query(catalogue, method, uri) } else { Ok(Match::Passthrough) };
    };
    let canonical = hits.find(|(entry, _)| is_canonical(&entry.path, uri.path()));
    let (entry, shadow) = canonical.unwrap_or(first);
    if canonical.is_none() || entry.method != *method || is_absolute {
        return Err(not_canonical(entry, shadow));
    }
    match &entry.class {
        Class::Open => Ok(Match::Passthrough),
        Class::Watched => Ok(Match::Watched(Watched {
            name: entry.name.clone(),
            target: target(WATCHED_TARGET, entry, uri.path()),
            path: uri.path().to_owned(),
            shares: entry.shares.clone(),
        })),
        Class::Governed(_) if uri.query().is_some() => Err(not_canonical(entry, shadow)),
        Class::Governed(operation) => {
            let target = target(&operation.object.target, entry, uri.path());
            let target = target.ok_or_else(|| not_canonical(entry, shadow))?;
            let (operation, path) = (operation.clone(), uri.path().to_owned());
            Ok(Match::Governed(Governed { operation, target, path }))
        }
    }
}

/// Some servers cut an absolute target at the first `/` after the host, wherever it stands: `http://h?x/api/…`.
fn hidden_in_query(catalogue: &Catalogue, method: &Method, uri: &Uri) -> Result<Match, Refusal> {
    let query = uri.query().unwrap_or("");
    let Some(at) = query.find('/') else { return Ok(Match::Passthrough) };
    // Such a server sees the query only behind the next `?`.
    let path = query[at..].split('?').next().unwrap_or_default();
    let shadows = shadows(path.as_bytes());
    let hit = hits(catalogue, method, &shadows).next();
    hit.map_or(Ok(Match::Passthrough), |(entry, shadow)| Err(not_canonical(entry, shadow)))
}

/// The governed and watched writes that a server may take this path for, each with the shadow that shows it.
fn hits<'a>(
    catalogue: &'a Catalogue,
    method: &Method,
    shadows: &'a [Shadow; 3],
) -> impl Iterator<Item = (&'a CatalogueEntry, &'a Shadow)> {
    let is_near = move |entry: &&CatalogueEntry| {
        !matches!(entry.class, Class::Open) && entry.method.as_str().eq_ignore_ascii_case(method.as_str())
    };
    catalogue.0.iter().filter(is_near).filter_map(move |entry| {
        let shadow = shadows.iter().find(|shadow| matches_shadow(&entry.path, shadow))?;
        Some((entry, shadow))
    })
}

/// The segments of a path as some server could see them. Letters keep their case: comparing ignores it.
type Shadow = Vec<Vec<u8>>;

/// A lenient server flattens what it has decoded. A literal one decodes within the segments, so that `.`, nothing or
/// `a%2Fb` is a segment like any other; it may cut at `;` before.
fn shadows(path: &[u8]) -> [Shadow; 3] {
    let cut = path.split(|byte| *byte == b';').next().unwrap_or(path);
    [flattened(path), literal(path), literal(cut)]
}

fn literal(path: &[u8]) -> Shadow {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let path = path.strip_suffix(b"/").unwrap_or(path);
    path.split(|byte| *byte == b'/').map(|segment| decoded(segment).into_owned()).collect()
}

fn flattened(path: &[u8]) -> Shadow {
    let decoded = decoded(path);
    let end = decoded.iter().position(|byte| matches!(byte, b';' | b'?' | b'#')).unwrap_or(decoded.len());
    let mut segments: Shadow = Vec::new();
    for segment in decoded[..end].split(|byte| matches!(byte, b'/' | b'\\')) {
        match segment {
            b"" | b"." => {}
            b".." => drop(segments.pop()),
            other => segments.push(other.to_vec()),
        }
    }
    segments
}

fn decoded(path: &[u8]) -> Cow<'_, [u8]> {
    let mut decoded = Cow::Borrowed(path);
    for _ in 0..MAX_DECODINGS {
        let next: Vec<u8> = percent_decode(&decoded).collect();
        if *next == *decoded {
            break;
        }
        decoded = Cow::Owned(next);
    }
    decoded
}

enum Part<'a> {
    Literal(&'a str),
    /// `{x}`
    Uuid(&'a str),
    /// `{x:word}`
    Word,
}

fn parts(template: &str) -> impl Iterator<Item = Part<'_>> {
    template.split('/').skip(1).map(|part| match part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
        None => Part::Literal(part),
        Some(name) if name.ends_with(":word") => Part::Word,
        Some(name) => Part::Uuid(name),
    })
}

fn matches_shadow(template: &str, shadow: &[Vec<u8>]) -> bool {
    let mut segments = shadow.iter();
    let fits = parts(template).all(|part| match (part, segments.next()) {
        (Part::Literal(text), Some(segment)) => text.as_bytes().eq_ignore_ascii_case(segment),
        (Part::Uuid(_) | Part::Word, Some(_)) => true,
        (_, None) => false,
    });
    fits && segments.next().is_none()
}

fn is_canonical(template: &str, path: &str) -> bool {
    let Some(path) = path.strip_prefix('/') else { return false };
    let mut segments = path.split('/');
    let fits = parts(template).all(|part| match (part, segments.next()) {
        (Part::Literal(text), Some(segment)) => text == segment,
        (Part::Uuid(_), Some(segment)) => canonical_uuid(segment).is_some(),
        (Part::Word, Some(segment)) => is_word(segment.as_bytes()),
        (_, None) => false,
    });
    fits && segments.next().is_none()
}

fn is_word(segment: &[u8]) -> bool {
    !segment.is_empty() && segment.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// The value of `{identityId}` in a path known to be canonical.
fn target(kind: &str, entry: &CatalogueEntry, path: &str) -> Option<TargetId> {
    let is_target = |part: &Part<'_>| matches!(part, Part::Uuid(TARGET_PARAMETER));
    let (_, id) = parts(&entry.path).zip(path.split('/').skip(1)).find(|(part, _)| is_target(part))?;
    TargetId::canonical(kind, id)
}

fn not_canonical(entry: &CatalogueEntry, shadow: &[Vec<u8>]) -> Refusal {
    let query = match entry.class {
        Class::Governed(_) => " and without a query",
        Class::Watched | Class::Open => "",
    };
    let detail = format!(
        "This route is taken only in its canonical spelling{query}: {} {}",
        entry.method,
        spelling(&entry.path, shadow)
    );
    Refusal::new(Code::RouteNotCanonical, detail)
}

/// The canonical spelling of what was sent, as far as it can be recognised; else the template's own parameter.
fn spelling(template: &str, shadow: &[Vec<u8>]) -> String {
    let mut text = String::new();
    for (raw, (part, segment)) in template.split('/').skip(1).zip(parts(template).zip(shadow)) {
        text.push('/');
        let known = match part {
            Part::Literal(_) => None,
            Part::Uuid(_) => uuid_alias(segment).map(|id| id.hyphenated().to_string()),
            Part::Word if is_word(segment) => Some(String::from_utf8_lossy(segment).into_owned()),
            Part::Word => None,
        };
        text.push_str(known.as_deref().unwrap_or(raw));
    }
    text
}

/// The UUID that PostgreSQL would read: capitals, hyphens left out or after any group of four, braces, blanks around.
fn uuid_alias(segment: &[u8]) -> Option<Uuid> {
    let text = js_trim(std::str::from_utf8(segment).ok()?);
    let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
    let digits: String = inner.chars().filter(|c| *c != '-').collect();
    let is_plain = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_plain { Uuid::parse_str(&digits).ok() } else { None }
}

#[cfg(test)]
mod tests;
