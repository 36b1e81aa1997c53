"""Who is told by e-mail when a media plan takes a step: whoever has to act next."""

from typing import Final

from mrm.common.v1 import money_pb2
from server.mail.letters import Amount, PlanApproved, PlanLetter, PlanRejected, PlanSubmitted
from server.mail.post import tell
from server.planning.plan_convert import micros
from server.rpc.call import Mutation
from storage.postgres import emails, users
from storage.postgres.media_plans import MediaPlan
from storage.postgres.projects import Project

_LETTERS: Final[dict[str, type[PlanLetter]]] = {
    "submit": PlanSubmitted,
    "approve": PlanApproved,
    "reject": PlanRejected,
}


async def tell_of_step(call: Mutation, project: Project, plan: MediaPlan, step: str, comment: str) -> None:
    """Has those told who wait for a step: of a submission the Accountable, of a decision authors and submitter.

    Nobody is told of what they did themselves.

    Args:
        call: The call that takes the step, in whose transaction this is.
        project: The plan's project.
        plan: The version before the step.
        step: ``submit``, ``approve`` or ``reject``.
        comment: What was said about it.
    """
    actor = call.principal.principal_id if call.principal.kind == "user" else None
    if step == "submit":
        recipients = await emails.team_internal(call.tx, project.id, "A")
    else:
        waiting = {*plan.author_ids, plan.submitted_by} - {None}
        recipients = await emails.people_internal(call.tx, [each for each in waiting if each is not None])
    recipients = [each for each in recipients if each.user_id != actor]
    client = await emails.client_internal(call.tx, plan.client_id)
    if not recipients or client is None:
        return
    person = None if actor is None else await users.get(call.tx, actor)
    budget = money_pb2.Money(currency_code=plan.currency, micros=micros(plan.total_budget) or 0)
    letter = _LETTERS[step](
        client=client[0],
        project=project.name,
        plan=plan.name,
        version=plan.version,
        budget=Amount.of(budget),
        actor="" if person is None else f"{person.first_name} {person.last_name}".strip(),
        comment=comment,
    )
    await tell(
        call.tx,
        letter,
        recipients,
        # A version may be submitted again after a rejection: its revision tells these apart.
        event_id=f"media_plan:{plan.id}:{step}:{plan.revision}",
        language=client[1],
        client_id=plan.client_id,
        requested_by=actor,
    )
