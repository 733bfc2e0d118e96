//! The admin API through its routers.

use axum::body::Body;
use http::header::AUTHORIZATION;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt as _;

use super::*;

struct Api {
    admin: Router,
    socket: Router,
    readiness: Readiness,
    _folder: TempDir,
}

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        crate::json::value(self.body.as_bytes()).unwrap()
    }
}

async fn api(open_metrics: bool, hosts: &[&str]) -> Api {
    let folder = tempfile::tempdir().unwrap();
    let audit = crate::audit::Audit::of_folder(folder.path()).await;
    let readiness = Readiness::new();
    let state = State::new(Parts {
        access: Access::new(audit.clone(), None).unwrap(),
        audit,
        bundle: Arc::new(RwLock::new(Arc::new(crate::bundle::Bundle::builtin().unwrap()))),
        metrics: Arc::new(Metrics::new()),
        readiness: readiness.clone(),
        clock: Clock::System,
        open_metrics,
        hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
    });
    Api { admin: admin(state.clone()), socket: socket(state), readiness, _folder: folder }
}

impl Api {
    /// `None` as the token: through the socket.
    async fn token(&self, role: &str) -> String {
        let body = json!({"name": format!("a-{role}"), "role": role}).to_string();
        let made = ask(&self.socket, "POST", "/v1/tokens", &[], &body).await;
        assert_eq!(made.status, 201, "{}", made.body);
        made.json()["token"].as_str().unwrap().to_owned()
    }

    async fn get(&self, path: &str, token: Option<&str>) -> Answer {
        self.request("GET", path, token, "").await
    }

    async fn request(&self, method: &str, path: &str, token: Option<&str>, body: &str) -> Answer {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = bearer.iter().map(|value| (AUTHORIZATION, value.as_str())).collect();
        ask(&self.admin, method, path, &headers, body).await
    }
}

