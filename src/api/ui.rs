//! `/ui`: a web page for the API, embedded from `assets/ui`. The page contains no secrets and needs no token; the
//! API requests that it makes need one.

use super::Ctx;
use crate::base::{Code, Error, Result};
use crate::http::{Answer, Request, Response};

const PAGE: &str = include_str!("../../assets/ui/index.html");
const STYLE: &str = include_str!("../../assets/ui/toy.css");
const SCRIPT: &str = include_str!("../../assets/ui/toy.js");

/// The Content-Security-Policy. It allows only the page's own files, and no forms, frames or base URLs, which
/// injected markup could add.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /ui`
pub fn page(ctx: &Ctx, _: &mut Request) -> Result<Answer> {
    html(ctx, "ui/assets")
}

/// `GET /w/:id/ui`
pub fn mounted_page(ctx: &Ctx, _: &mut Request) -> Result<Answer> {
    html(ctx, "../../ui/assets")
}

/// Returns the page. `assets` is relative to the page, so that a proxy may serve the page below a prefix.
fn html(ctx: &Ctx, assets: &str) -> Result<Answer> {
    file(ctx, "text/html; charset=utf-8", &PAGE.replace("{{assets}}", assets))
}

/// `GET /ui/assets/toy.css`
pub fn style(ctx: &Ctx, _: &mut Request) -> Result<Answer> {
    file(ctx, "text/css; charset=utf-8", STYLE)
}

/// `GET /ui/assets/toy.js`
pub fn script(ctx: &Ctx, _: &mut Request) -> Result<Answer> {
    file(ctx, "text/javascript; charset=utf-8", SCRIPT)
}

fn file(ctx: &Ctx, kind: &'static str, text: &str) -> Result<Answer> {
    if !ctx.advertised.toy_ui {
        return Err(Error::new(Code::UiDisabled, "The page is switched off (OPENWORK_TOY_UI)"));
    }
    let response = Response::empty(200)
        .with("Content-Type", kind)
        .with("Cache-Control", "no-store")
        .with("Content-Security-Policy", POLICY)
        .with("X-Content-Type-Options", "nosniff")
        .with("X-Frame-Options", "DENY")
        .with("Referrer-Policy", "no-referrer")
        .with("Cross-Origin-Opener-Policy", "same-origin");
    Ok(Answer::Now(response.with_body(text.as_bytes().to_vec())))
}
