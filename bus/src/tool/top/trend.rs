//! A row of small bars: numbers over time in one line of text.

/// Eighths of a block, and what stands for them where only ASCII can be shown.
const BLOCKS: [char; 9] =
    [' ', '\u{2581}', '\u{2582}', '\u{2583}', '\u{2584}', '\u{2585}', '\u{2586}', '\u{2587}', '\u{2588}'];
const ASCII: [char; 9] = [' ', '.', ':', '-', '=', '+', '*', '#', '@'];

/// The newest numbers to the right, `width` characters. More numbers than characters are added up, as many to each;
/// the highest is a whole block, and what is not zero is never blank.
pub(super) fn trend(cells: &[u64], width: usize, is_ascii: bool) -> String {
    if width == 0 {
        return String::new();
    }
    let each = cells.len().div_ceil(width).max(1);
    // From the right, so that the newest is never in a sum of fewer.
    let mut sums: Vec<u64> = cells.rchunks(each).map(|chunk| chunk.iter().sum()).collect();
    sums.reverse();
    let highest = sums.iter().copied().max().unwrap_or_default().max(1);
    let blocks = if is_ascii { ASCII } else { BLOCKS };
    let bars = sums.iter().map(|sum| blocks[(sum * 8).div_ceil(highest).min(8) as usize]);
    let blank = width.saturating_sub(sums.len());
    std::iter::repeat_n(' ', blank).chain(bars).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_is_a_whole_block_and_what_is_not_zero_is_seen() {
        assert_eq!(trend(&[0, 1, 500, 1000], 4, true), " .=@");
        assert_eq!(trend(&[0, 4, 8], 5, false), "   \u{2584}\u{2588}");
        assert_eq!(trend(&[0, 0], 2, true), "  ");
        assert_eq!(trend(&[1], 0, true), "");
    }

    #[test]
    fn more_numbers_than_characters_are_added_up() {
        assert_eq!(trend(&[1, 1, 2, 2, 4, 4], 3, true), ":=@");
        assert_eq!(trend(&[9, 1, 1, 1, 1], 3, true), "@::");
    }
}
