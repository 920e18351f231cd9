"""Where stages start, and what of the model they change."""
import json
import re

import pytest

from launch.overrides import set_field
from llm_jax.config import schema
from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import (
  BPE,
  DPO,
  AdamW,
  Average,
  Checkpoint,
  Checkpoints,
  Classification,
  Constant,
  Conversations,
  HeldOut,
  Muon,
  Needles,
  Params,
  Preferences,
  Ramp,
  Resume,
  SimPO,
  StandardLibraryFunctions,
  Text,
  TokenFile,
  experiment,
  mix,
  presets,
  stage,
)
from llm_jax.config.model.architecture import RoPE, YaRNScaling
from llm_jax.config.ramp import Phase
from llm_jax.config.run import Run
from llm_jax.config.stage import Stage

TEXT, PAIRS = Text('text'), Preferences('pairs.jsonl')


def row(name: str, data=TEXT, **fields) -> Stage:
  return stage(name, data, **{'steps': 1, 'seq_len': 8, 'batch_size': 1, 'learning_rate': Constant(1e-3), **fields})


def run(*stages: Stage, **fields) -> Run:
  model = presets.llama(d_model=8, num_layers=1, num_heads=1, vocab_size=257)
  return Run(**{'model': model, 'stages': stages, **fields})


def test_positions_hold_until_another_stage_sets_them():
  long, longer = RoPE(500_000.0), RoPE(500_000.0, YaRNScaling(4, 8))
  stages = (row('short'), row('long', init=Resume('short'), positions=long),
            row('next', steps=2_000, init=Params('long')),
            row('longer', init=Average('next', last=2), positions=longer), row('last', init=Resume('longer')),
            row('branch', init=Params('short')))
  of = run(*stages).model_of
  assert [of(s).positions for s in stages] == [RoPE(), long, long, longer, longer, RoPE()]
  assert of(stages[0]) == run(*stages).model


def test_a_recipe_passes_through_the_door():
  stages = (row('pretrain', steps=2_000), row('average', steps=0, init=Average('pretrain', last=2)),
            row('sft', Conversations('chats.jsonl', template='plain'), init=Params('average')),
            row('dpo', PAIRS, objective=DPO(nll_weight=0.2), init=Params('sft')))
  config = experiment(model=run(row('x')).model, stages=stages)
  assert config.stages[1].init.to_dict() == {'kind': 'Average', 'checkpoints': 'pretrain', 'last': 2}
  assert config.stages[3].objective.kind == 'DPO' and config.stages[3].data.sources[0].source.kind == 'Preferences'


def several(*members, **fields) -> Run:
  """Two branches of a trunk, and the mean of the checkpoints that `members` names."""
  return run(row('trunk', steps=20), row('a', steps=10, init=Resume('trunk')),
             row('b', steps=10, init=Resume('trunk')), row('mean', steps=0, init=Average(members)),
             row('next', init=Params('mean')), **{'checkpoints': Checkpoints(every=4), **fields})


def test_the_mean_of_named_checkpoints_comes_from_all_of_their_stages():
  made = several(Checkpoint('a', 4), Checkpoint('a', 8, weight=2.0), Checkpoint('b'))
  assert made.stages[3].parents == ('a', 'b') and made.stages[1].parents == ('trunk',)
  assert [each.name for each in made.ancestors(made.stages[4])] == ['trunk', 'a', 'b', 'mean']
  assert [each.name for each in made.ancestors(made.stages[2])] == ['trunk']
  assert schema.from_json(json.loads(json.dumps(schema.to_json(made)))) == made
  assert schema.from_config_dict(schema.to_config_dict(made)) == made
  tree = schema.to_json(made)
  set_field(tree, 'stages[3].init.checkpoints[1].weight', '3.5')
  set_field(tree, 'stages[3].init.checkpoints[2].step', '4')
  assert schema.from_json(tree).stages[3].init == Average(
    (Checkpoint('a', 4), Checkpoint('a', 8, 3.5), Checkpoint('b', 4)))


def test_positions_that_are_none_are_set_field_by_field_from_the_command_line():
  tree = schema.to_json(several(Checkpoint('a')))
  for path, text in (('theta', '500000.0'), ('scaling.original_length', '8'), ('scaling.kind', 'YaRNScaling'),
                     ('scaling.factor', '4.0')):
    set_field(tree, f'stages[1].positions.{path}', text)
  assert schema.from_json(tree).stages[1].positions == RoPE(500_000.0, YaRNScaling(4.0, 8))
  tree = schema.to_json(several(Checkpoint('a')))
  set_field(tree, 'stages[1].positions.theat', '1')
  hint = r"stages\[1\].positions.theat = 1: no such field in RoPE; did you mean 'theta'"
  with pytest.raises(ConfigError, match=hint):
    schema.from_json(tree)


