//! The command line, run as people run it: exit codes, and every error at once with its place.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Output, Stdio};

use patchwarden::server::{Tls, TlsSettings};
use tempfile::TempDir;

use crate::support::gateway::program;

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs the binary in a folder of its own, with a configuration file if there is a text for it.
fn run(config: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Said {
    let folder = TempDir::new().unwrap();
    if !config.is_empty() {
        std::fs::write(folder.path().join("patchwarden.toml"), config).unwrap();
    }
    run_in(folder.path(), arguments, variables)
}

fn run_in(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Said {
    let output: Output = program()
        .args(arguments)
        .envs(variables.iter().copied())
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// It ends with `code`, and standard error has all these parts.
fn check(said: &Said, code: i32, parts: &[&str]) {
    assert_eq!(said.code, Some(code), "{}{}", said.out, said.err);
    for part in parts {
        assert!(said.err.contains(part), "no {part:?} in\n{}", said.err);
    }
    if code != 0 {
        assert_eq!(said.out, "", "data on standard output beside an error");
    }
}

#[test]
fn flags_that_do_not_exist_end_with_2() {
    check(&run("", &["serve", "--lisen", "x"], &[]), 2, &["--lisen", "--listen"]);
    check(&run("", &["sevre"], &[]), 2, &["serve"]);
    check(&run("", &["health", "--require", "everything"], &[]), 2, &["audit"]);
}

#[test]
fn every_unknown_key_is_listed_at_once_with_file_and_the_nearest() {
    let config = "lisen = \"x\"\n[upstream]\nurl = \"http://a\"\nca = \"b\"\n[limits]\nbodi = \"1KiB\"";
    for command in ["serve", "check", "config", "health"] {
        let parts = [
            "patchwarden.toml: lisen: unknown key; the nearest is `listen`",
            "patchwarden.toml: upstream.ca: unknown key",
            "patchwarden.toml: limits.bodi: unknown key; the nearest is `limits.body`",
        ];
        check(&run(config, &[command], &[]), 2, &parts);
    }
}

#[test]
fn an_upstream_that_is_more_than_an_origin_is_refused_with_what_would_pass() {
    for command in ["serve", "check"] {
        let said = run("", &[command], &[("PATCHWARDEN_UPSTREM", "http://a")]);
        let parts =
            ["upstream.url: is not set", "http://infisical:8080", "the nearest is PATCHWARDEN_UPSTREAM\n"];
        check(&said, 2, &parts);
        let said = run("", &[command, "--upstream", "https://a.example/api"], &[]);
        check(&said, 2, &["--upstream: upstream.url: has a path; `https://a.example` would pass"]);
        let said = run("", &[command], &[("PATCHWARDEN_UPSTREAM", "a.example:8080")]);
        check(&said, 2, &["PATCHWARDEN_UPSTREAM: upstream.url: has no scheme"]);
    }
}

#[test]
fn a_data_folder_that_cannot_be_made_is_named() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    for command in ["serve", "check"] {
        let said = run_in(folder.path(), &[command, "--upstream", "http://a", "--data", "file/data"], &[]);
        check(&said, 2, &["--data: data: file/data cannot be made: file is no folder"]);
    }
}

#[test]
fn what_cannot_be_read_or_is_not_safe_is_refused() {
    let said = run("", &["check", "--upstream", "http://a", "--store", "postgres://u:secret@h:port/d"], &[]);
    check(&said, 2, &["--store: store.url: cannot be read", "postgres://USER@HOST:PORT/DATABASE"]);
    assert!(!said.err.contains("secret"), "{}", said.err);
    let said = run("", &["check", "--upstream", "http://a", "--admin-listen", "0.0.0.0:7081"], &[]);
    check(&said, 2, &["admin_listen", "admin.plaintext = true", "admin.cert_file"]);
    let said = run("[limits]\nbody = \"0B\"\nforward = \"0s\"", &["check", "--upstream", "http://a"], &[]);
    check(&said, 2, &["limits.body: is zero", "limits.forward: is zero"]);
    for command in ["check", "serve"] {
        let config = "[upstream]\nurl = \"http://a\"\nlate_write_limit = \"0s\"\n[audit]\nname = \"a b\"";
        let parts = ["upstream.late_write_limit: is zero", "audit.name: is no name"];
        check(&run(config, &[command], &[]), 2, &parts);
        let config = "[upstream]\nurl = \"http://a\"\n[admin]\ntoken_file = \"patchwarden.toml\"";
        check(&run(config, &[command], &[]), 2, &["admin.token_file: patchwarden.toml holds no token"]);
    }
}

#[test]
fn check_says_ok_in_one_line_and_warns_of_unknown_variables() {
    let said = run("[upstream]\nurl = \"http://a\"", &["check"], &[("PATCHWARDEN_LISTN", "x")]);
    check(&said, 0, &["warning: PATCHWARDEN_LISTN", "PATCHWARDEN_LISTEN"]);
    assert_eq!((said.out.lines().count(), said.out.starts_with("ok:")), (1, true), "{}", said.out);
}

#[test]
fn check_online_says_who_does_not_answer() {
    let arguments = ["check", "--online", "--upstream", "http://127.0.0.1:1"];
    check(&run("", &arguments, &[]), 3, &["http://127.0.0.1:1/api/status"]);
}

#[test]
fn health_of_a_gateway_that_is_not_there_is_3() {
    check(&run("admin_listen = \"127.0.0.1:1\"", &["health"], &[]), 3, &["127.0.0.1:1"]);
    check(&run("admin_listen = \"127.0.0.1:0\"", &["health"], &[]), 3, &["admin_listen"]);
}

/// A listener that answers every request with this status line and body.
fn answering(status: &str, body: &str, tls: Option<TlsSettings>) -> SocketAddr {
    let answer =
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tls.map(|settings| Tls::new(&settings, "tls").unwrap().unwrap().acceptor());
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut head = [0; 4096];
            if let Some(acceptor) = &acceptor {
                let mut session = rustls::ServerConnection::new(acceptor.config().clone()).unwrap();
                let mut client = rustls::Stream::new(&mut session, &mut client);
                // A client that does not like the certificate hangs up here.
                let _ = client.read(&mut head).and_then(|_| client.write_all(answer.as_bytes()));
                client.conn.send_close_notify();
                let _ = client.flush();
            } else {
                let _ = client.read(&mut head).and_then(|_| client.write_all(answer.as_bytes()));
            }
        }
    });
    address
}

