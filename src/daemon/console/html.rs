//! What all pages have in common: the frame with its menu, tables, and forms.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, PreEscaped, Render, html};

use super::Console;
use super::visitor::FORM_KEY;
use super::words::Language;
use crate::cluster::state::user::Role;
use crate::daemon::accounts::{Notice, Session};

/// Who looks, and how he wants it.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The console.
    pub console: &'a Console,
    /// The session of who looks.
    pub session: &'a Session,
    /// His language.
    pub language: Language,
}

/// Something to be done, as a form.
pub struct Form<'a> {
    /// The call that does it.
    pub call: &'a str,
    /// What is on its button.
    pub button: &'a str,
    /// The page to come back to.
    pub back: &'a str,
    /// Who may do it.
    pub least: Role,
    /// What has to be typed back, and what is lost or interrupted.
    pub danger: Option<(&'a str, &'a str)>,
    /// Its fields.
    pub fields: Markup,
}

impl View<'_> {
    /// Text in the language of who looks.
    pub fn say(&self, english: &'static str, french: &'static str) -> &'static str {
        self.language.say(english, french)
    }

    /// Whether who looks has at least this role.
    pub fn may(&self, least: Role) -> bool {
        self.session.actor.role >= least
    }

    /// A page.
    pub fn page(&self, here: &str, title: &str, main: Markup) -> Markup {
        let notice = self.session.notice.as_ref().map(|notice| self.notice(notice));
        let titled = html! { h1 { (title) } (main) };
        self.frame(here, title, false, notice.as_ref(), &titled)
    }

    /// The page that shows itself anew.
    pub fn live_page(&self, here: &str, title: &str, main: Markup) -> Markup {
        let notice = self.session.notice.as_ref().map(|notice| self.notice(notice));
        let titled = html! { h1 { (title) } div #live { (main) } };
        self.frame(here, title, true, notice.as_ref(), &titled)
    }

    fn frame(
        &self,
        here: &str,
        title: &str,
        is_live: bool,
        notice: Option<&Markup>,
        main: &Markup,
    ) -> Markup {
        let words = self.language.words();
        html! {
            (DOCTYPE)
            html lang=(words.code) {
                (head(title, if is_live { ANEW } else { PreEscaped("") }))
                body {
                    a.skip href="#content" { (self.say("Skip to the page", "Aller à la page")) }
                    header { (self.menu(here)) (self.corner(here)) }
                    @if is_live { p #stale role="alert" hidden { (words.stale) " " time {} "." } }
                    @if let Some(notice) = notice { (notice) }
                    main #content tabindex="-1" { (main) }
                }
            }
        }
    }

    fn menu(&self, here: &str) -> Markup {
        let pages = [
            ("/", self.say("Status", "État"), Role::Viewer),
            ("/volumes", "Volumes", Role::Viewer),
            ("/hosts", self.say("Hosts", "Hôtes"), Role::Viewer),
            ("/disks", self.say("Disks", "Disques"), Role::Viewer),
            ("/nodes", self.say("Nodes", "Nœuds"), Role::Viewer),
            ("/events", self.say("Events", "Événements"), Role::Viewer),
            ("/alerts", self.say("Alerts", "Alertes"), Role::Viewer),
            ("/users", self.say("Users", "Utilisateurs"), Role::Administrator),
        ];
        html! {
            nav aria-label=(self.say("Pages", "Pages")) {
                strong { "gemel" }
                @for (path, title, least) in pages {
                    @if self.may(least) {
                        a href=(path) aria-current=[(here == path).then_some("page")] { (title) }
                    }
                }
            }
        }
    }

    fn corner(&self, here: &str) -> Markup {
        let (code, name) = self.language.other();
        html! {
            div.corner {
                a href={ (here) "?lang=" (code) } lang=(code) { (name) }
                a href="/account" { (self.session.actor.name) }
                form method="post" action="/logout" {
                    input type="hidden" name=(FORM_KEY) value=(self.session.form_key);
                    button { (self.say("Sign out", "Se déconnecter")) }
                }
            }
        }
    }

    fn notice(&self, notice: &Notice) -> Markup {
        let class = if notice.is_done { "notice good" } else { "notice bad" };
        html! { p class=(class) role=(if notice.is_done { "status" } else { "alert" }) { (notice.text) } }
    }

    /// A form, where who looks may do what it does.
    pub fn form(&self, form: Form<'_>) -> Markup {
        if !self.may(form.least) {
            return html! {};
        }
        html! {
            form.act method="post" action={ "/act/" (form.call) } {
                input type="hidden" name=(FORM_KEY) value=(self.session.form_key);
                input type="hidden" name="back" value=(form.back);
                (form.fields)
                @if let Some((name, consequence)) = form.danger {
                    p.danger { (consequence) }
                    (typed_back(self.say("Type this to go on:", "Pour continuer, saisir :"), name))
                }
                button class=[form.danger.map(|_| "danger")] { (form.button) }
            }
        }
    }

    /// A form that is folded away until it is wanted.
    pub fn folded(&self, title: &str, form: Form<'_>) -> Markup {
        if !self.may(form.least) {
            return html! {};
        }
        html! { details { summary { (title) } (self.form(form)) } }
    }
}

/// The head of a page, with what only this one has.
pub fn head(title: &str, own: impl Render) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            title { (title) " · gemel" }
            link rel="stylesheet" href="/style.css";
            // Who has no icon to show asks for one again and again.
            link rel="icon" href="data:,";
            (own)
        }
    }
}

