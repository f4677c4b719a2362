//! Reads QR codes that were printed on a terminal.

/// Decodes a QR code on a terminal: each character is two modules, one above the other.
pub fn scan(text: &str) -> String {
    let rows: Vec<Vec<char>> = text
        .lines()
        .map(|line| line.trim_start_matches("\x1b[30;107m").trim_end_matches("\x1b[0m").chars().collect())
        .collect();
    // Each module is a square of pixels.
    let pixels = 4;
    let is_dark = |x: usize, y: usize| match rows[y / 2][x] {
        '█' => true,
        '▀' => y % 2 == 0,
        '▄' => y % 2 == 1,
        _ => false,
    };
    let (width, height) = (rows[0].len(), rows.len() * 2);
    let mut image = rqrr::PreparedImage::prepare_from_greyscale(width * pixels, height * pixels, |x, y| {
        if is_dark(x / pixels, y / pixels) { 0 } else { 255 }
    });
    let found = image.detect_grids();
    found.first().expect("a QR code").decode().unwrap().1
}
