//! A report as one page of HTML that needs no other file: the table, and charts as SVG.

use std::fmt::{Display, Write};

use plotters::prelude::*;

use crate::report::{Report, grouped, per_second};

/// Pixels of a chart.
const CHART_SIZE: (u32, u32) = (900, 320);

const PUBLISHED: RGBColor = RGBColor(0x1F, 0x77, 0xB4);
const RECEIVED: RGBColor = RGBColor(0xD6, 0x5F, 0x2A);

/// A line of a chart.
struct Line {
    name: &'static str,
    color: RGBColor,
    points: Vec<(f64, f64)>,
}

/// What a chart says beside its lines.
struct Chart {
    title: &'static str,
    x_name: &'static str,
    y_name: &'static str,
    x_text: fn(&f64) -> String,
    y_text: fn(&f64) -> String,
    lines: Vec<Line>,
}

impl Report {
    /// One page of HTML with the table, the options and charts.
    pub fn to_html(&self) -> String {
        let title = format!("leveret perf {}", self.scenario);
        let mut page = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
             <style>body{{font:16px sans-serif;max-width:960px;margin:2em auto;padding:0 1em}}\
             td,th{{padding:.2em 1em .2em 0;text-align:left;font-weight:normal}}\
             svg{{max-width:100%;height:auto}}pre{{overflow:auto}}</style>\n<h1>{title}</h1>\n<table>\n"
        );
        let error = self.error.clone().map(|error| ("error", error));
        for (name, value) in self.rows().into_iter().chain(error) {
            put(&mut page, format_args!("<tr><th>{name}</th><td>{}</td></tr>\n", escaped(&value)));
        }
        page += "</table>\n";
        for chart in [self.rates(), self.latencies()].into_iter().flatten() {
            put(&mut page, format_args!("<h2>{}</h2>\n{}\n", chart.title, chart.to_svg()));
        }
        let options = serde_json::to_string_pretty(&self.options).unwrap_or_default();
        put(&mut page, format_args!("<h2>Options</h2>\n<pre>{}</pre>\n</html>\n", escaped(&options)));
        page
    }

    /// Rates over time; `None` for a run that was too short for two points.
    fn rates(&self) -> Option<Chart> {
        let samples = &self.outcome.samples;
        let published = samples.iter().map(|sample| (sample.seconds, sample.publish_rate)).collect();
        let received = samples.iter().map(|sample| (sample.seconds, sample.receive_rate)).collect();
        let is_cycles = self.outcome.published.is_none();
        let mut lines = vec![Line {
            name: if is_cycles { "cycles" } else { "published" },
            color: PUBLISHED,
            points: published,
        }];
        if self.outcome.received.is_some() {
            lines.push(Line { name: "received", color: RECEIVED, points: received });
        }
        (samples.len() > 1).then_some(Chart {
            title: "Rates over time",
            x_name: "seconds",
            y_name: "per second",
            x_text: |seconds| format!("{seconds:.1}"),
            y_text: |rate| per_second(*rate),
            lines,
        })
    }

    /// The distribution of latencies; `None` when none were measured.
    fn latencies(&self) -> Option<Chart> {
        let points = self.outcome.latency_curve.clone();
        (!points.is_empty()).then(|| Chart {
            title: "Latency by percentile",
            x_name: "percentile",
            y_name: "microseconds",
            x_text: |nines| percentile(*nines),
            y_text: |micros| {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "an hour is the longest"
                )]
                let whole = *micros as u64;
                grouped(whole)
            },
            lines: vec![Line { name: "latency", color: PUBLISHED, points }],
        })
    }
}

impl Chart {
    fn to_svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let highest = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(f64::MIN_POSITIVE, f64::max);
        let (x_max, y_max) = (highest(|point| point.0), highest(|point| point.1) * 1.05);
        let mut svg = String::new();
        self.draw(&mut svg, x_max, y_max).expect("a string takes every line");
        svg
    }

    fn draw(&self, svg: &mut String, x_max: f64, y_max: f64) -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::with_string(svg, CHART_SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut builder = ChartBuilder::on(&area);
        builder.margin(12).margin_right(40).x_label_area_size(40).y_label_area_size(90);
        let mut chart = builder.build_cartesian_2d(0.0..x_max, 0.0..y_max)?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(self.x_name).y_desc(self.y_name).light_line_style(WHITE);
        mesh.x_label_formatter(&self.x_text).y_label_formatter(&self.y_text);
        // One label for each nine of a percentile.
        mesh.x_labels(6).draw()?;
        for line in &self.lines {
            let color = line.color;
            chart
                .draw_series(LineSeries::new(line.points.iter().copied(), color.stroke_width(2)))?
                .label(line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
        }
        if self.lines.len() > 1 {
            chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
        }
        area.present()?;
        Ok(())
    }
}

/// For example `99.9` for 3 nines.
fn percentile(nines: f64) -> String {
    let percent = 100.0 * (1.0 - 10f64.powf(-nines));
    let text = format!("{percent:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn put(page: &mut String, text: impl Display) {
    // A string takes everything.
    let _ = write!(page, "{text}");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Outcome;
    use crate::supervise::Sample;

    fn report(outcome: Outcome) -> Report {
        Report { scenario: "latency", options: serde_json::json!({"queue": "<b>&"}), error: None, outcome }
    }

    #[test]
    fn a_page_has_its_charts_in_it_and_needs_nothing_else() {
        let sample = |seconds| Sample { seconds, publish_rate: 1000.0 * seconds, receive_rate: 900.0 };
        let page = report(Outcome {
            published: Some(1),
            received: Some(1),
            samples: vec![sample(1.0), sample(2.0), sample(3.0)],
            latency_curve: vec![(0.0, 10.0), (1.0, 50.0), (5.0, 9000.0)],
            ..Outcome::default()
        })
        .to_html();
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(page.contains("received") && page.contains("percentile") && page.contains("&lt;b&gt;&amp;"));
        assert!(!page.contains("src=") && !page.contains("href=") && !page.contains("<script"));
    }

    #[test]
    fn a_page_of_a_run_that_failed_says_so() {
        let failed = Report { error: Some("406 <no>".to_owned()), ..report(Outcome::default()) };
        assert!(failed.to_html().contains("<tr><th>error</th><td>406 &lt;no&gt;</td></tr>"));
    }

    #[test]
    fn without_latencies_and_with_no_time_there_are_no_charts() {
        assert_eq!(report(Outcome::default()).to_html().matches("<svg").count(), 0);
    }

    #[test]
    fn nines_are_shown_as_percentiles() {
        assert_eq!([0.0, 1.0, 2.0, 3.0, 5.0].map(percentile), ["0", "90", "99", "99.9", "99.999"]);
    }
}
