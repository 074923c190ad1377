//! The page, first as text, then as a real browser shows it. `TERRANE_KEEP_PAGE=/some/file.html` keeps a copy
//! of the page to look at.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use expect_test::expect;

use crate::measure::tally::latencies;
use crate::measure::timeline::Second;
use crate::report::axis::{Axis, Unit};
use crate::report::chart::{Bar, Chart, Lines, Series, Style};
use crate::report::curves::{self, Cell};
use crate::report::machine::Machine;
use crate::report::page::{Page, Section, Table, Verdict};

/// Three minutes of a mixed load with a kill, a restart and a staircase; numbers from a small generator,
/// always the same.
fn seconds() -> Vec<Second> {
    let mut state = 1u64;
    let mut noise = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as f64 / f64::from(1u32 << 31) - 0.5
    };
    let (mut device, mut user, mut cpu) = (0u64, 0u64, 0.0);
    let one = |at: u64| {
        let silent = (90..93).contains(&at);
        let rate = 40_000.0 + 8_000.0 * (at / 60) as f64;
        let all = if silent { 0.0 } else { rate * (1.0 + 0.15 * noise()) };
        let (reads, writes) = ((all * 0.5) as u64, (all * 0.5) as u64);
        user += writes * 1040;
        device += (writes as f64 * 1040.0 * (1.08 + 0.5 * (at as f64 / 180.0) + 0.2 * noise())) as u64;
        cpu += 1.4 + 0.4 * noise();
        let us = |base: f64, noise: f64| (!silent).then_some(base * (1.0 + 0.4 * noise));
        Second {
            at_seconds: at as f64 + 1.0,
            step: format!("{} ops/s", 40 + 8 * (at / 60)),
            failed: if silent { 2_500 } else { 0 },
            read_p50_us: us(210.0, noise()),
            read_p99_us: us(1_450.0, noise()),
            write_p50_us: us(480.0, noise()),
            write_p99_us: us(if at > 92 { 9_500.0 } else { 4_200.0 }, noise()),
            device_written_bytes: Some(device),
            user_bytes: Some(user),
            cpu_seconds: Some(cpu),
            resident_bytes: Some((300 << 20) + at * (2 << 20)),
            ..Second::example(at as f64, reads, writes)
        }
    };
    (0..180).map(one).collect()
}

fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for (size, name) in ["1 KiB", "4 KiB", "16 KiB", "32 KiB"].into_iter().enumerate() {
        for (target, factor) in [
            ("Terrane engine", 2.1),
            ("RocksDB", 1.0),
            ("BlobDB", 1.2),
            ("fjall", 1.6),
            ("Terrane cluster", 0.7),
        ] {
            let value = 60_000.0 * factor / (1 << size) as f64;
            let missing = target == "BlobDB" && size == 1;
            cells.push(Cell {
                group: name.to_owned(),
                series: target.to_owned(),
                bar: (!missing).then_some(Bar { value, min: value * 0.88, max: value * 1.07 }),
            });
        }
    }
    cells
}

fn many_lines() -> Chart {
    let series = (0..9).map(|n| Series {
        name: format!("Node {n}"),
        kind: n as usize,
        points: (0..40).map(|x| (f64::from(x), f64::from(x * (n + 1)) + 10.0 * f64::from(n % 3))).collect(),
        style: Style::Line,
    });
    let marks = (0..12).map(|n| (f64::from(n) * 3.0, format!("event {n} with words"))).collect();
    Chart::Lines(Lines {
        x: Axis::linear("Time", Unit::Seconds),
        y: Axis::linear("Something of each node", Unit::Count),
        series: series.collect(),
        marks,
    })
}

