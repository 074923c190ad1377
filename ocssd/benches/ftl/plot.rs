//! Device WA over use, a line for each workload, as SVG that needs nothing else.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::prelude::*;
use plotters::series::DashedLineSeries;

use crate::cell::Row;

/// The palette of Okabe and Ito, told apart with any kind of colour vision.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x00, 0x00),
    RGBColor(0x80, 0x80, 0x80),
];

/// Draws the rows of the workloads' table without streams: with TRIM as lines, without as dashes.
pub(crate) fn write(path: &Path, rows: &[Row]) -> anyhow::Result<()> {
    let mut lines: BTreeMap<(String, bool), Vec<(f64, f64)>> = BTreeMap::new();
    for row in rows.iter().filter(|row| !row.streams && row.victim == "greedy") {
        let points = lines.entry((row.workload.clone(), row.trim)).or_default();
        points.push((f64::from(row.used_percent), row.device_wa));
    }
    // A single point is no line.
    lines.retain(|_, points| points.len() > 1);
    if lines.is_empty() {
        return Err(anyhow!("a plot needs two different shares of use"));
    }
    let all = || lines.values().flatten();
    let low = all().map(|(used, _)| *used).fold(f64::INFINITY, f64::min);
    let high = all().map(|(used, _)| *used).fold(0.0, f64::max);
    let top = all().map(|(_, wa)| *wa).fold(1.0, f64::max);
    let context = || format!("drawing {}", path.display());
    draw(path, &lines, low..high, top).map_err(|error| anyhow!("{error}")).with_context(context)
}

fn draw(
    path: &Path,
    lines: &BTreeMap<(String, bool), Vec<(f64, f64)>>,
    used: std::ops::Range<f64>,
    top: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    let whole = SVGBackend::new(path, (1180, 560)).into_drawing_area();
    whole.fill(&WHITE)?;
    let (area, legend) = whole.split_horizontally(920);
    let mut chart = ChartBuilder::on(&area)
        .caption("Device write amplification of an ordinary drive, writers mixed", ("sans-serif", 18))
        .margin(16)
        .set_label_area_size(LabelAreaPosition::Left, 48)
        .set_label_area_size(LabelAreaPosition::Bottom, 44)
        .build_cartesian_2d(used, 1.0..top * 1.05)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE.mix(0.0))
        .x_desc("share of the logical space in use, percent")
        .y_desc("device WA")
        .label_style(("sans-serif", 13))
        .draw()?;
    let mut names: Vec<&String> = lines.keys().map(|(name, _)| name).collect();
    names.dedup();
    for (line, ((name, trim), points)) in lines.iter().enumerate() {
        let index = names.iter().position(|other| *other == name).expect("it is one of the keys");
        let style = COLOURS[index % COLOURS.len()].stroke_width(2);
        let points = points.iter().copied();
        let row = 60 + 22 * line as i32;
        let told = if *trim { "TRIM" } else { "no TRIM" };
        legend.draw(&Text::new(format!("{name}, {told}"), (36, row), ("sans-serif", 13)))?;
        if *trim {
            legend.draw(&PathElement::new([(0, row + 5), (28, row + 5)], style))?;
            chart.draw_series(LineSeries::new(points.clone(), style))?;
        } else {
            for start in [0, 10, 20] {
                legend.draw(&PathElement::new([(start, row + 5), (start + 6, row + 5)], style))?;
            }
            chart.draw_series(DashedLineSeries::new(points.clone(), 6, 4, style))?;
        }
        chart.draw_series(points.map(|point| Circle::new(point, 3, style.filled())))?;
    }
    whole.present()?;
    Ok(())
}
