"""Two pages: one on which a person votes without knowing the models, and one with the ratings."""
import json
from collections.abc import Sequence
from typing import Any

from llm_jax.arena.battles import Battle
from llm_jax.arena.bradley_terry import Ratings
from llm_jax.report.html import escape, escape_controls, page, table

HEAD = ('', 'model', 'rating', '95 % interval', 'battles', 'won')
STYLE = """
.answers { display: grid; gap: 16px; } @media (min-width: 720px) { .answers { grid-template-columns: 1fr 1fr; } }
.vote { display: flex; flex-wrap: wrap; gap: 8px; margin: 16px 0; }
.vote button { font: inherit; padding: 8px 16px; border-radius: 8px; border: 1px solid var(--line); cursor: pointer;
  background: var(--card); color: var(--ink); }
"""
SCRIPT = r"""'use strict';

// The next battle without a vote; the votes are kept in this page alone until they are downloaded.
const battles = JSON.parse(document.getElementById('data').textContent);
const votes = [];

function show() {
  const isDone = votes.length === battles.length;
  document.getElementById('count').textContent = votes.length + ' of ' + battles.length + ' battles';
  for (const name of ['prompt', 'left', 'right']) {
    document.getElementById(name).textContent = isDone ? '' : battles[votes.length][name];
  }
  for (const button of document.querySelectorAll('button[data-choice]')) button.disabled = isDone;
}

function lines() {
  return votes.map((vote) => JSON.stringify(vote) + '\n').join('');
}

for (const button of document.querySelectorAll('button[data-choice]')) {
  button.addEventListener('click', () => {
    votes.push({battle: battles[votes.length].number, choice: button.dataset.choice});
    show();
  });
}
document.getElementById('back').addEventListener('click', () => { votes.pop(); show(); });
document.getElementById('download').addEventListener('click', () => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([lines()], {type: 'application/jsonl'}));
  link.download = 'votes.jsonl';
  link.click();
});
show();
"""


def voting_page(battles: Sequence[Battle]) -> str:
  """A page that holds prompts and answers, and not the models' names."""
  shown: list[dict[str, Any]] = []
  for battle in battles:
    shown.append({'number': battle.number, 'prompt': escape_controls(battle.prompt),
                  'left': escape_controls(battle.left_answer), 'right': escape_controls(battle.right_answer)})
  data = json.dumps(shown).replace('<', '\\u003c')
  return page('Which answer is better?', [
    '<h1>Which answer is better?</h1><p class="muted" id="count"></p>',
    '<h3>Prompt</h3><div class="card"><pre id="prompt"></pre></div>',
    '<div class="answers"><div><h3>Left</h3><div class="card"><pre id="left"></pre></div></div>'
    '<div><h3>Right</h3><div class="card"><pre id="right"></pre></div></div></div>',
    '<div class="vote"><button data-choice="left">left</button><button data-choice="tie">tie</button>'
    '<button data-choice="right">right</button><button id="back">back</button>'
    '<button id="download">download the votes</button></div>',
    f'<script type="application/json" id="data">{data}</script>',
  ], style=STYLE, script=SCRIPT)


def rating_rows(ratings: Ratings) -> list[tuple[str, ...]]:
  """Rows under `HEAD`."""
  rows: list[tuple[str, ...]] = []
  for i, name in enumerate(ratings.names):
    interval = f'{ratings.low[i]:.0f} to {ratings.high[i]:.0f}'
    rows.append((str(i + 1), name, f'{ratings.ratings[i]:.0f}', interval, f'{ratings.battles[i]:.0f}',
                 f'{100 * ratings.win_rates[i]:.1f} %'))
  return rows


def not_distinguishable(ratings: Ratings) -> list[str]:
  """Sentences about neighbours whose intervals overlap."""
  sentences: list[str] = []
  for i in range(len(ratings.names) - 1):
    if ratings.low[i] <= ratings.high[i + 1]:
      both = f'{ratings.names[i]} and {ratings.names[i + 1]}'
      sentences.append(f'{both} are not distinguishable: their intervals overlap.')
  return sentences


def rating_page(ratings: Ratings, elo: Sequence[dict[str, float]]) -> str:
  """The ratings, and what online Elo would say after the last battle."""
  notes = not_distinguishable(ratings)
  if ratings.unbounded:
    notes.append(f'{ratings.unbounded} resamples had no finite ratings and are left out of the intervals.')
  history = table(('model', 'online Elo after the last battle'),
                  [(name, f'{elo[-1][name]:.0f}') for name in ratings.names])
  return page('Arena', [
    '<h1>Arena</h1>',
    table(HEAD, rating_rows(ratings), 'words'),
    ''.join(f'<p>{escape(note)}</p>' for note in notes),
    '<h2>History</h2><p class="note">Online Elo depends on the order of the battles: it is no result.</p>',
    history,
  ])
