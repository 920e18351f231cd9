"""On-policy distillation: the rows that a student learns from are what it says, or what the data says."""
import dataclasses

import numpy as np
import pytest

from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import Distillation, SavedRun
from llm_jax.data.prompts import open_prompts
from llm_jax.rollout.text_source import OwnTextSource
from tests.rollout.test_source import ROLLOUT, TOKENIZER, make_source, make_stage, same, take

TEXTS = dataclasses.replace(ROLLOUT, rewards=(), answers=1, replays=1)


def make(own_answers=1.0, rollout=TEXTS, **fields) -> OwnTextSource:
  objective = Distillation(SavedRun('teacher'), own_answers=own_answers, **fields)
  return make_source(make_stage(objective, rollout, batch_size=16), kind=OwnTextSource)


def answers_of(source: OwnTextSource) -> list[tuple[bytes, bytes, int]]:
  """(prompt, answer, last id) of the rollout."""
  buffer = source._buffer
  text = lambda ids: bytes(ids[ids < 256].astype(np.uint8).tolist())
  return [(text(ids[:begin]), text(ids[begin:end]), int(ids[end - 1]))
          for ids, begin, end in zip(buffer.ids, buffer.prompt_lengths, buffer.lengths, strict=True)]


def test_all_tokens_of_answers_are_targets():
  source = make()
  batches = take(source, 1)
  assert {'answer_length', 'cut_off', 'distinct', 'sampling_seconds'} <= source.numbers().keys()
  batches += take(source, 1)
  buffer = source._buffer
  assert sum(int(batch.weights.sum()) for batch in batches) == (buffer.lengths - buffer.prompt_lengths).sum()
  for batch in batches:
    assert set(np.unique(batch.weights)) == {0.0, 1.0}
    assert not batch.weights[batch.segment_ids == 0].any()


def test_a_share_is_of_the_data():
  """Its own share is what it says itself; the others are sorted digits, with the end of text behind them."""
  sampled, mixed = make(), make(own_answers=0.5)
  take(sampled, 1), take(mixed, 1)
  own = {prompt: answer for prompt, answer, _ in answers_of(sampled)}
  found = answers_of(mixed)
  right = [bytes(sorted(prompt[:-1])) for prompt, _, _ in found]
  from_data = [answer == want for (_, answer, _), want in zip(found, right, strict=True)]
  assert 8 <= sum(from_data) <= 24  # of 32
  for (_, answer, last), is_given in zip(found, from_data, strict=True):
    assert not is_given or last == TOKENIZER.eot
    assert is_given or len(answer) > 0
  assert own.keys() == {prompt for prompt, _, _ in found}
  assert same(take(make(own_answers=0.5), 2), take(make(own_answers=0.5), 2))


def test_a_source_goes_on_bitwise():
  source = make(own_answers=0.5)
  take(source, 1)
  resumed = make(own_answers=0.5)
  resumed.restore(source.position(), {name: np.asarray(array) for name, array in source.arrays().items()})
  assert same(take(resumed, 3), take(source, 3))


def test_a_row_without_an_answer_is_named():
  with pytest.raises(KeyError, match="has no 'solution', only"):
    take(make(own_answers=0.5, column='solution'), 1)


def test_answers_are_as_the_template_writes_them(tmp_path):
  """A prompt's ids and its answer's are those of the conversation."""
  from llm_jax.config.data import Data, Weighted
  from llm_jax.config.sources import Prompts
  from llm_jax.data.tokenizers import chat_templates
  path = tmp_path / 'prompts.jsonl'
  path.write_text('{"prompt": "2+2?", "answer": 4}\n')
  prompts = open_prompts(Data((Weighted(Prompts(str(path), 'plain', val_fraction=0.0)),)), TOKENIZER, 'train', seed=0,
                         longest=100)
  prompt = prompts.at(0)
  messages = [{'role': 'user', 'content': '2+2?'}, {'role': 'assistant', 'content': '4'}]
  ids, _ = chat_templates.render(messages, 'plain', TOKENIZER)
  assert (*prompt.ids, *prompts.answer_ids(prompt, 'answer')) == tuple(ids.tolist())


def test_only_distillation_needs_no_rewards():
  with pytest.raises(ConfigError, match='own_answers = 0.0'):
    Distillation(SavedRun('teacher'), own_answers=0.0)
  with pytest.raises(ConfigError, match='rollout.rewards'):
    make_stage(rollout=TEXTS)
