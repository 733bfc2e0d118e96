use std::ffi::OsString;
use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;

/// A folder with a configuration file.
struct Given {
    folder: TempDir,
    flags: Flags,
    variables: Vec<(OsString, OsString)>,
}

impl Given {
    fn file(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("patchwarden.toml");
        fs::write(&path, text).unwrap();
        Self { folder, flags: Flags { config: Some(path), values: Vec::new() }, variables: Vec::new() }
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    fn flag(mut self, key: &'static str, text: &str) -> Self {
        self.flags.values.push((key, text.to_owned()));
        self
    }

    fn load(&self) -> Result<(Config, Vec<String>), Errors> {
        Config::lay(Layers::read(&self.flags, self.variables.clone()), false)
    }

    fn config(&self) -> Config {
        self.load().unwrap().0
    }

    /// Place (`file` for the file), key and message of each problem.
    fn problems(&self) -> Vec<(String, String, String)> {
        let file = self.flags.config.as_ref().unwrap().display().to_string();
        let Err(Errors { problems, .. }) = self.load() else { panic!("it loads") };
        problems.into_iter().map(|p| (p.place.replace(&file, "file"), p.key, p.message)).collect()
    }
}

/// The problems are these: place, key, and a part of the message.
fn check(given: &Given, expected: &[(&str, &str, &str)]) {
    let problems = given.problems();
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (place, key, part) in expected {
        let found = problems.iter().any(|(at, of, text)| at == place && of == key && text.contains(part));
        assert!(found, "no {place}: {key}: …{part}… in {problems:#?}");
    }
}

#[test]
fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
    let given = Given::file("listen = \"127.0.0.1:1\"\nadmin_listen = \"127.0.0.1:1\"\ndata = \"from-file\"")
        .variable("PATCHWARDEN_LISTEN", "127.0.0.1:2")
        .variable("PATCHWARDEN_ADMIN_LISTEN", "127.0.0.1:2")
        .flag("listen", "127.0.0.1:3");
    let config = given.config();
    assert_eq!((config.listen.port(), config.admin_listen.port()), (3, 2));
    assert_eq!(config.data, Path::new("from-file"));
    assert_eq!(config.store.to_string(), "from-file/patchwarden.db");
    assert_eq!((config.limits.in_flight, config.mode), (1024, Mode::Enforce));

    let origin = |key: &str| {
        config.provenance().iter().find(|line| line.key == key).map(|line| line.origin.to_string()).unwrap()
    };
    assert_eq!(origin("listen"), "--listen");
    assert_eq!(origin("admin_listen"), "PATCHWARDEN_ADMIN_LISTEN");
    assert_eq!(origin("data"), given.flags.config.as_ref().unwrap().display().to_string());
    assert_eq!(origin("mode"), "default");
}

#[test]
fn the_text_of_a_variable_is_read_as_the_setting_needs_it() {
    let given = Given::file("")
        .variable("PATCHWARDEN_UPSTREAM", "http://a:1")
        .variable("PATCHWARDEN_CLIENT_ADDRESS_TRUSTED_PROXIES", "10.0.0.0/8, 192.0.2.1,")
        .variable("PATCHWARDEN_ADMIN_PLAINTEXT", "true")
        .variable("PATCHWARDEN_LIMITS_IN_FLIGHT", "7")
        .variable("PATCHWARDEN_LIMITS_BODY", "1MiB")
        .variable("PATCHWARDEN_AUDIT_NAME", "")
        .variable("PATCHWARDEN_TLS_CERT_FILE", "a.pem")
        .flag("upstream.url", "http://b:2")
        .flag("log.format", "json");
    let config = given.config();
    assert_eq!(config.upstream.url, "http://b:2");
    assert_eq!(config.client_address.trusted_proxies, ["10.0.0.0/8", "192.0.2.1"]);
    assert!(config.admin.plaintext);
    assert_eq!((config.limits.in_flight, config.limits.body.0), (7, 1 << 20));
    assert_eq!(config.audit.name, None);
    assert_eq!(config.tls.cert_file.as_deref(), Some(Path::new("a.pem")));
    assert_eq!(config.log_format, log::Format::Json);

    let given = Given::file("")
        .variable("PATCHWARDEN_ADMIN_PLAINTEXT", "yes")
        .variable("PATCHWARDEN_LIMITS_IN_FLIGHT", "many");
    check(
        &given,
        &[
            ("PATCHWARDEN_ADMIN_PLAINTEXT", "admin.plaintext", "`true` or `false`"),
            ("PATCHWARDEN_LIMITS_IN_FLIGHT", "limits.in_flight", "whole number"),
        ],
    );
}

