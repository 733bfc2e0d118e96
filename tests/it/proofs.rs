//! What the log proves to others: one change in a file, the whole log by its tiles, and what a key was replaced by.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ct_merkle::mem_backed_tree::MemoryBackedTree;
use ct_merkle::{ConsistencyProof, InclusionProof, RootHash};
use serde_json::{Value, json};
use sha2::Sha256;
use tempfile::TempDir;

use crate::support::client::request;
use crate::support::gateway::{Gateway, change_of, program};
use crate::support::upstream::Upstream;
use crate::support::{IDENTITY, eventually, good_attach, good_patch, jwt_auth_path};

async fn changed(times: u64) -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    upstream.attach(IDENTITY, &good_attach());
    let gateway = Gateway::start(&upstream).await;
    for ttl in 1..=times {
        change(&gateway, ttl).await;
    }
    (upstream, gateway)
}

async fn change(gateway: &Gateway, ttl: u64) -> String {
    let answer = gateway.patch(&jwt_auth_path(IDENTITY), &good_patch(&json!({"accessTokenTTL": ttl}))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    change_of(&answer)
}

/// A run of the binary where there is no store and no configuration: its code and what it says.
fn elsewhere(folder: &Path, args: &[&str]) -> (Option<i32>, String) {
    let output = program().args(args).current_dir(folder).output().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

fn python(file: &Path, keys: &[&str]) -> (Option<i32>, String) {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/verify-proof.py");
    let output = Command::new("python3").arg(script).arg(file).args(keys).output().expect("python3 runs");
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[tokio::test]
async fn a_change_is_proved_to_somebody_who_has_only_a_key() {
    let (_upstream, mut gateway) = changed(3).await;
    let id = change(&gateway, 77).await;
    let key = gateway.cli_ok(&["keys", "show"]).trim().to_owned();
    let folder = TempDir::new().unwrap();
    let bare = folder.path().join("bare").display().to_string();
    let text = gateway.cli_ok(&["prove", &id, "--tlog-proof", &bare]);
    let file = folder.path().join("proof.json");
    std::fs::write(&file, &text).unwrap();
    // Nothing of the gateway is left where it is checked.
    gateway.terminate().await;
    let path = file.display().to_string();
    let (code, said) = elsewhere(folder.path(), &["verify", &path, "--public-key", &key]);
    assert_eq!(code, Some(0), "{said}");
    for part in
        [&format!("proved {id}"), "attempt allow", "outcome applied", "jwt-auth.update", "accessTokenTTL"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    let (code, said) = python(&file, &[&key]);
    assert!(code == Some(0) && said.contains(&format!("proved: change {id}")), "{said}");
    // The key from a file, and as JSON.
    std::fs::write(folder.path().join("keys"), format!("{key}\n")).unwrap();
    let (code, said) =
        elsewhere(folder.path(), &["verify", &path, "--public-key", "keys", "--format", "json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (code, &said["proved"], &said["entries"][1]["envelope"]["result"]),
        (Some(0), &json!(true), &json!("applied"))
    );
    assert_eq!(said["entries"][0]["payload"]["diff"][0]["value"], 77);
    // The files for other tools are the leaf and its proof.
    let evidence: Value = serde_json::from_str(&text).unwrap();
    let names = |ending: &str| {
        let index = &evidence["entries"][0]["index"];
        std::fs::read_to_string(folder.path().join(format!("bare/{id}-{index}.{ending}"))).unwrap()
    };
    assert_eq!(names("json"), evidence["entries"][0]["envelope"].as_str().unwrap());
    assert!(names("tlog-proof").starts_with("c2sp.org/tlog-proof@v1\nindex "));
    // Without a key nothing is proved, and another one proves something else.
    let (code, said) = elsewhere(folder.path(), &["verify", &path]);
    assert!(code == Some(2) && said.contains("--public-key"), "{said}");
    let (_other_upstream, other) = changed(1).await;
    let foreign = other.cli_ok(&["keys", "show"]).trim().to_owned();
    let (code, said) = elsewhere(folder.path(), &["verify", &path, "--public-key", &foreign]);
    assert!(code == Some(1) && said.contains("it is not signed by"), "{said}");
    assert_eq!(python(&file, &[&foreign]).0, Some(1));
    let (code, said) = elsewhere(folder.path(), &["verify", &path, "--public-key", "no-key"]);
    assert!(code == Some(2) && said.contains("neither a public key"), "{said}");
    let (code, said) = elsewhere(folder.path(), &["verify", "keys", "--public-key", &key]);
    assert!(code == Some(1) && said.contains("is no proof of a change"), "{said}");
}

#[tokio::test]
async fn a_proof_that_was_altered_in_any_place_proves_nothing() {
    let (_upstream, gateway) = changed(6).await;
    let key = gateway.cli_ok(&["keys", "show"]).trim().to_owned();
    let good: Value = serde_json::from_str(&gateway.cli_ok(&["prove", "last"])).unwrap();
    let other: Value = serde_json::from_str(&gateway.cli_ok(&["prove", &change(&gateway, 9).await])).unwrap();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("altered.json");
    let text = |pointer: &str| good.pointer(pointer).unwrap().as_str().unwrap().to_owned();
    let replaced = |pointer: &str, from: &str, to: &str| {
        let (mut altered, was) = (good.clone(), text(pointer));
        assert!(was.contains(from), "{was}");
        *altered.pointer_mut(pointer).unwrap() = json!(was.replacen(from, to, 1));
        altered
    };
    let set = |pointer: &str, value: Value| {
        let mut altered = good.clone();
        *altered.pointer_mut(pointer).unwrap() = value;
        altered
    };
    let hash = text("/entries/0/proof").lines().nth(2).unwrap().to_owned();
    let swapped = {
        let mut altered = good.clone();
        altered["entries"].as_array_mut().unwrap().reverse();
        altered
    };
    let cut = {
        let mut altered = good.clone();
        altered["entries"].as_array_mut().unwrap().remove(0);
        altered
    };
    for (altered, what) in [
        (replaced("/entries/1/envelope", "\"status\":200", "\"status\":201"), "it is not in the log"),
        (replaced("/entries/0/envelope", "\"seq\":", "\"seq\": "), "it is not in the log"),
        (replaced("/entries/0/payload", "accessTokenTTL", "accessTokenTtl"), "has the digest of"),
        (set("/entries/0/salt", other["entries"][0]["salt"].clone()), "has the digest of"),
        (set("/entries/0/payload", other["entries"][0]["payload"].clone()), "has the digest of"),
        (set("/entries/0/salt", Value::Null), "a payload without salt"),
        (set("/entries/0/index", json!(3)), "that of another entry"),
        (set("/entries/0/proof", good["entries"][1]["proof"].clone()), "that of another entry"),
        (set("/entries/0/origin", json!("somebody.else/1")), "that of another entry"),
        (replaced("/entries/0/proof", &hash, &STANDARD.encode([7u8; 32])), "it is not in the log"),
        (replaced("/entries/0/proof", &format!("{hash}\n"), ""), "it is not in the log"),
        (replaced("/entries/0/proof", "\n\n", "\n\n\n"), "no signed checkpoint"),
        (replaced("/entries/0/proof", "\u{2014} ", "- "), "no signed checkpoint"),
        (set("/change", other["change"].clone()), "belongs to another change"),
        (set("/entries/1", other["entries"][1].clone()), "belongs to another change"),
        (set("/entries", json!([])), "does not begin with the attempt"),
        (swapped, "does not begin with the attempt"),
        (cut, "does not begin with the attempt"),
        (set("/form", json!("patchwarden.proof.v9")), "this version knows"),
    ] {
        std::fs::write(&file, altered.to_string()).unwrap();
        let (code, said) = elsewhere(folder.path(), &["verify", "altered.json", "--public-key", &key]);
        assert!(code == Some(1) && said.starts_with("WRONG") && said.contains(what), "{what}: {said}");
        let (code, theirs) = python(&file, &[&key]);
        assert!(code == Some(1) && theirs.contains("not proved: "), "{what}: {theirs}");
    }
    // Without its outcome it is true, and says what it does not show.
    let mut alone = good.clone();
    alone["entries"].as_array_mut().unwrap().truncate(1);
    std::fs::write(&file, alone.to_string()).unwrap();
    let (code, said) = elsewhere(folder.path(), &["verify", "altered.json", "--public-key", &key]);
    assert!(code == Some(0) && said.contains("whether it was applied is not shown"), "{said}");
    assert!(python(&file, &[&key]).1.contains("whether it was applied is not shown"));
    for wrong in [["--witness", key.as_str()], ["--projection", "--utc"]] {
        let (code, said) = elsewhere(
            folder.path(),
            &[&["verify", "altered.json", "--public-key", &key], &wrong[..]].concat(),
        );
        assert_eq!(code, Some(2), "{said}");
    }
    // A head of another size, signed by nobody.
    let mut lines: Vec<String> = text("/entries/0/proof").lines().map(str::to_owned).collect();
    let size = lines.iter().position(String::is_empty).unwrap() + 2;
    lines[size] = (lines[size].parse::<u64>().unwrap() + 1).to_string();
    std::fs::write(&file, set("/entries/0/proof", json!(lines.join("\n") + "\n")).to_string()).unwrap();
    let (code, said) = elsewhere(folder.path(), &["verify", "altered.json", "--public-key", &key]);
    assert!(code == Some(1) && said.contains("does not fit it"), "{said}");
    assert_eq!(python(&file, &[&key]).0, Some(1));
}

/// Bytes of a path of the log, as a reader.
async fn fetched(gateway: &Gateway, token: &str, path: &str) -> Vec<u8> {
    let answer = gateway.admin_get(&format!("/v1/log/{path}"), Some(token)).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.body.to_vec()
}

/// Entries of a bundle, by their lengths.
fn unbundled(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut entries = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let (entry, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)));
        entries.push(entry.to_vec());
        bytes = rest;
    }
    entries
}

#[tokio::test]
async fn a_client_that_knows_transparency_logs_checks_all_of_it() {
    let (_upstream, gateway) = changed(140).await;
    let token = gateway.admin_token("reader");
    let head = || async {
        let text = String::from_utf8(fetched(&gateway, &token, "checkpoint").await).unwrap();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        (lines[0].clone(), lines[1].parse::<u64>().unwrap(), STANDARD.decode(&lines[2]).unwrap())
    };
    let mut signed = head().await;
    while signed.1 < 281 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        signed = head().await;
    }
    let (origin, size, root) = signed;
    assert!(origin.starts_with("patchwarden.invalid/patchwarden-"));
    let mut entries = unbundled(&fetched(&gateway, &token, "tile/entries/000").await);
    let width = size - 256;
    entries.extend(unbundled(&fetched(&gateway, &token, &format!("tile/entries/001.p/{width}")).await));
    assert_eq!(entries.len() as u64, size);
    let mut oracle = MemoryBackedTree::<Sha256, Vec<u8>>::new();
    let mut roots: Vec<RootHash<Sha256>> = vec![oracle.root()];
    for entry in &entries {
        oracle.push(entry.clone());
        roots.push(oracle.root());
    }
    assert_eq!(oracle.root().as_bytes()[..], root[..], "the signed root is that of the entries");

    let full = fetched(&gateway, &token, "tile/0/000").await;
    assert_eq!(full.len(), 8192);
    let leaf = |entry: &[u8]| {
        use sha2::Digest as _;
        Sha256::new().chain_update([0]).chain_update(entry).finalize().to_vec()
    };
    assert_eq!(full, entries[..256].iter().flat_map(|entry| leaf(entry)).collect::<Vec<_>>());
    let partial = fetched(&gateway, &token, &format!("tile/0/001.p/{width}")).await;
    assert_eq!(partial, entries[256..].iter().flat_map(|entry| leaf(entry)).collect::<Vec<_>>());
    let above = fetched(&gateway, &token, "tile/1/000.p/1").await;
    assert_eq!(above[..], roots[256].as_bytes()[..]);

    let hashes = |proof: &Value| -> Vec<u8> {
        let hashes = proof["hashes"].as_array().unwrap().iter();
        hashes.flat_map(|hash| STANDARD.decode(hash.as_str().unwrap()).unwrap()).collect()
    };
    for index in [0, 1, 255, 256, 257, size - 1] {
        let path = format!("proof/inclusion?index={index}&size={size}");
        let proof: Value = serde_json::from_slice(&fetched(&gateway, &token, &path).await).unwrap();
        let theirs = InclusionProof::<Sha256>::try_from_bytes(hashes(&proof)).unwrap();
        let entry = &entries[usize::try_from(index).unwrap()];
        oracle.root().verify_inclusion(entry, index, &theirs).unwrap();
    }
    for old in [1, 100, 256, 257, 280] {
        let path = format!("proof/consistency?from={old}&to={size}");
        let proof: Value = serde_json::from_slice(&fetched(&gateway, &token, &path).await).unwrap();
        let theirs = ConsistencyProof::<Sha256>::try_from_bytes(hashes(&proof)).unwrap();
        oracle.root().verify_consistency(&roots[usize::try_from(old).unwrap()], &theirs).unwrap();
    }
    let page: Value =
        serde_json::from_slice(&fetched(&gateway, &token, "entries?start=2&end=4").await).unwrap();
    assert_eq!(page["entries"][1]["envelope"].as_str().unwrap().as_bytes(), entries[3]);
    assert_eq!(page["entries"].as_array().map(Vec::len), Some(2));

    for (path, status) in [
        ("tile/0/000.p/0", 400),
        ("tile/0/0", 400),
        ("tile/0/002", 404),
        ("tile/0/001", 404),
        ("tile/9/000", 404),
        ("entries?start=4&end=4", 400),
        ("entries?start=0&end=100000", 400),
        ("entries", 400),
        ("proof/inclusion?index=100000", 400),
        ("proof/consistency?from=9&to=8", 400),
        ("proof/consistency?from=9&since=8", 400),
        ("checkpoint?size=5000", 404),
        ("checkpoint?origin=nobody/1", 404),
    ] {
        let answer = gateway.admin_get(&format!("/v1/log/{path}"), Some(&token)).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        assert_eq!(answer.get("content-type"), Some("application/problem+json"), "{path}");
    }
    let answer = gateway.admin_get("/v1/log/checkpoint", None).await;
    assert_eq!(answer.status, 401);
}

#[tokio::test]
async fn a_key_is_followed_by_another_on_its_own_word() {
    let (_upstream, mut gateway) = changed(1).await;
    let folder = TempDir::new().unwrap();
    let proof = |gateway: &Gateway| {
        std::fs::write(folder.path().join("proof.json"), gateway.cli_ok(&["prove", "last"])).unwrap();
    };
    let verified = |key: &str| elsewhere(folder.path(), &["verify", "proof.json", "--public-key", key]).0;
    let first = gateway.cli_ok(&["keys", "show"]).trim().to_owned();
    let old_key = std::fs::read(gateway.data().join("log.key")).unwrap();
    // Beside a running gateway, by its socket.
    let second = gateway.cli_ok(&["keys", "rotate"]).trim().to_owned();
    assert_eq!(gateway.cli_ok(&["keys", "show"]), format!("{first}\n{second}\n"));
    change(&gateway, 5).await;
    proof(&gateway);
    assert_eq!((verified(&first), verified(&second)), (Some(0), Some(0)), "both sign");
    let output = gateway.cli(&["keys", "rotate"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("patchwarden keys retire"), "{output:?}");
    gateway.cli_ok(&["keys", "retire"]);
    assert_eq!(gateway.cli(&["keys", "retire"]).status.code(), Some(1));
    change(&gateway, 6).await;
    eventually(|| {
        proof(&gateway);
        let text = std::fs::read_to_string(folder.path().join("proof.json")).unwrap();
        // One line a head: the old key is silent.
        text.matches('\u{2014}').count() == 2
    })
    .await;
    // Trust in the first carries over by what it signed; the script of the docs follows too.
    assert_eq!((verified(&first), verified(&second)), (Some(0), Some(0)));
    let file = folder.path().join("proof.json");
    assert_eq!((python(&file, &[&first]).0, python(&file, &[&second]).0), (Some(0), Some(0)));
    let mut forged: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    forged["key_changes"][0]["signature"] = json!(STANDARD.encode([1u8; 64]));
    std::fs::write(&file, forged.to_string()).unwrap();
    assert_eq!((verified(&first), verified(&second)), (Some(1), Some(0)));
    assert_eq!((python(&file, &[&first]).0, python(&file, &[&second]).0), (Some(1), Some(0)));
    // Without a gateway, and again after a restart.
    gateway.terminate().await;
    let third = gateway.cli_ok(&["keys", "rotate"]).trim().to_owned();
    gateway.restart().await;
    change(&gateway, 7).await;
    proof(&gateway);
    assert_eq!((verified(&first), verified(&third)), (Some(0), Some(0)));
    let readers = gateway.admin_token("reader");
    let authorization = format!("Bearer {readers}");
    let headers = [("Authorization", authorization.as_str())];
    let refused = request(gateway.admin_addr(), "POST", "/v1/log/keys", &headers, None).await;
    assert_eq!(refused.status, 403);
    let listed = gateway.admin_get("/v1/log/keys", Some(&readers)).await.json();
    assert_eq!(listed["keys"][2]["key"], third.as_str());
    // A key that was followed cannot go on with the log.
    gateway.terminate().await;
    std::fs::write(gateway.data().join("log.key"), old_key).unwrap();
    let output = gateway
        .command(&["serve", "--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:0"])
        .arg("--admin-listen")
        .arg("127.0.0.1:0")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(3) && said.contains("was followed by another key, at entry"),
        "{said}"
    );
}

#[tokio::test]
async fn a_rotation_that_was_cut_off_is_finished_or_forgotten() {
    let (_upstream, mut gateway) = changed(1).await;
    let key = gateway.cli_ok(&["keys", "show"]);
    gateway.terminate().await;
    // The log never heard of it.
    std::fs::write(gateway.data().join("log.key.next"), "07".repeat(32)).unwrap();
    gateway.restart().await;
    change(&gateway, 2).await;
    assert!(!gateway.data().join("log.key.next").exists());
    assert_eq!(gateway.cli_ok(&["keys", "show"]), key);
    // It did, and the files were not renamed, or only one of them.
    for cut in ["before", "between"] {
        gateway.cli_ok(&["keys", "rotate"]);
        let keys = gateway.cli_ok(&["keys", "show"]);
        gateway.terminate().await;
        let data = gateway.data();
        let file = |name: &str| data.join(name);
        std::fs::rename(file("log.key"), file("log.key.next")).unwrap();
        if cut == "before" {
            std::fs::rename(file("log.key.previous"), file("log.key")).unwrap();
        }
        gateway.restart().await;
        change(&gateway, 3).await;
        assert!(file("log.key.previous").exists() && !file("log.key.next").exists(), "{cut}");
        assert_eq!(gateway.cli_ok(&["keys", "show"]), keys);
        gateway.cli_ok(&["keys", "retire"]);
    }
}
