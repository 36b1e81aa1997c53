"""TemplateService: what clients' files look like, and of which template a new one is."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from mrm.ai.v1 import template_pb2
from mrm.ai.v1 import template_service_pb2 as pb
from server.rpc.auditing import Actor, append_to, recorder
from server.rpc.call import AuditEntry, Call, Mutation, StreamCall
from server.rpc.errors import InvalidRequest, NotFound, Unavailable
from server.rpc.paging import Pager
from server.rpc.validation import validate
from server.rpc.values import apply_mask, check_etag, optional_id, required_id
from server.search import convert, mapping, scrubbing, tables
from server.search.embedder import Embedders, EmbedderUnavailable, TextRefused
from server.search.mapping import Fit
from server.search.vocabulary import plain
from storage.postgres import clients, templates
from storage.postgres.database import Database, Transaction
from storage.postgres.templates import Template

WRITABLE: Final = frozenset({"display_name", "artifact_type", "columns", "sample_rows"})
MOST_BYTES: Final = 8 * 2**20
_CANDIDATES: Final = 500
_LOOKED_AT: Final = 20
_SUGGESTIONS: Final = 3
_LEAST_SCORE: Final = 0.3
_NAMES_KEPT: Final = 20_000

UploadCall = StreamCall[pb.UploadTemplateRequest, pb.UploadTemplateResponse]


class TemplateService:
    """Implements mrm.ai.v1.TemplateService.

    Args:
        database: Where templates live.
        pager: Makes page tokens.
        embedders: Compare names by meaning.
        announce: Told after a commit that changes were recorded.
    """

    def __init__(self, database: Database, pager: Pager, embedders: Embedders, announce: Callable[[], None]) -> None:
        self._database = database
        self._pager = pager
        self._names = NameVectors(embedders)
        self._announce = announce

    async def CreateTemplate(self, request: pb.CreateTemplateRequest, call: Mutation) -> pb.CreateTemplateResponse:
        """Describes a file."""
        wanted = request.template
        client_id = UUID(wanted.client_id)
        await _check_client(call.tx, call, client_id)
        row = await templates.create(call.tx, client_id=client_id, **_writable(wanted), created_by=_person(call))
        assert row is not None, "it is of no file that could be known"
        return pb.CreateTemplateResponse(template=await _recorded(call, "create", None, row))

    async def UploadTemplate(self, call: UploadCall) -> None:
        """Makes a template of a file."""
        first = await anext(call.requests, None)
        if first is None:
            return
        if not first.HasField("upload"):
            raise InvalidRequest.field("upload", "REQUIRED", "is required on the first request of a call")
        upload = first.upload
        validate(upload, "upload")
        client_id = UUID(upload.client_id)
        await _check_client(self._database, call, client_id)
        data = await _taken(call, first)
        table = await asyncio.to_thread(tables.read, upload.file_name, data)
        sample = [] if upload.without_sample else table.rows[: scrubbing.MOST_ROWS]
        names = [column["name"] for column in table.columns]
        artifact_type, digest = convert.ARTIFACT_TYPES.word(upload.artifact_type), hashlib.sha256(data).digest()

        async def store(tx: Transaction) -> tuple[Template, bool]:
            row = await templates.create(
                tx,
                client_id=client_id,
                name=scrubbing.text(upload.display_name or upload.file_name),
                artifact_type=artifact_type,
                file_name=scrubbing.text(upload.file_name),
                file_sha256=digest,
                columns=_distinct(table.columns),
                sample=scrubbing.rows(names, sample),
                created_by=_person(call),
            )
            if row is None:
                known = await templates.of_file(tx, call.scope, client_id, artifact_type, digest)
                if known is None:
                    raise NotFound.resource("client", str(client_id))
                return known, True
            record = recorder(
                append_to(tx, self._announce),
                Actor.of(call.principal),
                method=call.method,
                request_id=call.request_id,
            )
            await record(AuditEntry("create", "template", row.id, row.client_id, None, None, convert.template(row)))
            return row, False

        row, known = await self._database.run("upload_template", store)
        await call.write(pb.UploadTemplateResponse(template=convert.template(row), known=known))

    async def GetTemplate(self, request: pb.GetTemplateRequest, call: Call) -> pb.GetTemplateResponse:
        """Reads one template."""
        row = await templates.get(self._database, call.scope, UUID(request.template_id))
        if row is None:
            raise NotFound.resource("template", request.template_id)
        return pb.GetTemplateResponse(template=convert.template(row))

    async def ListTemplates(self, request: pb.ListTemplatesRequest, call: Call) -> pb.ListTemplatesResponse:
        """Lists visible templates."""
        page = self._pager.start(request, call)
        rows, next_token = page.cut(
            await templates.list_page(
                self._database,
                call.scope,
                limit=page.size + 1,
                after=page.after,
                client_id=optional_id(request.filter.client_id),
                artifact_types=convert.ARTIFACT_TYPES.optional_words(request.filter.artifact_types),
            )
        )
        return pb.ListTemplatesResponse(templates=map(convert.template, rows), next_page_token=next_token)

    async def UpdateTemplate(self, request: pb.UpdateTemplateRequest, call: Mutation) -> pb.UpdateTemplateResponse:
        """Changes a template."""
        row = await _locked(call, required_id(request.template.template_id, "template.template_id"))
        check_etag(request.template.etag, row.revision)
        before = convert.template(row)
        after = apply_mask(before, request.template, request.update_mask, WRITABLE, "template")
        validate(after, "template")
        changed = replace(row, **_writable(after))
        there = {column["name"] for column in changed.columns}
        aliases = {alias: name for alias, name in row.aliases.items() if name in there}
        stored = await templates.update(call.tx, call.scope, replace(changed, aliases=aliases))
        if stored is None:
            raise NotFound.resource("template", str(row.id))
        return pb.UpdateTemplateResponse(template=await _recorded(call, "update", row, stored))

    async def DeleteTemplate(self, request: pb.DeleteTemplateRequest, call: Mutation) -> pb.DeleteTemplateResponse:
        """Forgets a template."""
        row = await _locked(call, UUID(request.template_id))
        check_etag(request.etag, row.revision)
        await templates.delete(call.tx, call.scope, row.id)
        await call.record(AuditEntry("delete", "template", row.id, row.client_id, None, convert.template(row), None))
        return pb.DeleteTemplateResponse()

    async def SuggestTemplate(self, request: pb.SuggestTemplateRequest, call: Call) -> pb.SuggestTemplateResponse:
        """Finds the templates that a file looks most like."""
        source = convert.columns(request.columns)
        told = tables.types(len(source), [list(row.cells) for row in request.sample_rows])
        source = [{**column, "type": column["type"] or kind} for column, kind in zip(source, told, strict=True)]
        rows = await templates.candidates(
            self._database,
            call.scope,
            limit=_CANDIDATES,
            client_id=optional_id(request.filter.client_id),
            artifact_types=convert.ARTIFACT_TYPES.optional_words(request.filter.artifact_types),
        )
        # Sorting is stable: among equals those that are used most come first.
        rows.sort(key=lambda row: -mapping.rough(source, row.columns, row.aliases))
        rows = rows[:_LOOKED_AT]
        vectors = await self._names.of([column["name"] for column in (*source, *_all_columns(rows))])
        fits = await asyncio.to_thread(_fits, source, rows, vectors)
        least = request.min_score or _LEAST_SCORE
        found = [each for each in fits if each[1].score >= least]
        found.sort(key=lambda each: (-each[1].score, -each[0].use_count, each[0].id))
        return pb.SuggestTemplateResponse(
            suggestions=(convert.suggestion(row, fit) for row, fit in found[: request.limit or _SUGGESTIONS])
        )

    async def UseTemplate(self, request: pb.UseTemplateRequest, call: Mutation) -> pb.UseTemplateResponse:
        """Counts a use, and learns from it."""
        row = await _locked(call, UUID(request.template_id))
        there = {column["name"] for column in row.columns}
        for index, each in enumerate(request.mappings):
            if each.template_column not in there:
                field = f"mappings[{index}].template_column"
                raise InvalidRequest.field(field, "COLUMN_UNKNOWN", "is no column of the template")
        own = {plain(name) for name in there}
        learned = {
            plain(each.source_column): each.template_column
            for each in request.mappings
            # A name that is a column's own needs no learning, and must not come to mean another.
            if plain(each.source_column) and plain(each.source_column) not in own
        }
        used = await templates.use(call.tx, call.scope, row.id, learned)
        if used is None:
            raise NotFound.resource("template", request.template_id)
        return pb.UseTemplateResponse(template=await _recorded(call, "use", row, used))


class NameVectors:
    """Embeddings of names of columns, those asked for last kept.

    Args:
        embedders: Make them.
    """

    def __init__(self, embedders: Embedders) -> None:
        self._embedders = embedders
        self._kept: OrderedDict[tuple[str, str], Any] = OrderedDict()

    async def of(self, names: Iterable[str]) -> Mapping[str, Any]:
        """A vector for each name; none at all while there is no model to be had."""
        embedder = self._embedders.present
        wanted = list(dict.fromkeys(names))
        missing = [name for name in wanted if (embedder.model, name) not in self._kept]
        if missing:
            try:
                # Names are written in one way, so that case and underscores do not change what they mean.
                vectors = await embedder.embed([plain(name) or name for name in missing])
            except (EmbedderUnavailable, TextRefused):
                return {}
            for name, vector in zip(missing, vectors, strict=True):
                self._kept[embedder.model, name] = vector
        found = {}
        for name in wanted:
            self._kept.move_to_end((embedder.model, name))
            found[name] = self._kept[embedder.model, name]
        while len(self._kept) > _NAMES_KEPT:
            self._kept.popitem(last=False)
        return found


def _fits(
    source: Sequence[Mapping[str, str]], rows: Sequence[Template], vectors: Mapping[str, Any]
) -> list[tuple[Template, Fit]]:
    return [(row, mapping.fit(source, row.columns, row.aliases, vectors)) for row in rows]


def _all_columns(rows: Iterable[Template]) -> Iterable[Mapping[str, str]]:
    return (column for row in rows for column in row.columns)


async def _taken(call: UploadCall, first: pb.UploadTemplateRequest) -> bytes:
    """The bytes of a file."""
    data = bytearray()
    request: pb.UploadTemplateRequest | None = first
    while request is not None:
        validate(request)
        if request is not first and request.HasField("upload"):
            raise InvalidRequest.field("upload", "NOT_FIRST", "stands on the first request of a call only")
        data += request.data
        if len(data) > MOST_BYTES:
            raise InvalidRequest.field(
                "data", "TOO_LARGE", f"is more than {MOST_BYTES} bytes in all", error_reason="FILE_INVALID"
            )
        if call.draining.is_set():
            raise Unavailable("the server shuts down, connect again", reason="SHUTTING_DOWN", retry_after=0.5)
        request = await anext(call.requests, None)
    return bytes(data)


async def _check_client(db: Database | Transaction, call: Call, client_id: UUID) -> None:
    if not await clients.visible_ids(db, call.scope, [client_id]):
        raise NotFound.resource("client", str(client_id))


async def _locked(call: Mutation, template_id: UUID) -> Template:
    row = await templates.get_for_update(call.tx, call.scope, template_id)
    if row is None:
        raise NotFound.resource("template", str(template_id))
    return row


def _writable(message: template_pb2.Template) -> dict[str, Any]:
    """What a caller may write, scrubbed.

    Raises:
        InvalidRequest: A column is named twice.
    """
    columns = convert.columns(message.columns)
    names = [column["name"] for column in columns]
    if len({plain(name) or name for name in names}) < len(names):
        raise InvalidRequest.field("template.columns", "NAMED_TWICE", "name a column twice")
    return {
        "name": message.display_name,
        "artifact_type": convert.ARTIFACT_TYPES.word(message.artifact_type),
        "columns": columns,
        "sample": scrubbing.rows(names, [list(row.cells) for row in message.sample_rows]),
    }


def _distinct(columns: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Columns of a file with what its header says scrubbed: it may be no header at all."""
    names = tables.distinct(scrubbing.text(column["name"]) for column in columns)
    return [{"name": name, "type": column["type"]} for name, column in zip(names, columns, strict=True)]


async def _recorded(call: Mutation, action: str, before: Template | None, after: Template) -> template_pb2.Template:
    message = convert.template(after)
    earlier = None if before is None else convert.template(before)
    await call.record(AuditEntry(action, "template", after.id, after.client_id, None, earlier, message))
    return message


def _person(call: Call) -> UUID | None:
    return call.principal.principal_id if call.principal.kind == "user" else None
