"""Trees become checked dataclasses and back; every wrong value is one line with its path, value and hint."""
import dataclasses
import json
import math
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from llm_jax.config import schema
from llm_jax.config.errors import LONGEST, ConfigError
from llm_jax.config.experiment import (
  BPE,
  WSD,
  Bytes,
  Constant,
  Cosine,
  Generations,
  HeldOut,
  HuggingFaceFile,
  Jsonl,
  LabelledJsonl,
  LinearToZero,
  Mesh,
  Muon,
  Needles,
  Params,
  StandardLibrary,
  Text,
  TiktokenFile,
  TokenFile,
  experiment,
  mix,
  presets,
  stage,
)
from llm_jax.config.run import Run


def run(**fields) -> Run:
  return Run(**{
    'model': presets.gpt2(d_model=8, num_layers=2, num_heads=2, vocab_size=300, max_length=64),
    'stages': (
      stage('first', StandardLibrary(), steps=10, seq_len=64, batch_size=4, learning_rate=WSD(1e-3), optimizer=Muon()),
      stage('second', mix((Text('a'), 0.3), (Jsonl('b'), 0.7), packing='best_fit'), steps=4, seq_len=32, batch_size=2,
            learning_rate=LinearToZero(1e-4), init=Params('first'), clip_norm=None, ema=0.9,
            evals=(HeldOut(every=5), Generations(('a', 'b')), Needles((32,)))),
    ),
    'tokenizer': BPE(vocab_size=300), **fields})


def changed(**at) -> dict:
  """The tree of `run()` with fields set by path: `changed(**{'stages[0].steps': 3})`."""
  tree = schema.to_json(run())
  for path, value in at.items():
    *way, last = [int(key) if key.isdecimal() else key for key in path.replace('[', '.').replace(']', '').split('.')]
    holder = tree
    for key in way:
      holder = holder[key]
    holder[last] = value
  return tree


def refused(tree) -> str:
  with pytest.raises(ConfigError) as caught:
    schema.from_json(tree)
  return str(caught.value)


@pytest.mark.parametrize('value', [
  run(),
  run(tokenizer=TiktokenFile('ranks', special_tokens=('<|a|>', '<|b|>'))),
  run(tokenizer=HuggingFaceFile('tokenizer.json'), mesh=Mesh(data=2, fsdp=-1), dtype='bfloat16'),
  run(model=presets.llama(d_model=8, num_layers=2, num_heads=2, num_kv_heads=1, vocab_size=300)),
  run(tokenizer=Bytes(), stages=(stage('a', TokenFile('t', separator=0), steps=1, seq_len=8, batch_size=1,
                                       learning_rate=Constant(0)),)),
])
def test_through_the_door_and_back(value):
  assert schema.from_config_dict(schema.to_config_dict(value)) == value
  assert schema.from_json(json.loads(json.dumps(schema.to_json(value)))) == value


def test_a_config_dict_has_kinds_tuples_and_every_field():
  config = schema.to_config_dict(run())
  assert isinstance(config, ml_collections.ConfigDict) and isinstance(config.stages[1], ml_collections.ConfigDict)
  assert config.stages[0].learning_rate.kind == 'WSD' and config.stages[0].optimizer.kind == 'Muon'
  assert [each.name for each in config.stages] == ['first', 'second'] and config.stages[0].ema is None
  config.stages[0].steps = 7
  assert schema.from_config_dict(config).stages[0].steps == 7


def test_integers_serve_as_floats_and_lists_as_tuples():
  new = schema.from_json(changed(**{'stages[0].learning_rate.peak': 1, 'stages[1].evals[1].prompts': ['x']}))
  assert isinstance(new.stages[0].learning_rate.peak, float) and new.stages[1].evals[1].prompts == ('x',)


@pytest.mark.parametrize('at, value, hint', [
  # unknown fields and kinds
  ('stages[0].stepz', 3, "no such field in Stage; did you mean 'steps'?"),
  ('stages[1].learning_rate.peek', 1, "no such field in LinearToZero; did you mean 'peak'?"),
  ('stages[0].learning_rate.kind', 'Cosin', "no such kind; did you mean 'Cosine'?"),
  ('stages[0].optimizer.kind', 'SGD', 'no such kind; use one of AdamW, Muon, Lion, Adafactor, Optax'),
  ('mesh.stages', 2, 'no such field in Mesh; use one of data, fsdp, tensor, context, expert, pipeline, '
                     'pipeline_microbatches'),
  # wrong types
  ('seed', 'three', 'give an integer, not str'),
  ('seed', True, 'give an integer, not bool'),
  ('seed', 1.0, 'give an integer, not float'),
  ('seed', None, 'None is not allowed here: give an integer'),
  ('model.tied_head', 1, 'give True or False, not int'),
  ('stages[0].ema', 'x', 'give a number or None, not str'),
  ('stages[1].evals[1].prompts', 'def ', "give a tuple, not str, such as ('def ',)"),
  ('stages[1].init', 'scratch', 'give Scratch() or Resume(...) or Params(...) or Average(...) or HuggingFace(...), '
                                'or a mapping of its fields with kind'),
  ('stages[1].data.sources[0].weight', '0.3', 'give a number or a tuple, not str'),
  ('stages[0].data', 'web', 'give Data(...), or a mapping of its fields'),
  ('stages[0].learning_rate', 3e-4,
   'give Constant(...) or Cosine(...) or WSD(...) or LinearToZero(...), or a mapping of its fields with kind'),
  # numbers that are not finite
  ('stages[0].learning_rate.peak', math.nan, 'give a finite number'),
  ('stages[1].data.sources[0].weight', math.inf, 'give a finite number'),
  # what the dataclasses refuse, under the whole path
  ('stages[0].learning_rate.peak', -1.0, 'use a finite learning rate of 0 or more, such as 3e-4'),
  ('stages[0].learning_rate.warmup', 11, 'warm-up is longer than the stage: use at most steps=10'),
  ('stages[0].optimizer.eps', 0.0, 'use a finite number above 0, such as 1e-8'),
  ('stages[0].seq_len', 65, 'the learned positions end at model.positions.max_length=64: shorten seq_len or '
                            'lengthen the table'),
  ('stages[0].microbatches', 3, 'use a divisor of batch_size=4'),
  ('stages[1].name', 'first', 'stage names must differ'),
  ('stages', (), 'give at least one stage'),
  ('model.vocab_size', 299, "smaller than the tokenizer's: use 300 or more"),
  ('model.pattern[0].attention.num_kv_heads', 3, 'use a divisor of num_heads=2'),
  ('mesh.fsdp', 0, 'use a positive number of devices, or -1 for all that are left'),
  ('dtype', 'float16', "use 'auto', 'float32' or 'bfloat16'"),
])
def test_wrong_values_are_one_line(at, value, hint):
  assert refused(changed(**{at: value})) == f'config.{at} = {value!r}: {hint}'


