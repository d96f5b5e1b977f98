//! Finds the name that somebody who misspelt one probably meant. It only offers: nothing is ever done under a guessed name.

/// The one of `names` that was probably meant by `typed`: at most a third of its letters differ.
pub fn likely<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = names.map(|name| (distance(typed, name), name)).min_by_key(|(distance, _)| *distance)?;
    (near.0 <= 1 + typed.chars().count() / 4).then_some(near.1)
}

/// How many letters must be put in, left out, changed or swapped with their neighbour to turn `from` into `to`.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut rows = vec![(0..=to.len()).collect::<Vec<_>>()];
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let same = from[i - 1] == to[j - 1];
            let mut cost = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + usize::from(!same));
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                cost = cost.min(rows[i - 2][j - 2] + 1);
            }
            row.push(cost);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likely_names_are_near() {
        let names = || ["get", "describe", "delete", "rollout"].into_iter();
        assert_eq!(likely("gte", names()), Some("get"));
        assert_eq!(likely("descirbe", names()), Some("describe"));
        assert_eq!(likely("roll", names()), None);
    }
}
