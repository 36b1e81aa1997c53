"""The kinds of things that are found by meaning. To add one, write its module and its line here."""

from collections.abc import Mapping
from typing import Final

from server.search import examples, projects, templates
from server.search.kinds import Kind

KINDS: Final[Mapping[str, Kind]] = {kind.name: kind for kind in (projects.KIND, templates.KIND, examples.KIND)}
"""All kinds, by name."""
