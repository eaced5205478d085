//! The first page: is my data safe, is it being served, must I do something; then the picture, what is the matter,
//! activity, and tables.

use std::fmt::Write;

use super::picture;
use super::plot::plot;
use super::words::Words;
use crate::daemon::history::Sample;
use crate::rpc::json::name;
use crate::rpc::management::{DiskState, PoolState, Severity, Status, VolumeState};
use crate::rpc::size::show as size;
use crate::rpc::time::show_duration;

/// How good an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// As it should be.
    Good,
    /// Reduced.
    Warn,
    /// Lost.
    Bad,
}

/// An answer of the first page.
pub type Answer = (Grade, String);

/// What changes from look to look.
pub fn main_part(status: &Status, words: &Words, (hour, month): (&[Sample], &[Sample])) -> String {
    let mut page = String::from("<div class=\"answers\">");
    let answers = [
        (words.is_it_safe, safe(status, words)),
        (words.is_it_served, served(status, words)),
        (words.must_i_act, must_act(status, words)),
    ];
    // Writing to a string does not fail.
    for (question, (grade, answer)) in answers {
        let (class, sign) = match grade {
            Grade::Good => ("good", "✓"),
            Grade::Warn => ("warn", "!"),
            Grade::Bad => ("bad", "✕"),
        };
        let _ = write!(
            page,
            "<section class=\"answer {class}\"><h2>{question}</h2><p><span aria-hidden=\"true\">{sign}</span> {}</p></section>",
            escape(&answer)
        );
    }
    page.push_str("</div>");
    page.push_str(&picture::draw(status, words));
    matters(&mut page, status, words);
    activity(&mut page, words, hour, month);
    tables(&mut page, status, words);
    page
}

/// Is my data safe?
pub fn safe(status: &Status, words: &Words) -> Answer {
    let mut states = status.volumes.iter().map(|volume| volume.state());
    let is_unseen = states.clone().any(|state| state == VolumeState::Offline);
    let is_on_one = states.any(|state| state != VolumeState::InSync);
    let has_all_disks = status.pools.iter().all(|pool| pool.state() == PoolState::Ok);
    match (is_unseen, is_on_one, has_all_disks) {
        (true, ..) => (Grade::Bad, words.safe_unseen.to_owned()),
        (_, true, _) => (Grade::Warn, words.safe_on_one.to_owned()),
        (_, _, false) => (Grade::Warn, words.safe_disks.to_owned()),
        _ => (Grade::Good, words.safe.to_owned()),
    }
}

/// Is it being served?
pub fn served(status: &Status, words: &Words) -> Answer {
    let is_offline = |volume: &&crate::rpc::management::Volume| volume.state() == VolumeState::Offline;
    let not: Vec<&str> =
        status.volumes.iter().filter(is_offline).map(|volume| volume.name.as_str()).collect();
    match (status.volumes.is_empty(), not.as_slice()) {
        (true, _) => (Grade::Good, words.served_none.to_owned()),
        (_, []) => (Grade::Good, words.served.to_owned()),
        _ => (Grade::Bad, format!("{} {}", words.not_served, not.join(", "))),
    }
}

/// Must I do something?
pub fn must_act(status: &Status, words: &Words) -> Answer {
    let matters = || status.attention.iter().filter(|item| item.severity() >= Severity::Warning);
    // What heals by itself says so first.
    if matters().any(|item| !item.action.starts_with("nothing")) {
        let is_bad = matters().any(|item| item.severity() == Severity::Error);
        return (if is_bad { Grade::Bad } else { Grade::Warn }, words.act.to_owned());
    }
    let answer = if matters().next().is_some() { words.heals } else { words.nothing };
    (Grade::Good, answer.to_owned())
}

fn matters(page: &mut String, status: &Status, words: &Words) {
    let _ = write!(page, "<section id=\"matters\" tabindex=\"-1\">");
    if !status.attention.is_empty() {
        let _ = write!(page, "<h2>{}</h2><ul class=\"matters\">", words.attention);
        for item in &status.attention {
            let _ = write!(
                page,
                "<li class=\"{}\"><strong>{}</strong>",
                name::<Severity>(item.severity),
                escape(&item.message)
            );
            for event in &item.why {
                let _ = write!(
                    page,
                    "<br><a href=\"/events?search={}\">{}</a>: {} {}",
                    escape(&event.kind),
                    words.why,
                    escape(&event.time),
                    escape(&event.message)
                );
            }
            let _ = write!(page, "<br>{}: {}</li>", words.to_do, escape(&item.action));
        }
        page.push_str("</ul>");
    }
    if !status.summary.is_empty() {
        let _ = write!(page, "<h2>{}</h2><p>{}</p>", words.next_loss, escape(&status.summary));
    }
    page.push_str("</section>");
}

fn activity(page: &mut String, words: &Words, hour: &[Sample], month: &[Sample]) {
    for (samples, time) in [(hour, words.hour), (month, words.month)] {
        if samples.len() < 2 && time == words.month {
            continue;
        }
        let _ = write!(page, "<h2>{}, {time}</h2><div class=\"plots\">", words.activity);
        let both = [words.reads, words.writes];
        page.push_str(&plot(words.operations, &both, samples, words, |sample| sample.operations.to_vec()));
        page.push_str(&plot(words.throughput, &both, samples, words, |sample| {
            sample.bytes.map(|bytes| bytes / f64::from(1 << 20)).to_vec()
        }));
        page.push_str(&plot(words.latency, &both, samples, words, |sample| {
            sample.latency_us.map(|us| us / 1000.0).to_vec()
        }));
        page.push_str(&plot(words.pool_use, &[""], samples, words, |sample| vec![sample.pool_use * 100.0]));
        page.push_str("</div>");
    }
}

