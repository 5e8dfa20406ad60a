"""Serve the app on localhost.

Settings are environment variables, or lines of a .env file here: PERSONA_MODEL, PERSONA_VECTORS, PERSONA_RESULTS,
PERSONA_ADAPTER, PERSONA_SETS, PERSONA_PORT and others. In a checkout the models in artifacts/ are the default.

examples:
  persona app
  PERSONA_MODEL=Qwen/Qwen2.5-1.5B-Instruct PERSONA_VECTORS=outputs/qwen/vectors persona app
"""

from __future__ import annotations

import argparse
import os
import sys

from persona_core.cli.options import command_parser
from persona_core.cli.running import execute
from persona_core.errors import SettingError


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("app", __doc__)
    parser.add_argument("--host", help="address to serve on (default: PERSONA_HOST, else 127.0.0.1)")
    parser.add_argument("--port", help="port to serve on (default: PERSONA_PORT, else the first free one from 7860)")
    return execute(parser, run, argv, first="loading the app")


def run(options: argparse.Namespace) -> list[str]:
    for name in ("host", "port"):
        if getattr(options, name) is not None:
            os.environ[f"PERSONA_{name.upper()}"] = getattr(options, name)
    try:
        from persona_core.app import serve
    except ModuleNotFoundError as error:
        raise SettingError(f"The app needs the package {error.name!r}: pip install 'persona-trace[app]'.") from error

    serve.main()
    return []


if __name__ == "__main__":
    sys.exit(main())
