//! Disks, nodes and users.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};

use super::Console;
use super::html::{Form, View, cell, check, choice, failed, hidden, secret, table, text, time};
use super::sign_in::roles;
use super::visitor::Member;
use crate::cluster::state::user::Role;
use crate::rpc::json::name as word;
use crate::rpc::management::{Disk, DiskState, Node, NodeState, Pool, PoolState, User};
use crate::rpc::size::show as size;

/// `GET /disks`
pub async fn disks(State(console): State<Console>, Member { session, language }: Member) -> Response {
    let view = View { console: &console, session: &session, language };
    let pools = match console.calls.status().await {
        Ok(status) => status.pools,
        Err(refusal) => return failed(&refusal),
    };
    let main = html! { @for pool in &pools { (pool_part(view, pool)) } };
    view.page("/disks", view.say("Disks", "Disques"), main).into_response()
}

fn pool_part(view: View<'_>, pool: &Pool) -> Markup {
    let head = [
        view.say("Place", "Place"),
        view.say("State", "État"),
        view.say("Size", "Taille"),
        view.say("Path", "Chemin"),
        view.say("Errors", "Erreurs"),
        view.say("Health", "Santé"),
        view.say("Reason", "Raison"),
        "",
    ];
    let rows: Vec<_> = pool.disks.iter().map(|disk| disk_row(view, pool, disk)).collect();
    let state = word::<PoolState>(pool.state);
    html! {
        h2 { (view.say("Pool of node", "Pool du nœud")) " " (pool.node) }
        p {
            (state) " · " (size(pool.used_bytes)) " / " (size(pool.capacity_bytes)) " "
            (view.say("in use, promised to volumes:", "occupés, promis aux volumes :")) " " (size(pool.provisioned_bytes))
            @if let Some(full) = pool.full_ms {
                " · " (view.say("at the growth so far full on", "au rythme actuel plein le")) " " (time(full))
            }
        }
        (table(view, &head, &rows))
        (view.folded(view.say("New disk in the place of one that is out of service…", "Nouveau disque à la place d’un disque hors service…"), Form {
            call: "replace_disk",
            button: view.say("Replace", "Remplacer"),
            back: "/disks",
            least: Role::Operator,
            danger: None,
            fields: replace_fields(view, pool),
        }))
        (view.folded(view.say("The same, destroying what is on the new disk…", "Idem, en détruisant le contenu du nouveau disque…"), Form {
            call: "replace_disk",
            button: view.say("Replace", "Remplacer"),
            back: "/disks",
            least: Role::Administrator,
            danger: Some((view.say("the path of the new disk", "le chemin du nouveau disque"), view.say(
                "Whatever is on the new disk is destroyed.",
                "Tout ce qui est sur le nouveau disque est détruit.",
            ))),
            fields: html! { (replace_fields(view, pool)) (hidden("force", "true")) },
        }))
        (view.folded(view.say("Spare…", "Disque de réserve…"), Form {
            call: "change_spare",
            button: view.say("Keep as a spare", "Garder en réserve"),
            back: "/disks",
            least: Role::Operator,
            danger: None,
            fields: html! {
                (hidden("node", &pool.node)) (hidden("keep", "true"))
                (text("path", view.say("Path of a blank disk", "Chemin d’un disque vierge"), "", true))
            },
        }))
        (scrub_part(view, pool))
        (view.folded(view.say("Rebuild priority…", "Priorité de reconstruction…"), Form {
            call: "set_rebuild_priority",
            button: view.say("Set", "Appliquer"),
            back: "/disks",
            least: Role::Operator,
            danger: None,
            fields: html! {
                (hidden("node", &pool.node))
                (choice("priority", view.say("Priority", "Priorité"), &[
                    ("low", view.say("low: hosts first", "basse : les hôtes d’abord")),
                    ("normal", view.say("normal", "normale")),
                    ("high", view.say("high: redundancy first", "haute : la redondance d’abord")),
                ], &pool.rebuild_priority))
            },
        }))
    }
}

fn replace_fields(view: View<'_>, pool: &Pool) -> Markup {
    html! {
        (hidden("node", &pool.node))
        (text("disk", view.say("Place or path of the old one (empty: the one that is out)", "Place ou chemin de l’ancien (vide : celui hors service)"), "", false))
        (text("path", view.say("Path of the new one (/dev/disk/by-id/…)", "Chemin du nouveau (/dev/disk/by-id/…)"), "", true))
    }
}

