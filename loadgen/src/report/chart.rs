//! Charts as SVG, to stand inside a page: lines over time, latency over percentiles, bars side by side.
//!
//! Each chart is drawn twice, wide for a desk and paper, narrow for a phone, so that its text keeps its size;
//! the page shows the one that fits. Colours are names: each colour drawn here is a key that the page's style
//! sheet (`page.css`) turns into that of the light or the dark theme. Legends are the page's, beside the
//! drawing, where they cover nothing.
//!
//! The palette is that of Okabe and Ito, "Color Universal Design" (2008), made to be told apart with any kind
//! of colour vision. The light theme begins with its dark colours, the dark theme with its light ones.
//!
//! Invariants: no data makes drawing panic; a value that is not finite (or not positive on a logarithmic
//! axis) leaves a gap, it is never drawn as something else; data that makes no picture is told in words.

use std::iter::once;

use plotters::chart::ChartContext;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::element::{Circle, PathElement, Polygon, Rectangle};
use plotters::prelude::{Cartesian2d, ChartBuilder, DrawingArea, IntoDrawingArea, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontFamily, IntoFont, RGBColor, ShapeStyle, TextStyle};

use crate::report::axis::{Axis, Scale, Tick, lone};

/// The keys of colours: text, axis, grid, and event marks with the reference line.
const INK: RGBColor = RGBColor(0x2b, 0x2f, 0x36);
const AXIS: RGBColor = RGBColor(0x8a, 0x90, 0x99);
const GRID: RGBColor = RGBColor(0xdf, 0xe2, 0xe6);
const MARK: RGBColor = RGBColor(0x6b, 0x72, 0x80);

/// The keys of the series' colours, by kind. 0 and 5, 1 and 4 are pairs, the first of each the stronger. The
/// second half repeats the first (with the lowest bit of blue changed) and is drawn dashed or pale. Further
/// kinds begin again.
const SERIES: [RGBColor; 14] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x00, 0x00),
    RGBColor(0x00, 0x72, 0xb3),
    RGBColor(0xd5, 0x5e, 0x01),
    RGBColor(0x00, 0x9e, 0x72),
    RGBColor(0xcc, 0x79, 0xa6),
    RGBColor(0xe6, 0x9f, 0x01),
    RGBColor(0x56, 0xb4, 0xe8),
    RGBColor(0x00, 0x00, 0x01),
];

/// How many kinds of series the style sheet knows.
pub(crate) const SERIES_KINDS: usize = SERIES.len();

/// A series' colour as it stands in the drawings.
pub(crate) fn series_key(kind: usize) -> String {
    let RGBColor(red, green, blue) = SERIES[kind % SERIES_KINDS];
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// Drawing units per pixel: the drawing library places on whole units, lines should be finer than pixels.
const UNITS: f64 = 2.0;

/// Height of the text, pixels.
const TEXT: f64 = 13.0;

/// A chart.
#[derive(Debug, Clone)]
pub(crate) enum Chart {
    Lines(Lines),
    Percentiles(Percentiles),
    Bars(Bars),
}

/// Lines over an axis, usually time.
#[derive(Debug, Clone)]
pub(crate) struct Lines {
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
    /// Events: where on the x axis, and what happened.
    pub(crate) marks: Vec<(f64, String)>,
}

/// One curve.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// Colour and dashes: the n-th kind of the style sheet.
    pub(crate) kind: usize,
    /// (x, y); x does not fall. A y that is not finite is a gap.
    pub(crate) points: Vec<(f64, f64)>,
    pub(crate) style: Style,
}

/// How a curve is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Line,
    /// A filled band on top of the stacked series before it, which must have the same x values. A gap counts
    /// as zero. On a linear y axis only.
    Stacked,
}

/// Latency (or another amount) over percentiles, on the axis of HdrHistogram's plots: 1 / (1 − quantile),
/// logarithmic, so that each further nine is as wide as the last.
#[derive(Debug, Clone)]
pub(crate) struct Percentiles {
    pub(crate) y: Axis,
    /// (quantile from 0 to 1, y), quantiles rising.
    pub(crate) series: Vec<Series>,
}