fn tables(page: &mut String, status: &Status, words: &Words) {
    let volumes = status.volumes.iter().map(|volume| {
        let progress = volume.resync.as_ref().map_or_else(String::new, |resync| {
            let left = resync
                .remaining_seconds
                .map_or_else(String::new, |seconds| format!(" ({})", show_duration(seconds)));
            format!("{} / {}{left}", size(resync.copied_bytes), size(resync.to_copy_bytes))
        });
        [
            volume.name.clone(),
            name::<VolumeState>(volume.state),
            volume.primary.clone(),
            size(volume.size_bytes),
            size(volume.used_bytes),
            progress,
            volume.target.clone(),
        ]
    });
    let head = [words.name, words.state, words.node, words.size, words.used, words.progress, words.target];
    table(page, words.volumes, words.none, &head, volumes);
    let pools = status.pools.iter().map(|pool| {
        [pool.node.clone(), name::<PoolState>(pool.state), size(pool.capacity_bytes), size(pool.used_bytes)]
    });
    table(page, words.pools, words.none, &[words.node, words.state, words.size, words.used], pools);
    let disks = status.pools.iter().flat_map(|pool| &pool.disks).map(|disk| {
        let state = name::<DiskState>(disk.state);
        [
            disk.node.clone(),
            state,
            size(disk.size_bytes),
            disk.path.clone(),
            disk.id.clone(),
            disk.reason.clone(),
        ]
    });
    let head = [words.node, words.state, words.size, words.path, words.name, words.reason];
    table(page, words.disks, words.none, &head, disks);
}

fn table<const N: usize>(
    page: &mut String,
    title: &str,
    none: &str,
    head: &[&str; N],
    rows: impl Iterator<Item = [String; N]>,
) {
    let rows: Vec<_> = rows.collect();
    let _ = write!(page, "<h2>{title}</h2>");
    if rows.is_empty() {
        let _ = write!(page, "<p>{none}</p>");
        return;
    }
    page.push_str("<div class=\"wide\" tabindex=\"0\"><table><thead><tr>");
    for cell in head {
        let _ = write!(page, "<th scope=\"col\">{cell}</th>");
    }
    page.push_str("</tr></thead><tbody>");
    for row in rows {
        page.push_str("<tr>");
        for cell in row {
            let _ = write!(page, "<td>{}</td>", escape(&cell));
        }
        page.push_str("</tr>");
    }
    page.push_str("</tbody></table></div>");
}

/// Text as HTML text, or as the value of an attribute.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::words::Language;
    use super::*;
    use crate::rpc::management::{Attention, Disk, Pool, Volume};

    fn status(state: VolumeState, pool: PoolState, action: &str) -> Status {
        let volume = Volume { name: "x".into(), state: state.into(), ..Volume::default() };
        let pool = Pool { state: pool.into(), ..Pool::default() };
        let matter =
            Attention { severity: Severity::Warning.into(), action: action.into(), ..Attention::default() };
        let attention = if action.is_empty() { Vec::new() } else { vec![matter] };
        Status { volumes: vec![volume], pools: vec![pool], attention, ..Status::default() }
    }

    #[test]
    fn the_three_questions_are_answered() {
        let words = Language::English.words();
        let grades =
            |status: &Status| [safe(status, words).0, served(status, words).0, must_act(status, words).0];
        use Grade::{Bad, Good, Warn};
        assert_eq!(grades(&status(VolumeState::InSync, PoolState::Ok, "")), [Good, Good, Good]);
        let resyncing = status(VolumeState::Resyncing, PoolState::Ok, "nothing: it heals by itself");
        assert_eq!(grades(&resyncing), [Warn, Good, Good]);
        assert_eq!(must_act(&resyncing, words).1, words.heals);
        assert_eq!(grades(&status(VolumeState::Solo, PoolState::Ok, "start node b")), [Warn, Good, Warn]);
        assert_eq!(
            grades(&status(VolumeState::InSync, PoolState::Degraded, "replace it")),
            [Warn, Good, Warn]
        );
        assert_eq!(grades(&status(VolumeState::Offline, PoolState::Ok, "start node b")), [Bad, Bad, Warn]);
        assert_eq!(served(&Status::default(), words), (Good, words.served_none.to_owned()));
    }

    #[test]
    fn nothing_that_is_shown_can_inject_html() {
        let evil = "<script>\"'&";
        let disk = Disk { path: evil.into(), ..Disk::default() };
        let mut status = status(VolumeState::Offline, PoolState::Ok, evil);
        status.pools[0].disks.push(disk);
        (status.volumes[0].name, status.cluster) = (evil.into(), evil.into());
        status.nodes.push(crate::rpc::management::Node { name: evil.into(), ..Default::default() });
        let words = Language::French.words();
        let page = main_part(&status, words, (&[], &[]));
        assert!(page.contains("&lt;script&gt;&quot;") && !page.contains("<script>"), "{page}");
    }
}
