"""The look of the report's page."""

from __future__ import annotations

from string import Template

# A page's beginning, up to its body.
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<style>
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #fff; --ink: #1b1d22; --soft: #5c6270;
  --line: #dfe1e6; --harm: #c2410c; --safe: #0f766e; --accent: #4338ca; --faint: #767c89; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --card: #1c1f25; --ink: #e9eaee;
  --soft: #a3a9b6; --line: #343943; --harm: #fb923c; --safe: #2dd4bf; --accent: #a5b4fc; --faint: #8b92a1; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; background: var(--paper); color: var(--ink);
  margin: 0 auto; max-width: 76rem; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .8rem; }
h3 { font-size: 1rem; margin: 0; } .lead { color: var(--soft); margin: .3rem 0 1.4rem; }
.note { border-left: 4px solid var(--harm); background: var(--card); padding: .6rem 1rem; margin: 0 0 1rem; }
ul, ol { padding: 0; margin: 0; list-style: none; }
.cards { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); }
.cards li, figure, .cases li { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .9rem 1rem; margin: 0; }
.cards p { margin: 0; } .about, .range, small { color: var(--soft); font-size: .82rem; }
.cards .about { min-height: 2.5em; line-height: 1.25; margin-top: .15rem; }
.value { font-size: 1.9rem; font-weight: 650; font-variant-numeric: tabular-nums; line-height: 1.3; }
.strip { display: block; width: 100%; height: 8px; margin: .1rem 0 .3rem; }
.track { fill: var(--line); } .span { fill: var(--accent); opacity: .55; } .mark { fill: var(--ink); }
.charts { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
figcaption { display: flex; flex-wrap: wrap; gap: .2rem 1rem; align-items: baseline; margin-bottom: .4rem; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .82rem; color: var(--soft); }
.legend li::before { content: ""; display: inline-block; width: 1.1em; height: 3px; margin-right: .4em;
  vertical-align: middle; border-radius: 2px; background: currentColor; }
.legend .harm::before { background: var(--harm); } .legend .safe::before { background: var(--safe); }
.legend .accent::before { background: var(--accent); }
.legend .faint::before { background: repeating-linear-gradient(90deg, var(--faint) 0 4px, transparent 4px 7px); }
svg { width: 100%; height: auto; display: block; } text { font: 11.5px system-ui, sans-serif; fill: var(--soft); }
.axis { font-size: 12px; } .name { font-weight: 600; fill: var(--ink); paint-order: stroke; stroke: var(--card);
  stroke-width: 4px; stroke-linejoin: round; }
.grid { stroke: var(--line); fill: none; } .rule { stroke: var(--ink); stroke-dasharray: 2 3; opacity: .55; }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; } .line.faint { stroke: var(--faint);
  stroke-dasharray: 5 4; stroke-width: 1.6; }
.line.harm { stroke: var(--harm); } .line.safe { stroke: var(--safe); } .line.accent { stroke: var(--accent); }
.area { opacity: .1; fill: var(--accent); } .dot { fill: var(--accent); stroke: var(--card); stroke-width: 1.5; }
.bar { opacity: .6; } .bar.harm { fill: var(--harm); } .bar.safe { fill: var(--safe); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .45rem .8rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child { text-align: left; } thead th { color: var(--soft); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 500; } tbody tr:last-child > * { border-bottom: 0; } small { display: block; white-space: nowrap; }
.none { color: var(--faint); } .cases { display: grid; gap: .5rem; margin: .6rem 0 1.6rem; }
.cases li { padding: .55rem 1rem; } .cases p { margin: 0; } .cases b { font-variant-numeric: tabular-nums; }
.wrong { color: var(--harm); } .right { color: var(--safe); }
summary { cursor: pointer; color: var(--soft); font-size: .88rem; } dt { color: var(--soft); font-size: .82rem; }
dd { margin: 0 0 .5rem; white-space: pre-wrap; overflow-wrap: anywhere; }
footer { margin-top: 2.4rem; border-top: 1px solid var(--line); padding-top: 1rem; color: var(--soft);
  font-size: .88rem; } code { overflow-wrap: anywhere; }
.pictures { display: flex; flex-wrap: wrap; gap: .5rem; margin: .4rem 0; }
.pictures img { max-width: 100%; height: 110px; border-radius: 6px; border: 1px solid var(--line); }
.veiled { filter: blur(14px); transition: filter .15s; } .veiled:hover, .veiled:focus { filter: none; }
@media print { details { display: none; } }
</style></head><body>
"""
PAGE = Template(
    HEAD
    + """<header><h1>$detector</h1><p class="lead">$lead</p></header>
<main>$notes
<ul class="cards">$cards</ul>
<h2>Curves</h2><div class="charts">$charts</div>
$words
$sources
$categories
<h2>Worst cases</h2><p class="lead">The texts are folded away: they may be harmful to read.</p>
$worst</main>
<footer>$method</footer>
</body></html>
"""
)