/// Bars in groups.
#[derive(Debug, Clone)]
pub(crate) struct Bars {
    /// A linear axis.
    pub(crate) y: Axis,
    pub(crate) groups: Vec<String>,
    pub(crate) series: Vec<BarSeries>,
    /// A line across all groups, and what it stands for.
    pub(crate) reference: Option<(f64, String)>,
}

/// The bars of one colour.
#[derive(Debug, Clone)]
pub(crate) struct BarSeries {
    pub(crate) name: String,
    /// One per group; `None`: not measured.
    pub(crate) bars: Vec<Option<Bar>>,
}

/// A value with the range it was seen in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bar {
    pub(crate) value: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// A line of a legend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) swatch: Swatch,
    pub(crate) name: String,
}

/// The picture in a legend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Swatch {
    /// A line of the n-th kind.
    Line(usize),
    /// A filled field of the n-th kind.
    Field(usize),
    /// The dashes of the reference line.
    Reference,
}

/// For which width a chart is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    Wide,
    Narrow,
}

/// What a chart comes to.
#[derive(Debug)]
pub(crate) enum Drawing {
    /// An `svg` element.
    Svg(String),
    /// There is nothing to draw; this is to be said in its place.
    Words(String),
}

impl Chart {
    /// Draws the chart. `title` and a description of the data are for those who do not see it; `id` must be
    /// unique in the page.
    ///
    /// # Errors
    /// If the drawing library fails, which it has no reason to.
    pub(crate) fn draw(&self, title: &str, id: &str, width: Width) -> anyhow::Result<Drawing> {
        if let Some(words) = self.words() {
            return Ok(Drawing::Words(words));
        }
        let sheet = Sheet::new(width);
        let mut drawn = String::new();
        {
            let root = SVGBackend::with_string(&mut drawn, sheet.size()).into_drawing_area();
            match self {
                Chart::Lines(lines) => lines.draw(&root, &sheet)?,
                Chart::Percentiles(percentiles) => percentiles.draw(&root, &sheet)?,
                Chart::Bars(bars) => bars.draw(&root, &sheet)?,
            }
            root.present()?;
        }
        // The library's opening tag has a fixed size and no words.
        let inner = drawn.split_once('>').map_or("", |(_, inner)| inner.trim_start());
        let (w, h) = sheet.size();
        let (title, description) = (maud::html! { (title) }, maud::html! { (self.description()) });
        Ok(Drawing::Svg(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" role=\"img\" \
             aria-labelledby=\"{id}-title {id}-desc\">\n<title id=\"{id}-title\">{}</title>\
             <desc id=\"{id}-desc\">{}</desc>\n{inner}",
            title.into_string(),
            description.into_string(),
        )))
    }

    /// The legend.
    pub(crate) fn legend(&self) -> Vec<Key> {
        let curve = |series: &Series| Key {
            swatch: match series.style {
                Style::Line => Swatch::Line(series.kind % SERIES_KINDS),
                Style::Stacked => Swatch::Field(series.kind % SERIES_KINDS),
            },
            name: series.name.clone(),
        };
        match self {
            Chart::Lines(Lines { series, .. }) | Chart::Percentiles(Percentiles { series, .. }) => {
                series.iter().map(curve).collect()
            }
            Chart::Bars(bars) => {
                let field = |(index, series): (usize, &BarSeries)| Key {
                    swatch: Swatch::Field(index % SERIES_KINDS),
                    name: series.name.clone(),
                };
                let reference =
                    bars.reference.iter().filter(|(value, _)| bars.axis().place(*value).is_some());
                let reference =
                    reference.map(|(_, name)| Key { swatch: Swatch::Reference, name: name.clone() });
                bars.series.iter().enumerate().map(field).chain(reference).collect()
            }
        }
    }

    /// What is said in place of a picture; `None`: there is a picture.
    fn words(&self) -> Option<String> {
        const NOTHING: &str = "Nothing was measured here.";
        let points: Vec<(&Series, (f64, f64))> = match self {
            Chart::Bars(bars) => {
                return bars.bars().next().is_none().then(|| NOTHING.to_owned());
            }
            Chart::Lines(lines) => lines
                .series
                .iter()
                .flat_map(|series| series.points.iter().map(move |point| (series, *point)))
                .filter(|(_, (x, y))| lines.x.place(*x).is_some() && lines.y.place(*y).is_some())
                .collect(),
            Chart::Percentiles(plot) => {
                let shown =
                    |(quantile, y): &(f64, f64)| (0.0..=1.0).contains(quantile) && plot.y.place(*y).is_some();
                let any = plot.series.iter().any(|series| series.points.iter().any(shown));
                return (!any).then(|| NOTHING.to_owned());
            }
        };
        let Some((_, (first, _))) = points.first().copied() else { return Some(NOTHING.to_owned()) };
        if points.iter().any(|(_, (x, _))| *x != first) {
            return None;
        }
        let Chart::Lines(lines) = self else { return None };
        let values: Vec<String> = points
            .iter()
            .map(|(series, (_, y))| format!("{} {}", series.name, lone(lines.y.unit, *y)))
            .collect();
        Some(format!(
            "One look only, at {}, which makes no line: {}.",
            lone(lines.x.unit, first),
            values.join(", ")
        ))
    }

    /// The data in words, for those who do not see the picture.
    fn description(&self) -> String {
        let spans = |y: &Axis, series: &[Series]| {
            let spans = series.iter().map(|series| {
                let values: Vec<f64> =
                    series.points.iter().map(|(_, y)| *y).filter(|value| y.place(*value).is_some()).collect();
                let low = values.iter().copied().reduce(f64::min);
                match low.zip(values.iter().copied().reduce(f64::max)) {
                    Some((low, high)) => {
                        format!("{} from {} to {}", series.name, lone(y.unit, low), lone(y.unit, high))
                    }
                    None => format!("{} not measured", series.name),
                }
            });
            spans.collect::<Vec<_>>().join("; ")
        };
        match self {
            Chart::Lines(lines) => {
                let mut text =
                    format!("{} over {}: {}.", lines.y.label, lines.x.label, spans(&lines.y, &lines.series));
                for (at, what) in &lines.marks {
                    text.push_str(&format!(" At {}: {what}.", lone(lines.x.unit, *at)));
                }
                text
            }
            Chart::Percentiles(plot) => {
                format!("{} by percentile: {}.", plot.y.label, spans(&plot.y, &plot.series))
            }
            Chart::Bars(bars) => {
                let series = bars.series.iter().map(|series| {
                    let values = bars.groups.iter().zip(&series.bars).map(|(group, bar)| match bar {
                        Some(bar) => format!("{group} {}", lone(bars.y.unit, bar.value)),
                        None => format!("{group} not measured"),
                    });
                    format!("{}: {}", series.name, values.collect::<Vec<_>>().join(", "))
                });
                format!("{}. {}.", bars.y.label, series.collect::<Vec<_>>().join("; "))
            }
        }
    }
}

