//! The files people deploy with, held against the real binary.
//!
//! Every variable, flag, port, path and probe in the Dockerfile, the Compose file and the Kubernetes documents
//! has to exist, and Infisical must have no door of its own. Commands and variables in the documentation too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use serde_json::{Value, json};

use crate::tidy::{files, numbered, root, rust_files};

const COMPOSE: &str = "deploy/compose.yaml";
const KUBERNETES: &str = "deploy/kubernetes.yaml";

#[test]
fn every_variable_named_in_a_file_for_users_exists() {
    let known = variables();
    let mut unknown = Vec::new();
    for path in
        ["Dockerfile".to_owned(), COMPOSE.to_owned(), KUBERNETES.to_owned()].into_iter().chain(pages())
    {
        for (line, text) in numbered(&read(&path)) {
            for (at, _) in text.match_indices("PATCHWARDEN_") {
                let name: String =
                    text[at..].chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect();
                let of_kubernetes =
                    name.starts_with("PATCHWARDEN_PORT") || name.starts_with("PATCHWARDEN_SERVICE_");
                let from_file = name.strip_suffix("_FILE").is_some_and(|name| known.contains_key(name));
                if !known.contains_key(&name) && !from_file && !of_kubernetes && name != "PATCHWARDEN_" {
                    unknown.push(format!("{path}:{line}: {name}"));
                }
            }
        }
    }
    assert!(unknown.is_empty(), "no such variable:\n{}", unknown.join("\n"));
}

#[test]
fn every_command_in_the_deployment_files_exists_with_its_flags() {
    let image = Image::read();
    check_command(&[image.entrypoint.clone(), image.command.clone()].concat(), "Dockerfile: CMD");
    check_command(&image.health, "Dockerfile: HEALTHCHECK");
    for gateway in gateways().into_iter().filter(|gateway| !gateway.arguments.is_empty()) {
        check_command(&[image.entrypoint.clone(), gateway.arguments].concat(), &gateway.place);
    }
    for job in kubernetes().iter().filter(|document| document["kind"] == "Job") {
        for container in list(&job["spec"]["template"]["spec"]["containers"]) {
            let arguments = list(&container["args"]).iter().map(text).collect();
            check_command(&[image.entrypoint.clone(), arguments].concat(), &format!("{KUBERNETES}: Job"));
        }
    }
}

#[test]
fn every_command_in_the_documentation_exists_with_its_flags() {
    for path in pages() {
        let text = read(&path);
        let mut fenced = false;
        for (line, text) in numbered(&text) {
            if text.trim_start().starts_with("```") {
                fenced = !fenced;
                continue;
            }
            let snippets: Vec<&str> =
                if fenced { vec![text] } else { text.split('`').skip(1).step_by(2).collect() };
            for snippet in snippets {
                let words: Vec<String> = snippet.split_whitespace().map(str::to_owned).collect();
                let starts = words.windows(2).position(|pair| {
                    pair[0].ends_with("patchwarden")
                        && pair[1] != "patchwarden"
                        && pair[1].chars().all(|c| c.is_ascii_lowercase())
                        && !snippet.contains(&format!("logs {}", pair[0]))
                });
                if let Some(start) = starts {
                    let end =
                        words.iter().position(|word| ["|", "&&", ";", ">", "#"].contains(&word.as_str()));
                    let end = end.filter(|end| *end > start).unwrap_or(words.len());
                    check_command(&words[start..end], &format!("{path}:{line}"));
                }
            }
        }
    }
}

#[test]
fn the_configuration_each_deployment_gives_is_accepted() {
    let image = Image::read();
    for gateway in gateways() {
        let folder = tempfile::tempdir().unwrap();
        let mut environment = image.variables.clone();
        environment.extend(gateway.variables.clone());
        environment.insert("PATCHWARDEN_DATA".into(), folder.path().join("data").to_str().unwrap().into());
        let mut arguments = vec!["check".to_owned()];
        if let Some(config) = &gateway.config {
            let file = folder.path().join("patchwarden.toml");
            fs::write(&file, config).unwrap();
            arguments.extend(["--config".to_owned(), file.to_str().unwrap().to_owned()]);
        }
        let output = run(&arguments, &environment);
        assert!(output.status.success(), "{}: {}", gateway.place, said(&output));
    }
}

