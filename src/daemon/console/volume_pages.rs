//! Volumes, their snapshots, and the hosts that may use them.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use tonic::Request;

use super::Console;
use super::html::{Form, View, cell, check, choice, failed, hidden, secret, table, text, time};
use super::visitor::Member;
use crate::cluster::state::user::Role;
use crate::rpc::json::name as word;
use crate::rpc::management::management_server::Management;
use crate::rpc::management::{
    AccessEntry, GetVolumeRequest, HostGroup, ListAccessRequest, ListSnapshotsRequest, ListVolumesRequest,
    Snapshot, Volume, VolumeState,
};
use crate::rpc::size::show as size;

/// `GET /volumes`
pub async fn list(State(console): State<Console>, Member { session, language }: Member) -> Response {
    let view = View { console: &console, session: &session, language };
    let volumes = match console.calls.look().list_volumes(Request::new(ListVolumesRequest {})).await {
        Ok(listed) => listed.into_inner().volumes,
        Err(refusal) => return failed(&refusal),
    };
    let head = [
        view.say("Name", "Nom"),
        view.say("State", "État"),
        view.say("Node", "Nœud"),
        view.say("Size", "Taille"),
        view.say("Used", "Occupé"),
        view.say("Hosts", "Hôtes"),
    ];
    let rows: Vec<_> = volumes.iter().map(row).collect();
    let nodes: Vec<String> =
        console.control.look(|state| state.nodes().map(|(name, _)| name.to_string()).collect());
    let nodes: Vec<_> = nodes.iter().map(|node| (node.as_str(), node.as_str())).collect();
    let any = [("", view.say("the less busy one", "le moins occupé"))];
    let main = html! {
        (table(view, &head, &rows))
        (view.folded(view.say("New volume…", "Nouveau volume…"), Form {
            call: "create_volume",
            button: view.say("Create", "Créer"),
            back: "/volumes",
            least: Role::Operator,
            danger: None,
            fields: html! {
                (text("name", view.say("Name", "Nom"), "", true))
                (text("size_bytes", view.say("Size (512M, 10G, 2T)", "Taille (512M, 10G, 2T)"), "", true))
                (choice("sector_bytes", view.say("Sector", "Secteur"), &[("512", "512"), ("4096", "4096")], "512"))
                (choice("primary", view.say("Served first by", "Servi d’abord par"), &[&any[..], &nodes].concat(), ""))
                (check("local", view.say("Without a mirror, on that node alone", "Sans miroir, sur ce nœud seul")))
            },
        }))
    };
    view.page("/volumes", "Volumes", main).into_response()
}

fn row(volume: &Volume) -> Vec<Markup> {
    vec![
        html! { a href={ "/volumes/" (volume.name) } { (volume.name) } },
        html! { span class={ "state " (word::<VolumeState>(volume.state)) } { (word::<VolumeState>(volume.state)) } },
        cell(&volume.primary),
        cell(size(volume.size_bytes)),
        cell(size(volume.used_bytes)),
        cell(volume.sessions.to_string()),
    ]
}

/// `GET /volumes/NAME`
pub async fn one(
    State(console): State<Console>,
    Path(name): Path<String>,
    Member { session, language }: Member,
) -> Response {
    let view = View { console: &console, session: &session, language };
    let calls = console.calls.look();
    let volume = match calls.get_volume(Request::new(GetVolumeRequest { name: name.clone() })).await {
        Ok(volume) => volume.into_inner(),
        Err(refusal) => {
            let main = html! { p.notice.bad { (refusal.message()) } };
            return (axum::http::StatusCode::NOT_FOUND, view.page("/volumes", &name, main)).into_response();
        }
    };
    // Of a volume that is not served there is no list to be had.
    let snapshots = calls.list_snapshots(Request::new(ListSnapshotsRequest { volume: name.clone() })).await;
    let snapshots = snapshots.map(|listed| listed.into_inner().snapshots).unwrap_or_default();
    let access = calls.list_access(Request::new(ListAccessRequest { volume: name.clone() })).await;
    let access = access.map(|listed| listed.into_inner().entries).unwrap_or_default();
    let here = format!("/volumes/{name}");
    let main = html! {
        (facts(view, &volume))
        h2 { (view.say("Hosts that may use it", "Hôtes autorisés")) }
        (access_part(view, &volume, &access, &here))
        h2 { (view.say("Snapshots", "Instantanés")) }
        (snapshot_part(view, &volume, &snapshots, &here))
        h2 { (view.say("Change it", "Modifier")) }
        (changes(view, &volume, &here))
    };
    view.page("/volumes", &name, main).into_response()
}

