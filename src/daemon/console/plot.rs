//! Lines over time, as SVG.

use std::fmt::Write;

use super::words::Words;
use crate::daemon::history::Sample;

const WIDTH: f64 = 320.0;
const HEIGHT: f64 = 120.0;
/// Room above the lines for the title, and below for the ends of the time.
const MARGINS: [f64; 2] = [40.0, 6.0];
/// Points that a line has at most.
const POINTS: usize = 360;

/// A plot of one or two lines.
pub fn plot(
    title: &str,
    names: &[&str],
    samples: &[Sample],
    words: &Words,
    of: impl Fn(&Sample) -> Vec<f64>,
) -> String {
    let step = samples.len().div_ceil(POINTS).max(1);
    let lines: Vec<Vec<f64>> = samples.chunks(step).filter_map(|some| some.last()).map(of).collect();
    let most = lines.iter().flatten().copied().fold(0.0, f64::max);
    let ceiling = ceiling(most);
    let mut svg = format!(
        "<svg class=\"plot\" role=\"img\" aria-label=\"{title}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\">\
         <text x=\"8\" y=\"16\">{title}</text>"
    );
    // Writing to a string does not fail.
    for (index, name) in names.iter().enumerate() {
        let class = CLASSES[index.min(1)];
        let last = lines.last().and_then(|line| line.get(index)).copied().unwrap_or(0.0);
        let _ = write!(
            svg,
            "<text class=\"{class}\" x=\"{}\" y=\"33\">{name} {}</text>",
            8.0 + 150.0 * index as f64,
            number(last)
        );
        if lines.len() > 1 {
            let across = WIDTH / (lines.len() - 1) as f64;
            let down = HEIGHT - MARGINS[0] - MARGINS[1];
            let points = lines.iter().enumerate().fold(String::new(), |mut points, (place, line)| {
                let value = line.get(index).copied().unwrap_or(0.0) / ceiling;
                let _ =
                    write!(points, "{:.1},{:.1} ", place as f64 * across, HEIGHT - MARGINS[1] - value * down);
                points
            });
            let _ = write!(svg, "<polyline class=\"{class}\" points=\"{}\"/>", points.trim_end());
        }
    }
    if lines.len() < 2 {
        let _ = write!(svg, "<text x=\"8\" y=\"80\">{}</text>", words.nothing_yet);
    } else {
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"16\" text-anchor=\"end\">≤ {}</text>",
            WIDTH - 8.0,
            number(ceiling)
        );
    }
    svg.push_str("</svg>");
    svg
}

const CLASSES: [&str; 2] = ["first", "second"];

/// The next 1, 2 or 5 with zeros that is not less.
fn ceiling(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(most.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= most).unwrap_or(most)
}

/// Few digits.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 || value == 0.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::words::Language;
    use super::*;

    #[test]
    fn a_plot_has_a_bounded_number_of_points_within_its_frame() {
        let sample = |n: u32| Sample { operations: [f64::from(n), 0.0], ..Sample::default() };
        let samples: Vec<_> = (0..5000).map(sample).collect();
        let words = Language::English.words();
        let svg = plot("t", &["reads"], &samples, words, |sample| vec![sample.operations[0]]);
        let points = svg.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        assert!(points.split(' ').count() <= POINTS);
        for point in points.split(' ') {
            let (x, y) = point.split_once(',').unwrap();
            assert!(
                (0.0..=WIDTH).contains(&x.parse().unwrap()) && (0.0..=HEIGHT).contains(&y.parse().unwrap())
            );
        }
        assert!(plot("t", &["reads"], &[], words, |_| vec![0.0]).contains(words.nothing_yet));
    }

    #[test]
    fn axes_end_at_round_numbers() {
        for (most, end) in [(0.0, 1.0), (1.0, 1.0), (1.1, 2.0), (4.0, 5.0), (730.0, 1000.0), (0.03, 0.05)] {
            assert!((ceiling(most) - end).abs() < 1e-9, "{most}");
        }
    }
}
