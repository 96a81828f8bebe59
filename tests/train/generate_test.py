"""Generated tokens: those of the full forward pass, drawn as asked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.models.gpt import GPT
from bigdl.train.generate import NOTHING, generate
from bigdl.train.sampling import Sampling

MODEL = GPT(
  depth=2, width=16, heads=4, kv_heads=2, vocab=29, length=12, init_std=0.5
)
PROMPTS = np.array([[3, 1, 4], [27, 18, 28]], np.int32)
GREEDY = Sampling(temperature=0.0)


def init(model):
  params = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))
  return params['params']


@pytest.fixture(scope='module')
def params():
  return init(MODEL)


def written(model, params, prompts=PROMPTS, **options) -> np.ndarray:
  return np.concatenate(list(generate(model, params, prompts, **options)), 1)


def forward(model, params, tokens_BT, pad: int = 16) -> np.ndarray:
  """Returns the likeliest token after each row, by one full pass."""
  used = tokens_BT.shape[1]
  padded = np.pad(tokens_BT, ((0, 0), (0, model.length - used)))
  logits = jax.jit(model.apply)({'params': params}, padded)
  return np.asarray(logits[:, used - 1].argmax(-1))


@pytest.mark.parametrize('position', ['learned', 'rotary'])
def test_greedy_tokens_are_those_of_the_full_forward_pass(position):
  model = MODEL.clone(position=position)
  params = init(model)
  text = PROMPTS
  for _ in range(model.length - PROMPTS.shape[1]):
    text = np.concatenate([text, forward(model, params, text)[:, None]], 1)
  new = written(model, params, tokens=9, sampling=GREEDY, chunk=4)
  np.testing.assert_array_equal(new, text[:, PROMPTS.shape[1] :])


def test_a_full_context_goes_on_from_its_later_half(params):
  new = written(MODEL, params, tokens=11, sampling=GREEDY, chunk=4)
  text = np.concatenate([PROMPTS, new], 1)
  assert text.shape == (2, 14)
  for end in (12, 13):
    window = text[:, 12 - MODEL.length // 2 : end]
    np.testing.assert_array_equal(text[:, end], forward(MODEL, params, window))


def test_a_prompt_longer_than_the_context_is_cut_to_its_later_half(params):
  long = np.arange(40, dtype=np.int32)[None] % MODEL.vocab
  new = written(MODEL, params, long, tokens=3, sampling=GREEDY)
  short = long[:, -MODEL.length // 2 :]
  expected = written(MODEL, params, short, tokens=3, sampling=GREEDY)
  np.testing.assert_array_equal(new, expected)


def test_draws_depend_on_the_seed_and_not_on_the_chunk(params):
  def draw(seed, chunk):
    return written(MODEL, params, tokens=9, seed=seed, chunk=chunk)

  np.testing.assert_array_equal(draw(0, 4), draw(0, 3))
  assert (draw(0, 4) != draw(1, 4)).any()


def test_prompts_of_unequal_length_are_continued_as_if_alone(params):
  ragged = [[3, 1, 4], [27], [5, 9, 2, 6, 5]]
  together = written(MODEL, params, ragged, tokens=6, sampling=GREEDY, chunk=4)
  for row, prompt in zip(together, ragged, strict=True):
    (alone,) = written(MODEL, params, [prompt], tokens=6, sampling=GREEDY)
    np.testing.assert_array_equal(row, alone)


def test_a_row_ends_with_its_end_and_no_sooner_than_allowed(params):
  prompts = np.array([[23, 19, 0], [24, 5, 2]], np.int32)
  plain = written(MODEL, params, prompts, tokens=9, sampling=GREEDY)
  end = int(plain[0, 3])
  assert end not in plain[0, :3] and end not in plain[1]
  options = dict(tokens=9, sampling=GREEDY, ends=(end,), chunk=3)
  cut = written(MODEL, params, prompts, **options)
  np.testing.assert_array_equal(cut[0, :4], plain[0, :4])
  assert (cut[0, 4:] == NOTHING).all()
  np.testing.assert_array_equal(cut[1], plain[1])
  alone = written(MODEL, params, prompts[:1], **options)
  assert alone.shape[1] < 9, 'nothing is computed once all rows have ended'
  later = written(MODEL, params, prompts, min_tokens=5, **options)
  assert end not in later[0, :5]


LOGITS = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))


def shares(sampling: Sampling, rows: int = 20_000) -> np.ndarray:
  logits = jnp.broadcast_to(LOGITS, (rows, 4))
  drawn = jax.jit(sampling.draw)(logits, jax.random.key(3))
  return np.bincount(np.asarray(drawn), minlength=4) / rows


# Four standard errors of a share of 20,000 draws.
NOISE = 4 * (0.25 / 20_000) ** 0.5


@pytest.mark.parametrize(
  ('sampling', 'expected'),
  [
    (Sampling(), [0.5, 0.25, 0.15, 0.1]),
    (Sampling(temperature=0.0), [1, 0, 0, 0]),
    (Sampling(temperature=0.5), [0.7246, 0.1812, 0.0652, 0.029]),
    (Sampling(top_k=1), [1, 0, 0, 0]),
    (Sampling(top_k=2), [2 / 3, 1 / 3, 0, 0]),
    (Sampling(top_k=9), [0.5, 0.25, 0.15, 0.1]),
    (Sampling(top_p=0.4), [1, 0, 0, 0]),
    (Sampling(top_p=0.8), [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
    (Sampling(min_p=0.25), [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
    (Sampling(min_p=0.6), [1, 0, 0, 0]),
    (Sampling(top_k=3, min_p=0.4), [2 / 3, 1 / 3, 0, 0]),
  ],
)
def test_tokens_are_drawn_with_the_probabilities_asked_for(sampling, expected):
  found = shares(sampling)
  np.testing.assert_allclose(found, expected, atol=NOISE)
  assert ((found == 0) == (np.array(expected) == 0)).all()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'temperature': -1.0}, 'temperature=-1.0'),
    ({'top_k': -1}, 'top_k=-1'),
    ({'top_p': 0.0}, 'top_p=0.0'),
    ({'top_p': 1.5}, 'top_p=1.5'),
    ({'min_p': -0.1}, 'min_p=-0.1'),
    ({'min_p': 1.1}, 'min_p=1.1'),
  ],
)
def test_senseless_sampling_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    Sampling(**options)


@pytest.mark.parametrize(
  ('prompt', 'said'),
  [
    ([[]], r'shape \(1, 0\)'),
    ([3], r'shape \(1,\)'),
    ([[4, 29]], 'token 29 must'),
    ([[4, -1]], 'token -1 must'),
  ],
)
def test_senseless_prompts_are_refused(params, prompt, said):
  with pytest.raises(ValueError, match=f'prompt.* {said}'):
    next(generate(MODEL, params, np.array(prompt, np.int32), tokens=1))