def test_the_mean_of_stages_with_other_positions_says_which_it_has():
  stages = [row('a'), row('b', init=Resume('a'), positions=RoPE(500_000.0))]
  mean = dict(steps=0, init=Average((Checkpoint('a'), Checkpoint('b'))))
  with pytest.raises(ConfigError, match=r'stages\[2\].positions = None: a, b have different ones'):
    run(*stages, row('mean', **mean))
  made = run(*stages, row('mean', **mean, positions=RoPE(500_000.0)))
  assert made.model_of(made.stages[2]) == made.model_of(made.stages[1])


def test_llama_3_405b_ramp():
  """Section 3.4.1: 4M tokens a step at 4,096; 8M at 8,192 after 252M tokens; 16M after 2.87T."""
  initial = row('initial', seq_len=4_096, batch_size=1_024, microbatches=4, steps=1_200_000, ramp=(
    Ramp(252_000_000, 1_024, 8_192), Ramp(2_870_000_000_000, 2_048, 8_192)))
  first, second, third = initial.phases
  assert (second.first_step, third.first_step) == (61, 61 + 342_101)
  assert second.first_token == 61 * 2**22 and second.first_sample == 61 * 1_024
  assert [2**22, 2**23, 2**24] == [p.batch_size * p.seq_len for p in initial.phases]
  assert [p.microbatches for p in initial.phases] == [4, 8, 16]  # as many tokens at once as in the beginning
  for step in (0, 1, 60, 61, 62, 342_162, 342_163, 1_200_000):
    shapes = [initial.phase_at(i) for i in range(max(0, step - 3), step)]
    assert initial.tokens_after(step) - initial.tokens_after(max(0, step - 3)) == sum(
      p.batch_size * p.seq_len for p in shapes)
    assert initial.samples_after(step) - initial.samples_after(max(0, step - 3)) == sum(p.batch_size for p in shapes)
  assert row('plain').phases == (Phase(0, 0, 0, 1, 8, 1),)


def test_microbatches_of_a_ramp_divide_over_the_devices():
  """Twice the context: half the rows at once, but no fewer than there are devices, and never a part of a row."""
  ramped = row('a', seq_len=8, batch_size=16, microbatches=2, steps=9, ramp=(Ramp(128, 24, 16), Ramp(256, 24, 64)))
  assert [phase.microbatches for phase in ramped.phases] == [2, 6, 24]
  assert [phase.microbatches for phase in ramped.phases_over(8)] == [2, 3, 3]
  assert [phase.first_sample for phase in ramped.phases_over(8)] == [phase.first_sample for phase in ramped.phases]


def test_a_ramp_that_is_overtaken_within_a_step_takes_none():
  first, passed, last = row('a', batch_size=4, steps=9, ramp=(Ramp(1, 1, 4), Ramp(2, 2, 8))).phases
  assert (passed.first_step, last.first_step, last.first_sample, last.first_token) == (1, 1, 4, 32)


