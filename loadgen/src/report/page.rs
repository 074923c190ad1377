//! A report as one HTML file: title and verdict, where it was measured, charts and tables.
//!
//! The file needs nothing else: no script, no font, no image, no request (its own content security policy
//! forbids them). It follows the reader's light or dark theme and can be printed.
//!
//! Invariant: every text is escaped; only drawings, made by `chart`, are taken as they are.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::report::chart::{Chart, Drawing, Key, SERIES_KINDS, Swatch, Width, series_key};

/// The colours that a theme has for series; further kinds are the same ones, dashed or pale.
const THEME_COLOURS: usize = SERIES_KINDS / 2;

/// From how many sections on a list of them stands at the beginning.
const SECTIONS_FOR_CONTENTS: usize = 5;

/// A page.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    pub(crate) title: String,
    /// What was measured, in one line.
    pub(crate) subtitle: String,
    pub(crate) verdict: Verdict,
    /// Machine, kernel, device, versions: name and value.
    pub(crate) facts: Vec<(String, String)>,
    /// The command that made the report.
    pub(crate) command: String,
    pub(crate) sections: Vec<Section>,
}

/// How it ended, and what that means in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Everything asked for was done, every promise kept.
    Good(String),
    /// It was cut short, or not all was measured.
    Partial(String),
    /// Something acknowledged was lost, or it failed.
    Bad(String),
}

/// A part of the page.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    pub(crate) title: String,
    /// How to read it.
    pub(crate) note: Option<String>,
    pub(crate) body: Body,
}

/// What a section shows.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    Chart(Chart),
    Table(Table),
    /// Plain text; line breaks stay.
    Text(String),
}

/// A table: the first column names the rows and stands left, all others are numbers and stand right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Section {
    /// A section with a chart.
    pub(crate) fn chart(title: &str, note: Option<&str>, chart: Chart) -> Section {
        Section { title: title.to_owned(), note: note.map(str::to_owned), body: Body::Chart(chart) }
    }

    /// A section with a table.
    pub(crate) fn table(title: &str, note: Option<&str>, table: Table) -> Section {
        Section { title: title.to_owned(), note: note.map(str::to_owned), body: Body::Table(table) }
    }

    /// A section with plain text.
    pub(crate) fn text(title: &str, text: &str) -> Section {
        Section { title: title.to_owned(), note: None, body: Body::Text(text.to_owned()) }
    }
}

impl Page {
    /// Writes the page to a file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let html = self.html()?;
        crate::output::whole(path, html.as_bytes())
            .with_context(|| format!("cannot write the page {}", path.display()))
    }

    /// The page as HTML.
    ///
    /// # Errors
    /// If a chart cannot be drawn, for which there is no reason.
    pub(crate) fn html(&self) -> anyhow::Result<String> {
        let mut sections = Vec::new();
        for (number, section) in self.sections.iter().enumerate() {
            let drawn = section.html(number);
            sections.push(drawn.with_context(|| format!("cannot draw \"{}\"", section.title))?);
        }
        let (tone, word, words) = match &self.verdict {
            Verdict::Good(words) => ("good", "Passed", words),
            Verdict::Partial(words) => ("partial", "Partial", words),
            Verdict::Bad(words) => ("bad", "Failed", words),
        };
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                    title { (self.title) }
                    style { (PreEscaped(style())) }
                }
                body {
                    main {
                        header {
                            h1 { (self.title) }
                            @if !self.subtitle.is_empty() { p class="subtitle" { (self.subtitle) } }
                            p class={ "verdict " (tone) } { strong { (word) "." } " " (words) }
                            @if !self.facts.is_empty() {
                                dl class="facts" {
                                    @for (name, value) in &self.facts { dt { (name) } dd { (value) } }
                                }
                            }
                            @if !self.command.is_empty() { pre { code { (command(&self.command)) } } }
                            @if self.sections.len() >= SECTIONS_FOR_CONTENTS {
                                nav aria-label="Contents" {
                                    ul {
                                        @for (number, section) in self.sections.iter().enumerate() {
                                            li { a href={ "#s" (number) } { (section.title) } }
                                        }
                                    }
                                }
                            }
                        }
                        @for section in &sections { (section) }
                    }
                }
            }
        };
        Ok(page.into_string())
    }
}

impl Section {
    fn html(&self, number: usize) -> anyhow::Result<Markup> {
        let body = match &self.body {
            Body::Chart(chart) => figure(chart, &self.title, number)?,
            Body::Table(table) => table.html(),
            Body::Text(text) => html! { p class="text" { (text) } },
        };
        Ok(html! {
            section id={ "s" (number) } {
                h2 { (self.title) }
                @if let Some(note) = &self.note { p class="note" { (note) } }
                (body)
            }
        })
    }
}

/// The command with its words kept whole where lines are broken.
fn command(text: &str) -> Markup {
    html! {
        @for (place, word) in text.split(' ').enumerate() {
            @if place > 0 { " " }
            span { (word) }
        }
    }
}

fn figure(chart: &Chart, title: &str, number: usize) -> anyhow::Result<Markup> {
    let mut drawings = Vec::new();
    for (width, class) in [(Width::Wide, "wide"), (Width::Narrow, "narrow")] {
        match chart.draw(title, &format!("s{number}-{class}"), width)? {
            Drawing::Svg(svg) => drawings.push((class, svg)),
            Drawing::Words(words) => return Ok(html! { p class="words" { (words) } }),
        }
    }
    Ok(html! {
        figure {
            ul class="legend" {
                @for Key { swatch, name } in chart.legend() { li { (swatch_html(swatch)) (name) } }
            }
            @for (class, svg) in drawings { div class=(class) { (PreEscaped(svg)) } }
        }
    })
}

fn swatch_html(swatch: Swatch) -> Markup {
    let class = match swatch {
        Swatch::Line(kind) if kind < THEME_COLOURS => format!("swatch k{kind}"),
        Swatch::Line(kind) => format!("swatch dashed k{kind}"),
        Swatch::Field(kind) if kind < THEME_COLOURS => format!("swatch field k{kind}"),
        Swatch::Field(kind) => format!("swatch field pale k{kind}"),
        Swatch::Reference => "swatch dashed reference".to_owned(),
    };
    html! { span class=(class) aria-hidden="true" {} }
}

impl Table {
    fn html(&self) -> Markup {
        html! {
            div class="scroll" {
                table {
                    thead { tr { @for name in &self.header { th scope="col" { (name) } } } }
                    tbody {
                        @for row in &self.rows {
                            tr {
                                @for (column, cell) in row.iter().enumerate() {
                                    @if column == 0 { th scope="row" { (cell) } } @else { td { (cell) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The style sheet, with the rules that give the series their colours.
fn style() -> String {
    let mut style = include_str!("page.css").to_owned();
    for kind in 0..SERIES_KINDS {
        let key = series_key(kind);
        let colour = format!("var(--s{})", kind % THEME_COLOURS);
        let (dashes, pale) =
            if kind < THEME_COLOURS { ("", "") } else { (" stroke-dasharray: 10 7;", " fill-opacity: 0.5;") };
        // Writing to a string cannot fail.
        let _ = writeln!(
            style,
            "[fill=\"{key}\"] {{ fill: {colour};{pale} }}\n[stroke=\"{key}\"] {{ stroke: {colour};{dashes} }}\n\
             .k{kind} {{ color: {colour}; }}"
        );
    }
    style
}
