"""CampaignService's steps through a campaign's life (requirements §11), one at a time or a thousand at once."""

from typing import Protocol
from uuid import UUID

from mrm.campaigns.v1 import campaign_pb2
from mrm.campaigns.v1 import campaign_service_pb2 as pb
from server.campaigns import batch
from server.campaigns.batch import Operation
from server.campaigns.campaign_service import change
from server.rpc.call import Mutation
from server.rpc.errors import DomainError, InvalidRequest
from server.rpc.status import to_status
from server.rpc.validation import validate
from server.rpc.values import check_read_mask, masked


class StepRequest(Protocol):
    """What the requests for all steps have in common."""

    @property
    def campaign_id(self) -> str:
        """UUID of the campaign."""

    @property
    def etag(self) -> str:
        """The campaign's etag, or nothing."""


class MutationRpcs:
    """Implements the steps and the batches of mrm.campaigns.v1.CampaignService."""

    async def SubmitCampaign(self, request: pb.SubmitCampaignRequest, call: Mutation) -> pb.SubmitCampaignResponse:
        """Says that a draft is ready."""
        return pb.SubmitCampaignResponse(campaign=await batch.run_one(call, _step("submit", request)))

    async def ActivateCampaign(
        self, request: pb.ActivateCampaignRequest, call: Mutation
    ) -> pb.ActivateCampaignResponse:
        """Says that a campaign which no platform reports on has been let through."""
        return pb.ActivateCampaignResponse(campaign=await batch.run_one(call, _step("activate", request)))

    async def RejectCampaign(self, request: pb.RejectCampaignRequest, call: Mutation) -> pb.RejectCampaignResponse:
        """Says that a campaign which no platform reports on has been refused."""
        if not request.reason.strip():
            raise InvalidRequest.field("reason", "REASON_EMPTY", "says nothing")
        step = Operation("reject", UUID(request.campaign_id), etag=request.etag, reason=request.reason)
        return pb.RejectCampaignResponse(campaign=await batch.run_one(call, step))

    async def PauseCampaign(self, request: pb.PauseCampaignRequest, call: Mutation) -> pb.PauseCampaignResponse:
        """Halts a campaign."""
        return pb.PauseCampaignResponse(campaign=await batch.run_one(call, _step("pause", request)))

    async def ResumeCampaign(self, request: pb.ResumeCampaignRequest, call: Mutation) -> pb.ResumeCampaignResponse:
        """Lets a campaign run again."""
        return pb.ResumeCampaignResponse(campaign=await batch.run_one(call, _step("resume", request)))

    async def ArchiveCampaign(self, request: pb.ArchiveCampaignRequest, call: Mutation) -> pb.ArchiveCampaignResponse:
        """Puts a campaign away."""
        return pb.ArchiveCampaignResponse(campaign=await batch.run_one(call, _step("archive", request)))

    async def RestoreCampaign(self, request: pb.RestoreCampaignRequest, call: Mutation) -> pb.RestoreCampaignResponse:
        """Takes a campaign back from the archive."""
        return pb.RestoreCampaignResponse(campaign=await batch.run_one(call, _step("restore", request)))

    async def MutateCampaigns(self, request: pb.MutateCampaignsRequest, call: Mutation) -> pb.MutateCampaignsResponse:
        """Takes many steps at once."""
        check_read_mask(request.read_mask, campaign_pb2.Campaign)
        outcomes: list[campaign_pb2.Campaign | DomainError] = []
        steps: list[Operation] = []
        places: list[int] = []
        named: set[UUID] = set()
        for index, wanted in enumerate(request.operations):
            try:
                step = _operation(wanted, f"operations[{index}]")
                if step.campaign_id in named:
                    raise InvalidRequest.field(
                        f"operations[{index}]", "CAMPAIGN_DUPLICATE", "names a campaign of an earlier operation"
                    )
            except DomainError as error:
                outcomes.append(error)
                continue
            named.add(step.campaign_id)
            outcomes.append(campaign_pb2.Campaign())
            steps.append(step)
            places.append(index)
        broken = len(steps) < len(outcomes)
        done = await batch.run(
            call, steps, validate_only=request.validate_only, atomic=request.atomic, failed=request.atomic and broken
        )
        for index, outcome in zip(places, done, strict=True):
            outcomes[index] = outcome
        response = pb.MutateCampaignsResponse()
        for outcome in outcomes:
            if isinstance(outcome, DomainError):
                response.results.add(status=to_status(outcome, call.request_id))
            else:
                response.results.add(campaign=masked(outcome, request.read_mask))
                response.success_count += 1
        return response


def _step(action: str, request: StepRequest) -> Operation:
    return Operation(action, UUID(request.campaign_id), etag=request.etag)


def _operation(wanted: pb.CampaignOperation, path: str) -> Operation:
    validate(wanted, path)
    action = wanted.WhichOneof("operation")
    match action:
        case "create":
            return batch.creation(wanted.create)
        case "update":
            return change(wanted.update, f"{path}.update.")
        case _:
            assert action is not None
            step: pb.CampaignStep = getattr(wanted, action)
            return _step(action, step)