@pytest.mark.parametrize('make, message', [
  (lambda: row('a', ramp=(Ramp(20, 1, 8), Ramp(20, 1, 8))), r'ramp = \[20, 20\]: let the tokens .* rise'),
  (lambda: row('a', steps=3, ramp=(Ramp(8, 1, 8), Ramp(24, 1, 16))),
   r'ramp\[1\].tokens = 24: the stage ends before it, with its 3 steps: use at most 16, or more steps'),
  (lambda: row('a', eval_data=mix(PAIRS)), 'eval_data = .*: must be of one kind with data'),
  (lambda: row('a', PAIRS, objective=SimPO(), ramp=(Ramp(20, 1, 16),), steps=9),
   'pairs of answers are read whole: let its seq_len be 8 throughout'),
  (lambda: run(row('a', steps=9), row('b', init=Average('a', last=3)), checkpoints=Checkpoints(every=5, keep=3)),
   r"stages\[1\].init = .*: a saves 2 in its 9 steps: lower last, or save more often .checkpoints.every=5"),
  (lambda: row('a', StandardLibraryFunctions(), objective=Classification(), ramp=(Ramp(8, 1, 16),), steps=9),
   'texts with classes are read whole: let its seq_len be 8 throughout'),
  (lambda: Muon(matrix_scale=-1.0), 'matrix_scale = -1.0: use a finite number above 0'),
  (lambda: BPE(sample_bytes=-5), 'sample_bytes = -5: use 1 or more'),
  (lambda: TokenFile('a', separator=-4), 'separator = -4: use the id that ends a document, or None'),
  (lambda: Ramp(20, 4, 8, microbatches=3), 'microbatches = 3: use a divisor of batch_size=4'),
  (lambda: run(row('a', steps=9, ramp=(Ramp(20, 1, 64),)), model=presets.gpt2(8, 1, 1, vocab_size=257, max_length=32)),
   r'stages\[0\].seq_len = 64: the learned positions end'),
  (lambda: run(row('a', seq_len=64, positions=RoPE(max_length=32))),
   r'stages\[0\].seq_len = 64: the positions are meant for 32 tokens \(max_length\): stretch them'),
  (lambda: Needles((32,), target_recall=0.9), 'every = 0: target_recall is looked at then'),
  (lambda: row('a', evals=(HeldOut(), HeldOut(every=2))), r'evals\[1\] = .*another one is called held_out too'),
  (lambda: run(row('a', PAIRS, objective=SimPO(), evals=(Needles((32,)),))),
   r'evals\[0\].seq_lens = .* let that be text'),
  (lambda: run(row('a', evals=(Needles((32,), target_recall=0.9, every=1),)), row('b', init=Average('a', last=1))),
   r'stages\[1\].init = .*: a may end before its last step'),
  (lambda: row('a', init=('average', 'b', 2)),
   r"init = \('average', 'b', 2\): give Scratch\(\) or Resume\(...\) or Params\(...\) or Average\(...\) "
   r"or HuggingFace\("),
  (lambda: Average('b'), r"last = None: say how many checkpoints of 'b' are averaged: use 1 or more"),
  (lambda: row('a', init=Average('b', last=0)), 'last = 0: .*: use 1 or more'),
  (lambda: run(row('a', init=Params('z'))), r"stages\[0\].init = .*: name an earlier stage"),
  (lambda: run(row('a'), row('b', init=Average('a', last=3)), checkpoints=Checkpoints(keep=2)),
   r'checkpoints.keep = 2: stages\[1\].init averages 3 checkpoints: keep as many'),
  (lambda: several(Checkpoint('c')),
   r"stages\[3\].init.checkpoints\[0\].stage = 'c': name an earlier stage, one of .*'b'"),
  (lambda: several(Checkpoint('a'), Checkpoint('next')),
   r"stages\[3\].init.checkpoints\[1\].stage = 'next': name an earlier stage"),
  (lambda: several(Checkpoint('a', 6)),
   r'init.checkpoints\[0\].step = 6: a saves its last step, 10, and the multiples of .*every=4'),
  (lambda: several(Checkpoint('a', 12)), r'init.checkpoints\[0\].step = 12: a saves its last step, 10'),
  (lambda: several(Checkpoint('a', 4), checkpoints=Checkpoints(every=0)), 'step = 4: .* while checkpoints.every=0'),
  (lambda: several(Checkpoint('a'), Checkpoint('a', 10)), r"init.checkpoints\[1\] = 'a/10': is named twice"),
  (lambda: several(), 'checkpoints = .*: name 1 checkpoint or more'),
  (lambda: Average((Checkpoint('a'),), last=2), 'last = 2: .*leave it out'),
  (lambda: row('b', init=Average(('a', Checkpoint('a')))), r"init.checkpoints\[0\] = 'a': give Checkpoint"),
  (lambda: Checkpoint('a', weight=0.0), 'weight = 0.0: use a finite weight above 0'),
  (lambda: Checkpoint('a', 0), 'step = 0: use 1 or more'),
  (lambda: row('a', PAIRS),
   r"objective = 'LanguageModel': learns from text, and data has pairs of answers: use DPO, IPO, "
   r'.*, SimPO or RewardModel, or data of StandardLibrary, Text, Jsonl'),
  (lambda: row('a', objective=DPO()), r"objective = 'DPO': learns from pairs of answers, and data has text: use "
   'LanguageModel or Distillation, or data of Preferences, StandardLibraryPreferences, RankedPairs or JudgedPairs'),
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
