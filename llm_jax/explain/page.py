"""One self-contained page about a forward pass, or two of them side by side. It loads nothing from anywhere.

Shapes: T time, S time of the keys, H query heads, X chosen experts.
"""
import dataclasses
import html
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from llm_jax.config.errors import require
from llm_jax.explain.explanation import Explanation
from llm_jax.explain.payload import payload
from llm_jax.explain.script import SCRIPT
from llm_jax.explain.style import STYLE
from llm_jax.report.html import disclosure, escape, page, table, tiles
from llm_jax.runtime.files import write_atomic

LENS_NOTE = ('What the model would predict if it ended after a layer: the final norm and the head on its residual '
             'stream. Under each prediction stands the rank of the token that follows. Row 0 is the embedding.')
VISIBLE = str.maketrans(' \n\t', '\u00b7\u23ce\u21e5')  # as the script shows them
MASK_NOTE = 'Grey: a key that the query does not see. Rows are queries, columns keys; colour is the root of the weight.'


@dataclasses.dataclass(frozen=True)
class Page:
  """The finished page; a notebook shows it where it is a cell's last value."""
  source: str

  def save(self, path: pathlib.Path) -> None:
    write_atomic(path, self.source)

  def _repr_html_(self) -> str:
    return f'<iframe srcdoc="{html.escape(self.source)}" style="width:100%;height:900px;border:0"></iframe>'


def make_page(explanations: Sequence[Explanation]) -> Page:
  """The page of one explanation, or of two of the same text."""
  require(1 <= len(explanations) <= 2, 'explanations', len(explanations), 'give one, or two to be laid side by side')
  names = ' and '.join(each.name for each in explanations)
  sides = 'one' if len(explanations) == 1 else 'two'
  sections = ''.join(_section(each) for each in explanations)
  data = json.dumps([payload(each) for each in explanations], separators=(',', ':')).replace('<', '\\u003c')
  return Page(page(f'{names}: explained', [
    f'<h1>{escape(names)}: explained</h1>',
    _difference(*explanations) if len(explanations) == 2 else '',
    f'<div class="sides {sides}">{sections}</div>',
    f'<script type="application/json" id="data">{data}</script>',
  ], style=STYLE, script=SCRIPT))


def self_check(explanation: Explanation) -> str:
  """One line: how well the weights that are shown explain what the attention of the blocks added."""
  return f'weights · values · W_o = what attention added, to {explanation.trace.error:.1e} of its largest number'


# ------------------------------------------------------------------------------------------- one model
def _section(explanation: Explanation) -> str:
  layers = explanation.trace.layers
  heads = max(len(layer.weights_HTS) for layer in layers)
  cut = ''
  if explanation.dropped:
    cut = (f'<p class="note">The text was cut after {len(explanation.trace.tokens_T)} tokens; {explanation.dropped} '
           'are left out.</p>')
  norms = ''
  if any(layer.normalises_sums for layer in layers):
    norms = '<p class="note">In this model a norm follows each sum: the stream is not the sum of what is added.</p>'
  has_experts = any(layer.experts_TX is not None for layer in layers)
  return f"""<section class="explained"><h2>{escape(explanation.name)}</h2>
{_numbers(explanation)}{cut}
<p class="note">{escape(self_check(explanation))}</p>
<h3>Tokens</h3><p class="note">Choose one. Its colour is what the chosen head gives to it.</p>
<div class="strip card"></div><p class="about"></p>
<h3>Attention</h3><p class="note">{escape(MASK_NOTE)}</p>
<div class="choose"><label>layer <select class="layer">{_options(len(layers))}</select></label>
<label>head <select class="number">{_options(heads)}</select></label></div>
<div class="pair"><div><p class="note">All heads: a row is a layer.</p><canvas class="all"></canvas></div>
<div><p class="note">The chosen head.</p><canvas class="head"></canvas></div></div>
<h3>Predictions by layer</h3><p class="note">{escape(LENS_NOTE)}</p>{_lens(explanation)}
<h3>What is added to the residual stream</h3>
<p class="note">Lengths of the vectors that each layer adds at the chosen token.</p>{norms}
<div class="card"><div class="path bars small"></div></div>
<h3>What each head writes</h3><p class="note">At the chosen token, in the chosen layer.</p>
<div class="card"><div class="heads bars small"></div></div>
{'<h3>Experts</h3><div class="experts card"></div>' if has_experts else ''}
<h3>Cache</h3><p class="note">{escape(_cache(explanation))}</p>
<div class="slots card"></div>
<h3>Sampling</h3>{_sampling()}</section>"""


