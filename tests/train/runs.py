"""Runs of `launch.train` as users start them: in processes of their own."""
import hashlib
import inspect
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np

from llm_jax import paths
from llm_jax.checkpoints.store import CheckpointStore

ROOT = pathlib.Path(__file__).parents[2]
WITHOUT_TORCH = pathlib.Path(__file__).parent / 'without_torch'


def write_corpus(folder: pathlib.Path) -> pathlib.Path:
  """Some 100 short documents of real text: the functions of a few standard modules."""
  import argparse
  import json as json_module
  import textwrap
  documents = [inspect.getsource(f) for module in (argparse, json_module, textwrap)
               for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__
               for _, f in inspect.getmembers(c, inspect.isfunction)]
  path = folder / 'corpus.jsonl'
  path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in documents))
  return path


def environment(cache: pathlib.Path, devices: int) -> dict[str, str]:
  keep = {k: v for k, v in os.environ.items() if not k.startswith('LLM_JAX')}
  return {**keep, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
          'LLM_JAX_CACHE': str(cache), 'PYTHONPATH': f'{WITHOUT_TORCH}:{ROOT}', 'PYTHONUNBUFFERED': '1'}


def write_recipe(folder: pathlib.Path) -> pathlib.Path:
  """Text, conversations, pairs of answers and multiple-choice questions, made of the same functions."""
  documents = [json.loads(line)['text'] for line in write_corpus(folder).read_text().splitlines()]
  (folder / 'corpus.jsonl').rename(folder / 'text.jsonl')
  cut = lambda text, *at: [text[a:b].strip() for a, b in zip(at, at[1:], strict=False)]
  chats, pairs = [], []
  for mine, other in zip(documents, documents[1:], strict=False):
    ask, answer = cut(mine, 0, 14, 30)
    chats.append({'messages': [{'role': 'user', 'content': ask}, {'role': 'assistant', 'content': answer}]})
    pairs.append({'prompt': ask, 'chosen': answer, 'rejected': other[40:55].strip()})
  questions = [{'question': chat['messages'][0]['content'], 'choices': ['no', 'yes'], 'answer': i % 2}
               for i, chat in enumerate(chats[:10])]
  for name, rows in (('chats', chats), ('pairs', pairs), ('questions', questions)):
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return folder / 'text.jsonl'


def tiny(name: str, data: pathlib.Path) -> str:
  """A value for `--config`: `tiny_NAME.py`, on the file or folder that it reads."""
  return f'{ROOT}/tests/train/tiny_{name}.py:{data}'


def command(corpus: pathlib.Path, workdir: pathlib.Path, *flags: str, experiment: str | None = None,
            module: str = 'launch.train', arguments: Sequence[str] = ()) -> list[str]:
  """What trains the tiny experiment, or another one.   module, arguments: what is started with its flags behind."""
  return [sys.executable, '-m', module, *arguments, f'--config={experiment or tiny("experiment", corpus)}',
          f'--workdir={workdir}', *flags]


def start(corpus: pathlib.Path, workdir: pathlib.Path, *flags: str, devices: int = 1,
          rank: tuple[int, int, int] | None = None, experiment: str | None = None, kill_at: str = '',
          module: str = 'launch.train', arguments: Sequence[str] = ()) -> subprocess.Popen:
  """Starts the tiny experiment, or another one. rank: (port, processes, this one). kill_at: see `kill_point`.
  module, arguments: see `command`."""
  cluster = [] if rank is None else [f'--coordinator=localhost:{rank[0]}', f'--num_processes={rank[1]}',
                                     f'--process_id={rank[2]}']
  return subprocess.Popen(
      command(corpus, workdir, *flags, *cluster, experiment=experiment, module=module, arguments=arguments),
      cwd=ROOT, env=environment(corpus.parent / 'cache', devices) | {'LLM_JAX_KILL_AT': kill_at},
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def await_hearing(process: subprocess.Popen) -> None:
  """Waits until the program hears SIGTERM: before, Python itself is starting, and any program ends by that signal."""
  bit = 1 << (signal.SIGTERM - 1)
  while process.poll() is None:
    status = pathlib.Path(f'/proc/{process.pid}/status').read_text()
    fields = dict(line.split(':', 1) for line in status.splitlines())
    if any(int(fields.get(name, '0'), 16) & bit for name in ('SigCgt', 'SigBlk')):
      return
    time.sleep(0.01)


def run(*args, expect: int = 0, **kwargs) -> str:
  """Runs to the end and checks the exit code."""
  process = start(*args, **kwargs)
  output, _ = process.communicate(timeout=300)
  assert process.returncode == expect, output
  return output


def start_processes(corpus: pathlib.Path, workdir: pathlib.Path, processes: int, *flags: str,
                    devices: int, experiment: str | None = None) -> list[subprocess.Popen]:
  """Starts one run of several processes."""
  port = free_port()
  return [start(corpus, workdir, *flags, devices=devices, rank=(port, processes, i), experiment=experiment)
          for i in range(processes)]


def run_processes(*args, **kwargs) -> str:
  """Runs several processes to the end and checks their exit codes; gives the first one's output."""
  started = start_processes(*args, **kwargs)
  outputs = [process.communicate(timeout=300)[0] for process in started]
  assert [process.returncode for process in started] == [0] * len(started), '\n'.join(outputs)
  return outputs[0]


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def losses(workdir: pathlib.Path, kind: str = 'train') -> dict[tuple[str, int], float]:
  """(stage, step) -> loss, of every line of metrics.jsonl; a step that stands there twice is an error."""
  found = {}
  for line in (workdir / 'metrics.jsonl').read_text().splitlines():
    record = json.loads(line)
    if record['kind'] == kind:
      key = record['stage'], record['step']
      assert key not in found, f'{key} was written twice'
      found[key] = record['loss']
  return found


def state_hash(workdir: pathlib.Path, stage: str) -> str:
  """sha256 over the names and bytes of parameters, averages, optimizer state and counters of the newest checkpoint."""
  checkpoint = CheckpointStore(workdir / 'checkpoints' / stage, 1).latest_valid()
  digest = hashlib.sha256()
  for key in sorted({name.split('/')[0] for name in checkpoint.leaves}):
    if key in checkpoint.leaves:
      digest.update(key.encode())
      continue
    for name, leaf in sorted(paths.leaves(checkpoint.read((key,)))):
      digest.update(f'{key}/{name}'.encode())
      digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()
