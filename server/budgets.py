"""Sums of budgets: what has to fit into what, in whole millionths of a currency unit, so that nothing is rounded.

Plans and campaigns are of different domains and share these rules. Every refusal names the difference.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from server.rpc.errors import FailedPrecondition

_UNIT = 10**6
_MOST_NAMED = 10


@dataclass(frozen=True, slots=True)
class Share:
    """What a campaign may take from a channel of a plan.

    Attributes:
        campaign_id: The campaign.
        name: Its name, to tell people which one is meant.
        channel_id: The channel.
        micros: Its total budget.
    """

    campaign_id: UUID
    name: str
    channel_id: str
    micros: int


def text(micros: int) -> str:
    """An amount as an exact decimal without needless digits: 1500000 is ``1.5``."""
    whole, part = divmod(abs(micros), _UNIT)
    digits = f"{whole}.{part:06d}".rstrip("0").rstrip(".")
    return f"-{digits}" if micros < 0 else digits


def check_plan(channels: Iterable[int], total: int, currency: str) -> None:
    """The channels of a plan cost exactly what the plan does.

    Raises:
        FailedPrecondition: They cost more or less.
    """
    spent = sum(channels)
    if spent != total:
        raise _mismatch("channels_equal_plan", "the channels", "the plan's total budget", spent, total, currency)


def check_project(plans: Iterable[int], limit: int | None, currency: str) -> None:
    """The approved plans of a project cost no more than its budget; a project without one has no limit.

    Raises:
        FailedPrecondition: They cost more.
    """
    spent = sum(plans)
    if limit is not None and spent > limit:
        raise _mismatch(
            "plans_within_project", "the project's approved plans", "the project's budget", spent, limit, currency
        )


def check_campaigns(
    shares: Sequence[Share], channels: Mapping[str, int], total: int, currency: str, version: int
) -> None:
    """The campaigns of a plan's channels cost no more than each channel, and together no more than the plan.

    Args:
        shares: What the plan's campaigns take.
        channels: The plan's channels with their budgets.
        total: Budget of the plan.
        currency: Of all these.
        version: Number of the plan's version, for the message.

    Raises:
        FailedPrecondition: They cost more, or the plan has no such channel.
    """
    homeless = [share for share in shares if share.channel_id not in channels]
    if homeless:
        names = ", ".join(repr(share.name) for share in homeless[:_MOST_NAMED])
        more = f" and {len(homeless) - _MOST_NAMED} more" if len(homeless) > _MOST_NAMED else ""
        raise FailedPrecondition(
            f"version {version} of the plan drops channels that campaigns are bound to: {names}{more}",
            metadata={
                "resource_type": "media_plan",
                "state": "bound",
                "wanted": "dropped",
                "campaign_ids": ",".join(str(share.campaign_id) for share in homeless[:_MOST_NAMED]),
                "channel_ids": ",".join(sorted({share.channel_id for share in homeless})[:_MOST_NAMED]),
            },
        )
    taken: dict[str, int] = {}
    for share in shares:
        taken[share.channel_id] = taken.get(share.channel_id, 0) + share.micros
    for channel_id, spent in taken.items():
        if spent > channels[channel_id]:
            raise _mismatch(
                "campaigns_within_channel",
                "the campaigns of the channel",
                f"its budget in version {version} of the plan",
                spent,
                channels[channel_id],
                currency,
                channel_id=channel_id,
            )
    if sum(taken.values()) > total:
        raise _mismatch(
            "campaigns_within_plan",
            "the campaigns of the plan",
            f"the budget of its version {version}",
            sum(taken.values()),
            total,
            currency,
        )


def _mismatch(
    rule: str, what: str, bound: str, spent: int, limit: int, currency: str, **ids: str
) -> FailedPrecondition:
    difference = spent - limit
    relation = "more" if difference > 0 else "less"
    return FailedPrecondition(
        f"{what} cost {text(spent)} {currency}, {text(abs(difference))} {currency} {relation} than {bound} of "
        f"{text(limit)} {currency}",
        reason="BUDGET_MISMATCH",
        metadata={
            "rule": rule,
            "sum": text(spent),
            "limit": text(limit),
            "difference": text(difference),
            "currency_code": currency,
            **ids,
        },
    )
