//! Rules of a folder, in force in front of real requests.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::client::{Answer, request};
use crate::support::gateway::{Gateway, change_of, program};
use crate::support::upstream::Upstream;
use crate::support::{IDENTITY, good_attach, good_patch, jwt, jwt_auth_path};
use crate::tls::written;

const OWNER: &str = "5f0d5a52-2b1c-4c55-8f7e-6f1b1d3e9c01";

async fn with(files: &[(&str, &str)]) -> (Upstream, Gateway, TempDir) {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        written(folder.path(), name, text);
    }
    let path = folder.path().display().to_string();
    let gateway = Gateway::before(&upstream.url()).args(&["--policies", &path]).start().await;
    (upstream, gateway, folder)
}

async fn by(gateway: &Gateway, caller: &str, method: &str, body: Option<&Value>) -> Answer {
    let claims = json!({"authTokenType": "identityAccessToken", "identityId": caller});
    let token = format!("Bearer {}", jwt(&claims));
    request(gateway.addr(), method, &jwt_auth_path(IDENTITY), &[("authorization", &token)], body).await
}

#[tokio::test]
async fn a_protected_identity_is_changed_and_removed_by_its_owner_only() {
    let rule = format!(
        "id = \"crown-jewels\"\ntitle = \"t\"\nbuiltin = \"protected-target\"\n[params]\ntargets = [\"{IDENTITY}\"]\ncallers = [\"{OWNER}\"]"
    );
    let (upstream, gateway, _folder) = with(&[("crown-jewels.toml", &rule)]).await;
    let body = good_patch(&json!({"accessTokenTTL": 1800}));
    for (method, body) in [("PATCH", Some(&body)), ("DELETE", None)] {
        let denied = by(&gateway, "somebody-else", method, body).await;
        assert_eq!(
            (denied.status, &denied.json()["code"]),
            (403, &json!("policy.denied")),
            "{}",
            denied.text()
        );
        let violation = denied.json()["violations"][0].clone();
        assert_eq!((&violation["rule"], &violation["pointer"]), (&json!("crown-jewels"), &json!("")));
        assert!(denied.json()["message"].as_str().unwrap().contains(OWNER), "{}", denied.text());
        let change = gateway.show(&change_of(&denied));
        assert_eq!((&change["decision"], &change["caller"]["id"]), (&json!("deny"), &json!("somebody-else")));
    }
    assert!(upstream.writes().is_empty());
    assert_eq!(by(&gateway, OWNER, "PATCH", Some(&body)).await.status, 200);
    assert_eq!(by(&gateway, OWNER, "DELETE", None).await.status, 200);
}

#[tokio::test]
async fn the_strict_example_says_everything_that_is_foreign_at_once() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream.url())
        .args(&["--policies", concat!(env!("CARGO_MANIFEST_DIR"), "/policies/strict")])
        .start()
        .await;
    let denied = gateway.post(&jwt_auth_path(IDENTITY), &good_attach()).await;
    assert_eq!(denied.status, 403, "{}", denied.text());
    let body = denied.json();
    let rules: Vec<_> =
        body["violations"].as_array().unwrap().iter().map(|found| found["rule"].as_str().unwrap()).collect();
    for rule in ["own-issuer", "own-key-sets"] {
        assert!(rules.contains(&rule), "{rules:?}");
    }
    assert!(upstream.writes().is_empty());
}