def _numbers(explanation: Explanation) -> str:
  layers = explanation.trace.layers
  return tiles([
    ('layers', str(len(layers))),
    ('heads of a layer', str(max(len(layer.weights_HTS) for layer in layers))),
    ('tokens', str(len(explanation.trace.tokens_T))),
    ('nats per token', f'{explanation.mean_loss:.3f}'),
    ('self-check', f'{explanation.trace.error:.1e}'),
  ])


def _options(count: int) -> str:
  return ''.join(f'<option value="{i}">{i}</option>' for i in range(count))


def _lens(explanation: Explanation) -> str:
  shown = lambda token: escape(explanation.texts[int(token)].translate(VISIBLE))
  head = ''.join(f'<th>{shown(token)}</th>' for token in explanation.trace.tokens_T)
  rows: list[str] = []
  for layer, reading in enumerate(explanation.readings):
    cells: list[str] = []
    for token, share, rank in zip(reading.top_T, reading.top_probability_T, reading.rank_T, strict=True):
      place = f'no. {rank}' if rank else ''
      cells.append(f'<td style="--share:{share:.2f}">{shown(token)}<small>{place}</small></td>')
    rows.append(f'<tr><td>{layer}</td>{"".join(cells)}</tr>')
  return (f'<div class="card scroll"><table class="lens"><thead><tr><th>layer</th>{head}</tr></thead>'
          f'<tbody>{"".join(rows)}</tbody></table></div>')


def _cache(explanation: Explanation) -> str:
  cache = explanation.cache
  return ('The positions that the slots hold after the chosen token. '
          f'In float32 a token takes {cache.per_token:,} bytes, and this text {cache.total:,}.')


def _sampling() -> str:
  def slider(name: str, least: float, most: float, step: float, value: float) -> str:
    limits = f'min="{least}" max="{most}" step="{step}" value="{value}"'
    return f'<label>{name} <input type="range" class="{name}" {limits}></label>'

  sliders = slider('temperature', 0, 19, 1, 9) + slider('top_k', 0, 64, 1, 0) + slider('top_p', 0.05, 1, 0.05, 1)
  return f"""<p class="note">What may be drawn after the chosen token, as launch.sample draws; the next token of the
text is in the other colour.</p><div class="choose">{sliders}</div><p class="settings"></p>
<div class="card"><div class="drawn bars small"></div><p class="more note"></p></div>"""


# ------------------------------------------------------------------------------------------- two models
def _difference(first: Explanation, second: Explanation) -> str:
  """Token by token where both read the same tokens; else in words."""
  heading = '<h2>Side by side</h2>'
  if not np.array_equal(first.trace.tokens_T, second.trace.tokens_T):
    return heading + '<p class="note">The two read the text as other tokens: compare what they predict, not places.</p>'
  rows: list[tuple[str, ...]] = []
  tokens_T = first.trace.tokens_T
  for place in range(len(tokens_T) - 1):
    before = first.readings[-1].next_log_prob_T[place]
    after = second.readings[-1].next_log_prob_T[place]
    token = first.texts[int(tokens_T[place + 1])].translate(VISIBLE)
    rows.append((token, f'{before:.3f}', f'{after:.3f}', f'{after - before:+.3f}'))
  total = f'{-second.mean_loss + first.mean_loss:+.3f}'
  rows.append(('mean', f'{-first.mean_loss:.3f}', f'{-second.mean_loss:.3f}', total))
  of_tokens = table(('log-probability of', first.name, second.name, 'difference'), rows)
  summary = f'Mean log-probability {-first.mean_loss:.3f} and {-second.mean_loss:.3f}, difference {total}'
  return heading + disclosure(escape(summary), of_tokens)
