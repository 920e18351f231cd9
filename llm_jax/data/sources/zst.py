"""Files that are compressed by Zstandard."""
import importlib
import io
import pathlib
from typing import Any

from llm_jax.config.errors import ConfigError
from llm_jax.config.packages import is_installed

CHUNK = 1 << 20  # bytes of the file that are read in one go


class DamagedError(Exception):
  """A file that is not as Zstandard writes one, or is cut short."""


def open_file(path: pathlib.Path) -> io.BufferedReader:
  """The content of a file, of one frame or several.

  Raises:
    ConfigError: the package that reads them is not installed.
    OSError: as `open`.
  """
  if not is_installed('zstandard'):
    raise ConfigError('path', str(path), "needs zstandard, which is not installed: pip install 'llm_jax[data]'")
  return io.BufferedReader(_Frames(path), CHUNK)


class _Frames(io.RawIOBase):
  """The content of the frames, one after the other. The package's own reader takes a file that is cut short for whole.
  """

  def __init__(self, path: pathlib.Path):
    self._package: Any = importlib.import_module('zstandard')
    self._file = open(path, 'rb', buffering=0)
    self._frame: Any = None  # None: between two frames
    self._read = b''  # of the file, and not decompressed
    self._content = memoryview(b'')  # and not given out

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    while not self._content:
      if not self._decompress():
        return 0
    size = min(len(buffer), len(self._content))
    buffer[:size] = self._content[:size]
    self._content = self._content[size:]
    return size

  def close(self) -> None:
    self._file.close()
    super().close()

  def _decompress(self) -> bool:
    """Makes more content, perhaps none; False at the end of the file."""
    read = self._read or self._file.read(CHUNK)
    if not read:
      if self._frame is not None:
        raise DamagedError('it ends in the middle')
      return False
    if self._frame is None:
      self._frame = self._package.ZstdDecompressor().decompressobj()
    try:
      self._content = memoryview(self._frame.decompress(read))
    except self._package.ZstdError as error:
      raise DamagedError(str(error)) from error
    self._read = self._frame.unused_data if self._frame.eof else b''
    if self._frame.eof:
      self._frame = None
    return True
