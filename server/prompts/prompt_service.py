"""PromptService: keeps prompts and their versions, and fills their texts."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

from google.protobuf.duration_pb2 import Duration

from mrm.ai.v1 import prompt_pb2
from mrm.ai.v1 import prompt_service_pb2 as pb
from server.prompts import convert, deciding, texts
from server.prompts.owning import found_version, locked, locked_of_version, may_write_for_agency
from server.rpc import rights
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import AlreadyExists, FailedPrecondition, NotFound
from server.rpc.paging import Pager
from server.rpc.values import check_etag, optional_id
from server.settings import PromptsSettings
from storage.errors import Conflict
from storage.postgres import clients, experiments, prompts
from storage.postgres.database import Database
from storage.postgres.prompts import Prompt, PromptVersion

_DEFAULT_LABEL: Final = "production"
# A version never changes; the day only keeps what nobody asks for any more from staying for ever.
_VERSION_TTL: Final = timedelta(days=1)


class PromptService:
    """Implements mrm.ai.v1.PromptService but for its labels.

    Args:
        database: Where prompts live.
        pager: Makes page tokens.
        settings: Which labels are protected, and how long filled texts may be kept.
    """

    def __init__(self, database: Database, pager: Pager, settings: PromptsSettings) -> None:
        self._database = database
        self._pager = pager
        self._settings = settings

    async def CreatePrompt(self, request: pb.CreatePromptRequest, call: Mutation) -> pb.CreatePromptResponse:
        """Adds a prompt with its first version."""
        client_id = optional_id(request.client_id)
        if client_id is None:
            if not may_write_for_agency(call.principal):
                raise rights.denied("PROMPTS_WRITE")
        elif await clients.get(call.tx, call.scope, client_id) is None:
            raise NotFound.resource("client", request.client_id)
        person = await rights.person(call)
        try:
            made = await prompts.create(
                call.tx,
                client_id=client_id,
                name=request.name,
                category=convert.CATEGORIES.word(request.category),
                created_by=person,
            )
        except Conflict:
            raise AlreadyExists("there is a prompt of this name", metadata={"field": "name"}) from None
        version = await _added(call, made, request.draft, person)
        row = await prompts.get(call.tx, call.scope, made.id)
        assert row is not None
        reply = pb.CreatePromptResponse(prompt=convert.prompt(row, (), ()), prompt_version=convert.version(version))
        await call.record(AuditEntry("create", "prompt", row.id, client_id, None, None, reply.prompt))
        await _record(call, "create", None, version)
        return reply

    async def GetPrompt(self, request: pb.GetPromptRequest, call: Call) -> pb.GetPromptResponse:
        """Returns a prompt."""
        row = await prompts.get(self._database, call.scope, UUID(request.prompt_id))
        if row is None:
            raise NotFound.resource("prompt", request.prompt_id)
        return pb.GetPromptResponse(prompt=(await self._messages(call, [row]))[0])

    async def ListPrompts(self, request: pb.ListPromptsRequest, call: Call) -> pb.ListPromptsResponse:
        """Lists prompts."""
        page = self._pager.start(request, call)
        rows, next_token = page.cut(
            await prompts.list_page(
                self._database,
                call.scope,
                limit=page.size + 1,
                after=page.after,
                after_name=page.after_key,
                client_id=optional_id(request.filter.client_id),
                agency_wide=request.filter.agency_wide,
                name=request.filter.name,
                categories=convert.CATEGORIES.optional_words(request.filter.categories),
            ),
            key=lambda row: row.name,
        )
        return pb.ListPromptsResponse(prompts=await self._messages(call, rows), next_page_token=next_token)

    async def CreatePromptVersion(
        self, request: pb.CreatePromptVersionRequest, call: Mutation
    ) -> pb.CreatePromptVersionResponse:
        """Adds a version under the next number."""
        prompt = await locked(call, UUID(request.prompt_id))
        version = await _added(call, prompt, request.draft, await rights.person(call))
        await _record(call, "create", None, version)
        return pb.CreatePromptVersionResponse(prompt_version=convert.version(version))

    async def GetPromptVersion(self, request: pb.GetPromptVersionRequest, call: Call) -> pb.GetPromptVersionResponse:
        """Returns a version."""
        row = await found_version(self._database, call, UUID(request.prompt_version_id))
        return pb.GetPromptVersionResponse(prompt_version=convert.version(row))

    async def ListPromptVersions(
        self, request: pb.ListPromptVersionsRequest, call: Call
    ) -> pb.ListPromptVersionsResponse:
        """Lists the versions of a prompt."""
        page = self._pager.start(request, call)
        prompt_id = UUID(request.prompt_id)
        rows, next_token = page.cut(
            await prompts.versions_page(
                self._database,
                call.scope,
                prompt_id,
                limit=page.size + 1,
                after=page.after,
                statuses=convert.STATUSES.optional_words(request.filter.statuses),
            )
        )
        if not rows and await prompts.get(self._database, call.scope, prompt_id) is None:
            raise NotFound.resource("prompt", request.prompt_id)
        return pb.ListPromptVersionsResponse(prompt_versions=map(convert.version, rows), next_page_token=next_token)

    async def DeprecatePromptVersion(
        self, request: pb.DeprecatePromptVersionRequest, call: Mutation
    ) -> pb.DeprecatePromptVersionResponse:
        """Keeps a version from being given labels again."""
        before = await self._to_become(request.prompt_version_id, request.etag, "deprecated", call)
        for label in await prompts.labels(call.tx, call.scope, [before.lineage_id]):
            if label.version_id == before.id and label.name in self._settings.protected_labels:
                raise _in_use(f"is served under the protected label {label.name}: move that first", label.name)
        for experiment in await experiments.running_with(call.tx, call.scope, before.id):
            raise _in_use(f"is in an experiment under the label {experiment.label}: stop that first", experiment.label)
        return pb.DeprecatePromptVersionResponse(
            prompt_version=await _become(call, before, "deprecate", "deprecated", request.reason)
        )

    async def RestorePromptVersion(
        self, request: pb.RestorePromptVersionRequest, call: Mutation
    ) -> pb.RestorePromptVersionResponse:
        """Makes a deprecated version active again."""
        before = await self._to_become(request.prompt_version_id, request.etag, "active", call)
        return pb.RestorePromptVersionResponse(prompt_version=await _become(call, before, "restore", "active", ""))

    async def RenderPrompt(self, request: pb.RenderPromptRequest, call: Call) -> pb.RenderPromptResponse:
        """Fills the text of the version that is served."""
        values = convert.values(request.variables)
        wanted = request.reference
        reply = pb.RenderPromptResponse()
        ttl = _VERSION_TTL
        version_id = optional_id(request.prompt_version_id)
        if version_id is None:
            reply.label = wanted.label or _DEFAULT_LABEL
            ttl = self._settings.cache_ttl
            version_id, experiment_id = await self._served(wanted, reply.label, call)
            reply.prompt_experiment_id = str(experiment_id or "")
        version = await found_version(self._database, call, version_id)
        reply.text = texts.fill(version.template, version.variables, values)
        reply.prompt_id = str(version.lineage_id)
        reply.client_id = str(version.client_id or "")
        reply.prompt_version_id = str(version.id)
        reply.version = version.version
        reply.parameters.CopyFrom(convert.parameters(version.metadata))
        reply.cache_ttl.CopyFrom(_duration(ttl))
        return reply

    async def _served(self, wanted: pb.PromptReference, label: str, call: Call) -> tuple[UUID, UUID | None]:
        """The version that a caller gets under a label, and the experiment that chose it, if one did."""
        client_id = optional_id(wanted.client_id)
        if client_id is not None and await clients.get(self._database, call.scope, client_id) is None:
            raise NotFound.resource("client", wanted.client_id)
        served = await prompts.served(self._database, call.scope, wanted.name, label, client_id)
        if served is None:
            raise NotFound(
                "no prompt of this name has this label",
                metadata={"resource_type": "prompt_label", "prompt": wanted.name, "label": label},
            )
        if served.experiment_id is None or not wanted.subject_key:
            return served.version_id, None
        place = deciding.arm_of(served.experiment_id, wanted.subject_key, served.weights)
        return served.arm_ids[place], served.experiment_id

    async def _messages(self, call: Call, rows: Sequence[Prompt]) -> list[prompt_pb2.Prompt]:
        labels = await prompts.labels(self._database, call.scope, [row.id for row in rows])
        return [convert.prompt(row, labels, self._settings.protected_labels) for row in rows]

    async def _to_become(self, version_id: str, etag: str, status: str, call: Mutation) -> PromptVersion:
        """A version that is to have another status, its prompt held."""
        _, version = await locked_of_version(call, UUID(version_id))
        check_etag(etag, version.revision)
        if version.status == status:
            raise FailedPrecondition.transition("prompt_version", version.status, status)
        return version


async def _added(call: Mutation, prompt: Prompt, draft: pb.PromptDraft, author: UUID | None) -> PromptVersion:
    variables = convert.variables(draft)
    texts.check(draft.template, variables, "draft")
    version = await prompts.add_version(
        call.tx,
        call.scope,
        prompt.id,
        template=draft.template,
        variables=variables,
        metadata=convert.metadata(draft.parameters, "draft.parameters"),
        change_note=draft.change_note,
        created_by=author,
    )
    assert version is not None
    return version


async def _become(
    call: Mutation, before: PromptVersion, action: str, status: str, reason: str
) -> prompt_pb2.PromptVersion:
    after = await prompts.set_status(call.tx, call.scope, before, status, reason)
    assert after is not None
    await _record(call, action, before, after)
    return convert.version(after)


async def _record(call: Mutation, action: str, before: PromptVersion | None, after: PromptVersion) -> None:
    was = None if before is None else convert.version(before)
    entry = AuditEntry(action, "prompt_version", after.id, after.client_id, None, was, convert.version(after))
    await call.record(entry)


def _in_use(text: str, label: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the version {text}",
        metadata={"resource_type": "prompt_version", "state": "active", "wanted": "deprecated", "label": label},
    )


def _duration(span: timedelta) -> Duration:
    found = Duration()
    found.FromTimedelta(span)
    return found