fn policy(folder: &TempDir, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = program().current_dir(folder.path()).arg("policy").args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn every_rule_is_listed_with_where_it_comes_from() {
    let folder = TempDir::new().unwrap();
    written(folder.path(), "patchwarden.toml", "[rules.open-network]\nlevel = \"warn\"\n");
    let strict = concat!(env!("CARGO_MANIFEST_DIR"), "/policies/strict");
    let (code, out, err) = policy(&folder, &["list", "--policies", strict]);
    assert_eq!(code, Some(0), "{err}");
    let line = |rule: &str| {
        out.lines().find(|line| line.starts_with(rule)).unwrap_or_else(|| panic!("{rule}: {out}"))
    };
    assert!(line("open-network").contains("warn   stored    the binary, [rules.open-network]"), "{out}");
    assert!(
        line("token-lifetime").contains("deny   tolerate")
            && line("token-lifetime").contains("rules/token-lifetime.toml")
    );
    assert!(line("own-issuer").contains("rules/own-issuer.toml"));
}

#[test]
fn what_is_exported_is_a_folder_that_means_the_same() {
    let folder = TempDir::new().unwrap();
    let (code, _, err) = policy(&folder, &["export", "mine"]);
    assert_eq!(code, Some(0), "{err}");
    let check = program()
        .current_dir(folder.path())
        .args(["check", "--upstream", "http://a", "--policies", "mine"])
        .output()
        .unwrap();
    assert_eq!(check.status.code(), Some(0), "{}", String::from_utf8_lossy(&check.stderr));
    let (code, _, err) = policy(&folder, &["export", "mine"]);
    assert_eq!(code, Some(3));
    assert!(err.contains("is not empty"), "{err}");
}

#[test]
fn a_request_is_judged_without_sending_it() {
    let folder = TempDir::new().unwrap();
    let row = json!({"identityJwtAuth": {
        "id": "6f1d2c3b-4a59-4687-8f10-2b3c4d5e6f70", "identityId": IDENTITY,
        "createdAt": "2026-01-10T09:00:00.000Z", "updatedAt": "2026-01-10T09:00:00.000Z",
        "configurationType": "jwks", "jwksUrl": "https://idp.example/jwks.json", "jwksCaCert": "", "publicKeys": [""],
        "boundIssuer": "https://idp.example", "boundAudiences": "patchwarden", "boundClaims": {}, "boundSubject": "s",
        "accessTokenTTL": 3600, "accessTokenMaxTTL": 86400, "accessTokenNumUsesLimit": 0, "accessTokenPeriod": 0,
        "accessTokenTrustedIps": [{"ipAddress": "203.0.113.0", "type": "ipv4", "prefix": 24}],
    }});
    written(folder.path(), "before.json", &row.to_string());
    let required = json!({"configurationType": "jwks", "jwksUrl": "https://idp.example/jwks.json"});
    let mut open = required.clone();
    open["accessTokenTTL"] = json!(0);
    written(folder.path(), "open.json", &open.to_string());
    let mut fine = required;
    fine["accessTokenTTL"] = json!(900);
    written(folder.path(), "fine.json", &fine.to_string());

    let (code, out, err) = policy(&folder, &["eval", "--before", "before.json", "--body", "fine.json"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.starts_with("allow\n  changes  accessTokenTTL 1h -> 15m\n  passed   insecure-jwks"), "{out}");
    assert!(
        out.lines().any(|line| line.split_whitespace().eq(["*", "accessTokenTTL", "3600", "900"])),
        "{out}"
    );
    let (code, out, _) = policy(&folder, &["eval", "--before", "before.json", "--body", "open.json"]);
    assert_eq!(code, Some(1));
    for part in
        ["deny\n", "token-lifetime /accessTokenTTL", "set accessTokenTTL to 1 to 86400", "\"value\":86400"]
    {
        assert!(out.contains(part), "{part}: {out}");
    }
    let (_, out, _) =
        policy(&folder, &["eval", "--before", "before.json", "--body", "open.json", "--format", "json"]);
    let shown: Value = out.parse().unwrap();
    assert_eq!(
        (&shown["proposed"]["accessTokenTTL"], &shown["fix"][0]["op"]),
        (&json!(0), &json!("replace"))
    );
    let (code, out, _) =
        policy(&folder, &["eval", "--operation", "jwt-auth.revoke", "--before", "before.json"]);
    assert_eq!((code, out.lines().next()), (Some(0), Some("allow")));
    for (arguments, part) in [
        (&["eval", "--body", "fine.json"][..], "needs a state `before`"),
        (
            &["eval", "--operation", "jwt-auth.x"],
            "there is no operation `jwt-auth.x`; there are: jwt-auth.attach",
        ),
        (&["eval", "--before", "before.json"], "must stand there"),
        (&["eval", "--before", "none.json"], "none.json: "),
    ] {
        let (code, _, err) = policy(&folder, arguments);
        assert!(matches!(code, Some(2 | 3)) && err.contains(part), "{part}: {code:?} {err}");
    }
}

#[test]
fn cases_are_run_and_counted_and_failures_are_told() {
    let folder = TempDir::new().unwrap();
    let strict = concat!(env!("CARGO_MANIFEST_DIR"), "/policies/strict");
    let (code, out, err) = policy(&folder, &["test", "--policies", strict, "--min-coverage", "100"]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("0 failed; 100 % of the rules"), "{out}");

    written(folder.path(), "mine.toml", "id = \"mine\"\ntitle = \"t\"\nbuiltin = \"require-ca-pin\"\n");
    std::fs::create_dir(folder.path().join("cases")).unwrap();
    let body = "'{\"configurationType\": \"jwks\", \"jwksUrl\": \"https://a.example\", \"boundClaims\": {}}'";
    let case = |name: &str, rules: &str| {
        format!(
            "[[case]]\nname = \"{name}\"\noperation = \"jwt-auth.attach\"\nbody = {body}\nexpect = {{ decision = \"deny\", violations = [{rules}] }}\n"
        )
    };
    let cases = case("a <b> & \\\"c\\\"", "\"mine\"") + &case("unknown", "\"mines\"");
    written(&folder.path().join("cases"), "mine.toml", &cases);
    let (code, out, err) = policy(&folder, &["test", "--policies", "."]);
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.contains("FAILED  cases/mine.toml: a <b>") && out.contains("expected deny"), "{out}");
    assert!(out.contains("names rules that are not in force: mines"), "{out}");
    let (_, out, _) = policy(&folder, &["test", "--policies", ".", "--format", "junit"]);
    assert!(
        out.contains("failures=\"2\"") && out.contains("name=\"a &lt;b&gt; &amp; &quot;c&quot;\""),
        "{out}"
    );
    let (_, out, _) = policy(&folder, &["test", "--policies", ".", "--format", "json"]);
    let shown: Value = out.parse().unwrap();
    assert_eq!((&shown["failed"], &shown["cases"][0]["ok"]), (&json!(2), &json!(false)));
    let (code, _, err) = policy(&folder, &["test", "--min-coverage", "101"]);
    assert_eq!(code, Some(2), "{err}");
}

#[tokio::test]
async fn the_admin_api_lists_the_rules_and_judges_as_the_gateway_would() {
    let rule = "id = \"uses\"\ntitle = \"t\"\nbuiltin = \"uses-limit\"\n[params]\nat_most = 10\n";
    let (upstream, gateway, folder) = with(&[("uses.toml", rule)]).await;
    let token = gateway.admin_token("reader");
    let listed = gateway.admin_get("/v1/policies", Some(&token)).await.json();
    let uses = listed["rules"].as_array().unwrap().iter().find(|rule| rule["id"] == "uses").unwrap().clone();
    assert_eq!((&uses["level"], &uses["existing"]), (&json!("deny"), &json!("stored")));
    assert_eq!(uses["from"], folder.path().join("uses.toml").display().to_string());

    let authorization = format!("Bearer {token}");
    let ask = async |question: &Value| {
        let headers = [("authorization", authorization.as_str())];
        request(gateway.admin_addr(), "POST", "/v1/evaluate", &headers, Some(question)).await
    };
    let before = gateway.get(&jwt_auth_path(IDENTITY)).await.json();
    upstream.clear();
    // The same question to both, and the same answer.
    for uses in [0, 10, 11] {
        let body = good_patch(&json!({"accessTokenNumUsesLimit": uses}));
        let question = json!({"operation": "jwt-auth.update", "before": before, "body": body});
        let said = ask(&question).await.json();
        upstream.attach(IDENTITY, &good_attach());
        let done = gateway.patch(&jwt_auth_path(IDENTITY), &body).await;
        let change = gateway.show(&change_of(&done));
        for name in ["decision", "proposed", "diff", "violations", "warnings", "policy_digest"] {
            assert_eq!(said[name], change[name], "{uses}: {name}");
        }
        assert_eq!(said["policy_digest"], listed["policy_digest"]);
    }
    assert_eq!(upstream.writes().len(), 1, "asking sends nothing");
    for (question, part) in [
        (json!({"operation": "jwt-auth.update", "body": {}}), "needs a state"),
        (json!({"operation": "x"}), "there is no operation `x`"),
        (json!({"operation": "jwt-auth.update", "more": 1}), "more"),
        (json!([]), "The body is not"),
    ] {
        let answer = ask(&question).await;
        assert!(answer.status == 400 && answer.text().contains(part), "{part}: {}", answer.text());
    }
    assert_eq!(gateway.admin_get("/v1/policies", None).await.status, 401);
}

#[test]
fn the_schema_for_editors_takes_what_loads_and_knows_every_rule() {
    let folder = TempDir::new().unwrap();
    let (code, out, _) = policy(&folder, &["schema"]);
    assert_eq!(code, Some(0));
    let schema = jsonschema::draft202012::new(&out.parse().unwrap()).unwrap();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for dir in ["policies/rules", "policies/strict/rules"] {
        for entry in std::fs::read_dir(root.join(dir)).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            let rule: Value = serde_json::to_value(text.parse::<toml::Table>().unwrap()).unwrap();
            assert!(schema.is_valid(&rule), "{rule}");
        }
    }
    for wrong in [
        json!({"id": "a", "title": "t", "builtin": "none"}),
        json!({"id": "a", "title": "t", "builtin": "uses-limit"}),
        json!({"id": "a", "title": "t", "builtin": "insecure-jwks", "params": {"x": 1}}),
        json!({"id": "a", "title": "t", "builtin": "insecure-jwks", "levels": "deny"}),
    ] {
        assert!(!schema.is_valid(&wrong), "{wrong}");
    }
    // The list of an error that names every built-in rule, and the schema's, are one.
    written(folder.path(), "a.toml", "id = \"a\"\ntitle = \"t\"\nbuiltin = \"none\"\n");
    let (_, _, err) = policy(&folder, &["list", "--policies", "."]);
    let known: std::collections::BTreeSet<_> =
        err.split("known: ").nth(1).unwrap().trim().split(", ").map(str::to_owned).collect();
    let schema: Value = out.parse().unwrap();
    let named: std::collections::BTreeSet<_> = schema["properties"]["builtin"]["enum"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap().to_owned())
        .collect();
    assert_eq!(known, named);
}

