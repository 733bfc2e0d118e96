//! What the settler tries, how often it failed, and when it is tried next.
//!
//! After a failure the wait doubles up to `settle.back_off`, less a part by chance, so that what failed together does not
//! come back together. The texts of failures name codes, statuses and files, never what was sent or answered.

use std::time::{Duration, Instant};

use crate::id::{EntryRef, fill_random};
use crate::refusal::{Code, Refusal};

use super::credential::NoToken;

/// The first wait after a try that failed.
pub(super) const FIRST_BACK_OFF: Duration = Duration::from_secs(1);

/// How the credential does.
pub(super) struct Login {
    /// Accepted when it was last tried.
    pub(super) is_proven: bool,
    pub(super) tries: Tries,
    /// Why it is not accepted.
    pub(super) refused: Option<String>,
    /// Why there was no token the last time.
    pub(super) last: String,
}

/// When something is tried next, and how often it failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tries {
    pub(super) failed: u32,
    pub(super) due: Instant,
}

/// A held target that is waited for.
pub(super) struct Waiting {
    pub(super) intent: EntryRef,
    pub(super) tries: Tries,
    /// The status by which the upstream refused the credential this target.
    pub(super) denied: Option<u16>,
}

/// Why a target has no settlement yet.
pub(super) enum Unsettled {
    /// Nothing is wrong: a later reading will tell.
    Early(Duration),
    /// It could not be read.
    Unread(Unread),
}

/// What stood in the way of a reading; the text names codes, statuses and files only.
pub(super) struct Unread {
    pub(super) why: String,
    pub(super) denied: Option<u16>,
    pub(super) is_silent: bool,
    pub(super) retry_after: Option<u64>,
}

impl Unread {
    pub(super) fn of(refusal: &Refusal) -> Self {
        let (why, denied) = match refusal.code {
            Code::BeforeRefused(status) => {
                (format!("the upstream answered the read with {status}"), Some(status))
            }
            code => (code.as_str().to_owned(), None),
        };
        Self {
            why,
            denied: denied.filter(|status| matches!(status, 401 | 403)),
            is_silent: matches!(refusal.code, Code::BeforeUnavailable { .. }),
            retry_after: refusal.retry_after,
        }
    }
}

impl From<NoToken> for Unread {
    fn from(no_token: NoToken) -> Self {
        let (NoToken::Refused(why) | NoToken::Unreachable(why)) = no_token;
        Self { why, denied: None, is_silent: true, retry_after: None }
    }
}

impl Login {
    /// Nothing is known against it.
    pub(super) fn new(is_proven: bool) -> Self {
        Self { is_proven, tries: Tries::after(Duration::ZERO), refused: None, last: String::new() }
    }
}

impl Tries {
    /// The first one.
    pub(super) fn after(pause: Duration) -> Self {
        Self { failed: 0, due: Instant::now() + pause }
    }

    /// The next one after one that failed, at the latest after `longest`.
    pub(super) fn failed(self, longest: Duration, retry_after: Option<u64>) -> Self {
        let mut random = [0u8; 1];
        fill_random(&mut random);
        let wait = FIRST_BACK_OFF.saturating_mul(1 << self.failed.min(16)).min(longest);
        let wait = wait / 2 + wait * u32::from(random[0]) / 512;
        let asked = Duration::from_secs(retry_after.unwrap_or(0)).min(longest);
        Self { failed: self.failed.saturating_add(1), due: Instant::now() + wait.max(asked) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_up_to_the_longest_and_is_never_none() {
        let longest = Duration::from_secs(300);
        let mut tries = Tries::after(Duration::ZERO);
        for failed in 0..40 {
            let begun = Instant::now();
            tries = tries.failed(longest, None);
            let wait = tries.due - begun;
            let most = Duration::from_secs(1 << failed.min(16)).min(longest);
            assert!(wait >= most / 2 && wait <= most + Duration::from_millis(50), "{failed}: {wait:?}");
        }
        let asked = tries.failed(longest, Some(86_400)).due - Instant::now();
        assert!(asked <= longest, "what the upstream asks for is bounded too");
    }
}
