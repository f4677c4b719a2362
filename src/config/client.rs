//! Decides which server `berth approvals` and `berth status` speak to, and with which token.

use std::path::Path;

use super::file::JsonValue;
use super::line::CommandLine;
use super::setting::Setting;
use super::sources::{Lookup, Sources};
use super::table;
use crate::access::credentials;
use crate::base::Result;
use crate::store::lock;

/// The server to call, and the credentials for it. Not `Debug`, because it contains a token.
pub struct ClientPlan {
    /// The URL of the server without a final slash, or `unix:` and the path of its socket.
    pub url: String,
    /// The host token; `None` if it is not known.
    pub host_token: Option<String>,
    /// The URL of an OpenCode to check as well.
    pub opencode_url: Option<String>,
    /// The user and password of that OpenCode.
    pub opencode_credential: Option<(String, String)>,
}

/// Reads flags, then the environment, then the configuration file and the data folder of a server on this machine.
///
/// # Errors
/// `Config` with the flag, variable or position in the file that is wrong.
pub fn resolve_client(line: &CommandLine, env: Lookup<'_>, current_dir: &Path) -> Result<ClientPlan> {
    let sources = Sources::open(line, env, current_dir)?;
    let url = |setting: &Setting| Ok(sources.text(setting)?.map(|url| url.trim_end_matches('/').to_owned()));
    let server = match url(&table::OPENWORK_URL)? {
        Some(url) => url,
        None => {
            // The server that uses the data folder has recorded its address there.
            let default = || {
                let port = match sources.file.json.values.get(table::PORT.key) {
                    Some(JsonValue::Text(port)) => port.clone(),
                    _ => table::PORT.default_text(),
                };
                format!("http://127.0.0.1:{port}")
            };
            lock::server_url(&sources.data_dir()?).unwrap_or_else(default)
        }
    };
    let host_token = match sources.secret(&table::CLIENT_TOKEN)?.0.secret {
        Some(token) => Some(token),
        // The folder may belong to another user. That is no error, because `status` reports much without a token.
        None => credentials::stored_tokens(&sources.data_dir()?).ok().and_then(|kept| kept.1),
    };
    let username = sources.text(&table::STATUS_USERNAME)?.unwrap_or_default();
    let password = sources.text(&table::STATUS_PASSWORD)?;
    Ok(ClientPlan {
        url: server,
        host_token,
        opencode_url: url(&table::OPENCODE_URL)?,
        opencode_credential: password.map(|password| (username, password)),
    })
}

#[cfg(test)]
mod tests {
    use super::super::line::FlagValues;
    use super::*;

    fn resolved(flags: FlagValues, env: &[(&str, &str)]) -> Result<ClientPlan> {
        let args = FlagValues { data_dir: Some("/nowhere".into()), ..flags }.into();
        let env = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        resolve_client(&args, &env, Path::new("/"))
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_default() {
        let env = [("OPENWORK_URL", "http://a:1/"), ("OPENWORK_SERVER_URL", "http://b:2")];
        let flag = FlagValues { openwork_url: Some("http://c:3".into()), ..FlagValues::default() };
        assert_eq!(resolved(flag, &env).unwrap().url, "http://c:3");
        assert_eq!(resolved(FlagValues::default(), &env).unwrap().url, "http://a:1");
        assert_eq!(resolved(FlagValues::default(), &env[1..]).unwrap().url, "http://b:2");
        let plan = resolved(FlagValues::default(), &[("OPENWORK_HOST_TOKEN", "t")]).unwrap();
        assert_eq!((plan.url.as_str(), plan.host_token.as_deref()), ("http://127.0.0.1:8787", Some("t")));
        for wrong in ["https://a", "a:1", "http://a b"] {
            let flag = FlagValues { openwork_url: Some(wrong.into()), ..FlagValues::default() };
            assert!(resolved(flag, &[]).err().unwrap().to_string().starts_with("--openwork-url"));
        }
    }
}