fn facts(view: View<'_>, volume: &Volume) -> Markup {
    let resync = volume
        .resync
        .as_ref()
        .map(|resync| format!("{} / {}", size(resync.copied_bytes), size(resync.to_copy_bytes)));
    let facts = [
        (view.say("State", "État"), word::<VolumeState>(volume.state)),
        (view.say("Served by", "Servi par"), volume.primary.clone()),
        (view.say("Since then because", "Depuis lors parce que"), volume.reason.clone()),
        (view.say("Not served because", "Pas servi parce que"), volume.trouble.clone()),
        (view.say("Being copied", "Copie en cours"), resync.unwrap_or_default()),
        (view.say("Size", "Taille"), size(volume.size_bytes)),
        (view.say("Used", "Occupé"), size(volume.used_bytes)),
        (view.say("Kept for snapshots", "Gardé pour les instantanés"), size(volume.snapshot_bytes)),
        (view.say("Clone of", "Clone de"), volume.origin.clone()),
        (view.say("Returns to", "Revient à"), volume.home.clone()),
        (view.say("Sessions", "Sessions"), volume.sessions.to_string()),
        (view.say("Target", "Cible"), format!("{} LUN 0", volume.target)),
    ];
    html! {
        dl {
            @for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
                dt { (name) } dd { (value) }
            }
        }
    }
}

fn access_part(view: View<'_>, volume: &Volume, access: &[AccessEntry], here: &str) -> Markup {
    let rows =
        access.iter().map(|entry| {
            let chap = match (entry.chap, entry.mutual_chap) {
                (true, true) => view.say("mutual", "mutuel"),
                (true, false) => view.say("yes", "oui"),
                _ => view.say("no", "non"),
            };
            let everyone = view.say("everyone", "tous");
            let whom = if entry.initiator == "*" { everyone } else { entry.initiator.as_str() };
            let deny = view.folded(view.say("Take back…", "Retirer…"), Form {
            call: "deny_access",
            button: view.say("Take back", "Retirer"),
            back: here,
            least: Role::Operator,
            danger: Some((&volume.name, view.say(
                "This host loses the volume at once, also while it uses it.",
                "Cet hôte perd le volume immédiatement, même s’il l’utilise.",
            ))),
            fields: html! { (hidden("volume", &volume.name)) (hidden("initiator", &entry.initiator)) },
        });
            vec![cell(whom), cell(chap), deny]
        });
    let rows: Vec<_> = rows.collect();
    html! {
        (table(view, &[view.say("Initiator", "Initiateur"), "CHAP", ""], &rows))
        (view.folded(view.say("Allow a host…", "Autoriser un hôte…"), Form {
            call: "allow_access",
            button: view.say("Allow", "Autoriser"),
            back: here,
            least: Role::Operator,
            danger: None,
            fields: html! {
                (hidden("volume", &volume.name))
                (text("initiator", view.say("iSCSI name of the host (* for everyone)", "Nom iSCSI de l’hôte (* pour tous)"), "", true))
            },
        }))
    }
}

