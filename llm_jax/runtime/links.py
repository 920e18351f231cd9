"""A connection between two processes of a run: JSON objects, one a line."""
import json
import select
import socket
import threading
from typing import Any

MOST_BYTES = 1 << 16  # of a message: whoever sends more is none of us
SEND_SECONDS = 1.0

Message = dict[str, Any]


class Link:
  """Sends and receives messages. A link that fails is closed; nothing is raised.

  is_open: whether the other end is still there.
  """

  def __init__(self, connection: socket.socket):
    self._connection = connection
    self._received = b''
    self._sending = threading.Lock()
    self.is_open = True
    connection.settimeout(SEND_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

  def fileno(self) -> int:
    return self._connection.fileno()

  def send(self, message: Message) -> None:
    """A message that the other end does not take for SEND_SECONDS is lost: that end is stopped, or far behind."""
    self.send_encoded(encode(message))

  def send_encoded(self, line: bytes) -> None:
    """`send`, of what `encode` has made of a message."""
    if not self.is_open:
      return
    try:
      with self._sending:
        self._connection.sendall(line)
    except TimeoutError:
      pass
    except OSError:
      self.is_open = False

  def receive(self) -> list[Message]:
    """What has come; waits for it up to SEND_SECONDS. Clears `is_open` where the other end is gone."""
    try:
      found = self._connection.recv(MOST_BYTES)
    except TimeoutError:
      return []
    except OSError:
      found = b''
    self._received += found
    *lines, self._received = self._received.split(b'\n')
    if not found or len(self._received) > MOST_BYTES:
      self.is_open = False
    return [message for message in map(_decode, lines) if message is not None]

  def poll(self) -> None:
    """Clears `is_open` where the other end is gone; reads nothing, and waits for nothing."""
    poll = select.poll()
    poll.register(self._connection, select.POLLIN)
    if not poll.poll(0):
      return
    try:
      found = self._connection.recv(1, socket.MSG_PEEK)
    except OSError:
      found = b''
    self.is_open = self.is_open and bool(found)

  def close(self) -> None:
    self.is_open = False
    self._connection.close()


def encode(message: Message) -> bytes:
  """What goes over the wire. Whoever sends one message to a thousand encodes it once."""
  return json.dumps(message).encode() + b'\n'


def _decode(line: bytes) -> Message | None:
  """The message; None for what no process of ours has sent."""
  try:
    found = json.loads(line)
  except ValueError:
    return None
  return found if isinstance(found, dict) else None
