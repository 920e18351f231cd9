"""The pictures of the documentation, made by the code that they show.

python -m docs.pictures.make        writes docs/pictures/*.svg; a test compares them with the code
"""
import pathlib
import re
from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape

import jax
import numpy as np

from launch.experiment_file import load_run
from llm_jax.config import schema
from llm_jax.config.data import Weighted
from llm_jax.config.schedules import WSD, Constant, Cosine, LinearToZero
from llm_jax.config.sources import Jsonl
from llm_jax.data.packing.rows import RowSettings
from llm_jax.data.packing.text import TextRows
from llm_jax.data.token_store import TokenStore
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.optim.schedules import make_schedule
from llm_jax.report.recipe_graph import stage_graph

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'docs' / 'pictures'

STYLE = """
svg { color: #1f2328; font-family: system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; }
text { fill: currentColor; font-size: 11.5px; }
.name { font-size: 14px; font-weight: 600; } .how { text-anchor: middle; font-size: 10px; }
.middle { text-anchor: middle; }
.faint { opacity: .75; }
.stages rect { fill: currentColor; fill-opacity: .04; stroke: currentColor; stroke-opacity: .45; }
.arrow { stroke: currentColor; stroke-width: 1.4; fill: none; opacity: .75; } .head { fill: currentColor; }
.axis { stroke: currentColor; stroke-opacity: .5; fill: none; }
.key { fill: var(--hue); font-weight: 600; }
.curve { fill: none; stroke: var(--hue); stroke-width: 2.2; stroke-linejoin: round; }
.piece { fill: var(--hue); fill-opacity: .3; stroke: var(--hue); }
.pad { fill: none; stroke: currentColor; stroke-opacity: .35;
  stroke-dasharray: 3 3; }
.a { --hue: #3b7ddd; } .b { --hue: #d08719; } .c { --hue: #2f9e5b; } .d { --hue: #8a63d2; } .e { --hue: #c2553a; }
.f { --hue: #868e99; }
@media (prefers-color-scheme: dark) { svg { color: #e6edf3; } }
""".strip()
HUES = 'abcdef'


def svg(width: float, height: float, title: str, shapes: Sequence[str], css: str = '') -> str:
  """A whole SVG file, legible on light and on dark pages, without fonts, scripts or links of its own."""
  head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
          f'viewBox="0 0 {width:g} {height:g}" class="{css}" role="img">')
  return '\n'.join([head, f'<title>{escape(title)}</title>', f'<style>\n{STYLE}\n</style>', *shapes, '</svg>\n'])


def text(x: float, y: float, words: str, css: str = '') -> str:
  return f'<text class="{css}" x="{x:g}" y="{y:g}">{escape(words)}</text>'


# ---------------------------------------------------------------------------------------------- recipes
def recipe(config: str) -> str:
  """The stages of an experiment, with the shape of their steps."""
  run = load_run(f'{ROOT}/{config}')
  shapes = {}
  for stage in run.stages:
    seq_lens = [phase.seq_len for phase in stage.phases]
    if min(seq_lens) == max(seq_lens):
      shapes[stage.name] = f'{stage.batch_size:,} x {stage.seq_len:,} tokens'
    else:
      shapes[stage.name] = f'rows of {min(seq_lens):,} to {max(seq_lens):,}'
  figure = stage_graph(schema.to_json(run)['stages'], shapes, {})
  width, height = re.search(r'viewBox="0 0 (\d+) (\d+)"', figure).groups()
  inside = re.search(r'<svg[^>]*>(.*)</svg>', figure, re.DOTALL)[1]
  return svg(int(width), int(height), f'The stages of {config}', [inside], 'stages')


# ---------------------------------------------------------------------------------------------- packing
LENGTHS = (9, 4, 14, 3, 6, 5, 11, 2)  # tokens of documents, the end of text included
SEQ_LEN = 16
CELL = 24


def packing() -> str:
  """The rows that both packings make of the same eight documents."""
  documents = [np.full(length, number, np.uint16) for number, length in enumerate(LENGTHS)]
  store = TokenStore(np.concatenate(documents), np.cumsum([0, *LENGTHS]), 0, 'picture', {})
  shapes, y = [], 0
  for form in ('concat', 'best_fit'):
    rows = TextRows(store, RowSettings(ByteTokenizer(), SEQ_LEN, form))
    shapes.append(text(0, y + 16, f"packing='{form}'", 'name'))
    y += 28
    for number in range(len(rows)):
      shapes += packed_row(list(rows.packing.pieces(number)), y)
      y += CELL + 8
    y += 18
  return svg(SEQ_LEN * CELL + 2, y - 18, 'Eight documents in rows of 16 tokens', shapes)


