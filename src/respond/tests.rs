use http_body_util::BodyExt;

use super::*;
use crate::clock::Time;

async fn body(response: Response) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn pretty(response: Response) -> String {
    let value = crate::json::value(body(response).await.as_bytes()).unwrap();
    serde_json::to_string_pretty(&value).unwrap()
}

fn change() -> ChangeId {
    "019a0000-0000-7000-8000-000000000001".parse().unwrap()
}

fn too_long(pointer: &str) -> Finding {
    Finding {
        rule: "token-lifetime".into(),
        pointer: pointer.into(),
        from: Some(From::Request),
        request_pointer: Some(pointer.into()),
        value: json!(2_592_000),
        limit: json!(604_800),
        message: format!("{} is 30d", &pointer[1..]),
        help: "at most 7d would pass (Terraform: access_token_max_ttl = 604800)".into(),
    }
}

fn denied(findings: Vec<Finding>) -> Refusal {
    Refusal::new(Code::PolicyDenied, "Denied by policy").with_findings(findings)
}

#[tokio::test]
async fn a_denial_is_a_problem_that_names_everything() {
    let mut stored = too_long("/accessTokenTTL");
    stored.from = Some(From::Default);
    stored.request_pointer = None;
    let mut no = denied(vec![too_long("/accessTokenMaxTTL"), stored]);
    no.fix = Some(json!([{"op": "replace", "path": "/accessTokenMaxTTL", "value": 604_800}]));
    insta::assert_snapshot!(pretty(refusal(&no, Some(&change()), None)).await);
}

#[tokio::test]
async fn a_schema_error_has_the_upstreams_own_shape() {
    let finding = Finding {
        rule: "schema".into(),
        pointer: "/accessTokenTrustedIps/0/ip~1Address".into(),
        from: None,
        request_pointer: None,
        value: Value::Null,
        limit: Value::Null,
        message: "null is not a string".into(),
        help: "write 10.0.0.0/8 in ipAddress".into(),
    };
    let no =
        Refusal::new(Code::SchemaInvalid, "The request does not fit the schema").with_findings(vec![finding]);
    insta::assert_snapshot!(pretty(refusal(&no, Some(&change()), None)).await);
}

#[tokio::test]
async fn a_refusal_without_a_record_has_no_id() {
    let response = refusal(&Refusal::overloaded("limits.requests"), None, None);
    assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    assert!(!response.headers().contains_key(CHANGE));
    insta::assert_snapshot!(pretty(response).await);
}

#[tokio::test]
async fn an_open_outcome_is_said_to_be_open() {
    for (code, open) in
        [(Code::UpstreamTimeout, true), (Code::UpstreamBroken, true), (Code::UpstreamUnreachable, false)]
    {
        let text = body(refusal(&Refusal::new(code, "No complete answer"), None, None)).await;
        assert_eq!(text.contains("The outcome is unknown"), open, "{text}");
        assert_eq!(text.contains("Nothing was changed."), !open, "{text}");
    }
}

#[test]
fn a_browser_may_read_the_answer_and_its_headers() {
    let origin = HeaderValue::from_static("https://app.example");
    let response = refusal(&denied(Vec::new()), Some(&change()), Some(&origin));
    let headers = response.headers();
    assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://app.example");
    assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
    assert_eq!(headers[header::VARY], "origin");
    let exposed = headers[header::ACCESS_CONTROL_EXPOSE_HEADERS].to_str().unwrap();
    for name in [CHANGE, ANSWERED_BY, RECORD, WARNING, header::RETRY_AFTER] {
        assert!(exposed.split(", ").any(|word| word == name.as_str()), "{exposed}");
    }
    assert_eq!(headers[CHANGE], change().to_string());
    assert_eq!(headers[ANSWERED_BY], "gateway");
    assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");

    let response = refusal(&denied(Vec::new()), None, None);
    assert!(!response.headers().contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
}

#[test]
fn the_detail_is_one_line_of_at_most_a_thousand_characters() {
    for count in [0, 1, 2, 7, 20, 60, 1000] {
        for length in [1, 30, 400, 3000] {
            let mut finding = too_long("/accessTokenTTL");
            finding.message = format!("é\n{}.", "wörd ".repeat(length / 5));
            let text = detail(&denied(vec![finding; count]));
            assert!(text.chars().count() <= MAX_DETAIL, "{count} {length}: {}", text.chars().count());
            assert!(text.ends_with(" Nothing was changed."), "{text}");
            assert!(!text.contains('\n'));
            let named = (1..=count).filter(|n| text.contains(&format!("({n}) "))).count();
            let more = count - named;
            assert_eq!(text.contains(&format!(" and {more} more, ")), more > 0, "{count} {length}: {text}");
        }
    }
    let long = Refusal::new(Code::BeforeRefused(403), "x".repeat(5000));
    assert_eq!(detail(&long).chars().count(), MAX_DETAIL);
}

#[test]
fn naming_every_violation_comes_before_explaining_them() {
    let mut finding = too_long("/accessTokenTTL");
    finding.help = "words that would not all fit into one answer ".repeat(3);
    let text = detail(&denied(vec![finding; 20]));
    assert!(text.contains("(20) accessTokenTTL is 30d."), "{text}");
    assert!(!text.contains("would not all fit"), "{text}");
}

#[test]
fn warnings_are_few_short_and_visible() {
    let long = "ä".repeat(400);
    let many: Vec<(&str, &str)> = (0..12).map(|_| ("open-network", long.as_str())).collect();
    let headers = WarningHeaders::of(&many);
    assert_eq!(headers.0.len(), MAX_WARNINGS);
    assert_eq!(headers.0[7], "patchwarden: 5 more warnings in the record");
    for value in &headers.0 {
        assert!(value.len() <= MAX_WARNING && value.to_str().is_ok(), "{value:?}");
    }
    assert_eq!(WarningHeaders::of(&many[..8]).0.len(), 8);
    assert_eq!(WarningHeaders::of(&[("a", "b\r\nc\u{0}")]).0, ["a: b??c?"]);
    let mut map = HeaderMap::new();
    WarningHeaders::of(&[("a", "1"), ("a", "2")]).write(&mut map);
    assert_eq!(map.get_all(WARNING).iter().collect::<Vec<_>>(), ["a: 1", "a: 2"]);
}

#[tokio::test]
async fn the_upstreams_answer_goes_out_unchanged() {
    let mut headers = HeaderMap::new();
    headers.insert(header::ETAG, HeaderValue::from_static("\"x\""));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("999"));
    let answer = Answer { status: StatusCode::CONFLICT, headers, body: Bytes::from_static(b"{\"a\":1}") };
    let response = answered(answer, &change(), &WarningHeaders::of(&[("a", "1")]), true);
    assert_eq!(response.status(), 409);
    let headers = response.headers();
    assert_eq!(headers[header::ETAG], "\"x\"");
    assert_eq!(headers[ANSWERED_BY], "upstream");
    assert_eq!(headers[RECORD], "pending");
    assert_eq!(headers[WARNING], "a: 1");
    assert!(!headers.contains_key(header::CONTENT_LENGTH));
    assert_eq!(body(response).await, "{\"a\":1}");
}

#[test]
fn a_change_id_made_now_is_a_header_value() {
    let mut headers = HeaderMap::new();
    stamp(&mut headers, &ChangeId::at(Time(1_700_000_000_000_000)), AnsweredBy::Gateway);
    assert_eq!(headers[CHANGE].len(), 36);
}