fn snapshot_part(view: View<'_>, volume: &Volume, snapshots: &[Snapshot], here: &str) -> Markup {
    let rows = snapshots.iter().map(|snapshot| {
        let until = snapshot.protected_until_ms.map_or_else(|| cell(""), time);
        let delete = view.folded(
            view.say("Delete…", "Supprimer…"),
            Form {
                call: "delete_snapshot",
                button: view.say("Delete", "Supprimer"),
                back: here,
                least: Role::Administrator,
                danger: Some((
                    &snapshot.name,
                    view.say(
                        "The volume stays as it is; what it was then can never be had again.",
                        "Le volume reste tel quel ; son état d’alors sera perdu à jamais.",
                    ),
                )),
                fields: html! { (hidden("volume", &volume.name)) (hidden("name", &snapshot.name)) },
            },
        );
        let clone = clone_form(view, &volume.name, &snapshot.name);
        let roll_back = roll_back_form(view, &volume.name, &snapshot.name, here);
        let clones = html! {
            @for clone in &snapshot.clones { a href={ "/volumes/" (clone) } { (clone) } " " }
        };
        let acts = html! { (clone) (roll_back) (delete) };
        vec![cell(&snapshot.name), time(snapshot.taken_ms), cell(&snapshot.kind), until, clones, acts]
    });
    let rows: Vec<_> = rows.collect();
    let head = [
        view.say("Name", "Nom"),
        view.say("Taken", "Pris"),
        view.say("By", "Par"),
        view.say("Protected until", "Protégé jusqu’au"),
        view.say("Clones", "Clones"),
        "",
    ];
    let schedule = volume.snapshot_schedule.as_ref();
    let every = schedule.map(|when| format!("{}s", when.every_seconds)).unwrap_or_default();
    let keep = schedule.map(|when| when.keep.to_string()).unwrap_or_default();
    html! {
        (table(view, &head, &rows))
        (view.folded(view.say("Take a snapshot…", "Prendre un instantané…"), Form {
            call: "create_snapshot",
            button: view.say("Take", "Prendre"),
            back: here,
            least: Role::Operator,
            danger: None,
            fields: html! {
                (hidden("volume", &volume.name))
                (text("name", view.say("Name (empty: the time)", "Nom (vide : l’heure)"), "", false))
                label {
                    (view.say("Protected until: nobody deletes it before", "Protégé jusqu’au : personne ne le supprime avant"))
                    input type="date" name="protected_until_ms";
                }
                (check("crash_consistent", view.say(
                    "Without the commands before and after snapshots",
                    "Sans les commandes avant et après les instantanés",
                )))
            },
        }))
        (view.folded(view.say("Schedule…", "Planification…"), Form {
            call: "set_snapshot_schedule",
            button: view.say("Set", "Appliquer"),
            back: here,
            least: Role::Operator,
            danger: None,
            fields: html! {
                (hidden("volume", &volume.name))
                (text("schedule.every_seconds", view.say("Every (15m, 1h, 1day)", "Toutes les (15m, 1h, 1day)"), &every, true))
                (text("schedule.keep", view.say("How many are kept", "Combien sont gardés"), &keep, true))
            },
        }))
        @if schedule.is_some() {
            (view.form(Form {
                call: "set_snapshot_schedule",
                button: view.say("End the schedule", "Arrêter la planification"),
                back: here,
                least: Role::Operator,
                danger: None,
                fields: hidden("volume", &volume.name),
            }))
        }
    }
}

/// A size that is read again as the same.
fn exact(bytes: u64) -> String {
    let shown = size(bytes);
    if shown.contains('.') { bytes.to_string() } else { shown }
}

/// The volume as it was.
fn roll_back_form(view: View<'_>, volume: &str, snapshot: &str, here: &str) -> Markup {
    view.folded(
        view.say("Roll back…", "Restaurer…"),
        Form {
            call: "roll_back_snapshot",
            button: view.say("Roll back", "Restaurer"),
            back: here,
            least: Role::Administrator,
            danger: Some((
                volume,
                view.say(
                    "The volume is what it was then, at once and on both nodes. What it is now is kept as a snapshot \
                     before-rollback-…, by which this can be undone.",
                    "Le volume redevient ce qu’il était alors, aussitôt et sur les deux nœuds. Son état actuel est gardé en \
                     instantané before-rollback-…, qui permet de revenir en arrière.",
                ),
            )),
            fields: html! {
                (hidden("volume", volume))
                (hidden("name", snapshot))
                (check("force", view.say(
                    "Also while hosts use it: what they have in memory does not fit any more",
                    "Même si des hôtes l’utilisent : ce qu’ils ont en mémoire ne correspondra plus",
                )))
            },
        },
    )
}

/// A new volume of a snapshot, or of the volume as it is now.
fn clone_form(view: View<'_>, volume: &str, snapshot: &str) -> Markup {
    view.folded(
        view.say("Clone…", "Cloner…"),
        Form {
            call: "clone_volume",
            button: view.say("Clone", "Cloner"),
            back: "/volumes",
            least: Role::Operator,
            danger: None,
            fields: html! {
                (hidden("volume", volume))
                (hidden("snapshot", snapshot))
                (text("name", view.say("Name of the new volume", "Nom du nouveau volume"), "", true))
            },
        },
    )
}

