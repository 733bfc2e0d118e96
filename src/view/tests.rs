//! Pages and rows as they are printed.

use serde_json::{Value, json};

use super::*;

fn allowed() -> Value {
    json!({
        "id": "019aaf3e-4f8b-7c31-9d50-9a0a4c1f2b3d", "received_at": "2026-11-23T06:20:01.123456Z",
        "finished_at": "2026-11-23T06:20:01.135756Z", "gateway": "gw-1", "mode": "enforce",
        "operation": "jwt-auth.update",
        "target": {"kind": "identity", "id": "0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a", "seq": 42},
        "caller": {"kind": "identity", "id": "c0ffee00-0000-4000-8000-000000000001", "name": "ci\u{1b}[2J",
                   "token_fingerprint": "hmac-sha256:00ff", "proven": true},
        "source": {"address": "127.0.0.1", "user_agent": "terraform/1.9", "trace_id": null},
        "request": {"method": "PATCH", "path": "/api/v1/auth/jwt-auth/identities/0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a",
                    "organization": null, "body": {}, "digest": "hmac-sha256:11"},
        "before": {}, "proposed": {}, "after": {},
        "diff": [
            {"op": "replace", "path": "/accessTokenTTL", "value": 3600, "old": 7200},
            {"op": "replace", "path": "/accessTokenTrustedIps", "value": ["10.0.0.0/8", "::1/128"],
             "old": ["0.0.0.0/0", "10.0.0.0/8"]},
            {"op": "replace", "path": "/jwksCaCert", "value": {"secret": "hmac-sha256:0123456789abcdef0123"}, "old": ""},
            {"op": "replace", "path": "/boundSubject", "value": "repo:example-organization/example-repository:ref:refs/heads/main",
             "old": "repo:example-organization/example-repository:*"},
        ],
        "decision": "allow", "would": null, "code": null, "violations": [],
        "warnings": [{"rule": "unbound-login", "pointer": "/boundAudiences", "from": "stored", "value": "",
                      "limit": null, "message": "boundAudiences binds nothing", "help": "name an audience"}],
        "policy_digest": "sha256:ab", "outcome": "applied", "settlement": null, "upstream_status": 200,
        "surprise": null, "breach": null, "drift": null, "summary": "accessTokenTTL 2h -> 1h", "duration_ms": 12.3,
        "log": {"attempt": {"origin": "example.org/00ff", "index": 17},
                "outcome": {"origin": "example.org/00ff", "index": 18}, "settlement": null},
    })
}

fn with(mut change: Value, members: &Value) -> Value {
    for (name, member) in members.as_object().unwrap() {
        change[name] = member.clone();
    }
    change
}

fn denied() -> Value {
    with(
        allowed(),
        &json!({
            "decision": "deny", "code": "policy.denied", "outcome": "none", "upstream_status": null, "warnings": [],
            "diff": [{"op": "replace", "path": "/accessTokenMaxTTL", "value": 2592000, "old": 604800}],
            "violations": [{"rule": "token-lifetime", "pointer": "/accessTokenMaxTTL", "from": "request",
                            "request_pointer": "/accessTokenMaxTTL", "value": 2592000, "limit": 604800,
                            "message": "accessTokenMaxTTL of 30d is over 7d",
                            "help": "set access_token_max_ttl to at most 604800"}],
            "log": {"attempt": {"origin": "example.org/00ff", "index": 19}, "outcome": null, "settlement": null},
        }),
    )
}

fn settled() -> Value {
    with(
        allowed(),
        &json!({
            "outcome": "unknown", "upstream_status": null, "warnings": [], "would": "deny",
            "diff": [],
            "settlement": {"at": "2026-11-23T06:25:00Z", "result": "superseded", "by": "next-change",
                           "evidence": {"late": false, "read_began": "2026-11-23T06:24:59Z"}},
            "surprise": [{"op": "replace", "path": "/accessTokenTTL", "value": 60, "old": 3600}],
            "breach": [{"rule": "open-network", "pointer": "/accessTokenTrustedIps", "message": "open to all"}],
            "drift": {"kind": "rolled_back"},
        }),
    )
}

#[test]
fn an_allowed_change_shows_old_and_new() {
    insta::assert_snapshot!(page(&allowed(), false, true));
}

#[test]
fn a_denied_change_shows_what_would_pass() {
    insta::assert_snapshot!(page(&denied(), false, true));
}

#[test]
fn what_was_seen_later_stands_below() {
    insta::assert_snapshot!(page(&settled(), false, true));
}

#[test]
fn an_attached_state_shows_every_field() {
    let state = json!({"accessTokenTTL": 0, "boundSubject": "a"});
    let change =
        with(allowed(), &json!({"diff": [{"op": "add", "path": "", "value": state}], "warnings": null}));
    let text = page(&change, false, true);
    assert!(text.contains("accessTokenTTL: (none) -> 0 (no limit)"), "{text}");
    assert!(text.contains("boundSubject: (none) -> a"), "{text}");
}

#[test]
fn colour_adds_escapes_of_ours_only() {
    let text = page(&allowed(), true, true);
    let bare = text.replace("\u{1b}[0m", "");
    for (at, _) in bare.match_indices('\u{1b}') {
        assert!(["[1m", "[2m", "[31", "[32", "[33"].iter().any(|code| bare[at + 1..].starts_with(code)));
    }
    assert!(!page(&allowed(), false, true).contains('\u{1b}'));
}

#[test]
fn rows_line_up_and_cannot_steer_the_terminal() {
    insta::assert_snapshot!(table(
        COLUMNS,
        &[row(&allowed(), true), row(&denied(), true), row(&settled(), true)]
    ));
}

#[test]
fn anything_at_all_can_be_shown() {
    for odd in [
        json!(null),
        json!([]),
        json!({}),
        json!({"diff": 7, "violations": {"a": 1}, "log": [], "target": "x"}),
    ] {
        assert!(page(&odd, true, false).ends_with('\n'));
        assert_eq!(row(&odd, false)[0], "-");
        assert!(csv(&odd).ends_with("\r\n"));
    }
}

#[test]
fn a_spreadsheet_runs_nothing() {
    for (name, cell) in [
        ("=1+1", "'=1+1"),
        ("@x", "'@x"),
        ("-2", "'-2"),
        ("+a,b", "\"'+a,b\""),
        ("\t=1", "'\\t=1"),
        ("say \"hi\"", "\"say \"\"hi\"\"\""),
        ("plain", "plain"),
    ] {
        let line = csv(&json!({"caller": {"name": name}}));
        assert_eq!(line, format!(",,,,,,,{cell},,,,,,,,\r\n"));
        assert_eq!(CSV_HEADER.split(',').count(), 16);
    }
}

#[test]
fn marks_of_direction_are_written_out() {
    assert_eq!(visible("a\u{202e}b\u{1b}[0m\nc é"), "a\\u{202e}b\\u{1b}[0m\\nc é");
}
