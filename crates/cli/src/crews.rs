//! Which workers serve together, and in which order they are tried.

use larvatus::plan::Plan;
use larvatus::policy::Secrecy;

/// Who serves together: one worker, or two of them.
pub(crate) struct Crews<'a> {
    /// Those that were not tried, in the order in which they were named.
    left: Vec<Vec<&'a str>>,
    failed: Vec<&'a str>,
    /// Those that had other work.
    busy: Vec<Vec<&'a str>>,
}

impl<'a> Crews<'a> {
    /// All that a plan can be run with.
    pub(crate) fn of(plan: &Plan, workers: &'a [String]) -> Self {
        let left = match plan.policy().secrecy() {
            Secrecy::Public => workers.iter().map(|one| vec![one.as_str()]).collect(),
            Secrecy::TwoWorkers => {
                let pairs = workers.iter().enumerate().flat_map(|(index, first)| {
                    let others = workers[index + 1..].iter();
                    others.map(move |second| vec![first.as_str(), second.as_str()])
                });
                pairs.collect()
            }
        };
        Self {
            left,
            failed: Vec::new(),
            busy: Vec::new(),
        }
    }

    /// The next crew to try: the first of those with the fewest members that have failed.
    pub(crate) fn next(&mut self) -> Option<Vec<&'a str>> {
        let failures =
            |crew: &Vec<&str>| crew.iter().filter(|one| self.failed.contains(one)).count();
        let crews = self.left.iter().enumerate();
        let (at, _) = crews.min_by_key(|(at, crew)| (failures(crew), *at))?;
        Some(self.left.remove(at))
    }

    /// Notes that a member of a crew has failed, where it was one.
    pub(crate) fn failed(&mut self, worker: Option<&'a str>) {
        self.failed.extend(worker);
    }
}

impl<'a> Crews<'a> {
    /// Notes that a crew was refused because a member of it was busy.
    pub(crate) fn busy(&mut self, crew: Vec<&'a str>) {
        self.busy.push(crew);
    }

    /// Lets those that were busy be tried again; `false` where there are none.
    pub(crate) fn again(&mut self) -> bool {
        self.left.append(&mut self.busy);
        !self.left.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(left: &[&[&'static str]], fails: &[&'static str]) -> Vec<Vec<&'static str>> {
        let mut crews = Crews {
            left: left.iter().map(|crew| crew.to_vec()).collect(),
            failed: Vec::new(),
            busy: Vec::new(),
        };
        let mut tried = Vec::new();
        while let Some(crew) = crews.next() {
            let failing = crew.iter().find(|one| fails.contains(one)).copied();
            tried.push(crew);
            if failing.is_none() {
                break;
            }
            crews.failed(failing);
        }
        tried
    }

    #[test]
    fn whoever_has_failed_comes_last() {
        let pairs: [&[&str]; 3] = [&["a", "b"], &["a", "c"], &["b", "c"]];
        assert_eq!(tried(&pairs, &[]), [["a", "b"]]);
        assert_eq!(tried(&pairs, &["a"]), [["a", "b"], ["b", "c"]]);
        assert_eq!(tried(&pairs, &["b"]), [["a", "b"], ["a", "c"]]);
        // Nobody is passed over for good.
        let all = [["a", "b"], ["b", "c"], ["a", "c"]];
        assert_eq!(tried(&pairs, &["a", "c"]), all);
        assert_eq!(tried(&[&["a"], &["b"]], &["a"]), [["a"], ["b"]]);
    }
}