#[test]
fn a_variable_may_name_a_file_that_holds_the_value() {
    let given = Given::file("");
    let path = given.folder.path().join("secret");
    fs::write(&path, "http://from-a-file:8080\n").unwrap();
    let given = given.variable("PATCHWARDEN_UPSTREAM_FILE", path.to_str().unwrap());
    assert_eq!(given.config().upstream.url, "http://from-a-file:8080");

    let given = given.variable("PATCHWARDEN_UPSTREAM_URL", "http://b");
    check(&given, &[("PATCHWARDEN_UPSTREAM_URL", "upstream.url", "second variable")]);

    let given = Given::file("").variable("PATCHWARDEN_DATA_FILE", "/nowhere/at/all");
    check(&given, &[("PATCHWARDEN_DATA_FILE", "data", "/nowhere/at/all cannot be read")]);
}

#[test]
fn unknown_keys_are_all_named_with_the_nearest_known_one() {
    let given = Given::file(
        "lisen = \"127.0.0.1:1\"\nurl = \"x\"\nupstream.urls = 1\n[limits]\ninflight = 1\nbody = \"1KiB\"\n[audti]\nname = \"a\"\n[rules.anything]\ngoes = 1",
    );
    check(
        &given,
        &[
            ("file", "lisen", "`listen`"),
            ("file", "url", ".url`"),
            ("file", "upstream.urls", "`upstream.url`"),
            ("file", "limits.inflight", "`limits.in_flight`"),
            ("file", "audti.name", "`audit.name`"),
        ],
    );
    assert!(Given::file("[rules.anything]\ngoes = 1").config().rules.contains_key("anything"));
}

#[test]
fn unknown_variables_are_warnings_and_those_of_kubernetes_are_not_even_that() {
    let given = Given::file("")
        .variable("PATCHWARDEN_LISTN", "x")
        .variable("PATCHWARDEN_PORT_7080_TCP", "x")
        .variable("PATCHWARDEN_SERVICE_HOST", "x")
        .variable("PATH", "x");
    let (_, warnings) = given.load().unwrap();
    assert_eq!(warnings, ["PATCHWARDEN_LISTN: unknown variable; the nearest is PATCHWARDEN_LISTEN"]);
}

#[test]
fn every_value_that_is_wrong_is_named_with_its_place() {
    let given = Given::file(
        "mode = \"loose\"\n[limits]\nbody = 3\nforward = \"0s\"\n[client_address]\ntrusted_proxies = [\"x\"]\n[store]\nurl = \"mysql://u:p@h/d\"\n[log]\nlevel = \"loud\"",
    )
    .variable("PATCHWARDEN_ADMIN_LISTEN", "0.0.0.0:7081")
    .flag("listen", "7080");
    check(
        &given,
        &[
            ("file", "mode", "enforce"),
            ("file", "limits.body", "write one like \"64KiB\""),
            ("file", "limits.forward", "zero"),
            ("file", "client_address.trusted_proxies", "10.0.0.0/8"),
            ("file", "store.url", "postgres://USER@HOST/DATABASE"),
            ("file", "log.level", "debug"),
            ("PATCHWARDEN_ADMIN_LISTEN", "admin_listen", "admin.plaintext = true"),
            ("--listen", "listen", "write one like \"127.0.0.1:7080\""),
        ],
    );
    check(&Given::file("a = 1\nb = \"secret"), &[("file", "", "line 2")]);
    assert!(!Given::file("b = \"secret").problems()[0].2.contains("secret"));
}

