"""Just enough SQL reading to know what a request is: where an INSERT ends and its data begins, and which format.

ClickHouse's grammar puts arbitrary bytes right behind `FORMAT Name`, in the same body as the SQL. So the text is read
token by token from the left, strings, quoted names and comments as wholes, and reading stops where the data begins.
"""

import re
from dataclasses import dataclass

_QUIET = rb"""
    --[^\n]*(?:\n|$) | \#[\ !][^\n]*(?:\n|$) | /\*.*?\*/
  | '(?:[^'\\]|\\.|'')*' | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$
"""
_QUOTED_NAME = rb'"(?:[^"\\]|\\.|"")*" | `(?:[^`\\]|\\.|``)*`'
_TOKEN = re.compile(
    rb"(?P<quiet>" + _QUIET + rb")|(?P<name>" + _QUOTED_NAME + rb")|(?P<open>['\"`]|/\*)|(?P<word>[A-Za-z_]\w*)"
    rb"|(?P<number>\d\w*)|(?P<punctuation>[().])",
    re.X | re.S,
)
_COMMENT_OR_LITERAL = re.compile(_QUIET + rb"|" + _QUOTED_NAME, re.X | re.S)
_LEAD = re.compile(rb"(?:\s|--[^\n]*\n|\#[ !][^\n]*\n|/\*.*?\*/|[(;])*([A-Za-z]\w*)", re.S)
_LAST_FORMAT = re.compile(rb"\bFORMAT\s+(\w+)\s*;?\s*$", re.I)
_FORMAT_NAME = re.compile(rb"(?:\s|/\*.*?\*/)+([A-Za-z]\w*)", re.S)
_INPUT_ARGUMENT = re.compile(rb"\s*\(\s*('(?:[^'\\]|\\.|'')*')\s*\)", re.S)
_DATA_GAP = re.compile(rb";?[ \t\f]*\r?\n?")
# Words that may follow a column called `format`; none of them is a format.
_NOT_A_FORMAT = frozenset(
    b"AS IN NOT AND OR IS LIKE ILIKE BETWEEN ASC DESC FROM WHERE PREWHERE GROUP HAVING ORDER LIMIT OFFSET SETTINGS"
    b" UNION EXCEPT INTERSECT JOIN LEFT RIGHT INNER FULL CROSS ANY ALL ASOF GLOBAL ARRAY ON USING THEN ELSE END WHEN"
    b" NULLS COLLATE WITH QUALIFY WINDOW FINAL SAMPLE DIV MOD FORMAT".split()
)

READING = frozenset({"select", "with", "from"})
"""Statements whose result may be streamed."""
ANSWERING = READING | {"show", "describe", "desc", "explain", "exists", "check", "backup", "restore", "kill"}
"""Statements with a result."""
HARMLESS = READING | {"show", "describe", "desc", "explain", "exists"}
"""Statements a GET request may carry."""


@dataclass(frozen=True, slots=True)
class Insert:
    """An INSERT whose data rides behind the statement.

    `head` and `tail` enclose the place where the data source is named; `data_start` is the offset of the first byte of
    data in the text that was read.
    """

    head: bytes
    tail: bytes
    data_start: int
    format: str
    schema: bytes | None
    """The literal argument of `input(...)`, quotes included; None for a plain INSERT."""

    def reading_from(self, path: str) -> bytes:
        """The statement with its data taken from a file."""
        if self.schema is None:
            return b"%s FROM INFILE '%s' COMPRESSION 'none' %s" % (self.head, path.encode(), self.tail)
        return b"%sfile('%s', '%s', %s)%s" % (self.head, path.encode(), self.format.encode(), self.schema, self.tail)


class NeedMore(Exception):
    """The text ends before the statement does."""


def leading_word(text: bytes) -> str:
    """The statement's first keyword in lower case, `""` when there is none."""
    found = _LEAD.match(text)
    return found.group(1).decode().lower() if found else ""