fn disk_row(view: View<'_>, pool: &Pool, disk: &Disk) -> Vec<Markup> {
    let errors = disk.read_errors + disk.write_errors + disk.checksum_errors;
    let progress = disk
        .rebuild
        .as_ref()
        .map(|rebuild| format!(" {} / {}", size(rebuild.done_bytes), size(rebuild.total_bytes)));
    let act = if disk.state() == DiskState::Spare {
        view.form(Form {
            call: "change_spare",
            button: view.say("Not a spare any more", "Ne plus garder"),
            back: "/disks",
            least: Role::Operator,
            danger: None,
            fields: html! { (hidden("node", &pool.node)) (hidden("path", &disk.path)) },
        })
    } else {
        view.folded(view.say("Take out of service…", "Mettre hors service…"), Form {
            call: "fail_disk",
            button: view.say("Take out", "Mettre hors service"),
            back: "/disks",
            least: Role::Administrator,
            danger: Some((&disk.id, view.say(
                "The pool goes on without this disk, with less redundancy, until another one takes its place.",
                "Le pool continue sans ce disque, avec moins de redondance, jusqu’à son remplacement.",
            ))),
            fields: html! { (hidden("node", &pool.node)) (hidden("disk", &disk.id)) },
        })
    };
    let state = word::<DiskState>(disk.state);
    vec![
        cell(disk.slot.map_or_else(|| "–".to_owned(), |slot| slot.to_string())),
        html! { span class={ "state " (state) } { (state) } (progress.unwrap_or_default()) },
        cell(size(disk.size_bytes)),
        cell(&disk.path),
        cell(errors.to_string()),
        html! { (health(view, &disk.health)) @if !disk.health_detail.is_empty() { ": " (disk.health_detail) } },
        cell(&disk.reason),
        act,
    ]
}