/// Has a page show itself anew.
const ANEW: PreEscaped<&str> = PreEscaped(concat!(
    r#"<noscript><meta http-equiv="refresh" content="5"></noscript>"#,
    r#"<script src="/refresh.js" defer></script>"#
));

/// A name that has to be typed back before what it names is changed.
pub fn typed_back(label: &str, name: &str) -> Markup {
    html! {
        label {
            (label) " " code { (name) }
            input name="confirm" required autocomplete="off" autocapitalize="none" spellcheck="false";
        }
    }
}

/// A line of text to be filled in.
pub fn text(name: &str, label: &str, value: &str, is_required: bool) -> Markup {
    html! {
        label {
            (label)
            input name=(name) value=(value) required[is_required] autocapitalize="none" spellcheck="false" autocomplete="off";
        }
    }
}

/// The same, not shown while it is typed.
pub fn secret(name: &str, label: &str, is_required: bool, purpose: &str) -> Markup {
    html! { label { (label) input type="password" name=(name) required[is_required] autocomplete=(purpose); } }
}

/// One of several.
pub fn choice(name: &str, label: &str, values: &[(&str, &str)], chosen: &str) -> Markup {
    html! {
        label {
            (label)
            select name=(name) {
                @for (value, shown) in values { option value=(value) selected[*value == chosen] { (shown) } }
            }
        }
    }
}

/// Yes or no.
pub fn check(name: &str, label: &str) -> Markup {
    html! { label.check { input type="checkbox" name=(name) value="on"; (label) } }
}

/// What is given with a form without being asked for.
pub fn hidden(name: &str, value: &str) -> Markup {
    html! { input type="hidden" name=(name) value=(value); }
}

/// A table, or a word where it would be empty.
pub fn table(view: View<'_>, head: &[&str], rows: &[Vec<Markup>]) -> Markup {
    if rows.is_empty() {
        return html! { p { (view.language.words().none) } };
    }
    html! {
        div.wide tabindex="0" role="region" aria-label=(head.join(", ")) {
            table {
                thead { tr { @for cell in head { th scope="col" { (cell) } } } }
                tbody { @for row in rows { tr { @for cell in row { td { (cell) } } } } }
            }
        }
    }
}

/// A cell with text.
pub fn cell(text: impl AsRef<str>) -> Markup {
    html! { (text.as_ref()) }
}

/// A time, to the second.
pub fn time(unix_ms: u64) -> Markup {
    let text = crate::rpc::time::show_seconds(unix_ms);
    html! { time datetime=(text) { (text.replace('T', " ").trim_end_matches('Z')) " UTC" } }
}

/// A page that could not be made.
pub fn failed(status: &tonic::Status) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, status.message().to_owned()).into_response()
}
