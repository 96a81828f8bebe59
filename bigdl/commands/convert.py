"""Converts weights: a Hugging Face folder into ours, or ours into one."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib

from bigdl import flags


@dataclasses.dataclass(frozen=True)
class Flags:
  """Converts weights: a Hugging Face folder into ours, or ours into one.

  What SRC holds says which way: `config.json` of Hugging Face and safetensors
  become a model folder (`model.json` and safetensors by our paths); a model
  folder, a run, or a sweep's best cell become a Hugging Face folder. Files of a
  tokenizer are copied along. Nothing is fetched.
  """

  src: str  # Folder to read.
  dst: str  # Folder to write; it must not exist, or be empty.
  dtype: str = ''  # Of floats on disk, such as bfloat16; '': float32 or ours.
  max_shard_bytes: int = 5 * 10**9  # A file holds at most so many.
  architecture: str = ''  # Class to write, where more than one would do.
  force: bool = False  # Replace what DST holds.


def main(argv: list[str]) -> int:
  """Runs `bigdl convert` and returns the exit code."""
  given, _ = flags.parse(Flags, argv, verb='convert', positional=('src', 'dst'))
  source, target = pathlib.Path(given.src), pathlib.Path(given.dst)
  if given.max_shard_bytes < 1:
    raise ValueError(
      f'max_shard_bytes={given.max_shard_bytes} must be at least 1'
    )
  if not source.is_dir():
    raise ValueError(f'src={source}: no such folder')
  if source.resolve().is_relative_to(target.resolve()):
    raise ValueError(f'dst={target} must not be src={source}, nor hold it')
  # JAX is imported from here on.
  import jax

  from bigdl import tensors
  from bigdl.interop import folder

  if given.dtype and given.dtype not in tensors.FLOATS:
    raise ValueError(
      f'dtype={given.dtype} must be one of {", ".join(tensors.FLOATS)}'
    )
  with contextlib.ExitStack() as stack:
    if given.dtype == 'float64':
      # Or values would pass through float32.
      stack.enter_context(jax.enable_x64(True))
    part = stack.enter_context(tensors.whole(target, force=given.force))
    if folder.is_foreign(source):
      _read(source, part, given)
    else:
      _write(source, part, given)
  print(f'wrote {target}')
  return 0


def _read(source: pathlib.Path, part: pathlib.Path, given: Flags) -> None:
  """Fills a model folder from a Hugging Face folder."""
  from bigdl import tensors, tree
  from bigdl.interop import folder

  foreign = folder.describe(source)
  model, params = folder.load(foreign, dtype=given.dtype)
  size = tensors.write_model(
    part,
    model,
    params,
    dtype=given.dtype,
    shard_bytes=given.max_shard_bytes,
  )
  kind = type(model).__name__
  _say(f'{foreign.architecture} -> {kind}', tree.size(params), size)
  folder.copy_beside(source, part)


def _write(source: pathlib.Path, part: pathlib.Path, given: Flags) -> None:
  """Fills a Hugging Face folder from weights of ours."""
  from bigdl import tensors, tree
  from bigdl.interop import folder
  from bigdl.train import weights

  held = weights.open(source)
  params = tensors.nested(held.entries)
  architecture, size = folder.save(
    part,
    held.model,
    params,
    architecture=given.architecture,
    dtype=given.dtype,
    shard_bytes=given.max_shard_bytes,
  )
  kind = type(held.model).__name__
  _say(f'{kind} -> {architecture}', tree.size(params), size)
  folder.copy_beside(held.folder, part)


def _say(what: str, count: int, size: int) -> None:
  print(
    f'{what}: {count:,} parameters (all of them, tied ones once),'
    f' {size:,} bytes'
  )
