"""JSON that is on disk after every item, so that a hang or a crash loses one item alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FAILED = ("wrong", "error")  # of the statuses of items


class Records:
    """A list of items in ``<folder>/<stage>.json``, with facts about the whole stage. Goes on with the items that are there."""

    def __init__(self, folder: Path, stage: str, **facts: Any) -> None:
        self.path = folder / f"{stage}.json"
        self.facts = facts
        self.items: list[dict[str, Any]] = []
        if self.path.exists():
            found = json.loads(self.path.read_text())
            self.items = found.pop("items")
            self.facts = {**found, **facts}
        self._write()

    def add(self, name: str, status: str, **values: Any) -> None:
        """``status``: "ok", "wrong", "refused" (the plan does not run this), "error" or "skipped"."""
        self.items.append({"name": name, "status": status, **values})
        self._write()
        detail = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
        )
        print(f"{status:<8}{name}  {detail[:160]}", flush=True)

    @property
    def has_failed(self) -> bool:
        return any(item["status"] in FAILED for item in self.items)

    def set(self, **facts: Any) -> None:
        self.facts.update(facts)
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({**self.facts, "items": self.items}, indent=1) + "\n")
        os.replace(partial, self.path)
