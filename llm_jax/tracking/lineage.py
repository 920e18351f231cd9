"""Where and with what a run was made."""
import hashlib
import importlib.metadata
import pathlib
import subprocess
import sys
import time
from typing import Any

from llm_jax.runtime.hardware import describe_machine

PACKAGE = pathlib.Path(__file__).parents[1]


def make_lineage() -> dict[str, Any]:
  """Where and with what a run was made; saved with every artefact."""
  return {'command': ' '.join(sys.argv), 'started': time.strftime('%Y-%m-%d %H:%M:%S%z'), 'code': code_version(),
          'machine': describe_machine(), 'packages': package_versions()}


def package_versions() -> dict[str, str]:
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
  return {name: importlib.metadata.version(name) for name in packages}


def code_digest() -> str:
  """sha256 of the package's sources. A commit would not tell apart two clones that are changed beside it, nor would a
  version two packages that are."""
  digest = hashlib.sha256()
  for file in sorted(file for file in PACKAGE.rglob('*.py') if file.is_file()):  # an editor's lock is a broken link
    digest.update(file.relative_to(PACKAGE).as_posix().encode() + b'\0' + file.read_bytes() + b'\0')
  return digest.hexdigest()


def code_version() -> str:
  """The package's version, and the commit it stands at where it runs from a clone; '+' marks uncommitted changes."""
  try:
    version = importlib.metadata.version('llm_jax')
  except importlib.metadata.PackageNotFoundError:  # run from a clone that was not installed
    version = 'clone'
  folder = str(PACKAGE.parent)
  git = lambda *words: subprocess.run(['git', '-C', folder, *words], capture_output=True, text=True, timeout=10)
  try:
    commit, changed = git('rev-parse', '--short=12', 'HEAD'), git('status', '--porcelain', '--untracked-files=no')
  except (OSError, subprocess.SubprocessError):
    return version
  return version if commit.returncode else f'{version} {commit.stdout.strip()}{"+" if changed.stdout.strip() else ""}'
