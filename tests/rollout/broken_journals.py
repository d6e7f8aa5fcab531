"""Journals that are broken on purpose, so that the scoreboard of faults can be seen to fail."""

from __future__ import annotations

from collections.abc import Sequence

from drift_rollout import journal
from drift_rollout.finished import Finished, in_short, row_of
from drift_rollout.journal import Journal
from drift_rollout.unscored import Failures
from drift_weights import Trajectory


def drop_rows() -> None:
    """The first trajectory of every batch is taken for committed, and is not written."""
    add = Journal.add

    def dropping(self: Journal, trajectories: Sequence[Trajectory], failures: Failures) -> list[Finished]:
        return add(self, trajectories[1:] if len(trajectories) > 1 else trajectories, failures)

    Journal.add = dropping  # type: ignore[method-assign]


def never_commit() -> None:
    """Rows are inserted, and the transaction is left open until the file is closed."""

    def inserting(self: Journal, trajectories: Sequence[Trajectory], failures: Failures) -> list[Finished]:
        rows = [row_of(trajectory, 0.0) for trajectory in trajectories]
        self._db.executemany(journal._INSERT, rows)
        return [in_short(row, record, failures) for *row, record in rows]

    def closing(self: Journal) -> None:
        self._db.commit()
        close(self)

    close = Journal.close
    Journal.add = inserting  # type: ignore[method-assign]
    Journal.close = closing  # type: ignore[method-assign]


def delete_rows() -> None:
    """Every batch deletes the oldest row, which others have seen."""
    add = Journal.add

    def deleting(self: Journal, trajectories: Sequence[Trajectory], failures: Failures) -> list[Finished]:
        with self._db:
            self._db.execute(
                "DELETE FROM trajectory WHERE finished = (SELECT min(finished) FROM trajectory)"
            )
        return add(self, trajectories, failures)

    Journal.add = deleting  # type: ignore[method-assign]


BROKEN = {"drop": drop_rows, "uncommitted": never_commit, "delete": delete_rows}
"""By the name that the command knows them by."""