def kind_of(text: bytes) -> str:
    """The statement's kind: its first keyword, or `insert` for `WITH ... INSERT`."""
    word = leading_word(text)
    if word == "with" and b"insert" in text.lower():
        for token in _words(text):
            if token in (b"SELECT", b"INSERT"):
                return "insert" if token == b"INSERT" else word
    return word


def output_format(text: bytes) -> str | None:
    """The format named at the end of a statement with a result."""
    found = _LAST_FORMAT.search(text, max(0, len(text) - 200))
    if found is None:
        return None
    for quiet in _COMMENT_OR_LITERAL.finditer(text):
        if quiet.start() < found.start() < quiet.end():
            return None
    return found.group(1).decode()


def _words(text: bytes) -> list[bytes]:
    depth, words = 0, []
    for token in _TOKEN.finditer(text):
        value = token.group()
        depth += (value == b"(") - (value == b")")
        if depth == 0 and token.lastgroup == "word":
            words.append(value.upper())
    return words


class _InsertReader:
    """Reads one INSERT from the left until its data begins."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.depth = 0
        self.target_seen = False
        self.settings: int | None = None
        self.select = False
        self.input_call: tuple[int, int, bytes] | None = None

    def read(self) -> Insert | None:
        previous = b""
        for token in _TOKEN.finditer(self.text):
            group, value = token.lastgroup, token.group()
            if group in ("quiet", "tag"):
                continue
            if group == "open":
                raise NeedMore
            if group == "punctuation":
                self.depth += (value == b"(") - (value == b")")
            elif group == "name" or (group == "word" and not self.target_seen):
                self._target(group, value)
            elif group == "word" and previous != b".":
                done = self._word(token)
                if done is not None:
                    return done
                if value.upper() == b"INFILE" and self.depth == 0 and not self.select:
                    return None
            previous = value
        raise NeedMore

    def _target(self, group: str | None, value: bytes) -> None:
        if group == "name" or value.upper() not in (b"INSERT", b"INTO", b"TABLE", b"FUNCTION"):
            self.target_seen = True

    def _word(self, token: re.Match[bytes]) -> Insert | None:
        word = token.group().upper()
        if word == b"INPUT" and self.input_call is None:
            argument = _INPUT_ARGUMENT.match(self.text, token.end())
            if argument:
                self.input_call = (token.start(), argument.end(), argument.group(1))
        if self.depth != 0:
            return None
        if word in (b"SELECT", b"WITH"):
            self.select = True
        elif word == b"SETTINGS" and self.settings is None:
            self.settings = token.start()
        elif word == b"VALUES" and not self.select:
            return self._plain(token.start(), token.end(), b"Values")
        elif word == b"FORMAT":
            return self._format(token)
        return None

    def _format(self, token: re.Match[bytes]) -> Insert | None:
        name = _FORMAT_NAME.match(self.text, token.end())
        if name is None or name.group(1).upper() in _NOT_A_FORMAT:
            return None
        if self.input_call is not None:
            return self._from_input(self.input_call, token.start(), name)
        if self.select:
            return None
        return self._plain(token.start(), name.end(), name.group(1))

    def _plain(self, clause: int, end: int, name: bytes) -> Insert:
        cut = clause if self.settings is None else self.settings
        tail = self.text[cut:clause] + b" FORMAT " + name
        return Insert(self.text[:cut], tail, self._data_start(end), name.decode(), None)

    def _from_input(self, call: tuple[int, int, bytes], clause: int, name: re.Match[bytes]) -> Insert:
        start, end, schema = call
        tail = self.text[end:clause]
        return Insert(self.text[:start], tail, self._data_start(name.end()), name.group(1).decode(), schema)

    def _data_start(self, end: int) -> int:
        gap = _DATA_GAP.match(self.text, end)
        return gap.end() if gap else end


def read_insert(text: bytes) -> Insert | None:
    """Splits an INSERT from the data behind it; None when it brings no data (`INSERT ... SELECT ... FROM table`).

    Raises:
        NeedMore: The text ends inside the statement. When there is no more, the engine will say what is wrong.
    """
    return _InsertReader(text).read()
