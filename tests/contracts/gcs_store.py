"""As much of Google Cloud Storage as a run folder asks of it, on this machine.

The JSON API: objects are put, read, listed, copied and deleted; a put may demand
that nothing be there (`ifGenerationMatch=0`). gcsfs finds it by
STORAGE_EMULATOR_HOST, TensorStore by TENSORSTORE_GCS_HTTP_URL.
https://cloud.google.com/storage/docs/json_api/v1
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
import functools
import hashlib
import http.server
import itertools
import json
import os
import re
import threading
from urllib import parse

import pytest

from bigdl import storage

_numbers = itertools.count()


class Objects:
  """Buckets in memory."""

  def __init__(self):
    self.lock = threading.Lock()
    self.content: dict[tuple[str, str], tuple[bytes, int]] = {}
    self.buckets: set[str] = set()
    self.generations = itertools.count(1)
    self.uploads: dict[str, tuple[str, str, str | None]] = {}

  def put(self, bucket: str, name: str, data: bytes, match: str | None):
    """Returns what describes the object; None where `match` forbids it."""
    with self.lock:
      now = self.content.get((bucket, name), (b'', 0))[1]
      if match is not None and int(match) != now:
        return None
      self.content[bucket, name] = data, next(self.generations)
    return self.describe(bucket, name)

  def describe(self, bucket: str, name: str):
    data, generation = self.content[bucket, name]
    return {
      'kind': 'storage#object',
      'id': f'{bucket}/{name}/{generation}',
      'bucket': bucket,
      'name': name,
      'size': str(len(data)),
      'generation': str(generation),
      'metageneration': '1',
      'md5Hash': base64.b64encode(hashlib.md5(data).digest()).decode(),
      'etag': str(generation),
      'contentType': 'application/octet-stream',
      'timeCreated': '2026-01-01T00:00:00.000Z',
      'updated': '2026-01-01T00:00:00.000Z',
    }

  def list(self, bucket: str, prefix: str, delimiter: str):
    with self.lock:
      names = sorted(n for b, n in self.content if b == bucket)
      items, prefixes = [], set()
      for name in names:
        if not name.startswith(prefix):
          continue
        rest = name[len(prefix) :]
        if delimiter and delimiter in rest:
          prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
        else:
          items.append(self.describe(bucket, name))
    return {'kind': 'storage#objects', 'items': items, 'prefixes': [*prefixes]}


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers one client."""

  protocol_version = 'HTTP/1.1'
  # Head and body in one packet: the second would wait for the first's receipt.
  wbufsize = 1 << 16
  disable_nagle_algorithm = True
  objects: Objects

  def log_message(self, *_):
    pass

  def reply(self, code, body=b'', kind='application/json', **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    self.send_response(code)
    self.send_header('Content-Type', kind)
    self.send_header('Content-Length', str(len(data)))
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(data)

  def error(self, code, reason):
    self.reply(code, {'error': {'code': code, 'message': reason}})

  def body(self) -> bytes:
    if self.headers.get('Transfer-Encoding') == 'chunked':
      parts = []
      while size := int(self.rfile.readline().split(b';')[0], 16):
        parts.append(self.rfile.read(size))
        self.rfile.readline()
      self.rfile.readline()
      return b''.join(parts)
    return self.rfile.read(int(self.headers.get('Content-Length') or 0))

  def handle_one(self):
    data = self.body()
    url = parse.urlsplit(self.path)
    query = dict(parse.parse_qsl(url.query))
    path = url.path
    if path.startswith('/batch/'):
      return self.batch(data)
    upload = re.fullmatch(
      r'(?:/resumable)?/upload/storage/v1/b/([^/]+)/o', path
    )
    if upload:
      return self.upload(upload[1], query, data)
    path = re.sub('^/download', '', path)
    self.act(self.command, path, query, data)

  do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = handle_one

  def act(self, method, path, query, data):
    code, body, headers = self.answer(method, path, query, data)
    if isinstance(body, bytes):
      self.reply(code, body, 'application/octet-stream', **headers)
    elif code >= 400:
      self.error(code, body)
    else:
      self.reply(code, body if body is not None else b'', **headers)

  def answer(self, method, path, query, data):
    objects = self.objects
    parts = [parse.unquote(p) for p in path.split('/')]  # '', storage, v1, b, …
    if parts[:4] != ['', 'storage', 'v1', 'b']:
      return 404, f'no such call {path}', {}
    if len(parts) == 4:
      objects.buckets.add(json.loads(data)['name'])
      return 200, {'name': json.loads(data)['name']}, {}
    bucket = parts[4]
    if bucket not in objects.buckets:
      return 404, 'The specified bucket does not exist.', {}
    if len(parts) == 5:
      return 200, {'kind': 'storage#bucket', 'name': bucket}, {}
    if parts[5] != 'o':
      return 404, f'no such call {path}', {}
    if len(parts) == 6:
      listed = objects.list(
        bucket, query.get('prefix', ''), query.get('delimiter', '')
      )
      return 200, listed, {}
    name = parts[6]
    if (bucket, name) not in objects.content:
      return 404, 'No such object', {}
    if len(parts) > 7 and parts[7] in ('rewriteTo', 'copyTo'):
      target, name_ = parts[9], parts[11]
      source = objects.content[bucket, name][0]
      made = objects.put(target, name_, source, None)
      if parts[7] == 'copyTo':
        return 200, made, {}
      return 200, {'done': True, 'resource': made}, {}
    if method == 'DELETE':
      objects.content.pop((bucket, name), None)
      return 204, b'', {}
    if query.get('alt') != 'media':
      return 200, objects.describe(bucket, name), {}
    content, generation = objects.content[bucket, name]
    if query.get('ifGenerationNotMatch') == str(generation):
      return 304, b'', {}
    headers = {'x_goog_generation': str(generation)}
    span = re.match(r'bytes=(\d*)-(\d*)', self.headers.get('Range') or '')
    if not span:
      return 200, content, headers
    if not span[1]:
      first, last = max(0, len(content) - int(span[2])), len(content) - 1
    else:
      first = int(span[1])
      last = min(int(span[2] or len(content)), len(content) - 1)
    if first >= len(content):
      return 416, b'', headers
    headers['Content_Range'] = f'bytes {first}-{last}/{len(content)}'
    return 206, content[first : last + 1], headers

  def upload(self, bucket, query, data):
    kind, match = query.get('uploadType'), query.get('ifGenerationMatch')
    if kind == 'resumable' and 'upload_id' not in query:
      name = query.get('name') or json.loads(data)['name']
      key = str(next(self.objects.generations))
      self.objects.uploads[key] = bucket, name, match, b''
      host = self.headers['Host']
      place = f'http://{host}{self.path.split("?")[0]}'
      return self.reply(
        200, b'', Location=f'{place}?uploadType=resumable&upload_id={key}'
      )
    if kind == 'resumable':
      bucket, name, match, so_far = self.objects.uploads[query['upload_id']]
      data = so_far + data
      total = self.headers.get('Content-Range', f'/{len(data)}').split('/')[1]
      if total != str(len(data)):
        self.objects.uploads[query['upload_id']] = bucket, name, match, data
        return self.reply(308, b'', Range=f'bytes=0-{len(data) - 1}')
    elif kind == 'multipart':
      # Two parts: what it is called, and what is in it.
      about, content = self.parts(data)
      name = json.loads(about)['name']
      data = content
    else:
      name = query['name']
    made = self.objects.put(bucket, name, data, match)
    if made is None:
      return self.error(412, 'At least one of the pre-conditions did not hold.')
    return self.reply(200, made)

  def parts(self, data: bytes, heads: bool = False) -> list[bytes]:
    """Returns the parts of a body in several, with or without their heads."""
    kind = self.headers['Content-Type']
    mark = re.search(r'boundary="?([^";]+)', kind)[1].strip("'")
    raw = data.split(b'--' + mark.encode())[1:-1]
    raw = [part.removeprefix(b'\r').removeprefix(b'\n') for part in raw]
    # The line end before a mark is the mark's.
    raw = [part.removesuffix(b'\n').removesuffix(b'\r') for part in raw]
    if heads:
      return raw
    return [re.split(rb'\r?\n\r?\n', part, maxsplit=1)[1] for part in raw]

  def batch(self, data):
    replies = []
    for part in self.parts(data, heads=True):
      found = re.search(rb'(DELETE|GET|POST|PATCH) (\S+) HTTP', part)
      method, url = found[1].decode(), parse.urlsplit(found[2].decode())
      identity = re.search(rb'Content-ID: *<?([^>\r\n]+)', part, re.I)
      code, *_ = self.answer(
        method, url.path, dict(parse.parse_qsl(url.query)), b''
      )
      mark = identity[1].decode() if identity else ''
      replies.append(
        f'--reply\r\nContent-Type: application/http\r\nContent-ID: <response-{mark}>'
        f'\r\n\r\nHTTP/1.1 {code} OK\r\nContent-Length: 0\r\n\r\n\r\n'
      )
    text = ''.join(replies) + '--reply--'
    self.reply(200, text.encode(), 'multipart/mixed; boundary=reply')


class Server(http.server.ThreadingHTTPServer):
  daemon_threads = True

  def handle_error(self, request, client_address):
    """Clients close connections that they need no longer."""


@functools.cache
def _serve() -> None:
  """Starts the server, which all tests and their child processes reach."""
  handler = type('Bound', (Handler,), {'objects': Objects()})
  server = Server(('127.0.0.1', 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  address = f'http://127.0.0.1:{server.server_port}'
  os.environ.update(
    STORAGE_EMULATOR_HOST=address,
    TENSORSTORE_GCS_HTTP_URL=address,
    GOOGLE_AUTH_TOKEN_FOR_TESTING='nothing',
    GOOGLE_CLOUD_PROJECT='nobody',
    NO_GCE_CHECK='true',
    # It would ask a service that the stand-in is not what kind of bucket it is.
    GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT='false',
  )


@pytest.fixture(scope='module')
def gcs_bucket() -> Iterator[str]:
  """A new bucket, `gs://…`."""
  _serve()
  name = f'gs://bucket-{next(_numbers)}'
  storage.filesystem(name).mkdir(name.removeprefix('gs://'))
  yield name
