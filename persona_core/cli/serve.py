"""Serve a model to clients of OpenAI's API, with each token's trait scores beside its text.

Clients that know nothing of traits work unchanged. Keys are read from the variable PERSONA_API_KEYS, separated by
commas; without any, the server answers only this machine.

examples:
  persona serve --model artifacts/persona-tiny --vectors artifacts/persona-vectors-persona-tiny
  persona serve --model Qwen/Qwen2.5-7B-Instruct --vectors me/persona-vectors-qwen2.5-7b --batch-size 32
  PERSONA_API_KEYS=... persona serve --model model.gguf --vectors vectors --host 0.0.0.0
"""

from __future__ import annotations

import argparse
import ipaddress
import socket
import sys
from contextlib import suppress

from persona_core.cli.options import add_engine, add_model, add_vectors, command_parser, loading
from persona_core.cli.running import execute, load, read_vectors
from persona_core.errors import SettingError


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("serve", __doc__)
    add_model(parser)
    add_engine(parser)
    add_vectors(parser)
    parser.add_argument("--name", nargs="+", help="names of the model in requests (default: its own, without owner)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on; any other one needs keys")
    parser.add_argument("--port", type=int, default=8000, help="port to serve on; 0 takes a free one")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--batch-size", type=int, default=16, help="replies written at once")
    limits.add_argument("--max-queue", type=int, default=64, help="requests that may wait; further ones get status 429")
    limits.add_argument("--max-new-tokens", type=int, default=1024, help="longest reply that may be requested")
    limits.add_argument("--max-prompt-tokens", type=int, default=4096, help="longest prompt")
    limits.add_argument("--max-seconds", type=float, default=300, help="longest time that one reply may be written for")
    return parser


def main(argv: list[str] | None = None) -> int:
    return execute(arguments(), run, argv, resumes=False)


def run(options: argparse.Namespace) -> list[str]:
    from persona_core.app.server.settings import ServeSettings, keys_from_environment

    keys = keys_from_environment()
    if not keys and not _is_loopback(options.host):
        raise SettingError(
            f"--host {options.host} can be reached from other machines: set PERSONA_API_KEYS, or serve on 127.0.0.1."
        )
    try:
        import uvicorn

        from persona_core.app.server.application import build_application
    except ModuleNotFoundError as error:
        raise SettingError(f"The server needs the package {error.name!r}: pip install 'persona-trace[app]'.") from error
    from persona_core.app.pooled_model import detectors_of
    from persona_core.monitor.monitor import PersonaMonitor
    from persona_core.traces.provenance import short_name

    listening = _bound(options.host, options.port)  # before the model, which may take minutes to load
    vectors = read_vectors(options)
    monitor = PersonaMonitor(load(loading(options)), vectors, detectors=detectors_of(options.vectors))
    settings = ServeSettings(
        tuple(options.name or [short_name(monitor.lm.writer_name).removesuffix(".gguf")]),
        keys,
        batch_size=options.batch_size,
        max_queue=options.max_queue,
        max_new_tokens=options.max_new_tokens,
        max_prompt_tokens=options.max_prompt_tokens,
        max_seconds=options.max_seconds,
    )
    application = build_application(monitor, settings)
    # No access log: it would hold every client's address. Connections beyond the places get 503 from uvicorn itself.
    places = settings.batch_size + settings.max_queue
    config = uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        limit_concurrency=4 * places + 64,
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"{', '.join(settings.names)}: http://{host}:{listening.getsockname()[1]}/v1", flush=True)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
    return []


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has its address; it does not listen yet, so that clients are refused rather than kept waiting."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        raise SettingError(f"--host {host} --port {port} cannot be served on: {error}. Name another port.") from error
    return bound


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    sys.exit(main())
