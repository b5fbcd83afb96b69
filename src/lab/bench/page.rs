//! HTML page of a report: one plot for each metric, one table for each underlay, the limits, the
//! machine. Pure.
//!
//! Plots are inline SVG and the page refers to no other file. So it can be sent, kept and opened
//! anywhere.
//!
//! Invariant: every text from outside is escaped by [`escape`].

use std::fmt::Write as _;

use super::measure::Metric;
use super::report::{Cell, Limit, Report, Unmeasured, digits};
use super::system::System;
use super::underlay::Underlay;

/// The complete page.
#[must_use]
pub fn page(report: &Report) -> String {
    let mut html = format!("{HEAD}<h1>hopsack compared with kernel VXLAN</h1>\n<p>");
    html += &report.facts().iter().map(|fact| escape(fact)).collect::<Vec<_>>().join("<br>\n");
    html += "</p>\n<p>Bars are medians, whiskers reach from minimum to maximum, dots are the repeats.</p>\n";
    html += "<div class=\"plots\">\n";
    for metric in report.metrics() {
        html += &plot(report, metric);
    }
    html += "</div>\n";
    for underlay in &report.plan.underlays {
        html += &table(report, *underlay);
    }
    if !report.unmeasured.is_empty() {
        html += "<h2>Not measured</h2>\n<ul>\n";
    }
    for Unmeasured { system, underlay, reason, .. } in &report.unmeasured {
        let on = underlay.map(|underlay| format!(" on {}", underlay.name())).unwrap_or_default();
        let _ = writeln!(html, "<li>{}{on}: {}</li>", system.name(), escape(reason));
    }
    if !report.unmeasured.is_empty() {
        html += "</ul>\n";
    }
    html += "<h2>Limits</h2>\n<table>\n";
    for Limit { underlay, system, workload, sentence, .. } in &report.limits {
        let (underlay, system, workload) = (underlay.name(), system.name(), workload.name());
        let _ = writeln!(
            html,
            "<tr><th>{underlay}</th><th>{system}</th><th>{workload}</th><td>{}</td></tr>",
            escape(sentence)
        );
    }
    html + "</table>\n</html>\n"
}

/// Head of the page. The colours follow the dark or light setting of the reader.
const HEAD: &str = "<!doctype html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width\">
<title>hopsack lab bench</title>
<style>
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #6b7280; --line: #d5d8dd; --back: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --soft: #9aa1ab; --line: #3a3f47; --back: #15171a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 76rem;
       margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
         vertical-align: top; font-variant-numeric: tabular-nums; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1.5rem; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .title { font-weight: 600; } svg .soft { fill: var(--soft); font-weight: 400; } svg .rule { stroke: var(--line); } svg .ink { stroke: var(--ink); }
svg .dot { fill: var(--back); stroke: var(--ink); }
</style>
";

/// Width of a plot, of the names at its left and of the values at its right, in SVG units.
const WIDTH: f64 = 440.0;
const NAMES: f64 = 76.0;
const VALUES: f64 = 96.0;
/// Height of a bar with the space below it, of a line of text, and of the title, in SVG units.
const ROW: f64 = 22.0;
const LINE: f64 = 20.0;
const TITLE: f64 = 26.0;

