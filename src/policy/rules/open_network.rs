//! `open-network`: a token must not be usable from everywhere.
//!
//! Looks at the union of `accessTokenTrustedIps` as address intervals, so that no way of cutting the space into pieces
//! passes. An entry that cannot be read strictly is a violation of its own: the upstream reads it in its own way.
//! Where the plan has no IP allow-listing, the two ranges that hold everything are all there is, hence a warning.

use serde_json::{Value, json};

use super::reading::Params;
use super::{Remedy, Sight, Unjudged, Violation};
use crate::network::{Routable, Share};
use crate::operation::{Entry, Field, union};

const RANGES: &str = "accessTokenTrustedIps";
const CONCERNS: &[&str] = &[RANGES];

/// The bound, and the space it is a share of.
#[derive(Clone, Debug)]
pub(super) struct OpenNetwork {
    max_share: f64,
    routable: Routable,
}

impl OpenNetwork {
    pub(super) fn read(params: &mut Params) -> Self {
        Self { max_share: params.take("max_share", 0.0625, share), routable: Routable::new() }
    }

    pub(super) fn check(&self, sight: &Sight<'_>) -> Vec<Violation> {
        let Ok((Field::Ranges(entries), _)) = sight.field(RANGES) else {
            return vec![sight.unjudged(Unjudged(RANGES), CONCERNS)];
        };
        let unreadable = entries.iter().enumerate().filter_map(|(index, entry)| match entry {
            Entry::Unreadable(text) => Some(unreadable(sight, index, text)),
            Entry::Range(_) => None,
        });
        unreadable.chain(self.too_open(sight, entries)).collect()
    }

    fn too_open(&self, sight: &Sight<'_>, entries: &[Entry]) -> Option<Violation> {
        let Share { v4, v6 } = self.routable.share(&union(entries));
        let (share, family) = if v4 >= v6 { (v4, "IPv4") } else { (v6, "IPv6") };
        if share <= self.max_share {
            return None;
        }
        let is_everything = is_everything(entries);
        let is_advice = !sight.ip_allow_listing && is_everything;
        let plan = if is_everything && sight.ip_allow_listing {
            "; where the plan of the organisation has no IP allow-listing, these are all it takes: then set upstream.ip_allow_listing = false"
        } else {
            ""
        };
        Some(Violation {
            is_advice,
            limit: json!(self.max_share),
            message: format!(
                "{RANGES} would hold {} of all public {family} addresses, more than {}",
                percent(share),
                percent(self.max_share)
            ),
            help: format!(
                "name the networks the identity logs in from, like 203.0.113.0/24; private ranges count as nothing{}{plan}",
                sight.terraform(&[RANGES])
            ),
            remedy: Some(Remedy::LeaveOut),
            ..sight.violation(RANGES, CONCERNS)
        })
    }
}

fn unreadable(sight: &Sight<'_>, index: usize, text: &str) -> Violation {
    let recorded = |spec| sight.recorded(&Field::Text(text.to_owned()), spec);
    let value = sight.object.fields.get(RANGES).map_or(Value::Null, recorded);
    Violation {
        below: format!("/{index}"),
        below_request: format!("/{index}/ipAddress"),
        value,
        limit: json!("address or address/prefix"),
        message: format!("entry {index} of {RANGES} is not a plain address range"),
        help: format!("write it like 10.0.0.0/8 or 2001:db8::/32{}", sight.terraform(&[RANGES])),
        remedy: Some(Remedy::LeaveOut),
        ..sight.violation(RANGES, CONCERNS)
    }
}

/// Exactly `0.0.0.0/0` and/or `::/0`: all that a plan without IP allow-listing accepts.
fn is_everything(entries: &[Entry]) -> bool {
    entries.iter().all(|entry| matches!(entry.text().as_str(), "0.0.0.0/0" | "::/0"))
}

