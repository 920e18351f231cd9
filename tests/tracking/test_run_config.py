"""`config.json`: which version wrote it, and what a run that resumes may change."""
import dataclasses
import json

import pytest

from llm_jax.config import schema
from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import (
  Average,
  Checkpoints,
  Constant,
  Data,
  Generations,
  HeldOut,
  HuggingFaceFile,
  Mesh,
  Needles,
  Params,
  Ramp,
  Run,
  Stage,
  Text,
  Weighted,
  presets,
)
from llm_jax.config.model.architecture import RMSNorm, SigmoidRouter
from llm_jax.config.version import __version__
from llm_jax.tracking.run_config import read_config, write_config
from llm_jax.tracking.run_folder import Workdir


def text(path: str) -> Data:
  return Data((Weighted(Text(path)),))


def run(*, stage=None, later=(), model=None, **fields) -> Run:
  """A run of one stage and those in `later`; `stage` and `fields` replace what it states."""
  model = presets.llama(d_model=8, num_layers=1, num_heads=1, vocab_size=257) if model is None else model
  first = Stage('pretrain', text('a.txt'), steps=10, seq_len=8, batch_size=4, learning_rate=Constant(1e-3),
                eval_data=text('b.txt'), evals=(HeldOut(), Generations(('a',))))
  stages = (dataclasses.replace(first, **(stage or {})), *later)
  return dataclasses.replace(Run(model, stages, HuggingFaceFile('t.json'), checkpoints=Checkpoints(10, 2)), **fields)


def later(name: str, **fields) -> Stage:
  return Stage(name, text('a.txt'), **{'steps': 1, 'seq_len': 8, 'batch_size': 4, 'learning_rate': Constant(1e-3),
                                       **fields})


def bind(workdir, *made: Run) -> None:
  for each in made:
    Workdir(workdir).bind(each)


@pytest.mark.parametrize('changed', [
  run(checkpoints=Checkpoints(5, 9)), run(log_every=7), run(mesh=Mesh(fsdp=8)), run(context_attention='ring'),
  run(stall_seconds=5.0), run(tokenizer=HuggingFaceFile('moved/t.json')),
  run(stage={'data': text('moved/a.txt')}), run(stage={'eval_data': text('moved/b.txt')}),
  run(stage={'microbatches': 2}), run(stage={'remat': 'block'}), run(stage={'max_nonfinite': 3}),
  run(stage={'evals': (HeldOut(every=3), Generations(('x', 'y')))}), run(stage={'evals': ()}),
  run(later=[later('anneal', init=Params('pretrain'))]),
  run(stage={'microbatches': 2}, later=[later('anneal', init=Params('pretrain'))]),
])
def test_safe_changes_are_allowed_and_recorded(tmp_path, changed):
  bind(tmp_path, run(), changed)
  assert read_config(tmp_path) == changed != run()


@pytest.mark.parametrize('changed, message', [
  (run(seed=1), 'config.seed = 1: .* was started with 0: set it back, or name another workdir'),
  (run(dtype='float32'), "config.dtype = 'float32': .* was started with 'auto'"),
  (run(model=presets.llama(d_model=16, num_layers=1, num_heads=1, vocab_size=257)),
   'config.model.d_model = 16: .* was started with 8'),
  (run(model=dataclasses.replace(run().model, norm=RMSNorm(1e-6))),
   r'config.model.norm.eps = 1e-06: .* was started with 1e-05'),
  (run(model=dataclasses.replace(run().model, norm=None)), r'config.model.norm = None: .* was started with RMSNorm\('),
  (run(stage={'steps': 20}), r'config.stages\[0\].steps = 20: .* was started with 10'),
  (run(stage={'learning_rate': Constant(1.0)}),
   r'config.stages\[0\].learning_rate.peak = 1.0: .* was started with 0.001'),
  (run(stage={'data': Data((Weighted(Text('a.txt', val_fraction=0.5)),))}),
   r'config.stages\[0\].data.sources\[0\].source.val_fraction = 0.5: .* was started with 0.1'),
  (run(stage={'data': Data((*text('a.txt').sources, *text('b.txt').sources))}),
   r"config.stages\[0\].data.sources\[1\] = Weighted\(.*: .* was started with '\(absent\)'"),
  (run(tokenizer=HuggingFaceFile('t.json', end_of_text='')), "config.tokenizer.end_of_text = '': .* was started with "),
])
def test_other_changes_name_field_old_and_new_and_change_nothing(tmp_path, changed, message):
  bind(tmp_path, run())
  before = (tmp_path / 'config.json').read_bytes()
  with pytest.raises(ConfigError, match=message):
    bind(tmp_path, changed)
  assert (tmp_path / 'config.json').read_bytes() == before


def test_stages_may_be_appended_and_not_taken_away(tmp_path):
  longer = run(later=[later('anneal')])
  bind(tmp_path, run(), longer)
  with pytest.raises(ConfigError, match=r"config.stages\[1\] = '\(absent\)': .* was started with Stage\(name='anneal'"):
    bind(tmp_path, run())
  with pytest.raises(ConfigError, match=r"config.stages\[1\].name = 'other'"):
    bind(tmp_path, run(later=[later('other')]))