#[test]
fn no_setting_in_a_config_map_is_overruled_by_a_variable() {
    let known = variables();
    let image = Image::read();
    for gateway in gateways() {
        let Some(config) = &gateway.config else { continue };
        for setting in settings_of(&toml::from_str(config).unwrap(), "") {
            let names = known.iter().filter(|(_, known)| **known == setting).map(|(name, _)| name);
            for name in names {
                let set = image.variables.contains_key(name) || gateway.variables.contains_key(name);
                assert!(!set, "{}: {setting} has no effect beside {name}", gateway.place);
            }
        }
    }
}

#[test]
fn ports_agree_from_the_image_to_the_outside() {
    let image = Image::read();
    let port = port_of(&image.variables["PATCHWARDEN_LISTEN"]);
    let admin = port_of(&image.variables["PATCHWARDEN_ADMIN_LISTEN"]);
    assert_eq!(image.exposed, [port, admin]);

    let compose = compose();
    for published in list(&compose["services"]["patchwarden"]["ports"]) {
        let inside: u16 = published.as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
        assert_eq!(
            inside, port,
            "{COMPOSE}: only the gateway's port is published, never the admin listener's"
        );
    }

    for gateway in gateways().iter().filter(|gateway| gateway.place.starts_with(KUBERNETES)) {
        let named: BTreeMap<&str, u64> = list(&gateway.container["ports"])
            .iter()
            .map(|port| (port["name"].as_str().unwrap(), port["containerPort"].as_u64().unwrap()))
            .collect();
        assert_eq!(
            named,
            BTreeMap::from([("admin", admin.into()), ("gateway", port.into())]),
            "{}",
            gateway.place
        );
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert_eq!(
                gateway.container[probe]["httpGet"]["port"],
                json!("admin"),
                "{}: {probe}",
                gateway.place
            );
        }
    }
    for service in kubernetes().iter().filter(|document| document["kind"] == "Service") {
        for target in list(&service["spec"]["ports"]) {
            assert_eq!(target["targetPort"], json!("gateway"), "{service}");
        }
    }
    for policy in kubernetes().iter().filter(|document| document["metadata"]["name"] == "patchwarden") {
        let ports = list(&policy["spec"]["ingress"]).iter().flat_map(|rule| list(&rule["ports"]));
        for allowed in ports {
            let allowed = allowed["port"].as_u64().unwrap();
            assert!(allowed == u64::from(port) || allowed == u64::from(admin), "{policy}");
        }
    }
}

#[test]
fn infisical_has_no_door_of_its_own() {
    let compose = compose();
    for (name, service) in compose["services"].as_object().unwrap() {
        let published = !service["ports"].is_null() || !service["network_mode"].is_null();
        assert_eq!(published, name == "patchwarden", "{COMPOSE}: {name}");
    }
    let shared = |name: &str| -> BTreeSet<String> {
        list(&compose["services"][name]["networks"]).iter().map(text).collect()
    };
    assert!(
        shared("infisical").is_disjoint(&BTreeSet::from(["edge".to_owned()])),
        "{COMPOSE}: infisical on edge"
    );
    let upstream = &compose["services"]["patchwarden"]["environment"]["PATCHWARDEN_UPSTREAM"];
    assert_eq!(upstream, "http://infisical:8080");

    let documents = kubernetes();
    let kinds: BTreeSet<&str> = documents.iter().filter_map(|document| document["kind"].as_str()).collect();
    assert!(!kinds.contains("Ingress"), "{KUBERNETES}: an Ingress");
    for service in documents.iter().filter(|document| document["kind"] == "Service") {
        let kind = service["spec"]["type"].as_str().unwrap_or("ClusterIP");
        assert_eq!(
            kind, "ClusterIP",
            "{KUBERNETES}: how the gateway is published is not for this file to say"
        );
    }
    for document in documents.iter().filter(is_gateway) {
        let pod = &document["spec"]["template"]["spec"];
        assert!(pod["hostNetwork"].is_null() && pod["hostPID"].is_null(), "{document}");
        for container in list(&pod["containers"]).iter().filter(|container| container["name"] == "infisical")
        {
            assert!(container["ports"].is_null(), "{KUBERNETES}: infisical with a port");
            assert_eq!(variables_of(&container["env"])["HOST"], "127.0.0.1", "{KUBERNETES}");
        }
    }
    let door = documents
        .iter()
        .find(|document| document["metadata"]["name"] == "infisical-only-through-patchwarden")
        .expect("the policy that closes the way around");
    let rules = list(&door["spec"]["ingress"]);
    let peer = json!([{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "patchwarden"}}}]);
    assert_eq!((rules.len(), &rules[0]["from"]), (1, &peer), "{KUBERNETES}: others reach Infisical");
}

