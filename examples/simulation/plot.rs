//! Charts of a simulation, as SVG.

use std::path::Path;

use plotters::prelude::*;

use crate::{
    report::{Report, Round},
    support::Outcome,
};

const SIZE: (u32, u32) = (800, 480);
const TITLE: (&str, i32) = ("sans-serif", 22);
const LABEL: (&str, i32) = ("sans-serif", 13);

/// Draws all charts into the directory.
pub(crate) fn draw(report: &Report, directory: &Path) -> Outcome<()> {
    std::fs::create_dir_all(directory)?;
    let phases: Vec<_> = report
        .phase_times()
        .into_iter()
        .map(|(name, times)| {
            let [least, median, most] = times.map(|time| time.as_secs_f64());
            Bar { name, label: format!("{median:.2}"), value: median, spread: Some((least, most)) }
        })
        .collect();
    let title = "Time of each phase in signed rounds: median, and from the least to the most";
    bars(&directory.join("phases.svg"), title, "seconds", &phases)?;
    let messages: Vec<_> = report
        .messages()
        .into_iter()
        .map(|(name, count)| Bar { name, label: count.to_string(), value: count as f64, spread: None })
        .collect();
    bars(&directory.join("messages.svg"), "Messages by type", "messages", &messages)?;
    time_against_members(&directory.join("members.svg"), report)
}

struct Bar {
    name: &'static str,
    label: String,
    value: f64,
    spread: Option<(f64, f64)>,
}

/// Horizontal bars with their names.
fn bars(path: &Path, title: &str, unit: &str, bars: &[Bar]) -> Outcome<()> {
    let most = bars.iter().map(|bar| bar.spread.map_or(bar.value, |(_, most)| most)).fold(f64::EPSILON, f64::max);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, TITLE)
        .margin(16)
        .x_label_area_size(40)
        .build_cartesian_2d(0.0..most * 1.5, 0.0..bars.len() as f64)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&short)
        .x_desc(unit)
        .draw()?;
    for (row, bar) in bars.iter().rev().enumerate() {
        let (bottom, middle) = (row as f64, row as f64 + 0.5);
        let area = Rectangle::new([(0.0, bottom + 0.15), (bar.value, bottom + 0.85)], BLUE.mix(0.5).filled());
        chart.draw_series([area])?;
        let mut end = bar.value;
        if let Some((least, most)) = bar.spread {
            chart.draw_series([PathElement::new(vec![(least, middle), (most, middle)], BLACK)])?;
            end = end.max(most);
        }
        let text = format!(" {}  {}", bar.name, bar.label);
        chart.draw_series([Text::new(text, (end, middle + 0.1), LABEL)])?;
    }
    root.present()?;
    Ok(())
}

/// The time from the key list to the signed transaction, by number of members.
fn time_against_members(path: &Path, report: &Report) -> Outcome<()> {
    let point = |round: &Round| {
        (round.members as f64, round.phase_times().iter().skip(1).map(|time| time.as_secs_f64()).sum::<f64>())
    };
    let points = |key_path: bool| {
        let rounds =
            report.rounds.values().filter(move |round| round.is_signed() && round.on_key_path() == key_path);
        rounds.map(point).collect::<Vec<_>>()
    };
    let (all, enough) = (points(true), points(false));
    let most = all
        .iter()
        .chain(&enough)
        .fold((1.0, 0.1), |most: (f64, f64), point| (most.0.max(point.0), most.1.max(point.1)));
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Time from formed to signed, against members", TITLE)
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..most.0 * 1.1, 0.0..most.1 * 1.1)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&short)
        .y_label_formatter(&short)
        .x_desc("members")
        .y_desc("seconds")
        .draw()?;
    for (points, colour, name) in [(all, BLUE, "signed by all (key path)"), (enough, RED, "by enough (fallback)")] {
        chart
            .draw_series(points.into_iter().map(|point| Circle::new(point, 4, colour.mix(0.6).filled())))?
            .label(name)
            .legend(move |at| Circle::new(at, 4, colour.mix(0.6).filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.2))
        .label_font(LABEL)
        .draw()?;
    root.present()?;
    Ok(())
}

/// A number without trailing zeros.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "the charts ask for it")]
fn short(value: &f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