def test_a_run_that_averages_keeps_its_checkpoints_steps(tmp_path):
  """Which checkpoints are averaged would change; how many stay may be raised."""
  mean = [later('mean', steps=0, init=Average('pretrain', last=1))]
  bind(tmp_path, run(later=mean), run(later=mean, checkpoints=Checkpoints(10, 4)))
  with pytest.raises(ConfigError, match='config.checkpoints.every = 5: .* was started with 10 '
                                        'and a stage averages checkpoints: set'):
    bind(tmp_path, run(later=mean, checkpoints=Checkpoints(5, 4)))


DROPOUT = presets.llama(d_model=8, num_layers=1, num_heads=1, vocab_size=257)
DROPOUT = dataclasses.replace(DROPOUT, dropout=0.1)
MIXTRAL = presets.mixtral(d_model=8, d_ff=16, num_layers=1, num_heads=1, num_kv_heads=1, vocab_size=257)
RAMP = Ramp(64, 4, 8, microbatches=1)


@pytest.mark.parametrize('model', [DROPOUT, MIXTRAL], ids=['dropout', 'SoftmaxRouter'])
def test_microbatches_stay_where_each_draws_or_balances_for_itself(tmp_path, model):
  bind(tmp_path, run(model=model, stage={'ramp': (RAMP,)}))
  with pytest.raises(ConfigError, match=r'config.stages\[0\].microbatches = 2: .* was started with 1 '
                                        r'and the model has dropout or'):
    bind(tmp_path, run(model=model, stage={'ramp': (RAMP,), 'microbatches': 2}))
  with pytest.raises(ConfigError, match=r'config.stages\[0\].ramp\[0\].microbatches = 2: .* was started with 1'):
    bind(tmp_path, run(model=model, stage={'ramp': (dataclasses.replace(RAMP, microbatches=2),)}))


def test_microbatches_may_change_where_the_router_balances_over_a_sequence(tmp_path):
  block = MIXTRAL.pattern[0]
  mixture = dataclasses.replace(block.feed_forward, router=SigmoidRouter())
  model = dataclasses.replace(MIXTRAL, pattern=(dataclasses.replace(block, feed_forward=mixture),))
  bind(tmp_path, run(model=model), run(model=model, stage={'microbatches': 2}))


@pytest.mark.parametrize('evals, message', [
  ((HeldOut(), Needles((32,), every=3, target_recall=0.9)),
   r'config.stages\[0\].evals\[1\].every = 3: .* started with 2 and an evaluation may end'),
  ((HeldOut(),), r"config.stages\[0\].evals\[1\] = '\(absent\)': .* was started with Needles\("),
])
def test_an_evaluation_that_may_end_the_stage_stays(tmp_path, evals, message):
  ending = (HeldOut(), Needles((32,), every=2, target_recall=0.9))
  bind(tmp_path, run(stage={'evals': ending}))
  with pytest.raises(ConfigError, match=message):
    bind(tmp_path, run(stage={'evals': evals}))
  bind(tmp_path, run(stage={'evals': (Generations(('a',)), *ending[1:])}))


# ---------------------------------------------------------------------------------------------- the file
def test_the_file_names_the_version_that_wrote_it(tmp_path):
  write_config(tmp_path, run())
  assert json.loads((tmp_path / 'config.json').read_text()) == {'version': __version__, **schema.to_json(run())}
  assert read_config(tmp_path) == run()


@pytest.mark.parametrize('version, words', [
  (None, 'llm_jax 0.1, whose configuration this version'), ('0.1.3', 'llm_jax 0.1.3, whose'),
  ('7.0.0', 'llm_jax 7.0.0')])
def test_a_file_of_another_version_is_one_line_that_names_it(tmp_path, version, words):
  """Whatever else is in it: an old field says nothing to who reads of it."""
  tree = {**schema.to_json(run()), 'context': 8} | ({'version': version} if version else {})
  (tmp_path / 'config.json').write_text(json.dumps(tree))
  for act in (lambda: read_config(tmp_path), lambda: bind(tmp_path, run())):
    with pytest.raises(ConfigError) as error:
      act()
    line = str(error.value)
    assert line.startswith(f"workdir = '{tmp_path}': ") and words in line and '\n' not in line, line
  assert json.loads((tmp_path / 'config.json').read_text()) == tree


@pytest.mark.parametrize('content', [
  '{"seed":', '[]', '{"version": "0.2.0"}', '{"version": "0.2.0", "sed": 1}', '{"version": "x.y"}', '{"version": 3}'])
def test_a_damaged_file_is_not_overwritten(tmp_path, content):
  (tmp_path / 'config.json').write_text(content)
  with pytest.raises(ConfigError, match=r'workdir = .*config.json (is damaged \(|was written by llm_jax 3)'):
    bind(tmp_path, run())
  assert (tmp_path / 'config.json').read_text() == content


def test_a_folder_without_the_file_is_named_by_its_flag(tmp_path):
  with pytest.raises(ConfigError, match="--checkpoint = '.*': there is no config.json: "
                                        "name a folder that launch.train"):
    read_config(tmp_path, '--checkpoint')
