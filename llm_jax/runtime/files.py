"""Files that are replaced whole or not at all."""
import contextlib
import os
import tempfile
from pathlib import Path


def sync_folder(folder: Path) -> None:
  """Makes the names in `folder` survive a power cut."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_atomic(path: Path, content: str | bytes) -> None:
  """Replaces `path` so that a reader, or a crash at any moment, sees the old content or the new, never a part."""
  path = Path(path)
  data = content.encode() if isinstance(content, str) else content
  descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
  try:
    with open(descriptor, 'wb') as file:
      file.write(data)
      file.flush()
      os.fchmod(descriptor, 0o644)
      os.fsync(descriptor)
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.unlink(temporary)
    raise
  sync_folder(path.parent)
