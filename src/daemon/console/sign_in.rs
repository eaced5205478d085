//! Signing in and out, a first password by a link, and the page of who has signed in.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::Console;
use super::html::{Form, View, cell, choice, head, hidden, secret, table, text, time};
use super::visitor::{FORM_KEY, Fields, Member, Visitor, language_cookie, session_cookie};
use super::words::Language;
use crate::cluster::state::user::Role;
use crate::daemon::accounts::directory::DirectoryError;
use crate::daemon::accounts::{LONGEST_SESSION, SignInError};

/// `GET /login`
pub async fn ask(State(console): State<Console>, visitor: Visitor, uri: axum::http::Uri) -> Response {
    let query = uri.query().unwrap_or_default();
    let next = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "next");
    let next = next.map_or_else(|| "/".to_owned(), |(_, next)| next.into_owned());
    login_page(&console, visitor.language, &next, None).into_response()
}

/// `POST /login`
pub async fn sign_in(State(console): State<Console>, visitor: Visitor, body: Bytes) -> Response {
    let fields = Fields::parse(&body);
    let from = visitor.peer.address.ip();
    let next = fields.get("next");
    match console.accounts.sign_in(fields.get("name"), fields.get("password"), from).await {
        Ok(key) => begun(&console, &key, visitor.language, next),
        Err(error) => {
            let page = login_page(&console, visitor.language, next, Some(&error));
            refused(&error, page)
        }
    }
}

/// `POST /logout`
pub async fn sign_out(
    State(console): State<Console>,
    Member { session, .. }: Member,
    body: Bytes,
) -> Response {
    if !Fields::parse(&body).is_of(&session) {
        return StatusCode::FORBIDDEN.into_response();
    }
    console.accounts.sign_out(&session);
    ([(header::SET_COOKIE, session_cookie_text(console.is_tls, "", 0))], Redirect::to("/login"))
        .into_response()
}

/// `GET /welcome`
pub async fn ask_for_password(visitor: Visitor, uri: axum::http::Uri) -> Response {
    let fields = Fields::parse(&Bytes::copy_from_slice(uri.query().unwrap_or_default().as_bytes()));
    welcome_page(visitor.language, fields.get("user"), fields.get("key"), None).into_response()
}

/// `POST /welcome`
pub async fn accept(State(console): State<Console>, visitor: Visitor, body: Bytes) -> Response {
    let fields = Fields::parse(&body);
    let (user, key, password) = (fields.get("user"), fields.get("key"), fields.get("password"));
    let from = visitor.peer.address.ip();
    let accepted = if password == fields.get("again") {
        console.accounts.accept(user, key, password, from).await
    } else {
        Err(differ(visitor.language))
    };
    match accepted {
        Ok(key) => begun(&console, &key, visitor.language, "/"),
        Err(error) => refused(&error, welcome_page(visitor.language, user, key, Some(&error))),
    }
}

/// `GET /account`
pub async fn account(State(console): State<Console>, Member { session, language }: Member) -> Response {
    let view = View { console: &console, session: &session, language };
    let user = console.control.users().into_iter().find(|user| user.name == session.actor.name);
    let tokens = user.map(|user| user.tokens).unwrap_or_default();
    let rows = tokens.iter().map(|token| {
        let until = token.until_ms.map_or_else(|| cell(view.say("for ever", "illimité")), time);
        let remove = view.form(Form {
            call: "remove_api_token",
            button: view.say("Remove", "Supprimer"),
            back: "/account",
            least: Role::Viewer,
            danger: None,
            fields: html! { (hidden("user", &session.actor.name)) (hidden("name", &token.name)) },
        });
        vec![cell(&token.name), cell(&token.role), time(token.created_ms), until, remove]
    });
    let rows: Vec<_> = rows.collect();
    let head = [
        view.say("Name", "Nom"),
        view.say("Role", "Rôle"),
        view.say("Made", "Créé"),
        view.say("Good until", "Valable jusqu’au"),
        "",
    ];
    let main = html! {
        p { (view.say("Role:", "Rôle :")) " " strong { (session.actor.role.as_str()) } }
        @if session.is_of_directory {
            p { (view.say(
                "Your name and password are those of the site's directory. What scripts use is made for users of the cluster.",
                "Votre nom et votre mot de passe sont ceux de l’annuaire du site. Les jetons pour scripts sont faits pour les utilisateurs de la grappe.",
            )) }
        } @else { (own_account(view, &rows, &head)) }
    };
    view.page("/account", &session.actor.name, main).into_response()
}

