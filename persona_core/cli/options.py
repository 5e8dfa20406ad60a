"""Options that several commands share. Nothing here imports torch: `--help` and a mistyped option answer at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona_core.utils.ray import Workers

DTYPES = ("auto", "float32", "bfloat16", "float16")
ENGINES = ("transformers", "vllm")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines, and every option that has a default shows it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or "default:" in (action.help or ""):
            return action.help
        if isinstance(action.default, list):  # as one would type it
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `persona NAME`; the description is the module's docstring."""
    return argparse.ArgumentParser(prog=f"persona {name}", description=description, formatter_class=HelpFormatter)


def add_model(parser: argparse.ArgumentParser, adapter: bool = True) -> None:
    """Options that say which model is loaded and how; `loading` reads them."""
    parser.add_argument("--model", required=True, help="Hub id[@revision], folder or GGUF file")
    if adapter:
        parser.add_argument("--adapter", help="PEFT adapter for it: Hub id[@revision] or folder")
    else:
        parser.set_defaults(adapter=None)
    add_loading(parser)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """How a model is loaded."""
    group = parser.add_argument_group("loading the model")
    group.add_argument("--dtype", choices=DTYPES, default="auto", help="data type of the weights")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda:1, or balanced (spread over all devices)")
    group.add_argument("--quantization", choices=("8bit", "4bit"), help="quantize the weights; needs bitsandbytes")
    group.add_argument("--gguf-file", metavar="NAME", help="the GGUF file to read in the model's repository or folder")
    group.add_argument(
        "--template-kwargs",
        nargs="+",
        metavar="NAME=VALUE",
        help="arguments for the chat template, such as enable_thinking=false (default: PERSONA_TEMPLATE_KWARGS)",
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """What runs the model."""
    group = parser.add_argument_group("engine")
    group.add_argument("--engine", choices=ENGINES, default="transformers", help="vllm: for many prompts (Linux)")
    group.add_argument(
        "--tensor-parallel", type=int, default=1, metavar="N", help="with vllm: devices over which weights are spread"
    )
    group.add_argument(
        "--engine-options",
        nargs="+",
        metavar="NAME=VALUE",
        help="with vllm: arguments of its EngineArgs, such as gpu_memory_utilization=0.8",
    )


def loading(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `load_model`."""
    from persona_core.utils.hub import split_revision
    from persona_core.utils.template_kwargs import parse_template_kwargs, template_kwargs_from

    name, revision = split_revision(options.model)
    adapter, adapter_revision = (None, None) if options.adapter is None else split_revision(options.adapter)
    return {
        "name": name,
        "revision": revision,
        "adapter": adapter,
        "adapter_revision": adapter_revision,
        "dtype": options.dtype,
        "device": options.device,
        "quantization": options.quantization,
        "gguf_file": options.gguf_file,
        "template_kwargs": template_kwargs_from()
        if options.template_kwargs is None
        else parse_template_kwargs(options.template_kwargs),
        **_engine(options),
    }


def _engine(options: argparse.Namespace) -> dict[str, Any]:
    """Those of them that say what runs the model; none for commands without `add_engine`."""
    from persona_core.utils.template_kwargs import parse_template_kwargs

    if not hasattr(options, "engine_options"):
        return {}
    given = parse_template_kwargs(options.engine_options or [], "--engine-options")
    return {"engine": options.engine, "tensor_parallel": options.tensor_parallel, "engine_options": given}


def add_vectors(parser: argparse.ArgumentParser) -> None:
    """The vectors that a model is read with."""
    parser.add_argument("--vectors", required=True, help="persona vectors: Hub id[@revision] or folder")


def add_traits(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Trait definitions."""
    parser.add_argument(
        "--traits", nargs="+", required=required, help="names of shipped traits, JSON files, or folders"
    )


def add_prompts(parser: Any) -> None:
    """Prompts that a model answers."""
    parser.add_argument(
        "--prompts",
        nargs="+",
        default=["all"],
        help="pilot, harmful, expanded, all (the three), neutral, or .jsonl files",
    )


def add_results(parser: argparse.ArgumentParser) -> None:
    """A folder that `persona monitor` has written."""
    parser.add_argument("--results", type=Path, required=True, help="folder of the results dataset")


def add_work(parser: argparse.ArgumentParser) -> None:
    """Options of a resumable run."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the results dataset")
    parser.add_argument("--work", type=Path, help="folder for unfinished batches (default: OUT.work)")
    parser.add_argument("--batch-size", type=int, default=16, help="texts per forward pass")
    parser.add_argument("--blocks", default="best", help="blocks to read: best, all, or numbers such as 8,12")
    add_ray(parser)


def add_ray(parser: Any) -> None:
    """Workers of a cluster; see `workers`."""
    parser.add_argument("--ray", type=int, metavar="N", help="run on N Ray workers, each with its own model")
    parser.add_argument(
        "--gpus-per-worker", type=float, metavar="G", help="GPUs of each worker (default: 1 where the cluster has N); "
        "with more than one, --device balanced spreads the model over them",
    )  # fmt: skip


def workers(options: argparse.Namespace) -> Workers:
    """The workers of `--ray`."""
    from persona_core.utils.ray import Workers

    return Workers(options.ray, options.gpus_per_worker)


def add_seed(parser: Any, what: str = "random seed for sampling") -> None:
    """The seed."""
    parser.add_argument("--seed", type=int, default=0, help=what)


def add_reply_sampling(group: Any, max_new_tokens: int = 256, temperature: float = 0.7) -> None:
    """Length limit and sampling of replies."""
    group.add_argument(
        "--max-new-tokens", type=int, default=max_new_tokens, help="maximum length of a reply, without its thought"
    )
    group.add_argument(
        "--max-thinking-tokens", type=int, help="maximum length of the thought before a reply (default: 1024)"
    )
    group.add_argument("--temperature", type=float, default=temperature, help="sampling temperature; 0 is greedy")