#[test]
fn each_form_in_kubernetes_is_complete_by_itself() {
    let documents = kubernetes();
    let alone = ["PersistentVolumeClaim", "Deployment"];
    let together = ["StatefulSet", "Job", "PodDisruptionBudget"];
    for (form, kinds_of_it) in [("gateway", &alone[..]), ("sidecar", &alone[..]), ("fleet", &together[..])] {
        let ours: Vec<&Value> = documents
            .iter()
            .filter(|document| document["metadata"]["labels"]["patchwarden/form"] == form)
            .collect();
        let kinds: Vec<&str> = ours.iter().filter_map(|document| document["kind"].as_str()).collect();
        for kind in ["Namespace", "ConfigMap", "Service", "NetworkPolicy"].iter().chain(kinds_of_it) {
            assert!(kinds.contains(kind), "{KUBERNETES}: form {form} without {kind}");
        }
        let namespaces: BTreeSet<&str> = ours
            .iter()
            .map(|document| match document["kind"].as_str() {
                Some("Namespace") => document["metadata"]["name"].as_str().unwrap(),
                _ => document["metadata"]["namespace"].as_str().unwrap(),
            })
            .collect();
        assert_eq!(namespaces.len(), 1, "{KUBERNETES}: form {form} in {namespaces:?}");
    }
    let labelled = |document: &&Value| document["metadata"]["labels"]["patchwarden/form"].is_string();
    assert_eq!(
        documents.iter().filter(labelled).count(),
        documents.len(),
        "{KUBERNETES}: a document of no form"
    );
}

#[test]
fn the_log_has_one_writer_on_a_volume_of_its_own() {
    let image = Image::read();
    let data = &image.variables["PATCHWARDEN_DATA"];
    assert_eq!(&image.volume, data);
    for gateway in gateways() {
        let data = gateway.variables.get("PATCHWARDEN_DATA").unwrap_or(data);
        let inside = |mount: &String| data == mount || data.starts_with(&format!("{mount}/"));
        assert!(gateway.mounts.keys().any(inside), "{}: {data} is on no volume", gateway.place);
        if let Some(at) = gateway.arguments.iter().position(|word| word == "--config") {
            let (folder, name) = gateway.arguments[at + 1].rsplit_once('/').unwrap();
            assert_eq!(gateway.mounts.get(folder).map(String::as_str), Some("config"), "{}", gateway.place);
            assert_eq!(name, "patchwarden.toml", "{}: the key of the ConfigMap", gateway.place);
        }
    }
    for document in kubernetes().iter().filter(is_gateway) {
        if document["kind"] == "Deployment" {
            assert_eq!(document["spec"]["replicas"], json!(1), "{document}");
            assert_eq!(document["spec"]["strategy"]["type"], json!("Recreate"), "{document}");
        } else {
            let claims = list(&document["spec"]["volumeClaimTemplates"]);
            assert_eq!(claims[0]["metadata"]["name"], "data", "each Pod has a data folder of its own");
        }
        assert_eq!(document["spec"]["template"]["spec"]["enableServiceLinks"], json!(false), "{document}");
    }
}

#[test]
fn the_gateway_runs_without_privileges_on_a_read_only_root() {
    assert_eq!(Image::read().user, "65532:65532");
    let compose = compose();
    let service = &compose["services"]["patchwarden"];
    assert_eq!(service["read_only"], json!(true));
    assert_eq!(service["cap_drop"], json!(["ALL"]));
    assert_eq!(service["security_opt"], json!(["no-new-privileges:true"]));
    for gateway in gateways().iter().filter(|gateway| gateway.place.starts_with(KUBERNETES)) {
        let of_container = &gateway.container["securityContext"];
        for (key, expected) in [("runAsUser", json!(65532)), ("runAsNonRoot", json!(true))] {
            let set = if of_container[key].is_null() {
                &gateway.pod["securityContext"][key]
            } else {
                &of_container[key]
            };
            assert_eq!(*set, expected, "{}: {key}", gateway.place);
        }
        assert_eq!(of_container["readOnlyRootFilesystem"], json!(true), "{}", gateway.place);
        assert_eq!(of_container["allowPrivilegeEscalation"], json!(false), "{}", gateway.place);
        assert_eq!(of_container["capabilities"]["drop"], json!(["ALL"]), "{}", gateway.place);
        assert_eq!(gateway.pod["securityContext"]["fsGroup"], json!(65532), "{}", gateway.place);
    }
}

