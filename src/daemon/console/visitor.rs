//! Who looks at a page: from where, by which session, in which language; and what is refused before a page is asked.

use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};

use super::Console;
use super::listener::Peer;
use super::words::Language;
use crate::daemon::accounts::Session;
use crate::daemon::accounts::key::is_same_text;
use crate::daemon::config::OpenMetrics;

/// Who looks at a page.
pub struct Visitor {
    /// From where.
    pub peer: Peer,
    /// His session, where he has signed in.
    pub session: Option<Session>,
    /// His language.
    pub language: Language,
}

/// One who has signed in.
pub struct Member {
    /// His session.
    pub session: Session,
    /// His language.
    pub language: Language,
}

impl FromRequestParts<Console> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, console: &Console) -> Result<Self, Response> {
        let ConnectInfo(peer) = ConnectInfo::<Peer>::from_request_parts(parts, console)
            .await
            .map_err(IntoResponse::into_response)?;
        let key = cookie(&parts.headers, session_cookie(console.is_tls));
        let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
        let is_visit = !query.contains("part=") && !path.starts_with("/api/") && !OPEN.contains(&path);
        let session = key.and_then(|key| console.accounts.session(key, is_visit));
        Ok(Self { peer, session, language: language_of(&parts.headers, query) })
    }
}

impl FromRequestParts<Console> for Member {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, console: &Console) -> Result<Self, Response> {
        let Visitor { session, language, .. } = Visitor::from_request_parts(parts, console).await?;
        if let Some(session) = session {
            return Ok(Self { session, language });
        }
        let query = parts.uri.query().unwrap_or_default();
        // What the script asks for is a part of a page that is there already.
        if query.contains("part=") || parts.method != Method::GET {
            return Err((StatusCode::UNAUTHORIZED, "the session is over").into_response());
        }
        let next = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let next: String = form_urlencoded::byte_serialize(next.as_bytes()).collect();
        Err(Redirect::to(&format!("/login?next={next}")).into_response())
    }
}

/// Refuses what other sites send in somebody's name, and what is not protected where it has to be.
pub async fn guard(State(console): State<Console>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| *peer);
    let Some(peer) = peer else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let is_open = OPEN.contains(&request.uri().path()) && console.may_read_openly(peer);
    if console.is_tls && !peer.is_tls && !is_open {
        return to_tls(&request);
    }
    if !request.method().is_safe() && is_foreign(request.headers()) {
        return (StatusCode::FORBIDDEN, "this was sent by another site").into_response();
    }
    answer(request, next).await
}

/// Has a request answered that was let in; the language that it chooses is kept.
pub async fn answer(request: Request, next: Next) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let chosen =
        ["fr", "en"].into_iter().find(|code| query.split('&').any(|part| part == format!("lang={code}")));
    let mut response = super::protected(next.run(request).await);
    if let Some(code) = chosen {
        // It is plain text.
        language_cookie(code)
            .parse()
            .map(|cookie| response.headers_mut().append(header::SET_COOKIE, cookie))
            .ok();
    }
    response
}

/// A cookie that keeps a language for a year.
pub fn language_cookie(code: &str) -> String {
    format!("{LANGUAGE_COOKIE}={code}; Path=/; Max-Age=31536000; SameSite=Lax")
}

/// The language that somebody wants: the one that he asks for now, has chosen, or has set in his browser.
#[must_use]
pub fn language_of(headers: &HeaderMap, query: &str) -> Language {
    let accepted = headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
    let asked = Fields::parse(query.as_bytes());
    let named = asked.all("lang").next().or_else(|| cookie(headers, LANGUAGE_COOKIE));
    Language::of(named, accepted.unwrap_or(""))
}

impl Console {
    /// Whether somebody may read figures without signing in.
    pub fn may_read_openly(&self, peer: Peer) -> bool {
        match self.open_metrics {
            OpenMetrics::Everyone => true,
            OpenMetrics::Local => peer.address.ip().to_canonical().is_loopback(),
            OpenMetrics::Nobody => false,
        }
    }
}

