"""BLEU: how much of a translation is in the reference, by runs of words.

Papineni et al., 2002, "BLEU: a Method for Automatic Evaluation of Machine
Translation", section 2.3, over a corpus with one reference a sentence:

  BLEU = 100 min(1, exp(1 - r / c)) prod_n p_n^(1/4),   n = 1 ... 4,

where p_n is the share of the candidates' n-grams that their references hold too
(each as often as it does), c and r the tokens of all candidates and references.
Differs from the paper: tokens are runs of letters or digits and single other
characters, case kept; sacreBLEU's 13a differs from that at punctuation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
import math
import re

ORDER = 4
_WORD = re.compile(r'\w+|[^\w\s]')


def words(text: str) -> list[str]:
  """Returns the tokens of a text: words, and other characters one by one."""
  return _WORD.findall(text)


def bleu(candidates: Sequence[str], references: Sequence[str]) -> float:
  """Returns the corpus BLEU in percent, 0 where an order has no match.

  Args:
    candidates: Translations, at least one.
    references: What each should be.
  """
  if len(candidates) != len(references) or not candidates:
    raise ValueError(
      f'{len(candidates)} candidates must be as many as'
      f' {len(references)} references, and at least one'
    )
  matches, totals = [0] * ORDER, [0] * ORDER
  long = short = 0
  for candidate, reference in zip(candidates, references, strict=True):
    made, wanted = words(candidate), words(reference)
    long, short = long + len(wanted), short + len(made)
    for n in range(1, ORDER + 1):
      own, other = _grams(made, n), _grams(wanted, n)
      matches[n - 1] += (own & other).total()
      totals[n - 1] += own.total()
  if not all(matches):
    return 0.0
  shares = zip(matches, totals, strict=True)
  mean = sum(math.log(m / t) for m, t in shares) / ORDER
  return 100 * math.exp(mean + min(0.0, 1 - long / short))


def _grams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
  return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