fn rule(id: &str, builtin: &str, params: &str) -> String {
    format!("id = \"{id}\"\ntitle = \"t\"\nbuiltin = \"{builtin}\"\n[params]\n{params}\n")
}

fn checked(files: &[(&str, String)]) -> (Option<i32>, String) {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("cases")).unwrap();
    for (name, text) in files {
        written(folder.path(), name, text);
    }
    let output = program()
        .args([
            "check",
            "--upstream",
            "http://localhost:1",
            "--policies",
            &folder.path().display().to_string(),
        ])
        .current_dir(folder.path())
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn everything_wrong_with_configuration_and_rules_is_said_at_once_with_file_line_and_key() {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("mine")).unwrap();
    written(
        folder.path(),
        "mine/lifetimes.toml",
        "id = \"lifetimes\"\ntitle = \"t\"\nbuiltin = \"token-lifetime\"\nlevel = \"loud\"\noperations = [\"jwt-auth.updat\"]\n",
    );
    written(
        folder.path(),
        "mine/frozen.toml",
        "id = \"frozen\"\ntitle = \"t\"\nbuiltin = \"frozen-fields\"\ncolour = 1\n[params]\nfields = [\"accessTokenTL\"]\n",
    );
    written(folder.path(), "mine/bundle.toml", "format = 1\n[rules.lifetimes]\nlevel = \"quiet\"\n");
    written(
        folder.path(),
        "patchwarden.toml",
        "listn = \"x\"\n[rules.lifetimes]\nexisting = \"no\"\n[rules.nobody]\n[rules.open-network]\nmax_share = 2.0\n",
    );
    let output = program().args(["check", "--policies", "mine"]).current_dir(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let parts = [
        "patchwarden.toml: listn: unknown key",
        "upstream.url: is not set",
        "lifetimes.toml:4: `level`: must be one of",
        "lifetimes.toml:5: `operations`: there is no operation `jwt-auth.updat`",
        "frozen.toml:4: `colour`: is not known here",
        "frozen.toml:6: `params.fields`: there is no field `accessTokenTL`",
        "bundle.toml:3: `rules.lifetimes.level`: must be one of",
        "patchwarden.toml:3: `rules.lifetimes.existing`: must be one of",
        "patchwarden.toml:4: `rules.nobody`: there is no such rule",
        "patchwarden.toml:6: `rules.open-network.max_share`:",
    ];
    for part in parts {
        assert!(said.contains(part), "{part} is missing in\n{said}");
    }
    assert_eq!(said.lines().count(), parts.len(), "each once:\n{said}");
}

