//! `patchwarden keys`: the keys the log is signed with.
//!
//! `show` prints public keys as `verify --public-key` takes them. `rotate` gives the log a new key on the old one's word;
//! both sign until `retire`. A running gateway is asked through the socket in its data folder; only when none runs is the
//! store opened here, with its locks.

use http::Method;

use super::ask::ask;
use super::out::{complain, print};
use super::{UNABLE, WRONG};
use crate::app::{self, Failure};
use crate::audit::checkpoint::Verifier;
use crate::audit::query::Reader;
use crate::config::Config;

/// What `keys` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the public keys of every log in the store, newest last
    #[command(after_help = "Example: patchwarden keys show > log-keys")]
    Show,
    /// Give the log a new key, signed for by the old one; both sign from then on
    #[command(after_help = "Example: patchwarden keys rotate")]
    Rotate,
    /// Stop signing by the key before
    #[command(after_help = "Example: patchwarden keys retire")]
    Retire,
}

pub(super) async fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    if config.store.is_missing() {
        return Err(unable(format!("{} does not exist; has a gateway run with this store?", config.store)));
    }
    match args.command {
        Command::Show => show(config).await,
        Command::Rotate => rotate(config).await,
        Command::Retire => retire(config).await,
    }
}

async fn show(config: &Config) -> Result<u8, Failure> {
    let reader = Reader::open(&config.store).await.map_err(unable)?;
    let keys = reader.keys().await.map_err(unable)?;
    let line = |key: &crate::store::LogKey| {
        Verifier::of_stored(&key.origin, &key.public).map(|verifier| format!("{verifier}\n"))
    };
    print(&keys.iter().filter_map(line).collect::<String>())?;
    Ok(0)
}

async fn rotate(config: &Config) -> Result<u8, Failure> {
    let answer = ask(&config.data, Method::POST, "/v1/log/keys", None).await?;
    let (old, new) = match answer {
        Some(keys) => {
            let text = |name: &str| keys[name].as_str().unwrap_or_default().to_owned();
            (text("old"), text("new"))
        }
        None => {
            let audit = app::offline(config).await?;
            let rotated = audit.rotate_key().await;
            audit.stop().await;
            let (old, new) = rotated.map_err(|why| unable(format!("the key was not changed: {why}")))?;
            (old.to_string(), new.to_string())
        }
    };
    print(&format!("{new}\n"))?;
    complain(&format!(
        "hand this key on to whoever checks; {old} signs too until `patchwarden keys retire`. Keep log.key and log.key.previous of the data folder where its keys are kept"
    ));
    Ok(0)
}

async fn retire(config: &Config) -> Result<u8, Failure> {
    let nothing = || Failure { code: WRONG, message: "no key of before signs".to_owned() };
    if ask(&config.data, Method::DELETE, "/v1/log/keys/previous", None).await?.is_none() {
        let audit = app::offline(config).await?;
        let retired = audit.retire_key().await;
        audit.stop().await;
        if !retired.map_err(unable)? {
            return Err(nothing());
        }
    }
    complain("the key before signs no more; what it has signed stays valid");
    Ok(0)
}

fn unable(message: impl Into<String>) -> Failure {
    Failure { code: UNABLE, message: message.into() }
}
