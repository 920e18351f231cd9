"""What the wall time of a run went to."""
from llm_jax.report.html import escape, table
from llm_jax.report.records import RunRecords
from llm_jax.tracking.numbers import duration

STEP = 'step'
MEANINGS = {
  STEP: 'training steps that count',
  'redone steps': 'steps that were done before, after the last checkpoint of a process that ended',
  'start': 'all that is nothing else, from the start of a process',
  'compile': 'compiling the step',
  'data': 'waiting for a batch; tokenising',
  'checkpoint': 'waiting for a checkpoint',
  'evaluation': 'evaluations',
  'restore': 'reading a checkpoint back',
  'idle': 'no process ran, or what it did is not recorded',
}


def time_table(run: RunRecords) -> str:
  """A row for each use of time, the longest first; '' for a run without records of it."""
  total = sum(run.time_use.values())
  if not total:
    return ''
  by_length = sorted(run.time_use.items(), key=lambda item: -item[1])
  rows = [(use, duration(seconds), f'{seconds / total:.1%}', MEANINGS.get(use, '')) for use, seconds in by_length]
  share = run.time_use.get(STEP, 0.0) / total
  words = f'Of {duration(total)} since the run began, {share:.1%} went to steps that count (goodput).'
  return f'<h2>Time</h2><p>{escape(words)}</p>' + table(('use', 'time', 'share', 'what it is'), rows, 'words')
