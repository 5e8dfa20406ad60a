"""What an import costs: the package alone loads neither torch nor transformers nor the app."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "datasets", "gradio", "plotly", "scipy", "pandas", "matplotlib")


def loaded_by(code: str) -> set[str]:
    """Which of the heavy libraries a fresh interpreter has loaded after `code`."""
    report = f"{code}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import persona_core",
        "import persona_core; dir(persona_core); persona_core.__version__",
        "from persona_core import PersonaError, PersonaWarning, Trace, TraitDefinition",
        "import persona_core.utils.hub, persona_core.vectors.card, persona_core.vectors.validation",
        "import demo_world.corpus, demo_world.truth, demo_world.judge",
    ],
)
def test_what_needs_no_model_loads_no_heavy_library(code: str) -> None:
    assert loaded_by(code) == set()


def test_the_library_does_not_load_the_app() -> None:
    loaded = loaded_by(
        "import persona_core.monitor.monitor, persona_core.vectors.extraction, persona_core.elicitation.elicit"
    )
    assert "torch" in loaded and not loaded & {"gradio", "plotly", "datasets", "matplotlib"}


def test_every_public_name_is_there_and_a_wrong_one_is_an_attribute_error() -> None:
    import persona_core

    for name in persona_core.__all__:
        assert getattr(persona_core, name) is not None
        assert name in dir(persona_core)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = persona_core.no_such_name
