"""Prompts that `reasoning-gym` makes: its questions, with the answers that it finds right."""
import pytest
import reasoning_gym

from llm_jax.config.errors import ConfigError
from llm_jax.config.sources import ReasoningGym
from llm_jax.data.sources.documents import open_source


def test_prompts_are_the_questions_with_their_answers():
  source = open_source(ReasoningGym('chain_sum', count=40, template=None, val_fraction=0.25))
  dataset = reasoning_gym.create_dataset('chain_sum', size=40, seed=2)
  train, validation = (dict(source.documents(split)) for split in ('train', 'validation'))
  assert 0 < len(validation) < len(train) and not train.keys() & validation.keys()
  for key, prompt in (train | validation).items():
    entry = dataset[int(key.split(':')[1])]
    assert prompt.messages == entry['question'] == prompt.text
    assert dataset.score_answer(prompt.columns['answer'], entry) == 1
  [(_, first), *_] = open_source(ReasoningGym('chain_sum', count=2, val_fraction=0.0)).documents('train')
  assert first.messages == [{'role': 'user', 'content': first.text}]


def test_other_questions_are_other_data():
  prints = {open_source(ReasoningGym('chain_sum', count=3, seed=seed)).fingerprint for seed in (2, 2, 3)}
  assert len(prints) == 2


def test_what_there_is_not_is_named():
  with pytest.raises(ConfigError, match="generator = 'chain_sums': there is none: the nearest are chain_sum"):
    open_source(ReasoningGym('chain_sums'))
  with pytest.raises(ConfigError, match='count = 0'):
    ReasoningGym('chain_sum', count=0)
