//! What is drawn, read back from the drawing.

use super::*;
use crate::report::axis::Unit;

fn series(points: &[(f64, f64)]) -> Series {
    Series { name: "s".into(), kind: 0, points: points.to_vec(), style: Style::Line }
}

fn lines(log: bool, series: Vec<Series>, marks: Vec<(f64, String)>) -> Chart {
    let y = Axis { label: "Latency".into(), unit: Unit::Microseconds, log };
    Chart::Lines(Lines { x: Axis::linear("Time", Unit::Seconds), y, series, marks })
}

fn svg(chart: &Chart, width: Width) -> String {
    match chart.draw("A title", "x", width).unwrap() {
        Drawing::Svg(svg) => svg,
        Drawing::Words(words) => panic!("not drawn: {words}"),
    }
}

fn words(chart: &Chart) -> String {
    match chart.draw("A title", "x", Width::Wide).unwrap() {
        Drawing::Words(words) => words,
        Drawing::Svg(svg) => panic!("drawn: {svg}"),
    }
}

/// The texts of a drawing, in order.
fn texts(svg: &str) -> Vec<String> {
    let mut texts: Vec<String> = svg
        .split("<text ")
        .skip(1)
        .map(|text| {
            let inner = text.split_once('>').unwrap().1;
            inner.split_once("</text>").unwrap().0.trim().to_owned()
        })
        .collect();
    texts.retain(|text| !text.is_empty());
    texts
}

/// The curves of a drawing in the first series' colour, each as its points in drawing units.
fn curves(svg: &str) -> Vec<Vec<(f64, f64)>> {
    let key = format!("stroke=\"{}\"", series_key(0));
    let of = |line: &str| {
        let points = line.split_once("points=\"").unwrap().1.split_once('"').unwrap().0;
        let point = |pair: &str| {
            let (x, y) = pair.split_once(',').unwrap();
            (x.parse().unwrap(), y.parse().unwrap())
        };
        points.split_whitespace().map(point).collect()
    };
    svg.lines().filter(|line| line.starts_with("<polyline") && line.contains(&key)).map(of).collect()
}

#[test]
fn axes_are_labelled_and_the_drawing_is_described() {
    let chart = lines(true, vec![series(&[(0.0, 150.0), (60.0, 4_000.0)])], vec![(30.0, "kill <1>".into())]);
    let svg = svg(&chart, Width::Wide);
    let texts = texts(&svg);
    for label in ["Latency", "Time", "100 µs", "1 ms", "5 ms", "30 s", "kill &lt;1&gt;"] {
        assert!(texts.iter().any(|text| text == label), "{label} in {texts:?}");
    }
    assert!(
        svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1720 600\" role=\"img\"")
    );
    assert!(svg.contains("<title id=\"x-title\">A title</title>"));
    assert!(svg.contains("s from 150 µs to 4 ms. At 30 s: kill &lt;1&gt;."), "{svg}");
    assert!(svg.trim_end().ends_with("</svg>"));
}

#[test]
fn what_was_not_measured_is_a_gap() {
    let points = [(0.0, 5.0), (1.0, 6.0), (2.0, f64::NAN), (3.0, 7.0), (4.0, 0.0), (5.0, 8.0), (6.0, 9.0)];
    let drawn = svg(&lines(true, vec![series(&points)], vec![]), Width::Wide);
    let lengths: Vec<usize> = curves(&drawn).iter().map(Vec::len).collect();
    assert_eq!(lengths, [2, 2], "zero has no place on a logarithmic axis");
    assert_eq!(drawn.matches("<circle").count(), 1, "a point between two gaps is a dot");
    let drawn = svg(&lines(false, vec![series(&points)], vec![]), Width::Wide);
    assert_eq!(curves(&drawn).iter().map(Vec::len).collect::<Vec<_>>(), [2, 4]);
}

#[test]
fn stacked_series_stand_on_one_another() {
    let band = |ys: [f64; 2]| Series { style: Style::Stacked, ..series(&[(0.0, ys[0]), (1.0, ys[1])]) };
    let both = [band([100.0, 200.0]), band([100.0, f64::NAN])];
    let drawn = svg(&lines(false, both.to_vec(), vec![]), Width::Wide);
    let curves = curves(&drawn);
    // Above zero (500 at the top): twice as high at the start, the same at the end, where the upper has a
    // gap.
    let zero = 600.0 - units(2.0 * TEXT + 20.0) as f64;
    let height = |curve: usize, point: usize| zero - curves[curve][point].1;
    assert!((height(1, 0) / height(0, 0) - 2.0).abs() < 0.05, "{curves:?}");
    assert!((height(1, 1) - height(0, 1)).abs() < 1.0, "{curves:?}");
    assert_eq!(drawn.matches("<polygon").count(), 2);
}

#[test]
fn long_curves_keep_their_peaks() {
    let points: Vec<(f64, f64)> = (0..100_000)
        .map(|n| (f64::from(n), if n == 54_321 { 9e6 } else { 100.0 + f64::from(n % 7) }))
        .collect();
    let drawn = svg(&lines(true, vec![series(&points)], vec![]), Width::Wide);
    let curve = &curves(&drawn)[0];
    assert!(curve.len() < 4 * 860, "{}", curve.len());
    let all = svg(
        &lines(true, vec![series(&[(0.0, 100.0), (54_321.0, 9e6), (99_999.0, 100.0)])], vec![]),
        Width::Wide,
    );
    let peak = |curve: &[(f64, f64)]| curve.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_eq!(peak(curve), peak(&curves(&all)[0]));
}

