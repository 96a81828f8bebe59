"""Greedy and beam search against `transformers.generate`, token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from bigdl.interop import base, gpt2, marian
from bigdl.layers import stack as stacks
from bigdl.train import beam, generate
from bigdl.train.sampling import Sampling

VOCAB, TOKENS = 13, 12
# One that ends greedy rows early, and one that few beams choose.
END, RARE = 4, 2
PROMPTS = [[3, 1, 4], [7], [2, 8, 9, 6, 0]]


@pytest.fixture(scope='module')
def peer():
  """A GPT-2 whose tokens are far from equally likely."""
  torch.manual_seed(0)
  config = transformers.GPT2Config(
    n_layer=2,
    n_embd=12,
    n_head=3,
    vocab_size=VOCAB,
    n_positions=24,
    bos_token_id=0,
    eos_token_id=END,
    pad_token_id=END,
    attn_implementation='eager',
  )
  model = transformers.GPT2LMHeadModel(config).eval()
  with torch.no_grad():
    for name, value in model.named_parameters():
      value.copy_(torch.randn_like(value) * 0.6)
      if '.ln_' in name and name.endswith('weight'):
        value.add_(1)
  return model


@pytest.fixture(scope='module')
def own(peer):
  model = gpt2.model_of(peer.config.to_dict())
  arrays = {k: v.numpy() for k, v in peer.state_dict().items()}
  return model, base.from_hf(arrays, model, gpt2.FAMILY)


def theirs(peer, prompts, end, **options) -> list[list[int]]:
  """Returns what transformers adds to each prompt, up to its end."""
  width = max(map(len, prompts))
  padded = [[0] * (width - len(p)) + p for p in prompts]
  mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
  found = peer.generate(
    torch.tensor(padded),
    attention_mask=torch.tensor(mask),
    max_new_tokens=TOKENS,
    do_sample=False,
    eos_token_id=end,
    pad_token_id=end,
    **options,
  )
  return [until_end(row, end) for row in found[:, width:].tolist()]


def until_end(row: list[int], end: int) -> list[int]:
  row = [t for t in row if t != generate.NOTHING]
  return row[: row.index(end) + 1] if end in row else row


@pytest.mark.parametrize('least', [0, 7])
def test_greedy_tokens_are_those_of_transformers(peer, own, least):
  want = theirs(peer, PROMPTS, END, min_new_tokens=least)
  new = generate.generate(
    *own,
    PROMPTS,
    tokens=TOKENS,
    sampling=Sampling(temperature=0),
    ends=(END,),
    min_tokens=least,
    chunk=5,
  )
  got = [until_end(r, END) for r in np.concatenate(list(new), 1).tolist()]
  assert got == want
  assert min(map(len, want)) >= least
  assert any(len(row) < TOKENS for row in want)


@pytest.mark.parametrize(
  ('early', 'stop'), [(False, 'best'), (True, 'full'), ('never', 'never')]
)
@pytest.mark.parametrize(
  ('end', 'beams', 'alpha', 'least'),
  [(RARE, 2, 1.0, 0), (END, 3, 0.0, 4), (RARE, 4, 2.0, 0), (END, 3, -1.0, 2)],
)
def test_beams_are_those_of_transformers(
  peer, own, early, stop, end, beams, alpha, least
):
  want = theirs(
    peer,
    PROMPTS,
    end,
    num_beams=beams,
    num_return_sequences=beams,
    length_penalty=alpha,
    early_stopping=early,
    min_new_tokens=least,
  )
  found = beam.search(
    *own,
    PROMPTS,
    tokens=TOKENS,
    beam=beam.Beam(beams, alpha, stop=stop, min_tokens=least),
    ends=(end,),
  )
  got = [until_end(t, end) for row in found.tokens_BKT.tolist() for t in row]
  assert got == want
  assert len({tuple(t) for t in want}) > beams
  assert all(len(t) >= least for t in want)


SOURCES = [[3, 1, 8, 6], [7, 9], [11, 6, 10, 3, 5]]
BEGIN = 12


@pytest.fixture(scope='module')
def marian_peer():
  """A translator whose logits have a bias, as Marian's have."""
  torch.manual_seed(5)
  config = transformers.MarianConfig(
    vocab_size=VOCAB,
    d_model=12,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=20,
    decoder_ffn_dim=20,
    max_position_embeddings=24,
    activation_function='relu',
    scale_embedding=False,
    pad_token_id=0,
    eos_token_id=END,
    decoder_start_token_id=BEGIN,
    forced_eos_token_id=None,
    bad_words_ids=None,
    attn_implementation='eager',
  )
  model = transformers.MarianMTModel(config).eval()
  with torch.no_grad():
    for name, value in model.named_parameters():
      if 'embed_positions' not in name:
        value.copy_(torch.randn_like(value))
      if name.endswith('layer_norm.weight'):
        value.mul_(0.3).add_(1)
      if name.endswith('layer_norm.bias'):
        value.mul_(0.1)
    model.final_logits_bias.copy_(torch.randn(1, VOCAB) * 0.1)
  return model


@pytest.fixture(scope='module')
def marian_own(marian_peer):
  model = marian.model_of(marian_peer.config.to_dict())
  arrays = {k: v.numpy() for k, v in marian_peer.state_dict().items()}
  return model, base.from_hf(arrays, model, marian.FAMILY)


def encoded():
  width = max(map(len, SOURCES))
  source = np.array([s + [0] * (width - len(s)) for s in SOURCES])
  segments = np.array([[1] * len(s) + [0] * (width - len(s)) for s in SOURCES])
  return generate.Encoded(source, segments)


def translated(peer, **options) -> list[list[int]]:
  source, segments = map(torch.from_numpy, encoded())
  found = peer.generate(
    source,
    attention_mask=segments,
    max_new_tokens=TOKENS,
    do_sample=False,
    **options,
  )
  return [until_end(row, END) for row in found[:, 1:].tolist()]


def test_a_translator_writes_greedily_what_transformers_does(
  marian_peer, marian_own
):
  want = translated(marian_peer, num_beams=1)
  new = generate.generate(
    *marian_own,
    [[BEGIN]] * len(SOURCES),
    tokens=TOKENS,
    sampling=Sampling(temperature=0),
    ends=(END,),
    source=encoded(),
    chunk=5,
  )
  got = [until_end(r, END) for r in np.concatenate(list(new), 1).tolist()]
  assert got == want
  assert len({tuple(t) for t in want}) > 1


@pytest.mark.parametrize('stack', ['loop', 'scan'])
@pytest.mark.parametrize(('beams', 'alpha'), [(3, 1.0), (4, 0.4)])
def test_beams_of_a_translator_are_those_of_transformers(
  marian_peer, marian_own, stack, beams, alpha
):
  want = translated(
    marian_peer,
    num_beams=beams,
    num_return_sequences=beams,
    length_penalty=alpha,
    early_stopping=False,
  )
  model, params = marian_own
  if stack == 'scan':
    model, params = model.clone(stack='scan'), stacks.to_scan(params)
  found = beam.search(
    model,
    params,
    [[BEGIN]] * len(SOURCES),
    tokens=TOKENS,
    beam=beam.Beam(beams, alpha),
    ends=(END,),
    source=encoded(),
  )
  got = [until_end(t, END) for row in found.tokens_BKT.tolist() for t in row]
  assert got == want
  assert len({tuple(t) for t in want}) > beams
