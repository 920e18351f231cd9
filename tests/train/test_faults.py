"""What a run does about lost and foreign checkpoints and about divergence, as users meet it: whole runs."""
import json
import re
import resource
import shutil

import pytest

from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.tracking.metrics import read_metrics
from tests.train import runs

FIRST = '--stage=first'
RATE = '--config.stages[0].learning_rate.peak'


@pytest.fixture(scope='module')
def stopped(corpus, tmp_path_factory):
  """The folder of a run whose second stage was killed at step 11: an evaluation is the last thing it did."""
  workdir = tmp_path_factory.mktemp('stopped')
  runs.run(corpus, workdir, FIRST)
  runs.run(corpus, workdir, kill_at='after_commit@10', expect=-9)
  return workdir


@pytest.fixture
def workdir(stopped, tmp_path):
  """A copy of it."""
  return shutil.copytree(stopped, tmp_path / 'run')


def test_a_stage_whose_checkpoints_are_gone_does_not_begin_again(corpus, workdir):
  shutil.rmtree(workdir / 'checkpoints' / 'second')
  output = runs.run(corpus, workdir, expect=1)
  assert re.search(r'stage second had reached step 1\d and its checkpoints are gone', output.splitlines()[-1])
  output = runs.run(corpus, workdir, '--stage=second', '--from_step=0')
  assert 'second  step 12/12' in output


def test_a_checkpoint_of_another_run_is_not_taken(corpus, workdir, tmp_path):
  other = tmp_path / 'other'
  runs.run(corpus, other, FIRST, f'{RATE}=0.3', kill_at='after_commit@20', expect=-9)
  again = tmp_path / 'again'
  runs.run(corpus, again, FIRST, kill_at='after_commit@10', expect=-9)
  shutil.copytree(other / 'checkpoints/first/00000020', again / 'checkpoints/first/00000020')
  output = runs.run(corpus, again, FIRST)
  assert 'checkpoint not used' in output and 'is of another run, with config.stages[0].learning_rate.peak' in output
  assert runs.state_hash(again, 'first') == runs.state_hash(workdir, 'first')


def test_a_diverged_run_goes_on_as_its_last_line_says(corpus, tmp_path):
  """An absurd rate from the start: nothing that was saved is bad, and the same folder takes a better one."""
  output = runs.run(corpus, tmp_path, FIRST, f'{RATE}=1e4', expect=1)
  assert 'skipped, spike (' in output and '10 steps in a row were skipped' in output.splitlines()[-1]
  skipped = re.findall(r'step (\d+) skipped, .* \(samples (\d+) to (\d+)\)', output)
  assert skipped and all((8 * int(step) - 8, 8 * int(step) - 1) == (int(first), int(last))
                         for step, first, last in skipped)
  assert 'the same workdir takes the change' in output.splitlines()[-1]
  assert not CheckpointStore(tmp_path / 'checkpoints' / 'first').steps()
  assert [r for r in read_metrics(tmp_path) if r['kind'] == 'event' and 'spike' in r['event']]
  runs.run(corpus, tmp_path, FIRST)


def test_a_run_goes_back_to_an_earlier_step_with_another_rate(corpus, workdir):
  """The branch is that of a run which had the new rate from there on; it is recorded, and the same command goes on."""
  change = '--config.stages[1].learning_rate.peak=5e-4'
  output = runs.run(corpus, workdir, change, expect=2)
  assert 'go back to an earlier step with the new one (--from_step=N)' in output
  output = runs.run(corpus, workdir, change, '--from_step=7', expect=2)
  assert '--from_step = 7: stage second has no checkpoint of that step, only of 10, 5' in output
  output = runs.run(corpus, workdir, '--config.seed=5', '--from_step=5', expect=2)
  assert 'config.seed = 5: the run was started with 1, and a branch changes only' in output
  lean = '--config.stages[1].optimizer.moments=bfloat16'
  output = runs.run(corpus, workdir, lean, '--from_step=5', expect=2)
  assert 'config.stages[1].optimizer = AdamW(' in output and 'its state has another form than that of' in output
  assert not (workdir / 'branches').exists()
  flags = (change, '--from_step=5')
  runs.run(corpus, workdir, *flags, kill_at='after_commit@10', expect=-9)
  output = runs.run(corpus, workdir, *flags)
  assert 'second  step 12/12' in output and 'step 6/' not in output
  before = json.loads((workdir / 'branches/1/config.json').read_text())
  assert before['stages'][1]['learning_rate']['peak'] == 1e-3
  assert sorted(path.name for path in (workdir / 'branches/1/checkpoints/second').iterdir()) == ['00000010']
  [branch] = json.loads((workdir / 'lineage.json').read_text())['branches']
  assert (branch['stage'], branch['step']) == ('second', 5)
  assert branch['changes'] == {'config.stages[1].learning_rate.peak': [1e-3, 5e-4]}
  newest = CheckpointStore(workdir / 'checkpoints' / 'second').latest_valid()
  assert newest.step == 12 and newest.metadata.lineage.branches == [branch]
  trained = [r for r in read_metrics(workdir) if (r['kind'], r['stage']) == ('train', 'second')]
  rates = {r['step']: r['learning_rate'] for r in trained}
  assert sorted(rates) == list(range(1, 13)) and rates[6] == pytest.approx(rates[5] / 2)


def test_skipped_steps_are_the_same_after_a_kill(corpus, tmp_path):
  """A rule so strict that it calls common steps spikes: a killed run skips the same ones, and saves beside them."""
  flags = (FIRST, '--config.stages[0].skip_spikes.deviations=0.25', '--config.stages[0].max_nonfinite=99')
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  runs.run(corpus, whole, *flags)
  runs.run(corpus, killed, *flags, kill_at='before_commit@10', expect=-9)
  runs.run(corpus, killed, *flags)
  skipped = {name: [(r['step'], r['skipped']) for r in read_metrics(name) if r['kind'] == 'train']
             for name in (whole, killed)}
  assert skipped[whole] == skipped[killed] and 0 < sum(was for _, was in skipped[whole]) < 24
  assert runs.losses(whole) == runs.losses(killed)
  assert runs.state_hash(whole, 'first') == runs.state_hash(killed, 'first')


@pytest.mark.slow  # tests/train/test_stage.py has the message
def test_out_of_memory_ends_with_one_line(corpus, tmp_path):
  """A model of 8 billion parameters where a process may have 10 GiB."""
  flags = ('--config.model.d_model=8192', '--config.model.pattern[0].attention.head_dim=2048',
           '--config.model.pattern[0].feed_forward.d_ff=32768', '--config.model.num_layers=8')
  limits = resource.getrlimit(resource.RLIMIT_AS)
  resource.setrlimit(resource.RLIMIT_AS, (10 << 30, limits[1]))  # the process that is started inherits it
  try:
    output = runs.run(corpus, tmp_path, *flags, expect=1)
  finally:
    resource.setrlimit(resource.RLIMIT_AS, limits)
  line = output.splitlines()[-1]
  assert line.startswith('error: out of memory in stage first, making or reading the state that it starts from: ')
  assert 'GiB' in line and 'remat' in line and 'fsdp=2' in line