type Root<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plot<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<Scale, Scale>>;

/// A scale as the drawing library's coordinate: places to units, ticks as they were made.
impl Ranged for Scale {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, (start, end): (i32, i32)) -> i32 {
        let part = (place - self.range.start) / (self.range.end - self.range.start);
        start + (f64::from(end - start) * part).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            self.minor.clone()
        } else {
            self.ticks.iter().map(|tick| tick.place).collect()
        }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Scale {
    fn format_ext(&self, place: &f64) -> String {
        let tick = self.ticks.iter().find(|tick| tick.place == *place);
        tick.map_or_else(String::new, |tick| tick.label.clone())
    }
}

/// Sizes of a drawing, in pixels unless a name says otherwise.
#[derive(Debug, Clone, Copy)]
struct Sheet {
    width: f64,
    height: f64,
    x_ticks: usize,
    y_ticks: usize,
    mark_rows: usize,
}

impl Sheet {
    fn new(width: Width) -> Sheet {
        match width {
            Width::Wide => Sheet { width: 860.0, height: 300.0, x_ticks: 10, y_ticks: 5, mark_rows: 3 },
            Width::Narrow => Sheet { width: 380.0, height: 280.0, x_ticks: 5, y_ticks: 5, mark_rows: 3 },
        }
    }