fn percent(share: f64) -> String {
    let text = format!("{:.2}", share * 100.0);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

fn share(value: &toml::Value) -> Result<f64, String> {
    let share = match value {
        toml::Value::Float(share) => *share,
        toml::Value::Integer(0) => 0.0,
        toml::Value::Integer(1) => 1.0,
        _ => f64::NAN,
    };
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err("must be a number from 0 to 1, like 0.0625".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::tests::{Scene, pointers, ranges};
    use serde_json::json;

    fn check(texts: &[&str], expected: &[&str]) {
        let denial = Scene::new("open-network").attach(&json!({"accessTokenTrustedIps": ranges(texts)}));
        assert_eq!(pointers(&denial), expected, "{texts:?}");
    }

    #[test]
    fn the_union_decides_and_not_the_entries() {
        let open: &[&str] = &["/accessTokenTrustedIps"];
        check(&["10.0.0.0/8", "192.168.0.0/16", "fc00::/7"], &[]);
        check(&["8.8.8.0/24"], &[]);
        check(&["0.0.0.0/0"], open);
        check(&["::/0"], open);
        check(&["203.0.113.7/0"], open);
        check(&["0.0.0.0/1", "128.0.0.0/1"], open);
        check(&["::ffff:0:0/96"], open);
        check(&["::/1"], open);
        check(&["::/1", "8000::/1"], open);
        check(&["64.0.0.0/2"], open);
    }

    #[test]
    fn an_entry_that_is_read_laxly_upstream_is_a_violation_of_its_own() {
        for text in [
            "10.0.0.0/0x8",
            "10.0.0.0/0abc",
            "10.0.0.0/0e5",
            "10.0.0.0/0_8",
            "10.0.0.0/0,8",
            "10.0.0.0/0.9",
            "10.0.0.0/0/24",
            "10.0.0.0/0//",
            "0.0.0.0/ 0",
            "0.0.0.0/\t0",
            "0.0.0.0/\u{a0}0",
            "0.0.0.0/+0",
            "0.0.0.0/-0",
            "0.0.0.0/00",
            "10.0.0.0/8abc",
            "fe80::1%eth0/0",
            "::%0/0",
        ] {
            check(&[text], &["/accessTokenTrustedIps/0"]);
        }
        check(
            &["10.0.0.0/8", "0.0.0.0/ 0", "0.0.0.0/0"],
            &["/accessTokenTrustedIps/1", "/accessTokenTrustedIps"],
        );
    }

    #[test]
    fn an_entry_is_pointed_at_as_it_was_sent() {
        let denial =
            Scene::new("open-network").attach(&json!({"accessTokenTrustedIps": ranges(&["1.2.3.4/00"])}));
        let found = &denial.violations[0];
        assert_eq!(found.request_pointer.as_deref(), Some("/accessTokenTrustedIps/0/ipAddress"));
        assert_eq!(found.value, json!("1.2.3.4/00"));
    }

    #[test]
    fn without_allow_listing_the_two_exact_ranges_are_a_warning() {
        let scene = Scene::new("open-network").without_allow_listing();
        for (texts, denied) in [
            (&["0.0.0.0/0"][..], false),
            (&["0.0.0.0/0", "::/0"], false),
            (&["0.0.0.0/1", "128.0.0.0/1"], true),
            (&["0.0.0.0/0", "10.0.0.0/8"], true),
        ] {
            let verdict = scene.attach(&json!({"accessTokenTrustedIps": ranges(texts)}));
            assert_eq!(!verdict.violations.is_empty(), denied, "{texts:?}");
            assert_eq!(!verdict.warnings.is_empty(), !denied, "{texts:?}");
        }
    }

    #[test]
    fn an_overlay_sets_the_share() {
        let strict = Scene::new("open-network").overlaid("max_share = 0");
        assert_eq!(
            pointers(&strict.attach(&json!({"accessTokenTrustedIps": ranges(&["8.8.8.8"])}))).len(),
            1
        );
        assert_eq!(
            pointers(&strict.attach(&json!({"accessTokenTrustedIps": ranges(&["10.0.0.0/8"])}))).len(),
            0
        );
    }
}
