"""Samples on disk: written a part at a time, so that a run that is killed goes on after the last whole part.

A folder holds
  parts/000000.jsonl   a line for each prompt, with all of its answers; until all parts are there
  answers.jsonl        all parts, one behind the other
  manifest.json        what the answers were made of, their number and the sha256 of answers.jsonl; written last
  *.jsonl              what was chosen of the answers, for the sources that read it
"""
import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax.config.errors import require
from llm_jax.config.samples import SampledSource
from llm_jax.rollout.ranking import rows_of, whole_answers
from llm_jax.rollout.revising import numbers_of_revisions
from llm_jax.rollout.sampling import Answer
from llm_jax.runtime.errors import FileError
from llm_jax.runtime.files import write_atomic

ANSWERS, MANIFEST = 'answers.jsonl', 'manifest.json'


@dataclasses.dataclass(frozen=True)
class SampleFiles:
  """The folder of one set of samples.

  made_of: what decides the answers, beside the model, as JSON values.
  """
  folder: pathlib.Path
  made_of: Mapping[str, Any]

  # -------------------------------------------------------------------------------------------- parts
  def begin(self, model: str) -> None:
    """Makes the folder; what another model left there goes.   model: digest of what answers."""
    noted = self._read_json(self._parts / MANIFEST)
    if noted != {'model': model} and self.folder.exists():
      shutil.rmtree(self.folder)
    self._parts.mkdir(parents=True, exist_ok=True)
    write_atomic(self._parts / MANIFEST, _line({'model': model}))

  def has_part(self, number: int) -> bool:
    return self._part(number).exists()

  def write_part(self, number: int, answers: Sequence[Answer], scores: np.ndarray, rewards: np.ndarray, group: int
                 ) -> None:
    """scores: of each reward by itself, [rewards, answers].   rewards: [answers].   group: answers to a prompt."""
    records: list[dict[str, Any]] = []
    for first in range(0, len(answers), group):
      each = [{
        'text': answers[i].text, 'ended': answers[i].ended, 'tokens': len(answers[i].ids),
        'reward': float(rewards[i]), 'scores': scores[:, i].tolist(),
      } for i in range(first, first + group)]
      prompt = answers[first].prompt
      records.append({'prompt': prompt.messages, 'columns': prompt.columns, 'answers': each})
    self.write_records(number, records)

  def write_records(self, number: int, records: Sequence[Mapping[str, Any]]) -> None:
    """One for each prompt of the part."""
    write_atomic(self._part(number), ''.join(map(_line, records)))

  def finish(self, num_parts: int) -> None:
    """Joins the parts."""
    whole = b''.join(self._part(number).read_bytes() for number in range(num_parts))
    write_atomic(self.folder / ANSWERS, whole)
    noted = self._read_json(self._parts / MANIFEST)
    manifest = {'made_of': self.made_of, **noted, 'sha256': hashlib.sha256(whole).hexdigest(),
                **_numbers(_records(whole))}
    write_atomic(self.folder / MANIFEST, json.dumps(manifest, indent=2) + '\n')
    shutil.rmtree(self._parts)

  # -------------------------------------------------------------------------------------------- the whole
  @property
  def manifest(self) -> dict[str, Any] | None:
    """What is said of all answers; None where they are not all there, or were made of something else."""
    found = self._read_json(self.folder / MANIFEST)
    return found if found.get('made_of') == self.made_of else None

  def records(self) -> list[dict[str, Any]]:
    """Of every prompt, in the order in which they were asked.

    Raises:
      FileError: the file is not as it was written.
    """
    manifest, path = self.manifest, self.folder / ANSWERS
    content = path.read_bytes() if path.exists() else b''
    if manifest is None or hashlib.sha256(content).hexdigest() != manifest['sha256']:
      raise FileError(f'{path}: is not as it was written: delete the folder, and the same command samples it again')
    return _records(content)

  def write_rows(self, source: SampledSource) -> pathlib.Path:
    """The file with what the source chooses of the answers.

    Raises:
      ConfigError: that is nothing.
    """
    path = self.folder / f'{source.file_name}.jsonl'
    content = ''.join(_line(row) for row in rows_of(source, self.records()))
    require(bool(content), 'samples', str(self.folder / ANSWERS),
            f'nothing is chosen of these answers: {source.remedy}')
    if not path.exists() or path.read_text(encoding='utf-8') != content:
      write_atomic(path, content)
    return path

  @property
  def _parts(self) -> pathlib.Path:
    return self.folder / 'parts'

  def _part(self, number: int) -> pathlib.Path:
    return self._parts / f'{number:06}.jsonl'

  def _read_json(self, path: pathlib.Path) -> dict[str, Any]:
    """{} where there is no such file."""
    return json.loads(path.read_bytes()) if path.exists() else {}


def _line(value: Any) -> str:
  return json.dumps(value, ensure_ascii=False) + '\n'


def _records(content: bytes) -> list[dict[str, Any]]:
  return [json.loads(line) for line in content.split(b'\n') if line]


def _numbers(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """For people."""
  if 'revisions' in records[0]:
    return numbers_of_revisions(records)
  answers = [answer for record in records for answer in record['answers']]
  best = [max(answer['reward'] for answer in record['answers']) for record in records]
  return {
    'prompts': len(records),
    'answers': len(answers),
    'reward': float(np.mean([answer['reward'] for answer in answers])),
    'reward_of_best': float(np.mean(best)),
    'cut_off': float(np.mean([not answer['ended'] for answer in answers])),
    'prompts_without_answer': sum(not whole_answers(record) for record in records),
  }
