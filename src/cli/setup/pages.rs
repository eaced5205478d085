//! The pages of a set-up, in English and French, without scripts.

use maud::{DOCTYPE, Markup, html};

use super::carry_out::{Progress, Step};
use super::plan::Plan;
use super::{Reader, Setup};
use crate::cli::cluster::disks::offered;
use crate::cli::cluster::init::Token;
use crate::cluster::quorum::SeatKind;
use crate::daemon::console::html::{head, hidden, text, typed_back};
use crate::daemon::console::visitor::Fields;

fn page(reader: &Reader, is_working: bool, main: &Markup) -> Markup {
    let language = reader.language;
    let (other, name) = language.other();
    let anew = html! { @if is_working { meta http-equiv="refresh" content="2"; } };
    html! {
        (DOCTYPE)
        html lang=(language.words().code) {
            (head(language.say("Set-up", "Installation"), anew))
            body {
                header { strong { "gemel" } a href={ "/?lang=" (other) } lang=(other) { (name) } }
                main #content tabindex="-1" { (main) }
            }
        }
    }
}

/// What is this machine to be?
pub fn ask(reader: &Reader, setup: &Setup, wish: &Fields, refusal: Option<&str>) -> Markup {
    let say = |english, french| reader.language.say(english, french);
    let is_first = wish.get("kind").is_empty();
    let value = |name: &str, proposal: &str| match wish.get(name) {
        "" if is_first => proposal.to_owned(),
        value => value.to_owned(),
    };
    let line = |name: &str, label: &str, proposal: &str| text(name, label, &value(name, proposal), true);
    let button = say("Go on", "Continuer");
    let is_kind = |kind: &str| wish.get("kind") == kind;
    let main = html! {
        h1 { (say("Set this machine up", "Installer cette machine")) }
        @if let Some(refusal) = refusal { p.notice.bad role="alert" { (refusal) } }
        p { (say(
            "Nothing is changed before you have seen all of it and confirmed it.",
            "Rien n’est modifié avant que vous ayez tout vu et confirmé.",
        )) }
        details open[is_first || is_kind("pair")] {
            summary { (say("The first of two servers: a new cluster", "Le premier de deux serveurs : une nouvelle grappe")) }
            form.act method="post" action="/plan" {
                (hidden("kind", "pair"))
                (line("cluster", say("Name of the cluster; it cannot be changed later", "Nom de la grappe ; il ne pourra pas changer"), "main"))
                (line("name", say("Name of this server", "Nom de ce serveur"), "a"))
                (line("address", say("IP address of this server; a second one where there are two links", "Adresse IP de ce serveur ; une seconde s’il y a deux liens"), &reader.host))
                (line("peer_name", say("Name of the other server", "Nom de l’autre serveur"), "b"))
                (line("peer_address", say("Its IP address, or two", "Son adresse IP, ou deux"), ""))
                (line("witness_name", say("Name of the witness, a small machine in a third place", "Nom du témoin, une petite machine dans un troisième lieu"), "w"))
                (line("witness_address", say("Its IP address", "Son adresse IP"), ""))
                (on_this_machine(reader, setup, wish))
                button { (button) }
            }
        }
        details open[is_kind("join")] {
            summary { (say("The second server, or the witness: I have a token", "Le second serveur, ou le témoin : j’ai un jeton")) }
            form.act method="post" action="/plan" {
                (hidden("kind", "join"))
                (text("token", say("Token that the first server has shown", "Jeton que le premier serveur a montré"), wish.get("token"), true))
                p { (say("A witness needs no disks: leave them out.", "Un témoin n’a pas besoin de disques : n’en choisissez pas.")) }
                (on_this_machine(reader, setup, wish))
                button { (button) }
            }
        }
        details open[is_kind("single")] {
            summary { (say("One server by itself, without a mirror", "Un seul serveur, sans miroir")) }
            form.act method="post" action="/plan" {
                (hidden("kind", "single"))
                p { (say("It cannot become one of two later.", "Il ne pourra pas devenir l’un de deux plus tard.")) }
                (line("cluster", say("Name of the cluster; it cannot be changed later", "Nom de la grappe ; il ne pourra pas changer"), "main"))
                (line("name", say("Name of this server", "Nom de ce serveur"), "a"))
                (on_this_machine(reader, setup, wish))
                button { (button) }
            }
        }
    };
    page(reader, false, &main)
}