/// Plot of one metric: the underlays below each other, and in each a bar for each system.
fn plot(report: &Report, metric: Metric) -> String {
    let (unit, scale) = metric.unit();
    let most = report.cells.iter().filter(|cell| cell.metric == metric).map(|cell| cell.max);
    let most = most.fold(f64::MIN_POSITIVE, f64::max);
    let along = |value: f64| NAMES + (WIDTH - NAMES - VALUES) * value / most;
    let mut body = String::new();
    let mut y = TITLE;
    for underlay in &report.plan.underlays {
        let cells: Vec<&Cell> =
            report.plan.systems.iter().filter_map(|system| report.cell(*underlay, *system, metric)).collect();
        if cells.is_empty() {
            continue;
        }
        let _ =
            writeln!(body, "<text class=\"soft\" x=\"0\" y=\"{:.0}\">{}</text>", y + 14.0, underlay.name());
        y += LINE;
        let bottom = y + ROW * cells.len() as f64;
        if let Some(vxlan) = cells.iter().find(|cell| cell.system == System::Vxlan) {
            let x = along(vxlan.median);
            let _ = writeln!(
                body,
                "<line class=\"rule\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{y:.0}\" y2=\"{bottom:.0}\"/>"
            );
        }
        for cell in cells {
            body += &bar(cell, scale, y, along);
            y += ROW;
        }
    }
    let better = if metric.is_cost() { "less is better" } else { "more is better" };
    let title = escape(&format!("{}, {unit}{}", metric.title(), report.mark(metric)));
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"{title}\">\n\
         <text class=\"title\" x=\"0\" y=\"14\">{title} <tspan class=\"soft\">({better})</tspan></text>\n\
         {body}</svg>\n",
        y + 4.0
    )
}

fn bar(cell: &Cell, scale: f64, y: f64, along: impl Fn(f64) -> f64) -> String {
    let (middle, end) = (y + ROW / 2.0 - 2.0, along(cell.median));
    let ratio = cell.ratio_to_vxlan.filter(|_| cell.system != System::Vxlan);
    let ratio = ratio.map(|ratio| format!(" x{}", digits(ratio))).unwrap_or_default();
    let value = digits(cell.median / scale);
    let mut svg = format!(
        "<text x=\"8\" y=\"{:.1}\">{}</text>\
         <rect x=\"{NAMES}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\">{value}{ratio}</text>",
        middle + 4.0,
        cell.system.name(),
        end - NAMES,
        ROW - 5.0,
        cell.system.colour(),
        along(cell.max) + 8.0,
        middle + 4.0,
    );
    if cell.samples.len() > 1 {
        let (from, to) = (along(cell.min), along(cell.max));
        let _ = write!(
            svg,
            "<line class=\"ink\" x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>"
        );
        for sample in &cell.samples {
            let x = along(*sample);
            let _ = write!(svg, "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{middle:.1}\" r=\"2\"/>");
        }
    }
    svg + "\n"
}

fn table(report: &Report, underlay: Underlay) -> String {
    let mut html = format!("<h2>Underlay {}</h2>\n<table>\n<tr><th></th>", escape(underlay.name()));
    for system in &report.plan.systems {
        let _ = write!(html, "<th>{}</th>", system.name());
    }
    html += "</tr>\n";
    for metric in report.metrics_on(underlay) {
        let (unit, _) = metric.unit();
        let _ = write!(html, "<tr><th>{}, {unit}{}</th>", escape(metric.title()), report.mark(metric));
        for system in &report.plan.systems {
            let _ = write!(html, "<td>{}</td>", escape(&report.entry(underlay, *system, metric)));
        }
        html += "</tr>\n";
    }
    html + "</table>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn page_is_complete_and_refers_to_nothing() {
        let html = page(&report());
        for outside in ["http:", "https:", "src=", "href=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert_eq!(html.matches("<svg").count(), 2, "one plot for each metric");
        for tag in ["svg", "table", "tr", "td", "th", "text", "ul", "li", "div"] {
            let opened =
                html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        assert!(html.contains("a &lt;fast&gt; one") && html.contains("x &amp; y"));
        assert!(!html.contains("NaN") && !html.contains("inf"));
    }

    #[test]
    fn bar_length_is_proportional_to_value() {
        let report = report();
        let width = |system| {
            let svg = plot(&report, Metric::Tcp1);
            let line = svg.lines().find(|line| line.contains(&format!(">{system}</text>"))).unwrap();
            let (_, rest) = line.split_once("width=\"").unwrap();
            rest.split('"').next().unwrap().parse::<f64>().unwrap()
        };
        let (vxlan, simple) = (width("vxlan"), width("simple"));
        assert!((simple / vxlan - 0.7 / 11.0).abs() < 0.001, "{simple} of {vxlan}");
        assert!(vxlan < WIDTH - NAMES - VALUES);
    }
}
