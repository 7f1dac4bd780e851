"""Parts of a validation text: which range of positions, and which source, each predicted token belongs to."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from psann_jax.data.windows import Windows, is_target

# Bounds of the ranges of positions: powers of four, because a loss falls with the logarithm of the context.
_FIRST_BOUND, _FACTOR = 16, 4


class TextParts:
    """The parts of the targets of validation windows, see `psann_jax.train.loss_parts.TargetParts`.

    The position of a target is the number of tokens that the model sees before it: those of its document in its window,
    or all in the window without a document mask.

    Attributes:
      names: "position" -> ranges such as "17-64"; "source" -> files and other sources, if they are known.
    """

    def __init__(self, windows: Windows, n_windows: int, length: int, source_tokens: Sequence[tuple[str, int]] = ()):
        """Computes the ranges; reads no tokens.

        Args:
          windows: the validation windows.
          n_windows: number of windows that are evaluated; further rows are padding.
          length: L, targets of a window.
          source_tokens: name and number of tokens of each source, in the order of the text; () if unknown. Equal names
            are one source.
        """
        self._windows, self._n_windows, self._length = windows, n_windows, length
        bounds = [_FIRST_BOUND * _FACTOR**i for i in range(length.bit_length()) if _FIRST_BOUND * _FACTOR**i < length]
        self._last_positions = np.array([*bounds, length])
        firsts = [1, *(bound + 1 for bound in bounds)]
        ranges = tuple(f"{a}-{b}" for a, b in zip(firsts, self._last_positions, strict=True))
        self.names: Mapping[str, tuple[str, ...]] = {"position": ranges}
        if source_tokens:
            sources = tuple(dict.fromkeys(name for name, _ in source_tokens))
            self.names = {**self.names, "source": sources}
            self._sources = np.array([sources.index(name) for name, _ in source_tokens])
            self._source_ends = np.array(list(itertools.accumulate(n for _, n in source_tokens)))

    def of_rows(self, first: int, n: int) -> dict[str, np.ndarray]:
        """Returns, for each kind in `names`, the part of each target, (n, L); -1 for tokens that are no targets."""
        found = {kind: np.full((n, self._length), -1) for kind in self.names}
        for row in range(min(n, self._n_windows - first)):
            window = self._windows[first + row]
            targets_L = is_target(window)
            position_L = np.searchsorted(self._last_positions, window["positions"][1:])
            found["position"][row] = np.where(targets_L, position_L, -1)
            if "source" in found:
                token_L = self._windows.start(first + row) + np.arange(1, self._length + 1)
                # Padding lies behind the last source.
                k_L = np.minimum(np.searchsorted(self._source_ends, token_L, "right"), len(self._sources) - 1)
                found["source"][row] = np.where(targets_L, self._sources[k_L], -1)
        return found
