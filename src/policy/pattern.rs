//! Does a pattern of the upstream's login bind anyone?
//!
//! The upstream matches subject, audiences and claims with a glob library, and much that looks like a bound lets
//! everybody in. A pattern binds when it has no glob characters, or is written in
//! `literal * ** ? [set] {a,b}` only and keeps at least three literal characters whichever alternative is taken.
//! Everything else, from `!x` to extglobs and `|`, does not bind: it may be narrow, but nobody can tell by reading it.

use crate::operation::split_patterns;

/// What a pattern with glob characters must keep in every alternative.
pub(super) const MIN_LITERALS: usize = 3;
/// More alternatives than this are not followed; such a pattern does not bind.
const MAX_ALTERNATIVES: usize = 256;
const MAX_DEPTH: usize = 8;
/// A pattern with glob characters that is longer (in bytes) does not bind: what judging costs stays bounded.
const MAX_LENGTH: usize = 4096;

/// Characters that mean more than themselves somewhere in the upstream's matcher.
const GLOB: &str = "*?[]{}()|!\\\"";

/// Whether one pattern binds.
pub(super) fn binds(pattern: &str) -> bool {
    if !pattern.contains(|c| GLOB.contains(c)) {
        return !pattern.is_empty();
    }
    if pattern.len() > MAX_LENGTH {
        return false;
    }
    // The matcher takes every leading `./` away, and three stars in a row make it lose what follows them.
    if pattern.starts_with("./") || pattern.contains("***") {
        return false;
    }
    let chars: Vec<char> = pattern.chars().collect();
    let mut at = 0;
    let read = sequence(&chars, &mut at, 0).filter(|_| at == chars.len());
    read.is_some_and(|alternatives| {
        alternatives.iter().all(|alternative| literals(alternative) >= MIN_LITERALS)
    })
}

/// What every match of a pattern begins with: its plain text before the first glob character. Nothing where the matcher
/// would take something away first.
pub(super) fn plain_head(pattern: &str) -> &str {
    let (head, rest) = pattern.split_at(pattern.find(|c| GLOB.contains(c)).unwrap_or(pattern.len()));
    match rest.chars().next() {
        _ if pattern.starts_with("./") => "",
        // `+(…)` and `@(…)` are one thing.
        Some('(') => head.strip_suffix(['+', '@']).unwrap_or(head),
        _ => head,
    }
}

/// Whether a comma list binds: split as it is stored and, as the login does, at each `, `; every piece of both must.
pub(super) fn list_binds(list: &str) -> bool {
    let stored = split_patterns(list);
    !stored.is_empty() && stored.iter().all(|piece| binds(piece)) && list.split(", ").all(binds)
}

/// What is left of a pattern once an alternative is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Literal(char),
    Star,
    /// `?` or `[set]`: one character, nobody knows which.
    Any,
}

/// `/` beside a star or another `/` only joins segments: `**/**/**` holds no literal.
fn literals(tokens: &[Token]) -> usize {
    let joins = |at: Option<usize>| {
        matches!(at.and_then(|at| tokens.get(at)), Some(Token::Star | Token::Literal('/')))
    };
    let counts = |(at, token): (usize, &Token)| match token {
        Token::Literal('/') => !joins(at.checked_sub(1)) && !joins(Some(at + 1)),
        Token::Literal(_) => true,
        Token::Star | Token::Any => false,
    };
    tokens.iter().enumerate().filter(|&(at, token)| counts((at, token))).count()
}

/// Every alternative of the pattern from `at` to its end, or to the `,` or `}` of the brace it stands in.
fn sequence(chars: &[char], at: &mut usize, depth: usize) -> Option<Vec<Vec<Token>>> {
    let mut alternatives = vec![Vec::new()];
    while let Some(&c) = chars.get(*at) {
        let one = match c {
            ',' | '}' if depth > 0 => break,
            '{' => {
                let pieces = brace(chars, at, depth + 1)?;
                alternatives = combined(&alternatives, &pieces)?;
                continue;
            }
            '[' => set(chars, at)?,
            '}' | ']' | '(' | ')' | '|' | '!' | '\\' | '"' => return None,
            // After a group the matcher reads `+` as a repetition.
            '+' if *at > 0 && matches!(chars[*at - 1], ']' | '}') => return None,
            '.' if depth > 0 && chars.get(*at + 1) == Some(&'.') => return None,
            _ => {
                *at += 1;
                token(c)
            }
        };
        alternatives.iter_mut().for_each(|alternative| alternative.push(one));
    }
    Some(alternatives)
}

fn combined(heads: &[Vec<Token>], tails: &[Vec<Token>]) -> Option<Vec<Vec<Token>>> {
    let join =
        |head: &Vec<Token>| tails.iter().map(|tail| [head.as_slice(), tail].concat()).collect::<Vec<_>>();
    (heads.len() * tails.len() <= MAX_ALTERNATIVES).then(|| heads.iter().flat_map(join).collect())
}