#[test]
fn rules_that_contradict_each_other_are_found_and_named() {
    let networks = |id: &str, list: &str| {
        (format!("{id}.toml"), rule(id, "allowed-networks", &format!("networks = [{list}]")))
    };
    let pair = |one: (String, String), two: (String, String)| {
        checked(&[(&one.0, one.1.clone()), (&two.0, two.1.clone())])
    };
    let (code, said) = pair(networks("east", "\"10.0.0.0/8\""), networks("west", "\"192.168.0.0/16\""));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("`jwt-auth.update`") && said.contains("`jwt-auth.attach`"), "{said}");
    assert!(said.contains("east, west cannot be met together"), "{said}");
    let (code, said) =
        pair(networks("wide", "\"10.0.0.0/8\""), networks("narrow", "\"10.1.0.0/16\", \"fd00::/8\""));
    assert_eq!(code, Some(0), "one within the other: {said}");
    // Open to everybody at the limit of one address: the built-in rule of the binary forbids what this one wants.
    let open = rule("open", "allowed-networks", "networks = [\"0.0.0.0/0\"]");
    assert_eq!(checked(&[("open.toml", open)]).0, Some(0), "a part of it is enough");
    for (one, other) in [
        (
            rule("a", "allowed-issuers", "issuers = [\"https://a\"]"),
            rule("b", "allowed-issuers", "issuers = [\"https://b\"]"),
        ),
        (
            rule("a", "configuration-type", "allowed = [\"jwks\"]"),
            rule("b", "configuration-type", "allowed = [\"static\"]"),
        ),
        (
            rule("a", "bound-patterns", "subject = [\"repo:a/\"]"),
            rule("b", "bound-patterns", "subject = [\"repo:b/\"]"),
        ),
        (
            rule("a", "allowed-jwks-hosts", "hosts = [\"a.example\"]"),
            rule("b", "allowed-jwks-hosts", "hosts = [\"*.b.example\"]"),
        ),
    ] {
        let (code, said) = checked(&[("a.toml", one), ("b.toml", other)]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(" a, b cannot be met together"), "{said}");
    }
    let all = [
        (
            "a.toml",
            rule("a", "bound-patterns", "subject = [\"repo:a/\"]\nclaims = { team = [\"x\", \"yy\"] }"),
        ),
        ("b.toml", rule("b", "bound-patterns", "subject = [\"repo:a/app\"]\nclaims = { team = [\"y\"] }")),
        ("c.toml", rule("c", "required-claims", "claims = [\"team\", \"env\"]")),
        ("d.toml", "id = \"d\"\ntitle = \"t\"\nbuiltin = \"require-ca-pin\"\n".to_owned()),
        ("e.toml", rule("e", "uses-limit", "at_most = 1")),
    ];
    let (code, said) = checked(&all);
    assert_eq!(code, Some(0), "these can be met together: {said}");
}

