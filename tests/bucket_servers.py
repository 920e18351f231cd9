"""Servers of buckets, started by the tests on free ports: moto for s3://, gcp-storage-emulator for gs://, and a proxy
that fails some of the requests."""
import contextlib
import http.client
import itertools
import logging
import os
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from llm_jax.runtime import buckets
from llm_jax.runtime.buckets import BucketPath, place

BUCKET = 'bucket'
SCHEMES = ('s3', 'gs')
KEYS = {'AWS_ACCESS_KEY_ID': 'tests', 'AWS_SECRET_ACCESS_KEY': 'tests'}
Rule = Callable[[str, str], int | None]  # (method, path) -> the status to answer with; None: what the server says


@contextlib.contextmanager
def serving(scheme: str) -> Iterator[str]:
  """The address of a server with an empty bucket, http://127.0.0.1:PORT."""
  with _serving_s3() if scheme == 's3' else _serving_gs() as address:
    yield address


@contextlib.contextmanager
def _serving_s3() -> Iterator[str]:
  import boto3
  from moto.server import ThreadedMotoServer
  logging.getLogger('werkzeug').setLevel(logging.ERROR)
  server = ThreadedMotoServer('127.0.0.1', port=0)
  server.start()
  try:
    host, port = server.get_host_and_port()
    address = f'http://{host}:{port}'
    client = boto3.client('s3', endpoint_url=address, region_name='us-east-1', aws_access_key_id='tests',
                          aws_secret_access_key='tests')
    existing = {each['Name'] for each in client.list_buckets()['Buckets']}  # moto's buckets outlive its servers
    if BUCKET not in existing:
      client.create_bucket(Bucket=BUCKET)
    yield address
  finally:
    server.stop()


@contextlib.contextmanager
def _serving_gs() -> Iterator[str]:
  from gcp_storage_emulator.server import create_server
  logging.getLogger('gcp_storage_emulator').setLevel(logging.CRITICAL)
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  server = create_server('127.0.0.1', port, in_memory=True, default_bucket=BUCKET)
  server.start()
  try:
    yield f'http://127.0.0.1:{port}'
  finally:
    server.stop()


def settings(scheme: str, address: str) -> dict[str, str]:
  """The environment in which a program finds the server."""
  if scheme == 's3':
    return {**KEYS, 'AWS_ENDPOINT_URL': address}
  return {'TENSORSTORE_GCS_HTTP_URL': address, 'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'tests'}


@contextlib.contextmanager
def bucket(scheme: str, folder: str, rule: Rule | None = None) -> Iterator[BucketPath]:
  """A folder in the bucket of a server of its own, which this process and those that it starts find.

  rule: which requests fail.
  """
  with contextlib.ExitStack() as stack:
    address = stack.enter_context(serving(scheme))
    if rule is not None:
      address = stack.enter_context(proxy(address, rule))
    before = dict(os.environ)
    stack.callback(lambda: (os.environ.clear(), os.environ.update(before), buckets._open.cache_clear()))
    os.environ.update(settings(scheme, address))
    buckets._open.cache_clear()
    found = place(f'{scheme}://{BUCKET}/{folder}')
    assert isinstance(found, BucketPath)
    yield found


def one_in(count: int) -> Rule:
  """Every so many requests one fails."""
  numbers = itertools.count(1)
  return lambda method, path: 503 if next(numbers) % count == 0 else None


@contextlib.contextmanager
def proxy(address: str, rule: Rule) -> Iterator[str]:
  """Hands requests on to the server at `address`, but for those that `rule` answers."""
  target = address.removeprefix('http://')

  class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def _answer(self) -> None:
      body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
      status = rule(self.command, self.path)
      if status is not None:
        self._reply(status, {}, b'')
        return
      connection = http.client.HTTPConnection(target)
      connection.request(self.command, self.path, body, {**dict(self.headers), 'Host': target})
      response = connection.getresponse()
      left_out = ('transfer-encoding', 'date')
      found = {name: value for name, value in response.getheaders() if name.lower() not in left_out}
      self._reply(response.status, found, response.read())
      connection.close()

    def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
      self.send_response(status)
      for name, value in headers.items():
        if name.lower() not in ('content-length', 'connection', 'server'):
          self.send_header(name, value)
      length = headers.get('Content-Length', str(len(body))) if self.command == 'HEAD' else str(len(body))
      self.send_header('Content-Length', length)
      self.end_headers()
      self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer

    def log_message(self, *_: object) -> None:
      """Nothing is printed."""

  server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  server.daemon_threads = True
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield f'http://127.0.0.1:{server.server_port}'
  finally:
    server.shutdown()
    server.server_close()


def upload(folder: pathlib.Path, to: BucketPath) -> None:
  for path in folder.rglob('*'):
    if path.is_file():
      (to / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())


def download(folder: BucketPath, to: pathlib.Path) -> None:
  for name in folder.names():
    (to / name).parent.mkdir(parents=True, exist_ok=True)
    (to / name).write_bytes((folder / name).read_bytes())
