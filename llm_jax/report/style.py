"""The style sheet of all pages."""
STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #ffffff; --ink: #1d1f24; --muted: #636a75; --line: #e2e4e8;
  --a: #2563eb; --b: #d9480f; --c: #2b8a3e; --d: #8a3ffc; --e: #0a7d8c; --f: #b5157a;
  --mark: #fff3bf; --mark-ink: #5c3c00; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1c1f25; --ink: #e6e8ec; --muted: #9aa2ae;
  --line: #30353e; --a: #74a9ff; --b: #ff9f5a; --c: #69d58a; --d: #c29bff; --e: #5fd3e0; --f: #ff8acb;
  --mark: #4a3b10; --mark-ink: #ffe8a3; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 16px 64px; max-width: 1120px; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 40px 0 12px; font-size: 1.2rem; }
h3 { margin: 20px 0 8px; font-size: 1rem; }
p { margin: 8px 0; }
.muted { color: var(--muted); }
.verdict { font-size: 1.1rem; margin: 16px 0; max-width: 60ch; }
.card, figure, .tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 12px 16px; }
.top { display: grid; margin-top: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 16px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: 12px; align-content: start; }
.tile { padding: 10px 12px; }
.tile b { display: block; font-size: 1.1rem; font-weight: 600; overflow-wrap: anywhere;
  line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { display: block; font-size: .8rem; line-height: 1.35; color: var(--muted); }
.tile.wide { grid-column: 1 / -1; } .tile.wide b { font-size: .95rem; white-space: normal; overflow-wrap: anywhere; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 10px 12px; align-items: center;
  margin: 12px 0; }
.bars i { display: block; height: 26px; min-width: 2px; border-radius: 4px; background: var(--muted); opacity: .55; }
.bars i.model { background: var(--a); opacity: 1; }
.note { font-size: .85rem; color: var(--muted); }
.bars b { font-variant-numeric: tabular-nums; }
.charts { display: grid; gap: 16px; }
@media (min-width: 720px) { .charts { grid-template-columns: 1fr 1fr; } }
figure { margin: 0; padding: 12px 12px 8px; min-width: 0; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 16px; justify-content: space-between; font-weight: 600;
  padding: 0 4px 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-weight: 400; font-size: .85rem; color: var(--muted); }
.key::before { content: ''; display: inline-block; width: 18px; height: 3px; margin: 0 6px 4px 0; border-radius: 2px;
  background: var(--a); }
.key.b::before { background: var(--b); } .key.c::before { background: var(--c); }
.key.d::before { background: var(--d); } .key.e::before { background: var(--e); }
.key.f::before { background: var(--f); } .key.faint::before { opacity: .35; }
.key.dots::before { width: 8px; height: 8px; border-radius: 50%; margin-bottom: 1px; }
.nothing { color: var(--muted); padding: 48px 0; text-align: center; }
svg { display: block; width: 100%; max-width: 560px; height: auto; margin: 0 auto; }
svg text { font: 12px system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif; fill: var(--muted); }
@media (max-width: 520px) { svg text { font-size: 15px; } }
.grid { stroke: var(--line); fill: none; } .axis { stroke: var(--muted); fill: none; }
.boundary { stroke: var(--muted); stroke-dasharray: 4 4; fill: none; }
.curve { fill: none; stroke: var(--a); stroke-width: 2; stroke-linejoin: round; }
.curve.b { stroke: var(--b); } .curve.c { stroke: var(--c); } .curve.d { stroke: var(--d); }
.curve.e { stroke: var(--e); } .curve.f { stroke: var(--f); } .curve.faint { stroke-width: 1; opacity: .35; }
.dot { fill: var(--a); } .dot.b { fill: var(--b); } .dot.c { fill: var(--c); } .dot.d { fill: var(--d); }
.dot.e { fill: var(--e); } .dot.f { fill: var(--f); }
.scroll { overflow-x: auto; }
.stages rect { fill: var(--page); stroke: var(--muted); } .stages rect.done { stroke: var(--c); stroke-width: 2; }
.stages rect.running { stroke: var(--a); stroke-width: 2; } .stages rect.waiting { stroke-dasharray: 4 4; }
.stages text.name { font-weight: 600; font-size: 14px; fill: var(--ink); } .stages text.result { fill: var(--ink); }
.stages text.how { text-anchor: middle; font-size: 11px; }
.arrow { stroke: var(--muted); stroke-width: 1.5; fill: none; } .head { fill: var(--muted); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--muted); font-weight: 500; }
th, table:not(.facts) td { white-space: nowrap; }
th:first-child, td:first-child, .words th, .words td { text-align: left; }
table.facts td { text-align: left; overflow-wrap: anywhere; }
table.facts td:first-child { color: var(--muted); white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
table.heat td:not(:first-child) { text-align: center; }
pre, code, .tree { font-family: ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace;
  font-size: .82rem; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.45; unicode-bidi: isolate; }
mark { background: var(--mark); color: var(--mark-ink); border-radius: 3px; padding: 0 1px; }
details > summary { cursor: pointer; padding: 3px 0; }
.generation { border-top: 1px solid var(--line); padding: 6px 0; } .generation:first-of-type { border-top: 0; }
.generation pre { padding: 4px 0 8px; }
.tree .inside { margin-left: 18px; border-left: 1px solid var(--line); padding-left: 10px; }
.tree .leaf { padding: 1px 0 1px 16px; overflow-wrap: anywhere; } .tree .name { color: var(--a); }
"""