fn changes(view: View<'_>, volume: &Volume, here: &str) -> Markup {
    let (name, nodes) = (
        &volume.name,
        view.console
            .control
            .look(|state| state.nodes().map(|(name, _)| name.to_string()).collect::<Vec<_>>()),
    );
    let others =
        nodes.iter().filter(|node| **node != volume.primary).map(|node| (node.as_str(), node.as_str()));
    let others: Vec<_> = others.collect();
    let nowhere = [("", view.say("no node", "aucun nœud"))];
    let nodes: Vec<_> = nodes.iter().map(|node| (node.as_str(), node.as_str())).collect();
    let resize = |shrink: bool| {
        html! {
            (hidden("name", name))
            @if shrink { (hidden("shrink", "true")) }
            (text("size_bytes", view.say("New size", "Nouvelle taille"), &size(volume.size_bytes), true))
        }
    };
    html! {
        @if !others.is_empty() {
            (view.folded(view.say("Move…", "Déplacer…"), Form {
                call: "move_volume",
                button: view.say("Move", "Déplacer"),
                back: here,
                least: Role::Operator,
                danger: None,
                fields: html! {
                    (hidden("name", name))
                    (choice("to", view.say("To node", "Vers le nœud"), &others, ""))
                },
            }))
            (view.folded(view.say("Home…", "Nœud d’attache…"), Form {
                call: "set_volume_home",
                button: view.say("Set", "Appliquer"),
                back: here,
                least: Role::Operator,
                danger: None,
                fields: html! {
                    (hidden("name", name))
                    (choice("home", view.say("Returns by itself to", "Revient de lui-même à"), &[&nowhere[..], &nodes].concat(), &volume.home))
                },
            }))
        }
        (clone_form(view, name, ""))
        (view.folded(view.say("Limits…", "Limites…"), Form {
            call: "set_volume",
            button: view.say("Set", "Appliquer"),
            back: here,
            least: Role::Operator,
            danger: None,
            fields: html! {
                (hidden("name", name))
                (text("iops", view.say("Operations in a second (0: no limit)", "Opérations par seconde (0 : sans limite)"), &volume.iops_limit.to_string(), true))
                (text("bandwidth_bytes_per_second", view.say("Bytes in a second (100M; 0: no limit)", "Octets par seconde (100M ; 0 : sans limite)"), &exact(volume.bytes_per_second_limit), true))
                (text("quota_bytes", view.say("Most space with its snapshots (0: no limit)", "Espace maximal avec ses instantanés (0 : sans limite)"), &exact(volume.quota_bytes), true))
                (text("reserved_bytes", view.say("Space kept for it (0: none)", "Espace réservé (0 : aucun)"), &exact(volume.reserved_bytes), true))
            },
        }))
        (view.folded(view.say("Enlarge…", "Agrandir…"), Form {
            call: "resize_volume",
            button: view.say("Enlarge", "Agrandir"),
            back: here,
            least: Role::Operator,
            danger: None,
            fields: resize(false),
        }))
        (view.folded(view.say("Shrink…", "Réduire…"), Form {
            call: "resize_volume",
            button: view.say("Shrink", "Réduire"),
            back: here,
            least: Role::Administrator,
            danger: Some((name, view.say(
                "Everything beyond the new end is destroyed, on both nodes.",
                "Tout ce qui dépasse la nouvelle fin est détruit, sur les deux nœuds.",
            ))),
            fields: resize(true),
        }))
        (view.folded(view.say("Delete…", "Supprimer…"), Form {
            call: "delete_volume",
            button: view.say("Delete", "Supprimer"),
            back: &format!("{here}#/volumes"),
            least: Role::Administrator,
            danger: Some((name, view.say(
                "All data of this volume and all its snapshots are destroyed, on both nodes, for good.",
                "Toutes les données de ce volume et tous ses instantanés sont détruits, sur les deux nœuds, définitivement.",
            ))),
            fields: html! {
                (hidden("name", name))
                (check("force", view.say("Although hosts use it", "Même si des hôtes l’utilisent")))
            },
        }))
    }
}