/// What may be read without signing in, where that is allowed.
const OPEN: [&str; 2] = ["/metrics", "/health"];

fn to_tls(request: &Request) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let is_host =
        |host: &&str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".:-[]".contains(&byte));
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    match host.filter(is_host) {
        Some(host) if request.method().is_safe() => {
            Redirect::permanent(&format!("https://{host}{path}")).into_response()
        }
        _ => (StatusCode::FORBIDDEN, "use https").into_response(),
    }
}

/// Whether a browser says that another site sends this (Fetch Metadata; RFC 6454 section 7).
#[must_use]
pub fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match (text("sec-fetch-site"), text("origin"), text("host")) {
        (Some(site), ..) => !["same-origin", "none"].contains(&site),
        (None, Some(origin), Some(host)) => {
            origin.split_once("://").is_none_or(|(_, from)| !from.eq_ignore_ascii_case(host))
        }
        (None, Some(_), None) => true,
        (None, None, _) => false,
    }
}

/// The fields of a form or a query, and a form's proof that it is one of this session's own.
#[derive(Clone, Debug, Default)]
pub struct Fields(Vec<(String, String)>);

impl Fields {
    /// Those of a body or a query.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        Self(form_urlencoded::parse(text).into_owned().collect())
    }

    /// A field; empty when there is none.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.all(name).next().unwrap_or_default()
    }

    /// All fields of a name.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// Whether they were sent by a form of this session.
    pub fn is_of(&self, session: &Session) -> bool {
        is_same_text(self.get(FORM_KEY), &session.form_key)
    }

    /// Those that are part of a request.
    pub fn request(&self) -> impl Iterator<Item = (&str, &str)> {
        let fields = self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        fields.filter(|(name, _)| ![FORM_KEY, "back", "confirm"].contains(name))
    }
}

/// The field that every form has.
pub const FORM_KEY: &str = "form_key";
/// The cookie with the language that was chosen.
const LANGUAGE_COOKIE: &str = "gemel-lang";

/// The session's cookie: with TLS one that no other host can set (RFC 6265bis section 4.1.3.2).
pub fn session_cookie(is_tls: bool) -> &'static str {
    if is_tls { "__Host-gemel" } else { "gemel-session" }
}

/// A cookie that a browser has sent.
#[must_use]
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let texts = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = texts.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(cookie, _)| *cookie == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        pairs.iter().for_each(|(name, value)| {
            headers.append(*name, value.parse().unwrap());
        });
        headers
    }

    #[test]
    fn what_another_site_sends_is_foreign() {
        let host = ("host", "node-a:3262");
        for own in [
            &[host][..],
            &[host, ("origin", "https://node-a:3262")],
            &[host, ("sec-fetch-site", "same-origin"), ("origin", "null")],
        ] {
            assert!(!is_foreign(&headers(own)), "{own:?}");
        }
        for foreign in [
            &[host, ("origin", "https://evil.example")][..],
            &[host, ("origin", "null")],
            &[host, ("origin", "https://node-a:9")],
            &[host, ("sec-fetch-site", "cross-site")],
            &[host, ("sec-fetch-site", "same-site"), ("origin", "https://node-a:3262")],
        ] {
            assert!(is_foreign(&headers(foreign)), "{foreign:?}");
        }
    }

    #[test]
    fn cookies_and_fields_are_found() {
        let sent = headers(&[("cookie", "a=1; __Host-gemel=key"), ("cookie", "gemel-lang=fr")]);
        assert_eq!(cookie(&sent, session_cookie(true)), Some("key"));
        assert_eq!(cookie(&sent, LANGUAGE_COOKIE), Some("fr"));
        assert_eq!(cookie(&sent, "b"), None);
        let fields = Fields::parse(b"name=a%20b&form_key=k&back=%2F&size_bytes=1G");
        assert_eq!((fields.get("name"), fields.get("none")), ("a b", ""));
        assert_eq!(fields.request().collect::<Vec<_>>(), [("name", "a b"), ("size_bytes", "1G")]);
    }
}
