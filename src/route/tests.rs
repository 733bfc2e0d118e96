//! Spellings of governed and watched routes, one table for each.

use proptest::prelude::*;

use super::*;
use crate::operation::{Object, Write};

const ID: &str = "0b9c3a52-7d3f-4f7e-9a43-0c8f3f1d2e4a";
const JWT: &str = "/api/v1/auth/jwt-auth/identities";

fn catalogue() -> Catalogue {
    let object: Object = toml::from_str(include_str!("../../policies/objects/jwt-auth.toml")).unwrap();
    let operation = Operation {
        name: "jwt-auth.update".into(),
        method: Method::PATCH,
        write: Write::Overlay,
        object: Arc::new(object),
    };
    let entry = |name: &str, method: Method, path: &str, class: Class| CatalogueEntry {
        name: name.into(),
        method,
        path: path.into(),
        class,
        shares: None,
    };
    let governed = Class::Governed(Arc::new(operation));
    Catalogue(vec![
        entry("jwt-auth.update", Method::PATCH, &format!("{JWT}/{{identityId}}"), governed),
        entry("identity.delete", Method::DELETE, "/api/v1/identities/{identityId}", Class::Watched),
        entry(
            "client-secret.revoke",
            Method::POST,
            "/api/v1/auth/universal-auth/identities/{identityId}/client-secrets/{clientSecretId:word}/revoke",
            Class::Watched,
        ),
        entry(
            "project-identity.delete",
            Method::DELETE,
            "/api/v1/projects/{projectId:word}/identities/{identityId}",
            Class::Watched,
        ),
        entry("identity.create", Method::POST, "/api/v1/identities", Class::Watched),
        entry("login", Method::POST, "/api/v1/auth/jwt-auth/login", Class::Open),
    ])
}

/// `governed`, `watched`, `passes`, or the detail of the refusal.
fn found(method: &str, target: &str, version: Version) -> String {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    match find(&catalogue(), &method, &target.parse().unwrap(), version) {
        Ok(Match::Governed(governed)) => {
            assert_eq!(governed.path(), format!("{JWT}/{}", governed.target().id()));
            assert_eq!(governed.operation().name, "jwt-auth.update");
            "governed".into()
        }
        Ok(Match::Watched(_)) => "watched".into(),
        Ok(Match::Passthrough) => "passes".into(),
        Err(refusal) => {
            assert_eq!(refusal.code, Code::RouteNotCanonical);
            refusal.detail
        }
    }
}

fn check(method: &str, target: &str, expected: &str) {
    let found = found(method, target, Version::HTTP_11);
    let agrees = if expected == "refused" { found.starts_with("This route") } else { found == expected };
    assert!(agrees, "{method} {target}: {found}");
}

#[test]
fn one_spelling_of_a_governed_route_is_governed_and_every_other_is_refused() {
    let upper = ID.to_uppercase();
    let plain = ID.replace('-', "");
    check("PATCH", &format!("{JWT}/{ID}"), "governed");
    for target in [
        format!("{JWT}/{ID}/"),
        format!("{JWT}/{ID}//"),
        format!("{JWT}/{ID}?"),
        format!("{JWT}/{ID}?a=b"),
        format!("{JWT}/{ID};x"),
        format!("{JWT}/{ID};/x"),
        format!("{JWT}/{ID}%3Bx"),
        format!("{JWT}/{ID}%23"),
        format!("{JWT}/{ID}%2F"),
        format!("{JWT}/%20{ID}%C2%A0"),
        format!("{JWT}/{upper}"),
        format!("{JWT}/{plain}"),
        format!("{JWT}/%7B{ID}%7D"),
        format!("{JWT}/%30{}", &ID[1..]),
        format!("{JWT}/%2530{}", &ID[1..]),
        format!("{JWT}/%252530{}", &ID[1..]),
        format!("{JWT}/not-a-uuid"),
        format!("{JWT}/%C0%AF%zz"),
        format!("/api/v1/auth/jwt%2Dauth/identities/{ID}"),
        format!("/%61pi/v1/auth/jwt-auth/identities/{ID}"),
        format!("/API/v1/auth/jwt-auth/identities/{ID}"),
        format!("//api//v1/auth/jwt-auth/identities/{ID}"),
        format!("/api/./v1/x/../auth/jwt-auth/identities/{ID}"),
        format!("/api/%2e%2e/../api/v1/auth/jwt-auth/identities/{ID}"),
        format!("/api%2Fv1%5Cauth/jwt-auth/identities/{ID}"),
        format!("http://any.host{JWT}/{ID}"),
        format!("https://any.host{JWT}/{ID}"),
        format!("http://h?x{JWT}/{ID}"),
        format!("http://h?x{JWT}/{ID}?y/z"),
        format!("http://h/?x{JWT}/{upper}/"),
    ] {
        check("PATCH", &target, "refused");
    }
    for method in ["patch", "Patch"] {
        check(method, &format!("{JWT}/{ID}"), "refused");
    }
}

