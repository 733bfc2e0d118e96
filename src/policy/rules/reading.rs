//! Reading a rule from its file and from the settings laid over it.
//!
//! Comes in: two TOML tables. Goes out: the [`Rule`], or every [`RuleError`] at once. A key or parameter nobody knows
//! is an error that names the known ones; a value of the wrong shape is one that says what would do. In an overlay,
//! parameters stand beside `level` and `existing`, or in `params`.

use toml::{Table, Value};

use super::allowed_issuers::AllowedIssuers;
use super::allowed_jwks_hosts::AllowedJwksHosts;
use super::allowed_networks::AllowedNetworks;
use super::bound_patterns::BoundPatterns;
use super::caller_allowed::CallerAllowed;
use super::configuration_type::ConfigurationType;
use super::frozen_fields::FrozenFields;
use super::key_strength::KeyStrength;
use super::open_network::OpenNetwork;
use super::protected_target::ProtectedTarget;
use super::required_claims::RequiredClaims;
use super::token_lifetime::TokenLifetime;
use super::unbound_login::UnboundLogin;
use super::uses_limit::UsesLimit;
use super::{Check, Existing, Level, Rule, RuleError};

const FILE_KEYS: [&str; 10] =
    ["id", "title", "description", "help", "owner", "operations", "level", "existing", "builtin", "params"];
const OVERLAY_KEYS: [&str; 3] = ["level", "existing", "params"];
const BUILTINS: &str = "open-network, token-lifetime, unbound-login, silent-reset, insecure-jwks, allowed-networks, \
     uses-limit, required-claims, bound-patterns, allowed-issuers, allowed-jwks-hosts, require-ca-pin, key-strength, \
     configuration-type, frozen-fields, protected-target, caller-allowed";

/// The parameters of a built-in rule, each taken once; what is left over nobody knows.
pub(super) struct Params {
    /// With the path of each.
    given: Vec<(String, String, Value)>,
    known: Vec<&'static str>,
    errors: Vec<RuleError>,
}

impl Params {
    /// The last value given for `name`, read; all of them are checked.
    pub(super) fn take<T>(
        &mut self,
        name: &'static str,
        default: T,
        read: impl Fn(&Value) -> Result<T, String>,
    ) -> T {
        self.known.push(name);
        let mut taken = default;
        let given = std::mem::take(&mut self.given);
        for (key, given_name, value) in given {
            if given_name != name {
                self.given.push((key, given_name, value));
                continue;
            }
            match read(&value) {
                Ok(value) => taken = value,
                Err(message) => self.errors.push(RuleError { key, message }),
            }
        }
        taken
    }

    /// The same for one without which the rule means nothing.
    pub(super) fn need<T>(
        &mut self,
        name: &'static str,
        default: T,
        read: impl Fn(&Value) -> Result<T, String>,
    ) -> T {
        if !self.given.iter().any(|(_, given, _)| given == name) {
            let message = "is missing; without it the rule says nothing".to_owned();
            self.errors.push(RuleError { key: format!("params.{name}"), message });
        }
        self.take(name, default, read)
    }

    fn finish(self) -> Vec<RuleError> {
        let known = if self.known.is_empty() { "none".to_owned() } else { self.known.join(", ") };
        let unknown = |(key, _, _)| RuleError {
            key,
            message: format!("is not a parameter of this rule; known: {known}"),
        };
        self.errors.into_iter().chain(self.given.into_iter().map(unknown)).collect()
    }
}

/// A list of texts, at least one, each read; `what` says what one is.
pub(super) fn texts<T>(
    value: &Value,
    what: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, String> {
    let list = value.as_array().filter(|list| !list.is_empty());
    let list = list.ok_or_else(|| format!("must be a list with at least one entry, each {what}"))?;
    let one = |item: &Value| item.as_str().and_then(&read).ok_or_else(|| format!("{item} is not {what}"));
    let (read, wrong): (Vec<_>, Vec<_>) = list.iter().map(one).partition(Result::is_ok);
    if wrong.is_empty() {
        return Ok(read.into_iter().flatten().collect());
    }
    Err(wrong.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("; "))
}

impl Rule {
    /// Reads a rule file and what is laid over it. Everything wrong comes back at once, with the rule as far as it could be
    /// read, so that more can be found wrong with it.
    pub fn read(file: &Table, overlay: &Table) -> (Option<Self>, Vec<RuleError>) {
        let mut source = Source { file, overlay, errors: Vec::new() };
        source.refuse_unknown();
        let id = source.text("id", true);
        let title = source.text("title", true);
        let description = source.text("description", false);
        let help = source.text("help", false);
        let owner = source.text("owner", false);
        let operations = source.operations();
        let levels = [("deny", Level::Deny), ("warn", Level::Warn), ("off", Level::Off)];
        let level = source.choice("level", &levels, Level::Deny);
        let stances =
            [("stored", Existing::Stored), ("tolerate", Existing::Tolerate), ("deny", Existing::Deny)];
        let existing = source.choice("existing", &stances, Existing::Stored);
        let rule = source.check().map(|check| Self {
            id,
            title,
            description,
            help,
            owner,
            operations,
            level,
            existing,
            check,
        });
        (rule, source.errors)
    }
}

struct Source<'a> {
    file: &'a Table,
    overlay: &'a Table,
    errors: Vec<RuleError>,
}