/// Host groups, and how they are changed.
fn group_part(view: View<'_>, groups: &[HostGroup]) -> Markup {
    let rows = groups.iter().map(|group| {
        let remove = view.folded(
            view.say("Remove…", "Supprimer…"),
            Form {
                call: "remove_host_group",
                button: view.say("Remove", "Supprimer"),
                back: "/hosts",
                least: Role::Operator,
                danger: None,
                fields: hidden("name", &group.name),
            },
        );
        vec![cell(&group.name), cell(group.initiators.join(", ")), cell(group.volumes.join(", ")), remove]
    });
    let rows: Vec<_> = rows.collect();
    let head = [view.say("Group", "Groupe"), view.say("Initiators", "Initiateurs"), "Volumes", ""];
    html! {
        h2 { (view.say("Host groups", "Groupes d’hôtes")) }
        (table(view, &head, &rows))
        p {
            (view.say(
                "A group is allowed to use a volume as group:NAME, on that volume’s page.",
                "On autorise un groupe sous la forme group:NOM, sur la page du volume.",
            ))
        }
        (view.folded(view.say("Make or change a group…", "Créer ou modifier un groupe…"), Form {
            call: "change_host_group",
            button: view.say("Apply", "Appliquer"),
            back: "/hosts",
            least: Role::Operator,
            danger: None,
            fields: html! {
                (text("name", view.say("Name of the group", "Nom du groupe"), "", true))
                (text("added", view.say("iSCSI names that come in, with commas", "Noms iSCSI à ajouter, séparés par des virgules"), "", false))
                (text("removed", view.say("iSCSI names that go", "Noms iSCSI à retirer"), "", false))
            },
        }))
    }
}

/// `GET /hosts`
pub async fn hosts(State(console): State<Console>, Member { session, language }: Member) -> Response {
    let view = View { console: &console, session: &session, language };
    let listed = console.calls.look().list_access(Request::new(ListAccessRequest::default())).await;
    let entries = match listed {
        Ok(listed) => listed.into_inner().entries,
        Err(refusal) => return failed(&refusal),
    };
    let rows = entries.iter().map(|entry| {
        let chap = if entry.chap { view.say("yes", "oui") } else { view.say("no", "non") };
        let volume = html! { a href={ "/volumes/" (entry.volume) } { (entry.volume) } };
        vec![cell(&entry.initiator), volume, cell(chap)]
    });
    let rows: Vec<_> = rows.collect();
    let groups = console.control.host_groups();
    let main = html! {
        (table(view, &[view.say("Initiator", "Initiateur"), "Volume", "CHAP"], &rows))
        p {
            (view.say(
                "A host is allowed to use a volume on that volume’s page.",
                "On autorise un hôte sur la page du volume.",
            ))
        }
        (group_part(view, &groups))
        (view.folded(view.say("CHAP secret of a host…", "Secret CHAP d’un hôte…"), Form {
            call: "set_chap",
            button: view.say("Set", "Appliquer"),
            back: "/hosts",
            least: Role::Operator,
            danger: None,
            fields: html! {
                (text("initiator", view.say("iSCSI name of the host", "Nom iSCSI de l’hôte"), "", true))
                (text("incoming.user", view.say("User name that it gives", "Nom qu’il donne"), "", true))
                (secret("incoming.secret", view.say("Secret, 12 characters at least", "Secret, 12 caractères au moins"), true, "off"))
                (text("outgoing.user", view.say("Mutual: name that we give", "Mutuel : nom que nous donnons"), "", false))
                (secret("outgoing.secret", view.say("Mutual: our secret", "Mutuel : notre secret"), false, "off"))
            },
        }))
        (view.folded(view.say("Forget a CHAP secret…", "Oublier un secret CHAP…"), Form {
            call: "clear_chap",
            button: view.say("Forget", "Oublier"),
            back: "/hosts",
            least: Role::Operator,
            danger: None,
            fields: text("initiator", view.say("iSCSI name of the host", "Nom iSCSI de l’hôte"), "", true),
        }))
    };
    view.page("/hosts", view.say("Hosts", "Hôtes"), main).into_response()
}
