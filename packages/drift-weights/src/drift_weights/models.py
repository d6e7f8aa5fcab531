"""A model by its name: a folder that is here, or a commit of the Hub."""

from __future__ import annotations

from pathlib import Path

from drift_weights.names import check_model


def commit_of(model: str, revision: str | None) -> str | None:
    """The commit that a model of the Hub has by now, so that all of it is read from one; None for a folder.

    The Hub is asked once; if it cannot be reached, the commit that was fetched last counts.

    Args:
        model: a folder or Hub id.
        revision: of a Hub id: a commit, a tag or a branch; None for its default branch.

    Raises:
        FileNotFoundError: neither a folder nor what can be a Hub id.
        HubError: no such model on the Hub, or no answer and nothing in the cache.
    """
    if Path(check_model(model)).is_dir():
        return None
    # Imported at use: names and folders need no Hub.
    from drift_weights.hub import HubError, asked, hub_api

    try:
        found = asked(
            lambda: hub_api().resolve_revision(model, revision=revision),
            model if revision is None else f"{model} at {revision}",
            waits=(),
        )
    except HubError as error:
        raise HubError(
            f"{model} is no folder here, and was asked of the Hub: {error}",
            status=error.status,
            missing=error.missing,
        ) from error
    return str(found.resolved)
