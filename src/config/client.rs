//! Decides which server `berth approvals` and `berth status` speak to, and with which token.

use std::path::Path;

use super::args::ClientArgs;
use super::sources::{Lookup, Sources};
use crate::access::credentials;
use crate::base::{Error, Result};

/// What was decided. Not `Debug`: the token is in it.
pub struct ClientPlan {
    /// The server, without a slash at its end.
    pub url: String,
    /// The host token, if one is known.
    pub host_token: Option<String>,
    /// An OpenCode to look at as well.
    pub opencode_url: Option<String>,
    /// Its user and password.
    pub opencode_credential: Option<(String, String)>,
}

/// Flags, then the environment, then the configuration file and what a server on this machine keeps.
///
/// # Errors
/// `Config` with the flag, the variable or the place in the file that is wrong.
pub fn resolve_client(args: &ClientArgs, env: Lookup<'_>, current_dir: &Path) -> Result<ClientPlan> {
    let sources = Sources::open(args.config.as_deref(), env, current_dir)?;
    let flag = args.openwork_url.clone().map(|url| ("--openwork-url", url));
    let from_env = |name: &'static str| sources.var(name).map(|url| url.map(|url| (name, url)));
    let url = match flag {
        Some(given) => Some(given),
        None => {
            from_env("OPENWORK_URL")?.map_or_else(|| from_env("OPENWORK_SERVER_URL"), |url| Ok(Some(url)))?
        }
    };
    let url = match url {
        Some((place, url)) => checked(place, &url)?,
        None => {
            let port = sources.file.json.port.unwrap_or(8787);
            format!("http://127.0.0.1:{port}")
        }
    };
    let json = sources.file.json.host_token.clone();
    let given = sources.token(
        "--host-token",
        args.host_token.as_deref(),
        "OPENWORK_HOST_TOKEN",
        "hostToken",
        &json,
    )?;
    let host_token = match given.0.secret {
        Some(token) => Some(token),
        // Another user's folder is no reason to fail: `status` says much without a token.
        None => credentials::stored_tokens(&sources.data_dir(args.data_dir.as_deref())?)
            .ok()
            .and_then(|kept| kept.1),
    };
    let opencode_url = match &args.opencode_url {
        Some(url) => Some(("--opencode-url", url.clone())),
        None => from_env("OPENCODE_URL")?,
    };
    let opencode_url = opencode_url.map(|(place, url)| checked(place, &url)).transpose()?;
    let or_env =
        |flag: &Option<String>, name| flag.clone().map_or_else(|| sources.var(name), |flag| Ok(Some(flag)));
    let username = or_env(&args.opencode_username, "OPENCODE_SERVER_USERNAME")?;
    let password = or_env(&args.opencode_password, "OPENCODE_SERVER_PASSWORD")?;
    let opencode_credential =
        password.map(|password| (username.unwrap_or_else(|| "opencode".into()), password));
    Ok(ClientPlan { url, host_token, opencode_url, opencode_credential })
}

fn checked(place: &str, url: &str) -> Result<String> {
    if url.starts_with("https://") {
        return Err(Error::config(place, "berth speaks no TLS; name the server by http on its own machine"));
    }
    if !url.starts_with("http://") || url.contains(char::is_whitespace) {
        return Err(Error::config(place, format!("{url:?} is not a URL like http://127.0.0.1:8787")));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(args: ClientArgs, env: &[(&str, &str)]) -> Result<ClientPlan> {
        let args = ClientArgs { data_dir: Some("/nowhere".into()), ..args };
        let env = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        resolve_client(&args, &env, Path::new("/"))
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_default() {
        let env = [("OPENWORK_URL", "http://a:1/"), ("OPENWORK_SERVER_URL", "http://b:2")];
        let flag = ClientArgs { openwork_url: Some("http://c:3".into()), ..ClientArgs::default() };
        assert_eq!(resolved(flag, &env).unwrap().url, "http://c:3");
        assert_eq!(resolved(ClientArgs::default(), &env).unwrap().url, "http://a:1");
        assert_eq!(resolved(ClientArgs::default(), &env[1..]).unwrap().url, "http://b:2");
        let plan = resolved(ClientArgs::default(), &[("OPENWORK_HOST_TOKEN", "t")]).unwrap();
        assert_eq!((plan.url.as_str(), plan.host_token.as_deref()), ("http://127.0.0.1:8787", Some("t")));
        for wrong in ["https://a", "a:1", "http://a b"] {
            let flag = ClientArgs { openwork_url: Some(wrong.into()), ..ClientArgs::default() };
            assert!(resolved(flag, &[]).err().unwrap().to_string().starts_with("--openwork-url"));
        }
    }
}