#[test]
fn check_prints_what_happens_to_every_known_write() {
    let config = "ungoverned_writes = \"forward\"\n[upstream]\nurl = \"http://a\"";
    let said = run(config, &["check", "--coverage"], &[]);
    let rows = include_str!("../../policies/catalogue.toml").matches("[[write]]").count();
    assert_eq!((said.code, said.out.lines().count()), (Some(0), rows + 3), "{}", said.out);
    assert!(
        said.out.contains("governed  PATCH   judged, recorded with the state before and after"),
        "{}",
        said.out
    );
    assert!(said.out.trim_end().ends_with("passes and is not recorded."));
    let path = "/api/v1/auth/jwt-auth/identities/{identityId}";
    assert_eq!(said.out.lines().filter(|line| line.ends_with(path)).count(), 3, "{}", said.out);
    let config = config.replace("forward", "refuse");
    let said = run(&config, &["check", "--coverage"], &[]);
    assert!(said.out.contains("watched   DELETE  refused, recorded"), "{}", said.out);
}

#[test]
fn health_tells_passing_from_degraded_from_stopping() {
    for (status, body, code, said) in [
        ("200 OK", r#"{"status":"ready"}"#, 0, "ready"),
        ("200 OK", r#"{"status":"degraded"}"#, 0, "degraded"),
        ("503 Service Unavailable", r#"{"status":"degraded"}"#, 1, "degraded"),
        ("503 Service Unavailable", r#"{"status":"stopping"}"#, 3, "stopping"),
        ("404 Not Found", "", 3, "404"),
    ] {
        let port = answering(status, body, None).port();
        // Where it listens everywhere, it is asked on the loopback.
        let config = format!("admin_listen = \"0.0.0.0:{port}\"\nadmin.plaintext = true");
        let answer = run(&config, &["health", "--require", "audit"], &[]);
        assert_eq!(answer.code, Some(code), "{status} {body}: {}", answer.err);
        assert!(answer.out.starts_with(said), "{}", answer.out);
    }
}

#[test]
fn health_accepts_exactly_the_configured_certificate_behind_tls() {
    let folder = TempDir::new().unwrap();
    let own = certificate(folder.path(), "own");
    let other = certificate(folder.path(), "other");
    for (shown, code) in [(&own, 0), (&other, 3)] {
        let address = answering("200 OK", r#"{"status":"ready"}"#, Some(shown.clone()));
        let config = format!(
            "admin_listen = \"{address}\"\n[admin]\ncert_file = \"{}\"\nkey_file = \"{}\"",
            own.cert_file.as_ref().unwrap().display(),
            own.key_file.as_ref().unwrap().display()
        );
        let said = run(&config, &["health"], &[]);
        assert_eq!(said.code, Some(code), "{}", said.err);
    }
}

#[test]
fn health_asks_at_home_where_tls_may_be_in_the_middle_of_its_renewal_and_says_what_is_wrong() {
    let folder = TempDir::new().unwrap();
    let own = certificate(folder.path(), "own");
    let home = std::os::unix::net::UnixListener::bind(folder.path().join("admin.sock")).unwrap();
    let problem = r#"{"status":"ready","problems":[{"part":"policies","since":"2026-01-02T03:04:05Z","detail":"no rule"}]}"#;
    std::thread::spawn(move || {
        for mut client in home.incoming().flatten() {
            let _ = client.read(&mut [0; 4096]);
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", problem.len());
            let _ = client.write_all((head + problem).as_bytes());
        }
    });
    let config = format!(
        "admin_listen = \"127.0.0.1:1\"\ndata = \"{}\"\n[admin]\ncert_file = \"{}\"\nkey_file = \"{}\"",
        folder.path().display(),
        own.cert_file.as_ref().unwrap().display(),
        own.key_file.as_ref().unwrap().display()
    );
    let said = run(&config, &["health"], &[]);
    assert_eq!((said.code, said.out.as_str()), (Some(0), "ready\n"), "{}", said.err);
    assert!(said.err.contains("policies since 2026-01-02T03:04:05Z: no rule"), "{}", said.err);
}

fn certificate(folder: &Path, name: &str) -> TlsSettings {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed([format!("{name}.example")]).unwrap();
    let (certificate, key) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
    std::fs::write(&certificate, cert.pem()).unwrap();
    std::fs::write(&key, signing_key.serialize_pem()).unwrap();
    TlsSettings { cert_file: Some(certificate), key_file: Some(key), ..TlsSettings::default() }
}

#[test]
fn the_help_of_every_command_shows_an_example() {
    let commands = ["serve", "demo", "check", "config", "health", "history", "show", "token"];
    for arguments in commands.iter().map(|command| vec![*command, "--help"]).chain([vec!["--help"]]) {
        let said = run("", &arguments, &[]);
        assert_eq!(said.code, Some(0), "{}", said.err);
        let example = said.out.lines().find_map(|line| line.strip_prefix("Example: patchwarden "));
        let Some(example) = example else { panic!("{arguments:?} without an example:\n{}", said.out) };
        let command = arguments.first().filter(|command| **command != "--help").unwrap_or(&"serve");
        assert!(example.starts_with(command), "{example}");
    }
}

#[test]
fn the_printed_defaults_load_and_the_values_in_force_name_their_origin() {
    let defaults = run("", &["config", "--default"], &[]);
    check(&defaults, 0, &[]);
    check(&run(&defaults.out, &["check"], &[]), 0, &[]);

    let variables = [("PATCHWARDEN_LIMITS_IN_FLIGHT", "7")];
    let said = run("mode = \"observe\"", &["config", "--log-level", "debug"], &variables);
    check(&said, 0, &[]);
    for (setting, origin) in [
        ("limits.in_flight = 7", "PATCHWARDEN_LIMITS_IN_FLIGHT"),
        ("mode = \"observe\"", "patchwarden.toml"),
        ("log.level = \"debug\"", "--log-level"),
        ("listen = \"127.0.0.1:7080\"", "default"),
    ] {
        let line = said.out.lines().find(|line| line.starts_with(setting)).unwrap_or_default();
        assert!(line.ends_with(&format!("# {origin}")), "{setting}: {line:?} in\n{}", said.out);
    }
    let printed: toml::Table = said.out.parse().unwrap();
    assert_eq!(printed["limits"]["in_flight"].as_integer(), Some(7));
}

#[test]
fn a_closed_pipe_ends_a_command_quietly() {
    let mut child = program()
        .args(["config", "--default"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
