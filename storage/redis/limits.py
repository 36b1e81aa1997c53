"""Call limits: an hourly quota per subject and endpoint, under ``ratelimit:{subject}:{endpoint}``.

The algorithm is GCRA. Its whole state is one number, the time at which the quota would be full again, so a key is a
string and its life is at most an hour: there is no key without an end, and no window whose edge lets a double burst
through. A subject that kept quiet may spend the whole quota at once; after that one call comes free every
3600 / limit seconds.

Redis down means `StoreUnavailable` here; whether a call then passes is for the caller to decide (reads may, sign-in
must not).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from storage.redis.multiplex import MultiplexedRedis, Script

# All times are whole microseconds, so that nothing drifts; the clock is the server's, the same for every process.
# Floors the interval: the quota is never smaller than promised, and the life of the key never above an hour.
GCRA = """
local function take(key, limit)
  local clock = redis.call('TIME')
  local now = clock[1] * 1000000 + clock[2]
  local interval = math.floor(3600000000 / limit)
  local full_at = math.max(tonumber(redis.call('GET', key) or now), now)
  local over = full_at + interval - now - interval * limit
  if over > 0 then
    return {0, 0, full_at - now, over}
  end
  full_at = full_at + interval
  redis.call('SET', key, string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000))
  return {1, math.floor(-over / interval), full_at - now, 0}
end
"""

HIT = Script(GCRA + "return take(KEYS[1], tonumber(ARGV[1]))")

_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class RateState:
    """What a limit says to one call.

    Attributes:
        allowed: Whether the call may pass; a refused call is not counted.
        limit: Calls an hour.
        remaining: Calls that would pass right now.
        reset_seconds: Time until the whole quota is back.
        retry_after: Time until the next call passes; zero if this one did.
    """

    allowed: bool
    limit: int
    remaining: int
    reset_seconds: float
    retry_after: float

    @classmethod
    def of_reply(cls, limit: int, reply: Sequence[Any]) -> RateState:
        """Reads what the script's function `take` returns."""
        allowed, remaining, reset, retry = reply
        return cls(bool(allowed), limit, remaining, reset / _MICROSECONDS, retry / _MICROSECONDS)


class RateLimiter:
    """Counts calls of subjects that have no session: API keys and sign-in attempts."""

    def __init__(self, redis: MultiplexedRedis) -> None:
        self._redis = redis

    async def hit(self, subject: str, endpoint: str, limit: int) -> RateState:
        """Counts one call.

        Args:
            subject: Who calls: id of a user or key, or `login_subject`.
            endpoint: Full name of the gRPC method.
            limit: Calls an hour, at least 1.

        Raises:
            StoreUnavailable, TimeoutError: The call is not counted for certain.
        """
        return RateState.of_reply(limit, await self._redis.run(HIT, (limit_key(subject, endpoint),), (limit,)))


def limit_key(subject: str, endpoint: str) -> str:
    """Key of a subject's quota."""
    return f"ratelimit:{subject}:{endpoint}"


def login_subject(peer: str, email: str) -> str:
    """Who tries to sign in: the address without its port, and a digest in place of the e-mail.

    Args:
        peer: As gRPC names it, for example ``ipv4:10.0.0.1:43210``.
        email: As sent; letter case and outer blanks do not count.
    """
    return f"{_address(peer)}+{hashlib.sha256(email.strip().lower().encode()).hexdigest()[:32]}"


def address_subject(peer: str) -> str:
    """Who tries to sign in as whomever: the address without its port, of IPv6 the /64 that one site is given.

    Args:
        peer: As gRPC names it, for example ``ipv6:%5B2001:db8::1%5D:43210``.
    """
    address = _address(peer)
    if address.startswith("ipv6:"):
        try:
            site = ipaddress.IPv6Network((unquote(address[5:]).strip("[]").partition("%")[0], 64), strict=False)
        except ValueError:
            return address
        return f"ipv6:{site.network_address}"
    return address


def _address(peer: str) -> str:
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