def packed_row(pieces: Sequence[tuple[int, int, int]], y: float) -> list[str]:
  """A box for each piece of a document, as long as it has tokens, and one for the padding."""
  shapes, x = [], 1.0
  for document, start, length in pieces:
    width = length * CELL
    shapes.append(f'<rect class="piece {HUES[document % len(HUES)]}" x="{x:g}" y="{y:g}" width="{width}" '
                  f'height="{CELL}"/>')
    name = f'{document + 1}' if start == 0 else f'…{document + 1}'
    shapes.append(text(x + width / 2, y + 17, name, 'middle'))
    x += width
  left = SEQ_LEN * CELL + 1 - x
  if left > 0:
    shapes.append(f'<rect class="pad" x="{x:g}" y="{y:g}" width="{left:g}" height="{CELL}"/>')
    shapes.append(text(x + left / 2, y + 17, 'padding', 'middle faint'))
  return shapes


# ---------------------------------------------------------------------------------------------- curves
PANEL_WIDTH, PANEL_HEIGHT, PANEL_GAP = 160, 84, 22


def panel(x: float, title: str, below: str, curves: Sequence[tuple[str, Sequence[float]]]) -> list[str]:
  """A small chart: curves over the steps of a stage, from 0 at the bottom to 1 at the top."""
  top, bottom = 26.0, 26.0 + PANEL_HEIGHT
  shapes = [text(x, 14, title, 'name'), f'<path class="axis" d="M{x:g} {top:g}V{bottom:g}H{x + PANEL_WIDTH:g}"/>']
  for hue, values in curves:
    points = [f'{x + PANEL_WIDTH * number / (len(values) - 1):.1f},{bottom - PANEL_HEIGHT * value:.1f}'
              for number, value in enumerate(values)]
    shapes.append(f'<polyline class="curve {hue}" points="{" ".join(points)}"/>')
  shapes.append(text(x, bottom + 18, below, 'faint'))
  return shapes


def schedules() -> str:
  """The learning rate of each schedule over a stage of 100 steps."""
  steps = np.arange(101)
  kinds = (Constant(1.0, warmup=10), Cosine(1.0, warmup=10), WSD(1.0, warmup=10), LinearToZero(1.0, warmup=10))
  shapes = []
  for number, kind in enumerate(kinds):
    rates = np.asarray(make_schedule(kind, 100)(steps)).round(4)
    shapes += panel(1 + number * (PANEL_WIDTH + PANEL_GAP), type(kind).__name__, 'warmup=10, 100 steps',
                    [('a', rates.tolist())])
  width = len(kinds) * (PANEL_WIDTH + PANEL_GAP) - PANEL_GAP + 2
  return svg(width, PANEL_HEIGHT + 52, 'Learning rates over a stage', shapes)


def mixture() -> str:
  """The shares of two sources whose weights are given by points, as `Weighted.at` has them."""
  progress = [number / 100 for number in range(101)]
  cases = (('weights 0.7 and 0.3', (0.7, 0.3)), ('weights 1 and ((0, .1), (1, 2.))', (1.0, ((0.0, 0.1), (1.0, 2.0)))))
  shapes = []
  for number, (below, weights) in enumerate(cases):
    parts = [Weighted(Jsonl('web.jsonl'), weights[0]), Weighted(Jsonl('best.jsonl'), weights[1])]
    totals = [sum(part.at(place) for part in parts) for place in progress]
    shares = [[part.at(place) / total for place, total in zip(progress, totals, strict=True)] for part in parts]
    x = 1 + number * (PANEL_WIDTH + 4 * PANEL_GAP)
    shapes += panel(x, 'share of each source', below, list(zip('ab', shares, strict=True)))
    for hue, name, values in zip('ab', ('web', 'best'), shares, strict=True):
      shapes.append(text(x + PANEL_WIDTH + 6, 30 + PANEL_HEIGHT * (1 - values[-1]), name, f'key {hue}'))
  return svg(2 * PANEL_WIDTH + 4 * PANEL_GAP + 46, PANEL_HEIGHT + 52, 'Shares of sources over a stage', shapes)


PICTURES: dict[str, Callable[[], str]] = {
  'recipe_quickstart': lambda: recipe('experiments/quickstart.py'),
  'recipe_small_chat': lambda: recipe('experiments/small_chat.py:FOLDER'),
  'recipe_annealing_branches': lambda: recipe('experiments/annealing_branches.py'),
  'recipe_llama3_405b': lambda: recipe('experiments/llama3_405b.py:FOLDER'),
  'packing': packing,
  'schedules': schedules,
  'mixture': mixture,
}


def main() -> None:
  jax.config.update('jax_platforms', 'cpu')
  for name, make in PICTURES.items():
    (FOLDER / f'{name}.svg').write_text(make(), encoding='utf-8')
    print(FOLDER / f'{name}.svg')


if __name__ == '__main__':
  main()
