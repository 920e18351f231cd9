"""`launch.train --profile=START:STOP`, as users start it."""
import re

import pytest

from llm_jax.config.errors import ConfigError
from llm_jax.config.experiment import Constant, StandardLibrary, stage
from llm_jax.tracking.trace import STEP, read_trace
from llm_jax.train.profile import Window, module_of
from tests.train.runs import run

SHORT = ('--stage=first', '--config.stages[0].steps=8', '--config.stages[0].learning_rate.warmup=0')


def test_a_run_traces_the_steps_and_prints_where_their_time_went(corpus, tmp_path):
  """With an evaluation and a checkpoint among the steps, which are no part of them."""
  printed = run(corpus, tmp_path, *SHORT, '--config.stages[0].evals[0].every=5', '--profile=3:6')
  lines = printed[printed.index('first: where the time of steps 4 to 6 went'):].splitlines()
  rows = {found[1].strip(): (float(found[2].replace(',', '')), float(found[3]))
          for line in lines if (found := re.fullmatch(r'  (\S.*?)  +([\d,.]+) +([\d.]+)%.*', line))}
  assert {'matrix products', 'attention: scores, softmax, values', 'elementwise', 'host, waiting',
          'other programs: evaluation, saving'} <= set(rows)
  [step] = [float(line.split()[2].replace(',', '')) for line in lines if line.startswith('  a step')]
  assert sum(milliseconds for milliseconds, _ in rows.values()) == pytest.approx(step, abs=0.1)
  assert sum(share for _, share in rows.values()) == pytest.approx(100, abs=0.5)
  path, events = read_trace(tmp_path / 'profile')
  assert f'trace: {path}' in printed
  assert [event['args']['step_num'] for event in events if event.get('name') == STEP] == ['4', '5', '6']
  assert 'first/8' in printed or (tmp_path / 'checkpoints' / 'first').exists()  # the run went on to its end

  refused = run(corpus, tmp_path, *SHORT, '--profile=3:6', expect=2)
  assert refused.splitlines()[-1] == 'error: --profile = \'3:6\': every stage is finished: leave the flag out'


def test_steps_that_a_stage_does_not_take_are_refused():
  eight = stage('first', StandardLibrary(), steps=8, seq_len=8, batch_size=1, learning_rate=Constant(1e-3))
  Window(4, 8).check(eight, 4)
  with pytest.raises(ConfigError, match="--profile = '4:9': stage first has 8 steps: let STOP be at most that"):
    Window(4, 9).check(eight, 0)
  with pytest.raises(ConfigError, match="'3:8': stage first goes on from step 4: let START be 4 or more"):
    Window(3, 8).check(eight, 4)


def test_the_name_of_a_program():
  assert module_of('HloModule jit_train_step, is_scheduled=true, more=1\n\n%fused') == 'jit_train_step'