async fn ask(
    router: &Router,
    method: &str,
    path: &str,
    headers: &[(http::HeaderName, &str)],
    body: &str,
) -> Answer {
    let mut request = http::Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    let response = router.clone().oneshot(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert_eq!(head.headers["x-content-type-options"], "nosniff", "{path}");
    assert_eq!(head.headers["cache-control"], "no-store", "{path}");
    if head.status.is_client_error() || (head.status.is_server_error() && !path.starts_with("/readyz")) {
        assert_eq!(head.headers["content-type"], "application/problem+json", "{path}: {body}");
    }
    Answer { status: head.status.as_u16(), headers: head.headers, body }
}

#[tokio::test]
async fn without_a_token_there_are_only_the_probes() {
    let api = api(false, &[]).await;
    assert_eq!(api.get("/livez", None).await.status, 200);
    for path in ["/metrics", "/v1/changes", "/v1/changes/last", "/v1/tokens", "/nowhere"] {
        for token in [None, Some("pw_0000")] {
            let answer = api.get(path, token).await;
            assert_eq!(
                (answer.status, &answer.headers["www-authenticate"] == "Bearer"),
                (401, true),
                "{path}"
            );
        }
    }
}

#[tokio::test]
async fn readers_read_and_operators_manage_tokens() {
    let api = api(false, &[]).await;
    let (reader, operator) = (api.token("reader").await, api.token("operator").await);
    for path in ["/metrics", "/v1/changes", "/v1/targets/0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a/history"] {
        assert_eq!(api.get(path, Some(&reader)).await.status, 200, "{path}");
    }
    for (method, path) in [("GET", "/v1/tokens"), ("POST", "/v1/tokens"), ("DELETE", "/v1/tokens/a-reader")] {
        assert_eq!(api.request(method, path, Some(&reader), "{}").await.status, 403, "{method} {path}");
    }
    let listed = api.get("/v1/tokens", Some(&operator)).await;
    assert_eq!(listed.json()["tokens"].as_array().unwrap().len(), 2);
    assert!(!listed.body.contains(&reader) && !listed.body.contains("hash"), "{}", listed.body);
    let again = json!({"name": "a-reader", "role": "reader"}).to_string();
    assert_eq!(api.request("POST", "/v1/tokens", Some(&operator), &again).await.status, 409);
    assert_eq!(api.request("DELETE", "/v1/tokens/a-reader", Some(&operator), "").await.status, 204);
    assert_eq!(api.get("/v1/changes", Some(&reader)).await.status, 401);
    assert_eq!(api.request("DELETE", "/v1/tokens/a-reader", Some(&operator), "").await.status, 404);
}

#[tokio::test]
async fn a_token_is_not_made_of_just_anything() {
    let api = api(false, &[]).await;
    let operator = api.token("operator").await;
    for (body, says) in [
        ("", "The body is not"),
        (r#"{"name": "a"}"#, "role"),
        (r#"{"name": "a", "role": "root"}"#, "`reader` or `operator`"),
        (r#"{"name": "a b", "role": "reader"}"#, "letters, digits"),
        (r#"{"name": "a", "role": "reader", "hash": "x"}"#, "hash"),
    ] {
        let answer = api.request("POST", "/v1/tokens", Some(&operator), body).await;
        assert!(answer.status == 400 && answer.body.contains(says), "{body}: {}", answer.body);
    }
    let large = " ".repeat(MAX_BODY + 1);
    assert_eq!(api.request("POST", "/v1/tokens", Some(&operator), &large).await.status, 413);
}

#[tokio::test]
async fn a_wrong_question_is_answered_with_what_would_pass() {
    let api = api(false, &[]).await;
    let reader = api.token("reader").await;
    for (path, status, says) in [
        ("/v1/changes?decision=denied", 400, "`refuse`"),
        ("/v1/changes?desicion=deny", 400, "`decision`"),
        ("/v1/changes?limit=501", 400, "1 to 500"),
        ("/v1/changes?cursor=x", 400, "`next_cursor`"),
        ("/v1/changes/019aaf3e-4f8b-7c31-9d50-9a0a4c1f2b3d", 404, "no such change"),
        ("/v1/changes/abc", 404, "no such change"),
        ("/v1/targets/abc/history", 400, "a UUID like"),
        (
            "/v1/targets/0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a/history?decision=deny",
            400,
            "`limit` and `cursor`",
        ),
        ("/nowhere", 404, "nothing at this path"),
    ] {
        let answer = api.get(path, Some(&reader)).await;
        assert!(
            answer.status == status && answer.body.contains(says),
            "{path}: {} {}",
            answer.status,
            answer.body
        );
    }
    let page = api.get("/v1/changes?decision=deny&limit=5&since=2h", Some(&reader)).await.json();
    assert_eq!(page, json!({"changes": [], "next_cursor": null}));
    let operator = api.token("operator").await;
    assert_eq!(api.request("POST", "/v1/changes", Some(&operator), "").await.status, 405);
}

#[tokio::test]
async fn readiness_follows_the_phase() {
    let api = api(false, &[]).await;
    let word = async || {
        let answer = api.get("/readyz", None).await;
        (answer.status, answer.json()["status"].as_str().unwrap().to_owned())
    };
    assert_eq!(word().await, (503, "starting".to_owned()));
    api.readiness.enter(Phase::Ready);
    assert_eq!(word().await, (200, "ready".to_owned()));
    assert_eq!(api.get("/readyz?require=audit", None).await.status, 200);
    assert_eq!(api.get("/readyz?require=all", None).await.status, 400);
    api.readiness.enter(Phase::Stopping);
    api.readiness.enter(Phase::Ready);
    assert_eq!(word().await, (503, "stopping".to_owned()));
    assert_eq!(api.get("/livez", None).await.status, 200);
}

#[tokio::test]
async fn metrics_can_be_opened() {
    let api = api(true, &[]).await;
    let answer = api.get("/metrics", None).await;
    assert!(answer.status == 200 && answer.body.contains("patchwarden_audit_up"), "{}", answer.body);
    assert_eq!(api.get("/v1/changes", None).await.status, 401);
}

#[tokio::test]
async fn only_named_hosts_are_answered() {
    let api = api(true, &["admin.example"]).await;
    for (host, status) in [
        ("admin.example", 200),
        ("Admin.Example:7081", 200),
        ("evil.example", 421),
        ("admin.example.evil.example", 421),
    ] {
        assert_eq!(ask(&api.admin, "GET", "/metrics", &[(HOST, host)], "").await.status, status, "{host}");
        assert_eq!(ask(&api.admin, "GET", "/livez", &[(HOST, host)], "").await.status, 200, "{host}");
    }
    assert_eq!(api.get("/metrics", None).await.status, 400);
}
