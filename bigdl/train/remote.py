"""Checkpoints of orbax in object stores.

Orbax writes arrays through TensorStore, which knows S3, but makes it drivers
for local paths and GCS only (orbax issues 359 and 872). What it makes for
`gs://bucket/key` is here turned into what TensorStore takes for S3.
"""

from __future__ import annotations

import functools
from typing import Any

import orbax.checkpoint as ocp

from bigdl import storage

# How botocore found the credentials, and what TensorStore calls that:
# https://google.github.io/tensorstore/kvstore/s3/index.html
_CREDENTIALS = {
  'env': 'environment',
  'shared-credentials-file': 'profile',
  'config-file': 'profile',
  'iam-role': 'imds',
  'container-role': 'ecs',
}


def options(folder: Any) -> dict[str, Any]:
  """Returns what `CheckpointManagerOptions` needs for a folder.

  In an object store a file says that a checkpoint is whole, as it has no rename
  of folders.
  """
  if not storage.is_remote(folder):
    return {}
  if str(folder).startswith('s3://'):
    enable_s3()
  from orbax.checkpoint._src.path import atomicity

  return {'temporary_path_class': atomicity.CommitFileTemporaryPath}


@functools.cache
def enable_s3() -> None:
  """Lets orbax read and write arrays under `s3://`.

  Raises:
    ValueError: This release of orbax names things otherwise.
  """
  try:
    from orbax.checkpoint._src.serialization import tensorstore_utils as specs

    original = specs.build_kvstore_tspec
  except (ImportError, AttributeError) as error:
    raise ValueError(
      f's3:// does not work with orbax-checkpoint {ocp.__version__}: {error}'
    ) from error

  @functools.wraps(original)
  def build(directory: str, *args: Any, **kwargs: Any) -> Any:
    # Some callers have it normalised, with one slash left of the two.
    if not directory.startswith('s3:/'):
      return original(directory, *args, **kwargs)
    path = directory.removeprefix('s3:').lstrip('/')
    return _on_s3(original(f'gs://{path}', *args, **kwargs), _driver())

  specs.build_kvstore_tspec = build


def _on_s3(spec: Any, driver: dict[str, Any]) -> Any:
  """Returns a specification with S3 in the place of GCS, at any depth."""
  if isinstance(spec, list):
    return [_on_s3(part, driver) for part in spec]
  if isinstance(spec, str) and spec.startswith('gs://'):
    bucket, _, path = spec.removeprefix('gs://').partition('/')
    return {**driver, 'bucket': bucket, 'path': path}
  if not isinstance(spec, dict):
    return spec
  if spec.get('driver') in ('gcs', 'gcs_grpc'):
    return {**driver, 'bucket': spec['bucket'], 'path': spec['path']}
  return {k: _on_s3(v, driver) for k, v in spec.items()}


@functools.cache
def _driver() -> dict[str, Any]:
  """Returns TensorStore's S3 driver, set up as the AWS tools are."""
  import botocore.session

  client = storage.filesystem('s3://').s3
  driver: dict[str, Any] = {'driver': 's3'}
  if client.meta.region_name:
    driver['aws_region'] = client.meta.region_name
  if '.amazonaws.com' not in client.meta.endpoint_url:
    driver['endpoint'] = client.meta.endpoint_url
  found = botocore.session.Session().get_credentials()
  kind = _CREDENTIALS.get(found.method) if found else 'anonymous'
  if kind:
    driver['aws_credentials'] = {'type': kind}
  return driver