/// Password and tokens of a user of the cluster.
fn own_account(view: View<'_>, rows: &[Vec<Markup>], head: &[&str]) -> Markup {
    let session = view.session;
    html! {
        h2 { (view.say("Password", "Mot de passe")) }
        form.act method="post" action="/account/password" {
            input type="hidden" name=(FORM_KEY) value=(session.form_key);
            (secret("present", view.say("Present password", "Mot de passe actuel"), true, "current-password"))
            (secret("password", view.say("New password", "Nouveau mot de passe"), true, "new-password"))
            (secret("again", view.say("Once more", "Encore une fois"), true, "new-password"))
            button { (view.say("Change", "Changer")) }
        }
        h2 { (view.say("API tokens", "Jetons d’API")) }
        p {
            (view.say(
                "For scripts, as Authorization: Bearer. What there is to ask for:",
                "Pour les scripts, en Authorization: Bearer. Ce qu’on peut demander :",
            ))
            " " a href="/api/v1/openapi.json" { "/api/v1/openapi.json" }
        }
        (table(view, head, rows))
        (view.folded(view.say("New token…", "Nouveau jeton…"), Form {
            call: "create_api_token",
            button: view.say("Make", "Créer"),
            back: "/account",
            least: Role::Viewer,
            danger: None,
            fields: html! {
                (hidden("user", &session.actor.name))
                (text("name", view.say("What for, in a word", "Pour quoi, en un mot"), "", true))
                (choice("role", view.say("Role", "Rôle"), &roles(session.actor.role), "viewer"))
                (text("valid_seconds", view.say("Good for (30d; empty: for ever)", "Durée (30d ; vide : illimité)"), "365d", false))
            },
        }))
    }
}

/// `POST /account/password`
pub async fn change_password(
    State(console): State<Console>,
    Member { session, language }: Member,
    body: Bytes,
) -> Response {
    let fields = Fields::parse(&body);
    if !fields.is_of(&session) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let (present, new) = (fields.get("present"), fields.get("password"));
    let changed = if new == fields.get("again") {
        console.accounts.change_password(&session, present, new).await
    } else {
        Err(differ(language))
    };
    let text = match &changed {
        Ok(()) => language.say("The password was changed.", "Le mot de passe a été changé.").to_owned(),
        Err(error) => said(error, language),
    };
    console.accounts.say(&session, changed.is_ok(), text);
    Redirect::to("/account").into_response()
}

/// Roles up to this one, for a choice.
pub fn roles(most: Role) -> Vec<(&'static str, &'static str)> {
    Role::ALL.into_iter().filter(|role| *role <= most).map(|role| (role.as_str(), role.as_str())).collect()
}

fn differ(language: Language) -> SignInError {
    let text = language.say("The two passwords are not the same.", "Les deux mots de passe diffèrent.");
    SignInError::Refused(text.to_owned())
}

fn said(error: &SignInError, language: Language) -> String {
    match (error, language) {
        (SignInError::Wrong, Language::French) => "Le nom ou le mot de passe est faux.".to_owned(),
        (SignInError::TooMany(wait), Language::French) => {
            format!("Trop de tentatives : attendez {} s.", wait.as_secs().max(1))
        }
        (error, _) => error.to_string(),
    }
}

