"""A Hugging Face hub on this machine, as much of its protocol as reading and pushing need."""
import base64
import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Iterator

RESOLVE = re.compile(r'/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)')
CALLS = 'revision|tree|paths-info|preupload|commit'
API = re.compile(rf'/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/({CALLS})/([^/]+)(/.*)?)?')
LFS = re.compile(r'/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch')


class Repository:
  """Commits of a repository: path -> content."""

  def __init__(self):
    self.commits: dict[str, dict[str, bytes]] = {}
    self.branches: dict[str, str] = {}
    self.is_gated = False

  def commit(self, files: dict[str, bytes], branch: str = 'main') -> str:
    """Adds files to what the branch holds; returns the commit."""
    held = {**self.commits.get(self.branches.get(branch, ''), {}), **files}
    content = repr((sorted((name, hashlib.sha256(body).hexdigest()) for name, body in held.items()), len(self.commits)))
    commit = hashlib.sha1(content.encode()).hexdigest()
    self.commits[commit] = held
    self.branches[branch] = commit
    return commit

  def find(self, revision: str) -> str | None:
    return self.branches.get(revision, revision if revision in self.commits else None)


class Hub:
  """Repositories by kind ('models', 'datasets') and name.

  requests: what was asked for, such as `GET /api/models/us/tiny`.
  uploads: what was uploaded as a large file, by sha256.
  """

  def __init__(self, url: str = ''):
    self.url = url
    self.repositories: dict[tuple[str, str], Repository] = {}
    self.requests: list[str] = []
    self.uploads: dict[str, bytes] = {}

  def add(self, kind: str, name: str, files: dict[str, bytes] | pathlib.Path) -> str:
    """Commits files to a repository, which is made where there is none; returns the commit."""
    if isinstance(files, pathlib.Path):
      files = {path.relative_to(files).as_posix(): path.read_bytes() for path in files.rglob('*') if path.is_file()}
    return self.repositories.setdefault((kind, name), Repository()).commit(files)

  def environment(self, home: pathlib.Path) -> dict[str, str]:
    """Of a process that asks this hub, with a cache in `home`."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(('HF_', 'HUGGING'))}
    return {**others, 'HF_ENDPOINT': self.url, 'HF_HOME': str(home), 'HF_HUB_DISABLE_XET': '1',
            'HF_HUB_DISABLE_TELEMETRY': '1', 'HF_UPDATE_DOWNLOAD_COUNTS': '0'}


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
  """A hub that answers while the body runs."""
  hub = Hub()
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), type('Bound', (Handler,), {'hub': hub}))
  hub.url = f'http://127.0.0.1:{server.server_port}'
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield hub
  finally:
    server.shutdown()
    server.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
  hub: Hub
  protocol_version = 'HTTP/1.1'

  def log_message(self, *args):
    pass

  def do_HEAD(self):
    self.answer()

  def do_GET(self):
    self.answer()

  def do_POST(self):
    self.answer()

  def do_PUT(self):
    self.answer()

  def answer(self):
    path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
    self.body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
    self.hub.requests.append(f'{self.command} {path}')
    if match := RESOLVE.fullmatch(path):
      return self.resolve('datasets' if match[1] else 'models', match[2], match[3], match[4])
    if match := API.fullmatch(path):
      return self.api(match[1], match[2], match[3], match[4], (match[5] or '').strip('/'))
    if match := LFS.fullmatch(path):
      return self.batch()
    if path.startswith('/upload/'):
      self.hub.uploads[path.rpartition('/')[2]] = self.body
      return self.send({})
    if path == '/api/repos/create':
      given = json.loads(self.body)
      name = f'{given["organization"]}/{given["name"]}' if given.get('organization') else given['name']
      self.hub.repositories.setdefault((f'{given.get("type", "model")}s', name), Repository())
      return self.send({'url': f'{self.hub.url}/{name}', 'name': name})
    if path == '/api/whoami-v2':
      return self.send({'name': 'us', 'type': 'user', 'orgs': [], 'auth': {'accessToken': {'role': 'write'}}})
    if path == '/api/validate-yaml':
      return self.send({'errors': [], 'warnings': []})
    return self.refuse(404, 'EntryNotFound')

  # ---------------------------------------------------------------------------------------------- reading
  def repository(self, kind: str, name: str, revision: str | None) -> tuple[Repository, str] | None:
    found = self.hub.repositories.get((kind, name))
    if found is None:
      return self.refuse(404, 'RepoNotFound')
    if found.is_gated and 'Authorization' not in self.headers:
      return self.refuse(403, 'GatedRepo')
    commit = found.find(revision or 'main')
    if commit is None and found.commits:
      return self.refuse(404, 'RevisionNotFound')
    return found, commit or '0' * 40

  def resolve(self, kind: str, name: str, revision: str, path: str):
    found = self.repository(kind, name, revision)
    if found is None:
      return
    repository, commit = found
    if path not in repository.commits[commit]:
      return self.refuse(404, 'EntryNotFound', commit)
    content = repository.commits[commit][path]
    self.send(content, {'ETag': f'"{hashlib.sha256(content).hexdigest()}"', 'X-Repo-Commit': commit})

  def api(self, kind: str, name: str, what: str | None, revision: str | None, below: str):
    found = self.repository(kind, name, revision)
    if found is None:
      return
    repository, commit = found
    files = repository.commits.get(commit, {})
    if what in (None, 'revision'):
      self.send({'id': name, 'modelId': name, 'sha': commit, 'private': False, 'gated': False, 'disabled': False,
                 'downloads': 0, 'likes': 0, 'tags': [], 'lastModified': '2026-01-01T00:00:00.000Z',
                 'createdAt': '2026-01-01T00:00:00.000Z', 'siblings': [{'rfilename': path} for path in files]})
    elif what == 'tree':
      recursive = 'recursive=true' in self.path.lower()
      self.send(list(entries(files, below, recursive)))
    elif what == 'paths-info':
      wanted = urllib.parse.parse_qs(self.body.decode()).get('paths', []) or json.loads(self.body or b'{}').get('paths')
      everything = {entry['path']: entry for folder in {'', *folders(files)} for entry in entries(files, folder, False)}
      self.send([everything[path] for path in wanted if path in everything])
    elif what == 'preupload':
      given = json.loads(self.body)['files']
      mode = lambda path: 'lfs' if path.endswith('.safetensors') else 'regular'
      self.send({'files': [{'path': file['path'], 'uploadMode': mode(file['path']), 'shouldIgnore': False}
                           for file in given]})
    else:
      self.commit(repository, str(revision))

  # ---------------------------------------------------------------------------------------------- pushing
  def batch(self):
    """Where large files go to."""
    objects = [{'oid': each['oid'], 'size': each['size'],
                'actions': {'upload': {'href': f'{self.hub.url}/upload/{each["oid"]}'}}}
               for each in json.loads(self.body)['objects']]
    self.send({'transfer': 'basic', 'objects': objects})

  def commit(self, repository: Repository, branch: str):
    files: dict[str, bytes] = {}
    for line in self.body.splitlines():
      entry = json.loads(line)
      if entry['key'] == 'file':
        files[entry['value']['path']] = base64.b64decode(entry['value']['content'])
      elif entry['key'] == 'lfsFile':
        files[entry['value']['path']] = self.hub.uploads[entry['value']['oid']]
    commit = repository.commit(files, branch)
    self.send({'success': True, 'commitOid': commit, 'commitUrl': f'{self.hub.url}/us/x/commit/{commit}',
               'hookOutput': ''})

  # ---------------------------------------------------------------------------------------------- answers
  def send(self, content, headers=()):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    self.send_response(200)
    for name, value in dict(headers).items():
      self.send_header(name, value)
    self.send_header('Content-Type', 'application/octet-stream' if body is content else 'application/json')
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(body)

  def refuse(self, status: int, code: str, commit: str = ''):
    self.send_response(status)
    self.send_header('X-Error-Code', code)
    if commit:
      self.send_header('X-Repo-Commit', commit)
    self.send_header('Content-Length', '0')
    self.end_headers()


def folders(files: dict[str, bytes]) -> set[str]:
  return {'/'.join(path.split('/')[:depth]) for path in files for depth in range(1, path.count('/') + 1)}


def entries(files: dict[str, bytes], below: str, recursive: bool) -> Iterator[dict]:
  """What a folder of a commit holds."""
  start = f'{below}/' if below else ''
  found = sorted({path for path in (*files, *folders(files)) if path.startswith(start)})
  for path in found:
    if not recursive and '/' in path[len(start):]:
      continue
    body = files.get(path)
    digest = hashlib.sha1(body if body is not None else path.encode()).hexdigest()
    kind = 'directory' if body is None else 'file'
    yield {'type': kind, 'oid': digest, 'path': path, 'size': 0 if body is None else len(body)}
