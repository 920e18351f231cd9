"""What a report shows of stages that learn from rewards of their own answers."""
import dataclasses
from collections.abc import Sequence

from llm_jax.report.charts import Series, line_chart
from llm_jax.report.records import MetricsRecord, RunRecords
from llm_jax.tracking.numbers import value

# Of each chart: its title, the label of its axis, and its curves: the name in the records, and that in the legend.
CHARTS = (
  ('Reward', 'mean of a rollout', (('reward', 'reward'), ('reward_std', 'spread over its answers'))),
  ('Diversity', 'share', (('distinct', 'distinct answers of a group'), ('groups_alike', 'groups with one reward'))),
  ('Entropy', 'nats per token', (('entropy', 'entropy'),)),
  ('Answers', 'tokens', (('answer_length', 'mean length'), ('answer_length_max', 'longest'))),
  ('KL', 'nats', (('kl', 'to the reference, a token'), ('kl_old', 'to the policy that sampled, a token'))),
  ('Seconds', 'of a rollout', (('sampling_seconds', 'sampling'), ('log_probs_seconds', 'log-probabilities'))),
  ('Padding', 'share of what is computed', (('padding', 'training'), ('sampling_padding', 'sampling'))),
  ('Ratio', 'to the policy that sampled', (('ratio', 'mean'), ('ratio_max', 'largest of a step'))),
)
COLOURS = 'ab'
PART = 'reward/'  # begins the names of the rewards one by one
PASSED = (('pass_greedy', 'greedy'), ('pass_sampled', 'sampled'))


def rewards(run: RunRecords) -> str:
  """Charts over the steps of each such stage; '' where there is none."""
  charts = [chart for stage in run.stages for chart in stage_charts(run, stage.name, stage.train)]
  return f'<h2>Rewards</h2><div class="charts">{"".join(charts)}</div>' if charts else ''


def stage_charts(run: RunRecords, name: str, train: Sequence[MetricsRecord]) -> list[str]:
  if not any('reward' in record for record in train):
    return []
  scored = [record for record in (*run.of_kind('eval'), *run.of_kind('final')) if record.get('stage') == name]
  drawn = [line_chart(f'{name}: held-out answers that pass', curves(scored, PASSED, 'dots'), y_label='share')]
  for title, label, names in CHARTS:
    drawn.append(line_chart(f'{name}: {title.lower()}', curves(train, names), y_label=label))
  drawn[2:2] = [part_chart(name, part, train, scored) for part in parts(train)]
  return drawn


def parts(train: Sequence[MetricsRecord]) -> list[str]:
  """The names of the rewards, where there are several."""
  names = [key.removeprefix(PART) for record in train for key in record if key.startswith(PART)]
  return list(dict.fromkeys(names))


def part_chart(stage: str, part: str, train: Sequence[MetricsRecord], scored: Sequence[MetricsRecord]) -> str:
  """One reward by itself, not weighted, each on an axis of its own: what is learnt from beside what is only recorded,
  such as the score of a reward model beside that of a verifier (Gao et al. 2023, figure 1)."""
  held_out = curves(scored, ((f'reward_sampled/{part}', 'held-out prompts'),), 'dots')
  held_out = [dataclasses.replace(curve, colour='b') for curve in held_out]
  drawn = [*curves(train, ((PART + part, 'prompts of training'),)), *held_out]
  return line_chart(f'{stage}: reward {part}', drawn, y_label='mean, not weighted')


def curves(records: Sequence[MetricsRecord], names: Sequence[tuple[str, str]], style: str = 'line') -> list[Series]:
  """One curve for each name that any record has; a rollout's numbers stand in the first of its steps alone."""
  found: list[Series] = []
  for colour, (name, label) in zip(COLOURS, names, strict=False):
    with_it = [record for record in records if name in record]
    if with_it:
      found.append(Series(label, [value(record, 'step') for record in with_it],
                          [value(record, name) for record in with_it], colour, style))
  return found
