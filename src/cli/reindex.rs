//! `patchwarden reindex`: makes what the history is listed from anew, out of the log.
//!
//! The log itself is not touched, so nothing can be lost. Nobody may write the store meanwhile.

use super::out::complain;
use super::{UNABLE, store_failed};
use crate::app::Failure;
use crate::audit::copy;
use crate::config::Config;

pub(super) async fn run(config: &Config) -> Result<u8, Failure> {
    if config.store.is_missing() {
        let message = format!("{} does not exist; has a gateway run with this store?", config.store);
        return Err(Failure { code: UNABLE, message });
    }
    copy::reindex(&config.store).await.map_err(|error| store_failed(config, &error.to_string()))?;
    complain("the history is listed anew from the log; `patchwarden verify --projection` compares the two");
    Ok(0)
}