/// A page with every kind of chart, the awkward ones too.
fn page() -> Page {
    let seconds = seconds();
    let mut marks = curves::steps(&seconds);
    marks.push((90.0, "node 2 killed".to_owned()));
    marks.push((96.0, "node 2 back".to_owned()));
    let (mut reads, mut writes) = (latencies(), latencies());
    for n in 1..200_000u64 {
        reads.record(60_000 + n % 1_000 * 300 + 40_000_000 / (n % 5_000 + 1)).unwrap();
        writes.record(150_000 + n % 1_000 * 900 + 700_000_000 / (n % 40_000 + 20)).unwrap();
    }
    let rows =
        [("Terrane engine", "126,000", "2.10"), ("RocksDB", "60,000", "1.00"), ("fjall", "96,000", "1.60")];
    let rows = rows.map(|(name, rate, ratio)| {
        [name, rate, ratio, "1.31", "412 µs", "1.94 ms", "18.2", "284 MiB"].map(str::to_owned).to_vec()
    });
    let header =
        ["Target", "Mixed ops/s", "to RocksDB", "WA", "Read p99", "Write p99", "CPU s / M ops", "Memory"];
    Page {
        title: "YCSB A on three nodes <test & check>".into(),
        subtitle: "1,000,000 records of 1,024 bytes, zipfian 0.99, 64 connections, 180 s".into(),
        verdict: Verdict::Good("Every one of 3,912,004 acknowledged writes was read back intact.".into()),
        facts: Machine::of(Some(&std::env::temp_dir())).facts(),
        command: "terrane-loadgen demo --workload a --seconds 180 --records 1000000 --html report.html"
            .into(),
        sections: vec![
            Section::chart(
                "Throughput",
                Some("Successful operations that ended in each second."),
                curves::throughput(&seconds, marks.clone()),
            ),
            Section::chart("Latency over time", None, curves::latency_over_time(&seconds, marks.clone())),
            Section::chart(
                "Latency by percentile",
                Some("All of the timed phase."),
                curves::percentiles(&[("Reads", &reads), ("Writes", &writes)]),
            ),
            Section::chart("Write amplification", None, curves::write_amplification(&seconds, marks)),
            Section::chart("Memory", None, curves::memory(&seconds, vec![])),
            Section::chart("Processor time", None, curves::cpu(&seconds, vec![])),
            Section::chart(
                "Mixed load by value size",
                Some("Median of three repetitions; the whiskers span the lowest and the highest."),
                curves::comparison(
                    Axis::linear("Operations per second", Unit::Count),
                    &cells(),
                    Some((50_000.0, "Limit of the device".into())),
                ),
            ),
            Section::chart("Many series and events", None, many_lines()),
            Section::chart("Nothing at all", None, curves::throughput(&[], vec![])),
            Section::chart("One look", None, curves::throughput(&seconds[..1], vec![])),
            Section::table(
                "Targets side by side",
                Some("Values of 1 KiB."),
                Table { header: header.map(str::to_owned).to_vec(), rows: rows.to_vec() },
            ),
            Section::text("Settings", "cache: 128 MiB\nmode: sync"),
        ],
    }
}

/// Those of [`page`]'s sections that are drawn.
const DRAWN: usize = 8;

