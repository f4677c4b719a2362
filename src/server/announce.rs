//! Prints messages once the server listens: its addresses, new tokens, failed host checks, and a first request to try.

use super::Settings;
use crate::access::TokenSource;
use crate::api::Ctx;
use crate::base::logging::BOOT;
use crate::doctor::CheckStatus;
use crate::gate::{self, Listeners};

/// Prints the messages of the start. Tokens that this start generated are included only with `tokens`.
pub(super) fn announce(ctx: &Ctx, settings: &Settings, doors: &Listeners, tokens: bool) {
    for address in doors.addresses() {
        log::info!(target: BOOT, "OpenWork server listening on {address}");
    }
    let made = |source: TokenSource| tokens && ctx.credentials.fresh && source == TokenSource::Generated;
    // Tokens are printed directly to the terminal, because the log never contains secrets.
    if made(ctx.credentials.client_source) {
        eprintln!("Client token: {}", ctx.credentials.client_token());
    }
    if made(ctx.credentials.host_source) {
        eprintln!("Host token: {}", ctx.credentials.host_token());
    }
    match settings.workspaces.len() {
        0 => log::info!(
            target: BOOT,
            "No workspaces configured; commands on the host run in {}",
            settings.current_dir.display()
        ),
        count => log::info!(target: BOOT, "Workspaces: {count}"),
    }
    for check in ctx.doctor.at_start().iter().filter(|check| check.status != CheckStatus::Ok) {
        log::warn!("{}; {}", check.found, check.fix.as_deref().unwrap_or("see berth doctor"));
    }
    let token = match ctx.credentials.host_source {
        TokenSource::Generated => {
            let program = std::env::current_exe().unwrap_or_else(|_| "berth".into());
            let (program, data_dir) = (program.display(), settings.data_dir.display());
            format!("$('{program}' token show --data-dir '{data_dir}' | sed -n 's/^Host token: //p')")
        }
        _ => "$OPENWORK_HOST_TOKEN".to_owned(),
    };
    let place = match doors.addresses().first() {
        Some(gate::ListenAddress::Unix(path)) => {
            format!("--unix-socket '{}' http://localhost", path.display())
        }
        Some(address) => address.to_string(),
        None => String::new(),
    };
    log::info!("Try: curl -H \"Authorization: Bearer {token}\" {place}/api/workspaces");
}
