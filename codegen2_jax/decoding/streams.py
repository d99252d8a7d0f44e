"""The text of one sample while it grows: what may be shown of it already, and where a stop string ends it."""

import bisect
from collections.abc import Callable, Iterable, Sequence

UNDECODED = "\ufffd"  # what decoding puts in place of bytes that are no character, among them half of one


class Stream:
    """Takes tokens, gives text.

    Attributes:
      ids: the tokens of the text; neither the stop id nor what stands behind a stop string.
      log_probability: sum over all tokens that were taken, the stop id included.
      finish: "stop_id", "stop_string" or "length" once the sample has ended, None before.
      stop_id: the token that ended it, with "stop_id".
      text: of `ids`, cut before the stop string. Bytes at its end that are no character, or half of one, are left out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str], emit: Callable[[str], None] | None):
        """decode: ids -> text, in which a longer list never changes the text of a shorter one but for its end.

        emit: is given each new piece of the text, in order; together they are the text.
        """
        self._decode, self._stop, self._emit = decode, tuple(stop), emit
        self._shown = 0
        self.ids: list[int] = []
        self.log_probability = 0.0
        self.finish: str | None = None
        self.stop_id: int | None = None
        self.text = ""

    def take(self, tokens: Iterable[int], log_probs: Iterable[float], *, finish: str | None = None) -> None:
        """More tokens and their log-probabilities; `finish` says how they end the sample, None that it goes on.

        With "stop_id" the last of the tokens is the stop id. A stop string among them comes first.
        """
        tokens, log_probs, known = list(tokens), list(log_probs), len(self.ids)
        if finish == "stop_id":
            self.stop_id = tokens.pop()
        self.ids += tokens
        self.text, self.finish = self._decode(self.ids), finish
        if self._stop and any(string in self.text for string in self._stop):
            # The fewest tokens in whose text one stands: the answer is the same however tokens come in.
            holds = lambda count: any(string in self._decode(self.ids[:count]) for string in self._stop)  # noqa: E731
            count = bisect.bisect_left(range(known, len(self.ids)), True, key=holds) + known
            self.ids, log_probs, self.finish = self.ids[:count], log_probs[: count - known], "stop_string"
            self.stop_id = None
            text = self._decode(self.ids)
            self.text = text[: min(text.index(string) for string in self._stop if string in text)]
        self.text = self.text.rstrip(UNDECODED)
        self.log_probability += float(sum(log_probs))
        if self._emit is not None:
            settled = len(self.text) - (0 if self.finish else held_back(self.text, self._stop))
            if settled > self._shown:
                self._emit(self.text[self._shown : settled])
                self._shown = settled


def held_back(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that is the beginning of a stop string.

    >>> held_back("x = 1\\n", ["\\n\\n", "END"])
    1
    """
    longest = min(max((len(string) for string in stop), default=1) - 1, len(text))
    ends = (text[len(text) - length :] for length in range(longest, 0, -1))
    return next((len(end) for end in ends if any(string.startswith(end) for string in stop)), 0)