#[test]
fn structure() {
    let line = Series {
        name: "a<b".into(),
        kind: 0,
        points: vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)],
        style: Style::Line,
    };
    let chart = Chart::Lines(Lines {
        x: Axis::linear("Time", Unit::Seconds),
        y: Axis::linear("Things & more", Unit::Count),
        series: vec![line],
        marks: vec![(1.0, "kill".into())],
    });
    let page = Page {
        title: "A <title>".into(),
        subtitle: "of & with \"quotes\"".into(),
        verdict: Verdict::Partial("Interrupted after 3 s.".into()),
        facts: vec![("Kernel".into(), "6.1 <x>".into())],
        command: "terrane-loadgen run '<&>'".into(),
        sections: vec![
            Section::chart("Lines", Some("A note."), chart),
            Section::table(
                "Rows",
                None,
                Table { header: vec!["Name".into(), "n".into()], rows: vec![vec!["<r>".into(), "1".into()]] },
            ),
            Section::text("Words", "one\ntwo"),
        ],
    };
    let html = page.html().unwrap();
    let body = html.split_once("<body>").unwrap().1;
    // The drawings' insides are the library's.
    let mut shown = String::new();
    let mut rest = body;
    while let Some((before, after)) = rest.split_once("</desc>") {
        shown.push_str(before);
        shown.push_str("</desc>..");
        rest = &after[after.find("</svg>").unwrap()..];
    }
    shown.push_str(rest);
    expect![[r#"
        <main>
        <header>
        <h1>A &lt;title&gt;</h1>
        <p class="subtitle">of &amp; with &quot;quotes&quot;</p>
        <p class="verdict partial">
        <strong>Partial.</strong> Interrupted after 3 s.</p>
        <dl class="facts">
        <dt>Kernel</dt>
        <dd>6.1 &lt;x&gt;</dd>
        </dl>
        <pre>
        <code>
        <span>terrane-loadgen</span> <span>run</span> <span>'&lt;&amp;&gt;'</span>
        </code>
        </pre>
        </header>
        <section id="s0">
        <h2>Lines</h2>
        <p class="note">A note.</p>
        <figure>
        <ul class="legend">
        <li>
        <span class="swatch k0" aria-hidden="true">
        </span>a&lt;b</li>
        </ul>
        <div class="wide">
        <svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1720 600" role="img" aria-labelledby="s0-wide-title s0-wide-desc">
        <title id="s0-wide-title">Lines</title>
        <desc id="s0-wide-desc">Things &amp; more over Time: a&lt;b from 1 to 3. At 1 s: kill.</desc>..</svg>
        </div>
        <div class="narrow">
        <svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 560" role="img" aria-labelledby="s0-narrow-title s0-narrow-desc">
        <title id="s0-narrow-title">Lines</title>
        <desc id="s0-narrow-desc">Things &amp; more over Time: a&lt;b from 1 to 3. At 1 s: kill.</desc>..</svg>
        </div>
        </figure>
        </section>
        <section id="s1">
        <h2>Rows</h2>
        <div class="scroll">
        <table>
        <thead>
        <tr>
        <th scope="col">Name</th>
        <th scope="col">n</th>
        </tr>
        </thead>
        <tbody>
        <tr>
        <th scope="row">&lt;r&gt;</th>
        <td>1</td>
        </tr>
        </tbody>
        </table>
        </div>
        </section>
        <section id="s2">
        <h2>Words</h2>
        <p class="text">one
        two</p>
        </section>
        </main>
        </body>
        </html>"#]].assert_eq(&shown.replace("><", ">\n<"));
}

#[test]
fn no_request_is_made() {
    let html = page().html().unwrap();
    let without_namespace = html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for forbidden in ["http:", "https:", "url(", "<script", "<img", "<link", "@import", "src="] {
        assert!(!without_namespace.contains(forbidden), "{forbidden}");
    }
    assert!(html.contains("Content-Security-Policy"));
}

/// Chromium, wherever it is called.
fn chromium() -> Option<PathBuf> {
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    names
        .into_iter()
        .find_map(|name| folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file()))
}

/// Runs Chromium without a window on a file, and gives back what it prints.
fn browse(chromium: &Path, folder: &Path, page: &Path, args: &[&str]) -> String {
    let output = Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-dev-shm-usage", "--hide-scrollbars"])
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .args(args)
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "Chromium failed: {told}");
    String::from_utf8(output.stdout).unwrap()
}

/// How many colours a picture has, and the most frequent one's share of its pixels.
fn colours(path: &Path) -> (usize, f64) {
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    let mut counts = std::collections::HashMap::<&[u8], usize>::new();
    let pixels = pixels[..info.buffer_size()].chunks_exact(info.color_type.samples());
    let all = pixels.len();
    for pixel in pixels {
        *counts.entry(pixel).or_default() += 1;
    }
    (counts.len(), counts.values().copied().max().unwrap_or(0) as f64 / all as f64)
}