#[test]
fn event_labels_find_rows_or_stay_without() {
    let marks = |at: &[f64]| at.iter().map(|at| (*at, format!("event at {at}"))).collect::<Vec<_>>();
    let chart = |at: &[f64]| lines(false, vec![series(&[(0.0, 1.0), (100.0, 2.0)])], marks(at));
    let shown = |at: &[f64]| {
        texts(&svg(&chart(at), Width::Narrow)).iter().filter(|text| text.starts_with("event")).count()
    };
    assert_eq!(shown(&[0.0, 50.0]), 2);
    assert_eq!(shown(&[50.0, 51.0, 52.0]), 3);
    assert_eq!(shown(&[50.0, 51.0, 52.0, 53.0]), 3, "three rows");
    assert_eq!(shown(&[100.0]), 1);
    assert_eq!(shown(&[-5.0, 101.0, f64::NAN]), 0, "outside of what is shown");
}

#[test]
fn too_little_data_is_said_in_words() {
    assert_eq!(words(&lines(false, vec![], vec![])), "Nothing was measured here.");
    assert_eq!(
        words(&lines(true, vec![series(&[(0.0, 0.0), (1.0, f64::NAN)])], vec![])),
        "Nothing was measured here."
    );
    assert_eq!(
        words(&lines(false, vec![series(&[(3.0, 1_500.0)])], vec![])),
        "One look only, at 3 s, which makes no line: s 1.5 ms."
    );
    let y = Axis::log("Latency", Unit::Microseconds);
    assert_eq!(
        words(&Chart::Percentiles(Percentiles { y: y.clone(), series: vec![] })),
        "Nothing was measured here."
    );
    let none =
        BarSeries { name: "s".into(), bars: vec![None, Some(Bar { value: f64::NAN, min: 0.0, max: 1.0 })] };
    let bars = Bars { y, groups: vec!["a".into(), "b".into()], series: vec![none], reference: None };
    assert_eq!(words(&Chart::Bars(bars)), "Nothing was measured here.");
}

#[test]
fn percentiles_have_an_axis_of_nines() {
    let points = [(0.0, 50.0), (0.5, 60.0), (0.9, 100.0), (0.99, 400.0), (0.999, 900.0), (1.0, 2_000.0)];
    let chart = Chart::Percentiles(Percentiles {
        y: Axis::log("Latency", Unit::Microseconds),
        series: vec![series(&points)],
    });
    let drawn = svg(&chart, Width::Wide);
    let labels = texts(&drawn);
    for label in ["0", "50", "90", "99", "100"] {
        assert!(labels.iter().any(|text| text == label), "{label} in {labels:?}");
    }
    let curve = &curves(&drawn)[0];
    let widths: Vec<f64> = curve.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!((widths[2] - widths[3]).abs() <= 1.0, "each nine is as wide as the last: {widths:?}");
}

#[test]
fn bars_stand_side_by_side_with_their_ranges() {
    let bar = |value: f64| Some(Bar { value, min: value * 0.9, max: value * 1.2 });
    let bars = Bars {
        y: Axis::linear("Ops/s", Unit::Count),
        groups: vec!["1 KiB".into(), "a very long name of a group that cannot fit ever".into()],
        series: vec![
            BarSeries { name: "a".into(), bars: vec![bar(100.0), bar(200.0)] },
            BarSeries { name: "b".into(), bars: vec![None, bar(400.0), bar(1e9)] },
        ],
        reference: Some((300.0, "limit".into())),
    };
    let chart = Chart::Bars(bars);
    let drawn = svg(&chart, Width::Narrow);
    let count = |kind: usize| drawn.matches(&format!("fill=\"{}\"", series_key(kind))).count();
    assert_eq!((count(0), count(1)), (2, 1), "a bar of no group is not drawn");
    assert_eq!(drawn.matches("stroke=\"#2B2F36\"").count(), 3 * 3, "whiskers");
    assert!(texts(&drawn).iter().any(|text| text.starts_with("a very long") && text.ends_with('…')));
    let names: Vec<String> = chart.legend().into_iter().map(|key| key.name).collect();
    assert_eq!(names, ["a", "b", "limit"]);
}

/// Numbers that could break arithmetic, in every place of every kind of chart.
#[test]
fn no_numbers_break_a_chart() {
    let odd = [
        0.0,
        -1.0,
        1.0,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        1e-300,
        1e300,
        f64::MAX,
        f64::MIN_POSITIVE,
    ];
    for a in odd {
        for b in odd {
            let some = series(&[(a, b), (b, a), (1.0, a), (2.0, b)]);
            let stacked = Series { style: Style::Stacked, ..some.clone() };
            let bar = BarSeries {
                name: "b".into(),
                bars: vec![Some(Bar { value: a, min: b, max: a }), Some(Bar { value: b, min: a, max: b })],
            };
            let y = Axis::log("", Unit::Microseconds);
            let charts = [
                lines(false, vec![stacked.clone(), stacked], vec![(a, "x".into())]),
                lines(true, vec![some.clone()], vec![(b, "x".into())]),
                Chart::Percentiles(Percentiles { y: y.clone(), series: vec![some.clone()] }),
                Chart::Bars(Bars {
                    y,
                    groups: vec!["g".into(), "h".into()],
                    series: vec![bar],
                    reference: Some((a, "r".into())),
                }),
            ];
            for chart in &charts {
                for width in [Width::Wide, Width::Narrow] {
                    chart.draw("t", "i", width).unwrap();
                }
            }
        }
    }
}
