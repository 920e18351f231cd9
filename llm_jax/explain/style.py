"""What the page adds to the style sheet of all pages."""
STYLE = """
.sides { display: grid; gap: 24px; } .sides > section { min-width: 0; }
@media (min-width: 900px) { .sides.two { grid-template-columns: 1fr 1fr; } .sides.one .pair { display: grid;
  grid-template-columns: 1fr 1fr; gap: 16px; } }
.pair > div { min-width: 0; }
.strip { display: flex; flex-wrap: wrap; gap: 2px; }
.strip button { font: .82rem ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; color: var(--ink);
  border: 1px solid var(--line); border-radius: 4px; padding: 3px 4px; cursor: pointer;
  background: color-mix(in srgb, var(--a) calc(100% * var(--share, 0)), var(--card)); }
.strip button.chosen { outline: 2px solid var(--b); } .strip button.unseen { opacity: .45; }
canvas { width: 100%; height: auto; image-rendering: pixelated; border: 1px solid var(--line); display: block;
  cursor: pointer; }
canvas.head { max-width: 480px; }
.choose { display: flex; flex-wrap: wrap; gap: 8px 16px; margin: 8px 0; align-items: center; }
select, input { font: inherit; color: var(--ink); background: var(--card); max-width: 100%; }
.lens td { font-size: .78rem; padding: 3px 6px; text-align: left;
  background: color-mix(in srgb, var(--c) calc(60% * var(--share, 0)), var(--card)); }
.lens td small { display: block; color: var(--muted); } .lens td.chosen { outline: 1px solid var(--b); }
.lens td:first-child, .lens th:first-child { position: sticky; left: 0; background: var(--card); }
.bars.small { gap: 4px 10px; font-size: .85rem; grid-template-columns: max-content 1fr max-content; }
.bars.small i { height: 14px; } .bars i.other { background: var(--b); opacity: 1; }
.bars.small b { font-weight: 400; }
.slotline { display: flex; flex-wrap: wrap; gap: 2px; }
.slotline span { min-width: 26px; min-height: 24px; font-size: .75rem; text-align: center;
  border: 1px solid var(--line); border-radius: 3px; background: var(--card); }
.slotline span.new { background: var(--b); color: var(--page); }
label { display: inline-flex; gap: 6px; align-items: center; }
"""