#[test]
fn health_check_and_probes_pass_in_the_environment_of_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let image = Image::read();
    let admin = free_port();
    let mut environment = image.variables.clone();
    environment.insert("PATCHWARDEN_LISTEN".into(), format!("0.0.0.0:{}", free_port()));
    environment.insert("PATCHWARDEN_ADMIN_LISTEN".into(), format!("0.0.0.0:{admin}"));
    environment.insert("PATCHWARDEN_DATA".into(), folder.path().join("data").to_str().unwrap().into());
    environment.insert("PATCHWARDEN_UPSTREAM".into(), format!("http://{}", idle_upstream()));

    let log = folder.path().join("log");
    let _serving = Serving(
        command(&image.command, &environment)
            .current_dir(folder.path())
            .stdout(File::create(folder.path().join("out")).unwrap())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap(),
    );
    let began = Instant::now();
    loop {
        let output = run(&image.health[1..], &environment);
        if output.status.success() {
            break;
        }
        let log = fs::read_to_string(&log).unwrap();
        assert!(began.elapsed() < Duration::from_secs(20), "never healthy: {}\n{log}", said(&output));
        std::thread::sleep(Duration::from_millis(100));
    }
    for gateway in gateways().iter().filter(|gateway| gateway.place.starts_with(KUBERNETES)) {
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let path = text(&gateway.container[probe]["httpGet"]["path"]);
            let status = status_of(admin, &path);
            assert_eq!(status, "HTTP/1.1 200 OK", "{}: {probe} {path}", gateway.place);
        }
    }
}

#[test]
fn the_image_is_built_from_all_that_the_source_includes() {
    let image = Image::read();
    let context = read(".dockerignore");
    for copied in &image.copied {
        assert!(root().join(copied).exists(), "Dockerfile: COPY {copied}, which is not there");
        assert!(context.lines().any(|line| line == format!("!{copied}")), ".dockerignore keeps {copied} out");
    }
    for file in rust_files("src") {
        let lines: Vec<&str> = file.text.lines().collect();
        for (line, string) in &file.strings {
            let near = &lines[line.saturating_sub(2)..*line];
            if !near.iter().any(|text| text.contains("include_") || text.contains("migrate!")) {
                continue;
            }
            let beside = root().join(&file.path).with_file_name(string);
            let below = root().join(string.trim_start_matches("$CARGO_MANIFEST_DIR").trim_start_matches('/'));
            let found = [beside, below].into_iter().find_map(|path| path.canonicalize().ok());
            let Some(found) = found else { continue };
            let inside = found.strip_prefix(root().canonicalize().unwrap()).unwrap();
            let Some(top) = inside.iter().next().and_then(|part| part.to_str()) else { continue };
            assert!(image.copied.contains(top), "{}:{line}: the Dockerfile does not copy {top}", file.path);
        }
    }
}

/// What the last stage of the Dockerfile sets, and what its stages copy from the build context.
struct Image {
    variables: BTreeMap<String, String>,
    exposed: Vec<u16>,
    user: String,
    volume: String,
    entrypoint: Vec<String>,
    command: Vec<String>,
    health: Vec<String>,
    copied: BTreeSet<String>,
}

