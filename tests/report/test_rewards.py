"""The charts of stages that learn from rewards."""
from llm_jax.report.page import write_report
from llm_jax.tracking.metrics import MetricsWriter
from tests.report.html_page import Page


def test_what_is_drawn(tmp_path):
  writer = MetricsWriter(tmp_path)
  for step in range(1, 9):
    of_rollout = {'reward': step / 10, 'reward_std': 0.2, 'entropy': 1 / step, 'distinct': 0.9, 'groups_alike': 0.1,
                  'answer_length': 7.0, 'answer_length_max': 9.0} if step % 4 == 1 else {}
    writer.write('train', 'grpo', step, loss=0.0, padding=0.2, ratio=1.0, ratio_max=1.2, kl_old=0.01, **of_rollout)
  writer.write('eval', 'grpo', 4, pass_greedy=0.25, pass_sampled=0.125)
  writer.write('final', 'grpo', 8, pass_greedy=0.75, pass_sampled=0.5)
  html = write_report(tmp_path).read_text(encoding='utf-8')
  Page(html)  # is whole
  for title in ('reward', 'held-out answers that pass', 'entropy', 'diversity', 'answers', 'padding', 'kl', 'ratio'):
    assert f'grpo: {title}' in html
  assert 'to the reference' not in html  # no record has it


def test_other_runs_have_no_such_charts(tmp_path):
  MetricsWriter(tmp_path).write('train', 'pretrain', 1, loss=1.0)
  assert '<h2>Rewards</h2>' not in write_report(tmp_path).read_text(encoding='utf-8')
