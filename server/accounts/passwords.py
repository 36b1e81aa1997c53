"""Passwords: how they are kept, and which will do."""

import asyncio
import re
import unicodedata
from itertools import pairwise
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY

from server.rpc.auth import new_secret
from server.rpc.errors import InvalidRequest

NO_PASSWORD: Final = "!"  # noqa: S105 - what is stored where there is none
SHORTEST: Final = 12
LONGEST: Final = 1024
FEWEST_DIFFERENT: Final = 5
# Each verification takes 64 MiB and a core for a tenth of a second.
MAX_HASHES_AT_ONCE = 2

# What people choose who are asked for twelve characters. Compared without case, blanks and marks, and without a tail of
# digits.
_COMMON_WORDS = (
    "password passwordpassword mypassword newpassword changeme changemenow welcome welcometo letmein letmeinnow "
    "iloveyou administrator superadmin adminadmin rootroot useruser testtest demodemo secretsecret topsecret "
    "trustno football basketball baseball superman spiderman batman starwars pokemon sunshine princess dragon "
    "monkey shadow master michael qazwsx qazwsxedc qazwsxedcrfv zaqxsw qweasd qweasdzxc qqwweerr oneqaztwowsx "
    "abcabc abcd p4ssw0rd passw0rd passwort motdepasse contrasena пароль парольпароль мойпароль админ "
    "администратор привет приветпривет любовь наташа солнышко россия москва спартак йцукен мрм mrm mrmaiplatform "
    "mrmplatform"
)
_COMMON = frozenset(_COMMON_WORDS.split(" "))
# Runs along the alphabet, the digits and the keyboard.
_RUNS = (
    "abcdefghijklmnopqrstuvwxyz",
    "абвгдеёжзийклмнопрстуфхцчшщъыьэюя",
    "01234567890",
    "qwertyuiopasdfghjklzxcvbnm",
    "йцукенгшщзхъфывапролджэячсмитьбю",
    "1q2w3e4r5t6y7u8i9o0p",
    "q1w2e3r4t5y6u7i8o9p0",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm",
)
_STEPS = frozenset(pair for run in _RUNS for way in (run, run[::-1]) for pair in map("".join, pairwise(way)))


class Passwords:
    """Hashes and verifies passwords with argon2id, off the event loop and few at a time.

    Args:
        memory: Of one hash, in KiB.
        passes: Over that memory. The defaults are RFC 9106's profile for less memory.
    """

    def __init__(
        self, memory: int = RFC_9106_LOW_MEMORY.memory_cost, passes: int = RFC_9106_LOW_MEMORY.time_cost
    ) -> None:
        self._hasher = PasswordHasher(time_cost=passes, memory_cost=memory, parallelism=RFC_9106_LOW_MEMORY.parallelism)
        self._slots = asyncio.Semaphore(MAX_HASHES_AT_ONCE)
        # Verified in place of an unknown user's hash, so that the answer takes equally long.
        self._decoy = self._hasher.hash(new_secret(""))

    async def hash(self, password: str) -> str:
        """The string to store."""
        async with self._slots:
            return await asyncio.to_thread(self._hasher.hash, _normal(password))

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether the password is the stored one; always false, and equally slow, when nothing is stored."""
        if stored == NO_PASSWORD:
            stored = None
        async with self._slots:
            return await asyncio.to_thread(self._verify, stored or self._decoy, password) and stored is not None

    def outdated(self, stored: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    def _verify(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, _normal(password))
        except (VerificationError, InvalidHashError):
            return False


def check_password(password: str, email: str, field: str) -> None:
    """Refuses passwords that would be guessed. Length is what counts; kinds of characters are not asked for.

    Args:
        password: As sent.
        email: Address of the account.
        field: Path of the password in the request.

    Raises:
        InvalidRequest: It is too short or too long, the account's own address, or among those that are tried first.
    """
    bare = _bare(password)
    own = {_bare(email), _bare(email.partition("@")[0])}
    if not SHORTEST <= len(_normal(password)) <= LONGEST:
        raise InvalidRequest.field(field, "PASSWORD_LENGTH", f"must have {SHORTEST} to {LONGEST} characters")
    if bare in own or _without_tail(bare) in own:
        raise InvalidRequest.field(field, "PASSWORD_IS_EMAIL", "must not be the e-mail address")
    if len(set(password.casefold())) < FEWEST_DIFFERENT or _without_tail(bare) in _COMMON | {""} or _is_run(bare):
        raise InvalidRequest.field(field, "PASSWORD_COMMON", "is one of those that are tried first")


def _normal(password: str) -> str:
    """One spelling of letters that keyboards compose in different ways, such as й."""
    return unicodedata.normalize("NFC", password)


def _bare(text: str) -> str:
    return re.sub(r"[\W_]", "", _normal(text).casefold())


def _without_tail(bare: str) -> str:
    return bare.rstrip("0123456789")


def _is_run(bare: str) -> bool:
    """Whether nearly all of it is steps along the alphabet, the digits or the keyboard, forwards or backwards."""
    pairs = ["".join(pair) for pair in pairwise(bare)]
    return sum(pair in _STEPS for pair in pairs) >= 0.75 * len(pairs)
