"""TLS and client certificates on the port, their replacement while it serves, and when plaintext is refused."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import mrm_client
from mrm.accounts.v1 import session_service_pb2, session_service_pb2_grpc
from server.app import Application
from server.errors import StartError
from tests.certificates import Pair, issue
from tests.conftest import World, settings_for

ROOT = Path(__file__).parents[2]


@dataclass
class Secured:
    """A server that encrypts, and the authority behind its certificate."""

    target: str
    folder: Path
    authority: Pair
    pair: Pair


async def serve(world: World, **grpc_settings: Any) -> Application:
    settings = settings_for(world.connections)
    settings.grpc = settings.grpc.model_copy(update=grpc_settings)
    application = Application(settings)
    await application.start()
    return application


@pytest.fixture(params=[False, True], ids=["tls", "mtls"])
async def secured(
    world: World, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Secured, dict[str, Any]]]:
    """A server and what `mrm_client.channel` needs to reach it."""
    authority = issue(tmp_path, "authority")
    pair = issue(tmp_path, "server", authority, "localhost", "127.0.0.1")
    needed: dict[str, Any] = {"root_certificates": authority.certificate}
    settings: dict[str, Any] = {"tls_certificate": pair.certificate, "tls_key": pair.key}
    if request.param:
        client = issue(tmp_path, "client", authority)
        needed |= {"client_certificate": client.certificate, "client_key": client.key}
        settings["tls_client_ca"] = authority.certificate
    application = await serve(world, **settings)
    yield Secured(f"127.0.0.1:{application.port}", tmp_path, authority, pair), needed
    await application.stop()


async def whoami(channel: grpc.aio.Channel) -> session_service_pb2.GetCurrentSessionResponse:
    async with channel:
        stub = session_service_pb2_grpc.SessionServiceStub(channel)
        return await stub.GetCurrentSession(session_service_pb2.GetCurrentSessionRequest(), timeout=5)


async def refused(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await whoami(channel)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE, "the handshake fails, not the call"


async def presented(target: str, needed: dict[str, Any]) -> bytes:
    """The certificate that the server shows to a new connection."""
    import ssl

    context = ssl.create_default_context(cafile=str(needed["root_certificates"]))
    if "client_certificate" in needed:
        context.load_cert_chain(needed["client_certificate"], needed["client_key"])
    context.set_alpn_protocols(["h2"])
    host, port = target.split(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    assert isinstance(shown, bytes)
    return shown


async def run(*command: str, **environment: str) -> tuple[int, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MRM_")}
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**kept, "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}", "GRPC_VERBOSITY": "NONE", **environment},
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_only_who_trusts_and_is_trusted_gets_through(
    world: World, secured: tuple[Secured, dict[str, Any]]
) -> None:
    server, needed = secured
    token = world.admin.token
    seen = await whoami(mrm_client.channel(server.target, token, **needed))
    assert seen.user.user_id == str(world.admin.user_id)
    named = mrm_client.channel(server.target, token, server_name="localhost", **needed)
    assert (await whoami(named)).user == seen.user
    await refused(mrm_client.channel(server.target, token))
    await refused(mrm_client.channel(server.target, token, tls=True))
    await refused(mrm_client.channel(server.target, token, server_name="elsewhere.example", **needed))
    if "client_certificate" in needed:
        await refused(mrm_client.channel(server.target, token, root_certificates=server.authority.certificate))
        stranger = issue(server.folder, "stranger", issue(server.folder, "other-authority"))
        shown = {"client_certificate": stranger.certificate, "client_key": stranger.key}
        await refused(mrm_client.channel(server.target, token, **{**needed, **shown}))


async def test_a_replaced_certificate_is_shown_without_restart(
    world: World, secured: tuple[Secured, dict[str, Any]]
) -> None:
    server, needed = secured
    open_before = mrm_client.channel(server.target, world.admin.token, **needed)
    stub = session_service_pb2_grpc.SessionServiceStub(open_before)
    request = session_service_pb2.GetCurrentSessionRequest()
    await stub.GetCurrentSession(request)
    first = await presented(server.target, needed)
    staged = server.folder / "staged"
    staged.mkdir()
    fresh = issue(staged, "server", server.authority, "127.0.0.1")
    kept = server.pair.certificate.read_bytes()
    for unusable in (fresh.certificate.read_bytes(), b"no certificate"):
        server.pair.certificate.write_bytes(unusable)
        assert await presented(server.target, needed) == first, "a certificate without its key is left alone"
    server.pair.certificate.unlink()
    assert await presented(server.target, needed) == first
    server.pair.certificate.write_bytes(kept)
    fresh.put_in_place_of(server.pair)
    shown = await presented(server.target, needed)
    assert shown != first
    assert shown == await presented(server.target, needed)
    await stub.GetCurrentSession(request)
    await open_before.close()


async def test_grpcurl_and_the_command_line_speak_tls(world: World, secured: tuple[Secured, dict[str, Any]]) -> None:
    server, needed = secured
    shown = ("-cert", str(needed["client_certificate"]), "-key", str(needed["client_key"])) if len(needed) > 1 else ()
    tools = Path(sys.executable).parent
    code, output = await run(
        str(tools / "grpcurl"), "-cacert", str(server.authority.certificate), *shown, server.target, "list"
    )
    assert code == 0, output
    assert "mrm.accounts.v1.ServiceAccountService" in output
    mrm = (sys.executable, "-m", "server", "health", "--target", server.target)
    given = {"MRM_TLS_CA": str(server.authority.certificate)}
    if shown:
        code, output = await run(*mrm, **given)
        assert code == 1, output
        given |= {"MRM_TLS_CERTIFICATE": shown[1], "MRM_TLS_KEY": shown[3]}
    code, output = await run(*mrm, **given)
    assert (code, output.strip()) == (0, "SERVING")


async def test_a_health_check_in_the_servers_environment_needs_no_options(world: World, tmp_path: Path) -> None:
    authority = issue(tmp_path, "authority")
    pair = issue(tmp_path, "server", authority, "mrm.example.com")
    files = {"tls_certificate": pair.certificate, "tls_key": pair.key, "tls_client_ca": authority.certificate}
    application = await serve(world, **files)
    environment = {f"MRM_GRPC__{name.upper()}": str(file) for name, file in files.items()}
    mrm = (sys.executable, "-m", "server", "health", "--target", f"127.0.0.1:{application.port}")
    code, output = await run(*mrm, **environment)
    assert (code, output.strip()) == (0, "SERVING")
    code, output = await run(*mrm)
    assert code == 1, "without the environment it speaks plaintext and trusts nobody"
    await application.stop()


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1", "db.internal"])
async def test_plaintext_stays_on_this_machine(world: World, host: str) -> None:
    with pytest.raises(StartError, match=r"refusing to serve in the clear on .*MRM_GRPC__ALLOW_PLAINTEXT"):
        await serve(world, host=host)


async def test_plaintext_elsewhere_on_purpose(world: World) -> None:
    application = await serve(world, host="0.0.0.0", allow_plaintext=True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    await application.stop()


async def test_what_cannot_encrypt_does_not_start(world: World, tmp_path: Path) -> None:
    one, other = issue(tmp_path, "one"), issue(tmp_path, "other")
    junk = tmp_path / "junk.pem"
    junk.write_text("secret-looking junk")
    missing = tmp_path / "missing.pem"
    cases: list[tuple[dict[str, Path], str]] = [
        ({"tls_certificate": one.certificate}, "TLS needs both"),
        ({"tls_key": one.key}, "TLS needs both"),
        ({"tls_client_ca": one.certificate}, "TLS needs both"),
        ({"tls_certificate": one.certificate, "tls_key": other.key}, "is not the key of"),
        ({"tls_certificate": junk, "tls_key": one.key}, "holds no PEM certificate"),
        ({"tls_certificate": one.certificate, "tls_key": junk}, "holds no PEM private key"),
        ({"tls_certificate": missing, "tls_key": one.key}, "cannot read .*missing"),
        ({"tls_certificate": one.certificate, "tls_key": one.key, "tls_client_ca": junk}, "holds no PEM certificate"),
    ]
    for files, text in cases:
        with pytest.raises(StartError, match=text) as caught:
            await serve(world, **files)
        assert "junk\n" not in str(caught.value)
        assert "secret-looking" not in str(caught.value)
