"""What engines say, as arrays: n bars × m engines."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hamilton_client.core.contracts import FloatArray, IntArray, SignArray


@dataclass(frozen=True, slots=True, eq=False)
class Votes:
    """Votes of m engines on n bars.

    `direction` (n, m) is -1, 0 or 1, `confidence` (n, m) is in [0, 1], `edge_bps` (n, m) is gross and counted in the
    vote's direction (>= 0; 0 where the engine waits), `horizon_bars` (m,) is in base bars. Raises ValueError where shapes disagree.
    """

    engines: tuple[str, ...]
    direction: SignArray
    confidence: FloatArray
    edge_bps: FloatArray
    horizon_bars: IntArray

    def __post_init__(self) -> None:
        columns = len(self.engines)
        if len(set(self.engines)) != columns:
            raise ValueError(f"an engine votes once: {self.engines}")
        shapes = {array.shape for array in (self.direction, self.confidence, self.edge_bps)}
        if shapes != {(len(self.direction), columns)} or self.horizon_bars.shape != (columns,):
            raise ValueError(f"votes of {columns} engines have shapes {sorted(shapes)} and horizons {self.horizon_bars.shape}")

    def __len__(self) -> int:
        return len(self.direction)

    def take(self, rows: slice | IntArray | NDArray[np.bool_]) -> Self:
        """Votes of some bars, by slice, indices or mask; a slice is a view."""
        return type(self)(self.engines, self.direction[rows], self.confidence[rows], self.edge_bps[rows], self.horizon_bars)

    def only(self, engine: str) -> Self:
        """Votes of one engine, (n, 1) views. Raises ValueError where it does not vote."""
        if engine not in self.engines:
            raise ValueError(f"no votes of {engine!r} among {', '.join(self.engines)}")
        at = self.engines.index(engine)
        column = slice(at, at + 1)
        return type(self)(
            (engine,), self.direction[:, column], self.confidence[:, column], self.edge_bps[:, column], self.horizon_bars[column]
        )

    @staticmethod
    def concat(*votes: "Votes") -> "Votes":
        """Put votes on the same bars side by side, engines in the order given. Raises ValueError on unequal rows or a repeated engine."""
        return Votes(
            tuple(engine for part in votes for engine in part.engines),
            np.concatenate([part.direction for part in votes], axis=1),
            np.concatenate([part.confidence for part in votes], axis=1),
            np.concatenate([part.edge_bps for part in votes], axis=1),
            np.concatenate([part.horizon_bars for part in votes]),
        )