def test_errors_name_the_part_that_is_wrong():
  for at, value, line in (
    ('tokenizer', {}, 'config.tokenizer.kind = <missing>: say which one: Bytes, BPE, TiktokenFile, HuggingFaceFile'),
    ('stages[1].evals[1].prompts', ['a', 1], 'config.stages[1].evals[1].prompts[1] = 1: give a string, not int'),
    ('model.d_model', 9, 'config.model.pattern[0].attention.num_heads = 2: use a divisor of d_model=9, or set '
                         'head_dim'),
  ):
    assert refused(changed(**{at: value})) == line


def test_a_missing_field():
  tree = changed()
  del tree['stages'][1]['steps']
  assert refused(tree) == 'config.stages[1].steps = <missing>: Stage needs it: give an integer'
  assert refused('x') == "config = 'x': give Run(...), or a mapping of its fields"


def test_every_default_is_what_the_door_gives_back():
  required = {field.name for field in dataclasses.fields(Run) if field.default is dataclasses.MISSING}
  tree = {name: value for name, value in schema.to_json(run()).items() if name in required}
  assert schema.from_json({**tree, 'tokenizer': {'kind': 'Bytes'}}) == run(tokenizer=Bytes())


def test_an_experiment_refuses_its_mistakes_at_once():
  good = {'steps': 1, 'seq_len': 8, 'batch_size': 1, 'learning_rate': Cosine(1e-3)}
  text = StandardLibrary()
  for make, line in (
    (lambda: stage('a', text, stepz=3, **good), "stage('a').stepz = 3: no such field in Stage; did you mean 'steps'?"),
    (lambda: stage('a', text, **{**good, 'steps': '1'}), "stage('a').steps = '1': give an integer, not str"),
    (lambda: stage('a', **good), "stage('a').data = <missing>: Stage needs it: give Data"),
    (lambda: mix((text, '0.5')), "mix[0].weight = '0.5': give a number or a tuple, not str"),
    (lambda: mix(StandardLibrary('0.1')), "mix[0].source.val_fraction = '0.1': give a number, not str"),
    (lambda: mix(Jsonl('a', 3)), "mix[0].source.field = 3: give a string, not int"),
    (lambda: schema.from_json(changed(**{'tokenizer': {'kind': 'Bytes', 'vocab_size': 3}})),
     'config.tokenizer.vocab_size = 3: no such field in Bytes; there are none'),
    (lambda: stage('a', mix('web'), **good), "mix[0] = 'web': give a source, such as Text(path), or (source, weight)"),
    (lambda: experiment(model=run().model, sead=1), "config.sead = 1: no such field in Run; did you mean 'seed'?"),
  ):
    with pytest.raises(ConfigError) as caught:
      make()
    assert str(caught.value) == line


def test_a_source_has_one_weight():
  weighted = mix((StandardLibrary(), 2)).sources[0]
  assert mix(weighted).sources == (weighted,)
  with pytest.raises(ConfigError, match=r'mix\[0\] = .*: give a source, such as Text\(path\), or \(source, weight\)'):
    mix((weighted, 3))


def test_a_long_value_is_cut_and_stays_in_one_line():
  with pytest.raises(ConfigError, match=r'^config.stages = Stage.*\.\.\.: give a tuple, not Stage, such as') as caught:
    experiment(model=run().model, stages=(run().stages[0]))
  assert len(str(caught.value)) < LONGEST + 100 and str(ConfigError('a', np.eye(2), 'b')).count('\n') == 0


def test_lists_serve_as_tuples_and_a_source_as_held_out():
  text, good = Text('a'), {'steps': 1, 'seq_len': 8, 'batch_size': 1, 'learning_rate': Cosine(1e-3)}
  assert mix((text, [[0, 1], [1, 2]])).sources[0].weight == ((0.0, 1.0), (1.0, 2.0))
  assert mix(LabelledJsonl('a', ['x', 'y'])).labels == ('x', 'y')
  assert stage('a', text, eval_data=text, **good).eval_data == mix(text)


def test_experiment_is_the_config_dict_of_its_run():
  fields = {field.name: getattr(run(), field.name) for field in dataclasses.fields(Run)}
  assert schema.from_config_dict(experiment(**fields)) == run()


def test_config_starts_without_jax():
  program = ('import sys, llm_jax.config.experiment, launch.flags\n'
             'heavy = {"jax", "jaxlib", "flax", "numpy", "optax", "orbax", "torch"} & set(sys.modules)\n'
             'sys.exit(f"imported {heavy}" if heavy else 0)')
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
