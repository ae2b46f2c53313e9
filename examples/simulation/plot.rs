//! Charts of a simulation, as SVG.

use std::path::Path;

use plotters::prelude::*;

use crate::{
    report::{PHASES, Report, Round},
    support::Outcome,
};

const SIZE: (u32, u32) = (800, 480);

/// Draws all charts into the directory.
pub(crate) fn draw(report: &Report, directory: &Path) -> Outcome<()> {
    std::fs::create_dir_all(directory)?;
    let phases: Vec<_> =
        PHASES.iter().copied().zip(report.medians().iter().map(|time| time.as_secs_f64())).collect();
    bars(&directory.join("phases.svg"), "Median time of each phase", "seconds", &phases)?;
    let messages: Vec<_> = report.messages.iter().map(|(kind, &count)| (*kind, count as f64)).collect();
    bars(&directory.join("messages.svg"), "Messages by type", "messages", &messages)?;
    time_against_members(&directory.join("members.svg"), report)
}

/// Horizontal bars, each with its name.
fn bars(path: &Path, title: &str, unit: &str, values: &[(&str, f64)]) -> Outcome<()> {
    let most = values.iter().map(|(_, value)| *value).fold(1.0, f64::max);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(40)
        .build_cartesian_2d(0.0..most * 1.4, 0.0..values.len() as f64)?;
    chart.configure_mesh().disable_y_mesh().disable_y_axis().x_desc(unit).draw()?;
    for (row, (name, value)) in values.iter().enumerate() {
        let bottom = (values.len() - 1 - row) as f64;
        let bar = Rectangle::new([(0.0, bottom + 0.15), (*value, bottom + 0.85)], BLUE.mix(0.5).filled());
        chart.draw_series([bar])?;
        let text = format!("{name}  {value:.6}").trim_end_matches('0').trim_end_matches('.').to_owned();
        chart.draw_series([Text::new(text, (*value, bottom + 0.6), ("sans-serif", 13))])?;
    }
    root.present()?;
    Ok(())
}

/// From the first key to the signed transaction, against how many sign.
fn time_against_members(path: &Path, report: &Report) -> Outcome<()> {
    let point = |round: &Round| {
        (round.members as f64, round.phase_times()[1..].iter().map(|time| time.as_secs_f64()).sum())
    };
    let points: Vec<(f64, f64)> = report.rounds.values().filter(|round| round.is_signed()).map(point).collect();
    let most = points.iter().fold((1.0, 0.1), |most: (f64, f64), point| (most.0.max(point.0), most.1.max(point.1)));
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Time from formed to signed, against members", ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..most.0 * 1.1, 0.0..most.1 * 1.1)?;
    chart.configure_mesh().x_desc("members").y_desc("seconds").draw()?;
    chart.draw_series(points.into_iter().map(|point| Circle::new(point, 4, BLUE.filled())))?;
    root.present()?;
    Ok(())
}
