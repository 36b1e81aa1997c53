"""The one error type of the embedded engines."""


class EngineError(Exception):
    """An embedded engine cannot be started or kept; the message is one line, names the cause and what to do.

    The message never holds a password or a DSN, so it may be shown to whoever started the service.
    """
