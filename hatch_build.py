"""Build hook: packs the repository's `starters/` folder into the wheel as `triptych/starters`.

A static `force-include` table would do for a release, but it fails where the folder is absent, and an
editable install would copy the weights to site-packages, where they go stale. So: for a real wheel, if there.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StartersHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard" and (Path(self.root) / "starters").is_dir():
            build_data["force_include"]["starters"] = "triptych/starters"
