"""An object store on this machine: moto's server, which speaks as S3 does."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
import functools
import itertools
import logging
import os
import warnings

import pytest

from bigdl import storage

_numbers = itertools.count()


@functools.cache
def _serve() -> None:
  """Starts the server, which all tests and their child processes reach.

  One for good: clients of an endpoint are kept in several places.
  """
  with warnings.catch_warnings():
    # What it imports is not ours to mend.
    warnings.simplefilter('ignore')
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer('127.0.0.1', 0, verbose=False)
    server.start()
  logging.getLogger('werkzeug').setLevel(logging.ERROR)
  atexit.register(server.stop)
  host, port = server.get_host_and_port()
  os.environ.update(
    AWS_ENDPOINT_URL=f'http://{host}:{port}',
    AWS_ACCESS_KEY_ID='nobody',
    AWS_SECRET_ACCESS_KEY='nothing',
    AWS_DEFAULT_REGION='us-east-1',
  )


@pytest.fixture(scope='module')
def bucket() -> Iterator[str]:
  """A new bucket, `s3://…`."""
  _serve()
  name = f's3://bucket-{next(_numbers)}'
  storage.filesystem(name).mkdir(name)
  yield name