fn refused(error: &SignInError, page: Markup) -> Response {
    match error {
        SignInError::TooMany(wait) => {
            let wait = wait.as_secs().max(1).to_string();
            (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, wait)], page).into_response()
        }
        SignInError::Directory(DirectoryError::Trouble(_)) => {
            (StatusCode::SERVICE_UNAVAILABLE, page).into_response()
        }
        SignInError::Wrong | SignInError::Refused(_) | SignInError::Directory(_) => {
            (StatusCode::FORBIDDEN, page).into_response()
        }
    }
}

/// The session's cookie, and the page that was wanted.
fn begun(console: &Console, key: &str, language: Language, next: &str) -> Response {
    let is_own =
        next.starts_with('/') && !next.starts_with("//") && next.bytes().all(|byte| byte.is_ascii_graphic());
    let next = if is_own && !next.contains('\\') { next } else { "/" };
    let session = session_cookie_text(console.is_tls, key, LONGEST_SESSION.as_secs());
    let language = language_cookie(language.words().code);
    let cookies =
        axum::response::AppendHeaders([(header::SET_COOKIE, session), (header::SET_COOKIE, language)]);
    (cookies, Redirect::to(next)).into_response()
}

fn session_cookie_text(is_tls: bool, key: &str, seconds: u64) -> String {
    let secure = if is_tls { "; Secure" } else { "" };
    let name = session_cookie(is_tls);
    format!("{name}={key}; Path=/; HttpOnly; SameSite=Lax; Max-Age={seconds}{secure}")
}

fn login_page(console: &Console, language: Language, next: &str, error: Option<&SignInError>) -> Markup {
    let main = html! {
        form.act method="post" action="/login" {
            (hidden("next", next))
            label {
                (language.say("Name", "Nom"))
                input name="name" required autofocus autocomplete="username" autocapitalize="none" spellcheck="false";
            }
            (secret("password", language.say("Password", "Mot de passe"), true, "current-password"))
            button { (language.say("Sign in", "Se connecter")) }
        }
        @if !console.accounts.is_anybody() {
            p {
                (language.say(
                    "There is no user yet. The first one is made on a node, as root:",
                    "Il n’y a pas encore d’utilisateur. Le premier se crée sur un nœud, en tant que root :",
                ))
            }
            pre { "gemel user add NAME --role administrator --link" }
        }
    };
    outside(language, language.say("Sign in", "Connexion"), error, &main, "/login")
}

fn welcome_page(language: Language, user: &str, key: &str, error: Option<&SignInError>) -> Markup {
    let main = html! {
        p { (language.say("Choose a password, of 10 characters at least.", "Choisissez un mot de passe d’au moins 10 caractères.")) }
        form.act method="post" action="/welcome" {
            (hidden("key", key))
            label {
                (language.say("Name", "Nom"))
                input name="user" value=(user) readonly autocomplete="username";
            }
            (secret("password", language.say("Password", "Mot de passe"), true, "new-password"))
            (secret("again", language.say("Once more", "Encore une fois"), true, "new-password"))
            button { (language.say("Go on", "Continuer")) }
        }
    };
    outside(language, language.say("Welcome", "Bienvenue"), error, &main, "")
}

/// A page for who has not signed in.
fn outside(
    language: Language,
    title: &str,
    error: Option<&SignInError>,
    main: &Markup,
    here: &str,
) -> Markup {
    let (code, name) = language.other();
    html! {
        (DOCTYPE)
        html lang=(language.words().code) {
            (head(title, PreEscaped("")))
            body.outside {
                header {
                    strong { "gemel" }
                    @if !here.is_empty() { a href={ (here) "?lang=" (code) } lang=(code) { (name) } }
                }
                main #content {
                    h1 { (title) }
                    @if let Some(error) = error { p.notice.bad role="alert" { (said(error, language)) } }
                    (main)
                }
            }
        }
    }
}
