"""The server under test: `mrm serve` on a free port, printing it for the benchmark."""

import asyncio

import uvloop

from server.app import Application
from server.rpc import logs
from server.settings import Settings


async def main() -> None:
    """Serves until SIGTERM."""
    settings = Settings()
    settings.grpc.port = 0
    logs.configure(settings.logging.level)
    application = Application(settings)
    await application.start()
    print(application.port, flush=True)
    await application.run_until_signal()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
