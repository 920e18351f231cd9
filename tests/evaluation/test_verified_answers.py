"""Answers that are looked at by verifiers: which prompts, what is measured, and what is refused."""
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config import presets
from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import Contains, Function, Regex, SortedDigits, VerifiedAnswers
from llm_jax.data.tokenizers.byte_level import ByteTokenizer
from llm_jax.decode.generate import generate
from llm_jax.evaluation.protocol import Evaluated, Moment
from llm_jax.evaluation.verified_answers import VerifiedAnswersEvaluation, measured
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen

MODEL = presets.llama(d_model=16, num_layers=1, num_heads=2, d_ff=32, vocab_size=257)
PROMPTS = SortedDigits(digits=3, count=40, val_fraction=0.4)
CONFIG = VerifiedAnswers(PROMPTS, (Regex('[a-m]', label='breaks'), Contains()), count=8, max_new_tokens=5)


def evaluation_of(config):
  setup = types.SimpleNamespace(
    model=MODEL, execution=Execution(), tokenizer=ByteTokenizer(), stage=types.SimpleNamespace(name='sl', seq_len=32),
    run=types.SimpleNamespace(seed=3), objective=types.SimpleNamespace(own_parameters=('reward',)))
  return VerifiedAnswersEvaluation(config, setup)


def test_held_out_answers_are_looked_at():
  """Those of greedy decoding, one to each held-out prompt; what belongs to the objective is no part of the decoder."""
  params = Transformer(MODEL).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
  params = {**jax.tree.map(lambda p: 6 * p, params), 'reward': {'w': np.zeros((16, 1))}}
  evaluation = evaluation_of(CONFIG)
  evaluation.check()
  start = evaluation.run(Evaluated(params, Frozen(), Moment.START, 0), {})
  result = evaluation.run(Evaluated(params, Frozen(), Moment.END, 5), start.metrics)
  assert result.metrics == start.metrics  # the draw is that of the seed
  prompts = evaluation.held_out.first(8)
  assert len({prompt.text for prompt in prompts}) == 8
  decoder = {name: tree for name, tree in params.items() if name != 'reward'}
  told = generate(MODEL, decoder, [prompt.ids for prompt in prompts], 5, stop_tokens=(256,)).tokens
  texts = [bytes(token for token in tokens if token != 256).decode(errors='replace') for tokens in told]
  breaks = np.array([any('a' <= character <= 'm' for character in text) for text in texts])
  assert result.metrics['verified_greedy/breaks'] == pytest.approx(breaks.mean())
  assert [text for _, text in result.generations[:4]] == texts[:4]
  [table] = result.display
  assert [row[0] for row in table.rows] == ['breaks', 'contains'] and len(result.lines) == 2


def test_the_margin_is_that_of_a_mean():
  """1.96 standard errors, of the sample's own variance."""
  values = np.array([[1.0, 0.0, 0.0, 1.0, 1.0]])
  found = measured('greedy', ('breaks',), values)
  assert found['verified_greedy/breaks'] == pytest.approx(0.6)
  assert found['verified_greedy/breaks_margin_of_error'] == pytest.approx(1.959964 * np.sqrt(0.3 / 5))


def test_what_is_refused():
  with pytest.raises(ConfigError, match='checks = .*: name at least one'):
    VerifiedAnswers(PROMPTS, ())
  with pytest.raises(ConfigError, match='none is held out: raise its val_fraction'):
    evaluation_of(VerifiedAnswers(SortedDigits(3, 40, val_fraction=0.0), (Contains(),))).check()
  with pytest.raises(ConfigError, match='no such file'):
    evaluation_of(VerifiedAnswers(PROMPTS, (Function('nowhere.py:f'),))).check()
