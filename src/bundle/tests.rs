//! The bundle in the binary loads, its cases hold, and a folder's mistakes are found all at once.

use std::fs;

use serde_json::json;

use super::*;
use crate::operation::{Class, Omission, Write};

const SETTINGS: Settings = Settings { ip_allow_listing: true, mode: Mode::Enforce };

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (file, text) in files {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn overlaid(rules: &str) -> Overlays {
    Overlays { table: toml::from_str(rules).unwrap(), file: None }
}

fn load(files: &[(&str, &str)], overlays: &str) -> Result<Bundle, Vec<LoadError>> {
    let dir = folder(files);
    Bundle::load(Some(dir.path()), &overlaid(overlays), SETTINGS)
}

/// The places of all errors.
fn check(files: &[(&str, &str)], overlays: &str, expected: &[(&str, &str)]) {
    let errors = load(files, overlays).unwrap_err();
    let found: Vec<_> = errors.iter().map(|error| (error.file.as_str(), error.key.as_str())).collect();
    assert_eq!(found, expected, "{errors:?}");
}

fn ids(bundle: &Bundle) -> Vec<&str> {
    bundle.policies().rules().iter().map(Rule::id).collect()
}

#[test]
fn every_bundled_case_holds() {
    let bundle = Bundle::builtin().unwrap();
    assert_eq!(bundle.run_cases(), Vec::<String>::new());
    for rule in bundle.policies().rules() {
        let file = format!("cases/{}.toml", rule.id());
        let (_, cases) = bundle.bundled.as_ref().unwrap();
        assert!(cases.iter().filter(|case| case.is_of(&file)).count() >= 2, "{file}");
    }
}

#[test]
fn the_bundle_governs_three_operations_and_names_every_other_write() {
    let bundle = Bundle::builtin().unwrap();
    let names: Vec<_> = bundle.operations().keys().map(String::as_str).collect();
    assert_eq!(names, ["jwt-auth.attach", "jwt-auth.revoke", "jwt-auth.update"]);
    for (name, operation) in bundle.operations() {
        assert_eq!(bundle.schema(name).is_none(), operation.write == Write::Remove, "{name}");
    }
    let class = |name: &str| bundle.catalogue().0.iter().find(|entry| entry.name == name).map(|e| &e.class);
    for watched in
        ["identity.delete", "project-identity.delete", "spiffe-auth.attach", "token-auth.token.create"]
    {
        assert!(matches!(class(watched), Some(Class::Watched)), "{watched}");
    }
    for open in ["jwt-auth.login", "token.renew", "token.revoke"] {
        assert!(matches!(class(open), Some(Class::Open)), "{open}");
    }
}

#[test]
fn the_object_says_what_the_api_does_with_what_is_left_out() {
    let bundle = Bundle::builtin().unwrap();
    let object = &bundle.operation("jwt-auth.update").unwrap().object;
    let writes = |value| Omission::Writes(value);
    for (write, field, branch, effect) in [
        (Write::Create, "accessTokenTTL", "jwks", writes(json!(2_592_000))),
        (Write::Create, "boundClaims", "jwks", Omission::Required),
        (Write::Create, "jwksUrl", "static", writes(json!(""))),
        (Write::Overlay, "jwksUrl", "jwks", Omission::Required),
        (Write::Overlay, "jwksUrl", "static", writes(json!(""))),
        (Write::Overlay, "publicKeys", "jwks", writes(json!([]))),
        (Write::Overlay, "publicKeys", "static", Omission::Required),
        (Write::Overlay, "jwksCaCert", "static", writes(json!(""))),
        (Write::Overlay, "accessTokenTrustedIps", "jwks", Omission::Keeps),
    ] {
        assert_eq!(object.omission(write, field, Some(branch)), &effect, "{write:?} {field} {branch}");
    }
}

const OWN: &str = "id = \"own\"\ntitle = \"t\"\ndescription = \"d\"\nhelp = \"h\"\nlevel = \"warn\"\nexisting = \"stored\"\nbuiltin = \"insecure-jwks\"\n";

#[test]
fn a_folder_adds_rules_and_replaces_those_with_a_bundled_name() {
    let replaced = OWN.replace("\"own\"", "\"open-network\"");
    let bundle = load(&[("own.toml", OWN), ("rules/a.toml", &replaced), ("README.md", "x")], "").unwrap();
    let mut expected = ids(&Bundle::builtin().unwrap()).iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    expected.push("own".into());
    assert_eq!(ids(&bundle), expected);
    let alone = load(&[("own.toml", OWN), ("bundle.toml", "format = 1\nextends = \"none\"")], "").unwrap();
    assert_eq!((ids(&alone), alone.operations().len()), (vec!["own"], 3));
}

#[test]
fn everything_wrong_is_found_at_once() {
    check(
        &[
            ("a.toml", "id = "),
            ("b.toml", "title = \"x\""),
            ("rules/c.toml", OWN),
            ("rules/d.toml", OWN),
            ("rules/e.toml", &OWN.replace("own", "e").replace("warn", "loud")),
            ("cases/f.toml", "[[case]]\nname = 1"),
        ],
        "no-such-rule = { level = \"off\" }\nopen-network = { level = \"loud\" }\nsilent-reset = 1",
        &[
            ("rules/d.toml", "id"),
            ("a.toml", ""),
            ("b.toml", "id"),
            ("the configuration", "rules.no-such-rule"),
            ("the configuration", "rules.silent-reset"),
            ("the configuration", "rules.open-network.level"),
            ("rules/e.toml", "level"),
            ("cases/f.toml", ""),
        ],
    );
    let errors = load(&[], "no-such-rule = {}").unwrap_err();
    assert!(errors[0].message.contains("unbound-login"), "{errors:?}");
    check(&[("catalogue.toml", "write = []")], "", &[("bundle.toml", "extends")]);
}

#[test]
fn a_bundle_of_its_own_must_be_whole() {
    let none = "format = 1\nextends = \"none\"";
    let object =
        include_str!("../../policies/objects/jwt-auth.toml").replace("boundSubject = \"keeps\"\n", "");
    let operations = "[[operation]]\nname = \"x\"\nmethod = \"PATCH\"\nwrite = \"overlay\"\nobject = \"jwt-auth\"\nschema = \"y\"";
    check(
        &[
            ("bundle.toml", none),
            (
                "catalogue.toml",
                "[[write]]\nname = \"w\"\nmethod = \"PATCH\"\npath = \"/A\"\nclass = \"watched\"",
            ),
            ("objects/o.toml", &object),
            ("operations/o.toml", operations),
        ],
        "",
        &[
            ("objects/o.toml", "omitted.overlay.boundSubject"),
            ("operations/o.toml", "operation[0].schema"),
            ("catalogue.toml", "write[0].path"),
            ("catalogue.toml", "x"),
        ],
    );
}

#[test]
fn the_digest_covers_rules_and_what_is_laid_over_them() {
    let digest = |files: &[(&str, &str)], overlays: &str| load(files, overlays).unwrap().digest().to_string();
    let plain = Bundle::builtin().unwrap().digest().to_string();
    assert_eq!(plain, digest(&[], ""));
    assert_eq!(digest(&[("a.toml", OWN)], ""), digest(&[("rules/b.toml", OWN)], ""));
    assert_ne!(plain, digest(&[("a.toml", OWN)], ""));
    assert_ne!(plain, digest(&[], "open-network = { level = \"warn\" }"));
}

#[test]
fn a_case_that_does_not_come_out_as_written_is_told() {
    let case = r#"
[[case]]
name = "an attach without anything"
operation = "jwt-auth.attach"
body = '{"configurationType": "jwks", "jwksUrl": "https://a.example", "boundClaims": {}}'
expect = { decision = "allow" }
"#;
    let failures = load(&[("cases/mine.toml", case)], "").unwrap().run_cases();
    assert_eq!(failures.len(), 1);
    assert!(
        failures[0].starts_with("cases/mine.toml: an attach without anything: expected allow"),
        "{failures:?}"
    );
}

#[test]
fn the_examples_load_and_their_cases_come_out() {
    let bundle = Bundle::load(Some(Path::new("policies/strict")), &Overlays::default(), SETTINGS).unwrap();
    assert_eq!(bundle.run_cases(), Vec::<String>::new());
    assert!(bundle.policies().rules().iter().any(|rule| rule.id() == "corporate-networks"));
}

#[test]
fn a_rule_that_names_what_there_is_not_does_not_load() {
    let rule = |id: &str, more: &str| format!("id = \"{id}\"\ntitle = \"t\"\n{more}");
    let errors = load(
        &[
            ("a.toml", &rule("a", "builtin = \"insecure-jwks\"\noperations = [\"jwt-auth.updat\"]")),
            ("b.toml", &rule("b", "builtin = \"frozen-fields\"\n[params]\nfields = [\"boundIssuers\"]")),
            ("c.toml", &rule("c", "builtin = \"allowed-networks\"")),
            ("d.toml", &rule("d", "builtin = \"allowed-networks\"\n[params]\nnetworks = [\"10.0.0.0/8x\"]")),
        ],
        "",
    );
    let errors = errors.unwrap_err();
    let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
    for part in [
        "a.toml:4: `operations`: there is no operation `jwt-auth.updat`; there are: jwt-auth.attach",
        "b.toml:5: `params.fields`: there is no field `boundIssuers`; there are: ",
        "c.toml: `params.networks`: is missing",
        "d.toml:5: `params.networks`: \"10.0.0.0/8x\" is not a range",
    ] {
        assert!(told.iter().any(|line| line.starts_with(part)), "{part} in {told:?}");
    }
    assert_eq!(told.len(), 4, "{told:?}");
}