    fn size(&self) -> (u32, u32) {
        ((self.width * UNITS) as u32, (self.height * UNITS) as u32)
    }

    /// Makes the plot: axes, grid, labels. `above` is room kept free above the plot, beside that of the y
    /// label.
    fn plot<'a>(
        &self,
        root: &Root<'a>,
        (x, x_label): (&Scale, &str),
        (y, y_label): (&Scale, &str),
        x_grid: bool,
        above: f64,
    ) -> anyhow::Result<Plot<'a>> {
        let left = y.ticks.iter().map(|tick| text_width(&tick.label)).fold(0.0, f64::max) + 12.0;
        let head = TEXT + 14.0 + above;
        let tail = if x_label.is_empty() { TEXT + 14.0 } else { 2.0 * TEXT + 20.0 };
        root.draw_text(y_label, &text(INK, HPos::Left, VPos::Top), (units(2.0), units(1.0)))?;
        let middle = left + (self.width - left - RIGHT) / 2.0;
        let below = (units(middle), units(self.height - 2.0));
        root.draw_text(x_label, &text(INK, HPos::Center, VPos::Bottom), below)?;
        let mut plot = ChartBuilder::on(root)
            .margin_top(units(head))
            .margin_right(units(RIGHT))
            .x_label_area_size(units(tail))
            .y_label_area_size(units(left))
            .build_cartesian_2d(x.clone(), y.clone())?;
        let mut mesh = plot.configure_mesh();
        mesh.bold_line_style(line(GRID, 1.0))
            .light_line_style(ShapeStyle { color: GRID.mix(0.5), filled: false, stroke_width: 1 })
            .axis_style(line(AXIS, 1.0))
            .set_all_tick_mark_size(units(4.0))
            .label_style(text(INK, HPos::Center, VPos::Center));
        if !x_grid {
            mesh.disable_x_mesh();
        }
        mesh.draw()?;
        Ok(plot)
    }

    /// How wide the plot is, about: for deciding how many labels there is room for.
    fn plot_width(&self) -> f64 {
        self.width - RIGHT - 60.0
    }
}

/// Room at the right of the plot, so that the last label is not cut.
const RIGHT: f64 = 26.0;

fn units(pixels: f64) -> i32 {
    (pixels * UNITS).round() as i32
}

fn line(color: RGBColor, pixels: f64) -> ShapeStyle {
    ShapeStyle { color: color.to_rgba(), filled: false, stroke_width: units(pixels) as u32 }
}

fn fill(color: RGBColor, opacity: f64) -> ShapeStyle {
    ShapeStyle { color: color.mix(opacity), filled: true, stroke_width: 0 }
}

fn text(color: RGBColor, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    // The library divides sizes by 1.24 when it writes them.
    let font = (FontFamily::SansSerif, TEXT * UNITS * 1.24).into_font();
    font.color(&color).pos(Pos::new(horizontal, vertical))
}

/// How wide a text is, about, in pixels: widths of Helvetica's letters, which others come near to.
fn text_width(text: &str) -> f64 {
    let ems = text.chars().map(|letter| match letter {
        'i' | 'j' | 'l' | '.' | ',' | ':' | ';' | '|' | '\'' | ' ' | 'I' | 'f' | 't' => 0.29,
        'm' | 'w' | 'M' | 'W' | '%' | '@' => 0.88,
        letter if letter.is_uppercase() => 0.7,
        letter if letter.is_ascii() => 0.56,
        _ => 0.7,
    });
    ems.sum::<f64>() * TEXT
}

/// Cuts a text to a width in pixels.
fn cut(text: &str, width: f64) -> String {
    if text_width(text) <= width {
        return text.to_owned();
    }
    let mut short: String = text.to_owned();
    while !short.is_empty() && text_width(&short) + text_width("…") > width {
        short.pop();
    }
    short.truncate(short.trim_end().len());
    short.push('…');
    short
}