#[test]
fn the_refusal_shows_the_canonical_spelling_where_the_id_can_be_recognised() {
    for alias in [
        ID.to_uppercase(),
        ID.replace('-', ""),
        format!("%7B{ID}%7D"),
        format!("%20{ID}"),
        "0b9c-3a52-7d3f-4f7e-9a43-0c8f-3f1d-2e4a".into(),
    ] {
        let detail = found("PATCH", &format!("{JWT}/{alias}"), Version::HTTP_11);
        assert!(detail.ends_with(&format!(": PATCH {JWT}/{ID}")), "{detail}");
    }
    let detail = found("PATCH", &format!("{JWT}/%22secret"), Version::HTTP_11);
    assert!(detail.ends_with("PATCH /api/v1/auth/jwt-auth/identities/{identityId}"), "{detail}");
}

#[test]
fn a_watched_route_is_canonical_up_to_its_query() {
    let secret = format!("/api/v1/auth/universal-auth/identities/{ID}/client-secrets/Ab_9-z/revoke");
    for (method, target, expected) in [
        ("DELETE", format!("/api/v1/identities/{ID}"), "watched"),
        ("DELETE", format!("/api/v1/identities/{ID}?projectId=1"), "watched"),
        ("DELETE", format!("/api/v1/identities/{ID}/?projectId=1"), "refused"),
        ("DELETE", format!("/api/v1/identities/{}", ID.to_uppercase()), "refused"),
        ("delete", format!("/api/v1/identities/{ID}"), "refused"),
        ("POST", "/api/v1/identities".into(), "watched"),
        ("POST", "/api/v1/identities/".into(), "refused"),
        ("POST", secret.clone(), "watched"),
        ("POST", secret.replace("Ab_9", "Ab%5F9"), "refused"),
    ] {
        check(method, &target, expected);
    }
}

/// A router that does not flatten takes each of these for a project.
#[test]
fn a_parameter_that_flattening_would_lose_is_refused() {
    check("DELETE", &format!("/api/v1/projects/p1/identities/{ID}"), "watched");
    for project in ["", ".", "%2E", "..", "%2F", "a%2Fb", "a%252Fb", "%5C", "a%3Bb", "a;b", "%3F", "%23"] {
        for tail in ["", "/", ";x", "?x"] {
            check("DELETE", &format!("/api/v1/projects/{project}/identities/{ID}{tail}"), "refused");
        }
    }
}

#[test]
fn what_cannot_reach_such_a_route_passes() {
    for (method, target) in [
        ("GET", format!("{JWT}/{ID}")),
        ("HEAD", format!("{JWT}/{}", ID.to_uppercase())),
        ("OPTIONS", format!("{JWT}/{ID}?x")),
        ("PUT", format!("{JWT}/{ID}")),
        ("PATCH", format!("{JWT}/{ID}/more")),
        ("PATCH", JWT.to_owned()),
        ("POST", "/api/v1/auth/jwt-auth/login".into()),
        ("POST", "/api/v1/auth/jwt-auth/login/".into()),
        ("POST", "/api/v3/secrets/raw/A".into()),
        ("POST", "http://any.host/api/v3/secrets".into()),
        ("POST", "http://any.host?x/api/v3/secrets".into()),
        ("PATCH", format!("/x?y={JWT}/{ID}")),
    ] {
        check(method, &target, "passes");
    }
}

#[test]
fn an_authority_is_part_of_http_2() {
    let target = format!("https://gateway.example{JWT}/{ID}");
    assert_eq!(found("PATCH", &target, Version::HTTP_2), "governed");
    assert_eq!(found("PATCH", &format!("{target}?x"), Version::HTTP_2).split(' ').next(), Some("This"));
}

proptest! {
    /// However a path is disguised, it never passes; and it is governed only when it was not disguised at all.
    #[test]
    fn a_disguise_never_passes(
        encode in proptest::collection::vec((0usize..80, 1usize..4, any::<bool>()), 0..6),
        slashes in 0usize..2,
        tail in prop_oneof![Just(""), Just("/"), Just(";x"), Just("?q"), Just("%23f"), Just("/."), Just("/x/..")],
    ) {
        let canonical = format!("{JWT}/{ID}");
        let mut pieces: Vec<String> = canonical.chars().map(String::from).collect();
        for (at, rounds, lower) in encode {
            if let Some(piece) = pieces.get_mut(at).filter(|piece| piece.len() == 1 && at > 0) {
                let byte = piece.as_bytes()[0];
                let hex = if lower { format!("{byte:02x}") } else { format!("{byte:02X}") };
                *piece = format!("%{}{hex}", "25".repeat(rounds - 1));
            }
        }
        let target = format!("{}{}{tail}", "/".repeat(slashes), pieces.concat());
        let found = found("PATCH", &target, Version::HTTP_11);
        if target == canonical {
            prop_assert_eq!(found, "governed");
        } else {
            prop_assert!(found.starts_with("This route"), "{}: {}", target, found);
        }
    }
}