fn on_this_machine(reader: &Reader, setup: &Setup, wish: &Fields) -> Markup {
    let say = |english, french| reader.language.say(english, french);
    let is_first = wish.get("kind").is_empty();
    let is_chosen = |disk: &str| wish.all("disk").any(|chosen| chosen == disk);
    html! {
        fieldset {
            legend { (say("Disks of the pool, three or more; all of the same size is best", "Disques de la réserve, trois ou plus ; de même taille de préférence")) }
            @for (path, size) in offered(&setup.local.disk) {
                label.check {
                    input type="checkbox" name="disk" value=(path) checked[is_chosen(&path)];
                    (path) " (" (size) ")"
                }
            }
        }
        (text("more_disks", say("Others, by path", "D’autres, par leur chemin"), wish.get("more_disks"), false))
        @if setup.local.console.is_none() {
            label.check {
                input type="checkbox" name="console" value="on" checked[is_first || !wish.get("console").is_empty()];
                (say("The console may be reached from other machines", "La console est accessible depuis d’autres machines"))
            }
        }
    }
}

/// What will be done.
pub fn review(reader: &Reader, wish: &Fields, plan: &Plan) -> Markup {
    let say = |english, french| reader.language.say(english, french);
    let name = plan.name().as_str();
    let what = match (plan, plan.kind()) {
        (Plan::Make(init), _) if init.single => {
            say("a server by itself, of a new cluster", "un serveur seul, d’une nouvelle grappe")
        }
        (Plan::Make(_), _) => {
            say("the first server of a new cluster", "le premier serveur d’une nouvelle grappe")
        }
        (Plan::Join(..), SeatKind::Node) => say("the second server", "le second serveur"),
        (Plan::Join(..), SeatKind::Witness) => say("the witness", "le témoin"),
    };
    let disks = &plan.local().disk;
    let main = html! {
        h1 { (say("This will be done", "Voici ce qui sera fait")) }
        dl {
            dt { (say("This machine becomes", "Cette machine devient")) } dd { strong { (name) } ": " (what) }
            @if let Plan::Make(init) = plan {
                dt { (say("Cluster", "Grappe")) } dd { (init.cluster_name) }
                @for (label, seat) in [
                    (say("The other server", "L’autre serveur"), &init.peer),
                    (say("Witness", "Témoin"), &init.witness),
                ] {
                    @if let Some(seat) = seat {
                        dt { (label) }
                        dd { (seat.name) @for address in &seat.addresses { " " (address.0) } }
                    }
                }
                @if !init.address.is_empty() {
                    dt { (say("Addresses of this server", "Adresses de ce serveur")) }
                    dd { @for address in &init.address { (address.0) " " } }
                }
            }
            @if !disks.is_empty() {
                dt { (say("Disks that are taken into use", "Disques qui sont pris")) }
                dd { @for disk in disks { (disk.display()) br; } }
            }
        }
        @if disks.len() == 1 {
            p.notice { (say(
                "With a single disk, its loss is the loss of what this server has.",
                "Avec un seul disque, sa perte est la perte de ce que ce serveur contient.",
            )) }
        }
        p { (say(
            "Disks that hold anything are refused, and you are asked again.",
            "Un disque qui contient quelque chose est refusé, et la question vous est posée à nouveau.",
        )) }
        form.act method="post" action="/go" {
            @for (field, value) in wish.request() { (hidden(field, value)) }
            (typed_back(say("Type the name of this machine to begin:", "Pour commencer, saisir le nom de cette machine :"), name))
            button { (say("Begin", "Commencer")) }
        }
        p { a href="/" { (say("Back to the beginning", "Retour au début")) } }
    };
    page(reader, false, &main)
}

/// That a name was not the one that had to be typed back.
pub fn mismatch(reader: &Reader) -> &'static str {
    reader
        .language
        .say("The name does not match: nothing was done.", "Le nom ne correspond pas : rien n’a été fait.")
}

