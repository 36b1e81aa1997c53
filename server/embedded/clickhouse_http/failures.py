"""Errors as ClickHouse's HTTP interface reports them: a code, a message and an HTTP status."""

import re

_CODE = re.compile(r"Code: (\d+)\. ")

# What a ClickHouse server answers by error code; everything else is 500.
_BAD_REQUEST = (6, 15, 25, 26, 27, 36, 38, 41, 42, 43, 44, 53, 62, 69, 70, 72, 117, 130, 190, 441, 456, 457, 675, 676)
_NOT_FOUND = (16, 35, 46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 336)
_STATUS = {
    **dict.fromkeys(_BAD_REQUEST, 400),
    **dict.fromkeys(_NOT_FOUND, 404),
    194: 401,
    192: 403,
    193: 403,
    497: 403,
    516: 403,
    159: 408,
    184: 413,
    48: 501,
    202: 503,
    209: 503,
}

UNKNOWN_EXCEPTION = 1002


class Failure(Exception):
    """A request that is answered with an error.

    Args:
        code: ClickHouse error code.
        name: Its symbolic name.
        message: One sentence, without code and name.
    """

    def __init__(self, code: int, name: str, message: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message} ({name})")


def describe(error: BaseException, version: str) -> tuple[int, str]:
    """Error code and full message of an engine error or a `Failure`.

    The engine wraps some errors in a text of its own and repeats the prefix when an error crossed two of its
    layers; clients expect the message to begin with `Code: N.`, once.
    """
    text = str(error).strip() or type(error).__name__
    found = _CODE.search(text)
    if found is None:
        text = f"Code: {UNKNOWN_EXCEPTION}. DB::Exception: {text} (UNKNOWN_EXCEPTION) (version {version})"
        return UNKNOWN_EXCEPTION, text
    text = text[found.start() :]
    prefix = f"{found.group()}DB::Exception: "
    while text.startswith(prefix + prefix):
        text = text[len(prefix) :]
    if not text.endswith(")") or "(version " not in text[-60:]:
        text += f" (version {version})"
    return int(found.group(1)), text


def status_of(code: int) -> int:
    """The HTTP status of an error code."""
    return _STATUS.get(code, 500)
