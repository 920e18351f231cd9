"""Where stages start, and what of the model they change."""
import re

import pytest

from llm_jax.config.architecture import RoPE, YaRNScaling
from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import (
  DPO,
  AdamW,
  Checkpoints,
  Constant,
  Conversations,
  Preferences,
  SimPO,
  Text,
  experiment,
  presets,
  stage,
)
from llm_jax.config.run import Run, Stage

TEXT, PAIRS = Text('text'), Preferences('pairs.jsonl')


def row(name: str, data=TEXT, **fields) -> Stage:
  return stage(name, data, **{'steps': 1, 'context': 8, 'batch_size': 1, 'learning_rate': Constant(1e-3), **fields})


def run(*stages: Stage, **fields) -> Run:
  model = presets.llama(d_model=8, num_layers=1, num_heads=1, vocab_size=257)
  return Run(**{'model': model, 'stages': stages, **fields})


def test_positions_hold_until_another_stage_sets_them():
  long, longer = RoPE(500_000.0), RoPE(500_000.0, YaRNScaling(4, 8))
  stages = (row('short'), row('long', init=('resume', 'short'), positions=long), row('next', init=('params', 'long')),
            row('longer', init=('average', 'next', 2), positions=longer), row('last', init=('resume', 'longer')),
            row('branch', init=('params', 'short')))
  of = run(*stages).model_of
  assert [of(s).positions for s in stages] == [RoPE(), long, long, longer, longer, RoPE()]
  assert of(stages[0]) == run(*stages).model


def test_a_recipe_passes_through_the_door():
  stages = (row('pretrain'), row('average', steps=0, init=('average', 'pretrain', 2)),
            row('sft', Conversations('chats.jsonl', template='plain'), init=('params', 'average')),
            row('dpo', PAIRS, objective=DPO(nll_weight=0.2), init=('params', 'sft')))
  config = experiment(model=run(row('x')).model, stages=stages)
  assert config.stages[1].init == ('average', 'pretrain', 2)
  assert config.stages[3].objective.kind == 'DPO' and config.stages[3].data.sources[0].source.kind == 'Preferences'


@pytest.mark.parametrize('make, message', [
  (lambda: row('a', init=('average', 'b')), r"init = \('average', 'b'\): use .* or \('hf', folder\)"),
  (lambda: row('a', init=('average', 'b', 0)), 'average 1 checkpoint or more'),
  (lambda: run(row('a', init=('params', 'z'))), r"stages\[0\].init = .*: name an earlier stage"),
  (lambda: run(row('a'), row('b', init=('average', 'a', 3)), checkpoints=Checkpoints(keep=2)),
   r'checkpoints.keep = 2: stages\[1\].init averages 3 checkpoints: keep as many'),
  (lambda: row('a', PAIRS), 'LanguageModel.*cannot learn from Preferences: use DPO'),
  (lambda: row('a', objective=DPO()), r"objective = 'DPO': needs data=Preferences"),
  (lambda: row('a', PAIRS, objective=DPO()), 'the reference is what the stage starts from'),
  (lambda: DPO(label_smoothing=0.5), 'label_smoothing = 0.5'),
  (lambda: run(row('a', positions=RoPE()), model=presets.gpt2(8, 1, 1, vocab_size=257)),
   r'stages\[0\].positions = .*LearnedPositions, which nothing can stretch'),
])
def test_refused(make, message):
  with pytest.raises(ConfigError) as error:
    make()
  assert re.search(message, str(error.value)), str(error.value)


def test_a_form_without_reference_may_start_from_scratch():
  assert row('a', PAIRS, objective=SimPO(), optimizer=AdamW()).objective == SimPO()
