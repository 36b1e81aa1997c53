"""What keeps a process from starting; apart, so that a command can tell it without loading all that may raise it."""


class StartError(Exception):
    """The process cannot start; the text says what to do and holds no secret."""