#[test]
fn the_example_bundles_load_agree_with_their_cases_and_can_be_met() {
    let adoption = concat!(env!("CARGO_MANIFEST_DIR"), "/policies/adoption");
    let mut folders: Vec<_> =
        std::fs::read_dir(adoption).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert_eq!(folders.len(), 4);
    folders.push(concat!(env!("CARGO_MANIFEST_DIR"), "/policies/strict").into());
    for folder in folders {
        let place = TempDir::new().unwrap();
        let output = program()
            .args(["check", "--upstream", "http://localhost:1", "--policies", &folder.display().to_string()])
            .current_dir(place.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{}: {said}", folder.display());
    }
}

#[test]
fn what_a_folder_lays_over_a_rule_is_checked_where_it_stands() {
    let manifest = "format = 1\n[rules.open-network]\nmax_share = 7\n[rules.nobody]\nlevel = \"warn\"\n";
    let (code, said) = checked(&[("bundle.toml", manifest.to_owned())]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("bundle.toml:3: `rules.open-network.max_share`: must be a number from 0 to 1"),
        "{said}"
    );
    assert!(said.contains("bundle.toml:4: `rules.nobody`: there is no such rule"), "{said}");
}

#[test]
fn a_case_can_expect_the_fix_and_every_wrong_entry_is_named() {
    let before = r#"{"identityJwtAuth": {"id": "5b0d5a52-2b1c-4c55-8f7e-6f1b1d3e9c01", "identityId": "0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a",
        "updatedAt": "2026-01-01T00:00:00.000Z", "configurationType": "jwks", "jwksUrl": "https://idp.example/jwks", "jwksCaCert": "",
        "publicKeys": [], "boundIssuer": "i", "boundAudiences": "ci", "boundSubject": "s", "boundClaims": {},
        "accessTokenTTL": 60, "accessTokenMaxTTL": 604800, "accessTokenNumUsesLimit": 0, "accessTokenTrustedIps": []}}"#;
    let case = |fix: &str| {
        let case = format!(
            "[[case]]\nname = \"too long\"\noperation = \"jwt-auth.update\"\nbefore = '''{before}'''\n\
             body = '{{\"configurationType\": \"jwks\", \"jwksUrl\": \"https://idp.example/jwks\", \"accessTokenTTL\": 0}}'\n\
             expect = {{ decision = \"deny\", violations = [\"token-lifetime\"], fix = '{fix}' }}\n"
        );
        checked(&[("cases/fix.toml", case)])
    };
    let right = r#"[ {"op": "replace", "path": "/accessTokenTTL", "value": 86400} ]"#;
    let (code, said) = case(right);
    assert_eq!(code, Some(0), "{said}");
    for wrong in [right.replace("86400", "1"), "null".to_owned(), "[".to_owned()] {
        let (code, said) = case(&wrong);
        assert_eq!(code, Some(1), "{wrong}");
        assert!(said.contains("cases/fix.toml: too long: "), "{said}");
    }
    let (code, said) = case("null");
    assert!(code == Some(1) && said.contains("\"value\":86400"), "what was found is told as it is: {said}");
    let networks = rule("n", "allowed-networks", "networks = [\"10.0.0.0/8\", \"foo\", 7, \"10.0.0.0/33\"]");
    let (_, said) = checked(&[("n.toml", networks)]);
    for wrong in ["\"foo\" is not", "7 is not", "\"10.0.0.0/33\" is not"] {
        assert!(said.contains(wrong), "{wrong}: {said}");
    }
    // Each within the other, and a network that is too much as a whole.
    let many =
        (0..300).map(|at| format!("\"10.0.{}.{}/32\"", at / 256, at % 256)).collect::<Vec<_>>().join(", ");
    let (code, said) = checked(&[
        ("a.toml", rule("a", "allowed-networks", &format!("networks = [{many}]"))),
        ("b.toml", rule("b", "allowed-networks", "networks = [\"10.0.1.30/32\"]")),
    ]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = checked(&[("a.toml", rule("a", "allowed-networks", "networks = [\"64.0.0.0/2\"]"))]);
    assert_eq!(code, Some(0), "one address of it passes: {said}");
}