impl Image {
    fn read() -> Self {
        let text = read("Dockerfile").replace("\\\n", " ");
        let last = |instruction: &str| -> String {
            let stage = text.rsplit_once("\nFROM ").unwrap().1;
            let found: Vec<&str> =
                stage.lines().filter_map(|line| line.strip_prefix(instruction)?.strip_prefix(' ')).collect();
            found.join("\n").trim().to_owned()
        };
        let words = |json: &str| -> Vec<String> {
            toml::from_str::<Words>(&format!("words = {json}")).unwrap().words
        };
        let copied = text
            .lines()
            .filter_map(|line| line.strip_prefix("COPY "))
            .filter(|copy| !copy.contains("--from="))
            .flat_map(|copy| {
                let mut paths: Vec<String> = copy.split_whitespace().map(str::to_owned).collect();
                paths.pop();
                paths
            })
            .collect();
        Self {
            variables: last("ENV")
                .lines()
                .filter_map(|line| line.split_once('='))
                .filter(|(name, _)| name.starts_with("PATCHWARDEN_"))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            exposed: last("EXPOSE").split_whitespace().map(|port| port.parse().unwrap()).collect(),
            user: last("USER"),
            volume: last("VOLUME"),
            entrypoint: words(&last("ENTRYPOINT")),
            command: words(&last("CMD")),
            health: words(last("HEALTHCHECK").split_once("CMD ").unwrap().1),
            copied,
        }
    }
}

#[derive(serde::Deserialize)]
struct Words {
    words: Vec<String>,
}

/// One gateway as a deployment file describes it.
struct Gateway {
    place: String,
    variables: BTreeMap<String, String>,
    arguments: Vec<String>,
    config: Option<String>,
    /// Where what is mounted: path to the volume's name.
    mounts: BTreeMap<String, String>,
    container: Value,
    pod: Value,
}

fn gateways() -> Vec<Gateway> {
    let compose = compose();
    let service = &compose["services"]["patchwarden"];
    let mut found = vec![Gateway {
        place: COMPOSE.to_owned(),
        variables: variables_of(&service["environment"]),
        arguments: list(&service["command"]).iter().map(text).collect(),
        config: None,
        mounts: list(&service["volumes"])
            .iter()
            .map(|mount| mount.as_str().and_then(|mount| mount.split_once(':')).unwrap())
            .map(|(volume, path)| (path.to_owned(), volume.to_owned()))
            .collect(),
        container: service.clone(),
        pod: Value::Null,
    }];
    let documents = kubernetes();
    for document in documents.iter().filter(is_gateway) {
        let form = text(&document["metadata"]["labels"]["patchwarden/form"]);
        let pod = &document["spec"]["template"]["spec"];
        let map = documents.iter().find(|map| {
            map["kind"] == "ConfigMap" && text(&map["metadata"]["labels"]["patchwarden/form"]) == form
        });
        for container in
            list(&pod["containers"]).iter().filter(|container| container["name"] == "patchwarden")
        {
            found.push(Gateway {
                place: format!("{KUBERNETES}: form {form}"),
                variables: variables_of(&container["env"]),
                arguments: list(&container["args"]).iter().map(text).collect(),
                config: map.map(|map| text(&map["data"]["patchwarden.toml"])),
                mounts: list(&container["volumeMounts"])
                    .iter()
                    .map(|mount| (text(&mount["mountPath"]), text(&mount["name"])))
                    .collect(),
                container: container.clone(),
                pod: pod.clone(),
            });
        }
    }
    assert_eq!(found.len(), 4, "Compose and three forms in Kubernetes");
    found
}

/// What runs gateways: one Pod with a file, or several on one PostgreSQL.
fn is_gateway(document: &&Value) -> bool {
    document["kind"] == "Deployment" || document["kind"] == "StatefulSet"
}

/// Every variable the binary knows, with the setting it stands for, from its own list of settings.
fn variables() -> BTreeMap<String, String> {
    let output = run(&["config".to_owned(), "--default".to_owned()], &BTreeMap::new());
    assert!(output.status.success(), "{}", said(&output));
    let mut found = BTreeMap::new();
    let mut section = String::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let line = line.trim_start_matches(['#', ' ']);
        if let Some((name, _)) = line.strip_prefix('[').and_then(|line| line.split_once(']')) {
            section = format!("{name}.");
        } else if let Some((key, _)) = line.split_once('=') {
            let key = key.trim();
            if !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
                let setting = format!("{section}{key}");
                found.insert(variable_for(&setting), setting);
            }
        }
    }
    for (short, setting) in
        [("UPSTREAM", "upstream.url"), ("STORE", "store.url"), ("POLICIES", "policies.dir")]
    {
        assert!(found.contains_key(&variable_for(setting)), "config --default does not list {setting}");
        found.insert(format!("PATCHWARDEN_{short}"), setting.to_owned());
    }
    found
}

