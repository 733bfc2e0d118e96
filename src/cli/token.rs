//! `patchwarden token`: makes, lists and revokes admin tokens.
//!
//! A running gateway is asked through the socket in its data folder; what it makes or revokes counts at once. Only when
//! none runs is the store opened here, with its locks (the list needs none). A new token alone goes to standard output,
//! and is shown nowhere else. Revoking what is not there ends with 1.

use http::Method;
use serde_json::{Value, json};

use super::ask::ask;
use super::out::{complain, print};
use super::{UNABLE, WRONG};
use crate::access::{self, Role};
use crate::app::{self, Failure};
use crate::audit::Audit;
use crate::config::Config;
use crate::{store, view};

const COLUMNS: [&str; 4] = ["NAME", "ROLE", "CREATED", "REVOKED"];

/// What `token` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a token and print it, this once
    #[command(after_help = "Example: patchwarden token create --role reader --name auditor")]
    Create {
        /// reader reads, operator also changes
        #[arg(long, value_parser = Role::parse)]
        role: Role,
        /// What it is found by later; used once and never again
        #[arg(long, value_parser = name)]
        name: String,
    },
    /// List tokens, without what they open with
    #[command(after_help = "Example: patchwarden token list")]
    List {
        /// Times in UTC instead of local time
        #[arg(long)]
        utc: bool,
    },
    /// Close a token from now on
    #[command(after_help = "Example: patchwarden token revoke auditor")]
    Revoke {
        /// Its name
        #[arg(value_parser = name)]
        name: String,
    },
}

fn name(text: &str) -> Result<String, String> {
    access::check_name(text).map(|()| text.to_owned())
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    match &args.command {
        Command::Create { role, name } => {
            let secret = create(config, name, *role).await?;
            print(&format!("{secret}\n"))?;
            complain("keep it: it is shown only here");
        }
        Command::List { utc } => {
            let rows: Vec<_> = list(config).await?.iter().map(|token| row(token, *utc)).collect();
            print(&view::table(COLUMNS, &rows))?;
        }
        Command::Revoke { name } => {
            revoke(config, name).await?;
            complain(&format!("the token {name} opens nothing any more"));
        }
    }
    Ok(0)
}

async fn create(config: &Config, name: &str, role: Role) -> Result<String, Failure> {
    let body = json!({"name": name, "role": role});
    if let Some(answer) = ask(&config.data, Method::POST, "/v1/tokens", Some(&body)).await? {
        let secret = answer["token"].as_str().map(str::to_owned);
        return secret.ok_or_else(|| unable("the gateway's answer holds no token"));
    }
    let (secret, hash) = access::mint();
    let audit = offline(config).await?;
    let created = audit.create_token(name, role.as_str(), &hash).await;
    audit.stop().await;
    if created.map_err(unable)? {
        return Ok(secret);
    }
    Err(unable(format!("a token named {name} exists or existed; give another name")))
}

async fn list(config: &Config) -> Result<Vec<Value>, Failure> {
    let tokens = match ask(&config.data, Method::GET, "/v1/tokens", None).await? {
        Some(mut answer) => answer["tokens"].take(),
        None => {
            let reader =
                store::Reader::open(&config.store).await.map_err(|error| unable(error.to_string()))?;
            let rows = reader.tokens().await.map_err(|error| unable(error.to_string()))?;
            json!(access::listed(rows))
        }
    };
    match tokens {
        Value::Array(tokens) => Ok(tokens),
        _ => Err(unable("the gateway's answer holds no list of tokens")),
    }
}

async fn revoke(config: &Config, name: &str) -> Result<(), Failure> {
    if ask(&config.data, Method::DELETE, &format!("/v1/tokens/{name}"), None).await?.is_some() {
        return Ok(());
    }
    let audit = offline(config).await?;
    let revoked = audit.revoke_token(name).await;
    audit.stop().await;
    if revoked.map_err(unable)? {
        return Ok(());
    }
    Err(Failure { code: WRONG, message: format!("there is no token named {name} in use") })
}

async fn offline(config: &Config) -> Result<Audit, Failure> {
    app::offline(config).await
}

fn row(token: &Value, utc: bool) -> [String; 4] {
    let text = |name: &str| view::visible(token[name].as_str().unwrap_or("-")).into_owned();
    let revoked =
        if token["revoked_at"].is_null() { "-".to_owned() } else { view::moment(&token["revoked_at"], utc) };
    [text("name"), text("role"), view::moment(&token["created_at"], utc), revoked]
}

fn unable(message: impl Into<String>) -> Failure {
    Failure { code: UNABLE, message: message.into() }
}
