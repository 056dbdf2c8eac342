//! Sizes for people.

const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/// `bytes` in the largest unit that it fills, with one decimal place.
pub(super) fn size(bytes: u64) -> String {
    let mut unit = 0;
    while unit + 1 < UNITS.len() && bytes >> (10 * (unit + 1)) > 0 {
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes} B");
    }
    let tenths = u128::from(bytes) * 10 + (1 << (10 * unit - 1));
    let tenths = tenths >> (10 * unit);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// `part` of `whole` in percent, with one decimal place.
pub(super) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "0.0 %".to_owned();
    }
    let thousandths = (u128::from(part) * 1000 + u128::from(whole) / 2) / u128::from(whole);
    format!("{}.{} %", thousandths / 10, thousandths % 10)
}

/// `count` of `noun`, in its plural where needed.
pub(super) fn count(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_decimal_place() {
        let shown = [0, 1023, 1024, 1536, 200 << 10, 100 << 30, u64::MAX].map(size);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "200.0 KiB", "100.0 GiB", "16384.0 PiB"]);
    }

    #[test]
    fn percentages_are_rounded() {
        assert_eq!(
            [percent(1, 3), percent(0, 0), percent(u64::MAX, u64::MAX)],
            ["33.3 %", "0.0 %", "100.0 %"]
        );
    }

    #[test]
    fn counts_agree_with_their_noun() {
        assert_eq!(
            [count(0, "clone"), count(1, "clone"), count(2, "clone")],
            ["0 clones", "1 clone", "2 clones"]
        );
    }
}
