"""Stages that train adapters alone, as a user starts them."""
import random
import shutil
import signal

import numpy as np
import peft
import pytest
import torch
import transformers

from llm_jax import paths
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.tracking.metrics import read_metrics
from tests.train import runs

STAGES = ('pretrain', 'sft', 'dpo', 'merged')


@pytest.fixture(scope='module')
def untouched(recipe_corpus, tmp_path_factory):
  """An uninterrupted run, and what it printed."""
  workdir = tmp_path_factory.mktemp('untouched')
  output = runs.run(recipe_corpus, workdir, experiment=runs.tiny('adapters', recipe_corpus.parent))
  return workdir, output


def newest(workdir, stage):
  return CheckpointStore(workdir / 'checkpoints' / stage).latest_valid()


def test_adapters_alone_are_trained_and_saved(untouched):
  workdir, output = untouched
  base, sft = newest(workdir, 'pretrain'), newest(workdir, 'sft')
  assert all(path.rpartition('/')[2] in ('lora_a', 'lora_b') for path in sft.leaves if path.startswith('params/'))
  assert sft.metadata.lineage.base == newest(workdir, 'dpo').metadata.lineage.base
  count = lambda checkpoint, of: sum(np.prod(leaf.shape) for path, leaf in checkpoint.leaves.items() if of in path)
  num_trained, num_all = count(sft, 'params/'), count(base, 'params/')
  assert num_trained < num_all / 2 and f'{num_all:,} parameters ({num_trained:,} trained)' in output
  assert count(sft, '') < 3 * num_trained + 300  # the adapters, two moments of them, and how losses varied


def test_stages_begin_where_the_one_before_has_ended(untouched):
  workdir, _ = untouched
  records = read_metrics(workdir)
  first = {stage: next(r for r in records if r['stage'] == stage and r['kind'] == 'train') for stage in ('sft', 'dpo')}
  assert first['dpo']['loss'] == pytest.approx(np.log(2), abs=1e-6)  # the policy is the reference
  final = {record['stage']: record for record in records if record['kind'] == 'final'}
  assert final['dpo']['loss'] != pytest.approx(np.log(2), abs=1e-4)
  assert final['merged']['loss'] != final['pretrain']['loss']


def test_the_merged_model_is_the_sum(untouched):
  workdir, _ = untouched
  base, merged = dict(paths.leaves(newest(workdir, 'pretrain').read())), newest(workdir, 'merged').read()
  trained = dict(paths.leaves(newest(workdir, 'dpo').read()))
  for path, leaf in paths.leaves(merged):
    assert leaf.dtype == np.float32
    difference = np.abs(leaf - base[path]).max()
    if f'{path.removesuffix("w")}lora_a' in trained:
      assert difference > 1e-3
    else:
      assert difference < 1e-2  # it was stored in bfloat16


def test_an_interrupted_stage_goes_on(recipe_corpus, untouched, tmp_path):
  """DPO goes on from its middle: base and reference are read anew, and it ends bitwise equal."""
  workdir = tmp_path / 'run'
  shutil.copytree(untouched[0], workdir)
  for gone in ('dpo/00000008', 'merged'):
    shutil.rmtree(workdir / 'checkpoints' / gone)
  runs.run(recipe_corpus, workdir, '--stage=dpo', experiment=runs.tiny('adapters', recipe_corpus.parent))
  assert runs.state_hash(workdir, 'dpo') == runs.state_hash(untouched[0], 'dpo')
  assert runs.losses(workdir) == runs.losses(untouched[0])


@pytest.mark.slow
def test_sigkill_at_random_moments(recipe_corpus, untouched, tmp_path):
  """Runs of SFT and DPO that are killed 20 times end bitwise equal."""
  reference, _ = untouched
  experiment = runs.tiny('adapters', recipe_corpus.parent)
  kills, attempt, rng = 0, 0, random.Random(0)
  while kills < 20:
    workdir = tmp_path / f'{attempt}'
    attempt += 1
    for _ in range(6):
      process = runs.start(recipe_corpus, workdir, experiment=experiment)
      try:
        output, _ = process.communicate(timeout=rng.uniform(5, 25))
        assert process.returncode == 0, output
        break
      except runs.subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    else:
      runs.run(recipe_corpus, workdir, experiment=experiment)
    for stage in STAGES:
      assert runs.state_hash(workdir, stage) == runs.state_hash(reference, stage)
    assert runs.losses(workdir) == runs.losses(reference)


def test_another_base_is_refused(recipe_corpus, untouched, tmp_path):
  """The checkpoint that the adapters stand beside is replaced by an older one of its stage."""
  workdir = tmp_path / 'run'
  shutil.copytree(untouched[0], workdir)
  for gone in ('pretrain/00000008', 'dpo/00000008', 'merged'):
    shutil.rmtree(workdir / 'checkpoints' / gone)
  output = runs.run(recipe_corpus, workdir, '--stage=dpo', expect=1,
                    experiment=runs.tiny('adapters', recipe_corpus.parent))
  assert 'were trained on another base' in output


def test_bad_input(recipe_corpus, tmp_path):
  experiment = runs.tiny('adapters', recipe_corpus.parent)
  for flag, message in (('targets=nothing', 'targets'), ('rank=1000', 'rank'), ('base=int3', 'base')):
    output = runs.run(recipe_corpus, tmp_path, f'--config.stages[1].adapters.{flag}', experiment=experiment, expect=2)
    assert f'config.stages[1].adapters.{message}' in output and 'compiled' not in output


# ---------------------------------------------------------------------------------------------- taking them out
def launch(module, *flags, expect=0):
  found = runs.subprocess.run([runs.sys.executable, '-m', f'launch.{module}', *map(str, flags)], text=True,
                              capture_output=True, cwd=runs.ROOT, timeout=300)
  assert found.returncode == expect, found.stderr
  return found.stdout if expect == 0 else found.stderr


def test_a_model_with_adapters_writes_as_its_merged_one(untouched):
  workdir, _ = untouched
  flags = ('--prompt=def f', '--temperature=0', '--max_new_tokens=8', '--raw')
  adapted, merged = (launch('sample', f'--checkpoint={workdir}', f'--stage={stage}', *flags)
                     for stage in ('dpo', 'merged'))
  assert adapted == merged and len(adapted) > len('def f')


def test_converted(untouched, tmp_path):
  """A folder of `transformers` with the merged weights is the base with what `peft` loads."""
  workdir, _ = untouched
  of = f'--checkpoint={workdir}', '--stage=dpo'
  assert '--merge' in launch('convert', *of, f'--to_hf={tmp_path / "no"}', expect=2)
  launch('convert', *of, '--merge', f'--to_hf={tmp_path / "merged"}')
  launch('convert', *of, f'--to_peft={tmp_path / "adapter"}')
  launch('convert', f'--checkpoint={workdir}', '--stage=pretrain', f'--to_hf={tmp_path / "base"}')
  launch('convert', f'--from_hf={tmp_path / "base"}', f'--adapter={tmp_path / "adapter"}',
         f'--to_hf={tmp_path / "merged by us"}')
  load = transformers.AutoModelForCausalLM.from_pretrained
  theirs = peft.PeftModel.from_pretrained(load(tmp_path / 'base'), tmp_path / 'adapter').merge_and_unload()
  ours = dict(load(tmp_path / 'merged by us').named_parameters())
  quantised = dict(load(tmp_path / 'merged').named_parameters())
  for name, tensor in theirs.named_parameters():
    torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)
    torch.testing.assert_close(quantised[name], tensor, rtol=0, atol=0.02)  # its base is in nf4
