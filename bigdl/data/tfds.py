"""Text of TensorFlow Datasets, read without TensorFlow.

What is prepared under `data_dir` (`tfds build NAME`, or a builder's
`download_and_prepare`) in the `array_record` format is read in any order; nothing
is downloaded here.
"""

from __future__ import annotations

from collections.abc import Iterable
import contextlib
import dataclasses
import functools
import pathlib
import tempfile
from typing import Any
import warnings

from bigdl.data import tokens


def builder(name: str, data_dir: str, field: str) -> Any:
  """Returns the prepared builder of that name.

  Raises:
    ValueError: It is not prepared here, or has no such feature.
  """
  where = data_dir or _default_dir()
  folder = pathlib.Path(where).expanduser()
  stem, _, version = name.partition(':')
  base = folder / stem
  found = sorted(base.rglob('features.json')) if base.is_dir() else []
  found = [f for f in found if version in ('', f.parent.name)]
  if not found:
    raise ValueError(
      f'name={name} is not prepared under data_dir={where}: prepare it where'
      f' there is a network, with `tfds build {stem} --data_dir={where}'
      ' --file_format=array_record`'
    )
  with warnings.catch_warnings():
    # What the library's own imports warn of is not for its users.
    warnings.simplefilter('ignore')
    import tensorflow_datasets as tfds

    try:
      made = tfds.builder_from_directory(str(found[-1].parent))
    except Exception as error:
      raise ValueError(
        f'name={name} in {found[-1].parent} cannot be read: {error}'
      ) from error
  features = made.info.features
  if field not in (features or {}):
    names = ', '.join(features or {}) or 'none'
    raise ValueError(f'field={field!r} is not in {name}; it has {names}')
  return made


def _default_dir() -> str:
  """Returns the folder that the library keeps datasets in."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from tensorflow_datasets.core import constants

  return constants.DATA_DIR


def source(made: Any, split: str) -> Any:
  """Returns the examples of a split, such as `train[:90%]`, by number."""
  try:
    return made.as_data_source(split=split)
  except Exception as error:
    line = ' '.join(str(error).split())
    known = ', '.join(made.info.splits)
    raise ValueError(
      f'subset={split!r} of {made.info.full_name} cannot be read (it has'
      f' {known}): {line[:300]}'
    ) from error


@dataclasses.dataclass(frozen=True)
class TFDS(tokens.TokenSource):
  """One text feature of a prepared dataset, an example a document."""

  name: str = ''  # As tfds names it, `NAME/CONFIG` or `NAME:VERSION` too.
  data_dir: str = ''  # '' is TFDS_DATA_DIR, or ~/tensorflow_datasets.
  field: str = 'text'  # The feature.
  subset: str = 'train'  # Its split to train on.
  # Its split for validation; '' holds out by a hash of the text.
  validation_subset: str = ''

  @functools.cached_property
  def _builder(self) -> Any:
    return builder(self.name, self.data_dir, self.field)

  @property
  def _own(self) -> str:
    held_out = self.split == 'validation' and self.validation_subset
    return self.validation_subset if held_out else self.subset

  def documents(self) -> Iterable[tokens.Document]:
    wanted = self.split == 'validation'
    examples = source(self._builder, self._own)
    for number in range(len(examples)):
      value = examples[number][self.field]
      if not isinstance(value, bytes | str):
        raise ValueError(
          f'field={self.field!r} of {self.name} must be text, got'
          f' {type(value).__name__}'
        )
      text = (
        value.decode('utf-8', 'replace') if isinstance(value, bytes) else value
      )
      if text and (
        self.validation_subset or tokens.is_held_out(text) == wanted
      ):
        yield f'{self._own}:{number}', text

  def inputs(self) -> str:
    info = self._builder.info
    size = len(source(self._builder, self._own))
    split = 'all' if self.validation_subset else self.split
    return f'tfds {info.full_name} {self._own} {size} {self.field} {split}'


def prepare(folder: pathlib.Path, name: str, features: Any, rows: list) -> None:
  """Writes a small dataset, as `tfds build` would."""
  import tensorflow_datasets as tfds

  # tfds resolves its names lazily, which hides this class from type checkers.
  class Small(  # type: ignore[call-arg]
    tfds.core.GeneratorBasedBuilder, skip_registration=True
  ):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      made = tfds.features.FeaturesDict(features)
      return tfds.core.DatasetInfo(builder=self, features=made)

    def _split_generators(self, dl_manager):
      del dl_manager
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      yield from enumerate(rows)

  Small.name = name
  made = Small(data_dir=str(folder), file_format='array_record')
  with contextlib.redirect_stdout(None):
    made.download_and_prepare()


@functools.cache
def small_texts() -> str:
  """Returns a data_dir with the dataset `small_texts`, made for the occasion."""
  import tensorflow_datasets as tfds

  folder = pathlib.Path(tempfile.mkdtemp(prefix='bigdl-tfds-'))
  words = ('one', 'two', 'three', 'four', 'five')
  texts = [f'{words[i % 5]} {words[i % 3]} and {i}' for i in range(120)]
  rows = [{'text': text} for text in texts]
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    prepare(folder, 'small_texts', {'text': tfds.features.Text()}, rows)
  return str(folder)


def tiny() -> TFDS:
  """Returns short rows of a dataset that is made for the occasion."""
  return TFDS(name='small_texts', data_dir=small_texts(), length=16)
