"""The real engines, started from their PyPI wheels as child processes: what `mrm up` runs on."""

from server.embedded.engines import Connections, EmbeddedEngines, EngineStatus
from server.embedded.errors import EngineError

__all__ = ["Connections", "EmbeddedEngines", "EngineError", "EngineStatus"]
