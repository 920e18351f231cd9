"""experiments/kto.py as small as a test, as a user starts it: pretraining, SFT, and KTO on rated answers."""
import pytest

from llm_jax.tracking.metrics import read_metrics
from tests.train import runs, small_quickstart

KTO = str(runs.ROOT / 'experiments/kto.py')


@pytest.mark.slow  # tests/objectives/test_kto.py has the objective, tests/train/test_recipe.py a run with a reference
def test_kto_starts_at_the_reference_and_leaves_it(tmp_path):
  workdir = tmp_path / 'run'
  output = runs.run(tmp_path / 'none', workdir, *small_quickstart.flags(KTO), experiment=KTO)
  records = read_metrics(workdir)
  assert [record['stage'] for record in records if record['kind'] == 'final'] == ['pretrain', 'sft', 'kto']
  first, *_, last = [record for record in records if record['stage'] == 'kto' and record['kind'] == 'train']
  assert first['loss'] == pytest.approx(0.5) and first['kl'] == 0  # the policy is the reference
  assert last['loss'] != pytest.approx(0.5, abs=1e-5)
  final = records[-1]
  assert 0 <= final['accuracy'] <= 1 and {'kl', 'reward_desirable', 'reward_undesirable'} <= final.keys()
  assert f'{final["accuracy"]:.0%} right' in output
  assert f'{final["accuracy"]:.0%} right' in (workdir / 'report.html').read_text()
