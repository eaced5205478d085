//! What one who is told has been told, and what he is to be told next.
//!
//! A matter is told when it has stayed for a moment, again after the repetition's time, and its end when it has been
//! gone for a moment: what comes and goes within seconds, as a restart does, is not worth a mail.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::rpc::management::{Attention, Severity};

/// How long a warning has to last before it is told.
const WARNING_LASTS: Duration = Duration::from_secs(30);
/// How long an error has to last before it is told.
const ERROR_LASTS: Duration = Duration::from_secs(10);
/// How long something has to be gone before its end is told.
const GONE_LASTS: Duration = Duration::from_secs(30);

/// What is to be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// Why now.
    pub news: News,
    /// What is, or was, the matter.
    pub matter: Attention,
    /// For how long it has been, or was, so.
    pub lasted: Duration,
}

/// Why something is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It is the matter now.
    Begun,
    /// It is still the matter.
    Still,
    /// It is over.
    Over,
}

/// The memory of one who is told. Times are those of any clock that only goes on.
#[derive(Debug, Default)]
pub struct Watch {
    matters: BTreeMap<Identity, Matter>,
}

/// What makes two reports ones of the same matter, though their texts differ.
type Identity = (String, String, String);

#[derive(Debug)]
struct Matter {
    latest: Attention,
    began: Duration,
    last_seen: Duration,
    told: Option<Duration>,
}

impl Watch {
    /// What is to be told at `now`, when `seen` is the matter. `least` is how bad it has to be; `repeat` after how
    /// long it is told again. What `is_mine` does not accept is followed but left for another node to tell.
    pub fn look(
        &mut self,
        now: Duration,
        seen: &[Attention],
        least: Severity,
        repeat: Option<Duration>,
        is_mine: impl Fn(&Attention) -> bool,
    ) -> Vec<Notice> {
        for item in seen.iter().filter(|item| item.severity >= i32::from(least)) {
            let identity = (item.kind.clone(), item.about.clone(), item.node.clone());
            let matter = self.matters.entry(identity).or_insert_with(|| Matter {
                latest: item.clone(),
                began: now,
                last_seen: now,
                told: None,
            });
            if item.severity > matter.latest.severity {
                matter.told = None; // worse than what was told
            }
            matter.latest = item.clone();
            matter.last_seen = now;
        }
        let mut notices = Vec::new();
        self.matters.retain(|_, matter| {
            let notice = |news, until: Duration| Notice {
                news,
                matter: matter.latest.clone(),
                lasted: until.saturating_sub(matter.began),
            };
            if matter.last_seen < now {
                let is_over = now.saturating_sub(matter.last_seen) >= GONE_LASTS;
                if is_over && matter.told.is_some() {
                    notices.push(notice(News::Over, matter.last_seen));
                }
                return !is_over;
            }
            let must_last =
                if matter.latest.severity() == Severity::Error { ERROR_LASTS } else { WARNING_LASTS };
            let news = match matter.told {
                None if now.saturating_sub(matter.began) >= must_last => Some(News::Begun),
                Some(told) if repeat.is_some_and(|repeat| now.saturating_sub(told) >= repeat) => {
                    Some(News::Still)
                }
                _ => None,
            };
            if let Some(news) = news.filter(|_| is_mine(&matter.latest)) {
                notices.push(notice(news, now));
                matter.told = Some(now);
            }
            true
        });
        notices.sort_by_key(|notice| std::cmp::Reverse(notice.matter.severity));
        notices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn matter(severity: Severity, message: &str) -> Attention {
        let severity = severity.into();
        let (kind, message) = ("not-redundant".to_owned(), message.to_owned());
        Attention { severity, kind, message, ..Attention::default() }
    }

    struct Told {
        watch: Watch,
        repeat: Option<Duration>,
        is_mine: bool,
    }

    impl Told {
        fn new(repeat: Option<Duration>) -> Self {
            Self { watch: Watch::default(), repeat, is_mine: true }
        }

        fn at(&mut self, now: u64, seen: &[Attention]) -> Vec<(News, u64)> {
            let mine = self.is_mine;
            let notices = self.watch.look(seconds(now), seen, Severity::Warning, self.repeat, |_| mine);
            notices.iter().map(|notice| (notice.news, notice.lasted.as_secs())).collect()
        }
    }

    #[test]
    fn what_lasts_is_told_once_and_so_is_its_end() {
        let mut told = Told::new(None);
        assert_eq!(told.at(0, &[matter(Severity::Warning, "10 %")]), []);
        assert_eq!(told.at(20, &[matter(Severity::Warning, "20 %")]), []);
        assert_eq!(told.at(30, &[matter(Severity::Warning, "30 %")]), [(News::Begun, 30)]);
        assert_eq!(told.at(4000, &[matter(Severity::Warning, "90 %")]), []);
        assert_eq!(told.at(4001, &[]), []);
        assert_eq!(told.at(4030, &[]), [(News::Over, 4000)]);
        assert_eq!(told.at(4031, &[]), []);
    }

    #[test]
    fn what_comes_and_goes_is_not_told() {
        let mut told = Told::new(None);
        let error = [matter(Severity::Error, "gone")];
        assert_eq!(told.at(0, &error), []);
        assert_eq!(told.at(9, &error), []);
        assert_eq!(told.at(10, &[]), []);
        assert_eq!(told.at(60, &[]), []);
        assert!(told.watch.matters.is_empty());
        // A short absence does not end it.
        told.at(100, &error);
        assert_eq!(told.at(110, &error), [(News::Begun, 10)]);
        assert_eq!(told.at(111, &[]), []);
        assert_eq!(told.at(139, &error), []);
        assert_eq!(told.at(140, &error), []);
    }

    #[test]
    fn it_is_told_again_in_time_and_at_once_when_it_gets_worse() {
        let mut told = Told::new(Some(seconds(3600)));
        let warning = [matter(Severity::Warning, "bad")];
        told.at(0, &warning);
        assert_eq!(told.at(30, &warning), [(News::Begun, 30)]);
        assert_eq!(told.at(3629, &warning), []);
        assert_eq!(told.at(3630, &warning), [(News::Still, 3630)]);
        assert_eq!(told.at(3631, &[matter(Severity::Error, "worse")]), [(News::Begun, 3631)]);
    }

    #[test]
    fn what_is_not_bad_enough_or_another_nodes_is_not_told() {
        let mut told = Told::new(None);
        let info = [matter(Severity::Info, "maintenance")];
        told.at(0, &info);
        assert_eq!(told.at(100, &info), []);
        told.is_mine = false;
        let warning = [matter(Severity::Warning, "bad")];
        told.at(200, &warning);
        assert_eq!(told.at(300, &warning), []);
        // The other node has gone meanwhile: it is this one's to tell.
        told.is_mine = true;
        assert_eq!(told.at(301, &warning), [(News::Begun, 101)]);
        // Its end is told by who told of it.
        told.is_mine = false;
        assert_eq!(told.at(400, &[]), [(News::Over, 101)]);
    }
}