#[test]
fn a_bundled_case_shows_nothing_of_a_rule_that_was_replaced() {
    let folder = TempDir::new().unwrap();
    written(folder.path(), "token-lifetime.toml", &rule("token-lifetime", "uses-limit", "at_most = 1"));
    written(folder.path(), "bundle.toml", "format = 1\n[rules.open-network]\nmax_share = 0.9\n");
    let path = folder.path().display().to_string();
    let (code, out, err) =
        policy(&folder, &["test", "--policies", &path, "--format", "json", "--min-coverage", "100"]);
    assert_eq!(code, Some(1), "{err}");
    let told: Value = out.parse().unwrap();
    for (id, covered) in [("token-lifetime", false), ("open-network", false), ("insecure-jwks", true)] {
        let rule = told["rules"].as_array().unwrap().iter().find(|rule| rule["rule"] == id).unwrap();
        assert_eq!(rule["violated"] != 0, covered, "{rule}");
    }
    let (_, listed, _) = policy(&folder, &["list", "--policies", &path]);
    assert!(listed.contains("[rules.open-network] of ") && listed.contains("bundle.toml"), "{listed}");
    // What a layer says of a parameter counts in either spelling, and stays a parameter.
    let laid = "format = 1\n[rules.open-network.params]\nlevel = \"off\"\n";
    let (code, said) = checked(&[("bundle.toml", laid.to_owned())]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("rules.open-network.params.level"), "{said}");
    let none = "format = 1\nextends = \"none\"\n";
    let (code, said) = checked(&[("bundle.toml", none.to_owned())]);
    assert!(code == Some(0) && said.contains("nothing is ever denied"), "{said}");
}
