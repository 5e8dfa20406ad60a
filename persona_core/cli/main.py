"""`persona COMMAND ...`: finds the command's module and passes the options on; loads no other module."""

from __future__ import annotations

import argparse
import importlib
import sys
import textwrap

from persona_core.utils.version import __version__

COMMANDS = {
    "app": "serve the app on localhost",
    "serve": "serve a model to clients of OpenAI's API, with trait scores beside each token",
    "extract": "persona vectors from trait definitions: elicit, judge, extract, validate",
    "monitor": "every token's projections while a model answers prompts or reads conversations",
    "replay": "have each of two models read the other's replies",
    "analyse": "when, how and where traits rise: tables and a page of figures",
    "mark": "find the sentences that show a trait, with a judge",
    "intervene": "cap or steer replies, and see what changes",
    "contaminate": "fine-tune a LoRA adapter on trait-laden replies",
    "define-trait": "draft a trait definition with a language model",
    "import": "convert per-token result files in the older format",
    "import-vectors": "vectors of other tools: .pt, safetensors, GGUF control vectors, SAE decoder rows",
    "export-vectors": "one trait's vectors as a GGUF control vector of llama.cpp",
    "export-site": "published runs as a static site: one folder, no Python",
    "publish": "push artifacts and the app to the Hugging Face Hub",
}
EXAMPLES = """examples:
  persona extract --model Qwen/Qwen2.5-1.5B-Instruct --traits deception --judge openai:gpt-5-mini --out outputs/qwen
  persona monitor --model Qwen/Qwen2.5-1.5B-Instruct --vectors outputs/qwen/vectors --prompts pilot --out outputs/runs
  persona COMMAND --help
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="persona",
        description="Read a language model's persona traits token by token.",
        epilog=f"commands:\n{_listed()}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of the command")
    chosen = parser.parse_args(argv)
    return int(importlib.import_module(module_of(chosen.command)).main(chosen.options))


def module_of(command: str) -> str:
    """The module of a command; `import` is a Python keyword."""
    name = "import_results" if command == "import" else command.replace("-", "_")
    return f"persona_core.cli.{name}"


def _listed() -> str:
    return textwrap.indent("\n".join(f"{name:<16}{what}" for name, what in COMMANDS.items()), "  ")


if __name__ == "__main__":
    sys.exit(main())
