//! QR codes: as SVG for pages, and as text for terminals.

use std::fmt::Write;

use qrcode::{Color, EcLevel, QrCode, render::unicode::Dense1x2, types::QrError};

/// The light frame around a code, in modules.
const QUIET: usize = 4;

fn code(text: &str) -> Result<QrCode, QrError> {
    QrCode::with_error_correction_level(text, EcLevel::M)
}

/// The code of a text as an SVG element with the class `qr`. It has no style of its own but black on white, as readers need it.
///
/// # Errors
/// [`QrError`] if the text is too long.
pub(crate) fn svg(text: &str) -> Result<String, QrError> {
    let code = code(text)?;
    let (width, colors) = (code.width(), code.to_colors());
    let side = width + 2 * QUIET;
    let mut path = String::new();
    for (row, line) in colors.chunks(width).enumerate() {
        let mut column = 0;
        while column < width {
            let dark = line[column..].iter().take_while(|color| **color == Color::Dark).count();
            if dark > 0 {
                // Writing to a string does not fail.
                let _ = write!(path, "M{},{}h{dark}v1h-{dark}z", column + QUIET, row + QUIET);
            }
            column += dark.max(1);
        }
    }
    Ok(format!(
        "<svg class=\"qr\" role=\"img\" aria-label=\"QR code\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {side} {side}\" \
         shape-rendering=\"crispEdges\"><rect width=\"{side}\" height=\"{side}\" fill=\"#fff\"/><path fill=\"#000\" d=\"{path}\"/></svg>"
    ))
}

/// The code of a text for a terminal of light text on a dark background.
///
/// # Errors
/// [`QrError`] if the text is too long.
pub(crate) fn terminal(text: &str) -> Result<String, QrError> {
    Ok(code(text)?.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_svg_has_the_modules_of_the_code() {
        let text = "bitcoin:bcrt1qexample?amount=0.0001";
        let svg = svg(text).unwrap();
        let code = code(text).unwrap();
        let dark = code.to_colors().iter().filter(|color| **color == Color::Dark).count();
        let path = svg.split(" d=\"").nth(1).unwrap();
        let run = |part: &str| part.split_once('h')?.1.split_once("v1h-")?.0.parse::<usize>().ok();
        let drawn: usize = path.split('z').filter_map(run).sum();
        assert_eq!(drawn, dark);
        assert!(svg.contains(&format!("viewBox=\"0 0 {0} {0}\"", code.width() + 8)) && !svg.contains("style"));
        assert!(super::svg(&"x".repeat(5_000)).is_err() && terminal(text).unwrap().lines().count() > 10);
    }
}