/// What a device says of itself, in a word.
fn health(view: View<'_>, word: &str) -> &'static str {
    match word {
        "good" => view.say("good", "bonne"),
        "failing" => view.say("failing", "défaillante"),
        "file" => view.say("a file", "un fichier"),
        "unknown" => view.say("unknown", "inconnue"),
        _ => "–",
    }
}

fn scrub_part(view: View<'_>, pool: &Pool) -> Markup {
    let scrub = pool.scrub.clone().unwrap_or_default();
    let (action, button) = if scrub.running {
        ("stop", view.say("Stop verifying", "Arrêter la vérification"))
    } else {
        ("start", view.say("Verify all of it now", "Tout vérifier maintenant"))
    };
    html! {
        p {
            (view.say("Verified:", "Vérification :")) " "
            @if scrub.running { (scrub.percent) " %" }
            @else if scrub.finished_ms > 0 { (time(scrub.finished_ms)) }
            @else { (view.say("not yet", "pas encore")) }
            ", " (scrub.found) " " (view.say("damaged,", "endommagés,")) " "
            (scrub.repaired) " " (view.say("repaired,", "réparés,")) " "
            (scrub.unrecoverable) " " (view.say("beyond repair", "irréparables"))
        }
        (view.form(Form {
            call: "control_scrub",
            button,
            back: "/disks",
            least: Role::Operator,
            danger: None,
            fields: html! { (hidden("node", &pool.node)) (hidden("action", action)) },
        }))
    }
}

/// `GET /nodes`
pub async fn nodes(State(console): State<Console>, Member { session, language }: Member) -> Response {
    let view = View { console: &console, session: &session, language };
    let (status, cluster) = match console.calls.status().await {
        Ok(status) => (status, console.control.cluster()),
        Err(refusal) => return failed(&refusal),
    };
    let members = cluster.members.iter().map(|member| {
        let reached = if member.reachable { "✓" } else { "✕" };
        let votes = if member.votes { "✓" } else { "✕" };
        let name = html! { (member.name) @if member.name == cluster.leader { " ★" } };
        vec![
            name,
            cell(&member.kind),
            cell(reached),
            cell(votes),
            cell(&member.version),
            cell(&member.reason),
        ]
    });
    let members: Vec<_> = members.collect();
    let head = [
        view.say("Name", "Nom"),
        view.say("Kind", "Genre"),
        view.say("Reached", "Joignable"),
        view.say("Votes", "Vote"),
        "Version",
        view.say("Reason", "Raison"),
    ];
    let main = html! {
        (table(view, &head, &members))
        @for node in &status.nodes { (node_part(view, node)) }
        h2 { (view.say("The whole cluster", "Tout le cluster")) }
        (view.folded(view.say("Switch both nodes off…", "Arrêter les deux nœuds…"), Form {
            call: "shutdown_cluster",
            button: view.say("Switch off", "Arrêter"),
            back: "/nodes",
            least: Role::Administrator,
            danger: Some((&status.cluster, view.say(
                "Every host loses every volume until a node is started again. Let hosts go first. This page ends too.",
                "Tous les hôtes perdent tous les volumes jusqu’au redémarrage d’un nœud. Arrêtez d’abord les hôtes. Cette page s’arrête aussi.",
            ))),
            fields: check("force", view.say(
                "Although not everything is the same on both nodes",
                "Même si tout n’est pas identique sur les deux nœuds",
            )),
        }))
    };
    view.page("/nodes", view.say("Nodes", "Nœuds"), main).into_response()
}

fn node_part(view: View<'_>, node: &Node) -> Markup {
    let is_in_maintenance = node.state() == NodeState::Maintenance;
    let (on, button) = if is_in_maintenance {
        ("false", view.say("End of maintenance", "Fin de maintenance"))
    } else {
        ("true", view.say("Into maintenance", "Passer en maintenance"))
    };
    html! {
        h2 { (view.say("Node", "Nœud")) " " (node.name) }
        p { (word::<NodeState>(node.state)) " · " (node.portals.join(", ")) " · " (node.engine) " · " (node.version) }
        @if !is_in_maintenance {
            p {
                (view.say(
                    "Maintenance hands everything over to the other node, after which this one may be switched off. Hosts notice nothing.",
                    "La maintenance transfère tout à l’autre nœud, après quoi celui-ci peut être arrêté. Les hôtes ne remarquent rien.",
                ))
            }
        }
        (view.form(Form {
            call: "set_maintenance",
            button,
            back: "/nodes",
            least: Role::Operator,
            danger: None,
            fields: html! { (hidden("node", &node.name)) (hidden("on", on)) },
        }))
        (view.folded(view.say("Stop the service…", "Arrêter le service…"), Form {
            call: "shutdown_node",
            button: view.say("Stop", "Arrêter"),
            back: "/nodes",
            least: Role::Administrator,
            danger: Some((&node.name, view.say(
                "The node hands over what it serves and ends. Somebody has to start it again on the machine itself.",
                "Le nœud transfère ce qu’il sert et s’arrête. Il faudra le redémarrer sur la machine elle-même.",
            ))),
            fields: html! {
                (hidden("node", &node.name))
                (check("force", view.say("Although volumes go out of service by that", "Même si des volumes ne sont plus servis")))
            },
        }))
    }
}

/// `GET /users`
pub async fn users(State(console): State<Console>, Member { session, language }: Member) -> Response {
    let view = View { console: &console, session: &session, language };
    if !view.may(Role::Administrator) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let users = console.control.users();
    let rows: Vec<_> = users.iter().map(|user| user_row(view, user)).collect();
    let head = [
        view.say("Name", "Nom"),
        view.say("Role", "Rôle"),
        view.say("Password", "Mot de passe"),
        view.say("API tokens", "Jetons d’API"),
        "",
    ];
    let main = html! {
        p {
            (view.say(
                "A viewer sees everything. An operator does what loses nothing. An administrator does everything.",
                "Un viewer voit tout. Un operator fait ce qui ne perd rien. Un administrator fait tout.",
            ))
        }
        (table(view, &head, &rows))
        (view.folded(view.say("New user…", "Nouvel utilisateur…"), Form {
            call: "add_user",
            button: view.say("Add", "Ajouter"),
            back: "/users",
            least: Role::Administrator,
            danger: None,
            fields: html! {
                (text("name", view.say("Name", "Nom"), "", true))
                (choice("role", view.say("Role", "Rôle"), &roles(Role::Administrator), "viewer"))
                (secret("password", view.say("Password (empty: a link is made)", "Mot de passe (vide : un lien est créé)"), false, "new-password"))
            },
        }))
    };
    view.page("/users", view.say("Users", "Utilisateurs"), main).into_response()
}

fn user_row(view: View<'_>, user: &User) -> Vec<Markup> {
    let password = match (user.has_password, user.invited_until_ms) {
        (true, _) => cell("✓"),
        (false, Some(until)) => html! { (view.say("link until", "lien jusqu’au")) " " (time(until)) },
        (false, None) => cell("✕"),
    };
    let tokens: Vec<&str> = user.tokens.iter().map(|token| token.name.as_str()).collect();
    let acts = html! {
        (view.folded(view.say("Role…", "Rôle…"), Form {
            call: "set_user_role",
            button: view.say("Set", "Appliquer"),
            back: "/users",
            least: Role::Administrator,
            danger: None,
            fields: html! {
                (hidden("name", &user.name))
                (choice("role", view.say("Role", "Rôle"), &roles(Role::Administrator), &user.role))
            },
        }))
        (view.form(Form {
            call: "set_password",
            button: view.say("Link for a new password", "Lien pour un nouveau mot de passe"),
            back: "/users",
            least: Role::Administrator,
            danger: None,
            fields: hidden("name", &user.name),
        }))
        (view.folded(view.say("Remove…", "Supprimer…"), Form {
            call: "remove_user",
            button: view.say("Remove", "Supprimer"),
            back: "/users",
            least: Role::Administrator,
            danger: Some((&user.name, view.say(
                "The user and all API tokens of theirs are not let in any more, at once.",
                "L’utilisateur et tous ses jetons d’API n’entrent plus, immédiatement.",
            ))),
            fields: hidden("name", &user.name),
        }))
    };
    vec![cell(&user.name), cell(&user.role), password, cell(tokens.join(", ")), acts]
}