/// `{a,b}` at `at`: two alternatives or more, closed.
fn brace(chars: &[char], at: &mut usize, depth: usize) -> Option<Vec<Vec<Token>>> {
    if depth > MAX_DEPTH {
        return None;
    }
    let (mut alternatives, mut members) = (Vec::new(), 0);
    loop {
        *at += 1;
        alternatives.extend(sequence(chars, at, depth)?);
        members += 1;
        match chars.get(*at)? {
            ',' => {}
            _ => break,
        }
    }
    *at += 1;
    (members > 1).then_some(alternatives)
}

/// `[set]` at `at`: closed, not empty, nothing nested, nothing negated with `!`.
fn set(chars: &[char], at: &mut usize) -> Option<Token> {
    let length = chars[*at + 1..].iter().position(|c| *c == ']')?;
    let inside = &chars[*at + 1..][..length];
    *at += length + 2;
    let plain = !inside.is_empty() && !inside.iter().any(|c| matches!(c, '[' | '!' | '\\' | '(' | ')' | '"'));
    plain.then_some(Token::Any)
}

fn token(c: char) -> Token {
    match c {
        '*' => Token::Star,
        '?' => Token::Any,
        other => Token::Literal(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(pattern: &str, expected: bool) {
        assert_eq!(binds(pattern), expected, "{pattern}");
    }

    #[test]
    fn patterns_that_match_everything_do_not_bind() {
        for pattern in ["!x", "!", "{*,**}", "!(x)/**", "+(*)/**", "**", "**/*", "*"] {
            check(pattern, false);
            assert!(!list_binds(pattern), "{pattern}");
        }
    }

    #[test]
    fn plain_text_binds_however_short() {
        for pattern in ["a", "repo:org/app:ref:refs/heads/main", "me+ci@example.com", "{a,b"] {
            check(pattern, !pattern.contains('{'));
        }
        check("", false);
    }

    #[test]
    fn globs_bind_by_what_they_keep_literally() {
        for (pattern, expected) in [
            ("repo:org/*", true),
            ("abc*", true),
            ("ab*", false),
            ("a?b?", false),
            ("a?b?c", true),
            ("[abc][def][ghi]", false),
            ("org-[ab]", true),
            ("repo:{a,b}/*", true),
            ("{abc,defg}", true),
            ("{abc,**}", false),
            ("{abc,de}", false),
            ("x{abc,de}", true),
            ("{abc,{de,fgh}}", false),
            ("{abc,{xde,fgh}}", true),
            ("{abc,}", false),
            ("**/**/**/**", false),
            ("*/*/*/*", false),
            ("a/b*", true),
            ("./a*", false),
            ("./abc*", false),
            ("./././**", false),
            ("***abc./**", false),
            ("***abc.*", false),
            ("x/./././y*", true),
        ] {
            check(pattern, expected);
        }
    }

    #[test]
    fn what_is_not_plainly_readable_does_not_bind() {
        for pattern in [
            "abc\\*",
            "abc|*",
            "(abc|*)",
            "@(abc)",
            "?(abc)",
            "abc!",
            "abc{",
            "abc}",
            "abc[",
            "abc]",
            "abc[]",
            "[[:alpha:]]abc",
            "abc[!x]",
            "{abc}",
            "abc{1..9}",
            "{abc..xyz,def}",
            "[a-z]+abc",
            "\"**\"abc",
            "{{abc,def}",
        ] {
            check(pattern, false);
        }
        check(&"{abc,def}".repeat(9), false);
        check(&"a*".repeat(3000), false);
        check(&format!("{}abc{}", "{".repeat(20), ",xyz}".repeat(20)), false);
    }

    #[test]
    fn a_list_is_split_both_ways() {
        for (list, expected) in [
            ("", false),
            ("a, b", true),
            ("abc*, **", false),
            ("{a, **, b}", false),
            ("{abc, defg}", false),
            ("{abc,defg}", true),
            ("{abc,defg}, hij", true),
        ] {
            assert_eq!(list_binds(list), expected, "{list}");
        }
    }

    proptest! {
        /// Whatever is sent is judged, and a list that binds has no piece that does not.
        #[test]
        fn a_list_binds_only_with_all_its_pieces(list in "[ab,*?{}\\[\\]!\\\\ ./+]{0,24}") {
            let pieces = split_patterns(&list);
            prop_assert!(!list_binds(&list) || pieces.iter().all(|piece| binds(piece)));
        }

        #[test]
        fn only_stars_and_slashes_never_bind(pattern in "[*/]*\\*[*/]*") {
            prop_assert!(!binds(&pattern));
        }
    }
}
