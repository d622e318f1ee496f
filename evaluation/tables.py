"""Which runs stand in one table: those that predict from images alone, and apart from them those that were given truth.

for table in tables(evaluations):
    table.title, table.columns, [each.run.name for each in table.evaluations]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.columns import COLUMNS, GIVEN_COLUMNS, Column
from evaluation.metrics import Evaluation


@dataclass(frozen=True)
class Table:
    """Runs that can be compared with each other, best first.

    Attributes:
        truth_given: What of the truth they were given; None where nothing.
        evaluations: The runs, one or more.
    """

    truth_given: str | None
    evaluations: tuple[Evaluation, ...]

    @property
    def title(self) -> str:
        """What stands above the table; empty for that of runs that were given nothing."""
        return "" if self.truth_given is None else f"Given the {self.truth_given} (oracle prompts)"

    @property
    def note(self) -> str:
        """What the table says, and what it does not; empty for that of runs that were given nothing."""
        if self.truth_given is None:
            return ""
        return (
            f"These runs were given the {self.truth_given}: how good masks are where it is known where to look. "
            "Whether defects are found is not asked, and a good image can raise no false alarm: their AP is not to be "
            "set beside that of other runs."
        )

    @property
    def columns(self) -> tuple[Column, ...]:
        """Its metrics, first the one that ranks the runs."""
        return COLUMNS if self.truth_given is None else GIVEN_COLUMNS


def tables(evaluations: Sequence[Evaluation]) -> tuple[Table, ...]:
    """The tables of some runs, that of runs that were given nothing first; none is empty."""
    alike: dict[str | None, list[Evaluation]] = {}
    for each in evaluations:
        alike.setdefault(each.run.truth_given, []).append(each)
    return tuple(_ranked(Table(given, tuple(alike[given]))) for given in sorted(alike, key=lambda given: given or ""))


def _ranked(table: Table) -> Table:
    """By the first column, highest first, runs without a value last; equals by name."""
    first = table.columns[0]

    def rank(evaluation: Evaluation) -> tuple[float, str]:
        value = evaluation.metrics[first.family][first.name]["value"]
        return (1.0 if value is None else -value), evaluation.run.name

    return Table(table.truth_given, tuple(sorted(table.evaluations, key=rank)))
