//! `berth token show` prints the tokens that berth generated, for the user at the terminal. `berth token make` first
//! generates missing tokens, for a server that other machines will reach.

use std::process::ExitCode;

use crate::access::{TokenSetting, credentials};
use crate::base::{Error, Result};
use crate::config;
use crate::store::format;

/// Runs `berth token show` or `berth token make`.
///
/// # Errors
/// Fails for an invalid command line or setting, if the token file cannot be read, or if no tokens were generated yet.
pub fn run(args: &[String]) -> Result<ExitCode> {
    let (rest, make) = match args.first().map(String::as_str) {
        Some("show") => (&args[1..], false),
        Some("make") => (&args[1..], true),
        Some("-h" | "--help" | "help") => return Ok(super::help("token")),
        _ => {
            return Err(Error::config(
                "token",
                "say `berth token show` or `berth token make`, with --data-dir or --config if needed",
            ));
        }
    };
    let args = match super::line("token", rest)? {
        Ok(args) => args,
        Err(code) => return Ok(code),
    };
    let current_dir = std::env::current_dir().map_err(|error| Error::config("current folder", error))?;
    let plan = config::resolve_tokens(&args, &config::process_env, &current_dir)?;
    if make {
        format::prepare(&plan.data_dir)?;
        credentials::load_or_generate(&plan.data_dir, &plan.client.0, &plan.host.0)?;
    }
    let (client, host) = credentials::stored_tokens(&plan.data_dir)?;
    let lines = [line("Client token", &plan.client, client), line("Host token", &plan.host, host)];
    super::print(&lines.iter().flatten().fold(String::new(), |text, line| text + line + "\n"));
    if lines.iter().any(Option::is_none) {
        let folder = plan.data_dir.display();
        return Err(Error::internal(format!(
            "No tokens are kept in {folder} yet: berth makes them at its first start, or --data-dir names another folder"
        )));
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the line for a token; `None` if there is no token.
fn line(name: &str, configured: &(TokenSetting, Option<String>), kept: Option<String>) -> Option<String> {
    match configured {
        // The user who set this token has it; printing it would only expose it.
        (TokenSetting { secret: Some(_), .. }, place) => Some(format!(
            "{name}: set by {}, not a kept one",
            place.as_deref().unwrap_or("the configuration")
        )),
        _ => kept.map(|token| format!("{name}: {token}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::TokenSource;

    #[test]
    fn configured_tokens_are_not_printed() {
        let set = TokenSetting { secret: Some("s3cret".into()), source: TokenSource::Env };
        let unset = TokenSetting { secret: None, source: TokenSource::Generated };
        let shown = line("Client token", &(set, Some("OPENWORK_TOKEN".into())), Some("kept".into()));
        assert_eq!(shown.as_deref(), Some("Client token: set by OPENWORK_TOKEN, not a kept one"));
        assert_eq!(line("T", &(unset.clone(), None), Some("kept".into())).as_deref(), Some("T: kept"));
        assert_eq!(line("T", &(unset, None), None), None);
    }
}