#[test]
fn serving_needs_an_upstream_and_certificates_that_can_be_read() {
    let given = Given::file("[tls]\ncert_file = \"a.pem\"");
    let Err(Errors { problems, .. }) = Config::lay(Layers::read(&given.flags, Vec::new()), true) else {
        panic!("it loads")
    };
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["upstream.url", "tls.cert_file"]);
    assert!(problems[0].message.starts_with("is not set"), "{problems:?}");
}

#[test]
fn the_printed_defaults_are_the_defaults() {
    let printed = Given::file(&default_text());
    let silent = Given::file("").flag("upstream.url", "http://infisical:8080");
    let config = |given: &Given| {
        let mut config = given.config();
        (config.file, config.provenance) = (None, Vec::new());
        format!("{config:#?}")
    };
    assert_eq!(config(&printed), config(&silent));
    // Where there is no default, the example has to be one that loads.
    let hidden = default_text().replace("\n# ", "\n");
    let examples: String = hidden.lines().filter(|line| line.contains(" = ") || line.starts_with('[')).fold(
        String::new(),
        |text, line| if line.starts_with("PATCHWARDEN") { text } else { text + line + "\n" },
    );
    let config = Given::file(&examples).config();
    assert_eq!(config.policies_dir.as_deref(), Some(Path::new("policies")));
    assert!(config.provenance().iter().all(|line| line.value.is_some()));
}

#[test]
fn a_credential_is_an_id_and_one_secret_that_nothing_prints() {
    let wrong = |text: &str, variables: &[(&str, &str)]| {
        let mut given = Given::file(&format!("upstream.url = \"http://a:1\"\n[settle]\n{text}"));
        for (name, value) in variables {
            given = given.variable(name, value);
        }
        let loaded = Config::lay(Layers::read(&given.flags, given.variables.clone()), true);
        let problems = loaded.err().map(|errors| errors.to_string()).unwrap_or_default();
        assert!(!problems.contains("hunter2"), "{problems}");
        problems
    };
    let secret = [("PATCHWARDEN_SETTLE_CLIENT_SECRET", "hunter2")];
    assert!(wrong("client_id = \"a\"", &[]).contains("settle.client_id: has no secret"));
    assert!(wrong("", &secret).contains("settle.client_secret: belongs to no"));
    assert!(wrong("client_secret_file = \"a\"", &[]).contains("settle.client_secret_file: belongs to no"));
    let both = "client_id = \"a\"\nclient_secret_file = \"b\"";
    assert!(wrong(both, &secret).contains("settle.client_secret_file: is a second secret"));
    assert!(wrong("client_id = \"a\"\nclient_secret = [\"hunter2\"]", &[]).contains("is not a text"));
    assert!(wrong("client_id = \"a\"\nclient_secret = 12345", &[]).contains("is not a text"));
    assert!(!wrong("client_id = \"a\"\nclient_secret = 12345", &[]).contains("12345"));
    for key in ["every", "back_off", "undecidable_after"] {
        assert!(wrong(&format!("{key} = \"0s\""), &[]).contains(&format!("settle.{key}: is zero")));
    }
    assert_eq!(wrong("client_id = \"a\"", &secret), "");
    let file = [("PATCHWARDEN_SETTLE_CLIENT_SECRET_FILE", "/somewhere")];
    assert_eq!(wrong("client_id = \"a\"", &file), "");

    let config = Given::file("[settle]\nclient_id = \"a\"").variable(secret[0].0, secret[0].1).config();
    assert!(!format!("{config:?}").contains("hunter2"));
    let line = config.provenance().iter().find(|line| line.key == "settle.client_secret").unwrap();
    assert_eq!(line.origin.to_string(), "PATCHWARDEN_SETTLE_CLIENT_SECRET");
}

#[test]
fn a_password_in_a_url_is_not_printed() {
    let config = Given::file("upstream.url = \"http://user:hun@ter2@host\"").config();
    assert!(!format!("{:?}", config.provenance()).contains("ter2"));
}
