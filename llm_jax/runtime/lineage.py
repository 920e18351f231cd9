"""Where a run was made, with which code and packages."""
import dataclasses
import hashlib
import importlib.metadata
import pathlib
import subprocess
import sys
import time
from typing import Any

from llm_jax.config.version import __version__
from llm_jax.runtime.hardware import Machine, describe_machine

PACKAGE = pathlib.Path(__file__).parents[1]
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
GIT_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class RunLineage:
  """What a run was made with; it stands in `lineage.json` and in every checkpoint.

  version: of llm_jax.
  command: the command line.
  started: local time with its offset.
  code: see `code_version`.
  packages: versions by name.
  """
  version: str
  command: str
  started: str
  code: str
  machine: Machine
  packages: dict[str, str]

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> 'RunLineage':
    """Raises KeyError or TypeError for what `to_json` did not write."""
    return cls(
      version=fields['version'],
      command=fields['command'],
      started=fields['started'],
      code=fields['code'],
      machine=Machine(**fields['machine']),
      packages=fields['packages'],
    )


def make_lineage() -> RunLineage:
  """The lineage of the run that this process belongs to."""
  return RunLineage(
    version=__version__,
    command=' '.join(sys.argv),
    started=time.strftime('%Y-%m-%d %H:%M:%S%z'),
    code=code_version(),
    machine=describe_machine(),
    packages=package_versions(),
  )


def package_versions() -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in PACKAGES}


def code_digest() -> str:
  """sha256 (hex) of the package's sources.

  Processes of one run compare it, since neither a version nor a commit shows that a file was edited.
  """
  digest = hashlib.sha256()
  # An editor's lock looks like a source file and is a broken link.
  sources = sorted(path for path in PACKAGE.rglob('*.py') if path.is_file())
  for path in sources:
    name = path.relative_to(PACKAGE).as_posix().encode()
    digest.update(name + b'\0' + path.read_bytes() + b'\0')
  return digest.hexdigest()


def code_version() -> str:
  """The package's version and, where it runs from a clone, the commit; '+' marks changes that are not committed."""
  try:
    commit = _git('rev-parse', '--short=12', 'HEAD')
    changes = _git('status', '--porcelain', '--untracked-files=no')
  except (OSError, subprocess.SubprocessError):  # no git, or no clone
    return __version__
  mark = '+' if changes else ''
  return f'{__version__} {commit}{mark}'


def _git(*words: str) -> str:
  command = ['git', '-C', str(PACKAGE.parent), *words]
  done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
  return done.stdout.strip()