/// A script for the test alone: what lies outside of its place, or on top of something else.
const PROBE: &str = r#"<pre id="probe"></pre><script>
const found = [];
const shown = [...document.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().width > 0);
for (const svg of shown) {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].filter(text => text.textContent.trim());
  const boxes = texts.map(text => [text.textContent.trim(), text.getBoundingClientRect()]);
  for (const [name, box] of boxes)
    if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 3 || box.bottom > frame.bottom + 3)
      found.push('cut off: ' + name);
  boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
    const across = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const down = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (across > 1 && down > 4) found.push('overlap: ' + a + ' / ' + b);
  }));
}
const edge = document.body.getBoundingClientRect().right;
for (const part of document.querySelectorAll('main, main *'))
  if (!part.closest('.scroll table') && part.getBoundingClientRect().right > edge + 1)
    found.push('beyond the edge: ' + part.outerHTML.slice(0, 60));
document.getElementById('probe').textContent =
  'shown ' + shown.length + ' at ' + Math.round(edge) + '; ' + (found.join('; ') || 'all in place');
</script></body>"#;

#[test]
fn in_a_browser() {
    let Some(chromium) = chromium() else {
        eprintln!("skipped: no Chromium found (install the package `chromium` to run this test)");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let page = page();
    let file = folder.path().join("report.html");
    page.write(&file).unwrap();
    if let Some(kept) = std::env::var_os("TERRANE_KEEP_PAGE") {
        std::fs::copy(&file, kept).unwrap();
    }

    let dom = browse(&chromium, folder.path(), &file, &["--dump-dom"]);
    for section in &page.sections {
        assert!(dom.contains(&format!("<h2>{}</h2>", section.title)), "{}", section.title);
    }
    assert_eq!(dom.matches("<svg").count(), 2 * DRAWN, "each chart wide and narrow");
    assert_eq!(dom.matches("</svg>").count(), 2 * DRAWN);
    let other = dom.replace("http://www.w3.org/2000/svg", "");
    assert!(!other.contains("http:") && !other.contains("https:"));

    let mut pictures = HashSet::new();
    for (name, args) in [
        ("light", ["--window-size=1280,2400", "--blink-settings=preferredColorScheme=1"]),
        ("dark", ["--window-size=1280,2400", "--blink-settings=preferredColorScheme=0"]),
    ] {
        let picture = folder.path().join(name).with_extension("png");
        let shoot = format!("--screenshot={}", picture.display());
        browse(&chromium, folder.path(), &file, &[&shoot, args[0], args[1]]);
        let (colours, most) = colours(&picture);
        assert!(colours > 50, "{name}: {colours} colours");
        assert!((0.3..0.98).contains(&most), "{name}: the paper has {most} of the picture");
        pictures.insert(std::fs::read(&picture).unwrap());
    }
    assert_eq!(pictures.len(), 2, "light and dark look alike");

    // The same page with a script that measures it, on a desk and on a phone.
    let html = page.html().unwrap();
    let policy = html.find("<meta http-equiv").unwrap();
    let policy_end = policy + html[policy..].find('>').unwrap() + 1;
    let probed = format!("{}{}", &html[..policy], &html[policy_end..]).replace("</body>", PROBE);
    let measured = |html: &str, size: &str| {
        let probe = folder.path().join("probe.html");
        std::fs::write(&probe, html).unwrap();
        let dom = browse(&chromium, folder.path(), &probe, &["--dump-dom", size]);
        dom.rsplit_once("<pre id=\"probe\">").unwrap().1.split_once("</pre>").unwrap().0.to_owned()
    };
    // No window is narrower than 500 pixels, so there the page is.
    for (size, edge, narrower) in [
        ("--window-size=1280,2400", 1280, ""),
        ("--window-size=700,2400", 700, ""),
        ("--window-size=500,2400", 360, "<style>body { width: 360px; }</style></head>"),
    ] {
        let narrowed = if narrower.is_empty() { probed.clone() } else { probed.replace("</head>", narrower) };
        let found = measured(&narrowed, size);
        assert_eq!(found, format!("shown {DRAWN} at {edge}; all in place"));
    }
    let texts = "<text x='30' y='15'>cut</text><text x='30' y='15'>on it</text>";
    let broken = format!("<body><main><svg width='50' height='20'>{texts}</svg>");
    let found = measured(&format!("{broken}</main>{PROBE}"), "--window-size=700,700");
    assert!(
        found.contains("cut off: on it") && found.contains("overlap: cut / on it"),
        "the probe is blind: {found}"
    );
}