/// How far it is, and what comes next.
pub fn progress(reader: &Reader, progress: &Progress, is_mismatch: bool) -> Markup {
    let say = |english, french| reader.language.say(english, french);
    let is_node = progress.kind == SeatKind::Node;
    let steps = [
        (Step::Configure, true, say("Keys and configuration", "Clés et configuration")),
        (Step::Format, is_node, say("Disks taken into use", "Disques pris en service")),
        (Step::Start, true, say("Service started", "Service démarré")),
        (Step::Gather, is_node, say("All machines are there", "Toutes les machines sont là")),
        (Step::AddUser, progress.is_first, say("Somebody may sign in", "Quelqu’un peut se connecter")),
    ];
    let main = html! {
        h1 { (progress.name) @if !progress.cluster.is_empty() { " · " (progress.cluster) } }
        ul {
            @for (step, _, what) in steps.into_iter().filter(|(_, is_due, _)| *is_due) {
                @let is_done = progress.step > step;
                li {
                    @if is_done { "✓ " } @else if progress.step == step && progress.failure.is_some() { "✕ " } @else { "· " }
                    (what)
                    @if progress.step == step && progress.is_working() { "…" }
                }
            }
        }
        @if is_mismatch { p.notice.bad role="alert" { (mismatch(reader)) } }
        @if let Some(failure) = &progress.failure { (failed(reader, progress, failure)) }
        @if progress.step == Step::Gather {
            @if !progress.tokens.is_empty() { (others(reader, progress)) }
            (members(reader, progress))
        }
        @if progress.step == Step::AddUser {
            h2 { (say("The first user of the console", "Le premier utilisateur de la console")) }
            form.act method="post" action="/user" {
                (text("user", say("Name of an administrator", "Nom d’un administrateur"), "", true))
                button { (say("Go on", "Continuer")) }
            }
        }
        @if progress.is_over() {
            p.notice.good role="status" { (say("This machine is set up.", "Cette machine est installée.")) }
            @if let Some(link) = &progress.link {
                p { a #console href=(link) { (say("Set a password and open the console", "Choisir un mot de passe et ouvrir la console")) } }
            }
            p { (say("This page is closed now.", "Cette page est maintenant fermée.")) }
        }
    };
    page(reader, progress.is_working(), &main)
}

fn failed(reader: &Reader, progress: &Progress, failure: &str) -> Markup {
    let say = |english, french| reader.language.say(english, french);
    html! {
        p.notice.bad role="alert" { (failure) }
        @match progress.step {
            Step::Configure => {
                p { (say("Nothing was set up.", "Rien n’a été installé.")) " " a href="/?new=1" { (say("Begin anew", "Recommencer")) } }
            }
            Step::AddUser | Step::Over => {}
            step => {
                form.act method="post" action="/again" { button { (say("Try this step again", "Réessayer cette étape")) } }
                @if step == Step::Format {
                    form.act method="post" action="/again" {
                        (hidden("force", "on"))
                        p.danger { (say(
                            "Take the disks although they hold something: everything on them is lost, for good.",
                            "Prendre les disques bien qu’ils contiennent quelque chose : tout leur contenu est perdu, définitivement.",
                        )) }
                        (typed_back(say("Type this to go on:", "Pour continuer, saisir :"), progress.name.as_str()))
                        button.danger { (say("Lose what is on the disks", "Perdre le contenu des disques")) }
                    }
                }
            }
        }
    }
}

/// What is to be done on the other machines.
fn others(reader: &Reader, progress: &Progress) -> Markup {
    let say = |english, french| reader.language.say(english, french);
    html! {
        h2 { (say("Now the other machines", "Maintenant, les autres machines")) }
        p { (say(
            "On each of them: install the package, run gemel setup as root, and give it its token. A token works once, for a day, and is as secret as a key.",
            "Sur chacune : installer le paquet, lancer gemel setup en root, et lui donner son jeton. Un jeton sert une fois, pendant un jour, et est aussi secret qu’une clé.",
        )) }
        dl {
            @for Token { name, kind, token } in &progress.tokens {
                dt { (name) " (" (if kind == "witness" { say("witness", "témoin") } else { say("server", "serveur") }) ")" }
                dd { code.token id={ "token-" (name) } { (token) } }
            }
        }
    }
}

fn members(reader: &Reader, progress: &Progress) -> Markup {
    let say = |english, french| reader.language.say(english, french);
    html! {
        h2 { (say("Who is there", "Qui est là")) }
        @if !progress.silence.is_empty() { p { (progress.silence) } }
        ul {
            @for member in &progress.members {
                li {
                    (member.name) ": "
                    (match (member.reachable, member.votes) {
                        (true, true) => say("there", "là"),
                        (true, false) => say("there, not accepted yet", "là, pas encore admise"),
                        _ => say("not there yet", "pas encore là"),
                    })
                }
            }
        }
    }
}