/// Empties labels that would run into their neighbours: of regular ticks every second, third .. stays.
fn thin_labels(scale: &mut Scale, width: f64) {
    let per_place = width / (scale.range.end - scale.range.start);
    let needs = |tick: &Tick| (text_width(&tick.label) + 10.0) / 2.0;
    for apart in 1..=scale.ticks.len().max(1) {
        let kept: Vec<&Tick> = scale.ticks.iter().step_by(apart).collect();
        let fits = kept
            .windows(2)
            .all(|pair| (pair[1].place - pair[0].place) * per_place >= needs(pair[0]) + needs(pair[1]));
        if fits {
            for (place, tick) in scale.ticks.iter_mut().enumerate() {
                if place % apart != 0 {
                    tick.label.clear();
                }
            }
            return;
        }
    }
}

/// Cuts a curve into its pieces between gaps, in places.
fn pieces(points: &[(f64, f64)], x: impl Fn(f64) -> Option<f64>, y: &Axis) -> Vec<Vec<(f64, f64)>> {
    let mut pieces = vec![Vec::new()];
    for point in points {
        match x(point.0).zip(y.place(point.1)) {
            Some(place) => pieces.last_mut().into_iter().for_each(|piece| piece.push(place)),
            None => pieces.push(Vec::new()),
        }
    }
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

/// Leaves out points that no eye could tell apart: of those that share one of `columns` columns, the first,
/// the lowest, the highest and the last stay.
fn thin_points(points: Vec<(f64, f64)>, range: &std::ops::Range<f64>, columns: usize) -> Vec<(f64, f64)> {
    if points.len() <= 4 * columns || !points.is_sorted_by(|a, b| a.0 <= b.0) {
        return points;
    }
    let column = |x: f64| ((x - range.start) / (range.end - range.start) * columns as f64) as i64;
    let mut kept = Vec::with_capacity(4 * columns);
    for crowd in points.chunk_by(|a, b| column(a.0) == column(b.0)) {
        let by_height = |a: &usize, b: &usize| crowd[*a].1.total_cmp(&crowd[*b].1);
        let lowest = (0..crowd.len()).min_by(by_height).unwrap_or(0);
        let highest = (0..crowd.len()).max_by(by_height).unwrap_or(0);
        let mut places = vec![0, lowest, highest, crowd.len() - 1];
        places.sort_unstable();
        places.dedup();
        kept.extend(places.into_iter().map(|place| crowd[place]));
    }
    kept
}

/// Draws the pieces of a curve; a point alone is a dot.
fn draw_curve(plot: &mut Plot<'_>, pieces: Vec<Vec<(f64, f64)>>, color: RGBColor) -> anyhow::Result<()> {
    for piece in pieces {
        if let [point] = piece[..] {
            plot.draw_series(once(Circle::new(point, units(2.5), fill(color, 1.0))))?;
        } else {
            plot.draw_series(once(PathElement::new(piece, line(color, 1.75))))?;
        }
    }
    Ok(())
}

impl Lines {
    /// Heights of the series as they are drawn: those of stacked ones with what is beneath them.
    fn drawn(&self) -> Vec<Vec<(f64, f64)>> {
        let mut beneath: Vec<f64> = Vec::new();
        let stack = |series: &Series| match series.style {
            Style::Line => series.points.clone(),
            Style::Stacked => {
                beneath.resize(beneath.len().max(series.points.len()), 0.0);
                let raised = series.points.iter().zip(&mut beneath).map(|((x, y), beneath)| {
                    *beneath += if y.is_finite() { *y } else { 0.0 };
                    (*x, *beneath)
                });
                raised.collect()
            }
        };
        self.series.iter().map(stack).collect()
    }

    fn draw(&self, root: &Root<'_>, sheet: &Sheet) -> anyhow::Result<()> {
        let drawn = self.drawn();
        let all = || drawn.iter().flatten();
        let mut x = self.x.scale(all().map(|point| point.0), sheet.x_ticks);
        let y = self.y.scale(all().map(|point| point.1), sheet.y_ticks);
        thin_labels(&mut x, sheet.plot_width());
        let marks = self.rows(&x, sheet);
        let rows = marks.iter().filter_map(|mark| mark.row).max().map_or(0, |row| row + 1);
        let above = rows as f64 * (TEXT + 3.0);
        let mut plot = sheet.plot(root, (&x, &self.x.label), (&y, &self.y.label), self.x.log, above)?;
        let columns = sheet.plot_width() as usize;
        let place = |value| self.x.place(value);
        let mut floor: Vec<(f64, f64)> = Vec::new();
        for (series, points) in self.series.iter().zip(drawn) {
            let color = SERIES[series.kind % SERIES_KINDS];
            let thinned: Vec<_> = pieces(&points, place, &self.y)
                .into_iter()
                .map(|piece| thin_points(piece, &x.range, columns))
                .collect();
            if series.style == Style::Stacked {
                let top: Vec<_> = thinned.iter().flatten().copied().collect();
                if let (Some(first), Some(last)) = (top.first(), top.last()) {
                    let bottom = if floor.is_empty() { vec![(first.0, 0.0), (last.0, 0.0)] } else { floor };
                    let outline: Vec<_> = top.iter().copied().chain(bottom.into_iter().rev()).collect();
                    plot.draw_series(once(Polygon::new(outline, fill(color, 0.35))))?;
                }
                floor = top;
            }
            draw_curve(&mut plot, thinned, color)?;
        }
        for mark in &marks {
            let (bottom, top) = ((mark.place, y.range.start), (mark.place, y.range.end));
            plot.draw_series(once(PathElement::new(vec![bottom, top], line(MARK, 1.0))))?;
            let Some(row) = mark.row else { continue };
            let (at, plot_top) = plot.backend_coord(&top);
            let above = units((row + 1) as f64 * (TEXT + 3.0));
            let style = text(MARK, if mark.leftwards { HPos::Right } else { HPos::Left }, VPos::Top);
            root.draw_text(&mark.label, &style, (at, plot_top - above))?;
        }
        Ok(())
    }

    /// Finds a row above the plot for each event's label, so that none runs into another; those that find no
    /// room stay without.
    fn rows(&self, x: &Scale, sheet: &Sheet) -> Vec<PlacedMark> {
        let per_place = sheet.plot_width() / (x.range.end - x.range.start);
        let mut free_from = vec![0.0; sheet.mark_rows];
        let mut marks: Vec<(f64, &str)> = self
            .marks
            .iter()
            .filter_map(|(at, label)| Some((self.x.place(*at)?, label.as_str())))
            .filter(|(place, _)| (x.range.start..=x.range.end).contains(place))
            .collect();
        marks.sort_by(|a, b| a.0.total_cmp(&b.0));
        let placed = marks.into_iter().map(|(place, label)| {
            let label = cut(label, sheet.plot_width() / 2.0);
            let at = (place - x.range.start) * per_place;
            let length = text_width(&label);
            let leftwards = at + length > sheet.plot_width();
            let (from, to) = if leftwards { (at - length, at) } else { (at, at + length) };
            let row = free_from.iter().position(|free| *free <= from);
            if let Some(row) = row {
                free_from[row] = to + 10.0;
            }
            PlacedMark { place, label, row, leftwards }
        });
        placed.collect()
    }
}

/// An event with the place of its label: the row, from the plot upwards, and on which side of its line.
#[derive(Debug)]
struct PlacedMark {
    place: f64,
    label: String,
    row: Option<usize>,
    leftwards: bool,
}

impl Percentiles {
    fn draw(&self, root: &Root<'_>, sheet: &Sheet) -> anyhow::Result<()> {
        // The place of a quantile: how many nines it has.
        let nines = |quantile: f64| {
            let place = -(1.0 - quantile).log10();
            place.is_finite().then_some(place.max(0.0))
        };
        let points = || self.series.iter().flat_map(|series| &series.points);
        let most = points().filter_map(|(quantile, _)| nines(*quantile)).fold(0.0, f64::max);
        let end = (most - 1e-9).ceil().clamp(2.0, 9.0);
        let place = |quantile: f64| if quantile >= 1.0 { Some(end) } else { nines(quantile) };
        let mut ticks =
            vec![Tick { place: 0.0, label: "0".into() }, Tick { place: 2f64.log10(), label: "50".into() }];
        ticks.extend((1..end as usize).map(|nines| Tick { place: nines as f64, label: percentile(nines) }));
        ticks.push(Tick { place: end, label: "100".into() });
        let per_place = sheet.plot_width() / end;
        let mut free_from = f64::MIN;
        for tick in &mut ticks {
            let (at, half) = (tick.place * per_place, (text_width(&tick.label) + 4.0) / 2.0);
            let before_end = tick.place == end || at + half < sheet.plot_width() - 15.0;
            if at - half >= free_from && before_end {
                free_from = at + half;
            } else {
                tick.label.clear();
            }
        }
        let x = Scale::of(0.0..end, ticks);
        let y = self.y.scale(points().map(|point| point.1), sheet.y_ticks + 1);
        let mut plot = sheet.plot(root, (&x, "Percentile"), (&y, &self.y.label), true, 0.0)?;
        for series in &self.series {
            draw_curve(
                &mut plot,
                pieces(&series.points, place, &self.y),
                SERIES[series.kind % SERIES_KINDS],
            )?;
        }
        Ok(())
    }
}

/// The percentile of so many nines: 90, 99, 99.9.
fn percentile(nines: usize) -> String {
    match nines {
        1 => "90".to_owned(),
        2 => "99".to_owned(),
        nines => format!("99.{}", "9".repeat(nines - 2)),
    }
}

impl Bars {
    /// Bars have no logarithm: their lengths are amounts.
    fn axis(&self) -> Axis {
        Axis { log: false, ..self.y.clone() }
    }

    /// All bars that can be drawn: group, series, bar.
    fn bars(&self) -> impl Iterator<Item = (usize, usize, Bar)> {
        self.series.iter().enumerate().flat_map(|(series, of)| {
            let bars = of.bars.iter().enumerate().take(self.groups.len());
            let known = bars.filter_map(|(group, bar)| Some((group, (*bar)?)));
            known
                .filter(|(_, bar)| self.axis().place(bar.value).is_some())
                .map(move |(group, bar)| (group, series, bar))
        })
    }

    fn draw(&self, root: &Root<'_>, sheet: &Sheet) -> anyhow::Result<()> {
        /// Part of a group's place that its bars fill.
        const FILLED: f64 = 0.8;
        let axis = self.axis();
        let known = |value: &f64| axis.place(*value).is_some();
        let reference = self.reference.as_ref().map(|(value, _)| *value).filter(known);
        let heights = self.bars().flat_map(|(_, _, bar)| [bar.value, bar.min, bar.max]).chain(reference);
        let y = axis.scale(heights, sheet.y_ticks);
        let slot = sheet.plot_width() / self.groups.len() as f64;
        let ticks = self.groups.iter().enumerate();
        let ticks = ticks.map(|(n, name)| Tick { place: n as f64 + 0.5, label: cut(name, slot - 6.0) });
        let x = Scale::of(0.0..self.groups.len() as f64, ticks.collect());
        let mut plot = sheet.plot(root, (&x, ""), (&y, &self.y.label), false, 0.0)?;
        let width = FILLED / self.series.len() as f64;
        // A hair between the bars, unless they are as thin as hairs.
        let air = (1.0 / slot).min(width / 6.0);
        for (group, series, bar) in self.bars() {
            let from = group as f64 + (1.0 - FILLED) / 2.0 + series as f64 * width;
            let (left, right, middle) = (from + air, from + width - air, from + width / 2.0);
            let color = SERIES[series % SERIES_KINDS];
            plot.draw_series(once(Rectangle::new([(left, 0.0), (right, bar.value)], fill(color, 1.0))))?;
            if known(&bar.min) && known(&bar.max) && bar.max > bar.min {
                let cap = (right - left).min(8.0 / slot) / 2.0;
                for path in [
                    vec![(middle, bar.min), (middle, bar.max)],
                    vec![(middle - cap, bar.min), (middle + cap, bar.min)],
                    vec![(middle - cap, bar.max), (middle + cap, bar.max)],
                ] {
                    plot.draw_series(once(PathElement::new(path, line(INK, 1.0))))?;
                }
            }
        }
        if let Some(height) = reference {
            let path = vec![(0.0, height), (self.groups.len() as f64, height)];
            plot.draw_series(once(PathElement::new(path, line(MARK, 1.5))))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
