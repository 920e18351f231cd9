"""Files of a bucket for what needs files of this machine: fetched once, into the cache folder."""
import contextlib
import fnmatch
import hashlib
import os
import pathlib
import secrets

from llm_jax.runtime.buckets import BucketPath, in_parallel

CHUNK = 64 << 20  # bytes that are asked for at a time


def find(path: BucketPath, suffixes: tuple[str, ...]) -> dict[str, BucketPath]:
  """{name: object} for an object, those below a folder, or a glob; names as of files in a folder of this machine."""
  if any(letter in str(path) for letter in '*?['):
    root = path
    while any(letter in str(root) for letter in '*?['):
      root = root.parent
    pattern = path.relative_to(root).as_posix()
    names = [name for name in root.names() if _matches(name.split('/'), pattern.split('/'))]
    return {name: root / name for name in names}
  if path.is_file():
    return {path.name: path}
  return {name: path / name for name in path.names() if name.endswith(suffixes)}


def _matches(parts: list[str], pattern: list[str]) -> bool:
  """As `glob` does: `**` stands for any number of folders."""
  if not parts or not pattern:
    return parts == pattern or pattern == ['**']
  if pattern[0] == '**':
    return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
  return fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def fetch(objects: dict[str, BucketPath], cache: pathlib.Path) -> dict[str, pathlib.Path]:
  """Copies of the objects below `cache`; what is there already of the same generation is not fetched again."""
  paths = in_parallel(lambda path: _fetch(path, cache), list(objects.values()))
  return dict(zip(objects, paths, strict=True))


def _fetch(path: BucketPath, cache: pathlib.Path) -> pathlib.Path:
  name = hashlib.sha256(f'{path}\0{path.generation()}'.encode()).hexdigest()[:32]
  local = cache / 'buckets' / name / path.name
  if local.exists():
    return local
  local.parent.mkdir(parents=True, exist_ok=True)
  making = local.with_name(f'.{secrets.token_hex(8)}')
  try:
    with open(making, 'xb') as file:
      for chunk in path.chunks(CHUNK):
        file.write(chunk)
    os.replace(making, local)
  finally:
    with contextlib.suppress(FileNotFoundError):
      making.unlink()
  return local