impl Source<'_> {
    fn wrong(&mut self, key: &str, message: impl Into<String>) {
        self.errors.push(RuleError { key: key.to_owned(), message: message.into() });
    }

    fn refuse_unknown(&mut self) {
        for key in self.file.keys().filter(|key| !FILE_KEYS.contains(&key.as_str())) {
            let message = format!("is not known here; known: {}", FILE_KEYS.join(", "));
            self.errors.push(RuleError { key: key.clone(), message });
        }
    }

    fn text(&mut self, key: &str, is_required: bool) -> String {
        match self.file.get(key) {
            Some(Value::String(text)) if !text.trim().is_empty() || !is_required => return text.clone(),
            None if !is_required => {}
            None => self.wrong(key, "is missing"),
            Some(_) => self.wrong(key, "must be a text that says something"),
        }
        String::new()
    }

    fn operations(&mut self) -> Option<Vec<String>> {
        let value = self.file.get("operations")?;
        let names: Option<Vec<_>> = value
            .as_array()
            .and_then(|list| list.iter().map(|name| name.as_str().map(str::to_owned)).collect());
        if names.as_ref().is_none_or(Vec::is_empty) {
            self.wrong(
                "operations",
                "must be a list of operations, like [\"jwt-auth.update\"], or of overlay, create, remove",
            );
        }
        names
    }

    /// The overlay's word, else the file's, else the default.
    fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)], default: T) -> T {
        let given: Vec<_> =
            [self.file, self.overlay].iter().filter_map(|table| table.get(key)).cloned().collect();
        let mut chosen = default;
        for value in given {
            let found = value.as_str().and_then(|text| choices.iter().find(|(name, _)| *name == text));
            match found {
                Some((_, choice)) => chosen = *choice,
                None => {
                    let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
                    self.wrong(key, format!("must be one of: {}", names.join(", ")));
                }
            }
        }
        chosen
    }

    fn check(&mut self) -> Option<Check> {
        let mut params = Params { given: self.given(), known: Vec::new(), errors: Vec::new() };
        let builtin = self.text("builtin", true);
        let check = match builtin.as_str() {
            "open-network" => Check::OpenNetwork(OpenNetwork::read(&mut params)),
            "token-lifetime" => Check::TokenLifetime(TokenLifetime::read(&mut params)),
            "unbound-login" => Check::UnboundLogin(UnboundLogin::read(&mut params)),
            "silent-reset" => Check::SilentReset,
            "insecure-jwks" => Check::InsecureJwks,
            "allowed-networks" => Check::AllowedNetworks(AllowedNetworks::read(&mut params)),
            "uses-limit" => Check::UsesLimit(UsesLimit::read(&mut params)),
            "required-claims" => Check::RequiredClaims(RequiredClaims::read(&mut params)),
            "bound-patterns" => Check::BoundPatterns(BoundPatterns::read(&mut params)),
            "allowed-issuers" => Check::AllowedIssuers(AllowedIssuers::read(&mut params)),
            "allowed-jwks-hosts" => Check::AllowedJwksHosts(AllowedJwksHosts::read(&mut params)),
            "require-ca-pin" => Check::RequireCaPin,
            "key-strength" => Check::KeyStrength(KeyStrength::read(&mut params)),
            "configuration-type" => Check::ConfigurationType(ConfigurationType::read(&mut params)),
            "frozen-fields" => Check::FrozenFields(FrozenFields::read(&mut params)),
            "protected-target" => Check::ProtectedTarget(ProtectedTarget::read(&mut params)),
            "caller-allowed" => Check::CallerAllowed(CallerAllowed::read(&mut params)),
            "" => return None,
            _ => {
                self.wrong("builtin", format!("there is no such built-in rule; known: {BUILTINS}"));
                return None;
            }
        };
        self.errors.extend(params.finish());
        Some(check)
    }

    /// Every parameter with the path of its key, the file's before the overlay's.
    fn given(&mut self) -> Vec<(String, String, Value)> {
        let mut given = Vec::new();
        for table in [self.file, self.overlay] {
            match table.get("params") {
                Some(Value::Table(params)) => given.extend(
                    params
                        .iter()
                        .map(|(name, value)| (format!("params.{name}"), name.clone(), value.clone())),
                ),
                Some(_) => self.wrong("params", "must be a table"),
                None => {}
            }
        }
        let beside = self.overlay.iter().filter(|(name, _)| !OVERLAY_KEYS.contains(&name.as_str()));
        given.extend(beside.map(|(name, value)| (name.clone(), name.clone(), value.clone())));
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str, overlay: &str) -> Result<Rule, Vec<String>> {
        let (file, overlay): (Table, Table) = (file.parse().unwrap(), overlay.parse().unwrap());
        match Rule::read(&file, &overlay) {
            (Some(rule), errors) if errors.is_empty() => Ok(rule),
            (_, errors) => Err(errors.iter().map(|e| format!("{}: {}", e.key, e.message)).collect()),
        }
    }

    const FILE: &str = "id = \"token-lifetime\"\ntitle = \"t\"\nbuiltin = \"token-lifetime\"\n";

    #[test]
    fn everything_wrong_is_said_at_once() {
        let errors = read(
            "id = 1\nbuiltin = \"token-lifetime\"\nlevel = \"loud\"\ncolour = \"red\"\n[params]\nttl = 1\n",
            "access_token_ttl = { at_most = \"12\" }\naccess_token_max_ttl = { at_least = \"1s\" }\nexisting = \"no\"\n",
        );
        let errors = errors.unwrap_err();
        for part in [
            "colour: is not known here; known: id, title",
            "id: must be a text",
            "title: is missing",
            "level: must be one of: deny, warn, off",
            "existing: must be one of: stored, tolerate, deny",
            "params.ttl: is not a parameter of this rule; known: access_token_ttl, access_token_max_ttl",
            "access_token_ttl: `12` is not a duration",
            "access_token_max_ttl: `at_least` is not known; known is: at_most",
        ] {
            assert!(errors.iter().any(|error| error.starts_with(part)), "{part} in {errors:?}");
        }
        assert_eq!(errors.len(), 8, "{errors:?}");
    }

    #[test]
    fn an_overlay_wins_over_the_file() {
        let rule =
            read(FILE, "level = \"warn\"\nexisting = \"tolerate\"\naccess_token_ttl = { at_most = \"12h\" }")
                .unwrap();
        assert_eq!((rule.level(), rule.existing()), (Level::Warn, Existing::Tolerate));
        assert_eq!(rule.longest_lifetime(), Some(43_200));
        assert_eq!(read(FILE, "").unwrap().level(), Level::Deny);
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for bound in ["\"0s\"", "\"500ms\"", "\"1500ms\"", "\"4000d\"", "12"] {
            let overlay = format!("access_token_ttl = {{ at_most = {bound} }}");
            assert_eq!(read(FILE, &overlay).unwrap_err().len(), 1, "{bound}");
        }
        let network = "id = \"n\"\ntitle = \"t\"\nbuiltin = \"open-network\"\n";
        for share in ["-0.1", "1.1", "nan", "\"1/16\"", "2"] {
            assert_eq!(read(network, &format!("max_share = {share}")).unwrap_err().len(), 1, "{share}");
        }
        let login = "id = \"n\"\ntitle = \"t\"\nbuiltin = \"unbound-login\"\n";
        assert_eq!(read(login, "shared_issuers = [\"https://a.example\", \"b\"]").unwrap_err().len(), 1);
        assert_eq!(read(login, "shared_issuers = \"b\"").unwrap_err().len(), 1);
        let no_params = "id = \"n\"\ntitle = \"t\"\nbuiltin = \"silent-reset\"\n";
        assert_eq!(
            read(no_params, "x = 1").unwrap_err(),
            ["x: is not a parameter of this rule; known: none"]
        );
        assert_eq!(read("id = \"n\"\ntitle = \"t\"\nbuiltin = \"x\"\n", "").unwrap_err().len(), 1);
    }
}
