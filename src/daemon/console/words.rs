//! The console's words, in each of its languages. What nodes say of themselves comes in English.

/// A language of the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// English.
    English,
    /// French.
    French,
}

/// Everything that the console itself says.
#[derive(Debug)]
pub struct Words {
    /// For the `lang` attribute.
    pub code: &'static str,
    /// The first question.
    pub is_it_safe: &'static str,
    /// Its answers.
    pub safe: &'static str,
    pub safe_on_one: &'static str,
    pub safe_disks: &'static str,
    pub safe_unseen: &'static str,
    /// The second question.
    pub is_it_served: &'static str,
    /// Its answers.
    pub served: &'static str,
    pub served_none: &'static str,
    pub not_served: &'static str,
    /// The third question.
    pub must_i_act: &'static str,
    /// Its answers.
    pub nothing: &'static str,
    pub heals: &'static str,
    pub act: &'static str,
    /// Headings.
    pub attention: &'static str,
    pub why: &'static str,
    pub next_loss: &'static str,
    pub activity: &'static str,
    pub hour: &'static str,
    pub month: &'static str,
    pub operations: &'static str,
    pub throughput: &'static str,
    pub latency: &'static str,
    pub pool_use: &'static str,
    pub reads: &'static str,
    pub writes: &'static str,
    pub nothing_yet: &'static str,
    pub volumes: &'static str,
    pub pools: &'static str,
    pub disks: &'static str,
    /// Columns.
    pub name: &'static str,
    pub state: &'static str,
    pub size: &'static str,
    pub used: &'static str,
    pub node: &'static str,
    pub target: &'static str,
    pub path: &'static str,
    pub reason: &'static str,
    pub progress: &'static str,
    pub none: &'static str,
    /// The picture.
    pub witness: &'static str,
    pub to_do: &'static str,
    pub stale: &'static str,
}

impl Language {
    /// The language that is asked for by name, else the one that a browser would like best (RFC 9110 section 12.5.4,
    /// without its weights: browsers list the best one first).
    #[must_use]
    pub fn of(named: Option<&str>, accepted: &str) -> Self {
        let wanted = named.unwrap_or(accepted).trim_start().to_ascii_lowercase();
        if wanted.starts_with("fr") { Self::French } else { Self::English }
    }

    /// One of two texts.
    #[must_use]
    pub fn say(self, english: &'static str, french: &'static str) -> &'static str {
        match self {
            Self::English => english,
            Self::French => french,
        }
    }

    /// Code and name of the other one.
    #[must_use]
    pub fn other(self) -> (&'static str, &'static str) {
        match self {
            Self::English => ("fr", "Français"),
            Self::French => ("en", "English"),
        }
    }

    /// Its words.
    #[must_use]
    pub fn words(self) -> &'static Words {
        match self {
            Self::English => &ENGLISH,
            Self::French => &FRENCH,
        }
    }
}

static ENGLISH: Words = Words {
    code: "en",
    is_it_safe: "Is my data safe?",
    safe: "Yes, with full redundancy.",
    safe_on_one: "Yes, but some of it on one node only.",
    safe_disks: "Yes, but a pool has lost a disk.",
    safe_unseen: "It is kept, but not all of it can be reached.",
    is_it_served: "Is it being served?",
    served: "Yes, every volume.",
    served_none: "There is no volume yet.",
    not_served: "No:",
    must_i_act: "Must I do something?",
    nothing: "No.",
    heals: "No: it heals by itself.",
    act: "Yes: see below.",
    attention: "What is the matter",
    why: "Why",
    next_loss: "What the next loss would do",
    activity: "Activity of this node",
    hour: "last hour",
    month: "last 30 days",
    operations: "Operations a second",
    throughput: "MiB a second",
    latency: "Latency, 99 of 100 at most, in ms",
    pool_use: "Pool in use, in percent",
    reads: "reads",
    writes: "writes",
    nothing_yet: "nothing measured yet",
    volumes: "Volumes",
    pools: "Pools",
    disks: "Disks",
    name: "Name",
    state: "State",
    size: "Size",
    used: "Used",
    node: "Node",
    target: "Target",
    path: "Path",
    reason: "Reason",
    progress: "Progress",
    none: "none",
    witness: "witness",
    to_do: "To do",
    stale: "This node has not answered since",
};

static FRENCH: Words = Words {
    code: "fr",
    is_it_safe: "Mes données sont-elles en sécurité ?",
    safe: "Oui, avec toute la redondance.",
    safe_on_one: "Oui, mais une partie sur un seul nœud.",
    safe_disks: "Oui, mais un pool a perdu un disque.",
    safe_unseen: "Elles sont conservées, mais pas toutes accessibles.",
    is_it_served: "Sont-elles servies ?",
    served: "Oui, tous les volumes.",
    served_none: "Il n’y a pas encore de volume.",
    not_served: "Non :",
    must_i_act: "Dois-je faire quelque chose ?",
    nothing: "Non.",
    heals: "Non : cela se répare tout seul.",
    act: "Oui : voir ci-dessous.",
    attention: "Ce qui ne va pas",
    why: "Pourquoi",
    next_loss: "Ce que ferait la prochaine panne",
    activity: "Activité de ce nœud",
    hour: "dernière heure",
    month: "30 derniers jours",
    operations: "Opérations par seconde",
    throughput: "Mio par seconde",
    latency: "Latence, 99 sur 100 au plus, en ms",
    pool_use: "Occupation du pool, en %",
    reads: "lectures",
    writes: "écritures",
    nothing_yet: "rien de mesuré pour l’instant",
    volumes: "Volumes",
    pools: "Pools",
    disks: "Disques",
    name: "Nom",
    state: "État",
    size: "Taille",
    used: "Occupé",
    node: "Nœud",
    target: "Cible",
    path: "Chemin",
    reason: "Raison",
    progress: "Avancement",
    none: "aucun",
    witness: "témoin",
    to_do: "À faire",
    stale: "Ce nœud ne répond plus depuis",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_language_that_a_browser_names_is_used() {
        assert_eq!(Language::of(None, "fr-FR,fr;q=0.9,en;q=0.8"), Language::French);
        assert_eq!(Language::of(None, "en-US,fr;q=0.5"), Language::English);
        assert_eq!(Language::of(None, "de"), Language::English);
        assert_eq!(Language::of(Some("en"), "fr"), Language::English);
    }
}