fn variable_for(setting: &str) -> String {
    format!("PATCHWARDEN_{}", setting.to_ascii_uppercase().replace(['.', '-'], "_"))
}

/// The settings a configuration file gives, as `section.key`.
fn settings_of(table: &toml::Table, section: &str) -> Vec<String> {
    table
        .iter()
        .flat_map(|(key, value)| match value {
            toml::Value::Table(inner) if section.is_empty() => settings_of(inner, &format!("{key}.")),
            _ => vec![format!("{section}{key}")],
        })
        .collect()
}

/// Runs the command's own `--help` and looks for its flags there.
fn check_command(words: &[String], place: &str) {
    let deep = if ["token", "policy", "store"].contains(&words[1].as_str()) { 3 } else { 2 };
    let mut help = words[1..deep.min(words.len())].to_vec();
    help.push("--help".to_owned());
    let output = run(&help, &BTreeMap::new());
    assert!(output.status.success(), "{place}: {}: {}", words.join(" "), said(&output));
    let help = String::from_utf8(output.stdout).unwrap();
    for flag in words.iter().filter(|word| word.starts_with("--") && word.len() > 2) {
        let flag = flag.split('=').next().unwrap();
        let known = help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).any(|word| word == flag);
        assert!(known, "{place}: {}: no {flag} in\n{help}", words.join(" "));
    }
}

fn command(arguments: &[String], environment: &BTreeMap<String, String>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_patchwarden"));
    command.args(arguments).env_clear().envs(environment);
    command
}

/// Runs the binary in an empty folder, with these variables and no others.
fn run(arguments: &[String], environment: &BTreeMap<String, String>) -> Output {
    let folder = tempfile::tempdir().unwrap();
    command(arguments, environment).current_dir(folder.path()).output().unwrap()
}

fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{}\n{out}{err}", output.status)
}

/// A gateway that is stopped whatever becomes of the test.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// An upstream that answers everything with an empty object.
fn idle_upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.read(&mut [0; 4096]);
            let _ = client.write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}",
            );
        }
    });
    address
}

/// Asks as a kubelet does: by address, the Pod's in `Host`.
fn status_of(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: 10.42.0.17:{port}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The documentation.
fn pages() -> Vec<String> {
    let mut pages = files("docs");
    pages.retain(|path| path.ends_with(".md"));
    pages.extend(
        ["README.md", "CHANGELOG.md"]
            .map(str::to_owned)
            .into_iter()
            .filter(|path| root().join(path).exists()),
    );
    pages
}

fn compose() -> Value {
    documents(COMPOSE).remove(0)
}

fn kubernetes() -> Vec<Value> {
    documents(KUBERNETES)
}

fn documents(path: &str) -> Vec<Value> {
    let text = read(path);
    Yaml::load_from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}")).iter().map(plain).collect()
}

/// YAML as the JSON it means.
fn plain(node: &Yaml<'_>) -> Value {
    match node {
        Yaml::Value(Scalar::Boolean(value)) => json!(value),
        Yaml::Value(Scalar::Integer(value)) => json!(value),
        Yaml::Value(Scalar::FloatingPoint(value)) => json!(value.into_inner()),
        Yaml::Value(Scalar::String(value)) => json!(value),
        Yaml::Sequence(items) => items.iter().map(plain).collect(),
        Yaml::Mapping(members) => {
            members.iter().map(|(key, value)| (key.as_str().unwrap().to_owned(), plain(value))).collect()
        }
        Yaml::Value(Scalar::Null) => Value::Null,
        other => panic!("not used in these files: {other:?}"),
    }
}

/// A container's environment, written as a map or as a list of names and values.
fn variables_of(environment: &Value) -> BTreeMap<String, String> {
    match environment {
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
        other => list(other).iter().map(|entry| (text(&entry["name"]), text(&entry["value"]))).collect(),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}

fn port_of(address: &str) -> u16 {
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[test]
fn every_path_of_the_admin_api_is_described() {
    let described = include_str!("../../docs/api.md");
    let routes = include_str!("../../src/api.rs").split(".route(\"").skip(1);
    let paths: Vec<_> = routes.filter_map(|rest| rest.split('"').next()).collect();
    assert!(paths.len() >= 9, "{paths:?}");
    for path in paths {
        assert!(described.contains(&format!("{path}`")), "docs/api.md does not describe {path}");
    }
}
